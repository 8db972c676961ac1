"""Values that come one by one, on a bus or a query at a time, joined to rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.sample import Sample, StampKind
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.wanted import RowLayout


class RowCollector:
    """Contract: at most `rate_hz` rows a second, in the mean: one that is less than an interval late does
    not put off the next. A row has of each channel the newest value, if that is at most `hold_s` old,
    else NaN, and the stamp of the newest of them. A value that is not given (None of a sensor) is
    never 0.
    """

    def __init__(self, layout: RowLayout, rate_hz: float, hold_s: float) -> None:
        self._layout = layout
        self._period_ns = to_ns(1 / rate_hz)
        self._hold_ns = to_ns(hold_s)
        self._newest: dict[str, tuple[int, float]] = {}
        self._row_ns: int | None = None

    def add(
        self, values: Mapping[str, float], timestamp_ns: int, arrival_ns: int, stamp: StampKind
    ) -> Sample | None:
        """Take values of one time; the row, if one is due."""
        for name, value in values.items():
            self._newest[name] = (timestamp_ns, value)
        if not values or not self._is_due(timestamp_ns):
            return None
        return Sample(
            self._layout.modality, timestamp_ns, arrival_ns, self._row(timestamp_ns), stamp
        )

    def _is_due(self, timestamp_ns: int) -> bool:
        """Whether a row is due, which is then made."""
        before_ns = self._row_ns
        if before_ns is None or not 0 <= timestamp_ns - before_ns < 2 * self._period_ns:
            self._row_ns = timestamp_ns
            return True
        due_ns = before_ns + self._period_ns
        if timestamp_ns < due_ns:
            return False
        self._row_ns = due_ns
        return True

    def _row(self, timestamp_ns: int) -> NDArray[np.float32]:
        held = {
            name: value
            for name, (time_ns, value) in self._newest.items()
            if abs(timestamp_ns - time_ns) <= self._hold_ns
        }
        return self._layout.row(held)
