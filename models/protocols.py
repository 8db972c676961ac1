"""Ways to divide recordings into training and test, and the scores they give.

All but `leaky_split` keep what must not be divided (a driver, a road) whole. Training and
prediction are given as functions, so a protocol knows neither network nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Recording
from fusedge.models.metrics import (
    calibration_error,
    confusion,
    f1_by_class,
    macro_f1,
    vote_accuracy,
)

M = TypeVar("M")
TrainFn = Callable[[Sequence[Recording]], M]


@dataclass(frozen=True)
class Judged:
    """Decisions on one recording: the true class, and probabilities float64 `[ticks, K]`."""

    name: str
    group: str
    label: int
    probabilities: NDArray[np.float64]


PredictFn = Callable[[M, Recording], Judged]


@dataclass(frozen=True)
class Score:
    """Figures of pooled decisions; `by_group` is macro-F1 of each held-out group."""

    macro_f1: float
    f1_by_class: tuple[float, ...]
    by_group: Mapping[str, float]
    trips_right: int
    trips: int
    decisions: int
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Fold(Generic[M]):
    """A trained model and the recordings that it has not seen."""

    held_out: str
    model: M
    test: tuple[Recording, ...]


def score(judged: Sequence[Judged]) -> Score:
    """Pool all decisions and compare with the truth."""
    classes = judged[0].probabilities.shape[1]
    decisions = [(trip, trip.probabilities.argmax(axis=1).astype(np.int64)) for trip in judged]

    def pooled(group: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        own = [(t.label, p) for t, p in decisions if group is None or t.group == group]
        labels = np.repeat([label for label, _ in own], [len(p) for _, p in own])
        return labels.astype(np.int64), np.concatenate([p for _, p in own])

    labels, predictions = pooled(None)
    counts = confusion(labels, predictions, classes)
    right, trips = vote_accuracy([(t.label, p) for t, p in decisions if len(p)], classes)
    return Score(
        macro_f1(labels, predictions, classes),
        tuple(float(f) for f in f1_by_class(counts)),
        {g: macro_f1(*pooled(g), classes) for g in sorted({t.group for t in judged})},
        right,
        trips,
        len(labels),
        calibration_error(labels, np.concatenate([t.probabilities for t in judged])),
        tuple(tuple(int(n) for n in row) for row in counts),
    )


def leave_one_group_out(recordings: Sequence[Recording], train_fn: TrainFn[M]) -> list[Fold[M]]:
    """A fold for each group (driver), trained on all others."""
    groups = sorted({recording.group for recording in recordings})
    if len(groups) < 2:
        raise FusedgeError(
            f"recordings of {len(groups)} group cannot be held out one by one",
            hint="leave-one-driver-out needs two drivers or more",
        )
    folds = []
    for group in groups:
        test = tuple(r for r in recordings if r.group == group)
        folds.append(Fold(group, train_fn([r for r in recordings if r.group != group]), test))
    return folds


def condition_transfer(
    recordings: Sequence[Recording], source: str, target: str, train_fn: TrainFn[M]
) -> Fold[M]:
    """Train on one condition (motorway), test on another (secondary road)."""
    train, test = ([r for r in recordings if r.condition == c] for c in (source, target))
    if not train or not test:
        raise FusedgeError(f"no recordings on {target if train else source}")
    return Fold(target, train_fn(train), tuple(test))


def judge(folds: Sequence[Fold[M]], predict_fn: PredictFn[M]) -> list[Judged]:
    """The decisions on every held-out recording."""
    return [predict_fn(fold.model, recording) for fold in folds for recording in fold.test]


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the smallest first."""
    sizes = range(1, len(modalities) + 1)
    return list(chain.from_iterable(combinations(modalities, size) for size in sizes))


def leaky_split(ticks: Sequence[int], share: float, seed: int) -> list[NDArray[np.bool_]]:
    """Random decisions of each recording, held out at that share: LEAKS, for comparison only.

    A held-out window shares up to all but one second with training windows of the same trip, so the
    figure says how well trips are remembered, not how well a style is recognised.
    """
    random = np.random.default_rng(seed)
    return [random.random(count) < share for count in ticks]
