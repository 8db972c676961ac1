"""Temperatures from Linux's thermal zones and, of x86 processors, from their hwmon chips."""

from __future__ import annotations

import re
from pathlib import Path

from fusedge.devices.targets.telemetry.files import read_name, read_number

# Its driver knows two temperatures only, of which it says 50 or 100 °C as long as all is well (NVIDIA's
# Jetson Linux Developer Guide, thermal zones of Nano, TX2 and Xavier).
_CONSTANT = re.compile(r"pmic", re.I)
_SUFFIX = re.compile(r"[-_](therm|thermal)$", re.I)
_PLAUSIBLE_C = (-60.0, 200.0)  # a zone that is switched off may say -256 °C
# Chips in a processor; all others measure disks, radios and boards.
_CHIPS = {"coretemp": "Package id", "k10temp": "Tctl", "zenpower": "Tdie", "amdgpu": "edge"}


def sensor_name(zone: str) -> str:
    """What a zone measures, the same for `GPU-therm`, `gpu-thermal` and tegrastats' `GPU`."""
    return _SUFFIX.sub("", zone).lower()


def is_measured(sensor: str, temperature_c: float) -> bool:
    """Whether it is a temperature, not a constant or the mark of a sensor that is off."""
    return not _CONSTANT.match(sensor) and _PLAUSIBLE_C[0] < temperature_c < _PLAUSIBLE_C[1]


class Thermometers:
    """The sensors under `root`; `read` gives °C by name, without those that are off."""

    def __init__(self, root: Path) -> None:
        found = [
            (sensor_name(read_name(zone / "type")), zone / "temp")
            for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        ]
        for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            name = read_name(chip / "name")
            for label_file in sorted(chip.glob("temp*_label")) if name in _CHIPS else ():
                label = read_name(label_file)
                if label.startswith(_CHIPS[name]):
                    number = label_file.name.partition("_")[0]
                    found.append((f"{name} {label}".lower(), chip / f"{number}_input"))
        self._sensors: list[tuple[str, Path]] = []
        taken: dict[str, int] = {}
        for name, path in found:
            taken[name] = taken.get(name, 0) + 1
            self._sensors.append((f"{name} {taken[name]}" if taken[name] > 1 else name, path))

    def read(self) -> dict[str, float]:
        """°C by sensor."""
        temperatures = {}
        for name, path in self._sensors:
            thousandths = read_number(path)
            if thousandths is not None and is_measured(name, thousandths / 1000):
                temperatures[name] = thousandths / 1000
        return temperatures
