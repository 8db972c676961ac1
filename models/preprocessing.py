"""Preprocessing of images and sensors inside the graph, so that training and serving cannot differ.

Put these modules in front of an encoder; sound has `log_mel.LogMel`. All numbers are constants.

Precision: pixels are whole numbers up to 255, which float16 holds. Sensors are not so: pressure in pascal
and odometers lie beyond float16, so that `Normalise` must compute in float32 (`needs_float32`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fusedge.bundle.errors import FusedgeError


class ImageInput(nn.Module):
    """`uint8 [B, n, H, W, C] -> float32 [B, n, C, H, W]`: `(x * scale - mean) / deviation` by channel.

    Frames come in the bundle's order, RGB; `order` is the one that the network was trained on. `mean` and
    `deviation` are in the network's order and in units after `scale`, as torchvision states them.
    """

    factor: Tensor
    offset: Tensor
    channels: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        deviation: Sequence[float],
        scale: float = 1 / 255,
        order: Literal["rgb", "bgr"] = "rgb",
    ) -> None:
        super().__init__()
        means, deviations = _per_channel(mean, deviation, "ImageInput")
        if order == "bgr" and len(means) != 3:
            raise FusedgeError(f"bgr has 3 channels, not {len(means)}", where="ImageInput")
        self.reversed = order == "bgr"
        self.register_buffer("channels", torch.tensor([2, 1, 0]), persistent=False)
        # Pixels are at most 255, so that folding the mean into an offset costs one rounding.
        self.register_buffer("factor", _column(scale / deviations), persistent=False)
        self.register_buffer("offset", _column(-means / deviations), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalise frames."""
        # First of all to float: TensorRT takes uint8 as an input, and no operation on it but the cast.
        values = frames.to(torch.float32).permute(0, 1, 4, 2, 3)
        if self.reversed:
            values = values.index_select(2, self.channels)
        return values * self.factor + self.offset


class Normalise(nn.Module):
    """`(x [B, T, C], valid [B, T, C]) -> [B, T, C]`: `(x - mean) / deviation`, within `limit` deviations.

    Where `valid` is 0 the result is 0, which is the mean, whatever `x` holds there, NaN and Inf included.
    """

    needs_float32 = True
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, mean: Sequence[float], deviation: Sequence[float], limit: float = 10.0
    ) -> None:
        super().__init__()
        means, deviations = _per_channel(mean, deviation, "Normalise")
        if not limit > 0:
            raise FusedgeError(f"limit must be above 0, not {limit}", where="Normalise")
        self.limit = limit
        self.register_buffer("mean", means.float(), persistent=False)
        self.register_buffer("deviation", deviations.float(), persistent=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Normalise samples."""
        # The mean is subtracted first: large values with a small spread would cancel otherwise.
        scaled = (x - self.mean) / self.deviation
        # The choice comes last, so that NaN goes no further; a product with 0 would keep it.
        return torch.where(valid > 0, scaled.clamp(-self.limit, self.limit), 0.0)


def _per_channel(
    mean: Sequence[float], deviation: Sequence[float], where: str
) -> tuple[Tensor, Tensor]:
    """Both as float64 `[C]`; raises FusedgeError where they do not fit together."""
    if len(mean) != len(deviation) or not mean:
        raise FusedgeError(
            f"{len(mean)} means for {len(deviation)} deviations", where=where, hint="one a channel"
        )
    means, deviations = (torch.tensor(x, dtype=torch.float64) for x in (mean, deviation))
    if not (means.isfinite().all() and deviations.isfinite().all() and (deviations > 0).all()):
        raise FusedgeError("means must be finite, deviations finite and above 0", where=where)
    return means, deviations


def _column(values: Tensor) -> Tensor:
    return values.float().reshape(1, 1, -1, 1, 1)
