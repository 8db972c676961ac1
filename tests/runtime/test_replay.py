"""A recorded session, done again: the same bytes, whatever the machine did at the time."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import (
    DECISIONS,
    JOURNAL,
    Document,
    Message,
    document_message,
    rejection_message,
    sample_message,
    tracks_of,
)
from fusedge.bundle.recording_file import Gap, Info, RecordingFile, RecordingWriter
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.source import open_source
from fusedge.runtime.backend import BackendSetting
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.journal import Cut, Tick
from fusedge.runtime.part import Failure, Job
from fusedge.runtime.pipeline import Pipeline
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.recorder import Recorder
from tests.runtime.signals import signal
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def header(bundle: Bundle) -> dict[str, Any]:
    runs = {"backend": "onnxruntime", "provider": "CPUExecutionProvider", "precision": "fp32"}
    return {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "parts": {part.name: runs for part in bundle.manifest.parts},
        "sources": ["test"],
    }


def wild_input(seed: int, seconds: float) -> list[Sample | Rejection]:
    """Samples of two modalities that come late, twice, out of order, with NaN, or not at all."""
    dice = random.Random(seed)
    items: list[Sample | Rejection] = []
    for name in ("fast", "slow"):
        for sample in signal(name, lambda t: 12 * np.sin(t), 0, seconds):
            arrival_ns = sample.arrival_ns + to_ns(dice.choice([0.0, 0.01, 0.05, 0.3]))
            data = sample.data.copy()
            kind = dice.random()
            if kind < 0.03:
                items.append(Rejection(name, arrival_ns, "torn", f"at {arrival_ns}"))
                continue
            if kind < 0.06:
                data[0] = dice.choice([np.nan, np.inf, 1e9])
            if kind < 0.08:
                data = data[:1]
            sample = sample._replace(arrival_ns=arrival_ns, data=data)
            items += [sample] * (2 if kind > 0.97 else 1)
    items.sort(key=lambda item: item.arrival_ns)
    return items


def live_session(bundle: Bundle, path: Path, seed: int, seconds: float = 40) -> list[str]:
    """A session as an overloaded machine does it: late, with runs that overlap, fail and hang.

    Returns what it decided, as JSON.
    """
    dice = random.Random(seed)
    recorder = Recorder(path, tracks_of(bundle.manifest))
    recorder.open(header(bundle))
    pipeline = Pipeline(bundle, concurrent=True, journal=recorder.write)
    lines: list[str] = []
    jobs: list[Job] = []
    items: Iterator[Sample | Rejection] = iter(wild_input(seed, seconds))
    now_ns, item = 0, next(items, None)
    pipeline.start(0)

    def emit() -> None:
        for result in pipeline.take_results():
            lines.append(json.dumps(result.as_dict()))
            recorder.write(result)

    while item is not None:
        now_ns += to_ns(
            dice.choice([0.01, 0.02, 0.1, 0.1, 0.1, 3.0 if dice.random() < 0.1 else 0.1])
        )
        while item is not None and item.arrival_ns <= now_ns:
            pipeline.push(item)
            item = next(items, None)
        for part in pipeline.parts:
            if part.restart_due(now_ns):
                part.reserve()
                part.reload()(now_ns)
        while (step := pipeline.choose(now_ns)) is not None:
            job = pipeline.begin(step, now_ns)
            emit()
            if job is not None:
                jobs.append(job)
            if dice.random() < 0.5:
                break
        dice.shuffle(jobs)
        while jobs and dice.random() < 0.8:
            job = jobs.pop()
            failed = dice.random() < 0.1
            outcome = Failure("raised") if failed else job.run()
            now_ns += to_ns(dice.random() * 0.02)
            pipeline.finish(job, outcome, now_ns)
            emit()
    recorder.close({})
    return lines


@pytest.mark.parametrize("seed", range(8))
def test_an_overloaded_session_comes_out_the_same(tmp_path: Path, tiny: Bundle, seed: int) -> None:
    path = tmp_path / "a.mcap"
    lines = live_session(tiny, path, seed)
    sink = MemorySink()
    report = replay_exactly(tiny, path, [sink])
    assert report.identical, report.difference
    assert not report.stopped
    assert report.identical_decisions == report.decisions == len(sink.decisions) > 10
    assert report.identical_events == report.events == len(sink.events)
    assert report.decisions + report.events == len(lines)


def test_20_replays_have_one_sha256(tmp_path: Path, tiny: Bundle) -> None:
    path = tmp_path / "a.mcap"
    live_session(tiny, path, 99)
    assert len({replay_exactly(tiny, path).sha256 for _ in range(20)}) == 1


def test_shuffled_arrival_gives_one_sha256_as_a_source(tmp_path: Path, tiny: Bundle) -> None:
    """Whatever the order within the allowed lateness, the same windows and the same decisions."""
    base = [*signal("fast", np.sin, 0, 30), *signal("slow", np.cos, 0, 30)]
    outcomes = set()
    for seed in range(20):
        dice = random.Random(seed)
        shuffled = [s._replace(arrival_ns=s.arrival_ns + dice.randrange(99_000_000)) for s in base]
        shuffled.sort(key=lambda sample: sample.arrival_ns)
        path = tmp_path / f"{seed}.mcap"
        recorder = Recorder(path, tracks_of(tiny.manifest))
        recorder.open({})
        for sample in shuffled:
            recorder.write(sample)
        recorder.close({})
        source = open_source(f"replay:{path}", None, lambda: 0)
        read = [(s.arrival_ns, s.timestamp_ns, s.data.tobytes()) for s in source.samples()]
        assert read == [(s.arrival_ns, s.timestamp_ns, s.data.tobytes()) for s in shuffled]
        sink = MemorySink()
        run(Session(tiny, [f"replay:{path}"], VirtualClock()), [sink])
        outcomes.add(json.dumps([decision.as_dict() for decision in sink.decisions[:28]]))
    assert len(outcomes) == 1


def test_a_recorded_session_on_the_virtual_clock_is_the_same_in_every_way(
    tmp_path: Path, tiny: Bundle
) -> None:
    source = tmp_path / "source.mcap"
    live_session(tiny, source, 5)
    path = tmp_path / "a.mcap"
    session = Session(tiny, [f"replay:{source}"], VirtualClock())
    report = run(session, [Recorder(path, tracks_of(tiny.manifest))])
    replay = replay_exactly(tiny, path)
    assert replay.identical
    assert replay.decisions == report.summary["decisions"]
    assert all(report.summary[name] == value for name, value in replay.summary.items())


def rewritten(path: Path, target: Path, change: Any) -> None:
    """A recording with every message passed through `change`, which may drop it."""
    file = RecordingFile(path)
    writer = RecordingWriter(target, file.info)
    tracks = file.info.tracks
    for number, entry in enumerate(file.entries()):
        assert not isinstance(entry, Gap)
        message: Message | None
        if isinstance(entry, Sample):
            message = sample_message(entry, tracks.get(entry.modality))
        elif isinstance(entry, Rejection):
            message = rejection_message(entry)
        else:
            message = Message(*entry)
        message = change(number, message)
        if message is not None:
            writer.add(message)
    writer.close({})


def test_a_difference_is_told_with_time_and_field(tmp_path: Path, tiny: Bundle) -> None:
    path, other = tmp_path / "a.mcap", tmp_path / "b.mcap"
    live_session(tiny, path, 1)
    seen = 0

    def change(number: int, message: Message) -> Message:
        nonlocal seen
        if message.channel == DECISIONS:
            seen += 1
            if seen in (5, 9):
                fields = json.loads(message.data)
                fields["modalities"]["fast"]["age_s"] = 123.0
                return document_message(DECISIONS, message.log_ns, message.publish_ns, fields)
        return message

    rewritten(path, other, change)
    report = replay_exactly(tiny, other)
    assert not report.identical
    assert report.identical_decisions == report.decisions - 2
    assert "s: modalities.fast.age_s was 123.0, is " in report.difference


def test_a_sample_that_was_tampered_with_shows(tmp_path: Path, tiny: Bundle) -> None:
    path, other = tmp_path / "a.mcap", tmp_path / "b.mcap"
    live_session(tiny, path, 1)
    seen = 0

    def change(number: int, message: Message) -> Message:
        nonlocal seen
        seen += message.channel.modality == "fast"
        if seen == 50:
            seen += 1
            track = tracks_of(tiny.manifest)["fast"]
            data = np.array([99, 99], np.float32)
            return sample_message(Sample("fast", message.publish_ns, message.log_ns, data), track)
        return message

    rewritten(path, other, change)
    assert replay_exactly(tiny, other).difference


def test_after_a_kill_it_is_exact_as_far_as_it_goes(tmp_path: Path, tiny: Bundle) -> None:
    path = tmp_path / "a.mcap"
    live_session(tiny, path, 2, seconds=400)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    report = replay_exactly(tiny, path)
    assert report.identical
    assert report.decisions > 50
    assert report.identical_decisions == report.decisions
    assert "cut off" in report.stopped


def test_it_is_exact_up_to_the_first_gap(tmp_path: Path, tiny: Bundle) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, tracks_of(tiny.manifest))
    recorder.open(header(tiny))
    recorder.write(Sample("fast", 0, 0, np.zeros(2, np.float32)))
    recorder.lost(7)
    recorder.write(Sample("fast", 1, to_ns(2.5), np.zeros(2, np.float32)))
    recorder.close({})
    report = replay_exactly(tiny, path)
    assert report.identical
    assert "up to a gap in the recording at 0.000 s" in report.stopped


def test_another_bundle_is_refused_with_a_way_out(tmp_path: Path, tiny: Bundle) -> None:
    path = tmp_path / "a.mcap"
    live_session(tiny, path, 1, seconds=3)
    other = write_tiny_bundle(tmp_path / "other", description="another one")
    with pytest.raises(FusedgeError, match=r"another bundle.*fusedge run BUNDLE --source replay:"):
        replay_exactly(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exact": False}, "JPEG"),
        ({"clip": "jolt at 3 s", "exact": False}, "is a clip"),
        ({"session": {}}, "without a bundle"),
        ({"session": {"sources": ["sim:"]}}, "without a bundle"),
    ],
)
def test_what_cannot_be_exact_is_refused(
    tmp_path: Path, tiny: Bundle, change: dict[str, Any], message: str
) -> None:
    fields: dict[str, Any] = {
        "format_version": 1,
        "fusedge": "x",
        "exact": True,
        "clip": "",
        "tracks": tracks_of(tiny.manifest),
        "session": header(tiny),
    }
    path = tmp_path / "a.mcap"
    RecordingWriter(path, Info(**{**fields, **change})).close({})
    with pytest.raises(FusedgeError, match=message):
        replay_exactly(tiny, path)


CUT = {"type": "cut", "modality": "fast", "end_ns": to_ns(0.5), "skipped": 0, "reason": ""}
TICK = {"type": "tick", "tick_ns": to_ns(1), "skipped": 0, "reason": ""}
FINISH = {"type": "finish", "part": "head", "failure": "", "now_ns": 5}


@pytest.mark.parametrize(
    "journal",
    [
        [{}],
        [{"type": "dance"}],
        *([{"type": odd}] for odd in (None, 1, [], {}, ["cut"], {"cut": 1})),
        *([{**CUT, name: odd}] for name in CUT if name != "type" for odd in ([], {}, 10**400)),
        [{**CUT, "modality": "nose"}],
        [{**CUT, "skipped": -1}],
        [{**CUT, "skipped": 10**30}],
        [{**CUT, "end_ns": to_ns(0.7)}],
        [{**CUT, "end_ns": "now"}],
        [{**CUT, "reason": None}],
        [{**CUT, "more": 1}],
        [CUT, CUT],
        [{**TICK, "skipped": True}],
        [TICK, TICK],
        [TICK, FINISH, TICK],
        [FINISH],
        [{**FINISH, "part": 3}],
    ],
)
def test_a_journal_that_makes_no_sense_ends_the_replay(
    tmp_path: Path, tiny: Bundle, journal: list[dict[str, Any]]
) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, tracks_of(tiny.manifest))
    recorder.open(header(tiny))
    for sample in signal("fast", 1.0, 0, 1):
        recorder.write(sample)
    recorder.close({})
    other = tmp_path / "b.mcap"
    file = RecordingFile(path)
    writer = RecordingWriter(other, file.info)
    for entry in file.entries():
        assert isinstance(entry, Sample)
        writer.add(sample_message(entry, file.info.tracks["fast"]))
    for fields in journal:
        writer.add(document_message(JOURNAL, 1, 1, fields))
    writer.close({})
    assert "the journal makes no sense" in replay_exactly(tiny, other).stopped


ODD = (
    None,
    True,
    -1,
    10**400,
    float("nan"),
    "\x1b[31m",
    ["x"],
    {},
    {"a": ["x"]},
    [[[[[[[[[]]]]]]]]],
)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:12])
def test_a_session_of_any_kind_is_replayed_or_refused_in_a_line(
    tmp_path: Path, tiny: Bundle, odd: Any
) -> None:
    parts: list[dict[str, Any]] = [{"head": {"provider": odd}}, {"head": {"precision": odd}}]
    headers: list[dict[str, Any]] = [
        *({**header(tiny), name: odd} for name in (*header(tiny), "latency_s")),
        *({**header(tiny), "parts": part} for part in (*parts, {"head": odd})),
        {**header(tiny), "latency_s": {"fast": odd}},
    ]
    for number, session in enumerate(headers):
        path = tmp_path / f"{number}.mcap"
        recorder = Recorder(path, tracks_of(tiny.manifest))
        recorder.open(session)
        recorder.close({})
        try:
            assert replay_exactly(tiny, path).identical
        except FusedgeError as error:
            assert error.line().isprintable() and len(error.line()) < 500


@pytest.mark.parametrize("provider", ["ROCMExecutionProvider", None])
def test_a_provider_that_is_not_known_here_is_no_cpu(
    tmp_path: Path, tiny: Bundle, provider: str | None
) -> None:
    path = tmp_path / "a.mcap"
    session = header(tiny)
    session["parts"]["head"] = {**session["parts"]["head"], "provider": provider}
    recorder = Recorder(path, tracks_of(tiny.manifest))
    recorder.open(session)
    recorder.close({})
    with pytest.raises(FusedgeError, match=rf"part head of the recording: ran on '?{provider}"):
        replay_exactly(tiny, path)
    assert replay_exactly(tiny, path, backend=BackendSetting(provider="cpu")).identical


@pytest.mark.parametrize("time_ns", [2**61, 2**62, 2**63 - 1, -(2**61), -(2**63)])
def test_times_beyond_all_bounds_are_replayed_or_end_it(
    tmp_path: Path, tiny: Bundle, time_ns: int
) -> None:
    for number, stamps in enumerate(([time_ns, time_ns], [time_ns, 0], [0, time_ns])):
        path = tmp_path / f"{number}.mcap"
        recorder = Recorder(path, tracks_of(tiny.manifest))
        recorder.open(header(tiny))
        for stamp_ns, arrival_ns in (stamps, [s - 5 if s > 0 else s + 5 for s in stamps]):
            recorder.write(Sample("fast", stamp_ns, arrival_ns, np.zeros(2, np.float32)))
        recorder.write(Cut("fast", time_ns, 0, ""))
        recorder.write(Tick(time_ns, 0, "", 5))
        recorder.close({})
        assert not replay_exactly(tiny, path).decisions
        report = run(Session(tiny, [f"replay:{path}"], VirtualClock()), [])
        assert report.summary["ledger_balanced"] and report.problem


def test_documents_are_not_input(tmp_path: Path, tiny: Bundle) -> None:
    path = tmp_path / "a.mcap"
    live_session(tiny, path, 3, seconds=5)
    items = list(open_source(f"replay:{path}", None, lambda: 0).samples())
    recorded = [e for e in RecordingFile(path).entries() if not isinstance(e, Document)]
    assert len(items) == len(recorded)
