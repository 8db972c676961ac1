"""Segments of comma2k19 as a source: arrays of their layout, and the real example."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.replay.sets import open_recording
from fusedge.devices.capture.source import Source
from tests.devices.modalities import by_name, series
from tests.devices.modalities import driving as wanted_driving
from tests.devices.recordings import driving, leaked_handles, rejections, request, samples

T = np.arange(0, 10, 0.1)
N = len(T)
STILL = np.tile([1.0, 2.0, -9.80665], (N, 1))


def save(folder: Path, name: str, times: object, values: object) -> None:
    path = folder / "processed_log" / name
    path.mkdir(parents=True, exist_ok=True)
    for part, array in (("t", times), ("value", values)):
        with (path / part).open("wb") as file:
            np.save(file, np.asarray(array), allow_pickle=True)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    save(tmp_path, "IMU/accelerometer", T, STILL)
    save(tmp_path, "IMU/gyro", T, STILL / 10)
    course = np.degrees(0.05 * T) % 360
    gnss = np.column_stack([T * 0 + 37, T * 0 - 122, T * 0 + 15, T * 1000, T * 0 + 30, course])
    save(tmp_path, "GNSS/live_gnss_ublox", T, gnss)
    save(tmp_path, "CAN/speed", T, T[:, None] + 10)
    save(tmp_path, "CAN/wheel_speed", T, np.tile([9.0, 10, 11, 12], (N, 1)))
    save(tmp_path, "CAN/steering_angle", T + 0.004, T * 2)
    return tmp_path


def opened(folder: Path, **options: object) -> Source:
    return open_recording(request("replay", folder, **options))  # type: ignore[arg-type]


def test_a_pipe_in_a_segment_is_not_waited_for(segment: Path) -> None:
    (segment / "processed_log/CAN/speed/t").unlink()
    os.mkfifo(segment / "processed_log/CAN/speed/t")
    source = opened(segment)
    assert source.modalities == ("imu", "gps") and "no can" in source.warnings[0]
    with pytest.raises(FusedgeError, match="leave drive= out"):
        open_recording(request("replay", segment, drive="1"))


def test_all_that_is_read_comes_with_its_axes_and_units(segment: Path) -> None:
    source = opened(segment)
    assert source.modalities == ("imu", "gps", "can") and source.warnings == ()
    first = samples(source)[0]
    assert first.data == pytest.approx([1, 2, 0, 0.1, 0.2, -0.980665], abs=1e-6)
    can = samples(opened(segment), "can")
    assert can[5].data == pytest.approx([10.5, 0.8, 9, 10, 11, 12], abs=1e-5)
    assert math.isnan(can[0].data[1])  # there was no angle yet
    stamps = [item.arrival_ns for item in opened(segment).samples()]
    assert stamps == sorted(stamps) and len(stamps) == 3 * N


def test_the_course_s_change_is_over_two_seconds_and_void_before(segment: Path) -> None:
    source = opened(segment, wanted=by_name(series("gps", {"course_change": "rad/s"})))
    rates = np.array([sample.data[0] for sample in samples(source)])
    assert np.isnan(rates[:15]).all()
    np.testing.assert_allclose(rates[20:], 0.05, rtol=1e-4)


def test_it_feeds_the_driving_bundle_but_for_the_road_and_angles(segment: Path) -> None:
    source = opened(segment, wanted=wanted_driving())
    assert set(source.modalities) == {"imu", "gps"}
    assert len(source.warnings) == 1 and "imu comes without roll, pitch, yaw" in source.warnings[0]
    assert source.channels["gps"] == ("speed", "course_change")


def test_a_part_that_is_missing_is_a_warning_and_all_an_error(segment: Path) -> None:
    (segment / "processed_log/CAN/speed/t").unlink()
    source = opened(segment)
    assert source.modalities == ("imu", "gps")
    assert "no can" in source.warnings[0] and "speed/t" in source.warnings[0]
    (segment / "empty" / "processed_log").mkdir(parents=True)
    with pytest.raises(FusedgeError, match="nothing to read in this segment"):
        opened(segment / "empty")


@pytest.mark.parametrize(
    "array",
    [
        np.array([{"a": 1}] * N, object),
        np.array(["x"] * N),
        T[:-1],
        np.float64(3),
        T.reshape(2, -1),
        T > 3,
    ],
)
def test_an_array_of_another_kind_is_not_taken(segment: Path, array: object) -> None:
    with (segment / "processed_log/IMU/accelerometer/t").open("wb") as file:
        np.save(file, np.asarray(array), allow_pickle=True)
    source = opened(segment)
    assert source.modalities == ("gps", "can") and "no imu" in source.warnings[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 an archive",
        b"\x80\x04 a pickle",
        b"\x93NUMPY\x01\x00\x10\x00{broken: (((((((\n",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }".ljust(117)
        + b"\n",
    ],
)
def test_a_file_that_is_no_array_is_not_taken(segment: Path, content: bytes) -> None:
    (segment / "processed_log/IMU/gyro/value").write_bytes(content)
    source = opened(segment)
    assert source.modalities == ("gps", "can") and "no imu" in source.warnings[0]


def test_a_row_without_a_time_is_rejected(segment: Path) -> None:
    times = T.copy()
    times[[3, 7]] = np.nan, 1e30
    save(segment, "IMU/accelerometer", times, STILL)
    source = opened(segment, wanted=wanted_driving("imu"))
    assert [item.reason for item in rejections(source)] == ["malformed"] * 2


def test_opening_leaves_no_handle(segment: Path) -> None:
    assert leaked_handles(lambda: opened(segment), times=50) == 0


def test_the_real_segment_is_what_was_said_of_it() -> None:
    folder = driving("comma2k19-example")
    by_modality = {name: samples(opened(folder), name) for name in ("imu", "gps", "can")}
    assert {name: len(found) for name, found in by_modality.items()} == {
        "imu": 6256,
        "gps": 579,
        "can": 4974,
    }
    grid = np.arange(46411, 46466, 0.02)
    kernel = np.hanning(101) / np.hanning(101).sum()

    def smooth(name: str, channel: int) -> np.ndarray:
        found = by_modality[name]
        times = [s.timestamp_ns / 1e9 for s in found]
        values = [s.data[channel] for s in found]
        return np.convolve(np.interp(grid, times, values), kernel, "same")[150:-150]

    speed = smooth("can", 0)
    longitudinal, lateral, yaw_rate = smooth("imu", 0), smooth("imu", 1), smooth("imu", 5)
    assert np.corrcoef(longitudinal, np.gradient(speed, 0.02))[0, 1] > 0.75
    assert np.corrcoef(lateral, yaw_rate * speed)[0, 1] > 0.8
    assert np.corrcoef(smooth("gps", 0), speed)[0, 1] > 0.99
    assert np.corrcoef(smooth("can", 1), yaw_rate)[0, 1] < -0.9  # + to the left
