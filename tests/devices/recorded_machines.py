"""Machines as their files and libraries describe them, recorded in `machines/`.

`root/` has the files of a machine; `software.json` has the versions of installed distributions, what ONNX
Runtime says, and what NVML answers; `expected.json` is what must be found. They are written from public
descriptions of these devices, with only what is read.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.machine import Machine

MACHINES = Path(__file__).with_name("machines")
NAMES = sorted(folder.name for folder in MACHINES.iterdir())


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def recorded(name: str) -> Machine:
    """The machine of that name."""
    folder = MACHINES / name
    software = json.loads((folder / "software.json").read_text("utf-8"))
    modules: dict[str, Any] = {}
    if "nvml" in software:
        modules["pynvml"] = nvml(software["nvml"])
    if told := software.get("onnxruntime"):
        modules["onnxruntime"] = SimpleNamespace(
            __version__=told["version"], get_available_providers=lambda: told["providers"]
        )

    def version(name: str) -> str:
        if name not in software["versions"]:
            raise PackageNotFoundError(name)
        return str(software["versions"][name])

    return detect(
        folder / "root",
        load=lambda name: modules[name] if name in modules else absent(name),
        version=version,
        which=lambda name: None,
    )


def nvml(answers: dict[str, Any]) -> SimpleNamespace:
    """NVML of a machine: a GPU is its own handle, and what it has no answer to is not supported."""

    def start() -> None:
        if "error" in answers:
            raise RuntimeError(answers["error"])

    def asked(key: str) -> Any:
        def answer(handle: dict[str, Any], *_: Any) -> Any:
            if key not in handle:
                raise RuntimeError("Not Supported")
            return handle[key]

        return answer

    def memory(handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=asked("memory_mib")(handle) << 20)

    gpus = answers.get("gpus", [])
    return SimpleNamespace(
        NVML_CLOCK_SM="sm_mhz",
        NVML_CLOCK_MEM="memory_mhz",
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: answers["driver"],
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=asked("name"),
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetCudaComputeCapability=asked("capability"),
        nvmlDeviceGetNumGpuCores=asked("cores"),
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: asked(clock)(handle),
        nvmlDeviceGetMemoryBusWidth=asked("bus_bits"),
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: asked("watts")(handle) * 1000,
        nvmlDeviceGetMigMode=lambda handle: (int(asked("mig")(handle)), 0),
        nvmlDeviceGetMaxMigDeviceCount=lambda handle: len(asked("instances")(handle)) + 1,
        nvmlDeviceGetMigDeviceHandleByIndex=lambda handle, index: handle["instances"][index],
        nvmlDeviceGetAttributes=lambda handle: SimpleNamespace(
            multiprocessorCount=asked("multiprocessors")(handle)
        ),
    )
