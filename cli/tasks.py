"""The tasks that come with Fusedge, and how their model and their bundle are found for a command."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import VARIABLE, cache_folder, make_private
from fusedge.bundle.errors import FusedgeError, MissingExtraError, UnknownNameError
from fusedge.bundle.lookup import is_name, open_bundle, shipped_bundles
from fusedge.cli.console import console

if TYPE_CHECKING:
    from fusedge.export.subject import Subject
    from fusedge.export.task import FusionModule, Task

TASKS = ("driving", "emotion")
WEIGHTS = Path(__file__).parent.parent / "models" / "weights"
_EXPORT_S = 60  # of emotion: 45 s of CPU time; 61 and 80 s on two cores that others kept busy


def check_task(name: str, extra: str, purpose: str, tasks: tuple[str, ...] = TASKS) -> None:
    """Refuse a task that is none of these, and one whose work needs PyTorch where that is not installed."""
    if name not in tasks:
        raise UnknownNameError("model", name, tasks)
    need_torch(extra, purpose)


def need_torch(extra: str, purpose: str) -> None:
    """Raise MissingExtraError where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtraError("torch", extra, purpose) from None


def load_for_export(name: str, checkpoint: Path | None) -> tuple[FusionModule, Task]:
    """A task's model and the facts that go with it into the manifest.

    `checkpoint` None takes the shipped weights, whose measured figures and model card go along. Raises
    FusedgeError, also where the figures are of other weights.
    """
    from fusedge.cli.driving_task import load_driving
    from fusedge.cli.emotion_task import load_emotion_task

    loaders: Mapping[str, Callable[..., Any]] = {
        "driving": load_driving,
        "emotion": load_emotion_task,
    }
    given: tuple[Any, ...] = (checkpoint,)
    if checkpoint is None:
        weights, measured = WEIGHTS / f"{name}.safetensors", WEIGHTS / f"{name}.figures.json"
        found = json.loads(measured.read_text())
        if found["weights_sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
            raise FusedgeError(
                f"figures are of other weights than {weights.name}",
                where=str(measured),
                hint=f"measure them with `fusedge eval {name}`",
            )
        given = (
            weights,
            found["figures"],
            {"MODEL-CARD.md": (WEIGHTS / f"{name}.md").read_bytes()},
        )
    loaded: tuple[FusionModule, Task] = loaders[name](*given)
    return loaded


def find_bundle(name_or_path: str) -> Bundle:
    """The bundle that a command is to work on: by path, or by a task's name (see `shipped_bundle`).

    Raises FusedgeError.
    """
    return open_bundle(name_or_path, {task: partial(shipped_bundle, task) for task in TASKS})


def shipped_bundle(task: str) -> Bundle:
    """The bundle of a task's shipped weights: of the package, or exported, once, into the user's cache.

    Whoever exports is told so on standard error. Raises FusedgeError, without PyTorch MissingExtraError.
    """
    packaged = shipped_bundles().get(task)
    if packaged is not None:
        return Bundle(packaged)
    from fusedge.export.cache import key_of
    from fusedge.export.kept_bundle import kept_bundle
    from fusedge.export.sources import sources_sha256

    def make() -> Subject:
        need_torch("export", f"exporting {task} on its first use")
        from fusedge.export.subject import fusion_subject

        _make_writable(path.parent)
        return fusion_subject(*load_for_export(task, None))

    def say(what: str) -> None:
        console.print(what, style="dim", markup=False, soft_wrap=True)

    path = _place(task)
    # Weights, figures, card and licence. PyTorch, which takes more time and memory than a small session,
    # is not needed to see that nothing has changed.
    shipped = sorted({*WEIGHTS.glob(f"{task}.*"), *WEIGHTS.glob("LICENSE*")})
    loaders = sources_sha256("cli/tasks.py", f"cli/{task}_task.py")
    return kept_bundle(
        path,
        key_of(*(item for file in shipped for item in (file.name, file.read_bytes())), loaders),
        make,
        say,
        announcement=f"exporting {task} to {path}, once; it takes about {_EXPORT_S} s",
    )


def is_shipped(name_or_path: str) -> bool:
    """Whether `find_bundle` gives what no command may change: a bundle of the package or of the cache."""
    if is_name(name_or_path):
        return name_or_path in TASKS
    own = [*shipped_bundles().values(), *map(_place, TASKS)]
    return Path(name_or_path).resolve() in [path.resolve() for path in own]


def _make_writable(folder: Path) -> None:
    try:
        make_private(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise FusedgeError(
            f"no bundle can be kept here: {error.strerror}",
            where=str(folder),
            hint=f"set {VARIABLE} to a folder that you may write to",
        ) from None


def _place(task: str) -> Path:
    return cache_folder() / "bundles" / f"{task}.fusedge"
