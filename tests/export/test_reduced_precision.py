"""Precisions mixed by node, and bfloat16 where nothing computes in it."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest

from fusedge.bundle.inference import open_session
from fusedge.devices.targets.facts.table import find_target
from fusedge.export.calibration import calibrate
from fusedge.export.emulate import emulated
from fusedge.export.engine import EngineRequest, build_engine
from fusedge.export.precision import (
    Assignment,
    graph_precision,
    reduce_graph,
    reduced_nodes,
    reducible,
    uniform_assignments,
)
from tests.export.small_net import CLASSES, run, small_graph, small_part, spec, windows

MIXED: Assignment = {
    "first/conv2d": "int8",
    "second/conv2d_1": "int8",
    "norm/layer_norm": "bf16",
    "qkv/linear": "fp16",
    "qkv/linear.2": "bf16",
    "out/linear_1": "int8",
    "classify/linear_2": "fp16",
}


def mixed(opset: int = 18) -> onnx.ModelProto:
    full = small_graph(opset)
    assert set(MIXED) <= {node.name for node in full.graph.node}
    calibration = calibrate(full, [{"window": windows(8)}])
    return reduce_graph(full, small_part(), MIXED, calibration)


def test_each_node_computes_as_assigned() -> None:
    graph = mixed()
    assert reduced_nodes(graph) == MIXED
    assert graph_precision(graph) == "mixed"
    assert graph_precision(small_graph()) == "fp32"
    batch = windows(32, seed=1)
    wanted, got = run(small_graph(), batch), run(emulated(graph), batch)
    assert got.shape == (32, CLASSES)
    assert 0 < np.abs(wanted - got).max() < 0.1 * np.abs(wanted).max()


def test_what_cannot_is_left_in_float32_and_told() -> None:
    """Before opset 22 ONNX has no bfloat16 convolution."""
    for opset, able in ((18, False), (22, True)):
        full = small_graph(opset)
        assert ("first/conv2d" in reducible(full, "bf16")) is able
        graph = reduce_graph(full, small_part(), {"first/conv2d": "bf16", "out/linear_1": "bf16"})
        assert ("first/conv2d" in reduced_nodes(graph)) is able
        assert reduced_nodes(graph)["out/linear_1"] == "bf16"
        assert graph_precision(graph) == "bf16"


def test_a_precision_that_no_node_can_take_leaves_one_empty_assignment() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (int64[B] x) => (int64[B] y) { y = Neg(x) }'
    )
    for precision in ("fp16", "bf16", "int8"):
        assert uniform_assignments(model, precision) == [{}]  # type: ignore[arg-type]


def test_emulated_bfloat16_rounds_every_result_to_nearest_even() -> None:
    full = small_graph(22)
    assignment: Assignment = {"first/conv2d": "bf16"}
    graph = emulated(reduce_graph(full, small_part(), assignment))
    conv = next(node for node in graph.graph.node if node.name == "first/conv2d")
    made = onnx.helper.make_tensor_value_info(
        conv.output[0].removesuffix(".exact"), onnx.TensorProto.FLOAT, None
    )
    exact = onnx.helper.make_tensor_value_info(conv.output[0], onnx.TensorProto.FLOAT, None)
    graph.graph.output.extend([made, exact])
    session = open_session(graph.SerializeToString(), "bf16")
    _, rounded, unrounded = session.run(None, {"window": windows(4)})
    assert np.array_equal(rounded, unrounded.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert not np.array_equal(rounded, unrounded)


def test_emulated_float16_overflows_between_nodes_as_on_a_gpu() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> graph (float[batch, 4] window)
        => (float[batch, 4] embedding) {
            [a] square = Mul (window, window)
            [b] embedding = Sqrt (square)
        }"""
    )
    part = replace(
        small_part(),
        inputs=(spec("window", "window", 4),),
        outputs=(spec("embedding", "embedding", 4),),
    )
    graph = emulated(reduce_graph(model, part, {"a": "fp16", "b": "fp16"}))
    assert np.isinf(run(graph, np.full((1, 4), 300, np.float32))).all()
    assert np.array_equal(run(graph, np.full((1, 4), 200, np.float32)), np.full((1, 4), 200))


def test_emulation_changes_nothing_where_nothing_is_reduced() -> None:
    assert emulated(small_graph()) is small_graph()


def test_bfloat16_loses_more_than_float16() -> None:
    full, batch = small_graph(22), windows(64)
    wanted = run(full, batch)
    losses = []
    for precision in ("fp16", "bf16"):
        (first, *_) = uniform_assignments(full, precision)  # type: ignore[arg-type]
        graph = emulated(reduce_graph(full, small_part(), first))
        losses.append(float(np.abs(run(graph, batch) - wanted).mean()))
    assert losses[0] < losses[1] < 0.1 * np.abs(wanted).mean()


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("opset", [18, 22])
def test_tensorrt_builds_a_mixed_graph(opset: int) -> None:
    graph, part = mixed(opset), small_part()
    request = EngineRequest(
        part.name,
        graph.SerializeToString(deterministic=True),
        "mixed",
        (find_target("rtx-4090"),),
        part.dims,
    )
    achieved = build_engine(request).precision_by_node
    assert {"fp16", "bf16", "int8"} <= set(achieved.values())
