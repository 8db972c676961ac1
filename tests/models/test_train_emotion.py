"""Training of the whole task on made-up faces and voices: what is written, and what is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusedge.cli.options import forget
from fusedge.models.emotion import training
from fusedge.models.emotion.face_encoder import FaceConfig
from fusedge.models.emotion.face_training import FaceRecipe
from fusedge.models.emotion.ferplus import Faces, held_out
from fusedge.models.emotion.head_training import HeadRecipe
from fusedge.models.emotion.labels import LABELS
from fusedge.models.emotion.takes import RATE_HZ, Take
from fusedge.models.emotion.training import PIECES, EmotionRecipe, train_emotion
from fusedge.models.emotion.voice_encoder import VoiceConfig
from fusedge.models.emotion.voice_ensemble import EnsembleRecipe
from fusedge.models.emotion.voice_training import VoiceRecipe

FACE = FaceConfig(widths=(4, 4, 4, 4), blocks=(1, 1, 1))
RECIPE = EmotionRecipe(
    face=(
        (FACE, FaceRecipe(epochs=1, batch=16, precision="float32")),
        (FACE, FaceRecipe(seed=1, epochs=1, batch=16, precision="float32")),
    ),
    voice=EnsembleRecipe(
        VoiceConfig(channels=(4, 4, 4), width=8, judgements=4),
        VoiceRecipe(steps=1, batch=4, lengths=(10,), later=4),
        whole=1,
    ),
    head=HeadRecipe(steps=5, batch=32),
)


def some_faces() -> Faces:
    random = np.random.default_rng(1)
    labels = np.arange(160) % 8
    votes = np.eye(8, dtype=np.uint8)[labels] * 10
    return Faces(random.integers(0, 256, (160, 48, 48), np.uint8), votes, labels)


def some_takes() -> list[Take]:
    random = np.random.default_rng(2)
    waves = 0.1 * random.standard_normal((8, 2 * RATE_HZ)).astype(np.float32)
    units = np.zeros(35, np.float32)
    return [Take(f"take {n}", n, 2 + n % 2, wave, units) for n, wave in enumerate(waves)]


def test_weights_are_the_same_again_and_what_is_done_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def tell(what: str, step: int, steps: int, loss: float) -> None:
        if step == steps:
            told.append(what)

    first = train_emotion(some_faces(), some_takes(), tmp_path / "first", RECIPE, tell)
    assert told == [
        "face 1 of 2", "face 2 of 2", "voice 1 of 3", "voice 2 of 3", "voice 3 of 3"
    ]  # fmt: skip
    once = first.path.read_bytes()
    told.clear()
    train_emotion(some_faces(), some_takes(), tmp_path / "first", RECIPE, tell)
    assert told == []
    assert first.path.read_bytes() == once
    other = train_emotion(some_faces(), some_takes(), tmp_path / "other", RECIPE)
    assert other.path.read_bytes() == once


def test_the_head_is_shown_what_is_said_of_people_that_were_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, seen = some_faces(), []
    real = training.train_face

    def spy(config: FaceConfig, given: Faces, *rest: object) -> object:
        seen.append({image.tobytes() for image in given.images})
        return real(config, given, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_face", spy)
    shown: list[int] = []

    def look(_: object, given: Faces) -> object:
        shown.extend(image.tobytes() in seen[0] for image in given.images)
        return samples(_, given)  # type: ignore[arg-type]

    samples = training.face_samples
    monkeypatch.setattr(training, "face_samples", look)
    train_emotion(faces, some_takes(), tmp_path, RECIPE)
    assert len(shown) == held_out(faces).sum() > 0
    assert not any(shown)


def test_the_model_knows_all_labels_and_says_what_it_was_trained_on(tmp_path: Path) -> None:
    trained = train_emotion(some_faces(), some_takes(), tmp_path, RECIPE)
    said = torch.zeros(1, len(LABELS))
    logits = trained.model.head(said, said, torch.ones(1, 2), torch.zeros(1, 2))
    assert logits.shape == (1, len(LABELS))
    assert trained.temperature == 1.0  # posteriors that are multiplied


def test_what_all_members_of_the_voice_say_together_is_surer_than_what_one_says(
    tmp_path: Path,
) -> None:
    """They were calibrated by what single members say, of people that these have not heard."""
    temperatures = [
        float(
            train_emotion(some_faces(), some_takes(), tmp_path, recipe)
            .model.encoder("voice")
            .temperature
        )
        for recipe in (RECIPE, replace(RECIPE, voice=replace(RECIPE.voice, sharper=1.0)))
    ]
    assert temperatures[0] / temperatures[1] == pytest.approx(RECIPE.voice.sharper, rel=2e-3)


def test_what_is_forgotten_is_its_own_alone(tmp_path: Path) -> None:
    train_emotion(some_faces(), some_takes(), tmp_path, RECIPE)
    others = [
        tmp_path / name
        for name in (
            "other.safetensors",
            "deep/weights.safetensors",
            "a/face-1/checkpoint.safetensors",
        )
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not its own")
    forget(tmp_path, PIECES)
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*others, tmp_path / "weights.safetensors"}
