"""Telemetry of GoPro cameras, in their MP4 files or by itself (`.raw`): motion and GPS.

The format is GPMF: entries of a four-letter key, a type, a size and a count, some of which hold entries
again (documentation of github.com/gopro/gpmf-parser). Read are, of each payload, the first streams
called ACCL and GYRO (modality `imu`) and GPS9, or else GPS5 (`gps`).

- Times. Samples are spread evenly over the time of their payload, which the MP4 file gives, from the
  start of the film; payloads by themselves count as one second each. Against the camera's own
  microseconds (STMP, of newer ones) motion in a film of 10 s is 1 to 5 ms late by this, and GPS
  from 16 ms early to 61 ms late.
- Axes: x right and left, y forward and back, z up (+9.8 m/s2 at rest: gravity is in it), by the
  stream's ORIN. Without one the order is z, x, y, as HERO5 calls it, for a Fusion -y, x, z: so gravity
  lies on z in GoPro's samples of HERO5, HERO6, Fusion and Max. The signs of x and y were not checked.
- A gyroscope that is quicker than the accelerometer is averaged to its times.
- GPS without a fix is a rejection `no_fix`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import is_file
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.table_source import Fault, Row, TableSource

NOMINAL_S = 1.0
MAX_PAYLOAD_S = 3600.0
MAX_TIME_S = 1e9
MAX_PAYLOAD = 255 * 65_535 + 8  # bytes; what an entry can hold
MIN_FIX = 2  # 2 is a place, 3 a place and a height
SHORT = 1.5  # a step this much longer than the one before means that the payload is not full
UNITS = {"ACCL": b"m/s", "GYRO": b"rad/s"}  # how they begin; the square is a byte of Latin-1

_AXES = "xyz"
IMU = {
    **{f"acceleration_{axis}": "m/s2" for axis in _AXES},
    **{f"angular_velocity_{axis}": "rad/s" for axis in _AXES},
}
GPS = {"latitude": "deg", "longitude": "deg", "altitude": "m", "speed": "m/s", "speed_3d": "m/s"}
_NUMBERS = {
    "b": ">i1",
    "B": ">u1",
    "s": ">i2",
    "S": ">u2",
    "l": ">i4",
    "L": ">u4",
    "j": ">i8",
    "J": ">u8",
    "f": ">f4",
    "d": ">f8",
}
_HERO5_AXES, _FUSION_AXES = "ZXY", "yXZ"

_Floats = NDArray[np.float64]
_Payloads = Generator["Payload", None, None]


class Payload(NamedTuple):
    """Entries `DEVC…`, and the time that they span from the start of the film."""

    data: bytes
    start_s: float
    duration_s: float


class Entry(NamedTuple):
    """A key with its data: `repeat` times `size` bytes of `type`; "" is for entries within."""

    key: str
    type: str
    size: int
    repeat: int
    data: bytes


class Stream(NamedTuple):
    """Values `[N, columns]` in the stream's units, its axes if known, and the kind of GPS fix."""

    values: _Floats
    axes: str
    fix: int | None


def open_gpmf(request: Request) -> TableSource:
    """The telemetry of a GoPro file as a source: modalities `imu` and `gps`, as far as it has them.

    Stamps begin at 0 with the film. Raises FusedgeError where there is no telemetry, or nothing of it
    is wanted, MissingExtraError for a film without PyAV.
    """
    path = Path(request.address.target)
    table = GpmfTable(path)
    return TableSource(request.address, request.wanted, [table], table.warnings)


class GpmfTable:
    """A file's telemetry as a Table. Raises FusedgeError where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not is_file(path):
            raise FusedgeError("no such file", where=str(path))
        with closing(self._payloads()) as payloads:
            first = next(payloads, None)
        try:
            streams = {} if first is None else _streams(first.data)
        except ValueError as error:
            raise FusedgeError(f"its telemetry cannot be read: {error}", where=str(path)) from None
        motion = [streams[key] for key in UNITS if key in streams]
        self.offered: dict[str, Mapping[str, str]] = {"imu": IMU} if motion else {}
        if "GPS5" in streams or "GPS9" in streams:
            self.offered["gps"] = GPS
        if not self.offered:
            raise FusedgeError("holds no telemetry of a GoPro camera", where=str(path))
        warnings = []
        if not all(stream.axes for stream in motion):
            warnings.append(f"{path}: imu does not say how its axes lie; taken as a HERO5's")
        if self._raw:
            warnings.append(f"{path}: has no times; each payload counts as {NOMINAL_S:g} s")
        self.warnings = tuple(warnings)

    @property
    def _raw(self) -> bool:
        return self._path.suffix.lower() == ".raw"

    def _payloads(self) -> _Payloads:
        return _raw_payloads(self._path) if self._raw else _film_payloads(self._path)

    def rows(self, used: Mapping[str, Collection[str]]) -> Iterator[Row | Fault]:
        """See Table."""
        steps: dict[str, float] = {}
        number = 0
        with closing(self._payloads()) as payloads:
            while True:
                try:
                    payload = next(payloads, None)
                    if payload is None:
                        return
                    streams = _streams(payload.data)
                    items = _items(payload, streams, used, steps)
                except FusedgeError as error:  # it cannot be read on
                    yield from self._faults(used, number, error.what)
                    return
                except ValueError as error:
                    yield from self._faults(used, number, str(error))
                else:
                    yield from items
                number += 1

    def _faults(self, used: Collection[str], number: int, what: str) -> Iterator[Fault]:
        for name in used:
            yield Fault(name, "malformed", f"{self._path}: payload {number}: {what}")


def _raw_payloads(path: Path) -> _Payloads:
    """Payloads without times: a new one begins where the first device comes again."""
    gathered: list[bytes] = []
    number, device = 0, b""
    failure: FusedgeError | None = None
    with path.open("rb") as file:
        while failure is None:
            try:
                part = _device(file, path)
            except FusedgeError as error:
                part, failure = b"", error
            if gathered and part[8:20] in (device, b""):
                yield Payload(b"".join(gathered), number * NOMINAL_S, NOMINAL_S)
                gathered, number = [], number + 1
            if not part:
                break
            if not gathered:
                device = part[8:20]  # its first entry is DVID, 12 bytes long
            gathered.append(part)
    if failure is not None:
        raise failure


def _device(file: BinaryIO, path: Path) -> bytes:
    """The next DEVC entry, empty at the end of the file."""
    try:
        head = file.read(8)
        if not head.strip(b"\0"):
            return b""
        length = head[5] * int.from_bytes(head[6:8], "big") if len(head) == 8 else -1
        body = file.read((length + 3) // 4 * 4) if length >= 0 else b""
    except OSError as error:
        raise FusedgeError(f"cannot be read ({error})", where=str(path)) from None
    if head[:5] != b"DEVC\0" or len(body) < length:
        raise FusedgeError("is no telemetry of a GoPro camera, or cut off", where=str(path))
    return head + body


def _film_payloads(path: Path) -> _Payloads:
    from fusedge.devices.capture.decoding import pyav, text_options

    av = pyav()
    options = {"format_whitelist": "mov", "protocol_whitelist": "file"}
    try:
        with av.open(
            f"file:{path}", format="mov", container_options=options, **text_options()
        ) as film:
            start_s = (film.start_time or 0) / av.time_base
            streams = list(film.streams.data)
            for stream in film.streams:
                if stream not in streams:
                    stream.discard = av.stream.Discard.all
            chosen, end_s = None, 0.0
            for packet in film.demux(streams) if streams else ():
                if chosen not in (None, packet.stream.index) or packet.size > MAX_PAYLOAD:
                    continue
                data = bytes(packet)
                if not data.startswith(b"DEVC"):
                    continue
                chosen = packet.stream.index
                tick_s = float(packet.time_base or 0)
                begin_s = end_s if packet.pts is None else packet.pts * tick_s - start_s
                duration_s = (packet.duration or 0) * tick_s
                if not 0 < duration_s <= MAX_PAYLOAD_S:
                    duration_s = NOMINAL_S
                end_s = begin_s + duration_s
                yield Payload(data, begin_s, duration_s)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise FusedgeError(f"cannot be read ({error})", where=str(path)) from None


def entries(data: bytes) -> Iterator[Entry]:
    """The entries of one level; raises ValueError where one is cut off."""
    at = 0
    while at + 8 <= len(data):
        key, kind, size, count = struct.unpack_from(">4sBBH", data, at)
        if key == b"\0\0\0\0":
            return
        length = size * count
        body = data[at + 8 : at + 8 + length]
        name = key.decode("latin-1")
        if len(body) < length:
            raise ValueError(f"{name!r} is cut off")
        yield Entry(name, chr(kind) if kind else "", size, count, body)
        at += 8 + (length + 3) // 4 * 4


def _streams(data: bytes) -> dict[str, Stream]:
    """The streams that are read, by key: of several of a key the first."""
    streams: dict[str, Stream] = {}
    for device in entries(data):
        if device.key != "DEVC" or device.type:
            continue
        axes = ""
        for entry in entries(device.data):
            if entry.key == "DVNM" and entry.data.startswith(b"Fusion"):
                axes = _FUSION_AXES
            if entry.key == "STRM" and not entry.type:
                for key, found in _read_stream(entry.data, axes):
                    streams.setdefault(key, found)
    return streams


def _read_stream(data: bytes, axes: str) -> Iterator[tuple[str, Stream]]:
    about: dict[str, Entry] = {}
    for entry in entries(data):
        if entry.key not in (*UNITS, "GPS5", "GPS9"):
            about[entry.key] = entry
            continue
        unit = about.get("SIUN")
        expected = UNITS.get(entry.key, b"")
        if expected and unit is not None and not unit.data.startswith(expected):
            raise ValueError(f"{entry.key} is not in {expected.decode()}")
        values = _scaled(entry, about)
        if values.shape[1] < {"GPS5": 5, "GPS9": 9}.get(entry.key, 3):
            raise ValueError(f"{entry.key} has {values.shape[1]} columns")
        if "ORIN" in about:
            axes = about["ORIN"].data.decode("latin-1")
        fix = int(_numbers(about["GPSF"], "")[0, 0]) if "GPSF" in about else None
        known = sorted(axes.upper()) == list("XYZ")
        yield entry.key, Stream(values, axes if known else "", fix)


def _scaled(entry: Entry, about: Mapping[str, Entry]) -> _Floats:
    layout = about["TYPE"].data.decode("latin-1").rstrip("\0 ") if "TYPE" in about else ""
    values = _numbers(entry, layout)
    if "SCAL" not in about:
        return values
    scale = _numbers(about["SCAL"], "").ravel()
    if len(scale) not in (1, values.shape[1]) or not np.all(np.isfinite(scale) & (scale != 0)):
        raise ValueError(f"{entry.key} has no scale that fits")
    return values / scale


def _numbers(entry: Entry, layout: str) -> _Floats:
    """The numbers of an entry `[count, columns]`; `layout` has the type of each column of type `?`."""
    if entry.type == "?":
        types = re.sub(r"(.)\[(\d{1,2})\]", lambda m: m[1] * int(m[2]), layout)
    else:
        width = np.dtype(_NUMBERS.get(entry.type, ">u1")).itemsize
        types = entry.type * (entry.size // width)
    if not types or not entry.repeat or not set(types) <= set(_NUMBERS):
        raise ValueError(f"{entry.key!r} holds no numbers")
    record = np.dtype([(str(place), _NUMBERS[kind]) for place, kind in enumerate(types)])
    if record.itemsize != entry.size:
        raise ValueError(f"{entry.key!r} has {entry.size} bytes for {record.itemsize}")
    table = np.frombuffer(entry.data, record)
    return np.column_stack([table[name].astype(np.float64) for name in record.names or ()])


def _items(
    payload: Payload,
    streams: Mapping[str, Stream],
    used: Collection[str],
    steps: dict[str, float],
) -> list[Row | Fault]:
    """What a payload holds of the modalities, in the order of time."""
    timed: list[tuple[float, Row | Fault]] = []
    if "imu" in used:
        timed += _imu(payload, streams, steps)
    if "gps" in used:
        timed += _gps(payload, streams, steps)
    return [item for _, item in sorted(timed, key=lambda pair: pair[0])]


def _times(payload: Payload, key: str, count: int, steps: dict[str, float]) -> _Floats:
    """When the samples of a stream were taken, s. A payload that is not full has the step before."""
    step_s = payload.duration_s / count
    if key in steps and step_s > SHORT * steps[key]:
        step_s = steps[key]
    steps[key] = step_s
    times = np.asarray(payload.start_s + step_s * np.arange(count), np.float64)
    if not -MAX_TIME_S < payload.start_s < MAX_TIME_S:
        raise ValueError(f"its time is {payload.start_s:g} s")
    return times


def _imu(
    payload: Payload, streams: Mapping[str, Stream], steps: dict[str, float]
) -> Iterator[tuple[float, Row]]:
    keys = [key for key in UNITS if key in streams]
    if not keys:
        return
    times = _times(payload, keys[0], len(streams[keys[0]].values), steps)
    columns = []
    for key, names in (("ACCL", list(IMU)[:3]), ("GYRO", list(IMU)[3:])):
        if key in streams:
            own_times = (
                times if key == keys[0] else _times(payload, key, len(streams[key].values), steps)
            )
            values = _matched(times, own_times, _to_axes(streams[key]))
            columns += list(zip(names, values.T.tolist(), strict=True))
    for place, time_s in enumerate(times.tolist()):
        yield time_s, Row("imu", to_ns(time_s), {name: column[place] for name, column in columns})


def _to_axes(stream: Stream) -> _Floats:
    """Values `[N, 3]` in the order x, y, z; a small letter is an axis turned round."""
    axes = stream.axes or _HERO5_AXES
    places = [axes.upper().index(axis) for axis in "XYZ"]
    signs = [1.0 if axes[place].isupper() else -1.0 for place in places]
    return stream.values[:, places] * np.array(signs, np.float64)


def _matched(times: _Floats, own_times: _Floats, values: _Floats) -> _Floats:
    """Values at `times`: the mean of those nearest to each, interpolated where they are as few."""
    if len(own_times) < SHORT * len(times):
        return np.column_stack([np.interp(times, own_times, column) for column in values.T])
    nearest = np.searchsorted((times[1:] + times[:-1]) / 2, own_times, side="right")
    counts = np.bincount(nearest, minlength=len(times))
    sums = [np.bincount(nearest, column, len(times)) for column in values.T]
    with np.errstate(invalid="ignore"):
        means = np.column_stack(sums) / np.where(counts, counts, math.nan)[:, None]
    return np.asarray(means, np.float64)


def _gps(
    payload: Payload, streams: Mapping[str, Stream], steps: dict[str, float]
) -> Iterator[tuple[float, Row | Fault]]:
    key = "GPS9" if "GPS9" in streams else "GPS5"
    if key not in streams:
        return
    stream = streams[key]
    times = _times(payload, key, len(stream.values), steps)
    for time_s, values in zip(times.tolist(), stream.values.tolist(), strict=True):
        fix = values[8] if key == "GPS9" else stream.fix
        if fix is None or fix >= MIN_FIX:
            yield time_s, Row("gps", to_ns(time_s), dict(zip(GPS, values, strict=False)))
        else:
            yield time_s, Fault("gps", "no_fix", f"fix {fix:g} at {time_s:.3f} s", to_ns(time_s))
