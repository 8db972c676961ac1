"""The task `driving`: style of driving (normal, drowsy, aggressive) every second over 30 s, and events.

Modalities and channels are those of UAH-DriveSet (Romera, Bergasa, Arroyo, ITSC 2016), in SI units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fusedge.bundle.lag import median_lag
from fusedge.bundle.manifest import Channel, EventRule, Modality, Output
from fusedge.bundle.sample import Recording
from fusedge.models.encoders import EncoderConfig, Term
from fusedge.models.fusion import FusionKind
from fusedge.models.fusion_model import ModelConfig

DESCRIPTION = "Style of driving (normal, drowsy, aggressive) every second, and events"
LABELS = ("normal", "drowsy", "aggressive")
DECISION_RATE_HZ = 1.0
WINDOW_S = 30.0  # a decision needs this much to be judged; before, it says what it can
FUSION: FusionKind = "concatenation"

# The recordings' accelerations went through a high-pass: of 0, 0.02, 0.05, 0.1 and 0.2 Hz, 0.05 lines up
# best with the change of GPS speed (median correlation 0.58; 0.47 without).
_IMU_HIGHPASS_HZ = 0.05
GPS_LATENCY_S = (
    0.85  # median of the 32 of 33 trips that tell it, a tenth below 0.5 and a tenth above 1.1
)

# An accelerometer is never still. In 33 trips one stood still once for longer than 0.4 s: for 8 s.
_FROZEN_S = 10.0
_IMU_CHANNELS = (
    Channel(
        name="longitudinal_acceleration", unit="m/s2", minimum=-20, maximum=20, frozen_s=_FROZEN_S
    ),
    Channel(name="lateral_acceleration", unit="m/s2", minimum=-20, maximum=20, frozen_s=_FROZEN_S),
    Channel(name="vertical_acceleration", unit="m/s2", minimum=-40, maximum=40, frozen_s=_FROZEN_S),
    Channel(name="roll", unit="rad", minimum=-3.2, maximum=3.2),
    Channel(name="pitch", unit="rad", minimum=-3.2, maximum=3.2),
    Channel(name="yaw", unit="rad", minimum=-3.2, maximum=3.2),
)
_GPS_CHANNELS = (
    Channel(name="speed", unit="m/s", minimum=0, maximum=90),
    # A course that swings faster than this is that of a standing car, or a GPS that finds itself.
    Channel(name="course_change", unit="rad/s", minimum=0, maximum=1),
)
_ROAD_CHANNELS = (
    Channel(name="lane_offset", unit="m", minimum=-5, maximum=5),
    Channel(name="lane_heading", unit="rad", minimum=-1, maximum=1),
    Channel(name="lane_width", unit="m", minimum=1, maximum=10),
    Channel(name="lead_distance", unit="m", minimum=0, maximum=300),
    Channel(name="lead_time", unit="s", minimum=0, maximum=120),
    Channel(name="vehicles", unit="count", minimum=0, maximum=50),
)

# Signs that a mirrored road turns round: what is left becomes right.
MIRRORED = {
    "imu": ("lateral_acceleration", "roll", "yaw"),
    "gps": (),
    "road": ("lane_offset", "lane_heading"),
}


def modalities(gps_latency_s: float = GPS_LATENCY_S) -> tuple[Modality, ...]:
    """The modalities in the head's order, with the given delay of GPS stamps."""
    return (
        Modality(
            name="imu",
            kind="series",
            description="filtered accelerations in the vehicle's frame, and attitude",
            channels=_IMU_CHANNELS,
            rate_hz=10,
            window_s=0.5,
            hop_s=0.5,
            resample="hold",
            max_hold_s=0.5,
            latency_s=0,
            lateness_s=0.05,
            max_age_s=2.5,
            return_windows=2,
            min_valid=0.5,
            prepare=("rotate accelerations into the vehicle's frame and remove gravity",),
        ),
        Modality(
            name="gps",
            kind="series",
            description="speed over ground and rate of course change",
            channels=_GPS_CHANNELS,
            rate_hz=1,
            window_s=1,
            hop_s=1,
            resample="hold",
            max_hold_s=2.5,
            latency_s=gps_latency_s,
            lateness_s=0.1,
            max_age_s=6,
            return_windows=2,
            min_valid=1,
            prepare=(),
        ),
        Modality(
            name="road",
            kind="series",
            description="lane and vehicle ahead, as a camera measures them",
            channels=_ROAD_CHANNELS,
            rate_hz=10,
            window_s=0.5,
            hop_s=0.5,
            resample="hold",
            max_hold_s=0.5,
            latency_s=0,
            lateness_s=0.1,
            max_age_s=2.5,
            return_windows=2,
            min_valid=0.5,
            prepare=(
                "detect the lane and the vehicle ahead in the camera's picture",
                "hold a vehicle's values for at most 1 s",
            ),
        ),
    )


def gps_latency(recordings: Sequence[Recording]) -> float:
    """Seconds by which GPS stamps lag in these recordings."""
    return median_lag([(r.series["gps"], r.series["imu"]) for r in recordings], _IMU_HIGHPASS_HZ)


_IMU_TERMS = (
    *(Term("value", (c,)) for c in (0, 1, 2)),
    Term("magnitude", (0, 1)),
    *(Term("difference", (c,), lag) for c in (0, 1, 2) for lag in (3, 20)),
    *(Term("angle_difference", (c,), lag) for c in (3, 4, 5) for lag in (5, 20)),
)
_GPS_TERMS = (
    *(Term("value", (c,)) for c in (0, 1)),
    *(Term("difference", (0,), lag) for lag in (1, 3, 8)),
    Term("product", (0, 1)),
)
_ROAD_TERMS = (
    *(Term("value", (c,)) for c in range(6)),
    *(Term("difference", (c,), lag) for c in (0, 1) for lag in (5, 20, 50)),
    Term("difference", (2,), 20),
    *(Term("difference", (3,), lag) for lag in (10, 30)),
)


def model_config(fusion: FusionKind = FUSION) -> ModelConfig:
    """The network: judgements of 5 s each, their mean and deviation over 25 s; 30 s in all."""
    members = 3

    def encoder(
        channels: int, hop: int, hops_a_second: int, terms: tuple[Term, ...]
    ) -> EncoderConfig:
        return EncoderConfig(
            channels=channels,
            hop=hop,
            terms=terms,
            bins=8,
            short=5 * hops_a_second,
            long=25 * hops_a_second,
            judgements=8 * members,
        )

    return ModelConfig(
        encoders={
            "imu": encoder(len(_IMU_CHANNELS), 5, 2, _IMU_TERMS),
            "gps": encoder(len(_GPS_CHANNELS), 1, 1, _GPS_TERMS),
            "road": encoder(len(_ROAD_CHANNELS), 5, 2, _ROAD_TERMS),
        },
        fusion=fusion,
        hidden=24,
        outputs=len(LABELS),
        members=members,
        dropout=0.3,
    )


# Temperature: fitted to decisions on left-out drivers (0.81; 0.76 to 0.83 where each driver in turn is
# left out of that fit too, which brings the expected calibration error from 0.042 to 0.015). Smoothing and
# hysteresis were set before their effect was measured; see the model card.
STYLE = Output(
    name="style", logits="logits", labels=LABELS, temperature=0.81, smoothing_s=5.0, hysteresis=0.1
)

# Fitted to 242 braking, 137 acceleration and 187 turn events of 33 trips (EVENTS_INERTIAL, within 2 s), as
# the app that recorded them judged. F1 of detection on the very events that the first level was fitted
# to: 0.79, 0.60, 0.48; three in five turns found here are none to the app. Level 2 lies between the
# medians of the app's levels 1 and 2. The app never gave level 3 to an acceleration or a turn that was
# found, so that 0.4 g is taken from braking there.
_G = 9.80665


def _rule(
    name: str,
    channel: str,
    direction: Literal["positive", "negative", "both"],
    lowpass_hz: float,
    levels_g: tuple[float, ...],
) -> EventRule:
    return EventRule(
        name=name,
        modality="imu",
        channel=channel,
        direction=direction,
        levels=tuple(round(level * _G, 3) for level in levels_g),
        lowpass_hz=lowpass_hz,
        hold_s=0.0,
        release=0.5,
    )


EVENTS = (
    _rule("braking", "longitudinal_acceleration", "negative", 2.0, (0.11, 0.19, 0.40)),
    _rule("acceleration", "longitudinal_acceleration", "positive", 4.0, (0.08, 0.13, 0.40)),
    _rule("turn", "lateral_acceleration", "both", 2.0, (0.11, 0.18, 0.40)),
)
