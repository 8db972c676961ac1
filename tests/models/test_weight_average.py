"""The mean of weights follows them, and soon forgets what they began with."""

from __future__ import annotations

import pytest
import torch

from fusedge.models.weight_average import WeightAverage


@pytest.mark.parametrize(("first", "kept"), [(0, 0.0), (1, 1 / 11)])
def test_a_first_step_forgets_the_beginning_as_its_number_says(first: int, kept: float) -> None:
    weight = torch.ones(3)
    average = WeightAverage({"weight": weight}, 0.995)
    weight.zero_()
    average.update(first)
    torch.testing.assert_close(average.values["weight"], torch.full((3,), kept))


def test_a_late_step_counts_as_little_as_the_decay_says_and_counts_are_taken_as_they_are() -> None:
    tensors = {"weight": torch.ones(3), "steps": torch.tensor(0)}
    average = WeightAverage(tensors, 0.9)
    tensors["weight"].zero_()
    tensors["steps"] += 7
    average.update(10_000)
    torch.testing.assert_close(average.values["weight"], torch.full((3,), 0.9))
    assert average.values["steps"] == 7
