"""From parts to proved ONNX graphs: traced, simplified, compared with the original, reduced, compared.

Graphs that were proved once are kept in the cache, with what parity measured, under all that they follow
from: the model's numbers and code, the options, and the versions of the tools.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import onnx

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import GraphPrecision, PartParity, Precision
from fusedge.export.cache import Cache, key_of
from fusedge.export.calibration import Calibration
from fusedge.export.divergence import Reference
from fusedge.export.lower import LOWEST, lower
from fusedge.export.packages import tool_versions
from fusedge.export.parity import TOLERANCE, PartSession, check_part, check_stream
from fusedge.export.part import ModulePart
from fusedge.export.precision import Assignment, reduce_graph, reduced_nodes, uniform_assignments
from fusedge.export.progress import Steps
from fusedge.export.simplify import simplify
from fusedge.export.subject import Answers, Subject
from fusedge.export.trace import OPSETS, Traced, trace_program
from fusedge.models.one_thread import one_thread

DEFAULT_OPSET = OPSETS[0]


@dataclass
class Proved:
    """ONNX graphs of each part at one precision, and what parity measured of them."""

    precision: GraphPrecision
    graphs: dict[str, bytes] = field(default_factory=dict)
    parity: list[PartParity] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """For the cache."""
        return json.dumps(
            {
                "precision": self.precision,
                "graphs": {n: base64.b64encode(g).decode() for n, g in self.graphs.items()},
                "parity": [row.model_dump(mode="json") for row in self.parity],
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Proved:
        """The inverse of `to_bytes`."""
        raw = json.loads(data)
        return cls(
            raw["precision"],
            {name: base64.b64decode(text) for name, text in raw["graphs"].items()},
            [PartParity.model_validate(row) for row in raw["parity"]],
        )


class Prover:
    """Makes the graphs of a subject; nothing that it returns differs beyond its tolerance.

    `tolerance` is the parity gate's, by precision. Raises FusedgeError where a stage fails.
    """

    def __init__(
        self,
        subject: Subject,
        opset: int,
        cache: Cache,
        steps: Steps,
        tolerance: Mapping[GraphPrecision, float] = TOLERANCE,
    ) -> None:
        if not LOWEST <= opset <= OPSETS[-1]:
            raise FusedgeError(f"cannot export at opset {opset}", hint=f"{LOWEST} to {OPSETS[-1]}")
        self._subject, self._opset, self._tolerance = subject, opset, tolerance
        self._cache, self._steps = cache, steps
        self._traced: dict[str, Traced] = {}
        self.full = Proved("fp32")

    def float32(self) -> Proved:
        """Every part as it is."""
        self.full = self._kept("fp32", (), self._float32, 2 * len(self._subject.parts) + 1)
        return self.full

    def uniform(self, precision: Precision, calibrations: Mapping[str, Calibration]) -> Proved:
        """All of every part that can compute at a precision does, unless parity asks to keep some of it.

        A part of which nothing passes stays float32, and at int8 what front ends run, for which there is no
        recorded input. Raises FusedgeError where no node of any part can.
        """
        parts = self._subject.parts if precision != "int8" else self._subject.measured_parts
        reduced = {part.name for part in parts}
        choices: dict[str, list[Assignment]] = {
            name: uniform_assignments(model, precision) if name in reduced else [{}]
            for name, model in self.models.items()
        }
        if not any(assignment for own in choices.values() for assignment in own):
            wants = "Conv, Gemm or MatMul" if precision == "int8" else "node that computes in it"
            raise FusedgeError(
                f"nothing of this model can be {precision}: it has no {wants}",
                where=self._subject.name,
                hint="--precision fp32",
            )
        for own in choices.values():
            if own[-1]:
                own.append({})
        return self._kept(
            precision,
            (_told(calibrations),),
            lambda: self._reduced(precision, choices, calibrations),
            len(choices) + 1,
        )

    def mixed(
        self, assignment: Mapping[str, Assignment], calibrations: Mapping[str, Calibration]
    ) -> Proved:
        """Each node at the precision that is assigned to it."""
        choices = {name: [assignment.get(name, {})] for name in self.full.graphs}
        return self._kept(
            "mixed",
            (_told(calibrations), json.dumps(choices)),
            lambda: self._reduced("mixed", choices, calibrations),
            len(choices) + 1,
        )

    @property
    def models(self) -> dict[str, onnx.ModelProto]:
        """The float32 graphs, which `float32` made."""
        return {n: onnx.load_model_from_string(g) for n, g in self.full.graphs.items()}

    @cached_property
    def _answers(self) -> Answers:
        self._steps.within("reference answers", "model", 0.0)
        with one_thread():
            return self._subject.answer()

    def _kept(
        self,
        precision: GraphPrecision,
        others: Iterable[str],
        make: Callable[[], Proved],
        steps: int,
    ) -> Proved:
        """From the cache where it is there."""
        if self._subject.key is None:
            return make()
        tools = json.dumps([tool_versions(), dict(self._tolerance)], sort_keys=True)
        key = key_of(self._subject.key, str(self._opset), tools, precision, *others)
        found = self._cache.get("graphs", key)
        if found is not None:
            self._steps.skip(steps)
            return Proved.from_bytes(found)
        made = make()
        self._cache.put("graphs", key, made.to_bytes())
        return made

    def _float32(self) -> Proved:
        proved = Proved("fp32")
        for part in self._subject.parts:
            self._steps.next("trace", part.name)
            with one_thread():
                self._traced[part.name] = trace_program(part, max(self._opset, DEFAULT_OPSET))
            graph = simplify(self._traced[part.name].model, part)
            if self._opset < DEFAULT_OPSET:
                graph = lower(graph, part, self._opset)
            proved.graphs[part.name] = graph.SerializeToString(deterministic=True)
        sessions = []
        for part in self._subject.parts:
            self._steps.next("parity", part.name)
            traced = self._traced[part.name]
            session = PartSession(part, proved.graphs[part.name], "fp32", partial(_given, traced))
            proved.parity += self._check(session)
            sessions.append(session)
        self._steps.next("parity", "whole model fp32")
        proved.parity += self._check_together(sessions)
        return proved

    def _reduced(
        self,
        precision: GraphPrecision,
        choices: Mapping[str, list[Assignment]],
        calibrations: Mapping[str, Calibration],
    ) -> Proved:
        """Each part with the first of its assignments that passes, alone and with the others."""
        left = {name: list(own) for name, own in choices.items()}
        fits: dict[str, _Fit] = {}
        for part in self._subject.parts:
            self._steps.next(f"{precision} and parity", part.name)
            fits[part.name] = self._fit(part, precision, left[part.name], calibrations)
        self._steps.next("parity", f"whole model {precision}")
        while True:
            try:
                together = self._check_together([fit.session for fit in fits.values()])
                break
            except FusedgeError as error:
                coarse = [name for name in _coarsest(error, list(left)) if len(left[name]) > 1]
                coarse = coarse or [name for name, own in left.items() if len(own) > 1]
                if not coarse:
                    raise
            for part in self._subject.parts:
                if part.name in coarse:
                    del left[part.name][0]
                    fits[part.name] = self._fit(part, precision, left[part.name], calibrations)
        return Proved(
            precision,
            {name: fit.graph for name, fit in fits.items()},
            [row for fit in fits.values() for row in fit.parity] + together,
        )

    def _fit(
        self,
        part: ModulePart,
        precision: GraphPrecision,
        left: list[Assignment],
        calibrations: Mapping[str, Calibration],
    ) -> _Fit:
        """A part with the first of these assignments that passes; those before it are taken out."""
        model = onnx.load_model_from_string(self.full.graphs[part.name])
        while True:
            graph = reduce_graph(model, part, left[0], calibrations.get(part.name))
            content = (
                graph.SerializeToString(deterministic=True)
                if reduced_nodes(graph)
                else self.full.graphs[part.name]
            )
            session = PartSession(part, content, precision, partial(_given, model))
            try:
                return _Fit(content, session, self._check(session))
            except FusedgeError:
                if len(left) == 1:
                    raise
            del left[0]

    def _check(self, session: PartSession) -> list[PartParity]:
        cases = self._answers.cases[session.part.name]
        return check_part(session, cases, self._tolerance[session.precision])

    def _check_together(self, sessions: list[PartSession]) -> list[PartParity]:
        if not self._answers.streams:
            return []
        return check_stream(sessions, self._answers.streams, self._tolerance[sessions[0].precision])


class _Fit(NamedTuple):
    """A part's graph that passes alone, with what parity measured of it."""

    graph: bytes
    session: PartSession
    parity: list[PartParity]


def _coarsest(error: FusedgeError, parts: list[str]) -> list[str]:
    """The part whose output is off, where the parts run together: an encoder's embedding, or the head's."""
    places = (error.where or "").split(", ")
    return [name for name in parts if f"output embedding.{name}" in places] or parts[-1:]


def _given(reference: Reference) -> Reference:
    return reference


def _told(calibrations: Mapping[str, Calibration]) -> str:
    return json.dumps({name: dict(c.limits) for name, c in sorted(calibrations.items())})
