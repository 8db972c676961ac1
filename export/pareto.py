"""What a search has measured, as a plot of speed against loss, and as JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from fusedge.export.packages import needs_extra
from fusedge.export.precision_search import SearchPoint, SearchResult

_STYLES = {"one group": ("o", "tab:gray"), "greedy": ("s", "tab:blue")}
_OTHERS = ("D", "tab:purple")  # a precision throughout, and float32


def pareto_rows(result: SearchResult) -> list[dict[str, Any]]:
    """A row for each point, for JSON, fastest first; `loss_points` is None where the metric was no number.

    `front`: no other point is at least as fast and loses at most as much.
    """
    front = _front(result.points)
    return [
        {
            "kind": point.kind,
            "groups": {part: dict(chosen) for part, chosen in point.groups.items()},
            "loss_points": point.loss_points if math.isfinite(point.loss_points) else None,
            "time_ratio": point.time_ratio,
            "within_budget": point.within_budget,
            "front": any(point is other for other in front),
            "chosen": point.chosen,
        }
        for point in sorted(result.points, key=lambda p: (p.time_ratio, p.loss_points))
    ]


def pareto_png(result: SearchResult, budget_points: float) -> bytes:
    """A PNG: time against loss of all points, the front, the budget and what was chosen.

    Raises MissingExtraError where matplotlib is not installed.
    """
    with needs_extra("plot", "the plot of precisions"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    points = [point for point in result.points if math.isfinite(point.loss_points)]
    for kind in dict.fromkeys(point.kind for point in points):
        marker, colour = _STYLES.get(kind, _OTHERS)
        own = [point for point in points if point.kind == kind]
        axes.scatter(
            [point.time_ratio for point in own],
            [point.loss_points for point in own],
            marker=marker,
            color=colour,
            s=22,
            alpha=0.7,
        )
        if kind not in _STYLES:
            axes.annotate(kind, (own[0].time_ratio, own[0].loss_points), fontsize=8)
    front = _front(points)
    axes.plot([p.time_ratio for p in front], [p.loss_points for p in front], color="tab:blue", lw=1)
    axes.axhline(budget_points, color="tab:red", ls="--", lw=1, label=f"budget {budget_points:g}")
    axes.scatter(
        [result.time_ratio],
        [result.loss_points],
        marker="*",
        s=180,
        color="tab:green",
        label=f"chosen: {1 / result.time_ratio:.2f} times as fast, {result.loss_points:+.2f} points lost",
    )
    axes.set_xlabel("time, float32 = 1")
    axes.set_ylabel("loss of the metric, points")
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _front(points: Sequence[SearchPoint]) -> list[SearchPoint]:
    """The points that no other beats, fastest first."""
    front: list[SearchPoint] = []
    for point in sorted(points, key=lambda p: (p.time_ratio, p.loss_points)):
        if point.loss_points < (front[-1].loss_points if front else math.inf):
            front.append(point)
    return front
