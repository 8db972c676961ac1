"""Files by their kind: tables of numbers, or sound and pictures."""

from __future__ import annotations

from fusedge.devices.capture.address import Request
from fusedge.devices.capture.source import Source

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def open_file(request: Request) -> Source:
    """The source `file:NAME`; raises FusedgeError for what cannot be read."""
    if request.address.target.lower().endswith(TABLES):
        from fusedge.devices.capture.csv_file import open_csv

        return open_csv(request)
    from fusedge.devices.capture.media import open_media

    return open_media(request)
