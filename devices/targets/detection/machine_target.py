"""What a machine is as a target: the row of a table, or a description of what no table has."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Flavour
from fusedge.devices.targets.detection.machine import CoreKind, Gpu, Jetson, Machine
from fusedge.devices.targets.facts.rows import Computer, PowerMode, Processor
from fusedge.devices.targets.facts.rows import Gpu as GpuRow
from fusedge.devices.targets.facts.rows import Jetson as JetsonRow
from fusedge.devices.targets.facts.table import (
    Compute,
    Target,
    computers,
    cpu_compute,
    find_target,
    generations,
    gpu_by_title,
    gpu_target,
    jetson_cpu,
    jetson_target,
    jetsons,
    power_modes,
    processors,
)

CPU = "cpu"
_FOUND = "found on this machine"


def machine_target(
    machine: Machine, load: Callable[[str], Any] = importlib.import_module
) -> Target:
    """What a machine computes parts with, in the power mode that it is in.

    Its Jetson module or GPU, else the computer that its device tree names, else its CPU. A device that no
    table has is described with what is known of it. `load` imports cuda.bindings, which knows which of
    several GPUs is used. Raises FusedgeError where there are several kinds and it is not there.
    """
    if machine.jetson is not None:
        found = jetson_here(machine.jetson, machine)
    elif (gpu := first_gpu(machine, load)) is not None:
        found = gpu_here(gpu, machine)
    elif board := _computer(machine.board.model if machine.board else None, machine):
        found = find_target(board.name)
        found = replace(found, compute=_cpu_here(found.compute, board.cpu, machine))
    else:
        return local_cpu(machine)
    return replace(found, memory_beyond_bytes=machine.memory_beyond_bytes)


def local_cpu(machine: Machine) -> Target:
    """The CPU of a machine, as the target `cpu`: its largest cores, at the clock that they may have.

    Where there is no such clock (a virtual machine), it is the one that the cores have now. Bandwidth and
    watts are those of a computer in the table with the same board, or else the same processor.
    """
    board = _computer(machine.board.model if machine.board else None, machine)
    jetson = jetson_here(machine.jetson, machine) if machine.jetson else None
    source = _FOUND
    if board is not None:
        compute = _cpu_here(find_target(board.name).compute, board.cpu, machine)
    elif jetson and isinstance(jetson.row, JetsonRow):
        compute = _cpu_here(jetson_cpu(jetson), jetson.row.cpu, machine)
    else:
        kind = max(machine.core_kinds, key=_speed, default=None)
        alike = _computer(machine.processor, machine)
        known = find_target(alike.name).compute if alike else Compute()
        if alike is not None:
            source += f"; bandwidth and watts as of {alike.name}"
        compute = cpu_compute(
            _processor(kind),
            cores=_big_cores(machine, kind),
            cpu_mhz=_clock(kind),
            memory_bytes=None,
            bandwidth_bytes_per_s=known.bandwidth_bytes_per_s,
            watts=known.watts,
        )
        compute = _as_here(compute, machine)
    return replace(
        find_target(CPU),
        source=source,
        compute=compute,
        memory_beyond_bytes=machine.memory_beyond_bytes,
    )


def jetson_here(jetson: Jetson, machine: Machine) -> Target:
    """By part number, or a model that is named as in the table; in its power mode, with the memory that
    this process may take.
    """
    # a part that the table does not have is none of its modules, whatever the model's name
    plain = "jetson-" + _slug(f"{jetson.model} {jetson.part or ''}", "jetson")
    row = jetsons().get(jetson.module or plain)
    if row is None:
        compute = _as_here(Compute(), machine)
        return Target(plain, "tensorrt", jetson.compute_capability, _FOUND, compute=compute)
    modes = power_modes(row, jetson.configuration)
    if jetson.power_mode in modes:
        target = jetson_target(row, jetson.power_mode, jetson.configuration)
    else:  # a mode of the user's own, or an unknown one: what is allowed now
        found = _mode_as_found(jetson, row, machine)
        target = jetson_target(row.model_copy(update={"modes": (found,)}))
        target = replace(target, row=row, source=_FOUND)
    return replace(target, compute=_as_here(target.compute, machine))


def _mode_as_found(jetson: Jetson, row: JetsonRow, machine: Machine) -> PowerMode:
    return PowerMode.model_construct(
        name=jetson.power_mode or "unknown",
        configuration=jetson.configuration or "standard",
        default=True,
        cpus=sum(kind.count for kind in machine.core_kinds) or None,
        cpu_mhz=max((kind.max_mhz for kind in machine.core_kinds if kind.max_mhz), default=None),
        tpcs=_clusters(jetson, row),
        gpu_mhz=jetson.gpu_max_mhz,
        emc_mhz=jetson.emc_cap_mhz,
        dla_mhz=None,
        watts=None,
        source=_FOUND,
    )


# Clusters that the mask has a bit for, by compute capability. NVIDIA's nvpmodel configurations
# (LineageOS/android_device_nvidia_concord and _galen) have 128, 240, 248 and 252 for 7, 4, 3 and 2 clusters
# of an Orin, 1 and 5 for 3 and 2 of a Xavier.
_MASKED = {"7.2": 4, "8.7": 8}


def _clusters(jetson: Jetson, row: JetsonRow) -> int | None:
    """Clusters of multiprocessors that are switched on, None where the mask does not surely tell.

    With no bit set, those are all that the module has; a mask that leaves more of them hides some that the
    module has never had.
    """
    mask, bits = jetson.tpc_mask, _MASKED.get(row.compute_capability)
    if mask is None or bits is None or mask >= 1 << bits:
        return None
    most = max(mode.tpcs or 0 for mode in row.modes)
    count = bits - mask.bit_count() if mask else most
    return count if 0 < count <= most else None


def gpu_here(gpu: Gpu, machine: Machine) -> Target:
    """By the name that its driver gives it, else what is known of it."""
    row, capability = gpu_by_title(gpu.name, gpu.memory_bytes), gpu.compute_capability
    known = row is not None and capability in (None, row.compute_capability)
    if row is None or not known:
        if capability is None or capability not in generations():
            compute = Compute(memory_bytes=gpu.memory_bytes, memory_is_shared=False)
            return Target(_slug(gpu.name) or "gpu", None, capability, _FOUND, compute=compute)
        row = GpuRow(
            name=_slug(gpu.name) or "gpu",
            title=gpu.name,
            compute_capability=capability,
            flavour="tensorrt_rtx" if generations()[capability].tensorrt_rtx else "tensorrt",
            multiprocessors=gpu.multiprocessors,
            boost_mhz=gpu.gpu_mhz,
            memory_gib=None,
            bandwidth_gb_s=_bandwidth_gb_s(gpu),
            watts=None,
            source=_FOUND,
        )
    target = gpu_target(row)
    shared = target.compute.memory_is_shared
    memory = machine.usable_memory_bytes if shared else gpu.memory_bytes
    compute = replace(
        target.compute,
        memory_bytes=memory or target.compute.memory_bytes,
        watts=gpu.watts or target.compute.watts,
    )
    flavour = installed_flavour(machine, row.compute_capability) or target.flavour
    return replace(target, flavour=flavour, compute=compute, row=row if known else None)


def _bandwidth_gb_s(gpu: Gpu) -> float | None:
    """Two transfers a clock, as NVML counts the memory's clock."""
    if gpu.memory_mhz is None or not gpu.memory_bus_bits:
        return None
    return gpu.memory_mhz * 2e6 * gpu.memory_bus_bits / 8 / 1e9


def _slug(name: str, *drop: str) -> str:
    """A target's name made of a device's own one. A laptop's GPU keeps that word: it is a slower one."""
    words = re.findall("[a-z0-9]+", name.lower())
    usual = ("nvidia", "geforce", "gpu", "developer", "kit", "engineering", "reference")
    return "-".join(word for word in words if word not in (*usual, *drop))[:64].strip("-")


def _computer(model: str | None, machine: Machine) -> Computer | None:
    """The computer in the table with the longest name that this one begins with, and its memory."""
    named = [(name, row) for row in computers().values() for name in row.models]
    fitting = [(name, row) for name, row in named if model and model.startswith(name)]
    longest = max((len(name) for name, _ in fitting), default=0)
    memory_gib = (machine.memory_bytes or 0) / 2**30
    rows = [row for name, row in fitting if len(name) == longest]
    return min(rows, key=lambda row: abs((row.memory_gib or 0) - memory_gib), default=None)


def _cpu_here(compute: Compute, cpu: str, machine: Machine) -> Compute:
    """A CPU of the table, at the clock that this machine lets such cores have."""
    clocks = [_clock(kind) for kind in machine.core_kinds if kind.processor == cpu]
    here = cpu_compute(
        processors()[cpu],
        cores=compute.cores,
        cpu_mhz=max((mhz for mhz in clocks if mhz), default=compute.cpu_mhz),
        memory_bytes=compute.memory_bytes,
        bandwidth_bytes_per_s=compute.bandwidth_bytes_per_s,
        watts=compute.watts,
    )
    return _as_here(here, machine)


def _as_here(compute: Compute, machine: Machine) -> Compute:
    """With the memory and cores that this process may use."""
    cores = [count for count in (compute.cores, machine.usable_cores) if count]
    return replace(
        compute,
        memory_bytes=machine.usable_memory_bytes or compute.memory_bytes,
        cores=min(cores, default=None),
    )


def _clock(kind: CoreKind | None) -> float | None:
    return (kind.max_mhz or kind.mhz) if kind else None


def _processor(kind: CoreKind | None) -> Processor | None:
    return processors()[kind.processor] if kind and kind.processor else None


def _speed(kind: CoreKind) -> tuple[float, float]:
    row, clock = _processor(kind), _clock(kind) or 0.0
    fp32 = row.operations.get("fp32") if row else None
    return (fp32 or 0.0) * clock, clock


def _big_cores(machine: Machine, kind: CoreKind | None) -> int | None:
    """Of the largest kind; hyperthreads of a core share what it computes with."""
    return min(kind.count, machine.physical_cores or kind.count) if kind else None


def first_gpu(machine: Machine, load: Callable[[str], Any]) -> Gpu | None:
    """The GPU that CUDA puts first, by CUDA_VISIBLE_DEVICES; NVML has another order, and all of them.

    None where there is none.
    """
    # of a GPU that is split, the instances are what CUDA sees
    listed = [each for gpu in machine.gpus for each in (gpu.instances if gpu.mig else (gpu,))]
    runtime = cuda_runtime(load)
    if runtime is not None:
        error, found = runtime.cudaGetDeviceProperties(0)
        if error == runtime.cudaError_t.cudaSuccess:
            name, capability = found.name.decode().rstrip("\0"), f"{found.major}.{found.minor}"
            same = (gpu for gpu in listed if gpu.name == name)
            described = next(same, None) or Gpu(
                name=name,
                memory_bytes=found.totalGlobalMem,
                multiprocessors=found.multiProcessorCount,
            )
            return described.model_copy(update={"compute_capability": capability})
    if not listed:
        return None
    if runtime is not None:
        raise FusedgeError(
            f"CUDA can use none of the GPUs of this machine: {error.name}",
            where="target local",
            hint="see that the driver is new enough, and what CUDA_VISIBLE_DEVICES says",
        )
    if len({(gpu.name, gpu.compute_capability) for gpu in listed}) > 1:
        raise FusedgeError(
            "this machine has several kinds of GPU, and which is the first is for CUDA to say",
            where="target local",
            hint="pip install cuda-bindings",
        )
    return listed[0]


def installed_flavour(machine: Machine, capability: str) -> Flavour | None:
    """The TensorRT of this Python that builds for a GPU of this capability; `tensorrt` before the other."""
    if "tensorrt" in machine.tensorrt:
        return "tensorrt"
    rtx = capability in generations() and generations()[capability].tensorrt_rtx
    return "tensorrt_rtx" if rtx and "tensorrt_rtx" in machine.tensorrt else None


def cuda_runtime(load: Callable[[str], Any]) -> Any:
    """CUDA's runtime; None without the package."""
    try:
        return load("cuda.bindings.runtime")
    except ImportError:
        return None
