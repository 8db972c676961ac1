"""Tests that keep real time say so: those that forget it are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusedge.runtime.clock import Clock, LiveClock, PacedClock, VirtualClock
from tests.real_time import MARKER, MEASURES, Waits

TESTS = Path(__file__).parent


@pytest.mark.real_time
@pytest.mark.parametrize("make", [LiveClock, lambda: PacedClock(2)])
def test_a_wait_for_real_time_without_the_marker_is_found(
    make: Callable[[], Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits(monkeypatch)
    assert not waits.unmarked(marked=False)
    make().seconds_until(10**18)
    assert MARKER in waits.unmarked(marked=False)
    assert not waits.unmarked(marked=False), "the next test has not waited"
    make().seconds_until(10**18)
    assert not waits.unmarked(marked=True)


def test_virtual_time_needs_no_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    VirtualClock().seconds_until(10**18)
    assert not waits.unmarked(marked=False)


@pytest.mark.parametrize(
    ("code", "measures"),
    [
        ("    assert done.wait(2) and time.monotonic() - started < 0.2\n", True),
        ("    assert time.monotonic_ns() - silent_ns < 5 * SECOND\n", True),
        ("    assert time.monotonic() < deadline\n", False),
        ("    assert time.monotonic() - begun >= 0.1\n", False),
    ],
)
def test_what_measures_time_is_told_from_what_only_gives_up(code: str, measures: bool) -> None:
    assert bool(MEASURES.search(code)) == measures


def test_every_file_that_measures_time_has_the_marker() -> None:
    texts = {file: file.read_text("utf-8") for file in TESTS.glob("**/test_*.py")}
    measuring = {file for file, text in texts.items() if MEASURES.search(text)}
    assert measuring
    assert not [str(f) for f in measuring if f"pytest.mark.{MARKER}" not in texts[f]]
