"""Precision: a graph that computes in float16 inside and keeps float32 inputs and outputs.

Casts are put on the edges between float32 and float16 nodes, one for each tensor. (The converter of
onnxconverter-common 1.16 makes invalid graphs of three common shapes: an output that is also used inside,
an output of a node kept in float32, and a constant that both kinds of nodes share.)
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedge.export.graph import check_graph
from fusedge.export.part import ModulePart

# Node kinds with inputs that ONNX wants in float32, and those that only hold or convert numbers.
_NEVER = frozenset(
    (
        *("Cast", "Constant", "ConstantOfShape", "CumSum", "DequantizeLinear", "QuantizeLinear"),
        *("NonMaxSuppression", "Range", "Resize", "RoiAlign", "TopK", "Upsample"),
    )
)
_SENSITIVE = frozenset(
    (
        *("Exp", "Log", "Pow", "Softmax", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    )
)
_PRODUCTS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_RECURRENCES = frozenset(["GRU", "LSTM", "RNN"])


def keep_choices(model: onnx.ModelProto) -> list[frozenset[str]]:
    """Node kinds to keep in float32, from least to most, to be tried until a part is within tolerance.

    Nothing; sums of squares and exponentials; all but products and recurrences; all but products.
    """
    kinds = frozenset(node.op_type for node in model.graph.node)
    choices = (
        frozenset[str](),
        kinds & _SENSITIVE,
        kinds - _PRODUCTS - _RECURRENCES,
        kinds - _PRODUCTS,
    )
    return list(dict.fromkeys(choices))


def to_float16(model: onnx.ModelProto, part: ModulePart, keep: Collection[str]) -> onnx.ModelProto:
    """A float16 version of a float32 graph; node kinds in `keep` stay float32.

    Constants beyond float16 are clipped to its largest value (a mask of -1e9 stays a mask); the parity
    gate judges the result. Raises FusedgeError where the conversion gives an invalid graph.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    floats = _float_tensors(model)
    reduced = [_reducible(node, floats, keep) for node in graph.node]
    pairs = list(zip(graph.node, reduced, strict=True))
    wanted = {name for node, small in pairs if not small for name in node.input}
    wanted |= {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    converted: dict[str, str] = {}  # name in float32 to name in float16
    nodes: list[onnx.NodeProto] = []
    for node, small in pairs:
        if not small:
            nodes.append(node)
            continue
        for name in dict.fromkeys(node.input):  # no set: its order differs from process to process
            if name not in floats or name in converted:
                continue
            converted[name] = f"{name}.fp16"
            if name in constants:
                graph.initializer.append(_constant16(constants[name], converted[name]))
            else:
                nodes.append(_cast(name, converted[name], TensorProto.FLOAT16))
        node.input[:] = [converted.get(name, name) for name in node.input]
        nodes.append(node)
        made = [name for name in node.output if name in floats]
        converted.update((name, f"{name}.fp16") for name in made)
        node.output[:] = [converted.get(name, name) for name in node.output]
        nodes += [_cast(converted[n], n, TensorProto.FLOAT) for n in made if n in wanted]
    used = {name for node in nodes for name in node.input}
    # Built anew: assigning a repeated field to itself would lose what it holds.
    rebuilt = onnx.GraphProto(
        node=nodes, initializer=[tensor for tensor in graph.initializer if tensor.name in used]
    )
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rebuilt.node)
    graph.initializer.extend(rebuilt.initializer)
    check_graph(half, part, "fp16")
    return half


def count_kept(model: onnx.ModelProto, keep: Collection[str]) -> int:
    """How many nodes of a float32 graph would compute in float16, were their kind not in `keep`."""
    floats = _float_tensors(model)
    return sum(n.op_type in keep and _reducible(n, floats, ()) for n in model.graph.node)


def float16_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes that compute in float16: those with a float16 output, casts left out."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return tuple(
        node.name
        for node in graph.node
        if node.op_type != "Cast" and not half.isdisjoint(node.output)
    )


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _reducible(node: onnx.NodeProto, floats: Collection[str], keep: Collection[str]) -> bool:
    """Whether a node may compute in float16; one with a graph inside (If, Loop) never does."""
    if node.op_type in _NEVER or node.op_type in keep:
        return False
    if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
        return False
    return any(name in floats for name in (*node.input, *node.output))


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}.cast", to=kind)


def _constant16(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    limit = np.finfo(np.float16).max
    values = numpy_helper.to_array(tensor).clip(-limit, limit).astype(np.float16)
    return numpy_helper.from_array(values, name)
