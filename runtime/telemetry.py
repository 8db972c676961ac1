"""What the machine does while sessions run: temperatures, clocks, power, memory, throttling.

A thread reads them once a second, in real time only: a virtual clock stands for no machine. It keeps the
least, mean, greatest and newest of each, never a list, and says what the user must know when it begins.
Nothing of it reaches a decision.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Protocol

from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.targets.telemetry.reading import MAX_NAMES, Reading
from fusedge.devices.targets.telemetry.sampler import Sampler
from fusedge.runtime.clock import LiveClock, stopwatch_ns, thread_cpu_ns

PERIOD_S = 1.0
FIRST_S = 0.5  # to wait for the first reading, which imports packages, before anything is timed
LOW_MEMORY = 0.05  # of all: less is said
MAX_NOTES = 20
_MEMORIES = {"ram": "memory", "gpu": "memory of the GPU"}


class Machine(Protocol):
    """What is read, see Sampler."""

    def read(self) -> Reading:
        """The machine now."""

    def abandon(self) -> None:
        """Let go what can be let go while a `read` hangs."""

    def close(self) -> None:
        """Give all back."""


class Range:
    """Least, mean, greatest and newest of a number that was seen time and again."""

    def __init__(self, value: float) -> None:
        self.least = self.greatest = self.newest = self._sum = value
        self._count = 1

    def add(self, value: float) -> None:
        """See one more."""
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)
        self.newest = value
        self._sum += value
        self._count += 1

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        numbers = (self.least, self._sum / self._count, self.greatest, self.newest)
        return dict(
            zip(("min", "mean", "max", "last"), (round(n, 2) for n in numbers), strict=True)
        )


class Telemetry:
    """Reads `machine`, this one by default, from `start` to `stop`. To be run once.

    `snapshot` may be called at any time and from any thread, as may `take_notices`.
    """

    def __init__(self, machine: Machine | None = None, period_s: float = PERIOD_S) -> None:
        self._machine = machine or Sampler(LiveClock().now_ns)
        self._period_s = period_s
        self._thread = threading.Thread(target=self._read, name="telemetry", daemon=True)
        self._stopping, self._begun = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._ranges: dict[str, dict[str, Range]] = {}
        self._newest: Reading | None = None
        self._mode: str | None = None  # the last one known: a reading may have none
        self._readings = self._cpu_ns = self._wall_ns = self._start_ns = 0
        self._throttled: dict[str, dict[str, float]] = {}
        self._throttled_s = 0.0
        self._notes: dict[str, None] = {}  # each once, in order
        self._low: set[str] = set()
        self._notices: deque[str] = deque(maxlen=MAX_NOTES)

    def start(self) -> None:
        """Begin, and wait a little for the first reading."""
        self._thread.start()
        self._begun.wait(FIRST_S)

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Whether it has ended in time; else a reading hangs, and it is left behind."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._machine.abandon()
            with self._lock:
                self._note("a reading hangs, so the telemetry was left behind")
        return not self._thread.is_alive()

    def take_notices(self) -> list[str]:
        """What has begun since the last call and the user must know, a line each."""
        with self._lock:
            taken = list(self._notices)
            self._notices.clear()
        return taken

    def snapshot(self) -> dict[str, Any]:
        """What is known so far. Ranges are by kind with its unit, and name, as in Reading.quantities;
        `limits` are the newest; `throttled_s` is None where nothing tells of throttling.
        """
        with self._lock:
            newest, readings = self._newest or Reading(), self._readings
            tells = newest.throttling is not None or bool(self._throttled)
            return {
                "readings": readings,
                "period_s": self._period_s,
                "power_mode": newest.power_mode,
                "throttling": newest.throttling,
                "throttled_s": round(self._throttled_s, 1) if tells else None,
                "throttle_reasons": {
                    reason: {name: round(value, 1) for name, value in times.items()}
                    for reason, times in self._throttled.items()
                },
                **{
                    kind: {name: values.as_dict() for name, values in ranges.items()}
                    for kind, ranges in self._ranges.items()
                },
                "limits": _limits(newest),
                "cpu_ms_per_reading": round(self._cpu_ns / 1e6 / max(readings, 1), 3),
                "wall_ms_per_reading": round(self._wall_ns / 1e6 / max(readings, 1), 3),
                "notes": list(self._notes),
            }

    def _read(self) -> None:
        try:
            while True:
                wall_ns, cpu_ns = stopwatch_ns(), thread_cpu_ns()
                reading = self._machine.read()
                with self._lock:
                    if self._readings:  # the first one imports and opens
                        self._cpu_ns += thread_cpu_ns() - cpu_ns
                        self._wall_ns += stopwatch_ns() - wall_ns
                    self._take(reading)
                self._begun.set()
                if self._stopping.wait(self._period_s):
                    return
        finally:
            self._begun.set()
            self._machine.close()

    def _take(self, reading: Reading) -> None:
        last = self._newest
        if last is None:
            self._start_ns = reading.time_ns
        for kind, values in reading.quantities().items():
            ranges = self._ranges.setdefault(kind, {})
            for name, value in values.items():
                if name in ranges:
                    ranges[name].add(value)
                elif len(ranges) < MAX_NAMES:
                    ranges[name] = Range(value)
        for note in reading.notes:
            self._note(note)
        self._watch_throttling(reading, last)
        self._watch_memory(reading)
        self._watch_mode(reading)
        self._newest = reading
        self._readings += 1

    def _watch_throttling(self, reading: Reading, last: Reading | None) -> None:
        if not reading.throttling:
            return
        since_last_s = (reading.time_ns - last.time_ns) / NANOSECONDS if last else 0.0
        since_s = (reading.time_ns - self._start_ns) / NANOSECONDS
        self._throttled_s += since_last_s
        for reason in reading.throttle_reasons:
            times = self._throttled.get(reason)
            if times is None:
                self._throttled[reason] = {"first_s": since_s, "seconds": since_last_s}
                since = f"since {since_s:.0f} s after the start" if last else "from the start"
                self._notices.append(f"the device throttles {since}: {reason}")
            else:
                times["seconds"] += since_last_s

    def _watch_mode(self, reading: Reading) -> None:
        before, now = self._mode, reading.power_mode
        self._mode = now or before
        if before and now and before != now:
            self._notices.append(
                f"the power mode has changed from {before} to {now}: clocks and cores are others, and "
                "engines are tuned for the mode that they were built in"
            )

    def _watch_memory(self, reading: Reading) -> None:
        for name, title in _MEMORIES.items():
            memory = reading.memory.get(name)
            share = None if memory is None else memory.available_share
            if share is not None and share < LOW_MEMORY and name not in self._low:
                self._low.add(name)
                self._notices.append(f"the {title} is nearly full: {share:.1%} is left")

    def _note(self, note: str) -> None:
        if len(self._notes) < MAX_NOTES:
            self._notes[note] = None


def _limits(reading: Reading) -> dict[str, dict[str, float]]:
    clocks = {name: clock.limit_mhz for name, clock in reading.frequencies.items()}
    memory = {name: memory.total_bytes for name, memory in reading.memory.items()}
    return {
        "frequency_mhz": {name: limit for name, limit in clocks.items() if limit is not None},
        "memory_bytes": {name: total for name, total in memory.items() if total is not None},
    }
