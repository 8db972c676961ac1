"""A bundle that is exported unless it lies there already, made from exactly the same.

Beside the bundle lies `NAME.made-from`: a key of the facts and the code that it follows from, one of the
tools that exported it, and the hash of its manifest.
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
from fusedge.bundle.errors import BundleError, FusedgeError, MissingExtraError
from fusedge.bundle.regular_file import is_special, read_file, write_whole
from fusedge.export.cache import key_of
from fusedge.export.packages import tool_versions
from fusedge.export.sources import CODE_SHA256

if TYPE_CHECKING:
    from fusedge.export.part import ModulePart
    from fusedge.export.pipeline import WantedPrecision
    from fusedge.export.subject import Subject
    from fusedge.export.task import FusionModule, Task

NOTE = ".made-from"
"""What is added to a bundle's name."""
_MOST_NOTE = 1000  # bytes: three hashes


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
    always exported. The precision, the versions of the tools and the code of Fusedge count too; but where a
    package that exports is not installed, what other versions of the tools have made is taken. `say` is
    told that, why what lies there is not taken, and the `announcement`, in a line each.

    Raises FusedgeError where the export fails or the place cannot be written; then what lay there stays.
    Where no file can be put, nothing is exported first.
    """
    for place in (path, _note(path)):
        # A link that leads nowhere is written through.
        if is_special(place):
            raise FusedgeError(
                "is no regular file, and a bundle is to be kept here",
                where=str(place),
                hint="remove it",
            )
    facts = None if made_from is None else key_of(made_from, precision, CODE_SHA256)
    tools = key_of(json.dumps(tool_versions(), sort_keys=True))
    by_others = None  # what was exported from the same by other tools
    if facts is not None and os.path.lexists(path):
        try:
            found, its_tools = _found(path, facts)
            if its_tools == tools:
                return found
            by_others = found
        except BundleError as error:
            say(f"{path}: {error.what}; it is exported again")
    other_tools = f"{path}: was exported by other versions of the tools"
    try:
        from fusedge.export.pipeline import ExportOptions, export_bundle

        subject = make()
    except MissingExtraError as error:
        if by_others is None:
            raise
        say(f"{other_tools}; it is taken as it is, since {error.what}")
        return by_others
    if by_others is not None:
        say(f"{other_tools}; it is exported again")
    say(announcement or f"export {path.name}")
    bundle = export_bundle(subject, path, ExportOptions(precision=precision)).bundle
    if facts is not None:
        write_whole(_note(path), f"{facts} {tools} {bundle.sha256}\n".encode())
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


def _found(path: Path, facts: str) -> tuple[Bundle, str]:
    """The bundle and the key of its tools if it is whole and was made from this; BundleError otherwise."""
    bundle = Bundle(path)
    bundle.verify()
    note = _note(path)
    try:
        noted = read_file(note, _MOST_NOTE).decode("ascii", "replace").split()
    except FusedgeError as error:
        raise BundleError(f"what it was made from is not known: {note.name} {error.what}") from None
    if len(noted) != 3 or (noted[0], noted[2]) != (facts, bundle.sha256):
        raise BundleError("was made from something else")
    return bundle, noted[1]


def _note(path: Path) -> Path:
    return path.with_name(path.name + NOTE)
