"""JSON Lines: a session line, a line a decision or event, a summary line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from fusedge.bundle.errors import FusedgeError
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.sinks.sink import Sink

_BEGINNING = b'{"type":"session"'


class JsonLinesSink(Sink):
    """Writes to a file, or to an open stream such as standard output. Every line is flushed, so that
    what was decided stays on disk whatever happens next.
    """

    def __init__(self, target: Path | TextIO) -> None:
        self.name = str(target) if isinstance(target, Path) else "standard output"
        self._target = target
        self._stream: TextIO | None = None

    def open(self, header: dict[str, Any]) -> None:
        """Create the file and write the session line."""
        if isinstance(self._target, Path):
            try:
                self._refuse_other_file(self._target)
                self._target.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._target.open("w", encoding="utf-8", newline="\n")
            except OSError as error:
                raise _cannot_write(self._target, error) from None
        else:
            self._stream = self._target
        self._line({"type": "session", **header})

    @staticmethod
    def _refuse_other_file(path: Path) -> None:
        """An earlier file of decisions is replaced; anything else that is there is not."""
        if not path.is_file() or path.stat().st_size == 0:
            return
        with path.open("rb") as stream:
            if not stream.read(len(_BEGINNING)).startswith(_BEGINNING):
                raise FusedgeError(
                    "is there and holds no decisions, so it is not replaced",
                    where=str(path),
                    hint="choose another name with --out",
                )

    def write(self, item: Decision | Event | Entry) -> None:
        """Write one line."""
        if isinstance(item, Decision | Event):
            self._line(item.as_dict())

    def close(self, summary: dict[str, Any]) -> None:
        """Write the summary line and close the file."""
        if self._stream is None:
            return
        self._line({"type": "summary", **summary})
        if isinstance(self._target, Path):
            self._stream.close()
        self._stream = None

    def _line(self, record: dict[str, Any]) -> None:
        assert self._stream is not None, "open the sink first"
        try:
            self._stream.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            self._stream = None
            if isinstance(error, BrokenPipeError):
                raise  # the reader of standard output went away: not an error of ours
            raise _cannot_write(self._target, error) from None


def _cannot_write(target: Path | TextIO, error: OSError) -> FusedgeError:
    where = str(target) if isinstance(target, Path) else "standard output"
    return FusedgeError(
        f"cannot write decisions: {error.strerror or error}",
        where=where,
        hint="choose another file or folder with --out",
    )
