"""Power from the sensors of a Jetson's rails, and of x86 processors from their energy counters (RAPL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fusedge.devices.targets.telemetry.files import read_name, read_number

_HWMON = "sys/class/hwmon"
_IIO = "sys/bus/i2c/drivers/ina3221x"
_RAPL = "sys/class/powercap"


class PowerRails:
    """The rails under `root`. Energy counters give the mean since the last `read`."""

    def __init__(self, root: Path) -> None:
        self._products = dict(_ina3221(root / _HWMON))
        self._milliwatts = dict(_ina3221x(root / _IIO))
        self._microwatts = dict(_single_channel(root / _HWMON))
        self._packages = {
            f"cpu {read_name(zone / 'name')}": zone
            for zone in sorted((root / _RAPL).glob("intel-rapl:[0-9]*"))
            if zone.name.count(":") == 1  # inner zones are parts of these
        }
        self._energies: dict[str, tuple[int, int]] = {}
        closed = any(read_number(zone / "energy_uj") is None for zone in self._packages.values())
        self.note = "RAPL: energy_uj cannot be read: on most systems by root only" if closed else ""

    def read(self, now_ns: int) -> dict[str, float]:
        """Watts by rail."""
        watts = {}
        for name, (voltage, current) in self._products.items():
            millivolts, milliamperes = read_number(voltage), read_number(current)
            if millivolts is not None and milliamperes is not None:
                watts[name] = millivolts * milliamperes / 1e6
        for name, path in self._milliwatts.items():
            if (milliwatts := read_number(path)) is not None:
                watts[name] = milliwatts / 1e3
        for name, path in self._microwatts.items():
            if (microwatts := read_number(path)) is not None:
                watts[name] = microwatts / 1e6
        for name, zone in self._packages.items():
            if (power := self._of_package(name, zone, now_ns)) is not None:
                watts[name] = power
        return watts

    def _of_package(self, name: str, zone: Path, now_ns: int) -> float | None:
        energy_uj = read_number(zone / "energy_uj")
        if energy_uj is None:
            return None
        before = self._energies.get(name)
        self._energies[name] = (now_ns, energy_uj)
        if before is None or now_ns <= before[0]:
            return None
        used_uj = energy_uj - before[1]
        if used_uj < 0:  # the counter has begun anew
            used_uj += read_number(zone / "max_energy_range_uj") or 0
        return used_uj * 1e3 / (now_ns - before[0]) if used_uj >= 0 else None


def _ina3221(folder: Path) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Jetson Linux 34 and later: volts and amperes of the chip's three channels."""
    for chip in sorted(folder.glob("hwmon*")):
        if read_name(chip / "name") == "ina3221":
            for channel in (1, 2, 3):
                label = read_name(chip / f"in{channel}_label")
                if label and label != "NC":  # not connected
                    yield label, (chip / f"in{channel}_input", chip / f"curr{channel}_input")


def _ina3221x(folder: Path) -> Iterator[tuple[str, Path]]:
    """Jetson Linux 32."""
    for device in sorted(folder.glob("*/iio:device*")):
        for channel in (0, 1, 2):
            label = read_name(device / f"rail_name_{channel}")
            if label and label != "NC":
                yield label, device / f"in_power{channel}_input"


def _single_channel(folder: Path) -> Iterator[tuple[str, Path]]:
    """Chips of one rail, such as Thor's INA238; one without a label goes by its own name."""
    for chip in sorted(folder.glob("hwmon*")):
        name = read_name(chip / "name")
        if name.startswith("ina2") and (chip / "power1_input").exists():
            yield read_name(chip / "power1_label") or name, chip / "power1_input"
