"""Signals of CAN frames: DBC files, maps, and what decoding gives."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Channel, Modality
from fusedge.bundle.strict_yaml import MAX_BYTES
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.can_signals import (
    MAX_DBC_BYTES,
    CanSignals,
    FrameError,
    load_signals,
)

DBC = """VERSION ""

NS_ :

BS_:

BU_: CAR

BO_ 180 VEHICLE_SPEED: 8 CAR
 SG_ SPEED : 47|16@0+ (0.01,0) [0|250] "km/h" CAR
 SG_ GEAR : 7|4@0+ (1,0) [0|0] "" CAR

BO_ 452 ENGINE: 4 CAR
 SG_ RPM : 7|16@0+ (0.25,0) [0|16000] "rpm" CAR
 SG_ PEDAL : 23|8@0+ (0.5,0) [0|0] "%" CAR
 SG_ VALID : 31|1@0+ (1,0) [0|1] "" CAR

BO_ 2566844672 BODY: 3 CAR
 SG_ PAGE M : 0|8@1+ (1,0) [0|0] "" CAR
 SG_ OUTSIDE m0 : 8|8@1- (0.5,0) [-50|80] "degC" CAR
 SG_ BATTERY m1 : 8|16@1+ (0.001,0) [0|0] "V" CAR

BO_ 500 SECOND: 4 CAR
 SG_ RPM : 7|16@0+ (1,0) [0|0] "rpm" CAR

BO_ 600 EXACT: 4 CAR
 SG_ FLOAT : 0|32@1- (1,0) [0|0] "m" CAR

VAL_ 452 PEDAL 255 "SNA" 254 "Not Available" 253 "Full" ;
VAL_ 452 VALID 0 "Invalid" 1 "Valid" ;
SIG_VALTYPE_ 600 FLOAT : 1;
"""
BODY = 0x18FEF100
MAP = "{speed: VEHICLE_SPEED.SPEED, rpm: ENGINE.RPM, pedal: ENGINE.PEDAL}"


@pytest.fixture
def dbc(tmp_path: Path) -> Path:
    path = tmp_path / "car.dbc"
    path.write_text(DBC)
    return path


def load(dbc: Path, spec: Modality | None = None, **options: str) -> CanSignals:
    return load_signals(Address("can:can0", "can", "can0", {"dbc": str(dbc), **options}), spec)


def modality(*channels: str) -> Modality:
    made = tuple(Channel(name=name, unit="1", minimum=-1, maximum=1) for name in channels)
    return Modality.model_construct(name="can", kind="series", channels=made)


def test_values_are_numbers_in_the_units_of_the_dbc(dbc: Path) -> None:
    signals = load(dbc, map=MAP)
    assert signals.offered == {"speed": "km/h", "rpm": "rpm", "pedal": "%"}
    assert signals.frames == {(180, False), (452, False)}
    assert signals.decode((180, False), bytes([0, 0, 0, 0, 0, 0x27, 0x10, 0])) == {"speed": 100.0}
    assert signals.decode((452, False), bytes([0x1A, 0xF8, 100, 0])) == {"rpm": 1726, "pedal": 50}


def test_the_map_may_say_the_unit_and_leave_channels_out(dbc: Path, tmp_path: Path) -> None:
    table = tmp_path / "signals.yaml"
    table.write_text("# of our car\nspeed: VEHICLE_SPEED.SPEED mph\ngear: VEHICLE_SPEED.GEAR 1\n")
    signals = load(dbc, map=str(table))
    assert signals.offered == {"speed": "mph", "gear": "1"}
    assert signals.only(["gear"]).decode((180, False), bytes([0x50, *bytes(7)])) == {"gear": 5}
    assert signals.only(["gear"]).frames == {(180, False)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([0, 0, 255, 0], math.nan),  # "SNA"
        ([0, 0, 254, 0], math.nan),  # "Not Available"
        ([0, 0, 253, 0], 126.5),  # a name, but of a measurement
        ([0, 0, 252, 0], 126.0),
    ],
)
def test_a_value_that_the_dbc_calls_not_available_is_nan(
    dbc: Path, data: list[int], expected: float
) -> None:
    value = load(dbc, map=MAP).decode((452, False), bytes(data))["pedal"]
    assert value == pytest.approx(expected, nan_ok=True)


def test_a_value_outside_of_the_range_of_the_dbc_is_nan(dbc: Path) -> None:
    signals = load(dbc, map=MAP)
    for raw, expected in ((25000, 250.0), (25001, math.nan), (65535, math.nan), (0, 0.0)):
        data = bytes(5) + struct.pack(">H", raw) + bytes(1)
        value = signals.decode((180, False), data)["speed"]
        assert value == pytest.approx(expected, nan_ok=True)


def test_a_flag_keeps_both_of_its_values(dbc: Path) -> None:
    signals = load(dbc, map="{valid: ENGINE.VALID 1}")
    assert [signals.decode((452, False), bytes([0, 0, 0, v]))["valid"] for v in (0, 0x80)] == [0, 1]


def test_floats_of_a_frame_that_are_no_numbers_are_nan(dbc: Path) -> None:
    signals = load(dbc, map="{x: EXACT.FLOAT}")
    for value, expected in ((1.5, 1.5), (math.nan, math.nan)):
        decoded = signals.decode((600, False), struct.pack("<f", value))["x"]
        assert decoded == pytest.approx(expected, nan_ok=True)


def test_a_multiplexed_frame_gives_what_it_holds(dbc: Path) -> None:
    signals = load(dbc, map="{outside: BODY.OUTSIDE, battery: BODY.BATTERY}")
    assert signals.frames == {(BODY, True)}
    assert signals.decode((BODY, True), bytes([0, 0xF6, 0])) == {"outside": -5.0}
    assert signals.decode((BODY, True), bytes([1, 0xE0, 0x2E])) == {"battery": 12.0}
    assert signals.decode((BODY, False), bytes(3)) == {}, "the other kind of id is another frame"
    with pytest.raises(
        FrameError, match="BODY: expected multiplexer id 0 or 1, but got 7"
    ) as error:
        signals.decode((BODY, True), bytes([7, 0, 0]))
    assert error.value.reason == "undecodable_frame"


def test_a_short_frame_is_no_measurement_and_a_long_one_is(dbc: Path) -> None:
    signals = load(dbc, map=MAP)
    for length in range(8):
        with pytest.raises(FrameError, match=f"{length} instead of 8") as error:
            signals.decode((180, False), bytes(length))
        assert error.value.reason == "truncated_frame"
    assert signals.decode((180, False), bytes(64)) == {"speed": 0}


def test_without_a_map_channels_are_signals_of_their_name(dbc: Path) -> None:
    signals = load(dbc, modality("SPEED", "ENGINE.RPM", "OTHER"))
    assert signals.offered == {"SPEED": "km/h", "ENGINE.RPM": "rpm"}


def test_without_a_map_and_a_bundle_all_signals_come(dbc: Path) -> None:
    signals = load(dbc)
    assert len(signals.offered) == 10
    assert signals.offered["BODY.BATTERY"] == "V" and signals.offered["BODY.PAGE"] == "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{speed: VEHICLE_SPED.SPEED}", "did you mean 'VEHICLE_SPEED'?"),
        ("{speed: VEHICLE_SPEED.SPED}", "did you mean 'SPEED'?"),
        ("{speed: VEHICLE_SPEED}", "names no signal"),
        ("{speed: A.B.C}", "names no signal"),
        ("{speed: [1]}", "not a channel and a signal"),
        ("{a: {b: VEHICLE_SPEED.SPEED}}", "not a channel and a signal"),
        ("{gear: VEHICLE_SPEED.GEAR}", "has no unit"),
        ("{}", "not a table of 1 to"),
        ("{a: &x VEHICLE_SPEED.SPEED, b: *x}", "aliases"),
        ("{a: VEHICLE_SPEED.SPEED, a: ENGINE.RPM}", "'a' is given twice"),
        ("{a: !!python/object/apply:os.system [ls]}", "are not taken"),
        ("{" * 5000, "no YAML that can be taken"),
        ("{a: b", "no YAML that can be taken"),
        ("missing.yaml", "missing.yaml: cannot be read: No such file"),
        ("", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_a_map_that_cannot_be_used_is_refused_in_one_line(
    dbc: Path, text: str, message: str
) -> None:
    with pytest.raises(FusedgeError) as error:
        load(dbc, map=text)
    assert message in error.value.line() and "\n" not in error.value.line()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no DBC file that can be read"),
        ("BO_ 1 A:", "is no DBC file"),
        (DBC.replace("BO_ 180", "BO_ 18000"), "more than 11 bits"),
        (DBC.replace("47|16", "47|"), "Invalid syntax at line"),
        (DBC + 'VAL_ 452 NOTHING 1 "x" ;\n', "unused VAL_"),
        ("\0\xff" * 100, "is no DBC file"),
        ("BU_: A\n", "has 0 signals"),
    ],
)
def test_a_dbc_that_cannot_be_used_is_refused_in_one_line(
    dbc: Path, text: str, message: str
) -> None:
    dbc.write_text(text)
    with pytest.raises(FusedgeError) as error:
        load(dbc)
    assert message in error.value.line() and "\n" not in error.value.line()


def test_pipes_and_devices_are_not_waited_for(dbc: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FusedgeError, match="cannot be read: it is no regular file"):
            load(dbc, map=str(path))
        with pytest.raises(FusedgeError, match="cannot be read: it is no regular file"):
            load(path, map=MAP)


def test_a_dbc_may_be_in_utf_8_or_in_cp1252(dbc: Path) -> None:
    text = DBC.replace('"degC"', '"°C"')
    for encoding in ("utf-8", "cp1252"):
        dbc.write_bytes(text.encode(encoding))
        assert load(dbc, map="{t: BODY.OUTSIDE}").offered == {"t": "°C"}


def test_files_are_read_up_to_a_size(dbc: Path, tmp_path: Path) -> None:
    table = tmp_path / "map.yaml"
    table.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(FusedgeError, match=f"more than {MAX_BYTES} bytes"):
        load(dbc, map=str(table))
    with dbc.open("r+b") as file:
        file.truncate(MAX_DBC_BYTES + 1)  # without taking room on the disk
    with pytest.raises(FusedgeError, match=f"more than {MAX_DBC_BYTES} bytes"):
        load(dbc)
    with pytest.raises(FusedgeError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(FusedgeError, match="no numbers without a DBC file"):
        load_signals(Address("can:can0", "can", "can0", {}), None)


def test_a_signal_in_two_messages_must_be_named_in_full(dbc: Path) -> None:
    with pytest.raises(FusedgeError, match=r"in 2 messages \(say which: map={RPM: ENGINE.RPM}"):
        load(dbc, modality("RPM"))
    with pytest.raises(FusedgeError, match="did you mean 'SPEED'"):
        load(dbc, modality("SPED"))


def test_two_messages_of_one_id_are_both_read(dbc: Path) -> None:
    dbc.write_text(DBC.replace("BO_ 500", "BO_ 452"))
    signals = load(dbc, map="{a: ENGINE.RPM, b: SECOND.RPM}")
    assert signals.decode((452, False), bytes([0, 8, 0, 0])) == {"a": 2, "b": 8}


def test_bits_that_a_frame_does_not_have_do_not_raise(dbc: Path) -> None:
    dbc.write_text(DBC.replace("SPEED : 47|16", "SPEED : 700|16"))
    with pytest.raises(FrameError):
        load(dbc, map="{speed: VEHICLE_SPEED.SPEED}").decode((180, False), bytes(8))


ALL_FRAMES = [(180, False), (452, False), (BODY, True), (500, False), (600, False), (1, False)]


@given(st.sampled_from(ALL_FRAMES), st.binary(max_size=64))
def test_any_frame_gives_numbers_within_the_range_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, frame_id: tuple[int, bool], data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dbc"
    if not path.exists():
        path.write_text(DBC)
    try:
        values = load(path).decode(frame_id, data)
    except FrameError:
        return
    speed = values.get("VEHICLE_SPEED.SPEED", 0.0)
    assert math.isnan(speed) or 0 <= speed <= 250
    assert all(isinstance(value, float) for value in values.values())


@given(st.text(max_size=300))
def test_any_text_is_a_dbc_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.dbc"
    path.write_text(DBC[:200] + text, "utf-8", "surrogatepass")
    try:
        load(path)
    except FusedgeError as error:
        assert "\n" not in error.line()
