"""Spoken takes of RAVDESS, and the folds in which their actors are held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
FOLDS: tuple[tuple[int, ...], ...] = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)
"""Actors of each of the five folds of Luna-Jimenez et al. 2021, Sensors 21:7665."""


@dataclass(frozen=True)
class Take:
    """One clip. `wave` is float32 `[T]` at 16 kHz within [-1, 1]; `units` are float32 `[35]`.

    `label` is the place in `VOICE_LABELS`. `units` are the means of the film's action units.
    """

    name: str
    label: int
    actor: int
    wave: NDArray[np.float32]
    units: NDArray[np.float32]

    @property
    def female(self) -> bool:
        """Actors of even number are women."""
        return self.actor % 2 == 0


def take_of(name: str, wave: NDArray[np.float32], units: NDArray[np.float32]) -> Take:
    """The take of that name, in which RAVDESS says emotion (01 to 08) and actor: `03-01-05-…-12`."""
    return Take(name, int(name[6:8]) - 1, int(name[-2:]), wave, units)


def fold_of(actor: int) -> int:
    """The number of the fold that the actor is in."""
    return next(number for number, actors in enumerate(FOLDS) if actor in actors)
