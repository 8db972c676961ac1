"""Will a bundle run on a target? Every fact that decides it, with the way out of each that is against it.

It says what files and tables tell. Only a build and a run on the device prove it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fusedge.bundle.manifest import Graph, Manifest, Part
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.preflight.dla_checks import dla_findings
from fusedge.devices.targets.preflight.engine_checks import (
    engine_verdict,
    graph_precisions,
    target_findings,
)
from fusedge.devices.targets.preflight.findings import Finding, joined, listed, verdict
from fusedge.devices.targets.preflight.memory_checks import build_findings, memory_findings
from fusedge.devices.targets.preflight.memory_need import MemoryNeed, Route, memory_need
from fusedge.devices.targets.preflight.onnxruntime_checks import (
    onnxruntime_findings,
    processor_findings,
    python_findings,
    runs_on_gpu,
)
from fusedge.devices.targets.preflight.software import Software
from fusedge.devices.targets.work import PartWork


@dataclass(frozen=True)
class Preflight:
    """What was found, the refused first; what is expected to run each part; and the account of memory."""

    findings: tuple[Finding, ...]
    routes: Mapping[str, Route]
    memory: MemoryNeed

    @property
    def will_run(self) -> bool:
        """Whether nothing is refused."""
        return verdict(self.findings)


class _Asked(NamedTuple):
    """The arguments of `preflight`; `engines` says whether there can be engines for the target at all."""

    works: Mapping[tuple[str, str], PartWork]
    target: Target
    software: Software
    backend: str
    precision: str
    dla: bool
    trusted: bool
    engines: bool

    @property
    def onnx_device(self) -> Literal["gpu", "cpu"]:
        return "gpu" if runs_on_gpu(self.target, self.software) else "cpu"


class _Routed(NamedTuple):
    route: Route
    findings: list[Finding]
    to_build: bool = False


def preflight(
    manifest: Manifest,
    works: Mapping[tuple[str, str], PartWork],
    target: Target,
    software: Software,
    *,
    backend: str = "auto",
    precision: str = "auto",
    dla: bool = False,
    streams: int = 1,
    trusted: bool = False,
    host_memory_bytes: float | None = None,
) -> Preflight:
    """Compare a bundle with a target and the software on it; raises nothing.

    `works` has the work of parts by name and precision; of one that is missing, much is unknown. `backend`,
    `precision` and `streams` are as `fusedge run` has them, and `dla` as `fusedge build`. An engine counts
    where it is in the bundle or can be built for the target; with `backend` `auto`, ONNX Runtime is
    expected to run what no engine can. `trusted`: engines may run there though they were built elsewhere.
    `host_memory_bytes`: of the computer that a graphics card is in.
    """
    wanted = backend == "native" or (backend == "auto" and target.flavour is not None)
    against = target_findings(target, software) if wanted else []
    against += dla_findings(target, software, backend) if dla else []
    asked = _Asked(
        works, target, software, backend, precision, dla, trusted, wanted and verdict(against)
    )
    routed = {part.name: _routed(part, asked) for part in manifest.parts}
    for each in routed.values():
        against += each.findings
    # What no engine runs, ONNX Runtime does, unless more was asked for.
    softened = backend == "auto" and not dla
    findings = [_warning(each) if softened else each for each in against]
    routes = {name: each.route for name, each in routed.items()}
    in_onnx = [name for name, route in routes.items() if route.backend == "onnx"]
    if in_onnx and wanted and softened:
        place = "GPU" if asked.onnx_device == "gpu" else "processor"
        sentence = f"Since no engine can run these parts, ONNX Runtime does, on the {place}."
        findings.append(Finding("backend", "warning", sentence, "", tuple(in_onnx)))
    findings += python_findings(target, software, backend)
    for part in manifest.parts:
        findings += _graph_findings(part, routes[part.name], works)
    if backend != "native":
        others = onnxruntime_findings(target, software, backend)
        findings += others if in_onnx else [_warning(each) for each in others]
    memory = memory_need(manifest, works, routes, target, software, streams, host_memory_bytes)
    findings += memory_findings(memory)
    to_build = {name: each.route for name, each in routed.items() if each.to_build}
    findings += build_findings(memory, works, to_build, target)
    return Preflight(tuple(joined(findings)), routes, memory)


def _warning(finding: Finding) -> Finding:
    """What would be refused is not needed."""
    return replace(finding, verdict="warning") if finding.verdict == "refused" else finding


def _routed(part: Part, asked: _Asked) -> _Routed:
    """What is expected to run a part, and what is against an engine for it."""
    graph = _graph(part, asked.precision, part.graphs[-1].precision)
    found: list[Finding] = []
    if graph is not None and asked.engines:
        engine = engine_verdict(
            part,
            graph,
            asked.works.get((part.name, graph.precision)),
            asked.target,
            asked.software,
            precision=asked.precision,
            dla=asked.dla,
            trusted=asked.trusted,
        )
        found = list(engine.findings)
        if engine.possible:
            route = Route("native", engine.precision, "gpu")
            return _Routed(route, found, to_build=not engine.built)
    # Without a GPU it is refused, and the way out is what figures are given for.
    if asked.backend == "native" and asked.target.compute_capability is not None:
        return _Routed(Route("native", graph.precision if graph else asked.precision, "gpu"), found)
    precision = "fp32" if asked.precision == "auto" else asked.precision
    return _Routed(Route("onnx", precision, asked.onnx_device), found)


def _graph(part: Part, precision: str, default: str) -> Graph | None:
    wanted = default if precision == "auto" else precision
    return next((graph for graph in part.graphs if graph.precision == wanted), None)


def _graph_findings(
    part: Part, route: Route, works: Mapping[tuple[str, str], PartWork]
) -> Iterator[Finding]:
    """Of the graph that is to run: whether it is there, can be counted, and runs on a processor."""
    names = (part.name,)
    graph = _graph(part, route.precision, "")
    if graph is None:
        has = listed(each.precision for each in part.graphs)
        sentence = f"The bundle has no {route.precision} graph of this part; it has {has}."
        way = f"ask for one that it has, or export with --precision {route.precision}"
        yield Finding("precision", "refused", sentence, way, names)
        return
    if route.device == "cpu":
        yield from processor_findings(graph_precisions(graph), names)
    work = works.get((part.name, route.precision))
    if work is None:
        return
    if work.foreign:
        sentence = (
            f"ONNX has no {listed(work.foreign)}, so whether anything there runs it is not known."
        )
        way = "try it there: fusedge bench BUNDLE; or write the model with operators of ONNX"
        yield Finding("operators", "unknown", sentence, way, names)
    if work.unknown:
        count = sum(work.unknown.values())
        sentence = (
            f"What {listed(work.unknown)} takes is not known, so {count} "
            f"{'nodes are' if count > 1 else 'node is'} not counted in estimates."
        )
        yield Finding("operators", "warning", sentence, "measure it: fusedge bench BUNDLE", names)
