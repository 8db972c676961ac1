"""Whether TensorRT can run a part on a target: an engine that the bundle has, or one that can be built."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Engine, Graph, Part
from fusedge.devices.targets.facts.engine_fit import (
    dla_core,
    is_for_gpu,
    is_for_version,
    version_number,
)
from fusedge.devices.targets.facts.opsets import max_opset
from fusedge.devices.targets.facts.rows import Generation, Gpu, Jetson
from fusedge.devices.targets.facts.table import Target, find_target, generations, jetpacks_for
from fusedge.devices.targets.facts.unbuilt_operators import unbuilt_operators
from fusedge.devices.targets.preflight.dla_checks import dla_problems
from fusedge.devices.targets.preflight.findings import Finding, listed, shown
from fusedge.devices.targets.preflight.software import PYTHONS, Software, software_of
from fusedge.devices.targets.tensorrt_api import BF16_TENSORRT, LEAST_TENSORRT, ON_A_JETSON
from fusedge.devices.targets.work import PartWork

# 8.5 names inputs and outputs at run time, on which the runtime relies: see tensorrt_api.
_NEWEST_OPSET = max_opset("999.0")


@dataclass(frozen=True)
class EngineVerdict:
    """What stands for and against an engine of a part. `possible`: it is in the bundle (`built`), or can be
    built. `precision` is the engine's.
    """

    possible: bool
    built: bool
    precision: str
    findings: tuple[Finding, ...]


def target_findings(target: Target, software: Software) -> list[Finding]:
    """Why there can be no engine for a target, whatever the bundle; empty where nothing is against it."""
    capability = target.compute_capability
    if target.flavour is None or capability is None:
        return [
            Finding(
                "compute capability",
                "refused",
                f"Target {target.name} has no NVIDIA GPU, and TensorRT engines run on nothing else.",
                "--backend onnx: ONNX Runtime runs the parts on the processor",
            )
        ]
    if software.installed and software.tensorrt is None:
        return [_not_installed(target, software)]
    number = version_number(software.tensorrt) if software.tensorrt else None
    if target.flavour == "tensorrt" and number is not None and number < LEAST_TENSORRT:
        sentence = (
            f"Target {target.name} has {software.tensorrt_title}, and Fusedge needs 8.5 or newer."
        )
        return [Finding("tensorrt", "refused", sentence, _newer(target, LEAST_TENSORRT))]
    generation = generations().get(capability)
    if generation is None:
        sentence = (
            f"No table says which TensorRT is for GPUs of compute capability {capability}, which is "
            "NVIDIA's number for a design of GPU."
        )
        way = "build on the device and see: fusedge build BUNDLE --target local"
        return [Finding("compute capability", "unknown", sentence, way)]
    return list(_supported(target, generation, software, number))


def _not_installed(target: Target, software: Software) -> Finding:
    system = software.system_tensorrt
    if target.flavour == "tensorrt" and system is not None and system.pythons:
        sentence = f"The system's TensorRT {system.version} {system.unseen(software.python or '')}."
        usable = [python for python in system.pythons if python in PYTHONS]
        way = "--backend onnx, for Fusedge is not for that Python"
        if usable:
            way = f"a virtual environment of Python {usable[-1]} with --system-site-packages"
        return Finding("tensorrt", "refused", sentence, way)
    way = "pip install 'fusedge[rtx]'" if target.builds_anywhere else _install(target)
    sentence = "TensorRT, which runs engines on the GPU, is not installed on this machine."
    return Finding("tensorrt", "refused", sentence, way)


def _supported(
    target: Target, generation: Generation, software: Software, number: tuple[int, ...] | None
) -> Iterator[Finding]:
    """The version of TensorRT against the GPU's generation."""
    gpu = f"{generation.architecture} GPUs (compute capability {generation.compute_capability})"
    if target.flavour == "tensorrt_rtx":
        if not generation.tensorrt_rtx:
            sentence = f"TensorRT-RTX is not for {gpu}."
            yield Finding("compute capability", "refused", sentence, _install(target))
        return
    first, last = generation.tensorrt_first, generation.tensorrt_last
    if first is None:
        sentence = f"Which version of TensorRT is the first for {gpu} is not known."
        way = "build on the device and see: fusedge build BUNDLE --target local"
        yield Finding("compute capability", "unknown", sentence, way)
    elif number is not None and number < version_number(first):
        sentence = f"{software.tensorrt_title} is not for {gpu}: {first} was the first that is."
        way = _newer(target, version_number(first))
        yield Finding("compute capability", "refused", sentence, way)
    if last is not None and number is not None:
        least = version_number(last)
        if number[: len(least)] > least:
            sentence = f"{software.tensorrt_title} is no more for {gpu}: {last} was the last."
            way = f"install TensorRT {last} on the device, or --backend onnx"
            yield Finding("compute capability", "refused", sentence, way)


def _install(target: Target) -> str:
    if isinstance(target.row, Jetson):
        return ON_A_JETSON
    return "pip install 'fusedge[tensorrt]' on the device"


def _newer(target: Target, number: tuple[int, ...]) -> str:
    """How the target gets a TensorRT of at least this version."""
    version = ".".join(str(each) for each in number[:2])
    if not isinstance(target.row, Jetson):
        return f"install TensorRT {version} or newer on the device"
    for jetpack in jetpacks_for(target.row):
        if version_number(jetpack.tensorrt) >= number:
            return f"install JetPack {jetpack.name} or newer on the device"
    return "no JetPack for this module has it: --backend onnx"


def engine_verdict(
    part: Part,
    graph: Graph,
    work: PartWork | None,
    target: Target,
    software: Software,
    *,
    precision: str,
    dla: bool,
    trusted: bool,
) -> EngineVerdict:
    """Of a part on a target for which there can be engines at all.

    `graph` is what an engine would be built from, `work` counts it (None: it could not be counted),
    `precision` is what was asked for, `auto` for any. `trusted`: the bundle's engines may run, though they
    were built elsewhere.
    """
    kept, findings = _present(part, target, software, precision, dla)
    if kept is None:
        problems = list(_build_problems(part, graph, work, target, software, dla))
        possible = all(problem.verdict != "refused" for problem in problems)
        if possible:
            findings.append(_to_build(part, target))
        return EngineVerdict(possible, False, graph.precision, (*findings, *problems))
    about = tuple(_about_engine(part, kept, target, software, trusted))
    return EngineVerdict(True, True, kept.precision_requested, about)


def _present(
    part: Part, target: Target, software: Software, precision: str, dla: bool
) -> tuple[Engine | None, list[Finding]]:
    """The bundle's engine for this target, or why none of them is."""
    findings = []
    for engine in sorted(part.engines, key=lambda engine: engine.power_mode != target.mode):
        problem = _mismatch(engine, target, software, precision, dla)
        if problem is None:
            return engine, []
        subject, sentence = problem
        finding = Finding(
            subject, "warning", sentence, f"build another: {_build(target)}", (part.name,)
        )
        findings.append(finding)
    return None, findings


def _mismatch(
    engine: Engine, target: Target, software: Software, precision: str, dla: bool
) -> tuple[str, str] | None:
    """Subject and sentence of the first thing for which an engine does not load."""
    if not is_for_gpu(engine, target.compute_capability or "0"):
        return (
            "compute capability",
            "The bundle has an engine for the GPU design (compute capability) "
            f"{listed(engine.compute_capabilities)}, and {target.name} has {target.compute_capability}.",
        )
    if engine.flavour != software.tensorrt_flavour:
        names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
        here = names.get(software.tensorrt_flavour or "", "none")
        return (
            "tensorrt",
            f"The bundle has an engine of {names[engine.flavour]}, and {target.name} has {here}.",
        )
    if software.tensorrt is not None and not is_for_version(engine, software.tensorrt):
        return (
            "tensorrt",
            f"The bundle has an engine that TensorRT {shown(engine.version)} built, which "
            f"{software.tensorrt_title} does not load.",
        )
    if engine.flavour == "tensorrt":
        built_on = _architectures(engine)
        if built_on and software.architecture not in built_on:
            return (
                "processor",
                f"The bundle's engine was built beside a processor of kind {listed(built_on)}, and "
                f"{target.name} has {shown(software.architecture)}: it loads on no other kind.",
            )
    if precision not in ("auto", engine.precision_requested):
        return (
            "precision",
            f"The bundle's engine is {engine.precision_requested}, and {precision} was asked for.",
        )
    if dla and dla_core(engine) is None:
        return "dla", "The bundle's engine runs on the GPU alone, and the DLA was asked for."
    core, dlas = dla_core(engine), target.row.dlas if isinstance(target.row, Jetson) else 0
    if core is not None and dlas <= core:
        return "dla", f"The bundle's engine uses DLA {core}, which {target.name} does not have."
    return None


def _architectures(engine: Engine) -> list[str]:
    """Kinds of processor that its targets have, of those in the tables."""
    found = []
    for name in _devices(engine):
        try:
            found.append(software_of(find_target(name), None, None).architecture)
        except FusedgeError:  # a device that no table has
            continue
    return found


def _devices(engine: Engine) -> list[str]:
    """Its targets without their power modes."""
    return [name.partition(":")[0] for name in engine.targets]


def _about_engine(
    part: Part, engine: Engine, target: Target, software: Software, trusted: bool
) -> Iterator[Finding]:
    """What is to be said of an engine that fits."""
    names = (part.name,)
    if software.tensorrt is None and engine.flavour == "tensorrt":
        sentence = (
            f"The bundle's engine was built by TensorRT {shown(engine.version)}, and which version the "
            "device has is not known: it must be the same."
        )
        way = f"install that version there, or build on it: {_build(target)}"
        yield Finding("tensorrt", "unknown", sentence, way, names)
    elif engine.flavour == "tensorrt" and target.device not in _devices(engine):
        sentence = (
            f"The bundle's engine was built and tuned on {listed(engine.targets)}: on {target.name} it may "
            "be slower than one that is built there, or fail."
        )
        yield Finding("engine", "warning", sentence, f"build another: {_build(target)}", names)
    else:
        sentence = f"The bundle has an engine for {target.name}."
        yield Finding("engine", "fits", sentence, "", names)
    if not trusted:
        sentence = (
            "An engine is executable code, so one that was built elsewhere is refused unless the bundle "
            "is signed by a key that the device trusts."
        )
        way = "fusedge sign, then fusedge keys trust on the device; or run --allow-unsigned-engines"
        yield Finding("trust", "warning", sentence, way, names)
    mode = target.mode
    if engine.power_mode is not None and engine.power_mode != mode:
        sentence = (
            f"The engine was tuned in power mode {shown(engine.power_mode)}, and the target is in "
            f"{mode or 'an unknown one'}: it runs, but other kernels may be faster."
        )
        way = f"build once more in that mode: {_build(target)}"
        yield Finding("power mode", "warning", sentence, way, names)


def _to_build(part: Part, target: Target) -> Finding:
    sentence = f"The bundle has no engine for {target.name} yet, and TensorRT runs nothing else."
    return Finding("engine", "warning", sentence, _build(target), (part.name,))


def _build(target: Target) -> str:
    if target.builds_anywhere and target.row is not None:
        return f"fusedge build BUNDLE --target {target.name}"
    return "fusedge build BUNDLE --target local, on the device"


def _build_problems(
    part: Part,
    graph: Graph,
    work: PartWork | None,
    target: Target,
    software: Software,
    dla: bool,
) -> Iterator[Finding]:
    """What stands against the build of an engine on the target."""
    names = (part.name,)
    precisions = graph_precisions(graph)
    if target.flavour == "tensorrt":
        yield from _opset(work.opset if work else graph.opset, software, names)
    yield from _precisions(precisions, target, software, work, names)
    if work is not None and target.flavour is not None:
        lacking, rewritten = unbuilt_operators(
            (node.operator for node in work.nodes), target.flavour, software.tensorrt
        )
        if lacking:
            sentence = f"{software.tensorrt_title} does not build {listed(lacking)}."
            way = "move it out of the model, as preparation or as work on the outputs"
            yield Finding("operators", "refused", sentence, way, names)
        if rewritten:
            sentence = (
                f"{software.tensorrt_title} lacks {listed(rewritten)}; the build writes it in other "
                "operators, where their sizes are known."
            )
            way = "needs pip install 'fusedge[export]' where the engine is built"
            yield Finding("operators", "warning", sentence, way, names)
    if dla:
        yield from dla_problems(part, precisions, target, software, work)


def graph_precisions(graph: Graph) -> tuple[str, ...]:
    """All precisions that nodes of a graph compute in, ascending by name."""
    if graph.precision != "mixed":
        return (graph.precision,)
    return tuple(sorted({"fp32", *graph.precision_by_node.values()}))


def _opset(opset: int, software: Software, names: tuple[str, ...]) -> Iterator[Finding]:
    version = software.tensorrt
    most = _NEWEST_OPSET if version is None else max_opset(version)
    if most is not None and opset > most:
        sentence = (
            f"The graph is in ONNX opset {opset}, the version of its operators, and "
            f"{software.tensorrt_title} reads {most} at most."
        )
        yield Finding("opset", "refused", sentence, f"export it with --opset {most}", names)


def _precisions(
    precisions: Collection[str],
    target: Target,
    software: Software,
    work: PartWork | None,
    names: tuple[str, ...],
) -> Iterator[Finding]:
    """What the GPU and its TensorRT compute in."""
    generation = generations().get(target.compute_capability or "")
    operations: dict[str, float | None] = {}
    for rates in (generation, target.row):
        # a chip can differ from the others of its generation
        if isinstance(rates, Generation | Gpu):
            operations.update({str(name): value for name, value in rates.operations.items()})
    gpu = f"{generation.architecture} GPUs" if generation else ""
    lower = "build another precision that the bundle has, or export with --precision fp16"
    number = version_number(software.tensorrt) if software.tensorrt else None
    for precision in precisions:
        if operations and precision not in operations:
            sentence = f"{gpu} do not compute in {precision}, in which the graph is."
            yield Finding("precision", "refused", sentence, lower, names)
            continue
        if (
            precision == "bf16"
            and target.flavour == "tensorrt"
            and number is not None
            and number < BF16_TENSORRT
        ):
            sentence = f"{software.tensorrt_title} has no bf16, in which the graph is."
            yield Finding("precision", "refused", sentence, lower, names)
        full, reduced = operations.get("fp32"), operations.get(precision)
        if precision != "fp32" and full and reduced and reduced <= full:
            sentence = f"{gpu} compute {precision} no faster than fp32; it only halves the memory."
            yield Finding("precision", "warning", sentence, "", names)
    if target.flavour == "tensorrt_rtx":
        yield from _rtx_precisions(precisions, target, work, names)


def _rtx_precisions(
    precisions: Collection[str], target: Target, work: PartWork | None, names: tuple[str, ...]
) -> Iterator[Finding]:
    """Measured with TensorRT-RTX 1.7.1, and of its support matrix."""
    if target.compute_capability == "7.5" and work is not None:
        # Products of int8 are computed in fp32 there, unless the graph has fp16 around them.
        refused = {
            node.precision
            for node in work.nodes
            if node.kind in ("product", "recurrent", "attention") and node.precision != "fp16"
        }
        if refused:
            sentence = (
                f"TensorRT-RTX does not build {listed(sorted(refused))} products of matrices for Turing "
                "GPUs, nor GRU, LSTM, RNN and attention, which have such."
            )
            way = "build the fp16 graph: fusedge build BUNDLE --precision fp16"
            yield Finding("precision", "refused", sentence, way, names)
    if "int8" in precisions:
        sentence = (
            "TensorRT-RTX uses int8 for the weights of matrix products only, so this int8 graph may be "
            "refused or be no faster than fp16."
        )
        yield Finding("precision", "warning", sentence, "compare with the fp16 graph", names)
