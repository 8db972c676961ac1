"""A sink on its lane: in order, bounded, tried again, and never in anybody's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime import backoff
from fusedge.runtime.clock import LiveClock, VirtualClock
from fusedge.runtime.journal import Cut
from fusedge.runtime.sinks import lane as lanes
from fusedge.runtime.sinks.lane import MAX_ITEMS, SinkLane
from fusedge.runtime.sinks.recorder import Recorder
from fusedge.runtime.sinks.sink import Sink

pytestmark = pytest.mark.real_time
WAIT_S = 5.0


def item(number: int) -> Cut:
    return Cut("fast", number, 0, "")


def picture(number: int, size: int = 400) -> Sample:
    return Sample("view", number, number, np.zeros(size, np.uint8))


class Noting(Sink):
    """Notes what is called; `fault` is told what is about to be and may raise or hang."""

    name = "noting"

    def __init__(self, fault: Callable[[str, int], object] = lambda call, number: None) -> None:
        self.calls: list[Any] = []
        self.written: list[int] = []
        self.told: list[int] = []
        """How many were said to be lost before an item that was then written, or before the end."""
        self._lost = 0
        self._fault = fault

    def _note(self, call: str, number: int = 0) -> None:
        self.calls.append(call)
        self._fault(call, number)

    def open(self, header: dict[str, Any]) -> None:
        self._note("open")

    def write(self, item: Any) -> None:
        number = item.end_ns if isinstance(item, Cut) else item.timestamp_ns
        self._note("write", number)
        self.written.append(number)
        if self._lost:
            self.told.append(self._lost)
            self._lost = 0

    def lost(self, count: int) -> None:
        self._note("lost", count)
        self._lost = count

    def flush(self) -> None:
        self._note("flush")

    def close(self, summary: dict[str, Any]) -> None:
        if self._lost:
            self.told.append(self._lost)
        self._note("close")
        self.summary = summary


class Gate:
    """A fault that hangs at one call until it is opened."""

    def __init__(self, call: str, number: int | None = None) -> None:
        self.call, self.number = call, number
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, call: str, number: int) -> None:
        if call == self.call and self.number in (None, number):
            self.reached.set()
            assert self.opened.wait(WAIT_S)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not set(threading.enumerate()) - before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    monkeypatch.setattr(lanes, "IDLE_S", 0.01)


def opened(sink: Sink, clock: LiveClock | VirtualClock | None = None) -> SinkLane:
    lane = SinkLane(sink, clock or LiveClock())
    lane.open({"bundle": "tiny"})
    return lane


def closed(lane: SinkLane) -> dict[str, Any]:
    """The report of a lane that had time to end, with everything accounted for."""
    lane.end({"ended": "end"})
    assert lane.join(WAIT_S)
    assert lane.account.unaccounted == lane.account.in_flight == 0
    return lane.report()


def test_items_are_written_in_order_and_the_summary_comes_last() -> None:
    sink = Noting()
    lane = opened(sink)
    for number in range(2000):
        lane.put(item(number))
    report = closed(lane)
    assert sink.written == list(range(2000))
    assert sink.calls[0] == "open" and sink.calls[-1] == "close"
    assert sink.summary == {"ended": "end"}
    assert report == {
        "received": 2000,
        "used": 2000,
        "dropped": {},
        "in_flight": 0,
        "failures": 0,
        "first_failure": "",
        "stuck": 0,
    }


def test_a_sink_that_hangs_costs_the_oldest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_ITEMS", 10)
    gate = Gate("write", 0)
    sink = Noting(gate)
    lane = opened(sink)
    lane.put(item(0))
    assert gate.reached.wait(WAIT_S)
    started = time.monotonic()
    for number in range(1, 100):
        lane.put(item(number))
        assert lane.account.unaccounted == 0
        assert lane.account.in_flight == min(number, 10) + 1, "those that wait and the one at work"
    assert time.monotonic() - started < 1
    assert lane.account.dropped == {"overflow": 89}
    gate.opened.set()
    assert closed(lane)["used"] == 11
    assert sink.written == [0, *range(90, 100)] and sink.told == [89]
    assert sink.calls[:4] == ["open", "write", "lost", "write"]


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_BYTES", 1000)
    gate = Gate("write", 0)
    sink = Noting(gate)
    lane = opened(sink)
    lane.put(item(0))
    assert gate.reached.wait(WAIT_S)
    for number in range(1, 10):
        lane.put(picture(number))
        lane.put(item(100 + number))  # has no bytes to speak of
    # Two pictures are 800 bytes; the oldest go first, whatever they are.
    assert lane.account.dropped == {"overflow": 13} and lane.account.in_flight == 1 + 5
    lane.put(picture(99, 1001))
    assert lane.account.dropped == {"overflow": 19} and lane.account.in_flight == 1
    lane.put(picture(10))
    gate.opened.set()
    closed(lane)
    assert sink.written == [0, 10] and sink.told == [19]


def test_bytes_that_were_written_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_BYTES", 1000)
    sink = Noting()
    lane = opened(sink)
    for number in range(50):
        lane.put(picture(number))
        wait_for(lambda: lane.account.in_flight == 0)
    assert closed(lane)["used"] == 50


def test_a_sink_that_raises_is_left_alone_for_a_while_and_tried_again() -> None:
    failing = threading.Event()
    failing.set()

    def fault(call: str, number: int) -> None:
        if call == "write" and number > 0 and failing.is_set():
            raise OSError(28, "No space\nleft")

    sink = Noting(fault)
    lane = opened(sink)
    lane.put(item(0))
    number, begun = 0, time.monotonic()
    while lane.failures < 3:
        number += 1
        lane.put(item(number))
        wait_for(lambda: lane.account.in_flight == 0)
        assert lane.account.unaccounted == 0
        assert time.monotonic() - begun < WAIT_S
    assert time.monotonic() - begun >= 0.8 * (0.05 + 0.1)
    tries = sink.calls.count("write") - 1
    assert tries == 3 and number > tries, "what came meanwhile was not tried"
    assert lane.account.dropped == {"sink_failed": number} and sink.written == [0]
    failing.clear()
    while len(sink.written) < 3:
        number += 1
        lane.put(item(number))
        wait_for(lambda: lane.account.in_flight == 0)
    report = closed(lane)
    assert report["failures"] == 3 and report["first_failure"] == "[Errno 28] No space left"
    assert sink.told == [report["dropped"]["sink_failed"]] == [number - 2]
    assert sink.written == [0, number - 1, number]


def test_what_was_lost_at_the_end_is_told_before_the_summary() -> None:
    def fault(call: str, number: int) -> None:
        if number == 1:
            raise OSError("full")

    sink = Noting(fault)
    lane = opened(sink)
    for number in range(5):
        lane.put(item(number))
    report = closed(lane)
    assert report["dropped"] == {"sink_failed": 4} and sink.told == [4]
    assert sink.calls[-2:] == ["lost", "close"]


def test_a_sink_that_cannot_even_take_the_loss_is_tried_again_with_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.0)
    failures = iter([True, True, False, True])

    def fault(call: str, number: int) -> None:
        if call in ("lost", "write") and next(failures, False):
            raise OSError("full")

    sink = Noting(fault)
    lane = opened(sink)
    for number in range(6):
        lane.put(item(number))
    # 0: its write fails; 1: telling of 0 fails; 2: is told 2, its write fails; 3: is told 3.
    assert closed(lane)["dropped"] == {"sink_failed": 3}
    assert sink.written == [3, 4, 5] and sink.told == [3]


def test_any_mixture_of_failures_and_slowness_is_accounted_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.0005)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.002)
    monkeypatch.setattr(lanes, "MAX_ITEMS", 20)
    random = np.random.default_rng(1)

    def fault(call: str, number: int) -> None:
        if call in ("write", "lost", "flush"):
            chance = random.random()
            if chance < 0.03:
                raise OSError("now and then")
            if chance < 0.1:
                time.sleep(0.0005)

    sink = Noting(fault)
    lane = opened(sink)
    for number in range(5000):
        lane.put(item(number))
        if number % 40 == 0:
            time.sleep(0.001)
    report = closed(lane)
    assert sink.written == sorted(set(sink.written)) and report["used"] == len(sink.written)
    assert report["received"] == 5000 and set(report["dropped"]) <= {"overflow", "sink_failed"}
    assert report["dropped"]["sink_failed"] > 10 and report["failures"] > 10
    assert sum(sink.told) == sum(report["dropped"].values())


def test_an_idle_sink_is_asked_to_keep_nothing_back() -> None:
    sink = Noting()
    lane = opened(sink)
    lane.put(item(1))
    wait_for(lambda: "flush" in sink.calls and sink.written)
    closed(lane)


def test_a_flush_that_fails_is_a_failure_and_costs_no_item() -> None:
    def fault(call: str, number: int) -> None:
        if call == "flush":
            raise OSError("full")

    sink = Noting(fault)
    lane = opened(sink)
    wait_for(lambda: lane.failures)
    time.sleep(0.02)
    assert sink.calls.count("flush") == 1, "not while it is left alone"
    lane.put(item(1))
    report = closed(lane)
    assert report["dropped"] == {"sink_failed": 1} and report["received"] == 1


def test_closing_does_not_wait_for_a_sink_that_hangs() -> None:
    gate = Gate("write", 0)
    sink = Noting(gate)
    sink.closing_s = 0.0
    lane = opened(sink)
    for number in range(3):
        lane.put(item(number))
    assert gate.reached.wait(WAIT_S)
    started = time.monotonic()
    lane.end({})
    assert not lane.join(0.05)
    assert time.monotonic() - started < 0.5
    account = lane.account
    assert (account.received, account.used, account.in_flight) == (3, 0, 3)
    gate.opened.set()
    wait_for(lambda: sink.calls[-1] == "close")
    assert account.used == 3 and account.in_flight == account.unaccounted == 0


def test_a_sink_has_the_time_that_it_says_it_needs_to_close() -> None:
    class Slow(Noting):
        closing_s = 1.0

        def close(self, summary: dict[str, Any]) -> None:
            time.sleep(0.1)
            super().close(summary)

    sink = Slow()
    lane = opened(sink)
    lane.end({})
    assert lane.join(0.0) and sink.calls[-1] == "close"


def test_a_close_that_raises_is_counted() -> None:
    def fault(call: str, number: int) -> None:
        if call == "close":
            raise OSError("full")

    sink = Noting(fault)
    lane = opened(sink)
    lane.put(item(1))
    report = closed(lane)
    assert report["failures"] == 1 and report["used"] == 1
    assert sink.calls.count("close") == 1


def test_a_sink_that_does_not_open_says_so_at_once() -> None:
    def fault(call: str, number: int) -> None:
        raise OSError("no such folder")

    lane = SinkLane(Noting(fault), LiveClock())
    with pytest.raises(OSError, match="no such folder"):
        lane.open({})


def test_a_reader_that_went_away_is_noticed() -> None:
    def fault(call: str, number: int) -> None:
        if call == "write":
            raise BrokenPipeError

    lane = opened(Noting(fault))
    assert not lane.reader_gone
    lane.put(item(1))
    wait_for(lambda: lane.reader_gone)
    assert "the reader of standard output went away" in closed(lane)["first_failure"]


def test_a_hang_is_counted_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [Gate("write", 1), Gate("write", 2)]
    ahead_s = [0.0]
    stopwatch = lanes.stopwatch_ns
    monkeypatch.setattr(lanes, "stopwatch_ns", lambda: stopwatch() + to_ns(ahead_s[0]))

    def fault(call: str, number: int) -> None:
        for gate in gates:
            gate(call, number)

    lane = opened(Noting(fault))
    for number, gate in enumerate(gates, start=1):
        lane.put(item(number))
        assert gate.reached.wait(WAIT_S)
        lane.supervise()
        assert lane.stuck == number - 1, "not yet"
        for _ in range(3):
            ahead_s[0] += 2.1
            lane.supervise()
            assert lane.stuck == number
        gate.opened.set()
        wait_for(lambda: lane.account.in_flight == 0)
        ahead_s[0] += 100
        lane.supervise()
        assert lane.stuck == number
    closed(lane)


def test_on_a_virtual_clock_a_sink_is_called_at_once() -> None:
    before = threading.active_count()
    sink = Noting()
    lane = opened(sink, VirtualClock())
    for number in range(2 * MAX_ITEMS):
        lane.put(item(number))
        assert sink.written[-1] == number
    assert closed(lane)["used"] == 2 * MAX_ITEMS
    assert threading.active_count() == before


@pytest.mark.parametrize("failure", [OSError("full"), BrokenPipeError(), KeyboardInterrupt()])
def test_on_a_virtual_clock_what_it_raises_ends_the_session(failure: BaseException) -> None:
    def fault(call: str, number: int) -> None:
        if number == 2:
            raise failure

    lane = opened(Noting(fault), VirtualClock())
    lane.put(item(1))
    with pytest.raises(type(failure)):
        lane.put(item(2))
    assert lane.account.used == 1 and lane.account.unaccounted == 0


def test_a_sink_that_may_fail_is_tried_again_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 1.0)

    def fault(call: str, number: int) -> None:
        if call == "write" and number in (1000, 2500):
            raise OSError("full")

    class MayFail(Noting):
        may_fail = True

    sink, clock = MayFail(fault), VirtualClock()
    lane = opened(sink, clock)
    for ms in range(0, 10_000, 100):
        clock.advance(ms * 1_000_000)
        lane.put(item(ms))
        assert lane.account.unaccounted == lane.account.in_flight == 0
    # Left alone for 0.8 to 1 s, then for 1.6 to 2 s since it had not worked for ten seconds.
    gaps = [
        b - a - 100 for a, b in zip(sink.written, sink.written[1:], strict=False) if b - a > 100
    ]
    assert len(gaps) == 2 and 800 <= gaps[0] <= 1000 and 1600 <= gaps[1] <= 2000
    report = closed(lane)
    assert report["failures"] == 2
    assert report["dropped"]["sink_failed"] == sum(gaps) / 100 == sum(sink.told)


def test_a_reader_that_went_away_ends_a_session_on_a_virtual_clock_whatever_may_fail() -> None:
    class MayFail(Noting):
        may_fail = True

    def fault(call: str, number: int) -> None:
        if call == "write":
            raise BrokenPipeError

    lane = opened(MayFail(fault), VirtualClock())
    with pytest.raises(BrokenPipeError):
        lane.put(item(1))
    assert lane.reader_gone and lane.account.unaccounted == 0


def test_a_recording_whose_last_items_were_lost_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mcap")
    from fusedge.bundle.recording_file import Gap, RecordingFile

    path = tmp_path / "drive.mcap"
    recorder = Recorder(path, ())
    write = recorder.write
    monkeypatch.setattr(
        recorder, "write", lambda it: write(it) if it.end_ns < 3 else (_ for _ in ()).throw(OSError)
    )
    lane = opened(recorder)
    for number in range(5):
        lane.put(item(number))
    assert closed(lane)["used"] == 3
    entries = list(RecordingFile(path).entries())
    assert [isinstance(entry, Gap) for entry in entries] == [False] * 3 + [True]
