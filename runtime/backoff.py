"""When to try again what failed."""

from __future__ import annotations

import random

from fusedge.bundle.window import to_ns

FIRST_S = 0.5
LONGEST_S = 30.0
JITTER = 0.2  # so that what failed together does not come back together
FORGIVEN_S = 10.0


class Backoff:
    """Contract: the n-th failure in a row waits `0.5 s * 2^(n-1)`, at most 30 s, less up to a fifth.

    What has worked for ten seconds starts afresh.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._in_a_row = 0
        self._started_ns: int | None = None

    def started(self, now_ns: int) -> None:
        """It works again, so far."""
        self._started_ns = now_ns

    def retry_ns(self, now_ns: int) -> int:
        """It failed: the time of the next try."""
        if self._started_ns is not None and now_ns - self._started_ns >= to_ns(FORGIVEN_S):
            self._in_a_row = 0
        self._started_ns = None
        wait_s = min(LONGEST_S, FIRST_S * 2.0**self._in_a_row)
        self._in_a_row = min(self._in_a_row + 1, 16)
        return now_ns + to_ns(wait_s * (1 - JITTER * self._random.random()))
