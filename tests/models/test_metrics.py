"""Measures against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fusedge.models.metrics import (
    calibration_error,
    confusion,
    f1_by_class,
    macro_f1,
    majority_vote,
    matched_events,
    vote_accuracy,
)

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 2, 2])


def test_confusion_has_a_row_for_each_true_class() -> None:
    assert confusion(LABELS, PREDICTIONS, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_f1_by_hand() -> None:
    assert f1_by_class(confusion(LABELS, PREDICTIONS, 3)) == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert macro_f1(LABELS, PREDICTIONS, 3) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_a_class_that_never_occurs_has_f1_zero() -> None:
    assert f1_by_class(confusion(np.array([0, 0]), np.array([0, 0]), 2)).tolist() == [1, 0]


def test_majority_vote_takes_the_most_frequent() -> None:
    assert majority_vote(np.array([2, 1, 2]), 3) == 2
    trips = [(2, np.array([2, 1, 2])), (0, np.array([1, 1, 0]))]
    assert vote_accuracy(trips, 3) == (1, 2)


def test_calibration_error_by_hand() -> None:
    # Confidence 0.9 and always right, confidence 0.6 and always wrong: gaps 0.1 and 0.6.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 1])
    assert calibration_error(labels, probabilities) == pytest.approx(0.35)


def test_events_match_once_each_and_only_nearby() -> None:
    assert matched_events([1.0, 1.5, 10.0], [1.2, 9.0, 30.0], within_s=2.0) == 2
    assert matched_events([5.0], [4.0, 6.0], within_s=2.0) == 1
    assert matched_events([4.0, 6.0], [5.5, 7.5], within_s=2.0) == 2
    assert matched_events([], [1.0], within_s=2.0) == 0
