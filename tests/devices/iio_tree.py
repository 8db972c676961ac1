"""An imitation of Linux IIO in a folder: attributes as files, a buffer's device as a FIFO."""

from __future__ import annotations

import os
import struct
from pathlib import Path

AXES = "xyz"


class IioTree:
    """A folder for sysfs and one for /dev, in which devices are made."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "sysfs", root / "dev"
        self.sysfs.mkdir()
        self.dev.mkdir()

    @property
    def options(self) -> str:
        return f"sysfs={self.sysfs}&dev={self.dev}"

    def add(
        self,
        number: int,
        name: str,
        quantities: tuple[str, ...] = ("accel", "anglvel"),
        *,
        buffered: bool = False,
        type_: str = "le:s16/16>>0",
        **attributes: str,
    ) -> FakeImu:
        return FakeImu(self, number, name, quantities, buffered, type_, attributes)


class FakeImu:
    def __init__(
        self,
        tree: IioTree,
        number: int,
        name: str,
        quantities: tuple[str, ...],
        buffered: bool,
        type_: str,
        attributes: dict[str, str],
    ) -> None:
        self.folder = tree.sysfs / f"iio:device{number}"
        self.chardev = tree.dev / f"iio:device{number}"
        self.folder.mkdir()
        self.names = [f"in_{quantity}_{axis}" for quantity in quantities for axis in AXES]
        self.put("name", name)
        for quantity in quantities:
            self.put(f"in_{quantity}_scale", "0.001")
        for channel in self.names:
            self.put(f"{channel}_raw", "0")
        if buffered:
            for index, channel in enumerate([*self.names, "in_timestamp"]):
                stamp = channel == "in_timestamp"
                self.put(f"scan_elements/{channel}_en", "0")
                self.put(f"scan_elements/{channel}_index", str(index))
                self.put(f"scan_elements/{channel}_type", "le:s64/64>>0" if stamp else type_)
            for file, text in (("enable", "0"), ("length", "2"), ("watermark", "1")):
                self.put(f"buffer/{file}", text)
            self.put("current_timestamp_clock", "realtime")
            os.mkfifo(self.chardev)
        for file, text in attributes.items():
            self.put(file, text)

    def put(self, file: str, text: str) -> None:
        """Write an attribute at once, so that no reader sees it empty."""
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f".{path.name}")
        new.write_text(f"{text}\n")
        new.rename(path)

    def get(self, file: str) -> str:
        return (self.folder / file).read_text().strip()

    def raw(self, *numbers: float) -> None:
        for name, number in zip(self.names, numbers, strict=True):
            self.put(f"{name}_raw", f"{number:g}")

    def scan(self, numbers: tuple[int, ...], time_ns: int) -> bytes:
        """A row of the buffer in the usual form: 16 bits each, then the stamp at a multiple of 8."""
        body = struct.pack(f"<{len(numbers)}h", *numbers)
        return body + bytes(-len(body) % 8) + struct.pack("<q", time_ns)
