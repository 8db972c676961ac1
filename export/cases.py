"""The inputs of the parity gate, with the answers of the original module.

All are seeded: the same model is always judged on the same inputs. Values follow the channels'
limits in the manifest, for the runtime refuses what lies outside; `huge` goes beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.export.part import ModulePart
from fusedge.export.task import Encoder, FusionModule

Array = NDArray[np.float32]

BATCHES = (1, 2, 7)
KINDS = ("typical", "quiet", "zero", "greatest", "least", "constant", "gaps", "invalid", "huge")
STEPS = 50
_HUGE = 100  # times the channel's limits
_NOISE = (
    3.0  # deviation of what is put in place of an absent embedding; it must not reach the output
)


@dataclass(frozen=True)
class Case:
    """Inputs of a part by name, and the outputs of the original module in the order of its specs.

    `within_limits` is false for input that the runtime never lets through.
    """

    name: str
    feeds: Mapping[str, Array]
    expected: tuple[Array, ...]
    within_limits: bool = True


@dataclass(frozen=True)
class StreamCase:
    """A sequence of N steps and what the whole model makes of it in one go.

    `windows` and `valid`: by modality, `[N, B, n, C]`. `presence`, `age`: `[N, B, M]`. `embeddings`: by
    modality, `[N, B, D]`. `logits`: for each output of the head, `[N, B, K]`.
    """

    name: str
    windows: Mapping[str, Array]
    valid: Mapping[str, Array]
    presence: Array
    age: Array
    embeddings: Mapping[str, Array]
    logits: tuple[Array, ...]


def part_cases(
    parts: Sequence[ModulePart], modalities: Sequence[Modality]
) -> dict[str, list[Case]]:
    """The cases of each part by its name: every kind of input, at each batch, for two steps.

    The head gets the encoders' own embeddings, with every subset of modalities.
    """
    specs = {modality.name: modality for modality in modalities}
    encoders, head = parts[:-1], parts[-1]
    cases: dict[str, list[Case]] = {part.name: [] for part in parts}
    for batch, kind in product(BATCHES, KINDS):
        embeddings = []
        for part in encoders:
            steps = list(_encoder_cases(part, specs[part.name], kind, batch))
            cases[part.name] += steps
            embeddings.append(steps[-1].expected[0])
        max_ages = [specs[part.name].max_age_s for part in encoders]
        cases["head"] += _head_cases(head, embeddings, max_ages, kind, batch)
    return cases


def stream_cases(
    model: FusionModule, parts: Sequence[ModulePart], modalities: Sequence[Modality]
) -> list[StreamCase]:
    """A sequence at each batch: N windows in one call of each encoder, then the head at each step.

    Presence goes through every subset, differently in each row. The encoders are also checked to
    give the same in N single steps, in torch; raises FusedgeError where they do not.
    """
    return [_stream_case(model, parts, modalities, batch) for batch in BATCHES]


def _answers(part: ModulePart, inputs: Sequence[Array], case: str) -> tuple[Array, ...]:
    """The outputs of the original module; raises FusedgeError where they are not finite."""
    outputs = _run(part.module, inputs)
    for spec, output in zip(part.outputs, outputs, strict=True):
        if not np.isfinite(output).all():
            raise FusedgeError(
                f"the original module gives {non_finite(output)}",
                where=f"part {part.name}, case {case}, output {spec.name}",
                hint="guard the division, logarithm or softmax over nothing in the module",
            )
    return outputs


def non_finite(values: Array) -> str:
    """`NaN in 3 of 24 values`."""
    kind = "NaN" if np.isnan(values).any() else "Inf"
    return f"{kind} in {int((~np.isfinite(values)).sum())} of {values.size} values"


def _run(module: nn.Module, inputs: Sequence[Array]) -> tuple[Array, ...]:
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(array) for array in inputs))
    return tuple(output.numpy() for output in outputs)


def _encoder_cases(part: ModulePart, modality: Modality, kind: str, batch: int) -> Iterator[Case]:
    """Two steps from zero state, the second from the state that the first one left."""
    state = [z.numpy() for z in part.zeros(batch)[2:]]
    for step in (1, 2):
        random = np.random.default_rng([step, batch, KINDS.index(kind)])
        window, valid = make_windows(modality, kind, (batch,), random)
        inputs = (window, valid, *state)
        name = f"batch {batch}, {kind} input, step {step}"
        expected = _answers(part, inputs, name)
        names = [spec.name for spec in part.inputs]
        yield Case(
            name,
            dict(zip(names, inputs, strict=True)),
            expected,
            within_limits=kind != "huge",
        )
        state = list(expected[1:])


def make_windows(
    modality: Modality, kind: str, leading: tuple[int, ...], random: np.random.Generator
) -> tuple[Array, Array]:
    """A window and its validity, float32 `[*leading, n, C]`; invalid grid points are 0."""
    shape = (*leading, modality.window_samples, len(modality.channels))
    low = np.array([channel.minimum for channel in modality.channels])
    high = np.array([channel.maximum for channel in modality.channels])
    uniform = random.uniform(size=shape)
    valid = np.ones(shape)
    if kind in ("typical", "gaps"):
        values = low + uniform * (high - low)
    elif kind == "quiet":
        values = 0.01 * (low + uniform * (high - low))
    elif kind == "greatest":
        values = np.broadcast_to(high, shape)
    elif kind == "least":
        values = np.broadcast_to(low, shape)
    elif kind == "constant":
        values = np.broadcast_to(0.75 * high + 0.25 * low, shape)
    elif kind == "huge":
        values = _HUGE * np.where(uniform < 0.5, low, high)
    else:
        values = np.zeros(shape)
    if kind == "gaps":
        valid = (random.uniform(size=shape) < 0.7).astype(float)
    elif kind == "invalid":
        valid = np.zeros(shape)
    return (values * valid).astype(np.float32), valid.astype(np.float32)


def _head_cases(
    head: ModulePart, embeddings: list[Array], max_ages: list[float], kind: str, batch: int
) -> Iterator[Case]:
    names = [spec.name for spec in head.inputs]
    random = np.random.default_rng([batch, KINDS.index(kind)])
    for subset in product((0.0, 1.0), repeat=len(embeddings)):
        presence = np.tile(np.array(subset, np.float32), (batch, 1))
        any_age = (random.uniform(size=presence.shape) * max_ages).astype(np.float32)
        age = any_age * presence  # the runtime gives zeros for what is absent
        masked = [e * np.float32(p) for e, p in zip(embeddings, subset, strict=True)]
        present = "+".join(
            str(spec.modality) for spec, p in zip(head.inputs, subset, strict=False) if p
        )
        name = f"batch {batch}, {kind} input, present: {present or 'none'}"
        expected = _answers(head, (*masked, presence, age), name)
        feeds = dict(zip(names, (*masked, presence, age), strict=True))
        yield Case(name, feeds, expected, within_limits=kind != "huge")
        noisy = [
            e if p else random.normal(0, _NOISE, e.shape).astype(np.float32)
            for e, p in zip(embeddings, subset, strict=True)
        ]
        feeds = dict(zip(names, (*noisy, presence, any_age), strict=True))
        yield Case(f"{name}, noise for the absent", feeds, expected, within_limits=kind != "huge")


def _stream_case(
    model: FusionModule, parts: Sequence[ModulePart], modalities: Sequence[Modality], batch: int
) -> StreamCase:
    encoders, head = parts[:-1], parts[-1]
    specs = {modality.name: modality for modality in modalities}
    windows: dict[str, Array] = {}
    valid: dict[str, Array] = {}
    embeddings: dict[str, Array] = {}
    for part in encoders:
        random = np.random.default_rng([batch, len(windows)])
        pairs = [
            make_windows(specs[part.name], ("typical", "quiet", "gaps")[step % 3], (batch,), random)
            for step in range(STEPS)
        ]
        window, mask = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        # [N, B, n, C] -> [B, N*n, C]
        flat = [a.swapaxes(0, 1).reshape(batch, -1, a.shape[-1]) for a in (window, mask)]
        encoder = model.encoder(part.name)
        assert isinstance(encoder, Encoder)  # as split() made sure
        zeros = [np.zeros((batch, *s), np.float32) for s in encoder.state_shapes().values()]
        whole = _run(encoder, (*flat, *zeros))[0].swapaxes(0, 1)
        _check_steps(part, window, mask, whole)
        windows[part.name], valid[part.name], embeddings[part.name] = window, mask, whole

    random = np.random.default_rng([batch, 99])
    subsets = np.array(list(product((0, 1), repeat=len(encoders))), np.float32)
    order = (np.arange(STEPS)[:, None] + np.arange(batch)) % len(subsets)
    presence = subsets[order]
    max_ages = [specs[part.name].max_age_s for part in encoders]
    age = (random.uniform(size=presence.shape) * max_ages).astype(np.float32) * presence
    steps = [
        _run(head.module, (*(embeddings[p.name][i] for p in encoders), presence[i], age[i]))
        for i in range(STEPS)
    ]
    return StreamCase(
        f"batch {batch}, {STEPS} steps",
        windows,
        valid,
        presence,
        age,
        embeddings,
        tuple(np.stack(arrays) for arrays in zip(*steps, strict=True)),
    )


def _check_steps(part: ModulePart, windows: Array, valid: Array, whole: Array) -> None:
    """The original encoder must give the same in N steps as in one sequence."""
    if whole.shape[0] != len(windows):
        raise FusedgeError(
            f"for a sequence of {len(windows)} windows the encoder gives {whole.shape[0]} embeddings",
            where=f"part {part.name}",
            hint="one embedding [D] at the end of each window: [B, N, D] for [B, N*n, C]",
        )
    state = [z.numpy() for z in part.zeros(windows.shape[1])[2:]]
    for step, (window, mask) in enumerate(zip(windows, valid, strict=True)):
        embedding, *state = _run(part.module, (window, mask, *state))
        gap = np.abs(embedding - whole[step]).max() / max(1.0, np.abs(whole[step]).max())
        if not gap <= 1e-4:  # float32 rounding alone is 100 times less
            raise FusedgeError(
                f"the module itself gives another embedding in single steps than in one sequence: "
                f"{gap:.1e} off at step {step + 1}",
                where=f"part {part.name}",
                hint="what it remembers must be among its states, and it must not look ahead",
            )
