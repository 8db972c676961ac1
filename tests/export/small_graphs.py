"""Small ONNX graphs for the tests of engines."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.manifest import DimRange

BATCH = {"batch": DimRange(least=1, usual=4, greatest=8)}


def graph_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    dtype: int = TensorProto.FLOAT,
    opset: int = 17,
    **inputs: list[str | int],
) -> onnx.ModelProto:
    """A model of these nodes, whose output is `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def product_graph() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "out/linear")
    return graph_of([node], {"w": np.ones((4, 4), np.float32)}, x=["batch", 4])


def dft_graph() -> onnx.ModelProto:
    """What the parser refuses."""
    node = helper.make_node("DFT", ["x"], ["y"], "mel/dft", axis=1)
    return graph_of([node], {}, x=["batch", 16, 1])


def nms_graph() -> onnx.ModelProto:
    """What the parser takes and the builder refuses."""
    nodes = [
        helper.make_node("NonMaxSuppression", ["b", "s", "n"], ["i"], "detector/nms"),
        helper.make_node("Cast", ["i"], ["y"], "detector/cast", to=TensorProto.FLOAT),
    ]
    return graph_of(nodes, {"n": np.array([3])}, b=["batch", 9, 4], s=["batch", 1, 9])


def attention_graph() -> onnx.ModelProto:
    """Attention in float32, for which TensorRT-RTX has no single kernel."""
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], "mix/attention")
    shape: list[str | int] = ["batch", 2, 8, 16]
    return graph_of([node], {}, opset=23, q=shape, k=shape, v=shape)


def mixed_graph() -> onnx.ModelProto:
    """A product in float16 between casts, and a sum in float32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], "to16", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x16", "w"], ["p16"], "out/linear"),
        helper.make_node("Cast", ["p16"], ["p"], "to32", to=TensorProto.FLOAT),
        helper.make_node("Add", ["p", "b"], ["y"], "out/bias"),
    ]
    constants = {"w": np.ones((4, 4), np.float16), "b": np.ones(4, np.float32)}
    return graph_of(nodes, constants, x=["batch", 4])


def quantized_graph() -> onnx.ModelProto:
    """A product in int8: numbers and weights are quantized and dequantized."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "x/q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "x/dq"),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"], "w/dq"),
        helper.make_node("MatMul", ["xd", "wd"], ["p"], "out/linear"),
        helper.make_node("Relu", ["p"], ["y"], "out/relu"),
    ]
    constants = {
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "wq": np.ones((16, 16), np.int8),
    }
    return graph_of(nodes, constants, x=["batch", 16])


def recurrent_graph() -> onnx.ModelProto:
    """A GRU over 10 steps in float16: the case whose engines differ on their own."""
    rng = np.random.default_rng(0)
    constants = {
        "c": rng.normal(size=(12, 6, 3)).astype(np.float16),
        "w": rng.normal(size=(1, 36, 12)).astype(np.float16),
        "r": rng.normal(size=(1, 36, 12)).astype(np.float16),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["f"], "conv", pads=[2, 0]),
        helper.make_node("Relu", ["f"], ["g"], "relu"),
        helper.make_node("Transpose", ["g"], ["t"], "turn", perm=[2, 0, 1]),
        helper.make_node(
            "GRU", ["t", "w", "r", "", "", "h"], ["s", "last"], "gru", hidden_size=12,
            linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["s", "one"], ["y"], "squeeze"),
    ]  # fmt: skip
    return graph_of(nodes, constants, TensorProto.FLOAT16, x=["batch", 6, 10], h=[1, "batch", 12])
