"""A bundle is changed on a tick: nothing lost, nothing twice, and back where the new one fails."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.swap import BundleWatch
from tests.runtime.signals import by_arrival, signal
from tests.tiny_bundle import modality, write_tiny_bundle

SECONDS = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge")


def other(path: Path, bundle: Bundle, **changes: Any) -> Bundle:
    """The same parts under another temperature, by which its decisions can be told."""
    (output,) = bundle.manifest.outputs
    changes.setdefault("outputs", (output.model_copy(update={"temperature": 5.0}),))
    return write_tiny_bundle(path / "other.fusedge", **changes)


class Driven:
    """A session in which something is done just before a tick, and nothing is there in `silent` seconds."""

    def __init__(
        self,
        bundle: Bundle,
        actions: dict[int, Callable[[Session], object]],
        silent: range = range(0),
    ) -> None:
        class Source:
            uri, modalities, live, warnings = "list:", ("fast", "slow"), False, ()

            def samples(self) -> Iterator[Sample | Rejection]:
                items = by_arrival(signal("fast", 0.1, 0, SECONDS), signal("slow", 0.2, 0, SECONDS))
                for item in items:
                    second = item.arrival_ns // to_ns(1)
                    if second in actions:
                        actions.pop(second)(driven.session)
                    if second in silent:
                        yield Rejection(item.modality, item.arrival_ns, "no_fix", "")
                    else:
                        yield item

            def close(self) -> None:
                pass

        driven = self
        self.memory = MemorySink()
        self.session = Session(
            bundle, ["list:"], VirtualClock(), open_uri=lambda uri, wanted, now_ns: Source()
        )
        self.report: SessionReport = run(self.session, [self.memory])

    @property
    def swap(self) -> dict[str, Any]:
        (swap,) = self.report.summary["swaps"]
        assert isinstance(swap, dict)
        return swap

    def check_ticks(self) -> None:
        """Every tick was given out exactly once, and every sample is accounted for in both."""
        times = [d.timestamp_ns for d in self.memory.decisions]
        assert times == [to_ns(second) for second in range(1, SECONDS + 1)]
        assert self.report.summary["ledger_balanced"]


def of_new(decision: Decision) -> bool:
    """Whether the bundle with the higher temperature decided: it is less sure."""
    probabilities = decision.outputs["side"].probabilities
    assert probabilities is not None
    return bool(probabilities.max() < 0.53)


def test_a_swap_runs_as_a_shadow_then_decides_and_the_old_one_goes(
    bundle: Bundle, tmp_path: Path
) -> None:
    new = other(tmp_path, bundle)
    driven = Driven(bundle, {10: lambda s: s.swap(new, shadow_s=5, probation_s=10)})
    driven.check_ticks()
    swap = driven.swap
    assert swap["state"] == "done" and swap["bundle_sha256"] == new.sha256
    assert swap["compared"] == swap["agreed"] >= 14
    which = [of_new(d) for d in driven.memory.decisions]
    switch = which.index(True)
    assert not any(which[:switch]) and all(which[switch:])
    assert driven.memory.decisions[switch].timestamp_ns == to_ns(swap["switched_t_s"] + 1)
    assert 14 <= swap["switched_t_s"] <= 17
    assert driven.session.pipeline.bundle_sha256 == new.sha256
    (retired,) = driven.report.summary["retired"]
    assert retired["bundle_sha256"] == bundle.sha256 and retired["ledger_balanced"]
    assert not driven.report.problem


def test_pipelines_that_had_to_go_are_let_go(bundle: Bundle, tmp_path: Path) -> None:
    new = other(tmp_path, bundle)
    gone: list[weakref.ref[Any]] = []

    def again(session: Session) -> None:
        gone.append(weakref.ref(session.pipeline))
        session.swap(new, shadow_s=2, probation_s=2)

    driven = Driven(bundle, dict.fromkeys((5, 20, 35), again))
    driven.check_ticks()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    assert len(driven.report.summary["retired"]) == 3


def test_the_new_one_has_a_memory_when_it_takes_over(bundle: Bundle, tmp_path: Path) -> None:
    driven = Driven(
        bundle, {10: lambda s: s.swap(other(tmp_path, bundle), shadow_s=8, probation_s=3)}
    )
    driven.check_ticks()
    assert all(d.modalities["slow"].present for d in driven.memory.decisions[3:])


def test_one_that_disagrees_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (output,) = bundle.manifest.outputs
    swapped = output.model_copy(update={"labels": output.labels[::-1]})
    new = other(tmp_path, bundle, outputs=(swapped,))
    driven = Driven(bundle, {10: lambda s: s.swap(new, shadow_s=5, least_agreement=0.9)})
    driven.check_ticks()
    assert driven.swap["state"] == "refused" and "agrees in 0 of" in driven.swap["reason"]
    assert driven.session.pipeline.bundle_sha256 == bundle.sha256
    assert "a change of bundle was refused" in driven.report.problem


class Failing:
    """A head that fails from its `after`-th run on."""

    provider = "test"

    def __init__(self, after: int) -> None:
        self.runs, self.after = itertools.count(), after

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        if next(self.runs) >= self.after:
            raise RuntimeError("broken")
        return [np.zeros((len(feeds["presence"]), 2), np.float32)]


@pytest.mark.parametrize(
    ("after", "state"), [(0, "refused"), (3, "refused"), (6, "returned"), (14, "returned")]
)
def test_one_that_fails_is_refused_or_returned_from_without_a_tick_lost(
    bundle: Bundle, tmp_path: Path, after: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = other(tmp_path, bundle)

    def begin(session: Session) -> None:
        make = session._make_pipeline

        def failing(bundle: Bundle) -> Any:
            pipeline = make(bundle)
            pipeline.head_part.backend = Failing(after)
            return pipeline

        monkeypatch.setattr(session, "_make_pipeline", failing)
        session.swap(new, shadow_s=5, probation_s=10)

    driven = Driven(bundle, {10: begin})
    driven.check_ticks()
    assert driven.swap["state"] == state
    assert not any(d.problem for d in driven.memory.decisions)
    assert driven.session.pipeline.bundle_sha256 == bundle.sha256
    assert state in driven.report.problem


@pytest.mark.parametrize(
    ("silent", "stage"), [(range(10, 31), "shadow"), (range(26, 51), "probation")]
)
def test_a_stage_of_a_change_lasts_until_something_was_there_to_judge_it_by(
    bundle: Bundle, tmp_path: Path, silent: range, stage: str
) -> None:
    new = other(tmp_path, bundle)
    seen: list[Any] = []
    driven = Driven(
        bundle,
        {
            20: lambda s: s.swap(new, shadow_s=5, probation_s=10),
            silent[-1]: lambda s: seen.append((s._swaps[-1].state, s._swaps[-1].compared)),  # type: ignore[union-attr]
        },
        silent,
    )
    driven.check_ticks()
    assert [state for state, _ in seen] == [stage]
    assert driven.swap["state"] == "done" and driven.swap["switched_t_s"] == pytest.approx(
        36 if stage == "shadow" else 25, abs=1
    )
    assert driven.swap["compared"] == driven.swap["agreed"] < 35 - 10  # of the ticks with a label
    there = [d for d in driven.memory.decisions if not d.problem]
    assert {d.problem for d in driven.memory.decisions} == {"", "nothing_present"}
    assert not of_new(there[0]) and of_new(there[-1]) and not driven.report.problem


@pytest.mark.parametrize("content", [None, b"no bundle at all"])
def test_a_bundle_that_does_not_load_changes_nothing(
    bundle: Bundle, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "bad.fusedge"
    if content is not None:
        path.write_bytes(content)
    driven = Driven(bundle, {10: lambda s: s.swap(path)})
    driven.check_ticks()
    assert driven.swap["state"] == "refused" and str(path) in driven.swap["reason"]


def test_a_bundle_of_other_modalities_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    new = write_tiny_bundle(
        tmp_path / "one.fusedge", modalities=(bundle.manifest.modality("fast"),)
    )
    driven = Driven(bundle, {10: lambda s: s.swap(new)})
    driven.check_ticks()
    assert "it takes other modalities, channels or rates" in driven.swap["reason"]


def test_a_bundle_of_other_channels_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    fast, slow = bundle.manifest.modalities
    turned = fast.model_copy(update={"channels": fast.channels[::-1]})
    new = write_tiny_bundle(tmp_path / "turned.fusedge", modalities=(turned, slow))
    driven = Driven(bundle, {10: lambda s: s.swap(new)})
    driven.check_ticks()
    assert "it takes other modalities, channels or rates" in driven.swap["reason"]


def renamed(bundle: Bundle, **changes: Any) -> dict[str, Any]:
    (output,) = bundle.manifest.outputs
    return {"outputs": (output.model_copy(update=changes),)}


def with_fast(bundle: Bundle, **changes: Any) -> dict[str, Any]:
    return {"modalities": (modality("fast", **changes), bundle.manifest.modality("slow"))}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (lambda b: with_fast(b, rate_hz=20), "it takes other modalities, channels or rates"),
        (lambda b: with_fast(b, max_hold_s=0.5), "it takes other modalities, channels or rates"),
        (lambda b: renamed(b, name="way"), "it decides on other outputs or labels"),
        (
            lambda b: renamed(b, labels=("left", "straight")),
            "it decides on other outputs or labels",
        ),
        (lambda b: {"decision_rate_hz": 0.7}, "do not come at the same times"),
    ],
    ids=["rate", "hold", "output", "label", "period"],
)
def test_one_for_which_the_sources_or_readers_are_not_made_is_refused(
    bundle: Bundle, tmp_path: Path, changes: Callable[[Bundle], dict[str, Any]], reason: str
) -> None:
    new = write_tiny_bundle(tmp_path / "unfit.fusedge", **changes(bundle))
    driven = Driven(bundle, {10: lambda s: s.swap(new)})
    driven.check_ticks()
    assert driven.swap["state"] == "refused" and reason in driven.swap["reason"]


@pytest.mark.parametrize(
    "changes",
    [
        lambda b: {"modalities": b.manifest.modalities[::-1]},
        lambda b: with_fast(b, window_s=1, hop_s=1),
        lambda b: with_fast(b, lateness_s=0.2, max_age_s=3, return_windows=1, min_valid=0.4),
        lambda b: renamed(b, smoothing_s=0.5, hysteresis=0.2),
        lambda b: renamed(b, labels=("right", "left")),
        lambda b: {"decision_rate_hz": 2},
        lambda b: {"events": ()},
    ],
    ids=["order", "window", "patience", "smoothing", "label order", "twice as often", "no events"],
)
def test_one_that_computes_otherwise_from_the_same_is_taken(
    bundle: Bundle, tmp_path: Path, changes: Callable[[Bundle], dict[str, Any]]
) -> None:
    new = write_tiny_bundle(tmp_path / "fit.fusedge", **changes(bundle))
    driven = Driven(bundle, {10: lambda s: s.swap(new, shadow_s=5, probation_s=10)})
    assert driven.swap["state"] == "done", driven.swap["reason"]
    assert driven.report.summary["ledger_balanced"] and not driven.report.problem


def test_two_changes_at_a_time_are_refused_one_after_the_other_is_not(
    bundle: Bundle, tmp_path: Path
) -> None:
    new = other(tmp_path, bundle)

    def again(session: Session) -> None:
        with pytest.raises(FusedgeError, match="is being changed already"):
            session.swap(bundle)

    driven = Driven(
        bundle,
        {
            10: lambda s: s.swap(new, shadow_s=5, probation_s=5),
            12: again,
            40: lambda s: s.swap(bundle, shadow_s=5, probation_s=5),
        },
    )
    driven.check_ticks()
    assert [swap["state"] for swap in driven.report.summary["swaps"]] == ["done", "done"]
    assert driven.session.pipeline.bundle_sha256 == bundle.sha256


def test_a_watch_notices_another_file_and_not_the_gap_between(
    bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "watched.fusedge"
    watched = write_tiny_bundle(path)
    watch = BundleWatch(watched)
    assert not watch.changed(0)
    path.rename(tmp_path / "aside.fusedge")
    assert not watch.changed(to_ns(1))
    write_tiny_bundle(path, description="another")
    assert not watch.changed(to_ns(1.5))  # looked at once a second
    assert watch.changed(to_ns(2))
    assert not watch.changed(to_ns(3))
