"""The first node that differs is named, whatever is wrong with it and wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import TensorSpec
from fusedge.export import divergence
from fusedge.export.cases import Case
from fusedge.export.divergence import first_divergence
from fusedge.export.parity import PartSession, check_part
from fusedge.export.part import ModulePart
from fusedge.export.simplify import simplify
from fusedge.export.trace import Traced, trace_program

TOLERANCE = 1e-4


class _Branches(nn.Module):
    """Images and a series: a convolution with a normalisation, a GRU, and attention over both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor, series: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = image.permute(0, 3, 1, 2).float() / 255
        seen = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        heard, _ = self.gru(series)
        both = torch.stack([seen, heard[:, -1]], dim=1)
        joined, _ = self.attention(both, both, both, need_weights=False)
        return (self.out(joined.mean(1)),)


@pytest.fixture(scope="module")
def part() -> ModulePart:
    return ModulePart(
        name="model",
        kind="model",
        modality=None,
        rate_hz=None,
        module=_Branches().eval(),
        inputs=(
            TensorSpec(name="image", role="input", dtype="uint8", shape=("batch", 8, 8, 3)),
            TensorSpec(name="series", role="input", dtype="float32", shape=("batch", 5, 4)),
        ),
        outputs=(TensorSpec(name="output", role="output", dtype="float32", shape=("batch", 3)),),
    )


@pytest.fixture(scope="module")
def traced(part: ModulePart) -> Traced:
    return trace_program(part)


@pytest.fixture(scope="module")
def graph(part: ModulePart, traced: Traced) -> onnx.ModelProto:
    return simplify(traced.model, part)


@pytest.fixture(scope="module")
def feeds() -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (3, 8, 8, 3), np.uint8),
        "series": random.normal(size=(3, 5, 4)).astype(np.float32),
    }


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def _node(graph: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if node.name == name)


def _alter(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def test_a_faithful_graph_has_no_divergence(
    traced: Traced, graph: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]
) -> None:
    assert first_divergence(traced, graph, feeds, TOLERANCE) is None
    assert first_divergence(traced.model, graph, feeds, TOLERANCE) is None


def _add(values: np.ndarray) -> None:
    values.flat[1] += 0.3


@pytest.mark.parametrize(
    ("place", "operator", "weight"),
    [
        ("bn/_native_batch_norm", "Conv", 1),
        ("gru/", "GRU", 1),
        ("gru/", "GRU", 2),
        ("out/", "Gemm", 2),
    ],
)
def test_an_altered_weight_is_found_on_its_branch(
    place: str,
    operator: str,
    weight: int,
    traced: Traced,
    graph: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.generic]],
) -> None:
    wrong = _copy(graph)
    node = next(n for n in wrong.graph.node if n.op_type == operator and n.name.startswith(place))
    _alter(wrong, node.input[weight], _add)
    found = first_divergence(traced, wrong, feeds, TOLERANCE)
    assert found is not None
    assert found.node.startswith(place)
    assert found.off > TOLERANCE
    assert found.inputs_off < 1e-6


def test_a_swapped_operation_is_found(
    traced: Traced, graph: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]
) -> None:
    wrong = _copy(graph)
    relu = next(node for node in wrong.graph.node if node.op_type == "Relu")
    relu.op_type = "Abs"
    found = first_divergence(traced, wrong, feeds, TOLERANCE)
    assert found is not None
    assert (found.node, found.operator, found.unseen) == (relu.name, "Abs", 0)
    assert found.text().startswith(f"first differs at {relu.name} (Abs): ")
    assert "off where its inputs agree to " in found.text()


def test_memory_is_bounded_by_chunks_without_another_answer(
    traced: Traced,
    graph: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.generic]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = _copy(graph)
    next(node for node in wrong.graph.node if node.op_type == "Relu").op_type = "Abs"
    at_once = first_divergence(traced, wrong, feeds, TOLERANCE)
    monkeypatch.setattr(divergence, "_CHUNK_BYTES", 5000)
    assert first_divergence(traced, wrong, feeds, TOLERANCE) == at_once


def test_the_gate_names_the_node(
    part: ModulePart,
    traced: Traced,
    graph: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.generic]],
) -> None:
    wrong = _copy(graph)
    next(node for node in wrong.graph.node if node.op_type == "Relu").op_type = "Abs"
    with torch.inference_mode():
        expected = tuple(
            output.numpy() for output in part.module(*map(torch.from_numpy, feeds.values()))
        )
    session = PartSession(part, wrong.SerializeToString(), "fp32", reference=lambda: traced)
    with pytest.raises(FusedgeError) as caught:
        check_part(session, [Case("noise", lambda: feeds, expected)], TOLERANCE)
    line = caught.value.line()
    assert line.startswith("part model fp32, case noise, output output, node relu")
    assert "first differs at relu" in line


def test_a_module_that_tracing_itself_changed_is_told_from_a_wrong_graph(
    part: ModulePart,
    traced: Traced,
    graph: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.generic]],
) -> None:
    session = PartSession(part, graph.SerializeToString(), "fp32", reference=lambda: traced)
    case = Case("noise", lambda: feeds, (np.ones((3, 3), np.float32),))
    with pytest.raises(FusedgeError, match=r"no node of the graph differs .*tracing changed"):
        check_part(session, [case], TOLERANCE)


def test_a_reference_that_cannot_run_leaves_the_first_reason(
    part: ModulePart, graph: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]
) -> None:
    broken = _copy(graph)
    next(node for node in broken.graph.node if node.op_type == "Relu").op_type = "NoSuchKind"
    session = PartSession(part, graph.SerializeToString(), "fp32", reference=lambda: broken)
    case = Case("noise", lambda: feeds, (np.ones((3, 3), np.float32),))
    with pytest.raises(FusedgeError, match=r"off the original module.*no node named: "):
        check_part(session, [case], TOLERANCE)


def _model(
    nodes: list[onnx.NodeProto], constants: Mapping[str, float | list[float]]
) -> onnx.ModelProto:
    """A graph from `x [batch, 4]` to `y` of the same shape."""
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4])] for n in ("x", "y")]
    tensors = [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "small", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _chain(*kinds: str, half: bool = False) -> onnx.ModelProto:
    """x through the kinds in a row, with 200 as second input; each result in float16 on demand."""
    nodes, value = [], "x"
    for i, kind in enumerate(kinds):
        inputs = [value, "c"] if kind == "Mul" else [value]
        value = f"v{i}.fp16" if half else f"v{i}"
        made = f"{value}.exact" if half else value
        nodes.append(helper.make_node(kind, inputs, [made], f"n{i}"))
        if half:
            short = f"{value}.rounded"
            nodes.append(helper.make_node("Cast", [made], [short], short, to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [short], [value], value, to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Identity", [value], ["y"], "end"))
    return _model(nodes, {"c": 200.0})


def test_an_overflow_of_float16_in_the_middle_is_found() -> None:
    feeds = {"x": np.full((2, 4), 3.0, np.float32)}  # 3 * 200 * 200 is beyond float16
    harmless = ("Mul", "Mul", "Neg", "Sigmoid")
    assert first_divergence(_chain(*harmless), _chain(*harmless, half=True), feeds, 1e-2) is None
    kinds = ("Mul", "Mul", "Sqrt", "Neg")
    found = first_divergence(_chain(*kinds), _chain(*kinds, half=True), feeds, 1e-2)
    assert found is not None
    assert (found.node, found.off) == ("n1", np.inf)
    assert "first differs at n1 (Mul, rounded): NaN or Inf" in found.text()


def test_a_difference_without_effect_is_passed_by() -> None:
    """A mask clipped to the range of float16 differs, and so does a later operation that matters."""

    def model(mask: float, gain: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Add", ["x", "mask"], ["masked"], "mask"),
            helper.make_node("Softmax", ["masked"], ["weights"], "softmax", axis=-1),
            helper.make_node("Mul", ["weights", "gain"], ["scaled"], "gain"),
            helper.make_node("Sigmoid", ["scaled"], ["y"], "sigmoid"),
        ]
        return _model(nodes, {"mask": [0.0, mask, 0.0, mask], "gain": gain})

    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    assert first_divergence(model(-1e9, 1), model(-6e4, 1), feeds, TOLERANCE) is None
    found = first_divergence(model(-1e9, 1), model(-6e4, 2), feeds, TOLERANCE)
    assert found is not None
    assert found.node == "gain"


def test_a_small_fault_that_grows_later_is_followed_to_where_it_begins() -> None:
    def model(shift: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Tanh", ["x"], ["bent"], "tanh"),
            helper.make_node("Add", ["bent", "shift"], ["moved"], "shift"),
            helper.make_node("Mul", ["moved", "gain"], ["grown"], "gain"),
            helper.make_node("Sin", ["grown"], ["y"], "sin"),
        ]
        return _model(nodes, {"shift": shift, "gain": 8.0})

    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    found = first_divergence(model(0.5), model(0.5 + 3e-5), feeds, TOLERANCE)
    assert found is not None
    assert found.node == "shift"
    assert found.off < TOLERANCE


_UNARY = ("Neg", "Tanh", "Sin", "Abs", "Sigmoid")
_BINARY = ("Add", "Sub", "Mul")


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """A random graph over `x [batch, 4]` with all loose ends summed up, and the index of a node in it."""
    values = ["x"]
    nodes = []
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(_UNARY + _BINARY))
        count = 1 if kind in _UNARY else 2
        inputs = [draw(st.sampled_from(values)) for _ in range(count)]
        nodes.append(helper.make_node(kind, inputs, [f"v{i}"], f"n{i}"))
        values.append(f"v{i}")
    used = {name for node in nodes for name in node.input}
    ends = [name for name in values[1:] if name not in used]
    corrupted = draw(st.integers(0, len(nodes) - 1))
    nodes.append(helper.make_node("Concat", ends, ["y"], "ends", axis=1))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4 * len(ends)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model, corrupted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_graphs())
def test_of_a_random_graph_exactly_the_corrupted_node_is_named(
    case: tuple[onnx.ModelProto, int],
) -> None:
    reference, index = case
    wrong = _copy(reference)
    node = wrong.graph.node[index]
    # The node's own result, and half of one more behind it, under its name.
    hidden = f"{node.output[0]}.hidden"
    extra = helper.make_node("Celu", [hidden], [node.output[0]], f"{node.name}.wrong", alpha=0.5)
    node.output[0] = hidden
    wrong.graph.node.insert(index + 1, extra)
    feeds = {"x": np.random.default_rng(1).uniform(0.5, 2, (2, 4)).astype(np.float32)}
    found = first_divergence(reference, wrong, feeds, TOLERANCE)
    plain = divergence._graph_values(reference, ["y"], feeds)["y"]
    given_wrong = divergence._graph_values(wrong, ["y"], feeds)["y"]
    gap = np.abs(plain - given_wrong).max() / max(1.0, np.abs(plain).max())
    if gap > TOLERANCE:
        assert found is not None
        assert found.node == extra.name
        assert found.inputs_off == 0.0
    else:
        assert found is None
