"""What TensorRT refuses is rewritten only where that helps, and never into something else."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fusedge.export.byte_forms import bytes_as_floats
from fusedge.export.operator_forms import GraphFacts, other_form
from fusedge.export.refusal import Refusal
from fusedge.export.repair import (
    MOST_TRIALS,
    Repaired,
    close,
    node_name,
    random_feeds,
    repair,
    run,
)

Array = NDArray[np.generic]
Values = list[tuple[str, int, list[int | str] | None]]
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    constants: dict[str, Array] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


class Refuser:
    """A trial that refuses some operators at their first node, as the parser does."""

    def __init__(self, operators: Set[str], reason: str = "not supported") -> None:
        self._operators, self._reason = operators, reason
        self.count = 0

    def __call__(self, graph: bytes) -> Refusal | None:
        self.count += 1
        model = onnx.load_from_string(graph)
        kinds = self._operators | {f.name for f in model.functions}
        for node in model.graph.node:
            if node.op_type in kinds:
                return Refusal("parse", self._reason, node_name(node), node.op_type)
        return None


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def norm(name: str, source: str, *results: str, axis: int = -1) -> onnx.NodeProto:
    return helper.make_node("LayerNormalization", [source, "w"], results, name, axis=axis)


WEIGHT = {"w": np.ones(4, np.float32)}


def test_a_graph_that_is_taken_stays_as_it_is() -> None:
    model = model_of([norm("n", "x", "y")], [("x", FLOAT, [2, 4])], [("y", FLOAT, None)], WEIGHT)
    trial = Refuser({"Relu"})
    assert repair(model, trial) == Repaired(model, (), None)
    assert trial.count == 1


def test_only_nodes_like_the_refused_one_are_expanded() -> None:
    nodes = [norm("block.norm", "x", "a", "mean"), norm("last.norm", "a", "y")]
    outputs: Values = [("y", FLOAT, None), ("mean", FLOAT, None)]
    model = model_of(nodes, [("x", FLOAT, [2, 4])], outputs, WEIGHT)

    def trial(graph: bytes) -> Refusal | None:
        refused = [n for n in onnx.load_from_string(graph).graph.node if len(n.output) > 1]
        return Refusal("parse", "one output", refused[0].name, None) if refused else None

    before = model.SerializeToString()
    repaired = repair(model, trial)
    assert repaired.refusal is None
    assert repaired.repairs == ("LayerNormalization by its function body",)
    assert kinds(repaired.graph).count("LayerNormalization") == 1
    names = {node.name for node in repaired.graph.graph.node}
    assert "last.norm" in names
    assert any(name.startswith("block.norm/") for name in names)
    assert model.SerializeToString() == before


def test_a_body_has_the_attributes_of_its_node_and_the_defaults_of_the_others() -> None:
    nodes = [
        helper.make_node("Celu", ["x"], ["a"], "plain"),
        helper.make_node("Celu", ["a"], ["y"], "plain_2", alpha=0.25),
    ]
    model = model_of(nodes, [("x", FLOAT, [5])], [("y", FLOAT, [5])], opset=12)
    repaired = repair(model, Refuser({"Celu"}))
    assert repaired.repairs == ("Celu by its function body", "Celu by its function body")
    assert_same(model, repaired.graph, {"x": np.array([-3, -1, 0, 1, 3], np.float32)})


def test_a_refused_layer_is_found_by_the_longest_name_that_it_begins_with() -> None:
    pool = {"kernel_shape": [2], "dilations": [2]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], "pool", **pool),
        helper.make_node("AveragePool", ["a"], ["b"], "pool_2", **pool),
        helper.make_node("Relu", ["b"], ["y"], "pool_20"),
    ]
    model = model_of(nodes, [("x", FLOAT, [1, 1, 9])], [("y", FLOAT, None)], opset=19)

    def trial(graph: bytes) -> Refusal | None:
        found = "AveragePool" in kinds(onnx.load_from_string(graph))
        return Refusal("build", "no runners", "pool_2_layer") if found else None

    repaired = repair(model, trial)
    assert repaired.repairs == ("AveragePool in other operators",)
    assert kinds(repaired.graph)[0] == "MaxPool"


def test_a_pool_over_hundreds_of_pixels_is_not_taken_apart() -> None:
    pool = helper.make_node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[17, 17])
    model = model_of([pool], [("x", FLOAT, [1, 1, 17, 17])], [("y", FLOAT, [1, 1, 1, 1])])
    repaired = repair(model, Refuser({"AveragePool"}))
    assert repaired.refusal is not None and repaired.graph == model


def test_an_output_that_nobody_reads_is_dropped_before_anything_else() -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y", "at"], "pool", kernel_shape=[2])
    model = model_of([pool], [("x", FLOAT, [1, 1, 4])], [("y", FLOAT, None)])

    def trial(graph: bytes) -> Refusal | None:
        node = onnx.load_from_string(graph).graph.node[0]
        return Refusal("parse", "one output", "pool", "MaxPool") if len(node.output) > 1 else None

    repaired = repair(model, trial)
    assert repaired.repairs == ("MaxPool unused outputs dropped",)
    assert kinds(repaired.graph) == ["MaxPool"]


def test_functions_of_the_model_are_inlined() -> None:
    twice = helper.make_function(
        "user",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    call = helper.make_node("Twice", ["x"], ["y"], "call", domain="user")
    model = model_of([call], [("x", FLOAT, ["batch"])], [("y", FLOAT, ["batch"])])
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("user", 1))
    repaired = repair(model, Refuser({"Twice"}))
    assert repaired.repairs == ("functions inlined",)
    assert kinds(repaired.graph) == ["Add"]


def test_a_body_that_is_refused_in_turn_is_rewritten_further() -> None:
    loss = helper.make_node("SoftmaxCrossEntropyLoss", ["x", "t"], ["y"], "loss", reduction="mean")
    model = model_of(
        [loss], [("x", FLOAT, [2, 3]), ("t", TensorProto.INT64, [2])], [("y", FLOAT, [])]
    )
    trial = Refuser({"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"})
    repaired = repair(model, trial)
    assert repaired.repairs == (
        "SoftmaxCrossEntropyLoss by its function body",
        "NegativeLogLikelihoodLoss by its function body",
    )


def test_attention_with_its_cache_is_taken_apart_with_a_free_batch() -> None:
    shape: list[int | str] = ["batch", 2, 3, 8]
    node = helper.make_node(
        "Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"], "block/attention"
    )
    model = model_of(
        [node],
        [(name, FLOAT, shape) for name in ("q", "k", "v", "pk", "pv")],
        [(name, FLOAT, None) for name in ("y", "nk", "nv")],
        opset=23,
    )
    repaired = repair(model, Refuser({"Attention"}))
    assert repaired.repairs == ("Attention by its function body",)
    feeds = {name: value[:1] for name, value in random_feeds(model).items()}
    assert_same(model, repaired.graph, feeds)


def test_a_rewrite_that_changes_the_results_is_not_kept() -> None:
    # The remainder by infinity is the number itself; the rewritten form makes it NaN.
    node = helper.make_node("Mod", ["x", "w"], ["y"], "wrap", fmod=0)
    constants = {"w": np.array([np.inf], np.float32)}
    model = model_of([node], [("x", FLOAT, [3])], [("y", FLOAT, [3])], constants, opset=28)
    model.ir_version = 14
    repaired = repair(model, Refuser({"Mod"}), {"x": np.array([1, 2, 3], np.float32)})
    assert repaired.graph == model
    assert repaired.repairs == ()
    assert repaired.refusal is not None and repaired.refusal.node == "wrap"


def test_what_cannot_be_repaired_is_named_though_another_fault_can() -> None:
    nodes = [
        norm("first", "x", "a", "mean"),
        helper.make_node("Det", ["a"], ["b"], "user.det"),
        helper.make_node("Add", ["b", "mean"], ["y"], "sum"),
    ]
    model = model_of(nodes, [("x", FLOAT, [4, 4])], [("y", FLOAT, None)], WEIGHT)
    repaired = repair(model, Refuser({"LayerNormalization", "Det"}, reason="false"))
    assert repaired.graph == model
    assert repaired.repairs == ()
    assert repaired.refusal == Refusal(
        "parse", "this TensorRT has no operator Det", "user.det", "Det"
    )


def test_a_fault_in_a_body_is_told_as_the_fault_of_the_users_node() -> None:
    model = model_of(
        [norm("user.norm", "x", "y", "mean")],
        [("x", FLOAT, [2, 4])],
        [("y", FLOAT, None), ("mean", FLOAT, None)],
        WEIGHT,
    )
    repaired = repair(model, Refuser({"LayerNormalization", "Sqrt"}))
    assert repaired.refusal == Refusal("parse", "not supported", "user.norm", "LayerNormalization")


def test_a_type_that_tensorrt_lacks_is_named_with_its_tensor() -> None:
    kind = TensorProto.UINT16
    model = model_of(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", kind, [1])], [("y", kind, [1])]
    )
    refusal = Refusal("parse", "Assertion failed: convertDtype(type, &trtDataType)")
    found = repair(model, lambda _: refusal).refusal
    assert found is not None
    assert found.reason == "x is uint16, which this TensorRT does not have"


def test_trials_end() -> None:
    nodes = [norm(f"n{i}", f"x{i}", f"x{i + 1}", f"m{i}", axis=-1 - i % 2) for i in range(50)]
    outputs: Values = [("x50", FLOAT, None), *((f"m{i}", FLOAT, None) for i in range(50))]
    model = model_of(nodes, [("x0", FLOAT, [4, 4])], outputs, WEIGHT)
    count = 0

    def trial(graph: bytes) -> Refusal | None:
        nonlocal count
        count += 1
        return Refusal("parse", f"fault {count}", f"n{count}", "LayerNormalization")

    assert repair(model, trial).refusal is not None
    assert count <= 1 + MOST_TRIALS


def test_inputs_have_the_sizes_that_are_given() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    shape: list[int | str] = ["batch", 3, "width"]
    model = model_of([node], [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    assert random_feeds(model)["x"].shape == (2, 3, 2)
    assert random_feeds(model, {"width": 9})["x"].shape == (2, 3, 9)


def test_a_build_that_takes_too_long_is_not_tried_again() -> None:
    model = model_of([norm("n", "x", "y")], [("x", FLOAT, [2, 4])], [("y", FLOAT, None)], WEIGHT)
    answers = iter([Refusal("timeout", "the build did not end within 300 s")])
    assert repair(model, lambda _: next(answers)).refusal == Refusal(
        "timeout", "the build did not end within 300 s"
    )


def assert_same(
    model: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, Array] | None = None
) -> None:
    feeds = random_feeds(model) if feeds is None else feeds
    wanted, found = run(model, feeds), run(other, feeds)
    assert wanted is not None and found is not None
    for a, b in zip(wanted, found, strict=True):
        assert a.dtype == b.dtype
        assert close(a, b, 1e-4)


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's only node in other operators."""
    node = model.graph.node[0]
    form = other_form(node, node_name(node), GraphFacts(model))
    assert form is not None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(form.nodes)
    copy.graph.initializer.extend(form.constants)
    return copy


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 12),
    length=st.none() | st.integers(2, 12),
    parts=st.sampled_from([1, 2]),
    axis=st.sampled_from([1, 2]),
    inverse=st.booleans(),
    onesided=st.booleans(),
)
def test_a_fourier_transform_is_a_product(
    size: int, length: int | None, parts: int, axis: int, inverse: bool, onesided: bool
) -> None:
    if onesided and (inverse or parts == 2):
        parts, onesided, inverse = 1, True, False  # see the next test for the way back
    shape: list[int | str] = ["batch", 3, 3, parts]
    shape[axis] = size
    names = ["x", "n" if length else "", "a"]
    constants: dict[str, Array] = {"a": np.array(axis)}
    if length:
        constants["n"] = np.array(length)
    node = helper.make_node("DFT", names, ["y"], inverse=int(inverse), onesided=int(onesided))
    model = model_of([node], [("x", FLOAT, shape)], [("y", FLOAT, None)], constants)
    other = rewritten(model)
    x = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype(np.float32)  # type: ignore[arg-type]
    found = run(other, {"x": x})
    assert found is not None
    complex_x = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    transform = np.fft.ifft if inverse else np.fft.rfft if onesided and parts == 1 else np.fft.fft
    wanted = transform(complex_x.real if transform is np.fft.rfft else complex_x, length, axis)
    np.testing.assert_allclose(found[0], np.stack((wanted.real, wanted.imag), -1), atol=1e-4)


@pytest.mark.parametrize("length", [None, 7, 8])
def test_a_half_spectrum_comes_back_as_the_signal(length: int | None) -> None:
    signal = np.random.default_rng(0).standard_normal((2, length or 8))
    half = np.fft.rfft(signal)
    constants: dict[str, Array] = {"a": np.array(1)}
    if length:
        constants["n"] = np.array(length)
    names = ["x", "n" if length else "", "a"]
    node = helper.make_node("DFT", names, ["y"], inverse=1, onesided=1)
    shape: list[int | str] = ["batch", half.shape[1], 2]
    model = model_of([node], [("x", FLOAT, shape)], [("y", FLOAT, None)], constants)
    found = run(rewritten(model), {"x": np.stack((half.real, half.imag), -1).astype(np.float32)})
    assert found is not None
    np.testing.assert_allclose(found[0][..., 0], signal, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    operator=st.sampled_from(["MaxPool", "AveragePool", "LpPool"]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    gap=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    ceil=st.booleans(),
    count_padding=st.booleans(),
)
def test_a_pool_is_a_sum_of_slices(
    operator: str,
    kernel: int,
    stride: int,
    gap: int,
    pads: tuple[int, int],
    ceil: bool,
    count_padding: bool,
) -> None:
    if kernel == 1:
        pads = (0, 0)
    attributes: dict[str, object] = {
        "kernel_shape": [kernel, 2],
        "strides": [stride, 1],
        "dilations": [gap, 2],
        "pads": [pads[0], 0, pads[1], 1],
    }
    if operator != "LpPool":
        attributes["ceil_mode"] = int(ceil)
    if operator == "AveragePool":
        attributes["count_include_pad"] = int(count_padding)
    node = helper.make_node(operator, ["x"], ["y"], **attributes)  # type: ignore[arg-type]
    shape: list[int | str] = [2, 3, 11, 7]
    model = model_of([node], [("x", FLOAT, shape)], [("y", FLOAT, None)], opset=22)
    model.ir_version = 10
    assert_same(model, rewritten(model))


@pytest.mark.parametrize(
    ("attributes", "sizes"),
    [
        ({"mode": "linear", "antialias": 1}, [1, 3, 5, 7]),
        ({"mode": "cubic", "antialias": 1}, [1, 3, 4, 12]),
        ({"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, [1, 3, 13, 4]),
        ({"mode": "nearest"}, [1, 3, 5, 21]),
    ],
)
def test_an_image_is_resized_by_matrices(attributes: dict[str, object], sizes: list[int]) -> None:
    node = helper.make_node("Resize", ["x", "", "", "s"], ["y"], **attributes)  # type: ignore[arg-type]
    constants = {"s": np.array(sizes)}
    model = model_of([node], [("x", FLOAT, [1, 3, 9, 10])], [("y", FLOAT, None)], constants)
    assert_same(model, rewritten(model))


@pytest.mark.parametrize("strides", [[1, 1], [2, 1], [2, 3]])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 1]])
def test_blocks_become_an_image_again(strides: list[int], pads: list[int]) -> None:
    image, block = np.array([6, 8]), np.array([2, 3])
    counts = [(image[i] + pads[i] + pads[2 + i] - block[i]) // strides[i] + 1 for i in range(2)]
    shape: list[int | str] = ["batch", 12, int(np.prod(counts))]
    node = helper.make_node("Col2Im", ["x", "i", "b"], ["y"], strides=strides, pads=pads)
    constants = {"i": image, "b": block}
    model = model_of([node], [("x", FLOAT, shape)], [("y", FLOAT, None)], constants)
    assert_same(model, rewritten(model))


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [4], "b": [3, 4, 2]}),
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [3, 2, 4], "b": [4]}),
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [4], "b": [4]}),
    ],
)
def test_a_product_with_a_vector(node: onnx.NodeProto, inputs: dict[str, list[int | str]]) -> None:
    values: Values = [(name, FLOAT, shape) for name, shape in inputs.items()]
    model = model_of([node], values, [("y", FLOAT, None)])
    assert_same(model, rewritten(model))


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_any_and_all_of_truth_values(operator: str) -> None:
    node = helper.make_node(operator, ["x", "a"], ["y"], keepdims=0)
    values: Values = [("x", TensorProto.BOOL, [3, 4])]
    outputs: Values = [("y", TensorProto.BOOL, None)]
    model = model_of([node], values, outputs, {"a": np.array([1])})
    assert_same(model, rewritten(model), {"x": np.arange(12).reshape(3, 4) > 5})


def test_floats_have_the_remainder_of_their_divisor() -> None:
    node = helper.make_node("Mod", ["x", "w"], ["y"], fmod=0)
    weights = {"w": np.array([2.5, -2.5, 3, -3], np.float32)}
    model = model_of([node], [("x", FLOAT, [4])], [("y", FLOAT, [4])], weights, opset=28)
    found = run(rewritten(model), {"x": np.array([4, 4, -4, -4], np.float32)})
    assert found is not None
    np.testing.assert_allclose(found[0], [1.5, -1.0, 2.0, -1.0], rtol=1e-6)


def test_shifted_bits_of_signed_numbers() -> None:
    kind = TensorProto.INT32
    x, by = np.array([-7, 7, 1, -1], np.int32), np.array([1, 1, 4, 0], np.int32)
    for direction, wanted in (("LEFT", x << by), ("RIGHT", x >> by)):
        node = helper.make_node("BitShift", ["x", "s"], ["y"], direction=direction)
        copy = helper.make_model(
            helper.make_graph(
                [node],
                "graph",
                [helper.make_tensor_value_info(n, kind, [4]) for n in ("x", "s")],
                [helper.make_tensor_value_info("y", kind, [4])],
            )
        )
        found = ReferenceEvaluator(rewritten(copy)).run(None, {"x": x, "s": by})
        np.testing.assert_array_equal(found[0], wanted)  # type: ignore[index]


def test_a_picture_is_turned_and_its_colours_swapped_in_float32() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["t", "bgr"], ["g"], axis=1),
        helper.make_node("Cast", ["g"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "unit"], ["y"]),
    ]
    constants = {"bgr": np.array([2, 1, 0]), "unit": np.array(1 / 255, np.float32)}
    shape: list[int | str] = ["batch", 4, 5, 3]
    model = model_of(nodes, [("x", UINT8, shape)], [("y", FLOAT, None)], constants)
    other = bytes_as_floats(model, (UINT8,))
    assert other is not None
    facts = GraphFacts(other)
    assert [name for name in facts.types if facts.kind(name) == UINT8] == ["x"]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    assert_same(model, other, {"x": pictures})


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Greater"])
def test_bytes_overflow_in_float32_as_they_do_as_bytes(operator: str, seed: int) -> None:
    output = TensorProto.BOOL if operator == "Greater" else UINT8
    values: Values = [("a", UINT8, [8]), ("b", UINT8, [8])]
    model = model_of([helper.make_node(operator, ["a", "b"], ["y"])], values, [("y", output, [8])])
    generator = np.random.default_rng(seed)
    feeds = {name: generator.integers(1, 256, 8, np.uint8) for name in "ab"}
    other = bytes_as_floats(model, (UINT8,))
    assert other is not None
    wanted = ReferenceEvaluator(model).run(None, feeds)
    found = ReferenceEvaluator(other).run(None, feeds)
    np.testing.assert_array_equal(found[0], wanted[0])  # type: ignore[index]


def quantised(operator: str) -> onnx.ModelProto:
    x: Values = [("x", FLOAT, [2, 3])]
    scale, zero = np.array([0.1, 0.2, 0.05], np.float32), np.array([3, 128, 250], np.uint8)
    if operator == "QuantizeLinear":
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
        ]
        return model_of(nodes, x, [("y", FLOAT, None)], {"s": scale, "z": zero})
    node = helper.make_node(operator, ["a", "b", "za", "zb"], ["y"])
    shapes: dict[str, list[int | str]] = {"a": [2, 3], "b": [3, 4]}
    if operator == "ConvInteger":
        shapes = {"a": [1, 2, 5, 5], "b": [3, 2, 3, 3]}
    constants = {"za": np.array(7, np.uint8), "zb": np.array(130, np.uint8)}
    values: Values = [(name, UINT8, shape) for name, shape in shapes.items()]
    return model_of([node], values, [("y", TensorProto.INT32, None)], constants)


@pytest.mark.parametrize("operator", ["QuantizeLinear", "MatMulInteger", "ConvInteger"])
def test_numbers_with_a_zero_point_are_computed_in_float32(operator: str) -> None:
    model = quantised(operator)
    other = bytes_as_floats(model, (UINT8,))
    assert other is not None
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        value.name: generator.standard_normal((2, 3)).astype(np.float32) * 10
        if value.name == "x"
        else generator.integers(
            0, 256, [d.dim_value for d in value.type.tensor_type.shape.dim]
        ).astype(np.uint8)
        for value in model.graph.input
    }
    assert_same(model, other, feeds)


def test_a_graph_with_an_operation_on_bytes_that_has_no_form_is_left() -> None:
    node = helper.make_node("BitwiseAnd", ["a", "a"], ["y"])
    model = model_of([node], [("a", UINT8, [4])], [("y", UINT8, [4])])
    assert bytes_as_floats(model, (UINT8,)) is None
