"""The inputs of the parity gate for a fusion model, with the answers of the original module.

All are seeded: the same model is always judged on the same inputs. Windows are drawn again each time
that they are needed, so that a part with large ones costs no more memory than one call of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality, TensorSpec
from fusedge.export.edge_inputs import BEYOND_LIMITS, KINDS, USUAL, make_windows
from fusedge.export.part import ModulePart
from fusedge.export.task import FusionModule

Array = NDArray[np.generic]
Feeds = Mapping[str, Array]

BATCHES = (1, 2, 7)
STEPS = 50
VERY_LONG = 300  # steps, of one row
LONGEST = 1000  # steps, of one row of windows so small that these are cheap
_FEW_NUMBERS = 1 << 16  # in the windows of more than VERY_LONG steps
_NUMBERS = (
    8 << 20
)  # in the windows of one call: as float32 32 MB, and inside of an encoder a few times that
_ALL_SUBSETS = 5  # modalities of which every subset is tried
_SAMPLED = 32  # subsets of more, beside the regular ones
_NOISE = (
    3.0  # deviation of what is put in place of an absent embedding; it must not reach the output
)
SAME = 1e-4  # of two ways through the original module; float32 rounding alone is 100 times less


@dataclass(frozen=True)
class Case:
    """Inputs of a part by name, and the outputs of the original module in the order of its specs.

    `draw` gives the inputs, each time the same. `within_limits` is false for input that the runtime
    never lets through.
    """

    name: str
    draw: Callable[[], Feeds]
    expected: tuple[Array, ...]
    within_limits: bool = True

    @property
    def feeds(self) -> Feeds:
        """The inputs by name."""
        return self.draw()


@dataclass(frozen=True)
class StreamCase:
    """A sequence of N steps for some of the parts, and what each makes of it in one go.

    `inputs`: by part, what it gets beside its state, by name, `[N, B, ...]`. A head without embeddings
    gets those that the encoders of the same case give. `expected`: by part, the outputs of the original
    module without the states, `[N, B, ...]`.
    """

    name: str
    inputs: Mapping[str, Feeds]
    expected: Mapping[str, tuple[Array, ...]]

    @property
    def size(self) -> tuple[int, int]:
        """The batch and the number of steps."""
        steps, batch = next(iter(self.expected.values()))[0].shape[:2]
        return batch, steps


def part_cases(
    parts: Sequence[ModulePart], modalities: Sequence[Modality]
) -> dict[str, list[Case]]:
    """The cases of each part by its name: every kind of input, at each batch, for two steps.

    The head gets the encoders' own embeddings, with the subsets of modalities of `subsets`. Of a part
    whose windows are so large that a batch does not fit the budget, fewer are taken, but two at least;
    the head then gets their embeddings repeatedly. At the usual and greatest batch one kind is tried.
    """
    specs = {modality.name: modality for modality in modalities}
    encoders, head = parts[:-1], parts[-1]
    cases: dict[str, list[Case]] = {part.name: [] for part in parts}
    kinds = [KINDS[specs[part.name].kind] for part in encoders]
    tried: dict[tuple[str, str, int], Array] = {}
    for batch, every in batches(head, 1):
        answers: list[list[Array]] = []  # of each encoder, the embeddings by kind
        for encoder, own in zip(encoders, kinds, strict=True):
            fitting = min(batch, batches(encoder, _numbers(encoder))[-1][0])
            for kind in own if every else own[:1]:
                key = (encoder.name, kind, fitting)
                if key not in tried:
                    pair = list(_encoder_cases(encoder, specs[encoder.name], kind, fitting))
                    cases[encoder.name] += pair
                    tried[key] = pair[-1].expected[0]
            found = [tried[encoder.name, k, fitting] for k in (own if every else own[:1])]
            answers.append([e[np.arange(batch) % len(e)] for e in found])
        for turn in range(max(map(len, answers))):
            names = [own[turn % len(own)] for own in kinds]
            embeddings = [own[turn % len(own)] for own in answers]
            cases[head.name] += _head_cases(head, embeddings, specs, names, batch)
    return cases


def batches(part: ModulePart, numbers: int) -> list[tuple[int, bool]]:
    """The batches at which a part is tried, in order, and whether with every kind of input.

    `numbers` is what one row has; usual and greatest batch are tried with one kind.
    """
    most = max(2, _NUMBERS // numbers)  # two, for a batch that was taken for a constant to show
    dim = part.dims["batch"]
    every = {min(batch, most): True for batch in BATCHES}
    return sorted({min(dim.usual, most): False, min(dim.greatest, most): False, **every}.items())


def stream_cases(
    model: FusionModule, parts: Sequence[ModulePart], modalities: Sequence[Modality]
) -> list[StreamCase]:
    """Sequences at each batch: N windows in one call of a part's `sequence`; some of them very long.

    First of all parts together, as many steps as fit the budget; then of each part alone, where more
    fit for it. Presence goes through the subsets, differently in each row. The parts are also checked
    in torch: N single steps must give the same, and where the model has a `forward` of its own, the
    parts together must give what it gives. Raises FusedgeError where they do not.
    """
    specs = {modality.name: modality for modality in modalities}
    encoders, head = parts[:-1], parts[-1]
    stateful = any(part.state for part in parts)
    together = _sizes(sum(map(_numbers, encoders)), VERY_LONG if stateful else STEPS)
    cases = []
    for batch, steps in sorted(together):
        name = f"batch {batch}, {steps} steps"
        runs = [_encoder_run(p, specs[p.name], batch, steps, name) for p in encoders]
        embeddings = [run.expected[0] for run in runs]
        last = _head_run(head, embeddings, specs, name)
        _check_whole(model, runs, last, name)
        shared = {key: last.inputs[key] for key in ("presence", "age")}
        cases.append(_by_step(name, [*runs, replace(last, inputs=shared)]))

    known: list[Array] = []  # of each encoder, embeddings `[K, D]`
    for part in encoders:
        alone: list[_Run] = []
        for batch, steps in sorted(_sizes(_numbers(part), _longest(part)) - together):
            name = f"{part.name} alone, batch {batch}, {steps} steps"
            alone.append(_encoder_run(part, specs[part.name], batch, steps, name))
            cases.append(_by_step(name, alone[-1:]))
        given = [run.expected[0] for run in alone] or [
            case.expected[part.name][0] for case in cases if part.name in case.expected
        ]
        known.append(np.concatenate([e.reshape(-1, e.shape[-1]) for e in given]))
    longest = _longest(head) if head.state else STEPS
    for batch, steps in sorted(_sizes(_numbers(head), longest) - together):
        name = f"{head.name} alone, batch {batch}, {steps} steps"
        places = np.arange(batch * steps).reshape(batch, steps)
        drawn = [embeddings[places % len(embeddings)] for embeddings in known]
        cases.append(_by_step(name, [_head_run(head, drawn, specs, name)]))
    return cases


def _numbers(part: ModulePart) -> int:
    """In what one row of a part gets, beside its state and what is valid."""
    return sum(
        math.prod(dim for dim in spec.shape if isinstance(dim, int))
        for spec in part.inputs
        if spec.role not in ("state_in", "valid")
    )


def _longest(part: ModulePart) -> int:
    """Steps of one row: memory that was not found shows only after it was left."""
    return max(VERY_LONG, min(LONGEST, _FEW_NUMBERS // _numbers(part)))


def _sizes(numbers: int, longest: int) -> set[tuple[int, int]]:
    """Batches and steps of sequences with so many numbers in one row of a step."""
    wanted = [(batch, STEPS) for batch in BATCHES if batch <= 2 or 2 * batch * numbers <= _NUMBERS]
    return {(b, max(2, min(n, _NUMBERS // (numbers * b)))) for b, n in [*wanted, (1, longest)]}


def subsets(count: int) -> NDArray[np.float32]:
    """Presence `[S, count]`: every subset, or beyond five modalities a share of them.

    That share is none, one, two, all but one, all, and 32 seeded ones.
    """
    if count <= _ALL_SUBSETS:
        return np.array(list(product((0, 1), repeat=count)), np.float32)
    chosen = {
        places
        for size in (0, 1, 2, count - 1, count)
        for places in combinations(range(count), size)
    }
    rows = {tuple(int(i in places) for i in range(count)) for places in chosen}
    random = np.random.default_rng(count)
    rows |= {tuple(row) for row in random.integers(0, 2, (_SAMPLED, count)).tolist()}
    return np.array(sorted(rows), np.float32)


def answers(part: ModulePart, inputs: Sequence[Array], case: str) -> tuple[Array, ...]:
    """The outputs of the original module; raises FusedgeError where it fails or they are not finite."""
    outputs = run_module(part.module, inputs, f"part {part.name}, case {case}")
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


def run_module(
    module: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[Array], where: str
) -> tuple[Array, ...]:
    """What the user's code gives for arrays; raises FusedgeError where it raises anything."""
    try:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(array) for array in inputs))
    except Exception as error:  # the user's own code
        reason = next(iter(str(error).splitlines()), "")
        raise FusedgeError(
            f"the original module fails: {type(error).__name__}: {reason}", where=where
        ) from error
    return tuple(output.detach().numpy() for output in outputs)


def _encoder_cases(part: ModulePart, modality: Modality, kind: str, batch: int) -> Iterator[Case]:
    """Two steps from the initial state, the second from the state that the first one left."""
    state: Feeds = part.initial_state(batch)
    for step in (1, 2):
        seed = [step, batch, KINDS[modality.kind].index(kind)]
        draw = partial(_encoder_feeds, part, modality, kind, batch, seed, state)
        name = f"batch {batch}, {kind} input, step {step}"
        expected = answers(part, list(draw().values()), name)
        yield Case(name, draw, expected, within_limits=kind not in BEYOND_LIMITS)
        state = next_state(part, expected)


def _encoder_feeds(
    part: ModulePart, modality: Modality, kind: str, batch: int, seed: list[int], state: Feeds
) -> Feeds:
    window, valid = make_windows(modality, kind, (batch,), np.random.default_rng(seed))
    given: dict[str, Array] = {"window": window, "valid": valid}
    return {
        spec.name: state[spec.name] if spec.role == "state_in" else given[spec.role]
        for spec in part.inputs
    }


def next_state(part: ModulePart, outputs: Sequence[Array]) -> dict[str, Array]:
    """The states for the next step, by input, from a step's outputs in the order of the specs."""
    named = {spec.name: output for spec, output in zip(part.outputs, outputs, strict=True)}
    return {pair.input: named[pair.output] for pair in part.state}


def _head_cases(
    head: ModulePart,
    embeddings: Sequence[Array],
    specs: Mapping[str, Modality],
    kinds: Sequence[str],
    batch: int,
) -> Iterator[Case]:
    """Each subset with zeros and then with noise for what is absent; two steps if there is state."""
    names = [str(spec.modality) for spec in head.inputs if spec.role == "embedding"]
    max_ages = [specs[name].max_age_s for name in names]
    within = BEYOND_LIMITS.isdisjoint(kinds)
    random = np.random.default_rng([batch, *map(ord, "".join(kinds))])
    for subset in subsets(len(embeddings)):
        presence = np.tile(subset, (batch, 1))
        any_age = (random.uniform(size=presence.shape) * max_ages).astype(np.float32)
        absent = [p == 0 for p in subset]
        masked = [np.zeros_like(e) if a else e for e, a in zip(embeddings, absent, strict=True)]
        noisy = [
            random.normal(0, _NOISE, e.shape).astype(np.float32) if a else e
            for e, a in zip(embeddings, absent, strict=True)
        ]
        present = "+".join(name for name, a in zip(names, absent, strict=True) if not a)
        name = (
            f"batch {batch}, {'/'.join(dict.fromkeys(kinds))} input, present: {present or 'none'}"
        )
        state: Feeds = head.initial_state(batch)
        for step in (1, 2) if head.state else (1,):
            told = f"{name}, step {step}" if head.state else name
            # The runtime gives an age of zero for what is absent.
            feeds = _head_feeds(head, masked, presence, any_age * presence, state)
            expected = answers(head, list(feeds.values()), told)
            yield Case(told, partial(dict, feeds), expected, within)
            feeds = _head_feeds(head, noisy, presence, any_age, state)
            yield Case(f"{told}, noise for the absent", partial(dict, feeds), expected, within)
            state = next_state(head, expected)


def _head_feeds(
    head: ModulePart, embeddings: Sequence[Array], presence: Array, age: Array, state: Feeds
) -> Feeds:
    ordered = iter(embeddings)
    given = {"presence": presence, "age": age}
    return {
        spec.name: next(ordered)
        if spec.role == "embedding"
        else state[spec.name]
        if spec.role == "state_in"
        else given[spec.role]
        for spec in head.inputs
    }


@dataclass(frozen=True)
class _Run:
    """What a part gets and gives over N steps, `[B, N, ...]`, without its states."""

    part: ModulePart
    inputs: Feeds
    expected: tuple[Array, ...]


def _encoder_run(part: ModulePart, modality: Modality, batch: int, steps: int, case: str) -> _Run:
    random = np.random.default_rng([batch, steps, *map(ord, part.name)])
    kinds = USUAL[modality.kind]
    pairs = [
        make_windows(modality, kinds[step % len(kinds)], (batch,), random) for step in range(steps)
    ]
    stacked = [np.stack(arrays, axis=1) for arrays in zip(*pairs, strict=True)]
    given = dict(zip(("window", "valid"), stacked, strict=True))
    # `valid` also where the part has no such input: the model's own forward takes it.
    inputs = {spec.name: given[spec.role] for spec in part.inputs if spec.role in given}
    return _Run(part, given, _sequence(part, list(inputs.values()), case))


def _head_run(
    head: ModulePart, embeddings: Sequence[Array], specs: Mapping[str, Modality], case: str
) -> _Run:
    names = [spec for spec in head.inputs if spec.role == "embedding"]
    batch, steps = embeddings[0].shape[:2]
    tried = subsets(len(names))
    presence = tried[(np.arange(batch)[:, None] + np.arange(steps)) % len(tried)]
    max_ages = [specs[str(spec.modality)].max_age_s for spec in names]
    random = np.random.default_rng([batch, 99])
    age = (random.uniform(size=presence.shape) * max_ages).astype(np.float32) * presence
    inputs = {spec.name: e for spec, e in zip(names, embeddings, strict=True)}
    inputs |= {"presence": presence, "age": age}
    return _Run(head, inputs, _sequence(head, list(inputs.values()), case))


def _by_step(name: str, runs: Sequence[_Run]) -> StreamCase:
    inputs: dict[str, Feeds] = {}
    for run in runs:
        taken = {spec.name for spec in run.part.inputs}
        inputs[run.part.name] = {k: a.swapaxes(0, 1) for k, a in run.inputs.items() if k in taken}
    expected = {run.part.name: tuple(e.swapaxes(0, 1) for e in run.expected) for run in runs}
    return StreamCase(name, inputs, expected)


def _sequence(part: ModulePart, inputs: Sequence[Array], case: str) -> tuple[Array, ...]:
    """What `part.sequence` makes of `[B, N, ...]`; the module must give the same in N steps."""
    assert part.sequence is not None  # None for plain models alone
    where = f"part {part.name}, case {case}"
    whole = run_module(part.sequence, inputs, where)
    batch, steps = inputs[0].shape[:2]
    kept = [spec.name for spec in part.outputs if spec.role != "state_out"]
    for name, output in zip(kept, whole, strict=True):
        if output.shape[:2] != (batch, steps):
            raise FusedgeError(
                f"for {steps} steps in a row the module gives {name} {list(output.shape)}",
                where=where,
                hint=f"one row for each step: [{batch}, {steps}, ...]",
            )
    floors = floors_of(part.outputs, [whole])
    state: Feeds = part.initial_state(batch)
    for step in range(steps):
        given = iter([np.ascontiguousarray(array[:, step]) for array in inputs])
        feeds = [state[s.name] if s.role == "state_in" else next(given) for s in part.inputs]
        outputs = run_module(part.module, feeds, where)
        named = dict(zip((spec.name for spec in part.outputs), outputs, strict=True))
        for name, output in zip(kept, whole, strict=True):
            off = gap(named[name], output[:, step], floors.get(name, 1.0))
            if not off <= SAME:
                raise FusedgeError(
                    f"the module itself gives another {name} in single steps than in one sequence: "
                    f"{off:.1e} off at step {step + 1}",
                    where=where,
                    hint="what it remembers must be among its states, and it must not look ahead",
                )
        state = next_state(part, outputs)
    return whole


def _check_whole(model: FusionModule, encoders: Sequence[_Run], head: _Run, case: str) -> None:
    """The parts together must give what the model's own `forward` gives, if it has one."""
    if not isinstance(model, nn.Module) or type(model).forward is nn.Module.forward:
        return
    windows, valid = (
        {run.part.name: torch.from_numpy(run.inputs[key]) for run in encoders}
        for key in ("window", "valid")
    )
    presence, age = (torch.from_numpy(head.inputs[key]) for key in ("presence", "age"))
    logits = head.expected

    def forward() -> tuple[torch.Tensor, ...]:
        outputs = model(windows, valid, presence, age)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    whole = run_module(forward, (), f"the whole model, case {case}")
    if [output.shape for output in whole] != [output.shape for output in logits]:
        raise FusedgeError(
            f"its forward gives {[list(output.shape) for output in whole]}, "
            f"its parts together {[list(output.shape) for output in logits]}",
            where=f"the whole model, case {case}",
            hint="give logits [B, N, K] for windows [B, N, ...]",
        )
    off = max(gap(ours, theirs) for ours, theirs in zip(logits, whole, strict=True))
    if not off <= SAME:
        raise FusedgeError(
            f"its parts together give other logits than its forward: {off:.1e} off",
            where=f"the whole model, case {case}",
            hint="all that happens between the encoders and the head must be inside of one of them",
        )


def gap(found: Array, wanted: Array, floor: float = 1.0) -> float:
    """The largest difference, as a share of the largest value if that is beyond the floor."""
    scale = max(floor, float(np.abs(wanted).max()))
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()) / scale


def floors_of(specs: Sequence[TensorSpec], answers: Iterable[Sequence[Array]]) -> dict[str, float]:
    """By output of the specs, the least value that a difference is a share of.

    1 for logits, whose differences are probabilities, and for states. Embeddings and a plain model's
    outputs may be small in themselves: the largest of all answers, at most 1.
    """
    largest: dict[str, float] = {}
    for outputs in answers:
        for spec, values in zip(specs, outputs, strict=False):
            if spec.role in ("embedding", "output"):
                size = float(np.abs(values).max())
                largest[spec.name] = max(largest.get(spec.name, 0.0), size)
    return {name: min(1.0, size) or 1.0 for name, size in largest.items()}
