"""The head, fitted to what classifiers say of people they have not seen, some left out at random.

Two ways to come by pairs. `PairedTakes` are real: two modalities of the same takes. `MatchedByLabel` are
made up, where no set has both: two samples of different people with the same label. That supposes that a
face and a voice have nothing in common but the label; no accuracy is claimed from such pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fusedge.models.emotion.labels import LABELS, places
from fusedge.models.emotion.model import EmotionModel, Head, Opinion
from fusedge.models.fusion import LateProductFusion
from fusedge.models.one_thread import one_thread
from fusedge.models.temperature import fitted_temperature
from fusedge.models.training import Progress
from fusedge.models.weight_average import WeightAverage


class Batch(NamedTuple):
    """Opinions `[B, S]` by modality, presence `[B, M]` of 0 and 1, and what is to be said `[B, K]`."""

    said: tuple[Tensor, ...]
    presence: Tensor
    target: Tensor


class Examples(Protocol):
    """Where batches come from: samples of each modality."""

    @property
    def modalities(self) -> tuple[Samples, ...]:
        """In the head's order."""

    def batch(self, size: int, random: torch.Generator) -> Batch:
        """As many rows, drawn anew."""


@dataclass(frozen=True)
class Samples:
    """Of one modality: opinions `[N, H, S]`, H a sample to draw from; labels `[N, K]` that sum to 1."""

    said: Tensor
    labels: Tensor

    def draw(self, rows: Tensor, random: torch.Generator) -> Tensor:
        """One opinion on each of these samples."""
        places = torch.randint(self.said.shape[1], (len(rows),), generator=random)
        return self.said[rows, places]

    def only(self, chosen: Tensor) -> Samples:
        """Those that are marked, bool `[N]`."""
        return Samples(self.said[chosen], self.labels[chosen])


def _presence(count: int, size: int, both: float, random: torch.Generator) -> Tensor:
    """All modalities in a share `both` of the rows, else one alone."""
    alone = torch.randint(count, (size,), generator=random)
    presence = functional.one_hot(alone, count).float()
    presence[torch.rand(size, generator=random) < both] = 1.0
    return presence


@dataclass(frozen=True)
class PairedTakes:
    """Modalities of the same takes, in the same order, with one label for all."""

    modalities: tuple[Samples, ...]
    both: float = 0.5

    def batch(self, size: int, random: torch.Generator) -> Batch:
        """See Examples."""
        rows = torch.randint(len(self.modalities[0].labels), (size,), generator=random)
        return Batch(
            tuple(samples.draw(rows, random) for samples in self.modalities),
            _presence(len(self.modalities), size, self.both, random),
            self.modalities[0].labels[rows],
        )


class MatchedByLabel:
    """Samples of any modality with the same label, every label equally often; alone, as often as they are.

    A modality whose data does not know a label tells nothing of it: then any of its samples is taken, so
    that the head learns just that; `alike` has those that look like another (calm faces like neutral ones).
    """

    def __init__(
        self,
        modalities: Sequence[Samples],
        alike: Sequence[dict[str, str]],
        both: float = 0.5,
    ) -> None:
        self.modalities = tuple(modalities)
        self.both = both
        self._of_label: list[list[Tensor]] = []
        for samples, same in zip(modalities, alike, strict=True):
            most = samples.labels.argmax(dim=1)
            everything = torch.arange(len(most))
            rows = []
            for label in LABELS:
                found = (most == LABELS.index(same.get(label, label))).nonzero()[:, 0]
                rows.append(found if len(found) else everything)
            self._of_label.append(rows)

    def batch(self, size: int, random: torch.Generator) -> Batch:
        """See Examples."""
        presence = _presence(len(self.modalities), size, self.both, random)
        wanted = torch.randint(len(LABELS), (size,), generator=random)
        target = functional.one_hot(wanted, len(LABELS)).float()
        inputs = []
        for index, samples in enumerate(self.modalities):
            rows = torch.randint(len(samples.labels), (size,), generator=random)
            for label, known in enumerate(self._of_label[index]):
                matched = (wanted == label) & (presence.sum(dim=1) > 1)
                chosen = torch.randint(len(known), (int(matched.sum()),), generator=random)
                rows[matched] = known[chosen]
            inputs.append(samples.draw(rows, random))
            alone = (presence.sum(dim=1) == 1) & (presence[:, index] == 1)
            target[alone] = samples.labels[rows[alone]]
        return Batch(tuple(inputs), presence, target)


@dataclass(frozen=True)
class HeadRecipe:
    """AdamW with a learning rate that falls as a cosine; the average of the weights is kept."""

    seed: int = 0
    steps: int = 1500
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    age_s: float = 0.6  # embeddings are up to this old: the greatest max_age_s
    average_decay: float = 0.995


def train_head(
    model: EmotionModel,
    examples: Examples,
    recipe: HeadRecipe,
    progress: Progress = lambda step, steps, loss: None,
) -> None:
    """Train the head of a model in place; it ends in evaluation mode. Same arguments, same weights.

    Of posteriors that are multiplied, nothing is trained: their prior is that of the examples.
    """
    opinions = [model.encoder(name) for name in model.modalities]
    if isinstance(model.head.fusion, LateProductFusion):
        _set_prior(model.head.fusion, opinions, examples)
        return
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        random = torch.Generator().manual_seed(recipe.seed)
        model.head.load_state_dict(Head(model.config).state_dict())
        optimiser = torch.optim.AdamW(
            model.head.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
        average = WeightAverage(model.head.state_dict(), recipe.average_decay)
        model.eval()
        model.head.train()
        for step in range(1, recipe.steps + 1):
            said, presence, target = examples.batch(recipe.batch, random)
            embeddings = [opinion.embed(x) for opinion, x in zip(opinions, said, strict=True)]
            age = torch.rand(presence.shape, generator=random) * recipe.age_s * presence
            smooth = recipe.label_smoothing
            loss = functional.cross_entropy(
                model.head(*embeddings, presence, age),
                target * (1 - smooth) + smooth / target.shape[1],
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            average.update(step)
            progress(step, recipe.steps, float(loss.detach()))
        model.head.load_state_dict(average.values)
        model.eval()


@torch.no_grad()
def _set_prior(fusion: LateProductFusion, opinions: Sequence[Opinion], examples: Examples) -> None:
    """A label is as probable as it is frequent, in the mean over modalities."""
    frequent = []
    for opinion, samples in zip(opinions, examples.modalities, strict=True):
        shares = samples.labels.mean(dim=0)[list(places(opinion.labels))]
        frequent.append(opinion.over_all(shares.log()).exp())
    fusion.prior.copy_(torch.stack(frequent).mean(dim=0).log())


class HeldOut(NamedTuple):
    """What a head said, logits `[B, K]`, of a batch that it was not trained on."""

    batch: Batch
    logits: Tensor


def judge_held_out(
    model: EmotionModel, splits: Iterable[tuple[Examples, Batch]], recipe: HeadRecipe
) -> Iterator[HeldOut]:
    """Of each split, examples and a batch, what a head that is trained on the former says of the latter.

    The model is left with the last head.
    """
    for examples, batch in splits:
        train_head(model, examples, recipe)
        yield HeldOut(batch, fused_logits(model, batch.said, batch.presence))


def fit_head(
    model: EmotionModel,
    examples: Examples,
    splits: Iterable[tuple[Examples, Batch]],
    recipe: HeadRecipe,
    progress: Progress = lambda step, steps, loss: None,
) -> float:
    """Train the head; returns the temperature of its output, by heads of `splits` on what these held out.

    A product of calibrated posteriors is calibrated.
    """
    product = isinstance(model.head.fusion, LateProductFusion)
    temperature = 1.0 if product else joint_temperature(judge_held_out(model, splits, recipe))
    train_head(model, examples, recipe, progress)
    return temperature


def joint_temperature(held_out: Iterable[HeldOut]) -> float:
    """The geometric mean of the temperatures that suit each of these best."""
    found = [fitted_temperature(one.logits, one.batch.target) for one in held_out]
    return round(float(np.exp(np.mean(np.log(found)))), 3)


@torch.no_grad()
def fused_logits(model: EmotionModel, said: Sequence[Tensor], presence: Tensor) -> Tensor:
    """What the head makes of opinions `[N, S]` by modality, with `presence` `[N, M]`: logits `[N, K]`."""
    opinions = [model.encoder(name) for name in model.modalities]
    embeddings = [opinion.embed(x) for opinion, x in zip(opinions, said, strict=True)]
    logits: Tensor = model.head(*embeddings, presence, torch.zeros_like(presence))
    return logits
