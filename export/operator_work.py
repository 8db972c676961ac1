"""How many operations one ONNX operator takes at given sizes, and of which kind they are.

A multiplication with its addition is two operations. The bias of a product, which its sums start from, is
none. Costs of one element elsewhere, which matter little beside the bytes moved:

- arithmetic, comparison, rounding, conversion: 1;
- a transcendental function: 10, a polynomial of degree five by Horner's rule. The special function units of
  a GPU give the same: 16 results a clock beside 256 operations of the others (CUDA C++ Programming Guide,
  table "Throughput of Native Arithmetic Instructions", compute capability 8.6);
- softmax: 14, that is maximum, difference, exponential, sum and division;
- layer, group and instance normalisation: 7, that is mean, difference, square and its sum, scale, gain and
  offset; 4 by root mean square; batch normalisation 2, since its statistics are constants;
- reductions and pooling: 1 for each element that is read.

Which nodes are `movement`, that is without operations, and which are `free`, follows from their results:
views of what they read cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from fusedge.devices.targets.work import Kind

Shape = tuple[int, ...]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FREE = _words("Constant Dropout Flatten Identity Reshape Shape Size Squeeze Unsqueeze")
MOVEMENT = _words(
    "Concat ConstantOfShape DepthToSpace Expand EyeLike Gather GatherElements GatherND OneHot "
    "Pad Range ReverseSequence ScatterElements ScatterND Slice SpaceToDepth Split "
    "TensorScatter Tile Transpose Trilu"
)
# They read no more of their first input than they write.
PARTIAL_READS = frozenset(["Gather", "GatherElements", "GatherND", "Slice"])

_PER_ELEMENT: dict[str, int] = dict.fromkeys(
    _words(
        "Abs Add And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip "
        "DequantizeLinear Div Equal Floor Greater GreaterOrEqual HardSigmoid HardSwish IsInf "
        "IsNaN LeakyRelu Less LessOrEqual Max Mean Min Mod Mul Neg Not Or PRelu QuantizeLinear "
        "Reciprocal Relu Round Shrink Sign Sub Sum ThresholdedRelu Where Xor"
    ),
    1,
) | dict.fromkeys(
    _words(
        "Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu Log Mish Pow Selu "
        "Sigmoid Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh"
    ),
    10,
)
_VARIADIC = frozenset(["Max", "Mean", "Min", "Sum"])  # one operation for each input
_PER_READ = dict.fromkeys(
    _words(
        "ArgMax ArgMin CumSum GlobalAveragePool GlobalMaxPool ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum"
    ),
    1,
) | {
    "BatchNormalization": 2,
    "GlobalLpPool": 2,
    "GroupNormalization": 7,
    "InstanceNormalization": 7,
    "LayerNormalization": 7,
    "LogSoftmax": 14,
    "LpNormalization": 3,
    "MeanVarianceNormalization": 5,
    "RMSNormalization": 4,
    "ReduceL1": 2,
    "ReduceL2": 2,
    "ReduceLogSum": 1,
    "ReduceLogSumExp": 12,
    "ReduceSumSquare": 2,
    "Softmax": 14,
}
_SOFTMAX = _PER_READ["Softmax"]
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Of one hidden number in one step: transcendental functions of the gates, and the sums around them.
_GATE_ARITHMETIC = {"LSTM": 5 * 10 + 12, "GRU": 3 * 10 + 11, "RNN": 10 + 2}
_LINEAR_CORNERS = {"nearest": 0, "linear": 2, "cubic": 4}


@dataclass(frozen=True)
class Count:
    """`operations` is None, and `kind` is `unknown`, for an unknown operator or unknown sizes."""

    kind: Kind
    operations: float | None
    steps: int = 1


UNKNOWN = Count("unknown", None)


def count_operator(
    node: onnx.NodeProto, inputs: list[Shape | None], outputs: list[Shape | None]
) -> Count:
    """What one run of a node takes.

    `inputs` and `outputs` are shapes in the node's order, None where unknown; that of an input that is left
    out is `()`. Nodes with bodies (If, Loop, Scan) are unknown here.
    """
    if node.domain not in ("", "ai.onnx"):
        return UNKNOWN
    operator = node.op_type
    if operator in FREE:
        return UNKNOWN if None in outputs else Count("free", 0.0)
    if any(shape is None for shape in (*inputs, *outputs)) or not outputs:
        return UNKNOWN
    read = [shape for shape in inputs if shape is not None]
    written = [shape for shape in outputs if shape is not None]
    try:
        count = _count_sized(node, read, written)
    except (ArithmeticError, IndexError, TypeError, ValueError):  # what no valid node has
        return UNKNOWN
    return UNKNOWN if (count.operations or 0.0) < 0 else count


def _count_sized(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    operator = node.op_type
    numbers = math.prod(written[0])
    if operator in MOVEMENT:
        free = operator == "Transpose" and _keeps_order(node, read[0])
        return Count("free" if free else "movement", 0.0)
    if operator in _PER_ELEMENT:
        each = len(read) - 1 if operator in _VARIADIC else _PER_ELEMENT[operator]
        return Count("elementwise", float(each * numbers))
    if operator in _PER_READ and read:
        kind: Kind = "pooling" if operator.startswith("Global") else "normalisation"
        return Count(kind, float(_PER_READ[operator] * math.prod(read[0])))
    special = _SPECIAL.get(operator)
    return UNKNOWN if special is None else special(node, read, written)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes that are numbers, texts or lists of such."""
    found: dict[str, object] = {}
    for attribute in node.attribute:
        if attribute.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            found[attribute.name] = onnx.helper.get_attribute_value(attribute)
    return found


def _whole(node: onnx.NodeProto, name: str, default: int) -> int:
    value = attributes(node).get(name, default)
    if not isinstance(value, int):
        raise ValueError(name)
    return value


def _numbers(node: onnx.NodeProto, name: str) -> list[int]:
    value = attributes(node).get(name, [])
    if not isinstance(value, list):
        raise ValueError(name)
    return [int(each) for each in value]


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    value = attributes(node).get(name, default.encode())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else default


def _keeps_order(node: onnx.NodeProto, shape: Shape) -> bool:
    """Whether only dims of one are moved, so that nothing is."""
    order = _numbers(node, "perm") or list(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        return False
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)


def _convolution(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    weight = read[1]  # output channels, input channels of a group, *kernel
    return Count(
        _convolution_kind(node, weight[1]), 2.0 * math.prod(written[0]) * math.prod(weight[1:])
    )


def _convolution_kind(node: onnx.NodeProto, channels_of_group: int) -> Kind:
    single = _whole(node, "group", 1) > 1 and channels_of_group == 1
    return "depthwise" if single else "convolution"


def _transposed_convolution(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    weight = read[1]  # input channels, output channels of a group, *kernel
    return Count(
        _convolution_kind(node, weight[1]), 2.0 * math.prod(read[0]) * math.prod(weight[1:])
    )


def _deformable(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    plain = _convolution(node, read, written)
    taps = math.prod(written[0][2:]) * written[0][0] * math.prod(read[1][2:]) * read[0][1]
    return Count(plain.kind, (plain.operations or 0.0) + 11.0 * taps)  # bilinear, as in GridSample


def _product(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    return Count("product", 2.0 * math.prod(written[0]) * read[0][-1])


def _gemm(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    inner = read[0][0 if _whole(node, "transA", 0) else 1]
    return Count("product", 2.0 * math.prod(written[0]) * inner)


def _einsum(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    """As if all were done in one go: each combination of the letters is multiplied and added once."""
    terms = _text(node, "equation", "").replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, read, strict=True):
        ellipsis = "".join(f"{i}" for i in range(len(shape) - len(term.replace("...", ""))))
        for letter, size in zip(term.replace("...", ellipsis), shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    factors = max(len(read), 2)
    return Count("product", float(factors * math.prod(sizes.values())))


def _recurrent(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    """Both directions are counted; they run one after the other, so that steps add up."""
    time, batch, inputs = read[0]
    if _whole(node, "layout", 0):
        time, batch = batch, time
    directions, rows, hidden = read[2]
    gates = _GATES[node.op_type]
    if rows != gates * hidden:
        return UNKNOWN
    each = 2.0 * rows * (inputs + hidden) + _GATE_ARITHMETIC[node.op_type] * hidden
    return Count("recurrent", directions * time * batch * each, directions * time)


def _attention(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    """The two products and the softmax between them, over past and present keys."""
    query, key, value = read[:3]
    past = read[4][2] if len(read) > 4 and len(read[4]) == 4 else 0
    if len(query) == 4:
        batch, heads, steps, width = query
        others, value_width = key[2], value[3]
    else:
        heads, key_heads = _whole(node, "q_num_heads", 0), _whole(node, "kv_num_heads", 0)
        batch, steps, width = query[0], query[1], query[2] // heads
        others, value_width = key[1], value[2] // key_heads
    pairs = float(batch * heads * steps * (past + others))
    return Count("attention", pairs * (2 * (width + value_width) + _SOFTMAX))


def _pool(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    window = math.prod(_numbers(node, "kernel_shape"))
    return Count("pooling", float(math.prod(written[0]) * window))


def _resize(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    """Each axis that changes is interpolated from two or four neighbours."""
    corners = _LINEAR_CORNERS.get(_text(node, "mode", "nearest"))
    if corners is None:
        return UNKNOWN
    changed = sum(a != b for a, b in zip(read[0], written[0], strict=True))
    if not corners or not changed:
        return Count("movement", 0.0)
    return Count("elementwise", 2.0 * corners**changed * math.prod(written[0]))


def _grid_sample(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    axes = len(read[0]) - 2
    return Count("elementwise", float(math.prod(written[0]) * (3 * 2**axes - 1)))


def _lrn(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    return Count("normalisation", float(math.prod(read[0]) * (2 * _whole(node, "size", 1) + 12)))


def _rotary(node: onnx.NodeProto, read: list[Shape], written: list[Shape]) -> Count:
    return Count("elementwise", 3.0 * math.prod(written[0]))


_SPECIAL: Mapping[str, Callable[[onnx.NodeProto, list[Shape], list[Shape]], Count]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _deformable,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "LRN": _lrn,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MatMul": _product,
    "MatMulInteger": _product,
    "MaxPool": _pool,
    "RNN": _recurrent,
    "Resize": _resize,
    "RotaryEmbedding": _rotary,
}
