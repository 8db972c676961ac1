"""Training of the voice on made-up takes: what is heard where, what comes out twice the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusedge.models.emotion import voice_training
from fusedge.models.emotion.takes import RATE_HZ, Take
from fusedge.models.emotion.voice_encoder import (
    FRAMES,
    LOG_MEL,
    VoiceClassifier,
    VoiceConfig,
)
from fusedge.models.emotion.voice_training import (
    Spectrograms,
    VoiceRecipe,
    Wave,
    disturb,
    hear,
    log_mel_of,
    resampled,
    told_of,
    train_member,
)
from fusedge.models.temperature import fitted_temperature

SMALL = VoiceConfig(channels=(4, 4, 6), width=8, judgements=6, level=10, long=10)
RECIPE = VoiceRecipe(steps=3, batch=8, lengths=(10,), later=4)


def take(number: int, label: int, actor: int) -> Take:
    """A second of silence, one of a tone whose pitch is the label's, one of silence."""
    random = np.random.default_rng(number)
    time_s = np.arange(3 * RATE_HZ) / RATE_HZ
    pitch_hz = (200 if label == 0 else 800) * np.exp(random.uniform(-0.1, 0.1))
    loud = (time_s > 1) & (time_s < 2)
    wave = 0.2 * np.sin(2 * np.pi * pitch_hz * time_s) * loud
    wave += 1e-3 * random.standard_normal(len(wave))
    return Take(f"take {number}", label, actor, wave.astype(np.float32), np.zeros(35, np.float32))


TAKES = [take(number, number % 2, 1 + number // 4) for number in range(12)]
GROUPS = np.array([t.actor for t in TAKES])


@pytest.fixture(scope="module")
def spectrograms() -> Spectrograms:
    return Spectrograms(TAKES, GROUPS.tolist(), variants=2)


def test_the_same_arguments_give_the_same_weights(spectrograms: Spectrograms) -> None:
    chosen = np.arange(8)
    first, again = (train_member(spectrograms, chosen, SMALL, RECIPE) for _ in range(2))
    other = train_member(spectrograms, chosen, SMALL, replace(RECIPE, seed=1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.judge.weight, other.judge.weight)


def test_what_is_held_out_changes_nothing(spectrograms: Spectrograms) -> None:
    chosen = np.flatnonzero(GROUPS != 3)
    changed = Spectrograms(
        [replace(t, wave=t.wave[::-1].copy(), label=7) if t.actor == 3 else t for t in TAKES],
        GROUPS.tolist(),
        variants=2,
    )
    first, second = (train_member(s, chosen, SMALL, RECIPE) for s in (spectrograms, changed))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_two_tones_are_told_apart(spectrograms: Spectrograms) -> None:
    recipe = replace(RECIPE, steps=80, mixup=0.0, learning_rate=2e-2, average_decay=0.9)
    model = train_member(spectrograms, np.arange(8), SMALL, recipe)
    # At the end of the tone: a second later it is forgotten.
    said = [int(model(hear(model, t.wave))[19].argmax()) for t in TAKES[8:]]
    assert said == [t.label for t in TAKES[8:]]


def test_what_else_is_told_is_learnt_from_the_chosen_takes_and_changes_the_encoder_only_by_its_weight(
    spectrograms: Spectrograms,
) -> None:
    def encoder_weights(told: NDArray[np.float32], weight: float) -> Tensor:
        data = copy.copy(spectrograms)
        data.told = told
        recipe = replace(RECIPE, telling=weight)
        return train_member(data, np.arange(8), SMALL, recipe).encoder.narrow.weight

    known = spectrograms.told
    other, unheard = known.copy(), known.copy()
    other[:4, 0] += 3
    unheard[8:] += 100
    assert not torch.equal(encoder_weights(known, 1), encoder_weights(other, 1))
    assert torch.equal(encoder_weights(known, 0), encoder_weights(other, 0))
    assert torch.equal(encoder_weights(known, 1), encoder_weights(unheard, 1))


def test_told_are_action_units_strength_and_sex() -> None:
    units = np.arange(35, dtype=np.float32)
    wave = np.zeros(1, np.float32)
    strong = Take("03-01-05-02-01-01-08", 4, 8, wave, units)
    calm = Take("03-01-05-01-02-01-07", 4, 7, wave, units)
    assert told_of(strong).tolist() == [*range(35), 1, 1]
    assert told_of(calm).tolist() == [*range(35), 0, 0]


def test_a_member_goes_on_from_another_and_leaves_it_as_it_is(spectrograms: Spectrograms) -> None:
    start = train_member(spectrograms, np.arange(8), SMALL, RECIPE)
    before = copy.deepcopy(start.state_dict())
    recipe = replace(RECIPE, steps=1, learning_rate=1e-5)
    further = train_member(spectrograms, np.arange(12), SMALL, recipe, start=start)
    torch.testing.assert_close(further.judge.weight, start.judge.weight, atol=1e-4, rtol=0)
    assert not torch.equal(further.judge.weight, start.judge.weight)
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_nothing_is_heard_far_from_speech_in_the_share_of_crops_that_is_asked_for(
    spectrograms: Spectrograms,
) -> None:
    def crops(share: float) -> tuple[Tensor, Tensor]:
        recipe = replace(RECIPE, speech_only=share, lead=10.0, tempo=0.0, noise=0.0)
        run = voice_training._Run(
            spectrograms, np.arange(8), VoiceClassifier(SMALL), recipe, lambda *_: None
        )
        return run._crops(np.zeros(64, np.int64), 30)

    crop, seen = crops(1.0)
    silent = crop.reshape(64, 30, -1).amax(dim=2) <= np.log(LOG_MEL.floor) + 1e-3
    assert torch.equal(silent, seen[..., 0] == 0)
    # A second of speech, up to 3 hops before it and up to 7 after it, whole hops.
    assert all(13 <= int(count) <= 22 for count in seen.sum(dim=(1, 2)))
    loud = crop.reshape(64, 30, -1).amax(dim=2) > 0
    assert (loud & ~silent).sum() == loud.sum()
    assert crops(0.0)[1].all()
    some = crops(0.5)[1].amin(dim=(1, 2))
    assert 0.3 < some.mean() < 0.7


def test_babble_comes_from_other_actors_of_the_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    behind: list[list[int]] = []

    def spy(wave: Wave, others: Sequence[Wave], random: np.random.Generator) -> Wave:
        behind.append([id(other) for other in others])
        return wave

    monkeypatch.setattr(voice_training, "disturb", spy)
    Spectrograms(TAKES, [0] * 8 + [1] * 4, variants=2)
    ids = [id(t.wave) for t in TAKES]
    assert behind == [ids[4:8]] * 4 + [ids[:4]] * 4 + [[]] * 4


def test_disturbed_sound_depends_on_the_seed_alone_and_fits_16_bits() -> None:
    wave = TAKES[0].wave
    first, again, other = (
        disturb(wave, [TAKES[1].wave], np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:1000], other[:1000])
    for seed in range(20):
        sound = disturb(wave, [TAKES[1].wave], np.random.default_rng(seed))
        assert np.isfinite(sound).all() and np.abs(sound).max() <= 1
        np.testing.assert_array_equal(sound * 32768, np.round(sound * 32768))


def test_faster_is_higher() -> None:
    tone = np.sin(2 * np.pi * 500 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    faster = resampled(tone, 1.25)
    assert len(faster) == pytest.approx(RATE_HZ / 1.25, abs=2)
    peak = np.abs(np.fft.rfft(faster)).argmax() * RATE_HZ / len(faster)
    assert peak == pytest.approx(625, abs=2)


def test_a_stretched_spectrum_shows_a_tone_elsewhere() -> None:
    def loudest(hz: float) -> int:
        tone = np.sin(2 * np.pi * hz * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
        return int(log_mel_of(tone)[20].argmax())

    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    bands = log_mel_of(tone)[None, 20:21]
    for factor in (1.0, 0.8, 1.25):
        shown = bands @ voice_training._stretch(torch.tensor([factor]))
        assert abs(int(shown[0, 0].argmax()) - loudest(1000 / factor)) <= (factor != 1)
        if factor == 1:
            torch.testing.assert_close(shown, bands, atol=1e-3, rtol=0)


def test_speech_is_where_the_sound_is(spectrograms: Spectrograms) -> None:
    begin, end = spectrograms.speech[0]
    assert begin == pytest.approx(1 / 3, abs=0.02) and end == pytest.approx(2 / 3, abs=0.03)
    assert spectrograms.lengths.shape == (12, 2)
    assert spectrograms.values.shape == (spectrograms.lengths.sum(), LOG_MEL.n_mels)
    assert not (spectrograms.lengths % FRAMES).any()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 8, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert fitted_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.06)
