"""Files in which a system describes itself: of any content, bounded, and missing more often than not."""

from __future__ import annotations

import re
from pathlib import Path

from fusedge.bundle.regular_file import is_file

MAX_BYTES = 1 << 20  # /proc/cpuinfo of 512 threads has 0.8 MB; all others have some kB


def read_text(path: Path) -> str:
    """At most a mebibyte of a file, without NUL and blanks around; empty where it cannot be read."""
    if not is_file(path):
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """The whole number that a file begins with, None where there is none."""
    found = re.match(r"-?\d{1,19}(?=\s|$)", read_text(path))
    return int(found[0]) if found else None


def cpu_list(text: str) -> frozenset[int] | None:
    """CPUs as the kernel lists them (`0-3,8`), None for another text."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?){0,999}", text):
        return None
    spans = [span.partition("-") for span in text.split(",")]
    return frozenset(
        number for first, _, last in spans for number in range(int(first), int(last or first) + 1)
    )


def read_field(text: str, name: str) -> str | None:
    """What follows `name:` on a line of a text, None where no line has it."""
    found = re.search(rf"^{name}[ \t]*:[ \t]*(\S.*)$", text, re.M | re.I)
    return found[1].rstrip() if found else None


def matching(root: Path, *patterns: str) -> list[Path]:
    """The paths under `root` that match the first of these patterns that any matches, sorted."""
    for pattern in patterns:
        try:
            if found := sorted(root.glob(pattern)):
                return found
        except OSError:  # a folder that may not be looked into
            continue
    return []
