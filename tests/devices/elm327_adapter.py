"""An ELM327 adapter, and the car behind it, on a pseudo-terminal."""

from __future__ import annotations

import os
import select
import threading
import tty
from pathlib import Path

CAR = {0x00: "BE3FB813", 0x0C: "1AF8", 0x0D: "64", 0x11: "80", 0x04: "33"}
CAR |= {0x0B: "65", 0x0F: "46", 0x05: "7B"}
"""What the car says: 1726 rpm, 100 km/h, throttle 50.2 %, load 20 %, 101 kPa, 30 and 83 degC."""


class Adapter:
    """Answers as a real one does, and fails in the ways that its fields say."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ttyOBD"
        self.values = dict(CAR)
        self.delay_s = 0.0
        self.search_s = 0.0
        self.mute = False
        self.echo = True
        self.said: bytes | None = None  # instead of any answer of the car
        self.no_car = ""  # "NO DATA", "UNABLE TO CONNECT", ...
        self.ecus: tuple[str, ...] = ()  # further lines after each answer
        self.asked: list[str] = []
        self.plug()

    def plug(self) -> None:
        """Plug the adapter in, maybe again."""
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self._slave))
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Pull it out: whoever has its port open finds it dead."""
        self._gone.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)
        self.path.unlink(missing_ok=True)

    def reset(self) -> None:
        """As when the voltage drops while the engine starts."""
        self.echo = True
        self.write(b"\r\rELM327 v1.5\r\r>")

    def write(self, data: bytes) -> None:
        """Say something unasked."""
        os.write(self._master, data)

    def count(self, command: str) -> int:
        """How often a command has come."""
        return self.asked.count(command)

    def _serve(self) -> None:
        line = b""
        while not self._gone.is_set():
            if not select.select([self._master], [], [], 0.01)[0]:
                continue
            line += os.read(self._master, 1024)
            while b"\r" in line:
                command, _, line = line.partition(b"\r")
                self._answer(command.decode().strip())

    def _answer(self, command: str) -> None:
        self.asked.append(command)
        if self.mute:
            return
        said = f"{command}\r" if self.echo else ""
        if command == "ATZ":
            self.echo = True
            reply = b"\r\rELM327 v1.5\r"
        elif command.startswith("AT"):
            self.echo = self.echo and command != "ATE0"
            reply = b"OK\r"
        else:
            if self.search_s and command == "0100":
                self.write(b"SEARCHING...")
                self._interrupted(self.search_s)
            if self._interrupted(self.delay_s):
                self.write(b"STOPPED\r\r>")
                return
            reply = self._car(command)
        self.write(said.encode() + reply + b"\r>")

    def _interrupted(self, seconds: float) -> bool:
        return bool(select.select([self._master], [], [], seconds)[0]) if seconds else False

    def _car(self, command: str) -> bytes:
        if self.said is not None:
            return self.said
        value = self.values.get(int(command[2:], 16))
        if self.no_car or value is None:
            return f"{self.no_car or 'NO DATA'}\r".encode()
        lines = [f"41{command[2:]}{value}", *self.ecus]
        return "".join(f"{line}\r" for line in lines).encode()
