"""Trips of UAH-DriveSet v1 (Romera, Bergasa, Arroyo, ITSC 2016): as a source, and as arrays.

A trip is a folder of text files, plain or gzipped, with one row of numbers a line. What the columns
mean was checked on the 33 trips of drivers D1, D2, D3, D5 and D6 (254 361, 25 314, 605 592 and
131 938 rows of the four files read here):

- Lane state: -9 no estimate (all values -9), -1 calibrating and 0 initialising (offset and heading
  are placeholders: exactly 0 on 99 % and 98 % of the rows), 1 no line seen (the tracker coasts on its
  prediction, median 0.03 s), 2 tracked. So the lane is measured in states 1 and 2 only.
- Lane heading is in degrees by the authors' word. Against the rate of the lane offset over the speed
  it is 2 to 30 times too small even so (by which is fitted to which): take it as a relative figure.
- Lateral acceleration is positive in a right turn, yaw rises in a left one (by the GPS course on
  all trips); the lane offset is positive to the right (by its second derivative).
- A lead vehicle's time is its distance over the own speed (equal within 1 % on 98 % of the rows):
  a time headway, not a time to collision. It is -1 exactly where the distance is -1, which is no
  vehicle in the own lane (59 % of the rows); `vehicles` then still counts those in other lanes.
- Course change is the unsigned difference in degrees to the course two fixes, 2 s, before (equal on
  89 % of the rows of a trip, median); halved, it is a rate. It is void within two fixes of a gap.
- The phone stands upright, so roll lies near -pi/2; yaw wraps at pi and drifts. Its filter takes slow
  accelerations for tilt: it passes 0.13, 0.39, 0.63 of them at 0.03, 0.075, 0.17 Hz.

The app's own verdicts on the driver (files SEMANTIC_*) are never read.
"""

from __future__ import annotations

import heapq
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import is_file
from fusedge.bundle.sample import Recording, Rejection, Sample, Series
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.driving import CHANNELS, channel_names, channel_units, select
from fusedge.devices.capture.line_file import UNREADABLE, bounded_lines, open_file
from fusedge.devices.capture.wanted import Damage

G = 9.80665
KMH = 1 / 3.6
DEGREE = math.pi / 180
COURSE_SPAN_S = 2.0
COURSE_SPAN_FIXES = 2
MAX_HACC_M = 20.0  # 5 and 10 m on 99.9 % of the rows; the rest, 30 to 2000 m, is acquisition
VEHICLE_HOLD_NS = NANOSECONDS
MAX_SILENCE_NS = 60 * NANOSECONDS  # the longest in the trips is 17 s
MAX_TRIP_NS = 86400 * NANOSECONDS  # the longest trip lasts 19 min
LEAP_PROOF = 10  # rows in a row that a longer silence takes to be believed
HEAD = 21  # rows at a file's start that tell when it starts: up to 10 wrong ones do not matter
HEAD_LINES = 200
MAX_STAMP_S = 1e9
MAX_LINE = 512  # bytes; the longest row has 73
MAX_VALUE = float(np.finfo(np.float32).max)

Feed = Iterator[Sample | Rejection]


class _Layout(NamedTuple):
    """A file of a trip: name without its suffix, columns in a row."""

    name: str
    columns: int


_IMU = _Layout("RAW_ACCELEROMETERS", 11)
_GPS = _Layout("RAW_GPS", 12)
_LANE = _Layout("PROC_LANE_DETECTION", 5)
_VEHICLES = _Layout("PROC_VEHICLE_DETECTION", 5)
_EVENTS = _Layout("EVENTS_INERTIAL", 6)

_FOLDER = re.compile(
    r"\d{14}-\d+km-(?P<driver>D\d+)-(?P<style>NORMAL|DROWSY|AGGRESSIVE)\d?-"
    r"(?P<road>MOTORWAY|SECONDARY)"
)
_EVENT_KINDS = {1: "braking", 2: "turn", 3: "acceleration"}
_NAN = math.nan


class _Row(NamedTuple):
    """A well-formed line. `arrival_ns` is the greatest stamp of its file so far that was believed."""

    arrival_ns: int
    stamp_ns: int
    values: list[float]


class TripSource:
    """The source `replay:FOLDER`: a trip as its phone received it.

    Modalities and channels are those of `fusedge.devices.capture.driving`. A sample's
    `timestamp_ns` is the file's stamp; a constant delay of the stamps (GPS) is the manifest's
    matter. It arrives at the greatest stamp of its file so far, and not before the trip's start,
    which is one for all files and which no single file can misplace. A stamp that leaps more than
    60 s ahead is `implausible_stamp` and does not move arrival, so that it cannot hold back the
    rows after it; the tenth in a row that agrees with the one before is believed. Beyond a day from
    the start, or 60 s for each row so far, none is: a replay's length is bounded by its rows.

    `road` has one sample for each lane row, with the newest vehicle row that had arrived, if that
    is at most 1 s old. Not a row: `malformed`. A GPS row without a plausible position: `no_fix`.
    Raises FusedgeError where the folder is no trip or holds nothing readable.
    """

    live = False

    def __init__(
        self, uri: str, folder: Path, wanted: Mapping[str, tuple[str, ...]] | None
    ) -> None:
        self.uri = uri
        columns = select(uri, wanted)
        warnings: list[str] = []
        self._open = []
        start_ns = _start_ns(folder)
        for modality, chosen in columns.items():
            reader = _reader(folder, start_ns, modality, chosen, warnings)
            if reader is not None:
                self._open.append((modality, reader))
        if not self._open:
            raise _no_trip(folder, warnings)
        self.modalities = tuple(modality for modality, _ in self._open)
        given = {name: columns[name] for name in self.modalities}
        self.channels, self.units = channel_names(given), channel_units(given)
        self.warnings = tuple(map(Damage, warnings))
        self._closed = threading.Event()

    def samples(self) -> Iterator[Sample | Rejection]:
        """Samples and rejections in the order of arrival."""
        feeds = [reader() for _, reader in self._open]
        for item in heapq.merge(*feeds, key=attrgetter("arrival_ns")):
            if self._closed.is_set():
                return
            yield item

    def close(self) -> None:
        """End the iterator before its next item."""
        self._closed.set()


def read_recording(path: Path) -> Recording:
    """A trip as arrays, with all channels of `driving.CHANNELS` and the label of its folder's name.

    Values are those of `TripSource`. A row whose stamp repeats, falls behind or is not believed
    is left out, so that stamps rise strictly, as in the runtime's buffers. A modality without data
    is an empty series. Raises FusedgeError where the folder is no trip or its name tells no label.
    """
    match = _FOLDER.fullmatch(path.resolve().name)
    if match is None:
        raise FusedgeError(
            "the folder's name tells no label",
            where=str(path),
            hint="trips are named like 20151111123124-25km-D1-NORMAL-MOTORWAY",
        )
    wanted = {modality: tuple(channels) for modality, channels in CHANNELS.items()}
    source = TripSource(f"replay:{path}", path, wanted)
    stamps: dict[str, list[int]] = {modality: [] for modality in CHANNELS}
    values: dict[str, list[NDArray[np.float32]]] = {modality: [] for modality in CHANNELS}
    for item in source.samples():
        if isinstance(item, Sample) and item.timestamp_ns == item.arrival_ns:
            if stamps[item.modality][-1:] == [item.timestamp_ns]:
                continue
            stamps[item.modality].append(item.timestamp_ns)
            values[item.modality].append(item.data)
    series = {
        modality: Series(
            np.array(stamps[modality], np.int64),
            np.array(values[modality], np.float32).reshape(-1, len(channels)),
        )
        for modality, channels in CHANNELS.items()
    }
    return Recording(
        name=path.resolve().name,
        label=match["style"].lower(),
        group=match["driver"],
        condition=match["road"].lower(),
        series=series,
        reference_events=tuple(_events(path)),
    )


def find_trips(data_dir: Path) -> list[Path]:
    """All trip folders, by driver and name, of a data folder, UAH-DriveSet's own or a driver's.

    Raises FusedgeError where there are none.
    """
    for pattern in ("driving/uah-driveset/D*/*", "D*/*", "*"):
        trips = sorted(
            path
            for path in data_dir.glob(pattern)
            if path.is_dir() and _FOLDER.fullmatch(path.name)
        )
        if trips:
            return trips
    raise FusedgeError(
        "no trips of UAH-DriveSet here",
        where=str(data_dir),
        hint="get it from its authors (Romera, Bergasa, Arroyo, University of Alcala; licence: "
        "non-commercial use only, no redistribution) and name the folder that holds D1, D2, ...",
    )


def _reader(
    folder: Path, start_ns: int, modality: str, columns: Sequence[int], warnings: list[str]
) -> Callable[[], Feed] | None:
    """What reads a modality; None, and a warning, where its file is missing or unreadable."""
    if modality == "imu":
        path = _locate(folder, _IMU, "no imu", warnings)
        return None if path is None else partial(_imu, path, start_ns, columns)
    if modality == "gps":
        path = _locate(folder, _GPS, "no gps", warnings)
        return None if path is None else partial(_gps, path, start_ns, columns)
    path = _locate(folder, _LANE, "no road", warnings)
    if path is None:
        return None
    vehicles = _locate(folder, _VEHICLES, "road goes without vehicles", warnings)
    return partial(_road, path, vehicles, start_ns, columns)


def _locate(folder: Path, layout: _Layout, effect: str, warnings: list[str]) -> Path | None:
    path = _find(folder, layout)
    if path is None:
        warnings.append(f"{folder / layout.name}.txt is missing: {effect}")
        return None
    try:
        with open_file(path) as file:
            problem = "" if file.read(1) else "is empty"
    except UNREADABLE as error:
        problem = f"cannot be read ({error})"
    if problem:
        warnings.append(f"{path} {problem}: {effect}")
        return None
    return path


def _find(folder: Path, layout: _Layout) -> Path | None:
    """The file of that layout, plain or gzipped, None where there is none."""
    paths = (folder / f"{layout.name}{suffix}" for suffix in (".txt", ".txt.gz"))
    return next((path for path in paths if is_file(path)), None)


def _no_trip(folder: Path, warnings: Sequence[str]) -> FusedgeError:
    if not os.path.isdir(folder):  # noqa: PTH112
        what = "no such trip folder"
    elif any(_find(folder, layout) for layout in (_IMU, _GPS, _LANE)):
        what = f"nothing to read in this trip: {'; '.join(warnings)}"
    else:
        what = "not a trip of UAH-DriveSet"
    hint = f"a trip folder holds {_IMU.name}, {_GPS.name} and {_LANE.name}, as .txt or .txt.gz"
    return FusedgeError(what, where=str(folder), hint=hint)


def _parsed(path: Path, layout: _Layout) -> Iterator[tuple[int, list[float] | str]]:
    """Number and numbers of each line that is not blank, or why it has none.

    A last line without its end was cut off, maybe within a number.
    """
    number = 0
    try:
        with open_file(path) as file:
            for line in bounded_lines(file, MAX_LINE):
                number += 1
                values = _parse(line, layout.columns)
                if values:
                    yield number, values
    except UNREADABLE as error:
        yield number + 1, f"cannot be read on ({error})"


def _start_ns(folder: Path) -> int:
    """When a trip starts: the earliest of its files' starts that lies near their middle one."""
    paths = [(_find(folder, layout), layout) for layout in (_IMU, _GPS, _LANE, _VEHICLES)]
    heads = [_head(path, layout) for path, layout in paths if path is not None]
    starts = [_earliest(head) for head in heads if head]
    return _earliest(starts) if starts else 0


def _head(path: Path, layout: _Layout) -> list[int]:
    """The stamps of a file's first rows."""
    rows = (values for _, values in islice(_parsed(path, layout), HEAD_LINES))
    stamps = (_stamp_ns(values) for values in rows if not isinstance(values, str))
    return list(islice(stamps, HEAD))


def _earliest(stamps: Sequence[int]) -> int:
    middle = median_low(stamps)
    return min(stamp for stamp in stamps if middle - stamp <= MAX_SILENCE_NS)


def _stamp_ns(values: Sequence[float]) -> int:
    return round(values[0] * NANOSECONDS)


def _rows(path: Path, layout: _Layout, modality: str, start_ns: int) -> Iterator[_Row | Rejection]:
    """The rows of a file; a line that is none is `malformed`, see `TripSource` for stamps."""
    arrival_ns, leapt_ns, agreeing, rows = start_ns, start_ns, 0, 0
    for number, values in _parsed(path, layout):
        if isinstance(values, str):
            yield Rejection(modality, arrival_ns, "malformed", f"{path}:{number}: {values}")
            continue
        rows += 1
        stamp_ns = _stamp_ns(values)
        believed = stamp_ns <= arrival_ns + MAX_SILENCE_NS
        if not believed:
            agreeing = agreeing + 1 if abs(stamp_ns - leapt_ns) <= MAX_SILENCE_NS else 1
            leapt_ns, believed = stamp_ns, agreeing >= LEAP_PROOF
        else:
            agreeing = 0
        if not believed or stamp_ns > start_ns + min(MAX_TRIP_NS, rows * MAX_SILENCE_NS):
            place = f"{path}:{number}: the stamp {values[0]:g} s leaps ahead"
            yield Rejection(modality, arrival_ns, "implausible_stamp", place)
            continue
        arrival_ns = max(arrival_ns, stamp_ns)
        yield _Row(arrival_ns, stamp_ns, values)


def _parse(line: bytes, columns: int) -> list[float] | str:
    """The numbers in a line, or why there are none; empty where the line is blank."""
    cells = line.split()
    if not line:
        return f"longer than {MAX_LINE} bytes"
    if not cells:
        return ""
    if not line.endswith(b"\n"):
        return "torn: the line has no end"
    if len(cells) != columns:
        return f"{len(cells)} columns instead of {columns}"
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return "not a number"
    if b"_" in line:  # Python reads 1_0 as 10
        return "not a number"
    return values if -MAX_STAMP_S < values[0] < MAX_STAMP_S else "stamp out of range"


def _sample(modality: str, row: _Row, values: Sequence[float], columns: Sequence[int]) -> Sample:
    data = [v if -MAX_VALUE <= v <= MAX_VALUE else _NAN for v in (values[c] for c in columns)]
    return Sample(modality, row.stamp_ns, row.arrival_ns, np.array(data, np.float32))


def _imu(path: Path, start_ns: int, columns: Sequence[int]) -> Feed:
    for row in _rows(path, _IMU, "imu", start_ns):
        if isinstance(row, Rejection):
            yield row
            continue
        x, y, z, roll, pitch, yaw = row.values[5:]
        yield _sample("imu", row, (z * G, y * G, x * G, roll, pitch, yaw), columns)


def _gps(path: Path, start_ns: int, columns: Sequence[int]) -> Feed:
    fixes = COURSE_SPAN_FIXES  # a trip starts within a drive
    for row in _rows(path, _GPS, "gps", start_ns):
        if isinstance(row, Rejection):
            yield row
            continue
        _, speed, latitude, longitude, _, _, hacc, _, change, *_ = row.values
        if speed < 0 or latitude == longitude == 0 or not 0 < hacc <= MAX_HACC_M:
            fixes = 0
            yield Rejection("gps", row.arrival_ns, "no_fix", f"horizontal accuracy {hacc:g} m")
            continue
        known = change >= 0 and fixes >= COURSE_SPAN_FIXES
        fixes += 1
        rate = change * DEGREE / COURSE_SPAN_S if known else _NAN
        yield _sample("gps", row, (speed * KMH, rate), columns)


def _road(lanes: Path, vehicles: Path | None, start_ns: int, columns: Sequence[int]) -> Feed:
    feed = _rows(vehicles, _VEHICLES, "road", start_ns) if vehicles else iter(())
    waiting = next(feed, None)
    newest: _Row | None = None
    for row in _rows(lanes, _LANE, "road", start_ns):
        while waiting is not None and waiting.arrival_ns <= row.arrival_ns:
            if isinstance(waiting, Rejection):
                yield waiting
            else:
                newest = waiting
            waiting = next(feed, None)
        if isinstance(row, Rejection):
            yield row
            continue
        yield _sample("road", row, (*_lane(row), *_lead(newest, row.stamp_ns)), columns)
    while waiting is not None:
        if isinstance(waiting, Rejection):
            yield waiting
        waiting = next(feed, None)


def _lane(row: _Row) -> tuple[float, float, float]:
    _, offset, heading, width, state = row.values
    if state not in (1, 2) or -9 in (offset, heading, width):
        return _NAN, _NAN, _NAN
    return offset, heading * DEGREE, width


def _lead(row: _Row | None, now_ns: int) -> tuple[float, float, float]:
    if row is None or not 0 <= now_ns - row.stamp_ns <= VEHICLE_HOLD_NS:
        return _NAN, _NAN, _NAN
    _, distance, headway, vehicles, _ = row.values
    if distance < 0 or headway < 0:
        return _NAN, _NAN, vehicles
    return distance, headway, vehicles


def _events(folder: Path) -> Iterator[tuple[str, int, float]]:
    path = _find(folder, _EVENTS)
    for _, values in _parsed(path, _EVENTS) if path else ():
        if not isinstance(values, str):
            time_s, kind, level = values[:3]
            if kind in _EVENT_KINDS and level in (1, 2, 3):
                yield _EVENT_KINDS[int(kind)], int(level), time_s
