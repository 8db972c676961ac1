"""What a search has measured, on disk: one JSON object a line, only ever appended.

An interrupted search (power loss and kill -9 included) goes on where it was. Each line carries its own
check, so one that is cut off or altered is passed over and counted, and what it held is measured again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.export.cache import key_of

Record = Mapping[str, Any]
"""JSON: numbers, strings, None, and objects of them."""


class SearchLedger:
    """Records by key; `path` None keeps them in memory only.

    `damaged`: lines that were passed over. `unwritten`: records that could not be written; the search
    goes on, and only its resumption loses them.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read what is there; raises FusedgeError where the file cannot be opened for writing."""
        self.damaged = self.unwritten = 0
        self._path = path
        self._records: dict[str, Record] = {}
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                file.seek(0)
                content = file.read()
                if content and not content.endswith(b"\n"):
                    file.write(b"\n")  # what was cut off stays a line of its own
        except OSError as error:
            raise FusedgeError(
                f"cannot keep the search's ledger: {error.strerror}", where=str(path)
            ) from None
        for line in content.splitlines():
            if (entry := _parsed(line)) is None:
                self.damaged += 1
            else:
                self._records[entry[0]] = entry[1]

    def get(self, key: str) -> Record | None:
        """What was measured under this key."""
        return self._records.get(key)

    def clear(self) -> None:
        """Forget everything: what is measured from now on is all that there is."""
        self._records.clear()
        if self._path is not None:
            with contextlib.suppress(OSError):  # then a later search reads it, and finds out again
                self._path.unlink(missing_ok=True)

    def put(self, key: str, record: Record) -> None:
        """Keep a record; on disk when this returns."""
        self._records[key] = record
        if self._path is None:
            return
        body = json.dumps({"key": key, **record}, sort_keys=True, allow_nan=False)
        line = json.dumps({"check": _check(body), "body": body}) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.unwritten += 1


def _check(body: str) -> str:
    return key_of(body)[:16]


def _parsed(line: bytes) -> tuple[str, Record] | None:
    """Key and record of a line; None where it is not one that was written here."""
    try:
        outer = json.loads(line)
        if not isinstance(outer, dict) or outer.get("check") != _check(outer["body"]):
            return None
        record: dict[str, Any] = json.loads(outer["body"])
        return record.pop("key"), record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
