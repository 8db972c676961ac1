"""Rates of a machine from how long graphs took on it: the roofline of `roofline.py`, fitted.

    seconds = run + tensors · tensor + Σ views · view
              + Σ kernels (steps · overhead + max(operations / rate, bytes / bandwidth))

All costs are positive and differ by magnitudes, and an error of a tenth is as bad in a short graph as in
a long one. So the logarithms of the costs are fitted to the logarithms of the times, by least squares
(damped, Levenberg and Marquardt) with Huber's loss, which lets a graph that the form does not fit count
less. The batches of a part count together as one graph.

Whole graphs are fitted, not nodes: ONNX Runtime's profile tells whole microseconds, adds more than one to
each node, and the nodes of small encoders take 0.3. What no measurement tells stays where it started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusedge.devices.targets.kernels import Backend, kernels_of
from fusedge.devices.targets.rates import KindRate, Rates
from fusedge.devices.targets.starts import tensor_count, view_count
from fusedge.devices.targets.work import Kind, PartWork

Floats = NDArray[np.float64]

# Where a fit starts that nothing is known for: a core of a CPU, to a factor of 10.
_START_RUN_S, _START_LAUNCH_S = 3e-6, 4e-7
_START_OPERATIONS, _START_BYTES = 5e10, 3e10
_UNSURE, _UNSURE_OF_TABLE = 2.3, 0.7  # standard deviations of logarithms: factors of 10 and of 2
_NOISE = 0.05  # of a measured time, likewise
_ROBUST = 2.0  # deviations beyond which a residual counts less
_STEPS = 100
_NOT_TESTED = 2.0  # expected error where there is one part, and nothing to test it with
_SOURCE = "fusedge bench"


@dataclass(frozen=True)
class Observation:
    """A graph and how long one run of it took, the median. `probe` or a part of the bundle."""

    work: PartWork
    seconds: float
    origin: Literal["probe", "part"]


@dataclass(frozen=True)
class Fit:
    """Rates, the time for each input and output beside `rates.run_s`, and what they rest on."""

    rates: Rates
    tensor_s: float
    graphs: int
    kernels: int


@dataclass(frozen=True)
class _Cost:
    """What is fitted: a time, or seconds for an operation or a byte. `kind` is "" for the whole graph."""

    what: Literal["run", "tensor", "launch", "operation", "byte"]
    kind: Kind | Literal[""] = ""
    precision: str = ""


class _Model:
    """Seconds of graphs as a function of the logarithms of the costs."""

    def __init__(self, works: Sequence[PartWork], backend: Backend) -> None:
        self._index: dict[_Cost, int] = {}
        fixed: list[dict[int, float]] = []
        operations: list[dict[int, float]] = []
        moved: list[dict[int, float]] = []
        owners: list[int] = []
        for owner, work in enumerate(works):
            linear = {self._place(_Cost("run")): 1.0}
            linear[self._place(_Cost("tensor"))] = float(tensor_count(work))
            linear[self._place(_Cost("launch", "free"))] = float(view_count(work))
            for kernel in kernels_of(work, backend):
                if kernel.kind == "unknown":
                    continue
                launch = self._place(_Cost("launch", kernel.kind))
                linear[launch] = linear.get(launch, 0.0) + kernel.steps
                operations.append(
                    {
                        self._place(_Cost("operation", kernel.kind, precision)): count
                        for precision, count in kernel.operations.items()
                        if count
                    }
                )
                moved.append({self._place(_Cost("byte", kernel.kind)): float(kernel.bytes)})
                owners.append(owner)
            fixed.append(linear)
        self._fixed = self._matrix(fixed)
        self._operations, self._moved = self._matrix(operations), self._matrix(moved)
        self._owners = np.array(owners, np.intp)
        self.kernels = len(owners)

    @property
    def costs(self) -> list[_Cost]:
        """In the order of the logarithms."""
        return list(self._index)

    def __call__(self, logs: Floats) -> tuple[Floats, Floats]:
        """Logarithms of the seconds of each graph, and their derivatives."""
        values = np.exp(logs)
        computing = self._operations @ values > self._moved @ values
        design = self._fixed.copy()
        rows = np.where(computing[:, None], self._operations, self._moved)
        np.add.at(design, self._owners, rows)
        seconds = design @ values
        return np.log(seconds), design * values / seconds[:, None]

    def _place(self, cost: _Cost) -> int:
        return self._index.setdefault(cost, len(self._index))

    def _matrix(self, rows: Sequence[dict[int, float]]) -> Floats:
        matrix = np.zeros((len(rows), len(self._index)))
        for number, row in enumerate(rows):
            for column, value in row.items():
                matrix[number, column] = value
        return matrix


def calibrate(
    observations: Sequence[Observation], backend: Backend, table: Rates | None = None
) -> Fit:
    """Rates that explain the observations; of one provider at one precision, at least one.

    `table` is where it starts, as where there are no probes and the parts are too few to tell all: the
    rates of a table for this device, which are then off by a common factor first of all.

    The expected error is the larger of two, each of which nine of ten are within: that of the probes, and
    that of the bundle's parts when they are estimated from the probes alone (where there are none: from
    the other parts).
    """
    probes = [each for each in observations if each.origin == "probe"]
    parts = [each for each in observations if each.origin == "part"]
    model, logs, residuals, scale = _fitted(observations, backend, table)
    spreads = [
        [
            abs(residual)
            for residual, each in zip(residuals, observations, strict=True)
            if each.origin == "probe"
        ],
        [abs(r) for r in _left_out(probes, parts, backend, table)],
    ]
    known = [float(np.exp(np.quantile(spread, 0.9))) for spread in spreads if spread]
    error = max(known, default=_NOT_TESTED)
    costs = dict(zip(model.costs, map(float, np.exp(logs)), strict=True))
    unseen = {} if table is None else _scaled(table, scale)
    return Fit(
        rates=_rates(costs, error, unseen),
        tensor_s=costs[_Cost("tensor")],
        graphs=len(observations),
        kernels=model.kernels,
    )


def _left_out(
    probes: Sequence[Observation],
    parts: Sequence[Observation],
    backend: Backend,
    table: Rates | None,
) -> Iterator[float]:
    """Logarithms of estimated over measured, of parts that were not fitted to."""
    names = dict.fromkeys(each.work.part for each in parts)
    for name in names:
        tested = [each for each in parts if each.work.part == name]
        known = probes or [each for each in parts if each.work.part != name]
        if not known:
            return
        # the model of both, so that it has all costs; what is left out has no weight
        together = [*known, *tested]
        _, _, residuals, _ = _fitted(together, backend, table, fitted=len(known))
        yield from residuals[len(known) :]


def _fitted(
    observations: Sequence[Observation],
    backend: Backend,
    table: Rates | None,
    fitted: int | None = None,
) -> tuple[_Model, Floats, Floats, float]:
    """The model, the logarithms of its costs, residuals, and by what factor the table's times were off.

    Only the first `fitted` are fitted to.
    """
    model = _Model([each.work for each in observations], backend)
    start = np.array([np.log(_start(cost, table)) for cost in model.costs])
    measured = np.log([each.seconds for each in observations])
    weights = _weights(observations)
    if fitted is not None:
        weights[fitted:] = 0
    shift = 0.0
    if table is not None:
        shift = float(np.median((measured - model(start)[0])[:fitted]))
        start += shift
    prior = 1 / (_UNSURE if table is None else _UNSURE_OF_TABLE) ** 2

    def loss(residuals: Floats, logs: Floats) -> float:
        size = np.abs(residuals) / _NOISE
        huber = np.where(size < _ROBUST, size**2, _ROBUST * (2 * size - _ROBUST))
        return float(weights @ huber + prior * ((logs - start) ** 2).sum())

    logs, damping = start.copy(), 1e-2
    estimated, slopes = model(logs)
    best = loss(estimated - measured, logs)
    for _ in range(_STEPS):
        residuals = estimated - measured
        each = (
            weights
            / _NOISE**2
            * np.minimum(1, _ROBUST * _NOISE / np.maximum(np.abs(residuals), 1e-12))
        )
        normal = slopes.T @ (each[:, None] * slopes) + prior * np.eye(len(logs))
        gradient = slopes.T @ (each * residuals) + prior * (logs - start)
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
        tried = logs + np.clip(step, -1, 1)
        estimated_there, slopes_there = model(tried)
        found = loss(estimated_there - measured, tried)
        if found < best:
            gain, best = best - found, found
            logs, estimated, slopes = tried, estimated_there, slopes_there
            damping = max(damping / 3, 1e-9)
            if gain < 1e-6 * best:
                break
        else:
            damping *= 4
            if damping > 1e9:
                break
    return model, logs, estimated - measured, float(np.exp(shift))


def _weights(observations: Sequence[Observation]) -> Floats:
    """One for a probe, and one for all batches of a part."""
    batches = Counter(each.work.part for each in observations if each.origin == "part")
    return np.array(
        [1 / batches[each.work.part] if each.origin == "part" else 1.0 for each in observations]
    )


def _start(cost: _Cost, table: Rates | None) -> float:
    rate = table.kinds.get(cost.kind) if table is not None and cost.kind else None
    if cost.what == "run":
        return table.run_s if table is not None and table.run_s > 0 else _START_RUN_S
    if cost.what in ("tensor", "launch"):
        return rate.overhead_s if rate is not None and rate.overhead_s > 0 else _START_LAUNCH_S
    if cost.what == "byte":
        return 1 / (rate.bytes_per_s if rate is not None else _START_BYTES)
    known = rate.operations_per_s if rate is not None else {}
    return 1 / known.get(cost.precision, known.get("fp32", _START_OPERATIONS))


def _scaled(table: Rates, factor: float) -> dict[Kind, KindRate]:
    """Of kinds that no observation has: as in the table, but off by the same factor as the others."""
    return {
        kind: KindRate(
            overhead_s=rate.overhead_s * factor,
            operations_per_s={p: per_s / factor for p, per_s in rate.operations_per_s.items()},
            bytes_per_s=rate.bytes_per_s / factor,
            source=f"{rate.source}, scaled",
        )
        for kind, rate in table.kinds.items()
    }


def _rates(found: Mapping[_Cost, float], error: float, unseen: Mapping[Kind, KindRate]) -> Rates:
    kinds = dict(unseen)
    for cost, launch_s in found.items():
        if cost.what != "launch" or not cost.kind:
            continue
        byte_s = found.get(_Cost("byte", cost.kind))
        kinds[cost.kind] = KindRate(
            overhead_s=launch_s,
            operations_per_s={
                other.precision: 1 / each_s
                for other, each_s in found.items()
                if other.what == "operation" and other.kind == cost.kind
            },
            bytes_per_s=_START_BYTES if byte_s is None else 1 / byte_s,  # None: a view moves none
            source=_SOURCE,
        )
    return Rates(
        kinds=kinds,
        run_s=found[_Cost("run")],
        error=error,
        measured=True,
        source=_SOURCE,
    )
