"""Layers whose memory is an explicit argument: N steps equal one sequence.

Every layer maps `(x [B, N, C], state [B, S, C]) -> (y, new_state [B, S, C])`, all float32.
The state holds the last S inputs, zeros before the first. Nothing else is remembered, so a state is
bounded and can be a named input and output of an exported graph.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional


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
