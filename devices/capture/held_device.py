"""What sources that hold a device have in common: who lets go of it, and when."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

from fusedge.bundle.sample import Rejection, Sample


class HeldDevice(ABC):
    """Contract: the device is let go once: by the reader when it ends, by `close` where nobody reads.

    A reader looks at `_closed` at least every tenth of a second.
    """

    live = True

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._reading = False

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source. Raises FusedgeError when the device is gone."""
        with self._lock:
            if self._closed.is_set():
                return
            self._reading = True
        try:
            yield from self._items()
        finally:
            self._release()

    def close(self) -> None:
        """See Source."""
        with self._lock:
            self._closed.set()
            reading = self._reading
        if not reading:
            self._release()

    @abstractmethod
    def _items(self) -> Iterator[Sample | Rejection]:
        """What the device gives, until `_closed` is set."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the device; may be called twice."""
