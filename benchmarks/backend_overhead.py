"""What running a part from its bundle costs over its graph in bare ONNX Runtime:
`python -m benchmarks.backend_overhead`.

Bare is an InferenceSession on the CPU with the same options, called with the same arrays. Ours are the
parts of the shipped driving model, and a CNN with random weights (a plain model, by `open_part`). They run
in turn, so that the machine's noise meets them all.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.figures import Figure, main, told
from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.inference import onnxruntime
from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    Graph,
    Manifest,
    Part,
    Provenance,
    TensorSpec,
)
from fusedge.runtime.backend import BackendSetting, PartLoader, open_part
from fusedge.runtime.journal import Tick
from fusedge.runtime.part import RunningPart
from fusedge.runtime.part_tensors import zeros

LEAST = 0.95
STEP = Tick(0, 0, "", 0)
CPU = BackendSetting(provider="cpu")
SIZE = 112  # pixels; the CNN's work is 0.26 G multiplications, its weights 1.2 M
CHANNELS = (3, 32, 64, 64, 128, 128, 256, 256)


def cnn() -> bytes:
    """Seven convolutions, every other one of stride 2, and the mean of what they give."""
    random = np.random.default_rng(0)
    nodes, constants, last = [], [], "image"
    for index, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS)):
        weights = random.normal(0, (9 * inputs) ** -0.5, (outputs, inputs, 3, 3))
        constants.append(numpy_helper.from_array(weights.astype(np.float32), f"weight{index}"))
        conv, last_next = f"conv{index}", f"relu{index}"
        stride = 1 + (index % 2 == 0)
        nodes += [
            helper.make_node(
                "Conv", [last, f"weight{index}"], [conv], pads=[1] * 4, strides=[stride] * 2
            ),
            helper.make_node("Relu", [conv], [last_next]),
        ]
        last = last_next
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["features"]))
    shapes = {"image": [3, SIZE, SIZE], "features": [CHANNELS[-1], 1, 1]}
    image, features = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in shapes.items()
    )
    graph = helper.make_graph(nodes, "cnn", [image], [features], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def write_cnn(path: Path) -> Bundle:
    """The CNN as a plain model."""
    files = {"parts/model.onnx": cnn()}
    part = Part(
        name="model",
        kind="model",
        inputs=(
            TensorSpec(name="image", role="input", dtype="float32", shape=("batch", 3, SIZE, SIZE)),
        ),
        outputs=(
            TensorSpec(
                name="features", role="output", dtype="float32", shape=("batch", CHANNELS[-1], 1, 1)
            ),
        ),
        graphs=(Graph(file="parts/model.onnx", precision="fp32", opset=18, nodes=15),),
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="cnn",
        description="a CNN with random weights",
        parts=(part,),
        provenance=Provenance(
            task="none",
            weights_sha256="0" * 64,
            training_data="none",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        files={name: file_entry(data) for name, data in files.items()},
    )
    return write_bundle(path, manifest, files)


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


def compare(
    bundle: Bundle,
    part: Part,
    run: Callable[..., object],
    job: Callable[..., object],
    seconds: float,
) -> list[Figure]:
    """The part's run, and a job of the pipeline with it, beside the bare session on the same feeds."""
    feeds = zeros(part, 1 + len(bundle.manifest.modalities) if part.kind == "head" else 1)
    session = bare(bundle.read(part.graph("fp32").file))
    outputs = [spec.name for spec in part.outputs]
    bare_ns, run_ns, job_ns = median_ns(
        lambda: session.run(outputs, feeds),
        lambda: run(feeds),
        lambda: job(feeds),
        seconds=seconds,
    )
    name = f"{bundle.manifest.name} {part.name}: speed, of {bare_ns / 1000:.1f} µs bare"
    ratio = bare_ns / run_ns
    return [
        Figure(name, ratio, "", f"≥ {LEAST}", ratio >= LEAST),
        told("  with the job's account", bare_ns / job_ns),
    ]


def as_job(running: RunningPart) -> Callable[..., object]:
    """Runs the part as the pipeline does."""

    def job(feeds: dict[str, Any]) -> None:
        running.begin(STEP, feeds, None, 0).run()
        running.end(None, 0)

    return job


def measure(arguments: argparse.Namespace) -> list[Figure]:
    figures = []
    driving = open_bundle("driving")
    for part in driving.manifest.parts:
        loaded = PartLoader(driving, CPU)(part)
        job = as_job(RunningPart(part, lambda loaded=loaded: loaded))
        figures += compare(driving, part, loaded.run, job, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        plain = write_cnn(Path(folder, "cnn.fusedge"))
        with open_part(plain, setting=CPU) as model:
            loaded = PartLoader(plain, CPU)(model.part)
            job = as_job(RunningPart(model.part, lambda: loaded))
            figures += compare(plain, model.part, model.run, job, arguments.seconds)
    return figures


if __name__ == "__main__":
    main(__doc__, measure, seconds=4.0)
