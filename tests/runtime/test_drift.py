"""The map from samples counted to session time, on simulated sound cards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.drift import SampleClock

RATE_HZ = 16_000
START_NS = 10**15  # a machine that has been up for 12 days
DAY_S = 86_400.0
Floats = NDArray[np.float64]


class Card:
    """Blocks of a sound card: samples so far, when the last was captured, and when they say it was."""

    def __init__(
        self,
        ppm: float,
        duration_s: float,
        block_s: float = 0.02,
        steps: tuple[tuple[float, float], ...] = (),
        ppm_per_hour: float = 0.0,
        stall_every_s: float = 60.0,
        seed: int = 0,
    ) -> None:
        """`steps` are (time, samples made up, in seconds); negative where samples are lost."""
        random = np.random.default_rng(seed)
        self.true_s = np.arange(1, round(duration_s / block_s) + 1) * block_s
        drift = ppm + ppm_per_hour * self.true_s / 7200
        self.device_s = self.true_s * (1 + drift * 1e-6)
        for time_s, made_up_s in steps:
            self.device_s += np.where(self.true_s >= time_s, made_up_s, 0)
        self.said_s = self.true_s + random.uniform(-0.001, 0.02, len(self.true_s))
        for first in np.flatnonzero(random.random(len(self.true_s)) < block_s / stall_every_s):
            self.stall(self.true_s[first], random.uniform(0.2, 5))

    def stall(self, time_s: float, duration_s: float) -> None:
        """All blocks of this time come at its end."""
        held = (self.true_s >= time_s) & (self.true_s < time_s + duration_s)
        self.said_s[held] = np.maximum(self.said_s[held], time_s + duration_s)

    def run(self, clock: SampleClock) -> Floats:
        """The error of the map after each block, in seconds."""
        counts = np.rint(self.device_s * RATE_HZ).astype(np.int64).tolist()
        said_ns = np.maximum.accumulate(self.said_s * NANOSECONDS).astype(np.int64) + START_NS
        mapped = []
        for count, time_ns in zip(counts, said_ns.tolist(), strict=True):
            clock.observe(count, time_ns)
            mapped.append(clock.time_ns(count) - START_NS)
        return np.array(mapped) / NANOSECONDS - self.true_s

    def after(self, *times_s: float, within_s: float = 30.0) -> NDArray[np.bool_]:
        """All blocks but those less than `within_s` after one of these times."""
        kept = np.ones(len(self.true_s), np.bool_)
        for time_s in times_s:
            kept &= (self.true_s < time_s) | (self.true_s >= time_s + within_s)
        return kept


@pytest.mark.parametrize("ppm", [300.0, -300.0, 0.0])
def test_a_day_stays_within_5_ms(ppm: float) -> None:
    card = Card(ppm, DAY_S, 0.1, ((20_000, 0.05), (50_000, -0.05)), stall_every_s=600)
    clock = SampleClock(RATE_HZ)
    error_s = card.run(clock)
    skew_s = np.abs(error_s[card.after(0, 20_000, 50_000)]).max()
    print(f"{ppm:+.0f} ppm, 24 h: |skew| <= {1e3 * skew_s:.2f} ms, {clock.ppm:+.2f} ppm found")
    assert skew_s <= 0.005
    assert clock.ppm == pytest.approx(ppm, abs=2)
    assert clock.steps == 2 and clock.settled
    uncorrected_s = card.device_s[-1] - card.true_s[-1]
    assert uncorrected_s == pytest.approx(ppm * 1e-6 * DAY_S, abs=0.02)  # 25.9 s
    assert -clock.correction_ns / NANOSECONDS == pytest.approx(uncorrected_s, abs=0.03)


@pytest.mark.parametrize("ppm_per_hour", [10.0, -10.0])
def test_a_drift_that_changes_with_temperature_is_followed(ppm_per_hour: float) -> None:
    card = Card(100, 4 * 3600, 0.1, ppm_per_hour=ppm_per_hour)
    clock = SampleClock(RATE_HZ)
    error_s = card.run(clock)
    assert np.abs(error_s[card.after(0)]).max() <= 0.003
    assert clock.ppm == pytest.approx(100 + 4 * ppm_per_hour, abs=4)


@pytest.mark.parametrize("block_s", [0.01, 0.064, 0.2])
@pytest.mark.parametrize("made_up_s", [0.05, -0.05, -5.0])
def test_lost_and_made_up_samples_are_re_placed(block_s: float, made_up_s: float) -> None:
    # The start in a stall and the step in another one.
    card = Card(-300, 200, block_s, ((100, made_up_s),), stall_every_s=20)
    card.stall(0, 3)
    card.stall(99, 2)
    clock = SampleClock(RATE_HZ)
    error_s = card.run(clock)
    assert np.abs(error_s[card.after(0) & card.after(100, within_s=10)]).max() <= 0.005
    assert clock.steps == 1
    assert clock.ppm == pytest.approx(-300, abs=25)


def test_a_device_that_stood_still_goes_on() -> None:
    card = Card(200, 120, steps=((60, -8.0),))
    taken = (card.true_s < 60) | (card.true_s >= 68)
    for name in ("true_s", "device_s", "said_s"):
        setattr(card, name, getattr(card, name)[taken])
    clock = SampleClock(RATE_HZ)
    error_s = card.run(clock)
    assert np.abs(error_s[card.after(0, 68, within_s=22)]).max() <= 0.005
    assert clock.steps == 1 and clock.settled


@pytest.mark.parametrize("made_up_s", [0.008, -0.008])
def test_a_small_step_is_followed(made_up_s: float) -> None:
    card = Card(100, 200, steps=((100, made_up_s),))
    clock = SampleClock(RATE_HZ)
    assert np.abs(card.run(clock)[card.after(0, 100, within_s=22)]).max() <= 0.003
    assert clock.steps == 0


def test_stalls_are_no_steps() -> None:
    card = Card(300, 1000, stall_every_s=10)
    clock = SampleClock(RATE_HZ)
    assert np.abs(card.run(clock)[card.after(0)]).max() <= 0.005
    assert clock.steps == 0


def test_the_first_block_is_enough_for_a_map() -> None:
    clock = SampleClock(RATE_HZ)
    clock.observe(320, START_NS)
    assert clock.time_ns(320) == START_NS
    assert clock.time_ns(0) == START_NS - 20_000_000
    assert clock.count_at(START_NS + NANOSECONDS) == 320 + RATE_HZ
    assert (clock.ppm, clock.steps, clock.settled) == (0, 0, False)


samples = st.integers(0, 10**6) | st.integers(0, 2**40)
times = st.integers(0, 2**40) | st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=50)
@given(
    rate_hz=st.sampled_from([8_000, 44_100, 48_000]),
    blocks=st.lists(st.tuples(samples, times), min_size=1, max_size=200),
    ordered=st.booleans(),
    counts=st.lists(st.floats(0, 1e9), max_size=5),
)
def test_any_blocks_give_a_rising_map_and_its_inverse(
    rate_hz: float, blocks: list[tuple[int, int]], ordered: bool, counts: list[float]
) -> None:
    maps = [SampleClock(rate_hz), SampleClock(rate_hz)]
    if ordered:
        blocks = list(zip(*(sorted(column) for column in zip(*blocks, strict=True)), strict=True))
    for clock in maps:
        for count, time_ns in blocks:
            clock.observe(count, time_ns)
    clock = maps[0]
    newest = blocks[-1][0]
    times_ns = [clock.time_ns(newest + step) for step in (0, 1000, 2000)]
    assert times_ns[0] < times_ns[1] < times_ns[2]
    for count in counts:
        back = clock.count_at(clock.time_ns(newest + count))
        assert back == pytest.approx(newest + count, rel=1e-12, abs=0.01)
        assert maps[1].time_ns(count) == clock.time_ns(count)
    assert abs(clock.ppm) <= 10_200
