"""What export must know of a model: the module's interface, and the facts beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fusedge.bundle.manifest import EventRule, Modality, Output, Provenance
from fusedge.export.evaluation import Evaluation
from fusedge.export.part import ModulePart

NOT_STATED = "not stated"
_NO_WEIGHTS = hashlib.sha256(b"").hexdigest()


@runtime_checkable
class Encoder(Protocol):
    """An encoder that names its states: `(window, valid, *states) -> (embedding, *new_states)`.

    `window` is `[B, N*n, C]` for N windows of n grid points in a row, `valid` `[B, N*n, C]`; images are
    `[B, N*n, H, W, C]` with `valid` `[B, N*n]`. The embedding is `[B, N, D]`. `state_shapes` names the
    states in the order of the arguments and gives their shapes without the batch; zeros are the initial
    state. All are float32, but images uint8.

    An encoder without `state_shapes` is simpler: `encoder(window)` or `encoder(window, valid)` gives the
    embedding alone. It starts anew with each window if it maps `[B, n, ...]` to `[B, D]`. If it maps N
    windows in a row to `[B, N, D]`, its memory is lifted: see `fusedge.export.lift`.

    Where there is memory, windows follow one another: `window_s` is `hop_s`.
    """

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each state without the batch, in the order of the arguments."""

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run N windows from the given states."""


@runtime_checkable
class FusionModule(Protocol):
    """A fusion model: encoders by modality, and a head over their embeddings.

    `head(*embeddings, presence, age) -> logits`: one embedding `[B, D]` for each modality in order,
    `presence` `[B, M]` of 0 and 1, `age` `[B, M]` in seconds, logits `[B, K]` (a tuple of such where
    the task has several outputs).

    A head with memory maps N decisions in a row, `[B, N, ...]` to `[B, N, K]`; its memory is lifted, or it
    names its states as an `Encoder` does, taking them after `age`.

    A model may define `forward(windows, valid, presence, age) -> logits`: the whole over N steps from its
    initial state, with `windows` and `valid` by modality, `[B, N, n, ...]`, `presence` and `age`
    `[B, N, M]`, logits `[B, N, K]`. The parts together are then proved equal to it.
    """

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the head's columns."""

    @property
    def head(self) -> nn.Module:
        """The fusion head."""

    def encoder(self, name: str) -> nn.Module:
        """The encoder of a modality, in one of the forms of `Encoder`."""


def provenance(
    licence: str = NOT_STATED, training_data: str = NOT_STATED, attribution: str = NOT_STATED
) -> Provenance:
    """Where weights come from, as far as the user says so.

    `load_factory` puts in the task and the hash of the weights.
    """
    return Provenance(
        task=NOT_STATED,
        weights_sha256=_NO_WEIGHTS,
        training_data=training_data,
        weights_licence=licence,
        attribution=attribution,
        tools={},
    )


@dataclass(frozen=True)
class Task:
    """The facts of a task that go into the manifest, beside what the module itself says.

    `outputs` name their logits in the order in which the head returns them. `documents` are files
    that travel with the bundle, by path, such as LICENSE-WEIGHTS.md and the model card.

    `fronts` are what the front ends of modalities run, mostly from `fusedge.export.packaged_parts`.

    `evaluation` is asked for with precision int8 and `auto`: it gets the encoders and the head, and gives
    recorded input with the task's own metric, mostly a `fusedge.export.evaluation.StreamEvaluation`.
    """

    name: str
    description: str
    decision_rate_hz: float
    modalities: tuple[Modality, ...]
    fusion_kind: str
    outputs: tuple[Output, ...]
    provenance: Provenance = field(default_factory=provenance)
    events: tuple[EventRule, ...] = ()
    fronts: tuple[ModulePart, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    evaluation: Callable[[Sequence[ModulePart]], Evaluation] | None = None
