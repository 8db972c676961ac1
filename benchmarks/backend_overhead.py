"""What running a part from its bundle costs over its graph in bare ONNX Runtime:
`python -m benchmarks.backend_overhead`.

Parts of the shipped driving model, and of the reference bundle with its CNN and random weights. Bare is an
InferenceSession with the same options, called with the same arrays; ours is a job of the pipeline, from
its begin to its end, on the CPU provider. The two run in turn, so that the machine's noise meets both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, main
from benchmarks.reference_bundle import write_reference_bundle
from fusedge.bundle.archive import Bundle
from fusedge.bundle.inference import onnxruntime
from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import Part
from fusedge.runtime.backend import BackendSetting, PartLoader
from fusedge.runtime.journal import Tick
from fusedge.runtime.part import RunningPart
from fusedge.runtime.part_tensors import zeros

LEAST = 0.95
STEP = Tick(0, 0, "", 0)


def bare(content: bytes) -> Any:
    """The graph as ONNX Runtime's documents show it, on one thread."""
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime().InferenceSession(content, options, ["CPUExecutionProvider"])


def median_ns(*functions: Callable[[], object], seconds: float) -> list[float]:
    """Of each function, called in turn."""
    times: list[list[int]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter_ns()
            function()
            taken.append(time.perf_counter_ns() - started)
    return [float(np.median(taken[len(taken) // 10 :])) for taken in times]


def compare(bundle: Bundle, part: Part, seconds: float) -> Figure:
    rows = 1 + len(bundle.manifest.modalities) if part.kind == "head" else 1
    feeds = zeros(part, rows)
    load = PartLoader(bundle, BackendSetting(provider="cpu"))
    running = RunningPart(part, lambda: load(part))
    session = bare(bundle.read(part.graph("fp32").file))
    outputs = [spec.name for spec in part.outputs]

    def ours() -> None:
        job = running.begin(STEP, feeds, None, 0)
        job.run()
        running.end(None, 0)

    bare_ns, ours_ns = median_ns(lambda: session.run(outputs, feeds), ours, seconds=seconds)
    name = f"{bundle.manifest.name} {part.name}: bare {bare_ns / 1000:.1f} µs, speed of it"
    ratio = bare_ns / ours_ns
    return Figure(name, ratio, "", f"≥ {LEAST}", ratio >= LEAST)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        reference = write_reference_bundle(Path(folder, "reference.fusedge"))
        return [
            compare(bundle, part, arguments.seconds)
            for bundle in (open_bundle("driving"), reference)
            for part in bundle.manifest.parts
        ]


if __name__ == "__main__":
    main(__doc__, measure, seconds=3.0)
