"""Where the samples of a sound device lie on the session's clock, although its rate is not nominal.

Sound has no stamp a sample: it is counted. A block's time can only be late, never early, so the truth
is the lower envelope of (samples so far, time): a line whose slope is the drift of the device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise

from fusedge.bundle.window import NANOSECONDS, to_ns

_Point = tuple[int, float]  # samples so far; time less samples at the nominal rate, in ns

# Blocks of 100 ms that are late by 0 to 20 ms: the earliest of a bucket is late by 2 ms on average,
# and by more than 10 ms once in 1000.
_BUCKET_NS = to_ns(1.0)
_RECENT = 20  # buckets that tell the offset: a wrong slope of 100 ppm moves it by 2 ms
_MERGED = 5  # buckets that make one point for the slope
_FITTED = 120  # such points: at 10 ppm/h, 10 minutes bend away from a line by 0.5 ms
_FEWEST = 3  # such points for a first slope, after 15 s
_LARGEST = 0.01  # drift; a sound card's crystal is within 0.0003
_STEP_NS = to_ns(0.01)  # half of the usual jitter
_RAISED = (
    4  # buckets that a later offset must last: a stall of 5 s ends in one, when its blocks come
)
_LOWERED = 2  # the first of them may have seen the new offset in its last block only


class SampleClock:
    """Contract: the map between samples counted and session time, for one device at `rate_hz`.

    Tell it every block with `observe`. A block may be late by 20 ms, or in a stall by seconds, as
    long as the blocks after it catch up; early by 1 ms at most. The map is then within 5 ms of the
    truth from 30 s after the start, at any drift; that of the last few seconds is meant, since
    sound that is older is never asked for.

    Samples that the driver lost, or made up, or did not take while it stood still, are a step. The
    map follows within 2 s where samples were made up, within 8 s where they are missing; the drift
    is kept. A step of less than 10 ms is not counted, and followed within 21 s. Blocks that are all
    late by more than 10 ms for longer than 4 s cannot be told from missing samples: they count
    as a step, and their recovery as another.

    Before the first slope (15 s) the drift is taken as 0, and before the second bucket (1 s) the
    first block as punctual. The delay that no block is ever without is part of the map: nothing
    here can tell it from time. No input raises, but `count` and `time_ns` are meant never to fall.
    """

    def __init__(self, rate_hz: float) -> None:
        self.steps = 0
        self._period_ns = NANOSECONDS / rate_hz
        self._slope_ns = 0.0  # by which a sample lasts longer than nominal
        self._low: _Point = (0, math.inf)  # of the open bucket
        self._low_ns = math.inf
        self._close_ns = -(1 << 63)
        self._recent: deque[_Point] = deque(maxlen=_RECENT)
        self._fitted: deque[_Point] = deque(maxlen=_FITTED)
        self._unmerged = 0
        self._start: _Point | None = None
        self._anchor_count, self._anchor_ns = 0, 0

    def observe(self, count: int, time_ns: int) -> None:
        """`count` samples have come so far, and the last is said to have been captured at `time_ns`."""
        residual_ns = time_ns - count * self._period_ns
        if residual_ns < self._low_ns:
            self._low_ns = residual_ns
            self._low = (count, residual_ns)
        if time_ns >= self._close_ns:
            self._close_ns = time_ns + _BUCKET_NS
            self._close()

    def time_ns(self, count: float) -> int:
        """When the sample before which `count` had come was captured; needs one observation."""
        return self._anchor_ns + round(
            (count - self._anchor_count) * (self._period_ns + self._slope_ns)
        )

    def count_at(self, time_ns: int) -> float:
        """How many samples had been captured at `time_ns`: the inverse of `time_ns`."""
        return self._anchor_count + (time_ns - self._anchor_ns) / (self._period_ns + self._slope_ns)

    @property
    def ppm(self) -> float:
        """By how many millionths the device is faster than its nominal rate."""
        return -1e6 * self._slope_ns / (self._period_ns + self._slope_ns)

    @property
    def correction_ns(self) -> int:
        """By how much the nominal rate, counted from the first block, would misplace the newest sample.

        Negative where the device is fast or has made samples up.
        """
        if self._start is None:
            return 0
        return round(self._anchor_ns - self._anchor_count * self._period_ns - self._start[1])

    @property
    def settled(self) -> bool:
        """Whether the drift is known and the newest second agrees with the line."""
        if len(self._fitted) < _FEWEST:
            return False
        heights = self._heights()
        return heights[-1] - min(heights) <= _STEP_NS

    def _heights(self) -> list[float]:
        """Of the recent buckets over a line of the present slope through count 0."""
        slope_ns = self._slope_ns
        return [residual_ns - slope_ns * count for count, residual_ns in self._recent]

    def _close(self) -> None:
        if self._start is None:
            self._start = self._low
        self._recent.append(self._low)
        self._low_ns = math.inf
        self._unmerged += 1
        self._find_step()
        if self._unmerged == _MERGED:
            self._unmerged = 0
            # The newest buckets may yet turn out to lie behind a step, and the points before it.
            merged = slice(-_MERGED - _LOWERED, -_LOWERED)
            heights, points = self._heights()[merged], list(self._recent)[merged]
            self._fitted.append(points[heights.index(min(heights))])
            if len(self._fitted) >= _FEWEST:
                limit_ns = _LARGEST * self._period_ns
                slope_ns = _slope_below(self._fitted, self._slope_ns)
                self._slope_ns = max(-limit_ns, min(limit_ns, slope_ns))
        self._anchor_count = self._low[0]
        residual_ns = min(self._heights()) + self._slope_ns * self._anchor_count
        self._anchor_ns = round(self._anchor_count * self._period_ns + residual_ns)

    def _find_step(self) -> None:
        if len(self._recent) <= _RAISED:
            return
        heights = self._heights()
        before_ns, after = min(heights[:-_LOWERED]), heights[-_LOWERED:]
        if max(after) >= before_ns - _STEP_NS:
            # The first raised bucket may hold a late block from before the step.
            before_ns, raised = min(heights[:-_RAISED]), heights[-_RAISED:]
            after = raised[1:]
            if min(raised) <= before_ns + _STEP_NS or max(after) - min(after) >= _STEP_NS:
                return
        self.steps += 1
        moved_ns = min(after) - before_ns
        self._fitted = deque(
            ((count, residual_ns + moved_ns) for count, residual_ns in self._fitted), _FITTED
        )
        self._recent = deque(list(self._recent)[-len(after) :], maxlen=_RECENT)
        self._unmerged = 0


def _slope_below(points: Iterable[_Point], otherwise: float) -> float:
    """The slope of the lower hull of `points` at the middle of their counts.

    Of all lines that lie below every point it is the one nearest to them there; a late point cannot
    move it. `otherwise` where the counts do not rise.
    """
    hull: list[_Point] = []
    for count, height in points:
        while len(hull) > 1:
            (c0, h0), (c1, h1) = hull[-2:]
            if (c1 - c0) * (height - h0) > (h1 - h0) * (count - c0):
                break
            hull.pop()
        hull.append((count, height))
    middle = (hull[0][0] + hull[-1][0]) / 2
    for (c0, h0), (c1, h1) in pairwise(hull):
        if c0 <= middle < c1:
            return (h1 - h0) / (c1 - c0)
    return otherwise
