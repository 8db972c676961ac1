"""The power mode of a Jetson: read, never changed.

Ids and names differ from board to board and from JetPack to JetPack (0 is 15W on an Orin Nano, MAXN on an
AGX Orin), so an id means nothing without the machine's own /etc/nvpmodel.conf.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.detection.system_files import read_text

STATUS = "var/lib/nvpmodel/status"
CONFIGURATION = "etc/nvpmodel.conf"
_CURRENT = re.compile(r"^[ \t]*pmode:(\d{1,4})\b", re.M)
_MODEL = re.compile(
    r"^[ \t]*<[ \t]*POWER_MODEL[ \t]+ID=(\d{1,4})[ \t]+NAME=([\w.+\-]{1,64})[ \t]*>", re.M
)


class PowerModes(NamedTuple):
    """Name of the mode that the machine is in, None where unknown, and all its modes by id."""

    current: str | None
    names: dict[int, str]


def read_power_modes(root: Path = Path("/")) -> PowerModes:
    """Of the machine whose files are under `root`; without nvpmodel there are none. Never raises."""
    names = {int(number): name for number, name in _MODEL.findall(read_text(root / CONFIGURATION))}
    current = _CURRENT.search(read_text(root / STATUS))
    return PowerModes(names.get(int(current[1])) if current else None, names)


def power_mode_warning(asked: str, root: Path = Path("/")) -> str:
    """A warning where the machine is not in the power mode that was asked for, else empty.

    The mode is never changed from here: that can need a reboot. Raises FusedgeError for an unknown mode.
    """
    modes = read_power_modes(root)
    names = set(modes.names.values())
    if asked not in names:
        raise FusedgeError(
            f"this machine has no power mode {asked!r}",
            hint=f"it has {', '.join(sorted(names))}" if names else "it has no nvpmodel at all",
        )
    if modes.current == asked:
        return ""
    number = next(number for number, name in modes.names.items() if name == asked)
    return (
        f"the machine is in power mode {modes.current or 'unknown'}, not {asked}: engines are tuned for "
        f"the mode they are built in; change it with: sudo nvpmodel -m {number}"
    )
