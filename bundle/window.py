"""The meaning of a window: how irregular samples become a tensor on a fixed grid.

Training and runtime both call this, so they cannot differ. The ways to resample:

- `hold`: each grid point takes the newest sample at or before it, if that is at most `max_hold_s` old;
- `exact`: each grid point takes the sample nearest to it, if that is at most `max_hold_s` away;
- `newest`: the last samples up to the window's end, whatever their spacing, none older than the window
  and `max_hold_s`;
- `contiguous`: sound; as many samples in a row as the window has, the last one captured at its end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NANOSECONDS = 1_000_000_000


def to_ns(seconds: float) -> int:
    """Seconds as whole nanoseconds."""
    return round(seconds * NANOSECONDS)


def grid_ns(end_ns: int, count: int, rate_hz: float) -> NDArray[np.int64]:
    """The `count` grid times of a window that ends at `end_ns` (included), int64 `[count]`."""
    steps = np.arange(count - 1, -1, -1, dtype=np.int64)
    back: NDArray[np.int64] = np.rint(steps * (NANOSECONDS / rate_hz)).astype(np.int64)
    return end_ns - back


def pick_newest(
    timestamps_ns: NDArray[np.int64], grid: NDArray[np.int64], max_hold_ns: int
) -> NDArray[np.int64]:
    """For each grid time the index of the newest sample at or before it, -1 where none is fresh.

    `timestamps_ns` int64 `[N]`, ascending; `grid` int64 `[T]`; returns int64 `[T]`.
    A sample is held for at most `max_hold_ns`.
    """
    if len(grid) == 1:  # an image: without arrays it takes a fifth of the time
        time_ns = grid[0]
        place = int(timestamps_ns.searchsorted(time_ns, side="right")) - 1
        fresh = place >= 0 and time_ns - timestamps_ns[place] <= max_hold_ns
        return np.array([place if fresh else -1], np.int64)
    index: NDArray[np.int64] = timestamps_ns.searchsorted(grid, side="right")
    index -= 1
    if len(timestamps_ns):
        # Where the index is -1 the newest sample stands in: its age is negative there, and it stays -1.
        index[grid - timestamps_ns[index] > max_hold_ns] = -1
    return index


def pick_nearest(
    timestamps_ns: NDArray[np.int64], grid: NDArray[np.int64], tolerance_ns: int
) -> NDArray[np.int64]:
    """For each grid time the index of the sample nearest to it, -1 where none is within `tolerance_ns`.

    Shapes as in `pick_newest`; the earlier one of two that are as near.
    """
    if not len(timestamps_ns):
        return np.full(len(grid), -1, np.int64)
    after = np.searchsorted(timestamps_ns, grid).astype(np.int64)
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(timestamps_ns) - 1)
    nearer = grid - timestamps_ns[before] <= np.abs(timestamps_ns[after] - grid)
    index = np.where(nearer, before, after)
    index[np.abs(timestamps_ns[index] - grid) > tolerance_ns] = -1
    return index


def pick_last(
    timestamps_ns: NDArray[np.int64], end_ns: int, count: int, oldest_ns: int
) -> NDArray[np.int64]:
    """The indices of the last `count` samples from `oldest_ns` up to `end_ns`, int64 `[count]`.

    Where there are fewer, the first places are -1.
    """
    stop = int(np.searchsorted(timestamps_ns, end_ns, side="right"))
    start = max(int(np.searchsorted(timestamps_ns, oldest_ns)), stop - count)
    index = np.full(count, -1, np.int64)
    if stop > start:
        index[start - stop :] = np.arange(start, stop)
    return index


def hold(
    timestamps_ns: NDArray[np.int64],
    values: NDArray[np.float32],
    grid: NDArray[np.int64],
    max_hold_ns: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Sample-and-hold resampling: `(window [T, C], valid [T, C], picked [T])`.

    Each grid point takes the newest sample at or before it, if that is at most `max_hold_ns` old.
    A grid point without one, and a channel that is NaN, is 0 with `valid` 0. `picked` holds the
    index of the sample that each grid point took, -1 for none. The window never depends on a
    sample after its end, so it can be cut live.
    """
    picked = pick_newest(timestamps_ns, grid, max_hold_ns)
    return *gather(values, picked), picked


def gather(
    values: NDArray[np.float32], picked: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The picked samples `(window [T, C], valid [T, C])`: 0 and not valid for none and for NaN."""
    if not len(values):
        empty = np.zeros((len(picked), values.shape[1]), np.float32)
        return empty, empty.copy()
    window = values[np.maximum(picked, 0)]
    measured = np.isfinite(window) & (picked >= 0)[:, None]
    return np.where(measured, window, np.float32(0)), measured.astype(np.float32)


def complete(valid: NDArray[np.float32], min_valid: float) -> NDArray[np.bool_]:
    """Which windows an encoder may run on: `valid` `[..., T, C]` gives bool `[...]`.

    A grid point counts if any of its channels was measured; a window without one never does.
    """
    share = (valid > 0).any(-1).mean(-1)
    return np.asarray((share > 0) & (share >= min_valid))


def mask_implausible(
    values: NDArray[np.float32], minimum: NDArray[np.float32], maximum: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A copy of `values` `[..., C]` in which what lies outside a channel's range is NaN.

    NaN and infinities fail every comparison here, so they come out as NaN too.
    """
    plausible = (values >= minimum) & (values <= maximum)
    return np.where(plausible, values, np.float32(np.nan))
