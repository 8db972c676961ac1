"""Records a session as MCAP: everything that a replay to the bit needs, or clips around what happened."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import (
    DECISIONS,
    EVENTS,
    GAPS,
    JOURNAL,
    Message,
    Track,
    document_message,
    pillow,
    rejection_message,
    sample_message,
)
from fusedge.bundle.recording_file import FORMAT_VERSION, Info, RecordingWriter, require_mcap
from fusedge.bundle.sample import Rejection, Sample, data_bytes
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Cut, Entry, Finish, Tick
from fusedge.runtime.sinks.sink import Sink

Item = Decision | Event | Entry

FLUSH_NS = to_ns(0.25)  # leaves three quarters of the promised second to a machine under load
ENTRY_BYTES = 256  # of memory that a waiting item needs besides its array
CATCH_UP = 4  # items written for each that comes, so that the start of a clip holds nobody up
CLIP_BYTES = 256 << 20  # of what waits for an event: 9 s of VGA at 30 Hz


class Recorder(Sink):
    """Writes the journal, decisions and events to a new file, in the order in which they come.

    What `write` was given is the operating system's, and so outlives this process, at the next call
    of `write` or `flush` that comes FLUSH_NS after. Where the disk is full, `write` raises OSError
    without having taken its item; the file is whole as far as it goes, and goes on from there as
    soon as a later call succeeds. `tracks` names the channels of the modalities. The index, written
    at the end, takes 10 MB of memory an hour.

    With `jpeg_quality` images are smaller, and the recording is marked as not exact.
    """

    journal = True
    closing_s = 1.0

    def __init__(
        self,
        path: Path,
        tracks: Mapping[str, Track],
        *,
        jpeg_quality: int | None = None,
        clip: str = "",
    ) -> None:
        require_mcap()
        if jpeg_quality is not None:
            pillow()
        self.name = f"recording {path}"
        self._path = path
        self._tracks = dict(tracks)
        self._jpeg_quality = jpeg_quality
        self._clip = clip
        self._writer: RecordingWriter | None = None
        self._now_ns = 0
        self._waiting_since_ns: int | None = None
        self._missing = 0

    @property
    def bytes_written(self) -> int:
        """The file's size so far."""
        return self._writer.bytes_written if self._writer is not None else 0

    def open(self, header: dict[str, Any]) -> None:
        """Create the file; one that is there already is never replaced."""
        info = Info(
            format_version=FORMAT_VERSION,
            fusedge=version("fusedge"),
            exact=self._jpeg_quality is None and not self._clip,
            clip=self._clip,
            tracks=self._tracks,
            session=header,
        )
        self._writer = RecordingWriter(self._path, info)
        self.flush()

    def write(self, item: Item) -> None:
        """Take one item."""
        writer = self._writer
        assert writer is not None, "open the sink first"
        now_ns = stopwatch_ns()
        since_ns = self._waiting_since_ns
        if writer.must_flush or (since_ns is not None and now_ns - since_ns >= FLUSH_NS):
            self.flush()
        if self._missing:
            writer.add(self._gap(self._missing))
            self._missing = 0
        writer.add(self._message(item))
        if self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns

    def lost(self, count: int) -> None:
        """Mark a gap before the next item: a replay is exact only up to the first one."""
        self._missing = count

    def flush(self) -> None:
        """Hand everything to the operating system now."""
        if self._writer is not None:
            self._writer.flush()
            self._waiting_since_ns = None

    def close(self, summary: dict[str, Any]) -> None:
        """Write what is left and the index."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            if self._missing:
                writer.add(self._gap(self._missing))
            writer.close(summary)
        except OSError as error:
            raise FusedgeError(
                f"the recording has no end: {error.strerror or error}",
                where=str(self._path),
                hint="what was written before can be replayed",
            ) from None

    def _gap(self, lost: int) -> Message:
        return document_message(GAPS, self._now_ns, self._now_ns, {"lost": lost})

    def _message(self, item: Item) -> Message:
        if isinstance(item, Sample):
            self._now_ns = item.arrival_ns
            try:
                return sample_message(item, self._tracks.get(item.modality), self._jpeg_quality)
            except FusedgeError:  # too large, or no numbers at all
                return self._gap(1)
        if isinstance(item, Rejection):
            self._now_ns = item.arrival_ns
            return rejection_message(item)
        if isinstance(item, Decision | Event):
            channel = DECISIONS if isinstance(item, Decision) else EVENTS
            return document_message(channel, self._now_ns, item.timestamp_ns, item.as_dict())
        if isinstance(item, Finish):
            about_ns = self._now_ns = item.now_ns
        elif isinstance(item, Cut | Tick):
            about_ns = item.end_ns if isinstance(item, Cut) else item.tick_ns
        else:
            about_ns = self._now_ns
        fields = {"type": type(item).__name__.lower(), **item._asdict()}
        return document_message(JOURNAL, self._now_ns, about_ns, fields)


class EventClips(Sink):
    """For those who may not keep everything: a recording for each event and each change of a label, from
    `before_s` before it came out until `after_s` after. Clips that overlap are one.

    Until something happens, items wait in memory, of which the oldest go beyond `max_bytes`. A clip
    is no exact recording, for it does not begin where the session did; as a source it runs.
    """

    journal = True
    closing_s = 1.0

    def __init__(
        self,
        folder: Path,
        tracks: Mapping[str, Track],
        before_s: float,
        after_s: float,
        *,
        max_bytes: int = CLIP_BYTES,
        jpeg_quality: int | None = None,
    ) -> None:
        require_mcap()
        self.name = f"clips {folder}"
        self.clips: list[Path] = []
        self._folder = folder
        self._tracks = tracks
        self._before_ns, self._after_ns = to_ns(before_s), to_ns(after_s)
        self._max_bytes = max_bytes
        self._jpeg_quality = jpeg_quality
        self._header: dict[str, Any] = {}
        self._waiting: deque[tuple[int, Item]] = deque()
        self._waiting_bytes = 0
        self._now_ns = 0
        self._until_ns = 0
        self._recorder: Recorder | None = None
        self._labels: dict[str, str] = {}

    def open(self, header: dict[str, Any]) -> None:
        """Make the folder."""
        self._header = header
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FusedgeError(
                f"cannot keep clips here: {error.strerror or error}", where=str(self._folder)
            ) from None

    def write(self, item: Item) -> None:
        """Keep the item, or write it to the clip that is open."""
        self._now_ns = max(self._now_ns, _time_ns(item))
        reason = self._reason(item)
        self._waiting.append((self._now_ns, item))
        self._waiting_bytes += _bytes(item)
        if reason:
            self._until_ns = self._now_ns + self._after_ns
            if self._recorder is None:
                self._recorder = self._begin(reason)
        if self._recorder is not None:
            written = self._catch_up(self._recorder, CATCH_UP)
            # until then, another event may make this clip longer
            if written and self._now_ns - self._before_ns > self._until_ns:
                self._end()
        self._forget()

    def lost(self, count: int) -> None:
        """Mark a gap in the clip that is open."""
        if self._recorder is not None:
            self._recorder.lost(count)

    def flush(self) -> None:
        """Hand what the open clip has to the operating system now."""
        if self._recorder is not None:
            self._recorder.flush()

    def close(self, summary: dict[str, Any]) -> None:
        """End the clip that is open."""
        if self._recorder is not None:
            self._catch_up(self._recorder, len(self._waiting))
        self._end()

    def _catch_up(self, recorder: Recorder, count: int) -> bool:
        """Write some of what waits; whether all that belongs to the clip is written."""
        waiting = self._waiting
        for _ in range(count):
            if not waiting or waiting[0][0] > self._until_ns:
                break
            recorder.write(waiting[0][1])
            self._forget_oldest()
        return not waiting or waiting[0][0] > self._until_ns

    def _forget(self) -> None:
        """Drop the oldest beyond the time or the memory; an open clip's wait for their turn."""
        oldest_ns = -1 if self._recorder is not None else self._now_ns - self._before_ns
        while self._waiting and (
            self._waiting[0][0] < oldest_ns or self._waiting_bytes > self._max_bytes
        ):
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, item = self._waiting.popleft()
        self._waiting_bytes -= _bytes(item)

    def _reason(self, item: Item) -> str:
        """What makes a clip of the item, in a few words; empty where nothing does."""
        if isinstance(item, Event):
            return item.name if item.phase == "start" else ""
        reason = ""
        if isinstance(item, Decision):
            for name, output in item.outputs.items():
                if output.label is None:
                    continue
                if self._labels.setdefault(name, output.label) != output.label:
                    self._labels[name] = output.label
                    reason = f"{name}-{output.label}"
        return reason

    def _begin(self, reason: str) -> Recorder:
        path = next(path for path in self._names(reason) if not path.exists())
        clip = f"{reason} at {self._now_ns / 1e9:.3f} s"
        recorder = Recorder(path, self._tracks, jpeg_quality=self._jpeg_quality, clip=clip)
        recorder.open(self._header)
        self.clips.append(path)
        return recorder

    def _names(self, reason: str) -> Iterator[Path]:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", reason)[:80]
        number = len(self.clips)
        while True:
            number += 1
            yield self._folder / f"{number:04}-{plain}.mcap"

    def _end(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close({})


def _bytes(item: Item) -> int:
    return ENTRY_BYTES + data_bytes(item)


def _time_ns(item: Item) -> int:
    """When an item came about on the session's clock, as far as it says so itself."""
    if isinstance(item, Sample | Rejection):
        return item.arrival_ns
    return item.now_ns if isinstance(item, Finish) else 0
