"""Faces over time: which face of a frame is whose, and which one drives the decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.front.faces import Face

# What is no face scores up to 0.66 by BlazeFace's full range detector, in 34 places each of 24 pictures of
# scikit-image and of 14 patterns. A face in plain view has 0.90 or more, at a tenth of the light 0.81,
# against the light 0.75, with two thirds of it in the frame 0.52, lying on its side 0.43 (the least
# of 19 frames of three clips).
START_SCORE = 0.75  # of a new face
KEEP_SCORE = 0.5  # of one that was there before
FORGET_NS = to_ns(1.0)  # a face that was not seen for so long is a new one when it comes back
REACH = 0.7  # of a face's size, by which its centre may lie off from where it was expected
MOST_GROWTH = 2.0  # of its size from one frame to the next
VELOCITY_WEIGHT = 0.5  # of the newest movement in the mean
TAKEOVER = 1.3  # times the area of the driving face that another one needs …
TAKEOVER_NS = to_ns(0.5)  # … for so long


@dataclass
class Track:
    """One face over time. `face` is as it was last seen, at `seen_ns`."""

    number: int
    face: Face
    seen_ns: int
    velocity: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    """Of the centre, in pixels a second."""

    def centre_at(self, time_ns: int) -> NDArray[np.float32]:
        """Where its centre is expected, float32 `[2]`."""
        passed_s = np.float32((time_ns - self.seen_ns) / NANOSECONDS)
        expected: NDArray[np.float32] = self.face.centre + self.velocity * passed_s
        return expected

    def see(self, face: Face, time_ns: int) -> None:
        """It is this one now."""
        passed_s = (time_ns - self.seen_ns) / NANOSECONDS
        if passed_s > 0:
            moved = (face.centre - self.face.centre) / np.float32(passed_s)
            self.velocity += np.float32(VELOCITY_WEIGHT) * (moved - self.velocity)
        self.face, self.seen_ns = face, time_ns


class FaceTracker:
    """Contract: a face keeps its number while it is seen, and over gaps of up to FORGET_NS; no number is
    given twice. Faces of a frame go to the tracks that are nearest to them, nearest pair first, whatever
    their order; what is left and scores START_SCORE is a new track. Time that falls forgets all.
    """

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._newest_ns: int | None = None
        self.tracks: list[Track] = []

    def update(self, faces: Sequence[Face], time_ns: int) -> None:
        """Take the faces of a frame."""
        self.pass_to(time_ns)
        free = list(faces)
        for _, track, face in self._pairs(faces, time_ns):
            if track.seen_ns < time_ns and any(face is one for one in free):
                track.see(face, time_ns)
                free = [one for one in free if one is not face]
        self.tracks += [
            Track(next(self._numbers), face, time_ns) for face in free if face.score >= START_SCORE
        ]

    def pass_to(self, time_ns: int) -> None:
        """Forget what was not seen for long."""
        fell = self._newest_ns is not None and time_ns <= self._newest_ns
        self._newest_ns = time_ns
        self.tracks = [t for t in self.tracks if not fell and time_ns - t.seen_ns <= FORGET_NS]

    def _pairs(self, faces: Sequence[Face], time_ns: int) -> list[tuple[float, Track, Face]]:
        """What may belong together, nearest first."""
        pairs = []
        for track in self.tracks:
            expected = track.centre_at(time_ns)
            for face in faces:
                size, other = face.width, track.face.width
                distance = float(np.hypot(*(face.centre - expected))) / ((size + other) / 2)
                alike = 1 / MOST_GROWTH <= size / other <= MOST_GROWTH
                if alike and distance <= REACH and face.score >= KEEP_SCORE:
                    pairs.append((distance, track, face))
        return sorted(pairs, key=lambda pair: (pair[0], pair[1].number))


class Driver:
    """Contract: the face that drives is the largest. It goes on while its track lives, until another one
    has been TAKEOVER times as large for TAKEOVER_NS, so that it does not flip between two alike.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._larger_since_ns: int | None = None

    def choose(self, tracks: Sequence[Track], time_ns: int) -> Track | None:
        """The one of the tracks that drives, which may be out of sight for a moment; None without any."""
        known = {track.number: track for track in tracks}
        if not known:
            self.number = self._larger_since_ns = None
            return None
        largest = max(known.values(), key=lambda track: (_area(track), -track.number))
        driving = known.get(-1 if self.number is None else self.number)
        if driving is None:
            driving = largest
        if _area(largest) < TAKEOVER * _area(driving):
            self._larger_since_ns = None
        elif self._larger_since_ns is None:
            self._larger_since_ns = time_ns
        elif time_ns - self._larger_since_ns >= TAKEOVER_NS:
            driving, self._larger_since_ns = largest, None
        self.number = driving.number
        return driving


def _area(track: Track) -> float:
    return float(track.face.box[2] * track.face.box[3])
