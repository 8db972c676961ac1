"""Clocks of CPU clusters, GPU and memory controller from cpufreq and devfreq, and the GPU's load."""

from __future__ import annotations

import re
from pathlib import Path

from fusedge.devices.targets.telemetry.files import read_number, read_text
from fusedge.devices.targets.telemetry.reading import Frequency

# Where Jetson Linux 36 has the GPU's devfreq if /sys/class/devfreq does not show it, and where 32 to 36
# have the GPU's load in thousandths.
_GPU_DEVFREQ = ("sys/devices/platform/17000000.gpu/devfreq_dev",)
_GPU_LOAD = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")
# Names in /sys/class/devfreq: of a Jetson's GPU by its chip, or `gpu-gpc-0` (Thor), of others `….gpu`;
# `bwmgr` is Thor's memory controller, `dmc` Rockchip's.
_DEVFREQ = (
    ("gpu", re.compile(r"gpu|gm20b|gp10b|gv11b|ga10b|mali")),
    ("emc", re.compile("^bwmgr|^dmc")),
)


class Clocks:
    """The clocks under `root`."""

    def __init__(self, root: Path) -> None:
        self._clusters = _clusters(root / "sys/devices/system/cpu/cpufreq")
        self._devices: dict[str, Path] = {}
        for folder in sorted((root / "sys/class/devfreq").glob("*")):
            for name, pattern in _DEVFREQ:
                if pattern.search(folder.name):
                    self._devices.setdefault(name, folder)
        for place in _GPU_DEVFREQ:
            if (root / place).is_dir():
                self._devices.setdefault("gpu", root / place)
        self._loads = [root / place for place in _GPU_LOAD]

    def read(self) -> dict[str, Frequency]:
        """By what is clocked; of a cluster whose cores have each their own clock, the mean."""
        found = {}
        for name, policies in self._clusters.items():
            khz = [f for f in (read_number(p / "scaling_cur_freq") for p in policies) if f]
            limits = [f for f in (read_number(p / "scaling_max_freq") for p in policies) if f]
            if khz:
                limit = max(limits) / 1e3 if limits else None
                found[name] = Frequency(sum(khz) / len(khz) / 1e3, limit)
        for name, folder in self._devices.items():
            hz = read_number(folder / "cur_freq")
            if hz is not None:
                limit_hz = read_number(folder / "max_freq")
                found[name] = Frequency(hz / 1e6, limit_hz / 1e6 if limit_hz else None)
        return found

    def gpu_load_percent(self) -> float | None:
        """Of a Jetson's GPU."""
        for path in self._loads:
            if (thousandths := read_number(path)) is not None and 0 <= thousandths <= 1000:
                return thousandths / 10
        return None


def _clusters(folder: Path) -> dict[str, list[Path]]:
    """Policies by cluster. A policy of several cores is a cluster; x86 has one for each core, and of
    those all with the same greatest clock are taken together.
    """
    groups: dict[object, tuple[list[int], list[Path]]] = {}
    for policy in sorted(folder.glob("policy[0-9]*"), key=lambda path: int(path.name[6:] or 0)):
        cores = [
            int(core) for core in re.findall(r"\d{1,5}", read_text(policy / "related_cpus") or "")
        ]
        if cores:
            alone = len(cores) == 1
            key = read_number(policy / "cpuinfo_max_freq") if alone else policy.name
            known, policies = groups.setdefault(key, ([], []))
            known += cores
            policies.append(policy)
    alone = len(groups) == 1
    return {
        "cpu" if alone else f"cpu{min(cores)}-{max(cores)}": policies
        for cores, policies in groups.values()
    }
