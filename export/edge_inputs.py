"""Windows of every kind that a modality can give, the edges of its range among them. All are seeded."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality

KINDS: Mapping[str, tuple[str, ...]] = {
    "series": (
        *("typical", "quiet", "zero", "greatest", "least", "constant", "gaps", "invalid"),
        *("huge", "denormal"),
    ),
    "image": ("noise", "black", "white", "constant", "gradient", "gaps", "invalid"),
    "audio": (
        *("sine", "silence", "saturated", "constant", "noise", "gaps", "invalid", "denormal"),
    ),
}
USUAL: Mapping[str, tuple[str, ...]] = {
    "series": ("typical", "quiet", "gaps"),
    "image": ("noise", "gradient", "gaps"),
    "audio": ("sine", "noise", "gaps"),
}
"""What a stream goes through, in turn."""

BEYOND_LIMITS = frozenset(["huge"])
"""Kinds that the runtime never lets through."""

_HUGE = 100  # times the channel's limits
_DENORMAL = 1e-42  # float32 loses precision below 1.2e-38 and ends at 1.4e-45
_SQUARE = 32  # samples of a half period of saturated sound: 500 Hz at 32 kHz


def make_windows(
    modality: Modality, kind: str, leading: tuple[int, ...], random: np.random.Generator
) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Windows `[*leading, n, *item]` and what of them is valid, `[*leading, *valid_shape]` float32.

    float32, or uint8 for images. Values follow the channels' limits; invalid grid points are 0.
    """
    shape = (*leading, *modality.window_shape)
    valid = np.ones((*leading, *modality.valid_shape), np.float32)
    if kind == "gaps":
        valid = (random.uniform(size=valid.shape) < 0.7).astype(np.float32)
    elif kind == "invalid":
        valid[:] = 0
    if modality.kind == "image":
        frames = np.multiply(_pixels(kind, shape, random), valid[..., None, None, None] > 0)
        return frames.astype(np.uint8), valid
    values = _sound(kind, shape, random) if modality.kind == "audio" else random.uniform(size=shape)
    low = np.array([channel.minimum for channel in modality.channels])
    high = np.array([channel.maximum for channel in modality.channels])
    return (_scaled(kind, values, low, high) * valid).astype(np.float32), valid


def _pixels(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint8]:
    if kind == "gradient":
        height, width = shape[-3:-1]
        slope = np.add.outer(np.linspace(0, 127, height), np.linspace(0, 128, width))
        return np.broadcast_to(slope[..., None], shape).astype(np.uint8)
    if kind in ("black", "white", "constant"):
        return np.full(shape, {"black": 0, "white": 255, "constant": 128}[kind], np.uint8)
    return random.integers(0, 256, shape, np.uint8)


def _sound(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float64]:
    """Values from 0 to 1, with 0.5 for silence."""
    time = np.arange(shape[-2])[:, None]
    if kind == "saturated":
        return np.broadcast_to((time // _SQUARE % 2).astype(float), shape)
    if kind == "silence":
        return np.full(shape, 0.5)
    if kind == "noise":
        return random.uniform(size=shape)
    pitch = random.uniform(0.01, 0.4, (*shape[:-2], 1, shape[-1]))  # cycles a sample
    return 0.5 + 0.4 * np.sin(2 * math.pi * pitch * time)


def _scaled(
    kind: str, values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values from 0 to 1 into the limits of each channel, or to their edges."""
    if kind == "quiet":
        return 0.01 * (low + values * (high - low))
    if kind == "greatest":
        return np.broadcast_to(high, values.shape)
    if kind == "least":
        return np.broadcast_to(low, values.shape)
    if kind == "constant":
        return np.broadcast_to(0.75 * high + 0.25 * low, values.shape)
    if kind == "huge":
        return _HUGE * np.where(values < 0.5, low, high)
    if kind == "denormal":
        return np.full(values.shape, _DENORMAL)
    if kind == "zero":
        return np.zeros(values.shape)
    return low + values * (high - low)
