"""What all tests in the guest need."""

from __future__ import annotations

import pytest

from tests.drivers.kernel import can_link, stamp_at_start


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    """The devices, as a test may find them."""
    for number in (0, 1):
        stamp_at_start(f"/dev/video{number}")
    can_link(True)
