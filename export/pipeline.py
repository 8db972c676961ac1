"""The whole export: a fusion model and the facts of its task become a validated bundle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from fusedge.bundle.archive import Bundle, check_destination, file_entry, write_bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    Engine,
    Fusion,
    Graph,
    Manifest,
    Part,
    PartParity,
    Precision,
)
from fusedge.devices.targets.table import Target, find_target
from fusedge.export.audit import Audit, AuditRow
from fusedge.export.engine import BuildLimits, BuiltEngine, EngineRequest, build_engine
from fusedge.export.flavours import check_installed
from fusedge.export.packages import needs_extra, tool_versions

with needs_extra("export", "exporting a model"):
    import onnx
    import onnxscript  # noqa: F401  # torch's exporter needs it, and says so late
    import torch
    from torch import nn

    from fusedge.export.cases import Case, StreamCase, part_cases, stream_cases
    from fusedge.export.lower import LOWEST, lower
    from fusedge.export.parity import TOLERANCE, PartSession, check_part, check_stream
    from fusedge.export.part import ModulePart
    from fusedge.export.precision import count_kept, float16_nodes, keep_choices, to_float16
    from fusedge.export.simplify import simplify
    from fusedge.export.split import split
    from fusedge.export.task import FusionModule, Task
    from fusedge.export.trace import OPSETS, trace

Progress = Callable[[str, str, float], None]
"""Called with the stage, the part or file it is at, and the share of the export done, 0 to 1."""

DEFAULT_OPSET = 18  # the exporter's least


@dataclass(frozen=True)
class ExportOptions:
    """What to make. `precision` is that of the engines; an ONNX graph at fp32 is always made.

    `opset` None takes 18, or 17 where a target reads no more; 17 to 22 can be given. `tolerance` is the
    parity gate's for logits, by precision.
    """

    targets: tuple[str, ...] = ()
    precision: Literal["fp32", "fp16"] = "fp16"
    opset: int | None = None
    batch_range: tuple[int, int, int] = (1, 4, 8)
    limits: BuildLimits = field(default_factory=BuildLimits)
    tolerance: Mapping[Precision, float] = field(default_factory=lambda: TOLERANCE)


@dataclass(frozen=True)
class Exported:
    """The bundle as written, and what was asked for against what is in it."""

    bundle: Bundle
    audit: Audit


def export_bundle(
    model: FusionModule,
    task: Task,
    out: Path,
    options: ExportOptions = ExportOptions(),
    progress: Progress = lambda stage, item, share: None,
) -> Exported:
    """Export `model` (an nn.Module) to the bundle `out`: a `.fusedge` file or a folder.

    The same model, task, options and tools give the same bytes. Raises FusedgeError where a stage fails
    or a difference is beyond its tolerance; then, and on KeyboardInterrupt, `out` is as it was before.
    """
    targets = [find_target(name) for name in dict.fromkeys(options.targets)]
    _check_possible(out, targets)
    opset = options.opset or min([DEFAULT_OPSET, *(t.max_opset for t in targets if t.max_opset)])
    if not LOWEST <= opset <= OPSETS[-1]:
        raise FusedgeError(f"cannot export at opset {opset}", hint=f"{LOWEST} to {OPSETS[-1]}")
    with _evaluating(model) as frozen:
        parts = split(
            frozen, task.modalities, task.decision_rate_hz, [o.logits for o in task.outputs]
        )
        steps = _Steps(progress, parts, targets, options.precision)
        steps.next("reference answers", "model")
        exporter = _Exporter(
            parts,
            part_cases(parts, task.modalities),
            stream_cases(frozen, parts, task.modalities),
            options.tolerance,
            steps,
        )
        graphs: dict[tuple[str, Precision], onnx.ModelProto] = {}
        for part in parts:
            steps.next("trace", part.name)
            graphs[part.name, "fp32"] = _float32_graph(part, opset)
        exporter.gate(graphs)
        if options.precision == "fp16":
            exporter.reduce(graphs)
    files = {
        _graph_file(name, precision): graph.SerializeToString(deterministic=True)
        for (name, precision), graph in graphs.items()
    }
    engines, rows = _build_engines(parts, targets, files, options, steps, exporter.kept)
    files |= engines.files | dict(task.documents)
    steps.next("write", out.name)
    manifest = _manifest(task, parts, graphs, engines.entries, exporter.parity, files)
    bundle = write_bundle(out, manifest, files)
    progress("done", out.name, 1.0)
    return Exported(bundle, Audit(tuple(rows), tuple(exporter.parity)))


def _float32_graph(part: ModulePart, opset: int) -> onnx.ModelProto:
    graph = simplify(trace(part, max(opset, DEFAULT_OPSET)), part)
    return lower(graph, part, opset) if opset < DEFAULT_OPSET else graph


def _check_possible(out: Path, targets: Sequence[Target]) -> None:
    """Fail now rather than after minutes of work."""
    check_destination(out)
    for target in targets:
        if target.flavour is not None and target.builds_anywhere:
            check_installed(target.flavour)


@contextmanager
def _evaluating(model: FusionModule) -> Iterator[FusionModule]:
    """A copy of the model in evaluation mode on the CPU; numbers are computed in one thread.

    More threads would sum in another order from run to run, and the parts are small.
    """
    frozen = copy.deepcopy(model)
    if isinstance(frozen, nn.Module):
        frozen.cpu().eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield frozen
    finally:
        torch.set_num_threads(threads)


class _Steps:
    """Counts the steps of an export for the progress callback; each counts the same."""

    def __init__(
        self,
        progress: Progress,
        parts: Sequence[ModulePart],
        targets: Sequence[Target],
        precision: Precision,
    ) -> None:
        builds = sum(target.builds_anywhere for target in targets)
        reductions = 1 if precision == "fp16" else 0
        self._progress = progress
        self._total = 2 + len(parts) * (2 + reductions + builds) + 1 + reductions
        self._done = 0

    def next(self, stage: str, item: str) -> None:
        """Say what comes now."""
        self._progress(stage, item, min(1.0, self._done / self._total))
        self._done += 1


class _Exporter:
    """Holds the reference answers through both precisions, and collects what parity measured."""

    def __init__(
        self,
        parts: Sequence[ModulePart],
        cases: Mapping[str, list[Case]],
        streams: Sequence[StreamCase],
        tolerance: Mapping[Precision, float],
        steps: _Steps,
    ) -> None:
        self._parts, self._cases, self._streams = parts, cases, streams
        self._tolerance, self._steps = tolerance, steps
        self.parity: list[PartParity] = []
        self.kept: dict[str, str] = {}  # for each part, what of it had to stay float32

    def gate(self, graphs: Mapping[tuple[str, Precision], onnx.ModelProto]) -> None:
        """Let the float32 graphs pass, or raise FusedgeError."""
        sessions = []
        for part in self._parts:
            self._steps.next("parity", part.name)
            session = PartSession(part, graphs[part.name, "fp32"].SerializeToString(), "fp32")
            self._check(session)
            sessions.append(session)
        self._check_together(sessions)

    def reduce(self, graphs: dict[tuple[str, Precision], onnx.ModelProto]) -> None:
        """Add a float16 graph of each part that passes: more of it stays float32 where it must."""
        sessions = []
        for part in self._parts:
            self._steps.next("fp16 and parity", part.name)
            full = graphs[part.name, "fp32"]
            choices = keep_choices(full)
            for keep in choices:
                half = to_float16(full, part, keep)
                session = PartSession(part, half.SerializeToString(), "fp16")
                try:
                    self._check(session)
                except FusedgeError:
                    if keep is choices[-1]:
                        raise
                    continue
                graphs[part.name, "fp16"] = half
                if kept := count_kept(full, keep):
                    self.kept[part.name] = (
                        f"kept fp32 to hold parity: {kept} of {len(full.graph.node)} nodes"
                    )
                sessions.append(session)
                break
        self._check_together(sessions)

    def _check(self, session: PartSession) -> None:
        cases = self._cases[session.part.name]
        self.parity.extend(check_part(session, cases, self._tolerance[session.precision]))

    def _check_together(self, sessions: Sequence[PartSession]) -> None:
        precision = sessions[0].precision
        self._steps.next("parity", f"whole model {precision}")
        self.parity.extend(check_stream(sessions, self._streams, self._tolerance[precision]))


@dataclass(frozen=True)
class _Engines:
    files: dict[str, bytes]
    entries: dict[str, tuple[Engine, ...]]


def _build_engines(
    parts: Sequence[ModulePart],
    targets: Sequence[Target],
    files: Mapping[str, bytes],
    options: ExportOptions,
    steps: _Steps,
    kept: Mapping[str, str],
) -> tuple[_Engines, list[AuditRow]]:
    built: dict[tuple[str, str | None], BuiltEngine] = {}  # GPUs of one generation share engines
    made: dict[str, bytes] = {}
    entries: dict[str, tuple[Engine, ...]] = {}
    rows = []
    for target in targets:
        for part in parts:
            if not target.builds_anywhere:
                rows.append(_row_without_engine(part.name, target, options.precision))
                continue
            steps.next(f"engine for {target.name}", part.name)
            graph = files[_graph_file(part.name, options.precision)]
            request = EngineRequest(
                part.name, graph, options.precision, target, options.batch_range
            )
            key = part.name, target.compute_capability
            if key not in built:
                built[key] = build_engine(request, options.limits)
            file = f"engines/{target.name}/{part.name}.engine"
            entry = built[key].entry(file, request)
            made[file] = built[key].data
            entries[part.name] = (*entries.get(part.name, ()), entry)
            rows.append(_row_with_engine(part.name, entry, kept.get(part.name, "")))
    return _Engines(made, entries), rows


def _row_without_engine(part: str, target: Target, precision: Precision) -> AuditRow:
    if target.flavour is None:
        return AuditRow(part, target.name, "fp32", "fp32", "ONNX, by ONNX Runtime")
    return AuditRow(
        part,
        target.name,
        precision,
        "",
        "no engine: it must be built on the device with its own TensorRT (flavour 'tensorrt'); "
        "the bundle has the ONNX parts for it",
    )


def _row_with_engine(part: str, entry: Engine, kept: str) -> AuditRow:
    layers = entry.layers_by_precision
    counts = ", ".join(f"{n} {precision}" for precision, n in layers.items())
    achieved = (
        f"mixed: {counts} layers"
        if len(layers) > 1
        else next(iter(layers), "no floating-point layers")
    )
    engine = (
        f"{entry.flavour} {entry.version}, compute capability "
        f"{'/'.join(entry.compute_capabilities)}, {entry.bytes / 1e6:.1f} MB"
    )
    return AuditRow(
        part,
        ", ".join(entry.targets),
        entry.precision_requested,
        achieved,
        f"{engine}; {kept}" if kept else engine,
    )


def _graph_file(part: str, precision: Precision) -> str:
    return f"parts/{part}.{precision}.onnx"


def _manifest(
    task: Task,
    parts: Sequence[ModulePart],
    graphs: Mapping[tuple[str, Precision], onnx.ModelProto],
    engines: Mapping[str, tuple[Engine, ...]],
    parity: Sequence[PartParity],
    files: Mapping[str, bytes],
) -> Manifest:
    size = parts[0].outputs[0].shape[1]
    try:
        return Manifest.model_validate(
            {
                "format_version": FORMAT_VERSION,
                "name": task.name,
                "description": task.description,
                "modalities": task.modalities,
                "parts": tuple(
                    Part(
                        name=part.name,
                        kind=part.kind,
                        modality=part.modality,
                        rate_hz=part.rate_hz,
                        inputs=part.inputs,
                        outputs=part.outputs,
                        state=part.state,
                        dims=dict(part.dims),
                        graphs=tuple(
                            _graph_entry(name, precision, graph)
                            for (name, precision), graph in graphs.items()
                            if name == part.name
                        ),
                        engines=engines.get(part.name, ()),
                    )
                    for part in parts
                ),
                "fusion": Fusion(
                    kind=task.fusion_kind,
                    decision_rate_hz=task.decision_rate_hz,
                    modalities=tuple(part.name for part in parts[:-1]),
                    embedding_size=int(size),
                ),
                "outputs": task.outputs,
                "events": task.events,
                "provenance": task.provenance.model_copy(
                    update={
                        "tools": {
                            **task.provenance.tools,
                            **tool_versions(),
                            **{e.flavour: e.version for row in engines.values() for e in row},
                        }
                    }
                ),
                "parity": tuple(parity),
                "accuracy": dict(task.accuracy),
                "files": {name: file_entry(files[name]) for name in sorted(files)},
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise FusedgeError(
            f"the task's description does not fit the model: {first['msg']}",
            where=".".join(str(step) for step in first["loc"]) or task.name,
        ) from None


def _graph_entry(part: str, precision: Precision, graph: onnx.ModelProto) -> Graph:
    return Graph(
        file=_graph_file(part, precision),
        precision=precision,
        opset=graph.opset_import[0].version,
        nodes=len(graph.graph.node),
        precision_by_node=dict.fromkeys(float16_nodes(graph), "fp16"),
    )
