"""By how much one live sensor lags another that feels the same motion."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedge.bundle.errors import UnknownNameError
from fusedge.bundle.lag import STEP_S, Lag, estimate_lag
from fusedge.bundle.manifest import Manifest
from fusedge.bundle.sample import Rejection, Sample, Series
from fusedge.bundle.window import to_ns


class LatencyEstimate:
    """Contract: keeps the last `history_s` of a speed (m/s, GPS or CAN) and of the longitudinal
    acceleration (m/s2, IMU) of one vehicle, and tells on demand by how much the speed lags.

    Times are capture times on the session's clock; samples may come out of order. What is not
    finite is left out. Memory is bounded by the history, at whatever rate the samples come.
    `highpass_hz` is the corner of the high-pass that the acceleration went through, 0 for none.
    """

    def __init__(self, highpass_hz: float = 0.0, history_s: float = 600.0) -> None:
        self._highpass_hz = highpass_hz
        self._speed = _History(history_s)
        self._acceleration = _History(history_s)

    def add_speed(self, time_ns: int, speed: float) -> None:
        """One measurement in m/s."""
        self._speed.add(time_ns, speed)

    def add_acceleration(self, time_ns: int, acceleration: float) -> None:
        """One measurement in m/s2, forward positive."""
        self._acceleration.add(time_ns, acceleration)

    def estimate(self) -> Lag | None:
        """The lag, 0 to 4 s, and its correlation; None where less than a minute overlaps or the drive
        was too calm to tell. Takes some 20 ms for 10 minutes: ask every minute, not every tick.
        """
        return estimate_lag(self._speed.series(), self._acceleration.series(), self._highpass_hz)


class _History:
    """Means over steps of the grid on which lags are looked for: nothing finer is used of them."""

    def __init__(self, history_s: float) -> None:
        self._step_ns = to_ns(STEP_S)
        self._steps = round(history_s / STEP_S)
        # Step, sum of times, sum of values, count.
        self._means: deque[tuple[int, int, float, int]] = deque(maxlen=self._steps)

    def add(self, time_ns: int, value: float) -> None:
        if not math.isfinite(value):
            return
        means, step = self._means, time_ns // self._step_ns
        if means and means[-1][0] == step:
            _, times, values, count = means.pop()
            means.append((step, times + time_ns, values + value, count + 1))
            return
        means.append((step, time_ns, value, 1))
        oldest = step - self._steps
        while means[0][0] < oldest:
            means.popleft()

    def series(self) -> Series:
        rows = sorted((times // count, values / count) for _, times, values, count in self._means)
        return Series(
            np.array([time_ns for time_ns, _ in rows], np.int64),
            np.array([[value] for _, value in rows], np.float32).reshape(-1, 1),
        )


class LatencyPair(NamedTuple):
    """Which channels feel the same motion: `modality.channel` of a speed in m/s and of an acceleration
    in m/s2, and the corner of the high-pass that the acceleration went through (0: none).
    """

    speed: str
    acceleration: str
    highpass_hz: float = 0.0


class LatencyProbe:
    """Measures a pair's delay in a running session. Raises UnknownNameError for a channel that the bundle
    does not have.
    """

    def __init__(self, pair: LatencyPair, manifest: Manifest) -> None:
        channels = {
            f"{modality.name}.{channel.name}": (modality.name, index)
            for modality in manifest.modalities
            for index, channel in enumerate(modality.channels)
            if modality.kind == "series"
        }
        for name in (pair.speed, pair.acceleration):
            if name not in channels:
                raise UnknownNameError("channel", name, channels)
        self._pair = pair
        self._speed, self._acceleration = channels[pair.speed], channels[pair.acceleration]
        self._estimate = LatencyEstimate(pair.highpass_hz)

    def observe(self, items: Sequence[Sample | Rejection]) -> None:
        """Take what arrived."""
        estimate = self._estimate
        for item in items:
            if isinstance(item, Sample):
                for (modality, index), add in (
                    (self._speed, estimate.add_speed),
                    (self._acceleration, estimate.add_acceleration),
                ):
                    if item.modality == modality and item.data.ndim == 1 and index < len(item.data):
                        add(item.timestamp_ns, float(item.data[index]))

    def report(self) -> dict[str, Any]:
        """For the summary; `seconds` is None where the session was too short or too calm to tell."""
        lag = self._estimate.estimate()
        return {
            "speed": self._pair.speed,
            "acceleration": self._pair.acceleration,
            "seconds": None if lag is None else round(lag.seconds, 3),
            "correlation": None if lag is None else round(lag.correlation, 3),
        }
