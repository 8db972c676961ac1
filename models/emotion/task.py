"""The task `emotion`: what a face and a voice express, ten times a second."""

from __future__ import annotations

from fusedge.bundle.manifest import Channel, FrontEnd, Modality, Output
from fusedge.models.emotion.labels import LABELS

DESCRIPTION = "What a face and a voice express (neutral, calm, happy, sad, …), ten times a second"
DECISION_RATE_HZ = 10.0
HOP_S = 0.1

_GREY = (Channel(name="grey", unit="1", minimum=0, maximum=255),)
_MONO = (Channel(name="mono", unit="1", minimum=-1, maximum=1),)

FACE = Modality(
    name="face",
    kind="image",
    description="one face, upright, in grey: crop 48 x 48 as in FER+",
    channels=_GREY,
    height=48,
    width=48,
    rate_hz=10,
    window_s=HOP_S,
    hop_s=HOP_S,
    resample="newest",
    max_hold_s=HOP_S,
    latency_s=0,
    lateness_s=0.05,
    max_age_s=0.6,
    return_windows=1,
    min_valid=1,
    prepare=("find faces, follow them, choose one, turn it upright and cut it out",),
    front=FrontEnd(kind="largest_face", part="face_detector"),
)
VOICE = Modality(
    name="voice",
    kind="audio",
    description="speech, mono at 16 kHz",
    channels=_MONO,
    rate_hz=16_000,
    window_s=HOP_S,
    hop_s=HOP_S,
    resample="contiguous",
    max_hold_s=HOP_S,
    latency_s=0,
    lateness_s=0.25,  # 0.128 to look ahead for speech, 0.02 a usual block, 0.1 the device and the machine
    max_age_s=0.6,
    return_windows=3,
    min_valid=0.9,
    prepare=("take out sound in which nobody speaks",),
    front=FrontEnd(kind="speech", part="voice_activity"),
)
ACTION_UNITS = Modality(
    name="action_units",
    kind="series",
    description="facial action units, means over a take, as OpenFace gives them",
    channels=tuple(
        Channel(name=f"au{n:02d}", unit="1", minimum=-10, maximum=10) for n in range(35)
    ),
    rate_hz=10,
    window_s=HOP_S,
    hop_s=HOP_S,
    resample="hold",
    max_hold_s=HOP_S,
    latency_s=0,
    lateness_s=0.05,
    max_age_s=0.6,
    return_windows=1,
    min_valid=1,
    prepare=("facial action units of a face, by OpenFace",),
)


def modality(name: str) -> Modality:
    """The modality of that name."""
    return {spec.name: spec for spec in (FACE, VOICE, ACTION_UNITS)}[name]


def output(temperature: float = 1.0) -> Output:
    """The emotion, with probabilities that were calibrated by `temperature`."""
    return Output(
        name="emotion",
        logits="logits",
        labels=LABELS,
        temperature=temperature,
        smoothing_s=0.8,
        hysteresis=0.1,
    )
