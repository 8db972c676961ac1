"""Weights files: tensors as safetensors, with the model's configuration and notes, no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import is_special

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

_HINT = "weights are written by `fusedge train`, as .safetensors"


def weights_bytes(
    kind: str,
    model: nn.Module,
    config: Mapping[str, Any],
    notes: Mapping[str, str],
    *,
    halved: bool = False,
) -> bytes:
    """The file of a `kind` of model (`fusedge-model-1`); the same model, the same bytes.

    `halved`: matrices and kernels are rounded to float16, so that the file is half as large. What is read
    back then differs a little from the model.
    """
    # One key only: safetensors writes the keys of its metadata in random order.
    metadata = {kind: json.dumps({"config": config, "notes": dict(notes)})}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if halved:
        tensors = {n: value.half() if value.dim() > 1 else value for n, value in tensors.items()}
    return save(tensors, metadata)


def config_of(kind: Callable[..., C], raw: Mapping[str, Any]) -> C:
    """The configuration that a file has as JSON, where tuples are lists."""
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()})


def load_weights(kind: str, path: Path, make: Callable[[Any], M]) -> tuple[M, dict[str, str]]:
    """What `make` makes of the configuration, with the weights, in evaluation mode; and the notes.

    Raises FusedgeError where the file is missing, damaged or of another kind.
    """
    try:
        if is_special(path):
            raise OSError("it is no regular file")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = str(error).removesuffix(f": {path}")
        raise FusedgeError(f"cannot be read: {reason}", where=str(path), hint=_HINT) from error
    if kind not in metadata:
        found = ", ".join(sorted(metadata)) or "none"
        raise FusedgeError(
            f"is no model of the kind {kind} (it says {found[:80]})", where=str(path), hint=_HINT
        )
    try:
        description = json.loads(metadata[kind])
        model = make(description["config"])
        model.load_state_dict(tensors)
        notes = {str(key): str(value) for key, value in description["notes"].items()}
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FusedgeError(
            f"weights and configuration disagree: {reason}", where=str(path), hint=_HINT
        ) from error
    model.eval()
    return model, notes
