"""Faces in a frame: what the detector's graph gives, as boxes in pixels, each face once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError
from fusedge.bundle.manifest import Part, TensorSpec
from fusedge.devices.capture.pixels import opencv

OVERLAP = 0.3  # intersection over union from which two boxes are one face, as in MediaPipe's graph
FARTHEST = 2.0  # squares from its corner; what a detector places beyond is none
LANDMARKS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")

Run = Callable[[dict[str, Any]], list[NDArray[Any]]]
"""Runs a part: feeds by name in, the outputs in the manifest's order out."""


class Face(NamedTuple):
    """A face in pixels of its frame: `box` float32 `[4]` is x, y, width and height, `landmarks` float32
    `[6, 2]` are those of LANDMARKS, of the person, so that the right eye is on the picture's left.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]

    @property
    def width(self) -> float:
        """In pixels."""
        return float(self.box[2])

    @property
    def centre(self) -> NDArray[np.float32]:
        """Of the box, float32 `[2]`."""
        centre: NDArray[np.float32] = self.box[:2] + self.box[2:] / np.float32(2)
        return centre


class Region(NamedTuple):
    """A square of a frame, which may reach over its edges; in pixels."""

    left: float
    top: float
    side: float


def whole(height: int, width: int, times: float = 1.0) -> Region:
    """The smallest square with all of a frame, which lies in its middle, or one so many times as large."""
    side = times * max(height, width)
    return Region((width - side) / 2, (height - side) / 2, side)


class FaceDetector:
    """Contract: the faces of a square of a frame, by a part that takes uint8 `[batch, S, S, 3]` in RGB and
    gives boxes float32 `[batch, N, 16]` (centre, size and six landmarks as x, y in 0 … 1 of the square) and
    scores float32 `[batch, N]`. The square is shrunk to `S` by means over areas; what lies outside
    of the frame is black. Boxes that overlap are one face: their mean weighted by score.
    What is not finite, has no size or lies far outside is no face.

    Raises BundleError for a part of other inputs and outputs.
    """

    def __init__(self, part: Part, run: Run) -> None:
        self._cv2 = opencv("finding faces")
        self._run = run
        (pixels,) = part.inputs if len(part.inputs) == 1 else (None,)
        shapes = [spec.shape[1:] for spec in part.outputs]
        boxes = [place for place, shape in enumerate(shapes) if len(shape) == 2]
        scores = [place for place, shape in enumerate(shapes) if len(shape) == 1]
        if pixels is None or not _is_square(pixels) or len(boxes) != 1 or len(scores) != 1:
            raise _no_detector(part)
        self._boxes, self._scores = boxes[0], scores[0]
        if shapes[self._boxes] != (*shapes[self._scores], 4 + 2 * len(LANDMARKS)):
            raise _no_detector(part)
        self._input = pixels.name
        self.side = int(pixels.shape[1])
        self._pixels = np.zeros((1, self.side, self.side, 3), np.uint8)

    def faces(self, frame: NDArray[np.uint8], region: Region, least: float) -> list[Face]:
        """Those of the frame uint8 `[height, width, 3]` that score `least` or more, best first."""
        self._shrink(frame, region)
        outputs = self._run({self._input: self._pixels})
        scores, boxes = outputs[self._scores][0], outputs[self._boxes][0]
        likely = np.flatnonzero((scores >= least) & (scores <= 1))
        if not len(likely):
            return []
        scores, boxes = scores[likely], boxes[likely]
        sound = (np.abs(boxes) <= FARTHEST).all(axis=1) & (boxes[:, 2:4] > 0).all(axis=1)
        offset = np.array([region.left, region.top], np.float32)
        boxes = boxes[sound].reshape(-1, 2 + len(LANDMARKS), 2) * np.float32(region.side)
        boxes[:, 0] += offset - boxes[:, 1] / 2
        boxes[:, 2:] += offset
        return merged(boxes, scores[sound])

    def _shrink(self, frame: NDArray[np.uint8], region: Region) -> None:
        """The region into the part's input."""
        height, width = frame.shape[:2]
        left, top = max(0, round(region.left)), max(0, round(region.top))
        across = min(width, round(region.left + region.side)) - left
        down = min(height, round(region.top + region.side)) - top
        pixels = self._pixels[0]
        pixels[:] = 0
        if across <= 0 or down <= 0:
            return
        scale = self.side / region.side
        # By halves, an eighth of the time of INTER_AREA at once (2.7 ms for 1280x720), and of even lengths,
        # a twentieth of the time of odd ones. So up to one pixel of the input is left out at the far edges.
        halvings = max(0, math.floor(-math.log2(scale)))
        across, down = (max(1, length >> halvings << halvings) for length in (across, down))
        x0, x1 = self._place((left - region.left) * scale, (left + across - region.left) * scale)
        y0, y1 = self._place((top - region.top) * scale, (top + down - region.top) * scale)
        part = frame[top : top + down, left : left + across]
        for _ in range(halvings):
            half = (max(1, part.shape[1] // 2), max(1, part.shape[0] // 2))
            part = self._cv2.resize(part, half, interpolation=self._cv2.INTER_AREA)
        size = (x1 - x0, y1 - y0)
        pixels[y0:y1, x0:x1] = self._cv2.resize(part, size, interpolation=self._cv2.INTER_LINEAR)

    def _place(self, begin: float, end: float) -> tuple[int, int]:
        """Where an edge lies in the input, one pixel long at least."""
        first = min(max(0, round(begin)), self.side - 1)
        return first, min(max(first + 1, round(end)), self.side)


def merged(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> list[Face]:
    """Weighted non-maximum suppression: each face once, best first.

    `boxes` float32 `[N, 2 + landmarks, 2]` (corner, size, landmarks), `scores` float32 `[N]`. The best
    box takes all that overlap it by OVERLAP and becomes their mean weighted by score (Bazarevsky et al.,
    arXiv 1907.05047: less jitter than the best one alone).
    """
    found: list[Face] = []
    order = np.argsort(-scores, kind="stable")
    while len(order):
        same = overlap(boxes[order[0], :2].reshape(4), boxes[order, :2].reshape(-1, 4)) >= OVERLAP
        same[0] = True
        group = order[same]
        weights = scores[group] / scores[group].sum()
        mean = np.tensordot(weights, boxes[group], axes=1).astype(np.float32)
        found.append(Face(mean[:2].reshape(4), float(scores[order[0]]), mean[2:]))
        order = order[~same]
    return found


def overlap(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of a box `[4]` (x, y, width, height) with others `[N, 4]`, float32 `[N]`."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + box[2:].prod() - common
    shares: NDArray[np.float32] = common / np.maximum(union, np.float32(1e-9))
    return shares


def _is_square(spec: TensorSpec) -> bool:
    sides = spec.shape[1:]
    return spec.dtype == "uint8" and len(sides) == 3 and sides[0] == sides[1] and sides[2] == 3


def _no_detector(part: Part) -> BundleError:
    return BundleError(
        f"part {part.name} is no face detector",
        hint="it takes uint8 [batch, S, S, 3], and gives boxes [batch, N, 16] and scores [batch, N]",
    )
