"""What a plan finds: one fact each, in a sentence for a newcomer, with the way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fusedge.bundle.errors import printable

Verdict = Literal["fits", "warning", "refused", "unknown"]
_MOST_NAMES, _MOST_TEXT = 5, 32
_PREFIXES = (
    *((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")),
    *((1.0, ""), (1e-3, "m")),
)
_ORDER: tuple[Verdict, ...] = ("refused", "unknown", "warning", "fits")


@dataclass(frozen=True)
class Finding:
    """One fact about a bundle on a target. `parts` are those that it is true of, none: it is of all.

    `subject` is what was looked at (`opset`, `memory`), `way_out` what to do about it, empty where nothing
    need be done. What is not known has the verdict `unknown`, never `fits`.
    """

    subject: str
    verdict: Verdict
    sentence: str
    way_out: str = ""
    parts: tuple[str, ...] = ()


def verdict(findings: Iterable[Finding]) -> bool:
    """Whether it will run: nothing is refused."""
    return all(finding.verdict != "refused" for finding in findings)


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Those that differ in their parts alone as one; the refused ones first, else in their order."""
    parts: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        parts.setdefault(replace(finding, parts=()), {}).update(dict.fromkeys(finding.parts))
    found = [replace(finding, parts=tuple(names)) for finding, names in parts.items()]
    return sorted(found, key=lambda finding: _ORDER.index(finding.verdict))


def shown(text: str) -> str:
    """Text of a bundle, which may be hostile, as a sentence can have it."""
    line = printable(text)
    return line if len(line) <= _MOST_TEXT else f"{line[: _MOST_TEXT - 1]}…"


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them, at most five: `a, b and c`."""
    known = [shown(name) for name in names]
    if len(known) > _MOST_NAMES:
        known = [*known[:_MOST_NAMES], f"{len(known) - _MOST_NAMES} more"]
    *first, last = known
    return f"{', '.join(first)} and {last}" if first else last


def amount(value: float | None) -> str:
    """With the prefix of the unit that is to follow, such as `1.25 T`."""
    if value is None:
        return "unknown "
    for limit, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * limit:  # 999.5 of the unit below is shown as 1000 of it
            return f"{value / limit:.3g} {prefix}"
    return f"{value * 1e6:.3g} µ" if value else "0 "
