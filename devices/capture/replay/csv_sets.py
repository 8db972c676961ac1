"""Public data sets that are CSV files: what their columns mean.

cloudpose/smartphone_driving_dataset (no licence stated): a folder with a drive of 342 s as a phone and
as the car's bus recorded it.

- `imu` is the phone's motion without gravity, 10 Hz. The phone stands upright across, its axis Z is +
  when speeding up (r = 0.84 with the car's own longitudinal g, slope 0.85), its axis Y the other way
  round than the car's lateral g (r = -0.81), which is + in a right turn (r = 0.71 with the course's
  rate times speed). It comes 0.2 to 0.35 s before the car's figures. Roll, pitch and yaw are the phone's.
- `gps` has a row for each of the phone's 1 Hz fixes, stamped as the fix is and arriving when it was
  written, 0.2 s later. Its speed lags the car's by 1.45 s by these stamps, 1.65 s by arrival.
- `can` is the car's bus, 13.8 Hz in the mean; the steering angle is + to the left.
- Stamps are UTC: the log's local time plus 5 h.

nds_data of the R package DrivePlotR (MIT): one file with 28 drives, `replay:nds_data.csv.gz?drive=1`,
of a black box at 1 Hz.

- `imu` is in the vehicle's axes: x + when speeding up (r = 0.6 with the derivative of the speed), y + in
  a right turn (r = 0.6 with the course's rate times speed), z 1 g at rest, which is taken off. At 1 Hz
  it is the motion of a moment, not of a second.
- `gps` lags it by 1 s. Gaps within a drive last up to 76 s. `can` is known on 31 % of the rows.

The recordings of jair-jr/driverBehaviorDataset at 50 Hz, cut to pieces in
petroniocandido/DriverBehaviorClassificationDatasets (no licence stated): a folder with `0/N.csv.gz` and
`1/N.csv.gz`, which follow each other by N. `replay:FOLDER?drive=1` is one of its 4 trips, which
begin where more than a minute is lacking; one file is a source as well.

- The stamp is `timestamp`, in seconds, plus `sample`, 0 to 49 within it, over 50.
- `imu` is in axes of the earth, not of the vehicle, so it has no longitudinal and no lateral part;
  `acceleration_*` without gravity.
- `event` is the label of each row: 0 none, 1 a non-aggressive event, aggressive ones 2 right turn,
  3 left turn, 4 right lane change, 5 braking, 6 acceleration, 7 left lane change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from fusedge.bundle.regular_file import is_file
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.column_map import Channel, ColumnMap, column_map
from fusedge.devices.capture.csv_file import CsvTable, read_head
from fusedge.devices.capture.replay.course import WithCourseChange
from fusedge.devices.capture.table_source import Fault, Row, Table, TableSource
from fusedge.devices.capture.units import conversion
from fusedge.devices.capture.yaml_map import parse_map

PHONE, CAR = "dataset1_phone.csv", "dataset1_car.csv"

_PHONE = """
time: [{column: loggingTime(txt), unit: iso8601}, {offset_s: 18000}]
imu:
  longitudinal_acceleration: motionUserAccelerationZ(G) g
  lateral_acceleration: -motionUserAccelerationY(G) g
  vertical_acceleration: motionUserAccelerationX(G) g
  roll: motionRoll(rad) rad
  pitch: motionPitch(rad) rad
  yaw: motionYaw(rad) rad
gps:
  time: {column: locationTimestamp_since1970(s), unit: s}
  speed: locationSpeed(m/s) m/s
  course: locationCourse(°) deg
  latitude: locationLatitude(WGS84) deg
  longitude: locationLongitude(WGS84) deg
  altitude: locationAltitude(m) m
"""
_CAR = """
time: [{column: Time, unit: iso8601}, {offset_s: 18000}]
can:
  speed: Speed (MPH) mph
  steering_angle: Steering Angle deg
  throttle: Throttle Position %
  engine_speed: Engine RPM rpm
  longitudinal_acceleration: Acceleration Gs g
  lateral_acceleration: Lateral Gs g
"""
_NDS = """
time: {column: time_utc, unit: s}
imu:
  where: {drive: "DRIVE"}
  longitudinal_acceleration: accel_x g
  lateral_acceleration: accel_y g
  vertical_acceleration: {column: accel_z, unit: g, offset: -1}
  angular_velocity_x: gyro_x deg/s
  angular_velocity_y: gyro_y deg/s
  angular_velocity_z: gyro_z deg/s
gps:
  where: {drive: "DRIVE"}
  speed: speed_mph mph
  course: gps_heading_raw deg
  latitude: gps_lat deg
  longitude: gps_long deg
  altitude: gps_elevation m
can:
  where: {drive: "DRIVE"}
  engine_speed: engine_rpm rpm
  throttle: engine_throttle %
"""
_EVENTS = """
time: [{column: timestamp, unit: iso8601}, {column: sample, rate_hz: 50}]
imu:
  acceleration_x: aclnx m/s2
  acceleration_y: aclny m/s2
  acceleration_z: aclnz m/s2
  angular_velocity_x: girox rad/s
  angular_velocity_y: giroy rad/s
  angular_velocity_z: giroz rad/s
  magnetic_field_x: magnx uT
  magnetic_field_y: magny uT
  magnetic_field_z: magnz uT
event: {class: Class 1}
"""
_EVENT_COLUMNS = frozenset({"timestamp", "sample", "aclnx", "girox", "Class"})
_NDS_COLUMNS = frozenset({"drive", "time_utc", "accel_x", "gps_heading_raw", "speed_mph"})
_SI = {"g": "m/s2", "mph": "m/s", "deg/s": "rad/s"}
MAX_DRIVE = 10_000
DRIVE_GAP_NS = to_ns(60)  # 86 s and more between the trips, 1 s at most within


def is_set(path: Path) -> bool:
    """Whether a folder, or the name of a file, may be one of these sets."""
    name = path.name.removesuffix(".gz")
    return name.endswith(".csv") or is_file(path / PHONE) or bool(_segments(path))


def open_set(request: Request) -> TableSource:
    """The source for a file or folder of these sets; raises FusedgeError for any other."""
    path = Path(request.address.target)
    return TableSource(request.address, request.wanted, _tables(request, path))


def _tables(request: Request, path: Path) -> list[Table]:
    address = request.address
    drive = address.whole("drive", None, 1, MAX_DRIVE)
    if is_file(path / PHONE):
        refuse_drive(address)
        tables: list[Table] = [WithCourseChange(_table(path / PHONE, _PHONE))]
        return [*tables, _table(path / CAR, _CAR)] if is_file(path / CAR) else tables
    segments = _segments(path)
    if segments:
        trips = _Trips([_table(file, _EVENTS) for file in segments], drive or MAX_DRIVE)
        _check_drive(request, [str(number) for number in trips.numbers()])
        return [trips]
    head = read_head(path)
    if _EVENT_COLUMNS.issubset(head.names):
        refuse_drive(address)
        return [_table(path, _EVENTS)]
    if _NDS_COLUMNS.issubset(head.names):
        table = _table(path, _NDS.replace("DRIVE", str(drive)))
        _check_drive(request, [f"{float(text):g}" for text in table.distinct("drive")])
        return [WithCourseChange(table)]
    raise address.error(
        "is none of the data sets that are known by their columns",
        hint=f"say what its columns are: file:{path}?map=COLUMNS.yaml",
    )


def refuse_drive(address: Address) -> None:
    """Raises FusedgeError where the URI of what is one drive names another."""
    if "drive" in address.options:
        raise address.error("is one drive, of which none can be chosen", hint="leave drive= out")


def _segments(folder: Path) -> list[Path]:
    """The files of a folder of labelled events, in the order of time."""
    files = [*folder.glob("0/*.csv.gz"), *folder.glob("1/*.csv.gz")]
    numbered = [file for file in files if file.name.split(".")[0].isdecimal()]
    return sorted(numbered, key=lambda file: int(file.name.split(".")[0]))


def _check_drive(request: Request, drives: list[str]) -> None:
    """Raises UnknownNameError where the URI names none of the drives that there are."""
    address = request.address
    if "drive" not in address.options:
        known = f"there are {', '.join(drives)}"
        raise address.error("holds several drives", hint=f"say which: drive={drives[0]}; {known}")
    address.choice("drive", drives, "")


def _table(path: Path, text: str) -> CsvTable:
    columns = _in_si(column_map(parse_map(text.encode(), str(path)), str(path)))
    return CsvTable(path, columns, read_head(path, columns))


def _in_si(columns: ColumnMap) -> ColumnMap:
    """The map with channels in SI units: recorded without a bundle, numbers have no unit."""
    modalities = {}
    for name, spec in columns.modalities.items():
        channels = {}
        for key, (column, have, sign, offset) in spec.channels.items():
            unit = _SI.get(have, have)
            in_si = conversion(have, unit).factor
            channels[key] = Channel(column, unit, sign * in_si, offset * in_si)
        modalities[name] = spec._replace(channels=channels)
    return columns._replace(modalities=modalities)


class _Trips:
    """Of tables that follow each other, the rows of the trip of a number, from 1 on."""

    def __init__(self, tables: list[CsvTable], number: int) -> None:
        self._tables, self._number = tables, number
        self.offered = tables[0].offered

    def numbers(self) -> list[int]:
        """The trips, up to that of the number."""
        trip = 0
        for trip, _ in self._numbered({"event": ("class",)}):
            if trip == self._number:
                break
        return list(range(1, trip + 1))

    def rows(self, used: Mapping[str, Collection[str]]) -> Iterator[Row | Fault]:
        """See Table."""
        return (row for trip, row in self._numbered(used) if trip == self._number)

    def _numbered(self, used: Mapping[str, Collection[str]]) -> Iterator[tuple[int, Row | Fault]]:
        trip, before_ns = 1, None
        for table in self._tables:
            for row in table.rows(used):
                if isinstance(row, Row):
                    if before_ns is not None and abs(row.timestamp_ns - before_ns) > DRIVE_GAP_NS:
                        trip += 1
                        if trip > self._number:
                            return
                    before_ns = row.timestamp_ns
                yield trip, row
