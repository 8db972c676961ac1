"""The code of Fusedge as a digest: what was computed before is found again under the same code alone."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Where the packages lie: the namespace package, installed or as a clone."""


@cache
def sources_sha256(*places: str) -> str:
    """SHA-256 of the code at each place below `ROOT`: a package such as `runtime`, with all packages in it,
    or a module such as `cli/tasks.py`. Names of files count too; hidden ones, such as an editor's, do not.

    It is of the files as they are at the first call: whoever asks for the code that runs calls this where
    its modules are loaded.

    Raises ValueError where there is no code, for then the digest would not change with it.
    """
    digest = hashlib.sha256()
    for place in places:
        top = ROOT / place
        found = [top] if top.is_file() else sorted(top.rglob("*.py"))
        files = [path for path in found if path.is_file() and not _is_hidden(path)]
        if not files:
            raise ValueError(f"no code at {place}")
        for path in files:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


CODE_SHA256 = sources_sha256("bundle", "export", "models")
"""Of what shapes a bundle, as it is loaded: a file may be edited while a model is trained."""
