"""Log-mel spectrograms inside the graph: a strided convolution, a square and a constant matrix.

TensorRT builds neither ONNX's DFT nor its MelWeightMatrix. A discrete Fourier transform of a window is a
product with cosines and sines, so a convolution whose stride is the hop makes all frames at once. Only the
bins that a mel filter looks at are computed. Definitions are those of torchaudio's `MelSpectrogram` and of
librosa; on their test signals the results differ by less than 1e-3 dB where there is sound.

Precision: all of it belongs in float32. In float16 the power of a loud sound overflows (a full-scale tone
has `(sum(window) / 2) ** 2`: 10 000 for a window of 400, 65 536 for 1024), and the floor of 1e-10 is 0,
whose logarithm is -Inf: silence breaks it. The module that computes it says so (`needs_float32`), and its
nodes are all named after it (`MODULE.bands/...`); the result, some tens at most, fits into float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError
from fusedge.models.streaming import History

# Slaney's scale: linear up to 1 kHz at 200/3 Hz a mel, then 27 mels for a factor of 6.4.
_SLANEY_STEP_HZ = 200 / 3
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_LOG_STEP = math.log(6.4) / 27


@dataclass(frozen=True)
class LogMelConfig:
    """What makes a log-mel spectrogram; lengths are in samples.

    The window is Hann's, periodic, `win_length` long and in the middle of `n_fft`. `power` is 2 for the
    squared magnitude, 1 for the magnitude. `norm="slaney"` gives each filter the same area. What is below
    `floor` counts as it; `log` is the natural logarithm, that of 10, or decibels. librosa's defaults are
    `mel_scale="slaney", norm="slaney"`, torchaudio's `"htk"` and None. Not offered, since a stream has no
    whole: a floor relative to the loudest sound of the recording (`top_db`).
    """

    sample_rate_hz: int
    n_mels: int
    n_fft: int
    win_length: int
    hop_length: int
    f_min_hz: float = 0.0
    f_max_hz: float | None = None  # none: half of the sample rate
    mel_scale: Literal["htk", "slaney"] = "htk"
    norm: Literal["slaney"] | None = None
    power: Literal[1, 2] = 2
    log: Literal["ln", "log10", "db"] = "ln"
    floor: float = 1e-10

    def __post_init__(self) -> None:
        top = self.top_hz
        faults = {
            "sizes must be at least 1": min(self.n_mels, self.hop_length, self.win_length) < 1,
            "win_length must be at most n_fft": self.win_length > self.n_fft,
            "0 <= f_min_hz < f_max_hz <= sample_rate_hz / 2": not (
                0 <= self.f_min_hz < top <= self.sample_rate_hz / 2
            ),
            "floor must be above 0": not self.floor > 0,
        }
        for fault, present in faults.items():
            if present:
                raise FusedgeError(fault, where="LogMelConfig")

    @property
    def top_hz(self) -> float:
        """The end of the highest filter."""
        return self.sample_rate_hz / 2 if self.f_max_hz is None else self.f_max_hz


class LogMel(nn.Module):
    """`waveform float32 [B, T] or [B, T, 1] -> [B, frames, n_mels]`, of a recording or a window.

    `center=False`: frames lie wholly inside, `1 + (T - n_fft) // hop_length` of them. `center=True`: frame
    i is centred on sample `i * hop_length` and the ends are mirrored, `1 + T // hop_length` frames.
    """

    def __init__(self, config: LogMelConfig, center: bool = False) -> None:
        super().__init__()
        self.config, self.center = config, center
        self.bands = _MelBands(config)

    def forward(self, waveform: Tensor) -> Tensor:
        """The spectrogram."""
        config = self.config
        wave = waveform.reshape(waveform.shape[0], 1, -1)
        # What the window does not reach at both ends of n_fft need not be looked at.
        before = (config.n_fft - config.win_length) // 2
        if self.center:
            wave = _mirror_ends(wave, config.n_fft // 2)
        end = wave.shape[-1] - (config.n_fft - config.win_length - before)
        features: Tensor = self.bands(wave[..., before:end])
        return features


def _mirror_ends(wave: Tensor, count: int) -> Tensor:
    """`[B, 1, T] -> [B, 1, T + 2 * count]`, by selection: not all TensorRT can mirror with Pad."""
    length = wave.shape[-1]
    if length <= count:
        raise FusedgeError(
            f"{length} samples are too few to mirror {count} at each end",
            where="LogMel",
            hint=f"give at least {count + 1}, or center=False",
        )
    steps = torch.arange(1, count + 1, device=wave.device)
    before = wave.index_select(-1, steps.flip(0))
    after = wave.index_select(-1, length - 1 - steps)
    return torch.cat([before, wave, after], dim=-1)


class StreamingLogMel(nn.Module):
    """`(waveform [B, N*hop, 1], state [B, S, 1]) -> (features [B, N, n_mels], new state)`, hop by hop.

    A frame covers the `win_length` samples up to the end of its hop: it looks at nothing that comes later.
    The state holds the last `win_length - hop_length` samples; zeros, which are silence, come first.
    """

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        if config.hop_length > config.win_length:
            raise FusedgeError(
                "hop_length must be at most win_length",
                where="StreamingLogMel",
                hint="or use LogMel",
            )
        self.history = History(1, config.win_length - config.hop_length)
        self.bands = _MelBands(config)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of the state without the batch."""
        return self.history.state_shape

    def forward(self, waveform: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features of N hops."""
        joined, state = self.history(waveform, state)
        return self.bands(joined.transpose(1, 2)), state


class _MelBands(nn.Module):
    """`[B, 1, T] -> [B, 1 + (T - win_length) // hop_length, n_mels]`."""

    needs_float32 = True  # see above
    basis: Tensor
    filters: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        filters = mel_filters(config)
        used = filters.any(dim=0)
        # As a convolution of width 1: TensorRT builds that in float32 for RTX 20 too, unlike a product.
        narrow = filters[:, used].float().unsqueeze(-1)
        self.register_buffer("filters", narrow, persistent=False)
        bins = used.nonzero()
        self.bins = len(bins)
        window = torch.hann_window(config.win_length, dtype=torch.float64)
        # Whole turns are taken off while the numbers are integers, and so exact.
        turns = (torch.arange(config.win_length) * bins % config.n_fft).double() / config.n_fft
        angles = 2 * math.pi * turns
        basis = torch.cat([angles.cos(), angles.sin()]) * window
        self.register_buffer("basis", basis.float().unsqueeze(1), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        config = self.config
        spectrum = functional.conv1d(wave, self.basis, stride=config.hop_length)
        real, imaginary = spectrum[:, : self.bins], spectrum[:, self.bins :]
        energy = real * real + imaginary * imaginary
        if config.power == 1:
            energy = energy.sqrt()
        bands = functional.conv1d(energy, self.filters).transpose(1, 2).clamp(min=config.floor)
        if config.log == "ln":
            return bands.log()
        return bands.log() * ((20 / config.power if config.log == "db" else 1) / math.log(10))


def mel_filters(config: LogMelConfig) -> Tensor:
    """Triangular filters over the bins of the transform, float64 `[n_mels, n_fft // 2 + 1]`.

    With many mels and a short transform a low filter can lie between two bins: it is all zeros.
    """
    low, high = (_to_mel(hz, config.mel_scale) for hz in (config.f_min_hz, config.top_hz))
    corners = _to_hz(torch.linspace(low, high, config.n_mels + 2, dtype=torch.float64), config)
    bins = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64)
    bins = bins * (config.sample_rate_hz / config.n_fft)
    left, centre, right = (corners[i : i + config.n_mels, None] for i in range(3))
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    if config.norm == "slaney":
        filters = filters * 2 / (right - left)
    return filters


def _to_mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hz / 700)
    if hz < _SLANEY_BREAK_HZ:
        return hz / _SLANEY_STEP_HZ
    return _SLANEY_BREAK_HZ / _SLANEY_STEP_HZ + math.log(hz / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP


def _to_hz(mels: Tensor, config: LogMelConfig) -> Tensor:
    if config.mel_scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    first = _SLANEY_BREAK_HZ / _SLANEY_STEP_HZ
    beyond = _SLANEY_BREAK_HZ * ((mels - first) * _SLANEY_LOG_STEP).exp()
    return torch.where(mels < first, mels * _SLANEY_STEP_HZ, beyond)
