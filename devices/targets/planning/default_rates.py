"""Rates of a device that nobody measured: its peaks times the shares that kernels reach elsewhere.

The shares are in `data/efficiencies.yaml`, of discrete GPUs, integrated ones (which share the memory of the
CPU) and CPUs. Those of GPUs were fitted to published latencies by `benchmarks/published_latencies.py`; how
far the estimates are off on devices that were not in the fit is `Rates.error`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusedge.bundle.errors import FusedgeError, first_problem
from fusedge.bundle.strict_yaml import load_yaml
from fusedge.devices.targets.facts.table import Compute, generations
from fusedge.devices.targets.planning.kernels import Backend
from fusedge.devices.targets.planning.rates import KindRate, Rates
from fusedge.devices.targets.work import Kind

_FILE = Path(__file__).with_name("efficiencies.yaml")
Processing = Literal["discrete", "integrated", "cpu"]
_Share = Annotated[float, Field(gt=0, le=1)]
_Least = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Kinds whose sums matrix units do; others have the vector units, at fp32's peak in any precision.
_MATRIX: frozenset[Kind] = frozenset(("convolution", "product", "recurrent", "attention"))
_NEEDED = frozenset(get_args(Kind)) - {"free", "unknown"}
# Ten published changes of latency from one power mode to another differ by up to this factor from what is
# estimated, half of them by less than 1.2 (benchmarks/published_latencies.py).
_CARRIED_OVER = 1.5


class Efficiencies(BaseModel):
    """Of one kind of processor: the numbers of the formula in `roofline`.

    A kernel starts in `launch_us` and `start_cycles`, a part in `run_us`. One whose sums matrix units do
    loses the time that its operations would take at `unfilled_share` of the peak, but `fill_cycles` at
    most.

    `error`: nine of ten estimates of devices that were not in the fit are off by less than this factor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    processing: Processing
    launch_us: _Least
    run_us: _Least
    start_cycles: _Least
    fill_cycles: _Least
    unfilled_share: _Share
    bandwidth_share: _Share
    peak_share: dict[Kind, _Share]
    error: Annotated[float, Field(gt=1)]
    source: Annotated[str, Field(min_length=8)]


@functools.cache
def efficiencies() -> Mapping[Processing, Efficiencies]:
    """The table; raises FusedgeError where it is not as it must be."""
    where = f"table {_FILE.name}"
    try:
        raw = load_yaml(_FILE.read_bytes(), where)
        rows = [Efficiencies.model_validate(each) for each in raw]
    except ValidationError as error:
        raise FusedgeError(first_problem(error), where=where) from None
    for row in rows:
        if row.peak_share.keys() != _NEEDED:
            raise FusedgeError(f"{row.processing} does not have all kinds", where=where)
    return {row.processing: row for row in rows}


def default_rates(
    compute: Compute, backend: Backend, compute_capability: str | None
) -> Rates | None:
    """Rates of a device in its power mode; None where its peak, clock or bandwidth is not known.

    For the backend `cpu`, `compute` must be of the processor, not of the GPU beside it.
    """
    processing: Processing = "integrated" if compute.memory_is_shared else "discrete"
    if backend == "cpu":
        processing = "cpu"
    return rates_by(efficiencies()[processing], compute, compute_capability)


def rates_by(table: Efficiencies, compute: Compute, compute_capability: str | None) -> Rates | None:
    """Rates by given efficiencies; see `default_rates`."""
    vector = compute.peak.get("fp32")
    bandwidth = compute.bandwidth_bytes_per_s
    clock_hz = _clock_hz(compute, compute_capability)
    if vector is None or bandwidth is None or clock_hz is None:
        return None
    peaks: dict[str, float] = {n: peak for n, peak in compute.peak.items() if peak is not None}
    if table.processing == "cpu":
        # what a CPU has no instructions for, ONNX Runtime computes in fp32 (bf16 it does not at all)
        peaks = {"fp16": vector, "int8": vector} | peaks
    kinds: dict[Kind, KindRate] = {}
    for kind, share in table.peak_share.items():
        matrix = kind in _MATRIX
        kinds[kind] = KindRate(
            overhead_s=table.launch_us * 1e-6 + table.start_cycles / clock_hz,
            operations_per_s={n: share * (peak if matrix else vector) for n, peak in peaks.items()},
            bytes_per_s=table.bandwidth_share * bandwidth,
            source=table.source,
            fill_s=table.fill_cycles / clock_hz if matrix else 0.0,
            fill_factor=share / table.unfilled_share if matrix else 0.0,
        )
    return Rates(
        kinds=kinds,
        run_s=table.run_us * 1e-6,
        error=table.error,
        measured=False,
        source=table.source,
    )


def missing_figures(compute: Compute, compute_capability: str | None) -> tuple[str, ...]:
    """Which of the figures that `default_rates` needs are not known."""
    figures = {
        "the peak in fp32": compute.peak.get("fp32"),
        "the clock": _clock_hz(compute, compute_capability),
        "the bandwidth of the memory": compute.bandwidth_bytes_per_s,
    }
    return tuple(name for name, value in figures.items() if value is None)


def _clock_hz(compute: Compute, compute_capability: str | None) -> float | None:
    """Of a GPU it follows from its peak."""
    if compute.multiprocessors == 0:
        return None if compute.cpu_mhz is None else compute.cpu_mhz * 1e6
    generation = generations().get(compute_capability or "")
    each = generation.operations.get("fp32") if generation else None
    peak = compute.peak.get("fp32")
    if each is None or peak is None or compute.multiprocessors is None:
        return None
    return peak / (each * compute.multiprocessors)


def scaled_rates(rates: Rates, measured_on: Compute, wanted: Compute) -> Rates:
    """Rates that were measured in one power mode of a device, for another mode of it.

    Sums scale with the peak (in all precisions with fp32's: they differ by a factor that no mode changes),
    bytes with the bandwidth, and overheads with the clock of the multiprocessors or cores. The expected
    error grows. Raises FusedgeError where one of these is not known.
    """
    if measured_on == wanted:
        return rates
    peak = _ratio(measured_on.peak.get("fp32"), wanted.peak.get("fp32"), "the peak")
    bandwidth = _ratio(
        measured_on.bandwidth_bytes_per_s, wanted.bandwidth_bytes_per_s, "the bandwidth"
    )
    clock = _ratio(_relative_clock(measured_on), _relative_clock(wanted), "the clock")
    kinds = {
        kind: rate.scaled(clock=clock, peak=peak, bandwidth=bandwidth)
        for kind, rate in rates.kinds.items()
    }
    error = math.exp(math.hypot(math.log(rates.error), math.log(_CARRIED_OVER)))
    return replace(
        rates,
        kinds=kinds,
        run_s=rates.run_s / clock,
        tensor_s=rates.tensor_s / clock,
        pause_s=rates.pause_s / clock,
        pause_node_s=rates.pause_node_s / clock,
        pause_byte_s=rates.pause_byte_s / clock,
        error=error,
    )


def _relative_clock(compute: Compute) -> float | None:
    """In proportion to the clock, for devices of one make."""
    if compute.multiprocessors == 0:
        return compute.cpu_mhz
    peak = compute.peak.get("fp32")
    return peak / compute.multiprocessors if peak and compute.multiprocessors else None


def _ratio(measured_on: float | None, wanted: float | None, what: str) -> float:
    if measured_on is None or wanted is None:
        raise FusedgeError(
            f"a profile cannot be carried over to another power mode: {what} is not known",
            hint="measure in that mode: fusedge bench",
        )
    return wanted / measured_on
