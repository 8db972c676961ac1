"""What NVIDIA's `tegrastats` prints of a Jetson, a line at a time.

The format differs from release to release: JetPack 4 has rails as `POM_5V_IN 2353/2300` in mW and clocks
as `GR3D_FREQ 0%@76`; JetPack 5 and 6 begin with the date and have `VDD_IN 4470mW/4470mW` and
`GR3D_FREQ 0%@[305]`, a clock for each cluster of the GPU; JetPack 7 adds the greatest value to rails and
temperatures, leaves out a load that it does not know, and has `CPU [5%,off]@2601` where all cores have
one clock. Values are those of the moment: the mean and the greatest beside them are not used.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

from fusedge.devices.targets.telemetry.reading import Frequency, Memory, Reading
from fusedge.devices.targets.telemetry.thermal import is_measured, sensor_name

MAX_LINE = 8192  # bytes; a line has some hundred
_CLOSE_S = 0.2  # for a killed child to end

_RAM = re.compile(r"\bRAM (\d{1,7})/(\d{1,7})(k|M)B")
_CPU = re.compile(r"\bCPU \[([^\]]{1,2000})\](?:@(\d{1,5})\b)?")
_CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,5})\b)?")
_LOAD_AND_CLOCK = r"\b{} (?:(\d{{1,3}})%)?(?:@\[?(\d{{1,5}}(?:,\d{{1,5}})*)\]?)?"
_GPU = re.compile(_LOAD_AND_CLOCK.format("GR3D_FREQ"))
_EMC = re.compile(_LOAD_AND_CLOCK.format("EMC_FREQ"))
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w.-]{0,39})@(-?\d{1,4}(?:\.\d{1,4})?)C\b")
# A rail is upper case; what has no unit (JetPack 4) must have two numbers, which RAM and IRAM have too,
# but with a unit behind them.
_RAIL = re.compile(
    r"(?<!\S)([A-Z][A-Z0-9_]{1,39}) (-?\d{1,7})(?:mW(?:/-?\d{1,7}mW)*|/\d{1,7}(?:/\d{1,7})?)(?!\S)"
)


def parse_tegrastats(line: str) -> Reading:
    """What a line says; of one that is no line of tegrastats, nothing."""
    frequencies: dict[str, Frequency] = {}
    utilisation: dict[str, float] = {}
    memory: dict[str, Memory] = {}
    if found := _RAM.search(line):
        unit = 1024 if found[3] == "k" else 1024**2
        memory["ram"] = Memory(int(found[1]) * unit, int(found[2]) * unit)
    if found := _CPU.search(line):
        cores = found[1].split(",")
        loads = [match for core in cores if (match := _CORE.fullmatch(core.strip()))]
        clocks = [float(match[2] or found[2] or 0) for match in loads]
        if loads:  # a core that is off computes nothing
            utilisation["cpu"] = min(sum(int(match[1]) for match in loads) / len(cores), 100.0)
        if any(clocks):
            frequencies["cpu"] = Frequency(sum(clocks) / len(clocks))
    for name, pattern in (("gpu", _GPU), ("emc", _EMC)):
        if found := pattern.search(line):
            if found[1] is not None and int(found[1]) <= 100:
                utilisation[name] = float(found[1])
            if found[2] is not None:
                frequencies[name] = Frequency(max(float(mhz) for mhz in found[2].split(",")))
    temperatures = {sensor_name(name): float(value) for name, value in _TEMPERATURE.findall(line)}
    return Reading(
        temperatures_c={n: value for n, value in temperatures.items() if is_measured(n, value)},
        frequencies=frequencies,
        power_w={name: int(milliwatts) / 1e3 for name, milliwatts in _RAIL.findall(line)},
        memory=memory,
        utilisation_percent=utilisation,
    )


class TegrastatsSource:
    """Runs `program` beside us, and reads the newest line that it has printed; never waits for it."""

    def __init__(self, program: str | Path) -> None:
        self._child = subprocess.Popen(
            [program, "--interval", "1000"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; we end it
        )
        assert self._child.stdout is not None
        self._output = self._child.stdout
        os.set_blocking(self._output.fileno(), False)
        self._rest = b""

    def read(self, now_ns: int) -> Reading:
        """Of the newest line since the last `read`; a note where there is none."""
        lines: list[bytes] = []
        while True:
            try:
                data = os.read(self._output.fileno(), MAX_LINE)
            except BlockingIOError:
                break
            if not data:
                break
            *complete, self._rest = (self._rest + data).split(b"\n")
            lines = complete[-1:] or lines
            self._rest = self._rest[:MAX_LINE]
        if lines:
            return parse_tegrastats(lines[-1][:MAX_LINE].decode("utf-8", errors="replace"))
        status = self._child.poll()
        if status is not None:
            return Reading(notes=(f"tegrastats has ended, with status {status}",))
        return Reading(notes=("tegrastats has printed nothing yet",))

    def kill(self) -> None:
        """End the program, from any thread, without waiting."""
        self._child.kill()

    def close(self) -> None:
        """End the program, and see it off."""
        self.kill()
        self._output.close()
        with suppress(
            subprocess.TimeoutExpired
        ):  # it hangs in a driver, and ends when that lets it go
            self._child.wait(_CLOSE_S)
