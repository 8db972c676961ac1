"""The engines of an export: one for each part, for all targets that can be built for here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Engine, GraphPrecision
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.tensorrt_api import EngineOptions, check_installed
from fusedge.export.audit import AuditRow
from fusedge.export.cache import Cache
from fusedge.export.engine import BuildLimits, BuiltEngine, EngineRequest, build_engine
from fusedge.export.part import ModulePart
from fusedge.export.precision import graph_precision, reduced_nodes
from fusedge.export.progress import Steps


@dataclass
class Engines:
    """Engines by file and by part, what became of each wish, and how long each build took."""

    files: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, tuple[Engine, ...]] = field(default_factory=dict)
    rows: list[AuditRow] = field(default_factory=list)
    built: list[tuple[EngineRequest, BuiltEngine]] = field(default_factory=list)


def check_targets(targets: Sequence[Target]) -> None:
    """Fail now rather than after minutes of work: MissingExtraError where a builder is not installed."""
    for flavour in {target.flavour for target in targets if target.builds_anywhere}:
        if flavour is not None:
            check_installed(flavour)


def build_engines(
    parts: Sequence[ModulePart],
    graphs: Mapping[str, bytes],
    precision: GraphPrecision,
    targets: Sequence[Target],
    options: EngineOptions,
    limits: BuildLimits,
    cache: Cache,
    steps: Steps,
) -> Engines:
    """One engine a part for all targets that build anywhere; the others get a row that says why not.

    Raises FusedgeError where a build fails: which part, which of the targets, which node.
    """
    engines = Engines()
    here = tuple(target for target in targets if target.builds_anywhere)
    for part in parts:
        for target in targets:
            if not target.builds_anywhere:
                engines.rows.append(
                    _row_without_engine(part.name, target, precision, graphs[part.name])
                )
        if not here:
            continue
        steps.next("engine", part.name)
        request = EngineRequest(part.name, graphs[part.name], precision, here, part.dims, options)
        built = _build(request, limits, cache)
        entry = built.entry(request.file, request)
        engines.files[request.file] = built.data
        engines.entries[part.name] = (entry,)
        engines.built.append((request, built))
        engines.rows.append(_row_with_engine(part.name, entry, graphs[part.name]))
    return engines


def _build(request: EngineRequest, limits: BuildLimits, cache: Cache) -> BuiltEngine:
    try:
        return build_engine(request, limits, cache)
    except FusedgeError:
        for target in request.targets if len(request.targets) > 1 else ():
            alone = EngineRequest(**{**vars(request), "targets": (target,)})
            build_engine(alone, limits, cache)  # the one that fails is the one to name
        raise


def _row_without_engine(
    part: str, target: Target, precision: GraphPrecision, graph: bytes
) -> AuditRow:
    if target.flavour is None:
        achieved = graph_precision(onnx.load_model_from_string(graph))
        return AuditRow(part, target.name, precision, achieved, "ONNX, by ONNX Runtime")
    return AuditRow(
        part,
        target.name,
        precision,
        "",
        "no engine yet: `fusedge build BUNDLE --target local` on the device builds it from the ONNX parts",
    )


def _row_with_engine(part: str, entry: Engine, graph: bytes) -> AuditRow:
    layers = entry.layers_by_precision
    counts = ", ".join(f"{n} {precision}" for precision, n in layers.items())
    achieved = (
        f"mixed: {counts} layers"
        if len(layers) > 1
        else next(iter(layers), "no floating-point layers")
    )
    model = onnx.load_model_from_string(graph)
    notes = [
        f"{entry.flavour} {entry.version}, compute capability "
        f"{'/'.join(entry.compute_capabilities)}, {entry.bytes / 1e6:.1f} MB"
    ]
    if entry.precision_requested not in ("fp32", "mixed"):
        reduced = len(reduced_nodes(model))
        notes.append(
            f"{reduced} of {len(model.graph.node)} nodes asked for {entry.precision_requested}"
        )
    notes += [f"repaired: {repair}" for repair in entry.repairs]
    return AuditRow(
        part, ", ".join(entry.targets), entry.precision_requested, achieved, "; ".join(notes)
    )
