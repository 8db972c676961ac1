"""What a whole bundle asks of a device: load, decision latency and energy, from estimates of its parts.

Counted as the runtime works: an encoder runs once a hop, those of several streams together as one batch;
the head runs once a decision and stream, with a row more for each modality, which it then goes without.
What a front end runs has one row and runs where each stream's source is read: no decision waits for it.
A decision waits for encoders that are *light*, of less than 1 ms; what a heavy one computes is there for
a later decision, so that it makes its modality older instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
LIGHT_S = 0.001  # of one stream: fusedge.runtime.pipeline
WAIT_S = 0.003  # nor does a decision wait for longer than this: fusedge.runtime.pipeline
REST_S = 0.01  # half of what 0.1 s costs is lost at 5 to 20 ms: docs/performance.md

Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class PartLoad:
    """What one part takes of its device. `share` is the computing time in a second, on the GPU or on one
    core of a CPU.

    It runs `runs` times in a row at each of `rate_hz`, for `seconds` each, with `batch` rows, for all
    `streams`; for `paused_s` the first time, if it has rested for `REST_S`. A plain model has no rate.
    What is not known is None.

    A part that runs right after another takes a quarter to a half of that, and is counted as if it did not.
    """

    part: str
    precision: str
    device: Device
    batch: int
    runs: int
    streams: int
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

    @property
    def light(self) -> bool:
        """Whether one stream's run takes less than `LIGHT_S`, as it is counted in the runtime."""
        return self.due_s is not None and self.due_s < self.streams * LIGHT_S


@dataclass(frozen=True)
class DeviceLoad:
    """What all parts on one device take of it, where 1 is all. What is not known is None.

    `busy` is the computing time in a second, of the GPU or as if on one core. `load` is that of the whole
    GPU, or of the `cores` that the runtime uses; or, where that is more, what the busiest part takes of
    one core, for no part runs on two, or heavy encoders of the cores that are left to them. The heads of
    several streams are parts of their own.
    """

    device: Device
    cores: int
    busy: float | None
    load: float | None


@dataclass(frozen=True)
class ModalityAge:
    """How old the newest sample of a modality is when a decision is due, in seconds.

    Of that, `latency_s` is the known delay of its stamps, `lateness_s` what the window waits for late
    samples, `computing_s` at worst its encoder's computing, if none waits for that, and the rest the time
    from a window to the next decision, `typical_s` on the mean. A `computing_s` that is not known, None, is
    not counted. `awaited_s` is what `worst_s` would be if it took no time.
    """

    modality: str
    latency_s: float
    lateness_s: float
    computing_s: float | None
    typical_s: float
    worst_s: float
    awaited_s: float
    max_age_s: float


@dataclass(frozen=True)
class BundlePlan:
    """Of a bundle on a device, for `streams` sessions at a time. What is not known is None, see `unknown`.

    - `load`: that of the device which has most to do.
    - `typical_s`, `worst_s`: from the time of a decision to the decision, as `latency_ms` of a decision:
      what has yet to be computed of the light encoders, and the head. The worst case is that all of them
      are due just then, one after another, and that heavy ones share the device meanwhile. Of a plain
      model it is the time of a run. Parts that have rested are cold, also right after another.
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

    def keeps(self, load: float, latency_s: float | None) -> bool:
        """Whether it is known to stay within both, and no modality goes missing only because its encoder
        takes so long.

        `latency_s` None is one decision period, and no limit for a plain model, which has no load either.
        """
        if self.worst_s is None:
            return False
        if self.decision_rate_hz is None:
            return latency_s is None or self.worst_s <= latency_s
        limit_s = 1 / self.decision_rate_hz if latency_s is None else latency_s
        within = self.load is not None and self.load <= load and self.worst_s <= limit_s
        return within and not self.outdated()

    def outdated(self) -> list[str]:
        """Modalities whose embedding is at times too old only because its encoder takes so long."""
        return [age.modality for age in self.ages if age.awaited_s <= age.max_age_s < age.worst_s]


def rows_of(manifest: Manifest, part: Part, streams: int = 1) -> int:
    """Rows of one run of a part, the batch at which it is to be estimated."""
    batch = part.dims.get("batch")
    if part.kind == "model":
        return 1 if batch is None else batch.usual
    rows = min(streams, MAX_BATCH)
    if part.kind == "head":
        rows = 1 + len(manifest.require_fusion().modalities)
    elif part.kind == "front":
        rows = 1
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
        part_load(manifest, part, estimates[part.name], computes[part.name], streams)
        for part in manifest.parts
    )
    devices = tuple(_devices(manifest, loads, computes)) if fusion else ()
    shares = _known([device.load for device in devices])
    typical_s, worst_s = _latency(manifest, loads, computes)
    decisions_hz = fusion.decision_rate_hz * streams if fusion else None
    energy_j = _energy(loads, decisions_hz, computes, watts)
    return BundlePlan(
        streams=streams,
        decision_rate_hz=fusion.decision_rate_hz if fusion else None,
        parts=loads,
        devices=devices,
        ages=tuple(_ages(manifest, loads, computes)) if fusion else (),
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


def part_load(
    manifest: Manifest, part: Part, estimate: PartEstimate, compute: Compute, streams: int
) -> PartLoad:
    """What a part takes, from an estimate at `rows_of` rows."""
    rate_hz: float | None = None
    runs = 1
    if part.kind == "encoder":
        rate_hz = 1 / manifest.modality(str(part.modality)).hop_s
        runs = -(-streams // estimate.batch)
    elif part.kind == "head":
        fusion = manifest.require_fusion()
        rate_hz = fusion.decision_rate_hz
        runs = streams * -(-(1 + len(fusion.modalities)) // estimate.batch)
    elif part.kind == "front":
        rate_hz, runs = part.rate_hz, streams
    load = PartLoad(
        part=part.name,
        precision=estimate.precision,
        device="cpu" if compute.multiprocessors == 0 else "gpu",
        batch=estimate.batch,
        runs=runs,
        streams=streams,
        rate_hz=rate_hz,
        seconds=estimate.seconds,
        paused_s=estimate.paused_s,
        share=None,
    )
    due_s = load.due_s
    return load if due_s is None or rate_hz is None else replace(load, share=due_s * rate_hz)


def _threads(compute: Compute) -> int:
    """On which parts run at once: of a CPU no more than it has cores, but a heavy encoder and a head
    share the only one.
    """
    cores = MAX_THREADS if compute.multiprocessors else compute.cores or 1
    return min(max(cores, 2), MAX_THREADS)


def _heavy_at_once(compute: Compute) -> int:
    """Heavy encoders that compute at once: one thread is kept free of them; on a GPU one at a time."""
    return 1 if compute.multiprocessors else _threads(compute) - 1


def _devices(
    manifest: Manifest, loads: tuple[PartLoad, ...], computes: Mapping[str, Compute]
) -> Iterator[DeviceLoad]:
    for device in dict.fromkeys(load.device for load in loads):
        own = [load for load in loads if load.device == device]
        compute = computes[own[0].part]
        cores = min(compute.cores or 1, MAX_THREADS) if device == "cpu" else 1
        shares = _known([load.share for load in own])
        busy = None if shares is None else sum(shares)
        load = busy
        if device == "cpu" and shares and busy is not None:
            # of each part in one thread; each stream has its own head and front ends
            encoders = {part.name for part in manifest.encoders}
            alone = [
                share / (1 if each.part in encoders else min(each.streams, cores))
                for each, share in zip(own, shares, strict=True)
            ]
            heavy = sum(each.share or 0.0 for each in _heavy(manifest, own))
            load = max(busy / cores, heavy / _heavy_at_once(compute), *alone)
        yield DeviceLoad(device, cores, busy, load)


def _heavy(manifest: Manifest, loads: Sequence[PartLoad]) -> list[PartLoad]:
    """The encoders that no decision waits for, as far as it is known how long they take."""
    encoders = {part.name for part in manifest.encoders}
    return [
        load
        for load in loads
        if load.part in encoders and not load.light and load.due_s is not None
    ]


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
    manifest: Manifest, loads: tuple[PartLoad, ...], computes: Mapping[str, Compute]
) -> tuple[float | None, float | None]:
    """Typical and worst time from a decision's tick to the decision."""
    times = _known([load.due_s for load in loads])
    if times is None:
        return None, None
    if manifest.fusion is None:
        return times[0], times[0]
    period_ns = to_ns(1 / manifest.fusion.decision_rate_hz)
    typical_s = worst_s = 0.0
    batch_typical_s = batch_worst_s = 0.0  # of those that run at once
    fronts = {part.name for part in manifest.parts if part.kind == "front"}
    unawaited = [*_heavy(manifest, loads), *(load for load in loads if load.part in fronts)]
    held_s = _held(manifest, loads, computes)
    for part, load, time_s in zip(manifest.parts, loads, times, strict=True):
        if load in unawaited:
            continue
        # These compute meanwhile: for a share of the time, and at worst all of their runs.
        others = [other for other in unawaited if other.device == load.device]
        sharing = _sharing(others, computes[load.part])
        shared = 1 + sharing * min(1.0, sum(other.share or 0.0 for other in others))
        longest_s = sum(other.due_s or 0.0 for other in others)
        if part.kind == "head":
            run_s = (time_s - load.rest_s) / load.streams
            turns = _turns(load, computes[load.part])
            typical_s += shared * (load.rest_s + run_s * (turns + 1) / 2)  # first to last stream
            last_s = load.rest_s + run_s * turns
            worst_s += last_s + min(sharing * last_s, longest_s)
            continue
        modality = manifest.modality(str(part.modality))
        first_ns, step_ns, count = _waits(to_ns(modality.delay_s), to_ns(modality.hop_s), period_ns)
        batch = time_s >= LIGHT_S
        longest = held_s if held_s and batch else WAIT_S
        taken_s = max(time_s, held_s) if batch else time_s
        awaited_ns = min(shared * taken_s, longest) * NANOSECONDS
        # Of `count` ticks, at `late` the encoder still computes, each time a step less.
        late = min(count, max(0, math.ceil((awaited_ns - first_ns) / step_ns)))
        left_ns = late * (awaited_ns - first_ns) - step_ns * late * (late - 1) / 2
        left_s = left_ns / count / NANOSECONDS
        last_s = min(taken_s + min(sharing * time_s, longest_s), longest)
        if batch:
            batch_typical_s = max(batch_typical_s, left_s)
            batch_worst_s = max(batch_worst_s, last_s)
        else:
            typical_s, worst_s = typical_s + left_s, worst_s + last_s
    return typical_s + batch_typical_s, worst_s + batch_worst_s


def _held(manifest: Manifest, loads: Sequence[PartLoad], computes: Mapping[str, Compute]) -> float:
    """For how long batches of light runs leave no thread to the decisions; 0 where one is left."""
    encoders = {part.name for part in manifest.encoders}
    batches = [
        load
        for load in loads
        if load.part in encoders and load.light and (load.due_s or 0.0) >= LIGHT_S
    ]
    if not batches:
        return 0.0
    compute = computes[batches[0].part]
    threads = _threads(compute)
    if len(batches) < threads:
        return 0.0
    turns = -(-len(batches) // (1 if compute.multiprocessors else threads))
    return turns * max(load.due_s or 0.0 for load in batches)


def _sharing(unawaited: list[PartLoad], compute: Compute) -> int:
    """With how many heavy encoders and front ends a run shares its device at worst, in equal parts.

    On a GPU kernels of several parts take turns; of the cores of a CPU one is kept free, if it has two.
    """
    if compute.multiprocessors == 0:
        return int(bool(unawaited) and (compute.cores or 1) == 1)
    return min(len(unawaited), MAX_THREADS - 1)


def _turns(head: PartLoad, compute: Compute) -> int:
    """How many streams' heads run one after another: those that take long run at once, on threads and
    cores of their own, short ones in one thread.
    """
    at_once = 1 if head.light or compute.multiprocessors else min(compute.cores or 1, MAX_THREADS)
    return -(-head.streams // at_once)


def _waits(delay_ns: int, hop_ns: int, period_ns: int) -> tuple[int, int, int]:
    """How long the newest window of a modality has been due when a decision is: `(first, step, count)`.

    Windows are due at whole multiples of the hop, plus the delay; decisions at whole multiples of their
    period. In the long run each of `first + i * step` for `i < count` comes equally often.
    """
    step_ns = math.gcd(hop_ns, period_ns)
    return -delay_ns % step_ns, step_ns, hop_ns // step_ns


def _ages(
    manifest: Manifest, loads: tuple[PartLoad, ...], computes: Mapping[str, Compute]
) -> Iterator[ModalityAge]:
    period_ns = to_ns(1 / manifest.require_fusion().decision_rate_hz)
    heavy = _heavy(manifest, loads)
    for part, load in zip(manifest.parts, loads, strict=True):
        if part.kind != "encoder":
            continue
        modality = manifest.modality(str(part.modality))
        alone_s, computing_s = 0.0, None if load.due_s is None else 0.0
        if load.due_s is not None and load.due_s > WAIT_S and load not in heavy:
            alone_s = computing_s = load.due_s  # a batch that decisions wait for no longer
        elif load in heavy:
            alone_s = load.due_s or 0.0
            others = [o.due_s or 0.0 for o in heavy if o.device == load.device and o is not load]
            computing_s = alone_s + sum(others) / _heavy_at_once(computes[load.part])
        oldest = []
        for extra_s in (alone_s, computing_s or 0.0, 0.0):
            delay_ns = to_ns(modality.delay_s) + to_ns(extra_s)
            first_ns, step_ns, count = _waits(delay_ns, to_ns(modality.hop_s), period_ns)
            oldest.append((delay_ns + first_ns + step_ns * (count - 1)) / NANOSECONDS)
        span_s = step_ns * (count - 1) / NANOSECONDS
        yield ModalityAge(
            modality.name,
            modality.latency_s,
            modality.lateness_s,
            computing_s,
            oldest[0] - span_s / 2,
            oldest[1],
            oldest[2],
            modality.max_age_s,
        )


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
