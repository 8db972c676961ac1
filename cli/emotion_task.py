"""What commands must know of the task `emotion`: its data, and its facts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Provenance
from fusedge.cli.tasks import WEIGHTS

if TYPE_CHECKING:
    from fusedge.export.task import Task
    from fusedge.models.emotion.ferplus import Faces
    from fusedge.models.emotion.model import EmotionModel
    from fusedge.models.emotion.takes import Take

WEIGHTS_LICENCE = (
    "CC BY-NC-SA 4.0, non-commercial (trained on RAVDESS and FER+); see LICENSE-WEIGHTS.md"
)
ATTRIBUTION = (
    "S. R. Livingstone, F. A. Russo: The Ryerson Audio-Visual Database of Emotional Speech and Song "
    "(RAVDESS), PLoS ONE 13(5): e0196391, 2018; E. Barsoum et al.: Training Deep Networks for Facial "
    "Expression Recognition with Crowd-Sourced Label Distribution (FER+), ICMI 2016"
)


def read_data(data: Path) -> tuple[Faces, list[Take]]:
    """Faces to train on, without those of `valid`, and takes; from `emotion` in a data folder.

    All is checked, so that no training begins that its data does not suffice for. Raises FusedgeError.
    """
    from fusedge.devices.capture.flac import read_flac
    from fusedge.models.emotion.ferplus import read_faces, refuse_untrainable, without_copies
    from fusedge.models.emotion.takes import read_takes

    folder = data / "emotion"
    takes = read_takes(folder, read_flac, groups=2)
    train, valid = (folder / "ferplus" / f"{split}.npz" for split in ("train", "valid"))
    faces = without_copies(read_faces(train), read_faces(valid))
    refuse_untrainable(faces, str(train))
    return faces, takes


def load_emotion_task(
    weights: Path,
    figures: Mapping[str, float] = MappingProxyType({}),
    card: Mapping[str, bytes] = MappingProxyType({}),
) -> tuple[EmotionModel, Task]:
    """The model of a weights file and the facts of its task; the weights' licence goes along.

    What finds faces and speech is taken from the packages of the extra `emotion`.
    """
    from fusedge.export.packaged_parts import front_parts
    from fusedge.export.task import Task
    from fusedge.models.emotion import task as emotion
    from fusedge.models.emotion.model import load_emotion

    model, notes = load_emotion(weights)
    try:
        temperature, training_data = float(notes["temperature"]), notes["training_data"]
    except (KeyError, ValueError):
        raise FusedgeError(
            "the weights do not say what they were trained on",
            where=str(weights),
            hint="train them with `fusedge train emotion`",
        ) from None
    modalities = tuple(emotion.modality(name) for name in model.modalities)
    task = Task(
        name="emotion",
        description=emotion.DESCRIPTION,
        decision_rate_hz=emotion.DECISION_RATE_HZ,
        modalities=modalities,
        fusion_kind=model.config.fusion,
        outputs=(emotion.output(temperature),),
        fronts=front_parts(modalities),
        provenance=Provenance(
            task="emotion",
            weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
            training_data=training_data,
            weights_licence=WEIGHTS_LICENCE,
            attribution=ATTRIBUTION,
            tools={},
        ),
        accuracy=figures,
        documents={
            "LICENSE-WEIGHTS.md": (WEIGHTS / "LICENSE-WEIGHTS-EMOTION.md").read_bytes(),
            **card,
        },
    )
    return model, task
