"""A decision, and how it looks in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.window import NANOSECONDS


@dataclass(frozen=True, slots=True)
class ModalityShare:
    """What a decision rests on: `contribution` is how much less probable the decided label would be
    without this modality. It is 0 where the modality is absent; below 0 it spoke against the label.
    """

    present: bool
    age_s: float | None
    contribution: float


@dataclass(frozen=True, slots=True)
class Classification:
    """`label` is the steady one, `probabilities` `[K]` are this tick's own, `mean` `[K]` is smoothed.

    All are None where the head's result was not finite.
    """

    labels: tuple[str, ...]
    label: str | None
    probabilities: NDArray[np.float64] | None
    mean: NDArray[np.float64] | None

    @property
    def momentary_label(self) -> str | None:
        """The most probable label of this tick alone, without smoothing."""
        if self.probabilities is None:
            return None
        return self.labels[int(self.probabilities.argmax())]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "probabilities": self._named(self.probabilities),
            "mean": self._named(self.mean),
        }

    def _named(self, values: NDArray[np.float64] | None) -> dict[str, float] | None:
        if values is None:
            return None
        return {n: round(float(v), 6) for n, v in zip(self.labels, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Decision:
    """What the pipeline says at one tick. `latency_ns` is from the tick to its emission."""

    timestamp_ns: int
    outputs: dict[str, Classification]
    modalities: dict[str, ModalityShare]
    latency_ns: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "type": "decision",
            "t_s": round(self.timestamp_ns / NANOSECONDS, 6),
            "outputs": {name: output.as_dict() for name, output in self.outputs.items()},
            "modalities": {
                name: {
                    "present": share.present,
                    "age_s": None if share.age_s is None else round(share.age_s, 3),
                    "contribution": round(share.contribution, 6),
                }
                for name, share in self.modalities.items()
            },
            "latency_ms": round(self.latency_ns / 1e6, 3),
        }
