"""What Linux says in /sys of temperatures, clocks, power and throttling."""

from __future__ import annotations

from pathlib import Path

from fusedge.devices.targets.telemetry.frequencies import Clocks
from fusedge.devices.targets.telemetry.rails import PowerRails
from fusedge.devices.targets.telemetry.reading import Reading
from fusedge.devices.targets.telemetry.thermal import Thermometers
from fusedge.devices.targets.telemetry.throttling import ThrottleSigns


class SysfsSource:
    """The machine whose files are under `root`; what it has is looked up once."""

    def __init__(self, root: Path) -> None:
        self._thermometers, self._signs = Thermometers(root), ThrottleSigns(root)
        self._clocks, self._rails = Clocks(root), PowerRails(root)

    def read(self, now_ns: int) -> Reading:
        """All of it, at `now_ns`."""
        temperatures, frequencies = self._thermometers.read(), self._clocks.read()
        power, signs = self._rails.read(now_ns), self._signs.read()
        load = self._clocks.gpu_load_percent()
        missing = [
            what
            for what, found in (("temperatures", temperatures), ("clocks", frequencies))
            if not found
        ]
        notes = [f"/sys has no {' and no '.join(missing)}"] if missing else []
        if self._rails.note:
            notes.append(self._rails.note)
        return Reading(
            temperatures_c=temperatures,
            frequencies=frequencies,
            power_w=power,
            utilisation_percent={} if load is None else {"gpu": load},
            throttling=signs.throttling,
            throttle_reasons=signs.reasons,
            notes=tuple(notes),
        )

    def close(self) -> None:
        """Nothing is held."""
