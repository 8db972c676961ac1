"""Where decisions and events go."""

from __future__ import annotations

from typing import Any, Protocol

from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event


class Sink(Protocol):
    """Contract: `open` once, `write` in the order of emission, `close` once, also after a failure.

    The session calls `open` only when bundle and sources are ready, so that a run that cannot start
    touches no file.
    """

    def open(self, header: dict[str, Any]) -> None:
        """Begin a session; `header` says which bundle, sources, backends and clock."""

    def write(self, item: Decision | Event) -> None:
        """Take one decision or event."""

    def close(self, summary: dict[str, Any]) -> None:
        """End the session; `summary` holds the counts and the ledger."""
