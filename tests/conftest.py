"""Settings that all tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from typer.testing import CliRunner

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.cli.app import app
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


class EmotionExport(NamedTuple):
    """What its first use left of `emotion`: the bundle, in which cache it lies, and what was said."""

    bundle: Bundle
    cache: Path
    said: str


@pytest.fixture(scope="session")
def emotion(tmp_path_factory: pytest.TempPathFactory) -> EmotionExport:
    """Half a minute of work, that each process of the tests does once."""
    cache = tmp_path_factory.mktemp("emotion-cache")
    result = CliRunner().invoke(app, ["inspect", "emotion"], env={"FUSEDGE_CACHE": str(cache)})
    assert result.exit_code == 0, result.output
    (path,) = (cache / "bundles").glob("*.fusedge")
    return EmotionExport(Bundle(path), cache, result.stderr)


@pytest.fixture(scope="session")
def emotion_bundle(emotion: EmotionExport) -> Bundle:
    """The bundle of the shipped weights of `emotion`."""
    return emotion.bundle
