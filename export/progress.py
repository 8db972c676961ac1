"""How far an export is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, str, float], None]
"""Called with the stage, the part or file it is at, and the share of the export done, 0 to 1."""


class Steps:
    """Counts the steps of an export for the callback; each counts the same."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, max(1, total), 0

    def next(self, stage: str, item: str) -> None:
        """Say what comes now."""
        self._progress(stage, item, min(1.0, self._done / self._total))
        self._done += 1

    def within(self, stage: str, item: str, share: float) -> None:
        """Say how far the present step is, 0 to 1."""
        self._progress(stage, item, min(1.0, (self._done - 1 + share) / self._total))

    def skip(self, count: int) -> None:
        """So many steps need not be done: they were, earlier."""
        self._done += count
