"""A bundle on a target: whether it will run there, how long its parts take, and the whole of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Part
from fusedge.bundle.regular_file import is_file
from fusedge.devices.targets.calibration.profile import (
    NATIVE,
    Profile,
    identity_of,
    load_profile,
    profile_path,
    rates_of,
)
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.detection.machine_target import machine_target
from fusedge.devices.targets.facts.rows import Jetson
from fusedge.devices.targets.facts.table import (
    Compute,
    Target,
    cpu_compute,
    jetson_cpu,
    jetson_target,
    power_modes,
)
from fusedge.devices.targets.planning.bundle_plan import BundlePlan, plan_bundle, rows_of
from fusedge.devices.targets.planning.default_rates import (
    default_rates,
    missing_figures,
    scaled_rates,
)
from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.devices.targets.planning.fit import MAX_STREAMS, Mode
from fusedge.devices.targets.planning.kernels import kernels_of
from fusedge.devices.targets.planning.rates import Rates
from fusedge.devices.targets.planning.roofline import estimate_part
from fusedge.devices.targets.preflight.findings import listed
from fusedge.devices.targets.preflight.memory_need import Route
from fusedge.devices.targets.preflight.preflight import Preflight, preflight
from fusedge.devices.targets.preflight.software import Software
from fusedge.devices.targets.work import PartWork
from fusedge.export.part_work import part_work

_GPU_PROVIDERS = ("tensorrt-rtx", "tensorrt", "cuda")
# Of a power mode: see PowerMode in facts/rows.py.
_FIGURES = ("cpus", "cpu_mhz", "tpcs", "gpu_mhz", "emc_mhz", "dla_mhz", "watts")
_NO_CPU = cpu_compute(None, cores=None, cpu_mhz=None, memory_bytes=None)


@dataclass(frozen=True)
class Asked:
    """What the user wants: `backend`, `precision`, `streams` as `fusedge run` has them, `dla` as `build`.

    `batch` are the rows of a run of a plain model, None: as usual. `trusted`: its engines may run there.
    """

    backend: str = "auto"
    precision: str = "auto"
    dla: bool = False
    streams: int = 1
    batch: int | None = None
    trusted: bool = False


class Works:
    """What the parts of a bundle have to compute, each counted once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.parts = {part.name: part for part in bundle.manifest.parts}
        self._known: dict[tuple[str, str, int], PartWork] = {}

    def of(self, part: str, precision: str, rows: int) -> PartWork:
        """At so many rows; raises FusedgeError, which names the part, where it cannot be counted."""
        key = (part, precision, rows)
        if key not in self._known:
            self._known[key] = part_work(self.bundle, self.parts[part], precision, rows)
        return self._known[key]


@dataclass(frozen=True)
class Device:
    """A target with its software, and the profile of measurements that estimates for it rest on.

    `processor` is what runs beside its GPU, as far as it is known; that of a Jetson follows from its mode.
    `modes` are the power modes of a machine that was looked at, see `own_modes`; empty: those of the table.
    """

    target: Target
    software: Software
    profile: Profile | None = None
    processor: Compute = _NO_CPU
    modes: Mapping[str, Target] = field(default_factory=dict)
    _rates: dict[tuple[str, str, str], Rates | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def compute(self, route: Route) -> Compute:
        """What runs a part of this route."""
        compute = self.target.compute
        if route.device == "gpu" or compute.multiprocessors == 0:
            return compute
        return jetson_cpu(self.target) if isinstance(self.target.row, Jetson) else self.processor

    def rates_of(self, route: Route) -> Rates | None:
        """Measured ones where the profile has them, else by the table of efficiencies."""
        key = (route.backend, route.precision, route.device)
        if key not in self._rates:
            measured = self._measured(route)
            self._rates[key] = measured or default_rates(
                self.compute(route), route.device, self.target.compute_capability
            )
        return self._rates[key]

    @property
    def other_mode(self) -> str | None:
        """The power mode that the profile was measured in, None where it is the one of the target."""
        here = self.target.power_mode
        mode = self.profile.machine.power_mode if self.profile and here else None
        return None if here is None or mode == here.name else mode

    def profiled(self, route: Route) -> Rates | None:
        """What the profile has for the route, in the power mode that it was measured in."""
        if self.profile is None:
            return None
        found = (rates_of(self.profile, name, route.precision) for name in _providers(route))
        return next((rates for rates in found if rates is not None), None)

    def _measured(self, route: Route) -> Rates | None:
        rates, mode = self.profiled(route), self.other_mode
        if rates is None or mode is None:
            return rates
        target = self.modes.get(mode) or self._of_table(mode)
        if target is None:
            return None
        try:
            measured_on = replace(self, target=target).compute(route)
            return scaled_rates(rates, measured_on, self.compute(route))
        except FusedgeError:  # clocks are not known: `_notes` says what takes its place
            return None

    def _of_table(self, mode: str) -> Target | None:
        """In a power mode by its exact name; of the set of modes that the target has, if it is in both."""
        row, here = self.target.row, self.target.power_mode
        if not isinstance(row, Jetson) or here is None:
            return None
        sets = {each.configuration for each in row.modes if each.name == mode}
        if not sets:
            return None
        return jetson_target(row, mode, min(sets, key=lambda each: each != here.configuration))


def _providers(route: Route) -> tuple[str, ...]:
    if route.backend == "native":
        return (NATIVE,)
    return ("cpu",) if route.device == "cpu" else _GPU_PROVIDERS


def check_profile(profile: Profile, target: Target) -> None:
    """Raises FusedgeError where the profile was measured on another kind of device."""
    measured_on = profile.machine.target.partition(":")[0]
    if measured_on != target.device:
        raise FusedgeError(
            f"the profile was measured on {measured_on}, which says nothing of {target.device}",
            hint=f"--target {measured_on}, or run fusedge bench there",
        )


def kept_profile(machine: Machine) -> Profile | None:
    """What `fusedge bench` has measured on this machine, if it has.

    Raises FusedgeError where it has, and the file cannot be read any more.
    """
    try:
        here = machine_target(machine)
    except FusedgeError:  # of several GPUs; then nothing could be measured either
        return None
    identity = identity_of(machine, here)
    path = profile_path(identity)
    profile = load_profile(path) if is_file(path) else None
    if profile is None or profile.machine != identity:
        return None
    known = {"cpu", NATIVE, *_GPU_PROVIDERS}
    return profile if any(each.provider in known for each in profile.calibrations) else None


def own_modes(machine: Machine, here: Target) -> dict[str, Target]:
    """A Jetson in each power mode of its own nvpmodel configuration, by name; empty where none was read.

    `here` is the machine as a target, in the mode that it is in. Other modes have the clocks of the table,
    with the memory and cores that this process may take. Of a mode that the table lacks, as a user's own,
    the name alone is known.
    """
    row, now = here.row, here.power_mode
    if machine.jetson is None or not isinstance(row, Jetson) or now is None:
        return {}
    known, memory = power_modes(row, now.configuration), here.compute.memory_bytes
    limit = here.compute.cores if (here.compute.cores or 0) < (now.cpus or 0) else None
    modes = {}
    for name in machine.jetson.power_modes:
        if name == now.name:
            mode, compute = now, here.compute
        elif name in known:
            mode = known[name]
            compute = jetson_target(row, name, now.configuration).compute
            cores = min((n for n in (compute.cores, limit) if n), default=None)
            compute = replace(compute, memory_bytes=memory, cores=cores)
        else:
            mode = now.model_copy(update={**dict.fromkeys(_FIGURES), "name": name})
            compute = Compute(memory_bytes=memory)
        named = f"{row.name}:{name}"
        modes[name] = replace(here, name=named, compute=compute, power_mode=mode)
    return modes


@dataclass(frozen=True)
class TargetPlan:
    """Of a bundle on a device. `plan` is None where a graph that is asked for is not in the bundle.

    `works`, `estimates` and `rates` are by part; of rates None where nothing is known. `notes` say what the
    estimates suppose.
    """

    device: Device
    preflight: Preflight
    works: Mapping[str, PartWork]
    estimates: Mapping[str, PartEstimate]
    rates: Mapping[str, Rates | None]
    plan: BundlePlan | None
    notes: tuple[str, ...]


def plan_target(works: Works, device: Device, asked: Asked) -> TargetPlan:
    """Plan a bundle on a device; raises FusedgeError where a graph cannot be counted."""
    found = _preflight(works, device, asked, asked.precision)
    chosen = {
        name: works.of(name, route.precision, _rows(works, works.parts[name], asked))
        for name, route in found.routes.items()
        if _has(works.parts[name], route.precision)
    }
    rates = {name: device.rates_of(found.routes[name]) for name in chosen}
    estimates = {name: _estimate(work, device, found.routes[name]) for name, work in chosen.items()}
    plan = None
    if len(chosen) == len(works.parts):
        plan = plan_bundle(
            works.bundle.manifest,
            estimates,
            {name: device.compute(route) for name, route in found.routes.items()},
            streams=asked.streams,
            error=max(each.error if each else 1.0 for each in rates.values()),
            watts=_measured_watts(works, device, found.routes),
        )
    notes = tuple(_notes(device, found.routes, rates, asked))
    return TargetPlan(device, found, chosen, estimates, rates, plan, notes)


def _notes(
    device: Device, routes: Mapping[str, Route], rates: Mapping[str, Rates | None], asked: Asked
) -> Iterator[str]:
    if device.profile is not None:
        of, mode = device.profile.machine, device.other_mode
        yield f"the profile is of {of.processor or of.target}, {device.profile.date}"
        lacking = [name for name, each in rates.items() if not (each and each.measured)]
        unused = [name for name in lacking if device.profiled(routes[name])]
        if mode is not None and len(lacking) < len(rates):
            yield f"it was measured in power mode {mode}, and is converted by the clocks"
        if unused:
            yield (
                f"it was measured in power mode {mode}, and clocks to convert it to {device.target.mode} "
                f"are not known: {listed(unused)} by the table of efficiencies"
            )
        if nothing := [name for name in lacking if name not in unused and rates[name]]:
            yield f"it has nothing for {listed(nothing)}: by the table of efficiencies"
    if any(route.backend == "onnx" and route.device == "gpu" for route in routes.values()):
        yield "ONNX Runtime on a GPU is counted as TensorRT; its own kernels are slower"
    if asked.dla and any(route.backend == "native" for route in routes.values()):
        yield "the DLA is counted as the GPU"


def _measured_watts(
    works: Works, device: Device, routes: Mapping[str, Route]
) -> dict[str, float] | None:
    """While each part runs; None unless it was measured of all, in the power mode that is planned."""
    profile, here = device.profile, device.target.power_mode
    if profile is None or (here and here.name != profile.machine.power_mode):
        return None
    watts = {
        each.part: each.energy_j / each.times[0].p50_s
        for each in profile.parts
        if each.bundle == works.bundle.manifest.name
        and each.part in routes
        and each.provider in _providers(routes[each.part])
        and each.precision == routes[each.part].precision
        and each.energy_j is not None
        and each.times
        and each.times[0].p50_s > 0
    }
    return watts if len(watts) == len(routes) else None


def fit_modes(works: Works, device: Device, asked: Asked) -> list[Mode]:
    """A device on which the bundle will run, in all its power modes, for `fit`.

    It is one mode where the target's name says which, or it has none. Where no precision is asked for, all
    that the bundle has are tried.
    """
    routes, alike = _routes(works, device, asked)
    most = _most_streams(works, device, asked)
    return [_mode(works, each, asked, routes, alike, most) for each in _in_all_modes(device)]


def _in_all_modes(device: Device) -> list[Device]:
    target = device.target
    row, mode = target.row, target.power_mode
    if not isinstance(row, Jetson) or mode is None or ":" in target.name:
        return [device]
    if device.modes:
        return [replace(device, target=each) for each in device.modes.values()]
    jetpack = device.software.jetpack
    names = power_modes(row, mode.configuration, jetpack)
    targets = [jetson_target(row, name, mode.configuration, jetpack) for name in names]
    return [replace(device, target=each) for each in targets]


_Routes = dict[tuple[str, str], Route]


def _routes(works: Works, device: Device, asked: Asked) -> tuple[_Routes, bool]:
    """What runs each part at each precision at which it can run, and whether all must have the same."""
    parts = works.parts
    automatic = _preflight(works, device, asked, asked.precision)
    alike = all(route.backend == "onnx" for route in automatic.routes.values())
    wanted = [asked.precision]
    if asked.precision == "auto":
        wanted = sorted({graph.precision for part in parts.values() for graph in part.graphs})
    routes: _Routes = {}
    for precision in wanted:
        found = automatic
        if precision != asked.precision:
            found = _preflight(works, device, asked, precision)
        refused = {name for f in found.findings if f.verdict == "refused" for name in f.parts}
        for name, route in found.routes.items():
            first = automatic.routes[name]
            # Beside engines ONNX Runtime has the one precision that it takes by itself.
            same = alike or (
                route.backend == first.backend == "native" or route.precision == first.precision
            )
            if name not in refused and same and _has(parts[name], route.precision):
                routes[name, route.precision] = route
    return routes, alike


def _mode(
    works: Works, device: Device, asked: Asked, routes: _Routes, alike: bool, most_streams: int
) -> Mode:
    @functools.cache
    def estimate(part: str, precision: str, rows: int) -> PartEstimate:
        route = routes[part, precision]
        if works.parts[part].kind == "model" and asked.batch is not None:
            rows = asked.batch
        return _estimate(works.of(part, precision, rows), device, route)

    precisions: dict[str, dict[str, Compute]] = {name: {} for name in works.parts}
    for (name, precision), route in routes.items():
        precisions[name][precision] = device.compute(route)
    known = [rates.error for route in routes.values() if (rates := device.rates_of(route))]
    return Mode(
        name=device.target.name,
        watts=device.target.compute.watts,
        precisions=precisions,
        estimate=estimate,
        alike=alike,
        error=max(known, default=1.0),
        most_streams=most_streams,
    )


def _most_streams(works: Works, device: Device, asked: Asked) -> int:
    """That have room in memory."""
    least, most = asked.streams, max(MAX_STREAMS, asked.streams)
    while least < most:
        middle = (least + most + 1) // 2
        found = _preflight(works, device, replace(asked, streams=middle), asked.precision)
        full = any(f.subject == "memory" and f.verdict == "refused" for f in found.findings)
        least, most = (least, middle - 1) if full else (middle, most)
    return least


def _preflight(works: Works, device: Device, asked: Asked, precision: str) -> Preflight:
    counted: dict[tuple[str, str], PartWork] = {}
    for part in works.parts.values():
        rows = _rows(works, part, asked)
        for graph in part.graphs:
            counted[part.name, graph.precision] = works.of(part.name, graph.precision, rows)
    return preflight(
        works.bundle.manifest,
        counted,
        device.target,
        device.software,
        backend=asked.backend,
        precision=precision,
        dla=asked.dla,
        streams=asked.streams,
        trusted=asked.trusted,
        host_memory_bytes=device.processor.memory_bytes,
    )


def _rows(works: Works, part: Part, asked: Asked) -> int:
    if part.kind == "model" and asked.batch is not None:
        return asked.batch
    return rows_of(works.bundle.manifest, part, asked.streams)


def _has(part: Part, precision: str) -> bool:
    return any(graph.precision == precision for graph in part.graphs)


def _estimate(work: PartWork, device: Device, route: Route) -> PartEstimate:
    rates = device.rates_of(route)
    if rates is not None:
        return estimate_part(work, rates, route.device)
    return PartEstimate(
        part=work.part,
        precision=work.precision,
        batch=work.batch,
        seconds=None,
        kernels=len(kernels_of(work, route.device)),
        by_kind={},
        by_bound={},
        unknown=work.unknown,
        missing=missing_figures(device.compute(route), device.target.compute_capability),
    )
