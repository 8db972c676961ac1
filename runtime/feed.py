"""Brings what the sources give to the pipeline: merged by arrival, or pumped by a thread each."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.sample import Rejection, Sample, data_bytes, size
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.source import Source
from fusedge.runtime.backoff import Backoff
from fusedge.runtime.clock import Clock, VirtualClock, stopwatch_ns
from fusedge.runtime.ledger import Account

Item = Sample | Rejection

CHUNK = 1024  # items that are taken at a time
CHUNK_BYTES = 64 << 20
MAX_APART_NS = to_ns(
    86_400.0
)  # of the beginnings of recorded sources, which else have no common time
QUEUE_AGE_NS = to_ns(2.0)  # what waits longer than this for the pipeline is given up
QUEUE_ITEMS = 65_536
QUEUE_BYTES = 256 << 20  # two seconds of 4K at 5 Hz
OPEN_S = 35.0  # for a device to be opened; sources give up by themselves after 30 s
MAX_STUCK = 4  # threads of a source that never came back, before it is given up until one does


class Feed(Protocol):
    """Where the pipeline's items come from."""

    last_ns: int
    """Arrival of the newest item taken."""
    deliver: Callable[[], None]
    """Called by a source's thread when something has come; set before `start`."""

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more."""

    def start(self) -> int:
        """Begin; the time of the session's beginning."""

    def take(self, until_ns: int | None) -> Sequence[Item]:
        """Items that arrived up to `until_ns` (None: the next ones), not all of them at once."""

    def supervise(self, now_ns: int) -> None:
        """Look after the sources: called every now and then."""

    def stop(self) -> None:
        """Ask the sources to end."""

    def join(self, timeout_s: float) -> list[str]:
        """Wait for the sources to end; those that did not."""

    def first_failures(self) -> dict[str, str]:
        """What went wrong first with each source, by URI; empty where nothing has."""

    def report(self) -> dict[str, Any]:
        """What each source gave, by URI, for the summary."""


class _Tally:
    """What one source gave: every item is received, and then used (handed to the pipeline), dropped or
    waiting.
    """

    def __init__(self, source: Source) -> None:
        self.uri = source.uri
        self.modalities = source.modalities
        self.waiting = 0
        self.account = Account(lambda: self.waiting)
        self.failures = self.restarts = self.silences = 0
        self.first_failure = ""

    def fail(self, detail: str) -> None:
        self.failures += 1
        self.first_failure = self.first_failure or printable(detail)

    def report(self) -> dict[str, Any]:
        return {
            "modalities": list(self.modalities),
            **self.account.as_dict(),
            "failures": self.failures,
            "first_failure": self.first_failure,
            "restarts": self.restarts,
            "silences": self.silences,
        }


class MergedFeed:
    """Recorded sources in the order of arrival, as fast as they are asked for. Contract: the same items
    in the same order every time. A source that raises ends there, and the others go on.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._tallies = [_Tally(source) for source in sources]
        self._items: Iterator[tuple[Item, _Tally]] = iter(())
        self._next: tuple[Item, _Tally] | None = None
        self.deliver: Callable[[], None] = lambda: None
        self.ended = False
        self.last_ns = 0

    @staticmethod
    def _read(source: Source, tally: _Tally) -> Iterator[tuple[Item, _Tally]]:
        account = tally.account
        try:
            for item in source.samples():
                count = size(item)
                account.received += count
                tally.waiting += count
                yield item, tally
        except Exception as error:  # a source may raise anything
            tally.fail(_told(error))

    def start(self) -> int:
        """See Feed. Raises FusedgeError where the sources have no common time."""
        streams: list[Iterator[tuple[Item, _Tally]]] = []
        begun: list[tuple[int, str]] = []
        for source, tally in zip(self._sources, self._tallies, strict=True):
            stream = self._read(source, tally)
            first = next(stream, None)
            if first is not None:
                begun.append((first[0].arrival_ns, tally.uri))
                streams.append(_chain(first, stream))
        _check_common_time(begun)
        self._items = heapq.merge(*streams, key=lambda pair: pair[0].arrival_ns)
        self._advance()
        return self._next[0].arrival_ns if self._next is not None else 0

    def _advance(self) -> None:
        self._next = next(self._items, None)
        self.ended = self._next is None

    def take(self, until_ns: int | None) -> Sequence[Item]:
        """See Feed."""
        pair = self._next
        if pair is None:
            return ()
        first_ns = pair[0].arrival_ns
        if until_ns is None:
            until_ns = first_ns
        elif first_ns > until_ns:
            return ()
        items: list[Item] = []
        left_bytes = CHUNK_BYTES
        while pair is not None and pair[0].arrival_ns <= until_ns:
            if len(items) == CHUNK or left_bytes < 0:
                break
            item, tally = pair
            items.append(item)
            left_bytes -= data_bytes(item)
            count = size(item)
            tally.waiting -= count
            tally.account.used += count
            pair = next(self._items, None)
        self._next = pair
        self.ended = pair is None
        self.last_ns = items[-1].arrival_ns
        return items

    def supervise(self, now_ns: int) -> None:
        """Recorded sources need nobody to look after them."""

    def stop(self) -> None:
        """See Feed."""
        for source in self._sources:
            source.close()

    def join(self, timeout_s: float) -> list[str]:
        """There is nothing to wait for."""
        return []

    def first_failures(self) -> dict[str, str]:
        """See Feed."""
        return {tally.uri: tally.first_failure for tally in self._tallies}

    def report(self) -> dict[str, Any]:
        """See Feed."""
        return {tally.uri: tally.report() for tally in self._tallies}


def feed_without_bundle(
    sources: Sequence[Source],
    uris: Sequence[str],
    reopen: Callable[[str], Source],
    clock: Clock,
    silence_s: float,
) -> tuple[Feed, Clock]:
    """The feed of open sources, and its clock: `clock`, which opened them, for devices, a virtual one for
    recordings. Raises FusedgeError for both together.
    """
    lives = {source.live for source in sources}
    if lives == {True, False}:
        raise FusedgeError(
            "devices and recordings have no common time",
            where=", ".join(source.uri for source in sources),
            hint="take them one after the other",
        )
    if True not in lives:
        return MergedFeed(sources), VirtualClock()
    pairs = [(s, partial(reopen, uri)) for s, uri in zip(sources, uris, strict=True)]
    return PumpedFeed(pairs, clock, silence_s), clock


class PumpedFeed:
    """Sources that are read by a thread each, while time goes on."""

    def __init__(
        self, sources: Sequence[tuple[Source, Callable[[], Source]]], clock: Clock, silence_s: float
    ) -> None:
        self._clock = clock
        self.deliver: Callable[[], None] = lambda: None
        self._arrived = False
        self._pumps = [
            Pump(source, reopen, clock, silence_s, self._something_came)
            for source, reopen in sources
        ]
        self.last_ns = 0

    @property
    def ended(self) -> bool:
        """See Feed."""
        return all(pump.ended for pump in self._pumps)

    def start(self) -> int:
        """See Feed."""
        begun = [
            (time_ns, pump.tally.uri)
            for pump in self._pumps
            if (time_ns := pump.prepare()) is not None
        ]
        _check_common_time(begun)
        self._clock.begin(min(begun)[0] if begun else 0)
        now_ns = self._clock.now_ns()
        for pump in self._pumps:
            pump.start(now_ns)
        return now_ns

    def take(self, until_ns: int | None) -> Sequence[Item]:
        """See Feed; all that has come, since the future has not."""
        if not self._arrived:
            return ()
        self._arrived = False  # before looking, so that what comes meanwhile is seen next time
        items: list[Item] = []
        for pump in self._pumps:
            items += pump.drain()
        if items:
            self.last_ns = max(self.last_ns, max(item.arrival_ns for item in items))
        return items

    def _something_came(self) -> None:
        self._arrived = True
        self.deliver()

    def supervise(self, now_ns: int) -> None:
        """See Feed."""
        for pump in self._pumps:
            pump.supervise(now_ns)

    def stop(self) -> None:
        """See Feed."""
        for pump in self._pumps:
            pump.stop()

    def join(self, timeout_s: float) -> list[str]:
        """See Feed."""
        end_ns = stopwatch_ns() + to_ns(timeout_s)
        return [
            pump.tally.uri
            for pump in self._pumps
            if not pump.join(max(0, end_ns - stopwatch_ns()) / NANOSECONDS)
        ]

    def first_failures(self) -> dict[str, str]:
        """See Feed."""
        return {pump.tally.uri: pump.tally.first_failure for pump in self._pumps}

    def report(self) -> dict[str, Any]:
        """See Feed."""
        return {
            pump.tally.uri: {**pump.tally.report(), "stuck": pump.stuck} for pump in self._pumps
        }


class Pump:
    """Reads one source in a thread of its own into a bounded queue.

    Contract: what a live source raises, its end and its silence for `silence_s` are failures: it is
    opened again after a back-off, for ever; to open it may take up to `OPEN_S`. A thread that does not
    come back from a source is left behind, at most `MAX_STUCK` of them at a time. A recorded source is
    read at the pace of the clock, once. What waits in the queue for more than `QUEUE_AGE_NS` is
    dropped, oldest first.
    """

    def __init__(
        self,
        source: Source,
        reopen: Callable[[], Source],
        clock: Clock,
        silence_s: float,
        deliver: Callable[[], None],
    ) -> None:
        self._deliver = deliver
        self._source: Source | None = source
        self._items: Iterator[Item] | None = None
        self._reopen = reopen
        self._clock = clock
        self._live = source.live
        self._silence_ns = to_ns(silence_s)
        self._lock = threading.Lock()
        self._queue: deque[Item] = deque()
        self._queue_bytes = 0
        self._lost: dict[str, int] = {}
        self._reading = self._opening = False
        self._heard_ns = 0
        self._retired = threading.Event()
        self._thread: threading.Thread | None = None
        self._left_behind: list[threading.Thread] = []
        self._finished = False
        self.tally = _Tally(source)
        self._backoff = Backoff(source.uri)

    @property
    def ended(self) -> bool:
        """Whether nothing will come and nothing waits."""
        return self._finished and not self._queue

    @property
    def stuck(self) -> int:
        """Threads that were left behind and have not come back."""
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        return len(self._left_behind)

    def prepare(self) -> int | None:
        """Read a recorded source up to its first item; the arrival of that."""
        if self._live or self._source is None:
            return None
        items = self._source.samples()
        try:
            first = next(items, None)
        except Exception as error:  # a source may raise anything
            self.tally.fail(_told(error))
            first = None
        self._items = iter(()) if first is None else _chain(first, items)
        return None if first is None else first.arrival_ns

    def start(self, now_ns: int) -> None:
        """Start the thread."""
        self._launch(now_ns, self._source)

    def _launch(self, now_ns: int, source: Source | None) -> None:
        self._heard_ns, self._reading, self._opening = now_ns, False, False
        self._retired = threading.Event()
        self._thread = threading.Thread(
            target=self._serve,
            args=(self._retired, source),
            name=f"source {self.tally.uri}",
            daemon=True,
        )
        self._thread.start()

    def _serve(self, retired: threading.Event, source: Source | None) -> None:
        while not retired.is_set():
            failure = self._read(retired, source) if source is not None else ""
            if retired.is_set():
                return
            if failure:
                self.tally.fail(failure)
            if not self._live:
                self._finished = True
                return
            while True:
                wait_ns = self._backoff.retry_ns(self._clock.now_ns())
                if retired.wait(self._clock.seconds_until(wait_ns)):
                    return
                if self.stuck < MAX_STUCK:
                    break
            source = self._open(retired)

    def _open(self, retired: threading.Event) -> Source | None:
        self._heard_ns, self._reading, self._opening = self._clock.now_ns(), True, True
        try:
            source = self._reopen()
        except Exception as error:  # a device that is away raises what it likes
            self.tally.fail(_told(error))
            return None
        finally:
            self._rest(retired)
        with self._lock:  # so that who retires it finds the source to close
            if not retired.is_set():
                self._source = source
        if retired.is_set():
            self._close(source)
            return None
        self.tally.restarts += 1
        self.tally.modalities = source.modalities
        self._backoff.started(self._clock.now_ns())
        return source

    def _read(self, retired: threading.Event, source: Source) -> str:
        """Read until the end; why it ended."""
        self._heard_ns, self._reading = self._clock.now_ns(), True
        clock, live = self._clock, self._live
        items, self._items = self._items, None
        try:
            for item in items if items is not None else source.samples():
                if not live:
                    if retired.wait(clock.seconds_until(item.arrival_ns)):
                        return ""
                    item = item._replace(arrival_ns=max(item.arrival_ns, clock.now_ns()))
                if not self._put(item, retired):
                    return ""
                self._deliver()
        except Exception as error:  # a source may raise anything
            return _told(error)
        finally:
            self._rest(retired)
            self._close(source)
        return "the stream ended" if live else ""

    def _rest(self, retired: threading.Event) -> None:
        with self._lock:
            if not retired.is_set():  # else it is another thread that reads
                self._reading = self._opening = False

    def _put(self, item: Item, retired: threading.Event) -> bool:
        count = size(item)
        with self._lock:
            if retired.is_set():
                return False  # another thread reads this source now
            self._heard_ns = item.arrival_ns
            queue, account = self._queue, self.tally.account
            account.received += count
            self.tally.waiting += count
            queue.append(item)
            self._queue_bytes += data_bytes(item)
            oldest_ns = item.arrival_ns - QUEUE_AGE_NS
            while len(queue) > 1 and (
                queue[0].arrival_ns < oldest_ns
                or len(queue) > QUEUE_ITEMS
                or self._queue_bytes > QUEUE_BYTES
            ):
                old = queue.popleft()
                self._queue_bytes -= data_bytes(old)
                lost = size(old)
                account.drop("overflow", lost)
                self.tally.waiting -= lost
                self._lost[old.modality] = self._lost.get(old.modality, 0) + lost
        return True

    def drain(self) -> list[Item]:
        """All that waits, and the account of what was dropped meanwhile."""
        if not self._queue:
            return []
        with self._lock:
            items: list[Item] = list(self._queue)
            self._queue.clear()
            self._queue_bytes = 0
            self.tally.account.used += self.tally.waiting
            self.tally.waiting = 0
            lost, self._lost = self._lost, {}
        newest_ns = items[-1].arrival_ns
        items += [Rejection(name, newest_ns, "overflow", "", n) for name, n in lost.items()]
        return items

    @property
    def _limit_ns(self) -> int:
        """For how long the source may say nothing."""
        return max(self._silence_ns, to_ns(OPEN_S)) if self._opening else self._silence_ns

    def supervise(self, now_ns: int) -> None:
        """Leave a live source that hangs, and open it again."""
        thread = self._thread
        if not self._live or thread is None or self._retired.is_set():
            return
        if not thread.is_alive():
            if self.stuck < MAX_STUCK:
                self._launch(now_ns, None)
        elif self._reading and now_ns - self._heard_ns > self._limit_ns:
            self.tally.silences += 1
            what = "not opened within" if self._opening else "silent for"
            self.tally.fail(f"{what} {self._limit_ns / 1e9:g} s")
            if self.stuck >= MAX_STUCK:
                self._heard_ns = now_ns
                return
            with self._lock:
                self._retired.set()
            self._left_behind.append(thread)
            self._close(self._source)
            self._launch(now_ns, None)

    def stop(self) -> None:
        """Ask the thread to end; returns at once."""
        with self._lock:
            self._retired.set()
        self._close(self._source)

    def join(self, timeout_s: float) -> bool:
        """Whether all its threads have ended within the time."""
        end_ns = stopwatch_ns() + to_ns(timeout_s)
        for thread in (self._thread, *self._left_behind):
            if thread is not None:
                thread.join(max(0, end_ns - stopwatch_ns()) / NANOSECONDS)
        return (self._thread is None or not self._thread.is_alive()) and not self.stuck

    def _close(self, source: Source | None) -> None:
        """In a thread: a device that hangs may hang in `close` as well, and then counts as stuck."""
        if source is not None:
            closer = threading.Thread(target=source.close, name=f"close {source.uri}", daemon=True)
            self._left_behind.append(closer)
            closer.start()


def _told(error: Exception) -> str:
    """Our own errors say where and what; of others the kind is told as well."""
    return str(error) if isinstance(error, FusedgeError) else f"{type(error).__name__}: {error}"


def _check_common_time(begun: Sequence[tuple[int, str]]) -> None:
    """Whether recorded sources, by first arrival and URI, can be of one drive."""
    if not begun:
        return
    (first_ns, early), (last_ns, late) = min(begun), max(begun)
    if last_ns - first_ns > MAX_APART_NS:
        raise FusedgeError(
            f"begins {(last_ns - first_ns) / NANOSECONDS:,.0f} s before {late}: "
            "they have no common time",
            where=early,
            hint="give a table's time an offset_s in its map",
        )


_T = TypeVar("_T")


def _chain(first: _T, rest: Iterator[_T]) -> Iterator[_T]:
    yield first
    yield from rest
