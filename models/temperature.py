"""The temperature at which a classifier's confidence is calibrated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def fitted_temperature(logits: Tensor, target: Tensor) -> float:
    """By which logits `[N, K]` are to be divided for the least cross-entropy to `target`, within 0.1 to 10
    (Guo et al., arXiv 1706.04599). That is labels, int64 `[N]`, or shares, float32 `[N, K]`.
    """
    candidates = torch.logspace(-1, 1, 201)
    losses = [float(functional.cross_entropy(logits / t, target)) for t in candidates]
    return round(float(candidates[losses.index(min(losses))]), 3)
