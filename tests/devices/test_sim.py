"""The simulated drive. Its labels are its parameters: nothing here measures a model."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from functools import cache

import numpy as np
import pytest

from fusedge.bundle.sample import Sample
from fusedge.devices.capture.sim import STYLES, SimulatedDrive, parse_options
from tests.devices.synthetic_trip import WANTED


def drive(**options: str) -> SimulatedDrive:
    return SimulatedDrive("sim:", parse_options("sim:", "", options), WANTED)


def samples(**options: str) -> list[Sample]:
    return [item for item in drive(**options).samples() if isinstance(item, Sample)]


@cache
def long_drive(road: str, style: str) -> dict[str, np.ndarray]:
    """20 min in one style: modality to values `[N, channels]`."""
    drove = samples(road=road, script=f"{style}:1200", seed="3")
    return {m: np.array([s.data for s in drove if s.modality == m]) for m in WANTED}


def digest(drove: list[Sample]) -> str:
    return hashlib.sha256(
        b"".join(f"{s.modality} {s.timestamp_ns} ".encode() + s.data.tobytes() for s in drove)
    ).hexdigest()


def test_a_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert digest(samples(seed="7")) == digest(samples(seed="7"))
    assert digest(samples(seed="7")) != digest(samples(seed="8"))


def test_the_source_can_be_read_again() -> None:
    source = drive(duration_s="5")
    first, second = (
        [item for item in source.samples() if isinstance(item, Sample)] for _ in range(2)
    )
    assert digest(first) == digest(second)


def test_rates_stamps_and_types() -> None:
    drove = samples(duration_s="60")
    assert Counter(s.modality for s in drove) == {"imu": 600, "gps": 60, "road": 1500}
    stamps = [s.timestamp_ns for s in drove]
    assert stamps == sorted(stamps) == [s.arrival_ns for s in drove]
    assert stamps[0] >= 0 and stamps[-1] < 60_000_000_000
    assert all(s.data.dtype == np.float32 for s in drove)
    for modality in WANTED:
        own = [s.timestamp_ns for s in drove if s.modality == modality]
        assert all(a < b for a, b in itertools.pairwise(own))


def test_channels_come_as_wanted() -> None:
    source = SimulatedDrive("sim:", parse_options("sim:", "", {}), {"gps": ("speed",)})
    first = next(source.samples())
    assert isinstance(first, Sample) and first.data.shape == (1,) and 20 < first.data[0] < 40


def test_an_outage_silences_one_modality_and_changes_nothing_else() -> None:
    whole, broken = samples(duration_s="20"), samples(duration_s="20", gps_outage="5:10")

    def heard(sample: Sample) -> bool:
        return sample.modality != "gps" or not 5e9 <= sample.timestamp_ns < 10e9

    assert digest(broken) == digest([s for s in whole if heard(s)]) != digest(whole)


def test_the_script_changes_the_style_and_repeats() -> None:
    options = parse_options("sim:", "", {"script": "normal:20,drowsy:10", "duration_s": "90"})
    styles = [options.style_at(t) for t in (0, 19.9, 20, 29.9, 30, 50, 59.9, 60)]
    expected = ["normal", "normal", "drowsy", "drowsy", "normal", "drowsy", "drowsy", "normal"]
    assert styles == expected
    assert parse_options("sim:", "", {}).duration_s == 60


@pytest.mark.parametrize("road", list(STYLES))
def test_styles_differ_as_in_the_recordings(road: str) -> None:
    normal, drowsy, aggressive = (
        long_drive(road, style) for style in ("normal", "drowsy", "aggressive")
    )

    def spread(drove: dict[str, np.ndarray], modality: str, channel: int) -> float:
        return float(np.nanstd(drove[modality][:, channel]))

    # long. acceleration: 0.22, 0.23, 0.43 and 0.18, 0.20, 0.36 m/s2 in the recordings
    assert spread(aggressive, "imu", 0) > 1.4 * spread(normal, "imu", 0)
    assert spread(aggressive, "imu", 0) > 1.4 * spread(drowsy, "imu", 0)
    # lane offset: 0.33, 0.47, 0.34 and 0.26, 0.42, 0.32 m
    assert spread(drowsy, "road", 0) > 1.3 * spread(normal, "road", 0)
    # speed: 27.7, 25.5, 30.8 and 24.5, 25.4, 27.3 m/s
    assert aggressive["gps"][:, 0].mean() > normal["gps"][:, 0].mean() + 2
    # headway: 1.19, 1.29, 0.69 and 0.97, 1.73, 0.54 s
    headway = [float(np.nanmedian(d["road"][:, 4])) for d in (aggressive, normal, drowsy)]
    assert headway[0] < headway[1] and headway[0] < headway[2]


@pytest.mark.parametrize("road", list(STYLES))
@pytest.mark.parametrize("style", list(STYLES["motorway"]))
def test_values_stay_within_what_a_vehicle_can_do(road: str, style: str) -> None:
    drove = long_drive(road, style)
    imu, gps, lane = drove["imu"], drove["gps"], drove["road"]
    assert np.isfinite(imu).all() and np.isfinite(gps).all()
    assert np.abs(imu[:, :3]).max() < 6
    assert np.abs(imu[:, 5]).max() <= math.pi + 1e-6
    assert gps[:, 0].min() > 5 and gps[:, 0].max() < 60
    assert gps[:, 1].min() >= 0 and gps[:, 1].max() < 1
    assert np.nanmax(np.abs(lane[:, 0])) < 4
    assert 0.003 < np.isnan(lane[:, 0]).mean() < 0.15  # the tracker loses the lane at times
    assert np.nanmin(lane[:, 3]) >= 4 and np.isnan(lane[:, 3]).any()
    assert (lane[:, 5] >= 0).all() and (lane[:, 5] == lane[:, 5].round()).all()


def test_the_gps_lags_the_vehicle() -> None:
    drove = long_drive("motorway", "aggressive")
    # the course that the phone integrates at once reaches the GPS 0.85 s later
    yaw = np.unwrap(drove["imu"][:, 5].astype(float))
    seconds = np.arange(5, 1190)
    turned = {
        lag: np.abs(yaw[10 * seconds - lag] - yaw[10 * seconds - lag - 20]) for lag in range(30)
    }
    course = drove["gps"][seconds, 1]
    best = max(turned, key=lambda lag: float(np.corrcoef(turned[lag], course)[0, 1]))
    assert best in (8, 9)


def test_close_ends_the_iterator() -> None:
    source = drive(duration_s="600000")
    items = source.samples()
    next(items)
    source.close()
    assert next(items, None) is None
