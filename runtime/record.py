"""Records sources without a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.recording import Track
from fusedge.bundle.sample import Rejection, Sample, size
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import shown
from fusedge.devices.capture.source import Opener, Source, open_source
from fusedge.runtime.clock import Clock, LiveClock, stopwatch_ns
from fusedge.runtime.feed import Feed, feed_without_bundle
from fusedge.runtime.ledger import Account, Ledger
from fusedge.runtime.session import SILENCE_S
from fusedge.runtime.sinks.recorder import Recorder

POLL_S = 0.02
PROGRESS_NS = to_ns(0.2)
PATIENCE_S = 0.3  # for sources to end


@dataclass(frozen=True)
class RecordProgress:
    """How far a recording has come."""

    seconds: float
    items: int
    bytes_written: int


@dataclass(frozen=True)
class RecordReport:
    """What was recorded: `modalities` is the ledger, in which used samples are recorded ones."""

    ended: str
    seconds: float
    bytes_written: int
    modalities: dict[str, Any]
    sources: dict[str, Any]
    warnings: list[str]


def record(
    uris: Sequence[str],
    path: Path,
    stop: Event,
    *,
    seconds: float | None = None,
    jpeg_quality: int | None = None,
    open_uri: Opener = open_source,
    progress: Callable[[RecordProgress], None] = lambda progress: None,
) -> RecordReport:
    """Write all that the sources give to a new recording, until they end, `seconds` of their time have
    passed or `stop` is set. Live sources go on together in real time; others as fast as they can.

    Raises FusedgeError where a source cannot be opened, a modality comes twice, or the disk is full;
    what was written before stays readable.
    """
    live = LiveClock()
    with ExitStack() as opened:
        sources: list[Source] = []
        for uri in uris:
            sources.append(open_uri(uri, None, live.now_ns))
            opened.callback(sources[-1].close)
        tracks = _tracks(sources)
        warnings = [printable(line) for source in sources for line in source.warnings]
        feed, clock = feed_without_bundle(
            sources, uris, lambda uri: open_uri(uri, None, live.now_ns), live, SILENCE_S
        )
        opened.pop_all()
    recorder = Recorder(path, tracks, jpeg_quality=jpeg_quality)
    run = _Run(feed, recorder, Ledger({name: Account() for name in tracks}))
    limit_ns = None if seconds is None else to_ns(seconds)
    header = {"sources": [shown(uri) for uri in uris], "clock": clock.kind, "warnings": warnings}
    ended, done = "failed", Event()
    Thread(target=_close_at_stop, args=(feed, stop, done), name="stop", daemon=True).start()
    try:
        recorder.open(header)
        ended = run.loop(clock, stop, limit_ns, progress)
    except OSError as error:
        raise FusedgeError(
            f"recording ended: {error.strerror or error}",
            where=str(path),
            hint="what was written before can be read",
        ) from None
    finally:
        done.set()
        feed.stop()
        feed.join(PATIENCE_S)
        ledger, given = run.ledger.as_dict(), feed.report()
        with suppress(FusedgeError) if ended == "failed" else nullcontext():
            recorder.close({"ended": ended, "ledger": ledger, "sources": given})
    return RecordReport(ended, run.seconds, path.stat().st_size, ledger, given, warnings)


def _close_at_stop(feed: Feed, stop: Event, done: Event) -> None:
    """Close the sources once `stop` is set: the loop may wait for one that hangs."""
    while not done.wait(POLL_S):
        if stop.is_set():
            feed.stop()
            return


def _tracks(sources: Sequence[Source]) -> dict[str, Track]:
    tracks: dict[str, Track] = {}
    for source in sources:
        for modality, channels in source.channels.items():
            if modality in tracks:
                raise FusedgeError(
                    f"{modality} comes from two sources",
                    where=source.uri,
                    hint="leave one of them out",
                )
            tracks[modality] = Track(channels, units=source.units.get(modality, ()))
    return tracks


class _Run:
    """The loop of a recording, and the account of what went through it."""

    def __init__(self, feed: Feed, recorder: Recorder, ledger: Ledger) -> None:
        self.ledger = ledger
        self._feed = feed
        self._recorder = recorder
        self._items = 0
        self._first_ns: int | None = None
        self._last_ns = 0

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        first_ns = self._last_ns if self._first_ns is None else self._first_ns
        return (self._last_ns - first_ns) / NANOSECONDS

    def loop(
        self,
        clock: Clock,
        stop: Event,
        limit_ns: int | None,
        progress: Callable[[RecordProgress], None],
    ) -> str:
        """Record; how it ended."""
        feed, shown_ns = self._feed, stopwatch_ns()
        start_ns = feed.start()
        while not stop.is_set():
            if clock.real and limit_ns is not None and clock.now_ns() - start_ns >= limit_ns:
                return "time is up"
            for item in (items := feed.take(None)):
                if limit_ns is not None and item.arrival_ns - start_ns >= limit_ns:
                    return "time is up"
                self._take(item)
            now_ns = stopwatch_ns()
            if now_ns - shown_ns >= PROGRESS_NS:
                shown_ns = now_ns
                feed.supervise(clock.now_ns())
                self._recorder.flush()
                progress(RecordProgress(self.seconds, self._items, self._recorder.bytes_written))
            if not items:
                if feed.ended:
                    return "end of input"
                stop.wait(POLL_S)
        return "stopped"

    def _take(self, item: Sample | Rejection) -> None:
        self._recorder.write(item)
        self._items += 1
        if self._first_ns is None:
            self._first_ns = item.arrival_ns
        self._last_ns = max(self._last_ns, item.arrival_ns)
        account, count = self.ledger.account(item.modality), size(item)
        account.received += count
        if isinstance(item, Rejection):
            account.drop(item.reason, count, item.detail)
        else:
            account.used += count
