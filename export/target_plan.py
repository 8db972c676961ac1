"""A bundle on a target: whether it will run there, how long its parts take, and the whole of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Part
from fusedge.devices.targets.calibration.profile import (
    NATIVE,
    Profile,
    identity_of,
    profile_for,
    rates_of,
)
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.detection.machine_target import machine_target
from fusedge.devices.targets.facts.rows import Jetson
from fusedge.devices.targets.facts.table import (
    Compute,
    Target,
    cpu_compute,
    find_target,
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
    """

    target: Target
    software: Software
    profile: Profile | None = None
    processor: Compute = _NO_CPU
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

    def _measured(self, route: Route) -> Rates | None:
        if self.profile is None:
            return None
        for provider in _providers(route):
            rates = rates_of(self.profile, provider, route.precision)
            if rates is not None:
                break
        else:
            return None
        mode, here = self.profile.machine.power_mode, self.target.power_mode
        if here is None or mode in (None, here.name):
            return rates
        name = f"{self.target.device}:{mode}"
        measured_on = Device(find_target(name, here.configuration), self.software).compute(route)
        return scaled_rates(rates, measured_on, self.compute(route))


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
    """What `fusedge bench` has measured on this machine, if it has."""
    try:
        here = machine_target(machine)
    except FusedgeError:  # of several GPUs; then nothing could be measured either
        return None
    identity = identity_of(machine, here)
    found = (profile_for(identity, provider) for provider in ("cpu", NATIVE, *_GPU_PROVIDERS))
    return next((profile for profile in found if profile is not None), None)


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
        of, here = device.profile.machine, device.target.power_mode
        yield f"the profile is of {of.processor or of.target}, {device.profile.date}"
        if here is not None and of.power_mode not in (None, here.name):
            yield f"it was measured in power mode {of.power_mode}, and is converted by the clocks"
        lacking = [name for name, each in rates.items() if each and not each.measured]
        if lacking:
            yield f"it has nothing for {listed(lacking)}: by the table of efficiencies"
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
