"""What a graph takes: operations, bytes, and what is not known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_networks import NETWORKS
from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.work import NodeWork, PartWork
from fusedge.export.graph_shapes import size_graph
from fusedge.export.part_work import count_work, part_work

SHIPPED = Path(__file__).parents[2] / "bundle/shipped/driving.fusedge"
F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741


def value(name: str, shape: Sequence[int | str] | None, dtype: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def graph_bytes(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    dtype: int = F,
    functions: Sequence[onnx.FunctionProto] = (),
    **inputs: Sequence[int | str] | None,
) -> bytes:
    """A model whose inputs have one type and whose output is `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, shape, dtype) for name, shape in inputs.items()],
        [value("y", None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=9)
    return model.SerializeToString()


def broken(content: bytes, change: Any) -> bytes:
    model = onnx.load_model_from_string(content)
    change(model)
    return bytes(model.SerializeToString())


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def count(content: bytes, **sizes: int) -> PartWork:
    return count_work(content, "camera", "fp32", sizes or {"batch": 1})


def one(
    operator: str,
    inputs: dict[str, Sequence[int]],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    **attributes: Any,
) -> NodeWork:
    """The work of a single node; its constants come after its inputs."""
    names = [*inputs, *(constants or {})]
    outputs = ["y"] if operator != "GRU" else ["y", "last"]
    node = helper.make_node(operator, names, outputs, "node", **attributes)
    (work,) = count(graph_bytes([node], constants, opset, **inputs), batch=1).nodes
    return work


X = (2, 8, 10, 10)


@pytest.mark.parametrize(
    ("operator", "inputs", "constants", "attributes", "kind", "operations"),
    [
        # 2 images x 4 channels x 8 x 8 results, each 8 channels x 3 x 3 products
        ("Conv", [X], [(4, 8, 3, 3)], {}, "convolution", 2 * (2 * 4 * 64) * 72),
        ("Conv", [X], [(4, 4, 3, 3)], {"group": 2}, "convolution", 2 * (2 * 4 * 64) * 36),
        ("Conv", [X], [(8, 1, 3, 3)], {"group": 8}, "depthwise", 2 * (2 * 8 * 64) * 9),
        ("Conv", [(1, 4, 50)], [(6, 4, 5)], {}, "convolution", 2 * (6 * 46) * 20),
        ("Conv", [(1, 2, 4, 5, 6)], [(3, 2, 2, 2, 2)], {}, "convolution", 2 * (3 * 3 * 4 * 5) * 16),
        ("ConvTranspose", [X], [(8, 3, 2, 2)], {"strides": [2, 2]}, "convolution", 2 * 1600 * 12),
        ("Gemm", [(3, 4)], [(4, 5)], {}, "product", 2 * 3 * 4 * 5),
        ("Gemm", [(4, 3)], [(5, 4)], {"transA": 1, "transB": 1}, "product", 2 * 3 * 4 * 5),
        ("MatMul", [(2, 1, 3, 4), (6, 4, 5)], [], {}, "product", 2 * (2 * 6) * 3 * 4 * 5),
        ("MatMul", [(4,), (4, 5)], [], {}, "product", 2 * 4 * 5),
        ("Einsum", [(3, 4)], [], {"equation": "ij->i"}, "product", 2 * 12),
        ("Einsum", [(2, 3, 4), (2, 4, 5)], [], {"equation": "bij,bjk->bik"}, "product", 2 * 120),
        # two directions of 5 steps of a batch of 3: 3 gates of 6 numbers from 4 inputs and 6 before
        (
            "GRU",
            [(5, 3, 4)],
            [(2, 18, 4), (2, 18, 6)],
            {"hidden_size": 6, "direction": "bidirectional"},
            "recurrent",
            2 * 5 * 3 * (2 * 18 * 10 + 41 * 6),
        ),
        ("Softmax", [(3, 7)], [], {}, "normalisation", 14 * 21),
        ("LayerNormalization", [(3, 7)], [(7,)], {}, "normalisation", 7 * 21),
        ("GlobalAveragePool", [X], [], {}, "pooling", 1600),
        (
            "MaxPool",
            [X],
            [],
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            "pooling",
            2 * 8 * 25 * 4,
        ),
        ("Add", [(3, 1), (1, 4)], [], {}, "elementwise", 12),
        ("Sum", [(4,), (4,), (4,)], [], {}, "elementwise", 8),
        ("Tanh", [(3, 4)], [], {}, "elementwise", 120),
        ("Transpose", [(3, 4)], [], {"perm": [1, 0]}, "movement", 0),
        ("Transpose", [(3, 1, 4)], [], {"perm": [1, 0, 2]}, "free", 0),
        ("Identity", [(3, 4)], [], {}, "free", 0),
        ("NonZero", [(3, 4)], [], {}, "unknown", None),
    ],
)
def test_operations_of_a_node(
    operator: str,
    inputs: list[tuple[int, ...]],
    constants: list[tuple[int, ...]],
    attributes: dict[str, Any],
    kind: str,
    operations: float | None,
) -> None:
    named = {f"x{i}": shape for i, shape in enumerate(inputs)}
    weights = {f"w{i}": zeros(*shape) for i, shape in enumerate(constants)}
    work = one(operator, named, weights, **attributes)
    assert (work.kind, work.operations) == (kind, operations)


def test_recurrent_steps_run_in_a_row_and_directions_after_each_other() -> None:
    weights = {"w": zeros(2, 18, 4), "r": zeros(2, 18, 6)}
    work = one("GRU", {"x": (5, 3, 4)}, weights, hidden_size=6, direction="bidirectional")
    assert work.steps == 10


def test_attention_is_two_products_and_a_softmax() -> None:
    heads = dict.fromkeys("qkv", (2, 3, 7, 16))
    work = one("Attention", heads, opset=23)
    pairs = 2 * 3 * 7 * 7
    assert (work.kind, work.operations) == ("attention", pairs * (2 * 32 + 14))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.Conv2d(8, 8, 3, 1, 1, groups=2),
            nn.ConvTranspose2d(8, 4, 2, 2),
        )
        self.linear = nn.Linear(4 * 16 * 16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        row = self.linear(self.images(image).reshape(image.shape[0], -1))
        square = row.reshape(image.shape[0], 5, row.shape[1] // 5)
        return torch.softmax(square @ square.transpose(1, 2), -1)


def test_products_and_convolutions_agree_with_torch() -> None:
    net, image = Net().eval(), torch.zeros(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    program = torch.onnx.export(
        net, (image,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert program is not None
    work = count(program.model_proto.SerializeToString(), batch=2)
    assert work.unknown == {}
    heavy = [n for n in work.nodes if n.kind in ("convolution", "depthwise", "product")]
    assert sum(node.operations or 0 for node in heavy) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("network", "giga"),
    [("resnet50", 8.178), ("vgg16", 30.94), ("mobilenet-v2", 0.6015), ("yolov8n", 8.743)],
)
def test_known_networks_take_what_their_authors_say(network: str, giga: float) -> None:
    work = count_work(NETWORKS[network]("fp16"), network, "fp16", {"batch": 1})
    heavy = [n for n in work.nodes if n.kind in ("convolution", "depthwise", "product")]
    assert sum(node.operations or 0 for node in heavy) == pytest.approx(giga * 1e9, rel=1e-3)
    assert work.unknown == {}


def test_sizes_that_are_computed_are_followed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Div", ["width", "two"], ["half"]),
        helper.make_node("Concat", ["batch", "two", "half"], ["wanted"], axis=0),
        helper.make_node("Equal", ["wanted", "two"], ["same"]),
        helper.make_node("Where", ["same", "wanted", "wanted"], ["chosen"]),
        helper.make_node("Reshape", ["x", "chosen"], ["pairs"]),
        helper.make_node("MatMul", ["pairs", "w"], ["y"], "product"),
    ]
    whole = {name: np.array([n]) for name, n in (("zero", 0), ("one", 1), ("two", 2))}
    work = count(graph_bytes(nodes, {**whole, "w": zeros(6, 5)}, x=["batch", 12]), batch=3)
    assert work.unknown == {}
    assert work.nodes[-1].operations == 2 * (3 * 2) * 6 * 5
    assert {node.kind for node in work.nodes[:-1]} == {"free"}


def test_functions_of_the_graph_are_counted_inside() -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["c"])]
    function = helper.make_function(
        "own", "Block", ["a", "b"], ["c"], body, [helper.make_opsetid("", 18)]
    )
    node = helper.make_node("Block", ["x", "w"], ["y"], "block", domain="own")
    work = count(graph_bytes([node], {"w": zeros(4, 5)}, functions=[function], x=["batch", 4]))
    assert [(n.operator, n.operations) for n in work.nodes] == [("MatMul", 40.0), ("Relu", 5.0)]


def loop(trips: bool, stops: bool) -> bytes:
    """A body of one product; how often it runs is a constant or an input, and it may stop early."""
    nodes = [helper.make_node("MatMul", ["state", "w"], ["next"], "step")]
    if stops:
        nodes.append(helper.make_node("Not", ["going"], ["on"]))
    else:
        nodes.append(helper.make_node("Identity", ["going"], ["on"]))
    body = helper.make_graph(
        nodes,
        "body",
        [value("i", [], I), value("going", [], TensorProto.BOOL), value("state", ["batch", 8])],
        [value("on", [], TensorProto.BOOL), value("next", None)],
    )
    node = helper.make_node("Loop", ["trips", "true", "x"], ["y"], "loop", body=body)
    constants = {"true": np.array(True), "w": zeros(8, 8), "five": np.array(5)}
    first = helper.make_node(
        "Identity" if trips else "ReduceSum", ["five" if trips else "x"], ["trips"], keepdims=0
    )
    if trips:
        first.ClearField("attribute")
    else:
        cast = helper.make_node("Cast", ["sum"], ["trips"], to=I)
        first.output[0] = "sum"
        return graph_bytes([first, cast, node], constants, x=["batch", 8])
    return graph_bytes([first, node], constants, x=["batch", 8])


def test_a_loop_counts_as_often_as_it_runs() -> None:
    work = count(loop(trips=True, stops=False), batch=2)
    (step,) = (node for node in work.nodes if node.name == "step")
    assert (step.operations, step.steps) == (5 * 2 * 2 * 8 * 8, 5)
    assert work.unknown == {}


@pytest.mark.parametrize(("trips", "stops"), [(False, False), (True, True)])
def test_a_loop_of_unknown_length_is_unknown(trips: bool, stops: bool) -> None:
    work = count(loop(trips, stops))
    assert work.unknown == {"Loop": 1}


def loop_of(trips: np.ndarray, body: onnx.GraphProto | None = None) -> bytes:
    """A loop of constant length around `Relu`, or around another body."""
    if body is None:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["going"], ["on"]),
                helper.make_node("Relu", ["state"], ["next"], "step"),
            ],
            "body",
            [value("i", [], I), value("going", [], TensorProto.BOOL), value("state", [4])],
            [value("on", [], TensorProto.BOOL), value("next", [4])],
        )
    node = helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)
    graph = graph_bytes([node], {"trips": trips, "true": np.array(True)}, x=[4])
    return broken(graph, lambda m: m.graph.output[0].CopyFrom(value("y", [4])))


def test_a_loop_of_less_than_no_runs_takes_nothing() -> None:
    work = count(loop_of(np.array(-(1 << 40))))
    assert work.unknown == {}
    assert sum(node.operations or 0 for node in work.nodes) == 0
    assert all(use.bytes == 16 for node in work.nodes for use in node.writes)


@pytest.mark.parametrize(
    "content",
    [
        loop_of(np.array(1 << 62)),
        loop_of(np.array([3, 4])),
        loop_of(
            np.array(3), helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [])
        ),
    ],
    ids=["too long", "of two lengths", "without a state"],
)
def test_a_loop_that_none_can_run_is_unknown(content: bytes) -> None:
    assert count(content).unknown == {"Loop": 1}


def branch(name: str, width: int) -> onnx.GraphProto:
    nodes = [helper.make_node("MatMul", ["x", f"w{width}"], [name], name)]
    return helper.make_graph(nodes, name, [], [value(name, None)])


def test_of_a_branch_the_one_that_runs_is_counted() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Greater", ["batch", "one"], ["many"]),
        helper.make_node(
            "If",
            ["many"],
            ["y"],
            "if",
            then_branch=branch("wide", 8),
            else_branch=branch("narrow", 2),
        ),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "w2": zeros(4, 2), "w8": zeros(4, 8)}
    content = graph_bytes(nodes, constants, x=["batch", 4])
    names = [node.name for node in count(content, batch=2).nodes if node.kind == "product"]
    assert names == ["wide"]
    names = [node.name for node in count(content, batch=1).nodes if node.kind == "product"]
    assert names == ["narrow"]


def test_a_branch_that_data_decides_is_unknown() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["some"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["some"], ["y"], then_branch=branch("a", 8), else_branch=branch("b", 2)
        ),
    ]
    content = graph_bytes(nodes, {"w2": zeros(4, 2), "w8": zeros(4, 8)}, x=["batch", 4])
    assert count(content).unknown == {"If": 1}


def test_a_branch_that_is_not_there_is_unknown() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Cast", ["batch"], ["some"], to=TensorProto.BOOL),
        helper.make_node("Not", ["some"], ["none"]),
        helper.make_node("If", ["none"], ["y"], then_branch=branch("a", 8)),
    ]
    content = graph_bytes(nodes, {"zero": np.array(0), "w8": zeros(4, 8)}, x=["batch", 4])
    assert count(content).unknown == {"If": 1}


def test_a_branch_without_outputs_is_counted() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["q"])], "inner", [], [])
    nodes = [
        helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    work = count(graph_bytes(nodes, {"c": np.array(True)}, x=["batch", 4]))
    assert work.nodes[-1].operations == 4


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"num_scan_inputs": 0},
        {"num_scan_inputs": 7},
        {"num_scan_inputs": 1, "scan_input_axes": [9]},
    ],
)
def test_a_scan_along_nothing_is_unknown(attributes: dict[str, Any]) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["b"])], "body", [value("a", [4])], [value("b", [4])]
    )
    node = helper.make_node("Scan", ["x"], ["y"], body=body, **attributes)
    assert count(graph_bytes([node], x=[7, 4])).unknown == {"Scan": 1}


def test_a_scan_keeps_the_tensors_of_one_step() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "row"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
            helper.make_node("ReduceMean", ["next"], ["out"], keepdims=0),
        ],
        "body",
        [value("state", [1, 1000]), value("row", [1])],
        [value("next", [1, 1000]), value("out", [])],
    )
    node = helper.make_node("Scan", ["start", "x"], ["end", "y"], num_scan_inputs=1, body=body)
    work = count(graph_bytes([node], {"start": zeros(1, 1000)}, x=[500, 1]))
    assert work.activation_bytes is not None
    assert 8000 <= work.activation_bytes <= 4 * 4000 + 2 * 4 * 500
    moved = [use.bytes for n in work.nodes if n.operator == "Tanh" for use in n.writes]
    assert moved == [500 * 4000]


def test_a_scan_runs_along_its_sequence() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "row"], ["next"], "add"),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "body",
        [value("sum", [4]), value("row", [4])],
        [value("next", None), value("out", None)],
    )
    node = helper.make_node("Scan", ["start", "x"], ["end", "y"], num_scan_inputs=1, body=body)
    work = count(graph_bytes([node], {"start": zeros(4)}, x=[7, 4]))
    assert [(n.operations, n.steps) for n in work.nodes if n.name == "add"] == [(28, 7)]


def test_unknown_operators_are_counted_as_unknown() -> None:
    nodes = [
        helper.make_node("Magic", ["x"], ["m"], "magic", domain="own"),
        helper.make_node("Relu", ["m"], ["r"], "after"),
        helper.make_node("NonMaxSuppression", ["x", "x", "r"], ["y"], "boxes"),
    ]
    work = count(graph_bytes(nodes, x=["batch", 3, 4]))
    assert work.unknown == {"Magic": 1, "Relu": 1, "NonMaxSuppression": 1}
    assert {node.operations for node in work.nodes} == {None}
    assert work.activation_bytes is None


def test_a_view_of_unknown_size_is_unknown() -> None:
    nodes = [
        helper.make_node("Magic", ["x"], ["m"], domain="own"),
        helper.make_node("Reshape", ["x", "m"], ["y"]),
    ]
    assert count(graph_bytes(nodes, x=["batch", 4])).unknown == {"Magic": 1, "Reshape": 1}


@pytest.mark.parametrize("perm", [3, "abc", ["a", "b"]])
def test_an_attribute_of_another_type_makes_a_node_unknown(perm: Any) -> None:
    node = helper.make_node("Transpose", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("perm", perm))
    content = broken(
        graph_bytes([node], x=[2, 4]), lambda m: m.graph.output[0].CopyFrom(value("y", [4, 2]))
    )
    assert count(content).unknown == {"Transpose": 1}


def quantised(weights_only: bool) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["wd"]),
        helper.make_node("MatMul", ["x" if weights_only else "xd", "wd"], ["y"], "product"),
    ]
    constants = {
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
        "w8": np.zeros((100, 50), np.int8),
    }
    return graph_bytes(nodes, constants, x=["batch", 100])


def test_a_product_of_dequantised_tensors_is_int8() -> None:
    work = count(quantised(weights_only=False), batch=2)
    assert [n.precision for n in work.nodes if n.operator == "MatMul"] == ["int8"]
    assert work.weight_bytes == 5000 + 4 + 1
    assert work.activation_bytes == max(2 * 100 * 4 + 2 * 100, 2 * 100 + 2 * 50 * 4)


def test_with_quantised_weights_alone_it_computes_in_floating_point() -> None:
    work = count(quantised(weights_only=True))
    assert [n.precision for n in work.nodes if n.operator == "MatMul"] == ["fp32"]


def test_precision_follows_from_the_types_of_tensors() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    work = count(graph_bytes(nodes, x=["batch", 4]))
    assert [node.precision for node in work.nodes] == ["fp16", "fp16", "fp32"]
    assert [node.writes[0].bytes for node in work.nodes] == [8, 8, 16]


def test_activations_are_those_alive_at_the_same_time() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),  # x, a
        helper.make_node("Flatten", ["a"], ["view"]),  # nothing more
        helper.make_node("MatMul", ["view", "w"], ["b"]),  # a, b; x has gone
        helper.make_node("Add", ["b", "b"], ["y"]),
    ]
    work = count(graph_bytes(nodes, {"w": zeros(100, 300)}, x=["batch", 10, 10]), batch=2)
    assert work.activation_bytes == 4 * 2 * (300 + 300)
    assert (work.input_bytes, work.weight_bytes) == (800, 120_000)


def test_only_rows_that_are_gathered_are_read() -> None:
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    work = count(graph_bytes([node], {"table": zeros(5000, 8)}, dtype=I, x=["batch", 3]))
    assert [use.bytes for use in work.nodes[0].reads] == [3 * 8 * 4, 24]
    assert work.weight_bytes == 160_000


@given(batch=st.integers(1, 1 << 16), width=st.integers(1, 1 << 16), to=st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_work_grows_with_the_batch(batch: int, width: int, to: int) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["rows_of_two"]),
        helper.make_node("MatMul", ["rows_of_two", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    constants = {"rows": np.array([-1, 2]), "w": zeros(2, to)}
    work = count(graph_bytes(nodes, constants, x=["batch", width, 2]), batch=batch)
    _, product, relu = work.nodes
    assert product.operations == 4 * batch * width * to
    assert relu.operations == batch * width * to
    assert work.output_bytes == 4 * batch * width * to


def test_shipped_parts_have_nothing_unknown() -> None:
    bundle = Bundle(SHIPPED)
    for part in bundle.manifest.parts:
        for graph in part.graphs:
            one, four = (part_work(bundle, part, graph.precision, batch) for batch in (1, 4))
            assert one.unknown == {} == four.unknown
            assert one.activation_bytes is not None and one.weight_bytes > 0
            assert (one.batch, four.batch) == (1, 4)
            heavy = [
                sum(n.operations or 0 for n in work.nodes if n.kind == "product")
                for work in (one, four)
            ]
            assert heavy[1] == 4 * heavy[0] > 0
        assert part_work(bundle, part, "fp32").batch == part.dims["batch"].least


# Graphs that nobody should trust.


def relu() -> bytes:
    return graph_bytes([helper.make_node("Relu", ["x"], ["y"], "node")], x=["batch", 4])


def _dims(*dims: int) -> Any:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.input[0].type.tensor_type.shape.dim[:]
        for dim in dims:
            model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = dim

    return change


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="w", dims=[4], data_type=F)
    tensor.data_location = TensorProto.EXTERNAL


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="w", dims=[4], data_type=F, data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["w"], value=tensor))


def _external_in_function(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="w", dims=[4], data_type=F, data_location=TensorProto.EXTERNAL)
    _calls(model, [("A", [])])
    model.functions[0].node.append(helper.make_node("Constant", [], ["w"], value=tensor))


def _weight(*dims: int) -> Any:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.add(name="w", dims=dims, data_type=F)

    return change


def _calls(model: onnx.ModelProto, names: Sequence[tuple[str, Sequence[str]]]) -> None:
    for name, called in names:
        nodes = [helper.make_node(c, ["a"], [f"b{i}"], domain="own") for i, c in enumerate(called)]
        nodes.append(helper.make_node("Relu", ["a"], ["b"]))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
    model.graph.node[0].domain, model.graph.node[0].op_type = "own", names[0][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_dims(1 << 60, 4), "impossible size"),
        (_dims(1 << 30, 1 << 30), "impossible size"),
        (_dims(-1, 4), "impossible size"),
        (_weight(1 << 40, 1 << 40), "impossible size"),
        (_weight(-3), "impossible size"),
        (_external, "in another file"),
        (_external_constant, "in another file"),
        (_external_in_function, "in another file"),
        (lambda m: m.opset_import[0].__setattr__("version", 1 << 62), "there is no opset"),
        (lambda m: _calls(m, [(f"f{i}", [f"f{i + 1}"]) for i in range(3000)]), "deep"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "nothing before it makes"),
        (lambda m: m.graph.node[0].output.__setitem__(0, "x"), "made twice"),
        (lambda m: m.graph.output[0].__setattr__("name", "z"), "nothing makes the output"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "has no shape"),
        (lambda m: m.graph.input[0].type.ClearField("tensor_type"), "is no tensor"),
        (lambda m: m.ClearField("opset_import"), "names no opset"),
        (lambda m: m.graph.ClearField("node"), "has no nodes"),
        (lambda m: _calls(m, [("A", ["B"]), ("B", ["A"])]), "calls itself"),
        (
            lambda m: _calls(m, [(f"f{i}", [f"f{i + 1}"] * 2) for i in range(60)] + [("f60", [])]),
            "more than",
        ),
    ],
)
def test_a_hostile_graph_is_refused_in_one_line(change: Any, says: str) -> None:
    with pytest.raises(FusedgeError, match=says) as raised:
        count(broken(relu(), change))
    assert raised.value.where == "part camera, fp32"
    assert "\n" not in raised.value.line()


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, relu()[: len(relu()) // 2]])
def test_what_is_no_onnx_is_refused(content: bytes) -> None:
    with pytest.raises(FusedgeError):
        count(content)


def test_a_dim_without_a_size_is_named() -> None:
    with pytest.raises(FusedgeError, match="size of dim 'batch' of the input 'x' is not given"):
        count_work(relu(), "camera", "fp32", {"length": 3})


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        ("ConstantOfShape", {"a": np.array([1 << 40, 1 << 20])}),
        ("Range", {"a": np.array(0), "b": np.array(1 << 60), "c": np.array(1)}),
        ("Expand", {"a": np.array([1]), "b": np.array([1 << 40])}),
        ("Tile", {"a": np.array([1]), "b": np.array([1 << 40])}),
    ],
)
def test_sizes_are_never_computed_by_making_what_has_them(
    operator: str, constants: dict[str, np.ndarray]
) -> None:
    nodes = [
        helper.make_node(operator, list(constants), ["huge"]),
        helper.make_node("Add", ["x", "x"], ["y"]),
    ]
    try:
        work = count(graph_bytes(nodes, constants, x=["batch", 4]))
    except FusedgeError as error:
        assert "impossible size" in str(error)
    else:
        assert work.nodes[-1].operations == 4


def test_numbers_that_are_evaluated_are_few_in_all() -> None:
    adds = [helper.make_node("Add", [f"t{i}", "t0"], [f"t{i + 1}"]) for i in range(400)]
    sizes = size_graph(
        graph_bytes(
            [*adds, helper.make_node("Relu", ["x"], ["y"])], {"t0": np.ones(4096, int)}, x=[4]
        ),
        {},
        "part",
    )
    assert 900_000 < sizes.folded < 1_100_000
    assert sizes.tensors["t400"].shape == (4096,)


def test_numbers_that_double_are_not_carried_along() -> None:
    doubled = [helper.make_node("Concat", [f"t{i}"] * 2, [f"t{i + 1}"], axis=0) for i in range(36)]
    nodes = [*doubled, helper.make_node("Relu", ["x"], ["y"])]
    assert count(graph_bytes(nodes, {"t0": np.array([1, 1])}, x=[4])).nodes[-1].operations == 4


def test_sizes_within_a_body_are_found() -> None:
    body = helper.make_graph(
        [helper.make_node("Shape", ["a"], ["s"]), helper.make_node("Expand", ["zero", "s"], ["b"])],
        "body",
        [value("a", [4])],
        [value("b", None)],
    )
    node = helper.make_node("Scan", ["x"], ["y"], num_scan_inputs=1, body=body)
    assert count(graph_bytes([node], {"zero": zeros(1)}, x=[7, 4])).output_bytes == 7 * 4 * 4


def test_a_constant_without_its_data_says_nothing_of_sizes() -> None:
    nodes = [helper.make_node("Reshape", ["x", "w"], ["y"])]
    content = broken(graph_bytes(nodes, {"w": np.array([2, 2])}, x=["batch", 4]), _strip)
    assert count(content).nodes[0].kind in ("free", "unknown")


@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
@pytest.mark.parametrize("numbers", ["raw", "plain"])
def test_weights_that_are_cut_off_are_refused(place: str, numbers: str) -> None:
    tensor = numpy_helper.from_array(zeros(4, 4), "w")
    if numbers == "raw":
        tensor.raw_data = tensor.raw_data[:40]
    else:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0] * 10)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    nodes, kept = [add], [tensor]
    if place == "constant":
        nodes, kept = [helper.make_node("Constant", [], ["w"], value=tensor), add], []
    if place == "branch":
        inner = helper.make_node("Add", ["x", "w"], ["z"])
        branch = helper.make_graph([inner], "branch", [], [value("z", None)], [tensor])
        choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        nodes, kept = [choice], [numpy_helper.from_array(np.array(True), "c")]
    content = broken(
        graph_bytes(nodes, {}, x=[4, 4]), lambda model: model.graph.initializer.extend(kept)
    )
    with pytest.raises(FusedgeError, match=r"damaged: .*too small") as raised:
        count(content)
    assert "\n" not in raised.value.line()


def test_operators_that_onnx_does_not_define_are_told_apart() -> None:
    def foreign(*node: Any, **attributes: Any) -> tuple[str, ...]:
        return count(graph_bytes([helper.make_node(*node, **attributes)], x=["batch", 4])).foreign

    assert foreign("Relu", ["x"], ["y"]) == foreign("NonZero", ["x"], ["y"]) == ()
    assert foreign("NoSuchOp", ["x"], ["y"]) == ("NoSuchOp",)
    assert foreign("Relu", ["x"], ["y"], domain="own") == ("Relu",)
    young = helper.make_node("RMSNormalization", ["x", "x"], ["y"])  # came with opset 23
    assert count(graph_bytes([young], None, 22, x=["batch", 4])).foreign == ("RMSNormalization",)


def _strip(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_a_damaged_graph_is_counted_or_refused(position: int, byte: int, cut: int) -> None:
    content = bytearray(quantised(weights_only=False))[: max(cut, 1)]
    content[position % len(content)] = byte
    try:
        work = count(bytes(content))
    except FusedgeError as error:
        assert "\n" not in error.line()
    else:
        assert all((n.operations is None) == (n.kind == "unknown") for n in work.nodes)
