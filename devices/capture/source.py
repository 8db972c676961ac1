"""What produces samples, and how a URI names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request, Wanted, parse


class Source(Protocol):
    """What produces the samples of one or more modalities.

    `modalities` are those that may come, `warnings` hold one line for each that was wanted and
    offered but cannot come or comes in part: what is wrong, and where.

    A `live` source stamps arrival with the injected `now_ns`. A source that is not live (recorded,
    simulated) has a time base of its own, gives `arrival_ns` on it as fast as it
    is asked, and yields the same items every time; whoever reads it keeps the pace.

    One of recorded sessions says besides, by `prepared` (else: none), of which modalities it gives what
    a bundle's front end has made, rather than what a device gives.
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
    def units(self) -> Mapping[str, tuple[str, ...]]:
        """Of those of `modalities` that are series, the units of their channels."""

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


Opener = Callable[[str, Wanted, Callable[[], int]], Source]
"""As `open_source`: a URI, the wanted modalities, the clock for arrivals."""


class Scheme(NamedTuple):
    """How URIs `NAME:TARGET?OPTION=VALUE&…` of one scheme are opened.

    `live` says whether its sources are. `paths` are the options that name files; an empty one is the
    target. `isolated` sources call native code that may hang or crash, and are opened in a process of their
    own: see fusedge.devices.capture.isolated.
    """

    form: str
    options: frozenset[str]
    open: Callable[[Request], Source]
    live: bool = True
    isolated: bool = False
    paths: frozenset[str] = frozenset()


# Each opener imports what it needs: an import of the runtime takes no driver's package with it.


def _simulation(request: Request) -> Source:
    from fusedge.devices.capture.sim import open_simulation

    return open_simulation(request)


def _replay(request: Request) -> Source:
    from fusedge.devices.capture.replay.sets import open_recording

    return open_recording(request)


def _camera(request: Request) -> Source:
    from fusedge.devices.capture.camera import open_camera

    return open_camera(request)


def _csi(request: Request) -> Source:
    from fusedge.devices.capture.camera import open_csi

    return open_csi(request)


def _rtsp(request: Request) -> Source:
    from fusedge.devices.capture.rtsp import open_stream

    return open_stream(request)


def _file(request: Request) -> Source:
    from fusedge.devices.capture.file import open_file

    return open_file(request)


def _microphone(request: Request) -> Source:
    from fusedge.devices.capture.microphone import open_microphone

    return open_microphone(request)


def _can(request: Request) -> Source:
    from fusedge.devices.capture.can import open_can

    return open_can(request)


def _obd(request: Request) -> Source:
    from fusedge.devices.capture.obd import open_obd

    return open_obd(request)


def _gps(request: Request) -> Source:
    from fusedge.devices.capture.gps import open_serial_gps

    return open_serial_gps(request)


def _gpsd(request: Request) -> Source:
    from fusedge.devices.capture.gps import open_gpsd

    return open_gpsd(request)


def _imu(request: Request) -> Source:
    from fusedge.devices.capture.imu import open_imu

    return open_imu(request)


SCHEMES: Mapping[str, Scheme] = {
    "camera": Scheme(
        "camera:by-id/NAME?width=1280&height=720&fps=30",
        frozenset({"modality", "width", "height", "fps", "format"}),
        _camera,
        isolated=True,
    ),
    "csi": Scheme(
        "csi:0?width=1280&height=720&fps=30",
        frozenset({"modality", "width", "height", "fps", "mode", "flip"}),
        _csi,
        isolated=True,
    ),
    "rtsp": Scheme(
        "rtsp://HOST/PATH#transport=tcp",
        frozenset({"modality", "sound", "transport", "decoder"}),
        _rtsp,
        isolated=True,
    ),
    "file": Scheme(
        "file:DRIVE.mp4 or file:DRIVE.csv?map=COLUMNS.yaml",
        frozenset({"modality", "sound", "decoder", "map"}),
        _file,
        live=False,
        isolated=True,
        paths=frozenset({"", "map"}),
    ),
    "mic": Scheme(
        "mic:default or mic:NAME?rate=48000",
        frozenset({"modality", "rate", "channels", "block_ms"}),
        _microphone,
        isolated=True,
    ),
    "can": Scheme(
        "can:can0?dbc=CAR.dbc&map=SIGNALS.yaml",
        frozenset({"modality", "dbc", "map", "interface", "bitrate", "rate"}),
        _can,
        paths=frozenset({"dbc", "map"}),
    ),
    "obd": Scheme(
        "obd:/dev/ttyUSB0?baud=38400",
        frozenset({"modality", "baud", "protocol", "channels"}),
        _obd,
    ),
    "gps": Scheme("gps:/dev/ttyACM0?baud=9600", frozenset({"modality", "baud"}), _gps),
    "gpsd": Scheme("gpsd:HOST:PORT", frozenset({"modality", "device"}), _gpsd),
    "imu": Scheme(
        "imu:iio:0?mount=MOUNT.json",
        frozenset({"modality", "mount", "rate", "mode", "sysfs", "dev"}),
        _imu,
        paths=frozenset({"mount"}),
    ),
    "replay": Scheme(
        "replay:TRIP_FOLDER or replay:RECORDING.mcap",
        frozenset({"drive"}),
        _replay,
        live=False,
        paths=frozenset({""}),
    ),
    "sim": Scheme(
        "sim:?seed=1&duration_s=60&script=normal:20,aggressive:20,drowsy:20",
        frozenset(
            {"seed", "duration_s", "script", "road", "imu_outage", "gps_outage", "road_outage"}
        ),
        _simulation,
        live=False,
    ),
}


def is_live(uri: str) -> bool:
    """Whether a URI names a device, whose time is the machine's."""
    scheme = SCHEMES.get(uri.partition(":")[0])
    return scheme is not None and scheme.live


def open_source(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> Source:
    """The source that `uri` names, made to give the wanted modalities.

    `wanted` may hold modalities that the source does not offer; None takes all
    that it offers. `now_ns` is the clock with which a live source stamps arrival, in nanoseconds; an
    isolated one stamps with the machine's monotonic clock.
    Raises UnknownNameError for an unknown scheme, option or channel and FusedgeError where the
    source cannot be opened.
    """
    address = parse(uri, SCHEMES)
    if SCHEMES[address.scheme].isolated:
        from fusedge.devices.capture.isolated import IsolatedSource

        return IsolatedSource(uri, address, wanted)
    return open_here(Request(address, wanted, now_ns))


def open_here(request: Request) -> Source:
    """The source in this process, also where it is an isolated one."""
    return SCHEMES[request.address.scheme].open(request)
