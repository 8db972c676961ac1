"""Precision by node: each ONNX node computes in float32, float16, bfloat16 or int8, mixed in one graph.

An *assignment* maps names of nodes of the float32 graph to their precision; who is not named computes in
float32. Inputs and outputs of the graph stay as they are. Casts are put on the edges between precisions,
one for each tensor. (The converter of onnxconverter-common 1.16 makes invalid graphs of three common
shapes: an output that is also used inside, an output of a node kept in float32, and a constant that both
share.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.manifest import GraphPrecision, Precision
from fusedge.export.calibration import QUANTISED_KINDS, Calibration
from fusedge.export.graph import check_graph
from fusedge.export.part import ModulePart
from fusedge.export.quantise import Quantiser

Assignment = Mapping[str, Precision]

_ELEMENTS: Mapping[Precision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPES: Mapping[Precision, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
_GREATEST: Mapping[Precision, float] = {
    "fp16": float(np.finfo(np.float16).max),
    "bf16": (2 - 2**-7) * 2.0**127,
}
# Kinds that only hold or convert numbers, or whose inputs ONNX or TensorRT want in float32.
_NEVER = frozenset(
    (
        *(
            "BitCast",
            "Cast",
            "Constant",
            "ConstantOfShape",
            "CumSum",
            "DequantizeLinear",
            "QuantizeLinear",
        ),
        *("NonMaxSuppression", "Range", "Resize", "RoiAlign", "TopK", "Upsample"),
    )
)
_SENSITIVE = frozenset(
    (
        *("Exp", "Log", "Pow", "Softmax", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    )
)
PRODUCTS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
RECURRENCES = frozenset(["GRU", "LSTM", "RNN"])
_DIMS_ONLY = frozenset(["Shape", "Size"])  # they read any type
_NOT_COMPUTING = _DIMS_ONLY | {"Cast", "DequantizeLinear", "QuantizeLinear"}


def node_key(node: onnx.NodeProto) -> str:
    """What a node is called in an assignment: its name, or its first output where it has none."""
    return node.name or next(name for name in node.output if name)


def reducible(model: onnx.ModelProto, precision: Precision) -> tuple[str, ...]:
    """The nodes of a float32 graph that can compute in `precision`, in the graph's order.

    What ONNX allows at the graph's opset counts: bfloat16 for Conv, pooling and recurrences needs 22.
    """
    floats = _float_tensors(model)
    opset = _opset(model)
    return tuple(
        node_key(node) for node in model.graph.node if _can(node, precision, floats, opset)
    )


def uniform_assignments(model: onnx.ModelProto, precision: Precision) -> list[Assignment]:
    """Assignments of one precision, from most to least reduced, to be tried until parity holds.

    fp16 and bf16: all nodes that can; without sums of squares and exponentials; products and recurrences;
    products alone. int8: all products; those with constant weights. One empty assignment where none can.
    """
    able = set(reducible(model, precision))
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node_key(node) in able]
    if precision == "int8":
        weighted = [node for node in nodes if node.input[1] in constants]
        choices = [nodes, weighted]
    else:
        choices = [
            nodes,
            [node for node in nodes if node.op_type not in _SENSITIVE],
            [node for node in nodes if node.op_type in PRODUCTS | RECURRENCES],
            [node for node in nodes if node.op_type in PRODUCTS],
        ]
    assignments: list[Assignment] = []
    for chosen in choices:
        assignment: Assignment = {node_key(node): precision for node in chosen}
        if assignment not in assignments and (assignment or not assignments):
            assignments.append(assignment)
    return assignments


def reduce_graph(
    model: onnx.ModelProto,
    part: ModulePart,
    assignment: Assignment,
    calibration: Calibration | None = None,
) -> onnx.ModelProto:
    """The graph with each node in its assigned precision; `model`, in float32, is left as it is.

    A node that cannot (see `reducible`) stays float32, and so does all of a module with an attribute
    `needs_float32` that is true; `reduced_nodes` says what came of it. Constants
    beyond float16 are clipped to its greatest value (a mask of -1e9 stays a mask); the parity gate judges
    the result. Raises FusedgeError where int8 lacks a calibrated range, or the graph becomes invalid.
    """
    floats = _float_tensors(model)
    opset = _opset(model)
    precisions: list[Precision] = []
    exact = tuple(
        prefix
        for name, module in part.module.named_modules()
        if getattr(module, "needs_float32", False)
        for prefix in (f"{name}/", f"{name}.")
    )
    for node in model.graph.node:
        kept = node_key(node).startswith(exact)
        wanted = "fp32" if kept else assignment.get(node_key(node), "fp32")
        precisions.append(wanted if _can(node, wanted, floats, opset) else "fp32")
    quantiser = Quantiser(model.graph, calibration, f"part {part.name}")
    rewriting = _Rewriting(model.graph, precisions, floats, quantiser)
    nodes, initializers = rewriting.run()
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    del reduced.graph.node[:], reduced.graph.initializer[:], reduced.graph.value_info[:]
    reduced.graph.node.extend(nodes)
    reduced.graph.initializer.extend(initializers)
    check_graph(reduced, part, "precision")
    return reduced


def reduced_nodes(graph: onnx.ModelProto) -> dict[str, Precision]:
    """The nodes that do not compute in float32, with their precision, as the graph itself says.

    By the type of what they read and make; a product of two dequantised int8 tensors computes in int8.
    """
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    names = {element: precision for precision, element in _ELEMENTS.items()}
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    kinds |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    made_by = {name: node for node in inferred.node for name in node.output}
    found: dict[str, Precision] = {}
    for node in inferred.node:
        if node.op_type in _NOT_COMPUTING:
            continue
        used = {names[k] for n in (*node.input, *node.output) if (k := kinds.get(n, 0)) in names}
        factors = [made_by[name].op_type for name in node.input[:2] if name in made_by]
        if node.op_type in QUANTISED_KINDS and factors == ["DequantizeLinear"] * 2:
            found[node_key(node)] = "int8"
        elif used:
            found[node_key(node)] = min(used)
    return found


def graph_precision(graph: onnx.ModelProto) -> GraphPrecision:
    """fp32, the one precision that nodes were reduced to, or mixed."""
    kinds = set(reduced_nodes(graph).values())
    if len(kinds) > 1:
        return "mixed"
    return next(iter(kinds), "fp32")


class _Rewriting:
    """Writes the nodes anew, in order, with casts and constants for each tensor where first needed."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        precisions: Sequence[Precision],
        floats: Collection[str],
        quantiser: Quantiser,
    ) -> None:
        self._graph, self._floats, self._quantiser = graph, floats, quantiser
        self._pairs = list(zip(graph.node, precisions, strict=True))
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._forms: dict[tuple[str, Precision], str] = {}
        self._as_made: dict[str, str] = {}  # by tensor of a reduced node
        self._nodes: list[onnx.NodeProto] = []
        self._made: list[onnx.TensorProto] = []
        self._outputs = {value.name for value in graph.output}
        self._readers: dict[str, set[Precision]] = {name: {"fp32"} for name in self._outputs}
        for node, precision in self._pairs:
            for name in () if node.op_type in _DIMS_ONLY else _read(node):
                self._readers.setdefault(name, set()).add(precision)

    def run(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """All nodes, and the initializers that they use."""
        for original, precision in self._pairs:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            if precision == "int8":
                self._write_int8(node)
            elif precision == "fp32":
                if node.op_type in _DIMS_ONLY:
                    node.input[0] = self._as_made.get(node.input[0], node.input[0])
                self._nodes.append(node)
            else:
                self._write_half(node, precision)
        used = {name for node in self._nodes for name in _read(node)}
        everything = (*self._graph.initializer, *self._made, *self._quantiser.constants)
        return self._nodes, [tensor for tensor in everything if tensor.name in used]

    def _write_half(self, node: onnx.NodeProto, precision: Precision) -> None:
        node.input[:] = [
            self._form(name, precision) if name in self._floats else name for name in node.input
        ]
        self._nodes.append(node)
        made = [name for name in node.output if name in self._floats]
        for name in made:
            self._as_made[name] = self._forms[name, precision] = f"{name}.{precision}"
        node.output[:] = [self._forms.get((name, precision), name) for name in node.output]
        for name in made:
            if self._readers.get(name, set()) - {precision}:
                self._nodes.append(_cast(f"{name}.{precision}", name, TensorProto.FLOAT))

    def _write_int8(self, node: onnx.NodeProto) -> None:
        added, node.input[:] = self._quantiser.inputs(node)
        self._nodes += [*added, node]
        if node.output[0] not in self._outputs:
            self._nodes += self._quantiser.output(node)

    def _form(self, name: str, precision: Precision) -> str:
        key = name, precision
        if key not in self._forms:
            self._forms[key] = f"{name}.{precision}"
            if name in self._constants:
                tensor = self._constants[name]
                self._made.append(_rounded(tensor, self._forms[key], precision))
            else:
                self._nodes.append(_cast(name, self._forms[key], _ELEMENTS[precision]))
        return self._forms[key]


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, by the graphs inside of it (If, Loop) too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)  # may be a tensor from outside
            for inner in graph.node:
                yield from _read(inner)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _opset(model: onnx.ModelProto) -> int:
    return next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 1)


def _can(node: onnx.NodeProto, precision: Precision, floats: Collection[str], opset: int) -> bool:
    """Whether a node may compute in a precision; one with a graph inside (If, Loop) never does."""
    if precision == "fp32":
        return True
    if precision == "int8":
        return (
            node.op_type in QUANTISED_KINDS
            and node.domain in ("", "ai.onnx")
            and all(name in floats for name in node.input[:2])
        )
    if node.op_type in _NEVER | _DIMS_ONLY or any(
        a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute
    ):
        return False
    return _allows(node, precision, floats, opset)


def _allows(
    node: onnx.NodeProto, precision: Precision, floats: Collection[str], opset: int
) -> bool:
    """Whether ONNX lets the node read and make this type: what it makes must follow what it reads."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

    def variables(
        names: Sequence[str], formal: Sequence[onnx.defs.OpSchema.FormalParameter]
    ) -> set[str]:
        return {
            formal[min(index, len(formal) - 1)].type_str
            for index, name in enumerate(names)
            if name in floats
        }

    read = variables(node.input, schema.inputs)
    made = variables(node.output, schema.outputs)
    follows = bool(read) and made <= read
    return follows and all(_TYPES[precision] in allowed.get(kind, ()) for kind in read)


def _cast(source: str, result: str, element: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}.cast", to=element)


def _rounded(tensor: onnx.TensorProto, name: str, precision: Precision) -> onnx.TensorProto:
    limit = np.float32(_GREATEST[precision])
    values = numpy_helper.to_array(tensor).clip(-limit, limit)
    if precision == "fp16":
        return numpy_helper.from_array(values.astype(np.float16), name)
    raw = values.astype(ml_dtypes.bfloat16).tobytes()
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, raw, raw=True)
