"""Live sources and unruly parts and sinks, for sessions in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part
from fusedge.bundle.sample import Rejection, Sample
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.sinks.sink import Sink
from tests.tiny_bundle import modality, write_tiny_bundle


class LiveSource:
    """Gives a constant every `period_s`, stamped when it was made. `fault` is called before each."""

    live = True
    warnings: tuple[str, ...] = ()
    units: Mapping[str, tuple[str, ...]] = {}

    def __init__(
        self,
        modality: str,
        now_ns: Callable[[], int],
        *,
        period_s: float = 0.02,
        fault: Callable[[int], Any] = lambda number: None,
    ) -> None:
        self.uri = f"live:{modality}"
        self.modalities = (modality,)
        self._now_ns, self._period_s, self._fault = now_ns, period_s, fault
        self._closed = threading.Event()

    @property
    def channels(self) -> Mapping[str, tuple[str, ...]]:
        return {self.modalities[0]: ("c0", "c1")}

    def samples(self) -> Iterator[Sample | Rejection]:
        number = 0
        while not self._closed.wait(self._period_s):
            self._fault(number)
            number += 1
            now_ns = self._now_ns()
            yield Sample(self.modalities[0], now_ns, now_ns, np.full(2, 0.4, np.float32))

    def close(self) -> None:
        self._closed.set()


class RecordedSource:
    """Gives samples that it was made with."""

    uri, live, warnings = "list:", False, ()
    modalities = ("fast", "slow")
    channels: Mapping[str, tuple[str, ...]] = {}
    units: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, items: Sequence[Sample]) -> None:
        self._items = items

    def samples(self) -> Iterator[Sample]:
        yield from self._items

    def close(self) -> None:
        pass


def write_quick_bundle(path: Path, rate_hz: float = 20, hop_s: float = 0.05) -> Bundle:
    """The tiny bundle with windows every 50 ms, or as often as is said."""
    quick: dict[str, Any] = {
        "rate_hz": 20,
        "window_s": 0.1,
        "hop_s": hop_s,
        "max_hold_s": 0.1,
        "latency_s": 0,
        "lateness_s": 0.02,
        "max_age_s": 0.3,
        "return_windows": 1,
    }
    return write_tiny_bundle(
        path,
        modalities=(modality("fast", **quick), modality("slow", **quick)),
        events=(),
        decision_rate_hz=rate_hz,
    )


class Stuck:
    """A call that does not come back until the test ends, or is told to."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1
        self.released.wait(20)


class UnrulyPart:
    """A part that does what `fault` does before it computes."""

    def __init__(self, part: OnnxPart, fault: Callable[[], Any]) -> None:
        self.part, self.provider, self._fault = part, part.provider, fault

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        self._fault()
        return self.part.run(feeds)


def unruly(bundle: Bundle, faults: Mapping[str, Callable[[], Any]]) -> Callable[[Part], Any]:
    """A loader of parts, some of which have a fault."""

    def load(part: Part) -> Any:
        loaded = OnnxPart(bundle, part, "cpu", "fp32")
        return UnrulyPart(loaded, faults[part.name]) if part.name in faults else loaded

    return load


class UnrulySink(Sink):
    """Does what `fault` does before it takes an item."""

    def __init__(self, fault: Callable[[int], Any] = lambda number: None) -> None:
        self.name = "unruly"
        self._fault = fault
        self.items: list[Any] = []
        self.calls = self.lost_items = 0

    def open(self, header: dict[str, Any]) -> None:
        self.header = header

    def write(self, item: Decision | Event | Entry) -> None:
        self.calls += 1
        self._fault(self.calls)
        self.items.append(item)

    def lost(self, count: int) -> None:
        self.lost_items += count

    def close(self, summary: dict[str, Any]) -> None:
        self.summary = summary


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, and what it gives."""
    started = time.monotonic()
    result = function()
    return time.monotonic() - started, result
