"""The picture of a fit: load and decision latency in each power mode, with the expected error."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.planning.fit import Fit, FitRow
from fusedge.export.packages import needs_extra

with needs_extra("plot", "the picture of a fit"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL = 15  # characters in a line under the axis
_LEAST = 1e-6  # of what is shown: a logarithmic axis has no zero
_INK, _LIMIT = "#0d0e0f", "#5b6270"
# Okabe and Ito's colours, which are told apart with the common colour blindnesses; shapes differ too.
_KINDS: tuple[tuple[str, str, str, Callable[[FitRow], bool]], ...] = (
    ("fits", "#0072b2", "o", lambda row: row.fits and not row.slower),
    ("fits at lower rates", "#e69f00", "D", lambda row: row.fits and bool(row.slower)),
    ("does not fit", "#d55e00", "X", lambda row: not row.fits),
)
_STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "text.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw_fit(found: Fit, title: str, path: Path) -> None:
    """Write the PNG, the modes from fewest to most watts; the same bytes for the same fit.

    Raises FusedgeError where the file cannot be written, MissingExtraError without matplotlib.
    """
    rows = sorted(found.rows, key=lambda row: math.inf if row.watts is None else row.watts)
    style: Any = _STYLE  # its type differs from version to version
    with rc_context(style):
        figure = Figure(figsize=(max(6.4, 1.6 + 1.15 * len(rows)), 6.0), layout="constrained")
        loads, latencies = figure.subplots(2, 1, sharex=True)
        _draw(loads, rows, [("load", lambda row: _percent(row.plan.load))])
        _limit(loads, [found.limits.load * 100] * len(rows), "{:.4g} %")
        loads.set_ylabel("load, % of the device")
        _draw(
            latencies,
            rows,
            [
                ("at worst", lambda row: _ms(row.plan.worst_s)),
                ("typical", lambda row: _ms(row.plan.typical_s)),
            ],
        )
        _limit(latencies, [_limit_ms(found, row) for row in rows], "{:.4g} ms")
        latencies.set_ylabel("decision latency, ms\n(large: at worst, small: typical)")
        latencies.set_xticks(range(len(rows)), [_label(row, found.recommended) for row in rows])
        latencies.set_xlim(-0.6, len(rows) - 0.4)
        handles, labels = loads.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4)
        figure.suptitle(title[:100], x=0.01, ha="left", fontsize=10)
        try:
            figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
        except OSError as error:
            raise FusedgeError(
                f"cannot write the picture: {error.strerror or error}",
                where=str(path),
                hint="choose another file or folder",
            ) from None


def _draw(
    axes: Axes,
    rows: Sequence[FitRow],
    figures: Sequence[tuple[str, Callable[[FitRow], float | None]]],
) -> None:
    for label, colour, marker, belongs in _KINDS:
        for number, (_, figure) in enumerate(figures):
            shown = [
                (place, max(value, _LEAST), row.plan.error)
                for place, row in enumerate(rows)
                if belongs(row) and (value := figure(row)) is not None
            ]
            if not shown:
                continue
            values = [value for _, value, _ in shown]
            axes.errorbar(
                [place + 0.14 * number for place, _, _ in shown],
                values,
                (
                    [value - value / error for _, value, error in shown],
                    [value * error - value for _, value, error in shown],
                ),
                fmt=marker,
                color=colour,
                markersize=5 if number else 8,
                capsize=0 if number else 4,
                elinewidth=0.8 if number else 1.4,
                label=None if number else label,
            )
    for place, row in enumerate(rows):
        if figures[0][1](row) is None:
            axes.annotate(
                "unknown",
                (place, 0.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                color=_LIMIT,
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # its own is in mathematical notation
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.18)
    axes.grid(True, axis="y")


def _limit(axes: Axes, values: Sequence[float | None], text: str) -> None:
    """The limit of each row; it differs where a decision period is the limit and was made longer.

    Where nothing else is drawn, the axis is of the limits alone.
    """
    if not axes.containers:
        known = [value for value in values if value is not None] or [1.0]
        axes.set_ylim(min(known) / 3, max(known) * 3)
    for place, value in enumerate(values):
        if value is None:
            continue
        axes.hlines(value, place - 0.5, place + 0.5, color=_LIMIT, linewidth=1.2, linestyle="--")
    for value in sorted({value for value in values if value is not None}):
        axes.annotate(
            "limit\n" + text.format(value),
            (1, value),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=_LIMIT,
        )


def _limit_ms(found: Fit, row: FitRow) -> float | None:
    if found.limits.latency_s is not None:
        return found.limits.latency_s * 1000
    rate_hz = row.plan.decision_rate_hz
    return None if rate_hz is None else 1000 / rate_hz


def _label(row: FitRow, recommended: str | None) -> str:
    watts = "watts unknown" if row.watts is None else f"{row.watts:g} W"
    name, colon, mode = row.mode.partition(":")
    lines = [*textwrap.wrap(name + colon, _LABEL), *textwrap.wrap(mode, _LABEL)]
    lines += ["at least"] if row.plan.lower_bound else []
    return "\n".join([*lines, watts, *(["recommended"] if row.mode == recommended else [])])


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
