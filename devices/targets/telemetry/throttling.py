"""Signs in /sys that a processor is held back: by heat, by current, by a weak supply."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fusedge.devices.targets.telemetry.files import read_name, read_number, read_text

# Cooling devices that slow something down. Fans are none; `TCC Offset` is a setting, of which the state
# is never 0.
_SLOWS_DOWN = re.compile(
    r"throttl|cpufreq|devfreq|cpuidle|^processor|powerclamp|hot-?surface|(cpu|gpu)-balanced|heavy",
    re.I,
)
# Of the Raspberry Pi's firmware, github.com/raspberrypi/documentation, `vcgencmd get_throttled`; the
# upper half says what has ever been, the lower one what is now.
_PI_BITS = {
    0: "under-voltage",
    1: "CPU clock capped",
    2: "throttled by the firmware",
    3: "soft temperature limit",
}


class Signs(NamedTuple):
    """Whether the machine throttles, None where nothing tells, and why."""

    throttling: bool | None
    reasons: tuple[str, ...]


class ThrottleSigns:
    """The signs under `root`. Counters of events tell what has been since the last `read`."""

    def __init__(self, root: Path) -> None:
        system = root / "sys"
        self._states = []
        for device in sorted((system / "class/thermal").glob("cooling_device*")):
            name = read_name(device / "type")
            if _SLOWS_DOWN.search(name):
                self._states.append((name, device / "cur_state"))
        self._counters = dict(_over_current(system)) | dict(_package_limits(system))
        self._counts: dict[Path, int] = {}
        self._firmware = sorted(
            (system / "devices/platform").glob("soc*/soc*firmware/get_throttled")
        )
        self._alarms = [
            chip / "in0_lcrit_alarm"
            for chip in (system / "class/hwmon").glob("hwmon*")
            if read_name(chip / "name") == "rpi_volt"
        ]

    def read(self) -> Signs:
        """What is so now."""
        told = False
        reasons: dict[str, None] = {}
        for name, path in self._states:
            if (state := read_number(path)) is not None:
                told = True
                if state > 0:
                    reasons[f"cooling by {name}"] = None
        for path, reason in self._counters.items():
            if (count := read_number(path)) is not None:
                told = True
                if count > self._counts.get(path, count):
                    reasons[reason] = None
                self._counts[path] = count
        for path in self._firmware:
            if (bits := _hexadecimal(read_text(path))) is not None:
                told = True
                reasons |= dict.fromkeys(why for bit, why in _PI_BITS.items() if bits >> bit & 1)
        for path in self._alarms:
            if (alarm := read_number(path)) is not None:
                told = True
                if alarm:
                    reasons[_PI_BITS[0]] = None
        return Signs(bool(reasons) if told else None, tuple(reasons))


def _over_current(system: Path) -> Iterable[tuple[Path, str]]:
    """Events of a Jetson's over-current protection: `oc1` is a low supply, others too much power."""
    for chip in sorted((system / "class/hwmon").glob("hwmon*")):
        if read_name(chip / "name") == "soctherm_oc":
            for path in sorted(chip.glob("oc*_event_cnt")):
                yield path, f"over-current protection {path.name.partition('_')[0]}"


def _package_limits(system: Path) -> Iterable[tuple[Path, str]]:
    """Events of Intel's thermal limit; all cores of a package count them alike."""
    packages: set[str] = set()
    for core in sorted((system / "devices/system/cpu").glob("cpu[0-9]*")):
        path = core / "thermal_throttle/package_throttle_count"
        package = read_text(core / "topology/physical_package_id")
        if package is not None and package not in packages and path.exists():
            packages.add(package)
            yield path, "thermal limit of the processor"


def _hexadecimal(text: str | None) -> int | None:
    match = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{1,8})", text or "")
    return int(match[1], 16) if match else None
