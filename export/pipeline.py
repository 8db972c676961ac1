"""The whole export: a model taken apart becomes proved graphs, engines and one bundle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fusedge.bundle.archive import Bundle, check_destination, write_bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import GraphPrecision, Precision
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.tensorrt_api import NO_OPTIONS, EngineOptions
from fusedge.export.audit import Audit
from fusedge.export.cache import Cache, key_of
from fusedge.export.packages import needs_extra
from fusedge.export.progress import Progress, Steps

with needs_extra("export", "exporting a model"):
    import onnx
    import onnxscript  # noqa: F401  # torch's exporter needs it, and says so late

    from fusedge.export.assemble import assemble
    from fusedge.export.calibration import Calibration, Method, calibrate
    from fusedge.export.engine import BuildLimits
    from fusedge.export.engines import Engines, build_engines, check_targets
    from fusedge.export.evaluation import Evaluation
    from fusedge.export.graphs import DEFAULT_OPSET, Proved, Prover
    from fusedge.export.lower import LOWEST
    from fusedge.export.parity import TOLERANCE
    from fusedge.export.precision import reducible
    from fusedge.export.precision_search import SearchProblem, SearchResult, search
    from fusedge.export.search_ledger import SearchLedger
    from fusedge.export.speed import CpuSpeed, Feeds, SpeedMeter
    from fusedge.export.subject import Subject
    from fusedge.export.trace import OPSETS

WantedPrecision = Literal["fp32", "fp16", "bf16", "int8", "auto"]
"""`auto` searches: each group of nodes at the fastest precision within the budget."""

SEARCHED: tuple[Precision, ...] = ("int8", "bf16", "fp16")
"""What `auto` tries."""


@dataclass(frozen=True)
class ExportOptions:
    """What to make. A graph at fp32 is always made; engines have `precision`.

    `budget_points`: what int8 and `auto` may lose of the metric, in percentage points. `opset` None takes
    18, for bf16 22 (older ones have no such Conv), or 17 where a target reads no more. `calibration`: how
    int8 chooses its ranges. `tolerance` is the parity gate's for logits and outputs, by precision.
    """

    targets: tuple[str, ...] = ()
    precision: WantedPrecision = "fp16"
    budget_points: float = 0.5
    opset: int | None = None
    calibration: Method = "percentile"
    engine: EngineOptions = NO_OPTIONS
    limits: BuildLimits = field(default_factory=BuildLimits)
    tolerance: Mapping[GraphPrecision, float] = field(default_factory=lambda: TOLERANCE)
    cache: Cache = field(default_factory=lambda: Cache(None))


@dataclass(frozen=True)
class Exported:
    """The bundle as written, what was asked for against what is in it, and what was measured on the way."""

    bundle: Bundle
    audit: Audit
    engines: Engines
    stage_s: Mapping[str, float]
    search: SearchResult | None = None
    metric: tuple[str, float, float] | None = None
    """Of int8 and `auto`: name of the metric, its value at fp32 and at the chosen precision."""
    notes: tuple[str, ...] = ()
    """What else the user should know, a sentence each."""


def export_bundle(
    subject: Subject,
    out: Path,
    options: ExportOptions = ExportOptions(),
    progress: Progress = lambda stage, item, share: None,
    evaluation: Callable[[Mapping[str, bytes]], Evaluation] | None = None,
    speed: Callable[[Mapping[str, bytes], Mapping[str, Feeds]], SpeedMeter] = CpuSpeed,
) -> Exported:
    """Export a model to the bundle `out`: a `.fusedge` file or a folder.

    `evaluation` gives the recorded input that int8 and `auto` need, from the float32 graphs; it is called
    for these alone. `speed` is what `auto` measures with, this machine's CPU unless told otherwise. The
    same subject, options and tools give the same bytes. Raises FusedgeError where a stage fails, a
    difference is beyond its tolerance, or int8 or `auto` loses more than the budget; then, and on
    KeyboardInterrupt, `out` is as it was before.
    """
    return _Export(subject, out, options, progress, evaluation, speed).run()


class _Export:
    def __init__(
        self,
        subject: Subject,
        out: Path,
        options: ExportOptions,
        progress: Progress,
        evaluation: Callable[[Mapping[str, bytes]], Evaluation] | None,
        speed: Callable[[Mapping[str, bytes], Mapping[str, Feeds]], SpeedMeter],
    ) -> None:
        self._subject, self._out, self._options = subject, out, options
        self._progress, self._evaluation, self._speed = progress, evaluation, speed
        self._targets = [find_target(name) for name in dict.fromkeys(options.targets)]
        check_destination(out)
        check_targets(self._targets)
        for target in self._targets:
            if target.max_opset and target.max_opset < LOWEST:
                raise FusedgeError(
                    f"its TensorRT reads opset {target.max_opset} at most, exports have {LOWEST} at least",
                    where=f"target {target.name}",
                    hint="leave it out: the ONNX parts run there with ONNX Runtime",
                )
        if options.precision in ("int8", "auto"):
            if evaluation is None:
                raise FusedgeError(
                    f"precision {options.precision} needs recorded input to measure on",
                    hint="--data FOLDER for a shipped task, --example with many rows for a plain model",
                )
            if not 0 <= options.budget_points < math.inf:
                raise FusedgeError(
                    f"a budget of {options.budget_points} points is not possible",
                    hint="0 or more, and finite",
                )
        count = len(subject.parts)
        built = count if any(target.builds_anywhere for target in self._targets) else 0
        reduced = 0 if options.precision == "fp32" else count + 2
        self._steps = Steps(self._timed, 2 * count + 1 + reduced + built + 1)
        self._stage, self._since = "", time.monotonic()
        self._stage_s: dict[str, float] = {}

    def _timed(self, stage: str, item: str, share: float) -> None:
        """Tell the progress, and note how long the last stage took."""
        now = time.monotonic()
        if self._stage:
            self._stage_s[self._stage] = self._stage_s.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now
        self._progress(stage, item, share)

    def run(self) -> Exported:
        options, subject = self._options, self._subject
        wanted = OPSETS[-1] if options.precision == "bf16" else DEFAULT_OPSET
        limits = [target.max_opset for target in self._targets if target.max_opset]
        opset = options.opset or min([wanted, *limits])
        prover = Prover(subject, opset, options.cache, self._steps, options.tolerance)
        full = prover.float32()
        result, metric = None, None
        chosen = full
        if options.precision == "int8" or options.precision == "auto":  # for mypy
            assert self._evaluation is not None
            chosen, result, metric = self._measured(prover, self._evaluation(full.graphs))
        elif options.precision != "fp32":
            chosen = prover.uniform(options.precision, {})
        notes = self._notes(full, chosen)
        if chosen.precision != "mixed" and chosen.graphs == full.graphs:
            chosen = full
        engines = build_engines(
            subject.parts,
            chosen.graphs,
            chosen.precision,
            self._targets,
            options.engine,
            options.limits,
            options.cache,
            self._steps,
        )
        proved = [full] if chosen is full else [full, chosen]
        self._steps.next("write", self._out.name)
        manifest, files = assemble(subject, proved, engines)
        bundle = write_bundle(self._out, manifest, files)
        self._timed("done", self._out.name, 1.0)
        return Exported(
            bundle,
            Audit(tuple(engines.rows), tuple(row for p in proved for row in p.parity)),
            engines,
            self._stage_s,
            result,
            metric,
            notes,
        )

    def _measured(
        self, prover: Prover, evaluation: Evaluation
    ) -> tuple[Proved, SearchResult | None, tuple[str, float, float]]:
        """What int8 or `auto` makes, with its metric, measured now and within the budget."""
        options, full = self._options, prover.full
        if options.precision == "auto":
            self._steps.next("search", self._subject.name)
        calibrations = self._calibrations(prover, evaluation)
        if options.precision == "auto":
            ledger = self._ledger(full.graphs, evaluation)
            chosen, result = self._searched(prover, evaluation, calibrations, ledger)
            metric = self._metric(evaluation, chosen, result.metric_fp32)
            if result.reused and not self._within_budget(metric):
                ledger.clear()  # it was kept for another metric of the same name
                chosen, result = self._searched(prover, evaluation, calibrations, ledger)
                metric = self._metric(evaluation, chosen, result.metric_fp32)
            hint = "the metric must give the same each time"
        else:
            chosen, result = prover.uniform("int8", calibrations), None
            if chosen.graphs == full.graphs:
                raise FusedgeError(
                    "no part passes parity at int8",
                    where=self._subject.name,
                    hint="--precision fp16 or bf16",
                )
            metric = self._metric(evaluation, chosen, evaluation.metric(full.graphs))
            hint = "--budget POINTS, --calibration entropy, or --precision auto"
        if not self._within_budget(metric):
            name, before, after = metric
            raise FusedgeError(
                f"{name} is {after:.4f} at {options.precision}, {before:.4f} at fp32: "
                f"{(before - after) * 100:.2f} points lost of {options.budget_points:g} allowed",
                where=self._subject.name,
                hint=hint,
            )
        return chosen, result, metric

    def _metric(
        self, evaluation: Evaluation, chosen: Proved, full: float
    ) -> tuple[str, float, float]:
        self._steps.within(evaluation.metric_name, self._subject.name, 0.0)
        return evaluation.metric_name, full, float(evaluation.metric(chosen.graphs))

    def _within_budget(self, metric: tuple[str, float, float]) -> bool:
        return (metric[1] - metric[2]) * 100 <= self._options.budget_points  # never of NaN

    def _notes(self, full: Proved, chosen: Proved) -> tuple[str, ...]:
        notes = []
        wanted = chosen.precision
        measured = {part.name for part in self._subject.measured_parts}
        if wanted != "mixed":
            for name, graph in full.graphs.items():
                if wanted != "fp32" and chosen.graphs[name] == graph:
                    able = reducible(onnx.load_model_from_string(graph), wanted)
                    why = (
                        f"at {wanted} it fails parity" if able else f"nothing of it can be {wanted}"
                    )
                    if wanted == "int8" and name not in measured:
                        why = "there is no recorded input of a front end"
                    notes.append(f"part {name} stays fp32: {why}")
        gpus = [target.name for target in self._targets if target.flavour is not None]
        if self._options.precision == "auto" and gpus and self._speed is CpuSpeed:
            notes.append(
                "speed was measured on the CPU here; which precision is fastest may differ on "
                + ", ".join(gpus)
            )
        if self._subject.key is None and self._options.cache.folder is not None:
            notes.append(f"graphs are not kept for a next time: {self._subject.no_key}")
        return tuple(notes)

    def _calibrations(self, prover: Prover, evaluation: Evaluation) -> dict[str, Calibration]:
        """Of each part with products; the same recorded input and graphs give the same."""
        self._steps.within("calibrate", self._subject.name, 0.0)
        graphs, models = prover.full.graphs, prover.models
        return {
            part.name: calibrate(
                models[part.name], evaluation.feeds(graphs, part.name), self._options.calibration
            )
            for part in self._subject.measured_parts
        }

    def _searched(
        self,
        prover: Prover,
        evaluation: Evaluation,
        calibrations: Mapping[str, Calibration],
        ledger: SearchLedger,
    ) -> tuple[Proved, SearchResult]:
        graphs = prover.full.graphs
        parts = self._subject.measured_parts
        feeds = {part.name: next(iter(evaluation.feeds(graphs, part.name))) for part in parts}
        speed = self._speed(graphs, feeds)
        problem = SearchProblem(
            parts=parts,
            graphs=prover.models,
            calibrations=calibrations,
            metric=evaluation.metric,
            metric_identity=evaluation.identity,
            speed=speed,
            speed_identity=speed.identity,
            precisions=SEARCHED,
            budget_points=self._options.budget_points,
        )
        result = search(problem, ledger, self._steps.within)
        return prover.mixed(result.assignment, calibrations), result

    def _ledger(self, graphs: Mapping[str, bytes], evaluation: Evaluation) -> SearchLedger:
        """On disk in the cache, so that an interrupted search goes on where it was."""
        folder = self._options.cache.folder
        key = key_of(self._subject.key or "", evaluation.identity, *graphs.values())
        return SearchLedger(None if folder is None else folder / "search" / f"{key}.jsonl")
