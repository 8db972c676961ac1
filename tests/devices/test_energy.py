"""Energy from recorded trees of counters and sensors, and from a double of NVML."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusedge.devices.targets.calibration.energy import NoMeter, PowerMeter, find_meter, integral_j
from fusedge.devices.targets.telemetry.rapl import RAPL


def rapl(
    root: Path, zone: str, name: str, energy_uj: int | str, most: int = 262_143_328_850
) -> Path:
    """A domain as Linux shows it."""
    folder = root / RAPL / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    counter = folder / "energy_uj"
    counter.write_text(f"{energy_uj}\n")
    return counter


def ina3221(root: Path, *rails: str, name: str = "ina3221") -> Path:
    """The power monitor of an Orin: 5 V and 2, 3, 4 A at its channels."""
    device = root / "sys/class/hwmon/hwmon4"
    device.mkdir(parents=True)
    (device / "name").write_text(f"{name}\n")
    for channel, rail in enumerate(rails, 1):
        (device / f"in{channel}_label").write_text(f"{rail}\n")
        (device / f"in{channel}_input").write_text("5000\n")
        (device / f"curr{channel}_input").write_text(f"{1000 * (channel + 1)}\n")
    return device


def ticks(step_ns: int = 1_000_000_000) -> Callable[[], int]:
    """A clock that goes on by a second each time it is asked."""
    count = itertools.count(0, step_ns)
    return lambda: next(count)


def nvml(**functions: Any) -> Callable[[str], Any]:
    class NVMLError(Exception):
        pass

    def missing(handle: object) -> int:
        raise NVMLError("Not Supported")

    double = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=missing,
        nvmlDeviceGetPowerUsage=missing,
    )
    vars(double).update(functions)

    def load(name: str) -> Any:
        if name != "pynvml":
            raise ImportError(name)
        return double

    return load


def test_packages_and_memory_are_added_and_cores_are_not(tmp_path: Path) -> None:
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    cores = rapl(tmp_path, "intel-rapl:0:0", "core", 500_000)
    memory = rapl(tmp_path, "intel-rapl:0:1", "dram", 100_000)
    meter = find_meter("cpu", tmp_path)
    assert not isinstance(meter, NoMeter) and meter.source == "RAPL: package-0, dram"

    def work() -> None:
        package.write_text("3500000\n")
        cores.write_text("9500000\n")
        memory.write_text("600000\n")

    assert meter.during(work, ticks()) == pytest.approx(2.5 + 0.5)


def test_a_counter_that_begins_again_is_followed(tmp_path: Path) -> None:
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    meter = find_meter("cpu", tmp_path)
    assert not isinstance(meter, NoMeter)
    used = meter.during(lambda: counter.write_text("671150\n"), ticks())
    assert used == pytest.approx(0.328850 + 0.671150)


@pytest.mark.parametrize(
    ("after", "words"), [("9000000\n", ""), ("", "cannot be read"), ("1\n", "began anew")]
)
def test_a_counter_without_its_range_serves_until_it_begins_again(
    tmp_path: Path, after: str, words: str
) -> None:
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    (counter.parent / "max_energy_range_uj").unlink()
    meter = find_meter("cpu", tmp_path)
    assert not isinstance(meter, NoMeter)
    with pytest.raises(OSError, match=words) if words else nullcontext():
        assert meter.during(lambda: counter.write_text(after), ticks()) == 4


def test_two_packages_of_one_name_both_count(tmp_path: Path) -> None:
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    second = rapl(tmp_path, "intel-rapl:1", "package-0", 0)
    meter = find_meter("cpu", tmp_path)
    assert not isinstance(meter, NoMeter)

    def work() -> None:
        first.write_text("1000000")
        second.write_text("2000000")

    assert meter.during(work, ticks()) == pytest.approx(3)


def test_no_counter_is_none_with_the_reason_and_never_zero(tmp_path: Path) -> None:
    missing = find_meter("cpu", tmp_path)
    assert isinstance(missing, NoMeter) and "no such counters" in missing.reason


@pytest.mark.parametrize("text", ["", "many\n", "12 34\n"])
def test_a_counter_with_garbage_is_a_reason(tmp_path: Path, text: str) -> None:
    rapl(tmp_path, "intel-rapl:0", "package-0", text)
    found = find_meter("cpu", tmp_path)
    assert isinstance(found, NoMeter) and "intel-rapl:0" in found.reason


def test_a_counter_for_root_only_says_how_to_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    opened = os.open

    def refused(path: Path, *arguments: Any) -> int:
        if path == counter:  # tests may run as root, whom no mode keeps out
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refused)
    found = find_meter("cpu", tmp_path)
    assert isinstance(found, NoMeter)
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:0/energy_uj" in found.reason


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_jetson_is_measured_at_its_module_rail(tmp_path: Path, device: Any) -> None:
    ina3221(tmp_path, "VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC")
    meter = find_meter(device, tmp_path)
    assert not isinstance(meter, NoMeter) and meter.source == "power monitor: VDD_IN"
    # The clock is asked at the start and the end: one second at 5 V and 3 A.
    assert meter.during(lambda: None, ticks()) == pytest.approx(15)


def test_other_sensors_are_no_power_monitor(tmp_path: Path) -> None:
    ina3221(tmp_path, "VDD_IN", name="tmp451")
    assert isinstance(find_meter("cpu", tmp_path), NoMeter)


def test_power_is_integrated_between_uneven_samples() -> None:
    samples = [(0, 10.0), (1_000_000_000, 20.0), (1_500_000_000, 0.0)]
    assert integral_j(samples) == pytest.approx(15 + 5)


def test_a_sensor_that_breaks_meanwhile_is_an_error() -> None:
    answers = iter([10.0])

    def read_w() -> float:
        for answer in answers:
            return answer
        raise OSError("I/O error")

    with pytest.raises(OSError, match="I/O error"):
        PowerMeter("a sensor", read_w).during(lambda: None, ticks())


def test_nvml_counts_energy_itself(tmp_path: Path) -> None:
    counts = iter([0, 1000, 3500])
    meter = find_meter(
        "gpu", tmp_path, nvml(nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts))
    )
    assert not isinstance(meter, NoMeter)
    assert meter.during(lambda: None, ticks()) == pytest.approx(2.5)


def test_an_older_gpu_tells_its_power(tmp_path: Path) -> None:
    meter = find_meter("gpu", tmp_path, nvml(nvmlDeviceGetPowerUsage=lambda handle: 40_000))
    assert isinstance(meter, PowerMeter)
    assert meter.during(lambda: None, ticks()) == pytest.approx(40)


def test_a_gpu_without_either_is_a_reason(tmp_path: Path) -> None:
    found = find_meter("gpu", tmp_path, nvml())
    assert found == NoMeter("NVML: Not Supported")


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"]
)
@pytest.mark.parametrize("answers", [1, 2])
def test_a_gpu_that_stops_telling_is_an_error_of_the_meter(
    tmp_path: Path, function: str, answers: int
) -> None:
    left = iter([0] * answers)

    def tell(handle: object) -> int:
        for answer in left:
            return answer
        raise load("pynvml").NVMLError("GPU is lost")

    load = nvml(**{function: tell})
    meter = find_meter("gpu", tmp_path, load)
    assert not isinstance(meter, NoMeter)
    with pytest.raises(OSError, match="NVML: GPU is lost"):
        meter.during(lambda: None, ticks())


def test_nvml_without_its_package_is_a_reason(tmp_path: Path) -> None:
    def load(name: str) -> Any:
        raise ImportError(name)

    found = find_meter("gpu", tmp_path, load)
    assert isinstance(found, NoMeter) and "nvidia-ml-py" in found.reason
