"""What export must know of a model: the module's interface, and the facts beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fusedge.bundle.manifest import EventRule, Modality, Output, Provenance


@runtime_checkable
class Encoder(Protocol):
    """`(window, valid, *states) -> (embedding, *new_states)`, in eager torch, any batch.

    `window` and `valid` are float32 `[B, N*n, C]` for N windows of n grid points in a row, the
    embedding is `[B, N, D]`. `state_shapes` names the states in the order of the arguments and
    gives their shapes without the batch; zeros are the initial state.
    """

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each state without the batch, in the order of the arguments."""

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run N windows from the given states."""


class FusionModule(Protocol):
    """A fusion model: encoders by modality, and a head over their embeddings.

    `head(*embeddings, presence, age) -> logits`: one embedding `[B, D]` for each modality in order,
    `presence` `[B, M]` of 0 and 1, `age` `[B, M]` in seconds, logits `[B, K]` (a tuple of such where
    the task has several outputs).
    """

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the head's columns."""

    @property
    def head(self) -> nn.Module:
        """The fusion head."""

    def encoder(self, name: str) -> nn.Module:
        """The encoder of a modality; it has the interface of `Encoder`."""


@dataclass(frozen=True)
class Task:
    """The facts of a task that go into the manifest, beside what the module itself says.

    `outputs` name their logits in the order in which the head returns them. `documents` are files
    that travel with the bundle, by path, such as LICENSE-WEIGHTS.md and the model card.
    """

    name: str
    description: str
    decision_rate_hz: float
    modalities: tuple[Modality, ...]
    fusion_kind: str
    outputs: tuple[Output, ...]
    provenance: Provenance
    events: tuple[EventRule, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
