"""Signals for the tiny bundle, and the loop of a session without its sources and sinks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.part import Job
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


class Machine:
    """On which a run of a part takes `cost_s` of the session's time."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.cost_s = cost_s
        self.now_ns = 0

    def at(self, due_ns: int) -> int:
        """The present when what is due at a time is looked at."""
        self.now_ns = max(self.now_ns, due_ns)
        return self.now_ns

    def run(self, job: Job) -> list[Any]:
        """Compute, and let the time pass."""
        outputs = job.run()
        self.now_ns += to_ns(self.cost_s)
        job.part.cost_ns = to_ns(self.cost_s)
        return outputs


class Played:
    """What a pipeline made of some samples."""

    def __init__(
        self,
        bundle: Bundle,
        items: Iterable[Sample | Rejection],
        machine: Machine | None = None,
        after_step: Callable[[Pipeline, list[Decision | Event]], object] = lambda *_: None,
        **options: Any,
    ) -> None:
        machine = machine or Machine()
        self.pipeline = pipeline = Pipeline(bundle, **options)
        self.results: list[Decision | Event] = []
        waiting = deque(items)
        pipeline.start(waiting[0].arrival_ns)
        while waiting:
            due = pipeline.next_due_ns
            assert due is not None
            now_ns = machine.at(min(due, waiting[0].arrival_ns))
            while waiting and waiting[0].arrival_ns <= now_ns:
                pipeline.push(waiting.popleft())
                assert pipeline.balanced
            due = pipeline.next_due_ns
            if due is None or due > now_ns or not waiting:
                continue
            step = pipeline.choose(now_ns)
            assert step is not None, "what is due can be done when nothing runs"
            job = pipeline.begin(step, now_ns)
            assert pipeline.balanced
            if job is not None:
                outputs = machine.run(job)
                pipeline.finish(job, outputs, machine.now_ns)
            pipeline.tidy()
            results = pipeline.take_results()
            self.results += results
            after_step(pipeline, results)
            assert pipeline.balanced

    @property
    def decisions(self) -> list[Decision]:
        return [result for result in self.results if isinstance(result, Decision)]

    @property
    def events(self) -> list[Event]:
        return [result for result in self.results if isinstance(result, Event)]

    def json(self) -> list[dict[str, Any]]:
        return [result.as_dict() for result in self.results]
