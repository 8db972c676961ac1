"""Public data sets of CSV files as sources: files of their layout, and the real ones."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.replay.csv_sets import CAR, PHONE
from fusedge.devices.capture.replay.sets import open_recording
from fusedge.devices.capture.source import Source
from tests.devices.modalities import driving as wanted_driving
from tests.devices.modalities import named
from tests.devices.recordings import driving, leaked_handles, request, samples

G = 9.80665


def opened(path: Path, drive: int | None = None, **options: object) -> Source:
    if drive is not None:
        options["drive"] = str(drive)
    return open_recording(request("replay", path, **options))  # type: ignore[arg-type]


def write(path: Path, header: str, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in (header, *rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def cloudpose(tmp_path: Path) -> Path:
    write(
        tmp_path / PHONE,
        "loggingTime(txt),locationTimestamp_since1970(s),locationSpeed(m/s),locationCourse(°),"
        "locationLatitude(WGS84),locationLongitude(WGS84),locationAltitude(m),"
        "motionUserAccelerationX(G),motionUserAccelerationY(G),motionUserAccelerationZ(G),"
        "motionRoll(rad),motionPitch(rad),motionYaw(rad)",
        [
            f"2018-04-08 10:00:{n / 10:06.3f},{1523199599.8 + n // 10:.1f},10,{90 + n // 10},30,-97,"
            f"200,0.1,0.2,0.3,1,2,3"
            for n in range(50)
        ],
    )
    write(
        tmp_path / CAR,
        "Time,Speed (MPH),Steering Angle,Throttle Position,Engine RPM,Lateral Gs,Acceleration Gs",
        ["2018-04-08 10:00:00.05,10,-3,50,600,0.1,0.2"],
    )
    return tmp_path


def test_cloudpose_is_phone_and_car_on_one_clock(cloudpose: Path) -> None:
    source = opened(cloudpose)
    found = samples(source)
    assert Counter(s.modality for s in found) == {"imu": 50, "gps": 5, "can": 1}
    start_ns = 1_523_199_600 * 10**9  # 10:00 in Texas
    imu = next(s for s in found if s.modality == "imu")
    assert imu.timestamp_ns == start_ns
    assert imu.data == pytest.approx([0.3 * G, -0.2 * G, 0.1 * G, 1, 2, 3])
    gps = [s for s in found if s.modality == "gps"]
    assert gps[1].timestamp_ns == pytest.approx(start_ns + 0.8e9, abs=1e6)
    assert gps[1].arrival_ns == start_ns + 10**9  # the fix is 0.2 s older than its row
    assert math.isnan(gps[1].data[-1])
    assert gps[4].data[-1] == pytest.approx(math.radians(1), rel=1e-3)
    (can,) = (s for s in found if s.modality == "can")
    assert can.timestamp_ns == start_ns + 50_000_000
    assert can.data == pytest.approx([4.4704, -3, 50, 600, 0.2 * G, 0.1 * G])
    assert source.channels["can"][:2] == ("speed", "steering_angle")


def test_cloudpose_feeds_the_driving_bundle_but_for_the_road(cloudpose: Path) -> None:
    (cloudpose / CAR).unlink()
    source = opened(cloudpose, wanted=wanted_driving())
    assert set(source.modalities) == {"imu", "gps"} and source.warnings == ()


@pytest.fixture
def nds(tmp_path: Path) -> Path:
    header = (
        "drive,time_utc,gps_long,gps_lat,gps_elevation,gps_heading_raw,speed_mph,accel_x,accel_y,"
        "accel_z,gyro_x,gyro_y,gyro_z,engine_rpm,engine_throttle"
    )
    rows = [
        f"{drive}.0,{1e6 * drive + n},-95,41,350,{n},60,0.1,0.2,1.5,180,0,0,{rpm},"
        for drive in (1, 7)
        for n, rpm in ((0, ""), (1, 1000), (2, ""), (3, ""))
    ]
    return write(tmp_path / "nds_data.csv.gz", header, rows)


def test_nds_plays_one_drive(nds: Path) -> None:
    found = samples(opened(nds, drive=7))
    assert Counter(s.modality for s in found) == {"imu": 4, "gps": 4, "can": 1}
    assert found[0].timestamp_ns == 7_000_000 * 10**9
    imu = next(s for s in found if s.modality == "imu")
    assert imu.data == pytest.approx([0.1 * G, 0.2 * G, 0.5 * G, math.pi, 0, 0])
    gps = [s for s in found if s.modality == "gps"]
    assert gps[3].data[-1] == pytest.approx(math.radians(1), rel=1e-3)


def test_a_drive_must_be_named_and_there(nds: Path) -> None:
    with pytest.raises(FusedgeError, match=r"several drives \(say which: drive=1; there are 1, 7"):
        opened(nds)
    with pytest.raises(FusedgeError, match=r"unknown drive in .*'5' \(known: 1, 7\)"):
        opened(nds, drive=5)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    header = (
        "timestamp,sample,aclnx,aclny,aclnz,girox,giroy,giroz,magnx,magny,magnz,"
        "acelx,acely,acelz,Class"
    )
    for number, (second, label) in enumerate([(0, 0), (2, 5), (4, 0), (600, 0), (602, 2)] * 2):
        day = 14 + number // 5
        rows = [
            f"2016-05-{day} 10:{(second + k // 50) // 60:02}:{(second + k // 50) % 60:02},{k % 50},"
            f"1,2,3,4,5,6,7,8,9,1,2,12,{label}"
            for k in range(100)
        ]
        write(tmp_path / "events" / str(number % 2) / f"{number}.csv.gz", header, rows)
    return tmp_path / "events"


@pytest.mark.parametrize(("drive", "rows"), [(1, 300), (2, 200), (3, 300), (4, 200)])
def test_labelled_events_are_joined_to_trips(events: Path, drive: int, rows: int) -> None:
    found = samples(opened(events, drive=drive), "imu")
    steps = np.diff([s.timestamp_ns for s in found])
    assert len(found) == rows and (steps == 20_000_000).all()


def test_labels_come_as_a_modality_and_axes_are_not_called_the_vehicle_s(events: Path) -> None:
    found = samples(opened(events / "1/1.csv.gz"))
    assert [s.data.tolist() for s in found if s.modality == "event"] == [[5]] * 100
    assert found[0].data[:3].tolist() == [1, 2, 3]
    with pytest.raises(UnknownNameError) as error:
        opened(events, drive=1, wanted=named(imu=["longitudinal_acceleration"]))
    assert "acceleration_x" in error.value.hint and "not the vehicle's" in error.value.hint
    assert "did you mean" not in error.value.line()
    with pytest.raises(UnknownNameError, match="did you mean 'acceleration_x'"):
        opened(events, drive=1, wanted=named(imu=["aceleration_x"]))
    with pytest.raises(FusedgeError, match="drive=1; there are 1, 2, 3, 4"):
        opened(events)


def test_a_drive_of_what_has_no_drives_is_refused(cloudpose: Path, events: Path) -> None:
    for path in (cloudpose, events / "1/1.csv.gz", cloudpose / "a.mcap", cloudpose / "trip"):
        with pytest.raises(FusedgeError, match=r"is one drive.* \(leave drive= out\)"):
            opened(path, drive=3)


def test_one_table_without_a_row_does_not_end_the_others(cloudpose: Path) -> None:
    text = (cloudpose / CAR).read_text().splitlines()
    write(cloudpose / CAR, text[0], ["later" + text[1]] * 3)
    items = list(opened(cloudpose).samples())
    assert Counter(i.modality for i in items if isinstance(i, Sample)) == {"imu": 50, "gps": 5}
    rejected = [(i.modality, i.reason) for i in items if isinstance(i, Rejection)]
    assert rejected == [("can", "malformed")] * 3
    assert {i.arrival_ns for i in items if isinstance(i, Rejection)} == {items[0].arrival_ns}
    assert items[0].arrival_ns == 1_523_199_600 * 10**9


def test_a_table_that_is_no_known_set_asks_for_a_map(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", "t,ax", ["0,1"])
    with pytest.raises(FusedgeError, match=r"file:.*own\.csv\?map=COLUMNS\.yaml"):
        opened(path)
    with pytest.raises(FusedgeError, match="no such file"):
        opened(tmp_path / "missing.csv")
    with pytest.raises(FusedgeError, match="not a trip of UAH-DriveSet"):
        opened(tmp_path)


def test_a_column_that_is_missing_is_named(cloudpose: Path) -> None:
    write(cloudpose / CAR, "Time,Speed (KMH)", ["2018-04-08 10:00:00,10"])
    with pytest.raises(FusedgeError, match=r"'Speed \(MPH\)' \(did you mean 'Speed \(KMH\)'\?\)"):
        opened(cloudpose)


def test_opening_leaves_no_handle(cloudpose: Path, nds: Path, events: Path) -> None:
    assert leaked_handles(lambda: opened(cloudpose), 50) == 0
    assert leaked_handles(lambda: opened(nds, drive=7), 50) == 0
    assert leaked_handles(lambda: opened(events, drive=2), 10) == 0


def test_the_real_phone_and_car_agree() -> None:
    items = list(opened(driving("cloudpose")).samples())
    found = [item for item in items if isinstance(item, Sample)]
    assert len(found) == len(items) == 3419 + 4708 + 343
    grid = np.arange(1523201510, 1523201820, 0.05)
    kernel = np.hanning(21) / np.hanning(21).sum()

    def smooth(modality: str, channel: int, shift_s: float = 0.0) -> np.ndarray:
        rows = [s for s in found if s.modality == modality]
        times = [s.timestamp_ns / 1e9 for s in rows]
        values = np.interp(grid + shift_s, times, [s.data[channel] for s in rows])
        return np.convolve(values, kernel, "same")

    # the phone comes 0.25 s before the car's bus in motion, and its GPS 1.45 s after it
    assert np.corrcoef(smooth("imu", 0, -0.25), smooth("can", 4))[0, 1] > 0.8
    assert np.corrcoef(smooth("imu", 1, -0.25), smooth("can", 5))[0, 1] > 0.75
    assert np.corrcoef(smooth("gps", 0, 1.45), smooth("can", 0))[0, 1] > 0.99


def test_the_real_drives_are_read_whole() -> None:
    found = samples(opened(driving("nds-driveplotr/nds_data.csv.gz"), drive=15))
    assert Counter(s.modality for s in found) == {"imu": 1818, "gps": 1818, "can": 1037}
    imu = np.array([s.data for s in found if s.modality == "imu"])
    gps = np.array([s.data for s in found if s.modality == "gps"])
    speed_change = np.gradient(gps[:, 0])
    assert np.corrcoef(imu[:-1, 0], speed_change[1:])[0, 1] > 0.55  # GPS is 1 s late


def test_the_real_events_are_trips_with_their_labels() -> None:
    labels = [int(s.data[0]) for s in samples(opened(driving("events-50hz"), drive=2), "event")]
    assert len(labels) == 20_350
    begun = Counter(b for a, b in zip([0, *labels], labels, strict=False) if b not in (0, a))
    assert begun == {4: 2, 5: 6, 6: 6}
