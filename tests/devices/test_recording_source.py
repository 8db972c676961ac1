"""Recordings as a source: what was received, as it was received, whatever has become of the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.recording import (
    GAPS,
    Message,
    Track,
    document_message,
    rejection_message,
    sample_channel,
    sample_message,
)
from fusedge.bundle.recording_file import Info, RecordingWriter
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.source import open_source
from tests.devices.modalities import audio, by_name, image, named, series

TRACKS = {
    "imu": Track(("x", "y", "z"), 100.0),
    "cabin": Track(("left", "right"), 16_000.0),
    "road": Track(("r", "g", "b"), 15.0),
}


def imu(number: int, arrival_ns: int | None = None) -> Sample:
    data = np.array([number, -number, 0.5], np.float32)
    return Sample("imu", number, number if arrival_ns is None else arrival_ns, data)


def write(path: Path, messages: list[Any], tracks: dict[str, Track] = TRACKS) -> Path:
    info = Info(format_version=1, fusedge="x", exact=True, clip="", tracks=tracks, session={})
    writer = RecordingWriter(path, info)
    for item in messages:
        if isinstance(item, Sample):
            item = sample_message(item, tracks.get(item.modality))
        elif isinstance(item, Rejection):
            item = rejection_message(item)
        writer.add(item)
    writer.close({})
    return path


def read(path: Path, wanted: Any = None) -> list[Sample | Rejection]:
    return list(open_source(f"replay:{path}", wanted, lambda: 0).samples())


def test_everything_comes_back_in_order(tmp_path: Path) -> None:
    sound = np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2)
    frame = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    items = [
        imu(1),
        Rejection("road", 2, "torn", "frame 7", 1),
        Sample("cabin", 1, 3, sound, "arrival"),
        Sample("road", 0, 4, frame),
        imu(0, 5),
    ]
    again = read(write(tmp_path / "a.mcap", items))
    assert len(again) == len(items)
    for one, other in zip(items, again, strict=True):
        if isinstance(one, Sample):
            assert isinstance(other, Sample)
            assert one._replace(data=0) == other._replace(data=0)
            assert (one.data == other.data).all()
        else:
            assert one == other


def test_modalities_and_channels_are_chosen_by_name(tmp_path: Path) -> None:
    frame = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    path = write(
        tmp_path / "a.mcap", [imu(1), Sample("road", 1, 1, frame), Rejection("cabin", 1, "x", "")]
    )
    wanted = named(imu=["z", "x"], road=["b"], speed=["v"])
    source = open_source(f"replay:{path}", wanted, lambda: 0)
    assert source.modalities == ("imu", "road")
    assert dict(source.channels) == {"imu": ("z", "x"), "road": ("b",)}
    assert not source.live
    first, second = source.samples()
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert first.data.tolist() == [0.5, 1.0]
    assert (second.data == frame[:, :, 2:]).all()


def test_a_channel_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [imu(1)])
    with pytest.raises(UnknownNameError, match="did you mean 'x'"):
        open_source(f"replay:{path}", named(imu=["xx"]), lambda: 0)
    with pytest.raises(FusedgeError, match=r"it offers imu, cabin, road"):
        open_source(f"replay:{path}", named(speed=["v"]), lambda: 0)


def test_a_channel_of_a_series_that_was_not_recorded_is_not_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [imu(1), imu(2)])
    source = open_source(f"replay:{path}", named(imu=["roll", "z", "yaw", "x"]), lambda: 0)
    assert source.channels == {"imu": ("roll", "z", "yaw", "x")}
    assert source.warnings == (f"replay:{path}: imu comes without roll, yaw; not measured",)
    rows = [item.data for item in source.samples() if isinstance(item, Sample)]
    np.testing.assert_array_equal(rows, [[np.nan, 0.5, np.nan, 1], [np.nan, 0.5, np.nan, 2]])
    assert rows[0].dtype == np.float32
    for kind in (image("road", 4, 5, channels="rx"), audio("cabin")):
        with pytest.raises(UnknownNameError, match=f"channel of {kind.name}"):
            open_source(f"replay:{path}", by_name(kind), lambda: 0)


def test_a_lacking_channel_shifts_no_unit_to_another(tmp_path: Path) -> None:
    tracks = {"gps": Track(("heading", "speed", "odd"), units=("deg", "km/h", ""))}
    fix = Sample("gps", 1, 1, np.array([180, 36, 5], np.float32))
    path = write(tmp_path / "a.mcap", [fix], tracks)
    wanted = series("gps", {"speed": "m/s", "roll": "rad", "heading": "rad", "odd": "K"})
    (row,) = read(path, by_name(wanted))
    assert isinstance(row, Sample)
    np.testing.assert_allclose(row.data, [10, np.nan, np.pi, 5], rtol=1e-6)
    with pytest.raises(FusedgeError, match=r"gps\.heading in .*deg is an angle"):
        open_source(f"replay:{path}", by_name(series("gps", {"heading": "m"})), lambda: 0)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mcap")
    with pytest.raises(FusedgeError, match="cannot be read: it is no regular file"):
        open_source(f"replay:{tmp_path / 'a.mcap'}", None, lambda: 0)


def test_units_of_the_recording_become_those_of_the_bundle(tmp_path: Path) -> None:
    tracks = {"gps": Track(("heading", "speed"), units=("deg", "km/h"))}
    fix = Sample("gps", 1, 1, np.array([180, 36], np.float32))
    path = write(tmp_path / "a.mcap", [fix, fix._replace(data=np.zeros(3, np.float32))], tracks)
    wanted = by_name(series("gps", {"speed": "m/s", "heading": "rad"}))
    source = open_source(f"replay:{path}", wanted, lambda: 0)
    assert source.units == {"gps": ("m/s", "rad")}
    row, odd = (item.data.tolist() for item in source.samples() if isinstance(item, Sample))
    assert row == pytest.approx([10, np.pi]) and odd == [0, 0, 0]
    assert open_source(f"replay:{path}", None, lambda: 0).units == {"gps": ("deg", "km/h")}
    with pytest.raises(FusedgeError, match="km/h is a speed, m a length"):
        open_source(f"replay:{path}", by_name(series("gps", {"speed": "m"})), lambda: 0)


def test_a_malformed_sample_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = Sample("imu", 1, 1, np.zeros(2, np.float32))
    (again,) = read(write(tmp_path / "a.mcap", [odd]), named(imu=["z", "x"]))
    assert isinstance(again, Sample)
    assert again.data.shape == (2,)


def test_arrival_never_falls(tmp_path: Path) -> None:
    items = read(write(tmp_path / "a.mcap", [imu(1, 10), imu(2, 5), imu(3, 11)]))
    assert [item.arrival_ns for item in items] == [10, 10, 11]


def test_a_leap_of_more_than_a_day_ends_it(tmp_path: Path) -> None:
    items = read(write(tmp_path / "a.mcap", [imu(1), imu(2, to_ns(90_000)), imu(3, to_ns(90_001))]))
    assert [type(item) for item in items] == [Sample, Rejection]
    assert (items[1].arrival_ns, items[1].reason) == (1, "implausible_stamp")  # type: ignore[union-attr]


@pytest.mark.parametrize("time_ns", [2**61, 2**62, 2**63 - 1, -(2**61), -(2**63)])
def test_a_stamp_beyond_all_bounds_is_rejected_and_such_an_arrival_ends_it(
    tmp_path: Path, time_ns: int
) -> None:
    sound = Sample("cabin", time_ns, 7, np.zeros((16, 2), np.float32))
    near = time_ns - 1 if time_ns > 0 else time_ns + 1
    items = read(write(tmp_path / "a.mcap", [imu(5), imu(time_ns, 6), sound, imu(8)]))
    assert [getattr(item, "reason", "") for item in items] == [
        "",
        *["implausible_stamp"] * 2,
        "",
    ]
    assert [item.arrival_ns for item in items] == [5, 6, 7, 8]
    assert isinstance(items[2], Rejection) and items[2].samples == 16
    for number, first in enumerate(([imu(1, time_ns)], [imu(1, 3), imu(1, time_ns)])):
        *before, last = read(write(tmp_path / f"{number}.mcap", [*first, imu(2, near)]))
        assert [item.arrival_ns for item in before] == [3][: len(first) - 1]
        assert isinstance(last, Rejection) and last.reason == "implausible_stamp"
        assert last.arrival_ns == (3 if before else 0)


def test_what_is_missing_or_unreadable_is_counted(tmp_path: Path) -> None:
    nonsense = Message(sample_channel("road", "image"), 2, 2, b'{"format":"png","data":"AAAA"}')
    path = write(
        tmp_path / "a.mcap", [imu(1), nonsense, document_message(GAPS, 3, 3, {"lost": 9}), imu(4)]
    )
    items = read(path)
    assert [(i.modality, i.reason) for i in items if isinstance(i, Rejection)] == [
        ("road", "malformed"),
        ("imu", "recording_gap"),
    ]
    assert "9 entries" in str(items[2])
    assert len(items) == 4


def test_a_recording_without_an_end_says_so_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [imu(number) for number in range(50)])
    assert not open_source(f"replay:{path}", None, lambda: 0).warnings
    path.write_bytes(path.read_bytes()[:-30])
    source = open_source(f"replay:{path}", None, lambda: 0)
    assert "has no end" in source.warnings[0]
    assert len(list(source.samples())) == 50


def test_a_damaged_last_chunk_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [imu(number) for number in range(50)])
    content = bytearray(path.read_bytes())
    content[content.index(b"\x28\xb5\x2f\xfd") + 30] ^= 255
    path.write_bytes(content)
    (item,) = read(path)
    assert isinstance(item, Rejection)
    assert (item.reason, "damaged chunk" in item.detail) == ("malformed", True)


def test_it_can_be_closed_halfway(tmp_path: Path) -> None:
    source = open_source(
        f"replay:{write(tmp_path / 'a.mcap', [imu(n) for n in range(50)])}", None, lambda: 0
    )
    items = source.samples()
    next(items)
    source.close()
    source.close()
    assert not list(items)


@pytest.mark.parametrize("name", ["none.mcap", "folder.mcap", "text.mcap"])
def test_what_is_no_recording_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mcap").mkdir()
    (tmp_path / "text.mcap").write_text("hello")
    with pytest.raises(FusedgeError, match=r"cannot be read|is not an MCAP file"):
        open_source(f"replay:{tmp_path / name}", None, lambda: 0)


def test_sources_of_driving_offer_all_they_have() -> None:
    source = open_source("sim:?duration_s=1", None, lambda: 0)
    assert list(source.channels) == ["imu", "gps", "road"]
    widths = {
        item.modality: len(item.data) for item in source.samples() if isinstance(item, Sample)
    }
    assert widths == {name: len(channels) for name, channels in source.channels.items()}
