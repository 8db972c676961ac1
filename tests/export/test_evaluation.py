"""What a plain model's graphs are worth: nobody has said whether its outputs are scores or measures."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fusedge.export.evaluation import RowsEvaluation
from fusedge.export.part import ModulePart
from fusedge.export.plain import plain_part

ROWS = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.0 * x


def graph(part: ModulePart, factor: NDArray[np.float32], offset: NDArray[np.float32]) -> bytes:
    """`x * factor + offset`, as the part's graph."""
    (given,), (made,) = part.inputs, part.outputs
    shape = ["batch", *given.shape[1:]]
    nodes = [
        helper.make_node("Mul", [given.name, "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], [made.name]),
    ]
    ends = [
        [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, shape)] for s in (given, made)
    ]
    numbers = [numpy_helper.from_array(factor, "factor"), numpy_helper.from_array(offset, "offset")]
    opsets = [helper.make_opsetid("", 18)]
    made_graph = helper.make_graph(nodes, "g", *ends, numbers)
    data: bytes = helper.make_model(
        made_graph, opset_imports=opsets, ir_version=8
    ).SerializeToString()
    return data


def agreement(
    factor: list[float],
    offset: list[float],
    other: list[float],
    moved: list[float],
    rows: NDArray[np.float32] = ROWS,
) -> float:
    """Of `rows * other + moved`, when float32 is `rows * factor + offset`."""
    part = plain_part(Same(), {"x": rows})
    numbers = (np.array(values, np.float32) for values in (factor, offset, other, moved))
    full, reduced = (graph(part, next(numbers), next(numbers)) for _ in range(2))
    evaluation = RowsEvaluation(part, {"x": rows}, full)
    assert evaluation.metric({part.name: full}) == 1.0
    return evaluation.metric({part.name: reduced})


ONE = [1.0] * 4
NONE = [0.0] * 4


def test_a_column_that_is_off_counts_though_another_is_always_greatest() -> None:
    pose = [
        22.0,
        0.0,
        0.0,
        0.0,
    ]  # a distance of 22 m is greatest in all rows, whatever the angles are
    assert agreement(ONE, pose, ONE, pose) == 1.0
    assert agreement(ONE, pose, [1.0, 1.0, 0.0, 1.0], pose) < 0.3
    assert agreement(ONE, pose, ONE, [22.0, 0.0, 0.1, 0.0]) == pytest.approx(0.9, abs=0.01)


def test_a_small_column_counts_as_much_as_a_large_one() -> None:
    small = [100.0, 1.0, 1.0, 1e-3]
    assert agreement(small, NONE, [100.0, 1.0, 1.0, 0.0], NONE) < 0.3


def test_a_column_that_does_not_vary_is_judged_by_its_size() -> None:
    factor, offset = [0.0, 1.0, 1.0, 1.0], [-8.0, 0.0, 0.0, 0.0]
    assert agreement(factor, offset, factor, [-8.08, 0, 0, 0]) == pytest.approx(0.99, abs=1e-4)


def test_the_rounding_of_the_largest_column_is_no_loss_in_one_of_zeros() -> None:
    factor = [100.0, 1.0, 1.0, 0.0]
    assert agreement(factor, NONE, factor, [0.0, 0.0, 0.0, 1e-9]) > 0.9999


def test_labels_that_change_count_where_columns_are_nearly_the_same() -> None:
    scores = np.tile(np.array([[1.0, 1.0001]], np.float32), (100, 1)) + ROWS[:100, :1]
    changed = agreement([1, 1], [0, 0], [1, 1], [0.001, 0.0], scores)
    assert changed == 0.0


def test_what_is_not_finite_is_worth_nothing() -> None:
    assert agreement(ONE, NONE, ONE, [float("nan"), 0.0, 0.0, 0.0]) == 0.0


class Label(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


def test_of_labels_the_share_that_is_equal_counts() -> None:
    part = plain_part(Label(), {"x": ROWS})

    def labels(least: bool) -> bytes:
        kind = "ArgMin" if least else "ArgMax"
        node = helper.make_node(kind, ["x"], [part.outputs[0].name], axis=1, keepdims=0)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
        out = helper.make_tensor_value_info(part.outputs[0].name, TensorProto.INT64, ["batch"])
        model = helper.make_model(
            helper.make_graph([node], "g", [x], [out]),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=8,
        )
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    evaluation = RowsEvaluation(part, {"x": ROWS}, labels(False))
    assert evaluation.metric({part.name: labels(False)}) == 1.0
    assert evaluation.metric({part.name: labels(True)}) == 0.0
