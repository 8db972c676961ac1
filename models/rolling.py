"""Rolling statistics of sensors: what the last W samples were like, with explicit memory."""

from __future__ import annotations

import torch
from torch import Tensor, cat, nn

from fusedge.bundle.errors import FusedgeError
from fusedge.models.streaming import History

STATISTICS = ("coverage", "mean", "deviation", "minimum", "maximum", "slope")


class RollingStatistics(nn.Module):
    """`(x, valid [B, N*hop, C], state [B, S, 2C]) -> (statistics [B, N, 6*C], new state)`, float32.

    Each hop gets the statistics of the last `length` samples up to its end, from valid samples alone:
    the share of them (coverage), mean, deviation, minimum, maximum and slope, which is the change a second
    of the line of least squares. They are 0 where nothing is valid, and a slope also where one sample is.
    They lie as in `STATISTICS`, each for all channels. `x` may be NaN where `valid` is 0.

    Every window is summed anew: a running total would drift apart from the stepwise one. The state holds
    the last `length - hop` samples; zeros mean that nothing was seen. Deviations are from the window's own
    mean, so that a large offset does not cancel. In float16 values from 256 on would overflow when squared,
    and the sum of many samples lose the last ones.
    """

    needs_float32 = True
    times_s: Tensor

    def __init__(self, channels: int, length: int, hop: int, rate_hz: float) -> None:
        super().__init__()
        if not 1 <= hop <= length:
            raise FusedgeError(
                f"a hop of {hop} samples does not fit into a length of {length}",
                where="RollingStatistics",
                hint="1 <= hop <= length",
            )
        self.length, self.hop = length, hop
        self.history = History(2 * channels, length - hop)
        times = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / rate_hz
        self.register_buffer("times_s", times.float(), persistent=False)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of the state without the batch."""
        return self.history.state_shape

    def forward(self, x: Tensor, valid: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Statistics of N hops."""
        mask = (valid > 0).to(x.dtype)
        joined, state = self.history(cat([torch.where(valid > 0, x, 0.0), mask], dim=-1), state)
        windows = joined.unfold(1, self.length, self.hop)  # [B, N, 2C, length]
        values, mask = windows[:, :, : x.shape[2]], windows[:, :, x.shape[2] :]
        count = mask.sum(-1)
        divisor = count.clamp(min=1.0)
        mean = (values * mask).sum(-1) / divisor
        offsets = (values - mean.unsqueeze(-1)) * mask
        deviation = ((offsets * offsets).sum(-1) / divisor).sqrt()
        # Extremes of the offsets, since those of what is invalid are 0, which no extreme passes over.
        minimum, maximum = mean + offsets.amin(-1), mean + offsets.amax(-1)
        times = (self.times_s - ((self.times_s * mask).sum(-1) / divisor).unsqueeze(-1)) * mask
        spread = (times * times).sum(-1)
        slope = (times * offsets).sum(-1) / torch.where(spread > 0, spread, 1.0)
        statistics = [count / self.length, mean, deviation, minimum, maximum, slope]
        return cat(statistics, dim=-1), state
