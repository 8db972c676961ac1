"""Training: features once per recording, then crops, random subsets of modalities, random ages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.models.checkpoint import Checkpoint
from fusedge.models.dataset import Drive
from fusedge.models.fusion_model import FusionModel, ModelConfig
from fusedge.models.one_cycle import one_cycle
from fusedge.models.one_thread import one_thread
from fusedge.models.weight_average import WeightAverage

Progress = Callable[[int, int, float], None]
"""Called with the step that is done, the number of steps, and the loss."""


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe. `modalities` are those ever shown to the head; None is all of them."""

    seed: int = 0
    steps: int = 600
    batch: int = 24
    crop_s: int = 60
    warm_up_s: int = 20
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    label_smoothing: float = 0.1
    feature_noise: float = 0.3
    all_present: float = 0.7
    age_jitter_s: int = 3
    average_decay: float = 0.99
    checkpoint_every: int = 200
    modalities: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise FusedgeError(f"the seed cannot be {self.seed}", hint="a seed is 0 or above")


class _Features:
    """Features of all drives, plain and mirrored, in one tensor a modality, and who is where."""

    def __init__(
        self,
        model: FusionModel,
        drives: Sequence[Drive],
        modalities: Sequence[Modality],
        mirrored: Mapping[str, Sequence[str]],
    ) -> None:
        self.values: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self.first: dict[str, NDArray[np.int64]] = {}
        for modality in modalities:
            extractor = model.encoder(modality.name).extractor
            signs = torch.tensor(
                [-1.0 if c.name in mirrored[modality.name] else 1.0 for c in modality.channels]
            )
            values, seen, first, count = [], [], [], 0
            for sign in (torch.ones_like(signs), signs):
                for drive in drives:
                    track = drive.tracks[modality.name]
                    with torch.no_grad():
                        states = model.encoder(modality.name).zero_states(1)[:2]
                        v, s, *_ = extractor(
                            (track.window * sign)[None], track.valid[None], *states
                        )
                    values.append(v[0])
                    seen.append(s[0])
                    first.append(count)
                    count += len(v[0])
            self.values[modality.name] = torch.cat(values)
            self.seen[modality.name] = torch.cat(seen)
            self.first[modality.name] = np.array(first).reshape(2, -1)


def train(
    config: ModelConfig,
    drives: Sequence[Drive],
    modalities: Sequence[Modality],
    mirrored: Mapping[str, Sequence[str]],
    recipe: TrainingConfig,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> FusionModel:
    """A trained model in evaluation mode; the same arguments give the same weights.

    With `checkpoint` (a folder) the state is written there now and then, and training goes on from
    what lies there, bit for bit as if it had not stopped. Raises FusedgeError where that belongs
    to another recipe or other drives.
    """
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(recipe.seed)
        model = FusionModel(config)
        for modality in modalities:
            tracks = [drive.tracks[modality.name] for drive in drives]
            model.encoder(modality.name).extractor.calibrate([(t.window, t.valid) for t in tracks])
        model.train()
        return _Run(model, drives, modalities, mirrored, recipe, checkpoint, progress).finish()


class _Run:
    def __init__(
        self,
        model: FusionModel,
        drives: Sequence[Drive],
        modalities: Sequence[Modality],
        mirrored: Mapping[str, Sequence[str]],
        recipe: TrainingConfig,
        checkpoint: Path | None,
        progress: Progress,
    ) -> None:
        self.model, self.drives, self.recipe, self.progress = model, drives, recipe, progress
        self.modalities = tuple(modalities)
        self.features = _Features(model, drives, modalities, mirrored)
        self.parameters = dict(model.named_parameters())
        self.average = WeightAverage(self.parameters, recipe.average_decay)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.shown = [
            recipe.modalities is None or m.name in recipe.modalities for m in self.modalities
        ]
        self.store = None if checkpoint is None else Checkpoint(checkpoint, self._fingerprint())
        self.step = 0

    def _fingerprint(self) -> str:
        """Changes with anything that the weights depend on."""
        facts = {"recipe": asdict(self.recipe), "model": self.model.config.to_dict()}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for values in self.features.values.values():
            digest.update(values.numpy().tobytes())
        for drive in self.drives:
            digest.update(b"" if drive.hidden is None else drive.hidden.tobytes())
        return digest.hexdigest()

    def finish(self) -> FusionModel:
        if self.store is not None:
            self._restore(self.store)
        steps = self.recipe.steps
        while self.step < steps:
            loss = self._advance()
            self.step += 1
            if self.store is not None and (
                self.step % self.recipe.checkpoint_every == 0 or self.step == steps
            ):
                self._save(self.store)
            self.progress(self.step, steps, loss)
        self.model.load_state_dict(self.average.values, strict=False)
        return self.model.eval()

    def _advance(self) -> float:
        recipe = self.recipe
        # All randomness of a step comes from its number, so that resuming needs no generator state.
        random = np.random.default_rng([recipe.seed, self.step])
        torch.manual_seed(int(random.integers(2**62)))
        tensors, labels = self._batch(random)
        members = self.model.head.member_logits(*tensors)
        flat = members.reshape(-1, members.shape[-1])
        loss = functional.cross_entropy(
            flat,
            labels.repeat(len(members)),
            label_smoothing=recipe.label_smoothing,
            ignore_index=_IGNORED,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * one_cycle((self.step + 0.5) / recipe.steps, 0.1)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.average.update(self.step)
        return loss.item()

    def _batch(self, random: np.random.Generator) -> tuple[list[Tensor], Tensor]:
        """The head's inputs for a batch of crops, `[batch * ticks, ...]`, and the labels.

        Styles take turns, and within a style its drives are equally likely.
        """
        recipe = self.recipe
        labels = np.array([drive.label for drive in self.drives])
        classes = np.unique(labels)
        wanted = classes[np.arange(recipe.batch) % len(classes)]
        chosen = np.array([random.choice(np.flatnonzero(labels == label)) for label in wanted])
        mirror = random.integers(2, size=recipe.batch)
        lengths = np.array([len(self.drives[k].ticks) for k in chosen])
        starts = random.integers(np.maximum(1, lengths - recipe.crop_s + 1))
        crop = np.arange(recipe.warm_up_s, recipe.crop_s)
        ticks = np.minimum(starts[:, None] + crop, lengths[:, None] - 1)
        embeddings, ages = [], []
        present = self._subsets(random)[:, None] & np.ones_like(ticks, bool)[..., None]
        for column, modality in enumerate(self.modalities):
            jitter = random.integers(recipe.age_jitter_s + 1, size=(recipe.batch, 1))
            embedding, age, there = self._embed(modality, chosen, mirror, starts, ticks, jitter)
            embeddings.append(embedding.flatten(0, 1))
            ages.append(age)
            present[..., column] &= there
        presence = torch.from_numpy(present.reshape(-1, len(self.modalities)).astype(np.float32))
        stacked = torch.from_numpy(np.stack(ages, axis=-1).reshape(presence.shape))
        targets = np.repeat(labels[chosen][:, None], len(crop), axis=1)
        for row, k in enumerate(chosen):
            hidden = self.drives[k].hidden
            if hidden is not None:
                targets[row, hidden[ticks[row]]] = _IGNORED
        flat = torch.from_numpy(targets.ravel())
        return [*embeddings, presence, stacked], flat

    def _subsets(self, random: np.random.Generator) -> NDArray[np.bool_]:
        """Which modalities each crop shows, bool `[batch, M]`: all, or any non-empty subset."""
        recipe, count = self.recipe, sum(self.shown)
        codes = random.integers(1, 2**count, size=recipe.batch)
        codes[random.random(recipe.batch) < recipe.all_present] = 2**count - 1
        subsets = np.zeros((recipe.batch, len(self.shown)), bool)
        subsets[:, np.flatnonzero(self.shown)] = codes[:, None] >> np.arange(count) & 1
        return subsets

    def _embed(
        self,
        modality: Modality,
        chosen: NDArray[np.int64],
        mirror: NDArray[np.int64],
        starts: NDArray[np.int64],
        ticks: NDArray[np.int64],
        jitter: NDArray[np.int64],
    ) -> tuple[Tensor, NDArray[np.float32], NDArray[np.bool_]]:
        """Embedding `[batch, ticks, D]` from zero state at the crop's start, its age, and presence."""
        recipe, name = self.recipe, modality.name
        a_second = round(1 / modality.hop_s)
        count = recipe.crop_s * a_second
        tracks = [self.drives[k].tracks[name] for k in chosen]
        limits = np.array([len(t.window) // modality.window_samples for t in tracks])
        base = self.features.first[name][mirror, chosen]
        hops = np.minimum(starts[:, None] * a_second + np.arange(count), limits[:, None] - 1)
        index = torch.from_numpy(base[:, None] + hops)
        features, seen = self.features.values[name][index], self.features.seen[name][index]
        batch, _, width = features.shape
        # One disturbance for a whole crop, as another car, mount or driver would bring.
        features = features + recipe.feature_noise * torch.randn(batch, 1, width)
        encoder = self.model.encoder(name)
        embedded, *_ = encoder.embed(features, seen, *encoder.zero_states(batch)[2:])
        newest = np.stack([t.newest[row] for t, row in zip(tracks, ticks, strict=True)])
        age = np.stack([t.age[row] for t, row in zip(tracks, ticks, strict=True)])
        local = newest - jitter * a_second - starts[:, None] * a_second
        there = (newest >= 0) & (local >= 0)
        picked = torch.from_numpy(np.clip(local, 0, count - 1)).unsqueeze(-1)
        embedding = embedded.gather(1, picked.expand(-1, -1, embedded.shape[-1]))
        return embedding, age + jitter.astype(np.float32), there

    def _save(self, store: Checkpoint) -> None:
        tensors = {f"model.{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        for name, value in self.parameters.items():
            state = self.optimizer.state[value]
            tensors |= {f"{key}.{name}": state[key] for key in _MOMENTS}
        store.write(self.step, tensors)

    def _restore(self, store: Checkpoint) -> None:
        found = store.read()
        if found is None:
            return
        self.step, tensors = found
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"model.{name}"])
                self.average.values[name].copy_(tensors[f"average.{name}"])
                self.optimizer.state[value] = {key: tensors[f"{key}.{name}"] for key in _MOMENTS}


_IGNORED = -100  # a target that the loss leaves out
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of a parameter
