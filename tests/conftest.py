"""Settings that all tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.replay.uah import find_trips
from tests.real_time import MARKER, Waits

# The gate is repeatable; `HYPOTHESIS_PROFILE=search make test` looks for new counterexamples.
settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, database=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
ROOT = Path(__file__).parents[1]
set_hypothesis_home_dir(ROOT / ".pytest_cache/hypothesis")
WAITS = Waits(pytest.MonkeyPatch())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """What keeps real time without saying so would fail only now and then; here it does at once."""
    WAITS.unmarked(marked=True)
    result = yield
    if wrong := WAITS.unmarked(item.get_closest_marker(MARKER) is not None):
        pytest.fail(wrong, pytrace=False)
    return result


@pytest.fixture(scope="session")
def trips() -> list[Path]:
    """Real trips, which lie beside the project and never in it; skips where there are none."""
    try:
        return find_trips(Path(os.environ.get("FUSEDGE_DATA") or ROOT / "../shared/data"))
    except FusedgeError as error:
        pytest.skip(error.line())
