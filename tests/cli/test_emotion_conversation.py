"""Conversations are lively, and their figures are what one would count by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fusedge.cli.emotion_conversation import (
    NOTHING,
    ROUNDS,
    conversation_figures,
    conversations,
    label_changes,
)
from fusedge.models.emotion.labels import LABELS, VOICE_LABELS
from fusedge.models.emotion.takes import Take

SAD, HAPPY, CALM = (LABELS.index(label) for label in ("sad", "happy", "calm"))


def takes_of(actor: int, counts: dict[int, int]) -> list[Take]:
    sound, units = np.zeros(16_000, np.float32), np.zeros(35, np.float32)
    return [
        Take(f"{label}-{number}-{actor}", label, actor, sound, units)
        for label, count in counts.items()
        for number in range(count)
    ]


def test_each_emotion_comes_once_in_a_round_and_no_two_alike_follow_each_other() -> None:
    everything = dict.fromkeys(range(len(VOICE_LABELS)), 8)
    takes = [take for actor in range(1, 31) for take in takes_of(actor, everything)]
    talks = conversations(takes)
    assert [talk[0].actor for talk in talks] == list(range(1, 31))
    for talk in talks:
        labels = [take.label for take in talk]
        assert len({take.name for take in talk}) == ROUNDS * len(VOICE_LABELS) == len(talk)
        assert len({take.actor for take in talk}) == 1
        for first in range(0, len(talk), len(VOICE_LABELS)):
            assert set(labels[first : first + len(VOICE_LABELS)]) == set(everything)
        assert all(a != b for a, b in itertools.pairwise(labels))
    assert len({tuple(take.label for take in talk) for talk in talks}) == len(talks)
    again = conversations(takes)
    assert [[take.name for take in talk] for talk in again] == [
        [take.name for take in talk] for talk in talks
    ]


def test_what_there_is_little_of_comes_less_often_and_nothing_twice_in_a_row() -> None:
    for actor in range(1, 31):
        (talk,) = conversations(takes_of(actor, {0: 1, 4: 2, 6: 9}))
        labels = [take.label for take in talk]
        assert (labels.count(0), labels.count(4)) == (1, 2)
        assert len(set(labels[:3])) == 3 and len(set(labels[3:5])) == 2
        assert all(a != b for a, b in itertools.pairwise(labels))


def told(take: str, emitted: str, truth: str, momentary: str = "") -> dict[str, Any]:
    """A session of 10 ticks a second; a letter a tick: s(ad), h(appy), c(alm), or - for no label."""
    numbers = {"s": SAD, "h": HAPPY, "c": CALM, "-": NOTHING}
    places = np.array([int(number) for number in take])
    momentary_labels = [numbers[letter] for letter in momentary or emitted]
    probabilities = np.full((len(take), len(LABELS)), np.nan)
    for row, label in zip(probabilities, momentary_labels, strict=True):
        if label != NOTHING:
            row[:] = 0.0
            row[label] = 1.0
    first = np.array([take.index(number) for number in take])
    return {
        "session": np.zeros(len(take), np.int64),
        "take": places,
        "since_s": (np.arange(len(take)) - first + 1) / 10,
        "truth": np.array([numbers[letter] for letter in truth]),
        "emitted": np.array([numbers[letter] for letter in emitted]),
        "probabilities": probabilities,
    }


def test_figures_are_counted_by_hand() -> None:
    one = told(
        take="000000111111",
        truth="sssssshhhhhh",
        emitted="--hhss-shhhs",
        momentary="--hsss-hshhs",
    )
    two = told(take="00001111", truth="cccchhhh", emitted="ssss----")
    two["session"] += 1
    minutes = 20 / 600
    assert conversation_figures([one, two]) == {
        "minutes": pytest.approx(minutes),
        "takes": 4,
        "decided": 13 / 20,
        "changes_per_minute": {
            "emitted": pytest.approx(3 / minutes),  # h to s, over the pause none, s to h, h to s
            "momentary": pytest.approx(5 / minutes),
            "true": pytest.approx(2 / minutes),  # and none from one session to the next
        },
        "right_of_time": 5 / 13,
        "became_right": 2 / 4,
        "seconds_to_right": pytest.approx((0.5 + 0.3) / 2),
        "right_at_end": 1 / 4,
    }
    joined = {name: np.concatenate([one[name], two[name]]) for name in one}
    assert conversation_figures([joined]) == conversation_figures([one, two])


def test_where_nothing_is_ever_decided_nothing_is_right() -> None:
    figures = conversation_figures([told(take="0011", truth="sshh", emitted="----")])
    assert figures["seconds_to_right"] is None
    assert figures["decided"] == figures["right_of_time"] == figures["right_at_end"] == 0


def test_a_label_that_comes_back_after_a_pause_has_not_changed() -> None:
    assert label_changes(np.array([SAD, SAD, NOTHING, SAD, CALM, NOTHING, HAPPY])) == 2
    assert label_changes(np.array([NOTHING, SAD, NOTHING])) == 0
