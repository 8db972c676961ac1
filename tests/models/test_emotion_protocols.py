"""RAVDESS with actors left out: what a head is shown, what is held out from it, and the figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusedge.models.emotion.action_units import ACTION_UNITS
from fusedge.models.emotion.head_training import Batch, HeadRecipe, HeldOut, joint_temperature
from fusedge.models.emotion.labels import LABELS, VOICE_LABELS
from fusedge.models.emotion.protocols import (
    PAIRED,
    PairedOpinions,
    inner_judgements,
    paired_model,
    score,
)
from fusedge.models.emotion.takes import Take, fold_of
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig

ACTORS = (3, 10, 8)  # of the second, third and fourth fold
VOICE = VoiceClassifier(VoiceConfig(channels=(4, 4, 4), width=8, judgements=4)).eval()


def some_takes() -> list[Take]:
    """Every label by every actor; the first action unit is the actor."""
    takes = []
    for actor in ACTORS:
        for label in range(8):
            units = np.eye(ACTION_UNITS, dtype=np.float32)[5 + label]
            units[0] = actor
            takes.append(Take(f"{actor} {label}", label, actor, np.zeros(10, np.float32), units))
    return takes


def opinions() -> PairedOpinions:
    """At the last hop a voice says which fold the actor is in, and the label."""
    takes = some_takes()
    said = torch.zeros(len(takes), 2, 8)
    for number, take in enumerate(takes):
        said[number, -1] = 10 * fold_of(take.actor) + torch.eye(8)[take.label]
    return PairedOpinions(takes, said)


def test_takes_are_shown_with_both_modalities_and_with_each_alone() -> None:
    batch = opinions().shown(PAIRED)
    assert batch.presence.tolist() == [[1, 1]] * 24 + [[1, 0]] * 24 + [[0, 1]] * 24
    for said, width in zip(batch.said, (ACTION_UNITS, 8), strict=True):
        assert said.shape == (72, width) and torch.equal(said[:24], said[48:])
    names = [LABELS[place] for place in batch.target[24:48].argmax(dim=1).tolist()]
    assert names == [VOICE_LABELS[take.label] for take in some_takes()]
    alone = opinions().shown(("voice",))
    assert alone.presence.tolist() == [[1]] * 24 and len(alone.said) == 1
    assert (alone.said[0] >= 10).all()  # the last hop, at which it has been said


def test_a_group_of_actors_is_judged_by_a_head_that_has_not_met_it() -> None:
    held_out = []
    for examples, batch in opinions().splits(PAIRED):
        seen = set(examples.modalities[0].said[:, 0, 0].tolist())
        heard = set(examples.modalities[1].said[:, -1].amin(dim=1).div(10).floor().tolist())
        (own,) = set(batch.said[0][:, 0].tolist())
        assert seen == set(map(float, ACTORS)) - {own}
        assert heard == {float(fold_of(int(actor))) for actor in seen}
        assert set(batch.said[1].amin(dim=1).div(10).floor().tolist()) == {float(fold_of(int(own)))}
        held_out.append(own)
    assert sorted(held_out) == sorted(map(float, ACTORS))


@pytest.mark.parametrize("names", [PAIRED, ("voice",), ("action_units",)])
def test_inner_judgements_are_of_all_takes_once_for_each_presence(names: tuple[str, ...]) -> None:
    made = opinions()
    model = paired_model(made, names, VOICE, "sum")
    judged = inner_judgements(model, made, HeadRecipe(steps=2, batch=8))
    assert model.modalities == names
    assert sum(len(one.logits) for one in judged) == 24 * (3 if len(names) == 2 else 1)
    assert all(torch.isfinite(one.logits).all() for one in judged)


def test_noise_on_opinions_is_in_their_own_deviations() -> None:
    """A head that learns from opinions in other units is the same, noise and all."""
    takes = some_takes()
    said = torch.randn(24, 1, 8, generator=torch.Generator().manual_seed(3))
    logits = []
    for factor in (1.0, 8.0):
        made = PairedOpinions(takes, factor * said)
        model = paired_model(made, ("voice",), VOICE, "sum")
        judged = inner_judgements(model, made, HeadRecipe(steps=30, batch=16, noise=0.7))
        logits.append(torch.cat([one.logits for one in judged]))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-3)
    quiet = inner_judgements(model, made, HeadRecipe(steps=30, batch=16))
    assert (torch.cat([one.logits for one in quiet]) - logits[1]).abs().max() > 0.01


def test_one_temperature_for_all_is_between_those_of_each() -> None:
    random = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(20_000, 4, generator=random)
    target = torch.eye(4)[torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]]
    batch = Batch((), torch.ones(len(logits), 1), target)
    found = joint_temperature([HeldOut(batch, logits), HeldOut(batch, 4 * logits)])
    assert found == pytest.approx(2, rel=0.06)


def test_what_is_undecided_is_wrong_and_labels_that_the_data_does_not_know_do_not_count() -> None:
    probabilities = np.eye(9)[[0, 0, 1, 8]]
    probabilities[1] = np.nan
    figures = score(np.array([0, 0, 1, 2]), probabilities, ("neutral", "calm", "happy"))
    assert (figures["count"], figures["undecided"], figures["accuracy"]) == (4, 1, 0.5)
    assert figures["recall"] == {"neutral": 0.5, "calm": 1.0, "happy": 0.0}
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["calibration_error"] == pytest.approx(1 / 3)  # sure each time, once wrongly
