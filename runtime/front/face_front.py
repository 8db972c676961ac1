"""The front end `largest_face`: whole frames in, the aligned crop of the face that drives out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample, size
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.front.crop import aligned, share_inside
from fusedge.runtime.front.faces import OVERLAP, Face, FaceDetector, Region, overlap, whole
from fusedge.runtime.front.sighting import FaceSeen, FacesSeen, Sightings
from fusedge.runtime.front.tracking import KEEP_SCORE, START_SCORE, Driver, FaceTracker, Track

# Pixels of a face that drives. FER+ faces (900 of the training set, held out) that are shrunk to a width
# and enlarged again lose 2 points of the encoder's accuracy at 24 pixels, 5 at 16, 12 at 12 and 27 at 8.
LEAST_WIDTH = 24.0
LEAST_INSIDE = 0.6  # share of its box in the frame: of less, an eye or the mouth is missing
MOST_FACES = 32
MOST_CLOSER = 3  # known faces that a frame is looked at more closely for, the driving one first …
MOST_DOUBTFUL = 2  # … and what may be faces
SMALL = 24.0  # pixels of the detector's input: a smaller face is looked at more closely
CLOSER = 3.0  # times a face's width that are then looked at
TILE_EDGE = 0.02  # of a tile's side: a face so near to an inner edge is cut off by it
FINE = 360.0  # pixels of the smallest tile: a face of 24 has 13 in a detector's input of 192
SEARCH_EVERY = 5  # frames, while a face drives: others may come
# A face that fills its frame is found where the frame is only the middle of what is looked at, on black. In
# square frames with a face as wide as 0.8, 0.9 and 1.0 of them (25 each, of three clips and the astronaut)
# the detector finds it in 8, 0 and 0 %, from twice as far in 100 %. 2.5 times found a face on a motorcycle;
# grey finds fewer than black, 27 instead of 40 % of FER+ pictures, which have no surroundings.
STEP_BACK = 2.0  # times the frame's longer side
NEAR = 0.5  # of that side: of larger faces eyes and mouth lie better from a step back, else worse
BACK = 3  # grid points by which a stamp may step back before time begins anew


@dataclass
class FaceTally:
    """What became of the frames of a session. Faces keep being counted where a source is reopened."""

    frames: int = 0
    with_face: int = 0
    faces: int = 0
    given: int = 0
    """Crops, each the only one of its grid point, so that a window takes it."""
    numbers: count[int] = field(default_factory=lambda: count(1))

    @property
    def fruitless(self) -> bool:
        """Whether there was something to look at, and nothing in it."""
        return self.frames > 0 and not self.given

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "frames": self.frames,
            "frames_with_face": self.with_face,
            "faces": self.faces,
            "samples": self.given,
        }


class FaceFront:
    """Contract: of the frames (uint8 `[height, width, 1, 3 or 4]`, RGB, of any size, which may change) as
    many as the modality's rate asks for are searched for faces: the first of those between two points of
    its windows' grid, so that every window that can have a new crop has one, and none is made in vain.
    The others are `superseded`.
    A frame gives the crop of the face that drives (see Driver and `aligned`), with the frame's
    stamps, or is `no_face`; `face_too_small` below LEAST_WIDTH; `face_cut_off` at the edge.

    Each frame is searched as a whole: from a step back where the face that drives fills it, and in every
    other frame while that face, or any, is out of sight. It is searched more closely around up to
    three known faces that are missing or small in it. One tile of it is searched besides, the next in
    turn: in each frame while no face drives, else in every fifth. What may be a face is looked at more
    closely in the same frame. Where the size of the frames changes, all faces are new ones.
    """

    def __init__(
        self, spec: Modality, detector: FaceDetector, tally: FaceTally, sightings: Sightings
    ) -> None:
        if spec.height != spec.width or len(spec.channels) not in (1, 3):
            raise BundleError(
                f"modality {spec.name}: a face is square, and grey or RGB",
                hint="height and width must be the same, with 1 or 3 channels",
            )
        self._spec, self._detector = spec, detector
        self._tally, self._sightings = tally, sightings
        self._shape: tuple[int, ...] = ()
        self._tracker, self._driver = FaceTracker(tally.numbers), Driver()
        self._rate_hz = Fraction(spec.rate_hz).limit_denominator(1_000_000)
        self._latency_ns = to_ns(spec.latency_s)
        self._point = -math.inf
        self._frames = self._tile = 0
        self._steps_back = False

    def take(self, item: Sample | Rejection) -> Iterable[Sample | Rejection]:
        """What a frame gives; rejections pass."""
        return (self._taken(item) if isinstance(item, Sample) else item,)

    def end(self, arrival_ns: int) -> Iterable[Sample | Rejection]:
        """Nothing is held back."""
        return ()

    def _taken(self, sample: Sample) -> Sample | Rejection:
        frame = sample.data
        if (
            frame.dtype != np.uint8
            or frame.ndim != 3
            or frame.shape[2] not in (1, 3, 4)
            or not frame.size
        ):
            detail = f"{frame.dtype} {list(frame.shape)} is no frame"
            return Rejection(sample.modality, sample.arrival_ns, "malformed", detail, size(sample))
        if not self._is_due(sample.timestamp_ns):
            return self._rejection(sample, "superseded")
        self._tally.frames += 1
        frame = _rgb(frame)
        if frame.shape != self._shape:
            self._shape = frame.shape
            self._tracker, self._driver = FaceTracker(self._tally.numbers), Driver()
            self._steps_back = False
        self._tracker.update(self._search(frame, sample.timestamp_ns), sample.timestamp_ns)
        driving = self._driver.choose(self._tracker.tracks, sample.timestamp_ns)
        self._note(sample, frame, driving)
        if driving is None or driving.seen_ns != sample.timestamp_ns:
            self._steps_back = not self._steps_back
            return self._rejection(sample, "no_face")
        self._steps_back = driving.face.width > NEAR * max(frame.shape[:2])
        if driving.face.width < LEAST_WIDTH:
            return self._rejection(sample, "face_too_small")
        if share_inside(driving.face, frame.shape[0], frame.shape[1]) < LEAST_INSIDE:
            return self._rejection(sample, "face_cut_off")
        self._tally.given += 1
        assert self._spec.height is not None
        crop = aligned(frame, driving.face, self._spec.height, len(self._spec.channels))
        return sample._replace(data=crop)

    def _is_due(self, time_ns: int) -> bool:
        """Whether a frame of that time is the first that the next grid point can take.

        Stamps may repeat, and step back by a frame or two; what goes back further has begun anew.
        """
        rate = self._rate_hz
        captured_ns = time_ns - self._latency_ns
        point = -(-captured_ns * rate.numerator // (rate.denominator * NANOSECONDS))
        if self._point - BACK <= point <= self._point:
            return False
        self._point = point
        return True

    def _search(self, frame: NDArray[np.uint8], time_ns: int) -> Sequence[Face]:
        """All faces of a frame; what was seen more closely takes the place of what was not."""
        height, width = frame.shape[:2]
        everything = whole(height, width, STEP_BACK if self._steps_back else 1.0)
        found = self._detector.faces(frame, everything, KEEP_SCORE)
        expected = [(t, *t.centre_at(time_ns).tolist()) for t in self._tracker.tracks]
        small = SMALL * everything.side / self._detector.side
        unsure = [
            (track, x, y)
            for track, x, y in expected
            if track.face.width < small or not any(_holds(face, x, y) for face in found)
        ]
        unsure.sort(key=lambda one: (one[0].number != self._driver.number, -one[0].face.width))
        for track, x, y in unsure[:MOST_CLOSER]:
            found = self._closer(frame, found, _around(x, y, track.face.width))
        self._frames += 1
        tiles = _tiles(height, width)
        if tiles and (self._driver.number is None or self._frames % SEARCH_EVERY == 0):
            self._tile += 1
            found = self._closer(frame, found, tiles[self._tile % len(tiles)])
        doubtful = [
            face
            for face in found
            if face.score < START_SCORE and not any(_holds(face, x, y) for _, x, y in expected)
        ]
        for face in doubtful[:MOST_DOUBTFUL]:
            x, y = face.centre.tolist()
            found = self._closer(frame, found, _around(x, y, face.width))
        return sorted(found, key=lambda face: -face.width)[:MOST_FACES]

    def _closer(self, frame: NDArray[np.uint8], found: list[Face], region: Region) -> list[Face]:
        """The faces that were found, and those of a part of the frame, which is seen better."""
        height, width = frame.shape[:2]
        if region.side >= max(height, width):
            return found
        faces = self._detector.faces(frame, region, KEEP_SCORE)
        closer = [face for face in faces if _is_whole(face, region, height, width)]
        return closer + [face for face in found if not _is_among(face, closer)]

    def _note(self, sample: Sample, frame: NDArray[np.uint8], driving: Track | None) -> None:
        seen = [t for t in self._tracker.tracks if t.seen_ns == sample.timestamp_ns]
        self._tally.with_face += bool(seen)
        self._tally.faces = max(self._tally.faces, *(track.number for track in seen), 0)
        faces = tuple(
            FaceSeen(track.number, _numbers(track.face.box), track.face.score, track is driving)
            for track in seen
        )
        seen_faces = FacesSeen(sample.arrival_ns, frame.shape[0], frame.shape[1], faces)
        self._sightings.add_view(frame, seen_faces)

    @staticmethod
    def _rejection(sample: Sample, reason: str) -> Rejection:
        return Rejection(sample.modality, sample.arrival_ns, reason, "")


def _around(x: float, y: float, width: float) -> Region:
    """What is looked at more closely for a face of that width."""
    side = CLOSER * width
    return Region(x - side / 2, y - side / 2, side)


def _tiles(height: int, width: int) -> list[Region]:
    """Squares that cover a frame, overlapping by a quarter: as high as it, then half, down to FINE."""
    tiles: list[Region] = []
    side = float(min(height, width))
    coarse = float(max(height, width))
    while coarse > FINE:
        tiles += [
            Region(left, top, side) for top in _steps(height, side) for left in _steps(width, side)
        ]
        coarse, side = side, side / 2
    return tiles


def _steps(length: float, side: float) -> list[float]:
    """Where tiles of a side begin on a length, evenly spaced."""
    number = max(1, math.ceil((length - side / 4) / (0.75 * side)))
    return [(length - side) * at / max(1, number - 1) for at in range(number)]


def _holds(face: Face, x: float, y: float) -> bool:
    left, top, width, height = face.box.tolist()
    return bool(left <= x <= left + width and top <= y <= top + height)


def _is_whole(face: Face, region: Region, height: int, width: int) -> bool:
    """Whether an edge of the region that is none of the frame leaves all of the face's box."""
    left, top, across, down = face.box.tolist()
    margin = TILE_EDGE * region.side
    return bool(
        (left >= region.left + margin or region.left <= 0)
        and (top >= region.top + margin or region.top <= 0)
        and (
            left + across <= region.left + region.side - margin
            or region.left + region.side >= width
        )
        and (top + down <= region.top + region.side - margin or region.top + region.side >= height)
    )


def _is_among(face: Face, others: Sequence[Face]) -> bool:
    """Whether one of the others is the same face."""
    if not others:
        return False
    shares = overlap(face.box, np.stack([other.box for other in others]))
    return bool(shares.max() >= OVERLAP)


def _numbers(box: NDArray[np.float32]) -> tuple[float, float, float, float]:
    x, y, width, height = box.tolist()
    return x, y, width, height


def _rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame with 1, 3 or 4 channels in RGB; how far it is transparent does not matter."""
    if frame.shape[2] == 1:
        return np.repeat(frame, 3, axis=2)
    return np.ascontiguousarray(frame[:, :, :3])
