"""RAVDESS with actors left out: what is trained, calibrated and chosen in a fold has not met its actors.

Of a take to train on, the voice is judged by a member of the ensemble that has not heard its actor, and the
head learns from that. The fold's own takes are judged by all members, none of which has heard the fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, cat

from fusedge.models.emotion.action_units import ActionUnitConfig
from fusedge.models.emotion.head_training import (
    Batch,
    HeadRecipe,
    HeldOut,
    PairedTakes,
    Samples,
    judge_held_out,
)
from fusedge.models.emotion.labels import LABELS
from fusedge.models.emotion.model import EmotionModel
from fusedge.models.emotion.takes import FOLDS, Take, fold_of
from fusedge.models.emotion.training import Source, assemble, take_samples
from fusedge.models.emotion.voice_encoder import VoiceClassifier
from fusedge.models.emotion.voice_ensemble import EnsembleRecipe
from fusedge.models.emotion.voice_training import hear
from fusedge.models.fusion import FUSION_KINDS, FusionKind
from fusedge.models.metrics import calibration_error, confusion, f1_by_class

PAIRED = ("action_units", "voice")
"""The modalities of a take, in the head's order."""


@dataclass(frozen=True)
class PairedRecipe:
    """How the networks of a fold are trained: one with `fusion` is exported, `kinds` are compared."""

    fusion: FusionKind = "late_product"
    voice: EnsembleRecipe = field(default_factory=EnsembleRecipe)
    head: HeadRecipe = field(default_factory=lambda: HeadRecipe(noise=0.6))
    kinds: tuple[FusionKind, ...] = FUSION_KINDS
    folds: tuple[int, ...] = tuple(range(len(FOLDS)))


@torch.no_grad()
def said_at_the_end(voice: VoiceClassifier, takes: Sequence[Take]) -> Tensor:
    """What the voice's classifier says at the last hop of each take, `[N, 1, 8]`."""
    return torch.stack([voice(hear(voice, take.wave)[-1:]) for take in takes])


class PairedOpinions:
    """Action units, and what was said of the voice (`[N, H, 8]`), of the same takes."""

    def __init__(self, takes: Sequence[Take], voice: Tensor) -> None:
        units = torch.from_numpy(np.stack([take.units for take in takes])).unsqueeze(1)
        self.samples: Mapping[str, Samples] = {
            "action_units": take_samples(units, takes),
            "voice": take_samples(voice, takes),
        }
        self._groups = torch.tensor([fold_of(take.actor) for take in takes])

    def examples(self, names: Sequence[str]) -> PairedTakes:
        """All takes, to train a head over these modalities."""
        return PairedTakes(tuple(self.samples[name] for name in names))

    def shown(self, names: Sequence[str]) -> Batch:
        """All takes at their last hop: with all of these modalities and, where they are several, with each
        alone, one after the other.
        """
        chosen = [self.samples[name] for name in names]
        return _shown(chosen)

    def splits(self, names: Sequence[str]) -> Iterator[tuple[PairedTakes, Batch]]:
        """For each group of actors the takes of the others, and the group's own as in `shown`."""
        chosen = [self.samples[name] for name in names]
        for group in sorted(set(self._groups.tolist())):
            own = self._groups == group
            rest = PairedTakes(tuple(samples.only(~own) for samples in chosen))
            yield rest, _shown([samples.only(own) for samples in chosen])


def _shown(chosen: Sequence[Samples]) -> Batch:
    count, rows = len(chosen), len(chosen[0].labels)
    masks = [torch.ones(count), *(torch.eye(count) if count > 1 else ())]
    return Batch(
        tuple(cat([samples.said[:, -1]] * len(masks)) for samples in chosen),
        torch.stack(masks).repeat_interleave(rows, dim=0),
        cat([chosen[0].labels] * len(masks)),
    )


def paired_model(
    opinions: PairedOpinions, names: Sequence[str], voice: VoiceClassifier, fusion: FusionKind
) -> EmotionModel:
    """A network over these modalities with a new head, and the scale of these opinions."""
    sources: Mapping[str, Source] = {"action_units": ActionUnitConfig(), "voice": voice}
    model = assemble({name: sources[name] for name in names}, fusion)
    for name in names:
        model.encoder(name).calibrate(opinions.samples[name].said.flatten(0, 1))
    return model


def inner_judgements(
    model: EmotionModel, opinions: PairedOpinions, recipe: HeadRecipe
) -> list[HeldOut]:
    """Of each group of the actors to train on, what a head that was trained on the others says."""
    return list(judge_held_out(model, opinions.splits(model.modalities), recipe))


def score(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], known: Sequence[str]
) -> dict[str, Any]:
    """Figures of what was said, float64 `[N, K]` by LABELS, of labels int64 `[N]`, which are among `known`.

    NaN is no decision, and wrong; the calibration error is of the others. Macro-F1 is over `known`.
    """
    undecided = np.isnan(probabilities[:, 0])
    said = np.where(undecided, len(LABELS), np.nan_to_num(probabilities).argmax(axis=1))
    counts = confusion(labels, said.astype(np.int64), len(LABELS) + 1)
    at = [LABELS.index(label) for label in known]
    recall = counts.diagonal() / np.maximum(counts.sum(axis=1), 1)
    return {
        "count": len(labels),
        "undecided": int(undecided.sum()),
        "accuracy": float((said == labels).mean()),
        "macro_f1": float(f1_by_class(counts)[at].mean()),
        "calibration_error": calibration_error(labels[~undecided], probabilities[~undecided]),
        "recall": {label: float(recall[place]) for label, place in zip(known, at, strict=True)},
    }
