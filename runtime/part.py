"""A part at work: what runs it, what a run costs, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from fusedge.bundle.manifest import Part
from fusedge.bundle.window import to_ns
from fusedge.runtime.backoff import Backoff
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.histogram import DurationHistogram
from fusedge.runtime.journal import Step
from fusedge.runtime.ledger import Account
from fusedge.runtime.onnx_part import Array

COST_WEIGHT = 0.2  # of the newest run in the mean cost
MAX_STUCK = 4  # runs of a part that never came back, before it is given up until one does
NOT_FINITE_IN_A_ROW = 10  # a part that gives only NaN is loaded again
PART_FAILED = "part_failed"


class Backend(Protocol):
    """What computes a part."""

    provider: str

    def run(self, feeds: dict[str, Any]) -> list[Array]:
        """The outputs in the manifest's order."""


class Failure(NamedTuple):
    """Why a run gave no result."""

    reason: str
    detail: str = ""


class Job:
    """One run of a part, to be done outside of the pipeline and given back with `finish`.

    `begun_ns` is on the session's clock, `started_ns` on the machine's. An `abandoned` job took too
    long and was finished as a failure; what it may still bring is dropped. It is row `row` of a
    batch of `rows`.
    """

    __slots__ = (
        "abandoned",
        "backend",
        "begun_ns",
        "context",
        "feeds",
        "part",
        "row",
        "rows",
        "started_ns",
        "step",
    )

    def __init__(
        self, part: RunningPart, step: Step, feeds: dict[str, Any], context: Any, begun_ns: int
    ) -> None:
        self.part, self.step, self.feeds, self.context = part, step, feeds, context
        self.begun_ns, self.started_ns = begun_ns, stopwatch_ns()
        self.backend = part.backend
        self.abandoned = False
        self.rows, self.row = 1, 0

    def run(self) -> list[Array]:
        """Compute; may take long, and raises whatever the backend raises.

        Alone in a batch of more than one row (in a replay), it fills them all.
        """
        started = stopwatch_ns()
        if self.rows == 1:
            outputs = self.backend.run(self.feeds)
        else:
            feeds = {name: np.repeat(feed, self.rows, axis=0) for name, feed in self.feeds.items()}
            outputs = [o[self.row : self.row + 1] for o in self.backend.run(feeds)]
        if not self.abandoned:
            self.part.ran(stopwatch_ns() - started)
        return outputs


class RunningPart:
    """A part with its backend. `account` says what became of every run that was due.

    Contract: a part that fails is down until its back-off is over, and is then loaded again. The
    pipeline goes on without it. A run that never comes back keeps its thread, so at most `MAX_STUCK`
    of them are risked.
    """

    def __init__(self, part: Part, load: Callable[[], Backend]) -> None:
        self.part = part
        self.name = part.name
        self._load = load
        self.backend = load()
        self.job: Job | None = None
        self.cost_ns = 0.0
        self.stuck = self.restarts = 0
        self.failures: dict[str, int] = {}
        self.first_failure = ""
        self.account = Account(lambda: int(self.job is not None))
        self.run_time = DurationHistogram()
        self._backoff = Backoff(part.name)
        self._retry_ns: int | None = None
        self._loading = False
        self._not_finite_in_a_row = 0

    @property
    def down(self) -> bool:
        """Whether it cannot run now."""
        return self._retry_ns is not None

    def ran(self, elapsed_ns: int) -> None:
        """A run came back."""
        self.run_time.add(elapsed_ns)
        self.cost_ns += COST_WEIGHT * (elapsed_ns - self.cost_ns) if self.cost_ns else elapsed_ns

    def begin(self, step: Step, feeds: dict[str, Any], context: Any, now_ns: int) -> Job:
        """The job of a step."""
        assert self.job is None and not self.down
        self.job = Job(self, step, feeds, context, now_ns)
        return self.job

    def end(self, failure: Failure | None, now_ns: int) -> None:
        """The job has come to its end."""
        self.job = None
        if failure is None:
            self.account.used += 1
            self._not_finite_in_a_row = 0
            return
        self.account.drop(failure.reason)
        if failure.reason == "not_finite":
            self._not_finite_in_a_row += 1
            if self._not_finite_in_a_row < NOT_FINITE_IN_A_ROW:
                return
            self._not_finite_in_a_row = 0
        self._fail(failure, now_ns)

    def _fail(self, failure: Failure, now_ns: int) -> None:
        self.failures[failure.reason] = self.failures.get(failure.reason, 0) + 1
        self.first_failure = self.first_failure or f"{failure.reason}: {failure.detail}".strip(": ")
        self._retry_ns = self._backoff.retry_ns(now_ns)

    def restart_due(self, now_ns: int) -> bool:
        """Whether `reload` should be called now."""
        due = self._retry_ns is not None and now_ns >= self._retry_ns
        return due and not self._loading and self.stuck < MAX_STUCK

    def reload(self) -> Callable[[int], None]:
        """Load the part again, which may take long; what it gives is to be called with the time then.

        Call `reserve` before, in the order of other work.
        """
        try:
            backend = self._load()
        except Exception as error:  # whatever a backend raises: the part stays down
            failure = Failure("not_loaded", str(error))
            return lambda now_ns: self._not_loaded(failure, now_ns)
        return lambda now_ns: self._loaded(backend, now_ns)

    def reserve(self) -> None:
        """Nobody else is to load it meanwhile."""
        self._loading = True

    def _loaded(self, backend: Backend, now_ns: int) -> None:
        self._loading = False
        self.backend = backend
        self.restarts += 1
        self._retry_ns = None
        self._backoff.started(now_ns)

    def _not_loaded(self, failure: Failure, now_ns: int) -> None:
        self._loading = False
        self._fail(failure, now_ns)

    def allowance_ns(self, hang_s: float) -> int:
        """How long a run may take before it counts as one that hangs."""
        return max(to_ns(hang_s), round(10 * self.cost_ns))

    def report(self) -> dict[str, Any]:
        """For the summary."""
        return {
            "runs": self.account.as_dict(),
            "failures": dict(sorted(self.failures.items())),
            "first_failure": self.first_failure,
            "restarts": self.restarts,
            "stuck": self.stuck,
        }
