"""Rates of a machine from how long graphs took on it: the roofline of `roofline.py`, fitted.

    seconds = run + tensors · tensor + Σ views · view
              + Σ kernels (steps · overhead + max(operations / rate, bytes / bandwidth))

All costs are positive and differ by magnitudes, and an error of a tenth is as bad in a short graph as in
a long one. So the logarithms of the costs are fitted to the logarithms of the times, by least squares
(damped, Levenberg and Marquardt) with Huber's loss, which lets a graph that the form does not fit count
less. The batches of a part count together as one graph.

That needs probes of all kinds. Where there are none, as for engines, parts alone tell by what factor the
table of efficiencies is off on this device.

What a run takes longer after a pause is fitted apart, likewise, to the graphs of which that was measured.

Whole graphs are fitted, not nodes: ONNX Runtime's profile tells whole microseconds, adds more than one to
each node, and the nodes of small encoders take 0.3. What no measurement tells stays where it started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusedge.devices.targets.planning.kernels import Backend, kernels_of
from fusedge.devices.targets.planning.rates import KindRate, Rates
from fusedge.devices.targets.planning.roofline import estimate_part
from fusedge.devices.targets.planning.starts import tensor_count, view_count
from fusedge.devices.targets.work import Kind, PartWork

Floats = NDArray[np.float64]

# Where a fit starts, in seconds: about a core of a CPU, and no surer than a factor of 10.
_START = {"run": 3e-6, "tensor": 4e-7, "launch": 4e-7, "operation": 2e-11, "byte": 3e-11}
# Pause, node and byte, likewise: of a virtual core of an AMD EPYC (Zen 5).
_PAUSE_START = (2e-4, 1.5e-6, 3e-11)
_UNSURE = float(np.log(10))  # standard deviation of logarithms
_NOISE = 0.05  # of a measured time, likewise
_ROBUST = 2.0  # deviations beyond which a residual counts less
_STEPS = 100
_NOT_TESTED = 2.0  # expected error where there is one part, and nothing to test it with
_SOURCE = "fusedge bench"


@dataclass(frozen=True)
class Observation:
    """A graph and how long one run of it took, the median. `probe` or a part of the bundle.

    `paused_s` is that of a run after a pause, where it was measured.
    """

    work: PartWork
    seconds: float
    origin: Literal["probe", "part"]
    paused_s: float | None = None


@dataclass(frozen=True)
class Fit:
    """Rates, and what they rest on."""

    rates: Rates
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


def calibrate(observations: Sequence[Observation], backend: Backend) -> Fit:
    """Rates that explain the observations, probes among them; of one provider at one precision.

    The expected error is the larger of two, each of which nine of ten are within: that of the probes, and
    that of the bundle's parts when they are estimated from the probes alone.
    """
    probes = [each for each in observations if each.origin == "probe"]
    parts = [each for each in observations if each.origin == "part"]
    model, logs, residuals = _fitted([*probes, *parts], backend)
    spreads = [residuals[: len(probes)]]
    if parts:
        # the model of all, so that it has all costs; what is left out has no weight
        _, _, apart = _fitted([*probes, *parts], backend, fitted=len(probes))
        spreads.append(apart[len(probes) :])
    costs = dict(zip(model.costs, map(float, np.exp(logs)), strict=True))
    return Fit(
        rates=_with_pauses(_rates(costs, max(map(_within, spreads))), observations),
        graphs=len(observations),
        kernels=model.kernels,
    )


def scale_table(parts: Sequence[Observation], backend: Backend, table: Rates) -> Fit | None:
    """The table's rates by the factor that these parts took longer; None where it has not all their kinds.

    The expected error is that of each part by the factor of the others, 2 where there is one part.
    """
    logs: dict[str, list[float]] = {}
    for each in parts:
        estimated_s = estimate_part(each.work, table, backend).seconds
        if estimated_s is None:
            return None
        logs.setdefault(each.work.part, []).append(float(np.log(each.seconds / estimated_s)))
    by_part = [float(np.median(each)) for each in logs.values()]
    factor = float(np.exp(np.median(by_part)))
    error = _NOT_TESTED
    if len(by_part) > 1:
        others = [np.median(by_part[:i] + by_part[i + 1 :]) for i in range(len(by_part))]
        error = _within(np.array(by_part) - others)
    faster = 1 / factor
    kinds = {
        kind: replace(rate.scaled(clock=faster, peak=faster, bandwidth=faster), source=_SOURCE)
        for kind, rate in table.kinds.items()
    }
    return Fit(
        rates=_with_pauses(
            Rates(kinds, table.run_s * factor, error, measured=True, source=_SOURCE), parts
        ),
        graphs=len(parts),
        kernels=sum(len(kernels_of(each.work, backend)) for each in parts),
    )


def _within(residuals: Floats) -> float:
    """The factor that nine of ten are within."""
    return float(np.exp(np.quantile(np.abs(residuals), 0.9)))


def _fitted(
    observations: Sequence[Observation], backend: Backend, fitted: int | None = None
) -> tuple[_Model, Floats, Floats]:
    """The model, the logarithms of its costs, and residuals; only the first `fitted` are fitted to."""
    model = _Model([each.work for each in observations], backend)
    start = np.log([_START[cost.what] for cost in model.costs])
    measured = np.log([each.seconds for each in observations])
    weights = _weights(observations)
    if fitted is not None:
        weights[fitted:] = 0
    return model, *_least_squares(model, start, measured, weights)


def _with_pauses(rates: Rates, observations: Sequence[Observation]) -> Rates:
    """With what a pause costs, where it was measured."""
    rows, beside, measured = [], [], []
    for each in observations:
        if each.paused_s is not None:
            rows.append((1.0, float(len(each.work.nodes)), float(each.work.weight_bytes)))
            beside.append(each.seconds)
            measured.append(max(each.paused_s, each.seconds))
    if not rows:
        return rates
    design, hot_s = np.array(rows), np.array(beside)

    def model(logs: Floats) -> tuple[Floats, Floats]:
        values = np.exp(logs)
        seconds = hot_s + design @ values
        return np.log(seconds), design * values / seconds[:, None]

    logs, _ = _least_squares(model, np.log(_PAUSE_START), np.log(measured), np.ones(len(rows)))
    pause_s, node_s, byte_s = map(float, np.exp(logs))
    return replace(rates, pause_s=pause_s, pause_node_s=node_s, pause_byte_s=byte_s)


def _least_squares(
    model: Callable[[Floats], tuple[Floats, Floats]],
    start: Floats,
    measured: Floats,
    weights: Floats,
) -> tuple[Floats, Floats]:
    """The logarithms of the costs, near `start` where nothing tells, and residuals."""
    prior = 1 / _UNSURE**2

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
    return logs, estimated - measured


def _weights(observations: Sequence[Observation]) -> Floats:
    """One for a probe, and one for all batches of a part."""
    batches = Counter(each.work.part for each in observations if each.origin == "part")
    return np.array(
        [1 / batches[each.work.part] if each.origin == "part" else 1.0 for each in observations]
    )


def _rates(found: Mapping[_Cost, float], error: float) -> Rates:
    kinds: dict[Kind, KindRate] = {}
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
            bytes_per_s=1 / (byte_s or _START["byte"]),  # a view moves none
            source=_SOURCE,
        )
    return Rates(
        kinds=kinds,
        run_s=found[_Cost("run")],
        tensor_s=found[_Cost("tensor")],
        error=error,
        measured=True,
        source=_SOURCE,
    )
