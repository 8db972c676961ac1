"""Which reader a `replay:` URI means: a recording of fusedge, or a public data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusedge.devices.capture.address import Request
from fusedge.devices.capture.replay.uah import TripSource
from fusedge.devices.capture.wanted import names_of

if TYPE_CHECKING:
    from fusedge.devices.capture.source import Source


def open_recording(request: Request) -> Source:
    """The source for a file or folder, known by its name and what it holds."""
    path, wanted = Path(request.address.target), names_of(request.wanted)
    if path.suffix == ".mcap":
        from fusedge.devices.capture.replay.mcap import RecordingSource  # needs the package mcap

        return RecordingSource(request.address.uri, path, wanted)
    return TripSource(request.address.uri, path, wanted)
