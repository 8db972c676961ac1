"""Layers with a bounded memory, for which N steps equal one sequence.

`History` and `RollingMean` have their memory as an argument:
`(x [B, N, C], state [B, S, C]) -> (y, new_state [B, S, C])`, all float32. The state holds the last S
inputs, zeros before the first. Nothing else is remembered, so a state can be a named input and output of
an exported graph. `CausalConv1d` and `CausalAttention` map whole sequences, and export makes their memory
such inputs and outputs (`fusedge.export.lift`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

_MASKED = -1e4  # fits fp16


class History(nn.Module):
    """Puts the last `length` inputs before the new ones: `[B, N, C] -> [B, length + N, C]`."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.channels, self.length = channels, length

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of the state without the batch."""
        return self.length, self.channels

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The joined sequence `[B, length + N, C]` and its last `length` steps."""
        joined = cat([state, x], dim=1)
        return joined, joined[:, joined.shape[1] - self.length :]


class RollingMean(nn.Module):
    """Mean over this step and the `length - 1` before it; steps before the first count as zeros."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.history = History(channels, length - 1)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of the state without the batch."""
        return self.history.state_shape

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, N, C] -> [B, N, C]`."""
        joined, state = self.history(x, state)
        # A pool recomputes every sum: a running total would drift apart from the stepwise one.
        pooled = functional.avg_pool1d(joined.transpose(1, 2), self.length, stride=1)
        return pooled.transpose(1, 2), state


class CausalConv1d(nn.Module):
    """A convolution that sees this step and earlier ones only: `[B, T, C] -> [B, T / stride, C']`.

    Steps before the first count as zeros. As every causal pad, its memory is lifted by export.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int, dilation: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.past = (kernel - 1) * dilation
        self.conv = nn.Conv1d(channels, out_channels, kernel, stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """The convolved sequence."""
        padded = functional.pad(x.transpose(1, 2), (self.past, 0))
        y: Tensor = self.conv(padded)
        return y.transpose(1, 2)


class CausalAttention(nn.Module):
    """Attention of each step to itself and the `past` steps before it: `[B, T, C] -> [B, T, C]`.

    Its memory, which export lifts, is bounded: keys and values of the last `past` steps, with a mark that
    they are there, so that steps before the first are not attended to. How much a distance counts is
    learned by head, for a step does not know its place in the sequence.
    """

    def __init__(self, channels: int, heads: int, past: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads, self.past = heads, past
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.distance = nn.Parameter(torch.zeros(heads, past + 1))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The attended sequence."""
        steps = x.shape[1]
        there = torch.ones_like(x[..., :1])
        cache = functional.pad(cat([self.key_value(x), there], -1), (0, 0, self.past, 0))
        query = self._by_head(self.query(x))
        key, value = (self._by_head(part) for part in cache[..., :-1].chunk(2, dim=-1))
        # Step i is at place past + i of the cache and sees `past` places back.
        back = torch.arange(steps)[:, None] + self.past - torch.arange(self.past + steps)
        seen = (back >= 0) & (back <= self.past)
        bias = self.distance[:, back.clamp(0, self.past)] + torch.where(seen, 0.0, _MASKED)
        absent = (1 - cache[..., -1])[:, None, None] * _MASKED
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = (scores + bias + absent).softmax(dim=-1)
        attended: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return attended

    def _by_head(self, x: Tensor) -> Tensor:
        """`[B, T, C]` to `[B, heads, T, C / heads]`."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
