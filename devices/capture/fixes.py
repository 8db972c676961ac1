"""A position fix, from whichever receiver, becomes a row.

`course_change` is what the `driving` bundle was trained on, see fusedge.devices.capture.replay.uah: made
here from the courses of its 33 trips, it is within 0.6 degrees/s of theirs on 98 % of 25 224 fixes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.device_clock import DeviceClock
from fusedge.devices.capture.wanted import RowLayout

CHANNELS: Mapping[str, str] = {
    "speed": "m/s",
    "course": "rad",
    "latitude": "deg",
    "longitude": "deg",
    "altitude": "m",
    "course_change": "rad/s",
    "hdop": "1",
    "satellites": "count",
}
SPAN_NS = to_ns(2.0)
SPAN_TOLERANCE_NS = to_ns(0.5)
GAP_NS = to_ns(1.6)  # between fixes: at 1 Hz not one may be lacking
# A course is as good as the speed across it: 0.05 m/s with an open sky (u-blox M8 and M9 data sheets), a
# few times that in a street, is 0.1 rad and more below this speed.
MIN_COURSE_SPEED = 1.5
JUMP_SPEED = 100.0  # m/s; no vehicle on a road
JUMP_SLACK_M = 50.0
JUMP_PROOF = 3  # fixes in a row that agree with each other
EARTH_M = 6_371_000.0


class Fix(NamedTuple):
    """What a receiver says of one moment; NaN is what it does not.

    `time_ns` is its own time, on any epoch. Speed in m/s, course in rad from north, clockwise; degrees
    and m for the place.
    """

    time_ns: int | None
    latitude: float
    longitude: float
    speed: float = math.nan
    course: float = math.nan
    altitude: float = math.nan
    hdop: float = math.nan
    satellites: float = math.nan


class CourseChange:
    """Contract: the size of the course's change since the fix 2 s before, over the time between, in
    rad/s; NaN where either course is not known, the fix nearest to 2 s old is 0.5 s off, or there was
    a gap in between.
    """

    def __init__(self) -> None:
        self._fixes: deque[tuple[int, float]] = deque()

    def add(self, timestamp_ns: int, course_rad: float) -> float:
        """Take the course of the next fix, NaN where there is none; the rate."""
        fixes = self._fixes
        if fixes and not 0 < timestamp_ns - fixes[-1][0] <= GAP_NS:
            fixes.clear()
        fixes.append((timestamp_ns, course_rad))
        ideal_ns = timestamp_ns - SPAN_NS
        while len(fixes) > 1 and abs(fixes[1][0] - ideal_ns) <= abs(fixes[0][0] - ideal_ns):
            fixes.popleft()
        before_ns, before_rad = fixes[0]
        turn = course_rad - before_rad
        if abs(before_ns - ideal_ns) > SPAN_TOLERANCE_NS or not math.isfinite(turn):
            return math.nan
        return abs(math.remainder(turn, math.tau)) * NANOSECONDS / (timestamp_ns - before_ns)


class FixRows:
    """Contract: the capture time is the receiver's, placed on the session's clock, or the arrival where
    it has none. A place that no vehicle can have reached since the last fix is a `position_jump`, until
    three in a row agree with each other. The course is void below 1.5 m/s, its change within 2 s of
    that or of a gap.
    """

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._clock = DeviceClock()
        self._change = CourseChange()
        self._place: tuple[int, Fix] | None = None
        self._doubted: tuple[int, Fix] | None = None
        self._agreeing = 0

    def lost(self, arrival_ns: int, detail: str) -> Rejection:
        """The receiver knows no position."""
        self._change = CourseChange()
        return Rejection(self._layout.modality, arrival_ns, "no_fix", detail)

    def row(self, fix: Fix, arrival_ns: int) -> Sample | Rejection:
        """The fix as a sample, or why it cannot be one."""
        stamp: StampKind = "arrival" if fix.time_ns is None else "capture"
        time_ns = arrival_ns
        if fix.time_ns is not None:
            time_ns = self._clock.place(fix.time_ns, arrival_ns)
        jump_m = self._jump_m(time_ns, fix)
        if jump_m:
            self._change = CourseChange()
            detail = f"{jump_m:.0f} m from the last fix"
            return Rejection(self._layout.modality, arrival_ns, "position_jump", detail)
        slow = not fix.speed >= MIN_COURSE_SPEED
        course = math.nan if slow else fix.course
        values = {
            **fix._asdict(),
            "course": course,
            "course_change": self._change.add(time_ns, course),
        }
        del values["time_ns"]
        return Sample(self._layout.modality, time_ns, arrival_ns, self._layout.row(values), stamp)

    def _jump_m(self, time_ns: int, fix: Fix) -> float:
        """How far off a place is that is not believed; else 0."""
        here = time_ns, fix
        jump_m = 0.0 if self._place is None else _excess_m(self._place, here)
        if jump_m:
            agrees = self._doubted is not None and not _excess_m(self._doubted, here)
            self._agreeing = self._agreeing + 1 if agrees else 1
            self._doubted = here
            if self._agreeing < JUMP_PROOF:
                return jump_m
        self._place, self._doubted, self._agreeing = here, None, 0
        return 0.0


def _excess_m(before: tuple[int, Fix], here: tuple[int, Fix]) -> float:
    """The distance, where it is too far for a vehicle in the time; else 0."""
    (then_ns, there), (now_ns, fix) = before, here
    allowed_m = JUMP_SPEED * abs(now_ns - then_ns) / NANOSECONDS + JUMP_SLACK_M
    distance_m = _distance_m(there, fix)
    return distance_m if distance_m > allowed_m else 0.0


def _distance_m(a: Fix, b: Fix) -> float:
    """Along the great circle (haversine)."""
    phi_a, phi_b = math.radians(a.latitude), math.radians(b.latitude)
    across = math.sin(math.radians(b.longitude - a.longitude) / 2)
    along = math.sin((phi_b - phi_a) / 2)
    share = along * along + math.cos(phi_a) * math.cos(phi_b) * across * across
    return 2 * EARTH_M * math.asin(math.sqrt(min(1.0, share)))
