"""An exponential mean of weights over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """Follows `tensors`, which training changes in place; `values` are their means by name.

    The first steps count less than `decay` says, so that the beginning is soon forgotten. What is no
    floating-point number is taken as it is.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self._tensors, self._decay = tensors, decay
        self.values = {name: value.detach().clone() for name, value in tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take what the tensors are after the step of this number.

        What they began with is forgotten in a first step 0; in a first step 1 an eleventh of it is kept.
        """
        decay = min(self._decay, step / (step + 10))
        for name, value in self._tensors.items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)
