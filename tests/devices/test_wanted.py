"""Which modality a source gives, and how what it offers becomes rows."""

from __future__ import annotations

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Address, Wanted, parse
from fusedge.devices.capture.rows import RowCollector
from fusedge.devices.capture.source import SCHEMES
from fusedge.devices.capture.wanted import RowLayout, modality_of
from tests.devices.modalities import audio, by_name, image, series

FACE, ROAD, VOICE = image("face", 4, 4), image("road", 4, 4), audio("voice")
SPEED = series("gps", {"speed": "m/s", "course": "rad"})


def address(uri: str = "camera:0") -> Address:
    return parse(uri, SCHEMES)


@pytest.mark.parametrize(
    ("uri", "wanted", "given"),
    [
        ("camera:0", None, "camera"),
        ("camera:0?modality=cab", None, "cab"),
        ("camera:0", by_name(FACE, VOICE), "face"),
        ("camera:0?modality=road", by_name(FACE, ROAD), "road"),
        ("camera:0", by_name(ROAD, image("camera", 2, 2)), "camera"),
    ],
)
def test_the_modality_is_the_one_meant(uri: str, wanted: Wanted, given: str) -> None:
    name, spec = modality_of(address(uri), wanted, "image", "camera")
    assert name == given and spec is (wanted[given] if wanted else None)


@pytest.mark.parametrize(
    ("uri", "wanted", "message"),
    [
        ("camera:0", by_name(FACE, ROAD), "say which: modality=face"),
        ("camera:0", by_name(VOICE), "offers none of the wanted modalities"),
        ("camera:0?modality=fase", by_name(FACE), "did you mean 'face'"),
        ("camera:0?modality=voice", by_name(FACE, VOICE), "unknown image modality"),
    ],
)
def test_a_modality_that_cannot_be_meant_is_refused(uri: str, wanted: Wanted, message: str) -> None:
    with pytest.raises(FusedgeError) as error:
        modality_of(address(uri), wanted, "image", "camera")
    assert message in error.value.line()


def test_a_series_is_never_guessed_by_its_kind() -> None:
    with pytest.raises(FusedgeError, match="say which"):
        modality_of(address("can:can0"), by_name(SPEED), "series", "can")


def test_rows_have_the_wanted_order_and_units_and_say_what_is_lacking() -> None:
    layout = RowLayout(address(), "gps", SPEED, {"altitude": "m", "speed": "km/h"})
    assert layout.channels == ("speed", "course") and layout.used == ("speed",)
    assert layout.warnings == ("camera:0: gps comes without course; not measured",)
    row = layout.row({"speed": 36, "altitude": 9})
    assert row.dtype == np.float32 and row[0] == 10 and np.isnan(row[1])
    assert np.isnan(layout.row({})).all()


def test_rows_in_the_devices_own_units() -> None:
    layout = RowLayout(address(), "can", None, {"rpm": "rpm", "odd": "furlong"})
    assert layout.channels == ("rpm", "odd") and not layout.warnings
    assert layout.row({"odd": 2, "rpm": 1}).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        ({"sped": "m/s"}, "did you mean 'sped'"),
        ({"speed": "m"}, "m is a length, m/s a speed"),
        ({"speed": "?"}, "unknown unit"),
    ],
)
def test_channels_that_do_not_fit_are_refused(offered: dict[str, str], message: str) -> None:
    with pytest.raises(FusedgeError) as error:
        RowLayout(address(), "gps", SPEED, offered)
    assert message in error.value.line()


def test_values_that_come_one_by_one_are_joined_and_not_kept_too_long() -> None:
    layout = RowLayout(address(), "can", None, {"a": "1", "b": "1"})
    rows = RowCollector(layout, rate_hz=10, hold_s=0.25)
    got = []
    for ms, values in [
        (0, {"a": 1.0}),  # the first row has what there is
        (50, {"b": 5.0}),  # too soon for another
        (100, {"a": 2.0}),
        (200, {"a": 3.0}),
        (300, {"a": 4.0}),  # b is as old as may be
        (301, {}),
        (400, {"a": 0.0}),  # and too old here; 0 is a value
    ]:
        sample = rows.add(values, to_ns(ms / 1e3), to_ns(ms / 1e3) + 7, "capture")
        if sample is not None:
            assert sample.timestamp_ns == to_ns(ms / 1e3) == sample.arrival_ns - 7
            got.append(sample.data.tolist())
    nan = np.nan
    np.testing.assert_array_equal(got, [[1, nan], [2, 5], [3, 5], [4, 5], [0, nan]])


@pytest.mark.parametrize(
    ("every_ms", "rate_hz"), [(11, 50), (90, 10), (90, 20), (7, 100), (100, 10)]
)
def test_rows_keep_their_mean_rate_whatever_the_rate_of_the_values(
    every_ms: int, rate_hz: float
) -> None:
    rows = RowCollector(RowLayout(address(), "can", None, {"a": "1"}), rate_hz, 1)
    times = [
        ms for ms in range(0, 10_000, every_ms) if rows.add({"a": 1}, ms * 10**6, 0, "capture")
    ]
    wanted = min(rate_hz, 1000 / every_ms) * 10
    assert len(times) == pytest.approx(wanted, abs=2)


def test_a_device_whose_clock_leaps_back_goes_on_giving_rows() -> None:
    rows = RowCollector(RowLayout(address(), "can", None, {"a": "1"}), 10, 1)
    assert rows.add({"a": 1}, to_ns(100), to_ns(100), "capture")
    assert rows.add({"a": 2}, to_ns(5), to_ns(101), "capture")
