"""FER+ is read by the names of its votes, and what is not FER+ is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.ferplus import (
    Faces,
    held_out,
    read_faces,
    refuse_untrainable,
    without_copies,
)
from fusedge.models.emotion.labels import FACE_LABELS, FERPLUS

FERPLUS_NAMES = (*FERPLUS, "unknown", "not_a_face")


def faces_of(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(count, 48, 48), dtype=np.uint8)


def write_faces(
    path: Path,
    votes: NDArray[np.uint8],
    names: Sequence[str] = FERPLUS_NAMES,
    images: NDArray[np.uint8] | None = None,
) -> Path:
    images = faces_of(len(votes)) if images is None else images
    np.savez(path, images=images, votes=votes, vote_names=np.array(names))
    return path


def votes_for(*names: str) -> NDArray[np.uint8]:
    """Ten votes a row: eight for the name, the others spread."""
    votes = np.zeros((len(names), 10), np.uint8)
    for row, name in enumerate(names):
        votes[row, :2] = 1
        votes[row, FERPLUS_NAMES.index(name)] += 8
    return votes


def test_each_column_becomes_its_label(tmp_path: Path) -> None:
    faces = read_faces(write_faces(tmp_path / "train.npz", votes_for(*FERPLUS)))
    assert [FACE_LABELS[label] for label in faces.labels] == list(FERPLUS.values())
    assert (faces.votes.argmax(axis=1) == faces.labels).all()
    assert faces.votes.shape == (8, len(FACE_LABELS))


def test_columns_are_found_by_name_wherever_they_stand(tmp_path: Path) -> None:
    votes, order = (
        votes_for("anger", "contempt", "surprise"),
        np.random.default_rng(0).permutation(10),
    )
    names = [FERPLUS_NAMES[k] for k in order]
    plain = read_faces(write_faces(tmp_path / "plain.npz", votes))
    moved = read_faces(write_faces(tmp_path / "moved.npz", votes[:, order], names))
    assert (plain.votes == moved.votes).all()
    assert (plain.labels == moved.labels).all()


def test_what_most_saw_no_emotion_in_is_dropped(tmp_path: Path) -> None:
    votes = votes_for("fear", "unknown", "disgust", "not_a_face")
    images = faces_of(4)
    faces = read_faces(write_faces(tmp_path / "train.npz", votes, images=images))
    assert (faces.images == images[[0, 2]]).all()
    assert [FACE_LABELS[label] for label in faces.labels] == ["fearful", "disgust"]


def test_of_equal_votes_the_first_of_ferplus_counts(tmp_path: Path) -> None:
    votes = np.zeros((2, 10), np.uint8)
    votes[0, [FERPLUS_NAMES.index("surprise"), FERPLUS_NAMES.index("anger")]] = 5
    votes[1, [FERPLUS_NAMES.index("contempt"), FERPLUS_NAMES.index("unknown")]] = 5
    faces = read_faces(write_faces(tmp_path / "train.npz", votes))
    assert [FACE_LABELS[label] for label in faces.labels] == ["surprised", "contempt"]


def test_copies_of_an_image_are_on_one_side_of_a_split(tmp_path: Path) -> None:
    images = np.concatenate([faces_of(200), faces_of(200)])
    votes = votes_for(*["sadness"] * 400)
    faces = read_faces(write_faces(tmp_path / "train.npz", votes, images=images))
    held = held_out(faces)
    assert (held[:200] == held[200:]).all()
    assert 0 < held.mean() < 0.2
    assert len(without_copies(faces.only(held), faces.only(~held))) == held.sum()


def test_faces_that_are_in_the_other_split_too_are_left_out(tmp_path: Path) -> None:
    images = faces_of(6)
    train = read_faces(write_faces(tmp_path / "a.npz", votes_for(*["fear"] * 6), images=images))
    valid = read_faces(write_faces(tmp_path / "b.npz", votes_for("fear"), images=images[4:5]))
    assert (without_copies(train, valid).images == images[[0, 1, 2, 3, 5]]).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": None}, "it has no array images"),
        ({"images": np.uint8(3)}, r"images must be uint8 \[N, 48, 48\], not uint8 \[\]"),
        ({"images": np.zeros((2, 64, 64), np.uint8)}, r"not uint8 \[2, 64, 64\]"),
        ({"images": np.zeros((2, 48, 48, 3), np.uint8)}, r"not uint8 \[2, 48, 48, 3\]"),
        ({"images": np.zeros((2, 48, 48), np.float32)}, "not float32"),
        ({"images": faces_of(3)}, r"votes must be uint8 \[3, 10\], not uint8 \[2, 10\]"),
        ({"votes": votes_for("fear")}, r"votes must be uint8 \[2, 10\], not uint8 \[1, 10\]"),
        ({"votes": np.uint8(3)}, r"not uint8 \[\]"),
        ({"votes": votes_for("fear", "fear")[:, :8]}, r"not uint8 \[2, 8\]"),
        ({"votes": votes_for("fear", "fear") / 10}, "not float64"),
        ({"votes": votes_for("fear", "fear") * [[1], [0]]}, "not int64"),
        (
            {"votes": votes_for("fear", "fear") * np.array([[1], [0]], np.uint8)},
            "row 1 has no votes",
        ),
        ({"votes": votes_for("unknown", "not_a_face")}, "holds no face with an emotion"),
        ({"images": faces_of(0), "votes": votes_for()}, "holds no face with an emotion"),
        ({"vote_names": np.array([*FERPLUS_NAMES[:-1], "calm"])}, "vote_names must be neutral"),
        ({"vote_names": np.array([FERPLUS_NAMES] * 2)}, "vote_names must be neutral"),
        ({"vote_names": np.array([FERPLUS_NAMES])}, "vote_names must be neutral"),
        ({"vote_names": np.array("neutral")}, "vote_names must be neutral"),
        ({"vote_names": np.arange(10) * 1j}, "vote_names must be neutral"),
    ],
)
def test_what_is_not_ferplus_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    arrays: dict[str, Any] = {
        "images": faces_of(2),
        "votes": votes_for("fear", "fear"),
        "vote_names": np.array(FERPLUS_NAMES),
    }
    path = tmp_path / "train.npz"
    np.savez(path, **{key: each for key, each in (arrays | changed).items() if each is not None})
    with pytest.raises(FusedgeError, match=said) as caught:
        read_faces(path)
    assert str(path) in caught.value.line()
    assert "\n" not in caught.value.line()


def some_of_each(count: int) -> Faces:
    votes = np.eye(8, dtype=np.uint8)[np.arange(8 * count) % 8]
    return Faces(faces_of(8 * count), votes, votes.argmax(axis=1))


def test_a_label_without_a_face_on_either_side_of_the_split_is_refused() -> None:
    faces = some_of_each(60)
    refuse_untrainable(faces, "train.npz")
    hidden, happy = held_out(faces), faces.labels == FACE_LABELS.index("happy")
    for kept, said in (
        (~happy, "has no face to train on that is happy"),
        (~(happy & hidden), "has no face in the tenth that is held out that is happy"),
        (~(happy & ~hidden), "has no face to train on that is happy"),
        (hidden, "has no face to train on that is neutral and none that is happy"),
        (np.zeros(480, np.bool_), "has no face to train on that is neutral and none that is happy"),
    ):
        with pytest.raises(FusedgeError, match=said) as caught:
            refuse_untrainable(faces.only(kept), "train.npz")
        assert "train.npz" in caught.value.line()
