"""What produces samples, and how a URI names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.sim import OPTIONS, SimulatedDrive, parse_options
from fusedge.devices.capture.uah import TripSource

Wanted = Mapping[str, tuple[str, ...]] | None
"""Modality to the names of the wanted channels, in the order of `Sample.data`; None: all there is."""


class Source(Protocol):
    """What produces the samples of one or more modalities.

    `modalities` are those that may come, `warnings` hold one line for each that was wanted and
    offered but cannot come or comes in part: what is wrong, and where.

    A `live` source stamps arrival with the injected `now_ns`. A source that is not live (recorded,
    simulated) has a time base of its own, gives `arrival_ns` on it as fast as it
    is asked, and yields the same items every time; whoever reads it keeps the pace.
    """

    @property
    def uri(self) -> str:
        """The name under which the source was opened."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that may come."""

    @property
    def channels(self) -> Mapping[str, tuple[str, ...]]:
        """Of each of `modalities` the names of its channels, in the order of `Sample.data`."""

    @property
    def live(self) -> bool:
        """Whether arrival is stamped with the injected clock."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is missing, one line each; known once the source is open."""

    def samples(self) -> Iterator[Sample | Rejection]:
        """Everything received, in the order of arrival; to be called once.

        `arrival_ns` never falls. `timestamp_ns` is passed on as the device gave it, so it may
        repeat, fall or leap. Whatever is received comes out as a sample or as a rejection, and
        unreadable input never raises.
        """

    def close(self) -> None:
        """End the iterator, also one that waits in another thread; may be called twice."""


class Scheme(NamedTuple):
    """How URIs `NAME:TARGET?OPTION=VALUE&…` of one scheme are opened."""

    form: str
    options: frozenset[str]
    open: Callable[[str, str, Mapping[str, str], Wanted, Callable[[], int]], Source]


def _recorded(uri: str, path: Path, wanted: Wanted) -> Source:
    if path.suffix != ".mcap":
        return TripSource(uri, path, wanted)
    from fusedge.devices.capture.mcap import RecordingSource  # a tenth of the runtime's import

    return RecordingSource(uri, path, wanted)


SCHEMES: Mapping[str, Scheme] = {
    "replay": Scheme(
        "replay:TRIP_FOLDER or replay:RECORDING.mcap",
        frozenset(),
        lambda uri, target, options, wanted, now_ns: _recorded(uri, Path(target), wanted),
    ),
    "sim": Scheme(
        "sim:?seed=1&duration_s=60&script=normal:20,aggressive:20,drowsy:20",
        OPTIONS,
        lambda uri, target, options, wanted, now_ns: SimulatedDrive(
            uri, parse_options(uri, target, options), wanted
        ),
    ),
}


def open_source(uri: str, channels: Wanted, now_ns: Callable[[], int]) -> Source:
    """The source that `uri` names, made to give the wanted channels.

    `channels` may hold modalities that the source does not offer; None takes all
    that it offers. `now_ns` is the clock with which a live source stamps arrival, in nanoseconds.
    Raises UnknownNameError for an unknown scheme, option or channel and FusedgeError where the
    source cannot be opened.
    """
    name, colon, rest = uri.partition(":")
    if not colon:
        forms = ", ".join(scheme.form for scheme in SCHEMES.values())
        raise FusedgeError("a source is named by scheme", where=uri, hint=f"write one of: {forms}")
    if name not in SCHEMES:
        raise UnknownNameError("source scheme", name, SCHEMES)
    target, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for option, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if option not in SCHEMES[name].options:
            raise UnknownNameError(f"option of {name}:", option, SCHEMES[name].options)
        if option in options:
            raise FusedgeError(f"option {option!r} is given twice", where=uri)
        options[option] = value
    return SCHEMES[name].open(uri, target, options, channels, now_ns)
