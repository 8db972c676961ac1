"""Encoder of a voice: hop by hop, from a waveform and explicit state to an embedding.

    waveform ─► log-mel ─► level ─► convolutions over time and mel, then time ─► moments of 4 s ─► embedding

Frames of 50 ms resolve the harmonics of a voice from about 80 Hz on (Hann's main lobe is 4 / 50 ms wide),
so that pitch survives in the mel bands. The level is what the last seconds were like on the mean: what is
left says how sounds compare with each other, not how far the microphone was. Frames are weighted by what
the network finds telling in them, since half of a take is silence. An encoder is an ensemble: its members
are groups of the same layers, each trained by itself (`join`), and stand side by side in the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

from fusedge.models.emotion.labels import VOICE_LABELS
from fusedge.models.emotion.takes import RATE_HZ
from fusedge.models.log_mel import LogMelConfig, StreamingLogMel
from fusedge.models.streaming import History, RollingMean
from fusedge.models.weights_file import config_of, load_weights, weights_bytes

HOP = 1600  # samples: a decision every 0.1 s
FRAMES = 8  # of the spectrogram, a hop
LOG_MEL = LogMelConfig(
    sample_rate_hz=RATE_HZ,
    n_mels=80,
    n_fft=1024,
    win_length=800,
    hop_length=HOP // FRAMES,
    f_min_hz=50.0,
    floor=1e-7,  # about the noise of the last bit of 16
)
_KIND = "fusedge-voice-1"
_LEAST_LEVEL = 1e-5  # mean power of a band; 19 dB below the quietest take of RAVDESS
_DEPTH = 10.0  # nepers of power below the level, 43 dB: rooms are noisier than what lies deeper
_LEAST_WEIGHT = 1e-3
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class VoiceConfig:
    """Sizes of a `VoiceEncoder`; channels and `judgements` are those of one member.

    `level` and `long` are in hops. The embedding has `members * judgements` numbers.
    """

    channels: tuple[int, int, int] = (16, 32, 48)
    width: int = 128
    judgements: int = 32
    level: int = 40
    long: int = 40
    members: int = 1
    dropout: float = 0.2

    @property
    def size(self) -> int:
        """Size of the embedding."""
        return self.members * self.judgements


class Level(nn.Module):
    """`(log-mel [B, N*FRAMES, mels], seen [B, N, 1], state) -> (the same less the level, new state)`.

    The level is the logarithm of the mean power of the last `length` hops in which there was a signal; a
    gain shifts both alike. What lies far below it is one floor, whatever the noise of the microphone.
    """

    needs_float32 = True  # powers reach from 1e-7 to 1e4

    def __init__(self, length: int) -> None:
        super().__init__()
        self.mean = RollingMean(2, length)

    def forward(self, log_mel: Tensor, seen: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Relative log-mel, in nepers of power above the floor."""
        frames = log_mel.reshape(*seen.shape[:2], FRAMES, -1)
        power = frames.exp().mean(dim=(2, 3)).unsqueeze(-1)
        pooled, state = self.mean(cat([power * seen, seen], dim=-1), state)
        power, count = pooled.chunk(2, dim=-1)
        level = (power / count.clamp(min=1e-3)).clamp(min=_LEAST_LEVEL).log()
        return functional.softplus(frames - level.unsqueeze(2) + _DEPTH).flatten(1, 2), state


class _Stage(nn.Module):
    """Causal convolution over time and mel `[B, C, T, F] -> [B, C', T / stride, F / 2]`, norm, ReLU.

    The state is `[B, kernel - stride, C * F]`.
    """

    def __init__(
        self, channels: int, out_channels: int, mels: int, kernel: int, stride: int, groups: int
    ) -> None:
        super().__init__()
        self.past, self.sizes = kernel - stride, (channels, mels)
        self.conv = nn.Conv2d(
            channels, out_channels, (kernel, 3), (stride, 2), (0, 1), groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)

    @property
    def state_shape(self) -> tuple[int, int]:
        channels, mels = self.sizes
        return self.past, channels * mels

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        channels, mels = self.sizes
        past = state.reshape(state.shape[0], self.past, channels, mels)
        joined = cat([past.transpose(1, 2), x], dim=2)
        state = joined[:, :, joined.shape[2] - self.past :].transpose(1, 2).flatten(2)
        return functional.relu(self.norm(self.conv(joined))), state


class _Span(nn.Module):
    """Causal convolution over time with a way past it, `[B, T, C] -> [B, T, C]`."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.history = History(channels, 2 * dilation)
        self.conv = nn.Conv1d(channels, channels, 3, dilation=dilation, groups=groups, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        joined, state = self.history(x, state)
        y = self.norm(self.conv(joined.transpose(1, 2))).transpose(1, 2)
        return x + functional.relu(y), state


class VoiceEncoder(nn.Module):
    """`(window, valid [B, N*HOP, 1], *states) -> (embedding [B, N, D], *new_states)`, float32.

    `window` is sound at 16 kHz within [-1, 1], 0 where it is invalid. Zero states mean that nothing was
    heard yet.
    """

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.config = config
        members, mels = config.members, LOG_MEL.n_mels
        first, second, third = (members * channels for channels in config.channels)
        width = members * config.width
        self.log_mel = StreamingLogMel(LOG_MEL)
        self.level = Level(config.level)
        stages = [
            _Stage(1, first, mels, 5, 2, 1),
            _Stage(first, second, mels // 2, 4, 2, members),
            _Stage(second, third, mels // 4, 3, 1, members),
        ]
        spans = [_Span(width, dilation, members) for dilation in (1, 2)]
        self.stages, self.spans = nn.ModuleList(stages), nn.ModuleList(spans)
        self.remembered = {
            "sound": self.log_mel.state_shape,
            "level": self.level.mean.state_shape,
            **{f"stage{n}": stage.state_shape for n, stage in enumerate(stages)},
            **{f"span{n}": span.history.state_shape for n, span in enumerate(spans)},
        }
        self.narrow = nn.Conv1d(third * (mels // 8), width, 1, groups=members, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.attention = nn.Conv1d(width, members, 1, groups=members)
        self.moments = RollingMean(2 * width + members, config.long)
        self.dropout = nn.Dropout(config.dropout)
        self.judge = nn.Conv1d(2 * width, config.size, 1, groups=members)

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each state without the batch, in the order of the arguments."""
        return {**self.remembered, "moments": self.moments.state_shape}

    def zero_states(self, batch: int) -> tuple[Tensor, ...]:
        """The states before anything was heard."""
        return tuple(torch.zeros(batch, *shape) for shape in self.state_shapes().values())

    def forward(self, window: Tensor, valid: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Run N hops from the given states."""
        seen = valid.reshape(valid.shape[0], -1, HOP, 1).mean(dim=2)
        log_mel, sound = self.log_mel(window, states[0])
        relative, level = self.level(log_mel, seen, states[1])
        telling, *rest = self.listen(relative, seen, *states[2:])
        return self.judged(telling), sound, level, *rest

    def listen(self, relative: Tensor, seen: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """From relative log-mel `[B, N*FRAMES, mels]`, how much of each hop was heard `[B, N, 1]`, and all
        states but the first two: moments of the last seconds `[B, N, members * 2 * width]`, new states.
        """
        *old, moments = states
        new = []
        x = relative.unsqueeze(1)
        for stage, state in zip(self.stages, old, strict=False):
            x, state = stage(x, state)
            new.append(state)
        x = self.narrow(x.transpose(2, 3).flatten(1, 2))
        x = functional.relu(self.norm(x)).transpose(1, 2)
        for span, state in zip(self.spans, old[len(self.stages) :], strict=True):
            x, state = span(x, state)
            new.append(state)
        telling, moments = self._pool(x, seen, moments)
        return telling, *new, moments

    def judged(self, telling: Tensor) -> Tensor:
        """The embedding `[B, N, D]` of what `listen` gives."""
        judged = self.judge(self.dropout(telling).transpose(1, 2))
        return functional.gelu(judged).transpose(1, 2)

    def _pool(self, x: Tensor, seen: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Frames `[B, T, members * width]` to their weighted moments at each hop."""
        batch, hops, members = *seen.shape[:2], self.config.members
        # A sigmoid, exact where it is small too: ONNX Runtime's own errs by 1e-7, which is much of 1e-6.
        weight = (-functional.softplus(-self.attention(x.transpose(1, 2)))).exp().transpose(1, 2)
        weight = weight.reshape(batch, hops, -1, members, 1) * seen.reshape(batch, hops, 1, 1, 1)
        x = x.reshape(batch, hops, -1, members, self.config.width)
        sums = cat([weight * x, weight * x * x, weight], dim=-1).mean(dim=2).flatten(2)
        pooled, state = self.moments(sums, state)
        pooled = pooled.reshape(batch, hops, members, -1)
        pooled = pooled[..., :-1] / pooled[..., -1:].clamp(min=_LEAST_WEIGHT)
        mean, square = pooled.chunk(2, dim=-1)
        deviation = ((square - mean * mean).clamp(min=0.0) + _LEAST_VARIANCE).sqrt()
        return cat([mean, deviation], dim=-1).flatten(2), state


class VoiceClassifier(nn.Module):
    """What the voice alone says: logits `[..., 8]`, by `VOICE_LABELS`, from an embedding `[..., D]`."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VoiceEncoder(config)
        self.judge = nn.Linear(config.size, len(VOICE_LABELS))

    def forward(self, embedding: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.judge(embedding)
        return logits


def join_classifiers(members: Sequence[VoiceClassifier]) -> VoiceClassifier:
    """One whose logits are the mean of those of the given ones, which have one member each."""
    encoder = join([member.encoder for member in members])
    joined = VoiceClassifier(encoder.config).eval()
    joined.encoder = encoder
    layers = [member.judge for member in members]
    with torch.no_grad():
        joined.judge.weight.copy_(cat([layer.weight for layer in layers], dim=1) / len(layers))
        joined.judge.bias.copy_(torch.stack([layer.bias for layer in layers]).mean(dim=0))
    return joined


def voice_bytes(model: VoiceClassifier, notes: Mapping[str, str]) -> bytes:
    """The model as a safetensors file, with its configuration; the same model, the same bytes."""
    return weights_bytes(_KIND, model, asdict(model.config), notes)


def load_voice(path: Path) -> tuple[VoiceClassifier, dict[str, str]]:
    """The model in evaluation mode, and the notes in its file; raises FusedgeError."""
    with torch.random.fork_rng(devices=[]):
        return load_weights(_KIND, path, lambda raw: VoiceClassifier(config_of(VoiceConfig, raw)))


def join(members: Sequence[VoiceEncoder]) -> VoiceEncoder:
    """One encoder whose embedding is those of the given ones side by side; they are of one size."""
    config = replace(members[0].config, members=sum(m.config.members for m in members))
    joined = VoiceEncoder(config).eval()
    tensors = [member.state_dict() for member in members]
    # A member is a group of each layer, and groups follow each other in the first dimension.
    joined.load_state_dict(
        {
            name: cat([own[name] for own in tensors]) if value.dim() else tensors[0][name]
            for name, value in joined.state_dict().items()
        }
    )
    return joined
