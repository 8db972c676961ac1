"""What parts at their own rates save: `python -m benchmarks.rates`.

A model of a size that is usual for the edge (a camera encoder of 47 MFLOP, a sound encoder of 9, a
sensor encoder of 0.5, a head) runs over the same simulated input in two sessions on the
virtual clock: with each encoder at its own rate, and with all of them at the highest rate of any, as one
graph has to. Compared is the processor time inside ONNX Runtime, one thread.

The ratio is a property of the rates and of how the cost is spread over the encoders, so it is given
for several rates, with the share of each encoder. Where the highest rate is hardly above that of the
dearest encoder, little is saved.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from benchmarks.figures import Figure, at_most, main, told
from benchmarks.live_rig import with_hops
from benchmarks.reference_bundle import EMBEDDING, _Builder, _value, write_reference_bundle
from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.manifest import Part
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session

Costs = dict[str, float]
"""Seconds of processor time by part."""

ONE_THIRD = 1 / 3


class Setting(NamedTuple):
    """Rates in Hz; the decisions' is what is asked of both."""

    video: float
    sound: float
    sensor: float
    decisions: float
    judged: bool

    @property
    def highest(self) -> float:
        return max(self.video, self.sound, self.sensor, self.decisions)

    def __str__(self) -> str:
        return f"{self.video}/{self.sound}/{self.sensor}, decisions {self.decisions} Hz"


SETTINGS = (
    Setting(15, 10, 50, 20, True),
    Setting(30, 10, 100, 20, True),
    Setting(15, 10, 10, 20, False),
    Setting(15, 10, 10, 10, False),
)


def _video() -> bytes:
    b = _Builder(1)
    pixels = b.node("Reshape", "window", b.shape(-1, 112, 112, 3))
    pixels = b.node("Cast", b.node("Transpose", pixels, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    value = b.node("Mul", pixels, b.constant(np.float32(1 / 255)))
    for inputs, outputs, stride in ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 128, 2)):
        weight = b.weight(outputs, inputs, 3, 3)
        value = b.node("Conv", value, weight, strides=[stride] * 2, pads=[1] * 4)
        value = b.node("Relu", value)
    value = b.node("Flatten", b.node("GlobalAveragePool", value))
    b.dense(value, 128, EMBEDDING, "embedding")
    window = _value("window", 1, 112, 112, 3, kind=TensorProto.UINT8)
    return b.model([window], [_value("embedding", EMBEDDING)])


def _sound() -> bytes:
    b = _Builder(2)
    value = b.node("Reshape", "window", b.shape(-1, 1, 8000))
    for inputs, outputs, width, stride in ((1, 64, 320, 80), (64, 96, 5, 2), (96, 128, 5, 2)):
        weight = b.weight(outputs, inputs, width)
        value = b.node("Relu", b.node("Conv", value, weight, strides=[stride]))
    value = b.node("Flatten", b.node("GlobalAveragePool", value))
    b.dense(value, 128, EMBEDDING, "embedding")
    return b.model([_value("window", 8000, 1)], [_value("embedding", EMBEDDING)])


def _sensor() -> bytes:
    b = _Builder(3)
    value = b.node("Transpose", b.node("Mul", "window", "valid"), perm=[0, 2, 1])
    for inputs, outputs in ((6, 48), (48, 64)):
        weight = b.weight(outputs, inputs, 5)
        value = b.node("Relu", b.node("Conv", value, weight, strides=[2], pads=[2, 2]))
    value = b.node("Flatten", b.node("GlobalAveragePool", value))
    b.dense(value, 64, EMBEDDING, "embedding")
    windows = [_value("window", 50, 6), _value("valid", 50, 6)]
    return b.model(windows, [_value("embedding", EMBEDDING)])


def usual_bundle(path: Path) -> Bundle:
    """The reference bundle with encoders of a usual size."""
    small = write_reference_bundle(path)
    files = {name: small.read(name) for name in small.manifest.files}
    files |= {"parts/video.onnx": _video(), "parts/sound.onnx": _sound()}
    files["parts/sensor.onnx"] = _sensor()
    entries = {name: file_entry(data) for name, data in files.items()}
    return write_bundle(path, small.manifest.model_copy(update={"files": entries}), files)


class Timed:
    """A part that notes the processor time of its runs."""

    provider = "timed"

    def __init__(self, part: OnnxPart) -> None:
        self._part = part
        self.cpu_ns = self.runs = 0

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        started = time.thread_time_ns()
        outputs = self._part.run(feeds)
        self.cpu_ns += time.thread_time_ns() - started
        self.runs += 1
        return outputs


def processor_s(bundle: Bundle, rates: Setting, decisions_hz: float, seconds: float) -> Costs:
    """Processor seconds of each part for a while of input."""
    hops = {name: 1 / getattr(rates, name) for name in ("video", "sound", "sensor")}
    fusion = bundle.manifest.require_fusion()
    changes = {
        **with_hops(bundle.manifest, hops),
        "fusion": fusion.model_copy(update={"decision_rate_hz": decisions_hz}),
    }
    changed = Bundle(bundle.path)
    changed.manifest = bundle.manifest.model_copy(update=changes)
    parts: dict[str, Timed] = {}

    def load(part: Part) -> Timed:
        parts[part.name] = Timed(OnnxPart(changed, part, "cpu", "fp32"))
        return parts[part.name]

    session = Session(
        changed,
        ["synthetic:"],
        VirtualClock(),
        open_uri=lambda uri, wanted, now_ns: SyntheticSource(
            uri, changed.manifest.modalities, seconds
        ),
        load=load,
    )
    report = run(session, [])
    assert report.summary["ledger_balanced"] and not report.summary["ticks_skipped"]
    for name, hop_s in hops.items():
        runs = parts[f"{name}_encoder"].runs
        assert abs(runs * hop_s - seconds) < 1, f"{name}: {runs} runs"
    return {name: part.cpu_ns / 1e9 for name, part in parts.items()}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = usual_bundle(Path(folder) / "usual.fusedge")
        for setting in SETTINGS:
            highest = setting._replace(
                video=setting.highest, sound=setting.highest, sensor=setting.highest
            )
            own: list[Costs] = []
            one: list[Costs] = []
            for _ in range(arguments.rounds):
                own.append(processor_s(bundle, setting, setting.decisions, arguments.seconds))
                one.append(processor_s(bundle, highest, setting.highest, arguments.seconds))
            ratios = [sum(a.values()) / sum(b.values()) for a, b in zip(own, one, strict=True)]
            ratio = statistics.median(ratios)
            name = f"own rates / one graph, {setting}"
            figures.append(at_most(name, ratio, ONE_THIRD) if setting.judged else told(name, ratio))
            for title, costs in (("own rates", own), (f"one graph at {setting.highest} Hz", one)):
                percent = 100 * statistics.median(sum(c.values()) for c in costs)
                figures.append(told(f"  {title}", percent / arguments.seconds, "% of a core"))
        total = sum(one[-1].values())
        shares = [f"{part.partition('_')[0]} {cost / total:.0%}" for part, cost in one[-1].items()]
        figures.append(told("cost of a step, by part", ", ".join(shares)))
    return figures


if __name__ == "__main__":
    main(__doc__, measure, seconds=4.0, rounds=3)
