"""What was found out about devices, for when a source is opened again: its replug need not find it anew."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

MOST = 64  # devices of one kind
T = TypeVar("T")


class Remembered(Generic[T]):
    """By device, in this process; of more than 64 the longest known is forgotten. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Hashable, T] = {}

    def get(self, device: Hashable) -> T | None:
        """What was put there last."""
        with self._lock:
            return self._known.get(device)

    def put(self, device: Hashable, found: T) -> None:
        """Remember it."""
        with self._lock:
            self._known.pop(device, None)
            self._known[device] = found
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]
