"""Which columns of a table are the time and the channels: what a map of columns says.

    time: {column: t, unit: ms}
    imu:
      longitudinal_acceleration: ax g
      lateral_acceleration: -ay g
    gps: {time: {column: fix_time, unit: s}, speed: "Speed (km/h) km/h"}

A channel is COLUMN UNIT, with a minus where the column's sign is the other one; or a table with
`column`, `unit`, `negate` and an `offset` that is added, in that unit. A column is called by its
name, or by its number from 1 on.

A time is a part, or a list of parts that add up, as a date and a time of day do: a `column` with its
`unit` (s, ms, us, ns, or iso8601: of a date, a time of day or both, UTC where it names no zone), or
with the `rate_hz` that it counts; `rate_hz` alone counts the rows; `offset_s` is added.

A modality may have a `time` of its own: when it was measured, while the table's is when it was
written; it then has a row where its time differs from the one before. With `where: {COLUMN: VALUE}`
it has a row where the column has that value. `file` says what cannot be told from the table:
`separator`, `decimal`, `header` (yes or no), `skip_lines`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.devices.capture.units import UNITS, unit

TIME_UNITS: Mapping[str, int] = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
ISO = "iso8601"
SEPARATORS: Mapping[str, str] = {
    "comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " ",
    ",": ",", ";": ";", "\t": "\t", "|": "|", " ": " ",
}  # fmt: skip
MAX_CHANNELS = 1024
MAX_PARTS = 4
MAX_OFFSET_S = 1e9
MAX_RATE_HZ = 1e6


class TimePart(NamedTuple):
    """`column` empty: the number of the row. Numbers are in units of `step_ns`; 0: ISO 8601."""

    column: str
    step_ns: float


class TimeMap(NamedTuple):
    """A time: the sum of its parts and an offset."""

    parts: tuple[TimePart, ...]
    offset_ns: int = 0


class Channel(NamedTuple):
    """`factor` times the number in the column, plus `offset`, is in `unit`."""

    column: str
    unit: str
    factor: float = 1.0
    offset: float = 0.0


class ModalityMap(NamedTuple):
    """The channels of a modality, and where it has rows."""

    channels: Mapping[str, Channel]
    time: TimeMap | None = None
    where: tuple[tuple[str, str], ...] = ()


class ColumnMap(NamedTuple):
    """What a table's columns are. Empty, None: to be told from the table itself."""

    time: TimeMap
    modalities: Mapping[str, ModalityMap]
    separator: str = ""
    decimal: str = "."
    header: bool | None = None
    skip_lines: int = 0


def column_map(raw: Mapping[str, Any], where: str) -> ColumnMap:
    """The map that a table of tables, lists and text is; raises FusedgeError at the first fault."""
    modalities = {name: value for name, value in raw.items() if name not in ("time", "file")}
    if "time" not in raw or not modalities:
        lacking = "modalities" if "time" in raw else "time"
        raise FusedgeError(
            f"says nothing of {lacking}",
            where=where,
            hint="write time: {column: t, unit: s} and imu: {longitudinal_acceleration: ax m/s2}",
        )
    file = _table(raw.get("file", {}), "file", where)
    _known(file, ("separator", "decimal", "header", "skip_lines"), "file", where)
    return ColumnMap(
        _time(raw["time"], "time", where),
        {name: _modality(value, name, where) for name, value in modalities.items()},
        SEPARATORS[_choice(file, "separator", SEPARATORS, where)] if "separator" in file else "",
        _choice(file, "decimal", (".", ","), where) if "decimal" in file else ".",
        _flag(file, "header", where) if "header" in file else None,
        int(_number(file.get("skip_lines", "0"), "skip_lines", 0, 10_000, where)),
    )


def _modality(value: Any, name: str, where: str) -> ModalityMap:
    table = dict(_table(value, name, where))
    time, only = table.pop("time", None), table.pop("where", {})
    if not 0 < len(table) <= MAX_CHANNELS:
        raise FusedgeError(f"{name} has no channels, or more than {MAX_CHANNELS}", where=where)
    conditions = _table(only, f"{name}.where", where)
    return ModalityMap(
        {key: _channel(entry, f"{name}.{key}", where) for key, entry in table.items()},
        None if time is None else _time(time, f"{name}.time", where),
        tuple((key, _text(entry, f"{name}.where", where)) for key, entry in conditions.items()),
    )


def _channel(value: Any, name: str, where: str) -> Channel:
    if isinstance(value, str):
        column, _, unit_name = value.strip().rpartition(" ")
        column = column.strip()
        negate = len(column) > 1 and column.startswith("-")
        channel = Channel(column[negate:], unit_name, -1.0 if negate else 1.0)
    else:
        table = _table(value, name, where)
        _known(table, ("column", "unit", "negate", "offset"), name, where)
        channel = Channel(
            _text(table.get("column", ""), name, where),
            _text(table.get("unit", ""), name, where),
            -1.0 if "negate" in table and _flag(table, "negate", where) else 1.0,
            _number(table.get("offset", "0"), f"{name}: offset", -1e12, 1e12, where),
        )
    if not channel.column or not channel.unit:
        raise FusedgeError(
            f"{name}: {value!r} is no column with a unit",
            where=where,
            hint="write COLUMN UNIT, as in: ax m/s2; 1 is the unit of what has none",
        )
    if unit(channel.unit) is None:
        raise FusedgeError(
            f"{name}: {channel.unit!r} is no unit",
            where=where,
            hint=f"write COLUMN UNIT; units are {', '.join(UNITS)}",
        )
    return channel


def _time(value: Any, name: str, where: str) -> TimeMap:
    entries = value if isinstance(value, list) else [value]
    if not 0 < len(entries) <= MAX_PARTS:
        raise FusedgeError(f"{name} has 1 to {MAX_PARTS} parts", where=where)
    parts, offset_s = [], 0.0
    for entry in entries:
        table = _table(entry, name, where)
        _known(table, ("column", "unit", "rate_hz", "offset_s"), name, where)
        if "offset_s" in table:
            least, most = -MAX_OFFSET_S, MAX_OFFSET_S
            offset_s += _number(table["offset_s"], f"{name}: offset_s", least, most, where)
        if "rate_hz" in table:
            rate_hz = _number(table["rate_hz"], f"{name}: rate_hz", 1e-5, MAX_RATE_HZ, where)
            parts.append(TimePart(_text(table.get("column", ""), name, where), 1e9 / rate_hz))
        elif "column" in table:
            unit_name = _choice(table, "unit", (*TIME_UNITS, ISO), where, name)
            column = _text(table["column"], name, where)
            parts.append(TimePart(column, float(TIME_UNITS.get(unit_name, 0))))
    if not parts:
        raise FusedgeError(
            f"{name} names no column", where=where, hint="write {column: t, unit: s}"
        )
    return TimeMap(tuple(parts), round(offset_s * 1e9))


def _table(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise FusedgeError(f"{name}: {value!r} is not a table", where=where)
    return value


def _known(table: Mapping[str, Any], names: tuple[str, ...], name: str, where: str) -> None:
    for key in table:
        if key not in names:
            raise UnknownNameError(f"field of {name} in {where}:", key, names)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise FusedgeError(f"{name}: {value!r} is not text", where=where)
    return value.strip()


def _choice(table: Mapping[str, Any], key: str, known: Any, where: str, name: str = "file") -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or value not in known:
        raise UnknownNameError(f"{key} of {name} in {where}:", str(value), known)
    return value


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    names = {"yes": True, "true": True, "no": False, "false": False}
    value = str(table[key]).casefold()
    if value not in names:
        raise UnknownNameError(f"{key} in {where}:", value, names)
    return names[value]


def _number(value: Any, name: str, least: float, most: float, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str) and "_" not in value else math.nan
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise FusedgeError(
            f"{name}: {value!r} is not a number from {least:g} to {most:g}", where=where
        )
    return number
