"""The inputs of the parity gate for what a front end runs: frames, sound and the memory of a network."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from fusedge.bundle.manifest import TensorSpec
from fusedge.export.cases import Array, Case, Feeds, answers, batches
from fusedge.export.part import ModulePart, concrete_shape

KINDS = ("noise", "quiet", "least", "middle", "greatest", "gradient")
_QUIET = 1e-3  # of the range, around its middle


def front_cases(part: ModulePart) -> list[Case]:
    """Every kind of input at each batch, all inputs of one kind; at usual and greatest batch noise alone.

    Whole numbers go from 0 to 255, float32 from -1 to 1: of images, of sound and of a network's memory.
    """
    numbers = sum(math.prod(zeros.shape) for zeros in part.zeros(1))
    cases = []
    for batch, every in batches(part, numbers):
        for kind in KINDS if every else KINDS[:1]:
            name = f"batch {batch}, {kind} input"
            draw = partial(front_feeds, part, kind, batch)
            cases.append(Case(name, draw, answers(part, list(draw().values()), name)))
    return cases


def front_feeds(part: ModulePart, kind: str, batch: int) -> Feeds:
    """Inputs of one kind, by name; each time the same."""
    random = np.random.default_rng([batch, KINDS.index(kind)])
    sizes = {name: dim.usual for name, dim in part.dims.items()} | {"batch": batch}
    return {
        spec.name: _input(spec, kind, concrete_shape(spec, sizes), random) for spec in part.inputs
    }


def _input(
    spec: TensorSpec, kind: str, shape: tuple[int, ...], random: np.random.Generator
) -> Array:
    noise = random.uniform(size=shape)
    share = {
        "noise": noise,
        "quiet": 0.5 + _QUIET * (noise - 0.5),
        "least": np.zeros(shape),
        "middle": np.full(shape, 0.5),
        "greatest": np.ones(shape),
        "gradient": np.linspace(0, 1, noise.size).reshape(shape),
    }[kind]
    scaled = 2 * share - 1 if spec.dtype == "float32" else 255 * share
    return scaled.astype(spec.dtype)
