"""How old what a decision rests on becomes where an encoder is too slow: `python -m benchmarks.overload`.

The camera encoder (a window every 67 ms) takes 3.1 times as long as its period, asleep, as if another
device computed (at 3 times, runs keep step with the ticks, so that ages tell of no trend); sound, sensor
and decisions at 20 Hz go on beside it, on a crew of two, in real time. Once it is stateless, once it
carries a state that counts its steps. Measured are

- freshness: how old the newest sample of a window is when its embedding comes. Asked: at most a
  period, the time a window waits for late samples, and the longest run;
- age at a decision: of the embedding that it rests on, which stands until the next comes: a run more;
- the trend of either, with a 95 % confidence interval over the means of 12 stretches. In `seconds` of
  real time the interval is too wide to judge by; so the same pipeline is also driven for `hours` of
  simulated time.

To each bound in real time belong 5 ms for a thread to wake on a machine that does other things.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, exactly, main, told
from benchmarks.live_rig import (
    Arrivals,
    Nothing,
    SlowPart,
    bare_process,
    live_bundle,
    live_session,
    rsd_percent,
)
from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part, StatePair, TensorSpec
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime.decision import Decision
from fusedge.runtime.journal import Cut, Entry, Finish
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.pipeline import Pipeline
from fusedge.runtime.runner import run
from fusedge.runtime.soak import slope

SLOWED = "video"
MACHINE_MS = 5.0
SETTLED_S = 1.0
HOURS_A_DAY = 24

Bare = Callable[[float], Future[list[int]]]


class Ages(NamedTuple):
    """Of embeddings as they come, and at decisions: pairs of a time in s and an age in ms."""

    fresh: list[tuple[float, float]]
    decided: list[tuple[float, float]]


class Freshness(Arrivals):
    """Notes how old each window of the slow encoder is when its run ends."""

    journal = True

    def __init__(self) -> None:
        super().__init__()
        self.fresh: list[tuple[float, float]] = []
        self._end_ns = 0

    def write(self, item: Decision | Entry | Any) -> None:
        super().write(item)
        if isinstance(item, Cut) and item.modality == SLOWED:
            self._end_ns = item.end_ns
        elif isinstance(item, Finish) and item.part == f"{SLOWED}_encoder":
            self.fresh.append((item.now_ns / 1e9, (item.now_ns - self._end_ns) / 1e6))


def stateful(bundle: Bundle) -> Bundle:
    """The bundle, its slow encoder with a state."""

    def changed(part: Part) -> Part:
        if part.modality != SLOWED:
            return part
        state: dict[str, Any] = {"dtype": "float32", "shape": ("batch", 1)}
        return part.model_copy(
            update={
                "inputs": (
                    *part.inputs,
                    TensorSpec(name="state_in.steps", role="state_in", **state),
                ),
                "outputs": (
                    *part.outputs,
                    TensorSpec(name="state_out.steps", role="state_out", **state),
                ),
                "state": (
                    StatePair(input="state_in.steps", output="state_out.steps", initial="zeros"),
                ),
            }
        )

    other = Bundle(bundle.path)
    parts = tuple(changed(part) for part in bundle.manifest.parts)
    other.manifest = bundle.manifest.model_copy(update={"parts": parts})
    return other


def ages_of(decisions: list[Decision]) -> list[tuple[float, float]]:
    shares = [(d.timestamp_ns / 1e9, d.modalities[SLOWED].age_s) for d in decisions]
    return [(time_s, 1e3 * age_s) for time_s, age_s in shares if age_s is not None]


def settled(pairs: list[tuple[float, float]]) -> NDArray[np.float64]:
    """float64 `[N, 2]` without the beginning."""
    rows: NDArray[np.float64] = np.array(pairs)
    kept: NDArray[np.float64] = rows[rows[:, 0] > rows[0, 0] + SETTLED_S]
    return kept


def trend(name: str, pairs: list[tuple[float, float]], judged: bool) -> Figure:
    """In ms an hour; missed where it is not sure to be within 1 ms/h of 0."""
    rows = settled(pairs)
    middle, low, high = (value / HOURS_A_DAY for value in slope(rows[:, 0], rows[:, 1]))
    name, text = f"  {name}, trend", f"{middle:.3g} ({low:.3g} to {high:.3g})"
    if not judged:
        return told(name, text, "ms/h")
    return Figure(name, text, "ms/h", "within ± 1", low >= -1 and high <= 1)


def in_real_time(
    title: str, bundle: Bundle, factor: float, seconds: float, bare: Bare
) -> Iterator[Figure]:
    spec = bundle.manifest.modality(SLOWED)
    original = Bundle(bundle.path)
    slow: list[SlowPart] = []

    def load(part: Part) -> OnnxPart | SlowPart:
        of_graph = next(p for p in original.manifest.parts if p.name == part.name)
        loaded = OnnxPart(original, of_graph, "cpu", "fp32")
        if part.modality != SLOWED:
            return loaded
        slow.append(SlowPart(loaded, factor * spec.hop_s))
        return slow[-1]

    session = live_session(bundle, load=load)
    sink = Freshness()
    beside = bare(seconds)
    threading.Timer(seconds, session.stop).start()
    report = run(session, [sink], threads=2)
    (part,) = slow
    longest_ms = 1e3 * max(part.runs_s)
    bound_ms = 1e3 * (spec.hop_s + spec.lateness_s) + longest_ms + MACHINE_MS
    ages = Ages(sink.fresh, ages_of(sink.decisions))
    yield told(f"{title}: longest run", longest_ms, "ms")
    yield from largest(ages, bound_ms, longest_ms)
    yield trend("age at a decision", ages.decided, judged=False)
    yield exactly("  ticks skipped", report.summary["ticks_skipped"], 0)
    present = [d.modalities[SLOWED].present for d in sink.decisions[20:]]
    yield exactly("  decisions without the slow modality", present.count(False), 0)
    given_up = report.summary["parts"][f"{SLOWED}_encoder"]["runs"]["dropped"]["overload"]
    yield told("  windows given up", given_up)
    yield at_most("  tick to tick, rsd", rsd_percent(sink.times_ns[5:]), 5, "%")
    yield told("  of a bare timer at the same time", rsd_percent(beside.result()), "%")
    if part.states:
        steps = [after - before for before, after in pairwise(part.states)]
        yield exactly("  runs that found the state of the one before", steps.count(1), len(steps))
        resets = report.summary["modalities"][SLOWED]["state_resets"]
        yield exactly("  resets of the state", resets, 0)
    yield exactly("  ledger balances", str(report.summary["ledger_balanced"]), "True")


def largest(ages: Ages, bound_ms: float, run_ms: float) -> Iterator[Figure]:
    fresh, decided = (float(settled(pairs)[:, 1].max()) for pairs in ages)
    yield at_most("  freshness, largest", fresh, bound_ms, "ms")
    yield at_most("  age at a decision, largest", decided, bound_ms + run_ms, "ms")


class Machine:
    """The pipeline alone, where a run of the slow encoder takes `run_ns` and all else nothing."""

    def __init__(self, bundle: Bundle, run_ns: int) -> None:
        self.ages = Ages([], [])
        self.pipeline = Pipeline(bundle, concurrent=True, load=Nothing)
        self._run_ns = run_ns
        self._slow = self.pipeline.lanes[SLOWED].part
        self._slow.cost_ns = run_ns
        self._end_ns = self._ready_ns = 0

    def until(self, time_ns: int) -> None:
        """Do what is due up to a time."""
        pipeline = self.pipeline
        while True:
            due_ns = [time_ns + 1 if pipeline.next_due_ns is None else pipeline.next_due_ns]
            if self._slow.job is not None:
                due_ns.append(self._ready_ns)
            now_ns = min(due_ns)
            if now_ns > time_ns:
                return
            if self._slow.job is not None and self._ready_ns == now_ns:
                pipeline.finish(self._slow.job, self._slow.backend.run({}), now_ns)
                self.ages.fresh.append((now_ns / 1e9, (now_ns - self._end_ns) / 1e6))
            self._work(now_ns)

    def _work(self, now_ns: int) -> None:
        pipeline = self.pipeline
        while (step := pipeline.choose(now_ns)) is not None:
            job = pipeline.begin(step, now_ns)
            if job is None:
                continue
            if isinstance(step, Cut) and step.modality == SLOWED:
                self._end_ns, self._ready_ns = step.end_ns, now_ns + self._run_ns
            else:
                pipeline.finish(job, job.backend.run({}), now_ns)
        pipeline.tidy()
        decisions = [r for r in pipeline.take_results() if isinstance(r, Decision)]
        self.ages.decided.extend(ages_of(decisions))


def simulated(bundle: Bundle, factor: float, hours: float) -> Iterator[Figure]:
    spec = bundle.manifest.modality(SLOWED)
    run_ns = to_ns(factor * spec.hop_s)
    machine = Machine(bundle, run_ns)
    machine.pipeline.start(0)
    for item in SyntheticSource("synthetic:", bundle.manifest.modalities, 3600 * hours).samples():
        machine.until(item.arrival_ns)
        machine.pipeline.push(item)
    yield told(f"simulated, {hours:g} h: run", run_ns / 1e6, "ms")
    yield from largest(
        machine.ages, 1e3 * (spec.hop_s + spec.lateness_s) + run_ns / 1e6, run_ns / 1e6
    )
    yield trend("freshness", machine.ages.fresh, judged=True)
    yield trend("age at a decision", machine.ages.decided, judged=True)
    yield exactly("  ticks skipped", machine.pipeline.statistics()["ticks_skipped"], 0)
    yield exactly("  ledger balances", str(machine.pipeline.balanced), "True")


def measure(arguments: argparse.Namespace) -> list[Figure]:
    factor, seconds = arguments.factor, arguments.seconds
    with tempfile.TemporaryDirectory() as folder, bare_process() as bare:
        bundle = live_bundle(Path(folder) / "b.fusedge")
        specs = tuple(m.model_copy(update={"max_age_s": 1.0}) for m in bundle.manifest.modalities)
        bundle.manifest = bundle.manifest.model_copy(update={"modalities": specs})
        return [
            *in_real_time("stateless", bundle, factor, seconds, bare),
            *in_real_time("stateful", stateful(bundle), factor, seconds, bare),
            *simulated(bundle, factor, arguments.hours),
        ]


if __name__ == "__main__":
    main(__doc__, measure, factor=3.1, seconds=15.0, hours=0.5)
