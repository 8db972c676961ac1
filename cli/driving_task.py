"""What commands must know of the task `driving`: its recordings, its facts, its metric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Provenance
from fusedge.bundle.sample import Recording
from fusedge.cli.tasks import WEIGHTS
from fusedge.devices.capture.replay.uah import find_trips, read_recording

if TYPE_CHECKING:
    from fusedge.export.evaluation import Logits, StreamEvaluation
    from fusedge.export.part import ModulePart
    from fusedge.export.task import Task
    from fusedge.models.fusion_model import FusionModel

WEIGHTS_LICENCE = "non-commercial use only (trained on UAH-DriveSet); see LICENSE-WEIGHTS.md"
ATTRIBUTION = (
    "E. Romera, L. M. Bergasa, R. Arroyo: Need Data for Driver Behaviour Analysis? Presenting the "
    "Public UAH-DriveSet, IEEE ITSC 2016"
)


def read_recordings(data: Path) -> list[Recording]:
    """All trips of UAH-DriveSet under a data folder; raises FusedgeError where there are none."""
    return [read_recording(path) for path in find_trips(data)]


def load_driving(
    weights: Path,
    figures: Mapping[str, float] = MappingProxyType({}),
    card: Mapping[str, bytes] = MappingProxyType({}),
) -> tuple[FusionModel, Task]:
    """The model of a weights file and the facts of its task; the weights' licence goes along."""
    from fusedge.export.task import Task
    from fusedge.models import driving
    from fusedge.models.fusion_model import load_model

    model, notes = load_model(weights)
    try:
        modalities = driving.modalities(float(notes["gps_latency_s"]))
        training_data = notes["training_data"]
    except (KeyError, ValueError):
        raise FusedgeError(
            "the weights do not say what they were trained on",
            where=str(weights),
            hint="train them with `fusedge train driving`",
        ) from None
    task = Task(
        name="driving",
        description=driving.DESCRIPTION,
        decision_rate_hz=driving.DECISION_RATE_HZ,
        modalities=modalities,
        fusion_kind=model.config.fusion,
        outputs=(driving.STYLE,),
        events=driving.EVENTS,
        provenance=Provenance(
            task="driving",
            weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
            training_data=training_data,
            weights_licence=WEIGHTS_LICENCE,
            attribution=ATTRIBUTION,
            tools={},
        ),
        accuracy=figures,
        documents={
            "LICENSE-WEIGHTS.md": (WEIGHTS / "LICENSE-WEIGHTS.md").read_bytes(),
            **card,
        },
    )
    return model, task


def driving_evaluation(parts: Sequence[ModulePart], task: Task, data: Path) -> StreamEvaluation:
    """The task's own metric, macro-F1 of the style over all decisions, on the recordings under `data`.

    The shipped weights were trained on them, so the figure is no accuracy: only what a precision costs.
    """
    import numpy as np

    from fusedge.export.evaluation import RecordedSession, RecordedTrack, StreamEvaluation
    from fusedge.models import driving
    from fusedge.models.driving_training import make_drives
    from fusedge.models.metrics import macro_f1

    drives = make_drives(read_recordings(data), task.modalities)
    sessions = [
        RecordedSession(
            {
                spec.name: RecordedTrack(
                    drive.tracks[spec.name].window.numpy().reshape(-1, *spec.window_shape),
                    drive.tracks[spec.name].valid.numpy().reshape(-1, *spec.valid_shape),
                    drive.tracks[spec.name].newest,
                    drive.tracks[spec.name].age,
                )
                for spec in task.modalities
            }
        )
        for drive in drives
    ]
    labels = np.concatenate([np.full(len(drive.ticks), drive.label) for drive in drives])

    def score(logits: Sequence[Logits]) -> float:
        found = np.concatenate([rows[driving.STYLE.logits].argmax(-1) for rows in logits])
        return macro_f1(labels.astype(np.int64), found.astype(np.int64), len(driving.LABELS))

    return StreamEvaluation(parts, sessions, score, f"macro-F1 on {len(drives)} trips")
