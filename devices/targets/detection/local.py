"""This machine as a target: its GPU, its CPU, and the memory that is free to build for it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.detection.machine_target import (
    CPU,
    cuda_runtime,
    first_gpu,
    gpu_here,
    installed_flavour,
    jetson_here,
    local_cpu,
    machine_target,
)
from fusedge.devices.targets.detection.power_mode import read_power_modes
from fusedge.devices.targets.detection.system_files import read_text
from fusedge.devices.targets.facts.table import Target, find_target, generations
from fusedge.devices.targets.tensorrt_api import ON_A_JETSON

LOCAL = "local"


@dataclass(frozen=True)
class LocalGpu:
    """The GPU that CUDA puts first here. `power_mode` is the one it is in, None where it has none."""

    target: Target
    name: str
    driver: str | None
    power_mode: str | None

    @property
    def identity(self) -> str:
        """All of this machine that an engine tuned on it depends on, but TensorRT's version."""
        return f"{self.name}; driver {self.driver}; power mode {self.power_mode}"


def resolve_target(name: str, machine: Machine | None = None) -> Target:
    """The target that a user means: `local` is this machine's GPU, or its CPU where it has none, `cpu` its
    CPU, and any other name one of the tables.

    `machine` is what `detect` says of this one, which is asked for where it is needed and not given.
    Raises FusedgeError for an unknown name, and where CUDA alone could tell which of several GPUs is meant.
    """
    plain, _, mode = name.partition(":")
    if plain not in (LOCAL, CPU):
        return find_target(name)
    if mode:
        raise FusedgeError(
            "is this machine in the power mode that it is in, so none can be said",
            where=plain,
            hint=f"set it there with nvpmodel and say --target {plain}, or name the device",
        )
    return machine_target(machine or detect()) if plain == LOCAL else local_cpu(machine or detect())


def local_gpu(
    machine: Machine,
    root: Path = Path("/"),
    load: Callable[[str], Any] = importlib.import_module,
) -> LocalGpu:
    """The GPU to build for on `machine`, whose files are under `root`; with the flavour that is installed.

    Its target is named without a power mode. For `load` see `machine_target`. Raises FusedgeError where
    there is no GPU, or none that is surely the first, or no TensorRT for it.
    """
    if machine.jetson is not None:
        target = jetson_here(machine.jetson, machine)
        name, driver = machine.jetson.model, machine.jetson.l4t and f"L4T {machine.jetson.l4t}"
    else:
        gpu = first_gpu(machine, load)
        if gpu is None:
            raise FusedgeError(
                f"this machine has no NVIDIA GPU to build for: {machine.gpu_note}",
                where="target local",
                hint="--target rtx-4090, or another desktop RTX GPU, is built for without one",
            )
        target, name, driver = gpu_here(gpu, machine), gpu.name, machine.gpu_driver
    if target.compute_capability is None:
        raise FusedgeError(
            f"the compute capability of {name} is unknown",
            where="target local",
            hint="pip install nvidia-ml-py",
        )
    _check_tensorrt(machine, target.compute_capability)
    return LocalGpu(
        replace(target, name=target.device), name, driver, read_power_modes(root).current
    )


def _check_tensorrt(machine: Machine, capability: str) -> None:
    """Raises where the TensorRT is lacking that builds for this capability."""
    if installed_flavour(machine, capability):
        return
    if machine.jetson is None:
        if capability in generations() and generations()[capability].tensorrt_rtx:
            raise MissingExtraError("tensorrt-rtx", "rtx", "building engines for this GPU")
        raise MissingExtraError("tensorrt", "tensorrt", "building engines for this GPU")
    found, what = machine.tensorrt_system, "TensorRT is not installed"
    if found is not None:
        what = f"the system's TensorRT {found.version} {found.unseen(machine.python)}"
    raise FusedgeError(what, where=machine.jetson.model, hint=ON_A_JETSON)


def free_memory_bytes(
    root: Path = Path("/"), load: Callable[[str], Any] = importlib.import_module
) -> dict[str, int]:
    """Memory that a build could take now, by place: `memory`, and `GPU memory` where the GPU has its own.

    From /proc/meminfo and NVML (which `load` imports as pynvml), of the GPU that CUDA puts first; a place
    that cannot be asked is left out.
    """
    free = {}
    text = read_text(root / "proc/meminfo")
    if found := re.search(r"^MemAvailable:\s*(\d{1,15}) kB", text, re.M):
        free["memory"] = int(found[1]) * 1024
    with_nvml = _free_on_gpu(load)
    if with_nvml is not None:
        free["GPU memory"] = with_nvml
    return free


def _free_on_gpu(load: Callable[[str], Any]) -> int | None:
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, or no driver: NVMLError is in the package
        return None
    try:
        free: int = nvml.nvmlDeviceGetMemoryInfo(nvml_gpu(nvml, load)).free
        return free
    except nvml.NVMLError:  # a Jetson's GPU has no memory of its own
        return None
    finally:
        nvml.nvmlShutdown()


def nvml_gpu(nvml: Any, load: Callable[[str], Any] = importlib.import_module) -> Any:
    """NVML's handle of CUDA's first GPU: their orders differ, the PCI address does not.

    `nvml` is pynvml after `nvmlInit`; `load` imports cuda.bindings, without which it is NVML's first one.
    """
    runtime = cuda_runtime(load)
    if runtime is not None:
        error, address = runtime.cudaDeviceGetPCIBusId(32, 0)
        if error == runtime.cudaError_t.cudaSuccess:
            return nvml.nvmlDeviceGetHandleByPciBusId(address.split(b"\0")[0])
    return nvml.nvmlDeviceGetHandleByIndex(0)
