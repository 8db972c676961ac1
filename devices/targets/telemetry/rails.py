"""Power from the sensors of a Jetson's rails, and of x86 processors from their energy counters (RAPL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fusedge.devices.targets.telemetry.files import read_name, read_number
from fusedge.devices.targets.telemetry.rapl import EnergyCounter, energy_counters

_HWMON = "sys/class/hwmon"
_IIO = "sys/bus/i2c/drivers/ina3221x"


class PowerRails:
    """The rails under `root`. Energy counters give the mean since the last `read`."""

    def __init__(self, root: Path) -> None:
        self._products = dict(_ina3221(root / _HWMON))
        self._milliwatts = dict(_ina3221x(root / _IIO))
        self._microwatts = dict(_single_channel(root / _HWMON))
        self._packages = [each for each in energy_counters(root) if not each.is_inner]
        self._energies: dict[EnergyCounter, tuple[int, int]] = {}
        closed = (each.closed for each in self._packages if each.read_uj() is None)
        self.note = next(closed, "")

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
        for counter in self._packages:
            if (power := self._of_package(counter, now_ns)) is not None:
                watts[f"cpu {counter.label}"] = power
        return watts

    def _of_package(self, counter: EnergyCounter, now_ns: int) -> float | None:
        energy_uj = counter.read_uj()
        if energy_uj is None:
            return None
        before = self._energies.get(counter)
        self._energies[counter] = (now_ns, energy_uj)
        if before is None or now_ns <= before[0]:
            return None
        used_uj = counter.used_uj(before[1], energy_uj)
        return None if used_uj is None else used_uj * 1e3 / (now_ns - before[0])


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
