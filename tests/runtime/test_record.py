"""Live sources into a recording, without a bundle and with one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcap")

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import tracks_of
from fusedge.bundle.recording_file import RecordingFile
from fusedge.bundle.sample import Sample
from fusedge.runtime.clock import LiveClock
from fusedge.runtime.record import RecordProgress, record
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.recorder import Recorder
from tests.runtime.live import LiveSource, unruly, write_quick_bundle

pytestmark = pytest.mark.real_time


def live(uri: str, wanted: Any, now_ns: Callable[[], int]) -> LiveSource:
    return LiveSource(uri.partition(":")[2], now_ns)


def test_live_sources_are_recorded_for_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    seen: list[RecordProgress] = []
    report = record(
        ["live:imu", "live:gps"],
        path,
        threading.Event(),
        seconds=1.0,
        open_uri=live,
        progress=seen.append,
    )
    assert report.ended == "time is up"
    assert 0.5 < report.seconds <= 1.1
    assert seen
    assert seen[-1].bytes_written > 0
    entries = list(RecordingFile(path).entries())
    for name in ("imu", "gps"):
        count = sum(isinstance(e, Sample) and e.modality == name for e in entries)
        assert count == report.modalities[name]["used"] > 10
    assert RecordingFile(path).complete


def test_it_stops_when_it_is_told_to(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    report = record(["live:imu"], tmp_path / "a.mcap", stop, open_uri=live)
    assert report.ended == "stopped"
    assert report.modalities["imu"]["used"]


def test_a_full_disk_ends_it_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedge.bundle import recording_file

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.mcap"
    monkeypatch.setattr(recording_file.os, "write", full)
    with pytest.raises(FusedgeError, match="No space left on device"):
        record(["sim:?duration_s=5"], path, threading.Event())


def test_a_live_session_replays_to_the_bit(tmp_path: Path) -> None:
    """Threads, a part that fails now and then, a recorder behind its queue: the same decisions."""
    bundle = write_quick_bundle(tmp_path / "quick")
    runs = [0]

    def fail_now_and_then() -> None:
        runs[0] += 1
        if runs[0] % 13 == 0:
            raise RuntimeError("out of memory")

    session = Session(
        bundle,
        ["live:fast", "live:slow"],
        LiveClock(),
        open_uri=live,
        load=unruly(bundle, {"fast_encoder": fail_now_and_then}),
    )
    path = tmp_path / "a.mcap"
    threading.Timer(2.0, session.stop).start()
    report = run(session, [Recorder(path, tracks_of(bundle.manifest))])
    (lane,) = report.summary["sinks"].values()
    assert not lane["failures"], lane
    replay = replay_exactly(bundle, path)
    assert replay.identical, replay.difference
    assert not replay.stopped
    assert replay.decisions == report.summary["decisions"] > 20
    assert replay.summary["ledger_balanced"]
    for name, account in report.summary["ledger"].items():
        assert replay.summary["ledger"][name]["received"] == account["received"]
