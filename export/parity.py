"""The parity gate: ONNX Runtime against the original module. A difference beyond the tolerance fails.

The measure is `|a - b| / max(1, max|b|)`, the maximum taken over one row (one element of the batch)
of an output: absolute for small outputs, relative to the row for large ones. Input beyond the channels'
limits is compared at fp32; a reduced precision must only stay finite on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import onnxruntime, open_session
from fusedge.bundle.manifest import PartParity, Precision, TensorSpec
from fusedge.export.cases import Array, Case, StreamCase, non_finite
from fusedge.export.part import ModulePart

END_TO_END = "end-to-end"

# For logits. Measured over the driving model and a small GRU model, at every batch and kind of input:
# float32 differs by up to 5e-7, also after 50 steps, float16 by up to 3e-3.
TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2}
# How many times that for inner values, by role. Saturated input cancels in a variance, so that float32
# embeddings were seen to differ by 9e-5 and a normalised feature in a state by 7e-4, while the logits
# agree. A wrong state shows in the next embedding, which 50 steps with state fed back judge.
_SLACK: Mapping[str, Mapping[str, float]] = {
    "fp32": {"embedding": 5.0, "state_out": 50.0},
    "fp16": {"state_out": 10.0},
}


class PartSession:
    """A part's ONNX graph at a precision, on ONNX Runtime's CPU provider."""

    def __init__(self, part: ModulePart, graph: bytes, precision: Precision) -> None:
        self.part, self.precision = part, precision
        self._names = [spec.name for spec in part.outputs]
        try:
            self._session = open_session(graph, precision)
        except Exception as error:  # ONNX Runtime has a dozen kinds
            raise FusedgeError(
                f"ONNX Runtime does not load the graph: {error}", where=f"part {part.name}"
            ) from None

    def run(self, feeds: Mapping[str, Array], case: str) -> list[Array]:
        """The outputs in the order of the part's specs."""
        try:
            outputs: list[Array] = self._session.run(self._names, dict(feeds))
        except Exception as error:
            raise FusedgeError(
                f"ONNX Runtime fails: {error}",
                where=f"part {self.part.name}, case {case}",
                hint="a shape may have been fixed in tracing; keep the batch out of constants",
            ) from None
        return outputs


class _Worst(NamedTuple):
    """The difference that comes closest to its tolerance."""

    absolute: float
    relative: float
    tolerance: float


class _Comparison:
    """Collects the differences of one part at one precision; the first one too large is an error."""

    def __init__(self, part: str, precision: Precision, tolerance: float) -> None:
        self._part, self._precision, self._tolerance = part, precision, tolerance
        self._cases = 0
        self._worst: dict[str, _Worst] = {}
        self._rows: dict[str, int] = {}
        self._agreeing: dict[str, int] = {}

    def add(
        self, case: str, specs: Sequence[TensorSpec], wanted: Sequence[Array], got: Sequence[Array]
    ) -> None:
        """Compare the outputs of a case, each `[B, ...]`; raises FusedgeError."""
        self.check_finite(case, specs, wanted, got)
        for spec, expected, actual in zip(specs, wanted, got, strict=True):
            self._compare(self._place(case, spec), spec, expected, actual)

    def check_finite(
        self, case: str, specs: Sequence[TensorSpec], wanted: Sequence[Array], got: Sequence[Array]
    ) -> None:
        """Compare the shapes alone, and refuse NaN and Inf; raises FusedgeError."""
        self._cases += 1
        for spec, expected, actual in zip(specs, wanted, got, strict=True):
            where = self._place(case, spec)
            if actual.shape != expected.shape:
                raise FusedgeError(f"shape {actual.shape}, not {expected.shape}", where=where)
            if not np.isfinite(actual).all():
                raise FusedgeError(
                    f"ONNX gives {non_finite(actual)} where the original module is finite",
                    where=where,
                    hint=self._hint(),
                )

    def _place(self, case: str, spec: TensorSpec) -> str:
        return f"part {self._part} {self._precision}, case {case}, output {spec.name}"

    def _compare(self, where: str, spec: TensorSpec, expected: Array, actual: Array) -> None:
        rows = len(expected)
        difference = np.abs(actual.astype(np.float64) - expected).reshape(rows, -1)
        scale = np.maximum(1.0, np.abs(expected).reshape(rows, -1).max(axis=1))
        relative = difference.max(axis=1) / scale
        worst = int(relative.argmax())
        tolerance = self._tolerance * _SLACK[self._precision].get(spec.role, 1.0)
        found = _Worst(float(difference[worst].max()), float(relative[worst]), tolerance)
        if found.relative > tolerance:
            raise FusedgeError(
                f"{found.relative:.2e} off the original module, tolerance {tolerance:.0e} "
                f"(absolute {found.absolute:.2e}, row {worst})",
                where=where,
                hint=self._hint(),
            )
        if found.relative >= self._worst.get(spec.name, found).relative:
            self._worst[spec.name] = found
        if spec.role == "logits":
            same = int((actual.argmax(axis=1) == expected.argmax(axis=1)).sum())
            self._rows[spec.name] = self._rows.get(spec.name, 0) + rows
            self._agreeing[spec.name] = self._agreeing.get(spec.name, 0) + same

    def _hint(self) -> str:
        if self._precision == "fp32":
            return "an operation is exported with another meaning; bisect the module by parts"
        return "export at fp32, or scale what the part computes into the range of fp16"

    def measured(self) -> list[PartParity]:
        """For the manifest: of each output the greatest difference."""
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
                run_by=f"onnxruntime {onnxruntime().__version__} cpu",
            )
            for name, worst in self._worst.items()
        ]


def check_part(session: PartSession, cases: Sequence[Case], tolerance: float) -> list[PartParity]:
    """Run a part's cases; raises FusedgeError with part, case, output and how far off."""
    precision = session.precision
    comparison = _Comparison(session.part.name, precision, tolerance)
    for case in cases:
        outputs = session.run(case.feeds, case.name)
        if precision != "fp32" and not case.within_limits:
            comparison.check_finite(case.name, session.part.outputs, case.expected, outputs)
        else:
            comparison.add(case.name, session.part.outputs, case.expected, outputs)
    return comparison.measured()


def check_stream(
    sessions: Sequence[PartSession], cases: Sequence[StreamCase], tolerance: float
) -> list[PartParity]:
    """Run the parts together, step by step with their state fed back, against whole sequences."""
    comparison = _Comparison(END_TO_END, sessions[0].precision, tolerance)
    encoders, head = sessions[:-1], sessions[-1]
    for case in cases:
        batch = case.presence.shape[1]
        states: dict[str, dict[str, Array]] = {
            encoder.part.name: {
                spec.name: zeros.numpy()
                for spec, zeros in zip(encoder.part.inputs, encoder.part.zeros(batch), strict=True)
                if spec.role == "state_in"
            }
            for encoder in encoders
        }
        for step in range(len(case.presence)):
            name = f"{case.name}, at step {step + 1}"
            feeds = {"presence": case.presence[step], "age": case.age[step]}
            for encoder in encoders:
                modality = encoder.part.name
                embedding, *state = encoder.run(
                    {
                        "window": case.windows[modality][step],
                        "valid": case.valid[modality][step],
                        **states[modality],
                    },
                    name,
                )
                wanted = case.embeddings[modality][step]
                comparison.add(
                    f"{name}, encoder {modality}", encoder.part.outputs[:1], [wanted], [embedding]
                )
                states[modality] = dict(zip(states[modality], state, strict=True))
                feeds[f"embedding.{modality}"] = embedding
            expected = [logits[step] for logits in case.logits]
            comparison.add(name, head.part.outputs, expected, head.run(feeds, name))
    return comparison.measured()
