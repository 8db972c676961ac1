"""The tasks that come with Fusedge, and how their model is found for a command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedge.bundle.errors import MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    from fusedge.export.task import FusionModule, Task

TASKS = ("driving", "emotion")
WEIGHTS = Path(__file__).parent.parent / "models" / "weights"


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

    `checkpoint` None takes the shipped weights, whose measured figures and model card go along.
    """
    from fusedge.cli.driving_task import load_driving
    from fusedge.cli.emotion_task import load_emotion_task

    loaders: Mapping[str, Callable[..., Any]] = {
        "driving": load_driving,
        "emotion": load_emotion_task,
    }
    given: tuple[Any, ...] = (checkpoint,)
    if checkpoint is None:
        given = (
            WEIGHTS / f"{name}.safetensors",
            json.loads((WEIGHTS / f"{name}.figures.json").read_text()),
            {"MODEL-CARD.md": (WEIGHTS / f"{name}.md").read_bytes()},
        )
    loaded: tuple[FusionModule, Task] = loaders[name](*given)
    return loaded
