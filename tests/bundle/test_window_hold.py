"""The meaning of a window, against a reference that is too simple to be wrong."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from fusedge.bundle.window import complete, grid_ns, hold, mask_implausible, to_ns

stamps = st.lists(st.integers(-50, 150), unique=True, max_size=12).map(sorted)
reading = st.one_of(st.floats(-9, 9, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(
    times=stamps,
    readings=st.lists(st.tuples(reading, reading), min_size=12, max_size=12),
    grid=st.lists(st.integers(-60, 160), min_size=1, max_size=10).map(sorted),
    max_hold=st.integers(0, 40),
)
def test_hold_takes_the_newest_sample_that_is_fresh(
    times: list[int], readings: list[tuple[float, float]], grid: list[int], max_hold: int
) -> None:
    values = np.array(readings[: len(times)], np.float32).reshape(-1, 2)
    window, valid, picked = hold(
        np.array(times, np.int64), values, np.array(grid, np.int64), max_hold
    )
    assert window.dtype == valid.dtype == np.float32
    for row, time in enumerate(grid):
        fresh = [i for i, t in enumerate(times) if time - max_hold <= t <= time]
        assert picked[row] == (fresh[-1] if fresh else -1)
        for channel in range(2):
            value = values[fresh[-1], channel] if fresh else math.nan
            measured = bool(np.isfinite(value))
            assert valid[row, channel] == measured
            assert window[row, channel] == (value if measured else 0)


@given(times=stamps.filter(len), cut=st.integers(-50, 150))
def test_a_window_never_depends_on_what_comes_after_its_end(times: list[int], cut: int) -> None:
    grid = grid_ns(cut, 5, 1e8)
    stamp, values = np.array(times, np.int64), np.array(times, np.float32)[:, None]
    before = stamp <= cut
    for whole, part in zip(
        hold(stamp, values, grid, 30), hold(stamp[before], values[before], grid, 30), strict=True
    ):
        np.testing.assert_array_equal(whole, part)


def test_the_grid_ends_at_the_end_and_does_not_drift() -> None:
    assert grid_ns(100, 1, 7).tolist() == [100]
    assert grid_ns(to_ns(10), 4, 10).tolist() == [to_ns(t) for t in (9.7, 9.8, 9.9, 10)]
    grid = grid_ns(0, 3001, 3)
    assert grid[0] == -to_ns(1000)
    assert set(np.diff(grid).tolist()) == {333_333_333, 333_333_334}


@given(
    valid=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=4), elements=st.sampled_from([0, 1])
    ),
    min_valid=st.sampled_from([0, 0.25, 0.5, 0.75, 1]),
)
def test_a_window_is_complete_where_enough_grid_points_have_any_channel(
    valid: NDArray[np.float32], min_valid: float
) -> None:
    result = complete(valid, min_valid)
    assert result.dtype == np.bool_ and result.shape == valid.shape[:-2]
    for index in np.ndindex(result.shape):
        points = [any(row) for row in valid[index].tolist()]
        expected = any(points) and sum(points) >= min_valid * len(points)
        assert result[index] == expected == complete(valid[index], min_valid)


@given(st.lists(reading, min_size=3, max_size=3))
def test_what_is_out_of_range_or_not_finite_becomes_nan(row: list[float]) -> None:
    values = np.array(row, np.float32)
    kept = values.copy()
    masked = mask_implausible(values, np.float32([-5, -9, 0]), np.float32([5, 9, 1]))
    for value, after, low, high in zip(row, masked, (-5, -9, 0), (5, 9, 1), strict=True):
        assert after == value if low <= value <= high else math.isnan(after)
    np.testing.assert_array_equal(values, kept)
    assert masked.dtype == np.float32
