"""A part at work: what became of each run, and when it is loaded again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part
from fusedge.bundle.window import to_ns
from fusedge.runtime.journal import Cut
from fusedge.runtime.part import MAX_STUCK, NOT_FINITE_IN_A_ROW, Failure, RunningPart
from tests.tiny_bundle import write_tiny_bundle

STEP = Cut("fast", 0, 0, "")
RAISED = Failure("raised", "OSError: gone")


class Doubling:
    """Gives twice its input, or raises what it was made with."""

    provider = "test"

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        if self.failure is not None:
            raise self.failure
        return [2 * feeds["x"], -feeds["x"]]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Part:
    bundle: Bundle = write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge")
    return bundle.manifest.encoders[0]


def running(spec: Part, loads: Iterable[object] = ()) -> RunningPart:
    """A part that loads well at first, then gives or raises what `loads` has."""
    outcomes = iter((Doubling(), *loads))

    def load() -> Any:
        outcome = next(outcomes, None) or Doubling()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return RunningPart(spec, load)


def work(part: RunningPart, failure: Failure | None, now_s: float = 0) -> None:
    """One run from beginning to end."""
    part.account.received += 1
    part.begin(STEP, {}, None, to_ns(now_s))
    assert part.account.in_flight == 1 and part.account.unaccounted == 0
    part.end(failure, to_ns(now_s))
    assert part.account.in_flight == 0 and part.account.unaccounted == 0


def reload(part: RunningPart, now_s: float) -> None:
    assert part.restart_due(to_ns(now_s))
    part.reserve()
    assert not part.restart_due(to_ns(now_s)), "somebody does it already"
    part.reload()(to_ns(now_s))


def test_a_run_that_went_well_is_used(spec: Part) -> None:
    part = running(spec)
    for _ in range(3):
        work(part, None)
    assert not part.down and not part.restart_due(to_ns(10**6))
    assert part.report() == {
        "runs": {"received": 3, "used": 3, "dropped": {}, "in_flight": 0},
        "failures": {},
        "first_failure": "",
        "restarts": 0,
        "stuck": 0,
    }


@pytest.mark.parametrize("reason", ["raised", "hangs"])
def test_a_part_that_failed_is_down_until_it_is_loaded_again(spec: Part, reason: str) -> None:
    part = running(spec)
    before = part.backend
    work(part, Failure(reason, "first"), 100)
    assert part.down
    assert not part.restart_due(to_ns(100.39)) and part.restart_due(to_ns(100.5))
    reload(part, 100.5)
    assert not part.down and part.restarts == 1 and part.backend is not before
    work(part, None, 101)
    work(part, Failure(reason, "second"), 102)
    assert part.failures == {reason: 2} and part.first_failure == f"{reason}: first"
    assert not part.restart_due(to_ns(102.79)) and part.restart_due(to_ns(103))
    assert part.account.as_dict()["dropped"] == {reason: 2}


def test_a_part_cannot_begin_twice_or_while_it_is_down(spec: Part) -> None:
    part = running(spec)
    part.begin(STEP, {}, None, 0)
    with pytest.raises(AssertionError):
        part.begin(STEP, {}, None, 0)
    part.end(RAISED, 0)
    with pytest.raises(AssertionError):
        part.begin(STEP, {}, None, 0)


def test_a_part_that_does_not_load_is_tried_again_less_and_less_often(spec: Part) -> None:
    failures = [OSError("no memory")] * 6
    part = running(spec, failures)
    work(part, RAISED, 0)
    now_s, waits = 0.0, []
    while part.down:
        begun_s = now_s
        while not part.restart_due(to_ns(now_s)):
            now_s += 0.01
        waits.append(now_s - begun_s)
        reload(part, now_s)
    assert len(waits) == 7 and part.restarts == 1
    for number, wait_s in enumerate(waits):
        assert 0.8 * 0.5 * 2**number - 0.01 <= wait_s <= 0.5 * 2**number + 0.02
    assert part.failures == {"raised": 1, "not_loaded": 6}
    assert part.first_failure == "raised: OSError: gone"
    assert part.account.as_dict()["dropped"] == {"raised": 1}, "loading is no run"


def test_a_part_that_gives_nan_ten_times_in_a_row_is_loaded_again(spec: Part) -> None:
    part = running(spec)
    nan = Failure("not_finite")
    for _ in range(2):
        for _ in range(NOT_FINITE_IN_A_ROW - 1):
            work(part, nan)
        assert not part.down
        work(part, None)  # once in between, and it counts from the beginning
    for number in range(NOT_FINITE_IN_A_ROW):
        assert not part.down and part.failures == {}, number
        work(part, nan, 5)
    assert part.down and part.failures == {"not_finite": 1}
    assert part.first_failure == "not_finite"
    reload(part, 6)
    for _ in range(NOT_FINITE_IN_A_ROW - 1):
        work(part, nan, 7)
    assert not part.down
    assert part.account.dropped == {"not_finite": 4 * NOT_FINITE_IN_A_ROW - 3}


def test_a_part_whose_runs_never_come_back_is_given_up_until_one_does(spec: Part) -> None:
    part = running(spec)
    for number in range(MAX_STUCK):
        now_s = 100.0 * number
        work(part, Failure("hangs", "no result"), now_s)
        part.stuck += 1  # as the pipeline counts it
        assert part.restart_due(to_ns(now_s + 50)) == (part.stuck < MAX_STUCK)
        if part.stuck < MAX_STUCK:
            reload(part, now_s + 50)
    assert part.down
    part.stuck -= 1
    reload(part, 1000)
    assert not part.down and part.restarts == MAX_STUCK


def test_a_run_may_take_ten_times_what_it_usually_does(spec: Part) -> None:
    part = running(spec)
    assert part.allowance_ns(2.0) == to_ns(2.0)
    for _ in range(50):
        part.ran(to_ns(0.5))
    assert part.allowance_ns(2.0) == pytest.approx(to_ns(5.0))
    assert part.cost_ns == pytest.approx(to_ns(0.5)) and part.run_time.count == 50
    for _ in range(50):
        part.ran(to_ns(0.001))
    assert part.allowance_ns(2.0) == to_ns(2.0)


def test_a_job_computes_and_its_cost_is_measured(spec: Part) -> None:
    part = running(spec)
    job = part.begin(STEP, {"x": np.full((1, 3), 2, np.float32)}, "window", 0)
    doubled, negative = job.run()
    assert doubled.tolist() == [[4, 4, 4]] and negative.tolist() == [[-2, -2, -2]]
    assert part.run_time.count == 1 and part.cost_ns > 0
    assert job.context == "window" and not job.abandoned


def test_a_job_of_a_batch_fills_all_its_rows_when_it_is_alone(spec: Part) -> None:
    seen: list[Any] = []

    class Counting(Doubling):
        def run(self, feeds: dict[str, Any]) -> list[Any]:
            seen.append(feeds["x"])
            return [feeds["x"] + np.arange(len(feeds["x"]), dtype=np.float32)[:, None]]

    part = RunningPart(spec, Counting)
    job = part.begin(STEP, {"x": np.full((1, 2), 5, np.float32)}, None, 0)
    job.rows, job.row = 4, 2
    (output,) = job.run()
    assert seen[0].shape == (4, 2) and (seen[0] == 5).all()
    assert output.tolist() == [[7, 7]]


def test_a_job_keeps_the_backend_that_it_began_with(spec: Part) -> None:
    part = running(spec)
    job = part.begin(STEP, {"x": np.ones((1, 1), np.float32)}, None, 0)
    part.end(Failure("hangs"), 0)
    reload(part, 10)
    assert job.backend is not part.backend
    assert job.run()[0].tolist() == [[2]]


def test_what_a_backend_raises_goes_through_a_job(spec: Part) -> None:
    part = RunningPart(spec, lambda: Doubling(MemoryError("device")))
    with pytest.raises(MemoryError, match="device"):
        part.begin(STEP, {"x": np.ones((1, 1))}, None, 0).run()
    assert part.run_time.count == 0


def test_a_part_that_does_not_load_at_first_says_so(spec: Part) -> None:
    def load() -> Any:
        raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"):
        RunningPart(spec, load)


fates = st.sampled_from([None, None, None, RAISED, Failure("hangs"), Failure("not_finite")])


@given(script=st.lists(st.tuples(fates, st.floats(0, 40), st.booleans()), max_size=60))
def test_any_history_is_accounted_for(
    spec: Part, script: list[tuple[Failure | None, float, bool]]
) -> None:
    part = running(spec, [OSError("away"), None, OSError("away"), OSError("away")])
    now_s, runs = 0.0, 0
    for failure, wait_s, loads in script:
        now_s += wait_s
        if part.restart_due(to_ns(now_s)) and loads:
            reload(part, now_s)
        if not part.down:
            work(part, failure, now_s)
            runs += 1
            assert part.down or failure is None or failure.reason == "not_finite"
    account = part.account
    assert account.received == runs == account.used + sum(account.dropped.values())
    assert sum(part.failures.values()) >= part.restarts
    assert bool(part.failures) == bool(part.first_failure)
