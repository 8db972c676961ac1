"""The NVIDIA GPUs of a machine, from NVML or else from what their driver writes into /proc."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fusedge.devices.targets.detection.machine import Gpu
from fusedge.devices.targets.detection.system_files import matching, read_field, read_text
from fusedge.devices.targets.facts.table import generations

_MOST = 64  # GPUs, and instances of one
ValueT = TypeVar("ValueT")


class NvidiaGpus(NamedTuple):
    """GPUs in the order of NVML, the driver's version, and where they were found or why none were."""

    gpus: tuple[Gpu, ...]
    driver: str | None
    note: str


def read_gpus(
    root: Path, load: Callable[[str], Any], which: Callable[[str], str | None]
) -> NvidiaGpus:
    """Of the machine whose files are under `root`. Never raises. For `load` and `which` see `detect`."""
    try:
        return _by_nvml(load("pynvml"))
    except ImportError:
        reason = "the package nvidia-ml-py is not installed"
    except Exception as error:  # NVMLError, whose class is in the optional package
        reason = f"NVML: {error}"
    folders = matching(root, "proc/driver/nvidia/gpus/*")[:_MOST]
    names = [read_field(read_text(folder / "information"), "Model") for folder in folders]
    gpus = tuple(Gpu(name=name or "unknown model") for name in names)
    text = read_text(root / "proc/driver/nvidia/version")
    driver = re.search(r"Kernel Module[^\n]{0,80}?\s(\d{1,5}\.[\d.]{1,12})\s", text)
    smi = "" if which("nvidia-smi") else ", nvidia-smi not found"
    place = "from /proc/driver/nvidia" if text or gpus else f"no /proc/driver/nvidia{smi}"
    return NvidiaGpus(gpus, driver[1] if driver else None, f"{place}; {reason}")


def _by_nvml(nvml: Any) -> NvidiaGpus:
    nvml.nvmlInit()
    try:
        gpus, lost = [], []
        for index in range(min(nvml.nvmlDeviceGetCount(), _MOST)):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                gpus.append(_gpu(nvml, handle, _instances(nvml, handle)))
            except Exception as error:  # one GPU of several can be lost
                lost.append(f"; GPU {index}: {error}")
        driver = _asked(lambda: _text(nvml.nvmlSystemGetDriverVersion()))
        found = "from NVML" if gpus else "NVML finds none that answers"
        return NvidiaGpus(tuple(gpus), driver, found + "".join(lost))
    finally:
        _asked(nvml.nvmlShutdown)


def _asked(call: Callable[[], ValueT]) -> ValueT | None:
    """What NVML answers, None where this GPU, driver or package cannot tell."""
    with suppress(Exception):
        return call()
    return None


def _gpu(nvml: Any, handle: Any, instances: tuple[Gpu, ...]) -> Gpu:
    capability = _capability(nvml, handle)
    mig = _asked(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=_asked(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        compute_capability=capability,
        multiprocessors=_asked(lambda: _multiprocessors(nvml, handle, capability)),
        gpu_mhz=_asked(lambda: _mhz(nvml, handle, nvml.NVML_CLOCK_SM)),
        memory_mhz=_asked(lambda: _mhz(nvml, handle, nvml.NVML_CLOCK_MEM)),
        memory_bus_bits=_asked(lambda: int(nvml.nvmlDeviceGetMemoryBusWidth(handle))) or None,
        watts=_asked(lambda: int(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000) or None,
        mig=None if mig is None else mig == 1,
        instances=instances,
    )


def _capability(nvml: Any, handle: Any) -> str | None:
    pair = _asked(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return f"{int(pair[0])}.{int(pair[1])}" if pair else None


def _mhz(nvml: Any, handle: Any, clock: Any) -> float | None:
    return float(nvml.nvmlDeviceGetMaxClockInfo(handle, clock)) or None


def _multiprocessors(nvml: Any, handle: Any, capability: str | None) -> int | None:
    """NVML counts cores: as many in each multiprocessor as it has fp32 operations, halved, a clock."""
    each = generations()[capability].operations.get("fp32") if capability else None
    return int(nvml.nvmlDeviceGetNumGpuCores(handle) // (each / 2)) if each else None


def _instances(nvml: Any, handle: Any) -> tuple[Gpu, ...]:
    """Those that a GPU is split into (MIG). Empty places among them answer with an error."""
    count = _asked(lambda: int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))) or 0
    found = [_asked(partial(_instance, nvml, handle, index)) for index in range(min(count, _MOST))]
    return tuple(gpu for gpu in found if gpu is not None)


def _instance(nvml: Any, whole: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index)
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=_asked(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        compute_capability=_capability(nvml, whole),
        multiprocessors=_asked(
            lambda: int(nvml.nvmlDeviceGetAttributes(handle).multiprocessorCount)
        ),
        gpu_mhz=_asked(lambda: _mhz(nvml, whole, nvml.NVML_CLOCK_SM)),
    )


def _text(value: str | bytes) -> str:
    """Older nvidia-ml-py answers in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
