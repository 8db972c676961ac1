"""A part on its way to ONNX: a torch module with named, typed inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusedge.bundle.manifest import BATCH, DimRange, StatePair, TensorSpec

_TYPES = {
    "float32": torch.float32,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class ModulePart:
    """A part as a torch module: `module(*inputs) -> outputs`, both as tuples in the specs' order.

    `dims` are the sizes that named dims can have. `initial` has the values of states that do not begin
    with zeros, by input, float32 without the batch. `weights` says whose they are, if not the model's own.

    `sequence` is the module as the user wrote it, over N steps in one go from the initial state: its
    arguments are the inputs without the states, each `[B, N, ...]`, its results the outputs without
    the states, each `[B, N, ...]`. N single steps of `module` must equal it. None for a plain model and for
    what a front end runs, whose memory is among its inputs and outputs.
    """

    name: str
    kind: Literal["encoder", "front", "head", "model"]
    modality: str | None
    rate_hz: float | None
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...] = ()
    dims: Mapping[str, DimRange] = field(default_factory=lambda: {"batch": BATCH})
    initial: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    sequence: Callable[..., tuple[torch.Tensor, ...]] | None = None
    weights: str = ""

    def zeros(self, batch: int) -> tuple[torch.Tensor, ...]:
        """An input of zeros for each spec; named dims but the batch have their usual size."""
        sizes = {name: dim.usual for name, dim in self.dims.items()} | {"batch": batch}
        return tuple(
            torch.zeros(concrete_shape(spec, sizes), dtype=_TYPES[spec.dtype])
            for spec in self.inputs
        )

    def initial_state(self, batch: int) -> dict[str, NDArray[np.float32]]:
        """The states before the first step, by input, `[batch, ...]`."""
        zeros = dict(zip((spec.name for spec in self.inputs), self.zeros(batch), strict=True))
        return {
            pair.input: np.broadcast_to(self.initial[pair.input], zeros[pair.input].shape).copy()
            if pair.input in self.initial
            else zeros[pair.input].numpy()
            for pair in self.state
        }


def concrete_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor at these sizes of its named dims."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
