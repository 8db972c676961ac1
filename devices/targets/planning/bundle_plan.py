"""What a whole bundle asks of a device: load, decision latency and energy, from estimates of its parts.

Counted as the runtime works: an encoder runs once a hop, those of several streams together as one batch;
the head runs once a decision and stream, with a row more for each modality, which it then goes without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fusedge.bundle.manifest import Manifest, Part
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.targets.facts.table import Compute
from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.devices.targets.preflight.findings import listed

MAX_BATCH = 16  # streams whose encoders run together: fusedge.runtime.runner
# Cores that compute parts at a time, if nobody asks for more: fusedge.runtime.runner.
MAX_THREADS = 4
REST_S = 0.01  # half of what 0.1 s costs is lost at 5 to 20 ms: docs/performance.md

Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class PartLoad:
    """What one part takes of its device. `share` is the computing time in a second, on the GPU or on one
    core of a CPU.

    It runs `runs` times in a row at each of `rate_hz`, for `seconds` each, with `batch` rows; for
    `paused_s` the first time, if it has rested for `REST_S`. A plain model has no rate. What is not
    known is None.

    A part that runs right after another takes a quarter to a half of that, and is counted as if it did not.
    """

    part: str
    precision: str
    device: Device
    batch: int
    runs: int
    rate_hz: float | None
    seconds: float | None
    paused_s: float | None
    share: float | None

    @property
    def rest_s(self) -> float:
        """What the first of its runs takes longer than the others; 0 where that is not known."""
        rests = self.rate_hz is not None and self.rate_hz * REST_S <= 1
        if not rests or self.seconds is None or self.paused_s is None:
            return 0.0
        return self.paused_s - self.seconds

    @property
    def due_s(self) -> float | None:
        """Seconds that it computes each time it is due."""
        return None if self.seconds is None else self.runs * self.seconds + self.rest_s


@dataclass(frozen=True)
class DeviceLoad:
    """What all parts on one device take of it, where 1 is all. What is not known is None.

    `busy` is the computing time in a second, of the GPU or as if on one core. `load` is that of the whole
    GPU, or of the `cores` that the runtime uses; or what the busiest part takes of one core, where that is
    more, for no part runs on two.
    """

    device: Device
    cores: int
    busy: float | None
    load: float | None


@dataclass(frozen=True)
class ModalityAge:
    """How old the newest sample of a modality is when a decision is due, in seconds.

    Of that, `latency_s` is the known delay of its stamps, `lateness_s` what the window waits for late
    samples, and the rest the time from a window to the next decision, `typical_s` on the mean.
    """

    modality: str
    latency_s: float
    lateness_s: float
    typical_s: float
    worst_s: float
    max_age_s: float


@dataclass(frozen=True)
class BundlePlan:
    """Of a bundle on a device, for `streams` sessions at a time. What is not known is None, see `unknown`.

    - `load`: that of the device which has most to do.
    - `typical_s`, `worst_s`: from the time of a decision to the decision, as `latency_ms` of a decision:
      what has yet to be computed of the encoders, and the head. The worst case is that all encoders of
      all streams are due just then, one after another. Of a plain model it is the time of a run. Parts
      that have rested are cold, also those that run right after another.
    - `throughput_hz`: rows a second that a plain model computes, one run after another, without a pause.
    - `energy_j`: of one decision, at most: the power mode's budget for as long as is computed; or
      measured, where `energy_measured`. Not what the device takes when it does nothing.
    - `error`: the factor by which times and load may be wrong either way. `lower_bound`: there are nodes
      that could not be counted, so that it may be more in any case.
    """

    streams: int
    decision_rate_hz: float | None
    parts: tuple[PartLoad, ...]
    devices: tuple[DeviceLoad, ...]
    ages: tuple[ModalityAge, ...]
    load: float | None
    typical_s: float | None
    worst_s: float | None
    throughput_hz: float | None
    energy_j: float | None
    energy_measured: bool
    error: float
    lower_bound: bool
    unknown: tuple[str, ...]
    ignored: tuple[str, ...]

    def keeps(self, load: float, latency_s: float | None, *, error: float = 1.0) -> bool:
        """Whether it is known to stay within both, also if all takes longer by the factor `error`.

        `latency_s` None is one decision period, and no limit for a plain model, which has no load either.
        """
        if self.worst_s is None:
            return False
        if self.decision_rate_hz is None:
            return latency_s is None or self.worst_s * error <= latency_s
        limit_s = 1 / self.decision_rate_hz if latency_s is None else latency_s
        return (
            self.load is not None and self.load * error <= load and self.worst_s * error <= limit_s
        )


def rows_of(manifest: Manifest, part: Part, streams: int = 1) -> int:
    """Rows of one run of a part, the batch at which it is to be estimated."""
    batch = part.dims.get("batch")
    if part.kind == "model":
        return 1 if batch is None else batch.usual
    rows = min(streams, MAX_BATCH)
    if part.kind == "head":
        rows = 1 + len(manifest.require_fusion().modalities)
    return rows if batch is None else min(max(rows, batch.least), batch.greatest)


def plan_bundle(
    manifest: Manifest,
    estimates: Mapping[str, PartEstimate],
    computes: Mapping[str, Compute],
    *,
    streams: int = 1,
    error: float = 1.0,
    watts: Mapping[str, float] | None = None,
) -> BundlePlan:
    """The plan, from an estimate of each part at `rows_of` rows, and what computes it.

    `error` is that of the estimates, as a factor; `watts` is the power that was measured while each part
    ran, instead of the limit of its device.
    """
    fusion = manifest.fusion
    loads = tuple(
        _part_load(manifest, part, estimates[part.name], computes[part.name], streams)
        for part in manifest.parts
    )
    devices = _devices(loads, computes) if fusion else ()
    shares = _known([device.load for device in devices])
    typical_s, worst_s = _latency(manifest, loads, streams)
    decisions_hz = fusion.decision_rate_hz * streams if fusion else None
    energy_j = _energy(loads, decisions_hz, computes, watts)
    return BundlePlan(
        streams=streams,
        decision_rate_hz=fusion.decision_rate_hz if fusion else None,
        parts=loads,
        devices=devices,
        ages=_ages(manifest),
        load=max(shares) if shares else None,
        typical_s=typical_s,
        worst_s=worst_s,
        throughput_hz=None if fusion or not worst_s else loads[0].batch / worst_s,
        energy_j=energy_j,
        energy_measured=watts is not None and energy_j is not None,
        error=error,
        lower_bound=any(estimate.unknown for estimate in estimates.values()),
        unknown=tuple(_unknown(loads, estimates, computes, energy_j)),
        ignored=tuple(_ignored(loads, plain=fusion is None)),
    )


def _part_load(
    manifest: Manifest, part: Part, estimate: PartEstimate, compute: Compute, streams: int
) -> PartLoad:
    rate_hz: float | None = None
    runs = 1
    if part.kind == "encoder":
        rate_hz = 1 / manifest.modality(str(part.modality)).hop_s
        runs = -(-streams // estimate.batch)
    elif part.kind == "head":
        fusion = manifest.require_fusion()
        rate_hz = fusion.decision_rate_hz
        runs = streams * -(-(1 + len(fusion.modalities)) // estimate.batch)
    load = PartLoad(
        part=part.name,
        precision=estimate.precision,
        device="cpu" if compute.multiprocessors == 0 else "gpu",
        batch=estimate.batch,
        runs=runs,
        rate_hz=rate_hz,
        seconds=estimate.seconds,
        paused_s=estimate.paused_s,
        share=None,
    )
    due_s = load.due_s
    return load if due_s is None or rate_hz is None else replace(load, share=due_s * rate_hz)


def _devices(
    loads: tuple[PartLoad, ...], computes: Mapping[str, Compute]
) -> tuple[DeviceLoad, ...]:
    devices = []
    for device in dict.fromkeys(load.device for load in loads):
        own = [load for load in loads if load.device == device]
        cores = min(computes[own[0].part].cores or 1, MAX_THREADS) if device == "cpu" else 1
        shares = _known([load.share for load in own])
        busy = None if shares is None else sum(shares)
        load = busy
        if device == "cpu" and shares:
            load = max(sum(shares) / cores, *shares)
        devices.append(DeviceLoad(device, cores, busy, load))
    return tuple(devices)


def _unknown(
    loads: tuple[PartLoad, ...],
    estimates: Mapping[str, PartEstimate],
    computes: Mapping[str, Compute],
    energy_j: float | None,
) -> Iterator[str]:
    """What is not known, so that figures are missing."""
    slow: dict[str, list[str]] = {}
    for load in loads:
        if load.seconds is None:
            missing, device = estimates[load.part].missing, load.device.upper()
            speed = f"how fast this {device} is at {load.precision}"
            if missing:
                speed = f"{listed(missing)} of this {device}"
            slow.setdefault(speed, []).append(load.part)
    for speed, parts in slow.items():
        yield f"{speed}, so how long these parts take: {', '.join(parts)} (fusedge bench measures it)"
    if any(load.device == "cpu" and computes[load.part].cores is None for load in loads):
        yield "the number of cores: one is counted with"
    if energy_j is None and not slow:
        yield "the energy of a decision: what power the device takes"
    if all(load.rate_hz is None for load in loads):
        yield "the load: a plain model runs when your program runs it"


def _ignored(loads: tuple[PartLoad, ...], *, plain: bool) -> Iterator[str]:
    """What is left out; the figures are from docs/performance.md and docs/targets.md."""
    devices = {load.device for load in loads}
    if not plain:
        yield "capture, decoding and what a modality's `prepare` names"
        yield "the pipeline's own work, less than 1 ms of a CPU core for each decision"
    yield "other programs, heat, and clocks below the highest that the power mode allows"
    if "gpu" in devices:
        yield "which kernels TensorRT will choose, and what fits into the caches"
        yield "that kernels of two parts may run at the same time"
    if "cpu" in devices:
        yield "that cores share caches and memory bandwidth"
    not_measured = [load.part for load in loads if load.seconds and load.paused_s is None]
    if not_measured:
        yield (
            "what a run takes longer after a pause, as in a session; not measured for "
            f"{listed(not_measured)} (0.2 to 0.5 ms on a CPU; fusedge bench measures it)"
        )


def _latency(
    manifest: Manifest,
    loads: tuple[PartLoad, ...],
    streams: int,
) -> tuple[float | None, float | None]:
    """Typical and worst time from a decision's tick to the decision."""
    times = _known([load.due_s for load in loads])
    if times is None:
        return None, None
    if manifest.fusion is None:
        return times[0], times[0]
    period_ns = to_ns(1 / manifest.fusion.decision_rate_hz)
    typical_s = 0.0
    for part, load, time_s in zip(manifest.parts, loads, times, strict=True):
        if part.kind == "head":
            # the mean of first to last stream
            typical_s += load.rest_s + (time_s - load.rest_s) * (streams + 1) / (2 * streams)
            continue
        modality = manifest.modality(str(part.modality))
        first_ns, step_ns, count = _waits(to_ns(modality.delay_s), to_ns(modality.hop_s), period_ns)
        # Of `count` ticks, at `late` the encoder still computes, each time a step less.
        late = min(count, max(0, math.ceil((time_s * NANOSECONDS - first_ns) / step_ns)))
        left_ns = late * (time_s * NANOSECONDS - first_ns) - step_ns * late * (late - 1) / 2
        typical_s += left_ns / count / NANOSECONDS
    return typical_s, sum(times)


def _waits(delay_ns: int, hop_ns: int, period_ns: int) -> tuple[int, int, int]:
    """How long the newest window of a modality has been due when a decision is: `(first, step, count)`.

    Windows are due at whole multiples of the hop, plus the delay; decisions at whole multiples of their
    period. In the long run each of `first + i * step` for `i < count` comes equally often.
    """
    step_ns = math.gcd(hop_ns, period_ns)
    return -delay_ns % step_ns, step_ns, hop_ns // step_ns


def _ages(manifest: Manifest) -> tuple[ModalityAge, ...]:
    if manifest.fusion is None:
        return ()
    period_ns = to_ns(1 / manifest.fusion.decision_rate_hz)
    ages = []
    for name in manifest.fusion.modalities:
        modality = manifest.modality(name)
        first_ns, step_ns, count = _waits(to_ns(modality.delay_s), to_ns(modality.hop_s), period_ns)
        least_s = modality.delay_s + first_ns / NANOSECONDS
        span_s = step_ns * (count - 1) / NANOSECONDS
        ages.append(
            ModalityAge(
                name,
                modality.latency_s,
                modality.lateness_s,
                least_s + span_s / 2,
                least_s + span_s,
                modality.max_age_s,
            )
        )
    return tuple(ages)


def _energy(
    loads: tuple[PartLoad, ...],
    decisions_hz: float | None,
    computes: Mapping[str, Compute],
    measured: Mapping[str, float] | None,
) -> float | None:
    """Of one decision, or of one run of a plain model."""
    joules = 0.0
    for load in loads:
        watts = computes[load.part].watts if measured is None else measured.get(load.part)
        if watts is None or load.due_s is None:
            return None
        joules += watts * load.due_s * (1 if load.rate_hz is None else load.rate_hz)
    return joules if decisions_hz is None else joules / decisions_hz


def _known(values: list[float | None]) -> list[float] | None:
    """The values, None where one is not known."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
