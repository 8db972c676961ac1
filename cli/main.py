"""The entry point: errors of one line, exit status 0, 1 or 2; 130 when interrupted.

Nothing heavy is imported before `main` runs, so that Ctrl-C is answered at any time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_interrupted: list[int] = []
INTERRUPTED = 130  # as shells give it for SIGINT
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals(stop: Callable[[], object], *, once: bool) -> Iterator[None]:
    """Let the stop signals call `stop` meanwhile, but those that are ignored, as under nohup. With `once`
    each of them does what it did before when it comes again.
    """
    if _interrupted:  # and it was swallowed by what was imported then
        raise KeyboardInterrupt
    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def answer(number: int, frame: FrameType | None) -> None:
        if once:
            signal.signal(number, before[number])
        stop()

    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, answer)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def main() -> None:
    """Run the command line."""
    try:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _interrupt)
        if sys.stdout is None:
            _fail("standard output is closed", 1)
        _run()
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)  # the reader of our output went away: nobody is left to tell
    except OSError as error:
        _drop_output()
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)


def _run() -> None:
    from fusedge.bundle.errors import FusedgeError
    from fusedge.cli.app import app

    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except FusedgeError as error:
        if _interrupted:  # an import that is interrupted may look like a package that is missing
            raise KeyboardInterrupt from None
        _fail(error.line(), 1)
    except SystemExit:
        if _interrupted:  # Typer has made an exit of it, without a word
            raise KeyboardInterrupt from None
        raise


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A service manager's SIGTERM and a closed terminal's SIGHUP end us as Ctrl-C does."""
    _interrupted.append(number)
    raise KeyboardInterrupt


def _fail(line: str, status: int) -> NoReturn:
    print(f"fusedge: {line}", file=sys.stderr)
    sys.exit(status)


def _drop_output() -> None:
    """Python flushes standard output once more at exit; let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
