"""A serial CAN adapter, as LAWICEL's and its many copies, on a pseudo-terminal."""

from __future__ import annotations

import os
import select
import tty
from pathlib import Path


class Lawicel:
    """Hears commands and says frames."""

    def __init__(self, folder: Path) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = folder / "ttyCAN"
        self.path.symlink_to(os.ttyname(self._slave))

    def heard(self, seconds: float = 0.05) -> list[str]:
        """The commands that have come."""
        text = b""
        while select.select([self.master], [], [], seconds)[0]:
            text += os.read(self.master, 1024)
        return text.decode().split("\r")[:-1]

    def frame(self, data: bytes, number: int = 180) -> None:
        self.say(b"t%03X%d%s\r" % (number, len(data), data.hex().upper().encode()))

    def say(self, data: bytes) -> None:
        os.write(self.master, data)

    def unplug(self) -> None:
        os.close(self.master)
        os.close(self._slave)
        self.path.unlink()
