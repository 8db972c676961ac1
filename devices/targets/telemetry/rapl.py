"""Energy counters of Intel's and AMD's processors (RAPL), as Linux shows them in /sys/class/powercap."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fusedge.devices.targets.telemetry.files import read_name, read_number

RAPL = "sys/class/powercap"


class EnergyCounter(NamedTuple):
    """Of a domain, such as `package-0` or `dram`; `label` differs from that of all others.

    An inner domain is a part of another one. Beyond `range_uj` µJ, where that is known, it begins again.
    """

    domain: str
    label: str
    zone: Path
    range_uj: int | None

    @property
    def is_inner(self) -> bool:
        """Whether another domain counts this one's energy too."""
        return self.zone.name.count(":") > 1

    @property
    def closed(self) -> str:
        """What to say where it cannot be read."""
        place = f"/{RAPL}/{self.zone.name}/energy_uj"
        return f"RAPL: {place} cannot be read, on most systems by root only: sudo chmod a+r {place}"

    def read_uj(self) -> int | None:
        """µJ by now; None where it cannot be read."""
        return read_number(self.zone / "energy_uj")

    def used_uj(self, before: int, after: int) -> int | None:
        """µJ between two readings; None where it began again, and its range is not known."""
        used = after - before
        if used < 0:
            used += self.range_uj or 0
        return used if used >= 0 else None


def energy_counters(root: Path) -> list[EnergyCounter]:
    """Those of the machine whose files are under `root`."""
    found: list[EnergyCounter] = []
    for zone in sorted((root / RAPL).glob("intel-rapl:[0-9]*")):
        domain = read_name(zone / "name")
        taken = domain in {other.domain for other in found}
        label = f"{domain} of {zone.name}" if taken else domain
        found.append(EnergyCounter(domain, label, zone, read_number(zone / "max_energy_range_uj")))
    return found
