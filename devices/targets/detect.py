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

from pydantic import BaseModel, ConfigDict, Field

# The distributions that bring each flavour; a wheel is named for its CUDA, a JetPack package is not.
TENSORRT = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Gpu(_Frozen):
    """An NVIDIA GPU, as its driver describes it."""

    name: str
    memory_bytes: int | None = None
    compute_capability: str | None = None


class Jetson(_Frozen):
    """The Jetson module or kit, and the release of Jetson Linux on it (`36.4.3`)."""

    model: str
    l4t: str | None = None


class Machine(_Frozen):
    """What was found; `model_dump_json()` gives it as JSON. Fields that could not be read are None."""

    processor: str | None
    architecture: str
    cores: int | None = Field(description="logical cores of the machine")
    usable_cores: int | None = Field(description="those that this process may use")
    memory_bytes: int | None
    os: str
    python: str
    jetson: Jetson | None
    gpus: tuple[Gpu, ...]
    gpu_driver: str | None
    gpu_note: str = Field(description="where the GPUs were found, or why none were")
    onnxruntime: str | None = Field(description="version, None where it is not installed")
    onnxruntime_providers: tuple[str, ...] = Field(description="those compiled in, best first")
    onnxruntime_note: str = Field(description="why it cannot be used, else empty")
    tensorrt: dict[str, str] = Field(description="installed flavour to version")
    torch: str | None = Field(description="version, None where it is not installed")


def detect(
    root: Path = Path("/"),
    *,
    load: Callable[[str], Any] = importlib.import_module,
    version: Callable[[str], str] = importlib.metadata.version,
    which: Callable[[str], str | None] = shutil.which,
) -> Machine:
    """Look at the machine whose files are under `root`; never raises for what is absent.

    `load` imports `pynvml` and `onnxruntime`, `version` tells an installed distribution's version
    and `which` finds a program, so that a recorded machine can be described as well.
    """
    cpuinfo, meminfo = _read(root / "proc/cpuinfo"), _read(root / "proc/meminfo")
    memory = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.M)
    gpus, driver, gpu_note = _gpus(root, load, which)
    runtime, providers, runtime_note = _onnxruntime(load)
    installed = {flavour: _first_version(names, version) for flavour, names in TENSORRT.items()}
    return Machine(
        processor=_field(cpuinfo, "model name") or platform.processor() or None,
        architecture=platform.machine(),
        cores=len(re.findall(r"^processor\s*:", cpuinfo, re.M)) or os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        os=_os(root),
        python=platform.python_version(),
        jetson=_jetson(root),
        gpus=gpus,
        gpu_driver=driver,
        gpu_note=gpu_note,
        onnxruntime=runtime,
        onnxruntime_providers=providers,
        onnxruntime_note=runtime_note,
        tensorrt={flavour: found for flavour, found in installed.items() if found},
        torch=_first_version(("torch",), version),
    )


def _read(path: Path) -> str:
    """The text of a small file without NUL and blanks around; empty where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+?)\s*$", text, re.M | re.I)
    return found[1] if found else None


def _os(root: Path) -> str:
    name = re.search(r'^PRETTY_NAME="?(.+?)"?$', _read(root / "etc/os-release"), re.M)
    return name[1] if name else platform.platform()


def _jetson(root: Path) -> Jetson | None:
    model = _read(root / "proc/device-tree/model")
    text = _read(root / "etc/nv_tegra_release")
    if "jetson" not in model.lower() and not text:
        return None
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return Jetson(
        model=model or "unknown model", l4t=f"{release[1]}.{release[2]}" if release else None
    )


def _gpus(
    root: Path, load: Callable[[str], Any], which: Callable[[str], str | None]
) -> tuple[tuple[Gpu, ...], str | None, str]:
    """GPUs, driver version, and where they were found or why not."""
    try:
        nvml = load("pynvml")
    except ImportError:
        reason = "the package nvidia-ml-py is not installed"
    else:
        try:
            return (*_by_nvml(nvml), "from NVML")
        except Exception as error:  # NVMLError, whose class is in the optional package
            reason = f"NVML: {error}"
    folders = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    names = [_field(_read(folder / "information"), "Model") for folder in folders]
    gpus = tuple(Gpu(name=name or "unknown model") for name in names)
    text = _read(root / "proc/driver/nvidia/version")
    driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text)
    smi = "" if which("nvidia-smi") else ", nvidia-smi not found"
    place = "from /proc/driver/nvidia" if text or gpus else f"no /proc/driver/nvidia{smi}"
    return gpus, driver[1] if driver else None, f"{place}; {reason}"


def _by_nvml(nvml: Any) -> tuple[tuple[Gpu, ...], str]:
    nvml.nvmlInit()
    try:
        gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            gpus.append(
                Gpu(
                    name=_text(nvml.nvmlDeviceGetName(handle)),
                    memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
                    compute_capability=f"{major}.{minor}",
                )
            )
        return tuple(gpus), _text(nvml.nvmlSystemGetDriverVersion())
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    """Older nvidia-ml-py answers in bytes."""
    return value.decode() if isinstance(value, bytes) else value


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
