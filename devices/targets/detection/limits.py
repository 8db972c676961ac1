"""What a process may use of its machine: the CPUs it may run on, and its control group's limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusedge.devices.targets.detection.system_files import (
    cpu_list,
    matching,
    read_field,
    read_number,
    read_text,
)

_GROUPS = "sys/fs/cgroup"
_SIGNS = (
    ("var/run/secrets/kubernetes.io", "kubernetes"),
    (".dockerenv", "docker"),
    ("run/.containerenv", "podman"),
)
_KINDS = ("docker", "podman", "kubepods", "containerd", "lxc")


class Limits(NamedTuple):
    """CPUs by number, cores' worth of time, bytes of memory, and the kind of container; None: no limit."""

    cpus: frozenset[int] | None
    quota: float | None
    memory_bytes: int | None
    container: str | None


def read_limits(root: Path) -> Limits:
    """Of this process, by the files under `root`, in both versions of control groups. Never raises."""
    groups = read_text(root / "proc/self/cgroup")
    quotas = [_quota(folder) for folder in _folders(root, groups, "cpu")]
    sizes = [
        read_number(folder / name)
        for folder in _folders(root, groups, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return Limits(
        cpus=_allowed(root),
        quota=min((quota for quota in quotas if quota), default=None),
        # version 1 writes no limit as the largest number of pages
        memory_bytes=min((size for size in sizes if size and 0 < size < 1 << 60), default=None),
        container=_container(root, groups),
    )


def _allowed(root: Path) -> frozenset[int] | None:
    listed = read_field(read_text(root / "proc/self/status"), "Cpus_allowed_list")
    return cpu_list(listed) if listed else None


def _folders(root: Path, groups: str, controller: str) -> Iterator[Path]:
    """The group of this process and those that it is in, which bind it as well.

    In a container the path can be that of the host; what of it exists here is looked at.
    """
    for line in groups.splitlines()[:100]:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            base = root / _GROUPS
        elif controller in controllers.split(","):
            base = root / _GROUPS / controller
        else:
            continue
        steps = [step for step in path.split("/") if step not in ("", ".", "..")][:64]
        for depth in range(len(steps) + 1):
            yield base.joinpath(*steps[:depth])


def _quota(folder: Path) -> float | None:
    """Cores' worth of time in each period."""
    both = re.match(r"(\d{1,12}) (\d{1,12})$", read_text(folder / "cpu.max"))
    time: int | None
    period: int | None
    if both:
        time, period = int(both[1]), int(both[2])
    else:
        time = read_number(folder / "cpu.cfs_quota_us")
        period = read_number(folder / "cpu.cfs_period_us")
    return time / period if time and period and time > 0 and period > 0 else None


def _container(root: Path, groups: str) -> str | None:
    for sign, name in _SIGNS:
        if matching(root, sign):
            return name
    kind = read_text(root / "run/systemd/container")
    return kind or next((name for name in _KINDS if name in groups), None)
