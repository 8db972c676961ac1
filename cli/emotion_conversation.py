"""Conversations of the task `emotion` for its evaluation: are labels that are emitted steady and prompt?

There are no long and lively recordings of one person with known emotions here. So takes of one actor are
played one after the other as one session, each emotion once before any comes again, and no two alike in a
row. What is silent at the ends of takes are the pauses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.models.emotion.labels import VOICE_LABELS, places
from fusedge.models.emotion.takes import Take
from fusedge.models.emotion.task import DECISION_RATE_HZ

ROUNDS = 4  # of all emotions, 2 minutes: RAVDESS has four neutral takes of an actor
NOTHING = -1  # in the place of a label, where a decision has none

Said = Mapping[str, NDArray[Any]]


def conversations(takes: Sequence[Take]) -> list[list[Take]]:
    """Of each actor the takes of one conversation, in an order that is always the same."""
    return [
        list(itertools.chain.from_iterable(_rounds([t for t in takes if t.actor == actor], actor)))
        for actor in sorted({take.actor for take in takes})
    ]


def _rounds(takes: Sequence[Take], actor: int) -> Iterator[list[Take]]:
    random = np.random.default_rng(actor)
    left: dict[int, list[Take]] = {}
    for place in random.permutation(len(takes)):
        left.setdefault(takes[place].label, []).append(takes[place])
    before = None
    for _ in range(ROUNDS):
        labels = [int(label) for label in random.permutation(sorted(left)) if left[int(label)]]
        if labels in ([], [before]):
            return
        if labels[0] == before:
            labels.append(labels.pop(0))
        yield [left[label].pop() for label in labels]
        before = labels[-1]


def truth_of(takes: Sequence[Take]) -> NDArray[np.int64]:
    """The place in `LABELS` of each take's emotion, int64 `[N]`."""
    return np.array(places(VOICE_LABELS))[[take.label for take in takes]]


def conversation_figures(folds: Sequence[Said]) -> dict[str, Any]:
    """How steady and how prompt labels were in conversations (see Player.conversations), all together.

    `changes_per_minute` of the `emitted` label, of the `momentary` one (the most probable at a tick) and of
    the `true` one: how often a label follows another one, pauses left out, over all the time. `decided` is
    the share of decisions with a label, and `right_of_time` the share of those in which it is that of the
    take that plays. Of all takes the share that `became_right`: at any time from its start on, after
    `seconds_to_right` (the median of those); and the share that is `right_at_end`: at the last decision
    with a label before the next take begins.
    """
    changes = dict.fromkeys(("emitted", "momentary", "true"), 0)
    ticks = decided = right_ticks = right_at_end = takes = 0
    waits_s: list[float] = []
    for fold in folds:
        for session in np.unique(fold["session"]):
            said = {name: values[fold["session"] == session] for name, values in fold.items()}
            emitted, truth = said["emitted"], said["truth"]
            right = emitted == truth
            ticks, decided = ticks + len(right), decided + int((emitted != NOTHING).sum())
            right_ticks += int(right.sum())
            labels = {"emitted": emitted, "momentary": _momentary(said), "true": truth}
            for name, values in labels.items():
                changes[name] += label_changes(values)
            for take in np.unique(said["take"]):
                own = said["take"] == take
                last = emitted[own & (emitted != NOTHING)][-1:]
                takes, right_at_end = takes + 1, right_at_end + int((last == truth[own][0]).sum())
                waits_s += said["since_s"][own & right][:1].tolist()
    minutes = ticks / (60 * DECISION_RATE_HZ)
    return {
        "minutes": minutes,
        "takes": takes,
        "decided": decided / ticks,
        "changes_per_minute": {name: count / minutes for name, count in changes.items()},
        "right_of_time": right_ticks / max(1, decided),
        "became_right": len(waits_s) / takes,
        "seconds_to_right": float(np.median(waits_s)) if waits_s else None,
        "right_at_end": right_at_end / takes,
    }


def _momentary(said: Said) -> NDArray[np.int64]:
    """The most probable label of each tick alone, int64 `[T]`."""
    probabilities = said["probabilities"]
    nothing = np.isnan(probabilities[:, 0])
    return np.where(nothing, NOTHING, np.nan_to_num(probabilities).argmax(axis=1))


def label_changes(labels: NDArray[np.int64]) -> int:
    """How often a label follows another one; where there is none in between does not matter."""
    there = labels[labels != NOTHING]
    return int((there[1:] != there[:-1]).sum())
