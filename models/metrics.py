"""Measures of classification, in numpy. `labels` and `predictions` are int64 `[N]`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion(labels: Integers, predictions: Integers, classes: int) -> Integers:
    """Counts int64 `[classes, classes]`, a row for each true class."""
    counts = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def f1_by_class(counts: Integers) -> Floats:
    """F1 of each class from a confusion matrix; 0 for a class that is neither true nor predicted."""
    hits = np.diag(counts)
    total = counts.sum(axis=0) + counts.sum(axis=1)
    return np.asarray(2 * hits / np.maximum(total, 1), np.float64)


def macro_f1(labels: Integers, predictions: Integers, classes: int) -> float:
    """Mean of the classes' F1."""
    return float(f1_by_class(confusion(labels, predictions, classes)).mean())


def majority_vote(predictions: Integers, classes: int) -> int:
    """The most frequent class; the lowest of several."""
    return int(np.bincount(predictions, minlength=classes).argmax())


def vote_accuracy(trips: Sequence[tuple[int, Integers]], classes: int) -> tuple[int, int]:
    """Trips `(label, predictions)` whose majority vote is right, and their number."""
    right = sum(majority_vote(predictions, classes) == label for label, predictions in trips)
    return right, len(trips)


def calibration_error(labels: Integers, probabilities: Floats, bins: int = 15) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over equal bins of confidence."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / max(1, len(labels)))


def matched_events(found_s: Sequence[float], reference_s: Sequence[float], within_s: float) -> int:
    """How many reference events have a found one within `within_s` seconds, each used once.

    Both in order of time; the earliest free match is taken, which is a largest matching.
    """
    hits, position = 0, 0
    for reference in reference_s:
        while position < len(found_s) and found_s[position] < reference - within_s:
            position += 1
        if position < len(found_s) and found_s[position] <= reference + within_s:
            hits, position = hits + 1, position + 1
    return hits
