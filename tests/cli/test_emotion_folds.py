"""A fold of RAVDESS: what its networks are calibrated by, and that no take of its own has a part in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusedge.cli.emotion_folds import OpenFold
from fusedge.models.emotion.action_units import (
    ACTION_UNITS,
    ActionUnitClassifier,
    ActionUnitConfig,
)
from fusedge.models.emotion.model import load_emotion
from fusedge.models.emotion.protocols import PAIRED, PairedOpinions, PairedRecipe
from fusedge.models.emotion.takes import Take, fold_of
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig

ACTORS = (2, 3, 10)  # of the first three folds
VOICE = VoiceConfig(channels=(4, 4, 4), width=8, judgements=4)


def takes_of(mislabelled: int | None = None) -> list[Take]:
    """Ten of each label by each actor; of one fold, if any, some under wrong labels."""
    silence, units = np.zeros(10, np.float32), np.zeros(ACTION_UNITS, np.float32)
    return [
        Take(
            f"{actor} {n}",
            (n + 3 * (n < 30 and fold_of(actor) == mislabelled)) % 8,
            actor,
            silence,
            units,
        )
        for actor in ACTORS
        for n in range(80)
    ]


def said_of(actors: int, loudness: float) -> torch.Tensor:
    """Logits `[N, 1, 8]` that lean to the right label, alike for each actor."""
    said = torch.randn(80, 1, 8, generator=torch.Generator().manual_seed(9))
    said[torch.arange(80), 0, torch.arange(80) % 8] += 2
    return loudness * torch.cat([said] * actors)


def folds(folder: Path, mislabelled: int | None = None) -> list[OpenFold]:
    """Three; the ensemble of each speaks the more quietly the higher its number is, like 1, 1/2 and 1/3."""
    takes, made = takes_of(mislabelled), []
    for number in range(3):
        own = [take for take in takes if fold_of(take.actor) == number]
        rest = [take for take in takes if fold_of(take.actor) != number]
        of_own, of_rest = said_of(1, 2.0 / (1 + number)), said_of(2, 2.0)
        opinions = [
            PairedOpinions(some, dict.fromkeys(PAIRED, said))
            for some, said in ((rest, of_rest), (own, of_own))
        ]
        torch.manual_seed(1)
        sources = {
            "action_units": ActionUnitClassifier(ActionUnitConfig()),
            "voice": VoiceClassifier(VOICE).eval(),
        }
        made.append(
            OpenFold(
                number,
                folder / str(number),
                "key",
                own,
                len(rest),
                *opinions,
                sources,
                0.7,
                PairedRecipe(),
                0,
                lambda line: None,
            )
        )
    return made


def sharper(made: list[OpenFold]) -> list[float]:
    return [fold.sharpened([o for o in made if o is not fold]).sharper for fold in made]


def test_how_sure_an_ensemble_is_the_other_folds_tell(tmp_path: Path) -> None:
    found = sharper(folds(tmp_path))
    # The mean is the geometric one.
    assert found == pytest.approx([6**-0.5, 3**-0.5, 2**-0.5], rel=0.04)
    assert folds(tmp_path)[0].sharpened([]).sharper == 0.7


@pytest.mark.parametrize("fold", range(3))
def test_no_take_of_a_fold_has_a_part_in_how_it_is_calibrated(tmp_path: Path, fold: int) -> None:
    right, wrong = (folds(tmp_path, which) for which in (None, fold))
    assert sharper(wrong)[fold] == sharper(right)[fold]
    for other in {0, 1, 2} - {fold}:  # whose own takes it has a part in, and they in it
        assert wrong[other].sharpness(fold) == right[other].sharpness(fold)
        assert wrong[fold].sharpness(other) != right[fold].sharpness(other)


@pytest.mark.parametrize("names", [("voice",), PAIRED])
def test_a_voice_of_all_members_is_as_much_surer_than_one_as_was_found(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    fold = folds(tmp_path)[1]
    fold.folder.mkdir()
    found = [
        load_emotion(replace(fold, sharper=factor).weights(names))[0].encoder("voice").temperature
        for factor in (1.0, 0.5)
    ]
    assert float(found[1] / found[0]) == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("damage", ["none", "cut off", "altered"])
def test_a_network_that_was_damaged_is_fitted_again(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    fold = replace(folds(tmp_path)[1], say=said.append)
    fold.folder.mkdir()
    path = fold.weights(("voice",))
    whole = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(whole[:-100])
    elif damage == "altered":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said.clear()
    assert fold.weights(("voice",)) == path and path.read_bytes() == whole
    assert bool(said) == (damage != "none")
