"""The labels of the task `emotion`, as words in one order, and what each data set calls them.

No data set knows all labels. A classifier has only those of its data, and says nothing about the others:
a face cannot tell calm from neutral, a voice has never heard contempt. Whoever fuses them must not read
that silence as a probability of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusedge.bundle.errors import UnknownNameError

LABELS = (
    "neutral",
    "calm",
    "happy",
    "sad",
    "angry",
    "fearful",
    "disgust",
    "surprised",
    "contempt",
)

FERPLUS: Mapping[str, str] = {
    "neutral": "neutral",
    "happiness": "happy",
    "surprise": "surprised",
    "sadness": "sad",
    "anger": "angry",
    "disgust": "disgust",
    "fear": "fearful",
    "contempt": "contempt",
}
"""Columns of FER+ (Barsoum et al. 2016, arXiv 1608.01041), in its order, without its two refusals."""

RAVDESS: Mapping[str, str] = {
    "neutral": "neutral",
    "calm": "calm",
    "happy": "happy",
    "sad": "sad",
    "angry": "angry",
    "fearful": "fearful",
    "disgust": "disgust",
    "surprised": "surprised",
}
"""Emotions of RAVDESS (Livingstone & Russo 2018, PLoS ONE 13(5): e0196391), by its codes 01 to 08."""


def known(mapping: Mapping[str, str]) -> tuple[str, ...]:
    """The labels that a data set knows, in the order of `LABELS`: the classes of its classifier."""
    return tuple(label for label in LABELS if label in mapping.values())


FACE_LABELS = known(FERPLUS)  # all but calm
VOICE_LABELS = known(RAVDESS)  # all but contempt; action units of the same actors have these too


def places(labels: Sequence[str]) -> tuple[int, ...]:
    """Where each label stands in `LABELS`; raises UnknownNameError."""
    for label in labels:
        if label not in LABELS:
            raise UnknownNameError("emotion", label, LABELS)
    return tuple(LABELS.index(label) for label in labels)
