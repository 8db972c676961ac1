"""A device that cannot be opened yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import shown


class AbsentSource:
    """Stands in for a device that is away, busy or not permitted, until it is opened again.

    It fails as soon as it is read, with the error of the device.
    """

    live = True
    modalities: tuple[str, ...] = ()

    def __init__(self, uri: str, error: FusedgeError) -> None:
        self.uri = shown(uri)
        self.error = error
        self.channels: Mapping[str, tuple[str, ...]] = {}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self.warnings: tuple[str, ...] = ()

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        raise self.error

    def close(self) -> None:
        """There is nothing to close."""
