"""A bundle's parts measured on this machine, and the rates that follow, for `fusedge bench`.

Export counts what a graph has to compute, the runtime runs it; the two meet here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, get_args

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, MissingExtraError, printable
from fusedge.bundle.manifest import Part
from fusedge.devices.targets.calibration.calibration import Fit, Observation, calibrate, scale_table
from fusedge.devices.targets.calibration.profile import (
    FORMAT_VERSION,
    MAX_ERROR,
    NATIVE,
    Calibration,
    KindCost,
    MeasuredPart,
    Profile,
    identity_of,
    profile_for,
    rates_of,
)
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.local import resolve_target
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.planning.default_rates import default_rates
from fusedge.devices.targets.planning.kernels import Backend
from fusedge.devices.targets.planning.rates import Rates
from fusedge.devices.targets.planning.roofline import estimate_part
from fusedge.devices.targets.work import PartWork
from fusedge.export.packages import needs_extra
from fusedge.runtime.bench import (
    BATCHES,
    MOST_PAUSE_S,
    Item,
    Measured,
    batches_of,
    conditions,
    measure_apart,
    pause_of,
    precisions_of,
)

_PROBE_BUDGET = 1 / 20  # of a part's, for each of about a hundred probes
_PROBES_AT_ONCE = 32  # in one process: a crash takes no more with it
# Of which runs after a pause are measured: those with the most weights, the most nodes, the fewest nodes.
_PAUSED_PROBES = 2  # of each
_PROBE_SHARE = 0.3  # of the progress, beside the parts

Progress = Callable[[str, float], None]
"""What is measured now, and the share that is done."""


@dataclass(frozen=True)
class Wanted:
    """What is measured: on these providers, at one precision or (None) all that there are.

    `budget_s` is for a part on one provider at one precision, and all of `batches` that it takes.
    """

    providers: Sequence[str]
    precision: str | None = None
    batches: Sequence[int] = BATCHES
    budget_s: float = 1.0
    allow_unsigned_engines: bool = False


@dataclass(frozen=True)
class Benched:
    """What was measured, and why a calibration is missing where it is."""

    profile: Profile
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """A part on one provider at one precision."""

    part: Part
    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.part.name} on {self.provider}, {self.precision}"


def bench_machine(bundle: Bundle, wanted: Wanted, date: str, progress: Progress) -> Benched:
    """Measure all parts of a bundle, then probes, and fit the rates of this machine.

    Raises FusedgeError where there is nothing to measure. A part that does not run is in the result.
    """
    runs = _runs(bundle, wanted)
    machine, before = detect(), conditions()
    target = resolve_target("local", machine)
    identity = identity_of(machine, target)
    notes: dict[str, None] = {}  # each once, in order
    parts: list[MeasuredPart] = []
    observed: dict[tuple[str, str], list[Observation]] = {}
    for number, run in enumerate(runs):
        progress(str(run), (1 - _PROBE_SHARE) * number / len(runs))
        result = _measured(bundle, run, wanted)
        works: list[PartWork] = []
        try:
            works = _works(bundle, run, [times.batch for times in result.times])
        except MissingExtraError as error:
            notes[f"no calibration: {error.line()}"] = None
        except FusedgeError as error:
            notes[f"not counted: {error.line()}"] = None
        earlier = profile_for(identity, run.provider)
        rates = rates_of(earlier, run.provider, run.precision) if earlier else None
        rates = rates or _table_rates(run.provider, machine, target)
        parts.append(_row(bundle, run, result, works, rates))
        if any(work.unknown for work in works):  # a lower bound is no estimate
            notes[f"{run}: has nodes of which nothing is known, so no rates rest on it"] = None
        observed.setdefault((run.provider, run.precision), []).extend(
            Observation(work, times.p50_s, "part", _paused_s(result) if number == 0 else None)
            for number, (work, times) in enumerate(zip(works, result.times, strict=False))
            if not work.unknown
        )
    calibrations = _calibrations(observed, wanted, machine, target, progress, notes)
    profile = Profile(
        format_version=FORMAT_VERSION,
        machine=identity,
        date=date,
        conditions=before,
        parts=tuple(parts),
        calibrations=calibrations,
    )
    return Benched(profile, tuple(notes))


def _calibrations(
    observed: Mapping[tuple[str, str], list[Observation]],
    wanted: Wanted,
    machine: Machine,
    target: Target,
    progress: Progress,
    notes: dict[str, None],
) -> tuple[Calibration, ...]:
    """Of each provider and precision; `notes` get why one is missing."""
    calibrations = []
    known = {key: each for key, each in observed.items() if each}
    for number, ((provider, precision), observations) in enumerate(known.items()):
        share = (1 - _PROBE_SHARE) + _PROBE_SHARE * number / len(known)

        def tell(text: str, share: float = share) -> None:
            progress(text, share)

        try:
            observations.extend(_probed(provider, precision, wanted.budget_s * _PROBE_BUDGET, tell))
        except FusedgeError as error:
            notes[f"no probes on {provider}, {precision}: {error.line()}"] = None
        except OSError as error:  # no place for temporary files
            notes[f"no probes on {provider}, {precision}: {printable(str(error))}"] = None
        table = _table_rates(provider, machine, target)
        try:
            calibrations.append(_calibration(provider, precision, observations, table))
        except FusedgeError as error:
            notes[f"no rates for {provider}, {precision}: {error.line()}"] = None
    return tuple(calibrations)


def _runs(bundle: Bundle, wanted: Wanted) -> list[_Run]:
    runs = [
        _Run(part, provider, precision)
        for provider in wanted.providers
        for part in bundle.manifest.parts
        for precision in precisions_of(part, provider)
        if wanted.precision in (None, precision)
    ]
    if not runs:
        precision = f" at {wanted.precision}" if wanted.precision else ""
        raise FusedgeError(
            f"has nothing{precision} to run on {', '.join(wanted.providers) or 'this machine'}",
            where=str(bundle.path),
            hint="fusedge inspect BUNDLE shows the precisions and engines that it has",
        )
    return runs


def _measured(bundle: Bundle, run: _Run, wanted: Wanted) -> Measured:
    batches = batches_of(run.part, wanted.batches)
    item = Item(str(bundle.path), run.part.name, batches, pause_of(bundle, run.part))
    (result,) = measure_apart(
        [item],
        run.provider,
        run.precision,
        wanted.budget_s,
        allow_unsigned_engines=wanted.allow_unsigned_engines,
    )
    return result


def _works(bundle: Bundle, run: _Run, batches: Sequence[int]) -> list[PartWork]:
    """What the part computes at each batch. An engine's work is that of the graph it was built from."""
    with needs_extra("plan", "calibrating"):
        from fusedge.export.part_work import part_work

    graphs = {graph.precision for graph in run.part.graphs}
    precision = run.precision if run.precision in graphs else "fp32"
    return [part_work(bundle, run.part, precision, batch) for batch in batches]


def _row(
    bundle: Bundle, run: _Run, result: Measured, works: Sequence[PartWork], rates: Rates | None
) -> MeasuredPart:
    """`rates` are what was known before."""
    estimated = None
    if works and rates is not None:
        estimated = estimate_part(works[0], rates, _backend(run.provider)).seconds
    return MeasuredPart(
        bundle=bundle.manifest.name,
        part=run.part.name,
        provider=run.provider,
        precision=run.precision,
        estimated_s=estimated,
        **result._asdict(),
    )


def _probed(
    provider: str, precision: str, budget_s: float, tell: Callable[[str], None]
) -> Iterator[Observation]:
    """Measure the probes; engines have none, since each would have to be built first."""
    from fusedge.export import probes

    if provider == NATIVE or precision not in get_args(probes.ProbePrecision):
        return
    chosen = cast("probes.ProbePrecision", precision)
    with tempfile.TemporaryDirectory(prefix="fusedge-bench-") as folder:
        bundles = [
            probes.write_probe(probe, chosen, Path(folder) / f"{number}.fusedge")
            for number, probe in enumerate(probes.probes(chosen))
        ]
        runs = [_Run(bundle.manifest.parts[0], provider, precision) for bundle in bundles]
        works = [_works(bundle, run, [1])[0] for bundle, run in zip(bundles, runs, strict=True)]
        paused = _to_pause(works)
        order = sorted(range(len(works)), key=lambda number: number not in paused)
        for start in range(0, len(order), _PROBES_AT_ONCE):
            tell(f"probes on {provider}, {precision}: {start} of {len(order)}")
            some = order[start : start + _PROBES_AT_ONCE]
            items = [
                Item(
                    str(bundles[number].path),
                    probes.PART,
                    (1,),
                    MOST_PAUSE_S if number in paused else None,
                )
                for number in some
            ]
            results = measure_apart(items, provider, precision, budget_s * len(items))
            for number, result in zip(some, results, strict=True):
                if not result.problem:
                    seconds = result.times[0].p50_s
                    yield Observation(works[number], seconds, "probe", _paused_s(result))


def _to_pause(works: Sequence[PartWork]) -> set[int]:
    by_nodes = sorted(range(len(works)), key=lambda number: len(works[number].nodes))
    by_weights = sorted(range(len(works)), key=lambda number: -works[number].weight_bytes)
    most, fewest = by_nodes[-_PAUSED_PROBES:], by_nodes[:_PAUSED_PROBES]
    return {*by_weights[:_PAUSED_PROBES], *most, *fewest}


def _paused_s(result: Measured) -> float | None:
    return result.paused.p50_s if result.paused else None


def _calibration(
    provider: str, precision: str, observations: Sequence[Observation], table: Rates | None
) -> Calibration:
    """From probes, or without them from the table of efficiencies; FusedgeError where none can be told."""
    backend = _backend(provider)
    fit: Fit | None = None
    if any(each.origin == "probe" for each in observations):
        fit = calibrate(observations, backend)
    elif table is not None:
        fit = scale_table(observations, backend, table)
    if fit is None:
        raise FusedgeError("no probes, and no table knows it")
    if not fit.rates.error <= MAX_ERROR:
        raise FusedgeError(f"they would be off by more than a factor of {MAX_ERROR:g}")
    return Calibration(
        provider=provider,
        precision=precision,
        kinds={kind: KindCost(**asdict(rate)) for kind, rate in fit.rates.kinds.items()},
        run_s=fit.rates.run_s,
        tensor_s=fit.rates.tensor_s,
        pause_s=fit.rates.pause_s,
        pause_node_s=fit.rates.pause_node_s,
        pause_byte_s=fit.rates.pause_byte_s,
        error=fit.rates.error,
        graphs=fit.graphs,
        kernels=fit.kernels,
    )


def _backend(provider: str) -> Backend:
    return "cpu" if provider == "cpu" else "gpu"


def _table_rates(provider: str, machine: Machine, target: Target) -> Rates | None:
    """Of a machine like this one, before anything is measured."""
    device = resolve_target("cpu", machine) if provider == "cpu" else target
    return default_rates(device.compute, _backend(provider), device.compute_capability)
