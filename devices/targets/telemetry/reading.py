"""What one look at a machine tells of it. What cannot be read is left out, and a note says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

BOARD_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed a whole Jetson: of Orin Nano and NX, Xavier NX and TX2; of Nano; of Thor.

From the chapters on power of NVIDIA's Jetson Linux Developer Guides. AGX Xavier and AGX Orin have none.
"""
MAX_NAMES = 64
"""Sensors, clocks, rails and memories that a reading has of each kind; more than any machine has."""


@dataclass(frozen=True)
class Frequency:
    """A clock in MHz, and the most that it may be now; None where that is not known."""

    mhz: float
    limit_mhz: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes in use and in all; of a process, which has no bound of its own, `total_bytes` is None."""

    used_bytes: int
    total_bytes: int | None = None

    @property
    def available_share(self) -> float | None:
        """What is left, from 0 to 1."""
        return 1 - self.used_bytes / self.total_bytes if self.total_bytes else None


class Hottest(NamedTuple):
    """A sensor and what it says."""

    sensor: str
    temperature_c: float


@dataclass(frozen=True)
class Reading:
    """A machine at `time_ns` of the clock that the reader was given; a source fills what it knows.

    `temperatures_c` are °C by sensor, `frequencies` by what is clocked (`cpu0-3`, `gpu`, `emc`), `power_w`
    watts by rail (`gpu` is a whole graphics card), `memory` of `ram`, `gpu`, `process` and `gpu process`,
    `utilisation_percent` of `cpu` (all cores), `gpu`, and `process` (of one core, so it may be above 100).
    `throttling` is None where nothing on the machine tells.
    """

    time_ns: int = 0
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    frequencies: Mapping[str, Frequency] = field(default_factory=dict)
    power_w: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)
    utilisation_percent: Mapping[str, float] = field(default_factory=dict)
    battery_percent: float | None = None
    throttling: bool | None = None
    throttle_reasons: tuple[str, ...] = ()
    power_mode: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def hottest(self) -> Hottest | None:
        """The hottest of the sensors."""
        if not self.temperatures_c:
            return None
        sensor = max(self.temperatures_c, key=lambda name: self.temperatures_c[name])
        return Hottest(sensor, self.temperatures_c[sensor])

    @property
    def board_w(self) -> float | None:
        """Watts of the whole board; None where no rail feeds all of it."""
        return next((self.power_w[name] for name in BOARD_RAILS if name in self.power_w), None)

    def quantities(self) -> dict[str, dict[str, float]]:
        """All numbers that go up and down, by kind with its unit, and name."""
        kinds: dict[str, Mapping[str, float | None]] = {
            "temperature_c": self.temperatures_c,
            "frequency_mhz": {name: clock.mhz for name, clock in self.frequencies.items()},
            "power_w": self.power_w,
            "memory_bytes": {name: memory.used_bytes for name, memory in self.memory.items()},
            "utilisation_percent": self.utilisation_percent,
            "battery_percent": {"battery": self.battery_percent},
        }
        known = {
            kind: {name: value for name, value in values.items() if value is not None}
            for kind, values in kinds.items()
        }
        return {kind: values for kind, values in known.items() if values}

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the hottest sensor and the board's power."""
        hottest = self.hottest
        return {
            **asdict(self),
            "hottest": hottest and hottest._asdict(),
            "board_w": self.board_w,
        }


def merged(time_ns: int, readings: Iterable[Reading]) -> Reading:
    """One of several: where two know a thing, the earlier one is believed."""
    temperatures: dict[str, float] = {}
    frequencies: dict[str, Frequency] = {}
    power: dict[str, float] = {}
    memory: dict[str, Memory] = {}
    utilisation: dict[str, float] = {}
    battery, mode = None, None
    throttling: set[bool] = set()
    reasons: dict[str, None] = {}  # each once, in order
    notes: dict[str, None] = {}
    for reading in readings:
        _add(temperatures, reading.temperatures_c)
        _add(frequencies, reading.frequencies)
        _add(power, reading.power_w)
        _add(memory, reading.memory)
        _add(utilisation, reading.utilisation_percent)
        battery = reading.battery_percent if battery is None else battery
        mode = mode or reading.power_mode
        if reading.throttling is not None:
            throttling.add(reading.throttling)
        reasons |= dict.fromkeys(reading.throttle_reasons)
        notes |= dict.fromkeys(reading.notes)
    return Reading(
        time_ns=time_ns,
        temperatures_c=temperatures,
        frequencies=frequencies,
        power_w=power,
        memory=memory,
        utilisation_percent=utilisation,
        battery_percent=battery,
        throttling=any(throttling) if throttling else None,
        throttle_reasons=tuple(reasons),
        power_mode=mode,
        notes=tuple(notes),
    )


def _add(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if len(known) < MAX_NAMES:
            known.setdefault(name, value)
