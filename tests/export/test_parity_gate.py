"""The gate lets a faithful graph pass and names part, case and output of any other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fusedge.bundle.errors import FusedgeError
from fusedge.export.cases import (
    BATCHES,
    KINDS,
    STEPS,
    Case,
    StreamCase,
    make_windows,
    part_cases,
    stream_cases,
)
from fusedge.export.parity import TOLERANCE, PartSession, check_part, check_stream
from fusedge.export.split import ModulePart, split
from tests.export.tiny_fusion import HIDDEN, MODALITIES, TinyEncoder, TinyHead, TinyModel

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
        row = check_part(session, cases[session.part.name], FP32)
        assert row.max_relative < 0.2 * FP32
        assert row.cases == len(cases[session.part.name])
        assert row.argmax_agreement == (1.0 if row.part == "head" else None)


def test_fifty_steps_with_state_equal_one_sequence(
    parts: tuple[ModulePart, ...],
    graphs: dict[str, onnx.ModelProto],
    streams: list[StreamCase],
) -> None:
    row = check_stream(_sessions(parts, graphs), streams, FP32)
    assert row.part == "end-to-end"
    assert row.cases == len(BATCHES) * STEPS * (len(MODALITIES) + 1)
    assert row.max_relative < 0.2 * FP32


def test_every_subset_batch_and_kind_of_input_is_a_case(cases: dict[str, list[Case]]) -> None:
    head = {case.name for case in cases["head"]}
    assert len(cases["head"]) == 2 * 2 ** len(MODALITIES) * len(BATCHES) * len(KINDS)
    assert "batch 7, zero input, present: none" in head
    assert "batch 1, greatest input, present: imu+gps+road" in head
    assert "batch 2, typical input, present: imu+road, noise for the absent" in head
    assert "batch 7, invalid input, step 2" in {case.name for case in cases["gps"]}


def test_streams_go_through_every_subset(streams: list[StreamCase]) -> None:
    for case in streams:
        rows = case.presence.reshape(-1, len(MODALITIES))
        assert len(np.unique(rows, axis=0)) == 2 ** len(MODALITIES)


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_grid_points_are_zero_as_in_the_runtime(kind: str) -> None:
    window, valid = make_windows(MODALITIES[0], kind, (4,), np.random.default_rng(0))
    assert window.shape == valid.shape == (4, 10, 3)
    assert window.dtype == valid.dtype == np.float32
    assert not window[valid == 0].any()
    limits = np.array([channel.maximum for channel in MODALITIES[0].channels])
    assert (np.abs(window) <= limits).all() == (kind != "huge")


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
    with pytest.raises(FusedgeError, match=r"part end-to-end fp32, case .* at step 2, encoder imu"):
        check_stream(sessions, streams, FP32)


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


class _NanWithoutInput(TinyHead):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return super().forward(*tensors) / tensors[-2].sum(dim=1, keepdim=True)


def test_a_module_that_gives_nan_is_blamed_itself() -> None:
    model = TinyModel()
    model.head = _NanWithoutInput(len(MODALITIES), 3).eval()
    with pytest.raises(FusedgeError, match=r"part head, .*present: none.*original module gives"):
        part_cases(split(model, MODALITIES, 1.0), MODALITIES)


class _HiddenMemory(TinyEncoder):
    """Looks at the whole sequence: what it needs is not in its state."""

    def forward(self, window: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding, *states = super().forward(window, *rest)
        return (embedding + window.mean(dim=(1, 2))[:, None, None], *states)


def test_an_encoder_that_remembers_outside_of_its_state_is_refused() -> None:
    model = TinyModel()
    model.encoders["imu"] = _HiddenMemory(MODALITIES[0]).eval()
    parts = split(model, MODALITIES, 1.0)
    with pytest.raises(FusedgeError, match="part imu: the module itself gives another embedding"):
        stream_cases(model, parts, MODALITIES)


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
            self.part, self.precision = head, "fp32"

        def run(self, feeds, case):  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                return [t.numpy() for t in head.module(*map(torch.from_numpy, feeds.values()))]

    with pytest.raises(FusedgeError, match="present: none, noise for the absent"):
        check_part(InTorch(), wanted, FP32)


def test_the_same_model_is_judged_on_the_same_inputs(
    parts: tuple[ModulePart, ...], cases: dict[str, list[Case]]
) -> None:
    again = part_cases(parts, MODALITIES)
    for name, wanted in cases.items():
        for a, b in zip(wanted, again[name], strict=True):
            assert a.name == b.name
            assert all(np.array_equal(a.feeds[key], b.feeds[key]) for key in a.feeds)


def test_the_state_of_the_second_step_is_the_one_that_the_first_left(
    parts: tuple[ModulePart, ...], cases: dict[str, list[Case]]
) -> None:
    first, second = cases["imu"][0], cases["imu"][1]
    assert not first.feeds["state_in.hidden"].any()
    assert np.array_equal(second.feeds["state_in.hidden"], first.expected[2])
    assert second.feeds["state_in.hidden"].shape == (1, HIDDEN)
