"""The GPU of this machine as a target, and the memory that is free to build for it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.targets.detect import Gpu, Machine
from fusedge.devices.targets.power_mode import read_power_modes
from fusedge.devices.targets.rows import Flavour
from fusedge.devices.targets.table import Target, generations, target_names

# Compute capability by what a Jetson's device tree says, which NVML cannot tell on all of them; from
# developer.nvidia.com/cuda-gpus.
_JETSONS = (("Thor", "11.0"), ("Orin", "8.7"), ("Xavier", "7.2"))


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


def local_gpu(
    machine: Machine,
    root: Path = Path("/"),
    load: Callable[[str], Any] = importlib.import_module,
) -> LocalGpu:
    """The GPU to build for on `machine`, whose files are under `root`; with the flavour that is installed.

    `load` imports cuda.bindings, which knows which of several GPUs is used. Raises FusedgeError where
    there is no GPU, or none that is surely the first, or no TensorRT for it.
    """
    if machine.jetson is not None:
        name = machine.jetson.model
        capability = next((cc for word, cc in _JETSONS if word in name), None)
        driver = machine.jetson.l4t and f"L4T {machine.jetson.l4t}"
    else:
        gpu = _first_gpu(machine, load)
        name, capability, driver = gpu.name, gpu.compute_capability, machine.gpu_driver
    if capability is None:
        raise FusedgeError(
            f"the compute capability of {name} is unknown",
            where="target local",
            hint="pip install nvidia-ml-py",
        )
    flavour = _flavour(machine, capability)
    target = Target(_target_name(name, machine), flavour, capability, "found on this machine")
    return LocalGpu(target, name, driver, read_power_modes(root).current)


def _first_gpu(machine: Machine, load: Callable[[str], Any]) -> Gpu:
    """The GPU that CUDA puts first, by CUDA_VISIBLE_DEVICES; NVML has another order, and all of them."""
    runtime = _cuda(load)
    if runtime is not None:
        error, found = runtime.cudaGetDeviceProperties(0)
        if error == runtime.cudaError_t.cudaSuccess:
            return Gpu(
                name=found.name.decode().rstrip("\0"),
                memory_bytes=found.totalGlobalMem,
                compute_capability=f"{found.major}.{found.minor}",
            )
    if not machine.gpus:
        raise FusedgeError(
            f"this machine has no NVIDIA GPU to build for: {machine.gpu_note}",
            where="target local",
            hint="--target rtx-4090, or another desktop RTX GPU, is built for without one",
        )
    if runtime is not None:
        raise FusedgeError(
            f"CUDA can use none of the GPUs of this machine: {error.name}",
            where="target local",
            hint="see that the driver is new enough, and what CUDA_VISIBLE_DEVICES says",
        )
    if len({(gpu.name, gpu.compute_capability) for gpu in machine.gpus}) > 1:
        raise FusedgeError(
            "this machine has several kinds of GPU, and which is the first is for CUDA to say",
            where="target local",
            hint="pip install cuda-bindings",
        )
    return machine.gpus[0]


def _cuda(load: Callable[[str], Any]) -> Any:
    """CUDA's runtime; None without the package."""
    try:
        return load("cuda.bindings.runtime")
    except ImportError:
        return None


def _has_rtx(capability: str) -> bool:
    return capability in generations() and generations()[capability].tensorrt_rtx


def _flavour(machine: Machine, capability: str) -> Flavour:
    if "tensorrt" in machine.tensorrt:
        return "tensorrt"
    if machine.jetson is None and _has_rtx(capability):
        if "tensorrt_rtx" in machine.tensorrt:
            return "tensorrt_rtx"
        raise MissingExtraError("tensorrt-rtx", "rtx", "building engines for this GPU")
    if machine.jetson is not None:
        raise FusedgeError(
            "TensorRT is not installed, or not for this Python",
            where=machine.jetson.model,
            hint="it comes with JetPack: apt install python3-libnvinfer, and a virtual environment "
            "with --system-site-packages",
        )
    raise MissingExtraError("tensorrt", "tensorrt", "building engines for this GPU")


def _target_name(name: str, machine: Machine) -> str:
    """The table's name of a GPU where it has one, else one made of its own name."""
    words = re.sub(
        r"\b(nvidia|geforce|developer|kit|laptop|gpu|engineering|reference)\b", " ", name.lower()
    )
    plain = "-".join(re.findall(r"[a-z0-9]+", words))
    if plain in target_names() or machine.jetson is None:
        return plain or "gpu"
    plain = plain if plain.startswith("jetson-") else f"jetson-{plain}"
    # The kit's name leaves the memory out, of which modules have 4 GB times a power of two, less what is
    # reserved.
    sizes = [4, 8, 16, 32, 64, 128]
    memory = (machine.memory_bytes or 0) / 1e9
    size = next((gb for gb in sizes if memory <= gb * 1.08), None)
    sized = f"{plain}-{size}gb"
    return sized if sized in target_names() else plain


def free_memory_bytes(
    root: Path = Path("/"), load: Callable[[str], Any] = importlib.import_module
) -> dict[str, int]:
    """Memory that a build could take now, by place: `memory`, and `GPU memory` where the GPU has its own.

    From /proc/meminfo and NVML (which `load` imports as pynvml), of the GPU that CUDA puts first; a place
    that cannot be asked is left out.
    """
    free = {}
    try:
        text = (root / "proc/meminfo").read_text("utf-8")
    except OSError:
        text = ""
    if found := re.search(r"^MemAvailable:\s*(\d+) kB", text, re.M):
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
        free: int = nvml.nvmlDeviceGetMemoryInfo(_nvml_handle(nvml, _cuda(load))).free
        return free
    except nvml.NVMLError:  # a Jetson's GPU has no memory of its own
        return None
    finally:
        nvml.nvmlShutdown()


def _nvml_handle(nvml: Any, runtime: Any) -> Any:
    """NVML's handle of CUDA's first GPU: their orders differ, the PCI address does not."""
    if runtime is not None:
        error, address = runtime.cudaDeviceGetPCIBusId(32, 0)
        if error == runtime.cudaError_t.cudaSuccess:
            return nvml.nvmlDeviceGetHandleByPciBusId(address.split(b"\0")[0])
    return nvml.nvmlDeviceGetHandleByIndex(0)
