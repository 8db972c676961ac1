"""NMEA 0183: bytes from a receiver become fixes.

A sentence counts only whole: `$`, its checksum and its end. The checksum is the exclusive or of the
characters between `$` and `*`, so it finds every single wrong character, and of arbitrary damage all but
one in 256; what passes must then have the fields of its kind, in their form and range.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from fusedge.bundle.errors import MissingExtraError
from fusedge.devices.capture.fixes import Fix
from fusedge.devices.capture.units import conversion

MAX_LINE = 256  # the standard allows 82; receivers with many satellites send up to twice that
GGA_AGE_NS = 2_000_000_000  # a fix takes altitude and quality from a GGA that is at most this old
_LINE = re.compile(rb"\$(?!P)(\w{2})(RMC|GGA|\w{3}),[^*$]*\*[0-9A-Fa-f]{2}", re.ASCII)
_OTHER = re.compile(rb"\$P\w{3}[^*$]*\*[0-9A-Fa-f]{2}", re.ASCII)  # of a maker's own
_DAY_NS = 86_400_000_000_000
_CLOCK = re.compile(r"(\d{2})(\d{2})(\d{2})(?:\.(\d{1,9}))?", re.ASCII)
_DATE = re.compile(r"(\d{2})(\d{2})(\d{2})", re.ASCII)
_NUMBER = re.compile(r"-?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})", re.ASCII)
_MS = conversion("kn", "m/s")
# Without and with the mode indicators of NMEA 2.3 and 4.1; field 0 follows the name.
_RMC_FIELDS = range(11, 14)
_GGA_FIELDS = range(14, 15)
# Mode indicators of what no satellite has measured, and the same as qualities of a GGA.
_MODES = {"N": "no fix", "E": "dead reckoning", "M": "entered by hand", "S": "simulator"}
_QUALITIES = ("", "0", "6", "7", "8")


class Broken(NamedTuple):
    """Bytes that are no sentence, or a sentence that contradicts its kind."""

    detail: str


class NoFix(NamedTuple):
    """The receiver says that it has measured no position."""

    detail: str


class NmeaReader:
    """Cuts sentences out of bytes and joins those of one moment.

    Contract: `feed` never raises and keeps at most 256 bytes. A fix comes with its RMC sentence, and
    has altitude and quality from the newest GGA, at most 2 s older by the receiver's time. Bytes before the
    first `$` are passed over, for reading starts anywhere in a sentence; later they are broken, be
    they a torn sentence or the receiver's binary protocol, and the sentence after them counts.
    """

    def __init__(self) -> None:
        try:
            import pynmea2
        except ImportError:
            raise MissingExtraError("pynmea2", "gps", "a GPS receiver") from None
        self._pynmea2 = pynmea2
        self.sentences = 0
        """How many were whole, of any kind."""
        self.positions = 0
        """How many of them were RMC."""
        self._line = bytearray()
        self._started = False
        self._overlong = False
        self._gga: tuple[int, Fix] | None = None

    def feed(self, data: bytes) -> Iterator[Fix | NoFix | Broken]:
        """What the bytes complete."""
        pieces = data.split(b"\n")
        for place, piece in enumerate(pieces):
            self._line += piece
            if len(self._line) > MAX_LINE:
                self._overlong = True
                del self._line[:-MAX_LINE]
            if place < len(pieces) - 1:
                yield from self._end()

    def _end(self) -> Iterator[Fix | NoFix | Broken]:
        line, overlong = bytes(self._line).strip(), self._overlong
        self._line.clear()
        self._overlong = False
        start = line.rfind(b"$")
        if self._started and line and (start != 0 or overlong):
            yield Broken(f"no sentence: {line[:80]!r}")
        if start >= 0:
            self._started = True
            yield from self._sentence(line[start:])

    def _sentence(self, line: bytes) -> Iterator[Fix | NoFix | Broken]:
        match = _LINE.fullmatch(line)
        if match is None and _OTHER.fullmatch(line) is None:
            yield Broken(f"no sentence: {line[:80]!r}")
            return
        checksum = 0
        for byte in line[1:-3]:
            checksum ^= byte
        if checksum != int(line[-2:], 16):
            yield Broken(f"wrong checksum: {line[:80]!r}")
            return
        self.sentences += 1
        kind = match[2] if match is not None else b""
        if kind in (b"RMC", b"GGA"):
            yield from self._parsed(line.decode("ascii", "replace"), kind == b"RMC")

    def _parsed(self, line: str, is_rmc: bool) -> Iterator[Fix | NoFix | Broken]:
        try:
            sentence = self._pynmea2.parse(line, check=True)
            if is_rmc:
                self.positions += 1
                yield self._rmc(sentence)
            else:
                self._note_gga(sentence)
        except (ValueError, ArithmeticError) as error:
            yield Broken(f"{error}: {line[:80]!r}")

    def _rmc(self, sentence: object) -> Fix | NoFix:
        fields = _fields(sentence, _RMC_FIELDS)
        day_ns = _time_of_day_ns(fields[0])
        if fields[1] != "A":
            self._gga = None
            return NoFix(f"status {fields[1][:8] or 'not given'}")
        mode = "".join(fields[11:12])
        if mode in _MODES:
            return NoFix(f"mode {mode}: {_MODES[mode]}")
        latitude, longitude = _place(fields[2:6])
        fix = Fix(
            None if day_ns is None else _date_ns(fields[8]) + day_ns,
            latitude,
            longitude,
            speed=_MS(_number(fields[6], 0, 2000)),
            course=math.radians(_number(fields[7], 0, 360)),
        )
        if self._gga is None or day_ns is None:
            return fix
        gga_ns, gga = self._gga
        if (day_ns - gga_ns) % _DAY_NS > GGA_AGE_NS:
            return fix
        return fix._replace(altitude=gga.altitude, hdop=gga.hdop, satellites=gga.satellites)

    def _note_gga(self, sentence: object) -> None:
        fields = _fields(sentence, _GGA_FIELDS)
        day_ns = _time_of_day_ns(fields[0])
        if day_ns is None or fields[5] in _QUALITIES:
            self._gga = None
            return
        latitude, longitude = _place(fields[1:5])
        self._gga = (
            day_ns,
            Fix(
                day_ns,
                latitude,
                longitude,
                altitude=_number(fields[8], -1e4, 1e5),
                hdop=_number(fields[7], 0, 100),
                satellites=_number(fields[6], 0, 200),
            ),
        )


def _fields(sentence: object, count: range) -> list[str]:
    fields: list[str] = getattr(sentence, "data", [])
    if len(fields) not in count:
        raise ValueError(f"{len(fields)} fields")
    return fields


def _number(text: str, least: float, most: float) -> float:
    """NaN for an empty field; raises ValueError for nonsense."""
    if not text:
        return math.nan
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not least <= value <= most:
        raise ValueError(f"{text[:20]} is not from {least:g} to {most:g}")
    return value


def _place(fields: list[str]) -> tuple[float, float]:
    """Latitude and longitude in degrees from `DDMM.MM, N, DDDMM.MM, E`."""
    degrees = []
    for text, side, sides, digits, most in (
        (fields[0], fields[1], "NS", 2, 90),
        (fields[2], fields[3], "EW", 3, 180),
    ):
        if side not in tuple(sides) or not _NUMBER.fullmatch(text) or text[0] == "-":
            raise ValueError("no position")
        whole, minutes = text[:digits], text[digits:]
        if not re.fullmatch(r"\d\d(?:\.\d*)?", minutes) or float(minutes) >= 60:
            raise ValueError(f"{text[:20]} is no position")
        value = int(whole) + float(minutes) / 60
        if value > most:
            raise ValueError(f"{text[:20]} is no position")
        degrees.append(value if side == sides[0] else -value)
    return degrees[0], degrees[1]


def _time_of_day_ns(text: str) -> int | None:
    """None where the receiver does not know it."""
    if not text:
        return None
    match = _CLOCK.fullmatch(text)
    hours, minutes, seconds = (int(match[k]) for k in (1, 2, 3)) if match else (99, 0, 0)
    if match is None or hours > 23 or minutes > 59 or seconds > 60:  # 60: a leap second
        raise ValueError(f"{text[:20]} is no time")
    return (hours * 3600 + minutes * 60 + seconds) * 1_000_000_000 + int(
        (match[4] or "0").ljust(9, "0")
    )


def _date_ns(text: str) -> int:
    """Of a day, on an epoch of its own: what the year stands for does not matter here."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:20] or 'nothing'} is no date")
    day, month, year = (int(part) for part in match.groups())
    return datetime.date(2000 + year, month, day).toordinal() * _DAY_NS
