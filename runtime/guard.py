"""Keeps what is not a measurement away from the parts: NaN, Inf, out of range, standing still."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.window import mask_implausible, to_ns

_FLOAT32 = np.finfo(np.float32)
_FROZEN_PIXELS = 32  # rows and columns in which two images are compared


def all_finite(values: NDArray[Any]) -> bool:
    """Whether there is no NaN or infinity; twice as fast as `.all()`, which goes through Python."""
    return bool(np.logical_and.reduce(np.isfinite(values), axis=None))


class ValueGuard:
    """Contract: `check` gives a sample's data with every value that is not finite, not within its
    channel's range or frozen made NaN, and counts those by channel. A value is frozen once it has
    stood still, to the bit, for longer than its channel's `frozen_s`. An image is whole or None.
    """

    def __init__(self, spec: Modality) -> None:
        self._names = [channel.name for channel in spec.channels]
        # A limit that float32 cannot hold would become an infinity, and let one pass.
        least, most = (float(limit) for limit in (_FLOAT32.min, _FLOAT32.max))
        self._minimum = np.array([max(c.minimum, least) for c in spec.channels], np.float32)
        self._maximum = np.array([min(c.maximum, most) for c in spec.channels], np.float32)
        self._ranges = list(zip(self._minimum.tolist(), self._maximum.tolist(), strict=True))
        self._common = float(self._minimum.max()), float(self._maximum.min())
        limits = [c.frozen_s for c in spec.channels]
        self._frozen_ns = np.array(
            [np.iinfo(np.int64).max if limit is None else to_ns(limit) for limit in limits],
            np.int64,
        )
        self._may_freeze = any(limit is not None for limit in limits)
        self._last: NDArray[Any] | None = None
        self._since_ns = np.zeros(len(self._names), np.int64)
        self.implausible = dict.fromkeys(self._names, 0)
        self.frozen = dict.fromkeys(self._names, 0)

    def check(self, data: NDArray[np.float32], time_ns: int) -> NDArray[np.float32]:
        """A series' sample `[C]` or a block of sound `[N, C]`, whose last sample is of `time_ns`."""
        if self._may_freeze:
            standing = self._standing_still(data, time_ns)
            if standing.any():
                data = np.where(standing, np.float32(np.nan), data)
                for index in np.flatnonzero(standing):
                    self.frozen[self._names[index]] += data.size // len(self._names)
        if self._plausible(data):
            return data
        guarded = mask_implausible(data, self._minimum, self._maximum)
        outside = np.isnan(guarded) & ~np.isnan(data)
        counts = outside.reshape(-1, len(self._names)).sum(axis=0)
        for index in np.flatnonzero(counts):
            self.implausible[self._names[index]] += int(counts[index])
        return guarded

    def _plausible(self, data: NDArray[np.float32]) -> bool:
        """Whether everything is in range, which NaN is not; False where that takes a closer look."""
        if data.ndim == 1:  # for a handful of numbers a loop is five times as fast as numpy
            return all(
                low <= value <= high
                for value, (low, high) in zip(data.tolist(), self._ranges, strict=True)
            )
        low, high = self._common
        return bool(data.min() >= low and data.max() <= high)

    def check_image(self, image: NDArray[np.uint8], time_ns: int) -> NDArray[np.uint8] | None:
        """The image `[H, W, C]`; None where it is frozen."""
        if self._may_freeze:
            height, width = (max(1, size // _FROZEN_PIXELS) for size in image.shape[:2])
            standing = self._standing_still(image[::height, ::width], time_ns)
            if standing.any():
                for index in np.flatnonzero(standing):
                    self.frozen[self._names[index]] += 1
                return None
        return image

    def _standing_still(self, data: NDArray[Any], time_ns: int) -> NDArray[np.bool_]:
        """Which channels (the last axis) have not changed for too long."""
        values = data.reshape(-1, len(self._names))
        if self._last is None:
            moved = np.ones(len(self._names), bool)
        elif values.shape == self._last.shape:
            moved = (values != self._last).any(axis=0)  # NaN differs from itself: it is not frozen
        else:
            moved = (values != self._last[-1]).any(axis=0)
        self._last = values.copy()
        self._since_ns[moved] = time_ns
        return np.asarray(time_ns - self._since_ns > self._frozen_ns)
