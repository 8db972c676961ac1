"""Threads that run one part at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fusedge.runtime.part import Backend


def run_at_once(shared: Backend, reference: Backend, feeds: Sequence[dict[str, Any]]) -> None:
    """Four threads run `shared`; raises AssertionError where an output is not that of `reference`."""
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(shared.run, feeds))
    for given, got in zip(feeds, outputs, strict=True):
        for a, b in zip(reference.run(given), got, strict=True):
            np.testing.assert_array_equal(a, b)
