"""The one place that knows the time. Every other module is given a clock.

Live, paced and as-fast-as-possible sessions run the same code and differ only in the clock.
"""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from typing import Protocol

_PR_SET_TIMERSLACK = 29  # linux/prctl.h


class Clock(Protocol):
    """Nanoseconds that never go backward."""

    kind: str
    real: bool
    """Whether time goes on by itself, so that work takes time and threads wait for it."""

    def now_ns(self) -> int:
        """The present."""

    def begin(self, time_ns: int) -> None:
        """Make `time_ns` the present where the clock has a time of its own and has not begun."""

    def advance(self, time_ns: int) -> None:
        """Make `time_ns` the present where time does not go on by itself."""

    def seconds_until(self, time_ns: int) -> float:
        """How long to wait for `time_ns` by the machine's clock; 0 where it has passed."""


class VirtualClock:
    """Time that moves only when it is told to: as fast as the machine goes, and repeatable."""

    kind = "virtual"
    real = False

    def __init__(self) -> None:
        self._now_ns: int | None = None

    def now_ns(self) -> int:
        """The time last advanced to; 0 before."""
        return self._now_ns or 0

    def begin(self, time_ns: int) -> None:
        """As `advance`."""
        self.advance(time_ns)

    def advance(self, time_ns: int) -> None:
        """Jump to `time_ns`, never back."""
        self._now_ns = time_ns if self._now_ns is None else max(self._now_ns, time_ns)

    def seconds_until(self, time_ns: int) -> float:
        """It never waits."""
        return 0.0


class PacedClock:
    """A recording's own time, moving at `speed` times the rate of the machine's monotonic clock."""

    kind = "paced"
    real = True

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._start_ns = 0
        self._origin_ns: int | None = None

    def now_ns(self) -> int:
        """Recording time now; 0 before it has begun."""
        if self._origin_ns is None:
            return self._start_ns
        return self._start_ns + round((time.monotonic_ns() - self._origin_ns) * self._speed)

    def begin(self, time_ns: int) -> None:
        """Start at `time_ns`, once."""
        if self._origin_ns is None:
            self._start_ns, self._origin_ns = time_ns, time.monotonic_ns()

    def advance(self, time_ns: int) -> None:
        """It goes on by itself."""

    def seconds_until(self, time_ns: int) -> float:
        """Machine time until the recording reaches `time_ns`."""
        return max(0.0, (time_ns - self.now_ns()) / self._speed / 1e9)


class LiveClock:
    """The machine's monotonic clock, on which drivers stamp what they capture."""

    kind = "live"
    real = True

    def now_ns(self) -> int:
        """Nanoseconds since some time before the session."""
        return time.monotonic_ns()

    def begin(self, time_ns: int) -> None:
        """It has begun long ago."""

    def advance(self, time_ns: int) -> None:
        """It goes on by itself."""

    def seconds_until(self, time_ns: int) -> float:
        """How long to wait for `time_ns`."""
        return max(0.0, (time_ns - time.monotonic_ns()) / 1e9)


def stopwatch_ns() -> int:
    """For measuring what work costs. Never a time stamp, and never part of a decision."""
    return time.perf_counter_ns()


def process_cpu_ns() -> int:
    """Processor time that this process and those of its children that have ended have used."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + round((children.ru_utime + children.ru_stime) * 1e9)


def thread_cpu_ns() -> int:
    """Processor time that this thread has used."""
    return time.thread_time_ns()


def wake_punctually() -> None:
    """Ask the kernel to end this thread's waits on time: Linux may else add 50 µs (timer slack)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
