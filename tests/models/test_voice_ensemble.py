"""The voice's ensemble: who has not heard whom, and what is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion import voice_ensemble
from fusedge.models.emotion.takes import RATE_HZ, Take, fold_of
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig
from fusedge.models.emotion.voice_ensemble import EnsembleRecipe, train_ensemble
from fusedge.models.emotion.voice_training import Spectrograms, VoiceRecipe, hear, train_member

RECIPE = EnsembleRecipe(
    VoiceConfig(channels=(4, 4, 6), width=8, judgements=6, level=10, long=10),
    VoiceRecipe(steps=1, batch=4, lengths=(10,), later=4),
    whole=1,
)
ACTORS = (2, 3, 10, 8)  # of the first four folds


def take(number: int) -> Take:
    wave = 0.1 * np.random.default_rng(number).standard_normal(2 * RATE_HZ)
    units = np.zeros(35, np.float32)
    return Take(f"take {number}", number % 8, ACTORS[number // 2], wave.astype(np.float32), units)


TAKES = [take(number) for number in range(8)]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The groups that each member was trained on, as they are trained."""
    groups: list[set[int]] = []

    def spy(data: Spectrograms, chosen: np.ndarray[Any, Any], *rest: Any) -> VoiceClassifier:
        groups.append({fold_of(TAKES[n].actor) for n in chosen})
        return train_member(data, chosen, *rest)

    monkeypatch.setattr(voice_ensemble, "train_member", spy)
    return groups


def test_each_group_has_a_member_that_has_not_heard_it_and_the_rest_have_heard_all(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    ensemble = train_ensemble(TAKES, tmp_path, RECIPE)
    assert heard == [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}, {0, 1, 2, 3}]
    assert (list(ensemble.honest), len(ensemble.whole)) == ([0, 1, 2, 3], 1)


def test_a_group_left_out_is_heard_by_none_and_members_are_shared(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    train_ensemble(TAKES, tmp_path, RECIPE, without=frozenset({0}))
    assert heard == [{2, 3}, {1, 3}, {1, 2}, {1, 2, 3}]
    heard.clear()
    train_ensemble(TAKES, tmp_path, RECIPE, without=frozenset({1}))
    assert heard == [{0, 3}, {0, 2}, {0, 2, 3}]  # the one without 0 and 1 is there already


def test_what_is_said_of_a_take_is_said_by_the_member_that_has_not_heard_the_actor(
    tmp_path: Path,
) -> None:
    ensemble = train_ensemble(TAKES, tmp_path, RECIPE)
    said = ensemble.said_of(TAKES, 3)
    for number, one in enumerate(TAKES):
        member = ensemble.honest[fold_of(one.actor)]
        torch.testing.assert_close(said[number], member(hear(member, one.wave)[-3:]))


def test_the_classifier_says_the_mean_of_all(tmp_path: Path) -> None:
    ensemble = train_ensemble(TAKES, tmp_path, RECIPE)
    members = [*ensemble.honest.values(), *ensemble.whole]
    with torch.no_grad():
        expected = torch.stack([m(hear(m, TAKES[0].wave)) for m in members]).mean(0)
        joined = ensemble.classifier
        found = joined(hear(joined, TAKES[0].wave))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_another_recipe_or_other_takes_are_trained_anew(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    for takes, recipe in (
        (TAKES, RECIPE),
        (TAKES, RECIPE),
        (TAKES, replace(RECIPE, member=replace(RECIPE.member, mixup=0.1))),
        ([replace(TAKES[0], wave=-TAKES[0].wave), *TAKES[1:]], RECIPE),
        ([replace(TAKES[0], label=5), *TAKES[1:]], RECIPE),
    ):
        train_ensemble(takes, tmp_path, recipe)
        heard.append(set())
    assert [len(part) for part in "".join("x" if h else " " for h in heard).split(" ")] == [
        5, 0, 5, 5, 5, 0,
    ]  # fmt: skip


def test_takes_of_one_group_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="1 groups of actors are too few"):
        train_ensemble(TAKES[:2], tmp_path, RECIPE)
