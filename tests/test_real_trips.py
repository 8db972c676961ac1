"""Real trips through the whole line: recordings in, decisions out, equal to the original module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.lookup import open_bundle
from fusedge.cli.tasks import WEIGHTS
from fusedge.devices.capture.replay.uah import read_recording
from fusedge.models import driving
from fusedge.models.dataset import make_drive
from fusedge.models.fusion_model import load_model
from fusedge.models.prediction import predict
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import NOTHING_PRESENT
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.memory import MemorySink

STYLE = driving.STYLE.name
BUNDLE = open_bundle("driving")


def replay(trip: Path, without: tuple[str, ...] = ()) -> tuple[MemorySink, dict[str, object]]:
    memory = MemorySink()
    session = Session(BUNDLE, [f"replay:{trip}"], VirtualClock(), without=without)
    return memory, run(session, [memory]).summary


@pytest.mark.parametrize("without", [(), ("gps",), ("imu", "road")])
def test_the_runtime_decides_as_the_original_module_does(
    trips: list[Path], without: tuple[str, ...]
) -> None:
    model, notes = load_model(WEIGHTS / "driving.safetensors")
    modalities = driving.modalities(float(notes["gps_latency_s"]))
    for trip in (trips[1], trips[-1]):
        recording = read_recording(trip)
        drive = make_drive(recording, modalities, driving.LABELS)
        shown = {m.name for m in modalities} - set(without)
        logits = np.log(predict(model, drive, modalities, shown)) / driving.STYLE.temperature
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        first_ns = min(int(s.timestamps_ns[0]) for s in recording.series.values())
        by_second = {
            round(first_ns / 1e9 + t): row for t, row in zip(drive.ticks, expected, strict=True)
        }
        memory, _ = replay(trip, without)
        # On no modality at all, as before the first window, the module says something, the runtime nothing.
        found = [
            (d.timestamp_ns // 10**9, d.outputs[STYLE].probabilities)
            for d in memory.decisions
            if d.problem != NOTHING_PRESENT
        ]
        assert len(found) >= len(memory.decisions) - 5
        judged = [(by_second[second], got) for second, got in found if second in by_second]
        assert len(judged) > 400
        # A modality that was lost for longer than its greatest age begins anew in the runtime only.
        differences = [float(np.abs(want - got).max()) for want, got in judged]
        assert np.quantile(differences, 0.9) < 1e-4, trip.name


def test_every_sample_of_every_trip_is_accounted_for(trips: list[Path]) -> None:
    for trip in trips[::8]:
        memory, summary = replay(trip)
        assert summary["ledger_balanced"], trip.name
        seconds = [d.timestamp_ns // 10**9 for d in memory.decisions]
        assert seconds == list(range(seconds[0], seconds[0] + len(seconds))), "a tick is missing"


def test_two_replays_of_a_trip_write_the_same_bytes(trips: list[Path], tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        session = Session(BUNDLE, [f"replay:{trips[0]}"], VirtualClock())
        run(session, [JsonLinesSink(tmp_path / name)])
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
