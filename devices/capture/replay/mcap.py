"""Recordings of fusedge as a source: `replay:FILE.mcap`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.recording import Document
from fusedge.bundle.recording_file import Gap, RecordingFile
from fusedge.bundle.sample import Rejection, Sample, size
from fusedge.bundle.window import to_ns

MAX_SILENCE_NS = to_ns(
    86_400.0
)  # of all sources together; a longer one is no recording of a session
MAX_TIME_NS = 1 << 61  # in 2043 if since 1970; windows around a later one leave int64


class RecordingSource:
    """What was received in a recorded session, with its stamps and in its order of arrival.

    `wanted` chooses modalities and their channels by name; None takes all. Rejections come out as
    rejections. What cannot be read (`malformed`) and what the recorder missed (`recording_gap`) is one
    too, of the first modality where the file does not say of which. Arrival that falls is held, for
    live sources do not wait for each other; where it leaps by more than a day, or is MAX_TIME_NS or
    more from 0, the recording ends, so that its length bounds that of a replay. A sample with such a
    stamp is rejected (`implausible_stamp`).

    Raises FusedgeError where the file is no recording or has none of the wanted modalities.
    """

    live = False

    def __init__(self, uri: str, path: Path, wanted: Mapping[str, tuple[str, ...]] | None) -> None:
        self.uri = uri
        self._file = RecordingFile(path)
        self.warnings = (
            () if self._file.complete else (f"{path} has no end: read as far as it goes",)
        )
        self._columns = self._select(wanted)
        if not self._columns:
            names = ", ".join(wanted or ()) or "any"
            offered = ", ".join(self._file.info.tracks) or "nothing"
            raise FusedgeError(
                f"offers none of the wanted modalities ({names})",
                where=uri,
                hint=f"it offers {offered}",
            )
        self.modalities = tuple(self._columns)
        self._closed = threading.Event()

    def _select(self, wanted: Mapping[str, tuple[str, ...]] | None) -> dict[str, list[int] | None]:
        """The columns of each modality, None where they are all of them in their order."""
        self.channels: dict[str, tuple[str, ...]] = {}
        columns: dict[str, list[int] | None] = {}
        for modality, track in self._file.info.tracks.items():
            if wanted is not None and modality not in wanted:
                continue
            names = track.channels if wanted is None else wanted[modality]
            for name in names:
                if name not in track.channels:
                    kind = f"channel of {modality} in {self.uri}"
                    raise UnknownNameError(kind, name, track.channels)
            same = names == track.channels
            columns[modality] = None if same else [track.channels.index(name) for name in names]
            self.channels[modality] = names
        return columns

    def samples(self) -> Iterator[Sample | Rejection]:
        """Samples and rejections in the order of arrival."""
        arrival_ns: int | None = None
        for entry in self._file.entries():
            if self._closed.is_set():
                return
            item = self._item(entry)
            if item is None:
                continue
            leaps = arrival_ns is not None and item.arrival_ns - arrival_ns > MAX_SILENCE_NS
            if leaps or abs(item.arrival_ns) >= MAX_TIME_NS:
                what = "leaps ahead by more than a day" if leaps else f"is {item.arrival_ns} ns"
                yield self._implausible(item, arrival_ns or 0, f"arrival {what}")
                return
            arrival_ns = item.arrival_ns if arrival_ns is None else max(arrival_ns, item.arrival_ns)
            if isinstance(item, Sample) and abs(item.timestamp_ns) >= MAX_TIME_NS:
                yield self._implausible(item, arrival_ns, f"stamp is {item.timestamp_ns} ns")
            else:
                yield item._replace(arrival_ns=arrival_ns)
        if self._file.problem and self._file.complete:
            detail = f"{self._file.path}: {self._file.problem}"
            yield Rejection(self.modalities[0], arrival_ns or 0, "malformed", detail)

    def _implausible(self, item: Sample | Rejection, arrival_ns: int, what: str) -> Rejection:
        detail = f"{self._file.path}: {what}"
        return Rejection(item.modality, arrival_ns, "implausible_stamp", detail, size(item))

    def _item(self, entry: Sample | Rejection | Document | Gap) -> Sample | Rejection | None:
        if isinstance(entry, Gap) and not entry.modality:
            detail = f"{self._file.path}: {entry.reason} ({entry.lost or 'some'} entries)"
            return Rejection(self.modalities[0], entry.log_ns, "recording_gap", detail)
        if isinstance(entry, Document) or entry.modality not in self._columns:
            return None
        if isinstance(entry, Gap):
            detail = f"{self._file.path}: {entry.reason}"
            return Rejection(entry.modality, entry.log_ns, "malformed", detail)
        if isinstance(entry, Rejection):
            return entry
        columns = self._columns[entry.modality]
        track = self._file.info.tracks[entry.modality]
        whole = entry.data.ndim and entry.data.shape[-1] == len(track.channels)
        return (
            entry if columns is None or not whole else entry._replace(data=entry.data[..., columns])
        )

    def close(self) -> None:
        """End the iterator before its next item."""
        self._closed.set()
