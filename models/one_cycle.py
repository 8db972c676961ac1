"""The learning rate over a training: one cycle (Smith & Topin 2017, arXiv 1708.07120)."""

from __future__ import annotations

import math


def one_cycle(share: float, warm_up: float) -> float:
    """The share of the peak rate at a `share` of the training: a linear rise over `warm_up`, then half a
    cosine to nothing.
    """
    if share < warm_up:
        return share / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
