"""RAVDESS with actors left out: what a head is shown, what is held out from it, and the figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusedge.models.emotion.action_units import (
    ActionUnitClassifier,
    ActionUnitConfig,
    UnitRecipe,
    honest_units,
    train_units,
    units_of,
)
from fusedge.models.emotion.head_training import (
    Batch,
    HeadRecipe,
    HeldOut,
    fused_logits,
    joint_temperature,
    train_head,
)
from fusedge.models.emotion.labels import LABELS, VOICE_LABELS
from fusedge.models.emotion.protocols import (
    PAIRED,
    PairedOpinions,
    inner_judgements,
    paired_model,
    score,
)
from fusedge.models.emotion.takes import ACTION_UNITS, Take, fold_of
from fusedge.models.emotion.training import Source
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig

ACTORS = (3, 10, 8)  # of the second, third and fourth fold
SOURCES: dict[str, Source] = {
    "action_units": ActionUnitClassifier(ActionUnitConfig()),
    "voice": VoiceClassifier(VoiceConfig(channels=(4, 4, 4), width=8, judgements=4)).eval(),
}


def some_takes() -> list[Take]:
    """Every label by every actor; action units are those of the label, and of the group of actors."""
    takes = []
    for actor in ACTORS:
        for label in range(8):
            units = np.eye(ACTION_UNITS, dtype=np.float32)[5 + label]
            units[15 + fold_of(actor)] = 1
            takes.append(Take(f"{actor} {label}", label, actor, np.zeros(10, np.float32), units))
    return takes


def opinions() -> PairedOpinions:
    """Action units say which actor it is, a voice at the last hop which fold, and both the label."""
    takes = some_takes()
    units, voice = torch.zeros(len(takes), 1, 8), torch.zeros(len(takes), 2, 8)
    for number, take in enumerate(takes):
        units[number] = 10 * take.actor + torch.eye(8)[take.label]
        voice[number, -1] = 10 * fold_of(take.actor) + torch.eye(8)[take.label]
    return PairedOpinions(takes, {"action_units": units, "voice": voice})


def tens(said: torch.Tensor) -> set[int]:
    return {int(value) // 10 for value in said.amin(dim=1).tolist()}


def test_takes_are_shown_with_both_modalities_and_with_each_alone() -> None:
    batch = opinions().shown(PAIRED)
    assert batch.presence.tolist() == [[1, 1]] * 24 + [[1, 0]] * 24 + [[0, 1]] * 24
    for said in batch.said:
        assert said.shape == (72, 8) and torch.equal(said[:24], said[48:])
    names = [LABELS[place] for place in batch.target[24:48].argmax(dim=1).tolist()]
    assert names == [VOICE_LABELS[take.label] for take in some_takes()]
    alone = opinions().shown(("voice",))
    assert alone.presence.tolist() == [[1]] * 24 and len(alone.said) == 1
    assert (alone.said[0] >= 10).all()  # the last hop, at which it has been said


def test_a_group_of_actors_is_judged_by_a_head_that_has_not_met_it() -> None:
    held_out = []
    for examples, batch in opinions().splits(PAIRED):
        seen, heard = (tens(samples.said[:, -1]) for samples in examples.modalities)
        (own,) = tens(batch.said[0])
        assert seen == set(ACTORS) - {own}
        assert heard == {fold_of(actor) for actor in seen}
        assert tens(batch.said[1]) == {fold_of(own)}
        held_out.append(own)
    assert sorted(held_out) == sorted(ACTORS)


@pytest.mark.parametrize("names", [PAIRED, ("voice",), ("action_units",)])
def test_inner_judgements_are_of_all_takes_once_for_each_presence(names: tuple[str, ...]) -> None:
    made = opinions()
    model = paired_model(made, names, SOURCES, "sum")
    judged = inner_judgements(model, made, HeadRecipe(steps=2, batch=8))
    assert model.modalities == names
    assert sum(len(one.logits) for one in judged) == 24 * (3 if len(names) == 2 else 1)
    assert all(torch.isfinite(one.logits).all() for one in judged)


def test_it_does_not_matter_how_loudly_classifiers_speak() -> None:
    """A head that learns from opinions in other units is nearly the same."""
    takes, said = some_takes(), calibrated(3)
    logits = []
    for factor in (1.0, 8.0):
        made = PairedOpinions(takes, dict.fromkeys(PAIRED, factor * said))
        model = paired_model(made, ("voice",), SOURCES, "sum")
        judged = inner_judgements(model, made, HeadRecipe(steps=30, batch=16))
        logits.append(torch.cat([one.logits for one in judged]))
    torch.testing.assert_close(logits[0], logits[1], atol=0.05, rtol=0.05)


def calibrated(seed: int) -> torch.Tensor:
    """Logits `[24, 1, 8]` of the takes' labels, right in half of the cases."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor([take.label for take in some_takes()])
    said = torch.randn(24, 1, 8, generator=random)
    said[torch.arange(24), 0, labels] += 2.0
    return said


def test_the_late_product_multiplies_what_classifiers_say() -> None:
    said = {"action_units": 5 * calibrated(1), "voice": calibrated(2)}
    made = PairedOpinions(some_takes(), said)
    model = paired_model(made, PAIRED, SOURCES, "late_product")
    train_head(model, made.examples(PAIRED), HeadRecipe())
    batch = made.shown(PAIRED)
    chances = fused_logits(model, batch.said, batch.presence).softmax(dim=1)
    assert chances[:, LABELS.index("contempt")].max() < 0.01  # nobody has ever shown it
    known = chances[:, [LABELS.index(label) for label in VOICE_LABELS]].reshape(3, 24, 8)
    both, units, voice = known / known.sum(dim=2, keepdim=True)
    frequent = torch.bincount(torch.tensor([take.label for take in some_takes()])) / 24
    product = units * voice / frequent
    torch.testing.assert_close(both, product / product.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    # Each as it was said but for a temperature, which is five times as high for what was said louder.
    for chance, (name, factor) in zip(
        (units, voice), (("action_units", 5), ("voice", 1)), strict=True
    ):
        unsure = chance.amin(dim=1) > 2e-4  # the others are held back
        loudness = (chance.log().std(dim=1) / said[name][:, 0].std(dim=1))[unsure]
        assert len(loudness) > 12
        torch.testing.assert_close(loudness, loudness[:1].expand_as(loudness), atol=1e-4, rtol=1e-3)
        assert 0.3 < factor * loudness[0] < 3


def test_action_units_of_an_actor_are_judged_by_who_has_not_seen_the_group() -> None:
    """Of takes that show their group of actors, a classifier knows nothing if it has not met the group."""
    takes = some_takes()
    # By group another order of the labels, so that what one group shows misleads about the others.
    mixed = [replace(take, label=(take.label + 3 * fold_of(take.actor)) % 8) for take in takes]
    labels = torch.tensor([take.label for take in mixed])
    for number, take in enumerate(mixed):
        take.units[:] = np.eye(ACTION_UNITS)[8 * (fold_of(take.actor) - 1) + number % 8]
    recipe = UnitRecipe(noise=0.0)
    met = train_units(mixed, recipe, 0)(units_of(mixed)).argmax(dim=1)
    assert (met == labels).all()
    honest = honest_units(mixed, recipe, 0)
    assert honest.shape == (24, 1, 8)
    assert (honest[:, 0].argmax(dim=1) == labels).float().mean() <= 0.25
    assert torch.equal(honest, honest_units(mixed, recipe, 0))


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
    nothing = score(np.array([0, 1]), np.full((2, 9), np.nan), ("neutral", "calm"))
    assert (nothing["accuracy"], nothing["calibration_error"]) == (0.0, None)
