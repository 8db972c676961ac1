"""GPS receivers, at a serial port or behind gpsd, as sources of fixes.

gpsd is spoken to directly, a JSON object a line over TCP: the package gpsdclient reads lines of any
length, and can neither be given up while it waits nor told which receiver is meant.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.access import missing
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.fixes import CHANNELS, Fix, FixRows
from fusedge.devices.capture.held_device import HeldDevice
from fusedge.devices.capture.nmea import NmeaReader, NoFix
from fusedge.devices.capture.remembered import Remembered
from fusedge.devices.capture.serial_ports import open_serial
from fusedge.devices.capture.source import Source
from fusedge.devices.capture.wanted import RowLayout, modality_of

if TYPE_CHECKING:
    import serial

WAIT_S = 0.1  # of a read, and so the longest that close waits
# The default of the standard, what makers set, its high-speed one and its old one.
RATES = (9600, 115200, 38400, 4800, 57600, 19200, 230400, 460800)
QUIET_READS = 30  # in a row: 3 s without a byte is no receiver, for without a fix they send as well
RATE_READS = 12  # without a byte, while trying a rate: a burst comes every second
RATE_BYTES = 600  # more than one burst of most receivers
BURST_BYTES = 200  # and then none: a whole burst, of which two sentences are 164
CHUNK = 4096
WITHOUT_POSITION = 60  # sentences, some seconds of all kinds

GPSD_PORT = 2947  # assigned by IANA
GPSD_TIMEOUT_S = 3.0
GPSD_LINE = 16_384  # gpsd's own limit is 10 240 (GPS_JSON_RESPONSE_MAX)
SKY_AGE_NS = to_ns(6.0)
LOST_NS = to_ns(5.0)  # without a fix, before another receiver is taken
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)
Item = Sample | Rejection

_rates: Remembered[int] = Remembered()  # by port
_receivers: Remembered[str] = Remembered()  # of each gpsd the one that was read


def open_serial_gps(request: Request) -> Source:
    """The source `gps:PORT?baud=RATE`; without a rate, or with auto, the usual ones are tried.

    That takes up to 12 s; a port that is opened again begins with the rate that was found.
    """
    return SerialGps(request)


def open_gpsd(request: Request) -> Source:
    """The source `gpsd:HOST:PORT?device=PATH`; both HOST and PORT may be left out."""
    return Gpsd(request)


class _Gps(HeldDevice):
    """What the two have in common: see Source."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.uri = request.address.uri
        self._address, self._now_ns = request.address, request.now_ns
        modality, spec = modality_of(request.address, request.wanted, "series", "gps")
        layout = RowLayout(request.address, modality, spec, CHANNELS)
        self._rows = FixRows(layout)
        self._modality = modality
        self.modalities = (modality,)
        self.channels = {modality: layout.channels}
        self.units = {modality: layout.units}
        self.warnings = layout.warnings

    def _broken(self, detail: str, arrival_ns: int) -> Rejection:
        return Rejection(self._modality, arrival_ns, "malformed", detail)


class SerialGps(_Gps):
    """A receiver that sends NMEA 0183 to a serial port."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._reader = NmeaReader()
        given = self._address.text("baud", "auto")
        rate = None if given == "auto" else self._address.whole("baud", None, 300, 4_000_000)
        first = rate or _rates.get(self._address.target) or RATES[0]
        rates = (first,) if rate else (first, *(other for other in RATES if other != first))
        self._first: list[Item] = []
        self._port = open_serial(self._address, self._address.target, first, timeout_s=WAIT_S)
        try:
            self._find_rate(rates)
        except BaseException:
            self._release()
            raise

    def _find_rate(self, rates: tuple[int, ...]) -> None:
        heard, only = 0, len(rates) == 1
        for rate in rates:
            if rate != self._port.baudrate:
                try:
                    self._port.baudrate = rate
                    self._port.reset_input_buffer()
                except (OSError, ValueError):  # the port does not know this rate
                    continue
            self._reader = NmeaReader()
            heard += self._listen(QUIET_READS if only or not heard else RATE_READS)
            if self._reader.sentences:
                _rates.put(self._address.target, rate)
                return
            if not heard:
                raise self._address.error(
                    f"not one byte in {QUIET_READS * WAIT_S:.0f} s",
                    hint="is it the receiver's port, and is the receiver powered?",
                )
        tried = f"{rates[0]} baud" if only else "any usual rate"
        raise self._address.error(
            f"{heard} bytes but not one NMEA sentence at {tried}",
            hint="baud=auto finds the rate" if only else "is it a GPS receiver, set to NMEA?",
        )

    def _listen(self, silent_reads: int) -> int:
        """Read until there is a sentence or no hope of one; how many bytes came."""
        heard = quiet = 0
        while not self._reader.sentences and heard < RATE_BYTES:
            data = self._read()
            quiet += not data
            heard += len(data)
            if quiet >= (RATE_READS if heard else silent_reads):
                break
            if not data and heard >= BURST_BYTES:
                break
            self._first = [*self._take(data)]
        return heard

    def _read(self) -> bytes:
        port: serial.Serial = self._port
        try:
            # one byte is waited for, what has come with it is taken
            data: bytes = port.read(1)
            return data + port.read(min(port.in_waiting, CHUNK)) if data else data
        except (OSError, TypeError) as error:  # TypeError: pyserial, closed meanwhile
            raise self._address.error(f"the receiver is gone: {printable(str(error))}") from None

    def _take(self, data: bytes) -> Iterator[Item]:
        arrival_ns = self._now_ns()
        for found in self._reader.feed(data):
            if isinstance(found, Fix):
                yield self._rows.row(found, arrival_ns)
            elif isinstance(found, NoFix):
                yield self._rows.lost(arrival_ns, found.detail)
            else:
                yield self._broken(found.detail, arrival_ns)

    def _items(self) -> Iterator[Item]:
        yield from self._first
        while not self._closed.is_set():
            yield from self._take(self._read())
            if not self._reader.positions and self._reader.sentences > WITHOUT_POSITION:
                raise self._address.error(
                    f"{WITHOUT_POSITION} NMEA sentences, but no RMC",
                    hint="switch RMC on in the receiver",
                )

    def _release(self) -> None:
        self._port.close()


class Gpsd(_Gps):
    """A receiver behind gpsd (protocol 3, gpsd_json(5)).

    Contract: of one receiver only. That is the one that is named, or else the first that has a fix, until
    it has had none for 5 s and another has.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        host, port = _host_and_port(self._address)
        self._device = self._address.text("device")
        self._left = b""
        self._waiting: deque[bytes | None] = deque()
        self._pinned: object = None
        self._pinned_ns = 0
        self._sky: tuple[object, int, float, float] | None = None
        try:
            self._socket = socket.create_connection((host, port), GPSD_TIMEOUT_S)
        except OSError as error:
            raise self._address.error(
                f"no gpsd at {host}:{port}: {error.strerror or error}",
                hint="is it running? sudo systemctl start gpsd",
            ) from None
        try:
            self._socket.settimeout(WAIT_S)
            self._watch()
        except BaseException:
            self._release()
            raise

    def _watch(self) -> None:
        if self._answer("VERSION") is None:
            raise self._address.error("this is not gpsd", hint="it answers otherwise")
        command: dict[str, Any] = {"enable": True, "json": True}
        if self._device:
            command["device"] = self._device
        try:
            self._socket.sendall(b"?DEVICES;?WATCH=" + json.dumps(command).encode() + b";\n")
        except OSError as error:
            raise self._gone(error) from None
        answer = self._answer("DEVICES") or {}
        listed = answer.get("devices")
        devices = [
            str(device.get("path"))
            for device in (listed if isinstance(listed, list) else [])
            if isinstance(device, dict)
        ]
        if self._device and self._device not in devices:
            raise missing(self._address, self._device, devices)
        known = _receivers.get(self._address.target)
        if not self._device and known in devices:  # another one that has come later does not matter
            self._pinned, self._pinned_ns = known, self._now_ns()
        elif not self._device and len(devices) > 1:
            raise self._address.error(
                f"gpsd has {', '.join(devices)}", hint=f"say which: device={devices[0]}"
            )
        if not devices:
            self.warnings += (f"{self.uri}: gpsd has no receiver yet",)

    def _answer(self, kind: str) -> dict[str, Any] | None:
        """The next answer of that class; None where none comes in time."""
        for _ in range(round(GPSD_TIMEOUT_S / WAIT_S)):
            while self._waiting:
                answer = _object(self._waiting.popleft())
                if answer is not None and answer.get("class") == kind:
                    return answer
            self._receive()
        return None

    def _receive(self) -> None:
        """Put the lines that have come, after a short wait, to those that wait; None is a too long one."""
        try:
            data = self._socket.recv(CHUNK)
        except TimeoutError:
            return
        except OSError as error:
            raise self._gone(error) from None
        if not data:
            raise self._gone(None)
        *lines, self._left = (self._left + data).split(b"\n")
        self._waiting.extend(lines)
        if len(self._left) > GPSD_LINE:
            self._left = b""
            self._waiting.append(None)

    def _gone(self, error: OSError | None) -> FusedgeError:
        reason = f": {error.strerror or error}" if error else ""
        return self._address.error(f"gpsd has closed the connection{reason}")

    def _items(self) -> Iterator[Item]:
        while not self._closed.is_set():
            arrival_ns = self._now_ns()
            while self._waiting:
                line = self._waiting.popleft()
                answer = _object(line)
                if answer is None:
                    yield self._broken(f"no JSON object: {(line or b'')[:80]!r}", arrival_ns)
                    continue
                item = self._item(answer, arrival_ns)
                if item is not None:
                    yield item
            self._receive()

    def _item(self, answer: dict[str, Any], arrival_ns: int) -> Item | None:
        kind, device = answer.get("class"), answer.get("device")
        if kind == "ERROR":
            return self._broken(f"gpsd: {printable(str(answer.get('message')))}", arrival_ns)
        has_fix = kind == "TPV" and answer.get("mode") in (2, 3)
        if not self._is_ours(device, arrival_ns, has_fix):
            return None
        if kind == "SKY":
            hdop = _number(answer.get("hdop"), 0, 100)
            self._sky = device, arrival_ns, hdop, _used(answer)
        elif has_fix:
            return self._fix(answer, arrival_ns)
        elif kind == "TPV":
            return self._rows.lost(arrival_ns, f"mode {answer.get('mode')!r:.20}")
        return None

    def _is_ours(self, device: object, arrival_ns: int, has_fix: bool) -> bool:
        """Whether it is of our receiver, which a fix may decide."""
        if self._device:
            return device in (None, self._device)
        if has_fix and (self._pinned in (None, device) or arrival_ns - self._pinned_ns > LOST_NS):
            if isinstance(device, str) and device != self._pinned:
                _receivers.put(self._address.target, device)
            self._pinned, self._pinned_ns = device, arrival_ns
        return self._pinned in (None, device)

    def _fix(self, answer: dict[str, Any], arrival_ns: int) -> Item:
        latitude, longitude = (
            _number(answer.get(name), -most, most) for name, most in (("lat", 90), ("lon", 180))
        )
        if math.isnan(latitude) or math.isnan(longitude):
            return self._broken("TPV without a position", arrival_ns)
        hdop = satellites = math.nan
        if self._sky is not None:
            device, sky_ns, sky_hdop, used = self._sky
            if device in (None, answer.get("device")) and arrival_ns - sky_ns <= SKY_AGE_NS:
                hdop, satellites = sky_hdop, used
        altitudes = (answer.get(name) for name in ("altMSL", "alt"))
        fix = Fix(
            _time_ns(answer.get("time")),
            latitude,
            longitude,
            speed=_number(answer.get("speed"), 0, 2000),
            course=math.radians(_number(answer.get("track"), 0, 360)),
            altitude=next(
                (a for a in (_number(v, -1e4, 1e5) for v in altitudes) if a == a), math.nan
            ),
            hdop=hdop,
            satellites=satellites,
        )
        return self._rows.row(fix, arrival_ns)

    def _release(self) -> None:
        self._socket.close()


def _host_and_port(address: Address) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[^\]]+\]|[^:]*)(?::(\d{1,5}))?", address.target)
    port = int(match[2] or GPSD_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise address.error(f"{address.target} is not HOST or HOST:PORT")
    return match[1].strip("[]") or "localhost", port


def _object(line: bytes | None) -> dict[str, Any] | None:
    try:
        answer = json.loads(line or b"")
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _number(value: object, least: float, most: float) -> float:
    """NaN for what is not there, is no number or out of range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if least <= value <= most else math.nan


def _used(sky: dict[str, Any]) -> float:
    """How many satellites the fix is from; gpsd 3.22 and later say so."""
    if "uSat" in sky:
        return _number(sky["uSat"], 0, 200)
    seen = sky.get("satellites")
    if not isinstance(seen, list):
        return math.nan
    return float(sum(isinstance(one, dict) and one.get("used") is True for one in seen))


def _time_ns(value: object) -> int | None:
    """Of a time in ISO 8601, on an epoch of its own; None where there is none."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        since = datetime.fromisoformat(match[1]) - datetime(2000, 1, 1)
    except ValueError:
        return None
    whole_s = since.days * 86400 + since.seconds
    return whole_s * NANOSECONDS + int((match[2] or "").ljust(9, "0"))
