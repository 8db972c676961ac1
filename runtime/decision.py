"""A decision, and how it looks in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.front.sighting import Sighting

NOTHING_PRESENT = "nothing_present"
"""The `problem` of a decision that rests on no modality at all, which is no fault."""


class ModalityShare(NamedTuple):
    """What a decision rests on: whether a modality was there, and how old its embedding is.

    `front` is what its front end has seen last, at the time of the decision; None where it has none.
    """

    present: bool
    age_s: float | None
    front: Sighting | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shown: dict[str, Any] = {
            "present": self.present,
            "age_s": None if self.age_s is None else round(self.age_s, 3),
        }
        return shown if self.front is None else {**shown, "front": self.front.as_dict()}


@dataclass(frozen=True, slots=True)
class Classification:
    """`label` is the steady one, `probabilities` `[K]` are this tick's own, `mean` `[K]` is smoothed.

    All are None where the head gave no finite result, or had nothing to rest on. `contributions` tell
    by modality how much less probable the label would be without it: 0 where it is absent, below 0
    where it spoke against the label, None where the head gave nothing finite without it.
    """

    labels: tuple[str, ...]
    label: str | None
    probabilities: NDArray[np.float64] | None
    mean: NDArray[np.float64] | None
    contributions: Mapping[str, float | None]

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
            "contributions": {
                name: None if value is None else round(value, 6)
                for name, value in self.contributions.items()
            },
        }

    def _named(self, values: NDArray[np.float64] | None) -> dict[str, float] | None:
        if values is None:
            return None
        return {n: round(float(v), 6) for n, v in zip(self.labels, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Decision:
    """What the pipeline says at one tick. `latency_ns` is from the tick to its emission.

    `problem` is empty, or says why there are no labels: NOTHING_PRESENT, or what went wrong:
    `part_failed`, `hangs`, `not_finite`, ….
    """

    timestamp_ns: int
    outputs: dict[str, Classification]
    modalities: dict[str, ModalityShare]
    latency_ns: int
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "type": "decision",
            "t_s": round(self.timestamp_ns / NANOSECONDS, 6),
            "outputs": {name: output.as_dict() for name, output in self.outputs.items()},
            "modalities": {name: share.as_dict() for name, share in self.modalities.items()},
            "latency_ms": round(self.latency_ns / 1e6, 3),
            "problem": self.problem or None,
        }
