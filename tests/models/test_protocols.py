"""Protocols keep apart what must not be divided, and score what was held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Recording
from fusedge.models.protocols import (
    Judged,
    condition_transfer,
    judge,
    leaky_split,
    leave_one_group_out,
    score,
    subsets,
)
from tests.models.synthetic import recordings


def names(trained_on: Sequence[Recording]) -> frozenset[str]:
    return frozenset(recording.name for recording in trained_on)


def always_first(_: frozenset[str], recording: Recording) -> Judged:
    probabilities = np.tile([0.8, 0.1, 0.1], (10, 1))
    label = ("normal", "drowsy", "aggressive").index(recording.label)
    return Judged(recording.name, recording.group, label, probabilities)


def test_a_group_is_never_in_training_and_test() -> None:
    folds = leave_one_group_out(recordings(), names)
    assert [fold.held_out for fold in folds] == ["A", "B"]
    for fold in folds:
        assert {r.group for r in fold.test} == {fold.held_out}
        assert not any(name.startswith(fold.held_out) for name in fold.model)
    assert len(judge(folds, always_first)) == len(recordings())


def test_one_group_cannot_be_held_out() -> None:
    with pytest.raises(FusedgeError, match="two drivers"):
        leave_one_group_out([r for r in recordings() if r.group == "A"], names)


def test_transfer_trains_on_one_condition_and_tests_on_the_other() -> None:
    fold = condition_transfer(recordings(), "motorway", "secondary", names)
    assert {r.condition for r in fold.test} == {"secondary"}
    assert fold.model.isdisjoint(names(fold.test))
    with pytest.raises(FusedgeError, match="no recordings on gravel"):
        condition_transfer(recordings(), "motorway", "gravel", names)


def test_score_pools_decisions() -> None:
    result = score(judge(leave_one_group_out(recordings(), names), always_first))
    assert result.macro_f1 == pytest.approx(0.5 / 3)
    assert (result.trips_right, result.trips, result.decisions) == (2, 6, 60)
    assert result.confusion == ((20, 0, 0), (20, 0, 0), (20, 0, 0))
    assert result.by_group == pytest.approx({"A": 0.5 / 3, "B": 0.5 / 3})


def test_subsets_are_all_but_the_empty_one() -> None:
    assert subsets("abc") == [*map(tuple, ("a", "b", "c", "ab", "ac", "bc", "abc"))]


def test_leaky_split_holds_out_a_share_of_every_recording() -> None:
    hidden = leaky_split([1000, 2000], 0.1, seed=0)
    assert [len(mask) for mask in hidden] == [1000, 2000]
    assert [mask.mean() for mask in hidden] == pytest.approx([0.1, 0.1], abs=0.03)
