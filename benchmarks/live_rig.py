"""Devices for the reference bundle in real time, slow parts and a sink that notes when decisions come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reference_bundle import write_reference_bundle
from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Manifest, Part
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import Clock, LiveClock, wake_punctually
from fusedge.runtime.decision import Decision
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.sink import Sink

TICK_HZ = 20.0
TICK_NS = to_ns(1 / TICK_HZ)
RATES_HZ = {"video": 30, "sound": 50, "sensor": 100}  # items a second
_DICE = np.random.default_rng(1)
DATA: dict[str, Any] = {
    "video": _DICE.integers(0, 256, (8, 112, 112, 3), np.uint8),
    "sound": _DICE.uniform(-0.5, 0.5, (8, 320, 1)).astype(np.float32),
    "sensor": _DICE.uniform(-10, 10, (64, 6)).astype(np.float32),
}


def live_bundle(path: Path, decision_rate_hz: float = TICK_HZ, **changes: Any) -> Bundle:
    """The reference bundle, fields of its manifest changed in memory."""
    bundle = write_reference_bundle(path, decision_rate_hz)
    bundle.manifest = bundle.manifest.model_copy(update=changes)
    return bundle


def with_hops(manifest: Manifest, hops_s: Mapping[str, float]) -> dict[str, Any]:
    """The change that gives encoders other periods."""
    return {
        "modalities": tuple(
            spec.model_copy(update={"hop_s": hops_s.get(spec.name, spec.hop_s)})
            for spec in manifest.modalities
        )
    }


class Device:
    """One modality, stamped when it is made. `fault` is called with a number before each item."""

    live = True
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        modality: str,
        now_ns: Callable[[], int],
        fault: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.uri = f"bench:{modality}"
        self.modalities = (modality,)
        self.channels: Mapping[str, tuple[str, ...]] = {}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self._now_ns, self._fault = now_ns, fault
        self._period_ns = to_ns(1 / RATES_HZ[modality])
        self._closed = threading.Event()

    def samples(self) -> Iterator[Sample]:
        (modality,) = self.modalities
        pool, number, due_ns = DATA[modality], 0, self._now_ns()
        while not self._closed.wait(max(0, due_ns - self._now_ns()) / 1e9):
            self._fault(number)
            now_ns = self._now_ns()
            yield Sample(modality, now_ns, now_ns, pool[number % len(pool)])
            number += 1
            due_ns += self._period_ns

    def close(self) -> None:
        self._closed.set()


def device(uri: str, wanted: object, now_ns: Callable[[], int]) -> Device:
    return Device(uri.partition(":")[2], now_ns)


def live_session(
    bundle: Bundle,
    *,
    clock: Clock | None = None,
    open_uri: Callable[..., Device] = device,
    **options: Any,
) -> Session:
    """A session over a device for each modality of the reference bundle."""
    return Session(
        bundle,
        [f"bench:{name}" for name in RATES_HZ],
        clock or LiveClock(),
        open_uri=open_uri,
        **options,
    )


class SlowPart:
    """A part that takes `seconds` more: asleep, as if a device computed, or computing itself again
    and again. A part that carries a state gets it one higher than it was.
    """

    provider = "slowed"

    def __init__(self, part: OnnxPart, seconds: float, *, busy: bool = False) -> None:
        self._part, self._seconds, self._busy = part, seconds, busy
        self.runs_s: list[float] = []
        self.states: list[float] = []

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        started = time.perf_counter()
        state = feeds.pop("state_in.steps", None)
        outputs: list[Any] = self._part.run(feeds)
        if self._busy:
            while time.perf_counter() - started < self._seconds:
                self._part.run(feeds)
        else:
            time.sleep(self._seconds)
        self.runs_s.append(time.perf_counter() - started)
        if state is None:
            return outputs
        self.states.append(float(state[0, 0]))
        return [*outputs, state + 1]


class Nothing:
    """A part that gives zeros, at once."""

    provider = "none"

    def __init__(self, part: Part) -> None:
        rows = 1 + len(RATES_HZ) if part.kind == "head" else 1
        self._outputs = [
            np.zeros([rows if isinstance(d, str) else d for d in spec.shape], np.float32)
            for spec in part.outputs
        ]

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        return self._outputs


class Arrivals(Sink):
    """Decisions, and when each reached the consumer."""

    name = "arrivals"

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.times_ns: list[int] = []

    def open(self, header: dict[str, Any]) -> None:
        pass

    def write(self, item: object) -> None:
        if isinstance(item, Decision):
            self.times_ns.append(time.monotonic_ns())
            self.decisions.append(item)

    def close(self, summary: dict[str, Any]) -> None:
        pass

    @property
    def delays_us(self) -> list[float]:
        """How long after its tick each decision came."""
        pairs = zip(self.times_ns, self.decisions, strict=True)
        return [(time_ns - decision.timestamp_ns) / 1e3 for time_ns, decision in pairs]


def bare_timer(seconds: float, period_ns: int = TICK_NS) -> list[int]:
    """When a process woke that did nothing but wait for every whole multiple of a period."""
    wake_punctually()
    times_ns: list[int] = []
    never = threading.Event()
    due_ns = (time.monotonic_ns() // period_ns + 1) * period_ns
    end_ns = due_ns + to_ns(seconds)
    while due_ns < end_ns:
        never.wait(max(0, due_ns - time.monotonic_ns()) / 1e9)
        times_ns.append(time.monotonic_ns())
        due_ns += period_ns
    return times_ns


@contextmanager
def bare_process() -> Iterator[Callable[[float], Future[list[int]]]]:
    """A process of its own, ready to run `bare_timer` while something else is measured."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(bare_timer, 0).result()
        yield lambda seconds: pool.submit(bare_timer, seconds)


def rsd_percent(times_ns: Sequence[int]) -> float:
    """Relative standard deviation of the intervals."""
    intervals = np.diff(times_ns)
    return float(100 * intervals.std() / intervals.mean())


def spread(times_ns: Sequence[int]) -> float:
    """The longest interval over the shortest."""
    intervals = np.diff(times_ns)
    return float(intervals.max() / intervals.min())
