"""How late the stamps of a speed series are, against acceleration measured on the same vehicle.

The change of speed is compared with the longitudinal acceleration at every delay in question; the
delay of the greatest correlation is a recording's lag, and the median of recordings is robust.
Training asks it of recordings, the runtime of the last minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Series
from fusedge.bundle.window import NANOSECONDS

Floats = NDArray[np.float64]

STEP_S = 0.05
_SPAN_S = 1.0  # over which speed is differentiated: the interval of GPS fixes
_LEAST_CORRELATION = 0.2  # below, a recording has no manoeuvre to line up
# Of 1500 pairs of unrelated simulated series of 1 to 5 minutes, 99 in 100 have a greatest correlation
# below this over the root of their seconds; it decides below 5 minutes.
_CHANCE = 3.5
_LEAST_DURATION_S = 60.0


class Lag(NamedTuple):
    """A delay, and how well the two series agree with it made up for (1 is fully)."""

    seconds: float
    correlation: float


def estimate_lag(
    speed: Series, acceleration: Series, highpass_hz: float = 0.0, greatest_s: float = 4.0
) -> Lag | None:
    """By how much `speed` (m/s) lags `acceleration` (m/s2), each in column 0 of its series.

    `highpass_hz` is the corner of the high-pass that the acceleration went through (one pole; 0 is
    none): it advances slow manoeuvres, so the change of speed must go through the same. Looked for are
    delays from 0 to `greatest_s`. None where the recording is too short or too calm to tell.
    """
    start, end = (
        pick(float(series.timestamps_ns[i]) / NANOSECONDS for series in (speed, acceleration))
        if all(len(series.timestamps_ns) for series in (speed, acceleration))
        else 0.0
        for pick, i in ((max, 0), (min, -1))
    )
    if end - start < _LEAST_DURATION_S:
        return None
    times = np.arange(start, end, STEP_S)
    half = round(_SPAN_S / 2 / STEP_S)
    speeds, pushes = (_at(series, times) for series in (speed, acceleration))
    change = np.zeros_like(speeds)
    change[half:-half] = (speeds[2 * half :] - speeds[: -2 * half]) / _SPAN_S
    # The same smoothing that differencing brings.
    kernel = np.full(2 * half + 1, 1 / (2 * half + 1))
    pushes = np.convolve(pushes, kernel, "same")
    if highpass_hz > 0:
        change = _highpass(change, highpass_hz)
    lags = range(round(greatest_s / STEP_S) + 1)
    scores = [_correlation(pushes[: len(pushes) - lag], change[lag:]) for lag in lags]
    best = int(np.argmax(scores))
    least = max(_LEAST_CORRELATION, _CHANCE / (end - start) ** 0.5)
    return Lag(best * STEP_S, scores[best]) if scores[best] >= least else None


def median_lag(pairs: Sequence[tuple[Series, Series]], highpass_hz: float = 0.0) -> float:
    """The median lag of `(speed, acceleration)` pairs; raises FusedgeError where none tells it."""
    lags = [lag.seconds for pair in pairs if (lag := estimate_lag(*pair, highpass_hz))]
    if not lags:
        raise FusedgeError(
            f"the lag of GPS cannot be told from {len(pairs)} recordings",
            hint="it needs a minute or more of speed and acceleration that belong together",
        )
    return float(np.median(lags))


def _at(series: Series, times: Floats) -> Floats:
    values = series.values[:, 0].astype(np.float64)
    finite = np.isfinite(values)
    stamps = series.timestamps_ns[finite] / NANOSECONDS
    return np.asarray(np.interp(times, stamps, values[finite]), np.float64)


def _highpass(values: Floats, corner_hz: float) -> Floats:
    weight = -np.expm1(-2 * np.pi * corner_hz * STEP_S)
    slow, result = 0.0, np.empty_like(values)
    for index, value in enumerate(values):
        slow += weight * (value - slow)
        result[index] = value - slow
    return result


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0
