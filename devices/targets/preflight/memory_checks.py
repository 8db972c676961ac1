"""Whether the memory of a target is enough, to run a bundle and to build its engines there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fusedge.devices.targets.facts.rows import Jetson
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.preflight.findings import Finding, amount
from fusedge.devices.targets.preflight.memory_need import MemoryNeed, Place, Route, build_bytes
from fusedge.devices.targets.work import PartWork

# The account is rough, and other programs run as well.
_COMFORTABLE = 0.8
_SMALL_MODULE_BYTES = 4 * 2**30
_LESS = (
    "fewer --streams, a graph of lower precision, or a device (of a container: a limit) with more memory; "
    "on a Jetson, a desktop that is off saves about 1 GB: sudo systemctl set-default multi-user.target"
)


def memory_findings(memory: MemoryNeed) -> Iterator[Finding]:
    """Of each place, what is needed against what there is."""
    for place, capacity in memory.capacity.items():
        yield _place(memory, place, capacity)


def _place(memory: MemoryNeed, place: Place, capacity: float | None) -> Finding:
    needed, unknown = memory.needed(place), memory.unknown(place)
    name = place if len(memory.capacity) == 1 or place != "memory" else "the computer's memory"
    if capacity is None:
        sentence = f"About {amount(needed)}B of {name} are needed; how much there is, is not known."
        return Finding("memory", "unknown", sentence)
    share = needed / capacity
    figures = f"About {amount(needed)}B of {amount(capacity)}B of {name} are needed ({share:.0%})"
    if share > 1:
        largest = max(
            (row for row in memory.rows if row.place == place), key=lambda r: r.bytes or 0
        )
        most = f"; the most, {amount(largest.bytes or 0)}B, by: {largest.what}."
        return Finding("memory", "refused", figures + most, _LESS)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return Finding("memory", "unknown", f"{figures}, without the {unknown[0]}{more}.")
    if share > _COMFORTABLE:
        return Finding("memory", "warning", f"{figures}: little is left for other programs.", _LESS)
    return Finding("memory", "fits", f"{figures}.")


def build_findings(
    memory: MemoryNeed,
    works: Mapping[tuple[str, str], PartWork],
    to_build: Mapping[str, Route],
    target: Target,
) -> Iterator[Finding]:
    """Whether a build on the device has enough memory, for engines that can be built nowhere else.

    `to_build` has the parts that need one.
    """
    capacity = target.compute.memory_bytes
    if not to_build or capacity is None or not isinstance(target.row, Jetson):
        return
    weights = [
        work.weight_bytes
        for name, route in to_build.items()
        if (work := works.get((name, route.precision)))
    ]
    system = sum(
        row.bytes or 0
        for row in memory.rows
        if row.what.startswith(("operating system", "reserved"))
    )
    needed = system + build_bytes("tensorrt", max(weights, default=0))
    if capacity > _SMALL_MODULE_BYTES and needed <= _COMFORTABLE * capacity:
        return
    included = "the operating system included, " if system else ""
    sentence = (
        f"Building an engine there takes about {amount(needed)}B of {amount(capacity)}B of memory, "
        f"{included}and more if TensorRT finds it."
    )
    way = "stop all other programs and the desktop, add swap, and fusedge build --workspace 256"
    yield Finding("memory", "warning", sentence, way, tuple(to_build))
