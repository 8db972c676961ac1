"""Telemetry of GoPro cameras as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Wanted
from fusedge.devices.capture.gpmf import open_gpmf
from fusedge.devices.capture.table_source import TableSource
from tests.devices.gopro import device, entry, film, gps5, gps9, motion, nested, shorts
from tests.devices.modalities import by_name, series
from tests.devices.recordings import driving, leaked_handles, rejections, request, samples

STILL = [[981, 0, 0]] * 4
FIX = [10 * 10**7, 20 * 10**7, 5000, 3000, 400]


def opened(
    folder: Path, content: bytes, wanted: Wanted = None, name: str = "clip.raw"
) -> TableSource:
    (folder / name).write_bytes(content)
    return open_gpmf(request("file", folder / name, wanted))


def values(source: TableSource, modality: str = "imu") -> np.ndarray:
    return np.array([sample.data for sample in samples(source, modality)])


def test_motion_comes_in_axes_and_si_units(tmp_path: Path) -> None:
    payload = device(motion("ACCL", [[981, 100, -200]] * 2), motion("GYRO", [[30, 10, 20]] * 2))
    source = opened(tmp_path, payload)
    assert source.channels["imu"] == (
        "acceleration_x", "acceleration_y", "acceleration_z",
        "angular_velocity_x", "angular_velocity_y", "angular_velocity_z",
    )  # fmt: skip
    np.testing.assert_allclose(values(source), [[1, -2, 9.81, 0.1, 0.2, 0.3]] * 2, rtol=1e-6)


def test_without_one_fix_the_rejections_have_the_film_s_time(tmp_path: Path) -> None:
    payload = device(gps5([FIX] * 2, fix=0))
    items = list(opened(tmp_path, payload * 2).samples())
    assert [item.reason for item in items if isinstance(item, Rejection)] == ["no_fix"] * 4
    assert len(items) == 4 and items[0].arrival_ns == 0


def test_the_sensor_s_axes_are_not_taken_for_the_vehicle_s(tmp_path: Path) -> None:
    wanted = by_name(series("imu", {"longitudinal_acceleration": "m/s2"}))
    with pytest.raises(FusedgeError, match=r"it gives acceleration_x, .*of the sensor") as error:
        opened(tmp_path, device(motion("ACCL", STILL)), wanted)
    assert "did you mean" not in error.value.line()


@pytest.mark.parametrize(
    ("axes", "name", "expected"),
    [
        ("YxZ", "Hero6 Black", [-2, 1, 3]),  # as HERO6 writes it: y, -x, z
        ("XzY", "GoPro Max", [1, 3, -2]),
        ("", "Camera", [2, 3, 1]),
        ("", "Fusion", [2, -1, 3]),
        ("XXZ", "Camera", [2, 3, 1]),  # no order of three axes
    ],
)
def test_the_order_of_axes_is_the_stream_s_own(
    tmp_path: Path, axes: str, name: str, expected: list[float]
) -> None:
    source = opened(tmp_path, device(motion("ACCL", [[100, 200, 300]], axes), name=name))
    np.testing.assert_allclose(values(source)[0, :3], expected, rtol=1e-6)
    says_so = [line for line in source.warnings if "how its axes lie" in line]
    assert len(says_so) == (axes in ("", "XXZ") and name != "Fusion")


def test_samples_are_spread_over_the_time_of_their_payload_in_the_film(tmp_path: Path) -> None:
    payload = device(motion("ACCL", STILL), gps5([FIX, FIX]))
    source = opened(tmp_path, film([payload, payload], [1000, 800]), name="clip.mp4")
    assert source.warnings == ()
    stamps = [(s.modality, s.timestamp_ns // 10**6) for s in samples(source)]
    imu = [time for name, time in stamps if name == "imu"]
    assert imu == [0, 250, 500, 750, 1000, 1200, 1400, 1600]
    assert [time for name, time in stamps if name == "gps"] == [0, 500, 1000, 1400]
    assert [time for _, time in stamps] == sorted(time for _, time in stamps)


def test_a_last_payload_that_is_not_full_keeps_the_rate(tmp_path: Path) -> None:
    first, last = device(motion("ACCL", STILL)), device(motion("ACCL", STILL[:1]))
    two = device(motion("ACCL", STILL[:2]))
    source = opened(tmp_path, film([first, two], [1000, 1000]), name="clip.mp4")
    assert [s.timestamp_ns // 10**6 for s in samples(source)] == [0, 250, 500, 750, 1000, 1250]
    assert len(samples(opened(tmp_path, film([first, last], [1000, 1000]), name="c.mp4"))) == 5


def test_payloads_without_a_film_count_as_a_second_and_it_is_said(tmp_path: Path) -> None:
    other = device(motion("ACCL", [[1, 1, 1]]), name="Karma", number=2)
    payload = device(motion("ACCL", STILL)) + other
    source = opened(tmp_path, payload * 3)
    assert "counts as 1 s" in source.warnings[0]
    found = samples(source)
    assert [s.timestamp_ns // 10**6 for s in found] == list(range(0, 3000, 250))
    assert [s.data[2] for s in found] == pytest.approx([9.81] * 12)  # of the first device


def test_a_quicker_gyroscope_is_averaged_and_a_slower_one_interpolated(tmp_path: Path) -> None:
    quick = motion("GYRO", [[100 * n, 0, 0] for n in range(16)])
    found = values(opened(tmp_path, device(motion("ACCL", STILL), quick)))
    np.testing.assert_allclose(found[:, 5], [0.5, 3.5, 7.5, 12.5], atol=1)
    assert found[:, 5].sum() == pytest.approx(24, abs=2)
    slow = motion("GYRO", [[0, 0, 0], [200, 0, 0]])
    found = values(opened(tmp_path, device(motion("ACCL", STILL), slow)))
    np.testing.assert_allclose(found[:, 5], [0, 1, 2, 2], atol=1e-6)


def test_a_device_without_an_accelerometer_or_gyroscope_says_nan(tmp_path: Path) -> None:
    found = values(opened(tmp_path, device(motion("GYRO", STILL))))
    assert np.isnan(found[:, :3]).all() and np.isfinite(found[:, 3:]).all()


@pytest.mark.parametrize(
    "stream", [gps5([FIX]), gps9([[*FIX, 8000, 3_600_000, 150, 3]])], ids=["GPS5", "GPS9"]
)
def test_gps_comes_in_degrees_and_si_units(tmp_path: Path, stream: bytes) -> None:
    source = opened(tmp_path, device(stream))
    assert source.channels["gps"] == ("latitude", "longitude", "altitude", "speed", "speed_3d")
    np.testing.assert_allclose(values(source, "gps"), [[10, 20, 5, 3, 4]])


def test_gps_without_a_fix_is_rejected(tmp_path: Path) -> None:
    for stream in (gps5([FIX] * 3, fix=0), gps9([[*FIX, 0, 0, 9999, 0]] * 3)):
        found = rejections(opened(tmp_path, device(stream)))
        assert [item.reason for item in found] == ["no_fix"] * 3


def test_a_bundle_gets_its_channels_in_its_units(tmp_path: Path) -> None:
    wanted = by_name(series("gps", {"altitude": "km", "speed": "km/h"}))
    source = opened(tmp_path, device(motion("ACCL", STILL), gps5([FIX])), wanted)
    assert source.modalities == ("gps",)
    np.testing.assert_allclose(values(source, "gps"), [[0.005, 10.8]], rtol=1e-6)
    with pytest.raises(FusedgeError, match="none of the wanted modalities"):
        opened(tmp_path, device(gps5([FIX])), by_name(series("imu", {"acceleration_x": "g"})))


GOOD = device(motion("ACCL", STILL))


@pytest.mark.parametrize(
    "bad",
    [
        device(motion("ACCL", STILL, scale=0)),
        device(motion("ACCL", STILL, unit="g")),
        device(motion("ACCL", [[1, 2]])),
        device(nested("STRM", entry("ACCL", "?", 6, b"\0" * 12))),
        device(nested("STRM", entry("TYPE", "c", 1, b"ss"), entry("ACCL", "?", 6, b"\0" * 12))),
        device(nested("STRM", entry("ACCL", "s", 5, b"\0" * 10))),
        device(nested("STRM", shorts("ACCL", STILL)[:-4])),
        device(nested("STRM", shorts("SCAL", [[1], [2]]), shorts("ACCL", STILL))),
        device(nested("STRM", entry("ACCL", "s", 6, b""))),
    ],
)
def test_a_payload_that_cannot_be_read_is_a_rejection_and_those_after_it_come(
    tmp_path: Path, bad: bytes
) -> None:
    items = list(opened(tmp_path, GOOD + bad + GOOD).samples())
    assert [type(item) for item in items] == [Sample] * 4 + [Rejection] + [Sample] * 4
    assert "payload 1" in items[4].detail and items[4].reason == "malformed"  # type: ignore[union-attr]
    assert items[-1].arrival_ns == 2_750_000_000
    with pytest.raises(FusedgeError, match="cannot be read"):
        opened(tmp_path, bad)


def test_a_file_that_is_cut_off_gives_what_was_whole(tmp_path: Path) -> None:
    items = list(opened(tmp_path, GOOD + GOOD[:-20]).samples())
    assert [type(item) for item in items] == [Sample] * 4 + [Rejection]
    assert "cut off" in items[-1].detail  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["clip.raw", "clip.mp4"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"DEVC", b"not telemetry at all", device()])
def test_what_holds_no_telemetry_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    with pytest.raises(FusedgeError):
        opened(tmp_path, content, name=name)
    with pytest.raises(FusedgeError, match="no such file"):
        open_gpmf(request("file", tmp_path))


def test_a_film_without_telemetry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="holds no telemetry"):
        opened(tmp_path, film([b"other data"], [1000]), name="clip.mp4")


@pytest.mark.parametrize("name", ["clip.raw", "clip.mp4"])
def test_closing_leaves_no_handle(tmp_path: Path, name: str) -> None:
    content = GOOD * 3 if name == "clip.raw" else film([GOOD] * 3, [1000] * 3)
    assert leaked_handles(lambda: opened(tmp_path, content, name=name)) == 0


def test_opening_in_vain_leaves_no_handle(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(film([b"other data"], [1000]))

    def in_vain() -> TableSource:
        with pytest.raises(FusedgeError):
            open_gpmf(request("file", tmp_path / "clip.mp4"))
        return opened(tmp_path, GOOD)

    assert leaked_handles(in_vain) == 0


WHOLE = device(motion("ACCL", STILL, "YxZ"), motion("GYRO", STILL * 2), gps5([FIX] * 2))


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(WHOLE)),
    st.booleans(),
)
def test_damaged_telemetry_gives_valid_items_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    damage: list[tuple[int, int]],
    cut: int,
    first: bool,
) -> None:
    damaged = bytearray(WHOLE)
    for place, byte in damage:
        damaged[place] = byte
    whole = bytes(damaged) if first else bytes(damaged[:cut])
    _check(tmp_path_factory, whole + WHOLE if first else WHOLE + whole)


@given(st.binary(max_size=200))
def test_any_bytes_give_valid_items_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    _check(tmp_path_factory, content)
    _check(tmp_path_factory, b"DEVC\0\1" + len(content).to_bytes(2, "big") + content)


def _check(factory: pytest.TempPathFactory, content: bytes) -> None:
    try:
        source = opened(factory.mktemp("gpmf"), content)
    except FusedgeError as error:
        assert "\n" not in error.line()
        return
    arrival_ns = 0
    for item in source.samples():
        assert item.arrival_ns >= arrival_ns
        arrival_ns = item.arrival_ns
        if isinstance(item, Sample):
            assert item.data.shape == (len(source.channels[item.modality]),)
            assert item.data.dtype == np.float32


def test_a_real_film_gives_motion_and_places() -> None:
    source = open_gpmf(request("file", driving("gopro-gpmf/max-heromode.mp4")))
    imu, gps = samples(source, "imu"), None
    rates = np.diff([s.timestamp_ns for s in imu])
    assert len(imu) == 2082 and 1e9 / np.median(rates) == pytest.approx(198, abs=1)
    mean = np.mean([s.data for s in imu], axis=0)
    assert np.linalg.norm(mean[:3]) == pytest.approx(9.8, abs=0.2)  # gravity, most of it on z
    assert mean[2] > 9.5
    gps = samples(open_gpmf(request("file", driving("gopro-gpmf/max-heromode.mp4"))), "gps")
    place = np.mean([s.data for s in gps], axis=0)
    assert place[:2] == pytest.approx([33.127, -117.327], abs=0.001)
    assert 0.5 < place[3] < 2  # somebody walks


@pytest.mark.parametrize("name", ["hero5", "hero6", "hero6+ble", "Fusion", "karma"])
def test_gravity_lies_on_z_in_the_samples_of_each_camera(name: str) -> None:
    source = open_gpmf(request("file", driving(f"gopro-gpmf/{name}.raw")))
    mean = np.mean([s.data[:3] for s in samples(source, "imu")], axis=0)
    assert mean[2] > 8.5 and np.linalg.norm(mean) == pytest.approx(9.9, abs=0.6)


def test_a_real_film_ends_when_its_data_do() -> None:
    found = samples(open_gpmf(request("file", driving("gopro-gpmf/karma.mp4"))))
    assert found[-1].timestamp_ns / 1e9 == pytest.approx(12.08, abs=0.02)  # the video has 12.08 s
