"""What a front end saw beside the samples that it gave, for decisions and for whoever looks on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

KEPT = 256  # sightings a modality: sound has 31 a second, and a decision is at most 2 s behind


class FaceSeen(NamedTuple):
    """One face of a frame: `box` is x, y, width and height in its pixels, `number` is of its track."""

    number: int
    box: tuple[float, float, float, float]
    score: float
    drives: bool


class FacesSeen(NamedTuple):
    """All faces of a frame of `height` x `width` pixels, which came at `arrival_ns`.

    The frame may be its source's, shrunk. So whoever reads the JSON has boxes in shares of the frame.
    """

    arrival_ns: int
    height: int
    width: int
    faces: tuple[FaceSeen, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: x and width as shares of the frame's width, y and height of its height."""
        sides = (self.width, self.height) * 2
        return {
            "frame": [self.width, self.height],
            "faces": [
                {
                    "id": face.number,
                    "box": [round(at / side, 4) for at, side in zip(face.box, sides, strict=True)],
                    "score": round(face.score, 3),
                    "drives": face.drives,
                }
                for face in self.faces
            ],
        }


class SpeechHeard(NamedTuple):
    """How probable it is that somebody spoke in the newest step of sound, which came at `arrival_ns`."""

    arrival_ns: int
    probability: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"speech": round(self.probability, 3)}


class View(NamedTuple):
    """A frame, uint8 `[height, width, 3]`, RGB, that nobody writes to, and the faces in it."""

    frame: NDArray[np.uint8]
    seen: FacesSeen


Sighting = FacesSeen | SpeechHeard


class Sightings:
    """The newest sightings of a modality. One thread adds, others may ask.

    The newest frame is kept as well once it has been asked for, and only then: it may lie in memory of
    which its source has not much.
    """

    def __init__(self) -> None:
        self._kept: tuple[Sighting, ...] = ()
        self._views = False
        self._view: View | None = None

    def add(self, sighting: Sighting) -> None:
        """Keep one more; the oldest goes."""
        self._kept = (*self._kept[1 - KEPT :], sighting)

    def add_view(self, frame: NDArray[np.uint8], seen: FacesSeen) -> None:
        """Keep the faces of a frame, and the frame itself if somebody looks on."""
        self.add(seen)
        if self._views:
            self._view = View(frame, seen)

    def view(self) -> View | None:
        """The newest frame; None before there is one."""
        self._views = True
        return self._view

    def at(self, time_ns: int, max_age_ns: int) -> Sighting | None:
        """The newest that had come by `time_ns`; None where it is older than `max_age_ns`."""
        for sighting in reversed(self._kept):
            if sighting.arrival_ns <= time_ns:
                return sighting if time_ns - sighting.arrival_ns <= max_age_ns else None
        return None
