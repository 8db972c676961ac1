"""From recordings to trained weights of the task `driving`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.regular_file import write_whole
from fusedge.bundle.sample import Recording
from fusedge.models import driving
from fusedge.models.dataset import Drive, make_drive
from fusedge.models.fusion import FusionKind
from fusedge.models.fusion_model import FusionModel, model_bytes
from fusedge.models.training import Progress, TrainingConfig, train

WEIGHTS = "weights.safetensors"
RECIPE = TrainingConfig()


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, and its weights file."""

    model: FusionModel
    path: Path


def make_drives(recordings: Sequence[Recording], modalities: Sequence[Modality]) -> list[Drive]:
    """The recordings on the grid."""
    return [make_drive(recording, modalities, driving.LABELS) for recording in recordings]


def train_driving(
    recordings: Sequence[Recording],
    folder: Path,
    *,
    fusion: FusionKind = driving.FUSION,
    recipe: TrainingConfig = RECIPE,
    hidden: Sequence[NDArray[np.bool_]] | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> Trained:
    """Train on recordings, with checkpoints in `folder`; writes `weights.safetensors` there.

    The delay of GPS is measured on these recordings alone, and travels in the weights' metadata.
    `hidden` marks decisions, one array for each recording, that must not be trained on.
    """
    latency_s = driving.gps_latency(recordings)
    modalities = driving.modalities(latency_s)
    drives = make_drives(recordings, modalities)
    if hidden is not None:
        drives = [replace(d, hidden=mask) for d, mask in zip(drives, hidden, strict=True)]
    config = driving.model_config(fusion)
    model = train(config, drives, modalities, driving.MIRRORED, recipe, folder, progress)
    groups = sorted({recording.group for recording in recordings})
    notes = {
        "gps_latency_s": repr(latency_s),
        "training_data": f"UAH-DriveSet v1, {len(recordings)} trips of drivers {', '.join(groups)}",
    }
    path = folder / WEIGHTS
    write_whole(path, model_bytes(model, notes))
    return Trained(model, path)
