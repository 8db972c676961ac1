"""Percentiles in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.runtime.histogram import DurationHistogram


@given(st.lists(st.integers(100, 10**11), min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_a_percentile_is_right_to_five_percent(durations: list[int], percent: int) -> None:
    histogram = DurationHistogram()
    for duration in durations:
        histogram.add(duration)
    exact = float(np.percentile(durations, percent, method="inverted_cdf"))
    assert histogram.percentile_ns(percent) == pytest.approx(exact, rel=0.05)
    assert histogram.count == len(durations)
    assert histogram.max_ns == max(durations)


@pytest.mark.parametrize(("slow", "p90"), [(100, 1_000), (105, 1_000_000)])
def test_a_percentile_is_the_value_at_its_place(slow: int, p90: int) -> None:
    histogram = DurationHistogram()
    for index in range(1000):
        histogram.add(1_000_000 if index < slow else 1_000)
    assert histogram.percentile_ns(90) == pytest.approx(p90, rel=0.05)


@pytest.mark.parametrize("duration", [0, 1, 99, 10**11 + 1, 10**15])
def test_durations_beyond_the_range_are_counted_and_bounded_by_the_maximum(duration: int) -> None:
    histogram = DurationHistogram()
    histogram.add(duration)
    assert histogram.count == 1
    assert histogram.percentile_ns(50) == duration
    assert histogram.summary_us()["max_us"] == round(duration / 1e3, 1)


def test_an_empty_histogram_has_no_percentile() -> None:
    assert DurationHistogram().summary_us() == {
        "count": 0,
        "p50_us": None,
        "p90_us": None,
        "p99_us": None,
        "max_us": None,
    }
