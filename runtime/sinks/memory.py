"""Keeps decisions and events in memory, for evaluation and tests."""

from __future__ import annotations

from typing import Any

from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.sinks.sink import Sink


class MemorySink(Sink):
    """Everything that a session emitted, in order."""

    name = "memory"

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.events: list[Event] = []

    def open(self, header: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def write(self, item: Decision | Event | Entry) -> None:
        """Keep the item."""
        if isinstance(item, Decision):
            self.decisions.append(item)
        elif isinstance(item, Event):
            self.events.append(item)

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing to end."""
