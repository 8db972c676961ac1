"""Attributes of devices, as the kernel tells them in the files of /sys and /proc."""

from __future__ import annotations

from pathlib import Path

MAX_BYTES = 1 << 16  # an attribute in /sys has at most a page, a table in /proc some kB


def attribute(file: Path) -> bytes:
    """What a file says, without its line end; empty where there is none."""
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES).rstrip(b"\n")
    except OSError:  # the device has no such property, or is gone
        return b""


def text_attribute(file: Path) -> str:
    """As `attribute`, for people."""
    return attribute(file).decode("utf-8", "replace").strip()
