"""Models of different kinds for `benchmarks.estimate_error`, exported by the real exporter.

Random weights: what they compute is of no interest, how long it takes is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fusedge.models.log_mel import LogMel, LogMelConfig


def _block(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight)  # else the signal dies out, and denormals are slow
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class MobileImages(nn.Module):
    """Depthwise-separable convolutions, after MobileNet V1 at half its width."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [_block(3, 16, 3, 2)]
        widths = ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        widths += ((128, 256, 2), *[(256, 256, 1)] * 5, (256, 512, 2), (512, 512, 1))
        for inputs, outputs, stride in widths:
            blocks += [_block(inputs, inputs, 3, stride, inputs), _block(inputs, outputs, 1)]
        self.features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(512, 100)

    def forward(self, image: Tensor) -> Tensor:
        """`image` float32 `[B, 3, 128, 128]`."""
        scores: Tensor = self.classify(self.features(image))
        return scores


class ResidualImages(nn.Module):
    """Dense 3 x 3 convolutions with shortcuts, on uint8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1))
        widths = ((32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 192, 2))
        self.first = nn.ModuleList(_block(i, o, 3, s) for i, o, s in widths)
        self.second = nn.ModuleList(_block(o, o, 3) for _, o, _ in widths)
        self.shortcuts = nn.ModuleList(_block(i, o, 1, s) for i, o, s in widths)
        self.embed = nn.Linear(192, 64)

    def forward(self, picture: Tensor) -> Tensor:
        """`picture` uint8 `[B, 112, 112, 3]`."""
        x = self.stem(picture.permute(0, 3, 1, 2).float() / 255)
        for first, second, shortcut in zip(self.first, self.second, self.shortcuts, strict=True):
            x = functional.relu(second(first(x)) + shortcut(x))
        embedding: Tensor = self.embed(x.mean((2, 3)))
        return embedding


class Sounds(nn.Module):
    """Log-mel bands, convolutions over time and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.bands = LogMel(
            LogMelConfig(
                sample_rate_hz=16_000, n_mels=64, n_fft=512, win_length=400, hop_length=160
            )
        )
        self.convolve = nn.Sequential(
            nn.Conv1d(64, 96, 3, padding=1), nn.ReLU(), nn.Conv1d(96, 96, 3, 2, 1), nn.ReLU()
        )
        self.gru = nn.GRU(96, 128, batch_first=True)
        self.classify = nn.Linear(128, 8)

    def forward(self, sound: Tensor) -> Tensor:
        """`sound` float32 `[B, 16000]`: a second."""
        y, _ = self.gru(self.convolve(self.bands(sound).transpose(1, 2)).transpose(1, 2))
        scores: Tensor = self.classify(y[:, -1])
        return scores


class Sequences(nn.Module):
    """A transformer over rows of sensor values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.classify = nn.Linear(128, 6)

    def forward(self, rows: Tensor) -> Tensor:
        """`rows` float32 `[B, 64, 12]`."""
        scores: Tensor = self.classify(self.layers(self.embed(rows)).mean(1))
        return scores


class _Inverted(nn.Module):
    """An inverted residual with squeeze and excitation, after MobileNet V3."""

    def __init__(self, width: int, inner: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.add = stride == 1 and width == outputs
        self.expand = nn.Sequential(nn.Conv2d(width, inner, 1), nn.Hardswish())
        self.apart = nn.Conv2d(inner, inner, size, stride, size // 2, groups=inner)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, inner // 4, 1),
            nn.ReLU(),
            nn.Conv2d(inner // 4, inner, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Conv2d(inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.apart(self.expand(x)))
        y = self.project(y * self.weigh(y))
        return x + y if self.add else y


class SqueezeImages(nn.Module):
    """Inverted residuals of two kernel sizes, on uint8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.Hardswish(),
            _Inverted(16, 48, 24, 3, 2),
            _Inverted(24, 72, 24, 3, 1),
            _Inverted(24, 96, 40, 5, 2),
            _Inverted(40, 160, 40, 5, 1),
            _Inverted(40, 200, 80, 3, 2),
            _Inverted(80, 240, 80, 3, 1),
            nn.Conv2d(80, 320, 1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(320, 12)

    def forward(self, picture: Tensor) -> Tensor:
        """`picture` uint8 `[B, 160, 160, 3]`."""
        scores: Tensor = self.classify(self.features(picture.permute(0, 3, 1, 2).float() / 255))
        return scores


class Spoken(nn.Module):
    """Log-mel bands as a picture, convolutions over it and an LSTM in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.bands = LogMel(
            LogMelConfig(
                sample_rate_hz=16_000, n_mels=40, n_fft=400, win_length=400, hop_length=200
            )
        )
        self.convolve = nn.Sequential(_block(1, 24, 3, 2), _block(24, 48, 3, 2))
        self.lstm = nn.LSTM(48 * 10, 64, batch_first=True, bidirectional=True)
        self.classify = nn.Linear(128, 30)

    def forward(self, sound: Tensor) -> Tensor:
        """`sound` float32 `[B, 12000]`: three quarters of a second."""
        picture = self.convolve(self.bands(sound)[:, None])
        y, _ = self.lstm(picture.transpose(1, 2).flatten(2))
        scores: Tensor = self.classify(y.mean(1))
        return scores


class Patches(nn.Module):
    """A vision transformer with GELU and a class token's stand-in, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 192, 16, 16)
        layer = nn.TransformerEncoderLayer(
            192, 6, 768, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.classify = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 20))

    def forward(self, image: Tensor) -> Tensor:
        """`image` float32 `[B, 3, 96, 96]`."""
        tokens = self.cut(image).flatten(2).transpose(1, 2)
        scores: Tensor = self.classify(self.layers(tokens).mean(1))
        return scores


def mobile() -> nn.Module:
    """What `fusedge export` calls, as all that follow."""
    return MobileImages()


def residual() -> nn.Module:
    """See `mobile`."""
    return ResidualImages()


def sounds() -> nn.Module:
    """See `mobile`."""
    return Sounds()


def sequences() -> nn.Module:
    """See `mobile`."""
    return Sequences()


def squeeze() -> nn.Module:
    """See `mobile`."""
    return SqueezeImages()


def spoken() -> nn.Module:
    """See `mobile`."""
    return Spoken()


def patches() -> nn.Module:
    """See `mobile`."""
    return Patches()


def examples() -> Mapping[str, dict[str, NDArray[Any]]]:
    """An example of the inputs of each."""
    random = np.random.default_rng(0)
    return {
        "mobile": {"image": random.standard_normal((2, 3, 128, 128), np.float32)},
        "residual": {"picture": random.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)},
        "sounds": {"sound": random.standard_normal((2, 16_000), np.float32)},
        "sequences": {"rows": random.standard_normal((2, 64, 12), np.float32)},
        "squeeze": {"picture": random.integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)},
        "spoken": {"sound": random.standard_normal((2, 12_000), np.float32)},
        "patches": {"image": random.standard_normal((2, 3, 96, 96), np.float32)},
    }
