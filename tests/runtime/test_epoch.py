"""Stamps of a device whose clock is stepped, glitches, stands still, or never agreed with ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.window import to_ns
from fusedge.runtime.epoch import FUTURE_TOLERANCE_NS, TRANSPORT_NS, EpochTracker

MS = 1_000_000
HOUR = 3_600_000 * MS
LATENESS = 100 * MS
USUAL = 5 * MS  # the transport delay here
START = 10**15


class Device:
    """Samples at 10 Hz, each captured `USUAL` before it arrives; its clock is off by `ahead_ns`."""

    def __init__(self, lateness_ns: int = LATENESS, ahead_ns: int = 0) -> None:
        self.tracker = EpochTracker(lateness_ns)
        self.ahead_ns = ahead_ns
        self.now_ns = START

    def send(self, count: int = 1, late_ns: int = 0, period_ns: int = 100 * MS) -> list[object]:
        """What becomes of the next samples: how far from the truth they are placed, or the refusal."""
        fates: list[object] = []
        for _ in range(count):
            self.now_ns += period_ns
            placed = self.tracker.place(self.now_ns + self.ahead_ns, self.now_ns + USUAL + late_ns)
            fates.append(placed if isinstance(placed, str) else placed - self.now_ns)
        return fates

    def settle(self) -> Device:
        assert self.send(100) == [0] * 100
        return self


@pytest.mark.parametrize("ahead_ns", [-300 * MS, -7000 * MS, -59_000 * MS])
def test_a_clock_that_falls_back_loses_one_sample_as_out_of_order(ahead_ns: int) -> None:
    device = Device().settle()
    device.ahead_ns = ahead_ns
    first, *others = device.send(50)
    assert first == pytest.approx(ahead_ns, abs=MS)  # which the stream refuses as late
    assert others == pytest.approx([0] * 49, abs=MS)
    assert (device.tracker.epoch, device.tracker.counts["backward"]) == (1, 1)
    assert device.tracker.offset_ns == pytest.approx(-ahead_ns, abs=MS)


@pytest.mark.parametrize("ahead_ns", [-10 * HOUR, -START, 200 * MS, HOUR, 2**62])
def test_a_clock_that_jumps_loses_one_sample(ahead_ns: int) -> None:
    reason = "future" if ahead_ns > 0 else "backward"
    device = Device().settle()
    device.ahead_ns = ahead_ns
    first, *others = device.send(50)
    assert first == reason
    assert others == pytest.approx([0] * 49, abs=MS)
    device.ahead_ns = 0
    assert device.send(50)[1:] == [0] * 49  # exact: its stamps are right as they are
    tracker = device.tracker
    assert tracker.epoch == 2 and tracker.offset_ns == 0
    counts = {"backward": 1, "future": 1, "stopped": 0}
    assert tracker.report() == {"epoch": 2, "offset_s": 0, **counts}


def test_short_steps_of_a_slow_source_are_noticed() -> None:
    device = Device()
    device.send(10, period_ns=1000 * MS)
    device.ahead_ns = -500 * MS  # so stamps rise all the same
    assert device.send(3, period_ns=1000 * MS)[1:] == pytest.approx([0, 0], abs=3 * MS)


@pytest.mark.parametrize("ahead_ns", [-START, -2 * HOUR, 5 * HOUR])
def test_a_clock_that_never_agreed_is_placed_from_the_second_sample_on(ahead_ns: int) -> None:
    device = Device(ahead_ns=ahead_ns)
    first, *others = device.send(20)
    assert first == ("future" if ahead_ns > 0 else "backward")
    assert others == [USUAL] * 19  # no usual delay is known yet
    assert device.tracker.epoch == 1


def test_one_glitch_is_no_step() -> None:
    device = Device().settle()
    for ahead_ns, fate in ((HOUR, "future"), (-HOUR, "backward"), (-3000 * MS, -3000 * MS)):
        for _ in range(3):
            device.ahead_ns = ahead_ns
            assert device.send(1) == [fate]
            device.ahead_ns = 0
            assert device.send(2) == [0, 0]
    assert device.tracker.epoch == 0


@pytest.mark.parametrize("period_ns", [10 * MS, 100 * MS, 1000 * MS])
@pytest.mark.parametrize("stall_ns", [300 * MS, 5000 * MS, 59_000 * MS])
def test_a_burst_after_a_stall_is_no_step(period_ns: int, stall_ns: int) -> None:
    device = Device()
    device.send(100, period_ns=period_ns)
    arrival_ns = device.now_ns + stall_ns
    while device.now_ns + period_ns <= arrival_ns:
        device.now_ns += period_ns
        assert device.tracker.place(device.now_ns, arrival_ns + USUAL) == device.now_ns
    assert device.send(20, period_ns=period_ns) == [0] * 20
    assert device.tracker.epoch == 0


def test_a_process_that_was_stopped_for_long_opens_no_epoch() -> None:
    device = Device().settle()
    arrival_ns = device.now_ns + 10 * TRANSPORT_NS
    while device.now_ns + 100 * MS <= arrival_ns:
        device.now_ns += 100 * MS
        placed = device.tracker.place(device.now_ns, arrival_ns + USUAL)
        assert placed in ("backward", device.now_ns)
    assert device.send(20) == [0] * 20
    assert device.tracker.epoch == 0


def test_a_clock_found_behind_after_a_pause_is_believed_once_it_is_steady() -> None:
    device = Device().settle()
    device.now_ns += 2 * HOUR
    device.ahead_ns = -HOUR
    fates = device.send(30)
    assert fates[:10] == ["backward"] * 10
    assert fates[11:] == pytest.approx([0] * 19, abs=MS)


@pytest.mark.parametrize("behind_ns", [0, START])
def test_stamps_that_stand_still_give_way_to_arrival(behind_ns: int) -> None:
    device = Device(ahead_ns=-behind_ns)
    device.send(100)
    frozen_ns = device.now_ns - behind_ns
    placed = []
    for _ in range(10):
        device.now_ns += 100 * MS
        time_ns = device.tracker.place(frozen_ns, device.now_ns + USUAL)
        assert isinstance(time_ns, int)
        placed.append(time_ns - device.now_ns)
    usual_ns = 0 if not behind_ns else USUAL
    assert placed[1:] == pytest.approx([usual_ns] * 9, abs=MS)
    assert device.tracker.counts["stopped"] == 9
    device.ahead_ns -= 1000 * MS  # it goes on from where it stood
    assert device.send(5)[1:] == pytest.approx([usual_ns] * 4, abs=MS)
    device.ahead_ns += 1000 * MS  # and is set right
    assert device.send(5)[1:] == pytest.approx([usual_ns] * 4, abs=MS)


def test_a_clock_that_never_ran_is_placed_on_arrival() -> None:
    tracker = EpochTracker(LATENESS)
    fates = [tracker.place(0, START + n * 1000 * MS) for n in range(5)]
    assert fates == ["backward"] * 2 + [START + n * 1000 * MS for n in (2, 3, 4)]


def test_a_packet_that_came_thrice_at_once_is_not_a_clock_that_stopped() -> None:
    device = Device().settle()
    again = [device.tracker.place(device.now_ns, device.now_ns + USUAL) for _ in range(3)]
    assert again == [device.now_ns] * 3
    assert device.tracker.counts["stopped"] == 0


stamps = st.integers(-(2**63), 2**63 - 1)
offsets = st.sampled_from([0, 0, 0, 0, -HOUR, HOUR, -3000 * MS, 200 * MS, -(10**18)])
odd = st.one_of(
    st.tuples(st.just("wander"), offsets),
    st.tuples(st.just("repeat"), st.just(0)),
    st.tuples(st.just("absolute"), stamps),
)


@given(
    samples=st.lists(st.tuples(odd, st.sampled_from([0, 10, 100, 5000, 100_000])), max_size=60),
    lateness_ns=st.sampled_from([0, LATENESS, 1000 * MS]),
    start_ns=st.sampled_from([0, START]),
)
def test_whatever_comes_no_absurd_time_is_given_out(
    samples: list[tuple[tuple[str, int], int]], lateness_ns: int, start_ns: int
) -> None:
    trackers = [EpochTracker(lateness_ns), EpochTracker(lateness_ns)]
    arrival_ns, stamp_ns = start_ns, start_ns
    for (kind, value), pause_ms in samples:
        arrival_ns += pause_ms * MS
        if kind != "repeat":
            stamp_ns = value if kind == "absolute" else arrival_ns + value
        tracker, twin = trackers
        placed = tracker.place(stamp_ns, arrival_ns)
        assert placed == twin.place(stamp_ns, arrival_ns)
        if isinstance(placed, int):
            assert -TRANSPORT_NS <= placed - arrival_ns <= FUTURE_TOLERANCE_NS
    counts = trackers[0].counts
    assert trackers[0].epoch == counts["backward"] + counts["future"]
    # Then the clock behaves, whatever its offset.
    device = Device(lateness_ns, stamp_ns - arrival_ns + 123 * HOUR)
    device.tracker, device.now_ns = trackers[0], arrival_ns + 200 * MS
    lost, *placed_well = device.send(20)
    assert isinstance(lost, (int, str))
    assert placed_well == pytest.approx([0] * 19, abs=max(FUTURE_TOLERANCE_NS, lateness_ns) + USUAL)


@given(
    ahead_ns=st.integers(160 * MS, 10**18) | st.integers(-(10**18), -230 * MS),
    period_ms=st.integers(10, 100),
    jitter_ms=st.lists(st.integers(0, 20), min_size=60, max_size=60),
    reordered=st.booleans(),
)
def test_after_any_step_the_second_sample_is_placed(
    ahead_ns: int, period_ms: int, jitter_ms: list[int], reordered: bool
) -> None:
    times = [START + n * period_ms * MS for n in range(60)]
    if reordered:
        times[10], times[11] = times[11], times[10]
    tracker = EpochTracker(to_ns(0.2))
    arrival_ns, fates = 0, []
    for index, (time_ns, late_ms) in enumerate(zip(times, jitter_ms, strict=True)):
        arrival_ns = max(arrival_ns, time_ns + late_ms * MS)
        placed = tracker.place(time_ns + (ahead_ns if index >= 50 else 0), arrival_ns)
        fates.append(placed if isinstance(placed, str) else placed - time_ns)
    assert fates[:50] == [0] * 50
    assert isinstance(fates[50], str) or fates[50] < -to_ns(0.2)
    assert all(isinstance(fate, int) and abs(fate) <= 20 * MS for fate in fates[51:])
    assert tracker.epoch == 1
