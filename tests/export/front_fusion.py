"""The smallest fusion model whose modalities have front ends, as a face and a voice have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fusedge.bundle.manifest import Channel, FrontEnd, Modality, Output
from fusedge.export.part import ModulePart
from fusedge.export.task import Task, provenance

SIZE = 4
FACE = Modality(
    name="face",
    kind="image",
    description="aligned crop of one face",
    channels=(Channel(name="grey", unit="8 bit", minimum=0, maximum=255),),
    height=48,
    width=48,
    rate_hz=10.0,
    window_s=0.1,
    hop_s=0.1,
    resample="newest",
    max_hold_s=0.1,
    latency_s=0.0,
    lateness_s=0.1,
    max_age_s=1.0,
    return_windows=1,
    min_valid=1.0,
    prepare=(),
    front=FrontEnd(kind="largest_face", part="face_detector"),
)
VOICE = Modality(
    name="voice",
    kind="audio",
    description="sound while somebody speaks",
    channels=(Channel(name="sound", unit="1", minimum=-1, maximum=1),),
    rate_hz=16_000.0,
    window_s=0.1,
    hop_s=0.1,
    resample="contiguous",
    max_hold_s=0.1,
    latency_s=0.0,
    lateness_s=0.2,
    max_age_s=1.0,
    return_windows=1,
    min_valid=0.5,
    prepare=(),
    front=FrontEnd(kind="speech", part="speech_detector"),
)


class _Encoder(nn.Module):
    def __init__(self, numbers: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.out = nn.Linear(numbers, SIZE)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.out(window.flatten(1).float() / self.limit)
        return embedding


class _Head(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.out = nn.Linear(count * (SIZE + 2), 2)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *embeddings, presence, age = tensors
        known = [e * presence[:, i : i + 1] for i, e in enumerate(embeddings)]
        logits: torch.Tensor = self.out(torch.cat([*known, presence, age * presence], dim=1))
        return logits


class FrontModel(nn.Module):
    """One linear layer a modality, and one over both."""

    def __init__(self, specs: Sequence[Modality]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.modalities = tuple(spec.name for spec in specs)
        self.encoders = nn.ModuleDict(
            {
                spec.name: _Encoder(torch.Size(spec.window_shape).numel(), spec.channels[0].maximum)
                for spec in specs
            }
        )
        self.head: nn.Module = _Head(len(specs))
        self.eval()

    def encoder(self, name: str) -> nn.Module:
        return self.encoders[name]


def front_task(specs: Sequence[Modality], fronts: Sequence[ModulePart]) -> Task:
    return Task(
        name="fronts",
        description="A small model with front ends, for tests.",
        decision_rate_hz=10.0,
        modalities=tuple(specs),
        fusion_kind="concatenation",
        outputs=(
            Output(
                name="emotion",
                logits="logits",
                labels=("calm", "happy"),
                temperature=1.0,
                smoothing_s=0.0,
                hysteresis=0.0,
            ),
        ),
        provenance=provenance("Apache-2.0", "none", "Fusedge"),
        fronts=tuple(fronts),
    )
