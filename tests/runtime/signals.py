"""Signals for the tiny bundle, and the loop of a session without its sources and sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import Clock, VirtualClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.pipeline import Pipeline

PERIOD_S = {"fast": 0.1, "slow": 1.0}
LATENCY_S = {"fast": 0.0, "slow": 0.5}


def signal(
    modality: str,
    value: float | Callable[[float], float],
    start_s: float,
    end_s: float,
    *,
    delay_s: Callable[[], float] = lambda: 0.0,
) -> list[Sample]:
    """Samples on the modality's own grid, captured after `start_s` and up to `end_s`."""
    period, latency = PERIOD_S[modality], LATENCY_S[modality]
    samples = []
    for index in range(round(start_s / period) + 1, round(end_s / period) + 1):
        time_s = index * period
        level = value(time_s) if callable(value) else value
        stamp = to_ns(time_s + latency)
        arrival = stamp + to_ns(delay_s())
        samples.append(Sample(modality, stamp, arrival, np.full(2, level, np.float32)))
    return samples


def by_arrival(*signals: Iterable[Sample]) -> list[Sample]:
    """All samples in the order in which they arrive."""
    return sorted((s for one in signals for s in one), key=lambda s: s.arrival_ns)


class Played:
    """What a pipeline made of some samples."""

    def __init__(
        self,
        bundle: Bundle,
        items: Iterable[Sample | Rejection],
        clock: Clock | None = None,
        after_step: Callable[[Pipeline, list[Decision | Event]], object] = lambda *_: None,
    ) -> None:
        clock = clock or VirtualClock()
        self.pipeline = Pipeline(bundle, clock)
        self.results: list[Decision | Event] = []
        for item in items:
            while (due := self.pipeline.next_due_ns) is not None and due < item.arrival_ns:
                clock.wait_until(due)
                results = self.pipeline.step()
                self.results += results
                after_step(self.pipeline, results)
                assert self.pipeline.ledger.balanced
            clock.wait_until(item.arrival_ns)
            self.pipeline.push(item)
            assert self.pipeline.ledger.balanced

    @property
    def decisions(self) -> list[Decision]:
        return [result for result in self.results if isinstance(result, Decision)]

    @property
    def events(self) -> list[Event]:
        return [result for result in self.results if isinstance(result, Event)]

    def json(self) -> list[dict[str, Any]]:
        return [result.as_dict() for result in self.results]
