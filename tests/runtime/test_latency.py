"""The lag of a live speed is found from the last minutes, as training finds it in recordings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.lag import estimate_lag
from fusedge.bundle.sample import Series
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.replay.uah import read_recording
from fusedge.runtime.latency import LatencyEstimate
from tests.bundle.test_lag import drive

HIGHPASS_HZ = 0.05  # of the phones that recorded the trips: see fusedge.models.driving


def feed(
    estimate: LatencyEstimate, speed: Series, acceleration: Series, start_s: float = 0
) -> None:
    """All samples in the order of their times."""
    adds = (estimate.add_speed, estimate.add_acceleration)
    rows = sorted(
        (int(time_ns), which, float(value))
        for which, series in enumerate((speed, acceleration))
        for time_ns, value in zip(series.timestamps_ns, series.values[:, 0], strict=True)
    )
    for time_ns, which, value in rows:
        adds[which](time_ns + round(start_s * NANOSECONDS), value)


@pytest.mark.parametrize("highpass_hz", [0.0, 0.1])
@pytest.mark.parametrize("lag_s", [0.0, 0.85, 2.1])
def test_a_known_lag_is_found(lag_s: float, highpass_hz: float) -> None:
    estimate = LatencyEstimate(highpass_hz)
    feed(estimate, *drive(lag_s, 1, highpass_hz), start_s=10**6)
    lag = estimate.estimate()
    assert lag and lag.seconds == pytest.approx(lag_s, abs=0.1) and lag.correlation > 0.9


def test_a_lag_that_changes_is_followed() -> None:
    estimate = LatencyEstimate(history_s=120)
    feed(estimate, *drive(0.5, 1))
    feed(estimate, *drive(1.5, 2), start_s=300)
    lag = estimate.estimate()
    assert lag and lag.seconds == pytest.approx(1.5, abs=0.1)


def test_order_rate_and_what_was_not_measured_do_not_matter() -> None:
    speed, push = drive(1.0, 3)
    times = np.arange(0, 300, 0.002)
    fine_ns = (times * NANOSECONDS).astype(np.int64)
    value = np.interp(fine_ns, push.timestamps_ns, push.values[:, 0])
    noisy = value + np.random.default_rng(0).normal(0, 3, len(value))  # an engine at 500 Hz
    estimate = LatencyEstimate()
    for block in range(0, len(fine_ns), 50):
        for time_ns, one in zip(
            fine_ns[block : block + 50][::-1], noisy[block:][49::-1], strict=True
        ):
            estimate.add_acceleration(int(time_ns), float(one))
            estimate.add_acceleration(int(time_ns), math.nan)
    feed(estimate, speed, Series(push.timestamps_ns[:0], push.values[:0]))
    estimate.add_speed(280 * NANOSECONDS, math.inf)
    lag = estimate.estimate()
    assert lag and lag.seconds == pytest.approx(1.0, abs=0.1)


def test_too_little_or_too_calm_tells_nothing() -> None:
    estimate = LatencyEstimate()
    assert estimate.estimate() is None
    speed, push = drive(1.0, 1)
    feed(estimate, Series(speed.timestamps_ns[:50], speed.values[:50]), push)
    assert estimate.estimate() is None
    calm = LatencyEstimate()
    feed(calm, Series(speed.timestamps_ns, np.full_like(speed.values, 20)), push)
    assert calm.estimate() is None
    other = LatencyEstimate()  # of another vehicle
    feed(other, speed, drive(1.0, 9)[1])
    assert other.estimate() is None


def test_real_trips_give_live_what_they_give_as_a_whole(trips: list[Path]) -> None:
    for trip in trips[::11]:
        recording = read_recording(trip)
        speed, push = recording.series["gps"], recording.series["imu"]
        estimate = LatencyEstimate(HIGHPASS_HZ, history_s=3600)
        feed(estimate, speed, push)
        lag, whole = estimate.estimate(), estimate_lag(speed, push, HIGHPASS_HZ)
        assert lag and whole and lag.seconds == pytest.approx(whole.seconds, abs=0.1), trip.name
        assert 0.4 <= lag.seconds <= 1.3, trip.name
