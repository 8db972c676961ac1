"""Units of channels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.units import UNITS, conversion, unit


@pytest.mark.parametrize(
    ("value", "have", "want", "expected"),
    [
        (90, "km/h", "m/s", 25),
        (90, "kph", "m/s", 25),
        (60, "mph", "km/h", 96.56064),
        (10, "kn", "m/s", 5.144444),
        (1, "g", "m/s2", 9.80665),
        (180, "deg", "rad", math.pi),
        (3000, "rpm", "rad/s", 100 * math.pi),
        (3000, "rpm", "rpm", 3000),
        (20, "degC", "K", 293.15),
        (212, "degF", "degC", 100),
        (101.3, "kPa", "Pa", 101_300),
        (40, "%", "1", 0.4),
        (5, "furlong", "furlong", 5),
        (1013.25, "hPa", "kPa", 101.325),
        (1, "mbar", "Pa", 100),
        (2, "kN", "N", 2000),
        (1, "psi", "Pa", 6894.757293),
        (7, "", "m/s2", 7),
    ],
)
def test_known_conversions(value: float, have: str, want: str, expected: float) -> None:
    assert conversion(have, want)(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("have", "want", "message"),
    [
        ("km/h", "m", "km/h is a speed, m a length"),
        ("m", "m/s2", "m is a length, m/s2 an acceleration"),
        ("1", "m/s2", "1 is a ratio"),
        ("furlong", "m", "unknown unit 'furlong'"),
        ("m", "", "unknown unit ''"),
    ],
)
def test_what_cannot_be_converted_is_refused(have: str, want: str, message: str) -> None:
    with pytest.raises(FusedgeError, match=message):
        conversion(have, want)


@pytest.mark.parametrize(
    "name", ["t", "MS", "US", "nm", "KN", "m/S", "km/H", "rad/S", "Kn", "PA", "mpa", "M", "c"]
)
def test_case_counts(name: str) -> None:
    assert unit(name) is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *[("KPH", "km/h"), ("km / h", "km/h"), ("MPH", "mph"), ("RPM", "rpm"), ("C", "degC")],
        *[("Deg", "deg"), ("m/s^2", "m/s2"), ("NM", "Nm"), ("Mpa", "MPa"), (" deg C ", "degC")],
        ("Unit_MeterPerSeconSquar", "m/s2"),
    ],
)
def test_what_dbc_files_write_is_known(spelling: str, name: str) -> None:
    assert unit(spelling) == UNITS[name]


def test_the_error_says_where() -> None:
    with pytest.raises(FusedgeError, match=r"^imu\.x in a\.csv: m is a length"):
        conversion("m", "s", "imu.x in a.csv")


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.floats(-1e6, 1e6))
def test_there_and_back_is_the_same(one: str, other: str, value: float) -> None:
    if UNITS[one].quantity == UNITS[other].quantity:
        there = conversion(one, other)(value)
        assert conversion(other, one)(there) == pytest.approx(value, rel=1e-9, abs=1e-6)


@given(st.text(max_size=12))
def test_any_text_is_a_unit_or_none(text: str) -> None:
    assert unit(text) is None or unit(text) in UNITS.values()
