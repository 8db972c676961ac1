"""A bundle that is exported unless it lies there already, made from exactly the same.

Beside the bundle lies `NAME.made-from`: a key of all that it follows from, and the hash of its manifest.
PyTorch is imported only where something is exported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Set
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError
from fusedge.bundle.regular_file import write_whole
from fusedge.export.cache import key_of
from fusedge.export.packages import tool_versions
from fusedge.export.sources import sources_sha256

if TYPE_CHECKING:
    from fusedge.export.part import ModulePart
    from fusedge.export.pipeline import WantedPrecision
    from fusedge.export.subject import Subject
    from fusedge.export.task import FusionModule, Task

CODE = ("bundle", "export", "models")
"""What shapes a bundle."""
NOTE = ".made-from"
"""What is added to a bundle's name."""


def kept_bundle(
    path: Path,
    made_from: str | None,
    make: Callable[[], Subject],
    say: Callable[[str], None],
    *,
    precision: WantedPrecision = "fp32",
    announcement: str = "",
) -> Bundle:
    """The bundle at `path`, exported where it was not made from exactly the same, or is not whole.

    `made_from` stands for what `make` gives, its weights and all facts; None: nothing does, and it is
    always exported. The precision, the versions of the tools and the code of Fusedge count too. `say` is
    told why what lies there is not taken, and the `announcement`, in a line each.

    Raises FusedgeError where the export fails or the place cannot be written; then what lay there stays.
    """
    key = None
    if made_from is not None:
        tools = json.dumps(tool_versions(), sort_keys=True)
        key = key_of(made_from, precision, tools, sources_sha256(*CODE))
        if os.path.lexists(path):
            try:
                return _found(path, key)
            except BundleError as error:
                say(f"{path}: {error.what}; it is exported again")
    from fusedge.export.pipeline import ExportOptions, export_bundle

    subject = make()
    say(announcement or f"export {path.name}")
    bundle = export_bundle(subject, path, ExportOptions(precision=precision)).bundle
    if key is not None:
        write_whole(_note(path), _noted(key, bundle))
    return bundle


def exported(model: FusionModule, task: Task, path: Path, say: Callable[[str], None]) -> Bundle:
    """The bundle of a model and its task at `path`, at fp32: see `kept_bundle`."""
    from fusedge.export.subject import fusion_subject

    subject = fusion_subject(model, task)
    if subject.key is None:
        say(f"{path.name} cannot be found again: {subject.no_key}")
    return kept_bundle(path, made_from(subject), lambda: subject, say)


def made_from(subject: Subject) -> str | None:
    """A key that changes with everything of a subject that goes into its bundle; None where it has none."""
    if subject.key is None:
        return None
    facts = [_told(subject, {"parts", "answer", "documents", "no_key"})]
    facts += (_told(part, {"module", "sequence", "initial"}) for part in subject.parts)
    contents = [
        *((name, content) for name, content in sorted(subject.documents.items())),
        *((n, v.tobytes()) for part in subject.parts for n, v in sorted(part.initial.items())),
    ]
    return key_of(*facts, *(item for pair in contents for item in pair))


def _told(value: Subject | ModulePart, without: Set[str]) -> str:
    own = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in without}
    return repr(own)


def _found(path: Path, key: str) -> Bundle:
    """The bundle if it is whole and was made under this key; BundleError otherwise."""
    bundle = Bundle(path)
    bundle.verify()
    try:
        noted = _note(path).read_bytes()
    except OSError:  # never written, or gone
        noted = b""
    if noted != _noted(key, bundle):
        raise BundleError("was made from something else")
    return bundle


def _note(path: Path) -> Path:
    return path.with_name(path.name + NOTE)


def _noted(key: str, bundle: Bundle) -> bytes:
    return f"{key} {bundle.sha256}\n".encode()
