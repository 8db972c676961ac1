"""8-bit integers computed in float32, for TensorRT, which knows uint8 only at the ends of a graph.

Every tensor of the type becomes float32 and holds the same whole numbers. Single operations are exact; sums
of more than 256 products (MatMulInteger, ConvInteger) are rounded as float32 is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedge.export.graph import inner_graphs
from fusedge.export.operator_forms import Form, GraphFacts

_SUFFIX = ".float32"
_RANGES: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
}
# They move or compare numbers, and do the same to floats.
_ALIKE = frozenset(
    (
        *(
            "ArgMax",
            "ArgMin",
            "Clip",
            "Concat",
            "DepthToSpace",
            "Equal",
            "Expand",
            "Flatten",
            "Gather",
        ),
        *("GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less"),
        *(
            "LessOrEqual",
            "Max",
            "MaxPool",
            "Min",
            "Pad",
            "ReduceMax",
            "ReduceMin",
            "Relu",
            "Reshape",
        ),
        *("ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split"),
        *("Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
    )
)


def bytes_as_floats(model: onnx.ModelProto, kinds: Collection[int]) -> onnx.ModelProto | None:
    """The graph with 8-bit tensors of these element types in float32 inside, its interface as it was.

    None where it has none, or where an operation on them has no such form.
    """
    facts = GraphFacts(model)
    small = {name for name in facts.types if facts.kind(name) in kinds}
    graph = model.graph
    names = {name: f"{name}{_SUFFIX}" for name in small}
    nodes = [
        _cast(value.name, names[value.name], TensorProto.FLOAT)
        for value in graph.input
        if value.name in small
    ]
    given = len(nodes)
    constants = [_widened(t, names[t.name]) if t.name in small else t for t in graph.initializer]
    for node in graph.node:
        if small.isdisjoint((*node.input, *node.output)) and not _holds(node, small):
            nodes.append(node)
            continue
        form = _form(node, names, facts)
        if form is None:
            return None
        nodes += form.nodes
        constants += form.constants
    if len(nodes) == given:
        return None
    nodes += [
        _cast(names[value.name], value.name, facts.kind(value.name))
        for value in graph.output
        if value.name in small
    ]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rebuilt = onnx.GraphProto(node=nodes, initializer=constants)
    del copy.graph.node[:], copy.graph.initializer[:], copy.graph.value_info[:]
    copy.graph.node.extend(rebuilt.node)
    copy.graph.initializer.extend(rebuilt.initializer)
    return copy if small else None


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}/Cast", to=kind)


def _widened(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name)


def _holds(node: onnx.NodeProto, small: Collection[str]) -> bool:
    """Whether a body inside the node uses one of the tensors."""
    return any(
        name in small or _holds(inner, small)
        for graph in inner_graphs(node)
        for inner in graph.node
        for name in (*inner.input, *inner.output)
    )


class _Operation:
    """One operation on 8-bit numbers, of whose inputs and outputs all 8-bit ones have become float32."""

    def __init__(self, node: onnx.NodeProto, names: Mapping[str, str], facts: GraphFacts) -> None:
        wide = onnx.NodeProto()
        wide.CopyFrom(node)
        wide.input[:] = [names.get(name, name) for name in node.input]
        wide.output[:] = [names.get(name, name) for name in node.output]
        self.node, self.wide, self.facts = node, wide, facts
        self.form = Form(wide, node.name or f"node_of_{node.output[0]}")
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def number(self, value: float) -> str:
        return self.form.constant(np.array(value, np.float32))

    def floats(self, index: int) -> str:
        """An input as float32."""
        name: str = self.wide.input[index]
        if self.facts.kind(self.node.input[index]) == TensorProto.FLOAT or name.endswith(_SUFFIX):
            return name
        return self.form.add("Cast", name, to=TensorProto.FLOAT)

    def given(self, index: int) -> bool:
        return len(self.node.input) > index and bool(self.node.input[index])

    def along(self, name: str, size: int | None, rank: int, axis: int) -> str:
        """A scale or zero point of one number for each index of an axis, shaped to fit there."""
        if size is None or rank == 0:
            return name
        return self.form.add("Reshape", name, self.form.whole(-1, *(1,) * (rank - 1 - axis % rank)))

    def shifted(self, index: int, zero: int, axis: int) -> str:
        """An input without its zero point."""
        x = self.floats(index)
        return self.form.add("Sub", x, self._aligned(zero, index, axis)) if self.given(zero) else x

    def scaled(self, index: int, scale: int, zero: int, axis: int) -> str:
        """An input in real numbers."""
        return self.form.add(
            "Mul", self.shifted(index, zero, axis), self._aligned(scale, index, axis)
        )

    def quantised(self, real: str, like: int, scale: int, zero: int, axis: int) -> None:
        """Real numbers, of the rank of input `like`, as whole ones of the output's 8 bits."""
        kind = self.facts.kind(self.node.output[0])
        rounded = self.form.add(
            "Round", self.form.add("Div", real, self._aligned(scale, like, axis))
        )
        if self.given(zero):
            rounded = self.form.add("Add", rounded, self._aligned(zero, like, axis))
        self.form.add("Clip", rounded, *map(self.number, _RANGES[kind]))

    def _aligned(self, index: int, like: int, axis: int) -> str:
        shape, full = (self.facts.shape(self.node.input[i]) for i in (index, like))
        size = shape[0] if shape else None
        return self.along(self.floats(index), size, len(full or ()), axis)

    def wrapped(self, value: str) -> None:
        """A whole number brought back into the output's 8 bits, as integers overflow."""
        low, high = _RANGES[self.facts.kind(self.node.output[0])]
        form, turn = self.form, self.number(high - low + 1)
        above = form.add("Sub", value, self.number(low)) if low else value
        turns = form.add("Floor", form.add("Div", above, turn))
        form.add("Sub", value, form.add("Mul", turns, turn))

    def truncated(self, value: str) -> str:
        whole = self.form.add("Cast", value, to=TensorProto.INT32)
        return self.form.add("Cast", whole, to=TensorProto.FLOAT)


def _form(node: onnx.NodeProto, names: Mapping[str, str], facts: GraphFacts) -> Form | None:
    operation = _Operation(node, names, facts)
    attributes, form, wide = operation.attributes, operation.form, operation.wide
    if any(inner_graphs(node)) or node.domain or attributes.get("block_size"):
        return None
    if node.op_type in _ALIKE and attributes.get("reduction", b"none") == b"none":
        form.nodes.append(wide)
        return form
    if node.op_type == "Constant" and "value" in attributes:
        wide.attribute[0].t.CopyFrom(_widened(wide.attribute[0].t, ""))
        form.nodes.append(wide)
        return form
    write = _OPERATIONS.get(node.op_type)
    if write is None:
        return None
    write(operation)
    return form.end()


def _cast_form(o: _Operation) -> None:
    if o.facts.kind(o.node.output[0]) in _RANGES and o.wide.output[0].endswith(_SUFFIX):
        o.wrapped(o.truncated(o.wide.input[0]))
    else:
        o.form.add("Cast", o.wide.input[0], to=o.attributes["to"])


def _arithmetic(o: _Operation) -> None:
    o.wrapped(o.form.add(o.node.op_type, *o.wide.input))


def _divide(o: _Operation) -> None:
    o.wrapped(o.truncated(o.form.add("Div", *o.wide.input)))


def _remainder(o: _Operation) -> None:
    x, y = o.wide.input
    quotient = o.form.add("Div", x, y)
    whole = o.truncated(quotient) if o.attributes.get("fmod") else o.form.add("Floor", quotient)
    o.form.add("Sub", x, o.form.add("Mul", whole, y))


def _quantise(o: _Operation) -> None:
    o.quantised(o.floats(0), 0, 1, 2, o.attributes.get("axis", 1))


def _dequantise(o: _Operation) -> None:
    real = o.scaled(0, 1, 2, o.attributes.get("axis", 1))
    o.form.add("Cast", real, to=o.facts.kind(o.node.output[0]))


def _integer_product(o: _Operation) -> None:
    product = o.form.add("MatMul", o.shifted(0, 2, -2), o.shifted(1, 3, -1))
    o.form.add("Cast", product, to=TensorProto.INT32)


def _integer_convolution(o: _Operation) -> None:
    folded = o.form.add("Conv", o.shifted(0, 2, 1), o.shifted(1, 3, 0), **o.attributes)
    o.form.add("Cast", folded, to=TensorProto.INT32)


def _quantised_product(o: _Operation) -> None:
    o.quantised(o.form.add("MatMul", o.scaled(0, 1, 2, -2), o.scaled(3, 4, 5, -1)), 0, 6, 7, -2)


def _quantised_convolution(o: _Operation) -> None:
    real = [o.scaled(0, 1, 2, 1), o.scaled(3, 4, 5, 0)]
    if o.given(8):  # int32, in units of both scales; they are one number, or one for each channel
        unit = o.form.add("Mul", o.floats(1), o.floats(4))
        real.append(o.form.add("Mul", o.floats(8), unit))
    o.quantised(o.form.add("Conv", *real, **o.attributes), 0, 6, 7, 1)


_OPERATIONS: Mapping[str, Callable[[_Operation], None]] = {
    "Add": _arithmetic,
    "Cast": _cast_form,
    "ConvInteger": _integer_convolution,
    "DequantizeLinear": _dequantise,
    "Div": _divide,
    "MatMulInteger": _integer_product,
    "Mod": _remainder,
    "Mul": _arithmetic,
    "QLinearConv": _quantised_convolution,
    "QLinearMatMul": _quantised_product,
    "QuantizeLinear": _quantise,
    "Sub": _arithmetic,
}
