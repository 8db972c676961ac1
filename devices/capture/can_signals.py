"""Which signals of CAN frames become which channels: a DBC file, and a map of channels to signals."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusedge.bundle.errors import FusedgeError, MissingExtraError, UnknownNameError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.regular_file import read_file
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.yaml_map import read_map

if TYPE_CHECKING:
    from cantools.database.can import Database, Message, Signal

MAX_DBC_BYTES = 16 << 20  # S
MAX_CHANNELS = 1024  # C
# How value tables call a raw value that is no measurement. Of a flag, "invalid" is one.
_UNMEASURED = re.compile(
    r"(^|[\W_])(sna|n/?a)($|[\W_])|not[\W_]?avail|unavail|not[\W_]?valid|invalid|undefined", re.I
)
_ENTRY = re.compile(r"(?P<message>[^.\s]+)\.(?P<signal>[^.\s]+)(?:\s+(?P<unit>\S.*))?")

FrameId = tuple[int, bool]
"""Arbitration id, and whether it is an extended one."""


class FrameError(Exception):
    """Why a frame gives no values, as `reason` of a Rejection and in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Chosen(NamedTuple):
    """The signal of a channel, and the unit that its number is in."""

    message: Message
    signal: Signal
    unit: str


class CanSignals:
    """The channels that frames give, each with its unit in `offered`.

    A value is NaN where the DBC says that it is none: by the name of the raw value ("SNA", "not
    available", "invalid"), or because it lies outside of the signal's range.
    """

    def __init__(self, chosen: Mapping[str, Chosen]) -> None:
        self._chosen = chosen
        self.offered = {channel: entry.unit for channel, entry in chosen.items()}
        self._frames: dict[FrameId, dict[str, tuple[Message, dict[str, _Reading]]]]
        self._frames = defaultdict(dict)
        for channel, (message, signal, _) in chosen.items():
            frame_id = message.frame_id, message.is_extended_frame
            _, readings = self._frames[frame_id].setdefault(message.name, (message, {}))
            readings[channel] = _Reading(signal)
        self.frames = frozenset(self._frames)
        """The frames that hold the channels."""

    def only(self, channels: Iterable[str]) -> CanSignals:
        """The same with fewer channels."""
        return CanSignals({channel: self._chosen[channel] for channel in channels})

    def decode(self, frame_id: FrameId, data: bytes) -> dict[str, float]:
        """The channels' values in a frame, without those that it does not hold this time (multiplexed).

        Raises FrameError where the frame is shorter than the DBC says, or cannot be decoded.
        """
        values: dict[str, float] = {}
        for message, readings in self._frames.get(frame_id, {}).values():
            if len(data) < message.length:
                detail = f"{message.name} has {len(data)} instead of {message.length} bytes"
                raise FrameError("truncated_frame", detail)
            try:
                raw = message.decode_simple(data, decode_choices=False, scaling=False)
            except Exception as error:  # a DBC may describe bits that there are not
                raise FrameError("undecodable_frame", f"{message.name}: {error}") from None
            for channel, reading in readings.items():
                if reading.name in raw:
                    values[channel] = reading.value(raw[reading.name])
        return values


class _Reading:
    """Turns a signal's raw value into a number in its unit."""

    def __init__(self, signal: Signal) -> None:
        self.name = signal.name
        self._convert = signal.conversion.raw_to_scaled
        self._least = -math.inf if signal.minimum is None else signal.minimum
        self._most = math.inf if signal.maximum is None else signal.maximum
        names: Mapping[int, object] = (signal.choices or {}) if signal.length > 1 else {}
        self._unmeasured = {raw for raw, name in names.items() if _UNMEASURED.search(str(name))}

    def value(self, raw: Any) -> float:
        if raw in self._unmeasured:
            return math.nan
        value = float(self._convert(raw, False))  # type: ignore[arg-type]  # no choices, so a number
        slack = 1e-9 * abs(value)  # of floating point
        return value if self._least - slack <= value <= self._most + slack else math.nan


def load_signals(address: Address, spec: Modality | None) -> CanSignals:
    """The signals that the options `dbc` and `map` choose.

    `map` is a YAML file, or YAML itself that starts with `{`, with a line `CHANNEL: MESSAGE.SIGNAL UNIT`
    each; without a unit it is the DBC's. Without a map a channel of `spec` is the signal of its name,
    and without either all signals are taken, as channels named MESSAGE.SIGNAL.
    Raises FusedgeError where a file cannot be read or used, UnknownNameError for a name that the DBC
    does not have.
    """
    path = address.text("dbc")
    if not path:
        raise address.error("frames have no numbers without a DBC file", hint="add dbc=CAR.dbc")
    database = _load_dbc(path)
    if "map" in address.options:
        return CanSignals(_mapped(address, path, database))
    signals = {
        f"{message.name}.{signal.name}": Chosen(message, signal, signal.unit or "1")
        for message in database.messages
        for signal in message.signals
    }
    if spec is not None:
        return CanSignals(_named(address, spec, signals))
    if not 0 < len(signals) <= MAX_CHANNELS:
        raise FusedgeError(
            f"has {len(signals)} signals, of which 1 to {MAX_CHANNELS} can be taken",
            where=path,
            hint="choose some: map=SIGNALS.yaml",
        )
    return CanSignals(signals)


def _load_dbc(path: str) -> Database:
    try:
        import cantools
    except ImportError:
        raise MissingExtraError("cantools", "can", "reading a DBC file") from None
    content = read_file(Path(path), MAX_DBC_BYTES)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")  # as Vector's tools write it
    try:
        # strict: real files have overlapping signals, of which one may still be right
        database = cantools.database.load_string(text, "dbc", strict=False)
    except Exception as error:  # the parser raises what it likes
        raise FusedgeError(f"is no DBC file that can be read: {error}", where=path) from None
    if not isinstance(database, cantools.database.Database):
        raise FusedgeError("describes diagnostics, no frames", where=path)
    return database


def _mapped(address: Address, dbc: str, database: Database) -> dict[str, Chosen]:
    entries, where = _entries(address)
    messages = {message.name: message for message in database.messages}
    chosen = {}
    for channel, text in entries.items():
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise FusedgeError(
                f"{channel}: {text!r} names no signal", where=where, hint="MESSAGE.SIGNAL UNIT"
            )
        message = messages.get(match["message"])
        if message is None:
            raise UnknownNameError(f"message in {dbc}:", match["message"], messages)
        signals = {signal.name: signal for signal in message.signals}
        signal = signals.get(match["signal"])
        if signal is None:
            raise UnknownNameError(f"signal of {message.name} in {dbc}:", match["signal"], signals)
        unit = match["unit"] or signal.unit
        if not unit:
            raise FusedgeError(
                f"{channel}: {text} has no unit in {dbc}",
                where=where,
                hint=f"write it: {text} km/h, or {text} 1 if it has none",
            )
        chosen[channel] = Chosen(message, signal, unit)
    return chosen


def _named(address: Address, spec: Modality, signals: Mapping[str, Chosen]) -> Mapping[str, Chosen]:
    by_name: dict[str, list[str]] = defaultdict(list)
    for full, entry in signals.items():
        by_name[entry.signal.name].append(full)
    chosen = {}
    for channel in (c.name for c in spec.channels):
        found = [channel] if channel in signals else by_name.get(channel, [])
        if len(found) > 1:
            raise address.error(
                f"the signal {channel} is in {len(found)} messages",
                hint=f"say which: map={{{channel}: {found[0]}}}",
            )
        if found:
            chosen[channel] = signals[found[0]]
    if not chosen:
        raise UnknownNameError(f"signal in {address.text('dbc')}:", spec.channels[0].name, by_name)
    return chosen


def _entries(address: Address) -> tuple[dict[str, str], str]:
    """The map's channels with what is written for them, and where it stands."""
    table, where = read_map(address)
    if not 0 < len(table) <= MAX_CHANNELS:
        raise FusedgeError(
            f"is not a table of 1 to {MAX_CHANNELS} channels",
            where=where,
            hint="a line each: speed: MESSAGE.SIGNAL km/h",
        )
    for channel, text in table.items():
        if not isinstance(text, str):
            raise FusedgeError(f"{channel}: {text} is not a channel and a signal", where=where)
    return table, where
