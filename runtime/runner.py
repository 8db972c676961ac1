"""Runs sessions to their end: alone and repeatable on a virtual clock, or with a crew in real time."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import stopwatch_ns, wake_punctually
from fusedge.runtime.journal import Cut
from fusedge.runtime.onnx_part import Array
from fusedge.runtime.part import Failure, Job, RunningPart
from fusedge.runtime.pipeline import LIGHT_NS, WAIT_NS, Pipeline
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.telemetry import Telemetry

SUPERVISE_NS = to_ns(0.1)
CREW_S = 0.1  # for the crew to finish what it computes when it is to stop
PATIENCE_S = 0.35  # for everything to end; of the promised 0.5 s, the rest is for reports
POLL_S = 0.05  # how often the main thread looks whether it is to stop
MAX_BATCH = 16


def run(
    session: Session,
    sinks: Sequence[Sink],
    *,
    threads: int = 0,
    cores: Sequence[int] = (),
    notice: Callable[[str], object] = lambda line: None,
    telemetry: Callable[[], Telemetry] | None = Telemetry,
) -> SessionReport:
    """Run one session; see `run_all`."""
    (report,) = run_all(
        [(session, sinks)], threads=threads, cores=cores, notice=notice, telemetry=telemetry
    )
    return report


def run_all(
    sessions: Sequence[tuple[Session, Sequence[Sink]]],
    *,
    threads: int = 0,
    cores: Sequence[int] = (),
    notice: Callable[[str], object] = lambda line: None,
    telemetry: Callable[[], Telemetry] | None = Telemetry,
) -> list[SessionReport]:
    """Run sessions until their sources end or `Session.stop` is called; KeyboardInterrupt stops too.

    On a virtual clock one after the other, in this thread. In real time all at once, on a crew of
    `threads` (0: as many as there are cores, at most 4, at least 2) that are bound to `cores`. What
    fails is told to `notice` once, in a line, from the thread that called. `telemetry` makes what watches
    the machine meanwhile, in real time only; None: nobody does.
    """
    gc.collect()  # earlier sessions hold large buffers, and refer to themselves in circles
    clocks = {session.clock.real for session, _ in sessions}
    if clocks == {False}:
        return [_run_virtual(session, sinks, notice) for session, sinks in sessions]
    if clocks != {True}:
        raise FusedgeError("sessions on a virtual clock and in real time cannot run together")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    crew = Crew([session for session, _ in sessions], threads or min(max(available, 2), 4), cores)
    monitor = None if telemetry is None else telemetry()
    for session, _ in sessions:
        session.telemetry = monitor
    ended = "failed"
    try:
        if monitor is not None:
            monitor.start()
        for session, sinks in sessions:
            session.open(sinks)
        ended = crew.run(notice)
    except KeyboardInterrupt:
        ended = "interrupted"
    finally:
        end_ns = stopwatch_ns() + to_ns(PATIENCE_S)
        if monitor is not None:
            monitor.stop()
        for session, _ in sessions:
            session.feed.stop()
        crew.close()
        reports = _close([session for session, _ in sessions], ended, end_ns, notice)
    if any(isinstance(session.reader_gone, BrokenPipeError) for session, _ in sessions):
        raise BrokenPipeError  # as a write to it would have done
    return reports


def _close(
    sessions: Sequence[Session], ended: str, end_ns: int, notice: Callable[[str], object]
) -> list[SessionReport]:
    """End all sessions, whose sources have been asked to, by one deadline; tell what has not been told."""
    for session in sessions:
        session.end(ended)
    reports = [session.report(end_ns) for session in sessions]
    _tell(sessions, notice)
    return reports


def _tell(sessions: Sequence[Session], notice: Callable[[str], object]) -> None:
    for session in sessions:
        if session.telemetry is not None:
            for line in session.telemetry.take_notices():
                notice(line)
        while session.notices:
            line = session.notices.popleft()
            notice(f"{session.name}: {line}" if session.name else line)


def _run_virtual(
    session: Session, sinks: Sequence[Sink], notice: Callable[[str], object]
) -> SessionReport:
    ended = "failed"
    try:
        session.open(sinks)
        _loop(session)
        ended = session.ended
    except KeyboardInterrupt:
        ended = "interrupted"
    finally:
        session.feed.stop()
        (report,) = _close([session], ended, stopwatch_ns() + to_ns(PATIENCE_S), notice)
    return report


def _loop(session: Session) -> None:
    feed, clock = session.feed, session.clock
    while not session.stopping:
        due_ns = session.next_due_ns
        items = feed.take(due_ns)
        if items:
            clock.advance(items[-1].arrival_ns)
            session.push(items)
        elif due_ns is None or session.finished:
            return
        else:
            clock.advance(due_ns)
            for pipeline in session.pipelines:
                _work(session, pipeline, due_ns)


def _work(session: Session, pipeline: Pipeline, now_ns: int) -> None:
    """Do all that is due."""
    for part in pipeline.parts:
        if part.restart_due(now_ns):
            part.reserve()
            part.reload()(now_ns)
    started = stopwatch_ns()
    while (step := pipeline.choose(now_ns)) is not None:
        job = pipeline.begin(step, now_ns)
        if job is not None:
            pipeline.finish(job, _outcome(job), now_ns)
    pipeline.tidy()
    session.step_time.add(stopwatch_ns() - started)
    session.emit()


def _outcome(job: Job) -> list[Array] | Failure:
    try:
        return job.run()
    except Exception as error:  # a backend may raise anything: the part failed, not the session
        return _failure(error)


def _failure(error: Exception) -> Failure:
    return Failure("raised", printable(f"{type(error).__name__}: {error}"))


class _Run(NamedTuple):
    """One job, computed outside of the baton."""

    session: Session
    pipeline: Pipeline
    job: Job

    @property
    def heavy(self) -> bool:
        """Whether another member had better lead meanwhile."""
        cost_ns = self.job.part.cost_ns
        return cost_ns >= LIGHT_NS or not cost_ns  # a first run may take any time

    @property
    def expected_ns(self) -> float:
        """How long it has taken so far; 0 where that is not known."""
        return self.job.part.cost_ns

    def compute(self) -> list[Array] | Failure:
        """To be called without the baton."""
        return _outcome(self.job)

    def hand_in(self, outcome: list[Array] | Failure) -> None:
        """To be called with the baton."""
        if self.job.abandoned:
            self.job.part.stuck -= 1  # it came back after all
        self.pipeline.finish(self.job, outcome, self.session.clock.now_ns())
        self.session.emit()


class _Batch(NamedTuple):
    """Jobs of several sessions that one backend computes in one run, a row each."""

    runs: list[_Run]

    @property
    def heavy(self) -> bool:
        """See _Run."""
        return self.expected_ns >= LIGHT_NS or any(run.heavy for run in self.runs)

    @property
    def expected_ns(self) -> float:
        """See _Run."""
        return sum(run.expected_ns for run in self.runs)

    def compute(self) -> list[list[Array] | Failure]:
        """See _Run."""
        jobs = [run.job for run in self.runs]
        for row, job in enumerate(jobs):
            job.rows, job.row = len(jobs), row
        feeds = {
            name: np.concatenate([job.feeds[name] for job in jobs], axis=0)
            for name in jobs[0].feeds
        }
        started = stopwatch_ns()
        try:
            outputs = jobs[0].backend.run(feeds)
        except Exception as error:  # as for one
            failure = _failure(error)
            return [failure for _ in jobs]
        elapsed_ns = (stopwatch_ns() - started) // len(jobs)
        for job in jobs:
            if not job.abandoned:
                job.part.ran(elapsed_ns)
        return [[output[row : row + 1] for output in outputs] for row in range(len(jobs))]

    def hand_in(self, outcomes: list[list[Array] | Failure]) -> None:
        """See _Run."""
        for run, outcome in zip(self.runs, outcomes, strict=True):
            run.hand_in(outcome)


class _Reload:
    """A part that failed is loaded again."""

    heavy = True
    expected_ns = 0.0

    def __init__(self, session: Session, part: RunningPart) -> None:
        self.session, self.part = session, part

    def compute(self) -> Callable[[int], None]:
        """See _Run."""
        return self.part.reload()

    def hand_in(self, settle: Callable[[int], None]) -> None:
        """See _Run."""
        settle(self.session.clock.now_ns())


_Work = _Run | _Batch | _Reload


class _Task:
    """What a member computes, since when by the machine's time, and whether it counts as long."""

    def __init__(self, work: _Work) -> None:
        self.heavy = work.heavy
        self.replaced = False
        """It takes so much longer than expected that another member has taken its place."""
        self._overdue_ns = stopwatch_ns() + max(SUPERVISE_NS, round(3 * work.expected_ns))

    @property
    def overdue(self) -> bool:
        """Whether it takes much longer than expected."""
        return stopwatch_ns() > self._overdue_ns


class Crew:
    """Threads that share the work of all sessions. Contract: whoever holds the baton, and only they,
    touches the sessions; it is put down while a part computes. One member at a time, the leader,
    waits for the next due time. Before a long computation the leader wakes another to lead;
    should a short one turn out long, another notices within a tenth of a second, and one that takes
    three times as long as expected is replaced, to leave when it comes back. So a part that hangs
    costs a thread and nothing else. One member of two or more is kept free of long computations,
    so that decisions come in time; sessions take turns.

    Encoders of several sessions that are due together and share a bundle run as one batch.
    """

    def __init__(self, sessions: Sequence[Session], threads: int, cores: Sequence[int]) -> None:
        self._sessions = list(sessions)
        self._active = list(sessions)
        self._size = threads
        self._cores = set(cores)
        lock = threading.RLock()
        self._baton, self._lead = threading.Condition(lock), threading.Condition(lock)
        self._leading = False
        self._lead_until_ns = 0
        self._closed = False
        self._ended = threading.Event()
        self._members: dict[threading.Thread, _Task | None] = {}
        """Each with what it computes."""
        self._number = 0
        self._supervised_ns = 0
        self._long = 0  # members that compute for long
        self._error: BaseException | None = None
        for session in sessions:
            session.feed.deliver = partial(self._deliver, session)

    def run(self, notice: Callable[[str], object]) -> str:
        """Work until all input has ended or a stop is asked for; how it ended."""
        with self._baton:
            for _ in range(self._size):
                self._add_member()
        while not self._ended.wait(POLL_S):
            _tell(self._sessions, notice)
            with self._baton:  # all members may be computing, or hang
                stopping = any(session.stopping for session in self._active)
                if stopping or stopwatch_ns() - self._supervised_ns > 2 * SUPERVISE_NS:
                    self._supervise()
        if self._error is not None:
            raise self._error
        return next((s.ended for s in self._sessions if s.stopping), "end of input")

    def close(self) -> None:
        """Let the members finish what they do, but not for long."""
        end_ns = stopwatch_ns() + to_ns(CREW_S)
        with self._baton:
            self._closed = True
            self._baton.notify_all()
            self._lead.notify_all()
            members = list(self._members)
        for member in members:
            member.join(max(0.0, (end_ns - stopwatch_ns()) / 1e9))
        with self._baton:
            for session in self._sessions:
                for pipeline in session.pipelines:
                    for part in pipeline.parts:
                        if part.job is not None:
                            pipeline.abandon(part.job, session.clock.now_ns())
                session.emit()

    def _add_member(self) -> None:
        self._number += 1
        member = threading.Thread(target=self._serve, name=f"crew {self._number}", daemon=True)
        self._members[member] = None
        member.start()

    def _serve(self) -> None:
        me = threading.current_thread()
        with self._baton:
            try:
                wake_punctually()
                if self._cores:
                    os.sched_setaffinity(0, self._cores)
                while not self._closed:
                    work = self._next_work()
                    if work is None:
                        self._rest()
                        continue
                    task = self._members[me] = _Task(work)
                    self._long += task.heavy
                    if task.heavy:
                        self._see_to_a_leader(self._rest_ns())
                    self._baton.release()
                    try:
                        outcome: Any = work.compute()
                    finally:
                        self._baton.acquire()
                        self._members[me] = None
                    work.hand_in(outcome)
                    if task.replaced:
                        break
                    self._long -= task.heavy
            except BaseException as error:  # a fault of ours: tell it in the main thread
                self._error = error
                self._ended.set()
            finally:
                del self._members[me]

    def _rest(self) -> None:
        """Wait for the next due time, or behind the one who does."""
        wait_ns = self._rest_ns()
        if self._leading:
            self._see_to_a_leader(wait_ns)
            self._baton.wait(SUPERVISE_NS / 1e9)
            return
        self._leading = True
        self._lead_until_ns = stopwatch_ns() + wait_ns
        self._lead.wait(wait_ns / 1e9)
        self._leading = False

    def _rest_ns(self) -> int:
        """How long there is nothing to do for another member."""
        wait_ns = SUPERVISE_NS
        for session in self._active:
            due_ns = session.next_due(self._may_take_long)
            if due_ns is not None:
                left_ns = to_ns(session.clock.seconds_until(due_ns))
                # what is due and cannot be done yet waits for a short job of another member
                wait_ns = min(wait_ns, left_ns if left_ns > 0 else WAIT_NS)
        return wait_ns

    def _see_to_a_leader(self, wait_ns: int) -> None:
        """Somebody must wait for what is due next: what came back or began since may have changed it."""
        if not self._leading:
            self._baton.notify()
        elif stopwatch_ns() + wait_ns < self._lead_until_ns:
            self._lead.notify()

    def _next_work(self) -> _Work | None:
        if stopwatch_ns() - self._supervised_ns >= SUPERVISE_NS:
            self._supervise()
            for session in self._active:
                for pipeline in session.pipelines:
                    for part in pipeline.parts:
                        if part.restart_due(session.clock.now_ns()):
                            part.reserve()
                            return _Reload(session, part)
        for session in list(self._active):
            for pipeline in session.pipelines:
                work = self._due(session, pipeline)
                if work is not None:
                    if len(self._active) > 1:
                        self._active.remove(session)
                        self._active.append(session)
                    return work
        return None

    @property
    def _may_take_long(self) -> bool:
        return self._long < max(1, self._size - 1)

    def _due(self, session: Session, pipeline: Pipeline) -> _Work | None:
        """What is due in a pipeline; all that needs no computing is done at once."""
        self._drain(session)
        now_ns = session.steps_until_ns
        while (step := pipeline.choose(now_ns, self._may_take_long)) is not None:
            job = pipeline.begin(step, now_ns)
            if job is not None:
                run = _Run(session, pipeline, job)
                return run if len(self._active) == 1 else self._with_others(run)
            session.emit()
        session.emit()
        pipeline.tidy()
        return None

    def _deliver(self, session: Session) -> None:
        """A source has something: take it now if nobody is at work, so that a tick finds less to do."""
        if self._baton.acquire(blocking=False):
            try:
                if not self._closed:
                    self._drain(session)
            finally:
                self._baton.release()

    def _drain(self, session: Session) -> None:
        items = session.feed.take(None)
        if items:
            session.push(items)

    def _supervise(self) -> None:
        """Look after sessions, parts and members."""
        self._supervised_ns = stopwatch_ns()
        for session in list(self._active):
            self._drain(session)
            session.supervise(session.clock.now_ns())
            if session.finished or session.stopping:
                self._active.remove(session)
        for task in list(self._members.values()):
            if task is not None and task.overdue and not task.replaced:
                task.replaced = True
                self._long -= task.heavy
                self._add_member()
        if not self._active:
            self._ended.set()

    def _with_others(self, run: _Run) -> _Work:
        """The run, with jobs of other sessions that the same backend can compute along with it."""
        if not isinstance(run.job.step, Cut):
            return run
        runs = [run]
        for other in self._active:
            if other is run.session or len(runs) == MAX_BATCH:
                continue
            self._drain(other)
            now_ns = other.steps_until_ns
            step = other.pipeline.choose(now_ns)
            if isinstance(step, Cut) and not step.reason:
                part = other.pipeline.lanes[step.modality].part
                if part.backend is run.job.backend:
                    job = other.pipeline.begin(step, now_ns)
                    if job is not None:
                        runs.append(_Run(other, other.pipeline, job))
        return run if len(runs) == 1 else _Batch(runs)
