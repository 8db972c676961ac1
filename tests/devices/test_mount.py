"""How a motion sensor sits in a vehicle: made-up drives in any rotation, and real ones where there are."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import Track
from fusedge.bundle.sample import Sample
from fusedge.cli.calibrate import calibrate as calibrate_command
from fusedge.devices.capture.mount import (
    ALIGNED,
    MISFIT,
    SENSOR_CHANNELS,
    VEHICLE_CHANNELS,
    Evidence,
    Mount,
    MountCalibration,
    load_mount,
    save_mount,
)
from fusedge.devices.capture.source import open_source
from fusedge.devices.capture.units import G
from fusedge.runtime.sinks.recorder import Recorder
from tests.devices.iio_tree import IioTree

DATA = Path(os.environ.get("FUSEDGE_DATA") or Path(__file__).parents[3] / "shared/data")
S = 1_000_000_000
Array = NDArray[np.float64]


class Drive(NamedTuple):
    """Times in s, specific force and rotation rate in vehicle axes (or the sensor's), and speeds."""

    times: Array
    felt: Array
    turned: Array
    speed_times: Array
    speeds: Array

    def seen_by(self, rotation: Array) -> Drive:
        """By a sensor whose mount is `rotation` (forward, left, up in its axes, one a row)."""
        return self._replace(felt=self.felt @ rotation, turned=self.turned @ rotation)


def rotations(seed: int, count: int) -> list[Array]:
    """Any rotation, all alike (Shoemake)."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
        made.append(
            np.array(
                [
                    [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                    [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                    [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
                ]
            )
        )
    return made


def town(
    seed: int,
    *,
    seconds: int = 400,
    turns: bool = True,
    rests: bool = True,
    slope: float = 0.015,
    rate_hz: int = 50,
    gyro_bias: float = 0.01,
) -> Drive:
    """Blocks of a town: stand, speed up, drive, brake into a corner, speed up out of it, stand."""
    rng = np.random.default_rng(seed)
    dt = 1 / rate_hz
    acceleration: list[float] = []
    yaw: list[float] = []

    def go(a: float, time_s: float, rate: float = 0.0) -> None:
        count = max(1, round(time_s * rate_hz))
        shape = np.sin(np.linspace(0, math.pi, count)) * math.pi / 2
        acceleration.extend(a * shape)
        yaw.extend(rate * shape)

    speed = 0.0 if rests else 15.0
    if rests:
        go(0, 5)
    while len(acceleration) < seconds * rate_hz:
        cruise = rng.uniform(9, 15)
        go((cruise - speed) / 6, 6)
        go(0, rng.uniform(4, 8))
        if turns:
            into, side = rng.uniform(5, 7), rng.choice([-1, 1])
            go((into - cruise) / 4, 4)
            go(0.3, 5, side * rng.uniform(0.2, 0.4))
            speed = into + 1.5
        else:
            go(-1.5, 3)
            speed = cruise - 4.5
        if rests and rng.random() < 0.5:
            go(-speed / 4, 4)
            go(0, 4)
            speed = 0.0
    a, w = np.array(acceleration), np.array(yaw)
    v = np.maximum(0, (0.0 if rests else 15.0) + np.cumsum(a) * dt)
    n = len(a)
    moving = (v > 0.2)[:, None]
    hills = slope * np.sin(np.arange(n) * dt / 17 + seed)
    felt = np.stack([a + G * hills, v * w, np.full(n, G)], 1)
    shake = np.where(moving, [0.5, 0.5, 0.8], 0.05)
    felt = felt + shake * rng.standard_normal((n, 3))
    turned = np.stack([np.zeros(n), np.zeros(n), w], 1)
    turned = turned + np.where(moving, 0.03, 0.003) * rng.standard_normal((n, 3)) + gyro_bias
    times = np.arange(n) * dt
    return Drive(times, felt, turned, times[:: rate_hz // 10], v[:: rate_hz // 10])


def calibrate(drive: Drive, *, speeds: bool = False, lag_s: float = 0.0) -> MountCalibration:
    calibration = MountCalibration()
    waiting = list(zip(drive.speed_times + lag_s, drive.speeds, strict=True)) if speeds else []
    waiting.reverse()
    for time_s, felt, turned in zip(drive.times, drive.felt, drive.turned, strict=True):
        while waiting and waiting[-1][0] <= time_s:
            at_s, speed = waiting.pop()
            calibration.add_speed(round(at_s * S), float(speed))
        calibration.add(round(time_s * S), felt.tolist(), turned.tolist())
        if calibration.mount is not None:
            break
    calibration.finish()
    return calibration


def apart_deg(a: Array, b: Array) -> float:
    """By how much one frame is turned against the other."""
    return math.degrees(math.acos(max(-1.0, min(1.0, (np.trace(a @ b.T) - 1) / 2))))


def found(calibration: MountCalibration) -> Array:
    assert calibration.mount is not None, calibration.missing
    return calibration.mount.rotation


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.booleans())
def test_any_rotation_is_found_with_and_without_speeds(seed: int, speeds: bool) -> None:
    (rotation,) = rotations(seed, 1)
    calibration = calibrate(town(seed).seen_by(rotation), speeds=speeds)
    assert apart_deg(found(calibration), rotation) < 6
    assert calibration.evidence.method == ("speed" if speeds else "turns")
    assert calibration.evidence.error_deg <= 4 and calibration.missing == ""


@pytest.mark.parametrize("lag_s", [0.5, 1.5, 2.5])
def test_the_lag_of_a_gps_speed_is_allowed_for(lag_s: float) -> None:
    (rotation,) = rotations(3, 1)
    calibration = calibrate(town(3).seen_by(rotation), speeds=True, lag_s=lag_s)
    assert calibration.evidence.method == "speed"
    assert apart_deg(found(calibration), rotation) < 6


def test_turns_to_one_side_only_suffice() -> None:
    drive = town(5)
    # the same drive with every corner to the left
    drive = drive._replace(
        felt=np.stack([drive.felt[:, 0], np.abs(drive.felt[:, 1]), drive.felt[:, 2]], 1),
        turned=np.abs(drive.turned),
    )
    assert apart_deg(found(calibrate(drive)), np.eye(3)) < 10


def test_a_straight_road_tells_forward_from_backward_with_a_speed_only() -> None:
    drive = town(1, turns=False)
    without = calibrate(drive)
    assert without.mount is None
    assert without.missing.endswith("drive round some corners")
    assert apart_deg(found(calibrate(drive, speeds=True)), np.eye(3)) < 6


def test_without_a_rest_up_is_known_with_a_speed_only() -> None:
    drive = town(2, rests=False)
    without = calibrate(drive)
    assert without.mount is None
    assert without.missing == (
        "not one rest of 2 s, which tells what is up: stand still for a while"
    )
    assert apart_deg(found(calibrate(drive, speeds=True)), np.eye(3)) < 6


def test_a_parked_vehicle_and_a_short_drive_do_not_suffice() -> None:
    drive = town(1, seconds=40)
    parked = drive._replace(felt=drive.felt * 0 + [0, 0, G], turned=drive.turned * 0)
    assert calibrate(parked).missing == "0 of 90 s of driving"
    assert calibrate(drive).missing.endswith("of 90 s of driving")
    assert MountCalibration().missing == "no motion was measured yet"


def test_wrong_units_are_told() -> None:
    drive = town(4)
    in_g = calibrate(drive._replace(felt=drive.felt / G))
    assert in_g.missing.endswith("are felt at rest, not about 9.8: is the unit right?")
    kmh = calibrate(drive._replace(speeds=drive.speeds * 3.6, turned=drive.turned * 0), speeds=True)
    assert kmh.mount is None
    assert kmh.missing == f"{MISFIT} (0.28 of what it lets expect is felt)"


@pytest.mark.parametrize("factor", [3.6, 1 / 0.44704, 0.0])
def test_a_speed_in_another_unit_is_refused_however_good_the_turns(factor: float) -> None:
    drive = town(4)
    assert calibrate(drive).evidence.method == "turns"
    calibration = calibrate(drive._replace(speeds=drive.speeds * factor), speeds=True)
    assert calibration.mount is None and calibration.missing.startswith(MISFIT)


def test_the_speed_of_another_vehicle_is_refused() -> None:
    other = town(14)
    drive = town(4)._replace(speed_times=other.speed_times, speeds=other.speeds)
    calibration = calibrate(drive, speeds=True)
    assert calibration.mount is None and calibration.missing.startswith(MISFIT)


@pytest.mark.parametrize("seed", range(5))
def test_a_turned_gyroscope_is_refused_with_a_speed(seed: int) -> None:
    drive = town(seed)
    calibration = calibrate(drive._replace(turned=-drive.turned), speeds=True)
    assert calibration.mount is None and calibration.missing.startswith(MISFIT)


def test_without_a_speed_it_takes_ninety_seconds_of_driving() -> None:
    drive = town(4, seconds=85)
    assert calibrate(drive, speeds=True).mount is not None
    assert calibrate(drive).missing.endswith("of 90 s of driving")


def damped(seed: int) -> Drive:
    """A motorway felt by a sensor that nothing shakes: steady pushes, bends and cruises for seconds."""
    rng = np.random.default_rng(seed)
    parts = [(20, 0.0, 0.0)]
    for _ in range(8):
        parts += [(8, rng.uniform(1, 2), 0), (rng.uniform(5, 15), 0, 0)]
        parts += [(rng.uniform(8, 25), 0, rng.choice([-0.1, 0.1])), (10, -1.5, 0)]
        parts += [(4, 0.0, rng.choice([-0.35, 0.35])), (2, -1.5, 0)]
    steps = [(a, w) for time_s, a, w in parts for _ in range(round(time_s * 50))]
    felt, turned, speeds, v = [], [], [], 0.0
    for a, w in steps:
        before, v = v, min(30.0, max(0.0, v + a / 50))
        w = min(w, 3 / v, key=abs) if v > 1 and w > 0 else max(w, -3 / v) if v > 1 else 0.0
        felt.append(((v - before) * 50, v * w, G))
        turned.append((0.0, 0.0, w))
        speeds.append(v)
    n = len(steps)
    times, noise = np.arange(n) / 50, rng.standard_normal((2, n, 3))
    return Drive(
        times,
        np.array(felt) + 0.05 * noise[0],
        np.array(turned) + 0.002 * noise[1],
        times[::50],
        np.array(speeds)[::50],
    )


@pytest.mark.parametrize("speeds", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_steady_motion_is_no_rest(seed: int, speeds: bool) -> None:
    (rotation,) = rotations(seed, 1)
    calibration = calibrate(damped(seed).seen_by(rotation), speeds=speeds)
    assert apart_deg(found(calibration), rotation) < 6
    up = found(calibration)[2]
    assert math.degrees(math.acos(min(1.0, up @ rotation[2]))) < 0.5


def test_seconds_of_driving_do_not_depend_on_what_shakes() -> None:
    calm = damped(1)
    calm = Drive(
        *(part[: count * 40] for part, count in zip(calm, (50, 50, 50, 1, 1), strict=True))
    )
    noise = np.random.default_rng(1).standard_normal(calm.felt.shape) * (calm.times > 20)[:, None]
    first, second = (
        calibrate(drive, speeds=True).evidence.moving_s
        for drive in (calm, calm._replace(felt=calm.felt + noise))
    )
    assert first == second > 15


def test_noise_is_no_mount() -> None:
    drive = town(6)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(drive.felt.shape) + np.array([0, 0, G])
    noise[: 50 * 5] = [0, 0, G]
    turned = rng.standard_normal(drive.felt.shape) * 0.3
    turned[: 50 * 5] = 0
    calibration = calibrate(drive._replace(felt=noise, turned=turned))
    assert calibration.mount is None


def test_a_drive_at_one_speed_does_not_suffice() -> None:
    drive = town(6)
    moving = np.abs(drive.felt[:, 2] - G) > 0.3
    level = np.random.default_rng(1).standard_normal(len(moving)) * moving
    felt = np.stack([level, 10 * drive.turned[:, 2] + level[::-1] * moving, drive.felt[:, 2]], 1)
    calibration = calibrate(drive._replace(felt=felt))
    assert calibration.missing == "speeding up and braking do not stand out: do more of both"


def test_the_bias_of_a_gyroscope_is_no_turn() -> None:
    calibration = calibrate(town(1, turns=False, gyro_bias=0.08))
    assert calibration.missing == "0 of 3 turns: drive round some corners"


def test_a_mount_that_was_found_is_kept() -> None:
    drive = town(7)
    calibration = calibrate(drive)
    before = found(calibration).copy()
    for time_s, felt in itertools.islice(zip(drive.times, drive.felt, strict=True), 5000):
        calibration.add(round((time_s + 1e4) * S), felt[::-1].tolist(), [0.5, 0.5, 0.5])
    calibration.finish()
    assert np.array_equal(found(calibration), before)


def test_a_sensor_that_is_turned_over_begins_anew() -> None:
    first, second = rotations(8, 2)
    drive = town(8, seconds=60).seen_by(first)
    calibration = MountCalibration()
    for part, rotation in ((drive, None), (town(9), second)):
        seen = part if rotation is None else part.seen_by(rotation)
        start_s = 0 if rotation is None else 100
        for time_s, felt, turned in zip(seen.times, seen.felt, seen.turned, strict=True):
            calibration.add(round((start_s + time_s) * S), felt.tolist(), turned.tolist())
    calibration.finish()
    assert apart_deg(found(calibration), second) < 6


@given(
    st.lists(
        st.tuples(
            st.integers(-(10**12), 10**12),
            st.lists(st.floats(), min_size=6, max_size=6),
            st.floats(),
        ),
        max_size=50,
    )
)
def test_no_rows_raise(rows: list[tuple[int, list[float], float]]) -> None:
    calibration = MountCalibration()
    for time_ns, values, speed in rows:
        for k in range(6):
            calibration.add(time_ns + k, values[:3], values[3:])
        calibration.add_speed(time_ns, speed)
    calibration.finish()
    assert calibration.mount is None and calibration.missing


@pytest.mark.parametrize("speeds", [False, True])
def test_nothing_but_zeros_raises_nothing(speeds: bool) -> None:
    drive = town(1)
    calibrate(drive._replace(felt=drive.felt * 0, turned=drive.turned * 0), speeds=speeds)
    ends = drive.felt * np.where(np.arange(len(drive.felt)) % 2, 1e9, -1e9)[:, None]
    assert calibrate(drive._replace(felt=ends), speeds=speeds).mount is None


def test_memory_is_bounded() -> None:
    calibration = MountCalibration()
    for second in range(4000):
        for k in range(6):
            calibration.add(second * S + k * S // 10, [0, 0, G + k], [0, 0, 0])
    for k in range(41_000):
        calibration.add_speed(k * S // 10, 1)
    assert len(calibration._blocks) == 3600 and len(calibration._speeds) == 40_000


def test_a_file_gives_the_mount_back(tmp_path: Path) -> None:
    (rotation,) = rotations(11, 1)
    path = tmp_path / "mount.json"
    save_mount(path, Mount(rotation, 9.78), Evidence("turns", 1, 100.0, 2, 2, 0.9, 2.0))
    mount = load_mount(path)
    assert np.allclose(mount.rotation, rotation, atol=1e-12) and mount.gravity == 9.78


GOOD: dict[str, Any] = {
    "format": "fusedge-mount-1",
    "rotation": np.eye(3).tolist(),
    "gravity": 9.8,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a mount"),
        ("[" * 100_000, "not a mount"),
        (json.dumps([1]), "its format is not"),
        (json.dumps(GOOD | {"format": "x"}), "its format is not"),
        (json.dumps(GOOD | {"rotation": [[1, 0], [0, 1]]}), "not three rows of three"),
        (json.dumps(GOOD | {"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, "1"]]}), "not three rows"),
        (json.dumps(GOOD | {"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, True]]}), "not three rows"),
        (json.dumps(GOOD | {"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, math.nan]]}), "three rows"),
        (json.dumps(GOOD | {"rotation": [[1, 0, 0], [0, 1, 0], [0, 0.1, 1]]}), "right angles"),
        (json.dumps(GOOD | {"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}), "left into right"),
        (json.dumps(GOOD | {"gravity": 1.0}), "gravity is not from 8.8 to 10.8"),
        (json.dumps(GOOD | {"gravity": None}), "gravity is not from"),
        (json.dumps(GOOD)[:-1], "not a mount"),
    ],
)
def test_a_file_that_is_no_mount_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mount.json"
    path.write_text(content)
    with pytest.raises(FusedgeError) as raised:
        load_mount(path)
    assert message in raised.value.line() and "fusedge calibrate" in raised.value.line()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_file_raises_anything_else(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(FusedgeError):
        load_mount(path)


def test_signs_of_the_vehicles_channels() -> None:
    felt = dict(zip(SENSOR_CHANNELS, (1.0, -2.0, G + 0.5, 0.1, 0.2, -0.3), strict=True))
    got = ALIGNED.vehicle(felt)
    assert list(got) == list(VEHICLE_CHANNELS)
    # speeds up, in a right turn (felt to the right, yaw falls), over a bump
    assert list(got.values()) == pytest.approx([1.0, 2.0, 0.5, 0.1, 0.2, -0.3])
    assert all(math.isnan(v) for v in list(ALIGNED.vehicle({}).values()))


def test_a_sensor_finds_its_mount_while_it_drives(tmp_path: Path) -> None:
    (rotation,) = rotations(12, 1)
    drive = town(12, rate_hz=20).seen_by(rotation)
    tree = IioTree(tmp_path)
    fake = tree.add(0, "bmi160", buffered=True, sampling_frequency="20")
    raw = np.concatenate([drive.felt, drive.turned], 1) * 1000
    now = {"ns": 0}
    uri = f"imu:iio:0?mount=auto&{tree.options}"
    source = open_source(uri, None, lambda: now["ns"])
    (warning,) = source.warnings
    assert "the vehicle's axes are not known yet" in warning
    items = source.samples()
    names = source.channels["imu"]
    forward, found_at = names.index("longitudinal_acceleration"), 0
    writer = os.open(fake.chardev, os.O_WRONLY)
    felt = []
    for number, (time_s, row) in enumerate(zip(drive.times, raw, strict=True)):
        now["ns"] = 10 * S + round(time_s * S)
        os.write(writer, fake.scan(tuple(row.round().astype(int).tolist()), now["ns"]))
        item = next(items)
        assert isinstance(item, Sample)
        value = float(item.data[forward])
        if found_at:
            felt.append((value, float(drive.felt[number] @ rotation[0])))
        elif not math.isnan(value):
            found_at = number
    source.close()
    assert found_at > 90 * 20
    # plugged in again, it is known from the first row on
    source = open_source(uri, None, lambda: now["ns"])
    assert source.warnings == ()
    os.write(writer, fake.scan(tuple(raw[0].round().astype(int).tolist()), now["ns"]))
    again = next(iter(source.samples()))
    assert isinstance(again, Sample) and not math.isnan(float(again.data[forward]))
    source.close()
    os.close(writer)
    given_, true = np.array(felt).T
    assert np.corrcoef(given_, true)[0, 1] > 0.98


# --- real drives


def cloudpose() -> tuple[Drive, Array, Array]:
    """A phone in a car: its drive with the car's speeds, and its GPS receiver's times and speeds."""
    folder = DATA / "driving/cloudpose"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")

    def read(name: str) -> list[dict[str, str]]:
        with (folder / name).open() as file:
            return list(csv.DictReader(file))

    def columns(rows: list[dict[str, str]], *names: str) -> Array:
        return np.array([[float(row[name]) for name in names] for row in rows])

    def times(rows: list[dict[str, str]], name: str) -> Array:
        return np.array([datetime.fromisoformat(row[name]).timestamp() for row in rows])

    phone, car = read("dataset1_phone.csv"), read("dataset1_car.csv")
    # iOS counts what is felt negative, in g
    felt = -G * columns(phone, *(f"accelerometerAcceleration{axis}(G)" for axis in "XYZ"))
    turned = columns(phone, *(f"gyroRotation{axis}(rad/s)" for axis in "XYZ"))
    start = (at := times(phone, "loggingTime(txt)"))[0]
    fixes, first = np.unique(columns(phone, "locationTimestamp_since1970(s)"), return_index=True)
    speeds = columns(phone, "locationSpeed(m/s)")[first, 0]
    drive = Drive(
        at - start,
        felt,
        turned,
        times(car, "Time") - start,
        columns(car, "Speed (MPH)")[:, 0] * 0.44704,
    )
    assert len(fixes) == len(speeds)
    return drive, at[first] - start, speeds


def along_deg(rotation: Array, drive: Drive) -> float:
    """From forward to the horizontal axis along which the derivative of the speed is best felt."""
    up = rotation[2]
    seconds = np.arange(drive.times[0] + 1, drive.times[-1] - 1)
    place = np.floor(drive.times - 0.5).astype(int)
    felt = np.array([drive.felt[place == round(s) - 1].mean(0) for s in np.floor(seconds)])
    at = np.floor(seconds)
    change = np.interp(at + 0.5, drive.speed_times, drive.speeds) - np.interp(
        at - 0.5, drive.speed_times, drive.speeds
    )
    yaw = np.array([drive.turned[place == round(s) - 1].mean(0) for s in at]) @ up
    turn = yaw * np.interp(at, drive.speed_times, drive.speeds)
    design = np.stack([np.ones(len(at)), change, turn], 1)
    axis = np.linalg.lstsq(design, felt, rcond=None)[0][1]
    axis -= (axis @ up) * up
    return math.degrees(math.atan2(axis @ rotation[1], axis @ rotation[0]))


@pytest.mark.parametrize("by", ["turns", "speed", "gps"])
def test_a_real_phone_in_a_car(by: str) -> None:
    drive, gps_times, gps_speeds = cloudpose()
    input_ = drive
    if by == "gps":
        input_ = drive._replace(speed_times=gps_times, speeds=gps_speeds)
    calibration = calibrate(input_, speeds=by != "turns")
    rotation = found(calibration)
    off = along_deg(rotation, drive)
    print(f"{by}: {off:+.1f} degrees:", calibration.evidence)
    assert abs(off) < 8


def test_a_real_drive_in_twenty_rotations() -> None:
    drive, _, _ = cloudpose()
    for speeds in (False, True):
        straight = found(calibrate(drive, speeds=speeds))
        for rotation in rotations(20, 20):
            turned = found(calibrate(drive.seen_by(rotation), speeds=speeds))
            assert apart_deg(turned, straight @ rotation) < 0.1


def comma() -> Drive:
    """A minute on a straight road at 8 to 20 m/s; axes forward, right, down."""
    folder = DATA / "driving/comma2k19-example/processed_log"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    felt, turned = (np.load(folder / f"IMU/{name}/value") for name in ("accelerometer", "gyro"))
    times = np.load(folder / "IMU/accelerometer/t")
    count = min(len(felt), len(turned))
    start = times[0]
    return Drive(
        times[:count] - start,
        felt[:count],
        turned[:count],
        np.load(folder / "CAN/speed/t") - start,
        np.load(folder / "CAN/speed/value").ravel(),
    )


def test_a_real_straight_road_without_a_rest() -> None:
    drive = comma()
    assert calibrate(drive).missing.startswith("not one rest")
    calibration = calibrate(drive, speeds=True)
    rotation = found(calibration)
    forward = math.degrees(math.acos(rotation[0] @ [1, 0, 0]))
    off = along_deg(rotation, drive)
    print(f"{off:+.1f} degrees, from the sensor's x {forward:.1f}:", calibration.evidence)
    assert abs(off) < 3 and forward < 6
    assert rotation[1] @ [0, -1, 0] > 0.99 and rotation[2] @ [0, 0, -1] > 0.99
    for turn in rotations(21, 20):
        turned = found(calibrate(drive.seen_by(turn), speeds=True))
        assert apart_deg(turned, rotation @ turn) < 0.1


# --- fusedge calibrate


def command(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command("calibrate")(calibrate_command)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.exception


def record(path: Path, units: tuple[str, ...] = (), factors: tuple[float, ...] = (1, 1, 1)) -> Path:
    """A recording of a sensor in some rotation, with the speeds of a GPS receiver beside it."""
    pytest.importorskip("mcap")
    (rotation,) = rotations(31, 1)
    drive = town(31, rate_hz=20).seen_by(rotation)
    imu_units = (units[0],) * 3 + (units[1],) * 3 if units else ()
    tracks = {
        "imu": Track(tuple(SENSOR_CHANNELS), units=imu_units),
        "gps": Track(("course", "speed"), units=("rad", units[2]) if units else ()),
    }
    recorder = Recorder(path, tracks)
    recorder.open({"sources": ["test"]})
    rows = np.concatenate([drive.felt * factors[0], drive.turned * factors[1]], 1)
    rows = rows.astype(np.float32)
    times = (drive.speed_times * S).round().tolist()
    speeds = dict(zip(times, drive.speeds * factors[2], strict=True))
    for time_s, row in zip(drive.times, rows, strict=True):
        time_ns = round(time_s * S)
        recorder.write(Sample("imu", time_ns, time_ns, row))
        if float(time_ns) in speeds:
            fix = np.array([math.nan, speeds[float(time_ns)]], np.float32)
            recorder.write(Sample("gps", time_ns, time_ns, fix))
    recorder.close({})
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("drive") / "drive.mcap")


@pytest.mark.parametrize(
    ("units", "factors"),
    [
        (("g", "deg/s", "km/h"), (1 / G, 180 / math.pi, 3.6)),
        (("m/s^2", "°/s", "mph"), (1.0, 180 / math.pi, 1 / 0.44704)),
        (("furlong", "", "x"), (1.0, 1.0, 1.0)),
    ],
)
def test_the_command_takes_any_unit(
    tmp_path: Path, units: tuple[str, ...], factors: tuple[float, ...]
) -> None:
    path, out = record(tmp_path / "drive.mcap", units, factors), tmp_path / "mount.json"
    status, _, error = command("--source", f"replay:{path}", "-o", str(out))
    assert status == 0, error
    (rotation,) = rotations(31, 1)
    assert apart_deg(load_mount(out).rotation, rotation) < 6
    assert json.loads(out.read_text())["evidence"]["method"] == "speed"


def test_the_command_refuses_a_speed_in_no_unit_of_speed(tmp_path: Path) -> None:
    path = record(tmp_path / "drive.mcap", ("m/s2", "rad/s", "rpm"))
    _, _, error = command("--source", f"replay:{path}", "-o", str(tmp_path / "mount.json"))
    assert isinstance(error, FusedgeError)
    assert "speed of replay:" in error.line() and "m/s a speed" in error.line()


def test_a_place_where_nothing_can_be_written_is_told_before_the_drive(tmp_path: Path) -> None:
    for folder in (tmp_path / "away", Path("/proc")):
        _, _, error = command("--source", "imu:iio:none", "-o", str(folder / "mount.json"))
        assert isinstance(error, FusedgeError)
        assert error.line().startswith(f"{folder}: nothing can be written there: No such file")
    _, _, error = command("--source", "imu:iio:none", "-o", str(tmp_path / "mount.json"))
    assert isinstance(error, FusedgeError) and "no device none" in error.line()
    assert not list(tmp_path.iterdir())


def test_the_command_finds_the_mount_of_a_recording(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "mount.json"
    status, printed, error = command("--source", f"replay:{recorded}", "-o", str(out), "--json")
    assert status == 0, error
    report = json.loads(printed)
    assert report["evidence"]["method"] == "speed"
    (rotation,) = rotations(31, 1)
    assert apart_deg(load_mount(out).rotation, rotation) < 6
    assert np.allclose(report["rotation"], load_mount(out).rotation)
    _, _, error = command("--source", f"replay:{recorded}", "-o", str(out))
    assert isinstance(error, FusedgeError) and "exists already" in error.line()


def test_the_command_tells_what_is_wrong(recorded: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "mount.json")
    sim = "sim:?duration_s=5"
    for arguments, message in (
        (("--source", sim), "gives no acceleration_x to angular_velocity_z"),
        (("--source", f"replay:{tmp_path / 'away.mcap'}"), "away.mcap"),
        (("--source", f"replay:{recorded}", "--speed-source", "gps:/dev/ttyNONE"), "no device"),
    ):
        status, _, error = command(*arguments, "-o", out)
        assert status == 1 and isinstance(error, FusedgeError)
        assert message in error.line()
    assert not Path(out).exists()


@pytest.mark.real_time
def test_a_live_sensor_that_is_stopped_too_early(tmp_path: Path) -> None:
    tree = IioTree(tmp_path)
    tree.add(0, "bmi160").raw(0, 0, 9807, 0, 0, 0)
    out = tmp_path / "mount.json"
    stop = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    status, _, error = command("--source", f"imu:iio:0?{tree.options}", "-o", str(out))
    stop.join()
    assert status == 1 and isinstance(error, FusedgeError), error
    assert "no mount found: not one rest" in error.line()
    assert not out.exists()
