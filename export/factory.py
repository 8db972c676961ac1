"""A user's model: the module that a function of theirs makes, with the weights of a file.

Importing and calling it runs the user's own code; a failure there is told in one line with its place.
Weights come as safetensors, which is data alone: a pickled checkpoint can run code and is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Provenance
from fusedge.bundle.regular_file import is_special
from fusedge.export.cache import key_of
from fusedge.export.evaluation import Feeds
from fusedge.export.part import ModulePart
from fusedge.export.task import Task, provenance

_FORM = "give it as package.module:factory"
_FUSEDGE = [
    f"{Path(__file__).parents[1] / name}/" for name in ("bundle", "cli", "export", "models")
]


@dataclass(frozen=True)
class FactoryModel:
    """A module in evaluation mode. `task` is None for a plain model.

    `provenance` names the task and has the hash of the checkpoint, or without one that of the weights that
    the factory made. It is also in `task`.
    """

    name: str
    module: nn.Module
    task: Task | None
    provenance: Provenance


def load_factory(spec: str, checkpoint: Path | None = None) -> FactoryModel:
    """The model that `package.module:factory` makes, imported from the current folder or installed.

    The factory takes no arguments. It returns an `nn.Module`, or `(module, Task)`; a module whose `task` is
    a `Task` is a fusion model too. A plain model may have its `provenance`. The checkpoint, a safetensors
    file, must have just the module's `state_dict`.

    Raises FusedgeError with file and line for a failure of the user's code.
    """
    module_name, _, factory_name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), factory_name)):
        raise FusedgeError(f"{spec!r} names no function of a module", hint=_FORM)
    factory = _factory(module_name, factory_name)
    with user_code(f"{spec} fails"):
        made = factory()
    module, task = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module) or not isinstance(task, Task | None):
        raise FusedgeError(
            f"{spec} returns {_described(made)}",
            hint="return an nn.Module, or (nn.Module, fusedge.export.task.Task)",
        )
    own = getattr(module, "task", None)
    task = task or (own if isinstance(own, Task) else None)
    weights = _weights(module, spec)
    digest = _load(module, weights, checkpoint) if checkpoint else _digest(weights)
    stated = task.provenance if task else getattr(module, "provenance", provenance())
    if not isinstance(stated, Provenance):
        raise FusedgeError(
            f"the model's `provenance` is {_described(stated)}",
            where=spec,
            hint="make it with fusedge.export.task.provenance",
        )
    name = task.name if task else type(module).__name__.lstrip("_")
    stated = stated.model_copy(update={"task": name, "weights_sha256": digest})
    task = replace(task, provenance=stated) if task else None
    with user_code(f"{spec}: eval() of the module fails"):
        module.eval()  # its own `train` may return nothing
    return FactoryModel(name, module, task, stated)


class TaskEvaluation:
    """The `Evaluation` of a user's task, whose failures are told in one line with their place."""

    def __init__(self, task: Task, parts: Sequence[ModulePart]) -> None:
        assert task.evaluation is not None
        self._failure = f"the evaluation of the task {task.name} fails"
        with user_code(self._failure):
            self._own = task.evaluation(parts)
        needed = ("metric_name", "identity", "metric", "feeds")
        if lacking := next((name for name in needed if not hasattr(self._own, name)), None):
            raise FusedgeError(
                f"the task's evaluation gives {_described(self._own)}, which has no `{lacking}`",
                where=f"task {task.name}",
                hint="return a fusedge.export.evaluation.StreamEvaluation",
            )
        self.metric_name, self.identity = self._own.metric_name, self._own.identity

    def metric(self, graphs: Mapping[str, bytes]) -> float:
        """See `Evaluation`."""
        with user_code(self._failure):
            return self._own.metric(graphs)

    def feeds(self, graphs: Mapping[str, bytes], part: str) -> Iterator[Feeds]:
        """See `Evaluation`."""
        with user_code(self._failure):
            yield from self._own.feeds(graphs, part)


def _factory(module_name: str, name: str) -> Callable[[], object]:
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` does
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    with user_code(f"{module_name} cannot be imported", module_name):
        module = importlib.import_module(module_name)
    factory = getattr(module, name, None)
    if factory is None:
        known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise UnknownNameError(f"function of {module_name}", name, known)
    if not callable(factory):
        raise FusedgeError(f"{module_name}:{name} is {_described(factory)}, not a function")
    return factory  # type: ignore[no-any-return]  # anything that can be called


@contextmanager
def user_code(what: str, module: str = "") -> Iterator[None]:
    """Turn what is raised inside into FusedgeError with the file and line of the user's code."""
    try:
        yield
    except (FusedgeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # sys.exit() at import is a failure too
        where, name = _place(error), getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{name}."):
            raise FusedgeError(
                f"there is no module {name!r}, neither in {Path.cwd()} nor installed",
                hint=f"{_FORM}, from the folder that holds it",
            ) from None
        raise FusedgeError(f"{what}: {type(error).__name__}: {error}", where=where) from error


def _place(error: BaseException) -> str:
    """File and line of the innermost frame that is no library's, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    stdlib = sysconfig.get_path("stdlib") + "/"
    libraries = ("/site-packages/", "/dist-packages/", "<frozen", stdlib, *_FUSEDGE)
    own = [f for f in frames if not any(part in f.filename for part in libraries)]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return "None" if value is None else f"a {type(value).__name__}"


def _weights(module: nn.Module, spec: str) -> dict[str, Tensor]:
    """The module's tensors by name; raises FusedgeError for what is no tensor with values."""
    weights: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise FusedgeError(
                f"the module keeps {_described(value)} as {name}, which no checkpoint can hold",
                where=spec,
                hint="return a tensor from get_extra_state, or keep it in a buffer",
            )
        if is_lazy(value) or value.is_meta:
            raise FusedgeError(
                f"{name} of the module has no values yet",
                where=spec,
                hint="run the module once before you return it, and not on the meta device",
            )
        weights[name] = value
    return weights


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values."""
    items: list[bytes | str] = []
    for name, tensor in sorted(tensors.items()):
        items += [name, str(tensor.dtype), str(list(tensor.shape)), _values(tensor)]
    return key_of(*items)


def _values(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _load(module: nn.Module, wanted: Mapping[str, Tensor], path: Path) -> str:
    """Load the weights of a file into a module, which has `wanted`; the SHA-256 of the file."""
    if path.suffix != ".safetensors":
        raise FusedgeError(
            "the checkpoint is not a .safetensors file; a pickle could run code and is not read",
            where=str(path),
            hint="convert it where you trust it: safetensors.torch.save_file(model.state_dict(), FILE)",
        )
    try:
        if is_special(path):
            raise OSError(0, "it is no regular file")
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FusedgeError(f"cannot be read: {reason}", where=str(path)) from None
    # Tied weights are one tensor under two names, of which a file may have one.
    present = {wanted[name].data_ptr() for name in tensors if name in wanted}
    missing = [n for n in wanted if n not in tensors and wanted[n].data_ptr() not in present]
    unexpected = [name for name in tensors if name not in wanted]
    if missing or unexpected:
        raise FusedgeError(_difference(missing, unexpected, list(wanted)), where=str(path))
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise FusedgeError(
                f"{name} has the shape {list(tensor.shape)}, in the module {list(wanted[name].shape)}",
                where=str(path),
                hint="make the module with the sizes that it was trained with",
            )
    tied: dict[int, str] = {}
    for name in (name for name in wanted if name in tensors):
        tensor = tensors[name]
        first = tied.setdefault(wanted[name].data_ptr(), name)
        if tensor.shape == tensors[first].shape and _values(tensor) != _values(tensors[first]):
            raise FusedgeError(
                f"{first} and {name} are one tensor in the module, but differ in the checkpoint",
                where=str(path),
                hint="tie the module's weights only if they were tied in training",
            )
    module.load_state_dict(tensors, strict=False)  # compared above, with tied weights in mind
    return hashlib.sha256(content).hexdigest()


def _difference(missing: list[str], unexpected: list[str], wanted: list[str]) -> str:
    """What names differ, with the closest one."""
    if unexpected:
        name = unexpected[0]
        close = difflib.get_close_matches(name, missing or wanted, n=1, cutoff=0.5)
        rest = f" and {len(unexpected) - 1} more" if unexpected[1:] else ""
        nearest = f"; the nearest there is {close[0]}" if close else ""
        return f"the checkpoint has {name}{rest}, which the module has not{nearest}"
    rest = f" and {len(missing) - 1} more" if missing[1:] else ""
    return f"the checkpoint lacks {missing[0]}{rest}"
