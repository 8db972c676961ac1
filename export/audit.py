"""Requested against achieved: what an export was asked for, and what is in the bundle."""

from __future__ import annotations

from dataclasses import dataclass

from fusedge.bundle.manifest import PartParity


@dataclass(frozen=True)
class AuditRow:
    """One part for one target. `achieved` is empty where nothing was made; `note` says why, or what.

    `achieved` is a precision where all layers that compute have it, else `mixed: ` and their counts.
    """

    part: str
    target: str
    requested: str
    achieved: str
    note: str

    @property
    def complete(self) -> bool:
        """Whether the bundle has what was asked for."""
        return bool(self.achieved)


@dataclass(frozen=True)
class Audit:
    """All rows, and the parity that was measured."""

    rows: tuple[AuditRow, ...]
    parity: tuple[PartParity, ...]

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is in the bundle."""
        return all(row.complete for row in self.rows)

    @property
    def missing(self) -> str:
        """One sentence on what was asked for and is not in the bundle; empty where all is."""
        targets = list(dict.fromkeys(row.target for row in self.rows if not row.complete))
        if not targets:
            return ""
        return (
            f"no engine for {', '.join(targets)}: "
            f"{'it' if len(targets) == 1 else 'each'} must be built on the device with its own TensorRT"
        )
