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
    ],
)
def test_known_conversions(value: float, have: str, want: str, expected: float) -> None:
    assert conversion(have, want)(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("have", "want", "message"),
    [("km/h", "m", "km/h is a speed, m a length"), ("furlong", "m", "unknown unit 'furlong'")],
)
def test_what_cannot_be_converted_is_refused(have: str, want: str, message: str) -> None:
    with pytest.raises(FusedgeError, match=message):
        conversion(have, want)


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.floats(-1e6, 1e6))
def test_there_and_back_is_the_same(one: str, other: str, value: float) -> None:
    if UNITS[one].quantity == UNITS[other].quantity:
        there = conversion(one, other)(value)
        assert conversion(other, one)(there) == pytest.approx(value, rel=1e-9, abs=1e-6)


@given(st.text(max_size=12))
def test_any_text_is_a_unit_or_none(text: str) -> None:
    assert unit(text) is None or unit(text) in UNITS.values()
