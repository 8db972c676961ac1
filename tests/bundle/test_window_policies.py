"""Which sample a grid point takes, against a search through all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.window import grid_ns, pick_last, pick_nearest, pick_newest

# Close together, so that ties, repeats and points without a sample are usual; and as large as stamps are.
near = st.integers(-30, 30)
times = st.lists(near, unique=True, max_size=12).map(sorted)
grids = st.lists(near, min_size=1, max_size=8).map(sorted)
reaches = st.integers(0, 15)
origins = st.sampled_from([0, 10**18, -(10**18)])


def shifted(values: list[int], origin: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([value + origin for value in values], np.int64)


@given(times=times, grid=grids, reach=reaches, origin=origins)
def test_the_newest_at_or_before_within_reach(
    times: list[int], grid: list[int], reach: int, origin: int
) -> None:
    expected = []
    for point in grid:
        fresh = [i for i, time in enumerate(times) if 0 <= point - time <= reach]
        expected.append(fresh[-1] if fresh else -1)
    picked = pick_newest(shifted(times, origin), shifted(grid, origin), reach)
    assert picked.dtype == np.int64 and picked.tolist() == expected
    # A single grid point goes another way, and must come to the same.
    alone = [
        pick_newest(shifted(times, origin), shifted([point], origin), reach).tolist()
        for point in grid
    ]
    assert alone == [[index] for index in expected]


@given(times=times, grid=grids, tolerance=reaches, origin=origins)
def test_the_nearest_within_tolerance_and_the_earlier_of_two(
    times: list[int], grid: list[int], tolerance: int, origin: int
) -> None:
    expected = []
    for point in grid:
        close = [(abs(t - point), i) for i, t in enumerate(times) if abs(t - point) <= tolerance]
        expected.append(min(close)[1] if close else -1)
    picked = pick_nearest(shifted(times, origin), shifted(grid, origin), tolerance)
    assert picked.dtype == np.int64 and picked.tolist() == expected
    alone = [
        pick_nearest(shifted(times, origin), shifted([point], origin), tolerance).tolist()
        for point in grid
    ]
    assert alone == [[index] for index in expected]


@given(times=times, end=near, count=st.integers(1, 8), span=st.integers(0, 60), origin=origins)
def test_the_last_in_order_at_the_end_of_the_window(
    times: list[int], end: int, count: int, span: int, origin: int
) -> None:
    inside = [i for i, time in enumerate(times) if end - span <= time <= end][-count:]
    expected = [-1] * (count - len(inside)) + inside
    stamps = shifted(times, origin)
    picked = pick_last(stamps, end + origin, count, end - span + origin)
    assert picked.dtype == np.int64 and picked.tolist() == expected


@given(
    end=st.integers(-(10**18), 10**18),
    count=st.integers(1, 500),
    rate=st.floats(0.01, 48_000, allow_nan=False),
)
def test_a_grid_ends_at_its_end_and_its_steps_are_even(end: int, count: int, rate: float) -> None:
    grid = grid_ns(end, count, rate)
    assert len(grid) == count and grid[-1] == end
    period = 1e9 / rate
    exact = (np.arange(count - 1, -1, -1) * period).round()
    assert np.abs((end - grid) - exact).max() <= 1
    assert (grid_ns(0, count, rate) + end == grid).all(), "a grid can be made once and moved"
