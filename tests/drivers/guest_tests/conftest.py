"""What all tests in the guest need."""

from __future__ import annotations

import os

import pytest

from tests.drivers.kernel import can_link, stamp_at_start

if "FUSEDGE_GUEST" not in os.environ:
    pytest.exit("these tests need the devices of the guest: make test-drivers", returncode=4)


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    """The devices, as a test may find them."""
    for number in (0, 1):
        stamp_at_start(f"/dev/video{number}")
    can_link(True)
