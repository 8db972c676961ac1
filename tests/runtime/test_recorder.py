"""The recorder: nothing given to it is lost by a kill, a full disk or a slow disk without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("mcap")
from mcap.reader import make_reader

from fusedge.bundle import recording_file
from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import Document, Track, tracks_of
from fusedge.bundle.recording_file import Gap, RecordingFile
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import Classification, Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Cut, Entry, Finish, Swapped, Tick
from fusedge.runtime.sinks import recorder as recorder_module
from fusedge.runtime.sinks.recorder import EventClips, Recorder
from tests.runtime.kill_recording import ROOT, killed_recording
from tests.runtime.signals import by_arrival, signal
from tests.tiny_bundle import write_tiny_bundle

TRACKS = {"imu": Track(("x", "y"), 100.0)}
HEADER = {"bundle": "tiny", "sources": ["test"]}


def imu(number: int) -> Sample:
    return Sample("imu", number * 10**7, number * 10**7, np.array([number, 0], np.float32))


def numbers(path: Path) -> list[int]:
    entries = RecordingFile(path).entries()
    return [round(float(entry.data[0])) for entry in entries if isinstance(entry, Sample)]


def test_what_was_written_is_in_the_file_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]
    monkeypatch.setattr(recorder_module, "stopwatch_ns", lambda: now[0])
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    assert numbers(path) == []
    for number in range(100):
        now[0] = to_ns(number * 0.01)
        recorder.write(imu(number))
        assert len(numbers(path)) >= number - 25  # what is older than a quarter of a second
    recorder.flush()
    assert len(numbers(path)) == 100
    recorder.close({"ended": "end of input"})
    file = RecordingFile(path)
    assert (len(list(file.entries())), file.complete, file.info.session) == (100, True, HEADER)


def test_all_kinds_of_entries_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    for item in (
        imu(1),
        Rejection("imu", 5, "torn", "line 3", 2),
        Cut("imu", 10, 2, ""),
        Tick(20, 0, "part_failed", 21),
        Finish("head", "", 30),
        Event("jolt", 1, "start", 25, 1, 2.0, 0.5),
    ):
        recorder.write(item)
    recorder.close({})
    first, second, *documents = RecordingFile(path).entries()
    assert isinstance(first, Sample)
    assert second == Rejection("imu", 5, "torn", "line 3", 2)
    fields = [entry.fields() for entry in documents if isinstance(entry, Document)]
    assert fields == [
        {"type": "cut", "modality": "imu", "end_ns": 10, "skipped": 2, "reason": ""},
        {"type": "tick", "tick_ns": 20, "skipped": 0, "reason": "part_failed", "now_ns": 21},
        {
            "type": "finish",
            "part": "head",
            "failure": "",
            "now_ns": 30,
            "rows": 1,
            "row": 0,
        },
        Event("jolt", 1, "start", 25, 1, 2.0, 0.5).as_dict(),
    ]


def test_the_schema_of_a_topic_names_every_field(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    steps = (Cut("imu", 10, 2, ""), Tick(20, 0, "", 21), Finish("head", "", 30), Swapped("00"))
    assert {type(step) for step in steps} == {*get_args(Entry)} - {Sample, Rejection}
    for item in (*steps, Decision(0, {}, {}, 0), event(1, 2.0), Rejection("imu", -5, "torn", "")):
        recorder.write(item)
    recorder.lost(1)
    recorder.write(imu(1))
    recorder.close({})
    with path.open("rb") as stream:
        for schema, channel, message in make_reader(stream).iter_messages():
            assert schema is not None
            properties, fields = json.loads(schema.data)["properties"], json.loads(message.data)
            assert fields.keys() <= properties.keys(), channel.topic
            assert fields.get("type") in properties.get("type", {}).get(
                "enum", [fields.get("type")]
            )


@pytest.mark.real_time
@pytest.mark.parametrize("after_s", [0.5, 0.7, 0.9, 1.1, 1.3])
def test_kill_9_loses_less_than_a_second(tmp_path: Path, after_s: float) -> None:
    loss = killed_recording(tmp_path / "a.mcap", after_s)
    assert loss.in_order
    assert loss.samples
    assert loss.lost_s <= 1.0


def test_entries_that_never_reached_the_recorder_are_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    recorder.write(imu(1))
    recorder.lost(3)
    recorder.lost(5)  # the count goes on while it fails
    recorder.write(imu(2))
    recorder.close({})
    gaps = [entry for entry in RecordingFile(path).entries() if isinstance(entry, Gap)]
    assert [(gap.lost, gap.reason) for gap in gaps] == [(5, "recording fell behind")]


def test_a_sample_that_cannot_be_recorded_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    recorder.write(Sample("imu", 1, 1, np.array([object()])))
    recorder.close({})
    assert [entry.lost for entry in RecordingFile(path).entries() if isinstance(entry, Gap)] == [1]


class Disk:
    """A disk of which some bytes are left; it takes part of a write, as real ones do."""

    def __init__(self, left: int) -> None:
        self.left = left
        self._write = os.write

    def write(self, file: int, data: Any) -> int:
        if self.left <= 0:
            raise OSError(28, "No space left on device")
        count = self._write(file, bytes(data[: self.left]))
        self.left -= count
        return count


def test_a_full_disk_leaves_a_file_that_reads_and_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_NS", 0)
    disk = Disk(6000)
    monkeypatch.setattr(recording_file.os, "write", disk.write)
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    taken, missed = [], 0
    for number in range(200):
        if number == 100:
            assert numbers(path) == taken[: len(numbers(path))]
            assert len(numbers(path)) >= len(taken) - 2
            disk.left = 1 << 30
        if missed:
            recorder.lost(missed)
        try:
            recorder.write(imu(number))
            taken.append(number)
            missed = 0
        except OSError:
            missed += 1
    recorder.close({})
    file = RecordingFile(path)
    entries = list(file.entries())
    assert numbers(path) == taken
    assert 10 < len(taken) < 200
    assert [entry.lost for entry in entries if isinstance(entry, Gap)] == [200 - len(taken)]
    assert file.complete
    assert not file.problem


def test_a_disk_that_is_full_at_the_end_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, TRACKS)
    recorder.open(HEADER)
    recorder.write(imu(1))
    recorder.flush()
    monkeypatch.setattr(recording_file.os, "write", Disk(10).write)
    with pytest.raises(FusedgeError, match="No space left"):
        recorder.close({})
    assert numbers(path) == [1]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from fusedge.bundle.recording import Track
from fusedge.bundle.sample import Sample
from fusedge.runtime.sinks import recorder as module
module.FLUSH_NS = 0
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
recorder = module.Recorder(Path(sys.argv[1]), {"imu": Track(("x", "y"))})
recorder.open({})
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
taken = 0
for number in range(400):
    if number == 200:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        recorder.write(Sample("imu", number, number, np.array([number, 0], np.float32)))
        taken += 1
    except OSError:
        pass
recorder.close({})
print(taken)
"""


def test_a_limit_of_the_operating_system_is_survived_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 200 < len(numbers(path)) == int(done.stdout) < 400
    assert RecordingFile(path).complete


def test_a_missing_package_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(FusedgeError, match=r"fusedge\[record\]"):
        Recorder(Path("a.mcap"), TRACKS)


def test_the_package_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, fusedge.runtime.session, fusedge.cli.app; sys.exit('mcap' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def event(number: int, time_s: float) -> Event:
    return Event("jolt", number, "start", to_ns(time_s), 1, 2.0, 0.5)


def clip(path: Path) -> tuple[float, float, int]:
    """First and last second of a clip, and how many events it shows."""
    entries = list(RecordingFile(path).entries())
    seconds = [entry.arrival_ns / 1e9 for entry in entries if isinstance(entry, Sample)]
    events = [
        e for e in entries if isinstance(e, Document) and e.channel.topic == "/fusedge/events"
    ]
    return seconds[0], seconds[-1], len(events)


def play(clips: EventClips, events: dict[int, Event | Decision], seconds: int) -> None:
    """100 samples a second; events by the number of the sample that they follow."""
    clips.open(HEADER)
    for number in range(seconds * 100):
        clips.write(imu(number))
        if number in events:
            clips.write(events[number])
    clips.close({})


def test_a_clip_holds_what_was_around_an_event(tmp_path: Path) -> None:
    clips = EventClips(tmp_path / "clips", TRACKS, 2.0, 3.0)
    play(clips, {1000: event(1, 9.9), 3000: event(2, 29.9)}, 40)
    assert [clip(path) for path in clips.clips] == [(8.0, 13.0, 1), (28.0, 33.0, 1)]
    assert [path.name for path in clips.clips] == ["0001-jolt.mcap", "0002-jolt.mcap"]
    info = RecordingFile(clips.clips[0]).info
    assert (info.exact, info.clip, info.session) == (False, "jolt at 10.000 s", HEADER)


def test_clips_that_overlap_are_one(tmp_path: Path) -> None:
    clips = EventClips(tmp_path, TRACKS, 2.0, 3.0)
    play(
        clips,
        {1000: event(1, 9.9), 1200: event(2, 12), 1650: event(3, 16.5), 3000: event(4, 30)},
        40,
    )
    assert [clip(path) for path in clips.clips] == [(8.0, 19.5, 3), (28.0, 33.0, 1)]


def test_a_change_of_a_label_makes_a_clip_but_the_first_label_does_not(tmp_path: Path) -> None:
    def decision(label: str | None, time_s: float) -> Decision:
        output = Classification(("calm", "wild"), label, None, None, {})
        return Decision(to_ns(time_s), {"style": output}, {}, 0)

    clips = EventClips(tmp_path, TRACKS, 1.0, 1.0)
    labels = {100: "calm", 200: "calm", 300: None, 400: "calm", 1000: "wild", 2000: "wild"}
    play(clips, {n: decision(label, n / 100) for n, label in labels.items()}, 30)
    assert [(path.name, *clip(path)) for path in clips.clips] == [
        ("0001-style-wild.mcap", 9.0, 11.0, 0)
    ]


def test_what_waits_for_an_event_is_bounded(tmp_path: Path) -> None:
    clips = EventClips(
        tmp_path, TRACKS, 100.0, 1.0, max_bytes=50 * (recorder_module.ENTRY_BYTES + 8)
    )
    play(clips, {2000: event(1, 20)}, 30)
    (path,) = clips.clips
    first, last, _ = clip(path)
    assert 19.4 < first < 19.6
    assert last == 21.0


def test_an_earlier_clip_is_never_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        clips = EventClips(tmp_path, TRACKS, 1.0, 1.0)
        play(clips, {500: event(1, 5)}, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001-jolt.mcap", "0002-jolt.mcap"]


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def test_a_clip_is_a_source(tmp_path: Path, tiny: Bundle) -> None:
    from fusedge.runtime.runner import run
    from fusedge.runtime.session import Session
    from fusedge.runtime.sinks.memory import MemorySink

    tracks = tracks_of(tiny.manifest)
    clips = EventClips(tmp_path / "clips", tracks, 3.0, 3.0)
    clips.open(HEADER)
    for sample in by_arrival(signal("fast", 1.0, 0, 20), signal("slow", 1.0, 0, 20)):
        clips.write(sample)
        if sample.timestamp_ns == to_ns(10):
            clips.write(event(1, 10))
    clips.close({})
    sink = MemorySink()
    report = run(Session(tiny, [f"replay:{clips.clips[0]}"], VirtualClock()), [sink])
    assert report.summary["ledger_balanced"]
    assert len(sink.decisions) >= 5
    assert all(decision.outputs["side"].label for decision in sink.decisions[2:])


def test_writing_costs_little(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mcap", TRACKS)
    recorder.open(HEADER)
    samples = [imu(number) for number in range(2000)]
    started = time.process_time()
    for sample in samples:
        recorder.write(sample)
    recorder.close({})
    assert (time.process_time() - started) / len(samples) < 500e-6  # 30 µs on an idle core
