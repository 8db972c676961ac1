"""Detection of what a machine has, on recorded trees of files."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusedge.devices.targets.detect import Gpu, Jetson, Machine, detect


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


def bare(root: Path, **given: Any) -> Machine:
    """The machine under `root`, with nothing installed but what is given."""
    settings = {"load": absent, "version": not_installed, "which": lambda name: None} | given
    return detect(root, **settings)


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_described_in_json() -> None:
    found = json.loads(detect().model_dump_json())
    assert found["cores"] >= 1 and found["python"].count(".") == 2
    assert set(found) == set(Machine.model_fields)


def test_what_is_unknown_stays_unknown(tmp_path: Path) -> None:
    machine = bare(tmp_path)
    assert machine.memory_bytes is None and machine.jetson is None and machine.gpus == ()
    assert machine.gpu_driver is None and machine.torch is None and machine.tensorrt == {}
    assert machine.onnxruntime is None and machine.onnxruntime_providers == ()
    assert machine.gpu_note == (
        "no /proc/driver/nvidia, nvidia-smi not found; the package nvidia-ml-py is not installed"
    )
    assert machine.onnxruntime_note == "onnxruntime is not installed"


def test_processor_memory_and_system(tmp_path: Path) -> None:
    cpu = "processor\t: 0\nmodel name\t: Some CPU\n\nprocessor\t: 1\nmodel name\t: Some CPU\n"
    root = tree(
        tmp_path,
        proc__cpuinfo=cpu,
        proc__meminfo="MemTotal:       16000 kB\nMemFree: 1 kB\n",
        **{"etc__os-release": 'NAME="X"\nPRETTY_NAME="Some Linux 1"\n'},
    )
    machine = bare(root)
    assert (machine.processor, machine.cores) == ("Some CPU", 2)
    assert (machine.memory_bytes, machine.os) == (16_384_000, "Some Linux 1")


def test_a_jetson_is_told_by_its_device_tree_and_release(tmp_path: Path) -> None:
    release = (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x"
    )
    root = tree(
        tmp_path,
        **{"proc__device-tree__model": "NVIDIA Jetson Orin Nano Developer Kit\0"},
        etc__nv_tegra_release=release,
    )
    assert bare(root).jetson == Jetson(model="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3")


def test_another_board_is_no_jetson(tmp_path: Path) -> None:
    root = tree(tmp_path, **{"proc__device-tree__model": "Raspberry Pi 5 Model B\0"})
    assert bare(root).jetson is None


def test_a_gpu_without_nvml_is_read_from_the_driver(tmp_path: Path) -> None:
    gpu = "proc__driver__nvidia__gpus__0000:01:00.0__information"
    version = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 2024\n"
    )
    root = tree(
        tmp_path,
        proc__driver__nvidia__version=version,
        **{gpu: "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 1\n"},
    )
    machine = bare(root, which=lambda name: "/usr/bin/nvidia-smi")
    assert machine.gpus == (Gpu(name="NVIDIA GeForce RTX 4090"),)
    assert machine.gpu_driver == "550.54.14"
    assert machine.gpu_note.startswith("from /proc/driver/nvidia; ")


def fake_nvml(**changed: Any) -> SimpleNamespace:
    calls: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=85 << 30),
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
        "nvmlSystemGetDriverVersion": lambda: "580.1",
    }
    return SimpleNamespace(**(calls | changed))


def test_nvml_describes_the_gpus(tmp_path: Path) -> None:
    machine = bare(tmp_path, load=lambda name: {"pynvml": fake_nvml()}.get(name) or absent(name))
    assert machine.gpus == (
        Gpu(name="NVIDIA H100", memory_bytes=85 << 30, compute_capability="9.0"),
    )
    assert (machine.gpu_driver, machine.gpu_note) == ("580.1", "from NVML")


def test_an_nvml_that_fails_is_told(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("Driver Not Loaded")

    nvml = fake_nvml(nvmlInit=fail)
    machine = bare(tmp_path, load=lambda name: {"pynvml": nvml}.get(name) or absent(name))
    assert machine.gpus == () and machine.gpu_note.endswith("NVML: Driver Not Loaded")


def test_installed_packages_are_told(tmp_path: Path) -> None:
    versions = {"tensorrt-rtx-cu13": "1.7.1", "tensorrt": "10.3.0", "torch": "2.13.0"}
    runtime = SimpleNamespace(__version__="1.20", get_available_providers=lambda: ["A", "B"])

    def version(name: str) -> str:
        return versions[name] if name in versions else not_installed(name)

    machine = bare(
        tmp_path,
        version=version,
        load=lambda name: {"onnxruntime": runtime}.get(name) or absent(name),
    )
    assert machine.tensorrt == {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1"}
    assert machine.torch == "2.13.0"
    assert (machine.onnxruntime, machine.onnxruntime_providers) == ("1.20", ("A", "B"))


@pytest.mark.parametrize("error", [ImportError("libcudnn.so.9: not found"), OSError("bad ELF")])
def test_a_broken_onnxruntime_is_told(tmp_path: Path, error: Exception) -> None:
    def load(name: str) -> Any:
        raise error if name == "onnxruntime" else ModuleNotFoundError(name)

    assert str(error) in bare(tmp_path, load=load).onnxruntime_note
