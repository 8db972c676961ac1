"""Faces keep their number over time, and one of them drives without flipping."""

from __future__ import annotations

from itertools import count, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.window import to_ns
from fusedge.runtime.front.faces import Face
from fusedge.runtime.front.tracking import FORGET_NS, START_SCORE, TAKEOVER_NS, Driver, FaceTracker


def face(x: float, y: float = 100, width: float = 40, score: float = 0.9) -> Face:
    box = np.array([x - width / 2, y - width / 2, width, width], np.float32)
    return Face(box, score, np.zeros((6, 2), np.float32))


def numbers(tracker: FaceTracker, time_ns: int) -> dict[int, float]:
    """By number the place of each face that is seen now."""
    return {t.number: float(t.face.centre[0]) for t in tracker.tracks if t.seen_ns == time_ns}


def test_a_face_keeps_its_number_while_it_moves() -> None:
    tracker = FaceTracker(count(1))
    for step in range(50):
        tracker.update([face(100 + 20 * step)], step * to_ns(0.1))  # half its width a frame
        assert list(numbers(tracker, step * to_ns(0.1))) == [1]


def test_it_keeps_it_over_a_gap_and_gets_another_one_after_long() -> None:
    tracker = FaceTracker(count(1))
    tracker.update([face(100)], 0)
    tracker.update([], FORGET_NS // 2)
    tracker.update([face(105)], FORGET_NS)
    assert list(numbers(tracker, FORGET_NS)) == [1]
    tracker.update([face(105)], 2 * FORGET_NS + 1)
    assert list(numbers(tracker, 2 * FORGET_NS + 1)) == [2]


def test_one_that_is_too_uncertain_is_none_but_a_known_one_goes_on() -> None:
    tracker = FaceTracker(count(1))
    tracker.update([face(100, score=START_SCORE - 0.01)], 0)
    assert not tracker.tracks
    tracker.update([face(100)], 1)
    tracker.update([face(100, score=START_SCORE - 0.2)], 2)
    assert list(numbers(tracker, 2)) == [1]


def test_two_that_pass_each_other_keep_their_numbers() -> None:
    tracker = FaceTracker(count(1))
    for step in range(41):
        time_ns = step * to_ns(0.1)
        right, left = face(100 + 10 * step), face(500 - 10 * step, y=130)
        tracker.update([right, left] if step % 2 else [left, right], time_ns)
    ends = sorted(numbers(tracker, time_ns).values())
    assert ends == [100, 500]
    assert len(tracker.tracks) == 2


@given(
    places=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=20, unique=True
    ),
    order=st.randoms(use_true_random=False),
    shift=st.integers(-10, 10),
)
def test_the_order_of_faces_does_not_matter(
    places: list[tuple[int, int]], order: object, shift: int
) -> None:
    faces = [face(100 * x, 100 * y) for x, y in places]
    tracker = FaceTracker(count(1))
    tracker.update(faces, 0)
    before = {t.number: t.face.centre.tolist() for t in tracker.tracks}
    assert sorted(before) == list(range(1, len(places) + 1))
    moved = [face(100 * x + shift, 100 * y) for x, y in places]
    order.shuffle(moved)  # type: ignore[attr-defined]
    tracker.update(moved, to_ns(0.1))
    after = {t.number: t.face.centre.tolist() for t in tracker.tracks}
    assert {n: [x + shift, y] for n, (x, y) in before.items()} == after


@given(
    frames=st.lists(
        st.lists(
            st.tuples(
                st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0.1, 1e3), st.floats(0, 1)
            ),
            max_size=8,
        ),
        max_size=12,
    ),
    steps_ms=st.lists(st.integers(-500, 2000), min_size=12, max_size=12),
)
def test_whatever_comes_no_number_is_two_faces_and_nothing_piles_up(
    frames: list[list[tuple[float, float, float, float]]], steps_ms: list[int]
) -> None:
    tracker, driver, time_ns = FaceTracker(count(1)), Driver(), 0
    for frame, step_ms in zip(frames, steps_ms, strict=False):
        time_ns += to_ns(step_ms / 1000)
        tracker.update([face(*values) for values in frame], time_ns)
        known = [track.number for track in tracker.tracks]
        assert len(set(known)) == len(known) <= 8 * 12
        assert all(time_ns - FORGET_NS <= track.seen_ns <= time_ns for track in tracker.tracks)
        driving = driver.choose(tracker.tracks, time_ns)
        assert (driving is None) == (not known)
        assert driving is None or driving.number in known


def drive(widths: list[tuple[float, float]], period_ns: int) -> list[int]:
    """Which of two faces of these widths drives, frame by frame."""
    tracker, driver, driving = FaceTracker(count(1)), Driver(), []
    for step, (one, other) in enumerate(widths):
        tracker.update([face(100, width=one), face(500, width=other)], step * period_ns)
        chosen = driver.choose(tracker.tracks, step * period_ns)
        assert chosen is not None
        driving.append(chosen.number)
    return driving


def test_the_largest_drives() -> None:
    assert drive([(40, 60)], 1) == [2]
    assert drive([(60, 40)], 1) == [1]


def test_two_alike_do_not_take_turns() -> None:
    wobbling = [(50 + (-1) ** step * 3, 50 - (-1) ** step * 3) for step in range(40)]
    assert set(drive(wobbling, to_ns(0.1))) == {1}


def test_a_much_larger_one_takes_over_after_a_while_and_not_by_a_moment() -> None:
    period_ns = to_ns(0.1)
    wait = TAKEOVER_NS // period_ns
    driving = drive([(50, 40)] + [(50, 70)] * 12, period_ns)
    assert driving == [1] * (1 + wait) + [2] * (12 - wait)
    flashes = [(50, 40)] + [(50, 70), (50, 70), (50, 45)] * 6
    assert set(drive(flashes, period_ns)) == {1}


def test_another_one_drives_once_the_first_is_gone() -> None:
    tracker, driver = FaceTracker(count(1)), Driver()
    tracker.update([face(100, width=50), face(500, width=40)], 0)
    assert driver.choose(tracker.tracks, 0).number == 1  # type: ignore[union-attr]
    tracker.update([face(500, width=40)], FORGET_NS)
    assert driver.choose(tracker.tracks, FORGET_NS).number == 1  # type: ignore[union-attr]
    tracker.update([face(500, width=40)], FORGET_NS + 1)
    assert driver.choose(tracker.tracks, FORGET_NS + 1).number == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_nearest_pair_goes_first(order: tuple[int, ...]) -> None:
    tracker = FaceTracker(count(1))
    tracker.update([face(x) for x in (100, 130, 160)], 0)
    moved = [face(x) for x in (110, 140, 170)]
    tracker.update([moved[at] for at in order], to_ns(0.1))
    assert numbers(tracker, to_ns(0.1)) == {1: 110, 2: 140, 3: 170}
