"""Facial action units, as OpenFace gives them: for paired figures with the voice of the same takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedge.models.emotion.labels import VOICE_LABELS
from fusedge.models.emotion.takes import ACTION_UNITS, Take, fold_of
from fusedge.models.one_thread import one_thread

_MOST = 4.0  # deviations: a presence that is rare is not to outweigh all else


@dataclass(frozen=True)
class ActionUnitConfig:
    """`units` is how many there are."""

    units: int = ACTION_UNITS


@dataclass(frozen=True)
class UnitRecipe:
    """AdamW on all takes at once, with a learning rate that falls as a cosine. `noise` is in deviations.

    On 1020 takes by the actors that the first fold is trained on, each group by a classifier that had not
    met it: 57.4 % without noise, 59.6 with 0.3, 60.0 with 0.5, 59.2 with 0.8.
    """

    steps: int = 300
    learning_rate: float = 0.02
    weight_decay: float = 1e-3
    noise: float = 0.5


class ActionUnitClassifier(nn.Module):
    """What action units alone say: logits `[..., 8]`, by `VOICE_LABELS`, from units `[..., 35]`; linear."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ActionUnitConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.units))
        self.register_buffer("deviation", torch.ones(config.units))
        self.judge = nn.Linear(config.units, len(VOICE_LABELS))

    def scaled(self, units: Tensor) -> Tensor:
        """In deviations from the mean of the training takes."""
        return ((units - self.mean) / self.deviation).clamp(-_MOST, _MOST)

    def forward(self, units: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.judge(self.scaled(units))
        return logits


def units_of(takes: Sequence[Take]) -> Tensor:
    """The action units of takes, `[N, 35]`."""
    return torch.from_numpy(np.stack([take.units for take in takes]))


def train_units(takes: Sequence[Take], recipe: UnitRecipe, seed: int) -> ActionUnitClassifier:
    """A classifier in evaluation mode; the same arguments give the same weights."""
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = ActionUnitClassifier(ActionUnitConfig())
        units, labels = units_of(takes), torch.tensor([take.label for take in takes])
        model.mean.copy_(units.mean(dim=0))
        model.deviation.copy_(units.std(dim=0) + 0.05)
        scaled = model.scaled(units)
        optimiser = torch.optim.AdamW(
            model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
        for _ in range(recipe.steps):
            noisy = scaled + recipe.noise * torch.randn(scaled.shape)
            loss = functional.cross_entropy(model.judge(noisy), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        return model.eval()


@torch.no_grad()
def honest_units(takes: Sequence[Take], recipe: UnitRecipe, seed: int) -> Tensor:
    """What classifiers say of takes, `[N, 1, 8]`, that have not seen their group of actors."""
    groups = torch.tensor([fold_of(take.actor) for take in takes])
    said = torch.zeros(len(takes), 1, len(VOICE_LABELS))
    for group in sorted(set(groups.tolist())):
        rest = [take for take in takes if fold_of(take.actor) != group]
        with torch.enable_grad():
            model = train_units(rest, recipe, seed)
        own = groups == group
        said[own, 0] = model(units_of(takes)[own])
    return said
