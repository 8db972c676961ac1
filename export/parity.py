"""The parity gate: ONNX Runtime against the original module. A difference beyond the tolerance fails.

The measure is `|a - b| / max(1, max|b|)`, the maximum taken over one row (one element of the batch)
of an output: absolute for small outputs, relative to the row for large ones. For embeddings and a plain
model's outputs that are below 1 in every case, their largest value stands for the 1. Logits are also
bound absolutely, for probabilities follow from their differences. Of whole numbers and truth values
the share that is equal is measured, over all cases. Input beyond the channels' limits is compared at
fp32; a reduced precision must only stay finite on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import onnxruntime, open_session
from fusedge.bundle.manifest import GraphPrecision, PartParity, TensorSpec
from fusedge.export.cases import (
    Array,
    Case,
    Feeds,
    StreamCase,
    floors_of,
    next_state,
    non_finite,
)
from fusedge.export.divergence import Reference, first_divergence
from fusedge.export.emulate import emulated
from fusedge.export.part import ModulePart

END_TO_END = "end-to-end"


class Policy(NamedTuple):
    """How far off a precision may be, and for inner values how many times that, by role.

    `tolerance` is that of logits and of a plain model's outputs. Of whole numbers and truth values
    `unequal` times that is the share that may be another one.
    """

    tolerance: float
    slack: Mapping[str, float]
    unequal: float = 1.0


POLICIES: Mapping[GraphPrecision, Policy] = {
    # Measured over the driving model and a small GRU model, at every batch and kind of input: logits
    # differ by up to 5e-7, also after 50 steps. Saturated input cancels in a variance, so that embeddings
    # were seen to differ by 9e-5 and a normalised feature in a state by 7e-4, while the logits agree. A
    # wrong state shows in the next embedding, which 50 steps with state fed back judge.
    # A label is another one where two scores are equal but for their rounding.
    "fp32": Policy(1e-4, {"embedding": 5.0, "state_out": 50.0}, unequal=10.0),
    # Logits were seen to differ by up to 3e-3: 11 bits of mantissa.
    "fp16": Policy(1e-2, {"state_out": 10.0}),
    # 8 bits of mantissa: 8 times the rounding of fp16.
    "bf16": Policy(8e-2, {"state_out": 10.0}),
    # Chosen by a budget on the task's own metric, which judges them. Here they must be finite and not
    # farther off than an output is large; how often the largest logit is the same one is reported.
    "int8": Policy(1.0, {}),
    "mixed": Policy(1.0, {}),
}
TOLERANCE: Mapping[GraphPrecision, float] = {name: p.tolerance for name, p in POLICIES.items()}
# Logits larger than this are held to what is absolutely allowed at this size: at fp16 0.1, which moves a
# probability by at most 0.05.
_LARGEST_SCALE = 10.0


class PartSession:
    """A part's ONNX graph at a precision, on ONNX Runtime's CPU provider.

    Of reduced precisions that provider lacks most kernels, or computes in float32 from node to node, so
    that an overflow passes unseen: they are emulated, which `run_by` says. `reference` gives what the graph
    was made from; a failure then names the node at which it first differs from that.
    """

    def __init__(
        self,
        part: ModulePart,
        graph: bytes,
        precision: GraphPrecision,
        reference: Callable[[], Reference] | None = None,
    ) -> None:
        self.part, self.precision = part, precision
        self.run_by = f"onnxruntime {onnxruntime().__version__} cpu"
        self._names = [spec.name for spec in part.outputs]
        self._graph, self._reference = graph, reference
        if precision != "fp32":
            given = onnx.load_model_from_string(graph)
            shown = emulated(given)
            if shown is not given:
                self._graph = shown.SerializeToString()
                self.run_by += ", reduced precision emulated in float32"
        try:
            if (
                precision == "fp16"
            ):  # the runtime may load it as it is, which bfloat16 never does here
                open_session(graph, precision)
            self._session = open_session(self._graph, precision)
        except Exception as error:  # ONNX Runtime has a dozen kinds
            raise FusedgeError(
                f"ONNX Runtime does not load the graph: {error}", where=f"part {part.name}"
            ) from None

    def run(self, feeds: Feeds, case: str) -> list[Array]:
        """The outputs in the order of the part's specs."""
        try:
            outputs: list[Array] = self._session.run(self._names, dict(feeds))
        except Exception as error:
            raise FusedgeError(
                f"ONNX Runtime fails: {error}",
                where=f"part {self.part.name}, case {case}",
                hint="a shape may have been fixed in tracing; keep free dims out of constants",
            ) from None
        return outputs

    def located(self, error: FusedgeError, feeds: Feeds, tolerance: float) -> FusedgeError:
        """The error with the node at which the graph first differs on these inputs."""
        if self._reference is None:
            return error
        try:
            graph = onnx.load_model_from_string(self._graph)
            found = first_divergence(self._reference(), graph, feeds, tolerance)
        except FusedgeError as failed:
            return FusedgeError(error.what, where=error.where, hint=f"no node named: {failed.what}")
        if found is None and self.precision != "fp32":  # small values are off without effect
            return error
        if found is None:
            return FusedgeError(
                f"{error.what}; no node of the graph differs from what it was made from",
                where=error.where,
                hint="tracing changed the module itself: look for Python values that vary, and randomness",
            )
        return FusedgeError(
            f"{error.what}; {found.text()}",
            where=f"{error.where}, node {found.node}",
            hint=error.hint,
        )


class _Worst(NamedTuple):
    """The difference that comes closest to its tolerance."""

    absolute: float
    relative: float
    tolerance: float


@dataclass
class _Exact:
    """Of an output of whole numbers or truth values, over all cases: how many are equal."""

    equal: int = 0
    total: int = 0
    largest: float = 0.0
    worst_share: float = 1.0
    worst_case: str = ""

    @property
    def off(self) -> float:
        """The share that is not equal."""
        return (self.total - self.equal) / self.total


class _Comparison:
    """Collects the differences of one part at one precision; the first one too large is an error."""

    def __init__(
        self,
        part: str,
        precision: GraphPrecision,
        tolerance: float,
        run_by: str,
        floors: Mapping[str, float],
    ) -> None:
        self._part, self._precision, self._tolerance = part, precision, tolerance
        self._run_by, self._floors = run_by, floors
        self._cases = 0
        self._worst: dict[str, _Worst] = {}
        self._exact: dict[str, _Exact] = {}
        self._rows: dict[str, int] = {}
        self._agreeing: dict[str, int] = {}

    def add(
        self,
        case: str,
        specs: Sequence[TensorSpec],
        wanted: Sequence[Array],
        got: Sequence[Array],
        within_limits: bool = True,
    ) -> None:
        """Compare the outputs of a case, each `[B, ...]`; raises FusedgeError."""
        self._cases += 1
        for spec, expected, actual in zip(specs, wanted, got, strict=True):
            where = self._where(case, spec.name)
            if actual.shape != expected.shape:
                raise FusedgeError(f"shape {actual.shape}, not {expected.shape}", where=where)
            if not np.isfinite(actual).all():
                raise FusedgeError(
                    f"ONNX gives {non_finite(actual)} where the original module is finite",
                    where=where,
                    hint=self._hint(),
                )
            if not np.issubdtype(expected.dtype, np.floating):
                if within_limits:
                    self._count(case, spec, expected, actual)
            elif within_limits or self._precision == "fp32":
                self._compare(where, spec, expected, actual, within_limits)

    def _where(self, case: str, output: str) -> str:
        return f"part {self._part} {self._precision}, case {case}, output {output}"

    def _count(self, case: str, spec: TensorSpec, expected: Array, actual: Array) -> None:
        counted = self._exact.setdefault(spec.name, _Exact())
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        share = float((difference == 0).mean())
        if share < counted.worst_share:
            counted.worst_share, counted.worst_case = share, case
        counted.equal += int((difference == 0).sum())
        counted.total += difference.size
        counted.largest = max(counted.largest, float(difference.max()))

    def unequal(self) -> tuple[str, FusedgeError] | None:
        """The case with most values that are not equal, if they are too many over all cases."""
        allowed = self._allowed_unequal()
        for name, counted in self._exact.items():
            share = counted.off
            if share > allowed:
                return counted.worst_case, FusedgeError(
                    f"{share:.1%} of {counted.total} values are not those of the original module, "
                    f"tolerance {allowed:.1%} (largest difference {counted.largest:g})",
                    where=self._where(counted.worst_case, name),
                    hint=self._hint(),
                )
        return None

    def _allowed_unequal(self) -> float:
        return min(1.0, self._tolerance * POLICIES[self._precision].unequal)

    def _compare(
        self, where: str, spec: TensorSpec, expected: Array, actual: Array, within_limits: bool
    ) -> None:
        rows = len(expected)
        wanted = expected.astype(np.float64).reshape(rows, -1)
        difference = np.abs(actual.astype(np.float64).reshape(rows, -1) - wanted).max(axis=1)
        floor = self._floors.get(spec.name, 1.0)
        relative = difference / np.maximum(floor, np.abs(wanted).max(axis=1))
        tolerance = self._tolerance * POLICIES[self._precision].slack.get(spec.role, 1.0)
        worst = int(relative.argmax())
        if relative[worst] > tolerance:
            raise FusedgeError(
                f"{relative[worst]:.2e} off the original module, tolerance {tolerance:.0e} "
                f"(absolute {difference[worst]:.2e}, row {worst})",
                where=where,
                hint=self._hint(),
            )
        limit = tolerance * _LARGEST_SCALE
        if spec.role == "logits" and within_limits and difference.max() > limit:
            raise FusedgeError(
                f"{difference.max():.2e} off the original module, absolute tolerance {limit:.0e} "
                f"(row {int(difference.argmax())})",
                where=where,
                hint="a model with smaller logits holds it; " + self._hint(),
            )
        found = _Worst(float(difference[worst]), float(relative[worst]), tolerance)
        if found.relative >= self._worst.get(spec.name, found).relative:
            self._worst[spec.name] = found
        if _is_scores(spec, expected):
            same = int((actual.argmax(axis=1) == expected.argmax(axis=1)).sum())
            self._rows[spec.name] = self._rows.get(spec.name, 0) + rows
            self._agreeing[spec.name] = self._agreeing.get(spec.name, 0) + same

    def _hint(self) -> str:
        if self._precision == "fp32":
            return "an operation is exported with another meaning: write it otherwise in the module"
        return (
            "export at fp32, or search with --precision auto, or scale what the part computes into "
            "the precision's range"
        )

    def measured(self) -> list[PartParity]:
        """For the manifest: of each output the greatest difference, or the share that is not equal."""
        return [
            PartParity(
                part=self._part,
                precision=self._precision,
                output=name,
                cases=self._cases,
                max_absolute=worst.absolute,
                max_relative=worst.relative,
                argmax_agreement=(
                    self._agreeing[name] / self._rows[name] if name in self._rows else None
                ),
                tolerance=worst.tolerance,
                run_by=self._run_by,
            )
            for name, worst in self._worst.items()
        ] + [
            PartParity(
                part=self._part,
                precision=self._precision,
                output=name,
                cases=self._cases,
                max_absolute=exact.largest,
                max_relative=exact.off,
                argmax_agreement=exact.equal / exact.total,
                tolerance=self._allowed_unequal(),
                run_by=self._run_by,
            )
            for name, exact in self._exact.items()
        ]


def _is_scores(spec: TensorSpec, values: Array) -> bool:
    """Whether the largest of a row says something: logits, and what may be such of a plain model."""
    matrix = values.ndim == 2 and values.shape[1] > 1 and values.dtype == np.float32
    return spec.role == "logits" or (spec.role == "output" and matrix)


def check_part(session: PartSession, cases: Sequence[Case], tolerance: float) -> list[PartParity]:
    """Run a part's cases; raises FusedgeError with part, case, output, node and how far off."""
    part = session.part
    within = [case.expected for case in cases if case.within_limits]
    floors = floors_of(part.outputs, within)
    comparison = _Comparison(part.name, session.precision, tolerance, session.run_by, floors)
    for case in cases:
        feeds = case.feeds
        outputs = session.run(feeds, case.name)
        try:
            comparison.add(case.name, part.outputs, case.expected, outputs, case.within_limits)
        except FusedgeError as error:
            raise session.located(error, feeds, tolerance) from None
    if (found := comparison.unequal()) is not None:
        worst = next(case for case in cases if case.name == found[0])
        raise session.located(found[1], worst.feeds, tolerance)
    return comparison.measured()


def check_stream(
    sessions: Sequence[PartSession], cases: Sequence[StreamCase], tolerance: float
) -> list[PartParity]:
    """Run the parts together and alone, step by step with state fed back, against whole sequences.

    The rows have the parts' precision, or `mixed` where they differ.
    """
    precisions = dict.fromkeys(session.precision for session in sessions)
    kept = {s.part.name: [_named(s.part, spec) for spec in s.part.outputs] for s in sessions}
    floors: dict[str, float] = {}
    for name, specs in kept.items():
        floors |= floors_of(specs, [c.expected[name] for c in cases if name in c.expected])
    comparison = _Comparison(
        END_TO_END,
        next(iter(precisions)) if len(precisions) == 1 else "mixed",
        tolerance,
        max(
            (session.run_by for session in sessions), key=len
        ),  # with what was emulated, if anything
        floors,
    )
    for case in cases:
        batch, steps = case.size
        running = [session for session in sessions if session.part.name in case.inputs]
        states: dict[str, Feeds] = {s.part.name: s.part.initial_state(batch) for s in running}
        for step in range(steps):
            name = f"{case.name}, at step {step + 1}"
            made: dict[str, Array] = {}  # the embeddings, by the name that the head knows them by
            for session in running:
                part = session.part
                taken = made if part.kind == "head" else {}
                own = {key: array[step] for key, array in case.inputs[part.name].items()}
                given = {**taken, **own, **states[part.name]}
                outputs = session.run(given, name)
                states[part.name] = next_state(part, outputs)
                wanted = [output[step] for output in case.expected[part.name]]
                specs = kept[part.name][: len(wanted)]
                if part.kind == "encoder":
                    made[specs[0].name] = outputs[0]
                try:
                    comparison.add(name, specs, wanted, outputs[: len(specs)])
                except FusedgeError as error:
                    raise session.located(error, given, tolerance) from None
    return comparison.measured()


def _named(part: ModulePart, spec: TensorSpec) -> TensorSpec:
    """An encoder's embedding under the name of the head's input."""
    if spec.role != "embedding":
        return spec
    return spec.model_copy(update={"name": f"embedding.{part.name}"})
