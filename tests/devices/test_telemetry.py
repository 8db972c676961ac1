"""What machines tell of themselves while they run: trees of /sys, doubles of NVML, lines of tegrastats."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.devices.targets.telemetry.host import HostSource
from fusedge.devices.targets.telemetry.nvml import NvmlSource
from fusedge.devices.targets.telemetry.reading import (
    MAX_NAMES,
    Frequency,
    Hottest,
    Memory,
    Reading,
    merged,
)
from fusedge.devices.targets.telemetry.sampler import Sampler
from fusedge.devices.targets.telemetry.sysfs import SysfsSource
from fusedge.devices.targets.telemetry.tegrastats import TegrastatsSource, parse_tegrastats
from tests.devices.telemetry_trees import (
    DESKTOP,
    NANO,
    ORIN_NANO,
    RASPBERRY_PI_5,
    THOR,
    XAVIER_NX,
    Tree,
    cooling,
    nvpmodel,
    policy,
    write_tree,
)

S = 1_000_000_000


def read_tree(root: Path, tree: Tree) -> Reading:
    return SysfsSource(write_tree(root, tree)).read(0)


def test_orin_nano(tmp_path: Path) -> None:
    reading = read_tree(tmp_path, ORIN_NANO)
    assert reading.temperatures_c == {"cpu": 48.5, "gpu": 47.25, "tj": 49.0}  # others are off
    assert reading.hottest == Hottest("tj", 49.0)
    assert reading.frequencies == {
        "cpu0-3": Frequency(729, 1510),
        "cpu4-5": Frequency(1510, 1510),
        "gpu": Frequency(306, 612),
    }
    assert reading.power_w == pytest.approx(
        {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.4976, "VDD_SOC": 1.39552}
    )
    assert reading.board_w == pytest.approx(6.0)
    assert reading.utilisation_percent == {"gpu": 43.1}
    assert reading.throttling is False and not reading.throttle_reasons and not reading.notes


def test_xavier_nx(tmp_path: Path) -> None:
    reading = read_tree(tmp_path, XAVIER_NX)
    assert reading.temperatures_c == {"cpu": 41, "gpu": 39.5, "aux": 39, "ao": 40}  # no constant
    assert reading.frequencies == {"cpu": Frequency(1190, 1420), "gpu": Frequency(114, 1109)}
    assert reading.board_w == pytest.approx(3.968)
    assert reading.utilisation_percent == {"gpu": 0}
    assert reading.throttling is None  # nothing there tells


def test_nano(tmp_path: Path) -> None:
    reading = read_tree(tmp_path, NANO)
    assert reading.hottest == Hottest("ao", 44.5)
    assert reading.power_w == {"POM_5V_IN": 2.353, "POM_5V_GPU": 0.04, "POM_5V_CPU": 0.519}
    assert reading.board_w == 2.353
    assert reading.frequencies["gpu"] == Frequency(76, 921)


def test_thor(tmp_path: Path) -> None:
    reading = read_tree(tmp_path, THOR)
    assert reading.frequencies == {"gpu": Frequency(1575, 1575), "emc": Frequency(4266, 4266)}
    assert reading.power_w == pytest.approx(
        {"VDD_GPU": -0.4, "VDD_CPU_SOC_MSS": 4.0, "VIN_SYS_5V0": 5.0, "ina238": 24.5}
    )
    assert reading.board_w is None  # the rail that feeds all has no name there


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        ("50000", ()),  # has been so since it was switched on, and is not now
        ("0x50005", ("under-voltage", "throttled by the firmware")),
        ("e000a", ("CPU clock capped", "soft temperature limit")),
    ],
)
def test_raspberry_pi(tmp_path: Path, bits: str, reasons: tuple[str, ...]) -> None:
    (file,) = (name for name in RASPBERRY_PI_5 if name.endswith("get_throttled"))
    reading = read_tree(tmp_path, {**RASPBERRY_PI_5, file: bits})
    assert reading.throttle_reasons == reasons
    assert reading.throttling is bool(reasons)
    assert reading.hottest == Hottest("cpu", 61.2)


def test_a_weak_supply_of_a_raspberry_pi(tmp_path: Path) -> None:
    alarm = {"sys/class/hwmon/hwmon0/in0_lcrit_alarm": "1"}
    assert read_tree(tmp_path, RASPBERRY_PI_5 | alarm).throttle_reasons == ("under-voltage",)


def test_desktop(tmp_path: Path) -> None:
    source = SysfsSource(write_tree(tmp_path, DESKTOP))
    reading = source.read(10 * S)
    assert reading.temperatures_c == {
        "acpitz": 27.8,
        "x86_pkg_temp": 55,
        "coretemp package id 0": 56,
    }
    assert reading.frequencies == {
        "cpu0-1": Frequency(4500, 5500),
        "cpu2-3": Frequency(3800, 4000),
    }
    assert (
        reading.throttling is False
    )  # a fan, a setting, and an idle power clamp are no throttling
    assert reading.power_w == {}  # energy gives power from the second time on
    energy = "sys/class/powercap/intel-rapl:0/energy_uj"
    write_tree(tmp_path, {energy: "4000000"})
    assert source.read(12 * S).power_w == {"cpu package-0": 1.5}
    write_tree(tmp_path, {energy: "500000"})  # it has begun anew
    assert source.read(13 * S).power_w == {"cpu package-0": 1.5}
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    write_tree(tmp_path, {count: "5"})
    assert source.read(14 * S).throttle_reasons == ("thermal limit of the processor",)
    assert source.read(15 * S).throttling is False


def test_energy_that_only_root_may_read_is_a_note(tmp_path: Path) -> None:
    tree = {name: text for name, text in DESKTOP.items() if "rapl:0/energy" not in name}
    source = SysfsSource(write_tree(tmp_path, tree))
    for _ in range(2):
        reading = source.read(S)
        assert reading.power_w == {}
        (note,) = reading.notes
        assert "on most systems by root only" in note
        assert "sudo chmod a+r /sys/class/powercap/intel-rapl:0/energy_uj" in note


def test_heat_and_current_hold_a_jetson_back(tmp_path: Path) -> None:
    source = SysfsSource(write_tree(tmp_path, ORIN_NANO))
    source.read(0)
    hot = cooling(pwm_fan=5, cpu_throttle_alert=0, gpu_throttle_alert=1)
    write_tree(tmp_path, hot | {"sys/class/hwmon/hwmon2/oc3_event_cnt": "9"})
    reading = source.read(S)
    assert reading.throttling is True
    assert reading.throttle_reasons == (
        "cooling by gpu-throttle-alert",
        "over-current protection oc3",
    )


def test_what_vanishes_is_left_out(tmp_path: Path) -> None:
    source = SysfsSource(write_tree(tmp_path, ORIN_NANO))
    for file in [file for file in (tmp_path / "sys").rglob("*") if file.is_file()]:
        file.unlink()
    assert source.read(0) == Reading(notes=("/sys has no temperatures and no clocks",))


@given(st.binary(max_size=60))
def test_no_content_of_sysfs_makes_it_fail(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    root = tmp_path_factory.mktemp("root")
    for number, tree in enumerate((ORIN_NANO, RASPBERRY_PI_5, DESKTOP)):
        place = write_tree(root / str(number), tree)
        for name in tree:
            if not name.endswith(("/type", "/name", "label", "cpus")):
                (place / name).write_bytes(content)
        sampler = Sampler(lambda: S, place, load=absent, which=lambda name: None)
        for _ in range(2):
            reading = sampler.read()
            assert all(-60 < c < 200 for c in reading.temperatures_c.values())


@given(st.binary(max_size=5000))
def test_no_name_in_sysfs_makes_it_fail(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    root = write_tree(tmp_path_factory.mktemp("root"), ORIN_NANO)
    for name in ORIN_NANO:
        if name.endswith(("/type", "label", "cpus", "/name")):
            (root / name).write_bytes(content)
    reading = SysfsSource(root).read(0)
    for name in (*reading.temperatures_c, *reading.power_w):
        assert name.isprintable() and len(name) <= 50


class NvmlError(Exception):
    """As pynvml.NVMLError."""


class Nvml:
    """As pynvml, of machines with `gpus`; a function that `lacks` names is not supported by the GPU."""

    NVMLError = NvmlError

    def __init__(self, *gpus: str, lacks: tuple[str, ...] = (), bits: int = 0) -> None:
        self.gpus, self.lacks, self.bits = gpus, lacks, bits
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802  # NVML's own names, here and below
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> str:  # noqa: N802
        return address.decode()

    def _answer(self, name: str, gpu: str, value: Any) -> Any:
        if name in self.lacks or "all" in self.lacks:
            raise NvmlError("Not Supported")
        return value

    def __getattr__(self, name: str) -> Callable[..., Any]:
        process = SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 << 20)
        other = SimpleNamespace(pid=1, usedGpuMemory=None)
        answers: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetTemperature": lambda sensor: len(self.gpus) + 70,
            "nvmlDeviceGetPowerUsage": lambda: 251_500,
            "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=87, memory=12),
            "nvmlDeviceGetClockInfo": lambda clock: {1: 2505, 2: 10501}[clock],
            "nvmlDeviceGetMaxClockInfo": lambda clock: {1: 3105, 2: 10501}[clock],
            "nvmlDeviceGetMemoryInfo": lambda: SimpleNamespace(used=5 << 30, total=24 << 30),
            "nvmlDeviceGetComputeRunningProcesses": lambda: [other, process],
            "nvmlDeviceGetCurrentClocksEventReasons": lambda: self.bits,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda: self.bits,
        }
        if name not in answers or f"no {name}" in self.lacks:
            raise AttributeError(name)
        return lambda gpu, *rest: self._answer(name, gpu, answers[name](*rest))


def absent(name: str) -> Any:
    raise ModuleNotFoundError(name=name)


def nvml_only(nvml: Any) -> Callable[[str], Any]:
    return lambda name: nvml if name == "pynvml" else absent(name)


def test_a_graphics_card() -> None:
    nvml = Nvml("a", bits=0x1)
    source = NvmlSource(nvml_only(nvml))
    reading = source.read(0)
    assert reading == Reading(
        temperatures_c={"gpu": 71},
        frequencies={"gpu": Frequency(2505, 3105), "gpu memory": Frequency(10501, 10501)},
        power_w={"gpu": 251.5},
        memory={"gpu": Memory(5 << 30, 24 << 30), "gpu process": Memory(3 << 20)},
        utilisation_percent={"gpu": 87},
        throttling=False,
    )
    source.close()
    source.close()
    assert nvml.open == 0


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, ()),
        (0x1 | 0x2 | 0x10 | 0x100, ()),  # idle, set by the user, in step, a display
        (0x4, ("power limit of the GPU",)),
        (0x20 | 0x40, ("thermal limit of the GPU", "hardware thermal slowdown of the GPU")),
        (0x8 | 0x80, ("hardware slowdown of the GPU", "power brake of the GPU")),
    ],
)
def test_reasons_that_a_gpu_throttles_for(
    renamed: bool, bits: int, reasons: tuple[str, ...]
) -> None:
    lacks = () if renamed else ("no nvmlDeviceGetCurrentClocksEventReasons",)
    reading = NvmlSource(nvml_only(Nvml("a", bits=bits, lacks=lacks))).read(0)
    assert (reading.throttling, reading.throttle_reasons) == (bool(reasons), reasons)


def test_a_gpu_that_does_not_tell_all() -> None:
    lacks = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksEventReasons")
    reading = NvmlSource(nvml_only(Nvml("a", lacks=lacks))).read(0)
    assert reading.power_w == {} and reading.throttling is None and not reading.notes
    assert reading.temperatures_c == {"gpu": 71}
    nothing = NvmlSource(nvml_only(Nvml("a", lacks=("all",)))).read(0)
    assert nothing == Reading(notes=("NVML: Not Supported",))


def test_nvml_without_a_driver_or_without_its_package_is_one_note() -> None:
    class NoDriver(Nvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise NvmlError("Driver Not Loaded")

    assert NvmlSource(nvml_only(NoDriver("a"))).read(0).notes == ("NVML: Driver Not Loaded",)
    (note,) = NvmlSource(absent).read(0).notes
    assert note == "nvidia-ml-py is not installed: pip install 'fusedge[telemetry]'"

    class NoGpu(Nvml):
        def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
            raise NvmlError("Not Found")

    nvml = NoGpu()
    assert NvmlSource(nvml_only(nvml)).read(0).notes == ("NVML: Not Found",)
    assert nvml.open == 0


def test_of_several_gpus_the_one_that_cuda_puts_first_is_read() -> None:
    asked: list[str] = []

    class Several(Nvml):
        def _answer(self, name: str, gpu: str, value: Any) -> Any:
            asked.append(gpu)
            return value

    success = SimpleNamespace(name="cudaSuccess")
    cuda = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=success),
        cudaDeviceGetPCIBusId=lambda length, device: (success, b"second\0\0\0"),
    )
    modules = {"pynvml": Several("first", "second"), "cuda.bindings.runtime": cuda}
    NvmlSource(lambda name: modules[name]).read(0)
    assert set(asked) == {"second"}


LINES = {
    "Nano, JetPack 4": (
        "RAM 1900/3964MB (lfb 40x4MB) SWAP 10/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
        "CPU [20%@1428,10%@1428,off,off] EMC_FREQ 3%@1600 GR3D_FREQ 45%@614 APE 25 PLL@33C CPU@36.5C "
        "PMIC@100C GPU@35C AO@41C thermal@35.75C POM_5V_IN 3180/3020 POM_5V_GPU 320/290 "
        "POM_5V_CPU 700/650",
        Reading(
            temperatures_c={"pll": 33, "cpu": 36.5, "gpu": 35, "ao": 41, "thermal": 35.75},
            frequencies={"cpu": Frequency(1428), "gpu": Frequency(614), "emc": Frequency(1600)},
            power_w={"POM_5V_IN": 3.18, "POM_5V_GPU": 0.32, "POM_5V_CPU": 0.7},
            memory={"ram": Memory(1900 << 20, 3964 << 20)},
            utilisation_percent={"cpu": 7.5, "gpu": 45, "emc": 3},
        ),
    ),
    "Xavier NX, JetPack 5": (
        "03-02-2023 09:10:11 RAM 2800/6858MB (lfb 300x4MB) SWAP 0/3429MB (cached 0MB) "
        "CPU [6%@1190,4%@1190,off,off] EMC_FREQ 0% GR3D_FREQ 12% AO@38C GPU@38.5C PMIC@50C AUX@38C "
        "CPU@40C thermal@38.9C VDD_IN 3290mW/3300mW VDD_CPU_GPU_CV 410mW/420mW VDD_SOC 980mW/980mW",
        Reading(
            temperatures_c={"ao": 38, "gpu": 38.5, "aux": 38, "cpu": 40, "thermal": 38.9},
            frequencies={"cpu": Frequency(1190)},
            power_w={"VDD_IN": 3.29, "VDD_CPU_GPU_CV": 0.41, "VDD_SOC": 0.98},
            memory={"ram": Memory(2800 << 20, 6858 << 20)},
            utilisation_percent={"cpu": 2.5, "gpu": 12, "emc": 0},
        ),
    ),
    "Orin, JetPack 6": (
        "05-20-2025 18:00:01 RAM 3456/7620MB (lfb 3x4MB) SWAP 7/3810MB (cached 0MB) "
        "CPU [5%@729,3%@729,2%@1510,6%@1510] EMC_FREQ 2%@2133 GR3D_FREQ 61%@[611,612] NVDEC off "
        "NVJPG off VIC 5%@115 OFA off APE 174 cpu@50.1C soc2@48.9C cv0@-256C gpu@49.25C tj@51C "
        "VDD_IN 6320mW/6100mW VDD_CPU_GPU_CV 1800mW/1700mW VDD_SOC 1500mW/1490mW",
        Reading(
            temperatures_c={"cpu": 50.1, "soc2": 48.9, "gpu": 49.25, "tj": 51},
            frequencies={"cpu": Frequency(1119.5), "gpu": Frequency(612), "emc": Frequency(2133)},
            power_w={"VDD_IN": 6.32, "VDD_CPU_GPU_CV": 1.8, "VDD_SOC": 1.5},
            memory={"ram": Memory(3456 << 20, 7620 << 20)},
            utilisation_percent={"cpu": 4, "gpu": 61, "emc": 2},
        ),
    ),
    "Thor, JetPack 7": (
        "10-01-2026 08:00:00 RAM 9000/125000MB (lfb 9x4MB) CPU [0%,40%,off,20%]@2601 EMC_FREQ @4266 "
        "GR3D_FREQ @[1574,1575,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.5C/66.75C "
        "gpu@57C/66C VDD_GPU -392mW/8660mW/37939mW VDD_CPU_SOC_MSS 3924mW/3835mW/4000mW "
        "VIN_SYS_5V0 5064mW/5055mW/5100mW VIN 15004mW/15096mW/16000mW",
        Reading(
            temperatures_c={"cpu": 58.25, "tj": 66.5, "gpu": 57},
            frequencies={"cpu": Frequency(2601), "gpu": Frequency(1575), "emc": Frequency(4266)},
            power_w={
                "VDD_GPU": -0.392,
                "VDD_CPU_SOC_MSS": 3.924,
                "VIN_SYS_5V0": 5.064,
                "VIN": 15.004,
            },
            memory={"ram": Memory(9000 << 20, 125000 << 20)},
            utilisation_percent={"cpu": 15},
        ),
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_tegrastats(name: str) -> None:
    line, reading = LINES[name]
    assert parse_tegrastats(line) == reading


def test_what_is_no_line_of_tegrastats_says_nothing() -> None:
    for line in ("", "tegrastats: command not found", "RAM lots CPU [] GR3D_FREQ", "\x00" * 99):
        assert parse_tegrastats(line) == Reading()


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A line with a stretch of it replaced by something else."""
    line = draw(st.sampled_from([line for line, _ in LINES.values()]))
    begin = draw(st.integers(0, len(line)))
    end = draw(st.integers(begin, min(begin + 30, len(line))))
    junk = st.text(alphabet="0123456789%@[],/-.mWCx \n\x00é٣", max_size=30)
    return line[:begin] + draw(junk) + line[end:]


@given(damaged() | st.text())
def test_no_line_makes_the_parser_fail(line: str) -> None:
    reading = parse_tegrastats(line)
    assert all(-60 < celsius < 200 for celsius in reading.temperatures_c.values())
    assert all(0 <= percent <= 100 for percent in reading.utilisation_percent.values())
    assert all(name.isascii() and len(name) <= 40 for name in reading.power_w)
    assert merged(0, [reading]).quantities() == reading.quantities()


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def until(source: TegrastatsSource, done: Callable[[Reading], object]) -> Reading:
    end = time.monotonic() + 20
    while not done(reading := source.read(0)):
        assert time.monotonic() < end
        time.sleep(0.01)
    return reading


def test_the_newest_line_of_a_running_tegrastats_is_read(tmp_path: Path) -> None:
    script = '[ "$*" = "--interval 1000" ] || exit 3\necho VIN 1mW\necho VIN 2mW\nprintf "VIN 9m"'
    source = TegrastatsSource(program(tmp_path / "tegrastats", f"{script}\nexec sleep 60"))
    reading = until(source, lambda r: r.power_w.get("VIN") == 0.002)
    assert not reading.notes
    assert source.read(0).notes == ("tegrastats has printed nothing yet",)
    source.close()
    assert source._child.returncode is not None


def test_a_tegrastats_that_ends_is_a_note(tmp_path: Path) -> None:
    source = TegrastatsSource(program(tmp_path / "tegrastats", "exit 7"))
    reading = until(source, lambda r: "ended" in r.notes[0])
    assert reading.notes == ("tegrastats has ended, with status 7",)
    source.close()


def test_a_line_without_end_is_bounded(tmp_path: Path) -> None:
    script = 'i=0; while [ $i -lt 40 ]; do printf "%01000d" 7; i=$((i+1)); done; echo; echo VIN 5mW'
    source = TegrastatsSource(program(tmp_path / "tegrastats", f"{script}\nexec sleep 60"))
    held = []
    until(source, lambda r: (held.append(len(source._rest)), r.power_w)[1])
    assert max(held) <= 8192
    source.close()


def sampler(root: Path, nvml: Any = None, tegrastats: Path | None = None) -> Sampler:
    return Sampler(
        lambda: S,
        root,
        load=absent if nvml is None else nvml_only(nvml),
        which=lambda name: str(tegrastats) if name == "tegrastats" and tegrastats else None,
    )


def test_tegrastats_runs_only_where_nothing_else_tells(tmp_path: Path) -> None:
    line = "echo GR3D_FREQ 30%@[300] VDD_IN 5000mW/5000mW cpu@90C"
    running = program(tmp_path / "tegrastats", f"{line}\nexec sleep 60")
    told = sampler(write_tree(tmp_path / "told", ORIN_NANO), tegrastats=running)
    told.read()
    assert told._tegrastats is None
    dark = {name: text for name, text in ORIN_NANO.items() if "load" not in name}
    machine = sampler(write_tree(tmp_path / "dark", dark), tegrastats=running)
    assert "gpu" not in machine.read().utilisation_percent
    end = time.monotonic() + 20
    while "gpu" not in (reading := machine.read()).utilisation_percent:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert reading.utilisation_percent["gpu"] == 30
    assert reading.power_w["VDD_IN"] == 6.0  # what /sys says is believed
    assert reading.temperatures_c["cpu"] == 48.5
    assert machine._tegrastats is not None
    child = machine._tegrastats._child
    machine.close()
    assert child.returncode is not None


def test_a_tegrastats_that_cannot_be_run_is_a_note(tmp_path: Path) -> None:
    machine = sampler(tmp_path, tegrastats=tmp_path / "gone")
    machine.read()
    assert any(note.startswith("tegrastats: ") for note in machine.read().notes)
    machine.close()


def test_nvml_is_believed_before_sysfs(tmp_path: Path) -> None:
    machine = sampler(write_tree(tmp_path, DESKTOP), Nvml("a", bits=0x4))
    reading = machine.read()
    assert reading.temperatures_c["gpu"] == 71 and reading.hottest == Hottest("gpu", 71)
    assert reading.throttling is True and reading.throttle_reasons == ("power limit of the GPU",)
    assert reading.notes == ("psutil is not installed: pip install 'fusedge[telemetry]'",)
    machine.close()


def test_another_power_mode_is_seen_with_its_cores(tmp_path: Path) -> None:
    machine = sampler(write_tree(tmp_path, ORIN_NANO))
    assert machine.read().power_mode == "15W"
    write_tree(tmp_path, nvpmodel(1) | policy("6 7", 1728, 1728))
    reading = machine.read()
    assert reading.power_mode == "25W" and "cpu6-7" in reading.frequencies
    machine.close()


@pytest.mark.parametrize("meanwhile", ["", None])
def test_another_power_mode_is_seen_after_a_moment_without_one(
    tmp_path: Path, meanwhile: str | None
) -> None:
    machine = sampler(write_tree(tmp_path, ORIN_NANO))
    assert machine.read().power_mode == "15W"
    status = tmp_path / "var/lib/nvpmodel/status"
    status.unlink() if meanwhile is None else status.write_text(meanwhile)
    assert machine.read().power_mode is None
    write_tree(tmp_path, nvpmodel(1) | policy("6 7", 1728, 1728))
    reading = machine.read()
    assert reading.power_mode == "25W" and "cpu6-7" in reading.frequencies
    machine.close()


@pytest.mark.parametrize("error", [OSError("I/O error"), ValueError("null\nbyte")])
def test_a_power_mode_that_cannot_be_read_is_a_note_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    machine = sampler(write_tree(tmp_path, ORIN_NANO))

    def fail(root: Path) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("fusedge.devices.targets.telemetry.sampler.read_power_modes", fail)
        for _ in range(2):
            reading = machine.read()
            assert reading.power_mode is None and reading.hottest == Hottest("tj", 49.0)
            (note,) = [note for note in reading.notes if note.startswith("power mode: ")]
            assert note in ("power mode: I/O error", "power mode: null byte")
    assert machine.read().power_mode == "15W"
    machine.close()


def test_a_source_that_raises_is_a_note_and_the_others_are_read(tmp_path: Path) -> None:
    def load(name: str) -> Any:
        if name == "pynvml":
            raise OSError("libnvidia-ml.so: bad\nELF")
        nothing = SimpleNamespace(cpu_percent=lambda interval: 1.0)
        return SimpleNamespace(Process=lambda: nothing, cpu_percent=lambda interval: 1.0)

    machine = Sampler(lambda: S, write_tree(tmp_path, ORIN_NANO), load=load, which=lambda _: None)
    reading = machine.read()
    assert reading.hottest == Hottest("tj", 49.0)
    assert reading.notes[0] == "NVML: libnvidia-ml.so: bad ELF"
    assert reading.notes[1].startswith("psutil: ") and len(reading.notes) == 2
    machine.close()


def test_this_machine_by_its_own_sources() -> None:
    """With the real psutil and, without a GPU, the real NVML package."""
    pytest.importorskip("psutil")
    machine = Sampler(time.monotonic_ns)
    assert machine.read().utilisation_percent.keys().isdisjoint({"cpu", "process"})
    reading = machine.read()
    total, available = (
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith(("MemTotal", "MemAvailable"))
    )
    ram = reading.memory["ram"]
    assert ram.total_bytes == total
    assert abs(total - ram.used_bytes - available) < 2 << 30
    assert 1 << 20 < reading.memory["process"].used_bytes < total
    assert {"cpu", "process"} <= reading.utilisation_percent.keys()
    assert reading.time_ns > 0
    assert all(note.isprintable() for note in reading.notes)
    assert not any("Traceback" in note for note in reading.notes)
    machine.close()


def test_a_battery() -> None:
    process = SimpleNamespace(
        cpu_percent=lambda interval: 150.0, memory_info=lambda: SimpleNamespace(rss=7)
    )
    psutil = SimpleNamespace(
        Process=lambda: process,
        cpu_percent=lambda interval: 80.0,
        virtual_memory=lambda: SimpleNamespace(total=100, available=4),
        sensors_battery=lambda: SimpleNamespace(percent=41),
    )
    source = HostSource(lambda name: psutil)
    source.read(0)
    reading = source.read(S)
    assert reading.battery_percent == 41
    assert reading.utilisation_percent == {"cpu": 80, "process": 150}
    assert reading.memory["ram"].available_share == pytest.approx(0.04)


def test_the_earlier_of_two_sources_is_believed_and_names_are_bounded() -> None:
    one = Reading(power_w={"a": 1.0}, throttling=False, power_mode=None, notes=("x",))
    two = Reading(power_w={"a": 2.0, "b": 3.0}, throttling=True, power_mode="15W", notes=("x",))
    both = merged(5, [one, two])
    assert both == Reading(
        5, power_w={"a": 1.0, "b": 3.0}, throttling=True, power_mode="15W", notes=("x",)
    )
    assert merged(0, [one, replace(one, throttling=None)]).throttling is False
    many = Reading(power_w={str(number): 1.0 for number in range(1000)})
    assert len(merged(0, [many]).power_w) == MAX_NAMES


def test_starting_and_stopping_leaves_nothing(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {})
    running = program(tmp_path / "tegrastats", "echo VIN 1mW; exec sleep 60")
    nvml = Nvml("a", lacks=("nvmlDeviceGetPowerUsage",))

    def once() -> None:
        machine = sampler(root, nvml, running)
        machine.read()
        machine.read()
        machine.close()

    once()
    before = len(os.listdir("/dev/fd")), threading.active_count()
    for _ in range(200):
        once()
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == before
    assert nvml.open == 0
