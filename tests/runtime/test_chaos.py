"""Faults on purpose: a session survives every kind, and its accounts balance at every moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.recording import tracks_of
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime.chaos import KINDS, MAX_TOLD, Chaos, parse_kinds
from fusedge.runtime.clock import Clock, PacedClock, VirtualClock
from fusedge.runtime.journal import Entry
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.recorder import Recorder
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.soak import finite
from tests.media_bundle import MODALITIES, PERIOD_S, write_media_bundle

VIRTUAL = [kind for kind in KINDS if not KINDS[kind].real]
REAL = [kind for kind in KINDS if KINDS[kind].real]
MAX_WAITING = {"motion": 1000, "view": 200, "sound": 50_000}  # samples, beyond any of the buffers


class Chaotic:
    """A session of the media bundle with faults, watched at every step."""

    def __init__(
        self, bundle: Bundle, kinds: list[str], seed: int, clock: Clock, seconds: float = 20
    ) -> None:
        self.memory = MemorySink()
        self.chaos = Chaos(kinds, clock, seed=seed, every_s=6)
        self.pushed: dict[str, int] = {}

        def open_uri(uri: str, wanted: Any, now_ns: Any) -> SyntheticSource:
            spec = bundle.manifest.modality(uri)
            return SyntheticSource(uri, [spec], seconds, seed=seed)

        names = [spec.name for spec in MODALITIES]
        self.session = Session(bundle, names, clock, open_uri=open_uri, chaos=self.chaos)
        self.pipeline = self.session.pipeline

    def run(self, *sinks: Sink) -> SessionReport:
        """Run it, with `sinks` at the mercy of chaos, and check what must hold at the end."""
        self.pipeline.journal = self.check_step  # called before each change
        report = run(self.session, [self.memory, *self.chaos.sinks(sinks)])
        self._check_end(report)
        return report

    def check_step(self, entry: Entry | None = None) -> None:
        assert self.pipeline.balanced, self.pipeline.statistics()
        for name, account in self.pipeline.ledger.accounts.items():
            assert account.in_flight <= MAX_WAITING[name]

    def _check_end(self, report: SessionReport) -> None:
        self.check_step()
        summary = report.summary
        assert report.ended == "end of input"
        assert summary["ledger_balanced"] and not report.problem
        ticks = [decision.timestamp_ns for decision in self.memory.decisions]
        period_ns = to_ns(PERIOD_S)
        steps = np.diff(ticks)
        assert len(ticks) > 4 and (steps > 0).all() and not (steps % period_ns).any()
        assert int((steps // period_ns - 1).sum()) <= summary["ticks_skipped"]
        assert summary["decisions"] == len(ticks)
        assert all(finite(decision) for decision in self.memory.decisions)
        for name, source in summary["sources"].items():
            assert source["received"] == source["used"] + sum(source["dropped"].values())
            if not self.session.clock.real:
                assert source["received"] == summary["ledger"][name]["received"]
        for name, sink in summary["sinks"].items():
            assert sink["received"] == sink["used"] + sum(sink["dropped"].values()), name
        for fault in summary["chaos"]["faults"]:
            assert fault["kind"] in self.chaos.kinds and fault["start_s"] < fault["end_s"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_media_bundle(tmp_path_factory.mktemp("b") / "media.fusedge")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", VIRTUAL)
def test_every_sample_is_accounted_for_at_every_step(
    bundle: Bundle, tmp_path: Path, kind: str, seed: int
) -> None:
    report = Chaotic(bundle, [kind], seed, VirtualClock()).run(JsonLinesSink(tmp_path / "out"))
    assert report.summary["chaos"]["count"][kind] >= 1


@pytest.mark.parametrize("seed", range(3))
def test_all_kinds_together(bundle: Bundle, tmp_path: Path, seed: int) -> None:
    Chaotic(bundle, list(KINDS), seed, VirtualClock(), 60).run(JsonLinesSink(tmp_path / "out"))


@pytest.mark.real_time
@pytest.mark.parametrize("kind", [*REAL, "flap", "stall", "part-crash", "disk-full", "overflow"])
def test_a_paced_session_survives_as_well(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    clock = PacedClock(40)
    report = Chaotic(bundle, [kind], 1, clock).run(JsonLinesSink(tmp_path / "out"))
    assert report.summary["chaos"]["count"][kind] >= 1
    assert report.timing["wall_s"] < 2


@pytest.mark.real_time
def test_all_kinds_together_in_real_time(bundle: Bundle, tmp_path: Path) -> None:
    Chaotic(bundle, list(KINDS), 2, PacedClock(40), 40).run(JsonLinesSink(tmp_path / "out"))


class LiveSource:
    """A device that is there while the clock goes on, and stamps what it gives with it."""

    live = True
    warnings: tuple[str, ...] = ()
    modalities = ("motion",)
    channels: ClassVar[Mapping[str, tuple[str, ...]]] = {"motion": ("x", "y")}
    units: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, uri: str, clock: Clock, end_ns: int) -> None:
        self.uri, self._clock, self._end_ns = uri, clock, end_ns
        self._closed = threading.Event()

    def samples(self) -> Iterator[Sample]:
        number = 0
        while not self._closed.wait(0.001):
            now_ns = self._clock.now_ns()
            number += 1
            yield Sample("motion", now_ns, now_ns, np.full(2, number % 7, np.float32))

    def close(self) -> None:
        self._closed.set()


@pytest.mark.real_time
@pytest.mark.parametrize("kind", ["flap", "source-hang", "silence"])
def test_a_live_source_is_opened_again(bundle: Bundle, kind: str) -> None:
    clock = PacedClock(20)
    chaos = Chaos([kind], clock, seed=3, every_s=6)
    session = Session(
        bundle,
        ["device"],
        clock,
        silence_s=0.5,
        open_uri=lambda uri, wanted, now_ns: LiveSource(uri, clock, to_ns(40)),
        chaos=chaos,
    )
    memory = MemorySink()
    timer = threading.Timer(2.0, session.stop)
    timer.start()
    report = run(session, [memory])
    assert report.ended == "interrupted" and not report.problem
    source = report.summary["sources"]["device"]
    assert source["failures"] >= 1 and source["restarts"] >= 1
    shares = [decision.modalities["motion"].present for decision in memory.decisions]
    assert True in shares[shares.index(False) :], "it comes back"


def test_the_same_seed_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    written = []
    for seed in (5, 5, 6):
        out = tmp_path / "out"
        Chaotic(bundle, VIRTUAL, seed, VirtualClock(), 40).run(JsonLinesSink(out))
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_the_summary_says_what_struck_and_when(bundle: Bundle) -> None:
    chaotic = Chaotic(bundle, ["silence"], 1, VirtualClock())
    summary = chaotic.run().summary
    assert chaotic.session.header["chaos"] == {"seed": 1, "kinds": ["silence"], "every_s": 6}
    faults = summary["chaos"]["faults"]
    assert len(faults) == summary["chaos"]["count"]["silence"] > 3
    assert {fault["target"] for fault in faults} == {spec.name for spec in MODALITIES}
    for fault in faults:
        # A window of motion is due 0.1 s after its end, and its embedding is kept for a second.
        gone = (fault["start_s"] + 1.4, fault["end_s"])
        for decision in chaotic.memory.decisions:
            if gone[0] < decision.timestamp_ns / 1e9 < gone[1]:
                assert not decision.modalities[fault["target"]].present


def test_a_day_of_faults_is_not_listed_without_end(bundle: Bundle) -> None:
    chaos = Chaos(["lost"], VirtualClock(), every_s=2)
    strikes = chaos.strikes("lost", "device")
    for second in range(5000):
        strikes.at(to_ns(second))
    report = chaos.report()
    assert report["count"]["lost"] > len(report["faults"]) == MAX_TOLD


def test_kinds_are_checked_with_the_closest_match() -> None:
    assert parse_kinds("all") == list(KINDS)
    assert parse_kinds("stall, nan") == ["stall", "nan"]
    with pytest.raises(UnknownNameError, match="did you mean 'clock-step'"):
        parse_kinds("stall,clok-step")
    with pytest.raises(UnknownNameError):
        parse_kinds("")


def test_what_needs_real_time_is_left_out_on_a_virtual_clock(bundle: Bundle) -> None:
    chaotic = Chaotic(bundle, ["part-hang", "nan"], 0, VirtualClock())
    assert "chaos: only in real time: part-hang" in chaotic.session.warnings
    assert chaotic.chaos.kinds == ["nan"]
    with pytest.raises(FusedgeError, match="part-hang, slow-sink: strikes in real time only"):
        Chaos(["part-hang", "slow-sink"], VirtualClock())


def test_a_sink_that_fails_on_a_virtual_clock_is_counted(bundle: Bundle, tmp_path: Path) -> None:
    chaotic, out = Chaotic(bundle, ["disk-full"], 2, VirtualClock(), 40), tmp_path / "out"
    summary = chaotic.run(JsonLinesSink(out)).summary
    sink = summary["sinks"][str(out)]
    assert sink["failures"] >= 1 and "No space left" in sink["first_failure"]
    assert sink["dropped"]["sink_failed"] >= 1
    lines = out.read_text().splitlines()
    assert len(lines) == sink["used"] + 2 and '"type":"summary"' in lines[-1]


@pytest.mark.parametrize("seed", range(2))
def test_what_was_recorded_under_chaos_is_replayed_to_the_bit(
    bundle: Bundle, tmp_path: Path, seed: int
) -> None:
    # A part that gave NaN by chance does not give it again.
    chaotic = Chaotic(bundle, [k for k in KINDS if k != "part-nan"], seed, VirtualClock(), 30)
    recorder = Recorder(tmp_path / "trip.mcap", tracks_of(bundle.manifest))
    run(chaotic.session, [chaotic.memory, recorder])
    replayed = replay_exactly(bundle, tmp_path / "trip.mcap")
    assert replayed.identical, replayed.difference
    assert replayed.decisions == len(chaotic.memory.decisions) > 100


def test_a_sink_under_chaos_is_asked_for_all_that_a_sink_does() -> None:
    calls: list[str] = []

    class Told(MemorySink):
        closing_s = 7.0

        def __getattribute__(self, name: str) -> Any:
            if callable(getattr(Sink, name, None)):
                calls.append(name)
            return super().__getattribute__(name)

    for journal in (False, True):
        told = type("ToldMore", (Told,), {"journal": journal})()
        (sink,) = Chaos(["sink-crash"], VirtualClock()).sinks([told])
        assert (sink.name, sink.closing_s, sink.journal) == (told.name, 7.0, journal)
        calls.clear()
        methods = [name for name in vars(Sink) if callable(getattr(Sink, name)) and name[0] != "_"]
        arguments: dict[str, list[Any]] = {"lost": [1], "flush": [], "write": [None]}
        for name in methods:
            getattr(sink, name)(*arguments.get(name, [{}]))
        assert calls == methods and "flush" in methods


def test_a_reader_that_went_away_ends_the_session(bundle: Bundle) -> None:
    class Gone(MemorySink):
        def write(self, item: Any) -> None:
            raise BrokenPipeError

    chaotic = Chaotic(bundle, ["sink-crash"], 0, VirtualClock())
    with pytest.raises(BrokenPipeError):
        run(chaotic.session, [chaotic.memory, *chaotic.chaos.sinks([Gone()])])
    assert len(chaotic.memory.decisions) == 1
