"""A bounded buffer of samples in order of capture time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PENDING, LATE, WINDOW_REJECTED, INVALID, USED = range(5)


class SampleRing:
    """At most `capacity` samples, oldest first, with what has become of each (`status`).

    The arrays are allocated once, twice as long as needed, so that the live part is contiguous and
    moves only once in `capacity` insertions. The properties are views, valid until the next change.
    With `channels` None a sample is an object that is kept, not copied (an image).
    """

    def __init__(self, capacity: int, channels: int | None) -> None:
        self.capacity = capacity
        self._times = np.empty(2 * capacity, np.int64)
        self._values: NDArray[Any] = (
            np.empty(2 * capacity, object)
            if channels is None
            else np.empty((2 * capacity, channels), np.float32)
        )
        self._status = np.empty(2 * capacity, np.uint8)
        self._start = self._stop = 0
        self._newest_ns = 0  # a plain number: reading one from an array costs as much as a search

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def timestamps_ns(self) -> NDArray[np.int64]:
        """Capture times, int64 `[N]`, strictly rising."""
        return self._times[self._start : self._stop]

    @property
    def values(self) -> NDArray[Any]:
        """Sample data, float32 `[N, C]`, or objects `[N]`."""
        return self._values[self._start : self._stop]

    @property
    def status(self) -> NDArray[np.uint8]:
        """What became of each sample, uint8 `[N]`."""
        return self._status[self._start : self._stop]

    def insert(self, timestamp_ns: int, data: NDArray[Any]) -> bool:
        """Put a sample in its place; False, and no change, where its stamp is there already."""
        if len(self) == self.capacity:
            raise OverflowError("evict before inserting into a full ring")
        if self._stop == len(self._times):
            self._compact()
        place = self._stop
        if place > self._start and timestamp_ns <= self._newest_ns:
            place = self._start + int(np.searchsorted(self.timestamps_ns, timestamp_ns))
            if self._times[place] == timestamp_ns:
                return False
            for array in (self._times, self._values, self._status):
                array[place + 1 : self._stop + 1] = array[place : self._stop].copy()
        else:
            self._newest_ns = timestamp_ns
        self._times[place] = timestamp_ns
        self._values[place] = data
        self._status[place] = PENDING
        self._stop += 1
        return True

    def evict(self, count: int) -> NDArray[np.uint8]:
        """Remove the `count` oldest samples; their status, as a view valid until the next change."""
        gone = self._status[self._start : self._start + count]
        if self._values.ndim == 1:
            self._values[self._start : self._start + count] = None  # an image is large: let it go
        self._start += count
        return gone

    def thin(self) -> NDArray[np.uint8]:
        """Remove every second sample, not the newest; their status. What is left spans the same time."""
        count = len(self)
        gone: NDArray[np.uint8] = self.status[count % 2 :: 2].copy()
        kept = self.status[1 - count % 2 :: 2].copy(), self.timestamps_ns[1 - count % 2 :: 2].copy()
        values = self.values[1 - count % 2 :: 2].copy()
        self.evict(len(gone))
        self.status[:], self.timestamps_ns[:] = kept
        self.values[:] = values
        return gone

    def _compact(self) -> None:
        count = len(self)
        for array in (self._times, self._values, self._status):
            array[:count] = array[self._start : self._stop]
        if self._values.ndim == 1:
            self._values[count : self._stop] = None
        self._start, self._stop = 0, count
