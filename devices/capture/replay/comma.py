"""Segments of comma2k19 (Schafer, Santana, Haden, Biasini, 2018; MIT): `replay:SEGMENT`.

A segment is a minute of a drive, a folder with `processed_log/KIND/NAME/t` and `…/value`: numpy
arrays without a suffix, times in seconds since the phone was started. What is known of them is from
the authors' README and a check on one segment (b0c9d2329ad1606b, 2018-08-02, number 40; Toyota RAV4):

- `imu` is the phone's accelerometer and gyroscope, 104 Hz, in axes forward, right and down. Forward
  is + when speeding up (r = 0.84 with the derivative of the wheel speed), right + in a right turn
  (r = 0.82 with yaw rate times speed). Gravity is in it: on forward and right by the tilt of the
  mount (-0.63 and -0.12 m/s2 here, constant), on down whole; `vertical_acceleration` is + upwards,
  less standard gravity.
- `gps` is the u-blox receiver, 10 Hz, of which 3 % is lacking. Its stamps are those of the log, 0.20 s
  after the receiver's own time as the video's frame times place it, and its speed lags the wheels'
  by 0.15 s: take about 0.2 s as `latency_s`. The phone's own receiver (0.5 Hz) is not read.
- `can` is what the authors decoded: speed (83 Hz, of the wheels), wheel speeds, and the steering
  angle, + to the left. Its stamps come in bursts (0.3 % of the steps are below 0.5 ms), so do not
  differentiate them step by step. The steering angle has stamps of its own, 4 ms off, and is held.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import is_file
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.replay.course import WithCourseChange
from fusedge.devices.capture.table_source import ArrayTable, Table, TableSource
from fusedge.devices.capture.units import G

LOG = "processed_log"
HOLD_S = 0.1  # of the steering angle; the longest step is 0.03 s

_Floats = NDArray[np.float64]


def is_segment(path: Path) -> bool:
    """Whether a folder looks like a segment."""
    return (path / LOG).is_dir()


def open_segment(request: Request) -> TableSource:
    """The source for a segment's folder. Raises FusedgeError where it holds nothing readable."""
    folder = Path(request.address.target) / LOG
    tables: list[Table] = []
    warnings = []
    for name, read in (("imu", _imu), ("gps", _gps), ("can", _can)):
        try:
            tables.append(read(folder))
        except FusedgeError as error:
            warnings.append(f"{error.line()}: no {name}")
    if not tables:
        raise FusedgeError(f"nothing to read in this segment: {'; '.join(warnings)}")
    return TableSource(request.address, request.wanted, tables, warnings)


def _imu(folder: Path) -> Table:
    times, acceleration = _load(folder / "IMU/accelerometer", 3)
    gyro_times, gyro = _load(folder / "IMU/gyro", 3)
    if not np.array_equal(times, gyro_times):  # they are the same in what was seen
        gyro = _held(times, gyro_times, gyro)
    forward, right, down = acceleration.T
    columns = {
        "longitudinal_acceleration": ("m/s2", forward),
        "lateral_acceleration": ("m/s2", right),
        "vertical_acceleration": ("m/s2", -down - G),
        "angular_velocity_forward": ("rad/s", gyro[:, 0]),
        "angular_velocity_right": ("rad/s", gyro[:, 1]),
        "angular_velocity_down": ("rad/s", gyro[:, 2]),
    }
    return ArrayTable("imu", f"{folder}/IMU", times, columns)


def _gps(folder: Path) -> Table:
    times, values = _load(folder / "GNSS/live_gnss_ublox", 6)
    latitude, longitude, speed, _, altitude, course = values.T
    columns = {
        "speed": ("m/s", speed),
        "course": ("deg", course),
        "latitude": ("deg", latitude),
        "longitude": ("deg", longitude),
        "altitude": ("m", altitude),
    }
    return WithCourseChange(ArrayTable("gps", f"{folder}/GNSS", times, columns))


def _can(folder: Path) -> Table:
    times, speed = _load(folder / "CAN/speed", 1)
    wheels = _held(times, *_load(folder / "CAN/wheel_speed", 4))
    steering = _held(times, *_load(folder / "CAN/steering_angle", 1))
    columns = {
        "speed": ("m/s", speed[:, 0]),
        "steering_angle": ("deg", steering[:, 0]),
        "wheel_speed_front_left": ("m/s", wheels[:, 0]),
        "wheel_speed_front_right": ("m/s", wheels[:, 1]),
        "wheel_speed_rear_left": ("m/s", wheels[:, 2]),
        "wheel_speed_rear_right": ("m/s", wheels[:, 3]),
    }
    return ArrayTable("can", f"{folder}/CAN", times, columns)


def _load(folder: Path, width: int) -> tuple[_Floats, _Floats]:
    """Times `[N]` and values `[N, width]` of a log; raises FusedgeError."""
    times, values = _array(folder / "t"), _array(folder / "value")
    values = values.reshape(len(values), -1) if values.size else values.reshape(0, width)
    if times.ndim != 1 or values.shape != (len(times), width):
        raise FusedgeError(
            f"{times.shape} times and {values.shape} values are not N and N x {width}",
            where=str(folder),
        )
    return times, values


def _array(path: Path) -> _Floats:
    if not is_file(path):
        raise FusedgeError("no such file", where=str(path))
    try:
        # mapped, a file that promises more than it has is refused; it may hold no pickled objects
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not array.ndim:
            raise ValueError("is no array of numbers")
        return np.array(array, np.float64)
    except Exception as error:  # numpy raises what it likes for a header that is none
        raise FusedgeError(f"cannot be read ({error})", where=str(path)) from None


def _held(times: _Floats, value_times: _Floats, values: _Floats) -> _Floats:
    """At each time the newest value, NaN where that is older than HOLD_S."""
    if not len(values):
        return np.full((len(times), *values.shape[1:]), np.nan)
    place = np.searchsorted(value_times, times, side="right") - 1
    held: _Floats = values[place.clip(0)]
    held[(place < 0) | ~(times - value_times[place.clip(0)] <= HOLD_S)] = np.nan
    return held
