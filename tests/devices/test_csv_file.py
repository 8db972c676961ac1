"""Text tables as sources: what they give, and what they make of the text that people have."""

from __future__ import annotations

import gzip
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Wanted
from fusedge.devices.capture.column_map import column_map
from fusedge.devices.capture.csv_file import MAX_LINE, open_csv
from fusedge.devices.capture.table_source import HEAD_ITEMS, MAX_SILENCE_NS, TableSource
from tests.devices.modalities import by_name, image, series
from tests.devices.recordings import leaked_handles, request, samples

IMU = {"longitudinal_acceleration": "m/s2", "lateral_acceleration": "m/s2"}
WANTED = by_name(series("imu", IMU))
MAP = (
    "{time: {column: t, unit: s}, "
    "imu: {longitudinal_acceleration: ax g, lateral_acceleration: -ay m/s2}}"
)


def opened(
    folder: Path,
    text: str | bytes,
    map_: str | None = MAP,
    wanted: Wanted = None,
    name: str = "drive.csv",
    **options: str,
) -> TableSource:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    if map_ is not None:
        options["map"] = map_
    return open_csv(request("file", path, wanted, **options))


def test_a_map_names_columns_units_and_signs(tmp_path: Path) -> None:
    source = opened(tmp_path, "t,ay,ax\n0.5,2,1\n1.5,-4,0\n", wanted=WANTED)
    first, second = samples(source)
    assert source.channels == {"imu": tuple(IMU)} and source.warnings == ()
    assert (first.timestamp_ns, second.timestamp_ns) == (500_000_000, 1_500_000_000)
    assert first.data == pytest.approx([9.80665, -2]) and first.data.dtype == np.float32
    assert second.data == pytest.approx([0, 4])


def test_without_a_bundle_channels_come_in_the_units_of_the_map(tmp_path: Path) -> None:
    source = opened(tmp_path, "t,ax,ay\n0,1,2\n")
    assert [sample.data.tolist() for sample in samples(source)] == [[1, -2]]


def test_a_map_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "columns.yaml").write_text(
        "time: {column: ms, unit: ms}\nimu:\n"
        "  longitudinal_acceleration: {column: up force, unit: g, negate: yes, offset: 1}\n"
    )
    source = opened(tmp_path, "ms,up force\n250,3\n", str(tmp_path / "columns.yaml"))
    (sample,) = samples(source)
    assert sample.timestamp_ns == 250_000_000 and sample.data.tolist() == [-2]


@pytest.mark.parametrize(
    "text",
    [
        't;"ax" ; ay\n0;"1";2\n',
        "t\tax\tay\n0\t1\t2\n",
        "t|ax|ay\r\n0|1|2\r\n",
        "\ufefft, ax, ay\n\n0, 1, 2\n",
        't,"ax","ay"\n"0","1","2"\n',
        "t,ax,ay,\n0,1,2,\n",
    ],
)
def test_separators_quotes_and_marks_are_seen_through(tmp_path: Path, text: str) -> None:
    (sample,) = samples(opened(tmp_path, text))
    assert sample.data.tolist() == [1, -2]


def test_a_comma_within_quotes_separates_nothing(tmp_path: Path) -> None:
    map_ = "{time: {column: t, unit: s}, imu: {a: 'x, raw m/s2'}}"
    (sample,) = samples(opened(tmp_path, 't,"x, raw"\n0,7\n', map_))
    assert sample.data.tolist() == [7]


def test_a_decimal_comma_is_read_if_the_map_says_so_and_refused_if_not(tmp_path: Path) -> None:
    text = "t;ax;ay\n0,5;1,25;2\n"
    (sample,) = samples(opened(tmp_path, text, MAP[:-1] + ", file: {decimal: ','}}"))
    assert sample.timestamp_ns == 500_000_000 and sample.data.tolist() == [1.25, -2]
    with pytest.raises(FusedgeError, match=r"1 rejected.*'0,5' is not a number"):
        list(opened(tmp_path, text).samples())


@pytest.mark.parametrize(("text", "file"), [("0 1 2\n", ""), ("0,1,2\n", ", file: {header: no}")])
def test_columns_without_a_header_go_by_number(tmp_path: Path, text: str, file: str) -> None:
    map_ = f"{{time: {{column: 1, unit: s}}, imu: {{a: 2 m/s2, b: -3 m/s2}}{file}}}"
    (sample,) = samples(opened(tmp_path, text, map_))
    assert sample.data.tolist() == [1, -2]


def test_lines_before_the_header_can_be_skipped(tmp_path: Path) -> None:
    text = "# logger 3, of 2024\nnoise\nt,ax,ay\n0,1,2\n"
    (sample,) = samples(opened(tmp_path, text, MAP[:-1] + ", file: {skip_lines: 2}}"))
    assert sample.data.tolist() == [1, -2]


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"t,ax,ay\n0,1,2\n")
    assert len(samples(opened(tmp_path, packed, name="drive.csv.gz"))) == 1


def test_what_is_empty_was_not_measured_and_is_not_zero(tmp_path: Path) -> None:
    source = opened(tmp_path, "t,ax,ay\n0,,2\n1,NaN,n/a\n2,1,NULL\n3,inf,1e300\n")
    items = list(source.samples())
    rows = [item.data.tolist() for item in items if isinstance(item, Sample)]
    assert len(items) == 3  # at 1 s nothing was measured, so there is no sample
    assert math.isnan(rows[0][0]) and rows[0][1] == -2
    assert rows[1][0] == 1 and math.isnan(rows[1][1])
    assert np.isnan(rows[2]).all()  # beyond float32


def test_what_is_no_row_is_rejected_with_its_place(tmp_path: Path) -> None:
    lines = ["t,ax,ay", "0,1,2", "1,1", "x,1,2", "2,one,2", "3,1_0,2", "4,1,2,3", "5,1,2", "6,1,"]
    source = opened(tmp_path, "\n".join(lines))
    items = list(source.samples())
    assert [isinstance(item, Sample) for item in items] == [True, *[False] * 5, True, False]
    found = [item for item in items if isinstance(item, Rejection)]
    assert {item.reason for item in found} == {"malformed"}
    places = [item.detail.split("drive.csv:")[1].split(":")[0] for item in found]
    assert places == ["3", "4", "5", "6", "7", "9"]
    assert "torn" in found[-1].detail and "2 cells instead of 3" in found[0].detail


def test_a_line_without_an_end_in_sight_is_one_rejection(tmp_path: Path) -> None:
    text = b"t,ax,ay\n0,1,2\n" + b"9" * (3 * MAX_LINE) + b"\n1,1,2\n"
    source = opened(tmp_path, text)
    items = list(source.samples())
    assert [type(item) for item in items] == [Sample, Rejection, Sample]


def test_a_fault_counts_for_each_modality_that_lost_a_row(tmp_path: Path) -> None:
    map_ = "{time: {column: t, unit: s}, imu: {a: x m/s2}, gps: {speed: v km/h}}"
    text = "t,x,v\n0,1,36\n1,bad,36\n2,1\n"
    source = opened(tmp_path, text, map_)
    items = list(source.samples())
    assert [(type(i), i.modality) for i in items] == [
        (Sample, "imu"),
        (Sample, "gps"),
        (Rejection, "imu"),
        (Sample, "gps"),
        (Rejection, "imu"),
        (Rejection, "gps"),
    ]


def test_a_gzipped_file_that_is_cut_off_ends_with_a_rejection(tmp_path: Path) -> None:
    rows = "".join(f"{t},{t % 7},{t * 37 % 101}\n" for t in range(30_000))
    packed = gzip.compress(b"t,ax,ay\n" + rows.encode())
    items = list(opened(tmp_path, packed[: len(packed) // 2], name="d.csv.gz").samples())
    assert len(items) > 5000 and isinstance(items[-1], Rejection)
    assert items[-1].reason == "malformed" and "ended before" in items[-1].detail


def test_stamps_are_passed_on_and_arrival_never_falls(tmp_path: Path) -> None:
    rows = "".join(f"{t},1,2\n" for t in (0, 1, 1, 0.5, 3))
    found = samples(opened(tmp_path, "t,ax,ay\n" + rows))
    assert [s.timestamp_ns / 1e9 for s in found] == [0, 1, 1, 0.5, 3]
    assert [s.arrival_ns / 1e9 for s in found] == [0, 1, 1, 1, 3]


@pytest.mark.parametrize("wrong", [[0], [5], [5, 5, 5, 5, 6, 6, 6], list(range(0, 20, 2))])
def test_a_stamp_that_leaps_is_rejected_and_holds_nothing_back(
    tmp_path: Path, wrong: list[int]
) -> None:
    rows = [f"{10**6 if place in wrong else place},1,2\n" for place in range(50)]
    source = opened(tmp_path, "t,ax,ay\n" + "".join(rows))
    items = list(source.samples())
    bad = [item for item in items if isinstance(item, Rejection)]
    assert [item.reason for item in bad] == ["implausible_stamp"] * len(set(wrong))
    assert all(i.timestamp_ns == i.arrival_ns for i in items if isinstance(i, Sample))


def test_a_long_silence_is_believed_after_ten_rows(tmp_path: Path) -> None:
    leap = 2 * MAX_SILENCE_NS // 10**9
    times = [*range(30), *range(leap, leap + 30)]
    source = opened(tmp_path, "t,ax,ay\n" + "".join(f"{t},1,2\n" for t in times))
    items = list(source.samples())
    assert sum(isinstance(item, Rejection) for item in items) == 9
    assert items[-1].arrival_ns == times[-1] * 10**9


@pytest.mark.parametrize(
    ("unit", "cell", "time_ns"),
    [
        ("ns", "1558644851123456789", 1558644851123456789),
        ("us", "12", 12_000),
        ("ms", "-1.5", -1_500_000),
        ("s", "2e-3", 2_000_000),
        ("iso8601", "1970-01-02T00:00:01.5Z", 86_401_500_000_000),
        ("iso8601", "1970-01-02 00:00:01.123456789+01:00", 82_801_123_456_789),
        ("iso8601", "1970/1/1 10:30 -0500", 55_800_000_000_000),
        ("iso8601", "1970-01-03", 2 * 86_400_000_000_000),
        ("iso8601", "01:02:03.25", 3_723_250_000_000),
    ],
)
def test_times_in_any_form_are_exact(tmp_path: Path, unit: str, cell: str, time_ns: int) -> None:
    map_ = f"{{time: {{column: t, unit: {unit}}}, imu: {{a: x m/s2}}}}"
    (sample,) = samples(opened(tmp_path, f"t,x\n{cell},1\n", map_))
    assert sample.timestamp_ns == time_ns


@pytest.mark.parametrize(
    "cell", ["", "nan", "2018-13-01", "25:00:00", "24:30:00", "12:61:00", "soon", "-", "Z"]
)
def test_what_is_no_time_is_rejected(tmp_path: Path, cell: str) -> None:
    for unit in ("iso8601", "s"):
        map_ = f"{{time: {{column: t, unit: {unit}}}, imu: {{a: x m/s2}}}}"
        rows = [f"{cell},1", "7,1" if unit == "s" else "1970-01-01T00:00:07,1"]
        items = list(opened(tmp_path, "\n".join(["t,x", *rows, ""]), map_).samples())
        assert [getattr(item, "reason", "") for item in items] == ["malformed", ""]
        assert [item.arrival_ns for item in items] == [7 * 10**9] * 2


def stamps(source: TableSource) -> list[float]:
    return [sample.timestamp_ns / 1e9 for sample in samples(source)]


def test_times_of_day_go_on_over_midnight(tmp_path: Path) -> None:
    clock = ["23:59:58", "23:59:59.5", "00:00:00", "23:59:59.9", "00:00:01", "12:00:00", "00:00:05"]
    text = "time,imu.a\n" + "".join(f"{cell},1\n" for cell in clock)
    day = 86_400
    source = opened(tmp_path, text, None)
    items = list(source.samples())
    assert [i.timestamp_ns / 1e9 for i in items if isinstance(i, Sample)] == [
        *(day - 2, day - 0.5, day, day - 0.1, day + 1, day + 5)
    ]
    assert [i.reason for i in items if isinstance(i, Rejection)] == ["implausible_stamp"]  # noon
    text = text.replace("time,", "a,").replace("imu.a", "x")
    map_ = "{time: [{column: a, unit: iso8601}, {offset_s: -60}], imu: {x: x 1}}"
    assert stamps(opened(tmp_path, text, map_))[:3] == [day - 62, day - 60.5, day - 60]


def test_one_wrong_time_of_day_adds_no_day(tmp_path: Path) -> None:
    clock = [*(f"15:00:0{n}" for n in range(5)), "00:00:00", *(f"15:00:0{n}" for n in range(5, 9))]
    source = opened(tmp_path, "time,imu.a\n" + "".join(f"{cell},1\n" for cell in clock), None)
    assert stamps(source) == [15 * 3600 + n for n in range(9)]


def test_dates_that_fall_stay_as_they_are(tmp_path: Path) -> None:
    text = "time,imu.a\n1970-01-02 20:00:00,1\n1970-01-02 20:00:01,1\n1970-01-02 01:00:00,1\n"
    assert stamps(opened(tmp_path, text, None))[-1] == 86_400 + 3600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1533232000123,1\n1533232000143,2\n", "2 rejected.*2: the time is.*is the time in ms"),
        ("1e300,1\n", r"1 rejected.*csv:2: the time is 1e\+300.*is the time in ms"),
        ("soon,1\n" * 1500, "1500 rejected; the first: .*:2: 'soon' is no date.*map=COLUMNS"),
        ("", "has no rows of imu"),
        ("0,\n1,nan\n", "has no rows of imu"),
    ],
)
def test_a_table_that_tells_no_time_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "drive.csv"
    source = opened(tmp_path, "t,imu.a\n" + text, None)
    with pytest.raises(FusedgeError, match=message) as error:
        list(source.samples())
    assert str(path) in error.value.line() and "\n" not in error.value.line()


def test_what_is_rejected_before_the_first_row_arrives_with_it_in_bounded_memory(
    tmp_path: Path,
) -> None:
    bad = 3 * HEAD_ITEMS
    text = "t,imu.a\n" + "9e18,1\n" * bad + "1500000000,1\n1500000001,2\n"
    items = list(opened(tmp_path, text, None).samples())
    assert [i.data[0] for i in items if isinstance(i, Sample)] == [1, 2]
    found = [item for item in items if isinstance(item, Rejection)]
    assert sum(item.samples for item in found) == bad and len(found) == HEAD_ITEMS + 1
    assert {(i.reason, i.arrival_ns) for i in found} == {("implausible_stamp", 15 * 10**17)}


def test_closing_ends_the_search_for_a_first_row(tmp_path: Path) -> None:
    source = opened(tmp_path, "t,imu.a\n" + "soon,1\n" * 5, None)
    source.close()
    assert list(source.samples()) == []


@pytest.mark.parametrize("rows", [2, 40_000])
def test_lines_that_end_with_cr_alone_are_refused(tmp_path: Path, rows: int) -> None:
    for bom in ("", "\ufeff"):
        with pytest.raises(FusedgeError, match=r"its lines end with CR alone .*save it with LF"):
            opened(tmp_path, bom + "t,ax,ay\r" + "0,1,2\r" * rows)


def test_without_a_map_or_a_bundle_the_unit_is_not_known(tmp_path: Path) -> None:
    assert opened(tmp_path, "t,imu.a\n0,1\n", None).units == {"imu": ("",)}


def test_parts_of_a_time_add_up(tmp_path: Path) -> None:
    map_ = (
        "{time: [{column: day, unit: iso8601}, {column: clock, unit: iso8601}, "
        "{column: n, rate_hz: 50}, {offset_s: -60}], imu: {a: x m/s2}}"
    )
    text = "day,clock,n,x\n1970-01-02,00:01:00,25,1\n"
    (sample,) = samples(opened(tmp_path, text, map_))
    assert sample.timestamp_ns == 86_400_500_000_000


def test_rows_of_a_known_rate_need_no_time_and_a_bad_one_takes_its_place(tmp_path: Path) -> None:
    map_ = "{time: {rate_hz: 4}, imu: {a: x m/s2}}"
    found = samples(opened(tmp_path, "x\n1\nbad\n3\n", map_))
    assert [s.timestamp_ns for s in found] == [0, 500_000_000]


def test_a_modality_with_its_own_time_has_a_row_where_that_changes(tmp_path: Path) -> None:
    map_ = (
        "{time: {column: t, unit: s}, imu: {a: x m/s2}, "
        "gps: {time: {column: fix, unit: s}, speed: v m/s}}"
    )
    text = "t,x,fix,v\n10,1,8.8,5\n11,1,8.8,5\n12,1,9.8,6\n"
    found = samples(opened(tmp_path, text, map_), "gps")
    assert [(s.timestamp_ns / 1e9, s.arrival_ns / 1e9, s.data[0]) for s in found] == [
        (8.8, 10, 5),
        (9.8, 12, 6),
    ]


def test_rows_of_several_sensors_are_told_apart(tmp_path: Path) -> None:
    map_ = (
        "{time: {column: t, unit: s}, "
        "imu: {where: {sensor: acc}, a: v m/s2}, gyro: {where: {sensor: '4'}, w: v rad/s}}"
    )
    found = samples(opened(tmp_path, "t,sensor,v\n0,acc,1\n1,4.0,2\n2,mag,3\n", map_))
    assert [(s.modality, s.data[0]) for s in found] == [("imu", 1), ("gyro", 2)]


def test_only_what_is_wanted_comes_and_the_rest_is_left_to_others(tmp_path: Path) -> None:
    wanted = by_name(
        series("imu", {**IMU, "yaw_rate": "rad/s"}), series("gps", {"speed": "m/s"}),
        image("camera", 8, 8),
    )  # fmt: skip
    source = opened(tmp_path, "t,ax,ay\n0,1,2\n", wanted=wanted)
    assert source.modalities == ("imu",)
    assert "imu comes without yaw_rate" in source.warnings[0]
    (sample,) = samples(source)
    assert math.isnan(sample.data[2])
    with pytest.raises(FusedgeError, match="none of the wanted modalities"):
        opened(tmp_path, "t,ax,ay\n0,1,2\n", wanted=by_name(series("gps", {"speed": "m/s"})))


@pytest.mark.parametrize(
    ("header", "time_ns"),
    [("t", 2 * 10**9), ("Time_ms", 2 * 10**6), ("timestamp_us", 2000), ("TIMESTAMP_NS", 2)],
)
def test_without_a_map_columns_go_by_the_names_of_channels(
    tmp_path: Path, header: str, time_ns: int
) -> None:
    text = f"{header},lateral_acceleration,imu.longitudinal_acceleration\n2,1,3\n"
    (sample,) = samples(opened(tmp_path, text, None, WANTED))
    assert sample.timestamp_ns == time_ns and sample.data.tolist() == [3, 1]


def test_without_a_map_a_time_may_be_a_date(tmp_path: Path) -> None:
    text = "time,imu.x\n1970-01-01 00:00:02,3\n"
    (sample,) = samples(opened(tmp_path, text, None))
    assert sample.timestamp_ns == 2 * 10**9 and sample.modality == "imu"


def test_of_several_wanted_modalities_bare_names_belong_to_the_one_that_is_named(
    tmp_path: Path,
) -> None:
    wanted = by_name(series("imu", {"x": "m/s2"}), series("other", {"x": "m"}))
    with pytest.raises(FusedgeError, match=r"no columns called MODALITY.CHANNEL, as imu\.x"):
        opened(tmp_path, "t,x\n0,1\n", None, wanted)
    assert opened(tmp_path, "t,x\n0,1\n", None, wanted, modality="other").modalities == ("other",)


@pytest.mark.parametrize(
    ("map_", "what"),
    [
        (MAP.replace("ax", "axx"), r"unknown column of .*drive.csv: 'axx' \(did you mean 'ax'\?\)"),
        (MAP.replace(" g", " gg"), "'gg' is no unit"),
        (MAP.replace(" g", ""), "is no column with a unit"),
        (MAP.replace("unit: s", "unit: sec"), "unknown unit of time"),
        (MAP.replace("unit: s", "units: s"), r"unknown field of time .*did you mean 'unit'"),
        ("{imu: {a: ax g}}", "says nothing of time"),
        ("{time: {column: t, unit: s}}", "says nothing of modalities"),
        ("{time: {column: t, unit: s}, imu: {}}", "has no channels"),
        ("{time: {}, imu: {a: ax g}}", "time names no column"),
        ("{time: {rate_hz: 0}, imu: {a: ax g}}", "not a number from"),
        ("{time: {rate_hz: nan}, imu: {a: ax g}}", "not a number from"),
        (MAP[:-1] + ", file: {separator: x}}", "unknown separator"),
        (MAP[:-1] + ", file: {header: maybe}}", "unknown header"),
        (MAP[:-1] + ", imu: {a: ax g}}", "'imu' is given twice"),
        ("{time: &t {column: t, unit: s}, imu: {time: *t, a: ax g}}", "aliases"),
        ("{" * 1000, "levels deep"),
        ("{x: " * 1000 + "}" * 1000, "levels deep"),
        ("{time: !!python/object:os.system {}, imu: {a: ax g}}", "tags .* are not taken"),
        ("{a: b", "is no YAML"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_a_wrong_map_says_what_is_wrong_in_a_line(tmp_path: Path, map_: str, what: str) -> None:
    with pytest.raises(FusedgeError, match=what) as caught:
        opened(tmp_path, "t,ax,ay\n0,1,2\n", map_)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\x89PNG\0\0\0\n", "no text table"),
        ("t,ax".encode("utf-16"), "no text table"),
        (b"t" * (2 * MAX_LINE), "no text table"),
        (b"t,ax,ax,ay\n", "has 2 columns 'ax'"),
        (b"," * 5000 + b"t\n", "more than 4096 columns"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: bytes, what: str) -> None:
    with pytest.raises(FusedgeError, match=what):
        opened(tmp_path, text)


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("pipe.csv", "", "missing.csv", "x" * 300, "a\0b"):
        with pytest.raises(FusedgeError, match="no such file"):
            open_csv(request("file", tmp_path / name, None, map=MAP))
    (tmp_path / "false.csv.gz").write_bytes(b"t,ax,ay\n0,1,2\n")
    with pytest.raises(FusedgeError, match="cannot be read"):
        open_csv(request("file", tmp_path / "false.csv.gz", None, map=MAP))


def test_units_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FusedgeError,
        match=r"imu\.longitudinal_acc.*m is a length, m/s2 an acc",
    ):
        opened(tmp_path, "t,ax,ay\n0,1,2\n", MAP.replace(" g", " m"), WANTED)


def test_a_long_file_is_streamed_in_little_memory(tmp_path: Path) -> None:
    rows = "".join(f"{n / 100},{n % 13},{n % 7}\n" for n in range(15_000))
    source = opened(tmp_path, "t,ax,ay\n" + rows, wanted=WANTED)
    del rows
    tracemalloc.start()
    count = sum(1 for _ in source.samples())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 15_000 and peak < 300_000


def test_closing_ends_it_and_leaves_no_handle(tmp_path: Path) -> None:
    rows = "".join(f"{n},1,2\n" for n in range(100))
    source = opened(tmp_path, "t,ax,ay\n" + rows)
    items = source.samples()
    next(items)
    source.close()
    assert list(items) == []
    assert leaked_handles(lambda: opened(tmp_path, "t,ax,ay\n" + rows)) == 0


_CELL = st.sampled_from(
    ["", "0", "1.5", "-3", "nan", "1e400", "x", '"', '"7"', "1_0", "9" * 30, "\0"]
)
_TEXT = st.one_of(
    st.lists(st.lists(_CELL, max_size=5).map(",".join), max_size=40).map("\n".join).map(str.encode),
    st.binary(max_size=300),
)


@given(_TEXT, st.sampled_from([b"t,ax,ay\n", b"t;ax;ay\n", b'"t",ax,ay\r\n', b""]))
def test_any_text_gives_valid_items_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, header: bytes
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    try:
        source = opened(folder, header + text, wanted=WANTED)
    except FusedgeError as error:
        assert "\n" not in error.line()
        return
    arrival_ns = None
    try:
        items = list(source.samples())
    except FusedgeError as error:  # nothing tells when it was
        assert "\n" not in error.line()
        return
    for item in items:
        assert item.modality == "imu"
        assert arrival_ns is None or item.arrival_ns >= arrival_ns
        arrival_ns = item.arrival_ns
        if isinstance(item, Sample):
            assert item.data.shape == (2,) and item.data.dtype == np.float32
            assert not np.isinf(item.data).any()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**9),
            st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)),
            st.floats(-1e6, 1e6, width=32),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([",", ";", "\t"]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, float | None, float]],
    separator: str,
) -> None:
    lines = [
        ("t", "ax", "ay"),
        *((str(t), "" if x is None else repr(x), repr(y)) for t, x, y in rows),
    ]
    text = "".join(separator.join(line) + "\n" for line in lines)
    map_ = "{time: {column: t, unit: ns}, imu: {x: ax m/s2, y: ay m/s2}}"
    found = samples(opened(tmp_path_factory.mktemp("csv"), text, map_))
    assert [s.timestamp_ns for s in found] == [t for t, _, _ in rows]
    expected = np.array([[math.nan if x is None else x, y] for _, x, y in rows], np.float32)
    np.testing.assert_array_equal(np.array([s.data for s in found]), expected)


_TREE = st.recursive(
    st.text(max_size=8) | st.sampled_from(["t", "ax g", "-ax g", "s", "50", "yes"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["time", "imu", "file", "column", "unit", "rate_hz", "where", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(["time", "imu", "file"]), _TREE))
def test_any_map_is_taken_or_refused_in_a_line(raw: dict[str, object]) -> None:
    try:
        column_map(raw, "map")
    except FusedgeError as error:
        assert "\n" not in error.line()
