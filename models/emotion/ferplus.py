"""Faces of FER2013 with the votes of FER+ (Barsoum et al. 2016, arXiv 1608.01041).

The images were gathered by image search, and no licence is stated: train and test in private. There are no
subjects' ids: nobody can say whether a person is in both splits. Images lie in the data more than once: of
`valid`, 8 % are in `train` as well, pixel for pixel (`without_copies`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.labels import FACE_LABELS, FERPLUS
from fusedge.models.emotion.npz import read_arrays

SIDE_PX = 48
_COLUMNS = (*FERPLUS, "unknown", "not_a_face")


@dataclass(frozen=True)
class Faces:
    """`images` uint8 `[N, 48, 48]` grey, `votes` uint8 `[N, 8]` by `FACE_LABELS`, `labels` int64 `[N]`.

    The label is the class with most votes.
    """

    images: NDArray[np.uint8]
    votes: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, chosen: NDArray[np.bool_]) -> Faces:
        """Those that are marked, bool `[N]`."""
        return Faces(self.images[chosen], self.votes[chosen], self.labels[chosen])


def read_faces(path: Path) -> Faces:
    """A split, an .npz with `images`, `votes` and `vote_names`, without what most saw no emotion in.

    Rows whose top vote is `unknown` or `not_a_face` are dropped, as usual; of several top votes the first
    in FER+'s order counts. Raises FusedgeError.
    """
    images, votes, names = read_arrays(path, ("images", "votes", "vote_names"), _HINT)

    def refuse(fault: str) -> None:
        raise FusedgeError(fault, where=str(path), hint=_HINT)

    if images.dtype != np.uint8 or images.shape[1:] != (SIDE_PX, SIDE_PX):
        refuse(
            f"images must be uint8 [N, {SIDE_PX}, {SIDE_PX}], not {images.dtype} {list(images.shape)}"
        )
    if votes.dtype != np.uint8 or votes.shape != (len(images), len(_COLUMNS)):
        refuse(
            f"votes must be uint8 [{len(images)}, {len(_COLUMNS)}], "
            f"not {votes.dtype} {list(votes.shape)}"
        )
    if names.dtype.kind != "U" or names.ndim != 1 or sorted(names.tolist()) != sorted(_COLUMNS):
        refuse(f"vote_names must be {', '.join(_COLUMNS)} in any order")
    for row in np.flatnonzero(~votes.any(axis=1)):
        refuse(f"row {row} has no votes")
    # By name, never by place: published models differ in the order of their labels.
    order = [names.tolist().index(column) for column in _COLUMNS]
    votes = votes[:, order]
    top = votes.argmax(axis=1)
    kept = top < len(FERPLUS)
    to_label = np.array([FACE_LABELS.index(label) for label in FERPLUS.values()])
    faces = Faces(images[kept], votes[kept][:, to_label.argsort()], to_label[top[kept]])
    if not len(faces):
        refuse("holds no face with an emotion")
    return faces


def held_out(faces: Faces, one_in: int = 10) -> NDArray[np.bool_]:
    """About one face in `one_in`, bool `[N]`, chosen by its pixels: copies of an image stay together."""
    chosen = [zlib.crc32(image.tobytes()) % one_in == 0 for image in faces.images]
    return np.array(chosen, np.bool_)


def refuse_untrainable(faces: Faces, where: str) -> None:
    """Raise FusedgeError where a label has no face to train on, or none that is held out for the head."""
    hidden = held_out(faces)
    for chosen, what in ((~hidden, "to train on"), (hidden, "in the tenth that is held out")):
        there = set(faces.labels[chosen].tolist())
        lacking = [label for place, label in enumerate(FACE_LABELS) if place not in there]
        if lacking:
            raise FusedgeError(
                f"has no face {what} that is {' and none that is '.join(lacking)}",
                where=where,
                hint="copies of faces of the other split do not count; give more faces",
            )


def without_copies(faces: Faces, of: Faces) -> Faces:
    """Those whose image is not, pixel for pixel, in `of` too."""
    there = {image.tobytes() for image in of.images}
    chosen = [image.tobytes() not in there for image in faces.images]
    return faces.only(np.array(chosen, np.bool_))


_HINT = "give FER+ as train.npz and valid.npz, see the model card"
