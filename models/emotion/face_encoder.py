"""Faces to an embedding, and to the classes of FER+: a small residual network of plain convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fusedge.models.emotion.ferplus import SIDE_PX
from fusedge.models.emotion.labels import FACE_LABELS
from fusedge.models.weights_file import config_of, load_weights, weights_bytes

_KIND = "fusedge-face-1"


@dataclass(frozen=True)
class FaceConfig:
    """`widths` are the channels at 48, 24, 12 and 6 px, `blocks` the residual blocks at 24, 12 and 6."""

    widths: tuple[int, int, int, int] = (16, 32, 80, 128)
    blocks: tuple[int, int, int] = (1, 1, 2)
    dropout: float = 0.3


class Standardise(nn.Module):
    """`window uint8 [B, 1, 48, 48, 1] -> float32 [B, 1, 48, 48]`: each image has mean 0 and deviation 1.

    So neither gain nor offset of the light counts. A nearly even image stays nearly even: `least` is the
    deviation in grey levels at which the contrast is 0.71 of the full one, about that of a camera's noise.
    """

    needs_float32 = True  # squares of pixels lie beyond float16

    def __init__(self, least: float = 4.0) -> None:
        super().__init__()
        self.least = least

    def forward(self, window: Tensor) -> Tensor:
        """Standardise faces."""
        # First of all to float: TensorRT takes uint8 as an input, and no operation on it but the cast.
        pixels = window.to(torch.float32).squeeze(-1)
        centred = pixels - pixels.mean(dim=(2, 3), keepdim=True)
        variance = (centred * centred).mean(dim=(2, 3), keepdim=True)
        return centred / (variance + self.least**2).sqrt()


class FaceEncoder(nn.Module):
    """`window uint8 [B, 1, 48, 48, 1], grey -> embedding float32 [B, D]`; without memory.

    It is the mean of those of the image and of its mirror image, for neither says less of an emotion.
    `classifier` turns the embedding into logits `[B, 8]` in the order of `FACE_LABELS`.
    """

    def __init__(self, config: FaceConfig) -> None:
        super().__init__()
        self.config = config
        first, *rest = config.widths
        layers: list[nn.Module] = [_convolution(1, first), nn.ReLU()]
        before = first
        for width, blocks in zip(rest, config.blocks, strict=True):
            layers += [_convolution(before, width, stride=2), nn.ReLU()]
            layers += [_Block(width) for _ in range(blocks)]
            before = width
        self.standardise = Standardise()
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.size, len(FACE_LABELS))

    @property
    def size(self) -> int:
        """Width D of the embedding."""
        return self.config.widths[-1]

    def forward(self, window: Tensor) -> Tensor:
        """The embedding."""
        # By selection, which every TensorRT builds.
        leftwards = torch.arange(window.shape[3] - 1, -1, -1, device=window.device)
        faces = self.standardise(window)
        both = torch.stack([faces, faces.index_select(3, leftwards)])
        # As one batch: the convolutions stand in the graph once.
        return self._embed(both.flatten(0, 1)).reshape(2, -1, self.size).mean(dim=0)

    def logits(self, window: Tensor) -> Tensor:
        """Logits `[B, 8]`."""
        logits: Tensor = self.classifier(self(window))
        return logits

    def training_logits(self, window: Tensor) -> Tensor:
        """Logits `[B, 8]` of the image as it is, at half the cost, with dropout."""
        logits: Tensor = self.classifier(self.dropout(self._embed(self.standardise(window))))
        return logits

    def _embed(self, faces: Tensor) -> Tensor:
        pooled: Tensor = self.layers(faces).mean(dim=(2, 3))
        return pooled


def face_windows(images: Tensor) -> Tensor:
    """Images uint8 `[B, 48, 48]` as the encoder's windows `[B, 1, 48, 48, 1]`."""
    return images.reshape(-1, 1, SIDE_PX, SIDE_PX, 1)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    )


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width), _convolution(width, width)
        norm = self.second[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)  # each block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(self.first(x).relu())
        return (x + residual).relu()


def face_bytes(encoder: FaceEncoder, notes: Mapping[str, str]) -> bytes:
    """The encoder as a safetensors file, with its configuration; the same encoder, the same bytes."""
    return weights_bytes(_KIND, encoder, asdict(encoder.config), notes)


def load_face(path: Path) -> tuple[FaceEncoder, dict[str, str]]:
    """The encoder in evaluation mode, and the notes in its file; raises FusedgeError."""
    with torch.random.fork_rng(devices=[]):
        return load_weights(_KIND, path, lambda raw: FaceEncoder(config_of(FaceConfig, raw)))
