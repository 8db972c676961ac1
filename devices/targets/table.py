"""Targets: the devices that a bundle can be built for, as data.

Compute capabilities of desktop and workstation GPUs and of Jetson modules are those of NVIDIA's list
at developer.nvidia.com/cuda-gpus. Power modes and the rest of the module data are not here yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fusedge.bundle.errors import UnknownNameError

Flavour = Literal["tensorrt", "tensorrt_rtx"]

_CUDA_GPUS = "developer.nvidia.com/cuda-gpus"
_JETPACK_5 = "JetPack 5.1.6 (TensorRT 8.5.2) is the last release for Xavier, rbonghi/jetson_stats"


@dataclass(frozen=True)
class Target:
    """A compute device. Raises nothing; look it up with `find_target`.

    `flavour` is the TensorRT that its engines are for, None where parts run as ONNX only.
    `compute_capability` is like `8.9`, None without a GPU. `max_opset` is the highest ONNX opset that
    the newest TensorRT of the device is known to read whole, None where nothing limits it.
    """

    name: str
    flavour: Flavour | None
    compute_capability: str | None
    source: str
    max_opset: int | None = None

    @property
    def builds_anywhere(self) -> bool:
        """Whether its engine can be built on another machine: only TensorRT-RTX can do that."""
        return self.flavour == "tensorrt_rtx"


def _rows(
    flavour: Flavour, capability: str, source: str, names: str, max_opset: int | None = None
) -> list[Target]:
    return [Target(name, flavour, capability, source, max_opset) for name in names.split()]


_ALL = (
    Target("cpu", None, None, "ONNX Runtime's CPU provider"),
    *_rows(
        "tensorrt_rtx",
        "7.5",
        _CUDA_GPUS,
        "rtx-2060 rtx-2060-super rtx-2070 rtx-2070-super rtx-2080 rtx-2080-super rtx-2080-ti",
    ),
    *_rows(
        "tensorrt_rtx",
        "8.6",
        _CUDA_GPUS,
        "rtx-3050 rtx-3060 rtx-3060-ti rtx-3070 rtx-3070-ti rtx-3080 rtx-3080-ti rtx-3090 "
        "rtx-3090-ti rtx-a4000 rtx-a5000 rtx-a6000",
    ),
    *_rows(
        "tensorrt_rtx",
        "8.9",
        _CUDA_GPUS,
        "rtx-4060 rtx-4060-ti rtx-4070 rtx-4070-super rtx-4070-ti rtx-4070-ti-super rtx-4080 "
        "rtx-4080-super rtx-4090 rtx-4000-ada rtx-5000-ada rtx-6000-ada",
    ),
    *_rows(
        "tensorrt_rtx",
        "12.0",
        _CUDA_GPUS,
        "rtx-5060 rtx-5060-ti rtx-5070 rtx-5070-ti rtx-5080 rtx-5090 rtx-pro-6000-blackwell",
    ),
    *_rows(
        "tensorrt",
        "7.2",
        f"{_CUDA_GPUS}; {_JETPACK_5}",
        "jetson-xavier-nx-8gb jetson-xavier-nx-16gb jetson-agx-xavier-32gb jetson-agx-xavier-64gb",
        max_opset=17,
    ),
    *_rows(
        "tensorrt",
        "8.7",
        _CUDA_GPUS,
        "jetson-orin-nano-4gb jetson-orin-nano-8gb jetson-orin-nx-8gb jetson-orin-nx-16gb "
        "jetson-agx-orin-32gb jetson-agx-orin-64gb",
    ),
    *_rows("tensorrt", "11.0", _CUDA_GPUS, "jetson-thor-t4000 jetson-thor-t5000"),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _ALL})


def find_target(name: str) -> Target:
    """The target of that name; raises UnknownNameError with the closest match."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UnknownNameError("target", name, TARGETS) from None
