"""The pipeline as a state machine: which step comes next, and that its journal makes it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime import pipeline as pipelines
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Cut, Entry, Finish, Step, Tick
from fusedge.runtime.part import MAX_STUCK, Failure, Job
from fusedge.runtime.pipeline import LIGHT_NS, WAIT_NS, Pipeline
from tests.runtime.signals import by_arrival, signal
from tests.tiny_bundle import write_tiny_bundle

MS = 1_000_000
POISON = 66.0  # a window with this value in it has an embedding that is not finite


class Computed:
    """The tiny bundle's parts in numpy."""

    provider = "numpy"

    def __init__(self, part: Part) -> None:
        self._encoder = part.kind == "encoder"

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        if self._encoder:
            window = feeds["window"] * feeds["valid"]
            mean = window.mean(axis=(1, 2), dtype=np.float32)[:, None]
            if (window == POISON).any():
                mean = mean * np.float32(np.nan)
            total = feeds["state_in.total"] + mean
            return [np.concatenate([mean, total], axis=1), total]
        votes = [feeds[f"embedding.{name}"][:, :1] for name in ("fast", "slow")]
        vote = sum(v * feeds["presence"][:, i : i + 1] for i, v in enumerate(votes))
        return [np.concatenate([vote, -vote], axis=1).astype(np.float32)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge")


def make(bundle: Bundle, *, concurrent: bool = True, **options: Any) -> Pipeline:
    pipeline = Pipeline(bundle, load=Computed, concurrent=concurrent, **options)
    pipeline.start(1)  # the first tick is at 1 s
    return pipeline


def filled(bundle: Bundle, until_s: float, **options: Any) -> Pipeline:
    """A pipeline that was given samples and has done nothing yet."""
    pipeline = make(bundle, **options)
    for item in by_arrival(signal("fast", 0.4, 0, until_s), signal("slow", 0.5, 0, until_s)):
        pipeline.push(item)
    return pipeline


def at(seconds: float) -> int:
    return to_ns(seconds)


def do(pipeline: Pipeline, step: Step | None, now_s: float) -> Job | None:
    """Take a step that is there and compute it at once."""
    assert step is not None
    job = pipeline.begin(step, at(now_s))
    if job is not None:
        pipeline.finish(job, job.run(), at(now_s))
    assert pipeline.balanced
    return job


def drain(pipeline: Pipeline, now_s: float) -> list[str]:
    """All that is due, in order: `fast@0.5` is a window, `tick@1` a decision."""
    order = []
    while (step := pipeline.choose(at(now_s))) is not None:
        what, time_ns = (
            ("tick", step.tick_ns) if isinstance(step, Tick) else (step.modality, step.end_ns)
        )
        order.append(f"{what}@{time_ns / 1e9:g}")
        do(pipeline, step, now_s)
    return order


def make_heavy(pipeline: Pipeline, *names: str) -> None:
    for name in names:
        pipeline.lanes[name].part.cost_ns = 5 * LIGHT_NS


def test_windows_go_in_the_order_in_which_they_are_due_and_before_their_tick(
    bundle: Bundle,
) -> None:
    pipeline = filled(bundle, 2.4)
    # A fast window is cut 0.1 s after its end, a slow one 0.6 s; the tick of 2 s is not skipped.
    assert drain(pipeline, 1.0) == ["fast@0.5", "tick@1"]
    assert drain(pipeline, 2.0) == ["fast@1", "fast@1.5", "slow@1", "tick@2"]


@pytest.mark.parametrize("concurrent", [True, False])
def test_a_decision_does_not_wait_for_a_heavy_encoder_where_another_thread_can_run_it(
    bundle: Bundle, concurrent: bool
) -> None:
    pipeline = filled(bundle, 1.5, concurrent=concurrent)
    make_heavy(pipeline, "fast")
    order = ["tick@1", "fast@0.5"] if concurrent else ["fast@0.5", "tick@1"]
    assert drain(pipeline, 1.0) == order


def test_light_windows_go_before_heavy_ones(bundle: Bundle) -> None:
    pipeline = filled(bundle, 2.4)
    make_heavy(pipeline, "fast")
    assert drain(pipeline, 2.0)[:3] == ["tick@2", "slow@1", "fast@0.5"]  # that of 1 s is skipped


def test_without_heavy_work_heavy_windows_wait(bundle: Bundle) -> None:
    pipeline = filled(bundle, 2.4)
    make_heavy(pipeline, "fast")
    assert pipeline.next_due(True) == at(0.6) and pipeline.next_due(False) == at(1.0)
    assert pipeline.choose(at(0.9), heavy=False) is None
    assert pipeline.choose(at(0.9)) == Cut("fast", at(0.5), 0, "")
    assert isinstance(pipeline.choose(at(1.0), heavy=False), Tick)


def test_a_window_that_is_due_after_a_tick_does_not_delay_it(bundle: Bundle) -> None:
    pipeline = filled(bundle, 1.5)
    assert drain(pipeline, 0.9) == ["fast@0.5"]
    assert drain(pipeline, 1.15) == ["tick@1", "fast@1"]


def test_a_tick_waits_for_a_light_job_but_not_for_long(bundle: Bundle) -> None:
    pipeline = filled(bundle, 1.5)
    begun = at(1.0) - MS
    step = pipeline.choose(begun)
    assert step == Cut("fast", at(0.5), 0, "")
    job = pipeline.begin(step, begun)
    assert job is not None and pipeline.computing
    assert pipeline.choose(at(1.0)) is None
    assert pipeline.choose(begun + WAIT_NS - 1) is None
    assert pipeline.choose(begun + WAIT_NS) == Tick(at(1.0), 0, "", begun + WAIT_NS)
    make_heavy(pipeline, "fast")
    assert isinstance(pipeline.choose(at(1.0)), Tick)
    pipeline.lanes["fast"].part.cost_ns = 0
    pipeline.finish(job, job.run(), at(1.0))
    assert drain(pipeline, 1.0) == ["tick@1"]
    (decision,) = pipeline.take_results()
    assert isinstance(decision, Decision) and decision.modalities["fast"].present


def test_a_part_has_one_job_at_a_time(bundle: Bundle) -> None:
    pipeline = filled(bundle, 3.0)
    assert drain(pipeline, 0.9) == ["fast@0.5"]  # for the decision to rest on
    tick = pipeline.choose(at(1.0))
    assert isinstance(tick, Tick)
    head = pipeline.begin(tick, at(1.0))
    assert head is not None
    step = pipeline.choose(at(1.1))
    assert step == Cut("fast", at(1.0), 0, "")
    job = pipeline.begin(step, at(1.1))
    assert job is not None
    for now_s in (1.1, 1.5, 1.65):
        chosen = pipeline.choose(at(now_s))
        assert chosen is None or (isinstance(chosen, Cut) and chosen.modality == "slow")
    slow = pipeline.choose(at(1.6))
    assert slow == Cut("slow", at(1.0), 0, "")
    do(pipeline, slow, 1.6)
    assert pipeline.choose(at(2.0)) is None and pipeline.next_due_ns == at(2.6)
    pipeline.finish(head, head.run(), at(2.0))
    pipeline.finish(job, job.run(), at(2.0))
    assert pipeline.balanced and not pipeline.computing


@pytest.mark.parametrize(
    ("cost_ns", "cuts"),
    [
        (0, [("fast", 0.5 * n, 0) for n in range(1, 5)]),
        (at(0.5) // 4, [("fast", 0.5 * n, 0) for n in range(1, 5)]),
        (at(0.5) // 4 + 1, [("fast", 2.0, 3)]),
    ],
)
def test_windows_that_wait_are_made_up_for_only_where_that_takes_less_than_a_hop(
    bundle: Bundle, cost_ns: int, cuts: list[tuple[str, float, int]]
) -> None:
    pipeline = filled(bundle, 2.1)
    part = pipeline.lanes["fast"].part
    done = []
    part.cost_ns = cost_ns
    while (step := pipeline.choose(at(2.1))) is not None:
        if isinstance(step, Cut) and step.modality == "fast":
            done.append((step.modality, step.end_ns / 1e9, step.skipped))
        do(pipeline, step, 2.1)
        part.cost_ns = cost_ns  # whatever it was on this machine
    assert done == cuts
    assert part.account.dropped.get("overload", 0) == sum(skipped for _, _, skipped in cuts)
    samples = pipeline.ledger.accounts["fast"].dropped.get("overload", 0)
    assert samples == 5 * sum(skipped for _, _, skipped in cuts)


def test_skipped_ticks_and_waiting_windows_take_turns(bundle: Bundle) -> None:
    pipeline = filled(bundle, 12.0)
    order: list[object] = []
    for now_s in (5.05, 9.05, 9.06, 12.05, 12.06, 12.07):
        step = pipeline.choose(at(now_s))
        order.append(
            (step.tick_ns / 1e9, step.skipped) if isinstance(step, Tick) else type(step).__name__
        )
        do(pipeline, step, now_s)
    # The newest tick first, then a window although a tick is due and skipped, and so on.
    assert order == [(5.0, 4), "Cut", (9.0, 3), "Cut", (12.0, 2), "Cut"]
    # All windows that were cut are too old by then for a decision to rest on them.
    assert pipeline.head_part.account.dropped == {"overload": 9, "nothing_present": 3}
    assert [d.timestamp_ns for d in pipeline.take_results()] == [at(5), at(9), at(12)]


def fail(pipeline: Pipeline, now_s: float, tick: bool = False) -> None:
    """The next step ends in a failure."""
    step = pipeline.choose(at(now_s))
    assert isinstance(step, Tick) == tick
    job = pipeline.begin(step, at(now_s))  # type: ignore[arg-type]
    assert job is not None
    pipeline.finish(job, Failure("raised", "broken"), at(now_s))


def test_windows_of_a_part_that_is_down_are_given_up_at_once(bundle: Bundle) -> None:
    pipeline = filled(bundle, 3.0)
    fail(pipeline, 0.6)
    part = pipeline.lanes["fast"].part
    assert part.down and part.account.dropped == {"raised": 1}
    assert pipeline.choose(at(1.12)) == Tick(at(1.0), 0, "", at(1.12))
    drain(pipeline, 1.1)
    assert part.account.dropped == {"raised": 1, "part_failed": 1}
    step = pipeline.choose(at(2.7), heavy=False)
    while not (isinstance(step, Cut) and step.modality == "fast"):
        do(pipeline, step, 2.7)
        step = pipeline.choose(at(2.7))
    assert step == Cut("fast", at(2.5), 2, "part_failed")
    assert pipeline.begin(step, at(2.7)) is None
    assert part.account.dropped == {"raised": 1, "part_failed": 4}
    assert pipeline.ledger.accounts["fast"].dropped["part_failed"] >= 15
    part.reserve()
    part.reload()(at(2.8))
    assert not part.down and part.restarts == 1
    assert "fast@3" in drain(pipeline, 3.2)
    assert pipeline.balanced


def test_decisions_come_without_a_head(bundle: Bundle) -> None:
    pipeline = filled(bundle, 3.0)
    drain(pipeline, 0.9)
    fail(pipeline, 1.0, tick=True)
    drain(pipeline, 1.9)
    assert pipeline.choose(at(2.0)) == Tick(at(2.0), 0, "part_failed", at(2.0))
    drain(pipeline, 2.004)
    problems = [(d.timestamp_ns, d.problem) for d in pipeline.take_results()]  # type: ignore[union-attr]
    assert problems == [(at(1.0), "raised"), (at(2.0), "part_failed")]
    pipeline.head_part.reserve()
    pipeline.head_part.reload()(at(2.5))
    drain(pipeline, 3.0)
    (decision,) = pipeline.take_results()
    assert isinstance(decision, Decision) and not decision.problem
    assert decision.outputs["side"].label == "left"


@pytest.mark.parametrize("name", ["fast_encoder", "head"])
def test_what_an_abandoned_job_brings_is_dropped(
    bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal: list[Entry] = []
    pipeline = filled(bundle, 3.0, journal=journal.append)
    part = next(p for p in pipeline.parts if p.name == name)
    now_s = 0.6
    while (step := pipeline.choose(at(now_s))) is None or isinstance(step, Cut) == (name == "head"):
        if step is None:
            now_s += 0.1
        else:
            do(pipeline, step, now_s)
    job = pipeline.begin(step, at(now_s))
    assert job is not None and job.part is part
    assert not job.abandoned
    passed(monkeypatch, job, 2.0)
    pipeline.abandon_overdue(at(now_s), 2.0)
    assert not job.abandoned, "not yet"
    passed(monkeypatch, job, 2.1)
    pipeline.abandon_overdue(at(now_s), 2.0)
    assert job.abandoned and part.job is None and part.down and part.stuck == 1
    assert part.account.dropped == {"hangs": 1}
    results, entries, ledger = len(pipeline.take_results()), len(journal), pipeline.work.as_dict()
    assert results == (1 if name == "head" else 0)
    pipeline.finish(job, job.run(), at(now_s + 3))
    assert pipeline.take_results() == [] and len(journal) == entries
    assert pipeline.work.as_dict() == ledger and pipeline.balanced
    assert pipeline.lanes["fast"].encoder.end_ns is None or name == "head"


def passed(monkeypatch: pytest.MonkeyPatch, job: Job, seconds: float) -> None:
    """Let the machine's stopwatch say that a job has been out for so long."""
    now_ns = job.started_ns + to_ns(seconds)
    monkeypatch.setattr(pipelines, "stopwatch_ns", lambda: now_ns)


def test_a_slow_part_is_allowed_ten_times_its_usual_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = filled(bundle, 1.0)
    pipeline.lanes["fast"].part.cost_ns = at(0.5)
    step = pipeline.choose(at(0.6))
    assert step is not None
    job = pipeline.begin(step, at(0.6))
    assert job is not None
    passed(monkeypatch, job, 5.0)
    pipeline.abandon_overdue(at(0.6), 2.0)
    assert not job.abandoned
    passed(monkeypatch, job, 5.1)
    pipeline.abandon_overdue(at(0.6), 2.0)
    assert job.abandoned


class Machine:
    """Does to a pipeline what it is told, in the order in which a crew might, and checks it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.now_ns = at(0.001)
        self.jobs: list[Job] = []
        self.results: list[Decision | Event] = []

    def act(self, kind: str, number: int, what: float) -> None:
        pipeline = self.pipeline
        if kind == "wait":
            self.now_ns += number * MS
        elif kind in ("fast", "slow"):
            self.now_ns += number % 60 * MS
            stamp_ns = self.now_ns - number % 7 * 20 * MS
            data = np.array([what, 1.0], np.float32)
            pipeline.push(Sample(kind, stamp_ns, self.now_ns, data))
        elif kind == "reject":
            pipeline.push(Rejection("fast", self.now_ns, "torn", "", number))
        elif kind == "cost":
            pipeline.parts[number % 3].cost_ns = what * MS
        elif kind == "tidy":
            pipeline.tidy()
        elif kind == "reload":
            for part in pipeline.parts:
                if part.restart_due(self.now_ns):
                    part.reserve()
                    part.reload()(self.now_ns)
        elif kind == "step":
            self._step(heavy=number % 4 > 0)
        elif self.jobs:
            self._end(kind, self.jobs.pop(number % len(self.jobs)))
        assert pipeline.balanced
        assert {id(p.job) for p in pipeline.parts if p.job} == {
            id(job) for job in self.jobs if not job.abandoned
        }
        self.results += pipeline.take_results()

    def _step(self, heavy: bool) -> None:
        pipeline, now_ns = self.pipeline, self.now_ns
        step = pipeline.choose(now_ns, heavy)
        due_ns = pipeline.next_due(heavy)
        if step is None:
            assert due_ns is None or due_ns > now_ns or due_ns == pipeline.next_tick_ns
            return
        assert due_ns is not None and due_ns <= now_ns
        assert pipeline.choose(now_ns, heavy) == step, "to choose changes nothing"
        if isinstance(step, Tick):
            assert pipeline.head_part.job is None and step.tick_ns <= now_ns
            assert step.tick_ns + pipeline.period_ns > now_ns, "the newest tick"
        else:
            lane = pipeline.lanes[step.modality]
            assert lane.part.job is None and step.end_ns + lane.stream.delay_ns <= now_ns
            assert bool(step.reason) == lane.part.down
        job = pipeline.begin(step, now_ns)
        if job is not None:
            self.jobs.append(job)

    def _end(self, kind: str, job: Job) -> None:
        if kind == "finish":
            self.pipeline.finish(job, job.run(), self.now_ns)
        elif kind == "fail":
            self.pipeline.finish(job, Failure("raised", "broken"), self.now_ns)
        elif not job.abandoned and job.part.stuck < MAX_STUCK:
            self.pipeline.abandon(job, self.now_ns)
            self.jobs.append(job)  # it may come back
        else:
            self.jobs.append(job)


def replayed(
    bundle: Bundle, journal: Sequence[Entry], concurrent: bool
) -> tuple[Pipeline, list[Decision | Event]]:
    """What a fresh pipeline makes of a journal."""
    pipeline = make(bundle, concurrent=concurrent)
    jobs: dict[str, Job] = {}
    results: list[Decision | Event] = []
    for entry in journal:
        if isinstance(entry, Sample | Rejection):
            pipeline.push(entry)
        elif isinstance(entry, Finish):
            job = jobs.pop(entry.part)
            computed = entry.failure in ("", "not_finite")  # the latter comes out of it again
            outcome = job.run() if computed else Failure(entry.failure)
            pipeline.finish(job, outcome, entry.now_ns)
        elif isinstance(entry, Cut | Tick):
            part = (
                pipeline.lanes[entry.modality].part
                if isinstance(entry, Cut)
                else pipeline.head_part
            )
            if part.down and not entry.reason:
                part.reserve()
                part.reload()(0)  # as it was then, at some time before
            job_or_none = pipeline.begin(entry)
            if job_or_none is not None:
                jobs[part.name] = job_or_none
        pipeline.tidy()
        results += pipeline.take_results()
    return pipeline, results


small = st.sampled_from([0.1, -0.7, 1.0, 15.0, 25.0])
acts = st.one_of(
    st.tuples(st.sampled_from(["fast", "fast", "slow"]), st.integers(0, 400), small),
    st.tuples(st.just("fast"), st.integers(0, 400), st.sampled_from([POISON, 1e9, np.nan])),
    st.tuples(st.just("wait"), st.sampled_from([1, 3, 10, 100, 500, 3000]), st.just(0.0)),
    st.tuples(st.just("step"), st.integers(0, 7), st.just(0.0)),
    st.tuples(st.just("step"), st.integers(0, 7), st.just(0.0)),
    st.tuples(st.just("finish"), st.integers(0, 2), st.just(0.0)),
    st.tuples(st.just("finish"), st.integers(0, 2), st.just(0.0)),
    st.tuples(st.sampled_from(["fail", "abandon"]), st.integers(0, 2), st.just(0.0)),
    st.tuples(st.just("cost"), st.integers(0, 2), st.sampled_from([0.0, 0.5, 3.0, 200.0])),
    st.tuples(st.sampled_from(["tidy", "reload", "reject"]), st.integers(1, 5), st.just(0.0)),
)


def check_that_silence_has_no_label(decision: Decision) -> None:
    """A decision that rests on nothing says so, and no other one does."""
    there = any(share.present for share in decision.modalities.values())
    side = decision.outputs["side"]
    assert there or decision.problem in ("nothing_present", "part_failed")
    assert not there or decision.problem != "nothing_present"
    without = side.label is None and side.probabilities is None and side.mean is None
    assert without == bool(decision.problem)


@given(script=st.lists(acts, min_size=20, max_size=150), concurrent=st.booleans())
def test_the_journal_of_any_run_makes_the_same_decisions_and_ledgers(
    bundle: Bundle, script: list[tuple[str, int, float]], concurrent: bool
) -> None:
    journal: list[Entry] = []
    machine = Machine(make(bundle, concurrent=concurrent, journal=journal.append))
    for action in script:
        machine.act(*action)
    pipeline = machine.pipeline
    decisions = [r for r in machine.results if isinstance(r, Decision)]
    times = [d.timestamp_ns for d in decisions]
    assert times == sorted(set(times))
    for decision in decisions:
        check_that_silence_has_no_label(decision)
    head = pipeline.head_part.account
    assert len(times) == head.received - head.dropped.get("overload", 0) - head.in_flight
    again, results = replayed(bundle, journal, concurrent)
    assert [r.as_dict() for r in results] == [r.as_dict() for r in machine.results]
    pipeline.tidy()
    assert again.ledger.as_dict() == pipeline.ledger.as_dict()
    assert again.work.as_dict() == pipeline.work.as_dict()
    assert again.next_tick_ns == pipeline.next_tick_ns


def test_a_journal_of_a_long_busy_run_replays(bundle: Bundle) -> None:
    random = np.random.default_rng(3)
    names = ["fast", "fast", "fast", "slow", "step", "step", "step", "finish", "finish"]
    names += ["wait", "reload", "tidy"]
    journal: list[Entry] = []
    machine = Machine(make(bundle, journal=journal.append))
    for count in range(20_000):
        kind = str(random.choice(names)) if count % 97 else "fail"
        number = int(random.integers(0, 60))
        machine.act(kind, number, float(random.choice([0.3, -0.4, 12.0])))
    again, results = replayed(bundle, journal, True)
    assert [r.as_dict() for r in results] == [r.as_dict() for r in machine.results]
    kinds = {type(r) for r in results}
    decisions = [r for r in results if isinstance(r, Decision)]
    problems = {d.problem for d in decisions}
    assert kinds == {Decision, Event}
    assert problems >= {"", "raised", "part_failed", "nothing_present"}
    for decision in decisions:
        check_that_silence_has_no_label(decision)
    machine.pipeline.tidy()
    assert again.ledger.as_dict() == machine.pipeline.ledger.as_dict()
    assert again.work.as_dict() == machine.pipeline.work.as_dict()
