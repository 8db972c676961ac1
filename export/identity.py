"""What a module computes, as a hash: results that were proved for it are kept under that.

A module is its class, its tensors and its other attributes. Its code is hashed as text: that of the
model, of Fusedge, and of every module of the user's that is loaded; installed packages count by version.
"""

from __future__ import annotations

import enum
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

# What every module has (tensors, children, hooks), and what recurrent layers keep of their weights.
_OWN = (frozenset(vars(nn.Module())) - {"training"}) | {"_flat_weights", "_flat_weight_refs"}
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def identity(*modules: nn.Module) -> str | None:
    """The hash, None where an attribute is of a kind that cannot be hashed: nothing may be kept then."""
    digest = hashlib.sha256()
    try:
        for module in modules:
            for chunk in _module(module):
                digest.update(chunk)
    except TypeError:
        return None
    for chunk in _sources(modules):
        digest.update(chunk)
    return digest.hexdigest()


def _module(module: nn.Module) -> Iterator[bytes]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    for path, child in module.named_modules():
        yield f"{path} {type(child).__module__} {type(child).__qualname__}".encode()
        if any(getattr(child, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
            raise TypeError("hooks change what a module computes")
        others = {name: value for name, value in vars(child).items() if name not in _OWN}
        yield _plain(others).encode()


def _plain(value: Any) -> str:
    """A value as text that tells it from all others; TypeError where there is no such text."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}:{value.name}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}[{','.join(map(_plain, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"set[{','.join(sorted(map(_plain, value)))}]"
    if isinstance(value, Mapping):
        return f"map[{','.join(f'{_plain(k)}={_plain(v)}' for k, v in value.items())}]"
    if isinstance(value, torch.Tensor):
        return _plain(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, BaseModel):
        return f"{type(value).__qualname__}{value.model_dump_json()}"
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        return f"{type(value).__qualname__}{_plain(own)}"
    if callable(value) and hasattr(value, "__qualname__") and not _closes_over(value):
        return f"{value.__module__}.{value.__qualname__}"  # its code is among the sources
    raise TypeError(f"cannot tell one {type(value).__qualname__} from another")


def _closes_over(function: Any) -> bool:
    return bool(getattr(function, "__closure__", None)) or hasattr(function, "__self__")


def _sources(modules: tuple[nn.Module, ...]) -> Iterator[bytes]:
    packages = {type(child).__module__ for module in modules for child in module.modules()}
    tops = {name.partition(".")[0] for name in packages} - {"torch", "fusedge"}
    for name, module in sorted(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        if not isinstance(file, str) or not file.endswith(".py") or top == "fusedge":
            continue
        if top in tops or not file.startswith(_INSTALLED):
            yield name.encode()
            yield _source(file)
    # Of Fusedge all that takes part, loaded yet or not.
    for folder in (Path(__file__).parents[1] / name for name in ("bundle", "export", "models")):
        for path in sorted(folder.glob("*.py")):
            yield f"{folder.name}/{path.name}".encode()
            yield _source(str(path))


@cache
def _source(file: str) -> bytes:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:  # from an archive, or gone since
        return b""
