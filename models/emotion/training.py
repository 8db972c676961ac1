"""From faces and voices to trained weights of the task `emotion`: two classifiers, and a head over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fusedge.bundle.regular_file import write_whole
from fusedge.models.emotion.action_units import ActionUnitClassifier
from fusedge.models.emotion.face_encoder import FaceConfig, FaceEncoder, face_bytes, load_face
from fusedge.models.emotion.face_training import FaceRecipe, face_logits, train_face
from fusedge.models.emotion.ferplus import Faces, held_out
from fusedge.models.emotion.head_training import (
    Batch,
    HeadRecipe,
    MatchedByLabel,
    Samples,
    fit_head,
)
from fusedge.models.emotion.labels import FACE_LABELS, LABELS, VOICE_LABELS, places
from fusedge.models.emotion.model import (
    ActionUnitOpinion,
    EmotionConfig,
    EmotionModel,
    FaceOpinion,
    VoiceOpinion,
    emotion_bytes,
    load_emotion,
)
from fusedge.models.emotion.takes import Take, fold_of, refuse_few_groups
from fusedge.models.emotion.voice_encoder import VoiceClassifier
from fusedge.models.emotion.voice_ensemble import (
    EnsembleRecipe,
    Tell,
    train_ensemble,
)
from fusedge.models.fusion import FusionKind
from fusedge.models.kept_model import keep_model, kept_model

Source = FaceEncoder | VoiceClassifier | ActionUnitClassifier
"""A trained classifier of one modality."""

WEIGHTS = "weights.safetensors"
PIECES = ("face.safetensors", "face-*/checkpoint.safetensors", "voice-without-*.safetensors")
"""Patterns of what `train_emotion` goes on from. The weights of before stay until new ones are whole."""
FUSION: FusionKind = "late_product"
HIDDEN, DROPOUT = 24, 0.1
CALM_LOOKS_NEUTRAL = {"calm": "neutral"}
LAST_HOPS = 8  # of a take: its end, where all has been said

# Each stage starts from the last one's weights: pictures are disturbed less, and dropout is less.
FACE_STAGES = (
    (FaceConfig(), FaceRecipe()),
    (
        FaceConfig(dropout=0.1),
        FaceRecipe(1, 5, learning_rate=0.02, weight_decay=1e-4, augmentation=0.6, small_share=0.0),
    ),
    (
        FaceConfig(dropout=0.1),
        FaceRecipe(
            seed=2,
            epochs=11,
            learning_rate=0.08,
            weight_decay=1e-4,
            augmentation=0.6,
            small_share=0.45,
            small_px=36,
        ),
    ),
    (
        FaceConfig(dropout=0.0),
        FaceRecipe(3, 4, learning_rate=0.03, weight_decay=1e-4, augmentation=0.4, small_share=0.0),
    ),
)


@dataclass(frozen=True)
class EmotionRecipe:
    """How all is trained; `seed` is added to that of each of them, and `face` has stages."""

    seed: int = 0
    fusion: FusionKind = FUSION
    face: tuple[tuple[FaceConfig, FaceRecipe], ...] = FACE_STAGES
    voice: EnsembleRecipe = field(default_factory=EnsembleRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, the temperature of its output, and its weights file."""

    model: EmotionModel
    temperature: float
    path: Path


def train_emotion(
    faces: Faces,
    takes: Sequence[Take],
    folder: Path,
    recipe: EmotionRecipe = EmotionRecipe(),
    tell: Tell = lambda what, step, steps, loss: None,
) -> Trained:
    """Train on FER+ faces and RAVDESS takes; writes `weights.safetensors`, and its pieces as they are done.

    A tenth of the faces is kept from the face's classifier, and a group of actors from each of the voice's
    members: the head is trained on what is said of people that were not seen. Called again with the same
    folder it goes on from there.
    """
    refuse_few_groups([fold_of(take.actor) for take in takes], 2)
    folder.mkdir(parents=True, exist_ok=True)
    hidden = held_out(faces)
    face = _face(faces.only(~hidden), folder, recipe, tell)
    ensemble = train_ensemble(takes, folder, recipe.voice.seeded(recipe.seed), tell)
    said = (
        face_samples(face, faces.only(hidden)),
        take_samples(ensemble.said_of(takes, LAST_HOPS), takes),
    )
    model = assemble({"face": face, "voice": ensemble.classifier}, recipe.fusion)
    for name, samples in zip(model.modalities, said, strict=True):
        calibrate(model, name, samples)
    alike: tuple[dict[str, str], ...] = (CALM_LOOKS_NEUTRAL, {})
    temperature = fit_head(
        model,
        MatchedByLabel(said, alike),
        _splits(said, takes, alike),
        replace(recipe.head, seed=recipe.seed),
        partial(tell, "head"),
    )
    model.encoder("voice").temperature *= recipe.voice.sharper
    actors = sorted({take.actor for take in takes})
    notes = {
        "temperature": repr(temperature),
        "training_data": (
            f"FER+ votes on FER2013, {len(faces)} faces; RAVDESS speech, {len(takes)} takes of "
            f"{len(actors)} actors, whose sex, intensity and facial action units were told in training"
        ),
    }
    path = folder / WEIGHTS
    write_whole(path, emotion_bytes(model, notes))
    return Trained(load_emotion(path)[0], temperature, path)


def assemble(sources: Mapping[str, Source], fusion: FusionKind) -> EmotionModel:
    """The whole network with trained classifiers, by modality, and a new head."""
    configs = {name: source.config for name, source in sources.items()}
    with torch.random.fork_rng(devices=[]):
        model = EmotionModel(EmotionConfig(configs, fusion, HIDDEN, DROPOUT))
    for name, source in sources.items():
        opinion = model.encoder(name)
        assert isinstance(opinion, FaceOpinion | VoiceOpinion | ActionUnitOpinion)
        own = opinion.encoder if isinstance(opinion, FaceOpinion) else opinion.classifier
        own.load_state_dict(source.state_dict())
    return model.eval()


def calibrate(model: EmotionModel, name: str, samples: Samples) -> None:
    """Fit the temperature of what a modality alone says to samples of people that it has not seen."""
    hops = samples.said.shape[1]
    labels = samples.labels.repeat_interleave(hops, dim=0)
    model.encoder(name).calibrate(samples.said.flatten(0, 1), labels)


def _face(faces: Faces, folder: Path, recipe: EmotionRecipe, tell: Tell) -> FaceEncoder:
    path = folder / "face.safetensors"
    digest = hashlib.sha256(f"{recipe.face!r} {recipe.seed} {torch.__version__}".encode())
    digest.update(faces.images.tobytes() + faces.votes.tobytes())
    key = digest.hexdigest()
    found = kept_model(path, key, load_face, face_bytes)
    if found is not None:
        return found
    face: FaceEncoder | None = None
    for number, (config, stage) in enumerate(recipe.face, 1):
        face = train_face(
            config,
            faces,
            replace(stage, seed=stage.seed + recipe.seed),
            folder / f"face-{number}",
            partial(tell, f"face {number} of {len(recipe.face)}"),
            face,
        )
    assert face is not None
    keep_model(path, key, face, face_bytes)
    return load_face(path)[0]  # its memory as when it is found again, or sums differ by a rounding


def face_samples(face: FaceEncoder, faces: Faces) -> Samples:
    """What the classifier says of faces, and their labels: confidence is that of the majority."""
    labels = torch.tensor(places(FACE_LABELS))[torch.from_numpy(faces.labels)]
    return Samples(face_logits(face, faces.images).unsqueeze(1), _one_hot(labels))


def _one_hot(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, len(LABELS)).float()


def take_samples(said: Tensor, takes: Sequence[Take]) -> Samples:
    """What was said `[N, H, S]` of takes, and their labels."""
    places_of = places(VOICE_LABELS)
    return Samples(said, _one_hot(torch.tensor([places_of[take.label] for take in takes])))


def _splits(
    said: tuple[Samples, Samples], takes: Sequence[Take], alike: Sequence[dict[str, str]]
) -> Iterator[tuple[MatchedByLabel, Batch]]:
    """Each group of actors held out, with a share of the faces: the rest, and pairs of these."""
    actors = torch.tensor([fold_of(take.actor) for take in takes])
    groups = sorted(set(actors.tolist()))
    faces = torch.arange(len(said[0].labels)) % len(groups)
    for place, group in enumerate(groups):
        seen = (said[0].only(faces != place), said[1].only(actors != group))
        rest = (said[0].only(faces == place), said[1].only(actors == group))
        random = torch.Generator().manual_seed(group)
        yield MatchedByLabel(seen, alike), MatchedByLabel(rest, alike).batch(4000, random)
