"""How fast a device does each kind of work: what an estimate multiplies by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusedge.devices.targets.work import Kind


@dataclass(frozen=True)
class KindRate:
    """Of one kind: seconds to start a kernel, operations a second by precision, bytes a second.

    A precision that is not there is not known. `source`: where the numbers come from.

    A kernel that is too small to fill the device loses `fill_factor` times the time that its operations
    would take, but `fill_s` at most.
    """

    overhead_s: float
    operations_per_s: Mapping[str, float]
    bytes_per_s: float
    source: str
    fill_s: float = 0.0
    fill_factor: float = 0.0

    def scaled(self, *, clock: float, peak: float, bandwidth: float) -> KindRate:
        """Of a device whose clock, peak and bandwidth are so many times as high."""
        return replace(
            self,
            overhead_s=self.overhead_s / clock,
            fill_s=self.fill_s / clock,
            operations_per_s={name: each * peak for name, each in self.operations_per_s.items()},
            bytes_per_s=self.bytes_per_s * bandwidth,
        )


@dataclass(frozen=True)
class Rates:
    """Of a device and a backend. `run_s` is the time that a part takes beside its kernels, `tensor_s` that
    for each of its inputs and outputs. Views are of the kind `free`; without a rate they cost nothing.

    `error`: the expected error of a part's estimate as a factor: 1.25 is a quarter either way. `measured`
    is False for what comes from a table of efficiencies and not from this device.

    A run after a pause takes longer by `pause_s`, by `pause_node_s` for each of its nodes and by
    `pause_byte_s` for each byte of its weights. All are 0 where that was not measured.
    """

    kinds: Mapping[Kind, KindRate]
    run_s: float
    error: float
    measured: bool
    source: str
    tensor_s: float = 0.0
    pause_s: float = 0.0
    pause_node_s: float = 0.0
    pause_byte_s: float = 0.0
