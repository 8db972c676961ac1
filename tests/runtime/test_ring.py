"""The ring behaves like a short sorted list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.runtime.ring import PENDING, USED, SampleRing

CAPACITY = 5
operations = st.lists(
    st.tuples(st.just("insert"), st.integers(-8, 8))
    | st.tuples(st.just("evict"), st.integers(1, CAPACITY))
    | st.tuples(st.just("thin"), st.just(0)),
    max_size=60,
)


def check(ring: SampleRing, model: dict[int, int]) -> None:
    """The ring holds the model: stamp to status, and data that the stamp tells."""
    times = sorted(model)
    assert len(ring) == len(times)
    assert ring.timestamps_ns.tolist() == times
    assert ring.values.tolist() == [[time, -time] for time in times]
    assert ring.status.tolist() == [model[time] for time in times]


@given(operations)
def test_the_ring_is_a_sorted_list_of_bounded_length(steps: list[tuple[str, int]]) -> None:
    ring = SampleRing(CAPACITY, 2)
    model: dict[int, int] = {}
    for number, (step, value) in enumerate(steps):
        if step == "evict":
            oldest = sorted(model)[:value]
            assert ring.evict(len(oldest)).tolist() == [model.pop(time) for time in oldest]
        elif step == "thin":
            others = sorted(model)[::-1][1::2][::-1]
            assert ring.thin().tolist() == [model.pop(time) for time in others]
        elif len(model) == CAPACITY:
            with pytest.raises(OverflowError):
                ring.insert(value, np.float32([value, -value]))
        else:
            assert ring.insert(value, np.float32([value, -value])) == (value not in model)
            model.setdefault(value, PENDING)
            if number % 3 == 0:
                model[value] = USED
                ring.status[sorted(model).index(value)] = USED
        check(ring, model)


def test_a_long_stream_stays_in_the_same_memory() -> None:
    ring = SampleRing(CAPACITY, 2)
    for time in range(1000):
        if len(ring) == CAPACITY:
            assert ring.evict(1).tolist() == [PENDING]
        ring.insert(time, np.float32([time, -time]))
    check(ring, dict.fromkeys(range(995, 1000), PENDING))
    base = ring.timestamps_ns.base
    assert isinstance(base, np.ndarray) and len(base) == 2 * CAPACITY
