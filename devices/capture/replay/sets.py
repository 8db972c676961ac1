"""Which reader a `replay:` URI means: a recording of fusedge, or a public data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusedge.bundle.regular_file import is_special
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.wanted import names_of

if TYPE_CHECKING:
    from fusedge.devices.capture.source import Source


def open_recording(request: Request) -> Source:
    """The source for a file or folder, known by its name and what it holds.

    Each reader is imported where it is used: a recording needs the package mcap, the others do not.
    """
    from fusedge.devices.capture.replay.comma import is_segment, open_segment
    from fusedge.devices.capture.replay.csv_sets import is_set, open_set, refuse_drive

    address = request.address
    path, wanted = Path(address.target), names_of(request.wanted)
    if path.suffix == ".mcap":
        refuse_drive(address)
        if is_special(path):
            raise address.error("cannot be read: it is no regular file")
        from fusedge.devices.capture.replay.mcap import RecordingSource

        return RecordingSource(address, path, request.wanted)
    if is_segment(path):
        refuse_drive(address)
        return open_segment(request)
    if is_set(path):
        return open_set(request)
    from fusedge.devices.capture.replay.uah import TripSource

    refuse_drive(address)
    return TripSource(address.uri, path, wanted)
