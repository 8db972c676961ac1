"""Faces of FER2013 with the votes of FER+ (Barsoum et al. 2016, arXiv 1608.01041).

The images were gathered by image search, and no licence is stated: train and test in private. There are no
subjects' ids: nobody can say whether a person is in both splits. Images lie in the data more than once: of
`valid`, 8 % are in `train` as well, pixel for pixel (`without_copies`).
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.labels import FACE_LABELS, FERPLUS

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
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise ValueError("it is one array, no archive of several")
        with file:
            images, votes, names = (file[key] for key in ("images", "votes", "vote_names"))
    except FileNotFoundError:
        raise FusedgeError("is missing", where=str(path), hint=_HINT) from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FusedgeError(f"cannot be read: {error}", where=str(path), hint=_HINT) from error
    faults = {
        f"images must be uint8 [N, {SIDE_PX}, {SIDE_PX}], not {images.dtype} {list(images.shape)}": (
            images.dtype == np.uint8 and images.shape[1:] == (SIDE_PX, SIDE_PX)
        ),
        f"votes must be uint8 [N, {len(_COLUMNS)}], not {votes.dtype} {list(votes.shape)}": (
            votes.dtype == np.uint8 and votes.shape == (len(images), len(_COLUMNS))
        ),
        f"vote_names must be {', '.join(_COLUMNS)} in any order": (
            sorted(names.ravel().tolist()) == sorted(_COLUMNS)
        ),
    }
    for fault, fine in faults.items():
        if not fine:
            raise FusedgeError(fault, where=str(path), hint=_HINT)
    # By name, never by place: published models differ in the order of their labels.
    order = [names.tolist().index(column) for column in _COLUMNS]
    votes = votes[:, order]
    top = votes.argmax(axis=1)
    kept = top < len(FERPLUS)
    to_label = np.array([FACE_LABELS.index(label) for label in FERPLUS.values()])
    faces = Faces(images[kept], votes[kept][:, to_label.argsort()], to_label[top[kept]])
    if not len(faces):
        raise FusedgeError("holds no face with an emotion", where=str(path), hint=_HINT)
    return faces


def held_out(faces: Faces, one_in: int = 10) -> NDArray[np.bool_]:
    """About one face in `one_in`, bool `[N]`, chosen by its pixels: copies of an image stay together."""
    return np.array([zlib.crc32(image.tobytes()) % one_in == 0 for image in faces.images])


def without_copies(faces: Faces, of: Faces) -> Faces:
    """Those whose image is not, pixel for pixel, in `of` too."""
    there = {image.tobytes() for image in of.images}
    return faces.only(np.array([image.tobytes() not in there for image in faces.images]))


_HINT = "give FER+ as train.npz and valid.npz, see the model card"
