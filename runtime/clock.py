"""The one place that knows the time. Every other module is given a clock.

Live, paced and as-fast-as-possible sessions run the same code and differ only in the clock.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Nanoseconds that never go backward, and a way to wait for one of them."""

    kind: str

    def now_ns(self) -> int:
        """The present."""

    def wait_until(self, time_ns: int) -> None:
        """Return at `time_ns`, or at once when that has passed."""

    def interrupt(self) -> None:
        """End a wait, now and from now on; may be called from a signal handler or another thread."""


class VirtualClock:
    """Time that moves only when it is waited for: as fast as the machine goes, and repeatable."""

    kind = "virtual"

    def __init__(self) -> None:
        self._now_ns: int | None = None

    def now_ns(self) -> int:
        """The time last waited for; 0 before the first wait."""
        return self._now_ns or 0

    def wait_until(self, time_ns: int) -> None:
        """Jump to `time_ns`."""
        self._now_ns = time_ns if self._now_ns is None else max(self._now_ns, time_ns)

    def interrupt(self) -> None:
        """It never waits."""


class PacedClock:
    """A recording's own time, moving at `speed` times the rate of the machine's monotonic clock.

    It starts at the first time that is waited for.
    """

    kind = "paced"

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._start_ns = 0
        self._origin_ns: int | None = None
        self._interrupted = threading.Event()

    def now_ns(self) -> int:
        """Recording time now; 0 before the first wait."""
        if self._origin_ns is None:
            return self._start_ns
        return self._start_ns + round((time.monotonic_ns() - self._origin_ns) * self._speed)

    def wait_until(self, time_ns: int) -> None:
        """Sleep until the recording reaches `time_ns`."""
        if self._origin_ns is None:
            self._start_ns, self._origin_ns = time_ns, time.monotonic_ns()
        left_ns = time_ns - self.now_ns()
        if left_ns > 0:
            self._interrupted.wait(left_ns / self._speed / 1e9)

    def interrupt(self) -> None:
        """End the sleep."""
        self._interrupted.set()


def stopwatch_ns() -> int:
    """For measuring what work costs. Never a time stamp, and never part of a decision."""
    return time.perf_counter_ns()


def process_cpu_ns() -> int:
    """Processor time that this process has used, all threads together."""
    return time.process_time_ns()
