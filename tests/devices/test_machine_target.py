"""Which target a machine is, in its power mode; and what is said of devices that no table has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.devices.targets.detection.local import local_gpu, nvml_gpu, resolve_target
from fusedge.devices.targets.detection.machine import Board, CoreKind, Gpu, Machine, SystemTensorRT
from fusedge.devices.targets.detection.machine_target import local_cpu, machine_target
from fusedge.devices.targets.facts.rows import Gpu as GpuRow
from fusedge.devices.targets.facts.rows import Jetson
from fusedge.devices.targets.facts.table import (
    Target,
    computers,
    find_target,
    gpus,
    jetson_cpu,
    processors,
)
from tests.devices.recorded_machines import NAMES, absent, recorded


def of(machine: Machine) -> Target:
    return machine_target(machine, absent)


def changed(name: str, **values: Any) -> Machine:
    return recorded(name).model_copy(update=values)


def with_memory_of(machine: Machine, target: Target) -> Target:
    """The target, with the memory that the machine says it has: less than the module, for its firmware."""
    return replace(target, compute=replace(target.compute, memory_bytes=machine.memory_bytes))


def with_gpu(*found: Gpu, **values: Any) -> Machine:
    return changed("laptop", gpus=found, **values)


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("jetson-orin-nano-super", "jetson-orin-nano-8gb:25W"),
        ("jetson-thor", "jetson-thor-t5000:120W"),
        ("jetson-nano", "jetson-nano-4gb:MAXN"),
    ],
)
def test_a_jetson_is_its_row_in_the_power_mode_that_it_is_in(machine: str, name: str) -> None:
    found = recorded(machine)
    assert of(found) == with_memory_of(found, find_target(name))


@pytest.mark.parametrize("name", NAMES)
def test_memory_and_cores_are_those_that_this_process_may_use(name: str) -> None:
    """Whatever the machine is: in the table, in a power mode of its own, or described by its chip."""
    limited = changed(name, gpus=(), memory_limit_bytes=1 << 30, usable_cores=1)
    machines = [limited]
    if limited.jetson is not None:
        for values in ({"power_mode": "MY_MODE"}, {"module": None, "part": "p3701-9999"}):
            other = limited.jetson.model_copy(update=values)
            machines.append(limited.model_copy(update={"jetson": other}))
    for machine in machines:
        for target in (of(machine), local_cpu(machine)):
            assert (target.compute.memory_bytes, target.compute.cores) == (1 << 30, 1)
        found = of(machine.model_copy(update={"memory_limit_bytes": None}))
        assert found.compute.memory_bytes == machine.memory_bytes


@pytest.mark.parametrize("row", gpus().values(), ids=gpus())
def test_a_gpu_that_shares_the_memory_has_what_this_process_may_use_of_it(row: GpuRow) -> None:
    own = None if row.memory_is_shared else 2 << 30
    gpu = Gpu(name=row.title, compute_capability=row.compute_capability, memory_bytes=own)
    target = of(with_gpu(gpu, memory_limit_bytes=1 << 30))
    assert target.compute.memory_bytes == (own or 1 << 30)


def test_a_power_mode_is_of_the_configuration_that_the_machine_has() -> None:
    """`15W` of both configurations has other clocks, and 25W there is in one only."""
    found = recorded("jetson-orin-nx-carrier")
    target = of(found)
    assert target == with_memory_of(found, find_target("jetson-orin-nx-16gb:15W", "standard"))
    assert target.power_mode is not None and target.power_mode.configuration == "standard"


def in_own_mode(name: str, **values: Any) -> Target:
    found = recorded(name)
    assert found.jetson is not None
    own = found.jetson.model_copy(update={"power_mode": "MY_MODE", **values})
    return of(found.model_copy(update={"jetson": own}))


def test_a_power_mode_of_the_users_own_has_the_limits_that_are_set_now() -> None:
    target = in_own_mode("jetson-orin-nano-super", gpu_max_mhz=500.0)
    row = find_target("jetson-orin-nano-8gb:15W")
    assert target.name == "jetson-orin-nano-8gb" and target.power_mode is not None
    assert (target.power_mode.name, target.power_mode.gpu_mhz) == ("MY_MODE", 500.0)
    assert (target.compute.cores, target.compute.cpu_mhz) == (6, 1344.0)
    assert target.compute.bandwidth_bytes_per_s == pytest.approx(102.4e9, rel=0.01)
    fp16, of_row = target.compute.peak["fp16"], row.compute.peak["fp16"]
    assert fp16 and of_row and row.power_mode and row.power_mode.gpu_mhz
    assert fp16 == pytest.approx(of_row * 500 / row.power_mode.gpu_mhz)
    assert target.row == row.row


@pytest.mark.parametrize(
    ("machine", "module", "mask", "clusters"),
    [
        ("jetson-agx-orin", "jetson-agx-orin-64gb", 0, 8),
        ("jetson-agx-orin", "jetson-agx-orin-32gb", 128, 7),
        ("jetson-agx-orin", "jetson-agx-orin-32gb", 0, 7),
        ("jetson-agx-orin", "jetson-agx-orin-64gb", 248, 3),
        ("jetson-orin-nano-super", "jetson-orin-nano-8gb", 240, 4),
        ("jetson-orin-nano-super", "jetson-orin-nano-8gb", 0, 4),
        ("jetson-orin-nano-super", "jetson-orin-nano-4gb", 252, 2),
        ("jetson-agx-xavier", "jetson-agx-xavier-32gb", 5, 2),
        ("jetson-xavier-nx", "jetson-xavier-nx-8gb", 1, 3),
        # more than the module has: which of them it lacks is not known
        ("jetson-orin-nano-super", "jetson-orin-nano-8gb", 1, None),
        # none left, more than the chip has, not read, and chips whose masks nobody has described
        ("jetson-agx-orin", "jetson-agx-orin-64gb", 255, None),
        ("jetson-agx-orin", "jetson-agx-orin-64gb", 256, None),
        ("jetson-agx-orin", "jetson-agx-orin-64gb", None, None),
        ("jetson-thor", "jetson-thor-t5000", 0, None),
        ("jetson-tx2", "jetson-tx2-8gb", 1, None),
    ],
)
def test_the_clusters_that_are_on_are_told_by_the_mask_of_those_off(
    machine: str, module: str, mask: int | None, clusters: int | None
) -> None:
    target = in_own_mode(machine, module=module, tpc_mask=mask)
    row = find_target(module).row
    assert target.power_mode is not None and isinstance(row, Jetson)
    assert target.power_mode.tpcs == clusters
    each = row.multiprocessors_per_tpc
    assert target.compute.multiprocessors == (clusters * each if clusters and each else None)


def test_a_jetson_in_a_container_is_known_by_its_chip_only() -> None:
    target = of(recorded("jetson-orin-container"))
    assert (target.name, target.compute_capability) == ("jetson-unknown-model-tegra234", "8.7")
    assert target.compute.memory_bytes == 4 << 30  # of the container
    assert (target.row, target.power_mode) == (None, None)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("jetson")])
def test_the_processor_of_a_jetson_has_the_cores_that_this_process_may_use(name: str) -> None:
    """In a power mode of the table and in one of the user's own; never more than the mode has."""
    for values in ({}, {"power_mode": "MY_MODE"}):
        found = recorded(name)
        assert found.jetson is not None
        found = found.model_copy(update={"jetson": found.jetson.model_copy(update=values)})
        target = of(found.model_copy(update={"usable_cores": 2}))
        if target.row is None:  # no table says what its cores compute
            with pytest.raises(ValueError, match="is no Jetson"):
                jetson_cpu(target)
            continue
        assert target.power_mode is not None and (target.power_mode.cpus or 0) >= 2
        assert jetson_cpu(target).cores == 2
        more = of(found.model_copy(update={"usable_cores": 64}))
        assert jetson_cpu(more).cores == target.power_mode.cpus
        slower = replace(target, compute=replace(target.compute, cpu_mhz=100.0))
        assert jetson_cpu(slower).cpu_mhz == 100.0
        assert (jetson_cpu(slower).peak["fp32"] or 0) < (jetson_cpu(target).peak["fp32"] or 0)


def test_the_cpu_of_a_jetson_is_that_of_its_power_mode() -> None:
    found = recorded("jetson-agx-orin")
    cpu = local_cpu(found)
    mode = jetson_cpu(find_target("jetson-agx-orin-64gb:MODE_30W"))
    assert (cpu.name, cpu.flavour, cpu.row) == ("cpu", None, None)
    assert (cpu.compute.peak, cpu.compute.cores) == (mode.peak, 8)
    assert cpu.compute.bandwidth_bytes_per_s == mode.bandwidth_bytes_per_s


@pytest.mark.parametrize("row", gpus().values(), ids=gpus())
def test_every_gpu_of_the_table_is_found_by_its_name(row: GpuRow) -> None:
    memory = None if row.memory_gib is None else int(row.memory_gib * 2**30)
    found = Gpu(name=row.title, compute_capability=row.compute_capability, memory_bytes=memory)
    assert of(with_gpu(found, memory_bytes=memory)) == find_target(row.name)
    assert of(with_gpu(found.model_copy(update={"compute_capability": "5.0"}))).row is None


def test_memory_and_watts_are_those_that_the_driver_tells() -> None:
    target = of(recorded("desktop-rtx-4090"))
    assert target.name == "rtx-4090" and target.flavour == "tensorrt_rtx"
    assert (target.compute.memory_bytes, target.compute.watts) == (24564 << 20, 450.0)
    assert target.compute.peak == find_target("rtx-4090").compute.peak


def test_a_gpu_that_no_table_has_is_described() -> None:
    found = Gpu(
        name="NVIDIA GeForce RTX 4090 Laptop GPU",
        compute_capability="8.9",
        memory_bytes=16 << 30,
        multiprocessors=76,
        gpu_mhz=2040,
        memory_mhz=9001,
        memory_bus_bits=256,
        watts=150,
    )
    target = of(with_gpu(found))
    assert (target.name, target.row) == ("rtx-4090-laptop", None)
    assert target.compute.bandwidth_bytes_per_s == pytest.approx(576e9, rel=0.001)
    each = find_target("rtx-4090").compute
    assert each.multiprocessors == 128
    (fp32, whole), clock = (target.compute.peak["fp32"], each.peak["fp32"]), 2040 / 2520
    assert fp32 is not None and whole is not None
    assert fp32 == pytest.approx(whole * 76 / 128 * clock)
    bare = of(with_gpu(Gpu(name="NVIDIA X9", compute_capability="8.9")))
    assert bare.compute.peak["fp32"] is None and bare.compute.bandwidth_bytes_per_s is None
    unknown = of(with_gpu(Gpu(name="NVIDIA X9", compute_capability="99.0", memory_bytes=5)))
    assert (unknown.name, unknown.flavour, unknown.compute.memory_bytes) == ("x9", None, 5)


def cuda(name: bytes, capability: tuple[int, int]) -> Any:
    """Of cuda.bindings what says which GPU is the first."""
    success = object()
    found = SimpleNamespace(
        name=name,
        major=capability[0],
        minor=capability[1],
        totalGlobalMem=7,
        multiProcessorCount=42,
    )
    return SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=success),
        cudaGetDeviceProperties=lambda index: (success, found),
        cudaDeviceGetPCIBusId=lambda length, index: (success, b"0000:41:00.0\0"),
    )


def test_an_instance_of_a_split_gpu_is_not_the_whole_one() -> None:
    server = recorded("server-two-gpus")
    target = machine_target(
        server, lambda name: cuda(b"NVIDIA A100 80GB PCIe MIG 3g.40gb\0", (8, 0))
    )
    assert target.row is None and target.name == "a100-80gb-pcie-mig-3g-40gb"
    assert (target.compute.multiprocessors, target.compute.memory_bytes) == (42, 40192 << 20)
    alone = server.model_copy(update={"gpus": server.gpus[1:]})
    assert of(alone).name == target.name
    assert machine_target(server, lambda name: cuda(b"NVIDIA L4\0", (8, 9))).name == "l4"
    # split, but into nothing: CUDA sees no GPU there
    empty = server.gpus[1].model_copy(update={"instances": ()})
    assert of(server.model_copy(update={"gpus": (empty,)})).name == "cpu"


def test_the_first_of_several_kinds_of_gpu_is_not_guessed() -> None:
    with pytest.raises(FusedgeError, match="several kinds of GPU"):
        of(recorded("server-two-gpus"))


def test_a_board_of_the_table_has_its_row_and_the_memory_that_it_has() -> None:
    target = of(recorded("raspberry-pi-5"))
    row = find_target("raspberry-pi-5-8gb")
    assert (target.name, target.compute.peak) == (row.name, row.compute.peak)
    assert target.compute.memory_bytes == 8256144 * 1024
    memory = changed("raspberry-pi-5", memory_bytes=4 << 30)
    assert of(memory).name == "raspberry-pi-5-4gb"


@pytest.mark.parametrize("name", computers())
def test_a_board_of_the_table_has_the_clock_that_it_may_have(name: str) -> None:
    """A Compute Module 4 goes to 1500 MHz, and a Raspberry Pi 4 to 1800: the kernel says which."""
    row = computers()[name]
    clock = (row.cpu_mhz or 0) * 5 / 6
    cores = (
        CoreKind(title="small", processor="cortex-a53", count=4, max_mhz=9 * clock),
        CoreKind(title="big", processor=row.cpu, count=row.cores, max_mhz=clock),
    )
    board = changed(
        "raspberry-pi-5",
        board=Board(model=row.models[0]),
        core_kinds=cores if row.cpu != "cortex-a53" else cores[1:],
        usable_cores=None,
        memory_bytes=int((row.memory_gib or 0) * 2**30),
    )
    target, table = of(board), find_target(name)
    for compute in (target.compute, local_cpu(board).compute):
        assert compute.cpu_mhz == clock and compute.cores == row.cores
        for precision, peak in table.compute.peak.items():
            found = compute.peak[precision]
            assert found == (None if peak is None else pytest.approx(peak * 5 / 6))
        assert compute.bandwidth_bytes_per_s == table.compute.bandwidth_bytes_per_s
    assert target.name == name
    untold = board.model_copy(update={"core_kinds": ()})
    assert of(untold).compute == local_cpu(untold).compute == table.compute


def test_a_cpu_is_its_largest_cores_at_the_clock_that_they_may_have() -> None:
    board = changed("rock-5b", board=None)
    compute = local_cpu(board).compute
    fp32 = processors()["cortex-a76"].operations["fp32"]
    assert fp32 is not None and compute.peak["fp32"] == fp32 * 2.4e9
    assert (compute.cores, compute.cpu_mhz, compute.multiprocessors) == (4, 2400, 0)
    assert of(board) == local_cpu(board)


def test_a_cpu_in_a_container_has_the_containers_limits() -> None:
    compute = local_cpu(recorded("container-with-limits")).compute
    assert (compute.cores, compute.memory_bytes) == (2, 2 << 30)
    assert compute.cpu_mhz == pytest.approx(2899.998)  # no other clock is told there


def test_hyperthreads_do_not_count_as_cores() -> None:
    assert local_cpu(recorded("laptop")).compute.cores == 4


def test_a_cpu_that_no_table_has_is_described() -> None:
    kind = CoreKind(title="Some CPU", count=3, max_mhz=1000)
    target = local_cpu(
        changed("laptop", core_kinds=(kind,), physical_cores=None, processor="Some CPU")
    )
    assert (target.compute.peak, target.compute.cores, target.compute.cpu_mhz) == ({}, 3, 1000)
    assert target.source == "found on this machine"
    assert local_cpu(changed("laptop", core_kinds=(), processor=None)).compute.peak == {}


def test_a_processor_of_the_table_tells_the_bandwidth_but_makes_no_such_computer() -> None:
    target = local_cpu(changed("laptop", processor="Intel(R) N100"))
    assert target.compute.bandwidth_bytes_per_s == pytest.approx(38.4e9)
    assert target.name == "cpu" and "as of intel-n100-16gb" in target.source


def test_names_that_users_say() -> None:
    nano = recorded("jetson-orin-nano-super")
    assert resolve_target("local", nano).name == "jetson-orin-nano-8gb:25W"
    assert resolve_target("cpu", nano) == local_cpu(nano)
    assert resolve_target("rtx-4090", nano) == find_target("rtx-4090")
    with pytest.raises(UnknownNameError, match="did you mean 'rtx-4090'"):
        resolve_target("rtx4090", nano)
    here = resolve_target("cpu")
    assert here.compute.memory_bytes and here.compute.cores


def test_an_engine_is_for_the_module_whatever_mode_it_is_built_in() -> None:
    local = local_gpu(recorded("jetson-orin-nx-carrier"), Path("/nowhere"), absent)
    assert (local.target.name, local.target.flavour) == ("jetson-orin-nx-16gb", "tensorrt")


def test_the_tensorrt_of_another_python_is_told() -> None:
    """JetPack's module is for the system's Python: one of the user's own cannot import it."""
    found = changed("jetson-orin-nano-super", python="3.12.1")
    said = r"TensorRT 10\.3\.0 is for Python 3\.10, and this is 3\.12.*of the system's Python"
    with pytest.raises(FusedgeError, match=said):
        local_gpu(found, Path("/nowhere"), absent)


def test_an_environment_that_does_not_see_the_systems_tensorrt_is_told() -> None:
    found = changed("jetson-orin-nano-super", python="3.10.12")
    said = "for this Python 3.10, but this environment does not see .*--system-site-packages"
    with pytest.raises(FusedgeError, match=said):
        local_gpu(found, Path("/nowhere"), absent)
    bare = SystemTensorRT(version="10.3.0", pythons=())
    found = found.model_copy(update={"tensorrt_system": bare})
    with pytest.raises(FusedgeError, match=r"10\.3\.0 has no Python module.*python3-libnvinfer"):
        local_gpu(found, Path("/nowhere"), absent)


def test_nvml_is_asked_for_the_gpu_that_cuda_puts_first() -> None:
    library = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByPciBusId=lambda address: address,
    )
    assert nvml_gpu(library, absent) == 0
    assert nvml_gpu(library, lambda name: cuda(b"X", (8, 9))) == b"0000:41:00.0"
