"""GRU and LSTM as one operation each while a module is traced.

torch's exporter follows such a layer step by step in Python, several times: 0.1 s for each step of the
sequence, although the graph has one node. An operation of our own has its shapes at once, computes the
same, and is translated by the function that the exporter uses for torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript.function_libs.torch_lib.ops import core
from torch import Tensor
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("fusedge::gru", mutates_args=())
def _gru(
    x: Tensor,
    h: Tensor,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    both: bool,
    first: bool,
) -> tuple[Tensor, Tensor]:
    y, last = torch.gru(x, h, list(weights), biases, layers, 0.0, False, both, first)
    return y, last.clone()  # an operation's results share no memory


@_gru.register_fake
def _gru_shapes(
    x: Tensor,
    h: Tensor,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    both: bool,
    first: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:2], h.shape[2] * (1 + both)), torch.empty_like(h)


@torch.library.custom_op("fusedge::lstm", mutates_args=())
def _lstm(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    both: bool,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, last, cell = torch.lstm(x, (h, c), list(weights), biases, layers, 0.0, False, both, first)
    return y, last.clone(), cell.clone()


@_lstm.register_fake
def _lstm_shapes(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    both: bool,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(*x.shape[:2], h.shape[2] * (1 + both))
    return y, torch.empty_like(h), torch.empty_like(c)


def _gru_graph(
    x: Any, h: Any, weights: Any, biases: bool, layers: int, both: bool, first: bool
) -> Any:
    return core.aten_gru(x, h, weights, biases, layers, 0.0, False, both, first)


def _lstm_graph(
    x: Any, h: Any, c: Any, weights: Any, biases: bool, layers: int, both: bool, first: bool
) -> Any:
    return core.aten_lstm(x, [h, c], weights, biases, layers, 0.0, False, both, first)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.fusedge.gru.default: _gru_graph,
    torch.ops.fusedge.lstm.default: _lstm_graph,
}
"""For `custom_translation_table` of `torch.onnx.export`."""


class RecurrentAsOperations(TorchFunctionMode):
    """Calls of `torch.gru` and `torch.lstm` become the operations; in evaluation mode the same."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.gru and isinstance(args[3], bool):
            x, h, weights, biases, layers, _, _, both, first = args
            return _gru(x, h, weights, biases, layers, both, first)
        if func is torch.lstm and isinstance(args[3], bool):
            x, (h, c), weights, biases, layers, _, _, both, first = args
            if h.shape[2] == c.shape[2]:  # has no projection, which ONNX has not
                return _lstm(x, h, c, weights, biases, layers, both, first)
        return func(*args, **(kwargs or {}))
