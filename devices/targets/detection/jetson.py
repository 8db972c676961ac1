"""A Jetson, from its device tree, its release of Jetson Linux, nvpmodel and /sys."""

from __future__ import annotations

import re
from pathlib import Path

from fusedge.devices.targets.detection.machine import Board, Jetson
from fusedge.devices.targets.detection.power_mode import PowerModes, read_power_modes
from fusedge.devices.targets.detection.system_files import matching, read_number, read_text
from fusedge.devices.targets.facts.rows import Configuration
from fusedge.devices.targets.facts.table import jetpack_of_l4t, jetson_by_part, jetsons

_TREE = "proc/device-tree"
_MOST_NAMES = 64  # in `compatible`; real ones have up to six
# Chip id and compute capability of each system on chip: Linux, include/soc/tegra/fuse.h, and
# developer.nvidia.com/cuda-gpus.
_SOCS = {
    "tegra210": (0x21, "5.3"),
    "tegra186": (0x18, "6.2"),
    "tegra194": (0x19, "7.2"),
    "tegra234": (0x23, "8.7"),
    "tegra264": (0x26, "11.0"),
}
# R36 and later, R35 and before; a container may not have the class.
_GPU_CLOCKS = (
    "sys/class/devfreq/*.g*",
    "sys/class/devfreq/gpu-gpc-*",
    "sys/devices/platform/*.gpu/devfreq_dev",
    "sys/devices/*.g*/devfreq/*.g*",
)
_EMC_CAPS = ("sys/kernel/nvpmodel_clk_cap/emc", "sys/kernel/nvpmodel_emc_cap/emc_iso_cap")
_NO_LIMIT = 2**31 - 1
_TPC_MASKS = ("sys/devices/platform/gpu.0/tpc_pg_mask", "sys/devices/gpu.0/tpc_pg_mask")


def read_board(root: Path) -> Board | None:
    """The board whose files are under `root`, None without a device tree. Never raises."""
    model = read_text(root / _TREE / "model")
    names = [name for name in read_text(root / _TREE / "compatible").split("\0") if name]
    if not model and not names:
        return None
    return Board(model=model or None, compatible=tuple(names[:_MOST_NAMES]))


def read_jetson(root: Path, board: Board | None) -> Jetson | None:
    """The Jetson whose files are under `root`, None where it is none. Never raises.

    Another board with a Jetson module is one too. A container sees no device tree, so there the release
    and the chip tell.
    """
    model = (board.model if board else None) or ""
    soc, release = _soc(root, board), _l4t(root)
    if soc is None and release is None and "jetson" not in model.lower():
        return None
    part = _part(root, board)
    row = jetson_by_part(part) if part else None
    jetpack = jetpack_of_l4t(release) if release else None
    modes = read_power_modes(root)
    gpu = next(iter(matching(root, *_GPU_CLOCKS)), root / "none")
    return Jetson(
        model=model or f"unknown model, {soc or 'unknown chip'}",
        l4t=release,
        part=part,
        module=row.name if row else None,
        soc=soc,
        compute_capability=row.compute_capability if row else _SOCS[soc][1] if soc else None,
        jetpack=jetpack.name if jetpack else None,
        power_mode=modes.current,
        power_modes=tuple(modes.names.values()),
        configuration=_configuration(modes, board),
        gpu_mhz=_mhz(gpu / "cur_freq"),
        gpu_max_mhz=_mhz(gpu / "max_freq"),
        emc_cap_mhz=_first_mhz(root, _EMC_CAPS),
        tpc_mask=_mask(root),
    )


def _l4t(root: Path) -> str | None:
    text = read_text(root / "etc/nv_tegra_release")
    found = re.search(r"R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){0,2})", text)
    return f"{found[1]}.{found[2]}" if found else None


def _soc(root: Path, board: Board | None) -> str | None:
    names = {name.removeprefix("nvidia,") for name in (board.compatible if board else ())}
    chip = read_number(root / "sys/devices/soc0/soc_id")
    if chip is None:
        chip = read_number(root / "sys/module/tegra_fuse/parameters/tegra_chip_id")
    family = read_text(root / "sys/devices/soc0/family")
    known = _SOCS.items()
    return next(
        (
            soc
            for soc, (number, _) in known
            if soc in names or (chip == number and "Tegra" in family)
        ),
        None,
    )


def _part(root: Path, board: Board | None) -> str | None:
    """The module's part number: the first of a module that the table has in any variant.

    What the boot loader read from the module's memory goes first, for 32 GB and 64 GB modules can have the
    same device tree. A variant that the table does not have stays what it is: it is no other one.
    """
    names = [path.name for path in matching(root / _TREE, "chosen/plugin-manager/ids/*")]
    names.append(read_text(root / _TREE / "chosen/ids"))
    names += board.compatible if board else ()
    names.append(read_text(root / _TREE / "nvidia,dtsfilename").rpartition("/")[2])
    modules = {part[:5] for row in jetsons().values() for part in row.parts}
    parts = (f"p{part}" for name in names for part in re.findall(r"(?<!\d)\d{4}-\d{4}(?!\d)", name))
    return next((part for part in parts if part[:5] in modules), None)


def _configuration(modes: PowerModes, board: Board | None) -> Configuration | None:
    """The set of power modes; it takes the configuration of nvpmodel, not the release alone."""
    if modes.names:
        return "super" if "MAXN_SUPER" in modes.names.values() else "standard"
    if board and any(name.endswith("-super") for name in board.compatible):
        return "super"
    return None


def _mhz(path: Path) -> float | None:
    hertz = read_number(path)
    # nvpmodel writes the largest number for "no limit"
    return hertz / 1e6 if hertz and 0 < hertz < 10**11 and hertz != _NO_LIMIT else None


def _first_mhz(root: Path, names: tuple[str, ...]) -> float | None:
    return next((mhz for name in names if (mhz := _mhz(root / name))), None)


def _mask(root: Path) -> int | None:
    numbers = (read_number(root / name) for name in _TPC_MASKS)
    return next(
        (number for number in numbers if number is not None and 0 <= number < 1 << 16), None
    )
