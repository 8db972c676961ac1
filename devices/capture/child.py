"""The process of an isolated source: opens it and hands over what it gives, until told to end.

It is started by IsolatedSource, with the numbers of its socket and of the file of its images. That it
is to end it learns by the end of the socket, so that it ends with its parent, however that ends.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample
from fusedge.devices.capture.address import Request, Wanted, parse
from fusedge.devices.capture.source import SCHEMES, Source
from fusedge.devices.capture.wire import END, ERROR, Receiver, Sender, document

GRACE_S = 0.2  # for a source to close its device


def main() -> None:
    """Serve one source."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent's to answer; we end with it
    handle, file = map(int, sys.argv[2:])
    connection = socket.socket(fileno=handle)
    sender = Sender(connection, file)
    with suppress(OSError):  # the parent is gone
        try:
            _serve(connection, file, sender)
        except FusedgeError as error:
            sender.document(ERROR, {"what": error.what, "where": error.where, "hint": error.hint})
        except Exception as error:  # native libraries raise anything
            sender.document(ERROR, {"what": f"{type(error).__name__}: {error}"})
    os._exit(0)  # without waiting for threads of native libraries, which may hang


def _serve(connection: socket.socket, file: int, sender: Sender) -> None:
    message = Receiver(connection, file).message()
    assert not isinstance(message, Sample), "a task comes first"
    task = document(message[1])
    request = Request(
        parse(task["uri"], SCHEMES),
        _wanted(task["wanted"]),
        time.monotonic_ns,  # the clock of live sessions: one for all processes of a machine
        sender.allocate,
    )
    module, _, name = task["opener"].partition(":")
    opener: Callable[[Request], Source] = getattr(importlib.import_module(module), name)
    opened: list[Source] = []
    threading.Thread(
        target=_await_end, args=(connection, opened), name="control", daemon=True
    ).start()
    source = opener(request)
    opened.append(source)
    fields = {
        "modalities": source.modalities,
        "channels": dict(source.channels),
        "units": dict(source.units),
        "live": source.live,
        "warnings": source.warnings,
    }
    sender.hello(fields, source.modalities)
    for item in source.samples():
        if isinstance(item, Sample):
            sender.sample(item)
        else:
            sender.rejection(item)
    source.close()
    sender.document(END, {})


def _wanted(task: dict[str, Any] | None) -> Wanted:
    if task is None:
        return None
    return {name: Modality.model_validate(fields) for name, fields in task.items()}


def _await_end(connection: socket.socket, opened: list[Source]) -> None:
    with suppress(OSError):
        connection.recv(1)  # nothing more is said: it comes back at the end
    for source in opened:
        closer = threading.Thread(target=source.close, name="close", daemon=True)
        closer.start()
        closer.join(GRACE_S)
    os._exit(0)
