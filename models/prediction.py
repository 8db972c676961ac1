"""What a model says about a drive at every tick, by the rules of the runtime."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.models.dataset import Drive
from fusedge.models.fusion_model import FusionModel


@torch.no_grad()
def predict(
    model: FusionModel,
    drive: Drive,
    modalities: Sequence[Modality],
    shown: Collection[str] | None = None,
) -> NDArray[np.float64]:
    """Probabilities float64 `[ticks, K]`; modalities that are not `shown` are masked."""
    embeddings, presence, ages = [], [], []
    for modality in modalities:
        track, encoder = drive.tracks[modality.name], model.encoder(modality.name)
        embedded, *_ = encoder(track.window[None], track.valid[None], *encoder.zero_states(1))
        embeddings.append(embedded[0, torch.from_numpy(np.maximum(track.newest, 0))])
        present = track.newest >= 0
        if shown is not None and modality.name not in shown:
            present = np.zeros_like(present)
        presence.append(present.astype(np.float32))
        ages.append(track.age * present)
    stacked = (torch.from_numpy(np.stack(columns, axis=-1)) for columns in (presence, ages))
    logits = model.head(*embeddings, *stacked)
    probabilities: NDArray[np.float64] = logits.double().softmax(dim=-1).numpy()
    return probabilities
