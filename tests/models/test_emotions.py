"""One order of labels, and every data set's words find their place in it."""

from __future__ import annotations

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.labels import (
    FACE_LABELS,
    FERPLUS,
    LABELS,
    RAVDESS,
    VOICE_LABELS,
    places,
)


def test_the_order_of_the_labels_is_fixed() -> None:
    order = "neutral calm happy sad angry fearful disgust surprised contempt"
    assert " ".join(LABELS) == order


def test_a_classifier_has_the_labels_of_its_data_in_the_order_of_all() -> None:
    assert set(LABELS) - set(FACE_LABELS) == {"calm"}
    assert set(LABELS) - set(VOICE_LABELS) == {"contempt"}
    for labels in (FACE_LABELS, VOICE_LABELS):
        assert list(places(labels)) == sorted(places(labels))


def test_the_codes_of_ravdess_are_the_classes_of_the_voice() -> None:
    assert tuple(RAVDESS.values()) == VOICE_LABELS


@pytest.mark.parametrize("mapping", [FERPLUS, RAVDESS])
def test_no_two_words_of_a_data_set_mean_the_same_label(mapping: dict[str, str]) -> None:
    assert len(set(mapping.values())) == len(mapping)
    places(tuple(mapping.values()))


def test_a_word_of_a_data_set_is_no_label() -> None:
    with pytest.raises(FusedgeError, match=r"unknown emotion 'happiness'.*'happy'"):
        places(("neutral", "happiness"))
