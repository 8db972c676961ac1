"""An encoder's memory, and when its modality is present."""

from __future__ import annotations

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.initial_state import initial_state
from fusedge.bundle.manifest import Modality, Part
from fusedge.bundle.window import to_ns
from fusedge.runtime.encoder import Encoder
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.stream import Window
from tests.tiny_bundle import write_tiny_bundle

HOP = to_ns(0.5)
MAX_AGE = to_ns(2)
RETURN_WINDOWS = 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge", poison=1.0)


class RunEncoder(Encoder):
    """An encoder that computes at once."""

    def __init__(self, spec: Modality, part: Part, bundle: Bundle) -> None:
        super().__init__(spec, part, initial_state(bundle, part))
        self.backend = OnnxPart(bundle, part, "cpu", "fp32")
        self.runs = self.not_finite = 0

    def step(self, window: Window) -> None:
        feeds = self.feeds(window)
        if feeds is not None:
            self.runs += 1
            self.not_finite += not self.take(window, self.backend.run(feeds))


@pytest.fixture
def encoder(bundle: Bundle) -> RunEncoder:
    part = bundle.manifest.encoders[0]
    return RunEncoder(bundle.manifest.modality("fast"), part, bundle)


def window(number: int, mean: float | None) -> Window:
    """The window that ends at `number` hops; None is an incomplete one."""
    filled = np.full((1, 5, 2), 0 if mean is None else mean, np.float32)
    valid = np.full((1, 5, 2), mean is not None, np.float32)
    return Window(number * HOP, filled, valid, mean is not None)


def embedding(encoder: RunEncoder) -> list[float]:
    assert encoder.embedding is not None
    return [float(value) for value in encoder.embedding[0]]


def value(mean: float) -> float:
    """What the poisoned encoder makes of a mean."""
    return mean + float(np.log(1 - mean))


def test_memory_goes_from_window_to_window(encoder: RunEncoder) -> None:
    for number, total in enumerate((-1, -3, -6), start=1):
        encoder.step(window(number, -number))
        assert embedding(encoder)[0] == pytest.approx(value(-number), rel=1e-5)
        expected = sum(value(-n) for n in range(1, number + 1))
        assert embedding(encoder)[1] == pytest.approx(expected, rel=1e-5), total
    assert encoder.resets == 0


def test_an_incomplete_window_keeps_the_time_of_the_memory_but_not_its_age(
    encoder: RunEncoder,
) -> None:
    encoder.step(window(1, -1))
    runs = encoder.runs
    encoder.step(window(2, None))
    assert encoder.runs == runs + 1
    assert encoder.age_ns(3 * HOP) == 2 * HOP
    encoder.step(window(3, -1))
    assert embedding(encoder)[1] == pytest.approx(2 * value(-1), rel=1e-5)
    assert encoder.resets == 0


def test_nothing_runs_before_the_first_complete_window(encoder: RunEncoder) -> None:
    for number in range(5):
        encoder.step(window(number, None))
    assert encoder.runs == 0
    assert encoder.age_ns(5 * HOP) is None
    encoder.step(window(5, -1))
    assert encoder.age_ns(5 * HOP) == 0  # nothing was lost, so nothing has to return


def test_an_embedding_ages_out_and_returns_with_hysteresis(encoder: RunEncoder) -> None:
    encoder.step(window(1, -1))
    assert encoder.age_ns(HOP + MAX_AGE) == MAX_AGE
    assert encoder.age_ns(HOP + MAX_AGE + 1) is None
    assert encoder.resets == 1 and encoder.embedding is None
    encoder.step(window(10, -1))
    assert encoder.age_ns(10 * HOP) is None
    encoder.step(window(11, None))
    encoder.step(window(12, -1))
    assert encoder.age_ns(12 * HOP) is None  # an incomplete window broke the row
    encoder.step(window(13, -1))
    assert encoder.age_ns(13 * HOP) == 0
    encoder.step(window(14, None))
    assert encoder.age_ns(14 * HOP) == HOP  # present stays present
    assert embedding(encoder)[1] == pytest.approx(3 * value(-1), rel=1e-5)  # since the loss only


@pytest.mark.parametrize("asked_between", [True, False])
def test_a_gap_resets_the_memory_whether_or_not_a_decision_saw_it(
    encoder: RunEncoder, asked_between: bool
) -> None:
    encoder.step(window(1, -1))
    if asked_between:
        assert encoder.age_ns(9 * HOP) is None
    encoder.step(window(10, -2))
    encoder.step(window(11, -2))
    assert embedding(encoder)[1] == pytest.approx(2 * value(-2), rel=1e-5)
    assert encoder.resets == 1


def test_memory_is_kept_over_windows_that_were_given_up(encoder: RunEncoder) -> None:
    encoder.step(window(1, -1))
    encoder.step(window(4, -1))
    assert encoder.age_ns(4 * HOP) == 0 and encoder.resets == 0
    assert embedding(encoder)[1] == pytest.approx(2 * value(-1), rel=1e-5)


def test_a_run_that_failed_is_a_loss(encoder: RunEncoder) -> None:
    encoder.step(window(1, -1))
    encoder.lose()
    assert encoder.age_ns(HOP) is None and encoder.resets == 1
    encoder.lose()
    assert encoder.resets == 1  # nothing more to lose
    encoder.step(window(4, -1))
    assert encoder.age_ns(4 * HOP) is None
    encoder.step(window(5, -1))
    assert encoder.age_ns(5 * HOP) == 0
    assert embedding(encoder)[1] == pytest.approx(2 * value(-1), rel=1e-5)


@pytest.mark.parametrize("poison", [1.0, 3.0])  # minus infinity and NaN
def test_an_embedding_that_is_not_finite_is_never_given_on(
    encoder: RunEncoder, poison: float
) -> None:
    encoder.step(window(1, -1))
    encoder.step(window(2, poison))
    assert encoder.not_finite == 1
    assert encoder.embedding is None and encoder.age_ns(2 * HOP) is None
    for number in (3, 4):
        encoder.step(window(number, -1))
    assert encoder.age_ns(4 * HOP) == 0
    assert embedding(encoder)[1] == pytest.approx(RETURN_WINDOWS * value(-1), rel=1e-5)
