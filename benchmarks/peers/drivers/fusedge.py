"""Fusedge: a live session over three sources, a bundle of three encoders and a head, and a sink.

A decision comes at each tick of its own clock, not with each frame, so an output is handed over from
the moment at which its tick was due, and the frames of the scenario lie about halfway between two
ticks. The model's time is that in which any part was computing between the tick and the sink. The
scenarios that slow the model or make it raise do so in the encoder of the frames. An age is that of
the newest sample in the window behind an embedding; of sound that is where Fusedge places its end.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque

import numpy as np
from workload import MODALITIES, RATE_HZ, SOUND_HZ, Event, Run

from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.sample import Sample
from fusedge.runtime.clock import LiveClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.runner import run as run_session
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.sink import Sink

HALFWAY_S = 0.45  # of a period, from a tick to the samples: no sample falls on a tick


class Device:
    """A live source of one modality."""

    live = True
    warnings: tuple[str, ...] = ()

    def __init__(self, run: Run, modality: str) -> None:
        self.uri, self.modalities = f"bench:{modality}", (modality,)
        self.channels: dict[str, tuple[str, ...]] = {}
        self.units: dict[str, tuple[str, ...]] = {}
        self._run = run
        self._closed = threading.Event()

    def samples(self):
        (modality,) = self.modalities
        for event in self._run.pace(modality):
            if self._closed.is_set():
                return
            data = event.data[:, None] if modality == "audio" else event.data
            stamp_ns = self._run.epoch_ns + round(event.stamp_s * 1e9)
            yield Sample(modality, stamp_ns, time.monotonic_ns(), data)
        self._closed.wait()

    def close(self) -> None:
        self._closed.set()


class Part:
    """A part that notes when it computes; without a model it gives zeros."""

    provider = "CPUExecutionProvider"

    def __init__(self, run: Run, busy: deque, bundle, part) -> None:
        self._run, self._busy, self._part = run, busy, part
        self._inner = None
        if run.scenario != "handover":
            self._inner = OnnxPart(bundle, part, "cpu", "fp32")
        rows = 1 + len(MODALITIES) if part.kind == "head" else 1
        self._zeros = [np.zeros((rows, *spec.shape[1:]), np.float32) for spec in part.outputs]

    def run(self, feeds):
        if self._inner is None:
            return self._zeros
        started = time.monotonic_ns()
        if self._part.modality == "video":
            self._run.strike_model()
        outputs = self._inner.run(feeds)
        self._busy.append((started, time.monotonic_ns()))
        return outputs


def overlap_ns(busy: deque, first_ns: int, last_ns: int) -> int:
    """How long any part was computing in between."""
    total, reached = 0, first_ns
    for start, end in sorted(busy):
        start, end = max(start, reached), min(end, last_ns)
        if end > start:
            total += end - start
            reached = end
    return total


class User(Sink):
    """The user's callback."""

    name = "user"

    def __init__(self, run: Run, busy: deque) -> None:
        self._run, self._busy = run, busy
        self._due: dict[str, list[Event]] = {
            name: [e for e in run.events if e.modality == name] for name in MODALITIES
        }
        self._times = {name: [e.due_s for e in events] for name, events in self._due.items()}

    def open(self, header) -> None:
        pass

    def write(self, item) -> None:
        if not isinstance(item, Decision):
            return
        captured_ns = {
            name: self._captured_ns(name, item.timestamp_ns, share.age_s)
            for name, share in item.modalities.items()
        }
        probabilities = item.outputs["class"].probabilities
        model_ns = overlap_ns(self._busy, item.timestamp_ns, time.monotonic_ns())
        finite = probabilities is not None and bool(np.isfinite(probabilities).all())
        missing = sum(not share.present for share in item.modalities.values())
        if missing < len(captured_ns) or self._run.outputs:  # not before the first sample
            self._run.record(item.timestamp_ns, captured_ns, model_ns, finite, missing)

    def _captured_ns(self, name: str, tick_ns: int, age_s: float | None) -> float:
        """When the newest sample up to the end of the window was captured."""
        if age_s is None:
            return float("nan")
        end_ns = tick_ns - round(age_s * 1e9)
        if name == "audio":  # its window ends in the middle of a block
            return end_ns
        index = bisect_right(self._times[name], (end_ns - self._run.epoch_ns) / 1e9) - 1
        return self._run.epoch_ns + self._times[name][max(index, 0)] * 1e9

    def close(self, summary) -> None:
        pass


def stream(run: Run) -> None:
    rate_hz = 100 if run.paired else RATE_HZ["video"]
    bundle = open_bundle(run.spec["bundle_100" if run.paired else "bundle_30"])
    busy: deque = deque(maxlen=64)
    session = Session(
        bundle,
        [f"bench:{name}" for name in MODALITIES],
        LiveClock(),
        open_uri=lambda uri, wanted, now_ns: Device(run, uri.partition(":")[2]),
        load=lambda part: Part(run, busy, bundle, part),
    )
    if run.scenario != "cycles":
        period_ns = round(1e9 / rate_hz)
        ticks = time.monotonic_ns() // period_ns + 3
        run.spec["epoch_ns"] = ticks * period_ns + round(HALFWAY_S * period_ns)

    def stop() -> None:
        run.wait_for_end()
        session.stop()

    threading.Thread(target=stop, daemon=True).start()
    report = run_session(session, [User(run, busy)])
    for name, account in report.summary["ledger"].items():
        block = SOUND_HZ // (100 if run.paired else RATE_HZ["audio"]) if name == "audio" else 1
        run.arrived[name] = account["received"] // block
        run.told[f"{name}_dropped"] = account["dropped"]
        dropped = sum(account["dropped"].values()) / block
        run.told["dropped"] = run.told.get("dropped", 0) + dropped
    run.told["balanced"] = report.summary["ledger_balanced"]
    run.told["drift_ppm"] = report.summary["modalities"]["audio"]["clock"]["drift_ppm"]
