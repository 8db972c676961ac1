"""Runs `fusedge` as a user does: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def fusedge(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The finished command, its output as text."""
    return subprocess.run(
        [sys.executable, "-m", "fusedge.cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=120,
    )
