"""Tables in text, `file:DRIVE.csv?map=COLUMNS.yaml`: separated by commas or else, plain or gzipped.

What a map of columns says is in fusedge.devices.capture.column_map. Without one, the time is the
column `t`, `time` or `timestamp`, with `_s`, `_ms`, `_us` or `_ns` where it is not a date or in
seconds; the other columns are those called MODALITY.CHANNEL or, where one modality is wanted, CHANNEL,
and hold the units of the bundle.
"""

from __future__ import annotations

import csv
import datetime
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.regular_file import is_file
from fusedge.devices.capture.address import Address, Request, Wanted
from fusedge.devices.capture.column_map import (
    TIME_UNITS,
    Channel,
    ColumnMap,
    ModalityMap,
    TimeMap,
    TimePart,
    column_map,
)
from fusedge.devices.capture.line_file import UNREADABLE, bounded_lines, open_file
from fusedge.devices.capture.table_source import MAX_TIME_NS, Fault, Row, TableSource
from fusedge.devices.capture.yaml_map import read_map

MAX_LINE = 1 << 16  # bytes; the widest table here has 52 columns and 900 bytes a line
MAX_COLUMNS = 4096
MAX_DISTINCT = 1000
_MISSING = frozenset({"", "nan", "na", "n/a", "null", "none"})
_DAY_NS = 86_400 * 10**9
_ISO = re.compile(
    r"(?:(?P<date>\d{4}[-/]\d\d?[-/]\d\d?))?[T ]?"
    r"(?:(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d{1,9})\d*)?)?)?"
    r" ?(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_TIME_NAME = re.compile(r"(?:t|time|timestamp)(?:_(?P<unit>s|ms|us|ns))?", re.I)

_Cells = list[str]


def open_csv(request: Request) -> TableSource:
    """The source `file:X.csv`, plain or with `.gz`.

    Raises FusedgeError where the file or its map cannot be used.
    """
    address = request.address
    path = Path(address.target)
    columns = None
    if "map" in address.options:
        columns = column_map(*read_map(address))
    head = read_head(path, columns)
    if columns is None:
        columns = _by_name(address, request.wanted, head)
    return TableSource(address, request.wanted, [CsvTable(path, columns, head)])


class Head(NamedTuple):
    """How a text table is laid out: names of its columns ("1", "2", … without a header)."""

    names: tuple[str, ...]
    separator: str
    first_line: int
    """Number of lines before the first row."""


def read_head(path: Path, columns: ColumnMap | None = None) -> Head:
    """The layout of a file, as far as `columns` leave it open. Raises FusedgeError without one."""
    if not is_file(path):
        raise FusedgeError("no such file", where=str(path))
    skip = columns.skip_lines if columns else 0
    line, number = b"\n", 0
    try:
        with open_file(path) as file:
            start = file.read(MAX_LINE)
            if b"\r" in start and not start.count(b"\n") and not start.count(b"\0"):
                raise FusedgeError(
                    "its lines end with CR alone",
                    where=str(path),
                    hint="save it with LF or CR LF at the end of lines",
                )
            file.seek(0)
            for line in bounded_lines(file, MAX_LINE):
                number += 1
                if number > skip and not line.isspace():
                    break
            else:
                raise FusedgeError("is empty", where=str(path))
    except UNREADABLE as error:
        raise FusedgeError(f"cannot be read ({error})", where=str(path)) from None
    text = line.decode("utf-8-sig", "replace")
    if not line or "\0" in text:
        raise FusedgeError("is no text table in UTF-8", where=str(path))
    separator = columns.separator if columns and columns.separator else _separator(text)
    cells = [cell.strip() for cell in _split(text, separator)]
    if len(cells) > MAX_COLUMNS:
        raise FusedgeError(f"has more than {MAX_COLUMNS} columns", where=str(path))
    header = columns.header if columns else None
    if header is None:
        header = not all(_is_value(cell, columns.decimal if columns else ".") for cell in cells)
    if header:
        return Head(tuple(cells), separator, number)
    return Head(tuple(str(place + 1) for place in range(len(cells))), separator, number - 1)


class CsvTable:
    """A text file as a Table, read line by line.

    Contract: a line that is none of the table (torn, too long, another count of cells, no time) is
    `malformed` for each modality that is used (a time that no clock shows is `implausible_stamp`); a
    cell that is no number for its own. Empty cells and
    the likes of NaN were not measured; where no channel of a modality was, there is no row of it. A
    last line without its end was cut off, maybe within a number. Raises UnknownNameError for a
    column that the file does not have.
    """

    def __init__(self, path: Path, columns: ColumnMap, head: Head) -> None:
        self._path, self._head, self._decimal = path, head, columns.decimal
        self._time = self._clock(columns.time)
        self._modalities = {
            name: _Reader(
                {key: (self._place(c.column), c) for key, c in spec.channels.items()},
                None if spec.time is None else self._clock(spec.time),
                [(self._place(column), value) for column, value in spec.where],
            )
            for name, spec in columns.modalities.items()
        }
        self.offered = {
            name: {key: channel.unit for key, channel in spec.channels.items()}
            for name, spec in columns.modalities.items()
        }

    def _place(self, column: str) -> int:
        names = self._head.names
        if names.count(column) > 1:
            raise FusedgeError(
                f"has {names.count(column)} columns {column!r}",
                where=str(self._path),
                hint=f"call it by its number: {names.index(column) + 1} is the first",
            )
        if column in names:
            return names.index(column)
        if column.isascii() and column.isdigit() and 0 < int(column) <= len(names):
            return int(column) - 1
        raise UnknownNameError(f"column of {self._path}:", column, names)

    def _clock(self, time: TimeMap) -> _Clock:
        parts = [
            (self._place(part.column) if part.column else None, part.step_ns) for part in time.parts
        ]
        return _Clock(parts, time.offset_ns, self._decimal)

    def rows(self, used: Mapping[str, Collection[str]]) -> Iterator[Row | Fault]:
        """See Table."""
        readers = {name: self._modalities[name].using(names) for name, names in used.items()}
        clock = self._time.anew()
        number = 0
        try:
            with open_file(self._path) as file:
                row = -1
                for line in bounded_lines(file, MAX_LINE):
                    number += 1
                    if number <= self._head.first_line or line.isspace():
                        continue
                    row += 1
                    try:
                        cells = self._cells(line)
                        time_ns = clock(cells, row)
                    except (ValueError, OverflowError) as error:
                        yield from self._faults(readers, number, error)
                        continue
                    for name, reader in readers.items():
                        yield from self._row(name, reader, cells, row, time_ns, number)
        except UNREADABLE as error:
            yield from self._faults(readers, number + 1, error)

    def distinct(self, column: str) -> list[str]:
        """What stands in a column, in the order in which it comes first."""
        place, found = self._place(column), dict[str, None]()
        try:
            with open_file(self._path) as file:
                for number, line in enumerate(bounded_lines(file, MAX_LINE), 1):
                    if number > self._head.first_line and len(found) < MAX_DISTINCT:
                        with suppress(ValueError):  # no row
                            found[self._cells(line)[place]] = None
        except UNREADABLE:
            pass  # `rows` says so
        return list(found)

    def _row(
        self, name: str, reader: _Reader, cells: _Cells, row: int, time_ns: int, number: int
    ) -> Iterator[Row | Fault]:
        if not all(_matches(cells[place], value) for place, value in reader.where):
            return
        values = {}
        try:
            for key, (place, channel) in reader.channels.items():
                value = _number(cells[place], self._decimal)
                if not math.isnan(value):
                    values[key] = channel.factor * value + channel.offset
            if not values:
                return
            if reader.clock is None:
                yield Row(name, time_ns, values)
                return
            measured_ns = reader.clock(cells, row)
            if measured_ns != reader.newest_ns:
                reader.newest_ns = measured_ns
                yield Row(name, measured_ns, values, time_ns)
        except (ValueError, OverflowError) as error:
            yield from self._faults([name], number, error)

    def _cells(self, line: bytes) -> _Cells:
        if not line:
            raise ValueError(f"longer than {MAX_LINE} bytes")
        if not line.endswith(b"\n"):
            raise ValueError("torn: the line has no end")
        cells = _split(line.decode("utf-8", "replace"), self._head.separator)
        count = len(self._head.names)
        if len(cells) != count and not (len(cells) > count and not any(cells[count:])):
            raise ValueError(f"{len(cells)} cells instead of {count}")
        return cells

    def _faults(
        self, modalities: Collection[str], number: int, error: Exception
    ) -> Iterator[Fault]:
        reason = "implausible_stamp" if isinstance(error, OverflowError) else "malformed"
        for name in modalities:
            yield Fault(name, reason, f"{self._path}:{number}: {error}")


class _Clock:
    """Reads the time from the cells and number of a row.

    Contract: times of day without a date that fall by more than half a day have passed midnight; if
    they rise by as much again, that was one wrong row. Raises ValueError for what is no time,
    OverflowError for one beyond MAX_TIME_NS.
    """

    def __init__(
        self, parts: Sequence[tuple[int | None, float]], offset_ns: int, decimal: str
    ) -> None:
        self._parts, self._offset_ns, self._decimal = parts, offset_ns, decimal
        self._days_ns = 0
        self._before_ns: int | None = None

    def anew(self) -> _Clock:
        """Another one, for reading from the start."""
        return _Clock(self._parts, self._offset_ns, self._decimal)

    def __call__(self, cells: _Cells, row: int) -> int:
        total, dated = self._offset_ns, set()
        for place, step_ns in self._parts:
            if place is None:
                total += round(row * step_ns)
            elif _is_iso(cells[place], step_ns, self._decimal):
                part_ns, has_date = _iso_ns(cells[place])
                total += part_ns
                dated.add(has_date)
            else:
                total += _time_ns(cells[place], step_ns, self._decimal)
        if dated == {False}:
            total = self._in_order(total)
        if not -MAX_TIME_NS < total < MAX_TIME_NS:
            raise OverflowError(f"the time is {total / 1e9:g} s")
        return total

    def _in_order(self, time_ns: int) -> int:
        """A time of day with the days before it."""
        if self._before_ns is not None:
            step_ns = time_ns + self._days_ns - self._before_ns
            if step_ns < -_DAY_NS // 2:
                self._days_ns += _DAY_NS
            elif step_ns > _DAY_NS // 2 and self._days_ns:
                self._days_ns -= _DAY_NS
        self._before_ns = time_ns + self._days_ns
        return self._before_ns


class _Reader:
    """Where a modality stands in a row."""

    def __init__(
        self,
        channels: Mapping[str, tuple[int, Channel]],
        clock: _Clock | None,
        where: Sequence[tuple[int, str]],
    ) -> None:
        self.channels, self.clock, self.where = channels, clock, where
        self.newest_ns: int | None = None

    def using(self, names: Collection[str]) -> _Reader:
        """A new reader of those channels."""
        clock = None if self.clock is None else self.clock.anew()
        return _Reader({name: self.channels[name] for name in names}, clock, self.where)


def _by_name(address: Address, wanted: Wanted, head: Head) -> ColumnMap:
    """The map that the names of the columns make."""
    times = {name: match for name in head.names if (match := _TIME_NAME.fullmatch(name))}
    if not times:
        raise address.error(
            "has no column called t, time or timestamp, with _ms where it is not in seconds",
            hint=f"say what its columns are: map=COLUMNS.yaml; they are {', '.join(head.names)}",
        )
    time, match = next(iter(times.items()))
    step_ns = float(TIME_UNITS[match["unit"].lower()]) if match["unit"] else math.nan
    series = {name: spec for name, spec in (wanted or {}).items() if spec.kind == "series"}
    if "modality" in address.options:
        series = {address.choice("modality", series, ""): series[address.options["modality"]]}
    modalities = {}
    for name, spec in series.items():
        channels = _named_channels(name, spec, head.names, bare=len(series) == 1)
        if channels:
            modalities[name] = ModalityMap(channels)
    if wanted is None:
        modalities = _all_named(head.names)
    if not modalities:
        channel = next((f"{n}.{s.channels[0].name}" for n, s in series.items()), "imu.yaw_rate")
        raise address.error(
            f"has no columns called MODALITY.CHANNEL, as {channel}",
            hint=f"say what its columns are: map=COLUMNS.yaml; they are {', '.join(head.names)}",
        )
    return ColumnMap(TimeMap((TimePart(time, step_ns),)), modalities)


def _named_channels(
    modality: str, spec: Modality, names: Collection[str], bare: bool
) -> dict[str, Channel]:
    channels = {}
    for channel in spec.channels:
        forms = [f"{modality}.{channel.name}", *([channel.name] if bare else [])]
        for form in forms:
            if form in names:
                channels[channel.name] = Channel(form, channel.unit)
                break
    return channels


def _all_named(names: Sequence[str]) -> dict[str, ModalityMap]:
    channels: dict[str, dict[str, Channel]] = {}
    for name in names:
        modality, _, channel = name.partition(".")
        if modality and channel:
            channels.setdefault(modality, {})[channel] = Channel(name, "")  # nobody says the unit
    return {name: ModalityMap(columns) for name, columns in channels.items()}


def _separator(text: str) -> str:
    """What most likely separates the cells of a line; never a comma where there is another."""
    bare = re.sub(r'"[^"]*"', "", text)
    found = next((mark for mark in "\t;|," if mark in bare), "")
    if found:
        return found
    return " " if all(_is_value(cell, ".") for cell in text.split()) else ","


def _split(text: str, separator: str) -> _Cells:
    if separator == " ":
        return text.split()
    if '"' in text:
        try:
            cells = next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
        except csv.Error as error:
            raise ValueError(str(error)) from None
        return [cell.strip() for cell in cells]
    return [cell.strip() for cell in text.split(separator)]


def _number(cell: str, decimal: str) -> float:
    """The number in a cell, NaN where there is none; ValueError for anything else."""
    if cell.casefold() in _MISSING:
        return math.nan
    text = cell if decimal == "." else cell.replace(decimal, ".")
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        return float(text)
    except ValueError:
        raise ValueError(f"{cell[:80]!r} is not a number") from None


def _is_value(cell: str, decimal: str) -> bool:
    try:
        _number(cell, decimal)
    except ValueError:
        return bool(re.match(r"\d", cell)) and _ISO.fullmatch(cell) is not None
    return True


def _matches(cell: str, value: str) -> bool:
    if cell == value:
        return True
    try:
        return float(cell) == float(value)
    except ValueError:
        return False


def _is_iso(cell: str, step_ns: float, decimal: str) -> bool:
    if math.isnan(step_ns):  # seconds, or a date
        return not _is_value(cell, decimal) or ":" in cell
    return not step_ns


def _time_ns(cell: str, step_ns: float, decimal: str) -> int:
    if math.isnan(step_ns):
        step_ns = TIME_UNITS["s"]
    if step_ns == int(step_ns) and cell.isascii() and cell.isdigit() and len(cell) < 20:
        return int(cell) * int(step_ns)
    time = _number(cell, decimal)
    if not math.isfinite(time):
        raise ValueError(f"{cell[:80]!r} is no time")
    if not math.isfinite(time * step_ns):
        raise OverflowError(f"the time is {time:g}")
    return round(time * step_ns)


def _iso_ns(cell: str) -> tuple[int, bool]:
    """Nanoseconds since 1970 of a date, since midnight of a time alone; whether there is a date."""
    match = _ISO.fullmatch(cell)
    if match is None or not (match["date"] or match["hour"]):
        raise ValueError(f"{cell[:80]!r} is no date and time in the form of ISO 8601")
    total = 0
    if match["date"]:
        year, month, day = (int(part) for part in re.split("[-/]", match["date"]))
        epoch = datetime.date(1970, 1, 1).toordinal()
        total = (datetime.date(year, month, day).toordinal() - epoch) * _DAY_NS
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    part = int((match["part"] or "0").ljust(9, "0"))
    if minute > 59 or second > 60 or (hour, minute, second, part) > (24, 0, 0, 0):
        raise ValueError(f"{cell[:80]!r} is no time of day")
    seconds = hour * 3600 + minute * 60 + second - _zone_s(match["zone"])
    return total + seconds * 10**9 + part, match["date"] is not None


def _zone_s(zone: str | None) -> int:
    if zone in (None, "Z"):
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (int(digits[:2]) * 3600 + int(digits[2:]) * 60) * (-1 if zone[0] == "-" else 1)
