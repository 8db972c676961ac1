"""Motion sensors as sources, on an imitation of Linux IIO."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.mount import (
    SENSOR_CHANNELS,
    VEHICLE_CHANNELS,
    Evidence,
    Mount,
    save_mount,
)
from fusedge.devices.capture.source import Source, open_source
from tests.devices.iio_tree import IioTree
from tests.devices.modalities import by_name, series

pytestmark = pytest.mark.real_time
MS = 1_000_000


@pytest.fixture
def tree(tmp_path: Path) -> IioTree:
    return IioTree(tmp_path)


def imu(
    tree: IioTree, target: str = "0", query: str = "", wanted: Any = None, now: Any = None
) -> Source:
    uri = f"imu:iio:{target}?{tree.options}{'&' if query else ''}{query}"
    return open_source(uri, wanted, now or time.monotonic_ns)


def wanted(rate_hz: float = 100.0, **units: str) -> dict[str, Modality]:
    return by_name(series("imu", units, rate_hz, max_hold_s=1))


def take(source: Source, count: int) -> list[Sample | Rejection]:
    items = []
    for item in source.samples():
        items.append(item)
        if len(items) == count:
            source.close()
            break
    return items


def row(source: Source, item: Sample | Rejection) -> dict[str, float]:
    assert isinstance(item, Sample), item
    return dict(zip(source.channels["imu"], item.data.tolist(), strict=True))


def test_a_polled_sensor_gives_its_own_channels(tree: IioTree) -> None:
    tree.add(0, "bmi160").raw(1000, 2000, 9807, 10, 20, 30)
    source = imu(tree, query="rate=500")
    assert source.live and source.modalities == ("imu",)
    assert source.channels == {"imu": tuple(SENSOR_CHANNELS)}
    items = take(source, 5)
    got = row(source, items[0])
    assert got["acceleration_z"] == pytest.approx(9.807, abs=1e-5)
    assert got["angular_velocity_z"] == pytest.approx(0.03, abs=1e-6)
    assert all(isinstance(i, Sample) and i.stamp == "arrival" for i in items)
    assert all(i.timestamp_ns <= i.arrival_ns for i in items if isinstance(i, Sample))


def test_with_a_mount_it_gives_the_vehicles_channels_in_wanted_units(
    tree: IioTree, tmp_path: Path
) -> None:
    # the sensor stands on its side: its x is up, its y forward, its z left
    rotation = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], float)
    save_mount(tmp_path / "mount.json", Mount(rotation, 9.8), Evidence())
    tree.add(0, "bmi160").raw(9900, 1500, -2000, 100, 200, 300)
    asked = wanted(
        longitudinal_acceleration="m/s2",
        lateral_acceleration="m/s2",
        vertical_acceleration="m/s2",
        yaw_rate="deg/s",
        roll="rad",
    )
    source = imu(tree, query=f"mount={tmp_path / 'mount.json'}", wanted=asked)
    (warning,) = source.warnings
    assert warning.endswith("imu comes without roll; not measured")
    got = row(source, take(source, 1)[0])
    # right of the vehicle is -z: felt to the left is -2, so 2 in a right turn
    assert got["longitudinal_acceleration"] == pytest.approx(1.5)
    assert got["lateral_acceleration"] == pytest.approx(2.0)
    assert got["vertical_acceleration"] == pytest.approx(0.1, abs=1e-5)
    assert got["yaw_rate"] == pytest.approx(math.degrees(0.1), abs=1e-4)
    assert math.isnan(got["roll"])


def test_aligned_axes_need_no_calibration(tree: IioTree) -> None:
    tree.add(0, "bmi160").raw(1000, 2000, 9807, 0, 0, 50)
    source = imu(tree, query="mount=none")
    assert source.channels == {"imu": (*SENSOR_CHANNELS, *VEHICLE_CHANNELS)}
    got = row(source, take(source, 1)[0])
    assert got["longitudinal_acceleration"] == pytest.approx(1)
    assert got["lateral_acceleration"] == pytest.approx(-2)
    assert got["vertical_acceleration"] == pytest.approx(0, abs=1e-3)
    assert got["yaw_rate"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("target", "query", "message"),
    [
        ("0", "", "how the sensor sits in the vehicle is not known (mount=FILE of fusedge calib"),
        ("0", "mount=away.json", "away.json: cannot be read: No such file or directory (make one"),
        ("0", "mount=none&mode=fast", "unknown mode in"),
        ("0", "mount=none&rate=0", "rate=0 is not a number from 0.1 to 8000"),
        ("0", "mount=none&rate=2000", "2000 Hz cannot be polled (at most 1000; or mode=buffered)"),
        ("0", "mount=none&mode=buffered", "bmi160 has no buffer"),
        ("1", "mount=none", "no device 1 (there is bmi160)"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(
    tree: IioTree, target: str, query: str, message: str
) -> None:
    tree.add(0, "bmi160")
    with pytest.raises(FusedgeError) as raised:
        imu(tree, target, query, wanted(longitudinal_acceleration="m/s2"))
    assert message in raised.value.line()


def test_a_sensor_is_named_by_its_bus() -> None:
    with pytest.raises(FusedgeError, match="a motion sensor is named by its bus"):
        open_source("imu:0", None, time.monotonic_ns)


def test_polling_goes_at_the_wanted_rate(tree: IioTree) -> None:
    tree.add(0, "bmi160")
    now = {"ns": 0}

    def tick() -> int:
        now["ns"] += 2 * MS  # each look at the clock takes 2 ms
        return now["ns"]

    source = imu(tree, wanted=wanted(20.0, acceleration_x="m/s2"), now=tick)
    waits: list[float] = []
    source._closed.wait = lambda s: (waits.append(s), now.update(ns=now["ns"] + round(s * 1e9)))  # type: ignore
    items = take(source, 10)
    stamps = [item.timestamp_ns for item in items if isinstance(item, Sample)]
    assert np.diff(stamps).tolist() == [50 * MS] * 9
    assert all(0 < wait < 0.05 for wait in waits)


def test_a_value_that_cannot_be_read_is_counted_and_a_sensor_that_is_gone_raises(
    tree: IioTree,
) -> None:
    fake = tree.add(0, "bmi160")
    source = imu(tree, query="rate=1000")
    items = source.samples()
    assert isinstance(next(items), Sample)
    fake.put("in_accel_y_raw", "garbage")
    bad = next(items)
    assert isinstance(bad, Rejection) and bad.reason == "malformed"
    fake.put("in_accel_y_raw", "5")
    assert isinstance(next(items), Sample)
    (fake.folder / "in_accel_y_raw").unlink()
    (fake.folder / "in_accel_y_raw").mkdir()  # reads fail, as of a bus with a loose wire
    reasons = []
    with pytest.raises(FusedgeError, match="the sensor is gone: Is a directory"):
        for item in items:
            assert isinstance(item, Rejection)
            reasons.append(item.reason)
    assert reasons == ["read_error"] * 9


def test_a_sensor_that_is_pulled_out_raises_at_once(tree: IioTree) -> None:
    fake = tree.add(0, "bmi160")
    items = imu(tree, query="rate=1000").samples()
    next(items)
    fake.folder.rename(tree.sysfs / "away")
    with pytest.raises(FusedgeError, match="the sensor is gone: No such file"):
        next(items)


def test_a_buffer_gives_the_drivers_stamps(tree: IioTree) -> None:
    fake = tree.add(0, "bmi160", buffered=True, sampling_frequency="100")
    now_ns = 10_000 * MS
    source = imu(tree, now=lambda: now_ns)
    writer = os.open(fake.chardev, os.O_WRONLY)
    stamps = [now_ns - (4 - k) * 10 * MS for k in range(4)]
    for k, stamp in enumerate(stamps):
        os.write(writer, fake.scan((k, 0, 9807, 0, 0, 0), stamp))
    items = take(source, 4)
    os.close(writer)
    assert [i.timestamp_ns for i in items if isinstance(i, Sample)] == stamps
    assert all(isinstance(i, Sample) and i.stamp == "capture" for i in items)
    assert [round(row(source, i)["acceleration_x"], 4) for i in items] == [0, 0.001, 0.002, 0.003]
    assert fake.get("buffer/enable") == "0"


def test_stamps_of_another_clock_are_placed(tree: IioTree) -> None:
    fake = tree.add(0, "bmi160", buffered=True, sampling_frequency="100")
    (fake.folder / "current_timestamp_clock").unlink()
    now_ns = 10_000 * MS
    source = imu(tree, now=lambda: now_ns)
    writer = os.open(fake.chardev, os.O_WRONLY)
    epoch = 1_763_000_000 * 1000 * MS
    for k in range(3):
        os.write(writer, fake.scan((0,) * 6, epoch + k * 10 * MS))
    items = take(source, 3)
    os.close(writer)
    stamps = [i.timestamp_ns for i in items if isinstance(i, Sample)]
    assert stamps[2] == now_ns and all(i.stamp == "capture" for i in items)  # type: ignore[union-attr]
    assert stamps == sorted(stamps)


def test_a_buffer_without_stamps_counts_back_from_arrival(tree: IioTree) -> None:
    fake = tree.add(0, "bare", ("accel",), buffered=True, sampling_frequency="100")
    for suffix in ("en", "index", "type"):
        (fake.folder / f"scan_elements/in_timestamp_{suffix}").unlink()
    source = imu(tree, now=lambda: 1000 * MS)
    assert source.channels == {"imu": tuple(SENSOR_CHANNELS)[:3]}
    writer = os.open(fake.chardev, os.O_WRONLY)
    os.write(writer, bytes(6 * 3))
    items = take(source, 3)
    os.close(writer)
    assert [(i.timestamp_ns // MS, i.stamp) for i in items if isinstance(i, Sample)] == [
        (980, "arrival"),
        (990, "arrival"),
        (1000, "arrival"),
    ]


def test_a_chip_of_two_devices_gives_one_row(tree: IioTree) -> None:
    accel = tree.add(0, "lsm6dsm_accel", ("accel",), buffered=True)
    gyro = tree.add(1, "lsm6dsm_gyro", ("anglvel",), buffered=True)
    source = imu(tree, "auto", now=lambda: 1000 * MS)
    assert source.channels == {"imu": tuple(SENSOR_CHANNELS)}
    writers = [os.open(fake.chardev, os.O_WRONLY) for fake in (accel, gyro)]
    os.write(writers[1], gyro.scan((7, 8, 9), 990 * MS))
    os.write(writers[0], accel.scan((1, 2, 3), 991 * MS))
    os.write(writers[0], accel.scan((1, 2, 3), 700 * MS))  # too far from any angular velocity
    first, second = take(source, 2)
    for writer in writers:
        os.close(writer)
    assert row(source, first)["angular_velocity_z"] == pytest.approx(0.009)
    assert math.isnan(row(source, second)["angular_velocity_z"])
    assert row(source, second)["acceleration_z"] == pytest.approx(0.003)


def test_another_rate_than_asked_is_a_warning(tree: IioTree) -> None:
    fake = tree.add(0, "bmi160", buffered=True, sampling_frequency="25")
    fake.put("sampling_frequency_available", "25 104")
    source = imu(tree, query="rate=100")
    assert source.warnings == (f"{source.uri}: runs at 104 Hz, not 100",)
    source.close()


def test_a_buffer_that_cannot_be_had_is_polled_and_said(tree: IioTree) -> None:
    fake = tree.add(0, "bmi160", buffered=True)
    fake.chardev.unlink()
    source = imu(tree)
    (warning,) = source.warnings
    assert "no device" in warning and warning.endswith("polled instead, with stamps of arrival")
    assert isinstance(take(source, 1)[0], Sample)
    with pytest.raises(FusedgeError, match="no device"):
        imu(tree, query="mode=buffered")


def test_a_buffer_that_ends_raises(tree: IioTree) -> None:
    fake = tree.add(0, "bmi160", buffered=True)
    source = imu(tree)
    writer = os.open(fake.chardev, os.O_WRONLY)
    os.write(writer, fake.scan((0,) * 6, time.monotonic_ns()))
    items = source.samples()
    assert isinstance(next(items), Sample)
    os.close(writer)
    with pytest.raises(FusedgeError, match="the sensor is gone: No such device"):
        next(items)


@pytest.mark.parametrize("buffered", [True, False])
def test_opened_and_closed_hundreds_of_times_leaves_nothing(tree: IioTree, buffered: bool) -> None:
    fake = tree.add(0, "bmi160", buffered=buffered)
    fds = threads = 0
    for number in range(120):
        if number == 20:
            gc.collect()
            fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        source = imu(tree)
        if number % 100 == 0:
            thread = threading.Thread(target=lambda s=source: list(s.samples()))
            thread.start()
            time.sleep(0.02)
            start = time.monotonic()
            source.close()
            thread.join(1)
            assert time.monotonic() - start < 0.2
        source.close()
        assert list(source.samples()) == []
        source.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds and threading.active_count() == threads
    assert not buffered or fake.get("buffer/enable") == "0"


def test_opening_that_fails_half_way_leaves_nothing(tree: IioTree) -> None:
    tree.add(0, "lsm6dsm_accel", ("accel",), buffered=True)
    second = tree.add(1, "lsm6dsm_gyro", ("anglvel",), buffered=True)
    second.put("scan_elements/in_anglvel_x_type", "nonsense")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FusedgeError, match="unknown type"):
            imu(tree, "auto", "mode=buffered")
    assert len(os.listdir("/proc/self/fd")) == before
