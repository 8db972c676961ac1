"""Operators that TensorRT lacks, written with those that it has; the results are the same.

Each form works on one node and gives None where it does not apply: an attribute that it does not know, or
a size that the graph leaves open. Which operators are lacking is a matter of trial, see `repair`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
Attributes = Mapping[str, Any]


class GraphFacts:
    """What is known of a graph's tensors: element types, shapes (None for open dims) and constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        opsets = ((entry.domain, entry.version) for entry in model.opset_import)
        self.versions = {"" if domain == "ai.onnx" else domain: number for domain, number in opsets}
        self.types = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        for name, tensor in self.constants.items():
            self.types[name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))

    def kind(self, name: str) -> int:
        """The TensorProto element type of a tensor, UNDEFINED where unknown."""
        found = self.types.get(name)
        return found.tensor_type.elem_type if found else TensorProto.UNDEFINED

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of a tensor, or None where not even its rank is known."""
        found = self.types.get(name)
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        dims = found.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


class Form:
    """The nodes and constants that stand for one node; their names begin with that node's name."""

    def __init__(self, node: onnx.NodeProto, name: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._node, self._name = node, name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One more node; the name of its output."""
        name = f"{self._name}/{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def constant(self, value: Array) -> str:
        """One more constant; its name."""
        name = f"{self._name}/constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def whole(self, *values: int) -> str:
        """A constant list of int64."""
        return self.constant(np.array(values, np.int64))

    def end(self) -> Form:
        """The form, whose last node now has the output of the node that it stands for."""
        self.nodes[-1].output[0] = self._node.output[0]
        return self


def other_form(node: onnx.NodeProto, name: str, facts: GraphFacts) -> Form | None:
    """The node in other operators, or None where there is no form for it."""
    make = _FORMS.get(node.op_type)
    if make is None or node.domain or len(list(filter(None, node.output))) != 1:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return make(Form(node, name), node, attributes, facts)


def _matmul(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """A vector as a matrix of one row or one column."""
    shapes = [facts.shape(name) for name in node.input]
    if None in shapes:
        return None
    vectors = [axis for axis, shape in zip((-2, -1), shapes, strict=True) if len(shape or ()) == 1]
    if not vectors:
        return None
    left, right = (
        form.add("Unsqueeze", name, form.whole(axis)) if axis in vectors else name
        for name, axis in zip(node.input, (-2, -1), strict=True)
    )
    product = form.add("MatMul", left, right)
    form.add("Squeeze", product, form.whole(*vectors))
    return form.end()


def _modulo(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """The remainder with the divisor's sign of floats: `x - floor(x / y) * y`."""
    if attributes.get("fmod", 0) or facts.kind(node.input[0]) not in _FLOATS:
        return None
    x, y = node.input
    form.add("Sub", x, form.add("Mul", form.add("Floor", form.add("Div", x, y)), y))
    return form.end()


def _reduce_truth(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """Any and all of truth values, by int32."""
    if facts.kind(node.input[0]) != TensorProto.BOOL:
        return None
    numbers = form.add("Cast", node.input[0], to=TensorProto.INT32)
    form.add(
        "Cast",
        form.add(node.op_type, numbers, *node.input[1:], **attributes),
        to=TensorProto.BOOL,
    )
    return form.end()


def _shift(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """Shifted bits of signed integers: times a power of two, or the floor of the quotient by it."""
    kind = facts.kind(node.input[0])
    if kind not in (TensorProto.INT32, TensorProto.INT64):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    powers = form.constant((1 << np.arange(dtype.itemsize * 8 - 1, dtype=np.int64)).astype(dtype))
    x, power = node.input[0], form.add("Gather", powers, node.input[1])
    if attributes["direction"] == b"LEFT":
        form.add("Mul", x, power)
    else:
        below = form.add("Mod", x, power)
        form.add("Div", form.add("Sub", x, below), power)
    return form.end()


def _fourier(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """A discrete Fourier transform as a product with a constant matrix.

    Real and imaginary parts lie side by side, so that one product takes both.
    """
    names = [*node.input, "", ""]
    shape = facts.shape(names[0])
    default_axis = attributes.get("axis", 1) if facts.versions[""] < 20 else -2
    given_axis = facts.constant(names[2]) if names[2] else np.array(default_axis)
    given_length = facts.constant(names[1]) if names[1] else None
    if shape is None or given_axis is None or (names[1] and given_length is None):
        return None
    axis = int(given_axis.item()) % len(shape)
    size, parts = shape[axis], shape[-1]
    if size is None or parts not in (1, 2) or axis == len(shape) - 1:
        return None
    inverse, onesided = attributes.get("inverse", 0), attributes.get("onesided", 0)
    to_real = bool(inverse and onesided)
    natural = 2 * (size - 1) if to_real else size
    length = natural if given_length is None else int(given_length.item())
    wanted = length // 2 + 1 if onesided and not inverse else length
    used = min(size, length // 2 + 1 if to_real else length)
    turns = np.outer(np.arange(used), np.arange(wanted)) % length
    angle = (1 if inverse else -1) * 2 * np.pi * turns / length
    scale = np.full((used, 1), 1 / length if inverse else 1.0)
    if to_real:  # the half that is left out is the mirror of the other
        scale[1 : (length + 1) // 2] *= 2
    real, imaginary = scale * np.cos(angle), scale * np.sin(angle)
    # [in, part in, out, part out]
    matrix = np.stack(
        (np.stack((real, imaginary), axis=-1), np.stack((-imaginary, real), axis=-1)), axis=1
    )[:, :parts, :, : 1 if to_real else 2]
    dtype = helper.tensor_dtype_to_np_dtype(facts.kind(names[0]))
    weights = form.constant(matrix.reshape(used * parts, -1).astype(dtype))
    order = [i for i in range(len(shape) - 1) if i != axis] + [axis, len(shape) - 1]
    x = form.add("Transpose", names[0], perm=order)
    if used < size:
        x = form.add("Slice", x, form.whole(0), form.whole(used), form.whole(-2))
    kept = [0] * (len(shape) - 2)
    flat = form.add("Reshape", x, form.whole(*kept, used * parts))
    product = form.add("MatMul", flat, weights)
    spectrum = form.add("Reshape", product, form.whole(*kept, wanted, matrix.shape[-1]))
    form.add("Transpose", spectrum, perm=[order.index(i) for i in range(len(shape))])
    return form.end()


def _pool(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """A pool with gaps between its taps, or of another norm, as the sum or maximum of shifted slices."""
    shape, out = facts.shape(node.input[0]), facts.shape(node.output[0])
    kernel = _numbers(attributes, "kernel_shape")
    rank = len(kernel)
    sizes, wanted = ([n for n in (dims or ())[2:] if n is not None] for dims in (shape, out))
    kind = facts.kind(node.input[0])
    if len(sizes) != rank or len(wanted) != rank or kind not in _FLOATS:
        return None
    if math.prod(kernel) > _MOST_TAPS:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    gaps = _numbers(attributes, "dilations") or (1,) * rank
    strides = _numbers(attributes, "strides") or (1,) * rank
    reach = [
        (n - 1) * s + (k - 1) * g + 1
        for n, s, k, g in zip(wanted, strides, kernel, gaps, strict=True)
    ]
    before = _pads_before(attributes, sizes, reach)
    after = [max(0, r - n - b) for r, n, b in zip(reach, sizes, before, strict=True)]
    x, filling, joined = node.input[0], 0.0, "Sum"
    norm = float(attributes.get("p", 2))
    if node.op_type == "MaxPool":
        filling, joined = -np.inf, "Max"
    elif node.op_type == "LpPool":
        x = form.add("Pow", form.add("Abs", x), form.constant(np.array(norm, dtype)))
    if any((*before, *after)):
        pads = form.whole(0, 0, *before, 0, 0, *after)
        x = form.add("Pad", x, pads, form.constant(np.array(filling, dtype)))
    axes, steps = form.whole(*range(2, rank + 2)), form.whole(*strides)
    slices = []
    for tap in itertools.product(*(range(k) for k in kernel)):
        starts = [t * g for t, g in zip(tap, gaps, strict=True)]
        ends = [b + (n - 1) * s + 1 for b, n, s in zip(starts, wanted, strides, strict=True)]
        slices.append(form.add("Slice", x, form.whole(*starts), form.whole(*ends), axes, steps))
    pooled = form.add(joined, *slices)
    if node.op_type == "LpPool":
        form.add("Pow", pooled, form.constant(np.array(1 / norm, dtype)))
    elif node.op_type == "AveragePool":
        counts = np.ones((1, 1))
        for i in range(rank):
            first, end = before[i], before[i] + sizes[i]
            if attributes.get("count_include_pad"):
                padded = _numbers(attributes, "pads") or (0,) * (2 * rank)
                first, end = 0, end + padded[rank + i]
            at = np.arange(wanted[i])[:, None] * strides[i] + np.arange(kernel[i]) * gaps[i]
            counts = counts[..., None] * ((at >= first) & (at < end)).sum(axis=1)
        form.add("Div", pooled, form.constant(counts.astype(dtype)))
    return form.end()


def _pads_before(
    attributes: Attributes, sizes: Sequence[int], reach: Sequence[int]
) -> Sequence[int]:
    total = [max(0, r - n) for r, n in zip(reach, sizes, strict=True)]
    automatic = attributes.get("auto_pad", b"NOTSET")
    if automatic == b"SAME_UPPER":
        return [t // 2 for t in total]
    if automatic == b"SAME_LOWER":
        return [t - t // 2 for t in total]
    return _numbers(attributes, "pads")[: len(sizes)] or (0,) * len(sizes)


def _resize(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """An image resized by constant matrices, one for each axis.

    Every resampling along an axis is linear; the matrix is what onnx's reference makes of the unit vectors.
    """
    names = [*node.input, "", "", ""]
    shape, out = facts.shape(names[0]), facts.shape(node.output[0])
    roi, scales, sizes = (facts.constant(name) if name else None for name in names[1:4])
    policy = attributes.get("keep_aspect_ratio_policy", b"stretch")
    if shape is None or out is None or (scales is None) == (sizes is None) or policy != b"stretch":
        return None
    if facts.kind(names[0]) != TensorProto.FLOAT or attributes.get("extrapolation_value", 0.0):
        return None
    axes = [int(a) % len(shape) for a in _numbers(attributes, "axes")] or list(range(len(shape)))
    kept = {k: v for k, v in attributes.items() if k not in ("axes", "keep_aspect_ratio_policy")}
    resized = names[0]
    for place, axis in enumerate(axes):
        size = shape[axis]
        if size is None:
            if scales is None or scales[place] != 1:
                return None
            continue
        corners = np.zeros(2) if roi is None or not roi.size else roi[[place, place + len(axes)]]
        given = (("scales", scales), ("sizes", sizes))
        to = {key: value[[place]] for key, value in given if value is not None}
        matrix = _resampling(size, corners.astype(np.float32), to, kept)
        if matrix.shape != (out[axis] or len(matrix), size):
            return None
        if np.array_equal(matrix, np.eye(size)):
            continue
        order = list(range(len(shape)))
        order[axis], order[-1] = order[-1], axis
        turned = form.add("Transpose", resized, perm=order)
        product = form.add("MatMul", turned, form.constant(matrix.T.copy()))
        resized = form.add("Transpose", product, perm=order)
    return form.end() if form.nodes else None


def _resampling(
    size: int, roi: Array, to: Mapping[str, Array], attributes: Attributes
) -> NDArray[np.float32]:
    names = ["x", "roi", *(key if key in to else "" for key in ("scales", "sizes"))]
    node = helper.make_node("Resize", names, ["y"], axes=[0], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(value, key) for key, value in (("roi", roi), *to.items())]
    graph = helper.make_graph([node], "resampling", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    made: Any = ReferenceEvaluator(model).run(None, {"x": np.eye(size, dtype=np.float32)})
    return np.asarray(made[0], np.float32)


def _column_to_image(
    form: Form, node: onnx.NodeProto, attributes: Attributes, facts: GraphFacts
) -> Form | None:
    """Blocks put back into an image: a transposed convolution whose kernel has one 1 for each tap."""
    shape = facts.shape(node.input[0])
    image, block = (facts.constant(name) for name in node.input[1:3])
    if shape is None or shape[1] is None or image is None or block is None:
        return None
    rank, taps = len(block), int(np.prod(block))
    gaps = _numbers(attributes, "dilations") or (1,) * rank
    strides = _numbers(attributes, "strides") or (1,) * rank
    pads = _numbers(attributes, "pads") or (0,) * (2 * rank)
    reach = [(int(b) - 1) * g + 1 for b, g in zip(block, gaps, strict=True)]
    counts = [
        (int(image[i]) + pads[i] + pads[rank + i] - reach[i]) // strides[i] + 1 for i in range(rank)
    ]
    extra = [
        int(image[i]) + pads[i] + pads[rank + i] - reach[i] - (counts[i] - 1) * strides[i]
        for i in range(rank)
    ]
    dtype = helper.tensor_dtype_to_np_dtype(facts.kind(node.input[0]))
    kernel = form.constant(np.eye(taps, dtype=dtype).reshape(taps, 1, *map(int, block)))
    columns = form.add("Reshape", node.input[0], form.whole(-1, taps, *counts))
    # Not by output_padding: what lies behind the last block is simply not cut off.
    ends = [pads[rank + i] - extra[i] for i in range(rank)]
    folded = form.add(
        "ConvTranspose",
        columns,
        kernel,
        strides=strides,
        dilations=gaps,
        pads=[*pads[:rank], *(max(0, end) for end in ends)],
    )
    if min(ends) < 0:
        behind = [max(0, -end) for end in ends]
        folded = form.add("Pad", folded, form.whole(0, 0, *(0,) * rank, 0, 0, *behind))
    channels = shape[1] // taps
    form.add("Reshape", folded, form.whole(-1, channels, *map(int, image)))
    return form.end()


def _numbers(attributes: Attributes, name: str) -> tuple[int, ...]:
    return tuple(attributes.get(name, ()))


_MOST_TAPS = 256  # of a pool; each becomes a slice, and thousands take minutes to build
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_FORMS: Mapping[str, Callable[[Form, onnx.NodeProto, Attributes, GraphFacts], Form | None]] = {
    "AveragePool": _pool,
    "BitShift": _shift,
    "Col2Im": _column_to_image,
    "DFT": _fourier,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mod": _modulo,
    "ReduceMax": _reduce_truth,
    "ReduceMin": _reduce_truth,
    "Resize": _resize,
}
