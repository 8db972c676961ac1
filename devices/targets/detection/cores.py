"""The CPU cores of a machine, from its /proc/cpuinfo and /sys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusedge.devices.targets.detection.machine import CoreKind
from fusedge.devices.targets.detection.system_files import (
    cpu_list,
    matching,
    read_number,
    read_text,
)
from fusedge.devices.targets.facts.rows import Processor
from fusedge.devices.targets.facts.table import processors

CPUS = "sys/devices/system/cpu"
# What ONNX Runtime and other libraries have kernels for; names as the kernel writes them.
_FLAGS = (
    *("fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_MOST = 8192  # logical cores; Linux is built for at most this many
_MOST_KINDS = 8  # of core in one machine; real ones have up to three
_SIZE = re.compile(r"(\d{1,7})([KMG])")


class Cores(NamedTuple):
    """Kinds of core, numbers of those switched on, and what all of them have."""

    kinds: tuple[CoreKind, ...]
    online: frozenset[int]
    total: int | None
    physical: int | None
    flags: tuple[str, ...]
    architecture: str | None
    title: str | None


def read_cores(root: Path) -> Cores:
    """Of the machine whose files are under `root`. Never raises."""
    blocks = dict(_blocks(read_text(root / "proc/cpuinfo")))
    flags = [
        set((each.get("flags") or each.get("features", "")).split()) for each in blocks.values()
    ]
    common = set.intersection(*flags) if flags else set()
    places = {(each.get("physical id"), each.get("core id")) for each in blocks.values()}
    numbers: dict[tuple[str | None, str], list[int]] = {}
    for number, block in blocks.items():
        numbers.setdefault(_kind(block), []).append(number)
    some = list(numbers.items())[:_MOST_KINDS]
    kinds = tuple(_core_kind(root, *key, blocks, found) for key, found in some)
    online = cpu_list(read_text(root / CPUS / "online")) or frozenset(blocks)
    present = cpu_list(read_text(root / CPUS / "present")) or online
    return Cores(
        kinds=kinds,
        online=online,
        total=len(present) or None,
        physical=None if any(None in place for place in places) else len(places) or None,
        flags=tuple(flag for flag in _FLAGS if flag in common),
        architecture=_architecture(blocks, common),
        title=_title(kinds),
    )


def _blocks(cpuinfo: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and fields of each core."""
    for text in re.split(r"\n[ \t]*\n", cpuinfo)[:_MOST]:
        fields: dict[str, str] = {}
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip().lower(), value.strip())
        if re.fullmatch(r"[0-9]{1,4}", number := fields.get("processor", "")):
            yield int(number), fields


def _kind(block: dict[str, str]) -> tuple[str | None, str]:
    """Kind of a core as the table of processors knows it, and its title without the table."""
    implementer, part = block.get("cpu implementer", ""), block.get("cpu part", "")
    if re.fullmatch("0x[0-9a-f]{1,2}", implementer) and re.fullmatch("0x[0-9a-f]{1,3}", part):
        arm = f"{int(implementer, 16):#04x}:{int(part, 16):#05x}"
        return arm, f"ARM core {arm}"  # the kernel's model name is the same for all of them
    names = [block.get(name, "") for name in ("vendor_id", "cpu family", "model")]
    kind = ":".join(names) if all(re.fullmatch(r"\w{1,32}", name) for name in names) else None
    return kind, block.get("model name") or kind or "unknown"


def _core_kind(
    root: Path,
    kind: str | None,
    title: str,
    blocks: dict[int, dict[str, str]],
    numbers: list[int],
) -> CoreKind:
    row = _processor(kind) if kind else None
    folders = [root / CPUS / f"cpu{number}" for number in numbers]
    clocks = [_allowed_khz(folder / "cpufreq") for folder in folders]
    now = [
        re.fullmatch(r"\d{1,5}\.\d{1,6}", blocks[number].get("cpu mhz", "")) for number in numbers
    ]
    arm = title.startswith("ARM core")
    return CoreKind(
        title=row.title if row and arm else title,
        kind=kind,
        processor=row.name if row else None,
        count=len(numbers),
        max_mhz=max((khz / 1000 for khz in clocks if khz), default=None),
        mhz=max((float(mhz[0]) for mhz in now if mhz and float(mhz[0])), default=None),
        cache_bytes=_caches(folders[0]),
    )


def _processor(kind: str) -> Processor | None:
    rows = processors().values()
    return next((row for row in rows if kind in row.parts or kind in row.families), None)


def _allowed_khz(folder: Path) -> int | None:
    limit = read_number(folder / "scaling_max_freq") or read_number(folder / "cpuinfo_max_freq")
    return limit if limit and 0 < limit < 10**8 else None


def _caches(cpu: Path) -> dict[str, int]:
    """Bytes by name, such as `L1d`."""
    found = {}
    for folder in matching(cpu, "cache/index[0-9]"):
        level, size = read_text(folder / "level"), _SIZE.fullmatch(read_text(folder / "size"))
        kind = {"Data": "d", "Instruction": "i"}.get(read_text(folder / "type"), "")
        if size and re.fullmatch("[1-9]", level):
            found[f"L{level}{kind}"] = int(size[1]) << {"K": 10, "M": 20, "G": 30}[size[2]]
    return found


def _architecture(blocks: dict[int, dict[str, str]], flags: set[str]) -> str | None:
    """As `uname -m` names it, by what only such a processor says of itself."""
    if any("cpu implementer" in block for block in blocks.values()):
        return "aarch64" if "asimd" in flags else "armv7l"
    if flags:
        return "x86_64" if "lm" in flags else "i686"
    return None


def _title(kinds: tuple[CoreKind, ...]) -> str | None:
    if len(kinds) > 1:
        return " + ".join(f"{kind.count} x {kind.title}" for kind in kinds)
    return kinds[0].title if kinds and kinds[0].title != "unknown" else None
