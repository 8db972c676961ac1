"""A source in a process of its own, which can be ended when a call into a driver never comes back."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Address, Wanted
from fusedge.devices.capture.frame_ring import anonymous_file
from fusedge.devices.capture.wire import (
    END,
    ERROR,
    HELLO,
    REJECTION,
    Receiver,
    Sender,
    document,
)

OPEN_S = 30.0  # a network camera may take 10 s to answer, a small machine as long to import OpenCV
GRACE_S = 0.3  # for the process to close its device, before it is ended
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fusedge.devices.capture.child import main; main()"
)


class IsolatedSource:
    """The source that `uri` names, opened by `opener` (`module:function`, of a Request) in a child process.

    Images come through shared memory and are not copied; they may be read, not written to. A source
    that hangs or crashes takes its process with it and nothing else: `close` ends the process
    within half a second whatever it does.

    Raises what the source raises: FusedgeError at opening, and while it is read; also where the process
    ends by itself or does not open the source within `open_s`.
    """

    def __init__(
        self,
        uri: str,
        address: Address,
        wanted: Wanted,
        *,
        opener: str = "fusedge.devices.capture.source:open_here",
        open_s: float = OPEN_S,
    ) -> None:
        self.uri = address.uri
        self._address = address
        self._closing = threading.Lock()
        self._closed = False
        self._socket, child = socket.socketpair()
        self._file = anonymous_file()
        self._receiver = Receiver(self._socket, self._file)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with child:
                self._process = _start([child.fileno(), self._file])
            self._greet(self._open(uri, wanted, opener, open_s))
        except BaseException:
            self.close()
            raise

    def _greet(self, hello: dict[str, Any]) -> None:
        self.modalities: tuple[str, ...] = tuple(hello["modalities"])
        self._receiver.modalities = self.modalities
        self.channels: Mapping[str, tuple[str, ...]] = {
            name: tuple(channels) for name, channels in hello["channels"].items()
        }
        self.units: Mapping[str, tuple[str, ...]] = {
            name: tuple(units) for name, units in hello["units"].items()
        }
        self.live = bool(hello["live"])
        self.warnings: tuple[str, ...] = tuple(hello["warnings"])

    @property
    def process_id(self) -> int:
        """Of the process that reads the device."""
        return self._process.pid if self._process is not None else 0

    def _open(self, uri: str, wanted: Wanted, opener: str, open_s: float) -> dict[str, Any]:
        task = {
            "uri": uri,  # may hold a password: not for the command line, which everybody can see
            "wanted": None if wanted is None else {n: m.model_dump() for n, m in wanted.items()},
            "opener": opener,
        }
        self._socket.settimeout(open_s)
        try:
            Sender(self._socket, self._file).document(HELLO, task)
            message = self._receiver.message()
        except TimeoutError:
            raise self._address.error(f"did not open within {open_s:g} s") from None
        except (EOFError, OSError):
            raise self._ended() from None
        self._socket.settimeout(None)
        if isinstance(message, Sample) or message[0] != HELLO:
            raise self._failure(message)
        return document(message[1])

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        next_message = self._receiver.message
        while True:
            try:
                message = next_message()
            except (EOFError, OSError):
                if self._closed:
                    return
                raise self._ended() from None
            except ValueError as error:
                raise self._address.error(
                    f"its process does not keep to the protocol: {error}"
                ) from None
            if isinstance(message, Sample):
                yield message
                del message  # its image may be dropped before the next one comes
            elif message[0] == REJECTION:
                yield Rejection(**document(message[1]))
            elif message[0] == END:
                return
            else:
                raise self._failure(message)

    def _failure(self, message: Sample | tuple[int, bytes]) -> FusedgeError:
        if isinstance(message, Sample) or message[0] != ERROR:
            return self._address.error("its process does not keep to the protocol")
        fields = document(message[1])
        return FusedgeError(
            fields["what"], where=fields.get("where", self.uri), hint=fields.get("hint", "")
        )

    def _ended(self) -> FusedgeError:
        assert self._process is not None
        try:
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return self._address.error("its process does not answer")
        if status < 0:
            return self._address.error(f"its process crashed ({signal.Signals(-status).name})")
        return self._address.error(f"its process ended with status {status}")

    def close(self) -> None:
        """See Source; also ends the process."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            with suppress(OSError):  # the process may be gone already
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for a message
            if self._process is not None:
                _end(self._process)
            self._socket.close()
            self._receiver.close()


def _start(handles: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, handles)],
        pass_fds=handles,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end, or bring it about. One that the kernel holds in a driver may outlive this."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
        return
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
