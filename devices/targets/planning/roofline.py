"""How long a part takes on a device: for each kernel, the start and then the slower of sums and bytes.

    seconds = run + tensors · tensor + views · view
              + Σ kernels (steps · overhead + max(sums, bytes / bandwidth))
    sums = operations / rate + min(steps · fill, factor · operations / rate)

After a pause, in which caches are lost and the processor sleeps, a run takes longer by

    pause + nodes · node + weights · byte

The second part of the sums is what a kernel loses that is too small to fill the device: with a batch of
one, convolutions on a large GPU reach a small share of its peak, though they take longer than a start.

What this leaves out: which tactic TensorRT picks and how well its tiles fit the sizes, what stays in caches
between kernels, clocks that fall with heat or rise for a moment, other work on the device, and copies
between host and device where these have memories of their own.
"""

from __future__ import annotations

from collections import defaultdict

from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.devices.targets.planning.kernels import Backend, Kernel, kernels_of
from fusedge.devices.targets.planning.rates import Rates
from fusedge.devices.targets.planning.starts import tensor_count, view_count
from fusedge.devices.targets.work import Kind, PartWork

# Done by units that are as many for any precision, so that fp32's rate stands in for one that is not known.
_PLAIN: frozenset[Kind] = frozenset(("normalisation", "pooling", "elementwise", "movement"))


def estimate_part(work: PartWork, rates: Rates, backend: Backend) -> PartEstimate:
    """Estimate one run of a part. A lower bound where the part has nodes of which nothing is known.

    `seconds` is None where `rates` does not know a kind of kernel that the part has, or its precision.
    What a run takes beside its kernels is in `by_bound` under `launch`, and in no kind.
    """
    kernels = kernels_of(work, backend)
    by_kind: defaultdict[Kind, float] = defaultdict(float)
    by_bound = {"compute": 0.0, "memory": 0.0, "launch": _beside_kernels_s(work, rates)}
    known = True
    for kernel in kernels:
        if kernel.kind == "unknown":
            continue
        times = kernel_seconds(kernel, rates)
        if times is None:
            known = False
            break
        launching_s, computing_s, moving_s = times
        slower_s = max(computing_s, moving_s)
        by_bound["launch"] += launching_s
        by_bound["compute" if computing_s > moving_s else "memory"] += slower_s
        by_kind[kernel.kind] += launching_s + slower_s
    seconds = sum(by_bound.values()) if known else None
    return PartEstimate(
        part=work.part,
        precision=work.precision,
        batch=work.batch,
        seconds=seconds,
        kernels=len(kernels),
        by_kind=dict(by_kind) if known else {},
        by_bound=by_bound if known else {},
        unknown=work.unknown,
        paused_s=seconds + _pause_s(work, rates) if seconds is not None and rates.pause_s else None,
    )


def _pause_s(work: PartWork, rates: Rates) -> float:
    return (
        rates.pause_s
        + len(work.nodes) * rates.pause_node_s
        + work.weight_bytes * rates.pause_byte_s
    )


def _beside_kernels_s(work: PartWork, rates: Rates) -> float:
    views = rates.kinds.get("free")
    views_s = view_count(work) * views.overhead_s if views else 0.0
    return rates.run_s + tensor_count(work) * rates.tensor_s + views_s


def kernel_seconds(kernel: Kernel, rates: Rates) -> tuple[float, float, float] | None:
    """Seconds that its starts, its sums and its bytes take; None where a rate is not known."""
    rate = rates.kinds.get(kernel.kind)
    if rate is None:
        return None
    computing_s = 0.0
    for precision, operations in kernel.operations.items():
        per_s = rate.operations_per_s.get(precision)
        if per_s is None and kernel.kind in _PLAIN:
            per_s = rate.operations_per_s.get("fp32")
        if per_s is None:
            return None
        computing_s += operations / per_s
    computing_s += min(kernel.steps * rate.fill_s, rate.fill_factor * computing_s)
    return kernel.steps * rate.overhead_s, computing_s, kernel.bytes / rate.bytes_per_s
