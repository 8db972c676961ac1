"""Percentiles of a stream of durations in bounded memory."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

_BINS_PER_DECADE = 50  # neighbouring edges differ by 4.7 %
_EDGES_NS: list[float] = (
    10 ** (np.arange(2 * _BINS_PER_DECADE, 11 * _BINS_PER_DECADE + 1) / _BINS_PER_DECADE)
).tolist()


class DurationHistogram:
    """Counts durations from 100 ns to 100 s in logarithmic bins; a percentile is right to 5 %."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_EDGES_NS) + 1)
        self.max_ns = 0

    @property
    def count(self) -> int:
        """How many durations were added."""
        return sum(self._counts)

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(_EDGES_NS, duration_ns)] += 1
        if duration_ns > self.max_ns:
            self.max_ns = duration_ns

    def percentile_ns(self, percent: float) -> float | None:
        """The upper edge of the bin in which the percentile lies, at most the maximum; None if empty."""
        if not self.count:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), percent / 100 * self.count))
        edge = _EDGES_NS[place] if place < len(_EDGES_NS) else self.max_ns
        return float(min(edge, self.max_ns))

    def summary_us(self) -> dict[str, float | int | None]:
        """Count, p50, p90, p99 and maximum in microseconds, for JSON."""

        def microseconds(value_ns: float | None) -> float | None:
            return None if value_ns is None else round(value_ns / 1e3, 1)

        return {
            "count": self.count,
            **{f"p{p}_us": microseconds(self.percentile_ns(p)) for p in (50, 90, 99)},
            "max_us": microseconds(self.max_ns) if self.count else None,
        }
