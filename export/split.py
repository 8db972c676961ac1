"""First stage: a fusion model becomes parts that run by themselves, with their state lifted.

An encoder becomes `(window, valid, state_in.*) -> (embedding, state_out.*)` for one window, the head
`(embedding.*, presence, age) -> logits`. Every tensor is float32 with a free first dim `batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality, StatePair, TensorSpec
from fusedge.export.part import ModulePart, concrete_shape
from fusedge.export.task import Encoder, FusionModule

_BATCH = 2  # 1 would let a tracer take the batch for a constant


class _EncoderStep(nn.Module):
    """One window through an encoder: embedding `[B, D]` in place of `[B, 1, D]`.

    States without elements (of a convolution over one step) are no inputs and outputs: the encoder is
    given them from here.
    """

    def __init__(self, encoder: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.encoder = encoder
        self.shapes = shapes

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        window, valid, *states = tensors
        given = iter(states)
        full = [
            window.new_zeros((window.shape[0], *shape)) if 0 in shape else next(given)
            for shape in self.shapes
        ]
        embedding, *new_states = self.encoder(window, valid, *full)
        # By its own shape: a wrong number of states is for split() to report.
        return (embedding.squeeze(1), *(state for state in new_states if 0 not in state.shape))


class _HeadStep(nn.Module):
    """The head with its logits always as a tuple."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.head(*tensors)
        return logits if isinstance(logits, tuple) else (logits,)


def split(
    model: FusionModule,
    modalities: Sequence[Modality],
    decision_rate_hz: float,
    logits: Sequence[str] = ("logits",),
) -> tuple[ModulePart, ...]:
    """The encoders in the model's order, then the head; the model must be in evaluation mode.

    Raises FusedgeError where a part does not run on zeros or returns other shapes than it says.
    """
    specs = {modality.name: modality for modality in modalities}
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


def _spec(name: str, role: Any, *shape: int, modality: str | None = None) -> TensorSpec:
    return TensorSpec(
        name=name, role=role, dtype="float32", shape=("batch", *shape), modality=modality
    )


def _encoder_part(modality: Modality, encoder: nn.Module) -> ModulePart:
    if not isinstance(encoder, Encoder):
        raise FusedgeError(
            "the encoder has no method state_shapes()",
            where=f"part {modality.name}",
            hint="return an empty dict if it carries no state",
        )
    window = (modality.window_samples, len(modality.channels))
    all_states = encoder.state_shapes()
    states = {name: shape for name, shape in all_states.items() if 0 not in shape}
    inputs = (
        _spec("window", "window", *window, modality=modality.name),
        _spec("valid", "valid", *window, modality=modality.name),
        *(_spec(f"state_in.{name}", "state_in", *shape) for name, shape in states.items()),
    )
    step = _EncoderStep(encoder, list(all_states.values()))
    shapes = _output_shapes(modality.name, step, inputs)
    wanted = [tuple(shape) for shape in states.values()]
    if shapes[1:] != wanted or len(shapes[0]) != 1:
        raise FusedgeError(
            f"for one window the encoder returns {_listed(shapes)} (without the batch), "
            f"not an embedding [D] and the states {_listed(wanted)}",
            where=f"part {modality.name}",
            hint="return (embedding, *new_states), shaped and ordered as state_shapes() says",
        )
    outputs = (
        _spec("embedding", "embedding", *shapes[0], modality=modality.name),
        *(_spec(f"state_out.{name}", "state_out", *shape) for name, shape in states.items()),
    )
    return ModulePart(
        name=modality.name,
        kind="encoder",
        modality=modality.name,
        rate_hz=1 / modality.hop_s,
        module=step,
        inputs=inputs,
        outputs=outputs,
        state=tuple(
            StatePair(input=f"state_in.{name}", output=f"state_out.{name}") for name in states
        ),
    )


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
    step = _HeadStep(model.head)
    shapes = _output_shapes("head", step, inputs)
    if len(shapes) != len(logits) or any(len(shape) != 1 for shape in shapes):
        raise FusedgeError(
            f"the head returns {_listed(shapes)} (without the batch), "
            f"not one row of logits for each of {', '.join(logits)}",
            where="part head",
        )
    return ModulePart(
        name="head",
        kind="head",
        modality=None,
        rate_hz=decision_rate_hz,
        module=step,
        inputs=inputs,
        outputs=tuple(
            _spec(name, "logits", *shape) for name, shape in zip(logits, shapes, strict=True)
        ),
    )


def _output_shapes(
    name: str, module: nn.Module, inputs: Sequence[TensorSpec]
) -> list[tuple[int, ...]]:
    zeros = [torch.zeros(concrete_shape(spec, {"batch": _BATCH})) for spec in inputs]
    shapes = ", ".join(
        f"{spec.name} {list(z.shape)}" for spec, z in zip(inputs, zeros, strict=True)
    )
    try:
        with torch.no_grad():
            outputs = module(*zeros)
    except Exception as error:  # the user's own code
        raise FusedgeError(
            f"the module fails on {shapes}: {type(error).__name__}: {error}", where=f"part {name}"
        ) from error
    for output in outputs:
        if not isinstance(output, torch.Tensor) or output.shape[:1] != (_BATCH,):
            raise FusedgeError(
                f"an output does not have the batch as its first dim, for {shapes}",
                where=f"part {name}",
            )
    return [tuple(output.shape[1:]) for output in outputs]


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
