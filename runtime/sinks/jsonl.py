"""JSON Lines: a session line, a line a decision or event, a summary line."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from fusedge.bundle.errors import FusedgeError
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.sinks.sink import Sink

_BEGINNING = b'{"type":"session"'


class JsonLinesSink(Sink):
    """Writes to a file, or to an open stream such as standard output. Every line is on its way to the
    disk when `write` returns, whatever happens next. Where a line cannot be written (a full disk),
    `write` raises, the file stays whole, and goes on as soon as there is room again.
    """

    def __init__(self, target: Path | TextIO) -> None:
        self.name = str(target) if isinstance(target, Path) else "standard output"
        self._target = target
        self._write: Callable[[str], None] | None = None
        self._file: FileIO | None = None

    def open(self, header: dict[str, Any]) -> None:
        """Create the file and write the session line."""
        if isinstance(self._target, Path):
            try:
                self._refuse_other_file(self._target)
                self._target.parent.mkdir(parents=True, exist_ok=True)
                self._file = FileIO(self._target, "w")
            except OSError as error:
                raise _cannot_write(self._target, error) from None
            self._write = self._to_file
        else:
            self._target.flush()
            try:  # past the stream's buffer, whose lock a reader that does not read would hold for ever
                self._file = FileIO(self._target.fileno(), "w", closefd=False)
                self._write = self._to_file
            except (OSError, ValueError):  # a stream of text in memory
                self._write = self._to_stream
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
        if self._write is None:
            return
        try:
            self._line({"type": "summary", **summary})
        finally:
            self._write = None
            if self._file is not None:
                self._file.close()

    def _line(self, record: dict[str, Any]) -> None:
        assert self._write is not None, "open the sink first"
        try:
            self._write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
        except BrokenPipeError:
            raise  # the reader of standard output went away: not an error of ours
        except OSError as error:
            raise _cannot_write(self._target, error) from None

    def _to_stream(self, line: str) -> None:
        assert not isinstance(self._target, Path)
        self._target.write(line)
        self._target.flush()

    def _to_file(self, line: str) -> None:
        """All of the line or nothing: a full disk takes the beginning of one."""
        assert self._file is not None
        file, left = self._file, memoryview(line.encode())
        start = file.tell() if isinstance(self._target, Path) else None
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except OSError:
            if start is not None:
                file.truncate(start)
                file.seek(start)
            raise


def _cannot_write(target: Path | TextIO, error: OSError) -> FusedgeError:
    where = str(target) if isinstance(target, Path) else "standard output"
    return FusedgeError(
        f"cannot write decisions: {error.strerror or error}",
        where=where,
        hint="choose another file or folder with --out",
    )
