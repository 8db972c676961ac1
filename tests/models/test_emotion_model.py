"""The network of `emotion`: what it takes, that its head learns, and that its file gives it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion import task
from fusedge.models.emotion.action_units import ActionUnitConfig
from fusedge.models.emotion.face_encoder import FaceConfig
from fusedge.models.emotion.head_training import (
    HeadRecipe,
    MatchedByLabel,
    PairedTakes,
    Samples,
    fused_logits,
    train_head,
)
from fusedge.models.emotion.labels import FACE_LABELS, LABELS, VOICE_LABELS, places
from fusedge.models.emotion.model import (
    EmotionConfig,
    EmotionModel,
    Opinion,
    emotion_bytes,
    load_emotion,
)
from fusedge.models.emotion.voice_encoder import HOP, VoiceConfig
from fusedge.models.fusion import FUSION_KINDS, FusionKind
from fusedge.models.temperature import fitted_temperature

FACE = FaceConfig(widths=(4, 6, 8, 10), blocks=(1, 1, 1))
VOICE = VoiceConfig(channels=(4, 4, 4), width=8, judgements=4, members=2)
RECIPE = HeadRecipe(steps=300, batch=128)


def model(fusion: FusionKind = "late_product", **sources: object) -> EmotionModel:
    torch.manual_seed(3)
    made = EmotionConfig(sources or {"face": FACE, "voice": VOICE}, fusion, 16, 0.0)  # type: ignore[arg-type]
    return EmotionModel(made).eval()


def windows(name: str, batch: int, steps: int) -> Tensor:
    shape = (batch, steps, *task.modality(name).window_shape)
    random = torch.Generator().manual_seed(5)
    if name == "face":
        return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    return 0.1 * torch.randn(shape, generator=random)


@pytest.mark.parametrize("names", [("face", "voice"), ("action_units", "voice")])
def test_the_whole_is_its_encoders_and_its_head_step_by_step(names: tuple[str, str]) -> None:
    configs = {"face": FACE, "voice": VOICE, "action_units": ActionUnitConfig()}
    made = model(**{name: configs[name] for name in names})
    given = {name: windows(name, 2, 5) for name in names}
    valid = {name: torch.ones(2, 5, *task.modality(name).valid_shape) for name in names}
    presence, age = torch.ones(2, 5, 2), torch.full((2, 5, 2), 0.1)
    with torch.no_grad():
        whole = made(given, valid, presence, age)
        states = made.encoder("voice").zero_states(2)  # type: ignore[operator]
        for step in range(5):
            embeddings = []
            for name in names:
                encoder, window = made.encoder(name), given[name][:, step]
                if name == "voice":
                    spoken, *states = encoder(window, torch.ones_like(window), *states)
                    embeddings.append(spoken[:, 0])
                elif name == "face":
                    embeddings.append(encoder(window))
                else:
                    embeddings.append(encoder(window, valid[name][:, step]))
            logits = made.head(*embeddings, presence[:, step], age[:, step])
            torch.testing.assert_close(logits, whole[:, step], atol=1e-5, rtol=1e-4)
    assert whole.shape == (2, 5, len(LABELS))


def test_windows_of_the_task_are_those_of_the_encoders() -> None:
    assert task.VOICE.window_samples == HOP
    assert task.FACE.window_shape == (1, 48, 48, 1)
    assert task.output().labels == LABELS


@pytest.mark.parametrize("fusion", FUSION_KINDS)
def test_what_an_absent_modality_says_does_not_count(fusion: FusionKind) -> None:
    made = model(fusion)
    random = torch.Generator().manual_seed(1)
    said = [torch.randn(4, 8, generator=random) for _ in range(2)]
    other = [said[0], torch.full((4, 8), torch.nan)]
    presence = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    torch.testing.assert_close(
        fused_logits(made, said, presence), fused_logits(made, other, presence)
    )


def opinions(known: tuple[str, ...], strength: float, count: int = 40) -> Samples:
    """Classifiers of `known` labels that lean to the right one by `strength`."""
    random = torch.Generator().manual_seed(len(known) + int(strength))
    right = torch.arange(len(known)).repeat(count)
    said = torch.randn(len(right), 1, len(known), generator=random)
    said[:, 0] += strength * functional.one_hot(right, len(known))
    labels = torch.tensor(places(known))[right]
    return Samples(said, functional.one_hot(labels, len(LABELS)).float())


@pytest.mark.parametrize(
    ("name", "unknown", "known"),
    [("face", "calm", FACE_LABELS), ("voice", "contempt", VOICE_LABELS)],
)
def test_an_opinion_is_the_softmax_of_what_is_said_and_little_is_left_for_the_unknown_label(
    name: str, unknown: str, known: tuple[str, ...]
) -> None:
    made = model().encoder(name)
    made.temperature.fill_(2.0)
    said = 3 * torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    chances = made.embed(said).softmax(dim=1)
    own = chances[:, list(places(known))]
    torch.testing.assert_close(own / own.sum(1, keepdim=True), (said / 2).softmax(1))
    left = chances[:, LABELS.index(unknown)]
    if unknown == "calm":
        torch.testing.assert_close(left, 0.1 * chances[:, LABELS.index("neutral")])
    else:
        torch.testing.assert_close(left, torch.full((50,), 0.005 / 1.005))


def test_what_nobody_knows_does_not_gain_where_those_who_know_more_contradict_each_other() -> None:
    made = model(action_units=ActionUnitConfig(), voice=VOICE)
    samples = opinions(VOICE_LABELS, 2)
    train_head(made, PairedTakes((samples, samples)), RECIPE)
    said = [50 * torch.eye(8)[[place] * 3] for place in (0, 3)]
    presence = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    chances = fused_logits(made, said, presence).softmax(dim=1)
    assert chances[:, LABELS.index("contempt")].max() < 0.02


def test_no_opinion_is_so_sure_that_others_cannot_outvote_it() -> None:
    """Logits of a network that meets what it has never seen can be anything."""
    made = model().encoder("face")
    said = torch.tensor([[0.0, 1e6, -1e6, 3, 3, 3, 3, 3]])
    assert made.embed(said).min() == pytest.approx(np.log(0.1 * 1e-4))
    assert made.embed(said).isfinite().all()


@pytest.mark.parametrize("fusion", ["concatenation", "late_product"])
def test_a_head_makes_of_two_opinions_what_neither_says_alone(fusion: FusionKind) -> None:
    made, said = model(fusion), (opinions(FACE_LABELS, 2), opinions(VOICE_LABELS, 2))
    examples = MatchedByLabel(said, ({"calm": "neutral"}, {}))
    train_head(made, examples, RECIPE)
    batch = examples.batch(2000, torch.Generator().manual_seed(9))
    right = fused_logits(made, batch.said, batch.presence).argmax(1) == batch.target.argmax(1)
    both = batch.presence.sum(dim=1) == 2
    assert right[both].float().mean() > right[~both].float().mean() + 0.05
    assert right[both].float().mean() > 0.75


@pytest.mark.parametrize("fusion", FUSION_KINDS)
def test_the_same_seed_gives_the_same_head_whatever_was_there_before(fusion: FusionKind) -> None:
    said = (opinions(FACE_LABELS, 2), opinions(VOICE_LABELS, 2))
    before = (opinions(FACE_LABELS, 5), opinions(VOICE_LABELS, 5))
    made = [model(fusion) for _ in range(2)]
    train_head(made[1], MatchedByLabel(before, ({}, {})), HeadRecipe(seed=1, steps=30))
    for seed, each in enumerate(made):
        torch.manual_seed(seed)
        train_head(each, MatchedByLabel(said, ({}, {})), HeadRecipe(steps=5))
    assert emotion_bytes(made[0], {}) == emotion_bytes(made[1], {})


def test_pairs_match_by_label_and_an_unknown_label_is_matched_with_any_sample() -> None:
    said = (opinions(FACE_LABELS, 50), opinions(VOICE_LABELS, 50))
    examples = MatchedByLabel(said, ({"calm": "neutral"}, {}))
    batch = examples.batch(3000, torch.Generator().manual_seed(2))
    both = batch.presence.sum(dim=1) == 2
    wanted = batch.target.argmax(1)
    face = torch.tensor(places(FACE_LABELS))[batch.said[0].argmax(1)]
    voice = torch.tensor(places(VOICE_LABELS))[batch.said[1].argmax(1)]
    calm, contempt = LABELS.index("calm"), LABELS.index("contempt")
    known = both & (wanted != calm) & (wanted != contempt)
    assert (face == wanted)[known].all() and (voice == wanted)[known].all()
    assert (face[both & (wanted == calm)] == LABELS.index("neutral")).all()
    assert len(voice[both & (wanted == contempt)].unique()) == len(VOICE_LABELS)
    assert 0.05 < (wanted[both] == calm).float().mean() < 0.2


def test_takes_are_paired_row_by_row() -> None:
    samples = opinions(VOICE_LABELS, 50)
    batch = PairedTakes((samples, samples)).batch(100, torch.Generator().manual_seed(0))
    assert torch.equal(batch.said[0], batch.said[1])
    assert set(batch.presence.sum(dim=1).tolist()) == {1.0, 2.0}


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_logits_were_multiplied_by(factor: float) -> None:
    random = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(20_000, 4, generator=random)
    target = functional.one_hot(torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0], 4)
    assert fitted_temperature(logits * factor, target.float()) == pytest.approx(factor, rel=0.06)


def test_a_file_gives_back_the_model_but_for_rounding_and_is_half_as_large(tmp_path: Path) -> None:
    made, path = model(), tmp_path / "weights.safetensors"
    made.encoder("face").temperature.fill_(3)
    path.write_bytes(emotion_bytes(made, {"temperature": "0.9"}))
    loaded, notes = load_emotion(path)
    assert (loaded.config, notes) == (made.config, {"temperature": "0.9"})
    assert isinstance(loaded.encoder("face"), Opinion)
    again = tmp_path / "again.safetensors"
    again.write_bytes(emotion_bytes(loaded, {"temperature": "0.9"}))
    assert again.read_bytes() == path.read_bytes()
    face = windows("face", 3, 1)[:, 0]
    torch.testing.assert_close(
        loaded.encoder("face")(face), made.encoder("face")(face), atol=2e-2, rtol=2e-2
    )


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(emotion_bytes(model(), {}).replace(b"fusedge-emotion-2", b"fusedge-emotion-9"))
    with pytest.raises(FusedgeError, match="is no model of the kind fusedge-emotion-2"):
        load_emotion(path)
