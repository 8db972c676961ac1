"""How the samples of a modality line up with a window by capture time: one small class a policy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.window import grid_ns, pick_last, pick_nearest, pick_newest, to_ns

Indices = NDArray[np.int64]


class Alignment(Protocol):
    """Which sample each grid point of a window takes."""

    first_ns: int
    """The first grid point against the window's end, at most 0."""
    reach_ns: int
    """How long before a grid point a sample may have been captured and still be taken."""

    def pick(self, timestamps_ns: Indices, end_ns: int) -> Indices:
        """Index into `timestamps_ns` (int64 `[N]`, rising) for each grid point, -1 for none."""


class _Grid:
    def __init__(self, spec: Modality) -> None:
        self._grid = grid_ns(0, spec.window_samples, spec.rate_hz)
        self.first_ns = int(self._grid[0])
        self.reach_ns = to_ns(spec.max_hold_s)


class Hold(_Grid):
    """Contract: the newest sample at or before the grid point, if at most `max_hold_s` older."""

    def pick(self, timestamps_ns: Indices, end_ns: int) -> Indices:
        """See Alignment."""
        return pick_newest(timestamps_ns, self._grid + end_ns, self.reach_ns)


class Exact(_Grid):
    """Contract: the sample nearest to the grid point, if at most `max_hold_s` before or after it.

    For devices that are triggered together. A sample just after the window's end counts too, so the
    modality's lateness is at least `max_hold_s`.
    """

    def pick(self, timestamps_ns: Indices, end_ns: int) -> Indices:
        """See Alignment."""
        return pick_nearest(timestamps_ns, self._grid + end_ns, self.reach_ns)


class Newest:
    """Contract: the last samples up to the window's end, in order, whatever their spacing; none older
    than `window_s + max_hold_s`. Where there are fewer, the first grid points have none.
    """

    def __init__(self, spec: Modality) -> None:
        self._count = spec.window_samples
        self.first_ns = -to_ns(spec.window_s)
        self.reach_ns = to_ns(spec.max_hold_s)

    def pick(self, timestamps_ns: Indices, end_ns: int) -> Indices:
        """See Alignment."""
        oldest_ns = end_ns + self.first_ns - self.reach_ns
        return pick_last(timestamps_ns, end_ns, self._count, oldest_ns)


def alignment(spec: Modality) -> Alignment:
    """The policy that the manifest asks for; that of sound is in fusedge.runtime.sound_stream."""
    policies: dict[str, type[Hold | Exact | Newest]] = {
        "hold": Hold,
        "exact": Exact,
        "newest": Newest,
    }
    return policies[spec.resample](spec)
