"""What each precision brings and costs on this CPU: `python -m benchmarks.precision [DATA]`.

A row for each part of the driving model, and for a net of 20 convolutions with random weights: size, nodes
below float32, and time as a ratio to float32 (measured in turns, with its 99 % interval). With recordings
under DATA: int8, and macro-F1 over all decisions with every part at the precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from fusedge.bundle.manifest import Precision, TensorSpec
from fusedge.cli.driving_task import driving_evaluation
from fusedge.cli.tasks import load_for_export
from fusedge.export.calibration import Calibration, calibrate
from fusedge.export.emulate import emulated
from fusedge.export.evaluation import Evaluation
from fusedge.export.part import ModulePart
from fusedge.export.precision import reduce_graph, reduced_nodes, uniform_assignments
from fusedge.export.simplify import simplify
from fusedge.export.speed import Feeds, compare
from fusedge.export.subject import fusion_subject
from fusedge.export.trace import trace

WIDTHS = (16, 16, *[32] * 4, *[64] * 5, *[128] * 5, *[256] * 4)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
ON_CPU = ("fp16", "int8")  # ONNX Runtime's CPU provider has no kernels for bfloat16


class ConvNet(nn.Module):
    """20 convolutions on `[B, 3, 224, 224]`, each change of width halves the picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            layers.append(nn.Conv2d(channels, width, 3, 1 if width == channels else 2, 1))
            layers.append(nn.ReLU())
            channels = width
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(channels, 10)

    def forward(self, window: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.out(self.layers(window).mean((2, 3))),)


def conv_part() -> ModulePart:
    def spec(name: str, *shape: int) -> TensorSpec:
        role = "window" if name == "window" else "embedding"
        return TensorSpec(name=name, role=role, dtype="float32", shape=("batch", *shape))

    inputs, outputs = (spec("window", 3, 224, 224),), (spec("embedding", 10),)
    return ModulePart("20 convs", "encoder", "camera", 15.0, ConvNet().eval(), inputs, outputs)


def rows(
    part: ModulePart, full: onnx.ModelProto, feeds: Feeds, calibration: Calibration | None
) -> dict[Precision, bytes]:
    """Print a part's rows; the graphs that were made, for the metric."""
    baseline = full.SerializeToString(deterministic=True)
    made: dict[Precision, bytes] = {"fp32": baseline}
    print(f"{part.name:10} fp32  {len(baseline) / 1e3:10,.0f} kB  of {len(full.graph.node)} nodes")
    for precision in PRECISIONS[1:]:
        if precision == "int8" and calibration is None:
            continue
        (assignment, *_) = uniform_assignments(full, precision)
        graph = reduce_graph(full, part, assignment, calibration)
        data = graph.SerializeToString(deterministic=True)
        made[precision] = emulated(graph).SerializeToString(deterministic=True)
        time = "no kernels here"
        if precision in ON_CPU:
            speed = compare(baseline, data, feeds)
            time = (
                f"{speed.ratio:.2f} of {speed.baseline_s * 1e6:,.0f} us "
                f"({speed.low:.2f} to {speed.high:.2f})"
            )
        print(
            f"{part.name:10} {precision}  {len(data) / 1e3:10,.0f} kB  "
            f"{len(reduced_nodes(graph)):3} nodes  time {time}"
        )
    return made


def driving(data: Path | None) -> None:
    model, task = load_for_export("driving", None)
    parts = fusion_subject(model, task).parts
    graphs = {part.name: simplify(trace(part), part) for part in parts}
    full = {name: graph.SerializeToString() for name, graph in graphs.items()}
    evaluation: Evaluation | None = driving_evaluation(parts, task, data) if data else None
    made: Mapping[str, dict[Precision, bytes]] = {}
    for part in parts:
        if evaluation:
            recorded = list(evaluation.feeds(full, part.name))
            feeds, calibration = recorded[0], calibrate(graphs[part.name], recorded)
        else:
            inputs = zip(part.inputs, part.zeros(1), strict=True)
            feeds, calibration = {spec.name: zeros.numpy() for spec, zeros in inputs}, None
        made = {**made, part.name: rows(part, graphs[part.name], feeds, calibration)}
    for precision in PRECISIONS if evaluation else ():
        assert evaluation is not None
        score = evaluation.metric({name: graphs[precision] for name, graphs in made.items()})
        print(f"driving    {precision}  {evaluation.metric_name} {score:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="folder of recordings")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    part = conv_part()
    graph = simplify(trace(part), part)
    noise = np.random.default_rng(0).normal(size=(8, 1, 3, 224, 224)).astype(np.float32)
    feeds = [{"window": window} for window in noise]
    rows(part, graph, feeds[0], calibrate(graph, feeds))
    driving(data)


if __name__ == "__main__":
    main()
