"""A test that keeps real time is marked `real_time` and runs alone: a busy machine would make it late.

Which these are is not left to memory alone: `Waits` sees who waits by a clock of this machine, `MEASURES`
who asserts that something took no longer than so long. What a command does in a process of its own is
seen by neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fusedge.runtime.clock import LiveClock, PacedClock

MARKER = "real_time"
MEASURES = re.compile(r"assert[^\n]* time\.(?:monotonic|perf_counter)(?:_ns)?\(\) - \w+ <")


class Waits:
    """How often a clock of this machine was asked how long to wait, since the last `unmarked`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._count = 0
        for clock in (LiveClock, PacedClock):
            patch.setattr(clock, "seconds_until", self._noted(clock.seconds_until))

    def _noted(self, asked: Callable[..., float]) -> Callable[..., float]:
        def seconds_until(clock: LiveClock | PacedClock, time_ns: int) -> float:
            self._count += 1
            return asked(clock, time_ns)

        return seconds_until

    def unmarked(self, marked: bool) -> str:
        """What is wrong with a test that has ended; nothing if it is `marked` or never waited."""
        count, self._count = self._count, 0
        return "" if marked or not count else f"it keeps real time: mark it with {MARKER}"
