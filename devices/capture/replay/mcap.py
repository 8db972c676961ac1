"""Recordings of fusedge as a source: `replay:FILE.mcap`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.recording import Document, Track
from fusedge.bundle.recording_file import Gap, RecordingFile
from fusedge.bundle.sample import Rejection, Sample, size
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Address, Wanted
from fusedge.devices.capture.units import conversion
from fusedge.devices.capture.wanted import Damage, given, unknown_channel, unmeasured

MAX_SILENCE_NS = to_ns(
    86_400.0
)  # of all sources together; a longer one is no recording of a session
MAX_TIME_NS = 1 << 61  # in 2043 if since 1970; windows around a later one leave int64


class RecordingSource:
    """What was received in a recorded session, with its stamps and in its order of arrival.

    `wanted` chooses modalities and their channels by name, and converts units where the recording knows
    them; None takes all as it is. A channel of a series that was not recorded is NaN, with a warning.
    Rejections come out as rejections. What cannot be read (`malformed`) and what the recorder missed
    (`recording_gap`) is one too, of the first modality where the file does not say of which. Arrival
    that falls is held, for live sources do not wait for each other; where it leaps by more than a day,
    or is MAX_TIME_NS or more from 0, the recording ends, so that its length bounds that of a replay. A
    sample with such a stamp is rejected (`implausible_stamp`). `prepared` are the modalities whose samples
    went through a front end before they were recorded.

    Raises FusedgeError where the file is no recording or has none of the wanted modalities,
    UnknownNameError where of a modality it has not one wanted channel, or not all of images or sound.
    """

    live = False

    def __init__(self, address: Address, path: Path, wanted: Wanted) -> None:
        self.uri = address.uri
        self._file = RecordingFile(path)
        fronts = self._file.info.session.get("fronts")
        self.prepared = frozenset(fronts if isinstance(fronts, dict) else ())
        self._selections = {
            modality: _Selection(
                address, modality, track, None if wanted is None else self._spec(wanted[modality])
            )
            for modality, track in self._file.info.tracks.items()
            if wanted is None or modality in wanted
        }
        if not self._selections:
            names = ", ".join(wanted or ()) or "any"
            offered = ", ".join(self._file.info.tracks) or "nothing"
            raise FusedgeError(
                f"offers none of the wanted modalities ({names})",
                where=self.uri,
                hint=f"it offers {offered}",
            )
        self.modalities = tuple(self._selections)
        self.warnings = (
            *(
                ()
                if self._file.complete
                else (Damage(f"{path} has no end: read as far as it goes"),)
            ),
            *(
                unmeasured(address, name, chosen.lacking)
                for name, chosen in self._selections.items()
                if chosen.lacking
            ),
        )
        self.channels = {name: chosen.channels for name, chosen in self._selections.items()}
        self.units = {name: chosen.units for name, chosen in self._selections.items()}
        self._closed = threading.Event()

    def _spec(self, spec: Modality) -> Modality:
        return spec if spec.name in self.prepared else given(spec)

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
        if isinstance(entry, Document) or entry.modality not in self._selections:
            return None
        if isinstance(entry, Gap):
            detail = f"{self._file.path}: {entry.reason}"
            return Rejection(entry.modality, entry.log_ns, "malformed", detail)
        if isinstance(entry, Rejection):
            return entry
        return entry._replace(data=self._selections[entry.modality].of(entry.data))

    def close(self) -> None:
        """End the iterator before its next item."""
        self._closed.set()


class _Selection:
    """The wanted channels of a track, in the wanted order and units; `lacking` are not in the track."""

    def __init__(
        self, address: Address, modality: str, track: Track, spec: Modality | None
    ) -> None:
        self.channels = track.channels if spec is None else tuple(c.name for c in spec.channels)
        self.units = track.units
        self._count = len(track.channels)
        self.lacking = [name for name in self.channels if name not in track.channels]
        given = [name for name in self.channels if name in track.channels]
        if not given or (self.lacking and spec is not None and spec.kind != "series"):
            missing = self.lacking if given else self.channels
            raise unknown_channel(address, modality, missing, track.channels)
        self._columns = [track.channels.index(name) for name in given]
        self._places = [self.channels.index(name) for name in given]
        self._factors = self._offsets = np.zeros(0, np.float32)
        if spec is not None and len(track.units) == len(track.channels):
            self.units = tuple(channel.unit for channel in spec.channels)
            pairs = [
                conversion(
                    track.units[column],
                    self.units[place],
                    f"{modality}.{self.channels[place]} in {address.uri}",
                )
                for column, place in zip(self._columns, self._places, strict=True)
            ]
            if any(pair != (1, 0) for pair in pairs):
                self._factors = np.array([pair.factor for pair in pairs], np.float32)
                self._offsets = np.array([pair.offset for pair in pairs], np.float32)

    def of(self, data: NDArray[Any]) -> NDArray[Any]:
        """What a sample's data becomes; unchanged where it is malformed."""
        if not data.ndim or data.shape[-1] != self._count:
            return data
        if self._columns != list(range(self._count)):
            data = data[..., self._columns]
        if len(self._factors) and data.dtype == np.float32:
            data = data * self._factors + self._offsets
        if self.lacking:
            whole = np.full((*data.shape[:-1], len(self.channels)), np.nan, np.float32)
            whole[..., self._places] = data
            return whole
        return data
