"""What a module computes, as a hash: results that were proved for it are kept under that.

A module is its class, its tensors and its other attributes, each layer as often as it is used. Its code is
hashed as text: that of Fusedge, of every module of the user's that is loaded, and of the installed
packages that its classes come from, as far as they are loaded; torch and the tools count by version, which
whoever keeps results adds. What is in none of these, such as a table that is read on import, shows in what
the module computes on seeded inputs: `computed`.
"""

from __future__ import annotations

import enum
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn

from fusedge.export.sources import CODE_SHA256

# What every module has (tensors, children, hooks), and what recurrent layers keep of their weights.
_OWN = (frozenset(vars(nn.Module())) - {"training"}) | {"_flat_weights", "_flat_weight_refs"}
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class NoIdentityError(Exception):
    """What a module computes cannot be told, for the reason that it says: nothing may be kept then."""


def identity(*modules: nn.Module) -> str:
    """The hash; raises NoIdentityError where an attribute is of a kind that cannot be hashed."""
    digest = hashlib.sha256()
    try:
        for module in modules:
            for chunk in _module(module):
                digest.update(chunk)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's and pydantic's, of odd values
        raise NoIdentityError(f"{type(error).__name__}: {error}") from error
    for chunk in _sources(modules):
        digest.update(chunk)
    return digest.hexdigest()


def computed(module: nn.Module, inputs: Sequence[NDArray[Any]]) -> str:
    """The hash of the tuple of tensors that a module gives; NoIdentityError where it fails.

    To be called in one thread, in which the same sums have the same order.
    """
    try:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(array) for array in inputs))
    except Exception as error:  # the user's own code
        raise NoIdentityError(
            f"it fails: {type(error).__name__}: {error}".splitlines()[0]
        ) from error
    return hashlib.sha256("".join(map(_plain, outputs)).encode()).hexdigest()


def _module(module: nn.Module) -> Iterator[bytes]:
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in tensors:
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    for path, child in module.named_modules(remove_duplicate=False):
        yield f"{path} {type(child).__module__} {type(child).__qualname__}".encode()
        if any(getattr(child, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
            raise NoIdentityError("hooks change what a module computes")
        others = {name: value for name, value in vars(child).items() if name not in _OWN}
        yield _plain(others).encode()


def _plain(value: Any) -> str:
    """A value as text that tells it from all others; NoIdentityError where there is no such text."""
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
        defaults = [getattr(value, name, None) for name in ("__defaults__", "__kwdefaults__")]
        # Its code is among the sources.
        return f"{value.__module__}.{value.__qualname__}{_plain(defaults)}"
    raise NoIdentityError(f"cannot tell one {type(value).__qualname__} from another")


def _closes_over(function: Any) -> bool:
    if isinstance(function, BuiltinFunctionType):  # its own is the module it is of, or an object
        return not isinstance(function.__self__, (ModuleType, type(None)))
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
    yield CODE_SHA256.encode()


@cache
def _source(file: str) -> bytes:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:  # from an archive, or gone since
        return b""
