"""What is exported: the parts of a model, what they are proved by, and the facts beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import (
    BATCH,
    DimRange,
    EventRule,
    Fusion,
    Modality,
    Output,
    Provenance,
)
from fusedge.export.cache import key_of
from fusedge.export.cases import Case, StreamCase, part_cases, stream_cases
from fusedge.export.identity import identity
from fusedge.export.part import ModulePart
from fusedge.export.plain import Example
from fusedge.export.plain_cases import plain_cases
from fusedge.export.split import split
from fusedge.export.task import FusionModule, Task

M = TypeVar("M")


@dataclass(frozen=True)
class Answers:
    """What the original module gives: the cases of each part, and sequences of the parts together."""

    cases: Mapping[str, Sequence[Case]]
    streams: Sequence[StreamCase] = ()


@dataclass(frozen=True)
class Subject:
    """A model taken apart. `answer` computes what its parts are proved by, which takes a while.

    `key` changes with all that graphs and parity follow from; None where that cannot be told.
    """

    name: str
    description: str
    parts: tuple[ModulePart, ...]
    answer: Callable[[], Answers]
    key: str | None
    provenance: Provenance
    modalities: tuple[Modality, ...] = ()
    fusion: Fusion | None = None
    outputs: tuple[Output, ...] = ()
    events: tuple[EventRule, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)


def fusion_subject(model: FusionModule, task: Task, batch: DimRange = BATCH) -> Subject:
    """A fusion model with the facts of its task; `batch` is what engines are built for.

    Raises FusedgeError where they do not fit. The model itself is left as it is.
    """
    if not isinstance(model, nn.Module):
        raise FusedgeError(f"the model is a {type(model).__name__}, not an nn.Module")
    frozen = _frozen(model)
    with one_thread():
        parts = split(
            frozen, task.modalities, task.decision_rate_hz, [o.logits for o in task.outputs]
        )
    parts = tuple(replace(part, dims={"batch": batch}) for part in parts)
    size = parts[0].outputs[0].shape[1]
    assert isinstance(size, int)
    return Subject(
        name=task.name,
        description=task.description,
        parts=parts,
        answer=lambda: Answers(
            part_cases(parts, task.modalities), stream_cases(frozen, parts, task.modalities)
        ),
        key=_key(frozen, repr((task.modalities, task.outputs, task.decision_rate_hz, batch))),
        provenance=task.provenance,
        modalities=task.modalities,
        fusion=Fusion(
            kind=task.fusion_kind,
            decision_rate_hz=task.decision_rate_hz,
            modalities=tuple(part.name for part in parts[:-1]),
            embedding_size=size,
        ),
        outputs=task.outputs,
        events=task.events,
        accuracy=task.accuracy,
        documents=task.documents,
    )


def plain_subject(
    part: ModulePart, example: Example, name: str, description: str, provenance: Provenance
) -> Subject:
    """A plain model, as `plain_part` gives it, with the example that it is proved by."""
    given = [item for key, a in example.items() for item in (key, repr(a.shape), a.tobytes())]
    return Subject(
        name=name,
        description=description,
        parts=(part,),
        answer=lambda: Answers({part.name: plain_cases(part, example)}),
        key=_key(part.module, repr((part.inputs, part.outputs, part.dims)), *given),
        provenance=provenance,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: more would sum in another order from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _frozen(model: M) -> M:
    """A copy in evaluation mode on the CPU."""
    frozen = copy.deepcopy(model)
    assert isinstance(frozen, nn.Module)
    frozen.cpu().eval()
    return frozen


def _key(module: nn.Module, *others: bytes | str) -> str | None:
    own = identity(module)
    return own and key_of(own, *others)
