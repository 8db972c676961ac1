"""All sources of telemetry of a machine as one."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fusedge.bundle.errors import printable
from fusedge.devices.targets.detection.power_mode import STATUS, read_power_modes
from fusedge.devices.targets.telemetry.files import read_text
from fusedge.devices.targets.telemetry.host import HostSource
from fusedge.devices.targets.telemetry.nvml import NvmlSource
from fusedge.devices.targets.telemetry.reading import Reading, merged
from fusedge.devices.targets.telemetry.sysfs import SysfsSource
from fusedge.devices.targets.telemetry.tegrastats import TegrastatsSource


class Source(Protocol):
    """A place that tells something of the machine."""

    def read(self, now_ns: int) -> Reading:
        """What it knows, at `now_ns` of the machine's monotonic clock; may raise anything."""

    def close(self) -> None:
        """Give back what it holds."""


class Sampler:
    """Reads the machine whose files are under `root`; made in no time, it opens its sources at the first
    `read`. `now_ns` is the machine's clock, `load` imports optional packages, `which` finds a program.

    NVML is believed first, then /sys, and psutil for what is left. tegrastats runs beside only where those
    do not tell a Jetson's power or the load of its GPU. A source that fails is a note.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        root: Path = Path("/"),
        *,
        load: Callable[[str], Any] = importlib.import_module,
        which: Callable[[str], str | None] = shutil.which,
    ) -> None:
        self._now_ns, self._root, self._load, self._which = now_ns, root, load, which
        self._sources: dict[str, Source] = {}
        self._notes: list[str] = []
        self._tegrastats: TegrastatsSource | None = None
        self._mode_number: str | None = None
        self._mode: str | None = None

    def read(self) -> Reading:
        """The machine now. Takes a few milliseconds, at first more; may hang where a driver does."""
        first = not self._sources
        if first:
            self._open("NVML", lambda: NvmlSource(self._load))
            self._open("sysfs", lambda: SysfsSource(self._root))
            self._open("psutil", lambda: HostSource(self._load))
        reading = self._read_sources()
        if first and not (reading.power_w and "gpu" in reading.utilisation_percent):
            program = self._which("tegrastats")
            if program is not None:
                self._open("tegrastats", lambda: self._run(program))
        return reading

    def _open(self, name: str, source: Callable[[], Source]) -> None:
        try:
            self._sources[name] = source()
        except Exception as error:  # drivers and their packages raise what they like
            self._notes.append(f"{name}: {printable(str(error))}")

    def _run(self, program: str) -> Source:
        self._tegrastats = TegrastatsSource(program)
        return self._tegrastats

    def _read_sources(self) -> Reading:
        now_ns = self._now_ns()
        readings = [_answer("power mode", self._read_mode)]  # first: it may open another source
        readings += [
            _answer(name, partial(source.read, now_ns)) for name, source in self._sources.items()
        ]
        return merged(now_ns, [Reading(notes=tuple(self._notes)), *readings])

    def _read_mode(self) -> Reading:
        """The table of modes is read again when another is set; then cores and clocks are others too."""
        number = read_text(self._root / STATUS)
        if not number:  # as for a moment while nvpmodel writes it
            return Reading()
        if number != self._mode_number:
            self._mode = read_power_modes(self._root).current
            if self._mode_number is not None:
                self._open("sysfs", lambda: SysfsSource(self._root))
            self._mode_number = number
        return Reading(power_mode=self._mode)

    def abandon(self) -> None:
        """End what runs beside us, from another thread than that of `read`, which hangs."""
        if self._tegrastats is not None:
            self._tegrastats.kill()

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()


def _answer(name: str, read: Callable[[], Reading]) -> Reading:
    """What `read` gives, or a note of why it failed."""
    try:
        return read()
    except Exception as error:  # drivers and their packages raise what they like
        return Reading(notes=(f"{name}: {printable(str(error))}",))
