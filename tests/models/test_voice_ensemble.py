"""The voice's ensemble: who has not heard whom, and what is found again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion import voice_ensemble
from fusedge.models.emotion.takes import RATE_HZ, Take, fold_of
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig, voice_bytes
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


def digest(model: VoiceClassifier) -> int:
    return hash(voice_bytes(model, {}))


@pytest.fixture(autouse=True)
def few_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_ensemble, "Spectrograms", partial(Spectrograms, variants=2))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The groups that each member was trained on, as they are trained."""
    groups: list[set[int]] = []
    heard_by: dict[int, set[int]] = {}

    def spy(data: Spectrograms, chosen: np.ndarray[Any, Any], *rest: Any) -> VoiceClassifier:
        groups.append({fold_of(TAKES[n].actor) for n in chosen})
        start = rest[-1]
        assert start is None or heard_by[digest(start)] < groups[-1]
        member = train_member(data, chosen, *rest)
        heard_by[digest(member)] = groups[-1]
        return member

    monkeypatch.setattr(voice_ensemble, "train_member", spy)
    return groups


def test_each_group_has_a_member_that_has_not_heard_it_and_the_rest_have_heard_all(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    ensemble = train_ensemble(TAKES, tmp_path, RECIPE)
    # Each follows the one that it goes on from, if that is not there yet.
    starts = [{2, 3}, {1, 3}, {1, 2}]
    honest = [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]
    assert [groups for groups in heard if groups not in starts] == [*honest, {0, 1, 2, 3}]
    assert [groups for groups in heard if groups in starts] == starts
    assert (list(ensemble.honest), len(ensemble.whole)) == ([0, 1, 2, 3], 1)


def test_a_group_left_out_is_heard_by_none_and_members_are_shared(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    train_ensemble(TAKES, tmp_path, RECIPE, without=frozenset({0}))
    assert heard == [{2, 3}, {1, 3}, {1, 2}, {1, 2, 3}]
    heard.clear()
    train_ensemble(TAKES, tmp_path, RECIPE, without=frozenset({1}))
    assert heard == [{0, 3}, {0, 2}, {0, 2, 3}]  # the one without 0 and 1 is there already
    heard.clear()
    train_ensemble(TAKES, tmp_path, RECIPE)
    assert heard == [{0, 1, 3}, {0, 1, 2}, {0, 1, 2, 3}]  # and those without 0 and without 1


def test_what_a_member_went_on_from_is_not_needed_any_more(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    train_ensemble(TAKES, tmp_path, RECIPE)
    for path in tmp_path.glob("voice-without-?-?-?.safetensors"):
        path.unlink()
    heard.clear()
    train_ensemble(TAKES, tmp_path, RECIPE)
    assert heard == []


def test_whole_members_differ(tmp_path: Path) -> None:
    ensemble = train_ensemble(TAKES, tmp_path, replace(RECIPE, whole=2), without=frozenset({0}))
    first, second = (member.judge.weight for member in ensemble.whole)
    assert not torch.equal(first, second)


def test_takes_of_two_groups_are_enough(tmp_path: Path, heard: list[set[int]]) -> None:
    train_ensemble(TAKES[:4], tmp_path, RECIPE)
    assert heard == [{1}, {0}, {0, 1}]


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
    trained = []
    few, other = TAKES[:4], TAKES[0]
    for takes, recipe in (
        (few, RECIPE),
        (few, RECIPE),
        (few, replace(RECIPE, member=replace(RECIPE.member, mixup=0.1))),
        ([replace(other, wave=-other.wave), *few[1:]], RECIPE),
        ([replace(other, label=5), *few[1:]], RECIPE),
        ([replace(other, units=other.units + 1), *few[1:]], RECIPE),
    ):
        heard.clear()
        train_ensemble(takes, tmp_path, recipe)
        trained.append(len(heard))
    assert trained == [3, 0, 3, 3, 3, 3]


def test_takes_of_one_group_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="1 groups of actors are too few"):
        train_ensemble(TAKES[:2], tmp_path, RECIPE)
