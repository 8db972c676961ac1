"""What sources give comes to the pipeline: merged by arrival, or pumped by threads that may hang."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample, size
from fusedge.bundle.window import to_ns
from fusedge.runtime import backoff, feed
from fusedge.runtime.clock import LiveClock, PacedClock
from fusedge.runtime.feed import CHUNK, MAX_STUCK, MergedFeed, Pump, PumpedFeed

pytestmark = pytest.mark.real_time
Item = Sample | Rejection
MS = 1_000_000
WAIT_S = 5.0


def item(arrival_ms: float, modality: str = "fast", samples: int = 1) -> Sample:
    time_ns = round(arrival_ms * MS)
    shape = (2,) if samples == 1 else (samples, 1)
    return Sample(modality, time_ns, time_ns, np.zeros(shape, np.float32))


def now(number: int) -> Callable[[], Sample]:
    """An item that arrives when it is given."""
    return lambda: item(number)._replace(arrival_ns=time.monotonic_ns())


class Recorded:
    """Gives what it was made with, then raises if it was told to."""

    live = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self, items: Sequence[Item], failure: BaseException | None = None, uri: str = "list:"
    ) -> None:
        self.items, self.failure, self.uri = items, failure, uri
        self.modalities: tuple[str, ...] = ("fast",)
        self.channels: dict[str, tuple[str, ...]] = {}
        self.units: dict[str, tuple[str, ...]] = {}
        self.closed = 0

    def samples(self) -> Iterator[Item]:
        yield from self.items
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.closed += 1


class Wire(Recorded):
    """A live source that gives what a test sends, calls what can be called, raises an exception, and
    ends on None.
    """

    live = True

    def __init__(self, *sent: Any) -> None:
        super().__init__((), uri="wire:")
        self.sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for thing in sent:
            self.sent.put(thing)

    def samples(self) -> Iterator[Item]:
        while (thing := self.sent.get()) is not None:
            if isinstance(thing, Exception):
                raise thing
            if callable(thing):
                thing = thing()
            if thing is not None:
                yield thing

    def close(self) -> None:
        super().close()
        self.sent.put(None)


def wait_for(condition: Callable[[], object], what: str = "it") -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.001)


def taken(merged: MergedFeed, until_ns: int | None = None) -> list[Item]:
    items: list[Item] = []
    while not merged.ended and (some := merged.take(until_ns)):
        items += some
    return items


arrivals = st.lists(st.integers(0, 50), max_size=30).map(sorted)


@given(
    sources=st.lists(arrivals, min_size=1, max_size=4),
    untils=st.lists(st.none() | st.integers(-5, 60), max_size=30),
)
def test_recorded_sources_come_in_the_order_of_arrival_and_the_same_every_time(
    sources: list[list[int]], untils: list[int | None]
) -> None:
    given_items = [
        [item(ms, name) for ms in times] for name, times in zip("abcd", sources, strict=False)
    ]
    expected = sorted(itertools.chain(*given_items), key=lambda i: i.arrival_ns)  # stable, as merge
    merged = MergedFeed([Recorded(items, uri=str(n)) for n, items in enumerate(given_items)])
    begin_ns = merged.start()
    assert begin_ns == (expected[0].arrival_ns if expected else 0)
    got: list[Item] = []
    for until_ms in untils:
        until_ns = None if until_ms is None else until_ms * MS
        some = merged.take(until_ns)
        if until_ns is None and not merged.ended:
            assert some and len({i.arrival_ns for i in some}) == 1
        assert all(i.arrival_ns <= until_ns for i in some if until_ns is not None)
        got += some
        rest = expected[len(got) :]
        if until_ns is not None:
            assert not rest or rest[0].arrival_ns > until_ns
        assert merged.ended == (not rest)
        assert merged.last_ns == (got[-1].arrival_ns if got else 0)
        used = [account["used"] for account in merged.report().values()]
        assert sum(used) == len(got), "used is what was handed over"
        for account in merged.report().values():
            assert account["received"] == account["used"] + account["in_flight"]
    got += taken(merged)
    assert [id(i) for i in got] == [id(i) for i in expected]
    assert merged.take(None) == merged.take(10**18) == ()


def test_no_more_than_a_chunk_is_taken_at_a_time() -> None:
    merged = MergedFeed([Recorded([item(1)] * (2 * CHUNK + 5))])
    merged.start()
    assert [len(merged.take(to_ns(1))) for _ in range(4)] == [CHUNK, CHUNK, 5, 0]


def test_a_recorded_source_that_raises_ends_there_and_the_others_go_on() -> None:
    torn = Recorded([item(1), item(5)], OSError("unplugged"), "torn:")
    empty = Recorded([], ValueError("bad\x1b header"), "empty:")
    whole = Recorded([item(n) for n in range(10)], uri="whole:")
    merged = MergedFeed([torn, empty, whole])
    merged.start()
    assert len(taken(merged)) == 12
    report = merged.report()
    assert report["torn:"]["failures"] == report["empty:"]["failures"] == 1
    assert report["whole:"]["failures"] == 0
    assert merged.first_failures() == {
        "torn:": "OSError: unplugged",
        "empty:": "ValueError: bad\N{REPLACEMENT CHARACTER} header",
        "whole:": "",
    }
    merged.stop()
    assert torn.closed == empty.closed == whole.closed == 1 and merged.join(0) == []


def test_an_interrupt_is_not_a_failure_of_the_source() -> None:
    merged = MergedFeed([Recorded([item(1)], KeyboardInterrupt())])
    merged.start()
    with pytest.raises(KeyboardInterrupt):
        taken(merged)


def test_sound_and_rejections_count_as_many_samples_as_they_are() -> None:
    items = [item(1, samples=160), Rejection("mic", 2 * MS, "torn", "", 40), item(3)]
    merged = MergedFeed([Recorded(items)])
    merged.start()
    taken(merged)
    assert merged.report()["list:"]["used"] == 201


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """All threads end with their test."""
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not set(threading.enumerate()) - before, "the end of all threads")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.02)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.2)


def never() -> Any:
    raise OSError("not there")


class Pumped:
    """A pump over live sources, the first given, the others made by `reopen`."""

    def __init__(
        self,
        source: Recorded,
        reopen: Callable[[], Any] = never,
        silence_s: float = 60,
        clock: LiveClock | PacedClock | None = None,
    ) -> None:
        self.clock = clock or LiveClock()
        self.delivered = 0
        self.source = source
        self.pump = Pump(source, reopen, self.clock, silence_s, self._deliver)
        self.account = self.pump.tally.account

    def _deliver(self) -> None:
        self.delivered += 1

    def __enter__(self) -> Pumped:
        self.pump.prepare()
        self.pump.start(self.clock.now_ns())
        return self

    def __exit__(self, *_: object) -> None:
        self.pump.stop()
        wait_for(lambda: self.pump.join(WAIT_S), "the end of its threads")
        assert self.account.unaccounted == 0

    def supervise(self) -> None:
        self.pump.supervise(self.clock.now_ns())

    def supervise_until(self, condition: Callable[[], object], what: str = "it") -> None:
        wait_for(lambda: (self.supervise(), condition())[1], what)


def received(pumped: Pumped, count: int) -> None:
    wait_for(lambda: pumped.account.received == count, f"item {count}")


def test_a_live_source_is_handed_on_as_it_comes() -> None:
    wire = Wire()
    with Pumped(wire) as pumped:
        assert pumped.pump.drain() == []
        sent: list[Item] = [item(1), item(2, samples=50), Rejection("fast", 3 * MS, "torn", "", 7)]
        for thing in sent:
            wire.sent.put(thing)
        received(pumped, 58)
        assert pumped.account.in_flight == 58 and pumped.account.unaccounted == 0
        assert [id(i) for i in pumped.pump.drain()] == [id(i) for i in sent]
        assert pumped.account.used == 58 and pumped.account.in_flight == 0
        wait_for(lambda: pumped.delivered == 3)
        assert not pumped.pump.ended
    assert wire.closed >= 1


def test_what_waits_is_bounded_by_count_and_the_oldest_are_told_as_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "QUEUE_ITEMS", 10)
    wire = Wire(*(item(n, "fast" if n % 3 else "mic", 1 if n % 3 else 20) for n in range(100)))
    with Pumped(wire) as pumped:
        received(pumped, 66 + 34 * 20)
        assert pumped.account.in_flight == 6 + 4 * 20 and pumped.account.unaccounted == 0
        items = pumped.pump.drain()
        assert [i.arrival_ns // MS for i in items[:10]] == list(range(90, 100))
        assert items[10:] == [
            Rejection("mic", 99 * MS, "overflow", "", 30 * 20),
            Rejection("fast", 99 * MS, "overflow", "", 60),
        ]
        assert sum(size(i) for i in items) == pumped.account.received
        assert pumped.account.dropped == {"overflow": 660}
        assert pumped.account.used == 86 and pumped.account.unaccounted == 0
        assert pumped.pump.drain() == [], "told once"


def test_what_waits_is_bounded_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "QUEUE_AGE_NS", 1000 * MS)
    wire = Wire(*(item(ms) for ms in (0, 500, 600, 1500, 1601)))
    with Pumped(wire) as pumped:
        received(pumped, 5)
        items = pumped.pump.drain()
        assert [i.arrival_ns // MS for i in items] == [1500, 1601, 1601]
        assert items[-1] == Rejection("fast", 1601 * MS, "overflow", "", 3)


def test_one_block_that_is_larger_than_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "QUEUE_ITEMS", 1)
    with Pumped(Wire(item(1), item(10**6, samples=100))) as pumped:
        received(pumped, 101)
        assert [size(i) for i in pumped.pump.drain()] == [100, 1]


def test_a_source_that_fails_is_opened_again_for_ever_less_and_less_often() -> None:
    tries: list[int] = []
    wires: list[Wire] = []

    def reopen() -> Wire:
        tries.append(time.monotonic_ns())
        if len(tries) < 5:
            raise OSError(f"try {len(tries)}")
        wires.append(Wire(item(len(tries))))
        return wires[-1]

    first = Wire(item(0), ValueError("torn"))
    with Pumped(first, reopen) as pumped:
        failed = time.monotonic_ns()
        received(pumped, 2)
        waits = [(b - a) / 1e9 for a, b in itertools.pairwise([failed, *tries])]
        least = [0.8 * min(0.02 * 2**n, 0.2) for n in range(5)]
        assert all(wait >= low for wait, low in zip(waits[1:], least[1:], strict=True))
        tally = pumped.pump.tally
        assert (tally.failures, tally.restarts) == (5, 1)
        assert tally.first_failure == "ValueError: torn"
        wires[0].sent.put(None)  # a live stream that ends has failed
        received(pumped, 3)
        assert (tally.failures, tally.restarts) == (6, 2)
        assert first.closed == wires[0].closed == 1
        assert len(pumped.pump.drain()) == 3


def test_stopping_does_not_wait_for_a_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 60)
    monkeypatch.setattr(backoff, "LONGEST_S", 60)
    started = time.monotonic()
    with Pumped(Wire(OSError("gone"))) as pumped:
        wait_for(lambda: pumped.pump.tally.failures == 1)
    assert time.monotonic() - started < 1


def test_a_source_opened_after_the_stop_is_closed() -> None:
    entered, release = threading.Event(), threading.Event()
    late = Wire()

    def reopen() -> Wire:
        entered.set()
        release.wait(WAIT_S)
        return late

    pumped = Pumped(Wire(None), reopen)
    with pumped:
        assert entered.wait(WAIT_S)
        pumped.pump.stop()
        assert not pumped.pump.join(0.01)
        release.set()
    assert late.closed >= 1 and pumped.pump.tally.restarts == 0


class Hanging:
    """Calls that do not come back until they are told to."""

    def __init__(self) -> None:
        self.entered = 0
        self.released = threading.Event()

    def __call__(self) -> None:
        self.entered += 1
        self.released.wait(WAIT_S)


def test_a_source_that_hangs_is_left_and_opened_again_and_what_it_brings_later_is_refused() -> None:
    hang = Hanging()
    second = Wire(now(2))
    with Pumped(Wire(now(1), hang, now(666)), lambda: second, silence_s=0.2) as pumped:
        received(pumped, 1)
        pumped.supervise_until(lambda: pumped.account.received == 2, "the second source")
        pump = pumped.pump
        assert pump.stuck == 1 and pump.tally.silences == 1 and pump.tally.restarts == 1
        assert pump.tally.first_failure == "silent for 0.2 s"
        hang.released.set()
        wait_for(lambda: pump.stuck == 0)
        assert [i.timestamp_ns // MS for i in pump.drain()] == [1, 2]  # type: ignore[union-attr]
        assert pumped.account.received == 2


def test_a_second_hang_is_noticed_after_the_first_came_back() -> None:
    hangs = [Hanging(), Hanging()]
    second = Wire(now(2))
    opened = iter([second, Wire(now(3))])
    with Pumped(Wire(now(1), hangs[0]), lambda: next(opened), silence_s=0.2) as pumped:
        pumped.supervise_until(lambda: pumped.account.received == 2)
        hangs[0].released.set()
        wait_for(lambda: pumped.pump.stuck == 0)
        second.sent.put(hangs[1])
        pumped.supervise_until(lambda: pumped.account.received == 3, "the third source")
        assert pumped.pump.tally.silences == 2
        hangs[1].released.set()


def test_opening_may_take_longer_than_silence() -> None:
    opened: list[int] = []

    def reopen() -> Wire:
        time.sleep(0.6)
        opened.append(1)
        return Wire(now(2))

    with Pumped(Wire(OSError("gone")), reopen, silence_s=0.2) as pumped:
        pumped.supervise_until(lambda: pumped.account.received == 1)
        assert pumped.pump.tally.silences == 0 and opened == [1]


def test_opening_that_hangs_is_noticed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "OPEN_S", 0.2)
    hang = Hanging()
    calls = itertools.count()

    def reopen() -> Wire:
        if next(calls) == 0:
            hang()
        return Wire(now(2))

    with Pumped(Wire(OSError("gone")), reopen, silence_s=0.2) as pumped:
        pumped.supervise_until(lambda: pumped.account.received == 1)
        assert pumped.pump.tally.silences == 1
        hang.released.set()


def test_threads_of_a_source_that_always_hangs_are_bounded() -> None:
    hang = Hanging()
    with Pumped(Wire(hang), lambda: Wire(hang), silence_s=0.02) as pumped:
        pump = pumped.pump
        pumped.supervise_until(lambda: pump.stuck == MAX_STUCK == hang.entered)
        for _ in range(20):
            time.sleep(0.01)
            pump.supervise(pumped.clock.now_ns())
        assert pump.stuck == MAX_STUCK == hang.entered
        assert not pumped.pump.join(0.01)
        assert pumped.account.received == 0
        hang.released.set()


def test_a_close_that_hangs_holds_nobody_up() -> None:
    hang = Hanging()

    class Heavy(Wire):
        def close(self) -> None:
            super().close()
            hang()

    pumped = Pumped(Heavy(item(1)))
    pumped.pump.start(pumped.clock.now_ns())
    received(pumped, 1)
    started = time.monotonic()
    pumped.pump.stop()
    assert time.monotonic() - started < 0.5
    assert not pumped.pump.join(0.05)
    hang.released.set()
    assert pumped.pump.join(WAIT_S)


def pumped_feed(*sources: Recorded, clock: Any, reopen: Callable[[], Any] = never) -> PumpedFeed:
    return PumpedFeed([(source, reopen) for source in sources], clock, 60)


def test_recorded_sources_keep_their_own_pace_and_end() -> None:
    clock = PacedClock(20)
    one = Recorded([item(ms) for ms in range(1000, 5000, 100)], uri="one:")
    two = Recorded([item(ms, "slow") for ms in range(1500, 3000, 500)], uri="two:")
    paced = pumped_feed(one, two, clock=clock)
    assert to_ns(1) <= paced.start() < to_ns(2)
    seen: list[Item] = []
    while not paced.ended:
        time.sleep(0.002)
        some = paced.take(None)
        now_ns = clock.now_ns()
        assert all(i.timestamp_ns <= i.arrival_ns <= now_ns for i in some if isinstance(i, Sample))
        seen += some
        paced.supervise(now_ns)
    assert clock.now_ns() >= to_ns(4.9)
    fast = [i for i in seen if i.modality == "fast"]
    assert [i.timestamp_ns // MS for i in fast] == list(range(1000, 5000, 100))  # type: ignore[union-attr]
    late_ms = np.array([i.arrival_ns - i.timestamp_ns for i in fast]) / MS  # type: ignore[union-attr]
    assert np.median(late_ms) < 100  # 5 ms of this machine
    assert paced.last_ns == max(i.arrival_ns for i in seen)
    report = paced.report()
    assert (report["one:"]["used"], report["two:"]["used"]) == (40, 3)
    assert not any(r["failures"] or r["in_flight"] for r in report.values())
    paced.stop()
    assert paced.join(WAIT_S) == []


@pytest.mark.parametrize("items", [[], [item(1000), item(1100)]])
def test_a_recorded_source_that_raises_ends_and_is_not_opened_again(items: list[Item]) -> None:
    reopened: list[int] = []
    torn = Recorded(items, OSError("torn"), "torn:")
    whole = Recorded([item(1200)], uri="whole:")
    paced = pumped_feed(torn, whole, clock=PacedClock(50), reopen=lambda: reopened.append(1))
    paced.start()
    wait_for(lambda: not paced.take(None) and paced.ended)
    report = paced.report()
    assert report["torn:"]["failures"] == 1 and report["torn:"]["used"] == len(items)
    assert report["whole:"]["used"] == 1
    assert paced.first_failures() == {"torn:": "OSError: torn", "whole:": ""}
    paced.stop()
    assert paced.join(WAIT_S) == [] and not reopened


def test_stopping_a_recording_in_the_middle_does_not_wait_for_its_next_item() -> None:
    paced = pumped_feed(Recorded([item(1000), item(10**9)]), clock=PacedClock(1))
    paced.start()
    started = time.monotonic()
    paced.stop()
    assert paced.join(WAIT_S) == []
    assert time.monotonic() - started < 1
    assert not paced.ended


def test_a_feed_names_the_sources_that_did_not_end() -> None:
    hang = Hanging()
    stuck, well = Wire(hang), Wire()
    stuck.uri = "stuck:"
    live = pumped_feed(stuck, well, clock=LiveClock())
    live.start()
    wait_for(lambda: hang.entered)
    live.stop()
    started = time.monotonic()
    assert live.join(0.1) == ["stuck:"]
    assert time.monotonic() - started < 1
    hang.released.set()
    assert live.join(WAIT_S) == []


def test_whoever_waits_is_told_when_something_comes() -> None:
    told = threading.Event()
    wire = Wire()
    live = pumped_feed(wire, clock=LiveClock())
    live.deliver = told.set
    live.start()
    assert not told.is_set() and not live.take(None)
    wire.sent.put(item(1))
    assert told.wait(WAIT_S)
    assert len(live.take(None)) == 1 and live.last_ns == MS
    live.stop()
    assert live.join(WAIT_S) == []


def test_a_chunk_is_bounded_in_bytes() -> None:
    megabytes = np.zeros(1 << 18, np.float32)
    items = [Sample("fast", 1, 1, megabytes) for _ in range(200)]
    feed = MergedFeed([Recorded(items)])
    feed.start()
    sizes = []
    while not feed.ended:
        sizes.append(len(feed.take(1)))
    assert sum(sizes) == 200 and max(sizes) <= 70


@pytest.mark.parametrize("paced", [False, True])
def test_recordings_without_a_common_time_are_refused(paced: bool) -> None:
    sources = [Recorded([item(0)]), Recorded([item(10**15)])]
    merged = pumped_feed(*sources, clock=PacedClock(1)) if paced else MergedFeed(sources)
    with pytest.raises(FusedgeError, match="they have no common time"):
        merged.start()


def test_devices_and_recordings_are_not_taken_together() -> None:
    sources = [Recorded([item(0)]), Wire(None)]
    with pytest.raises(FusedgeError, match="devices and recordings have no common time"):
        feed.feed_without_bundle(sources, ["a", "b"], never, LiveClock(), 1)
