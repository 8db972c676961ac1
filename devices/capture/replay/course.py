"""The channel `course_change` of recorded fixes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from fusedge.devices.capture.fixes import MIN_COURSE_SPEED, CourseChange
from fusedge.devices.capture.table_source import Fault, Row, Table


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
