"""Recorded tables as a source: rows of one or more modalities, in the order of their stamps."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from operator import attrgetter
from statistics import median_low
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import Address, Wanted
from fusedge.devices.capture.wanted import RowLayout

MAX_SILENCE_NS = to_ns(600)  # the longest within a drive of the recordings read here is 76 s
LEAP_PROOF = 10  # rows in a row that a longer silence takes to be believed
HEAD_ROWS = 21  # tell when a table starts: up to 10 wrong ones do not matter
HEAD_ITEMS = 1000
MAX_TIME_NS = 1 << 61  # in 2043 if since 1970; windows around a later one leave int64
MAX_VALUE = 1e28  # float32 ends at 3e38, and no unit is 1e10 times another


class Row(NamedTuple):
    """What a table holds of one modality at one time, by channel and in the units that it offers.

    A channel that is not there, or NaN, was not measured. `arrival_ns` is when the row was written,
    where that differs from when it was measured.
    """

    modality: str
    timestamp_ns: int
    values: Mapping[str, float]
    arrival_ns: int | None = None


class Fault(NamedTuple):
    """What stands in a table and cannot be a row; `time_ns` is when it was written, if that is known."""

    modality: str
    reason: str
    detail: str
    time_ns: int | None = None


class Table(Protocol):
    """Rows in the order in which they were written."""

    @property
    def offered(self) -> Mapping[str, Mapping[str, str]]:
        """The modalities that may come, each with its channels and their units."""

    def rows(self, used: Mapping[str, Collection[str]]) -> Iterator[Row | Fault]:
        """The rows of some modalities, with at least the channels named; to be called once.

        A stamp is below MAX_TIME_NS either side of 0. What cannot be read never raises.
        """


class ArrayTable(NamedTuple):
    """A modality as arrays: times in seconds `[N]`, and of each channel the unit and values `[N]`.

    A row without a time is `malformed`; `where` says where it stands.
    """

    modality: str
    where: str
    times_s: NDArray[np.float64]
    columns: Mapping[str, tuple[str, NDArray[np.float64]]]

    @property
    def offered(self) -> Mapping[str, Mapping[str, str]]:
        """See Table."""
        return {self.modality: {name: unit for name, (unit, _) in self.columns.items()}}

    def rows(self, used: Mapping[str, Collection[str]]) -> Iterator[Row | Fault]:
        """See Table."""
        names = used[self.modality]
        columns = [self.columns[name][1].tolist() for name in names]
        for number, (time_s, *values) in enumerate(
            zip(self.times_s.tolist(), *columns, strict=True)
        ):
            time_ns = time_s * NANOSECONDS
            if -MAX_TIME_NS < time_ns < MAX_TIME_NS:
                values_by_name = dict(zip(names, values, strict=True))
                yield Row(self.modality, round(time_ns), values_by_name)
            else:
                yield Fault(self.modality, "malformed", f"{self.where}: row {number} has no time")


class Arrivals:
    """When the rows of one table arrive: at the greatest stamp so far that was believed.

    Contract: `first` are the stamps of the first rows; the table starts with the earliest that lies
    near their middle one. A stamp that leaps more than `silence_ns` ahead is not believed, so that
    it cannot hold back the rows after it; of stamps that rise in smaller steps from there the tenth
    is. None is beyond `silence_ns` for each row so far, so that rows bound the length of a replay.
    """

    def __init__(self, first: Sequence[int], silence_ns: int) -> None:
        middle = median_low(first)
        self.newest_ns = min(stamp for stamp in first if middle - stamp <= silence_ns)
        self._start_ns = self._leapt_ns = self.newest_ns
        self._silence_ns = silence_ns
        self._agreeing = self._rows = 0

    def believe(self, stamp_ns: int) -> bool:
        """Take the next row's stamp; whether it is believed."""
        self._rows += 1
        believed = stamp_ns <= self.newest_ns + self._silence_ns
        if believed:
            self._agreeing = 0
        else:
            follows = 0 < stamp_ns - self._leapt_ns <= self._silence_ns
            self._agreeing = self._agreeing + 1 if follows else 1
            self._leapt_ns, believed = stamp_ns, self._agreeing >= LEAP_PROOF
        if not believed or stamp_ns > self._start_ns + self._rows * self._silence_ns:
            return False
        self.newest_ns = max(self.newest_ns, stamp_ns)
        return True


class _Start(NamedTuple):
    """The start of a table: `arrivals` is None where it tells no time; then `items` are at their end."""

    arrivals: Arrivals | None
    head: list[Row | Fault]
    surplus: tuple[Rejection, ...]
    items: Iterator[Row | Fault]


class TableSource:
    """The source that plays tables, merged in the order of arrival.

    Contract: stamps are passed on as they are, so they may repeat and fall; for arrival, and stamps
    that are `implausible_stamp`, see Arrivals. What is rejected before the first row arrives with it;
    beyond HEAD_ITEMS it is counted together. `samples` raises FusedgeError where nothing tells when it
    was. Raises FusedgeError where no wanted modality is offered, else as RowLayout does.
    """

    live = False

    def __init__(
        self,
        address: Address,
        wanted: Wanted,
        tables: Sequence[Table],
        warnings: Sequence[str] = (),
    ) -> None:
        self.uri = address.uri
        offered = {name: units for table in tables for name, units in table.offered.items()}
        self._layouts = _layouts(address, wanted, offered)
        self._tables = [t for t in tables if any(name in self._layouts for name in t.offered)]
        self.modalities = tuple(self._layouts)
        self.channels = {name: layout.channels for name, layout in self._layouts.items()}
        self.units = {name: layout.units for name, layout in self._layouts.items()}
        lacking = [line for layout in self._layouts.values() for line in layout.warnings]
        self.warnings = (*warnings, *lacking)
        self._closed = threading.Event()

    def samples(self) -> Iterator[Sample | Rejection]:
        """Samples and rejections in the order of arrival."""
        starts = [self._start(table) for table in self._tables]
        told = [start.arrivals.newest_ns for start in starts if start.arrivals is not None]
        if self._closed.is_set():
            return
        if not told:
            raise self._nothing(starts)
        with ExitStack() as open_tables:
            feeds = [open_tables.enter_context(closing(self._feed(s, min(told)))) for s in starts]
            for item in heapq.merge(*feeds, key=attrgetter("arrival_ns")):
                if self._closed.is_set():
                    return
                yield item

    def _start(self, table: Table) -> _Start:
        """Read a table as far as it takes to tell when it starts."""
        used = {name: self._layouts[name].used for name in table.offered if name in self._layouts}
        items = table.rows(used)
        head: list[Row | Fault] = []
        times: list[int] = []
        surplus: dict[tuple[str, str], Rejection] = {}
        while len(times) < HEAD_ROWS and (len(head) < HEAD_ITEMS or not times):
            item = next(items, None)
            if item is None or self._closed.is_set():
                break
            time_ns = item.time_ns if isinstance(item, Fault) else _arrival_ns(item)
            if time_ns is not None:
                times.append(time_ns)
            if len(head) < HEAD_ITEMS or time_ns is not None:
                head.append(item)
            elif isinstance(item, Fault):
                key = item.modality, item.reason
                more = surplus.get(key, Rejection(item.modality, 0, item.reason, item.detail, 0))
                surplus[key] = more._replace(samples=more.samples + 1)
        arrivals = Arrivals(times, MAX_SILENCE_NS) if times else None
        return _Start(arrivals, head, tuple(surplus.values()), items)

    def _nothing(self, starts: Sequence[_Start]) -> FusedgeError:
        """The error where no table tells when anything was."""
        faults = [item for start in starts for item in start.head if isinstance(item, Fault)]
        if not faults:
            return FusedgeError(f"has no rows of {', '.join(self.modalities)}", where=self.uri)
        count = len(faults) + sum(more.samples for start in starts for more in start.surplus)
        first = faults[0]
        return FusedgeError(
            f"no row can be taken, {count} rejected; the first: {first.detail}",
            where=self.uri,
            hint="is the time in ms? say time: {column: t, unit: ms} in a map=COLUMNS.yaml"
            if first.reason == "implausible_stamp"
            else "a map=COLUMNS.yaml says how they are to be read",
        )

    def _feed(self, start: _Start, first_ns: int) -> Generator[Sample | Rejection, None, None]:
        """What a table holds; where it does not tell when, it is at `first_ns`."""
        arrivals = start.arrivals or Arrivals([first_ns], MAX_SILENCE_NS)
        for more in start.surplus:
            yield more._replace(arrival_ns=arrivals.newest_ns)
        for item in chain(start.head, start.items):
            if isinstance(item, Fault):
                yield Rejection(item.modality, arrivals.newest_ns, item.reason, item.detail)
            elif arrivals.believe(_arrival_ns(item)):
                values = {k: v for k, v in item.values.items() if -MAX_VALUE <= v <= MAX_VALUE}
                data = self._layouts[item.modality].row(values)
                yield Sample(item.modality, item.timestamp_ns, arrivals.newest_ns, data)
            else:
                detail = f"the stamp {_arrival_ns(item) / 1e9:g} s leaps ahead"
                yield Rejection(item.modality, arrivals.newest_ns, "implausible_stamp", detail)

    def close(self) -> None:
        """End the iterator before its next item."""
        self._closed.set()


def _arrival_ns(row: Row) -> int:
    return row.timestamp_ns if row.arrival_ns is None else row.arrival_ns


def _layouts(
    address: Address, wanted: Wanted, offered: Mapping[str, Mapping[str, str]]
) -> dict[str, RowLayout]:
    if wanted is None:
        return {name: RowLayout(address, name, None, units) for name, units in offered.items()}
    layouts = {
        name: RowLayout(address, name, spec, offered[name])
        for name, spec in wanted.items()
        if name in offered and spec.kind == "series"
    }
    if not layouts:
        raise FusedgeError(
            f"offers none of the wanted modalities ({', '.join(wanted) or 'none wanted'})",
            where=address.uri,
            hint=f"it offers {', '.join(offered) or 'nothing'}",
        )
    return layouts
