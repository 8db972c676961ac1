"""How much memory a bundle needs on a target, by what takes it: an estimate, with each figure's source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fusedge.bundle.manifest import Manifest, Modality, Part
from fusedge.devices.targets.facts.engine_fit import version_number
from fusedge.devices.targets.facts.rows import Jetson
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.preflight.software import Software
from fusedge.devices.targets.work import PartWork

Place = Literal["memory", "GPU memory"]

MB = 1e6
# Of an engine beside its weights: 130 to 300 KB measured with TensorRT-RTX 1.7.1.
_ENGINE_BYTES = 300_000
# Shapes of a part that get an execution context of their own, beside one for all others: see
# fusedge.runtime.native_part.
_CONTEXTS = 4
# Rings keep more than a window needs, twice as long as they are: see fusedge.runtime.sample_stream and
# sound_stream.
_SERIES_MARGIN, _IMAGE_MARGIN, _SOUND_BLOCK_S = 8, 2, 10.0
# The largest whole frame that a front end is given, in RGB: see fusedge.devices.capture.wanted.
_FRAME_BYTES = 720 * 1280 * 3
# Of them in the memory that the camera's process shares: 3 at first, 11 after 18 s at 30 Hz beside work for
# four times the cores; 64 after two seconds in which the front end stood still. The driver keeps 3 more.
_WHOLE_FRAMES = 11 + 3

# Of a build, see build_bytes.
_BUILD_BYTES: Mapping[str, int] = {"tensorrt_rtx": 256 << 20, "tensorrt": 1 << 30}
_BUILD_TIMES_GRAPH = 4


@dataclass(frozen=True)
class Route:
    """What is expected to run a part: `native` is a TensorRT engine, `onnx` is ONNX Runtime."""

    backend: Literal["native", "onnx"]
    precision: str
    device: Literal["gpu", "cpu"]


@dataclass(frozen=True)
class MemoryRow:
    """What one thing takes, in bytes; None where that is not known. `source` says whose figure it is."""

    what: str
    bytes: int | None
    place: Place
    source: str


@dataclass(frozen=True)
class MemoryNeed:
    """The account. `capacity` is what each place has in bytes, None where that is not known.

    On a Jetson, and without a GPU, all is in one place, `memory`.
    """

    rows: tuple[MemoryRow, ...]
    capacity: Mapping[Place, float | None]

    def needed(self, place: Place) -> int:
        """All that is known to be needed, in bytes."""
        return sum(row.bytes or 0 for row in self.rows if row.place == place)

    def unknown(self, place: Place) -> tuple[str, ...]:
        """What takes nobody knows how much."""
        return tuple(row.what for row in self.rows if row.place == place and row.bytes is None)


def memory_need(
    manifest: Manifest,
    works: Mapping[tuple[str, str], PartWork],
    routes: Mapping[str, Route],
    target: Target,
    software: Software,
    streams: int = 1,
    host_memory_bytes: float | None = None,
) -> MemoryNeed:
    """What a session of each of `streams` streams takes, all in one process.

    `works` is by part and precision, `routes` by part. The sessions share the parts. `host_memory_bytes` is
    what the computer of a graphics card has.
    """
    on_gpu = [name for name, route in routes.items() if route.device == "gpu"]
    shared = target.compute.memory_is_shared
    gpu: Place = "memory" if shared else "GPU memory"
    rows = _system(target, bool(on_gpu))
    rows.append(MemoryRow("Python, Fusedge and ONNX Runtime", int(70 * MB), "memory", _MEASURED))
    rows += _libraries(routes, software, gpu)
    for part in manifest.parts:
        route = routes[part.name]
        place: Place = gpu if route.device == "gpu" else "memory"
        rows += _part(part, route, works.get((part.name, route.precision)), place, streams)
    for modality in manifest.modalities:
        rows += _capture(modality, streams)
    capacity: dict[Place, float | None] = {"memory": target.compute.memory_bytes}
    if not shared:
        capacity = {"memory": host_memory_bytes, "GPU memory": target.compute.memory_bytes}
    return MemoryNeed(tuple(rows), capacity)


_MEASURED = "measured on x86-64 with Python 3.11 and ONNX Runtime 1.32: 67 MB"


def _system(target: Target, on_gpu: bool) -> list[MemoryRow]:
    memory = target.compute.memory_bytes
    if isinstance(target.row, Jetson):
        source = "300 to 500 MB idle, github.com/microsoft/onnxruntime issue 4259"
        rows = [_operating_system(500 * MB, source, target)]
        # what the machine itself counted is without it
        if memory is not None and memory >= target.row.memory_gib * 2**30:
            source = (
                "7,852 of 8,192 MiB are left, github.com/microsoft/onnxruntime issue 3240; 15,536 of "
                "16,384 MiB, github.com/OE4T/meta-tegra pull request 2243"
            )
            rows.append(MemoryRow("reserved by the firmware", int(0.05 * memory), "memory", source))
        return rows
    system = _operating_system(300 * MB, "assumed", target)
    if target.compute.memory_is_shared or not on_gpu:
        return [system]
    return [system, MemoryRow("driver and display", int(500 * MB), "GPU memory", "assumed")]


def _operating_system(size: float, source: str, target: Target) -> MemoryRow:
    """It is not charged to the control group of a process, so it first takes what that is denied."""
    if target.memory_beyond_bytes:
        source += ", less what the machine has beyond the limit of this process"
    left = max(0, int(size - target.memory_beyond_bytes))
    return MemoryRow("operating system without a desktop", left, "memory", source)


def _libraries(routes: Mapping[str, Route], software: Software, gpu: Place) -> list[MemoryRow]:
    """CUDA's context and the libraries, once in a process."""
    rows = []
    if any(route.backend == "native" for route in routes.values()):
        rows += _tensorrt(software, gpu)
    if any(route.backend == "onnx" and route.device == "gpu" for route in routes.values()):
        rows.append(
            MemoryRow(
                "CUDA and ONNX Runtime's libraries for it",
                int(1000 * MB),
                gpu,
                "about 1 GB, github.com/microsoft/onnxruntime issue 4184",
            )
        )
    return rows


def _tensorrt(software: Software, gpu: Place) -> list[MemoryRow]:
    what, version = "CUDA and TensorRT's libraries", software.tensorrt
    plain = software.tensorrt_flavour == "tensorrt"  # TensorRT-RTX began anew, at 1.0
    if plain and version is not None and version_number(version) < (8, 6):
        # cuBLAS and cuDNN are loaded with it
        source = "about 800 MB, forums.developer.nvidia.com topic 79158"
        return [MemoryRow(what, int(800 * MB), gpu, source)]
    host = MemoryRow(
        what,
        int(350 * MB),
        "memory",
        "331 MiB with TensorRT 8.6, github.com/wang-xinyu/tensorrtx issue 1320",
    )
    if gpu == "memory":
        source = "assumed: half of a graphics card's"
        return [host, MemoryRow("CUDA's context", int(200 * MB), gpu, source)]
    source = "about 400 MB from CUDA 11.7 on, github.com/pytorch/pytorch issue 109888"
    return [host, MemoryRow("CUDA's context", int(400 * MB), gpu, source)]


def _part(
    part: Part, route: Route, work: PartWork | None, place: Place, streams: int
) -> list[MemoryRow]:
    def row(what: str, size: float | None, source: str) -> MemoryRow:
        return MemoryRow(
            f"{what} of {part.name}", None if size is None else math.ceil(size), place, source
        )

    if work is None:
        return [row("graph", None, f"its {route.precision} graph was not counted")]
    if route.backend == "onnx":
        return [
            # The graph as it was read, and the weights as kernels want them.
            row("weights", 2 * work.weight_bytes, "counted in the graph, twice"),
            row("intermediate results", work.activation_bytes, f"counted, batch {work.batch}"),
        ]
    scale = _greatest(part, work.batch)
    contexts = 1 + min(streams, _CONTEXTS) if part.dims else 1
    live, moved = work.activation_bytes, work.input_bytes + work.output_bytes
    counted = f"counted, for the engine's greatest sizes, {contexts} times"
    source = "counted, for the engine's greatest sizes"
    locked = f"page-locked inputs and outputs of {part.name}"
    return [
        row("engine", work.weight_bytes + _ENGINE_BYTES, "weights counted, and 0.3 MB"),
        row("intermediate results", None if live is None else scale * live * contexts, counted),
        row("inputs and outputs", scale * moved, source),
        MemoryRow(locked, math.ceil(scale * moved), "memory", source),
    ]


def _greatest(part: Part, batch: int) -> float:
    """How much more numbers the greatest sizes of the part's dims have than those that were counted."""
    scale = 1.0
    for name, dim in part.dims.items():
        scale *= dim.greatest / (batch if name == "batch" else dim.usual)
    return max(scale, 1.0)


def _capture(modality: Modality, streams: int) -> list[MemoryRow]:
    """What has been captured and may still be needed, and the process of a device that may hang."""
    points = modality.kept_s * modality.rate_hz
    item = math.prod(modality.item_shape)
    if modality.kind == "image":
        size = max(8, _IMAGE_MARGIN * points) * item
    elif modality.kind == "audio":
        size = 2 * (2 * points + _SOUND_BLOCK_S * modality.rate_hz) * (4 * item + 1)
    else:
        size = 2 * max(64, _SERIES_MARGIN * points) * (4 * item + 9)
    what = f"samples of {modality.name} that are kept"
    rows = [MemoryRow(what, math.ceil(size) * streams, "memory", "computed from the manifest")]
    if modality.kind == "image" and modality.front is not None:
        what = f"whole frames of {modality.name} for its front end"
        source = (
            "14 of 1280x720 in RGB: measured on x86-64 at 30 Hz on a busy machine, and the driver's"
        )
        rows.append(MemoryRow(what, _WHOLE_FRAMES * _FRAME_BYTES * streams, "memory", source))
    if modality.kind != "series":
        rows.append(
            MemoryRow(
                f"process that captures {modality.name}",
                int(50 * MB) * streams,
                "memory",
                "measured on x86-64 with OpenCV 4 or PyAV 17 loaded: 45 MB",
            )
        )
    return rows


def build_bytes(flavour: str, graph_bytes: int) -> int:
    """What the build of an engine takes at most, beside the workspace that was asked for.

    Measured with TensorRT-RTX 1.7.1 on a CPU: 208 MiB for an empty graph, and four times the graph (16 to
    256 MiB of weights). `tensorrt` loads CUDA's libraries too: 945 MiB, github.com/NVIDIA/TensorRT issue
    3834.
    """
    return _BUILD_BYTES[flavour] + _BUILD_TIMES_GRAPH * graph_bytes
