"""The charts of a report, as SVG that takes its text colour from the page it stands in."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fusedge.bundle.manifest import Part, PartParity
from fusedge.export.node_cost import GraphCost
from fusedge.export.packages import needs_extra
from fusedge.export.report import Search, SearchPoint

with needs_extra("plot", "the charts of a report"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 30  # of one chart; a table beside it has them all
_LABEL = 48  # characters
_LEAST_SHARE = 1e-6  # of a tolerance, that is shown
_INK = "#0d0e0f"  # stands for the page's text colour until the SVG is written
# Of middle lightness, told apart on white and on black and with the common colour blindnesses.
COLOURS = {
    "fp32": "#8a8f98",
    "fp16": "#3b82f6",
    "bf16": "#14a3a3",
    "int8": "#e8833a",
    "mixed": "#a06fdf",
}
_OTHER, _BAD = "#c9a227", "#e0525f"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
}


def parity_chart(rows: Sequence[PartParity]) -> str:
    """The difference of each output from the original, as a share of what is tolerated."""
    worst = sorted(rows, key=lambda row: -_share(row))[:MAX_ROWS]
    shares = [_share(row) for row in worst]

    def draw(axes: Axes) -> None:
        for place, (row, share) in enumerate(zip(worst, shares, strict=True)):
            axes.plot(share, place, "o", color=_BAD if share > 1 else _colour(row.precision))
        axes.axvline(1, color=_BAD, linewidth=1.2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # its own is in mathematical notation
        axes.set_xlim(_LEAST_SHARE / 2, max(*shares, 1) * 2)
        axes.set_xlabel(
            "largest difference, as a share of the tolerance (red line); at the left edge: none"
        )
        _rows(axes, [f"{row.part}: {row.output}, {row.precision}" for row in worst])

    return _svg("parity", len(worst), draw)


def precision_chart(parts: Sequence[Part]) -> str:
    """Of each graph and engine, how many nodes or layers compute in which precision."""
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        for graph in part.graphs:
            reduced = list(graph.precision_by_node.values())
            full = max(0, graph.nodes - len(reduced))
            counts[f"{part.name}: {graph.precision} graph"] = {**Counter(reduced), "fp32": full}
        for engine in part.engines:
            name = f"{part.name}: engine {', '.join(engine.targets)}"
            counts[name] = engine.layers_by_precision
    shown = dict(list(counts.items())[:MAX_ROWS])

    def draw(axes: Axes) -> None:
        left = [0.0] * len(shown)
        for kind in (*COLOURS, "other"):
            shares = [
                sum(n for k, n in kinds.items() if (k if k in COLOURS else "other") == kind)
                / max(1, sum(kinds.values()))
                for kinds in shown.values()
            ]
            if any(shares):
                axes.barh(range(len(shown)), shares, left=left, color=_colour(kind), label=kind)
                left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the nodes or layers")
        _rows(axes, list(shown))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(COLOURS) + 1)

    return _svg("precision", len(shown), draw)


def cost_chart(costs: Sequence[GraphCost]) -> str:
    """Time of one run of each graph."""
    shown = [(cost, cost.us_per_run) for cost in costs if cost.us_per_run is not None][:MAX_ROWS]

    def draw(axes: Axes) -> None:
        times = [time for _, time in shown]
        colours = [_colour(cost.precision) for cost, _ in shown]
        axes.bar_label(axes.barh(range(len(shown)), times, color=colours), fmt="%.0f", padding=3)
        axes.set_xlim(0, max(times) * 1.1)
        axes.set_xlabel("µs a run")
        _rows(axes, [f"{cost.part}: {cost.precision}" for cost, _ in shown])

    return _svg("cost", len(shown), draw)


def node_chart(cost: GraphCost) -> str:
    """The nodes of one graph that take most."""

    def draw(axes: Axes) -> None:
        shares = [node.share * 100 for node in cost.nodes]
        bars = axes.barh(range(len(shares)), shares, color=_colour(cost.precision))
        axes.bar_label(bars, fmt="%.1f %%", padding=3)
        axes.set_xlim(0, max(shares) * 1.15)
        axes.set_xlabel("% of the time of all nodes")
        _rows(axes, [f"{node.node} ({node.operator})" for node in cost.nodes])

    return _svg(f"nodes {cost.part} {cost.precision}", len(cost.nodes), draw)


def pareto_chart(search: Search) -> str:
    """Speed against loss of all assignments that were tried, and which of them was chosen.

    The line joins those that no other one beats in both.
    """
    best: list[SearchPoint] = []
    for point in sorted(search.points, key=lambda point: (point.loss, -point.speed_ratio)):
        if not best or point.speed_ratio > best[-1].speed_ratio:
            best.append(point)

    def draw(axes: Axes) -> None:
        inside = [point for point in search.points if point.loss <= search.budget]
        beyond = [point for point in search.points if point.loss > search.budget]
        for points, colour, label in (
            (inside, COLOURS["fp16"], "within the budget"),
            (beyond, COLOURS["fp32"], "beyond it"),
        ):
            axes.scatter(
                [p.speed_ratio for p in points], [p.loss for p in points], 22, colour, label=label
            )
        axes.step(
            [p.speed_ratio for p in best],
            [p.loss for p in best],
            color=COLOURS["fp16"],
            linewidth=1,
            where="pre",  # a speed between two points costs the loss of the faster one
        )
        axes.axhline(search.budget, color=_BAD, linewidth=1.2, label="budget")
        axes.axvline(1, color=_INK, linewidth=0.8, alpha=0.4)
        for point in search.points:
            if point.chosen:
                axes.scatter(
                    point.speed_ratio, point.loss, 90, "none", edgecolors=_INK, label="chosen"
                )
                axes.annotate(
                    _cut(point.label),
                    (point.speed_ratio, point.loss),
                    (8, 8),
                    textcoords="offset points",
                )
        axes.margins(0.15)
        axes.grid(True)
        axes.set_xlabel("speed, fp32 = 1 (right is faster)")
        axes.set_ylabel(f"loss of {_cut(search.metric)},\npercentage points")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)

    return _svg("pareto", 14, draw)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """One row for each label, the first on top."""
    axes.set_yticks(range(len(labels)), [_cut(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(True, axis="x")


def _svg(name: str, rows: int, draw: Callable[[Axes], None]) -> str:
    style: Any = {**_STYLE, "svg.hashsalt": name}  # its type differs from version to version
    with rc_context(style):
        figure = Figure(figsize=(8.4, 1.0 + 0.24 * rows), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"), None),
        )
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # the same in each chart of the page
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', svg, count=1)
    return svg.replace(_INK, "currentColor")


def _share(row: PartParity) -> float:
    return min(max(row.max_relative / max(row.tolerance, 1e-12), _LEAST_SHARE), 1e9)


def _colour(kind: str) -> str:
    return COLOURS.get(kind, _OTHER)


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
