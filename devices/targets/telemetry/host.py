"""Load and memory of the machine and of this process, by psutil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedge.devices.targets.telemetry.reading import Memory, Reading


class HostSource:
    """`load` imports psutil. Loads are means since the last `read`, so the first has none."""

    def __init__(self, load: Callable[[str], Any]) -> None:
        try:
            self._psutil = load("psutil")
        except ImportError:
            self._psutil = None
            return
        self._process = self._psutil.Process()
        self._psutil.cpu_percent(None)
        self._process.cpu_percent(None)
        self._first = True

    def read(self, now_ns: int) -> Reading:
        """What is so now."""
        if self._psutil is None:
            return Reading(notes=("psutil is not installed: pip install 'fusedge[telemetry]'",))
        ram = self._psutil.virtual_memory()
        loads = {
            "cpu": float(self._psutil.cpu_percent(None)),
            "process": float(self._process.cpu_percent(None)),
        }
        if self._first:
            self._first, loads = False, {}
        # Not on all systems; None without a battery.
        battery = getattr(self._psutil, "sensors_battery", lambda: None)()
        return Reading(
            memory={
                "ram": Memory(ram.total - ram.available, ram.total),
                "process": Memory(self._process.memory_info().rss),
            },
            utilisation_percent=loads,
            battery_percent=None if battery is None else float(battery.percent),
        )

    def close(self) -> None:
        """Nothing is held."""
