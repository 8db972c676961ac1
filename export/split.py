"""First stage: a fusion model becomes parts that run by themselves, with their state lifted.

An encoder becomes `(window, valid, state_in.*) -> (embedding, state_out.*)` for one window, the head
`(embedding.*, presence, age, state_in.*) -> (logits, state_out.*)`. The first dim `batch` of every tensor
is free; windows of images are uint8, all else is float32.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Dtype, Modality, StatePair, TensorSpec
from fusedge.export.lift import as_tuple, lift, run_module
from fusedge.export.part import ModulePart
from fusedge.export.task import Encoder, FusionModule

_BATCH = 2  # 1 would let a tracer take the batch for a constant
_Role = Literal[
    "window", "valid", "embedding", "presence", "age", "state_in", "state_out", "logits"
]


class _Memory(Protocol):
    """How a module is run from states that are arguments."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of each state, without the batch."""

    @property
    def initial(self) -> Mapping[str, NDArray[np.float32]]:
        """The states that do not begin with zeros."""

    def run(
        self, module: nn.Module, inputs: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The outputs of the module, then the new states."""

    def whole(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the module from its initial state."""


@dataclass(frozen=True)
class _Named:
    """States that the module names itself and takes after its inputs.

    Those without elements (of a convolution over one step) are no inputs and outputs of the part.
    """

    all_shapes: Mapping[str, tuple[int, ...]]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shape for name, shape in self.all_shapes.items() if 0 not in shape}

    @property
    def initial(self) -> Mapping[str, NDArray[np.float32]]:
        return {}

    def run(
        self, module: nn.Module, inputs: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        given = iter(states)
        full = [
            torch.zeros(inputs[0].shape[0], *shape) if 0 in shape else next(given)
            for shape in self.all_shapes.values()
        ]
        outputs = as_tuple(module(*inputs, *full))
        # By its own shape: a wrong number of states is for split() to report.
        return tuple(output for output in outputs if 0 not in output.shape)

    def whole(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(inputs[0].shape[0], *shape) for shape in self.all_shapes.values()]
        return as_tuple(module(*inputs, *zeros))


@dataclass(frozen=True)
class _Form:
    """How an encoder or head is called.

    `stepwise`: one step at a time, `[B, ...]` to `[B, D]`; else N in a row, to `[B, N, D]`. `contiguous`:
    windows follow one another, `[B, N*n, ...]`. `takes_valid`: it takes `valid`.
    """

    stepwise: bool
    memory: _Memory
    contiguous: bool = True
    takes_valid: bool = True


class _EncoderStep(nn.Module):
    """One window through an encoder: embedding `[B, D]`, whatever its form."""

    def __init__(self, encoder: nn.Module, form: _Form, inputs: int) -> None:
        super().__init__()
        self.encoder, self.form, self.inputs = encoder, form, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, states = list(tensors[: self.inputs]), tensors[self.inputs :]
        if len(inputs) == 2 and not self.form.takes_valid:
            # A part of a series has this input; what is not valid is 0, so the product changes nothing.
            window, valid = inputs
            inputs = [window * valid]
        embedding, *new_states = self.form.memory.run(self.encoder, inputs, states)
        return (embedding if self.form.stepwise else embedding.squeeze(1), *new_states)

    def sequence(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The encoder as it is over windows `[B, N, n, ...]`: the embeddings `[B, N, D]`."""
        inputs = tensors if self.form.takes_valid else tensors[:1]
        if self.form.contiguous and not self.form.stepwise:
            flat = [tensor.flatten(1, 2) for tensor in inputs]
            return self.form.memory.whole(self.encoder, flat)[:1]
        flat = [tensor.flatten(0, 1) for tensor in inputs]
        embedding = self.form.memory.whole(self.encoder, flat)[0].flatten(1)
        return (embedding.reshape(*inputs[0].shape[:2], -1),)


class _HeadStep(nn.Module):
    """One decision: the logits always as a tuple, each `[B, K]`."""

    def __init__(self, head: nn.Module, form: _Form, inputs: int, logits: int) -> None:
        super().__init__()
        self.head, self.form, self.inputs, self.logits = head, form, inputs, logits

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, states = tensors[: self.inputs], tensors[self.inputs :]
        if self.form.stepwise:
            return self.form.memory.run(self.head, inputs, states)
        outputs = self.form.memory.run(self.head, [t.unsqueeze(1) for t in inputs], states)
        logits = [output.squeeze(1) for output in outputs[: self.logits]]
        return (*logits, *outputs[self.logits :])

    def sequence(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The head as it is over N decisions, `[B, N, ...]`: each logits `[B, N, K]`."""
        if not self.form.stepwise:
            return self.form.memory.whole(self.head, tensors)[: self.logits]
        outputs = as_tuple(self.head(*(tensor.flatten(0, 1) for tensor in tensors)))
        return tuple(output.reshape(*tensors[0].shape[:2], -1) for output in outputs)


def split(
    model: FusionModule,
    modalities: Sequence[Modality],
    decision_rate_hz: float,
    logits: Sequence[str] = ("logits",),
) -> tuple[ModulePart, ...]:
    """The encoders in the model's order, then the head; the model must be in evaluation mode.

    Raises FusedgeError where a part does not run, returns other shapes than it says, or has memory that
    cannot be lifted.
    """
    for name in ("modalities", "encoder", "head"):
        if not hasattr(model, name):
            raise FusedgeError(
                f"the fusion model has no `{name}`",
                where="split",
                hint="see FusionModule in fusedge.export.task",
            )
    _check_forward(model)
    specs = {modality.name: modality for modality in modalities}
    if "head" in specs:
        raise FusedgeError(
            "a modality is called head, as the part of the fusion head is",
            where="split",
            hint="give the modality another name",
        )
    if set(specs) != set(model.modalities):
        raise FusedgeError(
            f"the model has the modalities {', '.join(model.modalities)}, "
            f"its description {', '.join(specs)}",
            where="split",
        )
    encoders = [_encoder_part(specs[name], model.encoder(name)) for name in model.modalities]
    sizes = {part.outputs[0].shape[1] for part in encoders}
    if len(sizes) > 1:
        raise FusedgeError(
            f"the encoders' embeddings have different sizes: {sorted(map(str, sizes))}",
            where="split",
            hint="end each encoder with a layer of the same width",
        )
    return (*encoders, _head_part(model, encoders, decision_rate_hz, logits))


def _check_forward(model: FusionModule) -> None:
    """Refuse a `forward` of the whole that takes other arguments than the parts are proved with."""
    if not isinstance(model, nn.Module) or type(model).forward is nn.Module.forward:
        return
    signature = inspect.signature(model.forward)
    try:
        signature.bind("windows", "valid", "presence", "age")
    except TypeError:
        raise FusedgeError(
            f"the fusion model's forward takes ({', '.join(signature.parameters)})",
            where="split",
            hint="forward(windows, valid, presence, age) -> logits over N steps, or no forward at all",
        ) from None


def _spec(
    name: str,
    role: _Role,
    *shape: int,
    modality: str | None = None,
    dtype: Dtype = "float32",
) -> TensorSpec:
    return TensorSpec(name=name, role=role, dtype=dtype, shape=("batch", *shape), modality=modality)


def _encoder_part(modality: Modality, encoder: nn.Module) -> ModulePart:
    name, where = modality.name, f"part {modality.name}"
    form = _encoder_form(modality, encoder, where)
    window = _spec(
        "window",
        "window",
        *modality.window_shape,
        modality=name,
        dtype="uint8" if modality.kind == "image" else "float32",
    )
    inputs = [window]
    if form.takes_valid or modality.kind == "series":
        inputs.append(_spec("valid", "valid", *modality.valid_shape, modality=name))
    states = form.memory.shapes
    step = _EncoderStep(encoder, form, len(inputs))
    part = _part(name, "encoder", name, 1 / modality.hop_s, step, inputs, form.memory)
    shapes = _output_shapes(part)
    wanted = [tuple(shape) for shape in states.values()]
    if shapes[1:] != wanted or len(shapes[0]) != 1:
        raise FusedgeError(
            f"for one window the encoder returns {_listed(shapes)} (without the batch), "
            f"not an embedding [D] and the states {_listed(wanted)}",
            where=where,
            hint="return (embedding, *new_states), shaped and ordered as state_shapes() says",
        )
    embedding = _spec("embedding", "embedding", *shapes[0], modality=name)
    return replace(part, outputs=(embedding, *_state_specs("state_out", states)))


def _encoder_form(modality: Modality, encoder: nn.Module, where: str) -> _Form:
    contiguous = math.isclose(modality.window_s, modality.hop_s)
    if isinstance(encoder, Encoder):
        form = _Form(False, _Named(encoder.state_shapes()), contiguous)
    else:
        takes_valid = _takes_valid(encoder, where)

        def windows(batch: int, steps: int) -> tuple[Tensor, ...]:
            return _random_windows(modality, batch, steps)[: 1 + takes_valid]

        shape = _run(encoder, windows(_BATCH, 1), where)[0].shape
        stepwise = len(shape) == 2
        if not stepwise and (len(shape) != 3 or shape[1] != 1):
            raise FusedgeError(
                f"for one window the encoder returns {list(shape[1:])} (without the batch), "
                "not an embedding [D]",
                where=where,
                hint="return [B, D] for one window, or [B, N, D] for N windows in a row",
            )
        lifted = lift(encoder, (lambda batch, _: windows(batch, 1)) if stepwise else windows, where)
        form = _Form(stepwise, lifted, contiguous, takes_valid)
        if contiguous and not stepwise:
            shape = _run(encoder, windows(_BATCH, 2), where)[0].shape
            if len(shape) != 3 or shape[1] != 2:
                raise FusedgeError(
                    f"for two windows in a row the encoder returns {list(shape[1:])} (without the "
                    "batch), not two embeddings [2, D]",
                    where=where,
                    hint="return one embedding for the end of each window, or [B, D] for one window",
                )
    if form.memory.shapes and not contiguous:
        raise FusedgeError(
            f"the encoder has memory ({', '.join(form.memory.shapes)}), but its windows of "
            f"{modality.window_s:g} s come every {modality.hop_s:g} s and are not in a row",
            where=where,
            hint="set window_s to hop_s, or return [B, D], which starts anew with each window",
        )
    return form


def _takes_valid(encoder: nn.Module, where: str) -> bool:
    """Whether `forward` takes `valid` after the window."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(encoder.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    needed = [
        p
        for p in parameters
        if p.kind in kinds and (p.default is inspect.Parameter.empty or p.name == "valid")
    ]
    if len(needed) not in (1, 2):
        raise FusedgeError(
            f"the encoder's forward takes ({', '.join(p.name for p in needed)})",
            where=where,
            hint="forward(window), forward(window, valid), or name further states by state_shapes()",
        )
    return len(needed) == 2


def _random_windows(modality: Modality, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    """Windows in a row and their validity, `[B, N*n, ...]`, the same for the same sizes."""
    random = torch.Generator().manual_seed(1000 * batch + steps)
    grid = steps * modality.window_samples
    shape = (batch, grid, *modality.item_shape)
    valid = torch.rand((batch, grid, *modality.valid_shape[1:]), generator=random) < 0.8
    if modality.kind == "image":
        window = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        return window, valid.float()
    low = torch.tensor([channel.minimum for channel in modality.channels])
    high = torch.tensor([channel.maximum for channel in modality.channels])
    window = low + torch.rand(shape, generator=random) * (high - low)
    return window * valid, valid.float()


def _head_part(
    model: FusionModule,
    encoders: Sequence[ModulePart],
    decision_rate_hz: float,
    logits: Sequence[str],
) -> ModulePart:
    size = encoders[0].outputs[0].shape[1]
    assert isinstance(size, int)
    inputs = (
        *(_spec(f"embedding.{m}", "embedding", size, modality=m) for m in model.modalities),
        _spec("presence", "presence", len(encoders)),
        _spec("age", "age", len(encoders)),
    )
    form = _head_form(model.head, len(encoders), size)
    states = form.memory.shapes
    others = [*inputs, *_state_specs("state_in", states), *_state_specs("state_out", states)]
    taken = [*(spec.name for spec in others), *logits]
    if clash := next((name for name in logits if taken.count(name) > 1), None):
        raise FusedgeError(
            f"the head's logits {clash!r} have the name of another of its tensors",
            where="part head",
            hint="give each Output of the task `logits` of a name of its own",
        )
    step = _HeadStep(model.head, form, len(inputs), len(logits))
    part = _part("head", "head", None, decision_rate_hz, step, inputs, form.memory)
    shapes = _output_shapes(part)
    wanted = [tuple(shape) for shape in states.values()]
    rows = shapes[: len(shapes) - len(wanted)]
    if (
        len(rows) != len(logits)
        or any(len(row) != 1 for row in rows)
        or shapes[len(rows) :] != wanted
    ):
        raise FusedgeError(
            f"the head returns {_listed(shapes)} (without the batch), "
            f"not one row of logits for each of {', '.join(logits)}"
            + (f" and the states {_listed(wanted)}" if wanted else ""),
            where="part head",
        )
    outputs = [_spec(name, "logits", *row) for name, row in zip(logits, rows, strict=True)]
    return replace(part, outputs=(*outputs, *_state_specs("state_out", states)))


def _head_form(head: nn.Module, count: int, size: int) -> _Form:
    """With memory if it runs over decisions in a row and remembers, else for one decision at a time."""
    if isinstance(head, Encoder):
        return _Form(False, _Named(head.state_shapes()))

    def decisions(batch: int, steps: int) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(1000 * batch + steps)
        embeddings = [torch.randn(batch, steps, size, generator=random) for _ in range(count)]
        presence = (torch.rand(batch, steps, count, generator=random) < 0.8).float()
        age = torch.rand(batch, steps, count, generator=random) * presence
        return (*embeddings, presence, age)

    def single(batch: int, _: int) -> tuple[Tensor, ...]:
        return tuple(tensor[:, 0] for tensor in decisions(batch, 1))

    # Of another size than all else: a head may join modalities where others have their decisions.
    steps = next(n for n in range(5, 9) if n not in (count, size))
    try:
        rows = run_module(head, decisions(_BATCH, steps), "part head")
        in_a_row = all(
            isinstance(row, Tensor) and row.dim() == 3 and row.shape[:2] == (_BATCH, steps)
            for row in rows
        )
    except FusedgeError:  # it need not be made for this
        in_a_row = False
    if in_a_row:
        try:
            lifted = lift(head, decisions, "part head")
        except FusedgeError:  # of what is no time, if it is made for one decision at a time
            if not _runs_by_rows(head, single(3, 1)):
                raise
        else:
            if lifted.shapes:
                return _Form(False, lifted)
    return _Form(True, lift(head, single, "part head"))


def _runs_by_rows(head: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether each row of the batch gives logits `[K]`, and the same alone as with the others."""
    try:
        together = run_module(head, inputs, "part head")
        alone = [
            run_module(head, [tensor[row : row + 1] for tensor in inputs], "part head")
            for row in range(len(inputs[0]))
        ]
    except FusedgeError:
        return False
    return all(
        isinstance(whole, Tensor)
        and whole.dim() == 2
        and torch.allclose(whole, torch.cat(rows), atol=1e-5)
        for whole, *rows in zip(together, *alone, strict=True)
    )


def _run(module: nn.Module, inputs: Sequence[Tensor], where: str) -> tuple[Tensor, ...]:
    outputs = run_module(module, inputs, where)
    for output in outputs:
        if not isinstance(output, Tensor) or output.shape[:1] != inputs[0].shape[:1]:
            raise FusedgeError(
                f"an output is {_kind_of(output)}, not a tensor with the batch as its first dim, "
                f"for inputs {_listed([t.shape for t in inputs])}",
                where=where,
            )
    return outputs


def _kind_of(output: object) -> str:
    if isinstance(output, Tensor):
        return f"of shape {list(output.shape)}"
    return f"a {type(output).__name__}"


def _part(
    name: str,
    kind: Literal["encoder", "head"],
    modality: str | None,
    rate_hz: float,
    step: _EncoderStep | _HeadStep,
    inputs: Sequence[TensorSpec],
    memory: _Memory,
) -> ModulePart:
    """A part with its states among its inputs; its outputs are not known yet."""
    return ModulePart(
        name=name,
        kind=kind,
        modality=modality,
        rate_hz=rate_hz,
        module=step,
        inputs=(*inputs, *_state_specs("state_in", memory.shapes)),
        outputs=(),
        state=_state_pairs(memory.shapes),
        initial={f"state_in.{state}": value for state, value in memory.initial.items()},
        sequence=step.sequence,
    )


def _output_shapes(part: ModulePart) -> list[tuple[int, ...]]:
    outputs = _run(part.module, part.zeros(_BATCH), f"part {part.name}")
    return [tuple(output.shape[1:]) for output in outputs]


def _state_specs(
    role: Literal["state_in", "state_out"], states: Mapping[str, tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    return tuple(_spec(f"{role}.{name}", role, *shape) for name, shape in states.items())


def _state_pairs(states: Mapping[str, tuple[int, ...]]) -> tuple[StatePair, ...]:
    return tuple(StatePair(input=f"state_in.{n}", output=f"state_out.{n}") for n in states)


def _listed(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
