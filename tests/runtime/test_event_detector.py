"""Events by threshold on a low-passed channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.manifest import EventRule
from fusedge.bundle.window import to_ns
from fusedge.runtime.events import Event, EventDetector
from fusedge.runtime.stream import Window
from tests.tiny_bundle import modality

PERIOD_S = 0.1
Story = list[tuple[str, float, int]]


def rule(**changes: Any) -> EventRule:
    fields: dict[str, Any] = {
        "name": "jolt",
        "modality": "fast",
        "channel": "c1",
        "direction": "both",
        "levels": (10, 20),
        "lowpass_hz": 1000,  # as good as none at 10 Hz
        "hold_s": 0.2,
        "release": 0.7,
    }
    return EventRule(**{**fields, **changes})


def windows(values: Sequence[float | None], *, start: int = 0, size: int = 5) -> list[Window]:
    """Windows without overlap over grid values; None is one that was not measured."""
    result = []
    for first in range(0, len(values), size):
        piece = values[first : first + size]
        data = np.zeros((1, len(piece), 2), np.float32)
        valid = np.zeros_like(data)
        for row, value in enumerate(piece):
            data[0, row, 1] = 0 if value is None else value
            valid[0, row, 1] = value is not None
        end_ns = to_ns((start + first + len(piece) - 1) * PERIOD_S)
        result.append(Window(end_ns, data, valid, True))
    return result


def events(values: Sequence[float | None], **changes: Any) -> list[Event]:
    detector = EventDetector(rule(**changes), modality("fast"))
    return [event for window in windows(values) for event in detector.update(window)]


def story(found: list[Event]) -> Story:
    """Phase, time and level of each record."""
    return [(event.phase, round(event.timestamp_ns / 1e9, 3), event.level) for event in found]


def test_an_event_starts_rises_and_ends() -> None:
    values = [0.0] * 3 + [12] * 4 + [25] * 4 + [8] * 3 + [6.9] * 2
    found = events(values)
    assert story(found) == [("start", 0.5, 1), ("rise", 0.9, 2), ("end", 1.4, 2)]
    assert {event.number for event in found} == {1}
    assert [event.duration_s for event in found] == pytest.approx([0.2, 0.6, 1.1])
    assert [event.peak for event in found] == pytest.approx([12, 25, 25])


def test_a_level_must_be_held() -> None:
    assert events([0.0, 15, 15, 0, 15, 15, 0]) == []
    assert story(events([0.0, 15, 15, 15, 0])) == [("start", 0.3, 1), ("end", 0.4, 1)]
    assert story(events([0.0, 15, 0], hold_s=0)) == [("start", 0.1, 1), ("end", 0.2, 1)]


def test_an_event_that_holds_two_levels_at_once_starts_at_the_higher() -> None:
    assert story(events([25.0] * 4)) == [("start", 0.2, 2)]


def test_an_event_at_the_origin_of_time_has_its_whole_duration() -> None:
    assert events([25.0] * 4)[0].duration_s == pytest.approx(0.2)


def test_an_event_goes_on_between_release_and_threshold() -> None:
    values = [12.0] * 3 + [7.1] * 20 + [12] * 5 + [6.9]
    assert story(events(values)) == [("start", 0.2, 1), ("end", 2.8, 1)]


def test_the_peak_counts_from_the_first_crossing() -> None:
    start, end = events([0.0, 19, 12, 12, 12, 0])
    assert start.peak == end.peak == 19


def test_numbers_tell_events_apart() -> None:
    found = events(([15.0] * 4 + [0] * 2) * 3)
    assert [event.number for event in found] == [1, 1, 2, 2, 3, 3]
    assert [event.phase for event in found] == ["start", "end"] * 3


@pytest.mark.parametrize(
    ("direction", "seen"), [("positive", [15]), ("negative", [-15]), ("both", [15, -15])]
)
def test_direction_says_which_sign_counts(direction: str, seen: list[float]) -> None:
    found = events([0.0, *[15] * 4, 0, *[-15] * 4, 0], direction=direction)
    assert [event.peak for event in found if event.phase == "end"] == seen


def test_the_low_pass_is_the_closed_form_of_one_pole() -> None:
    corner_hz = 0.5
    # After a step to 1, the response is 1 - exp(-2 pi f t); it passes 1 - 1/e after the time constant.
    level = 1 - math.exp(-2 * math.pi * corner_hz * 5 * PERIOD_S)
    values = [0.0] + [1.0] * 20
    (start,) = events(values, lowpass_hz=corner_hz, levels=(level - 1e-6,), hold_s=0)
    assert start.timestamp_ns == to_ns(0.5)
    assert start.peak == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("gap", [1, 4, 12])
def test_a_value_that_was_not_measured_ends_the_event_and_forgets(gap: int) -> None:
    values: list[float | None] = [15] * 4 + [None] * gap + [15] * 2 + [None] + [15] * 4
    assert story(events(values)) == [
        ("start", 0.2, 1),
        ("end", 0.4, 1),
        ("start", round(0.1 * (4 + gap + 5), 3), 1),
    ]


def test_a_window_that_never_came_ends_the_event() -> None:
    detector = EventDetector(rule(), modality("fast"))
    found = []
    for window in [*windows([15.0] * 5), *windows([15.0] * 5, start=10)]:
        found += detector.update(window)
    assert story(found) == [("start", 0.2, 1), ("end", 0.5, 1), ("start", 1.2, 1)]


def test_overlapping_windows_tell_the_same_story() -> None:
    values = [0.0] * 3 + [12] * 6 + [25] * 6 + [8] * 3 + [6.9] * 12
    detector = EventDetector(rule(lowpass_hz=2), modality("fast"))
    overlapping = []
    for last in range(10, len(values) + 1, 4):
        (window,) = windows(values[last - 10 : last], start=last - 10, size=10)
        overlapping += detector.update(window)
    assert len(overlapping) == 3
    assert overlapping == events(values, lowpass_hz=2)


def test_the_cut_of_windows_does_not_matter() -> None:
    noise = np.random.default_rng(0)
    values = [float(v) for v in np.repeat(noise.normal(0, 15, 60), 4)]
    stories = []
    for size in (1, 7, 240):
        detector = EventDetector(rule(lowpass_hz=3), modality("fast"))
        stories.append([e for w in windows(values, size=size) for e in detector.update(w)])
    assert stories[0] == stories[1] == stories[2]
    assert len(stories[0]) > 10


def test_json_rounds_and_names() -> None:
    (start,) = events([12.3456789] * 3)
    assert start.as_dict() == {
        "type": "event",
        "name": "jolt",
        "number": 1,
        "phase": "start",
        "t_s": 0.2,
        "level": 1,
        "peak": 12.3457,
        "duration_s": 0.2,
    }
