"""Runs a sink so that it can neither slow nor end the session."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Any

from fusedge.bundle.errors import printable
from fusedge.bundle.sample import data_bytes
from fusedge.bundle.window import to_ns
from fusedge.runtime.backoff import Backoff
from fusedge.runtime.clock import Clock, stopwatch_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.ledger import Account
from fusedge.runtime.sinks.sink import ReaderLeftError, Sink

MAX_ITEMS = 4096
MAX_BYTES = 64 << 20  # of samples that wait for a recorder: two seconds of VGA at 30 Hz
STUCK_NS = to_ns(2.0)
HANGS_NS = to_ns(0.2)  # at the end, when there is no time to be sure
IDLE_S = 0.25

Item = Decision | Event | Entry


class SinkLane:
    """Contract: `put` never waits and never raises while time is real. A thread of its own gives the
    items to the sink; where more wait than fit, the oldest are dropped (`overflow`). A sink that
    raises is left alone for a back-off (`sink_failed`), and then tried again, for ever.

    While time is virtual nobody waits for a decision: the sink is called at once, holds the session
    up for as long as it needs, and what it raises ends the session, unless the sink `may_fail`.
    """

    def __init__(self, sink: Sink, clock: Clock, number: int = 0) -> None:
        self.sink = sink
        self._clock = clock
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._put_bytes = self._got_bytes = 0
        self._lost = 0
        self._busy_since_ns: int | None = None
        self._warned_stuck = False
        self._retry_ns: int | None = None
        self._backoff = Backoff(f"sink {number}")
        self._summary: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._waiting = 0  # with the one that the sink is writing
        self.account = Account(lambda: self._waiting)
        self.failures = self.stuck = 0
        self.first_failure = ""
        self.reader_gone: BrokenPipeError | ReaderLeftError | None = None
        """What says that nobody reads or watches any more, so that the session has no purpose."""

    def open(self, header: dict[str, Any]) -> None:
        """Open the sink; raises what it raises, since nothing has begun yet."""
        self.sink.open(header)
        if self._clock.real:
            self._thread = threading.Thread(
                target=self._serve, name=f"sink {self.sink.name}", daemon=True
            )
            self._thread.start()

    def put(self, item: Item) -> None:
        """Give an item to the sink, now or soon."""
        if self._thread is None:
            self.account.received += 1
            self._waiting += 1
            if self.sink.may_fail:
                self._give(item)
                return
            self.sink.write(item)
            self._waiting -= 1
            self.account.used += 1
            return
        self._put_bytes += data_bytes(item)
        queue = self._queue
        with self._lock:
            self.account.received += 1
            self._waiting += 1
            queue.put(item)
            while queue.qsize() > MAX_ITEMS or self._put_bytes - self._got_bytes > MAX_BYTES:
                try:
                    oldest = queue.get_nowait()
                except Empty:
                    break
                self._got_bytes += data_bytes(oldest)
                self._lost += 1
                self._waiting -= 1
                self.account.drop("overflow")

    def supervise(self) -> None:
        """Count a sink that hangs, once each time."""
        hangs = self._busy_for_ns() > STUCK_NS
        if hangs and not self._warned_stuck:
            self.stuck += 1
        self._warned_stuck = hangs

    def _busy_for_ns(self) -> int:
        """How long the sink has been at the item that it writes."""
        since_ns = self._busy_since_ns
        return 0 if since_ns is None else stopwatch_ns() - since_ns

    def end(self, summary: dict[str, Any]) -> None:
        """Let the sink write what waits, and close; what it raises on a virtual clock is raised."""
        self._summary = summary
        if self._thread is not None:
            self._queue.put(None)
        elif self.sink.may_fail:
            self._end()
        else:
            self.sink.close(summary)

    def join(self, timeout_s: float) -> bool:
        """Whether the sink has closed within the time; one that makes headway has its own `closing_s`."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self._busy_for_ns() < HANGS_NS:
            self._thread.join(max(0.0, self.sink.closing_s - timeout_s))
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=IDLE_S)
            except Empty:
                self._idle()
                continue
            if item is None:
                break
            with self._lock:
                self._got_bytes += data_bytes(item)
            self._give(item)
        self._end()

    def _idle(self) -> None:
        if self._retry_ns is None and self.reader_gone is None:
            try:
                self.sink.flush()
            except ReaderLeftError as error:
                self.reader_gone = error
            except Exception as error:
                self._fail(str(error), 0, item=False)

    def _give(self, item: Item) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
        now_ns = self._clock.now_ns()
        if self.reader_gone or (self._retry_ns is not None and now_ns < self._retry_ns):
            self._drop(lost)
            return
        self._busy_since_ns = stopwatch_ns()
        try:
            if lost:
                self.sink.lost(lost)
            self.sink.write(item)
        except ReaderLeftError as error:
            self.reader_gone = error
            self._drop(lost)
        except BrokenPipeError as error:
            self.reader_gone = error
            self._fail("the reader of standard output went away", lost)
            if self._thread is None:
                raise
        except Exception as error:  # a sink may raise anything; the session goes on without it
            self._fail(str(error), lost)
        else:
            with self._lock:
                self._waiting -= 1
                self.account.used += 1
            if self._retry_ns is not None:
                self._retry_ns = None
                self._backoff.started(now_ns)
        self._busy_since_ns = None

    def _end(self) -> None:
        try:
            if self._lost:
                self.sink.lost(self._lost)
            self.sink.close(self._summary)
        except Exception as error:
            self._fail(str(error), 0, item=False)

    def _drop(self, lost: int) -> None:
        with self._lock:
            self._waiting -= 1
            self.account.drop("reader_gone" if self.reader_gone else "sink_failed")
            self._lost += lost + 1

    def _fail(self, detail: str, lost: int, item: bool = True) -> None:
        self.failures += 1
        self.first_failure = self.first_failure or printable(detail)
        self._retry_ns = self._backoff.retry_ns(self._clock.now_ns())
        if item:
            self._drop(lost)

    def report(self) -> dict[str, Any]:
        """For the summary."""
        return {
            **self.account.as_dict(),
            "failures": self.failures,
            "first_failure": self.first_failure,
            "stuck": self.stuck,
        }
