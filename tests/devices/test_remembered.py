"""What is remembered of devices."""

from __future__ import annotations

from fusedge.devices.capture.remembered import MOST, Remembered


def test_the_last_found_is_remembered_and_the_oldest_forgotten() -> None:
    known: Remembered[int] = Remembered()
    assert known.get("a") is None
    known.put("a", 1)
    known.put("b", 2)
    known.put("a", 3)
    for number in range(MOST - 1):
        known.put(number, number)
    assert known.get("b") is None and known.get("a") == 3
    known.put("c", 4)
    assert known.get("a") is None and known.get("c") == 4
