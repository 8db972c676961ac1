"""The power mode of a Jetson: read, never changed.

Ids and names differ from board to board and from JetPack to JetPack (0 is 15W on an Orin Nano, MAXN on an AGX
Orin), so an id means nothing without the machine's own /etc/nvpmodel.conf.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

STATUS = "var/lib/nvpmodel/status"
CONFIGURATION = "etc/nvpmodel.conf"
_CURRENT = re.compile(r"^\s*pmode:(\d{1,4})\b", re.M)
_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([\w.+\-]+)\s*>", re.M)


class PowerModes(NamedTuple):
    """Name of the mode that the machine is in, None where unknown, and all its modes by id."""

    current: str | None
    names: dict[int, str]


def read_power_modes(root: Path = Path("/")) -> PowerModes:
    """Of the machine whose files are under `root`; without nvpmodel there are none. Never raises."""
    names = {int(number): name for number, name in _MODEL.findall(_read(root / CONFIGURATION))}
    current = _CURRENT.search(_read(root / STATUS))
    return PowerModes(names.get(int(current[1])) if current else None, names)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
