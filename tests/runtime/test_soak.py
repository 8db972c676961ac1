"""A soak finds what grows, and what it is given is what it says."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime import soak as module
from fusedge.runtime.chaos import KINDS, Chaos
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.runner import run
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.soak import Repeated, Soak, SoakReport, finite, slope
from tests.media_bundle import MODALITIES, write_media_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_media_bundle(tmp_path_factory.mktemp("b") / "media.fusedge")


def soaked(bundle: Bundle, *sinks: Sink, hours: float = 0.1, **options: Any) -> SoakReport:
    soak = Soak(bundle, hours=hours, sinks=sinks, **options)
    return soak.judge(run(soak.session, soak.sinks))


class Leak(Sink):
    """Keeps what it should let go: memory, a thread, or a file."""

    name = "leak"

    def __init__(self, what: str) -> None:
        self._what = what
        self._kept: list[Any] = []
        self._end = threading.Event()

    def open(self, header: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def write(self, item: Any) -> None:
        if self._what == "memory":
            self._kept.append(bytearray(b"x" * 100_000))
        elif len(self._kept) < 3:
            if self._what == "threads":
                self._kept.append(threading.Thread(target=self._end.wait, daemon=True))
                self._kept[-1].start()
            else:
                self._kept.append(Path(__file__).open("rb"))  # noqa: SIM115

    def close(self, summary: dict[str, Any]) -> None:
        """It does not."""

    def release(self) -> None:
        self._end.set()
        if self._what == "files":
            for file in self._kept:
                file.close()


def test_six_minutes_miss_no_bar(bundle: Bundle) -> None:
    seen: list[tuple[float, float]] = []
    report = soaked(bundle, progress=lambda simulated_s, wall_s: seen.append((simulated_s, wall_s)))
    assert report.missed == [] and report.ended == "end of input"
    assert report.simulated_h == pytest.approx(0.1, abs=0.001)
    assert abs(report.decisions - 4 * 360) <= 2
    assert report.ledger_exact and report.ticks_skipped == 0
    # 20 Hz, 30 frames a second although the grid has 10, and 1000 samples of sound at +300 ppm.
    assert report.samples == pytest.approx((20 + 30 + 1000.3) * 360, rel=0.001)
    assert report.skew_ms is not None and 0 < report.skew_ms < 5
    assert report.drift_ppm["sound"] == pytest.approx(300, abs=20)
    assert report.slope is None, "nobody can tell a slope a day of minutes"
    assert len(seen) > 100 and seen == sorted(seen)
    assert report.as_dict()["end"]["threads"] == report.end.threads


@pytest.mark.parametrize(("stop_h", "judged"), [(0.03, False), (1.0, True)])
def test_a_slope_is_told_of_what_has_run_for_long_enough(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, stop_h: float, judged: bool
) -> None:
    monkeypatch.setattr(module, "LEAST_H", 0.1)
    soak = Soak(bundle, hours=0.1, progress=lambda s, _: s > stop_h * 3600 and soak.session.stop())
    report = soak.judge(run(soak.session, soak.sinks))
    assert (report.slope is not None) == judged
    assert report.slope is None or report.slope.low <= report.slope.high


@pytest.mark.parametrize("what", ["memory", "threads", "files"])
def test_a_leak_is_found(bundle: Bundle, what: str) -> None:
    leak = Leak(what)
    report = soaked(bundle, leak)
    leak.release()
    assert len(report.missed) == 1 and f"{what} grew" in report.missed[0]


def test_a_day_of_chaos_keeps_the_ledger(bundle: Bundle) -> None:
    clock = VirtualClock()
    chaos = Chaos(list(KINDS), clock, every_s=30)
    report = soaked(bundle, clock=clock, chaos=chaos)
    assert report.ledger_exact and report.ticks_skipped == 0
    assert report.skew_ms is None, "chaos takes and makes sound that the device knows nothing of"
    assert report.chaos is not None and sum(report.chaos["count"].values()) > 50


def test_a_bar_that_is_missed_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = SyntheticSource.sound_ns
    monkeypatch.setattr(
        SyntheticSource, "sound_ns", lambda *arguments: shifted(*arguments) + to_ns(0.006)
    )
    report = soaked(bundle)
    assert len(report.missed) == 1 and "sound was 6." in report.missed[0]


def test_the_slope_of_a_line_and_of_a_step() -> None:
    times = np.linspace(0, 86_400, 720)
    line = slope(times, 50 + 2 * times / 86_400)
    assert line.mb_per_day == pytest.approx(2) and line.high - line.low < 1e-9
    step = slope(times, np.where(times > 10_000, 51.0, 50.0))
    assert step.low < 1 < step.high, "one step is no trend"


def test_nothing_to_decide_is_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticSource, "samples", lambda self: iter(()))
    with pytest.raises(FusedgeError, match="synthetic:: the soak made no decision"):
        soaked(bundle)


class Trip:
    """A recording of a second, whose last stamp is earlier than its arrival."""

    live = False
    uri = "trip"
    modalities = ("motion",)
    channels = {"motion": ("x", "y")}  # noqa: RUF012
    units: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    warnings = ()

    def samples(self) -> Iterator[Sample | Rejection]:
        yield Sample("motion", to_ns(100.0), to_ns(100.1), np.zeros(2, np.float32))
        yield Rejection("motion", to_ns(100.5), "malformed", "torn")
        yield Sample("motion", to_ns(100.9), to_ns(101.1), np.zeros(2, np.float32))

    def close(self) -> None:
        """Nothing is open."""


def test_a_recording_goes_on_with_the_same_delays() -> None:
    items = list(Repeated(Trip, to_ns(5.2)).samples())
    assert [item.arrival_ns / 1e9 for item in items] == pytest.approx(
        [100.1, 100.5, 101.1, 102.1, 102.5, 103.1, 104.1, 104.5, 105.1]
    )
    delays = [i.arrival_ns - i.timestamp_ns for i in items if isinstance(i, Sample)]
    assert delays == [to_ns(0.1), to_ns(0.2)] * 3


def test_an_empty_recording_is_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trip, "samples", lambda self: iter(()))
    assert list(Repeated(Trip, to_ns(10)).samples()) == []


def test_synthetic_devices_do_as_they_say() -> None:
    def played() -> list[Sample]:
        return list(SyntheticSource("synthetic:", MODALITIES, 60, seed=3).samples())

    source, items = SyntheticSource("synthetic:", MODALITIES, 60, seed=3), played()
    arrivals = [item.arrival_ns for item in items]
    assert arrivals == sorted(arrivals) and arrivals[-1] <= to_ns(60)
    for one, other in zip(items, played(), strict=True):
        assert one[:3] == other[:3] and np.array_equal(one.data, other.data)
    for spec in MODALITIES:
        mine = [item for item in items if item.modality == spec.name]
        late = [item.arrival_ns - item.timestamp_ns for item in mine]
        assert min(late) >= 0 and max(late) <= to_ns(0.021)
        low = [channel.minimum for channel in spec.channels]
        high = [channel.maximum for channel in spec.channels]
        assert all((item.data >= low).all() and (item.data <= high).all() for item in mine)
        changes = [(a.data != b.data).any() for a, b in itertools.pairwise(mine)]
        assert all(changes), "nothing stands still"
    expected = {"motion": 1199, "view": 1799, "sound": 2997}
    found = Counter(item.modality for item in items)
    assert found == expected
    blocks = [item for item in items if item.modality == "sound"]
    for number, block in enumerate(blocks, 1):
        assert 0 <= block.timestamp_ns - source.sound_ns("sound", 20 * number) <= to_ns(0.021)


def test_a_value_that_is_not_finite_is_not_taken_for_one(bundle: Bundle) -> None:
    memory = MemorySink()
    soaked(bundle, memory, hours=0.01)
    decision: Decision = memory.decisions[-1]
    assert finite(decision)
    mean = decision.outputs["side"].mean
    assert mean is not None
    mean[0] = np.nan
    assert not finite(decision)
