"""How fast a course changes: the channel `course_change` of recorded fixes, as UAH-DriveSet has it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping

from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.fixes import MIN_COURSE_SPEED
from fusedge.devices.capture.table_source import Fault, Row, Table

SPAN_NS = to_ns(2)
TOLERANCE_NS = to_ns(0.5)


class CourseChange:
    """Contract: the size of the course's change since the fix 2 s before, over the time between, in
    rad/s; NaN where either course is not known, or the fix nearest to 2 s old is 0.5 s off.
    """

    def __init__(self) -> None:
        self._fixes: deque[tuple[int, float]] = deque()

    def add(self, timestamp_ns: int, course_rad: float) -> float:
        """Take the course of the next fix, NaN where there is none; the rate."""
        fixes = self._fixes
        if fixes and timestamp_ns <= fixes[-1][0]:
            fixes.clear()
        fixes.append((timestamp_ns, course_rad))
        ideal_ns = timestamp_ns - SPAN_NS
        while len(fixes) > 1 and abs(fixes[1][0] - ideal_ns) <= abs(fixes[0][0] - ideal_ns):
            fixes.popleft()
        before_ns, before_rad = fixes[0]
        turn = course_rad - before_rad
        if abs(before_ns - ideal_ns) > TOLERANCE_NS or not math.isfinite(turn):
            return math.nan
        return abs(math.remainder(turn, math.tau)) * NANOSECONDS / (timestamp_ns - before_ns)


class WithCourseChange:
    """A table whose modality `gps` offers `speed` in m/s and `course` in deg, with `course_change` as well.

    A course below the speed at which it means something is not known.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.offered = {
            name: {**units, "course_change": "rad/s"} if name == "gps" else units
            for name, units in table.offered.items()
        }

    def rows(self, used: Mapping[str, Collection[str]]) -> Iterator[Row | Fault]:
        """See Table."""
        if "course_change" not in used.get("gps", ()):
            yield from self._table.rows(used)
            return
        needed = {*used["gps"], "speed", "course"} - {"course_change"}
        change = CourseChange()
        for row in self._table.rows({**used, "gps": needed}):
            if isinstance(row, Row) and row.modality == "gps":
                known = row.values.get("speed", math.nan) >= MIN_COURSE_SPEED
                course = row.values.get("course", math.nan) if known else math.nan
                rate = change.add(row.timestamp_ns, math.radians(course))
                yield row._replace(values={**row.values, "course_change": rate})
            else:
                yield row
