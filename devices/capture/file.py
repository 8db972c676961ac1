"""Files by their kind: tables of numbers, sound and pictures, and the films of action cameras."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from operator import attrgetter

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.source import Source

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TELEMETRY = ".raw"
STILLS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def open_file(request: Request) -> Source:
    """The source `file:NAME`, by what the file is; raises FusedgeError for what cannot be read.

    A GoPro film gives its telemetry with its pictures and sound, as far as they are wanted.
    """
    name = request.address.target.lower()
    if name.endswith(TABLES):
        from fusedge.devices.capture.csv_file import open_csv

        return open_csv(request)
    if name.endswith(STILLS):
        from fusedge.devices.capture.still import open_still

        return open_still(request)
    if name.endswith(TELEMETRY):
        from fusedge.devices.capture.gpmf import open_gpmf

        return open_gpmf(request)
    return _open_film(request)


def _open_film(request: Request) -> Source:
    from fusedge.devices.capture.gpmf import open_gpmf
    from fusedge.devices.capture.media import has_telemetry, open_media

    kinds = {"audio", "image", "series"}
    if request.wanted is not None:
        kinds = {spec.kind for spec in request.wanted.values()}
    if "series" not in kinds or not has_telemetry(request.address):
        return open_media(request)
    if kinds == {"series"}:
        return open_gpmf(request)
    film = open_media(request)
    try:
        return JoinedSource([film, open_gpmf(request)])
    except FusedgeError:  # it has nothing of what is wanted; the session says what nobody gives
        return film
    except BaseException:
        film.close()
        raise


class JoinedSource:
    """Recorded sources of one clock as one, merged in the order of arrival."""

    live = False

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.uri = sources[0].uri
        self.modalities = tuple(name for source in sources for name in source.modalities)
        self.channels: Mapping[str, tuple[str, ...]] = {
            name: channels for source in sources for name, channels in source.channels.items()
        }
        self.units = {name: units for source in sources for name, units in source.units.items()}
        self.warnings = tuple(line for source in sources for line in source.warnings)

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        with closing(self):
            feeds = [source.samples() for source in self._sources]
            yield from heapq.merge(*feeds, key=attrgetter("arrival_ns"))

    def close(self) -> None:
        """See Source."""
        for source in self._sources:
            source.close()
