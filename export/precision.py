"""Precision: a graph that computes in float16 inside and keeps float32 inputs and outputs."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import onnx
from onnx import TensorProto
from onnxconverter_common.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from fusedge.bundle.errors import FusedgeError
from fusedge.export.graph import check_graph
from fusedge.export.split import ModulePart

# Node kinds to keep in float32, tried in this order until a part is within its tolerance: first
# everything is reduced, then sums of squares and exponentials are kept, then recurrences as well.
KEEP_FLOAT32 = (
    (),
    ("LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Pow", "Exp", "Log"),
    (
        *("LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Pow", "Exp", "Log"),
        *("GRU", "LSTM", "RNN", "Sub", "Div", "Clip"),
    ),
)
_FLOAT16_MAX = 65504.0


def to_float16(model: onnx.ModelProto, part: ModulePart, keep: Collection[str]) -> onnx.ModelProto:
    """A float16 version of a float32 graph; node kinds in `keep` stay float32.

    Constants beyond float16 are clipped to its largest value (a mask of -1e9 stays a mask); the parity
    gate judges the result. Raises FusedgeError where the conversion gives an invalid graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one line for each clipped constant
        half: onnx.ModelProto = convert_float_to_float16(
            copy,
            max_finite_val=_FLOAT16_MAX,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *keep],
        )
    half.ir_version = model.ir_version
    check_graph(half, part, "fp16")
    if count_float16(half) == 0:
        raise FusedgeError("no node could be reduced to fp16", where=f"part {part.name}")
    return half


def count_float16(model: onnx.ModelProto) -> int:
    """How many nodes compute in float16: those with a float16 output, casts left out."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output)
    }
    return sum(
        node.op_type != "Cast"
        and any(types.get(name) == TensorProto.FLOAT16 for name in node.output)
        for node in graph.node
    )
