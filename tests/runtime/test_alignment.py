"""Which sample each grid point of a window takes, for series and images, and the account of them all."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.bundle.manifest import Channel, Modality
from fusedge.bundle.sample import Sample, size
from fusedge.bundle.window import complete, grid_ns, to_ns
from fusedge.runtime.sample_stream import SampleStream
from tests.runtime.streams import MS, run
from tests.tiny_bundle import modality

HEIGHT, WIDTH = 2, 3


def series(resample: str, **changes: Any) -> Modality:
    """10 Hz, windows of 0.5 s, a sample is taken up to 0.1 s away and may be 0.2 s late."""
    return modality(
        "fast", **{"resample": resample, "max_hold_s": 0.1, "lateness_s": 0.2} | changes
    )


def camera(resample: str, **changes: Any) -> Modality:
    """As `series`, in small pictures."""
    frozen_s = changes.pop("frozen_s", None)
    channels = (Channel(name="grey", unit="1", minimum=0, maximum=255, frozen_s=frozen_s),)
    fields = {"kind": "image", "height": HEIGHT, "width": WIDTH, "channels": channels} | changes
    return series(resample, **fields)


def picture(level: float) -> NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH, 1), level, np.uint8)


def sample(spec: Modality, time_ms: float, data: Any, late_ms: float = 0) -> Sample:
    """A sample that was captured at `time_ms`, stamped with the latency of the modality."""
    stamp_ns = round(time_ms * MS) + to_ns(spec.latency_s)
    return Sample(spec.name, stamp_ns, stamp_ns + round(late_ms * MS), data)


def picks(spec: Modality, times_ns: Sequence[int], end_ns: int) -> list[int]:
    """Index of the sample of each grid point, -1 for none: the docstrings' contracts, word by word."""
    hold_ns, count = to_ns(spec.max_hold_s), spec.window_samples
    if spec.resample == "newest":
        oldest_ns = end_ns - to_ns(spec.window_s) - hold_ns
        last = [i for i, t in enumerate(times_ns) if oldest_ns <= t <= end_ns][-count:]
        return [-1] * (count - len(last)) + last
    picked = []
    for point in grid_ns(end_ns, count, spec.rate_hz).tolist():
        if spec.resample == "hold":
            near = [(point - t, i) for i, t in enumerate(times_ns) if 0 <= point - t <= hold_ns]
        else:
            near = [
                (abs(t - point), i) for i, t in enumerate(times_ns) if abs(t - point) <= hold_ns
            ]
        picked.append(min(near)[1] if near else -1)
    return picked


SHAPES: dict[str, dict[str, Any]] = {
    "tumbling": {},
    "overlapping": {"window_s": 1.0, "hop_s": 0.3},
    "sparse": {"window_s": 0.2, "hop_s": 0.5},
    "single": {"window_s": 0.1, "hop_s": 0.1},
    "delayed": {"latency_s": 0.5},
    "strict": {"min_valid": 1.0},
    "lax": {"min_valid": 0.0, "max_hold_s": 0.03},
}
specs = st.builds(
    lambda make, resample, name: make(resample, **SHAPES[name]),
    st.sampled_from([series, camera]),
    st.sampled_from(["hold", "exact", "newest"]),
    st.sampled_from(sorted(SHAPES)),
)
rows = st.lists(
    st.tuples(
        st.integers(0, 250).map(lambda n: n * 10) | st.integers(0, 2500),
        st.sampled_from([0, 0, 20, 100]),  # ms late
        st.lists(st.integers(1, 99) | st.sampled_from([200, -300]), min_size=2, max_size=2),
    ),
    unique_by=lambda row: row[0],
    max_size=50,
)


@given(spec=specs, rows=rows, tidy=st.booleans())
def test_every_window_is_what_its_policy_says(
    spec: Modality, rows: list[tuple[int, int, list[int]]], tidy: bool
) -> None:
    images = spec.kind == "image"
    rows.sort()
    data = [picture(abs(v[0]) % 256) if images else np.array(v, np.float32) for _, _, v in rows]
    stream = SampleStream(spec)
    samples = [sample(spec, t, d, late) for (t, late, _), d in zip(rows, data, strict=True)]
    windows = run(stream, samples, 5_000, tidy)
    if rows:
        hop_ns = to_ns(spec.hop_s)
        first_ns = -(-rows[0][0] * MS // hop_ns) * hop_ns
        ends = [window.end_ns for window in windows]
        assert ends == [first_ns + number * hop_ns for number in range(len(ends))] != []
    times_ns = [t * MS for t, _, _ in rows]
    used: set[int] = set()
    for window in windows:
        picked = picks(spec, times_ns, window.end_ns)
        shape = spec.window_shape
        values = np.zeros(shape, np.uint8 if images else np.float32)
        valid = np.zeros(spec.valid_shape, np.float32)
        seen = set()
        for place, index in enumerate(picked):
            if index < 0:
                continue
            there = np.ones(()) if images else np.abs(data[index]) <= 100
            values[place] = np.where(there, data[index], 0)
            valid[place] = there
            seen |= {index} if there.any() else set()
        whole = bool(complete(valid.reshape(shape[0], -1), spec.min_valid))
        assert window.complete == whole
        assert window.values.dtype == values.dtype
        np.testing.assert_array_equal(window.values[0], values * whole)
        np.testing.assert_array_equal(window.valid[0], valid * whole)
        used |= seen if whole else set()
    account = stream.account
    assert account.used == len(used)
    assert account.received == len(rows) and account.in_flight == 0
    assert set(account.dropped) <= {"superseded", "incomplete_window", "invalid"}


def test_hold_takes_the_newest_before_and_exact_the_nearest() -> None:
    taken = {}
    for resample in ("hold", "exact", "newest"):
        spec = series(resample, window_s=0.1, hop_s=0.1, min_valid=0)
        times = [20, 91, 108, 160]
        samples = [sample(spec, t, np.full(2, t % 100, np.float32)) for t in times]
        windows = run(SampleStream(spec), samples, 620)
        assert [w.end_ns // MS for w in windows] == [100, 200, 300, 400]
        taken[resample] = [float(w.values[0, 0, 0]) if w.complete else None for w in windows]
    assert taken == {
        "hold": [91, 60, None, None],
        "exact": [8, 60, None, None],
        "newest": [91, 60, 60, None],
    }


@pytest.mark.parametrize(
    ("resample", "away_ms", "taken"),
    [
        ("hold", 100, True),
        ("hold", 101, False),
        ("hold", -1, False),
        ("exact", 100, True),
        ("exact", 101, False),
        ("exact", -100, True),
        ("exact", -101, False),
        ("newest", 0, True),
        ("newest", -1, False),
        ("newest", 200, True),
        ("newest", 201, False),
    ],
)
def test_how_far_from_its_grid_point_a_sample_is_taken(
    resample: str, away_ms: int, taken: bool
) -> None:
    # One grid point, at 1000 ms; `away_ms` before it. Another sample long before opens the stream.
    spec = series(resample, window_s=0.1, hop_s=0.1, min_valid=1)
    samples = [sample(spec, t, np.ones(2, np.float32)) for t in (400, 1000 - away_ms)]
    windows = run(SampleStream(spec), samples, 1_400)
    assert {w.end_ns // MS: w.complete for w in windows}[1000] == taken


def test_newest_gives_its_samples_in_order_at_the_end_of_the_window() -> None:
    spec = series("newest", min_valid=0.4)
    samples = [sample(spec, t, np.full(2, t % 97, np.float32)) for t in (501, 999, 730)]
    (first, *_) = run(SampleStream(spec), samples, 1_300)
    assert first.values[0, :, 0].tolist() == [0, 0, 501 % 97, 730 % 97, 999 % 97]
    assert first.valid[0, :, 1].tolist() == [0, 0, 1, 1, 1]
    dense = [sample(spec, t, np.full(2, t % 97, np.float32)) for t in range(510, 1001, 10)]
    stream = SampleStream(spec)
    (window, *_) = run(stream, dense, 1_300)
    assert window.values[0, :, 0].tolist() == [t % 97 for t in (960, 970, 980, 990, 1000)]
    stream.skip(3, "end")
    assert stream.account.used == 5 and stream.account.in_flight == 0


def test_a_single_picture_is_not_copied() -> None:
    spec = camera("hold", window_s=0.1, hop_s=0.1)
    stream = SampleStream(spec)
    frame = picture(7)
    (window,) = run(stream, [sample(spec, 100, frame)], 350)
    assert window.values.shape == (1, 1, HEIGHT, WIDTH, 1) and window.valid.tolist() == [[1]]
    assert np.shares_memory(window.values, frame)
    again, gone = stream.cut(), stream.cut()
    assert np.shares_memory(again.values, frame) and not gone.complete


def test_several_pictures_are_a_stack_and_missing_ones_are_black() -> None:
    spec = camera("exact", window_s=0.4, hop_s=0.4, max_hold_s=0.02, min_valid=0.5)
    frames = [picture(t) for t in (10, 20, 30)]
    samples = [sample(spec, t, f) for t, f in zip((105, 290, 415), frames, strict=True)]
    stream = SampleStream(spec)
    window = run(stream, samples, 650)[0]
    assert window.values[0, :, 0, 0, 0].tolist() == [10, 0, 20, 30]
    assert window.valid.tolist() == [[1, 0, 1, 1]]
    assert not any(np.shares_memory(window.values, frame) for frame in frames)
    empty = stream.cut()
    assert not empty.complete and empty.values.shape == window.values.shape
    assert not empty.values.any() and not empty.valid.any()


@pytest.mark.parametrize("resample", ["hold", "exact", "newest"])
def test_memory_of_a_picture_is_let_go_when_no_window_can_hold_it(resample: str) -> None:
    spec = camera(resample, window_s=0.2, hop_s=0.2)
    stream = SampleStream(spec)
    alive: list[weakref.ref[Any]] = []

    def push(time_ms: int) -> None:
        frame = picture(time_ms % 251)
        alive.append(weakref.ref(frame))
        stream.push(sample(spec, time_ms, frame))

    for time_ms in range(33, 20_000, 33):
        push(time_ms)
        while stream.due_ns < time_ms * MS:
            stream.cut()
            stream.tidy()
        held = sum(ref() is not None for ref in alive)
        assert held == len(stream) <= 24
    stream.skip(10, "overload")
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_memory_of_pictures_that_nobody_takes_is_bounded() -> None:
    spec = camera("hold", window_s=0.2, hop_s=0.2)
    stream = SampleStream(spec)
    alive: list[weakref.ref[Any]] = []
    for time_ms in range(33, 20_000, 33):
        frame = picture(time_ms % 251)
        alive.append(weakref.ref(frame))
        stream.push(sample(spec, time_ms, frame))
        del frame
        assert sum(ref() is not None for ref in alive) == len(stream) <= stream._ring.capacity
        assert stream.account.unaccounted == 0
    assert stream.account.dropped == {"overflow": len(alive) - len(stream)}


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((HEIGHT, WIDTH, 1), np.float32),
        np.zeros((HEIGHT, WIDTH), np.uint8),
        np.zeros((WIDTH, HEIGHT, 1), np.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.zeros(1, np.float32),
    ],
    ids=lambda data: f"{data.dtype}{list(data.shape)}",
)
def test_what_is_no_picture_of_the_modality_is_malformed(data: NDArray[Any]) -> None:
    spec = camera("hold")
    stream = SampleStream(spec)
    stream.push(sample(spec, 100, data))
    assert stream.account.dropped == {"malformed": size(sample(spec, 100, data))}
    assert stream.account.unaccounted == 0 and stream.next_end_ns is None


def test_a_camera_that_stands_still_gives_invalid_pictures() -> None:
    spec = camera("hold", frozen_s=0.5, min_valid=1.0)
    stream = SampleStream(spec)
    levels = [time if time < 1_000 else 77 for time in range(100, 3_001, 100)]
    samples = [sample(spec, (n + 1) * 100, picture(v % 251)) for n, v in enumerate(levels)]
    windows = run(stream, samples, 3_300)
    # Still since 1.0 s, and not believed after 1.5 s.
    assert [w.complete for w in windows] == [True] * 3 + [False] * 3
    assert stream.account.dropped["invalid"] == 15 == stream.guard.frozen["grey"]


pushes = st.tuples(
    st.just("push"),
    st.integers(0, 200),  # ms since the action before
    st.sampled_from([0, 0, 0, 20, 99, 201, 600, 5_000, -40, -60, -(10**15), 10**15]),  # delay
    st.sampled_from(["plain", "plain", "plain", "nan", "range", "shape", "type", "same"]),
)
others = st.tuples(
    st.sampled_from(["cut", "cut", "skip", "tidy"]), st.integers(0, 900), st.just(0), st.just("")
)


def odd_data(spec: Modality, what: str, number: int) -> NDArray[Any]:
    if spec.kind == "image":
        data: NDArray[Any] = picture(0 if what == "same" else number % 251)
    else:
        level = {"nan": np.nan, "range": 1e9, "same": 1.0}.get(what, number % 100)
        data = np.array([level, number % 50 if what == "nan" else level], np.float32)
    if what == "shape":
        return data[:1].repeat(5, axis=0)
    return data.astype(np.float64) if what == "type" else data


@given(
    spec=specs,
    frozen_s=st.sampled_from([None, 0.3]),
    actions=st.lists(pushes | others, max_size=60),
)
def test_every_sample_is_accounted_for_at_every_moment(
    spec: Modality, frozen_s: float | None, actions: list[tuple[str, int, int, str]]
) -> None:
    channels = tuple(c.model_copy(update={"frozen_s": frozen_s}) for c in spec.channels)
    stream = SampleStream(spec.model_copy(update={"channels": channels}))
    account = stream.account
    now_ms = received = 0
    for number, (kind, wait_ms, delay_ms, what) in enumerate(actions):
        now_ms += wait_ms
        if kind == "push":
            data = odd_data(spec, what, number)
            item = Sample(spec.name, (now_ms - delay_ms) * MS, now_ms * MS, data)
            received += size(item)
            stream.push(item)
        elif kind == "tidy":
            stream.tidy()
        else:
            waiting = min(stream.due(now_ms * MS), 20)
            if kind == "skip":
                stream.skip(waiting, "overload")
            for _ in range(waiting if kind == "cut" else 0):
                window = stream.cut()
                assert np.isfinite(window.values).all()
                assert set(np.unique(window.valid)) <= {0, 1}
                assert window.complete or not (window.values.any() or window.valid.any())
                assert account.unaccounted == 0
        assert account.received == received
        assert account.unaccounted == 0
        assert min([account.used, account.in_flight, *account.dropped.values()]) >= 0
    if stream.next_end_ns is not None:
        stream.skip(10**5, "end")
    assert account.in_flight == account.unaccounted == 0


@given(spec=specs, rows=rows, tidied=st.integers(0, 2**50 - 1))
def test_when_it_is_tidied_changes_nothing(
    spec: Modality, rows: list[tuple[int, int, list[int]]], tidied: int
) -> None:
    outcomes = []
    for tidy in (-1, 0, tidied):
        stream = SampleStream(spec)
        windows: list[tuple[int, bytes, bytes]] = []
        for number, (time_ms, late_ms, values) in enumerate(
            sorted(rows, key=lambda r: r[0] + r[1])
        ):
            data = picture(abs(values[0]) % 251) if spec.kind == "image" else np.float32(values)
            item = sample(spec, time_ms, data, late_ms)
            waiting = stream.due(item.arrival_ns)
            if waiting > 3:
                stream.skip(waiting - 1, "overload")
                waiting = 1
            for _ in range(waiting):
                window = stream.cut()
                windows.append((window.end_ns, window.values.tobytes(), window.valid.tobytes()))
                if tidy >> number & 1:
                    stream.tidy()
            stream.push(item)
            if tidy >> (number * 7 % 50) & 1:
                stream.tidy()
        if stream.next_end_ns is not None:
            stream.skip(100, "end")
        outcomes.append((windows, stream.account.as_dict()))
    assert outcomes[0] == outcomes[1] == outcomes[2]
