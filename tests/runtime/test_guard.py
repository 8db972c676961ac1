"""What is not a measurement never comes through, and is counted by channel."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusedge.bundle.manifest import Channel, Modality
from fusedge.bundle.window import to_ns
from fusedge.runtime.guard import ValueGuard
from tests.tiny_bundle import modality

MS = 1_000_000
NAN, INF = math.nan, math.inf


def channels(*limits: tuple[float, float, float | None]) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=f"c{i}", unit="1", minimum=low, maximum=high, frozen_s=frozen_s)
        for i, (low, high, frozen_s) in enumerate(limits)
    )


def guard(*limits: tuple[float, float, float | None], **changes: Any) -> ValueGuard:
    return ValueGuard(modality("fast", channels=channels(*limits), **changes))


def sound_guard(*limits: tuple[float, float, float | None]) -> ValueGuard:
    return guard(*limits, kind="audio", resample="contiguous")


def data(*values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def same(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


WIDE, NARROW = (-100.0, 100.0, None), (0.0, 1.0, None)


def test_what_is_plausible_comes_through_as_it_is() -> None:
    one = guard(WIDE, NARROW)
    values = data(-100, 1)
    assert one.check(values, 0) is values, "not copied"
    assert one.implausible == one.frozen == {"c0": 0, "c1": 0}


@pytest.mark.parametrize("value", [NAN, INF, -INF, 100.00001, -100.00001, 3e38])
def test_what_is_not_finite_or_out_of_range_is_nan(value: float) -> None:
    one = guard(WIDE, NARROW)
    values = data(value, 0.5)
    same(one.check(values, 0), data(NAN, 0.5))
    assert one.implausible == {"c0": 0 if math.isnan(value) else 1, "c1": 0}
    same(values, data(value, 0.5))  # somebody else's array


def test_each_channel_has_its_own_range() -> None:
    one = guard(WIDE, NARROW)
    same(one.check(data(50, 50), 0), data(50, NAN))
    same(one.check(data(-1, -1), 0), data(-1, NAN))
    assert one.implausible == {"c0": 0, "c1": 2}


def test_a_block_of_sound_is_judged_sample_by_sample() -> None:
    one = sound_guard(WIDE, NARROW)
    block = data([1, 1], [NAN, 0.5], [101, 2], [0, -INF], [50, 0.25])
    same(one.check(block, 0), data([1, 1], [NAN, 0.5], [NAN, NAN], [0, NAN], [50, 0.25]))
    assert one.implausible == {"c0": 1, "c1": 2}
    within = data([0.5, 0.5], [1, 0])
    assert one.check(within, 0) is within


def test_a_range_beyond_what_float32_holds_lets_no_infinity_through() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = guard((-1e300, 1e300, None), (-3.5e38, 3.5e38, None))
    same(one.check(data(INF, -INF), 0), data(NAN, NAN))
    same(one.check(data(3e38, -3e38), 0), data(3e38, -3e38))


def test_a_value_that_stands_still_for_too_long_is_not_believed() -> None:
    one = guard((-100, 100, 0.5), WIDE)
    found = [one.check(data(7, 7), ms * MS)[0] for ms in range(1000, 2001, 100)]
    assert [math.isnan(value) for value in found] == [False] * 6 + [True] * 5
    assert one.frozen == {"c0": 5, "c1": 0} and one.implausible == {"c0": 0, "c1": 0}
    same(one.check(data(7.0000005, 7), 2100 * MS), data(7.0000005, 7))  # the last bit moves
    assert not math.isnan(one.check(data(7.0000005, 7), 2600 * MS)[0])
    assert math.isnan(one.check(data(7.0000005, 7), 2600 * MS + 1)[0])


def test_each_channel_stands_still_by_itself() -> None:
    one = guard((-100, 100, 0.5), (-100, 100, 2.0))
    for number, ms in enumerate(range(0, 3001, 100)):
        found = one.check(data(1, 2 if number > 10 else number), ms * MS)
        assert math.isnan(found[0]) == (ms > 500)
        assert math.isnan(found[1]) == (ms > 1100 + 2000)
    found = one.check(data(1, 2), 3200 * MS)
    assert np.isnan(found).all()
    assert one.frozen == {"c0": 26, "c1": 1}


def test_nan_is_missing_and_not_frozen() -> None:
    one = guard((-100, 100, 0.5))
    for ms in range(0, 2001, 100):
        assert math.isnan(one.check(data(NAN), ms * MS)[0])
    assert one.frozen == one.implausible == {"c0": 0}
    same(one.check(data(1), 2100 * MS), data(1))


def test_an_infinity_that_stands_still_is_counted_once() -> None:
    one = guard((-100, 100, 0.5))
    for ms in range(0, 1001, 100):
        assert math.isnan(one.check(data(INF), ms * MS)[0])
    assert one.implausible == {"c0": 6} and one.frozen == {"c0": 5}


def test_sound_that_stands_still_is_not_believed_in_blocks_of_any_size() -> None:
    one = sound_guard((-1, 1, 0.5), (-1, 1, None))
    frozen = 0
    for number, count in zip(range(30), itertools.cycle([100, 37, 64]), strict=False):
        block = np.zeros((count, 2), np.float32)
        found = one.check(block, number * 100 * MS)
        still = number * 100 > 500
        frozen += count * still
        assert np.isnan(found[:, 0]).all() == np.isnan(found[:, 0]).any() == still
        assert not found[:, 1].any()
    assert one.frozen == {"c0": frozen, "c1": 0}
    block = np.zeros((50, 2), np.float32)
    block[-1, 0] = 1e-20
    same(one.check(block, 3000 * MS), block)


def camera(frozen_s: float | None, height: int = 480, width: int = 640) -> ValueGuard:
    return ValueGuard(
        modality(
            "fast", kind="image", height=height, width=width, channels=channels((0, 255, frozen_s))
        )
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (480, 640), (1080, 1920)])
def test_a_picture_that_stands_still_is_refused_as_a_whole(size: tuple[int, int]) -> None:
    one = camera(0.5, *size)
    picture = np.zeros((*size, 1), np.uint8)
    for ms in range(0, 1001, 100):
        found = one.check_image(picture, ms * MS)
        assert found is (picture if ms <= 500 else None)
    assert one.frozen == {"c0": 5}
    moved = picture.copy()
    moved[0, 0] = 1
    assert one.check_image(moved, 1100 * MS) is moved


def test_noise_anywhere_in_a_picture_shows_that_the_camera_lives() -> None:
    one = camera(0.5)
    random = np.random.default_rng(0)
    picture = np.full((480, 640, 1), 100, np.uint8)
    for ms in range(0, 3001, 100):  # of one pixel in a hundred the last bit
        noisy = picture + (random.random(picture.shape) < 0.01).astype(np.uint8)
        assert one.check_image(noisy, ms * MS) is noisy


def test_a_camera_that_may_stand_still_is_never_frozen() -> None:
    one, picture = camera(None), np.zeros((480, 640, 1), np.uint8)
    assert all(one.check_image(picture, ms * MS) is picture for ms in range(0, 10**6, 10**5))


def test_the_guard_keeps_no_array_that_it_was_given() -> None:
    one, picture = camera(0.5, 5, 7), np.zeros((5, 7, 1), np.uint8)
    one.check_image(picture, 0)
    picture[0, 0] = 9  # as a driver that uses its buffer again
    assert one.check_image(picture, 600 * MS) is picture


class Reference:
    """The contract in plain numbers, for samples of a series."""

    def __init__(self, spec: Modality) -> None:
        self.channels = spec.channels
        self.last: list[float] | None = None
        self.since_ns = [0] * len(spec.channels)
        self.implausible = {c.name: 0 for c in spec.channels}
        self.frozen = {c.name: 0 for c in spec.channels}

    def check(self, values: list[float], time_ns: int) -> list[float]:
        out = []
        for index, (value, channel) in enumerate(zip(values, self.channels, strict=True)):
            if self.last is None or value != self.last[index]:
                self.since_ns[index] = time_ns
            limit_s, still_ns = channel.frozen_s, time_ns - self.since_ns[index]
            if limit_s is not None and still_ns > to_ns(limit_s):
                self.frozen[channel.name] += 1
                value = NAN
            elif not math.isnan(value) and not channel.minimum <= value <= channel.maximum:
                self.implausible[channel.name] += 1
                value = NAN
            out.append(value)
        self.last = list(values)
        return out


ODD = np.array([NAN, INF, -INF, 100, -100, 101, -101, 3e38, -0.0, 0, 1e-45, 50], np.float32)


def test_ten_thousand_samples_come_out_finite_and_in_range_or_nan_and_counts_are_exact() -> None:
    random = np.random.default_rng(5)
    limits = ((-100, 100, None), (-100, 100, 0.3), (0, 50, 1.0), (-1e30, 1e30, 0.05))
    spec = modality("fast", channels=channels(*limits))
    one, reference = ValueGuard(spec), Reference(spec)
    time_ns, values = 0, np.zeros(4, np.float32)
    for _ in range(10_000):
        time_ns += int(random.integers(0, 200)) * MS
        changes = random.random(4) < 0.4
        fresh = np.where(random.random(4) < 0.5, random.choice(ODD, 4), random.normal(0, 60, 4))
        values = np.where(changes, fresh, values).astype(np.float32)
        given = values.copy()
        found = one.check(values, time_ns)
        same(found, data(*reference.check(values.tolist(), time_ns)))
        same(values, given)
        known = found[np.isfinite(found)]
        assert not np.isinf(found).any() and (np.abs(known) <= 1e30).all()
    assert one.implausible == reference.implausible and one.frozen == reference.frozen
    assert min(one.implausible.values()) > 100 and min(list(one.frozen.values())[1:]) > 50


def test_a_thousand_blocks_of_sound_come_out_finite_and_in_range_or_nan() -> None:
    random = np.random.default_rng(6)
    one = sound_guard((-1, 1, None), (-0.5, 0.5, None))
    outside = np.zeros(2, np.int64)
    low, high = data(-1, -0.5), data(1, 0.5)
    for number in range(1000):
        block = random.normal(0, 0.3, (int(random.integers(1, 50)), 2)).astype(np.float32)
        spots = random.random(block.shape) < 0.02
        block[spots] = random.choice(ODD, int(spots.sum()))
        plausible = (block >= low) & (block <= high)
        outside += (~plausible & ~np.isnan(block)).sum(axis=0)
        same(one.check(block, number * MS), np.where(plausible, block, np.float32(NAN)))
    assert list(one.implausible.values()) == outside.tolist() and outside.min() > 100
