"""From logits to a steady label."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.manifest import Output
from fusedge.runtime.label import SteadyLabel, softmax

LABELS = ("a", "b", "c")
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def steady(smoothing_s: float, hysteresis: float, period_s: float = 1.0) -> SteadyLabel:
    output = Output(
        name="o",
        logits="logits",
        labels=LABELS,
        temperature=1,
        smoothing_s=smoothing_s,
        hysteresis=hysteresis,
    )
    return SteadyLabel(output, period_s)


def shares(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


@given(
    st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1),
    st.floats(0.05, 100),
)
def test_softmax_is_a_distribution_that_keeps_the_order(
    rows: list[list[float]], temperature: float
) -> None:
    logits = np.array(rows, np.float32)
    result = softmax(logits, temperature)
    assert result.dtype == np.float64 and np.isfinite(result).all() and (result >= 0).all()
    np.testing.assert_allclose(result.sum(axis=-1), 1)
    for row, out in zip(logits, result, strict=True):
        assert out[row.argmax()] == out.max()


def test_softmax_divides_by_the_temperature() -> None:
    np.testing.assert_allclose(
        softmax(np.float32([[0, math.log(3) * 2]]), 2.0), [[0.25, 0.75]], rtol=1e-6
    )


@pytest.mark.parametrize("period_s", [0.1, 1.0, 7.0])
def test_the_mean_follows_a_step_with_its_time_constant(period_s: float) -> None:
    label = steady(5.0, 0, period_s)
    label.update(shares(1, 0, 0))
    for n in range(1, 30):
        _, mean = label.update(shares(0, 1, 0))
        left = math.exp(-n * period_s / 5.0)
        np.testing.assert_allclose(mean, [left, 1 - left, 0], atol=1e-12)


def test_without_smoothing_the_mean_is_the_newest() -> None:
    label = steady(0, 0)
    for row in ([1, 0, 0], [0, 0.4, 0.6], [0.2, 0.5, 0.3]):
        name, mean = label.update(shares(*row))
        assert name == LABELS[int(np.argmax(row))]
        np.testing.assert_array_equal(mean, row)


def test_a_label_changes_only_with_a_lead_beyond_the_hysteresis() -> None:
    label = steady(0, 0.25)
    assert label.update(shares(0.4, 0.35, 0.25))[0] == "a"
    assert label.update(shares(0.25, 0.5, 0.25))[0] == "a"  # a lead of just the hysteresis
    assert label.update(shares(0.2, 0.5, 0.3))[0] == "b"
    assert label.update(shares(0.5, 0.3, 0.2))[0] == "b"
    assert label.update(shares(0.1, 0.3, 0.6))[0] == "c"


def test_after_it_has_forgotten_the_label_is_that_of_the_next_probabilities() -> None:
    label = steady(100.0, 0.9)
    for _ in range(5):
        label.update(shares(1, 0, 0))
    label.forget()
    name, mean = label.update(shares(0.3, 0.4, 0.3), periods=7)
    assert name == "b"
    np.testing.assert_array_equal(mean, [0.3, 0.4, 0.3])


def test_the_probabilities_that_are_given_stay_as_they_are() -> None:
    label, first = steady(5.0, 0), shares(1, 0, 0)
    label.update(first)
    label.update(shares(0, 1, 0))
    np.testing.assert_array_equal(first, [1, 0, 0])
