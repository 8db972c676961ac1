"""Trips of UAH-DriveSet as a source and as arrays, on made-up trips."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.replay.uah import MAX_LINE, TripSource, find_trips, read_recording
from tests.devices.synthetic_trip import NAME, WANTED, write_trip

Item = Sample | Rejection
IMU, GPS = "RAW_ACCELEROMETERS", "RAW_GPS"
LANE, VEHICLES = "PROC_LANE_DETECTION", "PROC_VEHICLE_DETECTION"


def read(folder: Path, **wanted: tuple[str, ...]) -> list[Item]:
    return list(TripSource("replay:trip", folder, wanted or WANTED).samples())


def of(items: Iterable[Item], modality: str) -> list[Item]:
    return [item for item in items if item.modality == modality]


def values(items: Iterable[Item], modality: str) -> np.ndarray:
    return np.array([i.data for i in items if isinstance(i, Sample) and i.modality == modality])


def reasons(items: Iterable[Item]) -> Counter[str]:
    return Counter(item.reason for item in items if isinstance(item, Rejection))


def imu(*stamps: float) -> str:
    return "".join(f"{t} 1 0 0 0 0 0 0 0 0 0 \n" for t in stamps)


def gps(*rows: str) -> str:
    return "".join(f"{t} {row} \n" for t, row in enumerate(rows, 1))


def test_all_rows_come_as_samples_in_si_units(tmp_path: Path) -> None:
    items = read(write_trip(tmp_path / "trip"))
    assert Counter(item.modality for item in items) == {"imu": 40, "gps": 4, "road": 100}
    g = 9.80665
    np.testing.assert_allclose(values(items, "imu")[0], [0.3 * g, -0.2 * g, 0.1 * g, -1.5, 0.01, 3])
    # 18 degrees over two fixes, 2 s
    np.testing.assert_allclose(values(items, "gps")[0], [20, math.radians(9)], rtol=1e-6)
    lane = [0.25, math.radians(1.8), 3.5]
    np.testing.assert_allclose(values(items, "road")[0], [*lane, 30, 1.5, 2], rtol=1e-6)
    first = items[0]
    assert isinstance(first, Sample)
    assert first.stamp == "capture" and first.data.dtype == np.float32
    assert first.timestamp_ns == first.arrival_ns == 1_000_000_000


def test_items_come_in_the_order_of_arrival(tmp_path: Path) -> None:
    arrivals = [item.arrival_ns for item in read(write_trip(tmp_path / "trip"))]
    assert arrivals == sorted(arrivals)


def test_channels_come_as_wanted(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip")
    items = read(trip, imu=("yaw", "lateral_acceleration"), face=("anything",))
    assert {item.modality for item in items} == {"imu"}
    np.testing.assert_allclose(values(items, "imu")[0], [3, -0.2 * 9.80665])


def test_gzipped_files_read_the_same(tmp_path: Path) -> None:
    plain, packed = write_trip(tmp_path / "plain"), write_trip(tmp_path / "packed")
    for file in packed.glob("*.txt"):
        (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    key = [(i.modality, i.arrival_ns) for i in read(plain)]
    assert key == [(i.modality, i.arrival_ns) for i in read(packed)]


def test_vehicles_are_held_for_a_second(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", **{VEHICLES: "1.50 40.00 2.00 3 72.0 \n"})
    seen = [
        (item.timestamp_ns / 1e9, item.data[3:].tolist())
        for item in of(read(trip), "road")
        if isinstance(item, Sample)
    ]
    assert all(row == [40, 2, 3] for t, row in seen if 1.5 <= t <= 2.5)
    assert all(math.isnan(value) for t, row in seen if not 1.5 <= t <= 2.5 for value in row)


def test_no_vehicle_ahead_still_counts_the_others(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", **{VEHICLES: "1.00 -1.00 -1.00 2 72.0 \n"})
    road = values(read(trip), "road")
    assert np.isnan(road[0, 3:5]).all() and road[0, 5] == 2


@pytest.mark.parametrize("row", ["-9 -9 -9 -9", "0 -0 3.5 -1", "0 0 3.1 0", "0.2 -9 3.1 2"])
def test_a_lane_that_is_not_tracked_is_not_measured(tmp_path: Path, row: str) -> None:
    trip = write_trip(tmp_path / "trip", **{LANE: f"1.20 {row}\n1.30 0.1 0.2 3.0 1\n"})
    lane = values(read(trip), "road")[:, :3]
    assert np.isnan(lane[0]).all() and np.isfinite(lane[1]).all()


@pytest.mark.parametrize(
    "row",
    [
        "72 0 0 600 4 5 260 1 0 0 0",
        "-1 40.5 -3.3 600 4 5 260 1 0 0 0",
        "72 40.5 -3.3 600 4 165 260 1 0 0 0",
        "72 40.5 -3.3 600 4 -1 260 1 0 0 0",
        "72 40.5 -3.3 600 4 nan 260 1 0 0 0",
    ],
)
def test_a_position_without_a_fix_is_rejected(tmp_path: Path, row: str) -> None:
    good = "72 40.5 -3.3 600 4 5 260 1 0 0 0"
    trip = write_trip(tmp_path / "trip", **{GPS: gps(good, row, good, good, good)})
    items = of(read(trip), "gps")
    assert reasons(items) == {"no_fix": 1}
    course = values(items, "gps")[:, 1]  # the change spans two fixes
    assert np.isfinite(course).tolist() == [True, False, False, True]


def test_an_unknown_course_keeps_the_speed(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", **{GPS: gps("36 40.5 -3.3 600 4 5 -1 -1 0 0 0")})
    speed, course = values(read(trip), "gps")[0]
    assert speed == 10 and math.isnan(course)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "1e39", "1e999"])
def test_a_value_that_is_not_finite_becomes_nan_in_its_channel(tmp_path: Path, bad: str) -> None:
    trip = write_trip(tmp_path / "trip", **{IMU: f"1.0 1 0 0 0 0 {bad} 0 0.5 0 0 \n"})
    row = values(read(trip), "imu")[0]
    assert np.isnan(row).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1.1 1 0 0\n", "4 columns instead of 11"),
        ("1.1 1 0 0 0 0 0 0 0 0 0 0\n", "12 columns instead of 11"),
        ("1.1 1 0 0 0 0 x 0 0 0 0\n", "not a number"),
        ("1.1 1 0 0 0 0 1_0 0 0 0 0\n", "not a number"),
        ("nan 1 0 0 0 0 0 0 0 0 0\n", "stamp out of range"),
        ("1e300 1 0 0 0 0 0 0 0 0 0\n", "stamp out of range"),
        ("\x00\x01\x02\n", "1 columns instead of 11"),
        ("7" * 5000 + "\n", f"longer than {MAX_LINE} bytes"),
    ],
)
def test_a_malformed_line_costs_only_itself(tmp_path: Path, line: str, why: str) -> None:
    trip = write_trip(tmp_path / "trip", **{IMU: imu(1.0) + line + "\n" + imu(1.2)})
    first, second, third = of(read(trip), "imu")
    assert isinstance(first, Sample) and isinstance(third, Sample)
    assert second == Rejection("imu", first.arrival_ns, "malformed", f"{trip / IMU}.txt:2: {why}")


def test_a_torn_last_line_is_not_half_a_number(tmp_path: Path) -> None:
    torn = imu(1.0) + "1.1 1 0 0 0 0 0 0 0 0 0.1"
    items = of(read(write_trip(tmp_path / "trip", **{IMU: torn})), "imu")
    assert reasons(items) == {"malformed": 1} and len(items) == 2


def test_a_cut_off_gzip_ends_with_a_rejection(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", seconds=400)
    packed = gzip.compress((trip / f"{IMU}.txt").read_bytes())
    (trip / f"{IMU}.txt").unlink()
    (trip / f"{IMU}.txt.gz").write_bytes(packed[: len(packed) // 2])
    items = of(read(trip), "imu")
    assert len(items) > 10
    assert isinstance(items[-1], Rejection) and "cannot be read on" in items[-1].detail


def test_strange_stamps_are_passed_on_but_arrival_never_falls(tmp_path: Path) -> None:
    stamps = [1.0, 1.0, 0.5, 1.1, -9e8, 1.2]
    items = of(read(write_trip(tmp_path / "trip", **{IMU: imu(*stamps)})), "imu")
    assert [i.timestamp_ns / 1e9 for i in items if isinstance(i, Sample)] == stamps
    assert [i.arrival_ns / 1e9 for i in items] == [1.0, 1.0, 1.0, 1.1, 1.1, 1.2]


SECONDS = [float(t) for t in range(1, 41)]


def imu_arrivals(folder: Path, stamps: list[float]) -> tuple[list[float], int]:
    """The stamps that were believed, and how many rows were not; the other files go from 1 to 5 s."""
    items = of(read(write_trip(folder, **{IMU: imu(*stamps)})), "imu")
    assert len(items) == len(stamps)
    assert set(reasons(items)) <= {"implausible_stamp"}
    believed = [i.timestamp_ns / 1e9 for i in items if isinstance(i, Sample)]
    assert [i.arrival_ns / 1e9 for i in items if isinstance(i, Sample)] == believed
    return believed, reasons(items)["implausible_stamp"]


@pytest.mark.parametrize("wrong", [62.0, 86_400.0, 99_999_999.0, 9e8])
@pytest.mark.parametrize("at", [0, 1, 20, 40])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_stamps_that_leap_ahead_cost_only_themselves(
    tmp_path: Path, wrong: float, at: int, count: int
) -> None:
    stamps = [*SECONDS[:at], *[wrong + 40 + n for n in range(count)], *SECONDS[at:]]
    assert imu_arrivals(tmp_path / "trip", stamps) == (SECONDS, count)


def test_leaps_that_disagree_are_never_believed(tmp_path: Path) -> None:
    leaps = [1000.0 + 61 * (n % 2) for n in range(60)]
    assert imu_arrivals(tmp_path / "trip", [*SECONDS, *leaps]) == (SECONDS, 60)


@pytest.mark.parametrize("silence", [17.0, 60.0])
def test_a_silence_is_believed_at_once(tmp_path: Path, silence: float) -> None:
    stamps = [*SECONDS, *[t + 40 + silence - 1 for t in SECONDS]]
    assert imu_arrivals(tmp_path / "trip", stamps) == (stamps, 0)


def test_a_long_silence_is_believed_when_ten_rows_agree(tmp_path: Path) -> None:
    later = [t + 600 for t in SECONDS]
    assert imu_arrivals(tmp_path / "trip", [*SECONDS, *later]) == ([*SECONDS, *later[9:]], 9)


def test_nothing_is_believed_beyond_60_s_a_row_or_a_day(tmp_path: Path) -> None:
    far = [40 * 86_400.0 + n for n in range(50)]
    assert imu_arrivals(tmp_path / "rows", [*SECONDS, *far]) == (SECONDS, 50)
    slow = [1 + 60.0 * n for n in range(1500)]  # a day has 1440 minutes
    assert imu_arrivals(tmp_path / "day", [*SECONDS, *slow[1:]]) == ([*SECONDS, *slow[1:1441]], 59)


def shift(folder: Path, name: str, by_s: float) -> None:
    file = folder / f"{name}.txt"
    cells = (line.split(" ", 1) for line in file.read_text().splitlines(keepends=True))
    file.write_text("".join(f"{float(stamp) + by_s:.2f} {rest}" for stamp, rest in cells))


@pytest.mark.parametrize("start_s", [0, 7200, -500_000, 9e8])
def test_a_trip_may_start_at_any_time(tmp_path: Path, start_s: float) -> None:
    trip = write_trip(tmp_path / "trip")
    usual = read(trip)
    for name in (IMU, GPS, LANE, VEHICLES):
        shift(trip, name, start_s)
    for item, as_usual in zip(read(trip), usual, strict=True):
        assert isinstance(item, Sample) and isinstance(as_usual, Sample)
        assert item.arrival_ns == item.timestamp_ns
        assert abs(item.timestamp_ns - as_usual.timestamp_ns - start_s * 1e9) <= 1000


@pytest.mark.parametrize("name", [IMU, GPS, LANE, VEHICLES])
@pytest.mark.parametrize("wrong_s", [-7200, -100, 100, 86_400, 8e8])
def test_a_file_with_a_time_of_its_own_does_not_hold_up_the_others(
    tmp_path: Path, name: str, wrong_s: float
) -> None:
    trip = write_trip(tmp_path / "trip")
    for file in (IMU, GPS, LANE, VEHICLES):
        shift(trip, file, 10_000)
    shift(trip, name, wrong_s)
    items = read(trip)
    arrivals = [item.arrival_ns / 1e9 for item in items]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 10_001 and arrivals[-1] < 10_001 + 200
    for modality, file in (("imu", IMU), ("gps", GPS), ("road", LANE)):
        if name != file:
            samples = [i for i in of(items, modality) if isinstance(i, Sample)]
            assert len(samples) == {"imu": 40, "gps": 4, "road": 100}[modality]
            assert all(i.timestamp_ns == i.arrival_ns for i in samples)


strange = st.one_of(
    st.floats(-2e9, 2e9),
    st.sampled_from([0.0, 1.0, 59.0, 60.0, 86_400.0, 7200.0, 9e8]).flatmap(
        lambda at: st.floats(at - 100, at + 100)
    ),
)
runs = st.lists(st.tuples(strange, st.integers(1, 25), st.floats(-70, 70)), max_size=8)


@given(st.tuples(runs, runs, runs, runs))
def test_arrival_is_bounded_by_the_number_of_rows(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[list[tuple[float, int, float]], ...]
) -> None:
    folder = tmp_path_factory.mktemp("stamps")
    count = 0
    for file, (name, columns) in zip(
        files, ((IMU, 11), (GPS, 12), (LANE, 5), (VEHICLES, 5)), strict=True
    ):
        stamps = [first + step * n for first, number, step in file for n in range(number)]
        count = max(count, len(stamps))
        text = "".join(f"{stamp}{' 1' * (columns - 1)}\n" for stamp in stamps)
        (folder / f"{name}.txt").write_text(text)
    if not any(files[:3]):
        return
    arrivals = [item.arrival_ns for item in read(folder)]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] - arrivals[0] <= min(86_400, 60 * count) * 1e9


def test_one_wild_vehicle_stamp_does_not_hide_the_later_ones(tmp_path: Path) -> None:
    rows = "1e8 9 1 1 72 \n1.20 40 2 3 72 \n"
    items = read(write_trip(tmp_path / "trip", **{VEHICLES: rows}))
    assert 40 in values(items, "road")[:, 3] and reasons(items) == {"implausible_stamp": 1}


@pytest.mark.parametrize("modality", ["imu", "gps", "road"])
@pytest.mark.parametrize("text", [None, ""])
def test_a_missing_modality_is_told_and_the_others_go_on(
    tmp_path: Path, modality: str, text: str | None
) -> None:
    name = {"imu": IMU, "gps": GPS, "road": LANE}[modality]
    trip = write_trip(tmp_path / "trip", **{name: text})
    source = TripSource("replay:trip", trip, WANTED)
    assert set(source.modalities) == set(WANTED) - {modality}
    assert {item.modality for item in source.samples()} == set(source.modalities)
    state = "is missing" if text is None else "is empty"
    assert source.warnings == (f"{trip / name}.txt {state}: no {modality}",)


def test_a_road_without_vehicles_is_told(tmp_path: Path) -> None:
    source = TripSource("replay:", write_trip(tmp_path / "trip", **{VEHICLES: None}), WANTED)
    assert "vehicles" in source.warnings[0] and "road" in source.modalities
    assert np.isnan(values(source.samples(), "road")[:, 3:]).all()


def test_what_is_no_trip_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = write_trip(tmp_path / "empty", **{IMU: "", GPS: "", LANE: ""})
    for folder, what in (
        (tmp_path / "absent", "no such trip folder"),
        (tmp_path, "not a trip of UAH-DriveSet"),
        (empty, "nothing to read in this trip"),
        (tmp_path / ("x" * 5000), "no such trip folder"),
    ):
        with pytest.raises(FusedgeError, match=what) as error:
            TripSource("replay:", folder, WANTED)
        assert "\n" not in error.value.line() and error.value.hint


def test_a_file_that_is_not_gzip_is_told(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", **{IMU: None})
    (trip / f"{IMU}.txt.gz").write_bytes(b"no gzip")
    assert "cannot be read" in TripSource("replay:", trip, WANTED).warnings[0]


def test_close_ends_the_iterator(tmp_path: Path) -> None:
    source = TripSource("replay:", write_trip(tmp_path / "trip"), WANTED)
    items = source.samples()
    next(items)
    source.close()
    source.close()
    assert next(items, None) is None


def test_the_apps_own_verdicts_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = write_trip(tmp_path / NAME)
    (trip / "SEMANTIC_ONLINE.txt").write_text("1 2 3\n")
    opened = []
    plain_open = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(self.name) or plain_open(self, *a, **k)
    )
    read_recording(trip)
    assert opened and not [name for name in opened if name.startswith("SEMANTIC")]


def test_a_recording_has_label_group_condition_and_events(tmp_path: Path) -> None:
    recording = read_recording(write_trip(tmp_path / NAME))
    assert recording.name == NAME
    assert (recording.label, recording.group) == ("aggressive", "D1")
    assert recording.condition == "motorway"
    assert recording.reference_events == (("braking", 2, 1.5), ("acceleration", 1, 2.5))
    assert {m: s.values.shape for m, s in recording.series.items()} == {
        "imu": (40, 6),
        "gps": (4, 2),
        "road": (100, 6),
    }


def test_a_recording_is_what_the_source_gives(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / NAME)
    series = read_recording(trip).series
    for modality in WANTED:
        np.testing.assert_array_equal(series[modality].values, values(read(trip), modality))


def test_the_stamps_of_a_recording_rise_strictly(tmp_path: Path) -> None:
    text = imu(1.0, 1.0, 0.5, 1.1, 99_999_999.0, 1.2)
    series = read_recording(write_trip(tmp_path / NAME, **{IMU: text, GPS: None})).series
    assert (series["imu"].timestamps_ns / 1e9).tolist() == [1.0, 1.1, 1.2]
    assert series["gps"].values.shape == (0, 2)


def test_a_folder_without_a_label_is_no_training_trip(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="tells no label"):
        read_recording(write_trip(tmp_path / "holiday"))


def test_trips_are_found_in_the_data_folder_and_in_the_sets_own(tmp_path: Path) -> None:
    root = tmp_path / "driving" / "uah-driveset"
    trips = [write_trip(root / "D1" / NAME), write_trip(root / "D2" / NAME.replace("D1", "D2"))]
    (root / "D2" / "notes").mkdir()
    assert find_trips(root / "D2") == trips[1:]
    assert find_trips(tmp_path) == find_trips(root) == trips
    with pytest.raises(FusedgeError, match="non-commercial"):
        find_trips(tmp_path / "elsewhere")


lines = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.binary(min_size=MAX_LINE, max_size=3 * MAX_LINE),
        st.lists(
            st.one_of(
                st.floats(allow_subnormal=False).map(str),
                st.integers(-9, 9).map(str),
                st.sampled_from(["-9", "1e400", "nan", "2"]),
            ),
            min_size=4,
            max_size=12,
        ).map(lambda cells: " ".join(cells).encode()),
    ),
    max_size=12,
)


def rows(file: bytes) -> int:
    """Lines that are not blank; one that is too long is one, whatever it holds."""
    return sum(bool(line.split()) or len(line) >= MAX_LINE for line in file.split(b"\n"))


@given(accelerometers=lines, fixes=lines, lanes=lines, vehicles=lines)
def test_no_bytes_raise_and_no_row_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    accelerometers: list[bytes],
    fixes: list[bytes],
    lanes: list[bytes],
    vehicles: list[bytes],
) -> None:
    folder = tmp_path_factory.mktemp("any")
    files = {}
    for name, content in ((IMU, accelerometers), (GPS, fixes), (LANE, lanes), (VEHICLES, vehicles)):
        files[name] = b"\n".join(content)
        (folder / f"{name}.txt").write_bytes(files[name])
    try:
        source = TripSource("replay:any", folder, WANTED)
    except FusedgeError:
        assert not any(files[name] for name in (IMU, GPS, LANE))
        return
    items = list(source.samples())
    arrivals = [item.arrival_ns for item in items]
    assert arrivals == sorted(arrivals)
    assert not any(np.isinf(i.data).any() for i in items if isinstance(i, Sample))
    for modality, name in (("imu", IMU), ("gps", GPS)):
        assert len(of(items, modality)) == rows(files[name])
    road = of(items, "road")
    if "road" in source.modalities:
        rejected = [i for i in road if isinstance(i, Rejection)]
        of_vehicles = [i for i in rejected if f"{VEHICLES}.txt" in i.detail]
        assert len(road) - len(of_vehicles) == rows(files[LANE])
        merged = rows(files[VEHICLES]) - len(of_vehicles)
        leapt = sum(i.reason == "implausible_stamp" for i in of_vehicles)
        assert merged + leapt == well_formed(files[VEHICLES])


def well_formed(file: bytes) -> int:
    """Rows of five numbers with a stamp in range, by other means than the reader's."""
    count = 0
    for line in file.split(b"\n")[:-1]:
        cells = line.decode("latin-1").split(" ")
        cells = [cell for cell in cells if cell]
        if len(line) < MAX_LINE and len(cells) == 5 and "_" not in "".join(cells):
            try:
                first, *_ = [float(cell) for cell in cells]
                count += abs(first) < 1e9
            except ValueError:
                continue
    return count
