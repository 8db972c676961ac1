"""Whether a Jetson's DLA, its accelerator beside the GPU, can run a part, and what it leaves to the GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fusedge.bundle.manifest import Part
from fusedge.devices.targets.facts.engine_fit import version_number
from fusedge.devices.targets.facts.rows import JetPack, Jetson
from fusedge.devices.targets.facts.table import Target, dla_operators, jetpacks_for
from fusedge.devices.targets.preflight.findings import Finding, listed
from fusedge.devices.targets.preflight.software import Software
from fusedge.devices.targets.tensorrt_api import DLA_INT8_TENSORRT
from fusedge.devices.targets.work import PartWork

_PRECISIONS = ("fp16", "int8")


def dla_findings(target: Target, software: Software, backend: str) -> list[Finding]:
    """Why the DLA cannot be used, whatever the bundle; empty where it can."""
    row = target.row
    if backend == "onnx":
        sentence = "A DLA runs TensorRT engines only, and ONNX Runtime was asked for."
        return [Finding("dla", "refused", sentence, "leave out --dla or --backend onnx")]
    if not isinstance(row, Jetson) or row.dlas == 0:
        sentence = (
            f"Target {target.name} has no DLA, which is an accelerator of some Jetson modules."
        )
        return [Finding("dla", "refused", sentence, "leave out --dla")]
    if software.jetpack is None:
        sentence = "Which JetPack is on the device is not known, so neither is whether it has DLA."
        return [Finding("dla", "unknown", sentence, "name it with --jetpack")]
    if not _builds(row, software.jetpack, software.tensorrt):
        sentence = f"{software.tensorrt_title} does not build for DLA."
        return [Finding("dla", "refused", sentence, ", or ".join(_ways_out(row)))]
    return []


def _builds(row: Jetson, jetpack: JetPack, tensorrt: str | None) -> bool:
    newer = _with_dla(row, jetpack)
    installed = newer and tensorrt and version_number(tensorrt) >= version_number(newer)
    return jetpack.dla or bool(installed)


def _with_dla(row: Jetson, jetpack: JetPack) -> str | None:
    """The TensorRT to install on a JetPack whose own one has no DLA; so far there is one for AGX Orin alone
    (docs.nvidia.com, TensorRT 11.4.1, "Working with DLA").
    """
    return jetpack.tensorrt_optional if row.name.startswith("jetson-agx-orin") else None


def _ways_out(row: Jetson) -> Iterator[str]:
    jetpacks = jetpacks_for(row)
    own = [jetpack.name for jetpack in jetpacks if jetpack.dla]
    if own:
        yield f"install JetPack {own[-1]}"
    added = [jetpack for jetpack in jetpacks if _with_dla(row, jetpack)]
    if added:
        yield f"install TensorRT {added[-1].tensorrt_optional} on JetPack {added[-1].name}"
    yield "leave out --dla"


def dla_problems(
    part: Part,
    precisions: Collection[str],
    target: Target,
    software: Software,
    work: PartWork | None,
) -> Iterator[Finding]:
    """What stands against the DLA for one part, whose graph computes in `precisions`."""
    names = (part.name,)
    slow = sorted(set(precisions) - set(_PRECISIONS))
    if slow:
        sentence = f"The DLA computes in fp16 and int8 only, and the graph is in {listed(slow)}."
        way = "plan and build with --precision fp16, or export such a graph"
        yield Finding("dla", "refused", sentence, way, names)
    number = version_number(software.tensorrt) if software.tensorrt else None
    if "int8" in precisions and number is not None and number < DLA_INT8_TENSORRT:
        sentence = f"{software.tensorrt_title} builds no int8 graph for DLA."
        yield Finding("dla", "refused", sentence, "use the fp16 graph", names)
    free = sorted(name for name, dim in part.dims.items() if dim.least != dim.greatest)
    if free:
        sentence = f"The DLA takes no sizes that change, and {listed(free)} can change here."
        sizes = {name: 1 if name == "batch" else part.dims[name].usual for name in free}
        options = (f"--dim {name}={size}:{size}:{size}" for name, size in sizes.items())
        way = f"export with one size: {' '.join(options)}"
        yield Finding("dla", "refused", sentence, way, names)
    if work is not None and isinstance(target.row, Jetson):
        yield from _left_to_gpu(work, target.row, names)


def _left_to_gpu(work: PartWork, row: Jetson, names: tuple[str, ...]) -> Iterator[Finding]:
    """Nodes that the DLA does not run. Its further limits are not looked at."""
    table = dla_operators().get(row.dla_version or 0)
    if table is None:
        sentence = "Which operators the DLA of this module runs is not known."
        yield Finding("dla", "unknown", sentence, "build on the device and see", names)
        return
    nodes = [node for node in work.nodes if node.kind != "free"]
    left = [node for node in nodes if node.operator not in table.operators]
    if not left:
        sentence = "The DLA runs all operators of the graph, within its limits of size."
        yield Finding("dla", "fits", sentence, "", names)
        return
    every = [node.operations for node in nodes]
    share = ""
    if None not in every and (total := sum(each or 0 for each in every)):
        share = f", {sum(node.operations or 0 for node in left) / total:.0%} of the operations,"
    sentence = (
        f"Of {len(nodes)} nodes, {len(left)}{share} stay on the GPU, since the DLA does not run "
        f"{listed(dict.fromkeys(node.operator for node in left))}."
    )
    way = "leave out --dla for this part" if len(left) == len(nodes) else ""
    yield Finding("dla", "warning", sentence, way, names)
