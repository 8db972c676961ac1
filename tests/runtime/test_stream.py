"""Windows by capture time, and the account of every sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import grid_ns, hold, mask_implausible, to_ns
from fusedge.runtime.ledger import Account, Ledger
from fusedge.runtime.sample_stream import SampleStream
from tests.runtime.streams import MS, run
from tests.tiny_bundle import modality

SPECS = {
    "tumbling": modality("fast"),
    "overlapping": modality("fast", window_s=1, hop_s=0.3),
    "sparse": modality("fast", window_s=0.2, hop_s=0.5),
    "delayed": modality("slow"),
    "strict": modality("fast", min_valid=1),
}
any_spec = st.sampled_from(list(SPECS.values()))


def sample(spec: Modality, time_ms: float, arrival_ms: float, data: Any = (1.0, 2.0)) -> Sample:
    """A sample that was captured at `time_ms`, stamped with the latency of the modality."""
    stamp = round(time_ms * MS) + to_ns(spec.latency_s)
    return Sample(spec.name, stamp, round(arrival_ms * MS), np.asarray(data, np.float32))


ordinary = st.floats(-50, 50, width=32)
odd = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -101.0])
channels = st.lists(ordinary | odd, min_size=2, max_size=2)
shapes = st.one_of(channels, channels, channels, st.just([]), st.just([1.0] * 3), st.just([[1.0]]))
deliveries = st.tuples(
    st.integers(0, 300).map(lambda n: n * 10),  # capture time in ms, often the same
    st.sampled_from([0, 1, 20, 99, 100, 101, 600, 5_000, -40, -60, -(10**15), 10**15]),  # delay
    shapes,
)


@given(spec=any_spec, stream_of=st.lists(deliveries, max_size=60))
def test_every_sample_is_accounted_for_at_every_moment(
    spec: Modality, stream_of: list[tuple[int, int, Any]]
) -> None:
    # The stamp is what is early or late by any amount: arrival never falls.
    samples = [
        Sample(spec.name, (time - delay) * MS, time * MS, np.array(data, np.float32))
        for time, delay, data in stream_of
    ]
    stream = SampleStream(spec)
    windows = run(stream, samples, 10_000)
    account = stream.account
    assert account.received == len(samples)
    assert min([account.used, account.in_flight, *account.dropped.values()]) >= 0
    assert len(windows) < 40
    for window in windows:
        assert np.isfinite(window.values).all() and set(np.unique(window.valid)) <= {0, 1}
        assert (np.abs(window.values) <= 100).all()


punctual = st.lists(
    st.tuples(st.integers(0, 2500), st.integers(0, 100), channels),
    unique_by=lambda row: row[0],
    max_size=50,
)


@given(spec=any_spec, rows=punctual)
def test_windows_equal_a_cut_of_all_samples_at_once(
    spec: Modality, rows: list[tuple[int, int, list[float]]]
) -> None:
    stream = SampleStream(spec)
    delay_ms = spec.latency_s * 1000
    samples = [sample(spec, t, t + delay_ms + late, data) for t, late, data in rows]
    windows = run(stream, samples, 5_000)
    rows = sorted(rows, key=lambda row: row[0])
    times = np.array([t * MS for t, _, _ in rows], np.int64)
    values = np.array([data for _, _, data in rows], np.float32).reshape(-1, 2)
    values = mask_implausible(values, np.float32([-100] * 2), np.float32([100] * 2))
    hop = to_ns(spec.hop_s)
    ends = [window.end_ns for window in windows]
    if rows:
        first = -(-int(times[0]) // hop) * hop
        assert ends == list(range(first, first + len(ends) * hop, hop)) and len(ends) > 0
    for window in windows:
        grid = grid_ns(window.end_ns, spec.window_samples, spec.rate_hz)
        expected, valid, _ = hold(times, values, grid, to_ns(spec.max_hold_s))
        share = valid.any(axis=1).mean()
        assert window.complete == (share > 0 and share >= spec.min_valid)
        np.testing.assert_array_equal(window.values[0], expected * window.complete)
        np.testing.assert_array_equal(window.valid[0], valid * window.complete)
    # Whoever was on the grid of an encoded window is used, and nobody else.
    picked = {
        int(i)
        for window in windows
        if window.complete
        for i in hold(
            times,
            values,
            grid_ns(window.end_ns, spec.window_samples, spec.rate_hz),
            to_ns(spec.max_hold_s),
        )[2]
        if i >= 0 and np.isfinite(values[i]).any()
    }
    assert stream.account.used == len(picked)
    assert stream.account.in_flight == 0


@given(rows=punctual, spec=any_spec, seed=st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter_inside_the_lateness(
    rows: list[tuple[int, int, list[float]]], spec: Modality, seed: Any
) -> None:
    delay_ms = spec.latency_s * 1000
    runs = []
    for lateness in ([0] * len(rows), [seed.randint(0, 100) for _ in rows]):
        stream = SampleStream(spec)
        samples = [
            sample(spec, t, t + delay_ms + late, data)
            for (t, _, data), late in zip(rows, lateness, strict=True)
        ]
        windows = run(stream, samples, 5_000)
        runs.append(([(w.end_ns, w.values.tobytes()) for w in windows], stream.account))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].as_dict() == runs[1][1].as_dict()


def drops(spec: Modality, *samples: Sample) -> dict[str, int]:
    stream = SampleStream(spec)
    run(stream, list(samples), 3_000)
    return stream.account.dropped


def test_each_refusal_has_its_reason() -> None:
    spec = SPECS["tumbling"]
    first = sample(spec, 100, 100)
    assert drops(spec, first) == {}
    assert drops(spec, first, sample(spec, 100, 101)) == {"duplicate": 1}
    assert drops(spec, first, sample(spec, 490, 601)) == {"late": 1}
    assert drops(spec, first, sample(spec, 490, 600)) == {}
    assert drops(spec, first, sample(spec, 251, 200)) == {"future": 1}
    assert drops(spec, first, sample(spec, 250, 200)) == {}
    assert drops(spec, first, sample(spec, 200, 200, [1.0])) == {"malformed": 1}
    assert drops(spec, sample(spec, 400, 400, [math.nan, 101])) == {"invalid": 1}
    dense = [sample(spec, 401 + t, 401 + t) for t in range(5)]
    assert drops(spec, *dense) == {"superseded": 4, "incomplete_window": 1}
    strict = SPECS["strict"]
    few = [sample(strict, t, t) for t in (100, 700)]
    assert drops(strict, *few) == {"incomplete_window": 2}


@pytest.mark.parametrize("stamp_ms", [-(10**15), -(10**9), 0])
def test_a_first_stamp_from_long_ago_makes_no_work(stamp_ms: int) -> None:
    spec = SPECS["tumbling"]
    stream = SampleStream(spec)
    stream.push(sample(spec, stamp_ms, 10**9))
    assert stream.account.dropped == {"backward": 1}
    assert stream.next_end_ns is None
    stream.push(sample(spec, 10**9, 10**9))
    assert stream.next_end_ns == 10**9 * MS


def test_the_first_samples_may_arrive_out_of_order() -> None:
    spec = modality("fast", lateness_s=0.6)
    stream = SampleStream(spec)
    windows = run(stream, [sample(spec, 600, 610), sample(spec, 450, 620)], 2_000)
    assert windows[0].end_ns == 500 * MS
    assert stream.account.dropped.get("late", 0) == 0


def test_values_out_of_range_are_counted_by_channel() -> None:
    spec = SPECS["tumbling"]
    stream = SampleStream(spec)
    run(
        stream,
        [
            sample(spec, 100, 100, [101, math.nan]),
            sample(spec, 200, 200, [1, -math.inf]),
            sample(spec, 300, 300, [-101, 1]),
        ],
        1_000,
    )
    assert stream.guard.implausible == {"c0": 2, "c1": 1}


def test_a_full_buffer_loses_the_oldest() -> None:
    spec = SPECS["tumbling"]
    stream = SampleStream(spec)
    for index in range(500):
        stream.push(sample(spec, 1 + index * 0.5, 1 + index * 0.5))
        assert stream.account.unaccounted == 0
    kept = stream.account.in_flight
    assert 64 <= kept < 500
    assert stream.account.dropped == {"overflow": 500 - kept}
    window = run(stream, [], 601)[0]
    assert window.valid[0, -2:].all()  # the newest are there: 250 ms is held to the end


def test_windows_that_are_given_up_take_their_samples_with_them() -> None:
    spec = SPECS["tumbling"]
    stream = SampleStream(spec)
    for time in range(100, 2501, 100):
        stream.push(sample(spec, time, time))
    window = stream.cut()
    assert window.complete and stream.due(to_ns(2.6)) == 4 and stream.due(to_ns(1.0)) == 0
    stream.skip(3, "overload")
    assert stream.account.dropped == {"overload": 15}
    assert stream.account.unaccounted == 0
    window = stream.cut()
    assert window.complete and window.end_ns == to_ns(2.5)
    stream.skip(10**6, "part_failed")
    assert stream.next_end_ns == to_ns(2.5) + (10**6 + 1) * stream.hop_ns
    assert stream.account.in_flight == stream.account.unaccounted == 0


def test_a_silent_stream_keeps_its_windows_coming() -> None:
    spec = SPECS["tumbling"]
    stream = SampleStream(spec)
    windows = run(stream, [sample(spec, 400, 400)], 5_000)
    assert [w.end_ns for w in windows] == [to_ns(0.5 * n) for n in range(1, 10)]
    assert not any(w.complete or w.values.any() or w.valid.any() for w in windows[1:])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=20))
def test_the_ledger_balances_only_with_every_sample_in_one_place(
    drops: list[tuple[str, int]],
) -> None:
    waiting = [3]
    account = Account(lambda: waiting[0])
    account.received, account.used = 10, 7
    ledger = Ledger({"known": account})
    assert ledger.balanced
    for reason, count in drops:
        account.drop(reason, count)
    account.received += sum(count for _, count in drops)
    assert ledger.balanced
    assert ledger.as_dict()["known"]["dropped"] == account.dropped
    assert list(ledger.as_dict()["known"]["dropped"]) == sorted(account.dropped)
    waiting[0] -= 1
    assert account.unaccounted == 1 and not ledger.balanced
    waiting[0] += 1
    stranger = ledger.account("stranger")
    assert ledger.account("stranger") is stranger and ledger.balanced
    stranger.received += 1
    assert not ledger.balanced


def test_windows_before_time_zero_are_cut_like_all_others() -> None:
    stream = SampleStream(modality("fast"))
    for step in range(20):
        time_ns = to_ns(-10 + 0.1 * step)
        stream.push(Sample("fast", time_ns, time_ns, np.ones(2, np.float32)))
    # The first window ends at -10 s and holds one sample only, the two after it are full.
    windows = [stream.cut() for _ in range(3)]
    assert [window.complete for window in windows] == [False, True, True]
    assert "overload" not in stream.account.dropped
