"""A fusion model: one encoder for each modality and a head, with its configuration and file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusedge.models.encoders import EncoderConfig, SeriesEncoder, Term
from fusedge.models.fusion import FusionKind, make_fusion
from fusedge.models.weights_file import load_weights, weights_bytes

_KIND = "fusedge-model-1"


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build the module; `encoders` by modality, in the head's order."""

    encoders: Mapping[str, EncoderConfig]
    fusion: FusionKind
    hidden: int
    outputs: int
    members: int
    dropout: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`."""
        encoders = {}
        for name, fields in data["encoders"].items():
            terms = tuple(Term(t["kind"], tuple(t["channels"]), t["lag"]) for t in fields["terms"])
            encoders[name] = EncoderConfig(**{**fields, "terms": terms})
        return cls(**{**data, "encoders": encoders})


class FusionHead(nn.Module):
    """`(*embeddings [B, D], presence [B, M], age [B, M]) -> logits [B, K]`.

    The head is an ensemble: each member fuses its own slice of every embedding, and the logits are
    averaged. An encoder's members are rows of the same layer, so they cost little.
    """

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(
            make_fusion(
                config.fusion,
                len(config.encoders),
                size // config.members,
                config.outputs,
                config.hidden,
                config.dropout,
            )
            for _ in range(config.members)
        )

    def member_logits(self, *tensors: Tensor) -> Tensor:
        """Logits of each member, `[members, B, K]`."""
        *embeddings, presence, age = tensors
        slices = [embedding.chunk(len(self.fusions), dim=-1) for embedding in embeddings]
        members = zip(self.fusions, zip(*slices, strict=True), strict=True)
        return torch.stack([fusion(own, presence, age) for fusion, own in members])

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits; see `fusedge.models.fusion`."""
        return self.member_logits(*tensors).mean(dim=0)


class FusionModel(nn.Module):
    """Encoders and head, which export turns into parts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(
            {name: SeriesEncoder(encoder) for name, encoder in config.encoders.items()}
        )
        (size,) = {encoder.size for encoder in config.encoders.values()}
        self.head = FusionHead(config, size)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the head's columns."""
        return tuple(self.config.encoders)

    def encoder(self, name: str) -> SeriesEncoder:
        """The encoder of a modality."""
        encoder = self.encoders[name]
        assert isinstance(encoder, SeriesEncoder)
        return encoder

    def forward(
        self,
        windows: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        presence: Tensor,
        age: Tensor,
    ) -> Tensor:
        """The whole model over N steps from zero states, by which export proves its parts.

        `windows` and `valid` by modality, `[B, N, hop, C]`; `presence` and `age` `[B, N, M]`; logits
        `[B, N, K]`.
        """
        embeddings = []
        for name in self.modalities:
            encoder, window = self.encoder(name), windows[name].flatten(1, 2)
            states = encoder.zero_states(len(window))
            embeddings.append(encoder(window, valid[name].flatten(1, 2), *states)[0])
        steps = [tensor.flatten(0, 1) for tensor in (*embeddings, presence, age)]
        logits: Tensor = self.head(*steps)
        return logits.reshape(*presence.shape[:2], -1)


def model_bytes(model: FusionModel, notes: Mapping[str, str] | None = None) -> bytes:
    """The model as a safetensors file, with its configuration; the same model, the same bytes."""
    return weights_bytes(_KIND, model, model.config.to_dict(), notes or {})


def load_model(path: Path) -> tuple[FusionModel, dict[str, str]]:
    """The model in evaluation mode, and the notes in its file; raises FusedgeError."""
    return load_weights(_KIND, path, lambda raw: FusionModel(ModelConfig.from_dict(raw)))


def parameter_count(model: nn.Module) -> int:
    """Trained numbers; constants are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())
