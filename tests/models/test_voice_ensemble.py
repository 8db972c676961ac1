"""The voice's ensemble: who has not heard whom, and what is found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusedge.bundle.errors import FusedgeError
from fusedge.cli.options import MOST_SEED
from fusedge.models.emotion import voice_ensemble, voice_training
from fusedge.models.emotion.takes import RATE_HZ, Take, fold_of
from fusedge.models.emotion.voice_encoder import LOG_MEL, VoiceClassifier, VoiceConfig, voice_bytes
from fusedge.models.emotion.voice_ensemble import EnsembleRecipe, Members, train_ensemble
from fusedge.models.emotion.voice_training import Spectrograms, VoiceRecipe, hear, train_member

RECIPE = EnsembleRecipe(
    VoiceConfig(channels=(4, 4, 6), width=8, judgements=6, level=10, long=10),
    VoiceRecipe(steps=1, batch=4, lengths=(10,), later=4),
    whole=1,
    variants=2,
)
ACTORS = (2, 3, 10, 8)  # of the first four folds


def take(number: int) -> Take:
    wave = 0.1 * np.random.default_rng(number).standard_normal(2 * RATE_HZ)
    units = np.zeros(35, np.float32)
    return Take(f"take {number}", number % 8, ACTORS[number // 2], wave.astype(np.float32), units)


TAKES = [take(number) for number in range(8)]


def digest(model: VoiceClassifier) -> int:
    return hash(voice_bytes(model, {}))


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
    members = Members(TAKES, tmp_path, RECIPE)
    members.ensemble(without=frozenset({0}))
    assert heard == [{2, 3}, {1, 3}, {1, 2}, {1, 2, 3}]
    heard.clear()
    members.ensemble(without=frozenset({1}))
    assert heard == [{0, 3}, {0, 2}, {0, 2, 3}]  # the one without 0 and 1 is there already
    heard.clear()
    members.ensemble()
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
    ensemble = Members(TAKES, tmp_path, replace(RECIPE, whole=2)).ensemble(frozenset({0}))
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


def test_other_variants_constants_or_libraries_are_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, trained = TAKES[:4], []

    def untrained(_: object, chosen: object, config: VoiceConfig, *rest: object) -> VoiceClassifier:
        trained.append(chosen)
        return VoiceClassifier(config)

    monkeypatch.setattr(voice_ensemble, "train_member", untrained)
    monkeypatch.setattr(voice_ensemble, "Spectrograms", lambda *_: None)
    train_ensemble(few, tmp_path, RECIPE)
    for changed in (
        (voice_training, "LOG_MEL", replace(LOG_MEL, floor=2e-7)),
        (voice_training, "_VARIANT_SEED", 8),
        (voice_training, "_SPEECH", 0.01),
        (voice_training, "_BEFORE_SPEECH", (0.0, 2.0)),
        (voice_training, "_AFTER_SPEECH", (2.0, 5.0)),
        (torch, "__version__", "99.0.0"),
        (np, "__version__", "99.0.0"),
    ):
        trained.clear()
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            train_ensemble(few, tmp_path, RECIPE)
            train_ensemble(few, tmp_path, RECIPE)
        assert len(trained) == 3, changed
    trained.clear()
    train_ensemble(few, tmp_path, replace(RECIPE, variants=3))
    assert len(trained) == 3


def test_the_greatest_seed_of_the_command_line_is_one_for_every_member(tmp_path: Path) -> None:
    recipe = replace(RECIPE, whole=2).seeded(MOST_SEED)
    assert len(train_ensemble(TAKES[:4], tmp_path, recipe).whole) == 2


def test_spectrograms_are_made_once_for_all_ensembles_of_the_same_takes(
    tmp_path: Path, heard: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def spy(*given: Any) -> Spectrograms:
        made.append(given[-1])
        return Spectrograms(*given)

    monkeypatch.setattr(voice_ensemble, "Spectrograms", spy)
    members = Members(TAKES, tmp_path, RECIPE)
    for group in range(2):
        members.ensemble(without=frozenset({group}))
    assert made == [RECIPE.variants] and len(heard) == 7
    Members(TAKES, tmp_path, RECIPE).ensemble(without=frozenset({0}))
    assert len(made) == 1  # where all members are there, none


def altered(content: bytes) -> bytes:
    """A lowest bit of the last weight, which is still a number."""
    return content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-1], "cannot be read"),
        (lambda content: content[:200], "cannot be read"),
        (lambda content: b"", "cannot be read"),
        (lambda content: b"no weights at all", "cannot be read"),
        (lambda content: content.replace(b"fusedge-voice-1", b"fusedge-other-1"), "is no model"),
        (lambda content: content.replace(b"judgements", b"judgement_"), "disagree"),
        (altered, "the weights were altered"),
    ],
)
def test_a_damaged_member_is_trained_again_and_that_is_said(
    tmp_path: Path,
    heard: list[set[int]],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    few = TAKES[:4]
    first = train_ensemble(few, tmp_path, RECIPE)
    path = tmp_path / "voice-without-1-0.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    heard.clear()
    caplog.clear()
    again = train_ensemble(few, tmp_path, RECIPE)
    assert heard == [{0}] and path.read_bytes() == whole
    assert digest(first.classifier) == digest(again.classifier)
    (record,) = caplog.records
    line = record.getMessage()
    assert str(path) in line and said in line and line.endswith("; it is trained again")
    assert "\n" not in line


def test_a_place_where_no_member_can_be_kept_is_refused_before_it_is_trained(
    tmp_path: Path, heard: list[set[int]]
) -> None:
    (tmp_path / "voice-without-0-0.safetensors").mkdir()
    with pytest.raises(FusedgeError, match="no regular file"):
        train_ensemble(TAKES[:4], tmp_path, RECIPE)
    assert heard == []


def test_takes_of_one_group_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="takes of 1 groups of actors are too few, 2 are needed"):
        train_ensemble(TAKES[:2], tmp_path, RECIPE)
