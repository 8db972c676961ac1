"""Windows of sound: counted in samples, placed in time, and every sample accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.bundle.manifest import Channel, Modality
from fusedge.bundle.sample import Sample, size
from fusedge.bundle.window import to_ns
from fusedge.runtime.sound_stream import SoundStream
from fusedge.runtime.stream import Window
from tests.runtime.streams import MS, run

RATE_HZ = 1000
LIMIT = 10_000_000.0


def sound(channels: int = 1, **changes: Any) -> Modality:
    """1000 samples a second in windows of 200 ms; a sample may be its own capture time in ms."""
    fields: dict[str, Any] = {
        "name": "mic",
        "kind": "audio",
        "description": "a microphone that says what time it is",
        "channels": tuple(
            Channel(name=f"m{i}", unit="ms", minimum=-LIMIT, maximum=LIMIT) for i in range(channels)
        ),
        "rate_hz": RATE_HZ,
        "window_s": 0.2,
        "hop_s": 0.2,
        "resample": "contiguous",
        "max_hold_s": 0.1,
        "latency_s": 0,
        "lateness_s": 0.1,
        "max_age_s": 1,
        "return_windows": 1,
        "min_valid": 0.5,
        "prepare": (),
    }
    return Modality(**{**fields, **changes})


def block(
    stamp_ms: float,
    values: Sequence[float] | NDArray[Any],
    *,
    delay_ms: float = 0,
    channels: int = 1,
) -> Sample:
    """A block whose last sample is stamped `stamp_ms`."""
    data = np.repeat(np.asarray(values, np.float32)[:, None], channels, axis=1)
    return Sample("mic", round(stamp_ms * MS), round((stamp_ms + delay_ms) * MS), data)


def ends_s(windows: Sequence[Window]) -> NDArray[np.float64]:
    return np.array([window.end_ns for window in windows]) / 1e9


specs = st.builds(
    lambda window_s, hop_s, latency_s, min_valid: sound(
        window_s=window_s, hop_s=hop_s, latency_s=latency_s, min_valid=min_valid
    ),
    st.sampled_from([0.05, 0.2, 0.3]),
    st.sampled_from([0.05, 0.1, 0.2, 0.5]),
    st.sampled_from([0.0, 0.0, 0.15]),
    st.sampled_from([0.0, 0.5, 1.0]),
)


@given(
    spec=specs,
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    begin_ms=st.integers(0, 1000),
    tidy=st.booleans(),
)
def test_windows_hold_the_samples_around_their_time_in_blocks_of_any_size(
    spec: Modality, sizes: list[int], begin_ms: int, tidy: bool
) -> None:
    stream = SoundStream(spec)
    length, latency_ms = spec.window_samples, round(spec.latency_s * 1000)
    ends = begin_ms + np.cumsum(sizes)  # sample n is captured 0.3 ms after millisecond n
    blocks = [
        block(end + 0.3 + latency_ms, range(end - count + 1, end + 1), delay_ms=5)
        for end, count in zip(ends.tolist(), sizes, strict=True)
    ]
    last = int(ends[-1])
    windows = run(stream, blocks, last + latency_ms + 2000, tidy)
    hop_ms = round(spec.hop_s * 1000)
    first = -(-(begin_ms + 0.3) // hop_ms) * hop_ms
    assert [w.end_ns for w in windows[:1]] == [round(first) * MS]
    used: set[int] = set()
    for number, window in enumerate(windows):
        end = round(first) + number * hop_ms
        assert window.end_ns == end * MS
        wanted = np.arange(end - length + 1, end + 1)
        there = (wanted > begin_ms) & (wanted <= last)
        share = there.mean()
        assert window.complete == (share > 0 and share >= spec.min_valid)
        expected = np.where(there, wanted, 0) * window.complete
        np.testing.assert_array_equal(window.values[0, :, 0], expected.astype(np.float32))
        np.testing.assert_array_equal(window.valid[0, :, 0], there * window.complete)
        if window.complete:
            used |= set(wanted[there].tolist())
    account = stream.account
    assert account.used == len(used) and account.received == sum(sizes)
    assert account.in_flight == 0
    assert set(account.dropped) <= {"incomplete_window", "superseded"}


class Card:
    """Blocks of 20 ms of a device that is `ppm` fast and handed over late by up to 20 ms. A sample is its
    true capture time in ms.
    """

    def __init__(self, ppm: float, duration_s: float, seed: int = 0) -> None:
        self.period_ms = 1000 / RATE_HZ / (1 + ppm * 1e-6)
        self.count = round(duration_s * RATE_HZ)
        self.times_ms = np.arange(1, self.count + 1) * self.period_ms
        self._random = np.random.default_rng(seed)

    def without(self, from_s: float, to_s: float) -> Card:
        """The same card that gives no samples for a while."""
        inside = (self.times_ms > from_s * 1000) & (self.times_ms <= to_s * 1000)
        self.times_ms = self.times_ms[~inside]
        return self

    def blocks(self) -> Iterator[Sample]:
        for first in range(0, len(self.times_ms) - 19, 20):
            times_ms = self.times_ms[first : first + 20]
            yield block(times_ms[-1] + self._random.uniform(0, 20), times_ms)


def skew_ms(windows: Sequence[Window]) -> NDArray[np.float64]:
    """By how much the last sample of complete windows was captured later than their end."""
    return np.array(
        [float(w.values[0, -1, 0]) - w.end_ns / MS if w.complete else np.nan for w in windows]
    )


@pytest.mark.parametrize("ppm", [0.0, 300.0, -300.0])
def test_sound_stays_with_the_true_clock_at_any_drift(ppm: float) -> None:
    stream = SoundStream(sound())
    windows = run(stream, list(Card(ppm, 120).blocks()), 119_000)
    settled = ends_s(windows) >= 30
    skew = skew_ms(windows)[settled]
    assert len(skew) > 400 and np.isfinite(skew).all()
    assert np.abs(skew).max() <= 5 + 0.5  # the promise of SampleClock, and half a sample
    for window in windows[150:]:
        np.testing.assert_allclose(np.diff(window.values[0, :, 0]), 1, atol=0.02)
    report = stream.clock_report()
    assert report["drift_ppm"] == pytest.approx(ppm, abs=30) and report["steps"] == 0
    account = stream.account
    assert set(account.dropped) <= {"superseded", "incomplete_window"}
    assert account.used > 0.99 * account.received - 1000


def test_sound_that_a_driver_lost_is_a_step_and_the_rest_is_placed_again() -> None:
    stream = SoundStream(sound())
    windows = run(stream, list(Card(100, 120).without(60, 60.5).blocks()), 119_000)
    ends, skew = ends_s(windows), skew_ms(windows)
    told = (ends >= 30) & ((ends < 60) | (ends >= 69))
    assert np.abs(skew[told]).max() <= 5.5
    assert stream.clock_report()["steps"] == 1
    assert stream.account.in_flight <= 400
    lost = sum(stream.account.dropped.values())
    assert lost <= 8 * RATE_HZ, "late, until the step is found, and no longer"


@pytest.mark.parametrize(("hop_s", "dropped"), [(1, False), (13, True)])
def test_sound_from_long_before_a_step_is_in_no_window_after_it(
    hop_s: float, dropped: bool
) -> None:
    stream = SoundStream(sound(window_s=12, hop_s=hop_s, max_age_s=10, min_valid=0.1))
    windows = run(stream, list(Card(0, 120).without(60, 60.5).blocks()), 119_000)
    assert stream.clock_report()["steps"] == 1
    ends = ends_s(windows)
    share = np.array([window.valid.mean() for window in windows])
    found = share[(ends > 60) & (ends < 70)].min()  # when the step was found 5 s were kept
    assert 4 / 12 < found < 6 / 12
    assert (share[ends > 77] == 1).all() and np.abs(skew_ms(windows)[ends > 77]).max() <= 5.5
    # What had been in no window yet is told as lost, with the reason.
    assert ("clock_step" in stream.account.dropped) == dropped


def test_a_device_that_stands_still_gives_no_windows_and_then_goes_on() -> None:
    stream = SoundStream(sound())
    windows = run(stream, list(Card(-200, 120).without(60, 68).blocks()), 119_000)
    ends, skew = ends_s(windows), skew_ms(windows)
    complete = np.array([window.complete for window in windows])
    assert not complete[(ends > 60.3) & (ends < 67.8)].any()
    told = (ends >= 30) & (ends < 60) | (ends >= 77)
    assert complete[told].all() and np.abs(skew[told]).max() <= 5.5
    assert stream.clock_report()["steps"] == 1
    # Until the step was found, what came was taken for sound of windows that had been cut.
    assert stream.account.dropped["late"] > 1000


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((5, 2), np.float32),
        np.zeros(5, np.float32),
        np.zeros((5, 1), np.float64),
        np.zeros((5, 1), np.int16),
        np.zeros((0, 1), np.float32),
        np.zeros((2, 5, 1), np.float32),
        np.zeros((10 * RATE_HZ + 1, 1), np.float32),
        np.float32(1).reshape(()),
    ],
    ids=lambda data: f"{data.dtype}{list(data.shape)}",
)
def test_a_malformed_block_is_counted_and_changes_nothing(data: NDArray[Any]) -> None:
    clean, struck = SoundStream(sound()), SoundStream(sound())
    blocks = [block(end + 0.3, range(end - 49, end + 1)) for end in range(50, 1001, 50)]
    odd = Sample("mic", 525 * MS, 525 * MS, data)
    expected = run(clean, blocks, 2_000)
    windows = run(struck, [*blocks, odd], 2_000)
    assert [w.values.tobytes() for w in windows] == [w.values.tobytes() for w in expected]
    assert struck.account.dropped.pop("malformed") == size(odd)
    assert struck.account.dropped == clean.account.dropped
    assert struck.account.received == 1000 + size(odd)


@pytest.mark.parametrize("stamp_ms", [0, -(10**12), 10**12, 10**15, 10_101.0])
def test_an_absurd_stamp_is_replaced_by_the_arrival(stamp_ms: float) -> None:
    stream = SoundStream(sound())
    blocks = []
    for end in range(20_050, 25_001, 50):
        stamp_ns = round((stamp_ms if end == 22_000 else end + 0.3) * MS)
        data = np.arange(end - 49, end + 1, dtype=np.float32)[:, None]
        blocks.append(Sample("mic", stamp_ns, round((end + 0.3) * MS), data))
    windows = run(stream, blocks, 24_900)
    assert stream.stamps_refused == stream.clock_report()["stamps_refused"] == 1
    assert np.abs(skew_ms(windows)[1:]).max() == 0
    assert stream.clock_report()["steps"] == 0


def test_a_source_without_stamps_is_placed_on_its_arrival() -> None:
    stream = SoundStream(sound())
    blocks = [
        Sample("mic", 0, round((end + 0.3) * MS), np.full((50, 1), end, np.float32), "arrival")
        for end in range(20_050, 22_001, 50)
    ]
    windows = run(stream, blocks, 21_900)
    assert stream.stamps_refused == 40
    assert all(window.complete for window in windows)
    assert stream.clock_report()["stamp"] == "arrival"


def test_sound_that_is_always_later_than_allowed_is_late() -> None:
    stream = SoundStream(sound())
    blocks = [block(end, np.ones(50), delay_ms=3_000) for end in range(50, 30_001, 50)]
    windows = run(stream, blocks, 40_000)
    assert windows == []
    assert stream.account.dropped == {"late": 30_000} and stream.account.in_flight == 0


def test_a_block_that_comes_after_its_window_was_due_is_late() -> None:
    stream = SoundStream(sound())
    blocks = [
        block(end, np.ones(50), delay_ms=400 if 2_000 < end <= 2_400 else 5)
        for end in range(50, 4_001, 50)
    ]
    blocks.sort(key=lambda b: b.timestamp_ns)
    held = [
        b._replace(arrival_ns=max(other.arrival_ns for other in blocks[: index + 1]))
        for index, b in enumerate(blocks)
    ]
    windows = run(stream, held, 5_000)
    complete = {w.end_ns // MS: w.complete for w in windows}
    assert not complete[2_400] and complete[2_000] and complete[3_000]
    dropped = stream.account.dropped
    assert set(dropped) <= {"late", "incomplete_window"} and dropped["late"] > 0
    assert stream.account.used + sum(dropped.values()) == 4_000


def test_a_buffer_that_nobody_reads_keeps_the_newest_and_counts_the_rest() -> None:
    stream = SoundStream(sound())
    capacity = stream._capacity
    for end in range(50, 60_001, 50):
        stream.push(block(end + 0.3, range(end - 49, end + 1)))
        assert stream.account.unaccounted == 0 and len(stream) <= capacity
    assert stream.account.dropped == {"overflow": 60_000 - capacity}
    assert stream.account.in_flight == capacity == len(stream)
    stream.skip(stream.due(to_ns(59.9)) - 1, "overload")
    window = stream.cut()
    end = window.end_ns // MS
    np.testing.assert_array_equal(window.values[0, :, 0], np.arange(end - 199, end + 1))
    stream.tidy()
    assert stream.account.dropped["overload"] == capacity - len(stream) - 200
    assert stream.account.unaccounted == 0


def test_what_is_not_finite_or_out_of_range_is_masked_and_counted() -> None:
    stream = SoundStream(sound(channels=2))
    data = np.ones((200, 2), np.float32)
    data[10, 0] = np.nan
    data[20] = np.nan
    data[30, 1] = np.inf
    data[40] = -2 * LIMIT
    stream.push(Sample("mic", 200 * MS, 200 * MS, data))
    assert not stream.cut().complete  # it ends where the block begins
    window = stream.cut()
    expected = np.ones((200, 2), np.float32)
    for row, channel in ((10, 0), (20, 0), (20, 1), (30, 1), (40, 0), (40, 1)):
        expected[row, channel] = 0
    np.testing.assert_array_equal(window.values[0], expected)
    np.testing.assert_array_equal(window.valid[0], expected)
    stream.tidy()
    assert stream.guard.implausible == {"m0": 1, "m1": 2}
    stream.push(Sample("mic", 400 * MS, 400 * MS, np.full((200, 2), 0.5, np.float32)))
    assert (stream.cut().values == 0.5).all()  # the next window lies behind them, and is whole
    stream.tidy()
    stream.skip(1, "end")
    stream.tidy()
    assert stream.account.used == 398 and stream.account.dropped == {"invalid": 2}
    assert stream.account.in_flight == 0


@pytest.mark.parametrize(("missing", "complete"), [(99, True), (100, True), (101, False)])
def test_a_window_needs_its_least_share(missing: int, complete: bool) -> None:
    stream = SoundStream(sound(min_valid=0.5))
    data = np.ones((200, 1), np.float32)
    data[:missing] = np.nan
    stream.push(Sample("mic", 200 * MS, 200 * MS, data))
    assert not stream.cut().complete  # it ends where the block begins
    window = stream.cut()
    assert window.complete == complete
    assert window.values.sum() == window.valid.sum() == (200 - missing) * complete
    stream.skip(1, "end")
    dropped = {"invalid": missing} | ({} if complete else {"incomplete_window": 200 - missing})
    assert stream.account.dropped == dropped


@pytest.mark.parametrize(
    ("hop_s", "dropped"), [(0.5, {"superseded": 4 * 300}), (0.2, {}), (0.1, {}), (0.05, {})]
)
def test_what_lies_between_windows_is_superseded(hop_s: float, dropped: dict[str, int]) -> None:
    stream = SoundStream(sound(hop_s=hop_s, window_s=0.2))
    blocks = [block(end, np.ones(100)) for end in range(100, 2_001, 100)]
    windows = run(stream, blocks, 5_000)
    assert len(windows) == len({w.end_ns for w in windows}) > 3
    dropped = dict(dropped)
    assert stream.account.dropped.pop("incomplete_window", 0) <= 100
    assert stream.account.dropped == dropped


def test_a_window_is_never_changed_by_what_comes_later() -> None:
    stream = SoundStream(sound())
    kept: list[tuple[Window, bytes, bytes]] = []
    buffers = set()
    for end in range(100, 200_001, 100):
        stream.push(block(end + 0.3, range(end - 99, end + 1)))
        buffers.add(id(stream._values))
        while stream.due_ns < (end + 0.3) * MS:
            window = stream.cut()
            kept.append((window, window.values.tobytes(), window.valid.tobytes()))
    assert len(kept) > 900
    shared = sum(np.shares_memory(window.values, stream._values) for window, _, _ in kept)
    assert 0 < shared < len(kept), "windows are views of the buffer, and it was replaced"
    assert all(
        window.values.tobytes() == values and window.valid.tobytes() == valid
        for window, values, valid in kept
    )


odd_blocks = st.sampled_from(["whole", "whole", "whole", "nan", "range", "malformed"])
stamps = st.sampled_from([0, 0, 0, 1, 20, 99, 300, 5_000, 60_000, -40, -(10**12), 10**12])
actions = st.one_of(
    st.tuples(st.just("push"), st.integers(1, 400), odd_blocks, stamps),
    st.tuples(st.just("push"), st.integers(1, 400), odd_blocks, stamps),
    st.tuples(st.just("cut"), st.integers(1, 5), st.just(""), st.just(0)),
    st.tuples(st.just("skip"), st.integers(0, 30), st.just("overload"), st.just(0)),
    st.tuples(st.just("tidy"), st.just(0), st.just(""), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 12_000), st.just(""), st.just(0)),
)


@given(spec=specs, steps=st.lists(actions, max_size=40))
def test_every_sample_is_accounted_for_at_every_moment(
    spec: Modality, steps: list[tuple[str, int, str, int]]
) -> None:
    stream = SoundStream(spec)
    account = stream.account
    now_ms = received = 0
    for kind, count, what, delay_ms in steps:
        if kind == "push":
            now_ms += count
            data = np.ones((count, 2 if what == "malformed" else 1), np.float32)
            data[: count // 2] = {"nan": np.nan, "range": 2 * LIMIT}.get(what, 1)
            stream.push(Sample("mic", (now_ms - delay_ms) * MS, now_ms * MS, data))
            received += count
        elif kind == "wait":
            now_ms += count
        elif kind == "tidy":
            stream.tidy()
        else:
            waiting = min(count, stream.due(now_ms * MS))
            if kind == "skip":
                stream.skip(waiting, what)
            else:
                for _ in range(waiting):
                    window = stream.cut()
                    assert np.isfinite(window.values).all()
                    assert (np.abs(window.values) <= LIMIT).all()
                    assert set(np.unique(window.valid)) <= {0, 1}
                    assert window.complete or not (window.values.any() or window.valid.any())
        assert account.received == received
        assert account.unaccounted == 0
        assert min([account.used, account.in_flight, *account.dropped.values()]) >= 0
    if stream.next_end_ns is not None:
        stream.skip(10**5, "end")
        assert account.in_flight == account.unaccounted == 0
