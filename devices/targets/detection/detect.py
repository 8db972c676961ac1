"""What this machine has to run and build bundles with. Nothing is guessed: unknown is None."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusedge.devices.targets.detection.cores import read_cores
from fusedge.devices.targets.detection.jetson import read_board, read_jetson
from fusedge.devices.targets.detection.limits import Limits, read_limits
from fusedge.devices.targets.detection.machine import Machine, SystemTensorRT
from fusedge.devices.targets.detection.nvidia_gpus import read_gpus
from fusedge.devices.targets.detection.system_files import matching, read_text
from fusedge.devices.targets.tensorrt_api import DISTRIBUTIONS

_LIBRARY = re.compile(r"libnvinfer\.so\.(\d{1,3}(?:\.\d{1,5}){1,3})")


def detect(
    root: Path = Path("/"),
    *,
    load: Callable[[str], Any] = importlib.import_module,
    version: Callable[[str], str] = importlib.metadata.version,
    which: Callable[[str], str | None] = shutil.which,
) -> Machine:
    """Look at the machine whose files are under `root`; never raises for what is absent or broken.

    `load` imports `pynvml` and `onnxruntime`, `version` tells an installed distribution's version
    and `which` finds a program, so that a recorded machine can be described as well. Of such a one
    nothing is taken from this machine but the version of Python.
    """
    here = root == Path("/")
    cores, limits, board = read_cores(root), read_limits(root), read_board(root)
    gpus, driver, gpu_note = read_gpus(root, load, which)
    runtime, providers, runtime_note = _onnxruntime(load)
    installed = {
        flavour: _first_version(names, version) for flavour, names in DISTRIBUTIONS.items()
    }
    memory = re.search(r"^MemTotal:\s*(\d{1,15}) kB", read_text(root / "proc/meminfo"), re.M)
    return Machine(
        processor=cores.title or (here and platform.processor()) or None,
        architecture=(platform.machine() if here else cores.architecture) or "unknown",
        cores=cores.total or (os.cpu_count() if here else None),
        usable_cores=_usable(cores.online, limits),
        physical_cores=cores.physical,
        core_kinds=cores.kinds,
        cpu_flags=cores.flags,
        cpu_quota=limits.quota,
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        memory_limit_bytes=limits.memory_bytes,
        container=limits.container,
        os=_os(root, here),
        python=platform.python_version(),
        board=board,
        jetson=read_jetson(root, board),
        gpus=gpus,
        gpu_driver=driver,
        gpu_note=gpu_note,
        onnxruntime=runtime,
        onnxruntime_providers=providers,
        onnxruntime_note=runtime_note,
        tensorrt={flavour: found for flavour, found in installed.items() if found},
        tensorrt_system=_system_tensorrt(root),
        torch=_first_version(("torch",), version),
    )


def _usable(online: frozenset[int], limits: Limits) -> int | None:
    """Cores that a process may use at a time; a part of a core's time counts as one core."""
    count = len(online if limits.cpus is None else online & limits.cpus)
    if count and limits.quota is not None:
        count = max(1, min(count, int(limits.quota)))
    return count or None


def _os(root: Path, here: bool) -> str:
    name = re.search(r'^PRETTY_NAME="?(.+?)"?$', read_text(root / "etc/os-release"), re.M)
    return name[1] if name else platform.platform() if here else "unknown"


def _system_tensorrt(root: Path) -> SystemTensorRT | None:
    """As JetPack's packages and NVIDIA's containers install it: its library's name has the version.

    Its Python module is for the system's own Python, so another one cannot import it.
    """
    libraries = matching(root, "usr/lib/*-linux-gnu/libnvinfer.so.*")
    versions = [found[1] for path in libraries if (found := _LIBRARY.fullmatch(path.name))]
    if not versions:
        return None
    modules = matching(root, "usr/lib/python3*/dist-packages/tensorrt")
    return SystemTensorRT(
        version=max(versions, key=lambda name: [int(step) for step in name.split(".")]),
        pythons=tuple(path.parts[-3].removeprefix("python") for path in modules),
    )


def _onnxruntime(load: Callable[[str], Any]) -> tuple[str | None, tuple[str, ...], str]:
    try:
        runtime = load("onnxruntime")
        return runtime.__version__, tuple(runtime.get_available_providers()), ""
    except ModuleNotFoundError as error:
        return None, (), f"{error.name or 'onnxruntime'} is not installed"
    except Exception as error:  # a broken install fails in many ways: a library, a symbol
        return None, (), f"cannot be imported: {' '.join(str(error).split())}"


def _first_version(names: Iterable[str], version: Callable[[str], str]) -> str | None:
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            return version(name)
    return None
