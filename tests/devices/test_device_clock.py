"""A device's stamps on the session's clock."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.window import to_ns
from fusedge.devices.capture.device_clock import DeviceClock, believable

HOUR_NS = to_ns(3600)


def test_late_deliveries_move_nothing() -> None:
    """Captured each 10 ms; delivered after 1 ms, or now and then half a second."""
    clock, dice = DeviceClock(), np.random.default_rng(1)
    errors = []
    for number in range(5000):
        true_ns = to_ns(number / 100)
        delay_s = 0.001 + 0.5 * float(dice.random() < 0.1) * float(dice.random())
        placed = clock.place(true_ns + HOUR_NS, true_ns + to_ns(delay_s))
        errors.append(placed - true_ns)
    assert clock.steps == 0
    assert np.abs(np.array(errors[10:]) - to_ns(0.001)).max() < 10


def test_drift_is_followed() -> None:
    """A quarter of an hour at +100 ppm is 90 ms; what was seen in the last 10 s is off by at most 1."""
    clock = DeviceClock()
    for number in range(90_000):
        true_ns = to_ns(number / 100)
        placed = clock.place(true_ns + true_ns // 10_000, true_ns)
        assert abs(placed - true_ns) <= to_ns(0.0011)


def test_a_clock_that_leaps_is_placed_anew() -> None:
    for leap_s in (-3600.0, 3600.0, 619_315_200.0):  # of the last the weeks of GPS
        clock = DeviceClock()
        for number in range(100):
            time_ns = to_ns(number)
            device_ns = time_ns if number < 50 else time_ns + to_ns(leap_s)
            placed = clock.place(device_ns, time_ns)
            if not 50 <= number < 54:  # a stamp that falls behind could be a late delivery
                assert placed == time_ns
        assert clock.steps == 1


def test_a_small_step_back_is_followed_within_ten_seconds() -> None:
    clock = DeviceClock()
    for number in range(4000):
        time_ns = to_ns(number / 100)
        placed = clock.place(time_ns if number < 2000 else time_ns - to_ns(1.5), time_ns)
        if not 2000 <= number <= 3100:
            assert placed == time_ns


def test_one_stamp_far_behind_is_not_a_leap() -> None:
    clock = DeviceClock()
    for number in range(10):
        assert clock.place(to_ns(number), to_ns(number) + 1) == to_ns(number) + 1
    assert clock.place(to_ns(2), to_ns(10)) == to_ns(10)
    assert clock.place(to_ns(11), to_ns(11) + 1) == to_ns(11) + 1
    assert clock.steps == 0


@given(st.lists(st.tuples(st.integers(-(1 << 62), 1 << 62), st.integers(0, 1 << 40)), max_size=50))
def test_nothing_is_placed_after_its_arrival(stamps: list[tuple[int, int]]) -> None:
    clock, arrival_ns = DeviceClock(), 0
    for device_ns, pause_ns in stamps:
        arrival_ns += pause_ns
        assert clock.place(device_ns, arrival_ns) <= arrival_ns


def test_a_drivers_stamp_is_neither_ahead_nor_old() -> None:
    assert believable(to_ns(5), to_ns(5)) and believable(to_ns(5), to_ns(15))
    assert not believable(to_ns(5) + 1, to_ns(5)) and not believable(0, to_ns(11))
