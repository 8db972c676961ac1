"""The lag of a speed series is found on a made-up drive."""

from __future__ import annotations

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.lag import estimate_lag, median_lag
from fusedge.bundle.sample import Series
from fusedge.bundle.window import NANOSECONDS

STEP_S = 0.01


def drive(lag_s: float, seed: int, highpass_hz: float = 0.0) -> tuple[Series, Series]:
    """GPS speed at 1 Hz that lags, and acceleration at 10 Hz with noise."""
    random = np.random.default_rng(seed)
    times = np.arange(0, 300, STEP_S)
    push = np.convolve(random.normal(0, 12, len(times)), np.hanning(200) / 100, "same")
    speed = 20 + np.cumsum(push) * STEP_S
    if highpass_hz:
        slow, weight = 0.0, -np.expm1(-2 * np.pi * highpass_hz * STEP_S)
        for index, value in enumerate(push):
            slow += weight * (value - slow)
            push[index] = value - slow
    fixes, motions = np.arange(5, 295, 1.0), np.arange(0, 300, 0.1)
    return (
        Series(
            (fixes * NANOSECONDS).astype(np.int64),
            np.interp(fixes - lag_s, times, speed).astype(np.float32)[:, None],
        ),
        Series(
            (motions * NANOSECONDS).astype(np.int64),
            (np.interp(motions, times, push) + random.normal(0, 0.2, len(motions))).astype(
                np.float32
            )[:, None],
        ),
    )


@pytest.mark.parametrize("lag_s", [0.0, 0.6, 1.45, 2.1])
def test_a_known_lag_is_found(lag_s: float) -> None:
    lag = estimate_lag(*drive(lag_s, 1))
    assert lag and lag.seconds == pytest.approx(lag_s, abs=0.1) and lag.correlation > 0.9


def test_a_highpass_before_the_acceleration_is_made_up_for() -> None:
    lag = estimate_lag(*drive(1.0, 2, 0.1), highpass_hz=0.1)
    assert lag and lag.seconds == pytest.approx(1.0, abs=0.1)


def test_the_median_bears_a_recording_that_is_wrong() -> None:
    pairs = [drive(1.2, 1), drive(1.2, 2), drive(3.5, 3)]
    assert median_lag(pairs) == pytest.approx(1.2, abs=0.1)


def test_a_calm_or_short_recording_tells_nothing() -> None:
    speed, push = drive(1.0, 1)
    calm = Series(push.timestamps_ns, np.zeros_like(push.values))
    short = Series(push.timestamps_ns[:100], push.values[:100])
    none = Series(push.timestamps_ns[:0], push.values[:0])
    assert [estimate_lag(speed, s) for s in (calm, short, none)] == [None, None, None]
    with pytest.raises(FusedgeError, match="cannot be told"):
        median_lag([(speed, calm)])
