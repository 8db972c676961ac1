"""What keeps a bundle within a load and a latency: precision, streams and rates, for each power mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Manifest, Modality, Part
from fusedge.devices.targets.facts.table import Compute
from fusedge.devices.targets.planning.bundle_plan import (
    BundlePlan,
    part_load,
    plan_bundle,
    rows_of,
)
from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.devices.targets.preflight.findings import listed

MAX_STREAMS = 64  # pipelines of one process: fusedge.runtime.appliance
NO_DIFFERENCE = 1.05  # a precision that is faster by less than this is not worth it
# The first loses least.
_PRECISIONS = ("fp32", "mixed", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Limits:
    """What must be kept: `load` as a share of the device, `latency_s` of a decision in the worst case,
    which is one decision period where it is None.
    """

    load: float = 0.6
    latency_s: float | None = None


@dataclass(frozen=True)
class Mode:
    """A device in one of its power modes, as far as a fit needs to know it.

    `precisions` has of each part the precisions that can run there, and what computes it then; `alike`: all
    parts must have the same one, as in ONNX Runtime. `estimate` is called with a part, a precision and a
    number of rows. No more than `most_streams` have room in memory.
    """

    name: str
    watts: float | None
    precisions: Mapping[str, Mapping[str, Compute]]
    estimate: Callable[[str, str, int], PartEstimate]
    alike: bool
    error: float
    most_streams: int = MAX_STREAMS


@dataclass(frozen=True)
class FitRow:
    """A proposal for one power mode, with the plan that follows from it.

    `slower` are the parts whose rate has to be divided, and by how much; empty if the bundle fits as it
    is. Where nothing helps, `fits` is False and `reason` says why; the rest is the bundle as it is then.
    `streams` are as many as the device carries so. `sure`: it fits also if everything takes longer by the
    expected error. Where operators could not be counted it is not sure, `streams` are those asked for, and
    `note` names the operators.
    """

    mode: str
    watts: float | None
    fits: bool
    precision: Mapping[str, str]
    slower: Mapping[str, int]
    rates_hz: Mapping[str, float]
    streams: int
    sure: bool
    plan: BundlePlan
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Fit:
    """A row for each mode, and the name of the one to take: of those that fit with the bundle's own rates
    the one of fewest watts; without such, the one that slows it least. None where nothing fits.
    """

    limits: Limits
    rows: tuple[FitRow, ...]
    recommended: str | None


def fit(manifest: Manifest, modes: Iterable[Mode], limits: Limits, *, streams: int = 1) -> Fit:
    """Propose what keeps `streams` sessions of a bundle within the limits, in each mode.

    Only graphs that the bundle has are proposed, since no other was proved. Windows stay on the grid:
    rates are divided by whole numbers, that of the costliest part first, and no modality gets so slow
    that it would be missing from one window to the next, or events would be.
    """
    rows = tuple(_fit_mode(manifest, mode, limits, streams) for mode in modes)
    best = min((row for row in rows if row.fits), key=_price, default=None)
    return Fit(limits, rows, best.mode if best else None)


def _price(row: FitRow) -> tuple[int, float, float]:
    watts = math.inf if row.watts is None else row.watts
    return math.prod(row.slower.values()), watts, row.plan.load or 0.0


def with_slower_parts(manifest: Manifest, slower: Mapping[str, int]) -> Manifest:
    """The manifest with the hops of encoders and the decision period multiplied by whole numbers.

    Raises ValidationError where a modality cannot have that hop.
    """
    hops = {str(part.modality): slower.get(part.name, 1) for part in manifest.encoders}
    fusion = manifest.require_fusion()
    rate_hz = fusion.decision_rate_hz / slower.get(manifest.head.name, 1)
    return manifest.model_copy(
        update={
            "modalities": tuple(_with_hop(m, hops[m.name]) for m in manifest.modalities),
            "parts": tuple(
                part.model_copy(update={"rate_hz": part.rate_hz / slower.get(part.name, 1)})
                if part.rate_hz
                else part
                for part in manifest.parts
            ),
            "fusion": fusion.model_copy(update={"decision_rate_hz": rate_hz}),
        }
    )


def _with_hop(modality: Modality, factor: int) -> Modality:
    if factor == 1:
        return modality
    return Modality.model_validate({**modality.model_dump(), "hop_s": modality.hop_s * factor})


def _fit_mode(manifest: Manifest, mode: Mode, limits: Limits, streams: int) -> FitRow:
    precision = _precisions(manifest, mode, streams)
    note = _not_counted(manifest, mode, precision, streams)

    def plan(slower: Mapping[str, int], count: int, error: float = 1.0) -> BundlePlan:
        changed = with_slower_parts(manifest, slower) if slower else manifest
        estimates = {
            part.name: mode.estimate(
                part.name, precision[part.name], rows_of(manifest, part, count)
            ).scaled(error)
            for part in manifest.parts
        }
        computes = {name: mode.precisions[name][chosen] for name, chosen in precision.items()}
        return plan_bundle(changed, estimates, computes, streams=count, error=mode.error)

    def row(slower: Mapping[str, int], planned: BundlePlan, count: int, reason: str) -> FitRow:
        return FitRow(
            mode.name,
            mode.watts,
            not reason,
            precision,
            slower,
            {load.part: load.rate_hz for load in planned.parts if load.rate_hz is not None},
            count,
            not reason
            and not planned.lower_bound
            and plan(slower, planned.streams, mode.error).keeps(limits.load, limits.latency_s),
            planned,
            reason,
            note,
        )

    as_it_is = plan({}, streams)
    if as_it_is.worst_s is None:
        return row({}, as_it_is, 0, "; ".join(f"unknown: {what}" for what in as_it_is.unknown))
    slower: dict[str, int] = {}
    planned = as_it_is
    while not planned.keeps(limits.load, limits.latency_s):
        part = _to_slow(manifest, planned, slower, limits)
        if part is None:
            return row({}, as_it_is, 0, _too_slow(as_it_is, planned, limits))
        slower[part] = slower.get(part, 1) + 1
        planned = plan(slower, streams)
    count = streams
    if manifest.fusion is not None and not planned.lower_bound:
        while count < mode.most_streams and plan(slower, count + 1).keeps(
            limits.load, limits.latency_s
        ):
            count += 1
    return row(slower, planned, count, "")


def _precisions(manifest: Manifest, mode: Mode, streams: int) -> dict[str, str]:
    """Of each part, the one that loses least of those that are as good as the fastest."""

    def seconds(part: Part, precision: str) -> float:
        estimate = mode.estimate(part.name, precision, rows_of(manifest, part, streams))
        compute = mode.precisions[part.name][precision]
        due_s = part_load(manifest, part, estimate, compute, streams).due_s
        return math.inf if due_s is None else due_s

    chosen: dict[str, str] = {}
    groups = [manifest.parts] if mode.alike else [(part,) for part in manifest.parts]
    for parts in groups:
        costs = {
            precision: sum(seconds(part, precision) * _rate(manifest, part) for part in parts)
            for precision in _PRECISIONS
            if all(precision in mode.precisions[part.name] for part in parts)
        }
        if not costs:
            raise FusedgeError(
                f"the bundle has no graph that {mode.name} can run",
                where=f"part {', '.join(part.name for part in parts)}",
                hint="export it with another --precision",
            )
        best = min(costs.values())
        good = max(best, best * NO_DIFFERENCE)  # never less than the best, whatever its sign
        choice = next(name for name, cost in costs.items() if cost <= good)
        chosen |= dict.fromkeys((part.name for part in parts), choice)
    return chosen


def _not_counted(manifest: Manifest, mode: Mode, precision: Mapping[str, str], streams: int) -> str:
    """The operators of which nothing is known, in a sentence; empty where all are counted."""
    names = {
        name: None
        for part in manifest.parts
        for name in mode.estimate(
            part.name, precision[part.name], rows_of(manifest, part, streams)
        ).unknown
    }
    return f"not counted, so it may take more: {listed(names)}" if names else ""


def _rate(manifest: Manifest, part: Part) -> float:
    if part.kind == "encoder":
        return 1 / manifest.modality(str(part.modality)).hop_s
    if part.kind == "front":
        return part.rate_hz or 0.0
    return manifest.fusion.decision_rate_hz if manifest.fusion else 1.0


def _to_slow(
    manifest: Manifest, plan: BundlePlan, slower: Mapping[str, int], limits: Limits
) -> str | None:
    """The part to slow down next: the costliest that can be; None where that does not help."""
    if manifest.fusion is None:
        return None
    head = manifest.head.name
    late = not plan.keeps(math.inf, limits.latency_s)
    if late and (limits.latency_s is not None or plan.outdated()):
        return None  # whatever is due at the same time takes as long at any rate
    full = {
        each.device for each in plan.devices if each.load is not None and each.load > limits.load
    }
    by_share = sorted(plan.parts, key=lambda load: -(load.share or 0.0))
    order = [head] if late else [load.part for load in by_share if load.device in full]
    return next((name for name in order if _may(manifest, plan, name, slower)), None)


def _may(manifest: Manifest, plan: BundlePlan, name: str, slower: Mapping[str, int]) -> bool:
    """Whether a part can be slowed down once more so that every embedding still counts in a decision, no
    modality is missing until its next one is there, and no event lies between two windows. A front end
    runs as often as its modality has samples.
    """
    factor = slower.get(name, 1) + 1
    part = next(part for part in manifest.parts if part.name == name)
    if part.kind == "front":
        return False
    if part.kind == "head":
        period_s = factor / manifest.require_fusion().decision_rate_hz
        return period_s <= min(modality.max_age_s for modality in manifest.modalities)
    modality = manifest.modality(str(part.modality))
    try:
        hop_s = _with_hop(modality, factor).hop_s
    except ValidationError:  # more to keep than a modality may
        return False
    has_events = any(rule.modality == modality.name for rule in manifest.events)
    seen = not has_events or hop_s <= max(modality.window_s, modality.hop_s)
    (age,) = (age for age in plan.ages if age.modality == modality.name)
    return seen and modality.delay_s + hop_s + (age.computing_s or 0.0) <= modality.max_age_s


def _too_slow(as_it_is: BundlePlan, slowest: BundlePlan, limits: Limits) -> str:
    if as_it_is.decision_rate_hz is None:
        return "a run takes longer than the latency that was asked for"
    outdated = slowest.outdated()
    if outdated:
        return (
            f"encoders take so long that {listed(outdated)} would be missing at times, at any rate"
        )
    if not slowest.keeps(math.inf, limits.latency_s):
        return "what is due at the same time takes longer than the latency allows, at any rate"
    return "too much to compute, even at the lowest rates at which nothing goes missing"
