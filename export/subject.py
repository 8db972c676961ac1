"""What is exported: the parts of a model, what they are proved by, and the facts beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
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
from fusedge.export.cases import Array, Case, Feeds, StreamCase, part_cases, stream_cases
from fusedge.export.edge_inputs import USUAL, make_windows
from fusedge.export.front_cases import KINDS as FRONT_KINDS
from fusedge.export.front_cases import front_cases, front_feeds
from fusedge.export.identity import NoIdentityError, computed, identity
from fusedge.export.part import ModulePart
from fusedge.export.plain import Example
from fusedge.export.plain_cases import plain_cases
from fusedge.export.split import split
from fusedge.export.task import FusionModule, Task
from fusedge.models.one_thread import one_thread

M = TypeVar("M")

_ROWS = 32  # of a plain model's example, of which the key takes what the model makes


@dataclass(frozen=True)
class Answers:
    """What the original module gives: the cases of each part, and sequences of the parts together."""

    cases: Mapping[str, Sequence[Case]]
    streams: Sequence[StreamCase] = ()


@dataclass(frozen=True)
class Subject:
    """A model taken apart. `answer` computes what its parts are proved by, which takes a while.

    What front ends run comes first among `parts`, the head last. `key` changes with all that graphs and
    parity follow from; None where that cannot be told, and then `no_key` says why.
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
    no_key: str = ""

    @property
    def measured_parts(self) -> tuple[ModulePart, ...]:
        """The parts that run on recorded input: not those of front ends, which are before that."""
        return tuple(part for part in self.parts if part.kind != "front")


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
    fronts = _fronts(task)
    size = parts[0].outputs[0].shape[1]
    assert isinstance(size, int)
    described = [(part.name, part.rate_hz, part.inputs, part.outputs, part.dims) for part in fronts]
    facts = repr((task.modalities, task.outputs, task.decision_rate_hz, batch, described))
    runs = [(part, _seeded(part, task.modalities)) for part in parts]
    runs += [(part, front_feeds(part, FRONT_KINDS[0], 2)) for part in fronts]
    key, no_key = _key([frozen, *(part.module for part in fronts)], runs, facts)
    return Subject(
        name=task.name,
        description=task.description,
        parts=(*fronts, *parts),
        answer=lambda: Answers(
            {
                **{part.name: front_cases(part) for part in fronts},
                **part_cases(parts, task.modalities),
            },
            stream_cases(frozen, parts, task.modalities),
        ),
        key=key,
        no_key=no_key,
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
    key, no_key = _key(
        [part.module],
        [(part, _perturbed(example, share)) for share in (0.0, 0.1)],
        repr((part.inputs, part.outputs, part.dims)),
        *given,
    )
    return Subject(
        name=name,
        description=description,
        parts=(part,),
        answer=lambda: Answers({part.name: plain_cases(part, example)}),
        key=key,
        no_key=no_key,
        provenance=provenance,
    )


def _frozen(model: M) -> M:
    """A copy in evaluation mode on the CPU."""
    frozen = copy.deepcopy(model)
    assert isinstance(frozen, nn.Module)
    frozen.cpu().eval()
    return frozen


def _fronts(task: Task) -> tuple[ModulePart, ...]:
    """The task's parts of front ends on the CPU; raises FusedgeError where a modality names another one."""
    given = {(part.modality, part.name) for part in task.fronts}
    named = {(m.name, m.front.part) for m in task.modalities if m.front is not None}
    for modality, part in sorted(given ^ named, key=str):
        raise FusedgeError(
            f"no modality has a front end with the part {part}"
            if (modality, part) in given
            else f"the front end of {modality} needs the part {part}",
            where=f"task {task.name}",
            hint="Task.fronts has one part for each modality with a `front`, named as it says",
        )
    return tuple(replace(part, module=_frozen(part.module)) for part in task.fronts)


def _key(
    modules: Sequence[nn.Module], runs: Sequence[tuple[ModulePart, Feeds]], *others: bytes | str
) -> tuple[str | None, str]:
    """The key with what the parts make of these inputs, and why there is none."""
    try:
        with one_thread():
            made = [
                computed(p.module, [feeds[spec.name] for spec in p.inputs]) for p, feeds in runs
            ]
        return key_of(identity(*modules), *made, *others), ""
    except NoIdentityError as reason:
        return None, str(reason)


def _seeded(part: ModulePart, modalities: Sequence[Modality]) -> Feeds:
    """Two rows for a part of a fusion model: a typical window, or all modalities and then none.

    States, embeddings and ages are random from 0 to 1.
    """
    random = np.random.default_rng(0)
    given: dict[str, Array] = {"presence": np.array([[1], [0]], np.float32)}
    for modality in modalities:
        if modality.name == part.modality:
            kind = USUAL[modality.kind][0]
            given["window"], given["valid"] = make_windows(modality, kind, (2,), random)
    return {
        spec.name: np.broadcast_to(given[spec.role], zeros.shape).copy()
        if spec.role in given
        else random.uniform(size=zeros.shape).astype(np.float32)
        for spec, zeros in zip(part.inputs, part.zeros(2), strict=True)
    }


def _perturbed(example: Example, share: float) -> Feeds:
    """The example's first rows, floats with noise of this share of their deviation."""
    random = np.random.default_rng(0)
    rows = {name: values[:_ROWS] for name, values in example.items()}
    return {
        name: (values + share * values.std() * random.normal(size=values.shape)).astype(
            values.dtype
        )
        if values.dtype.kind == "f"
        else values
        for name, values in rows.items()
    }
