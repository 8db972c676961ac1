"""A client of ELM327 adapters and their many copies, which join a serial line to a car's OBD-II plug.

Commands and replies are those of the ELM327 data sheet (Elm Electronics): a line in, lines out, then
the prompt `>`. There is no checksum on the serial line. A reply counts only if it is what was asked
for to the digit, so that a lost, late or foreign byte gives no number; a digit that turns into
another one cannot be seen.
"""

from __future__ import annotations

import re
import termios
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fusedge.bundle.window import to_ns

if TYPE_CHECKING:
    import serial

PROTOCOLS = ("auto", *"123456789ABC")
MAX_REPLY = 4096  # bytes up to the prompt; an answer to what is asked here has below 100
RESET_NS = to_ns(2)  # a reset takes about 1 s
COMMAND_NS = to_ns(1)  # for a setting, which is answered at once
ANSWER_NS = to_ns(2)  # adapters answer in 90 ms, slow ones in 1 s (brendan-w/python-OBD#60, #28)
SEARCH_NS = to_ns(30)  # trying all protocols, of which two take 5 s to say hello (ISO 9141, KWP)
SETTLE_READS = 20  # with nothing after the first of them that is silent
_BANNER = re.compile(r"ELM|OBD|STN", re.I)
_RESET = re.compile(r"ELM327|LV RESET", re.I)
_SEARCHING = re.compile(rb"SEARCHING|BUS INIT")
_NO_CAR = re.compile(
    r"NO DATA|UNABLE TO CONNECT|BUS INIT|BUS BUSY|BUS ERROR|CAN ERROR|FB ERROR|ACT ALERT|LP ALERT"
)
_PREFIX = re.compile(r"SEARCHING\.*|BUS INIT: ?\.*(OK)?")


class ClosedError(Exception):
    """The client was closed meanwhile."""


class AdapterError(Exception):
    """The adapter does not do as it should; the message says what."""


class Reply(NamedTuple):
    """What a request led to: the bytes of each ECU that answered it, or else a reason and the words."""

    data: tuple[bytes, ...]
    reason: str = ""
    text: str = ""


class Elm327:
    """One request at a time: `send`, then `poll` until it gives a reply.

    `close` may come from another thread; what is going on then raises ClosedError. An adapter that is
    gone raises OSError. The port's time-out is how long `poll` waits, and `close` may.
    """

    def __init__(self, port: serial.Serial, protocol: str, now_ns: Callable[[], int]) -> None:
        self._port = port
        self._protocol = "0" if protocol == "auto" else protocol
        self._now_ns = now_ns
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._sent, self._length = "", 0
        self._sent_ns = 0

    def start(self) -> None:
        """Reset the adapter and set it up. Raises AdapterError where it does not answer as one."""
        for _ in range(2):  # a first command only stops what the adapter was about
            lines = self._command("ATZ", RESET_NS)
            if lines is not None and any(map(_BANNER.search, lines)):
                break
            self._settle()
        else:
            raise AdapterError("no ELM327 answers")
        # echo, line feeds, spaces, headers off; waits adapted to the car
        for command in ("ATE0", "ATL0", "ATS0", "ATH0", "ATAT1", f"ATSP{self._protocol}"):
            lines = self._command(command, COMMAND_NS)
            if lines is None:
                raise AdapterError(f"the adapter does not answer {command}")
            needed = command == "ATE0" or command.startswith("ATSP")
            if needed and not any(line.endswith("OK") for line in lines):
                raise AdapterError(f"the adapter refuses {command}")

    def send(self, pid: int, length: int) -> None:
        """Ask for the present value, of so many bytes, of a PID (service 01)."""
        self._write(f"01{pid:02X}")
        self._length = length

    def poll(self) -> Reply | None:
        """The reply to what was sent, None where it has not come yet. A time-out is the reason `silent`.

        Others are `no_data` (no car answers), `adapter_reset`, `malformed`.
        """
        lines = self._read()
        if lines is not None:
            reply = _understood(self._sent, self._length, lines)
            if reply.reason == "malformed":
                self._settle()
            return reply
        searching = _SEARCHING.search(self._buffer) is not None
        if self._now_ns() - self._sent_ns > (SEARCH_NS if searching else ANSWER_NS):
            return Reply((), "silent", f"no reply to {self._sent}")
        return None

    def wait(self, seconds: float) -> None:
        """Do nothing for a while."""
        if self._closed.wait(seconds):
            raise ClosedError

    def close(self) -> None:
        """Close the port."""
        self._closed.set()
        with self._lock:
            self._port.close()

    def _command(self, text: str, timeout_ns: int) -> list[str] | None:
        self._write(text)
        while self._now_ns() - self._sent_ns <= timeout_ns:
            lines = self._read()
            if lines is not None:
                return lines
        return None

    def _write(self, text: str) -> None:
        with self._lock:
            self._check()
            self._buffer.clear()
            try:
                self._port.reset_input_buffer()  # what comes late belongs to nothing
            except termios.error as error:
                raise OSError(*error.args) from None
            self._port.write(f"{text}\r".encode())
        self._sent, self._sent_ns = text, self._now_ns()

    def _read(self) -> list[str] | None:
        """The lines up to the prompt, once it is there; too many bytes without one are one line."""
        self._take()
        buffer = self._buffer
        end = buffer.find(b">")
        if end < 0 and len(buffer) <= MAX_REPLY:
            return None
        text = bytes(buffer[: end if end >= 0 else MAX_REPLY]).replace(b"\0", b"")
        buffer.clear()
        lines = re.split(r"[\r\n]+", text.decode("ascii", "replace"))
        return [line.strip() for line in lines if line.strip()]

    def _take(self) -> int:
        with self._lock:
            self._check()
            data: bytes = self._port.read(max(1, min(self._port.in_waiting, MAX_REPLY)))
        self._buffer += data
        return len(data)

    def _settle(self) -> None:
        """Let the adapter finish, so that the next reply is to the next request."""
        for _ in range(SETTLE_READS):
            if not self._take():
                break
        self._buffer.clear()

    def _check(self) -> None:
        if self._closed.is_set():
            raise ClosedError


def _understood(sent: str, length: int, lines: list[str]) -> Reply:
    """The reply to a request of service 01 for a value of `length` bytes."""
    text = " | ".join(lines)[:200]
    if any(line == sent or _RESET.search(line) for line in lines):  # with echo it is not set up
        return Reply((), "adapter_reset", text)
    bodies = ["".join(_PREFIX.sub("", line).split()) for line in lines]
    start = f"41{sent[2:]}"
    answers = [body for body in bodies if body.startswith(start)]
    right = re.compile(f"{start}([0-9A-F]{{{2 * length}}})")
    matches = [right.fullmatch(body) for body in answers]
    if answers and all(matches):
        return Reply(tuple(bytes.fromhex(match[1]) for match in matches if match))
    if not answers and any(map(_NO_CAR.search, lines)):
        return Reply((), "no_data", text)
    return Reply((), "malformed", text or "an empty reply")
