"""Events by threshold on a low-passed channel (braking, acceleration, turn)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from fusedge.bundle.manifest import EventRule, Modality
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.stream import Window


@dataclass(frozen=True, slots=True)
class Event:
    """A change in an event. `timestamp_ns` is the capture time at which it came about.

    An event starts at level 1 or higher, may rise, and ends; `peak` is the extreme so far, signed, in
    the channel's unit. The three records of one event share `number`.
    """

    name: str
    number: int
    phase: Literal["start", "rise", "end"]
    timestamp_ns: int
    level: int
    peak: float
    duration_s: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "type": "event",
            "name": self.name,
            "number": self.number,
            "phase": self.phase,
            "t_s": round(self.timestamp_ns / NANOSECONDS, 3),
            "level": self.level,
            "peak": round(self.peak, 4),
            "duration_s": round(self.duration_s, 3),
        }


class EventDetector:
    """Contract: a level counts once the low-passed signal has stayed beyond it for `hold_s`. The event
    ends when the signal falls below `release` times the first level, or when it is not measured:
    on an invalid grid point, or in a window that never came. Where windows overlap, each grid
    point counts once.
    """

    def __init__(self, rule: EventRule, modality: Modality) -> None:
        self._rule = rule
        self._channel = [c.name for c in modality.channels].index(rule.channel)
        self._period_ns = round(NANOSECONDS / modality.rate_hz)
        # One-pole low-pass, exact for a signal held over a step: 1 - exp(-2 pi f dt).
        self._weight = -math.expm1(-2 * math.pi * rule.lowpass_hz / modality.rate_hz)
        self._hold_ns = to_ns(rule.hold_s)
        self._number = 0
        self._last_ns: int | None = None
        self._clear()

    def _clear(self) -> None:
        self._filtered: float | None = None
        self._since_ns: list[int | None] = [None] * len(self._rule.levels)
        self._level = 0
        self._start_ns = 0
        self._peak = 0.0

    def update(self, window: Window) -> list[Event]:
        """Take the samples of the next window; what began, rose or ended in it."""
        events: list[Event] = []
        values = window.values[0, :, self._channel].tolist()
        valid = window.valid[0, :, self._channel].tolist()
        last = len(values) - 1
        for index, (value, measured) in enumerate(zip(values, valid, strict=True)):
            time_ns = window.end_ns - (last - index) * self._period_ns
            if self._last_ns is not None:
                step_ns = time_ns - self._last_ns
                if 2 * step_ns < self._period_ns:
                    continue
                if 2 * step_ns > 3 * self._period_ns:
                    events += self._lose(self._last_ns + self._period_ns)
            self._last_ns = time_ns
            if measured:
                events += self._take(time_ns, value)
            else:
                events += self._lose(time_ns)
        return events

    def _lose(self, time_ns: int) -> list[Event]:
        ended = self._end(time_ns)
        self._clear()
        return ended

    def _take(self, time_ns: int, value: float) -> list[Event]:
        previous = value if self._filtered is None else self._filtered
        self._filtered = previous + self._weight * (value - previous)
        rule = self._rule
        signed = {
            "positive": self._filtered,
            "negative": -self._filtered,
            "both": abs(self._filtered),
        }[rule.direction]
        reached = 0
        for index, threshold in enumerate(rule.levels):
            since = self._since_ns[index]
            if signed < threshold:
                self._since_ns[index] = None
            elif since is None:
                self._since_ns[index] = since = time_ns
                if index == 0 and not self._level:
                    self._peak = 0.0
            if signed >= threshold and since is not None and time_ns - since >= self._hold_ns:
                reached = index + 1
        if self._level and signed < rule.release * rule.levels[0]:
            ended = self._end(time_ns)
            self._level = 0
            return ended
        if self._level or self._since_ns[0] is not None:
            self._peak = max(self._peak, self._filtered, key=abs)
        if reached > self._level:
            phase: Literal["start", "rise"] = "rise" if self._level else "start"
            if not self._level and self._since_ns[0] is not None:
                self._number += 1
                self._start_ns = self._since_ns[0]
            self._level = reached
            return [self._event(phase, time_ns)]
        return []

    def _end(self, time_ns: int) -> list[Event]:
        return [self._event("end", time_ns)] if self._level else []

    def _event(self, phase: Literal["start", "rise", "end"], time_ns: int) -> Event:
        duration_s = (time_ns - self._start_ns) / NANOSECONDS
        return Event(
            self._rule.name, self._number, phase, time_ns, self._level, self._peak, duration_s
        )
