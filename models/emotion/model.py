"""The network of the task `emotion`: what a face, a voice or action units alone say, and a head that fuses.

Encoders are classifiers that were trained by themselves, each on its own data. The head fuses what they
say, as calibrated log-probabilities of all labels: for these there are honest examples, of people that the
classifier has not seen. The inner features of a network that has learnt its data by heart are none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedge.models.emotion.action_units import ActionUnitClassifier, ActionUnitConfig
from fusedge.models.emotion.face_encoder import FaceConfig, FaceEncoder
from fusedge.models.emotion.labels import FACE_LABELS, LABELS, VOICE_LABELS, places
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig
from fusedge.models.fusion import FusionKind, make_fusion
from fusedge.models.temperature import fitted_temperature
from fusedge.models.weights_file import config_of, load_weights, weights_bytes

_KIND = "fusedge-emotion-2"

SourceConfig = FaceConfig | VoiceConfig | ActionUnitConfig
_CONFIGS: Mapping[str, type[Any]] = {
    "face": FaceConfig,
    "voice": VoiceConfig,
    "action_units": ActionUnitConfig,
}
_LEAST = 1e-4  # probability: however sure one modality is, others can outvote it
# Of a label that the data of a modality does not know, as a share of one that looks the same, or as it is.
# A face alone is to say neutral, which people are more often than calm: what tells them apart is the voice.
_CALM_OF_NEUTRAL = 0.1
_UNKNOWN = 0.005  # contempt: as often as FER+ `train` has it
_KNOWN_TO_NONE = 1e-6  # less than what modalities that contradict each other leave to a label


@dataclass(frozen=True)
class EmotionConfig:
    """All that is needed to build the network; `sources` by modality, in the head's order."""

    sources: Mapping[str, SourceConfig]
    fusion: FusionKind
    hidden: int
    dropout: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EmotionConfig:
        """The inverse of `asdict`."""
        sources = {
            name: config_of(_CONFIGS[name], fields) for name, fields in data["sources"].items()
        }
        return cls(**{**data, "sources": sources})


class Opinion(nn.Module):
    """What a modality alone says, logits `[..., S]` by `labels`, as log-probabilities `[..., K]` by LABELS.

    A subclass computes the former. The latter are calibrated by `temperature`; what others weigh in them
    are differences, so that they need not sum to 1.
    """

    labels: tuple[str, ...]
    temperature: Tensor
    spread: Tensor
    floor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("spread", torch.zeros(len(self.labels), len(LABELS)), persistent=False)
        self.register_buffer("floor", torch.zeros(len(LABELS)), persistent=False)

    def share_with(self, others: Collection[str]) -> None:
        """Set what is left to labels that it does not know; `others` are those that any modality does."""
        self.spread.zero_()
        self.floor.zero_()
        for place, label in enumerate(LABELS):
            if label in self.labels:
                self.spread[self.labels.index(label), place] = 1
            elif label not in others:
                self.floor[place] = math.log(_KNOWN_TO_NONE)
            elif label == "calm":
                self.spread[self.labels.index("neutral"), place] = 1
                self.floor[place] = math.log(_CALM_OF_NEUTRAL)
            else:
                self.floor[place] = math.log(_UNKNOWN)

    @torch.no_grad()
    def calibrate(self, said: Tensor, target: Tensor) -> None:
        """Fit the temperature to examples `[N, S]` of labels `[N, K]`."""
        self.temperature.fill_(fitted_temperature(said, target[:, list(places(self.labels))]))

    def embed(self, said: Tensor) -> Tensor:
        """`[..., S]` to `[..., K]`."""
        return self.over_all(functional.log_softmax(said / self.temperature, dim=-1))

    def over_all(self, known: Tensor) -> Tensor:
        """Log-probabilities of all labels `[..., K]` from those of the known ones, `[..., S]`."""
        return known.clamp(min=math.log(_LEAST)) @ self.spread + self.floor


class FaceOpinion(Opinion):
    """`window uint8 [B, 1, 48, 48, 1] -> embedding [B, K]`; without memory."""

    labels = FACE_LABELS

    def __init__(self, config: FaceConfig) -> None:
        super().__init__()
        self.encoder = FaceEncoder(config)

    def forward(self, window: Tensor) -> Tensor:
        """The embedding."""
        return self.embed(self.encoder.logits(window))


class VoiceOpinion(Opinion):
    """`(window, valid [B, N*HOP, 1], *states) -> (embedding [B, N, K], *new_states)`."""

    labels = VOICE_LABELS

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.classifier = VoiceClassifier(config)

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each state without the batch, in the order of the arguments."""
        return self.classifier.encoder.state_shapes()

    def zero_states(self, batch: int) -> tuple[Tensor, ...]:
        """The states before anything was heard."""
        return self.classifier.encoder.zero_states(batch)

    def forward(self, window: Tensor, valid: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Run N hops from the given states."""
        embedding, *new = self.classifier.encoder(window, valid, *states)
        return self.embed(self.classifier(embedding)), *new


class ActionUnitOpinion(Opinion):
    """`(window, valid [B, 1, 35]) -> embedding [B, K]`: means over a take; without memory."""

    labels = VOICE_LABELS

    def __init__(self, config: ActionUnitConfig) -> None:
        super().__init__()
        self.classifier = ActionUnitClassifier(config)

    def forward(self, window: Tensor, valid: Tensor) -> Tensor:
        """The embedding."""
        return self.embed(self.classifier((window * valid).mean(dim=1)))


_OPINIONS: Mapping[str, type[Any]] = {
    "face": FaceOpinion,
    "voice": VoiceOpinion,
    "action_units": ActionUnitOpinion,
}


class Head(nn.Module):
    """`(*embeddings [B, K], presence [B, M], age [B, M]) -> logits [B, K]` over `LABELS`."""

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        self.fusion = make_fusion(
            config.fusion,
            len(config.sources),
            len(LABELS),
            len(LABELS),
            config.hidden,
            config.dropout,
        )

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits; see `fusedge.models.fusion`."""
        *embeddings, presence, age = tensors
        logits: Tensor = self.fusion(embeddings, presence, age)
        return logits


class EmotionModel(nn.Module):
    """Encoders and head, which export turns into parts."""

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(
            {name: _OPINIONS[name](source) for name, source in config.sources.items()}
        )
        known = {label for name in self.modalities for label in self.encoder(name).labels}
        for name in self.modalities:
            self.encoder(name).share_with(known)
        self.head = Head(config)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the head's columns."""
        return tuple(self.config.sources)

    def encoder(self, name: str) -> Opinion:
        """The encoder of a modality."""
        encoder = self.encoders[name]
        assert isinstance(encoder, Opinion)
        return encoder

    def forward(
        self,
        windows: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        presence: Tensor,
        age: Tensor,
    ) -> Tensor:
        """The whole model over N steps from zero states, by which export proves its parts.

        `windows` and `valid` by modality, `[B, N, n, ...]`; `presence` and `age` `[B, N, M]`; logits
        `[B, N, K]`.
        """
        embeddings = [
            _embeddings(self.encoder(name), windows[name], valid[name]).flatten(0, 1)
            for name in self.modalities
        ]
        logits: Tensor = self.head(*embeddings, presence.flatten(0, 1), age.flatten(0, 1))
        return logits.reshape(*presence.shape[:2], -1)


def _embeddings(encoder: Opinion, windows: Tensor, valid: Tensor) -> Tensor:
    """`[B, N, K]` of N windows in a row, `[B, N, n, ...]`, from zero states."""
    if isinstance(encoder, VoiceOpinion):
        states = encoder.zero_states(len(windows))
        stream: Tensor = encoder(windows.flatten(1, 2), valid.flatten(1, 2), *states)[0]
        return stream
    given = [windows.flatten(0, 1)]
    if isinstance(encoder, ActionUnitOpinion):
        given.append(valid.flatten(0, 1))
    embedding: Tensor = encoder(*given)
    return embedding.reshape(*windows.shape[:2], -1)


def emotion_bytes(model: EmotionModel, notes: Mapping[str, str]) -> bytes:
    """The model as a safetensors file, halved, with its configuration; the same model, the same bytes."""
    return weights_bytes(_KIND, model, asdict(model.config), notes, halved=True)


def load_emotion(path: Path) -> tuple[EmotionModel, dict[str, str]]:
    """The model in evaluation mode, and the notes in its file; raises FusedgeError."""
    with torch.random.fork_rng(devices=[]):
        return load_weights(_KIND, path, lambda raw: EmotionModel(EmotionConfig.from_dict(raw)))
