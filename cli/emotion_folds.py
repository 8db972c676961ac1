"""RAVDESS fold by fold: networks of `emotion` trained without a fold, exported, run on the fold's takes.

All that takes long lies in a folder under a key of what it was made from: a later call finds it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.regular_file import write_whole
from fusedge.cli.emotion_conversation import conversations
from fusedge.cli.emotion_sessions import Arrays, Player
from fusedge.cli.emotion_task import load_emotion_task
from fusedge.export.kept_bundle import exported
from fusedge.export.sources import sources_sha256
from fusedge.models.emotion.action_units import honest_units, train_units, units_of
from fusedge.models.emotion.head_training import (
    HeadRecipe,
    fit_head,
    fused_logits,
    train_head,
)
from fusedge.models.emotion.model import EmotionModel, emotion_bytes, load_emotion
from fusedge.models.emotion.protocols import (
    PAIRED,
    PairedOpinions,
    PairedRecipe,
    inner_judgements,
    paired_model,
    said_at_the_end,
)
from fusedge.models.emotion.takes import FOLDS, Take, fold_of
from fusedge.models.emotion.training import LAST_HOPS, Source
from fusedge.models.emotion.voice_encoder import voice_bytes
from fusedge.models.emotion.voice_ensemble import Members
from fusedge.models.fusion import FusionKind
from fusedge.models.kept_model import keep_model, kept_model

Say = Callable[[str], None]
# What the results depend on, beside the bundle and what it is given: the code that makes them, as it is
# loaded. Hours later, when there are results, its files may have been edited.
HEARING_SHA256 = sources_sha256("models")
PLAYING_SHA256 = sources_sha256(
    *("bundle", "devices", "models", "runtime"),
    *("cli/emotion_conversation.py", "cli/emotion_sessions.py"),
)


class Run(NamedTuple):
    """What a network is given of a take: `names` are what it was trained on, `given` what it is shown."""

    names: tuple[str, ...]
    given: tuple[str, ...]
    prepared: tuple[str, ...] = ()
    """What goes past its front end."""


@dataclass(frozen=True)
class Folds:
    """All folds of the recipe that there are takes of; `say` is told what begins, a line each."""

    takes: Sequence[Take]
    folder: Path
    recipe: PairedRecipe
    seed: int
    say: Say

    def all(self) -> list[OpenFold]:
        """Each with its opinions; voices are trained where they are not there.

        How much surer a fold's ensemble is than its members, the other folds tell.
        """
        there = {fold_of(take.actor) for take in self.takes}
        folds = [self._open(number) for number in self.recipe.folds if number in there]
        return [fold.sharpened([other for other in folds if other is not fold]) for fold in folds]

    def _open(self, number: int) -> OpenFold:
        actors = ", ".join(map(str, FOLDS[number]))
        self.say(f"fold {number + 1} of {len(FOLDS)}: without actors {actors}")
        ensemble = self._voices.ensemble(without=frozenset({number}))
        rest = [take for take in self.takes if fold_of(take.actor) != number]
        own = [take for take in self.takes if fold_of(take.actor) == number]
        folder = self.folder / f"fold-{number + 1}"
        voice = voice_bytes(ensemble.classifier, {})
        key = _digest(voice, self._takes_key, HEARING_SHA256)

        def make() -> Arrays:
            self.say(f"fold {number + 1}: opinions on {len(self.takes)} takes")
            return {
                "rest": ensemble.said_of(rest, LAST_HOPS).numpy(),
                "own": said_at_the_end(ensemble.classifier, own).numpy(),
            }

        said = kept(folder / "opinions.npz", key, make, HEARING_SHA256)
        units = train_units(rest, self.recipe.units, self.seed)
        of_rest = honest_units(rest, self.recipe.units, self.seed)
        with torch.no_grad():
            of_own = units(units_of(own)).unsqueeze(1)
        training = PairedOpinions(
            rest, {"action_units": of_rest, "voice": torch.from_numpy(said["rest"])}
        )
        test = PairedOpinions(own, {"action_units": of_own, "voice": torch.from_numpy(said["own"])})
        return OpenFold(
            number,
            folder,
            key,
            own,
            len(rest),
            training,
            test,
            {"action_units": units, "voice": ensemble.classifier},
            self.recipe.voice.sharper,
            self.recipe,
            self.seed,
            self.say,
        )

    def _tell(self, what: str, step: int, steps: int, loss: float) -> None:
        if step in (1, steps):
            self.say(f"{what}: step {step} of {steps}, loss {loss:.3f}")

    @cached_property
    def _voices(self) -> Members:
        voice = self.recipe.voice.seeded(self.seed)
        return Members(self.takes, self.folder / "voice", voice, self._tell)

    @cached_property
    def _takes_key(self) -> bytes:
        digest = hashlib.sha256()
        for take in self.takes:
            digest.update(f"{take.name} {take.label} {take.actor}".encode())
            digest.update(take.wave.tobytes() + take.units.tobytes())
        return digest.digest()


@dataclass(frozen=True)
class OpenFold:
    """A fold, its own `takes`, and what is said of them and of those that its networks are trained on."""

    number: int
    folder: Path
    key: str
    takes: Sequence[Take]
    trained_on: int
    training: PairedOpinions
    test: PairedOpinions
    sources: Mapping[str, Source]
    sharper: float
    recipe: PairedRecipe
    seed: int
    say: Say

    def sharpened(self, others: Sequence[OpenFold]) -> OpenFold:
        """With the mean of what other folds tell, if there are any. No take of this one has a part in it;
        but the others' voices have heard its actors.
        """
        if not others:
            return self
        found = [np.log(other.sharpness(self.number)) for other in others]
        return replace(self, sharper=round(float(np.exp(np.mean(found))), 3))

    def sharpness(self, unused: int) -> float:
        """The temperature of the voice's ensemble on the fold's takes, over that of its members on takes of
        all others but the fold `unused`.
        """
        own, members = (
            paired_model(opinions, ("voice",), self.sources, "late_product").encoder("voice")
            for opinions in (self.test, self.training.without(unused))
        )
        return float(own.temperature / members.temperature)

    def inner(self) -> Arrays:
        """By kind of fusion, which takes to train on are right with both modalities, bool `[N]`: each group
        of actors by a head that has not met them. No take of the fold has a part in it.
        """

        def make(kind: FusionKind) -> NDArray[np.bool_]:
            model = paired_model(self.training, PAIRED, self.sources, kind)
            right = []
            for batch, logits in inner_judgements(model, self.training, self._head):
                both = batch.presence.sum(dim=1) == len(PAIRED)
                right.append((logits.argmax(1) == batch.target.argmax(1))[both].numpy())
            return np.concatenate(right)

        return self._compared("inner", make)

    def outer(self) -> Arrays:
        """By kind of fusion, what its head makes of the fold's own opinions, in PyTorch: logits float32
        `[3 * N, K]`, of both modalities, then of each alone.
        """

        def make(kind: FusionKind) -> NDArray[np.float32]:
            model = paired_model(self.training, PAIRED, self.sources, kind)
            train_head(model, self.training.examples(PAIRED), self._head)
            self._sharpen(model)
            batch = self.test.shown(PAIRED)
            said: NDArray[np.float32] = fused_logits(model, batch.said, batch.presence).numpy()
            return said

        return self._compared("outer", make)

    def _compared(self, name: str, make: Callable[[FusionKind], NDArray[Any]]) -> Arrays:
        def make_all() -> Arrays:
            found: Arrays = {}
            for kind in self.recipe.kinds:
                self.say(f"fold {self.number + 1}: {kind} ({name})")
                found[kind] = make(kind)
            return found

        key = _digest(
            self.key, repr((self.recipe.kinds, self._head, self.recipe.units, self.sharper))
        )
        return kept(self.folder / f"{name}.npz", key, make_all, HEARING_SHA256)

    def _sharpen(self, model: EmotionModel) -> None:
        """The voice was calibrated by what single members say."""
        if "voice" in model.modalities:
            model.encoder("voice").temperature *= self.sharper

    @property
    def _head(self) -> HeadRecipe:
        return replace(self.recipe.head, seed=self.seed)

    def run(self, run: Run) -> Arrays:
        """What the bundle of the run's modalities decides on the fold's own takes: see Player.takes."""
        bundle = self.bundle(run.names)

        def make() -> Arrays:
            what = f"fold {self.number + 1}: {len(self.takes)} takes with {' + '.join(run.given)}"
            self.say(what + (", past the front end" if run.prepared else ""))
            return Player(bundle).takes(self.takes, run.given, run.prepared)

        name = "-".join(
            ("trained", *run.names, "given", *run.given, *("past" for _ in run.prepared))
        )
        return kept(self.folder / f"{name}.npz", _digest(bundle.sha256, self.key), make)

    def conversations(self, names: tuple[str, ...]) -> Arrays:
        """What the bundle of these modalities decides in talks of the fold's actors: see Player."""
        bundle = self.bundle(names)
        talks = conversations(self.takes)

        def make() -> Arrays:
            what = f"{len(talks)} conversations with {' + '.join(names)}"
            self.say(f"fold {self.number + 1}: {what}")
            return Player(bundle).conversations(talks, names)

        played = (take.name for takes in talks for take in takes)
        path = self.folder / f"conversations-{'-'.join(names)}.npz"
        return kept(path, _digest(bundle.sha256, self.key, *played), make)

    def bundle(self, names: tuple[str, ...]) -> Bundle:
        """The exported bundle of a network over these modalities, at fp32 and through the parity gate."""
        stem = "-".join(names)
        model, task = load_emotion_task(self.weights(names))
        path = self.folder / f"{stem}.fusedge"
        return exported(model, task, path, self.say)

    def weights(self, names: tuple[str, ...]) -> Path:
        """The file of a network over these modalities, fitted where it is not there."""
        path = self.folder / f"{'-'.join(names)}.safetensors"
        kind = self.recipe.chosen
        key = _digest(self.key, repr((names, kind, self._head, self.recipe.units, self.sharper)))
        if kept_model(path, key, load_emotion, emotion_bytes) is not None:
            return path
        self.say(f"fold {self.number + 1}: the head over {' + '.join(names)}")
        model = paired_model(self.training, names, self.sources, kind)
        examples, splits = self.training.examples(names), self.training.splits(names)
        temperature = fit_head(model, examples, splits, self._head)
        self._sharpen(model)
        notes = {
            "temperature": repr(temperature),
            "training_data": f"RAVDESS speech, {self.trained_on} takes, without fold {self.number + 1}",
        }
        keep_model(path, key, model, emotion_bytes, notes)
        return path


def kept(
    path: Path, key: str, make: Callable[[], Arrays], code_sha256: str = PLAYING_SHA256
) -> Arrays:
    """Arrays that were kept at `path` under this key and code; else they are made, and kept."""
    key = _digest(key, code_sha256)
    found = _read(path)
    if str(found.pop("key", "")) == key:
        return found
    arrays = make()
    file = BytesIO()
    np.savez(file, allow_pickle=False, key=np.array(key), **arrays)
    write_whole(path, file.getvalue())
    return arrays


def _read(path: Path) -> Arrays:
    """All arrays of a file; none where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # of damage, zipfile, zlib and NumPy raise what they do not document
        return {}


def _digest(*items: bytes | str) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(hashlib.sha256(item.encode() if isinstance(item, str) else item).digest())
    return digest.hexdigest()
