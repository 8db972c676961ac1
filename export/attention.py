"""Attention as torch computes it, for the exporter, which computes rows without any key otherwise.

torch's `scaled_dot_product_attention` gives 0 where a Boolean mask leaves a query no key, such as to a
fusion head when every modality is missing. The translation of onnxscript 0.7.2 masks with the least float
instead of -Inf, so that such a query attends to all keys alike: this one puts the 0 back. It also refuses
attention without a dim for the heads, which torch takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxscript
import torch
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_op: Any = onnxscript.opset18  # its types know no constants


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **named: Any
) -> Any:
    result = aten_scaled_dot_product_attention(query, key, value, attn_mask, *rest, **named)
    if attn_mask is None or attn_mask.dtype != onnxscript.ir.DataType.BOOL:
        return result
    keys = _op.ReduceMax(
        _op.Cast(attn_mask, to=onnx.TensorProto.FLOAT), _op.Constant(value_ints=[-1])
    )
    nothing = _op.Constant(value_float=0.0)
    return _op.Where(_op.Greater(keys, nothing), result, nothing)


# For `custom_translation_table` of torch.onnx.export.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}


class AttentionWithHeads(TorchFunctionMode):
    """Attention over `[B, L, E]` becomes attention of one head, `[B, 1, L, E]`; the same numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **named)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        named |= zip(names, args, strict=False)
        if named["query"].dim() != 3:
            return func(**named)
        for name in ("query", "key", "value", "attn_mask"):
            tensor = named.get(name)
            if isinstance(tensor, Tensor) and tensor.dim() == 3:
                named[name] = tensor.unsqueeze(-3)
        return func(**named).squeeze(-3)
