"""RAVDESS fold by fold: networks of `emotion` trained without a fold, exported, run on the fold's takes.

All that takes long lies in a folder under a key of what it was made from: a later call finds it again.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
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
from fusedge.bundle.errors import BundleError
from fusedge.bundle.regular_file import write_whole
from fusedge.cli.emotion_sessions import Arrays, Player
from fusedge.cli.emotion_task import load_emotion_task
from fusedge.export.pipeline import ExportOptions, export_bundle
from fusedge.export.subject import fusion_subject
from fusedge.export.task import FusionModule, Task
from fusedge.models.emotion.action_units import honest_units, train_units, units_of
from fusedge.models.emotion.head_training import (
    HeadRecipe,
    fused_logits,
    joint_temperature,
    train_head,
)
from fusedge.models.emotion.model import emotion_bytes, load_emotion
from fusedge.models.emotion.protocols import (
    PAIRED,
    Fusing,
    PairedOpinions,
    PairedRecipe,
    inner_judgements,
    paired_model,
    said_at_the_end,
)
from fusedge.models.emotion.takes import FOLDS, Take, fold_of
from fusedge.models.emotion.training import LAST_HOPS, Source
from fusedge.models.emotion.voice_encoder import voice_bytes
from fusedge.models.emotion.voice_ensemble import train_ensemble

Say = Callable[[str], None]


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
        """Each with its opinions; voices are trained where they are not there."""
        there = {fold_of(take.actor) for take in self.takes}
        return [self._open(number) for number in self.recipe.folds if number in there]

    def _open(self, number: int) -> OpenFold:
        actors = ", ".join(map(str, FOLDS[number]))
        self.say(f"fold {number + 1} of {len(FOLDS)}: without actors {actors}")
        ensemble = train_ensemble(
            self.takes,
            self.folder / "voice",
            self.recipe.voice.seeded(self.seed),
            self._tell,
            without=frozenset({number}),
        )
        rest = [take for take in self.takes if fold_of(take.actor) != number]
        own = [take for take in self.takes if fold_of(take.actor) == number]
        folder = self.folder / f"fold-{number + 1}"
        key = _digest(voice_bytes(ensemble.classifier, {}), self._takes_key)

        def make() -> Arrays:
            self.say(f"fold {number + 1}: opinions on {len(self.takes)} takes")
            return {
                "rest": ensemble.said_of(rest, LAST_HOPS).numpy(),
                "own": said_at_the_end(ensemble.classifier, own).numpy(),
            }

        said = kept(folder / "opinions.npz", key, make)
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
            self.recipe,
            self.seed,
            self.say,
        )

    def _tell(self, what: str, step: int, steps: int, loss: float) -> None:
        if step in (1, steps):
            self.say(f"{what}: step {step} of {steps}, loss {loss:.3f}")

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
    recipe: PairedRecipe
    seed: int
    say: Say

    def inner(self) -> Arrays:
        """By way of fusion, which of the takes to train on are right with both modalities, bool `[N]`: each
        group of actors by a head that has not met them. No take of the fold has a part in it.
        """

        def make(way: Fusing) -> NDArray[np.bool_]:
            model = paired_model(self.training, PAIRED, self.sources, way.kind)
            right = []
            for batch, logits in inner_judgements(model, self.training, self._seeded(way)):
                both = batch.presence.sum(dim=1) == len(PAIRED)
                right.append((logits.argmax(1) == batch.target.argmax(1))[both].numpy())
            return np.concatenate(right)

        return self._compared("inner", make)

    def outer(self) -> Arrays:
        """By way of fusion, what its head makes of the fold's own opinions, in PyTorch: logits float32
        `[3 * N, K]`, of both modalities, then of each alone.
        """

        def make(way: Fusing) -> NDArray[np.float32]:
            model = paired_model(self.training, PAIRED, self.sources, way.kind)
            train_head(model, self.training.examples(PAIRED), self._seeded(way))
            batch = self.test.shown(PAIRED)
            said: NDArray[np.float32] = fused_logits(model, batch.said, batch.presence).numpy()
            return said

        return self._compared("outer", make)

    def _compared(self, name: str, make: Callable[[Fusing], NDArray[Any]]) -> Arrays:
        def make_all() -> Arrays:
            found = {}
            for way, fusing in self.recipe.ways.items():
                self.say(f"fold {self.number + 1}: {way} ({name})")
                found[way] = make(fusing)
            return found

        key = _digest(self.key, repr((self.recipe.ways, self.recipe.units, self.seed)))
        return kept(self.folder / f"{name}.npz", key, make_all)

    def _seeded(self, way: Fusing) -> HeadRecipe:
        return replace(way.head, seed=self.seed)

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

    def bundle(self, names: tuple[str, ...]) -> Bundle:
        """The exported bundle of a network over these modalities, at fp32 and through the parity gate."""
        stem = "-".join(names)
        weights = self._weights(names, self.folder / f"{stem}.safetensors")
        model, task = load_emotion_task(weights)
        path = self.folder / f"{stem}.fusedge"
        return exported(model, task, path, self.say)

    def _weights(self, names: tuple[str, ...], path: Path) -> Path:
        way = self.recipe.ways[self.recipe.chosen]
        key = _digest(self.key, repr((names, way, self.recipe.units, self.seed)))
        if path.is_file() and load_emotion(path)[1].get("key") == key:
            return path
        self.say(f"fold {self.number + 1}: the head over {' + '.join(names)}")
        model = paired_model(self.training, names, self.sources, way.kind)
        head = self._seeded(way)
        temperature = joint_temperature(inner_judgements(model, self.training, head))
        train_head(model, self.training.examples(names), head)
        notes = {
            "temperature": repr(temperature),
            "training_data": f"RAVDESS speech, {self.trained_on} takes, without fold {self.number + 1}",
            "key": key,
        }
        write_whole(path, emotion_bytes(model, notes))
        return path


def exported(model: FusionModule, task: Task, path: Path, say: Say) -> Bundle:
    """The bundle of these weights at `path`, exported at fp32 where it is not there."""
    if path.exists():
        try:
            found = Bundle(path)
            if found.manifest.provenance.weights_sha256 == task.provenance.weights_sha256:
                return found
        except BundleError as error:
            say(f"{error}; it is exported again")
    say(f"export {path.name}")
    return export_bundle(fusion_subject(model, task), path, ExportOptions(precision="fp32")).bundle


def kept(path: Path, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays that were kept at `path` under this key; else they are made, and kept."""
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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def _digest(*items: bytes | str) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(hashlib.sha256(item.encode() if isinstance(item, str) else item).digest())
    return digest.hexdigest()
