"""Where decisions and events go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry


class ReaderLeftError(Exception):
    """`write` and `flush` raise it where whoever looked on wants no more: the session ends, and nothing has
    failed. (A reader who is gone without a word is a BrokenPipeError.)
    """


class Sink(ABC):
    """Contract: `open` once, `write` in the order of emission, `close` once, also after a failure.

    The session calls `open` only when bundle and sources are ready, so that a run that cannot start
    touches no file. A sink that raises in `write` is called again later, with newer items: what it
    has written must stay whole.
    """

    name: str
    """For the summary: what it is, and where it writes to."""
    journal: ClassVar[bool] = False
    """Whether `write` is given the journal too: every item pushed and step taken, in order."""
    may_fail: ClassVar[bool] = False
    """Whether what it raises is counted on a virtual clock too, instead of ending the session."""
    closing_s: float = 0.3
    """How long it may take to write what waits and close when a live session ends, if it does not hang
    in `write`; after that it is left behind.
    """

    @abstractmethod
    def open(self, header: dict[str, Any]) -> None:
        """Begin a session; `header` says which bundle, sources, backends and clock."""

    @abstractmethod
    def write(self, item: Decision | Event | Entry) -> None:
        """Take one item."""

    def lost(self, count: int) -> None:  # noqa: B027  # most sinks have nothing to say about it
        """So many items were dropped since the last one that was written: it was too slow, or failed."""

    def flush(self) -> None:  # noqa: B027  # most sinks keep nothing back
        """Nothing has come for a while: keep nothing back."""

    @abstractmethod
    def close(self, summary: dict[str, Any]) -> None:
        """End the session; `summary` holds the counts and the ledger."""
