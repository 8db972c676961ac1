"""`fusedge devices --targets`: all devices that a bundle can be planned for."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fusedge.cli.console import console, print_json
from fusedge.devices.targets.facts.rows import Jetson, PowerMode
from fusedge.devices.targets.facts.table import Target, find_target, jetson_target, target_names

GIB = 1 << 30


def list_targets(as_json: bool) -> None:
    """Names, what each device can do at most, and its power modes."""
    targets = [find_target(name) for name in target_names()]
    if as_json:
        print_json({"targets": [_as_json(target) for target in targets]})
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("target", no_wrap=True)
    for name in ("CC", "GiB", "GB/s", "fp32", "fp16", "int8", "W"):
        table.add_column(name, justify="right", no_wrap=True)
    modes = Table("", "power modes", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for target in targets:
        compute, peak = target.compute, target.compute.peak
        speeds = (peak.get("fp32"), peak.get("fp16"), peak.get("int8"))
        table.add_row(
            target.name,
            target.compute_capability or "",
            _number(compute.memory_bytes, GIB),
            _number(compute.bandwidth_bytes_per_s, 1e9),
            *(_number(speed, 1e12) for speed in speeds),
            _number(compute.watts, 1),
        )
        if isinstance(target.row, Jetson):
            modes.add_row(target.name, _modes(target.row))
    console.print(table, markup=False)
    console.print(
        "fp32, fp16, int8: the most in 10^12 operations a second; of a Jetson in its default power mode, "
        "of one core of a CPU. CC: compute capability.",
        style="dim",
    )
    console.print(modes, markup=False)
    console.print(
        "* is the default. A power mode follows a name: jetson-orin-nano-8gb:15W.", style="dim"
    )


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return ""
    return f"{value / unit:.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


def _modes(row: Jetson) -> str:
    """The names of all modes, of each configuration; * marks those that it starts in."""
    lines = []
    for configuration in ("super", "standard"):
        modes = [mode for mode in row.modes if mode.configuration == configuration]
        names = [f"{mode.name}*" if mode.default else mode.name for mode in modes]
        if names:
            lines.append(("super: " if configuration == "super" else "") + ", ".join(names))
    return "\n".join(lines)


def _as_json(target: Target) -> dict[str, Any]:
    row = target.row
    modes = row.modes if isinstance(row, Jetson) else ()
    return {
        "name": target.name,
        "title": row.title if row else "the CPU of this machine",
        "compute_capability": target.compute_capability,
        "flavour": target.flavour,
        "source": target.source,
        **_compute(target),
        "power_modes": [_mode(row, mode) for mode in modes if isinstance(row, Jetson)],
    }


def _mode(row: Jetson, mode: PowerMode) -> dict[str, Any]:
    target = jetson_target(row, mode.name, mode.configuration)
    return {**mode.model_dump(mode="json"), "target": target.name, **_compute(target)}


def _compute(target: Target) -> dict[str, Any]:
    compute = target.compute
    return {
        "peak_operations_per_s": dict(compute.peak),
        "bandwidth_bytes_per_s": compute.bandwidth_bytes_per_s,
        "memory_bytes": compute.memory_bytes,
        "watts": compute.watts,
    }
