"""Sessions in real time are not held up by what other tests left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_collected() -> Iterator[None]:
    """A session begins with a collection, which takes a second where others left a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
