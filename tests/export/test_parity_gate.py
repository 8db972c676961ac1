"""The gate lets a faithful graph pass and names part, case and output of any other."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import GraphPrecision, TensorSpec
from fusedge.export.cases import (
    BATCHES,
    LONGEST,
    STEPS,
    VERY_LONG,
    Case,
    StreamCase,
    part_cases,
    stream_cases,
)
from fusedge.export.parity import TOLERANCE, PartSession, check_part, check_stream
from fusedge.export.part import ModulePart
from fusedge.export.precision import reduce_graph, uniform_assignments
from fusedge.export.simplify import simplify
from fusedge.export.split import split
from fusedge.export.trace import trace
from tests.export.tiny_fusion import MODALITIES, TinyHead, TinyModel

FP32 = TOLERANCE["fp32"]


@pytest.fixture(scope="module")
def cases(parts: tuple[ModulePart, ...]) -> dict[str, list[Case]]:
    return part_cases(parts, MODALITIES)


@pytest.fixture(scope="module")
def streams(model: TinyModel, parts: tuple[ModulePart, ...]) -> list[StreamCase]:
    return stream_cases(model, parts, MODALITIES)


def _sessions(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> list[PartSession]:
    return [PartSession(p, graphs[p.name].SerializeToString(), "fp32") for p in parts]


def test_faithful_parts_pass(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    cases: dict[str, list[Case]],
) -> None:
    for session in _sessions(parts, graphs):
        rows = check_part(session, cases[session.part.name], FP32)
        assert [row.output for row in rows] == [spec.name for spec in session.part.outputs]
        for row in rows:
            assert row.max_relative < 0.2 * row.tolerance
            assert row.cases == len(cases[session.part.name])
            assert row.argmax_agreement == (1.0 if row.part == "head" else None)
            assert row.run_by.startswith("onnxruntime ")


def test_many_steps_with_state_equal_one_sequence(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    streams: list[StreamCase],
) -> None:
    rows = check_stream(_sessions(parts, graphs), streams, FP32)
    assert [row.output for row in rows] == [
        *(f"embedding.{modality.name}" for modality in MODALITIES),
        "logits",
    ]
    for row in rows:
        assert row.part == "end-to-end"
        together = (len(BATCHES) * STEPS + VERY_LONG) * (len(MODALITIES) + 1)
        assert row.cases == together + LONGEST * len(MODALITIES)
        assert row.max_relative < 0.2 * row.tolerance


def _altered(graph: onnx.ModelProto, name: str, change: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    weight = next(w for w in copy.graph.initializer if w.name == name)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += change
    weight.CopyFrom(numpy_helper.from_array(values, name))
    return copy


def test_a_wrong_weight_fails_by_name(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    cases: dict[str, list[Case]],
) -> None:
    wrong = _altered(graphs["imu"], "encoder.out.bias", 0.01)
    session = PartSession(parts[0], wrong.SerializeToString(), "fp32")
    with pytest.raises(FusedgeError) as caught:
        check_part(session, cases["imu"], FP32)
    line = caught.value.line()
    assert line.startswith("part imu fp32, case batch 1, typical input, step 1, output embedding: ")
    assert "tolerance 5e-04" in line


def test_a_graph_that_gives_nan_fails(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    cases: dict[str, list[Case]],
) -> None:
    wrong = _altered(graphs["head"], "head.out.bias", float("nan"))
    session = PartSession(parts[-1], wrong.SerializeToString(), "fp32")
    with pytest.raises(FusedgeError, match=r"part head .*ONNX gives NaN in 1 of 3 values"):
        check_part(session, cases["head"], FP32)


def test_state_that_is_not_fed_back_fails_end_to_end(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    streams: list[StreamCase],
) -> None:
    class Forgets(PartSession):
        def run(self, feeds, case):  # type: ignore[no-untyped-def]
            zeros = {n: a * 0 if n.startswith("state_in") else a for n, a in feeds.items()}
            return super().run(zeros, case)

    sessions = _sessions(parts, graphs)
    sessions[0] = Forgets(parts[0], graphs["imu"].SerializeToString(), "fp32")
    alone = [case for case in streams if len(case.expected) == 1]
    for tried in (streams, alone):
        with pytest.raises(
            FusedgeError, match=r"part end-to-end fp32, case .* at step 2, output embedding\.imu"
        ):
            check_stream(sessions, tried, FP32)


def test_a_graph_fixed_to_one_batch_fails(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    cases: dict[str, list[Case]],
) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graphs["gps"])
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    session = PartSession(parts[1], fixed.SerializeToString(), "fp32")
    with pytest.raises(FusedgeError, match=r"part gps, case batch 2.*ONNX Runtime fails"):
        check_part(session, cases["gps"], FP32)


def test_a_head_that_reads_what_is_absent_fails(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    cases: dict[str, list[Case]],
) -> None:
    class ReadsAll(TinyHead):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return super().forward(*tensors) + 0.1 * tensors[0].sum(dim=1, keepdim=True)

    model = TinyModel()
    model.head = ReadsAll(len(MODALITIES), 3).eval()
    head = split(model, MODALITIES, 1.0)[-1]
    wanted = part_cases((*parts[:-1], head), MODALITIES)["head"]

    class InTorch(PartSession):
        """Runs the module in place of its graph, which would take seconds to trace."""

        def __init__(self) -> None:
            self.part, self.precision, self.run_by = head, "fp32", "torch"
            self._reference = None

        def run(self, feeds, case):  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                return [t.numpy() for t in head.module(*map(torch.from_numpy, feeds.values()))]

    with pytest.raises(FusedgeError, match="present: none, noise for the absent"):
        check_part(InTorch(), wanted, FP32)


def _scores(role: str, width: int = 3) -> ModulePart:
    """A part that gives back what it gets."""

    def spec(name: str, role: str) -> TensorSpec:
        return TensorSpec.model_validate(
            {"name": name, "role": role, "dtype": "float32", "shape": ("batch", width)}
        )

    return ModulePart(
        name="model",
        kind="model",
        modality=None,
        rate_hz=None,
        module=torch.nn.Identity(),
        inputs=(spec("x", "input"),),
        outputs=(spec("y", role),),
    )


def _identity(part: ModulePart, precision: GraphPrecision) -> PartSession:
    shape = part.inputs[0].shape
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)] for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], "same")], "g", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return PartSession(part, model.SerializeToString(), precision)


def _off(part: ModulePart, precision: GraphPrecision, level: float, gap: float, **limits: bool):  # type: ignore[no-untyped-def]
    """Compare rows that are `gap` off at a level."""
    wanted = np.full((2, 3), level, np.float32)
    wanted[:, 1] += 0.5
    given = wanted.copy()
    given[1, 2] += np.float32(gap)
    case = Case("off", lambda: {"x": given}, (wanted,), **limits)
    return check_part(_identity(part, precision), [case], TOLERANCE[precision])


@pytest.mark.parametrize(("precision", "tolerance"), TOLERANCE.items())
def test_each_precision_has_its_tolerance(precision: GraphPrecision, tolerance: float) -> None:
    (row,) = _off(_scores("logits"), precision, 0.0, 0.9 * tolerance)
    assert (row.precision, row.tolerance) == (precision, tolerance)
    assert row.max_absolute == pytest.approx(0.9 * tolerance)
    with pytest.raises(FusedgeError, match=r"case off, output y: .* off the original module"):
        _off(_scores("logits"), precision, 0.0, 2.5 * tolerance)


def test_logits_are_bound_absolutely_too() -> None:
    gap = 50 * TOLERANCE["fp16"]
    assert _off(_scores("output"), "fp16", 1000.0, gap)
    with pytest.raises(FusedgeError, match=r"5\.00e-01 off .*absolute tolerance 1e-01 \(row 1\)"):
        _off(_scores("logits"), "fp16", 1000.0, gap)
    assert _off(_scores("logits"), "fp32", 1000.0, 0.01, within_limits=False)


def test_beyond_the_limits_a_reduced_precision_must_only_be_finite() -> None:
    assert _off(_scores("logits"), "fp16", 0.0, 100.0, within_limits=False) == []
    with pytest.raises(FusedgeError, match="ONNX gives NaN in 1 of 6 values"):
        _off(_scores("logits"), "fp16", 0.0, np.nan, within_limits=False)
    with pytest.raises(FusedgeError, match="off the original module"):
        _off(_scores("logits"), "fp32", 0.0, 100.0, within_limits=False)


def test_agreement_on_the_largest_is_reported_where_it_says_something() -> None:
    (row,) = _off(_scores("logits"), "int8", 0.0, 0.4)
    assert row.argmax_agreement == 1.0
    (row,) = _off(_scores("logits"), "int8", 0.0, 0.9)
    assert row.argmax_agreement == 0.5
    assert row.tolerance == 1.0
    (row,) = _off(_scores("output"), "int8", 0.0, 0.4)
    assert row.argmax_agreement == 1.0
    (row,) = _off(_scores("embedding"), "int8", 0.0, 0.4)
    assert row.argmax_agreement is None


@pytest.mark.parametrize("role", ["output", "embedding"])
def test_small_values_are_compared_by_the_largest_of_all_cases(role: str) -> None:
    part = _scores(role)
    session = _identity(part, "fp16")

    def check(wanted: list[float], given: list[float], largest: float) -> None:
        rows = [np.array([row], np.float32) for row in (wanted, given, [largest, 0, 0])]
        cases = [
            Case("small", lambda: {"x": rows[1]}, (rows[0],)),
            Case("largest", lambda: {"x": rows[2]}, (rows[2],)),
        ]
        check_part(session, cases, TOLERANCE["fp16"])

    check([1e-9, 3e-9, 0], [1e-9, 3.01e-9, 0], 2e-9)
    with pytest.raises(FusedgeError, match=r"1\.00e\+00 off .*\(absolute 3\.00e-09, row 0\)"):
        check([1e-9, 3e-9, 0], [0, 0, 0], 2e-9)
    check([1e-9, 3e-9, 0], [0, 0, 0], 2e-3)
    check([0, 0, 0], [0, 0, 0], 0)


def _labels(dtype: str, precision: GraphPrecision, wrong: int, cases: int = 4):  # type: ignore[no-untyped-def]
    """Compare 250 whole numbers or truth values in each case, some of the first being others."""
    spec = {"role": "output", "dtype": dtype, "shape": ("batch", 25)}
    part = dataclasses.replace(
        _scores("output"),
        inputs=(TensorSpec.model_validate({**spec, "name": "x", "role": "input"}),),
        outputs=(TensorSpec.model_validate({**spec, "name": "y"}),),
    )
    kind = {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}[dtype]
    ends = [[helper.make_tensor_value_info(n, kind, ("batch", 25))] for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], "same")], "g", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    wanted = np.full((10, 25), 30_000).astype(dtype)
    given = wanted.copy()
    given.flat[:wrong] = 29_564 if dtype == "int64" else 0
    tried = [Case("first", lambda: {"x": given}, (wanted,))]
    tried += [Case("other", lambda: {"x": wanted}, (wanted,))] * (cases - 1)
    session = PartSession(part, model.SerializeToString(), precision)
    return check_part(session, tried, TOLERANCE[precision])


@pytest.mark.parametrize("dtype", ["int64", "bool"])
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1), ("fp16", 10), ("bf16", 80)])
def test_of_labels_a_share_must_be_equal(
    dtype: str, precision: GraphPrecision, allowed: int
) -> None:
    (row,) = _labels(dtype, precision, allowed)
    assert row.argmax_agreement == 1 - allowed / 1000
    assert row.max_relative == pytest.approx(allowed / 1000)
    assert row.tolerance == pytest.approx(allowed / 1000)
    assert row.max_absolute == (436 if dtype == "int64" else 1)
    reason = rf"case first, output y: {(allowed + 1) / 10:.1f}% of 1000 values are not those of"
    with pytest.raises(FusedgeError, match=reason):
        _labels(dtype, precision, allowed + 1)


def test_of_labels_at_a_searched_precision_the_share_is_only_told() -> None:
    (row,) = _labels("int64", "int8", 250, cases=1)
    assert (row.argmax_agreement, row.max_relative, row.tolerance) == (0.0, 1.0, 1.0)


def test_parts_at_several_precisions_are_mixed_together(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    streams: list[StreamCase],
) -> None:
    sessions = _sessions(parts, graphs)
    sessions[0] = PartSession(parts[0], graphs["imu"].SerializeToString(), "int8")
    rows = check_stream(sessions, streams[:1], TOLERANCE["mixed"])
    assert {row.precision for row in rows} == {"mixed"}


class _Loud(torch.nn.Module):
    """3e5 on the way, which is beyond float16, and 1 at the end."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loud = tensors[0] * 300 * 1000
        return (loud.sqrt() / 500,)


def test_an_overflow_between_two_nodes_at_fp16_fails_at_its_node() -> None:
    """ONNX Runtime alone would compute from node to node in float32, and a GPU would not."""
    part = dataclasses.replace(_scores("logits"), module=_Loud())
    full = simplify(trace(part), part)
    half = reduce_graph(full, part, uniform_assignments(full, "fp16")[0])
    session = PartSession(part, half.SerializeToString(), "fp16", lambda: full)
    given = np.ones((2, 3), np.float32)
    case = Case("loud", lambda: {"x": given}, (np.full((2, 3), 300_000**0.5 / 500, np.float32),))
    reason = (
        r"output y, node mul.*ONNX gives Inf .*first differs at mul\w* \(Mul, rounded\): NaN or Inf"
    )
    with pytest.raises(FusedgeError, match=reason):
        check_part(session, [case], TOLERANCE["fp16"])
