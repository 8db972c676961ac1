"""Sentences of NMEA 0183, whole and damaged."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.devices.capture.fixes import Fix
from fusedge.devices.capture.nmea import MAX_LINE, Broken, NmeaReader, NoFix
from tests.devices.nmea_log import gga, rmc, sentence


def read(*chunks: bytes) -> list[Fix | NoFix | Broken]:
    reader = NmeaReader()
    return [found for chunk in chunks for found in reader.feed(chunk)]


def only_fix(*chunks: bytes) -> Fix:
    (found,) = read(*chunks)
    assert isinstance(found, Fix), found
    return found


def broken(*chunks: bytes) -> list[str]:
    found = read(rmc(0), *chunks)[1:]  # a sentence first: from then on everything counts
    assert all(isinstance(one, Broken) for one in found), found
    return [one.detail for one in found]


@pytest.mark.parametrize("talker", ["GP", "GN", "GL", "GA", "GB", "BD", "QZ"])
def test_a_fix_of_any_constellation(talker: str) -> None:
    fix = only_fix(gga(1, talker=talker), rmc(1, talker=talker))
    assert (fix.latitude, fix.longitude) == pytest.approx((40.5, -3.25))
    assert fix.speed == pytest.approx(20, abs=1e-3)
    assert fix.course == pytest.approx(math.pi / 2)
    assert (fix.altitude, fix.hdop, fix.satellites) == (610, 0.9, 9)


def test_a_published_example() -> None:
    # the example of an RMC sentence that manuals repeat: 48°07.038'N 11°31.000'E, 22.4 kn
    fix = only_fix(b"$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n")
    assert (fix.latitude, fix.longitude) == pytest.approx((48.1173, 11.516667), abs=1e-6)
    assert fix.speed == pytest.approx(22.4 * 1852 / 3600)


def test_altitude_of_another_time_is_not_taken() -> None:
    assert math.isnan(only_fix(rmc(5)).altitude)
    assert only_fix(gga(4), rmc(5)).altitude == 610
    assert math.isnan(only_fix(gga(2), rmc(5)).altitude)
    assert math.isnan(only_fix(gga(5, quality=0), rmc(5)).altitude)


def test_times_differ_as_the_receiver_means_them() -> None:
    noon, later = only_fix(rmc(0)), only_fix(rmc(61.25))
    next_day = only_fix(rmc(0, date="241125"))
    assert noon.time_ns is not None and later.time_ns is not None and next_day.time_ns is not None
    assert later.time_ns - noon.time_ns == 61_250_000_000
    assert next_day.time_ns - noon.time_ns == 86_400_000_000_000


def test_an_empty_field_is_not_zero() -> None:
    fix = only_fix(sentence("GPRMC,120000,A,4030.0,N,00315.0,W,,,231125,,,A"))
    assert math.isnan(fix.speed) and math.isnan(fix.course)


@pytest.mark.parametrize(
    ("mode", "meaning"),
    [("N", "no fix"), ("E", "dead reckoning"), ("M", "entered by hand"), ("S", "simulator")],
)
def test_what_no_satellite_has_measured_is_no_fix(mode: str, meaning: str) -> None:
    body = "GNRMC,120000,A,4030.0,N,00315.0,W,1,1,231125,,,"
    for end in (mode, f"{mode},V"):
        assert read(sentence(body + end)) == [NoFix(f"mode {mode}: {meaning}")]
    for end in "ADFPR":
        assert isinstance(read(sentence(body + end))[0], Fix)


@pytest.mark.parametrize("quality", [6, 7, 8])
def test_nor_is_its_altitude_taken(quality: int) -> None:
    assert math.isnan(only_fix(gga(5, quality=quality), rmc(5)).altitude)


@pytest.mark.parametrize(("text", "knots"), [(".5", 0.5), ("0.5", 0.5), ("5.", 5), ("005", 5)])
def test_a_number_may_begin_with_its_point(text: str, knots: float) -> None:
    fix = only_fix(sentence(f"GPRMC,120000,A,4030.0,N,00315.0,W,{text},1,231125,,,A"))
    assert fix.speed == pytest.approx(knots * 1852 / 3600)
    assert len(broken(sentence("GPRMC,120000,A,4030.0,N,00315.0,W,.,1,231125,,,A"))) == 1


@pytest.mark.parametrize(
    "body",
    [
        "GPRMC,,V,,,,,,,,,,N",
        "GPRMC,120000,V,4030.0,N,00315.0,W,1,1,231125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,1,1,231125,,,N",
        "GPRMC,120000,,4030.0,N,00315.0,W,1,1,231125,,,A",
    ],
)
def test_without_a_fix_nothing_is_made_up(body: str) -> None:
    (found,) = read(sentence(body))
    assert isinstance(found, NoFix)


@pytest.mark.parametrize(
    "body",
    [
        "GPRMC,120000,A,,,,,1,1,231125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,1,1",
        "GPRMC,bad",
        "GPRMC,126000,A,4030.0,N,00315.0,W,1,1,231125,,,A",
        "GPRMC,120000,A,4060.0,N,00315.0,W,1,1,231125,,,A",
        "GPRMC,120000,A,9030.0,N,00315.0,W,1,1,231125,,,A",
        "GPRMC,120000,A,4030.0,X,00315.0,W,1,1,231125,,,A",
        "GPRMC,120000,A,-4030.0,N,00315.0,W,1,1,231125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,nan,1,231125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,1e9,1,231125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,1,361,231125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,1,1,311125,,,A",
        "GPRMC,120000,A,4030.0,N,00315.0,W,1,1,,,,A",
        "GPGGA,120000,4030.0,N,00315.0,W,1,09,0.9,much,M,,M,,",
    ],
)
def test_a_sentence_that_contradicts_its_kind_is_broken(body: str) -> None:
    assert len(broken(sentence(body))) == 1


def test_no_checksum_no_fix() -> None:
    line = rmc(0)
    assert len(broken(line[:-5] + b"\r\n")) == 1
    assert len(broken(line[:40] + b"\r\n")) == 1
    assert len(broken(line[1:])) == 1
    assert len(broken(b"$GPRMC,bad*00\r\n")) == 1
    assert len(broken(sentence("GPGSV,1,1,00").replace(b"1,00", b"1,01"))) == 1


def test_other_sentences_are_passed_over() -> None:
    others = [sentence("GPGSV,1,1,00"), sentence("PGRME,15.0,M,45.0,M,25.0,M"), b"\r\n"]
    assert read(*others) == []
    # Garmin's own sentence PGRMC is no RMC of a talker PG
    assert read(sentence("PGRMC,A,200.0,00,,,,,,A,3,1,1,4,30")) == []
    reader = NmeaReader()
    list(reader.feed(b"".join(others)))
    assert (reader.sentences, reader.positions) == (2, 0)


def test_reading_starts_anywhere() -> None:
    assert len(read(rmc(0)[17:], rmc(1))) == 1
    assert isinstance(read(b"\xb5b\x01\x07\x00" + rmc(1))[0], Fix)


def test_a_sentence_behind_damage_counts() -> None:
    for damage in (rmc(0)[:30], b"\xb5b\x01\x07\\" * 20, b"\x00" * 10_000):
        found = read(rmc(0), damage + rmc(1))
        assert [type(one) for one in found] == [Fix, Broken, Fix]


def test_bytes_without_an_end_take_no_memory() -> None:
    reader = NmeaReader()
    for _ in range(1000):
        assert list(reader.feed(b"$" * 1000)) == []
    assert len(reader._line) == MAX_LINE


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_no_bytes_raise(chunks: list[bytes]) -> None:
    for found in read(*chunks):
        assert isinstance(found, Fix | NoFix | Broken)


BODIES = st.from_regex(r"\A(GP|GN)(RMC|GGA),[0-9A-Z.,\-]{0,120}\Z").map(sentence)


@given(st.lists(BODIES, max_size=10))
def test_no_sentence_with_a_right_checksum_raises(lines: list[bytes]) -> None:
    for found in read(*lines):
        if isinstance(found, Fix):
            assert -90 <= found.latitude <= 90 and -180 <= found.longitude <= 180
            assert not found.speed < 0


@given(st.integers(1, 40), st.data())
def test_however_it_is_cut_it_is_the_same(pieces: int, data: st.DataObject) -> None:
    stream = b"".join(gga(k) + rmc(k) + b"$torn\r\n" for k in range(4))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=pieces)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert repr(read(*chunks)) == repr(read(stream))


SENTENCE = rmc(7.25, speed=13.7, course=271.3)


def test_no_single_wrong_byte_passes() -> None:
    """All of them: a fix is the right one (a checksum in small letters, an end of line), or none."""
    right = repr(only_fix(SENTENCE))
    for place in range(len(SENTENCE)):
        for byte in range(256):
            damaged = SENTENCE[:place] + bytes([byte]) + SENTENCE[place + 1 :]
            for found in read(rmc(0), damaged + b"\n")[1:]:
                assert not isinstance(found, Fix) or repr(found) == right, damaged


@given(st.binary(min_size=1, max_size=len(SENTENCE) - 6), st.integers(0, len(SENTENCE) - 6))
def test_other_damage_passes_only_by_its_checksum(junk: bytes, place: int) -> None:
    damaged = bytearray(SENTENCE)
    damaged[1 + place : 1 + place + len(junk)] = junk
    line = bytes(damaged[:-5]).partition(b"*")[0]
    checksum = 0
    for byte in line[1:]:
        checksum ^= byte
    same = f"{checksum:02X}".encode() == bytes(damaged[-4:-2])
    fixes = [found for found in read(rmc(0), bytes(damaged))[1:] if isinstance(found, Fix)]
    assert not fixes or same or damaged == SENTENCE


def test_of_arbitrary_damage_one_in_256_keeps_the_checksum() -> None:
    """Two digits that change by the same bits do: this is the limit of NMEA, not of the reader."""
    swapped = SENTENCE.replace(b"271.300", b"172.300")
    assert swapped != SENTENCE
    assert only_fix(swapped).course == pytest.approx(math.radians(172.3))
