"""Estimates of a part's latency, and of the load of a whole bundle: a roofline with launch overheads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusedge.devices.targets.work import Kind


@dataclass(frozen=True)
class PartEstimate:
    """How long one run of a part takes. `seconds` is None where nothing is known of the device's speed;
    `missing` says what of it that is, if it is not the speed at this precision.

    It is a lower bound where `unknown` is not empty: nodes that could not be counted, by operator.
    `seconds` is of one run after another, `paused_s` of a run after a pause; None where that was not
    measured.
    `by_kind` and `by_bound` (`compute`, `memory`, `launch`) tell where the time goes, in seconds.
    """

    part: str
    precision: str
    batch: int
    seconds: float | None
    kernels: int
    by_kind: Mapping[Kind, float]
    by_bound: Mapping[str, float]
    unknown: Mapping[str, int]
    missing: tuple[str, ...] = ()
    paused_s: float | None = None

    def scaled(self, factor: float) -> PartEstimate:
        """If everything took longer by a factor."""
        seconds = None if self.seconds is None else self.seconds * factor
        paused_s = None if self.paused_s is None else self.paused_s * factor
        return replace(self, seconds=seconds, paused_s=paused_s)
