"""What a search measured, for people and for machines."""

from __future__ import annotations

import io
import json
import math

import pytest

from fusedge.export.pareto import pareto_png, pareto_rows
from fusedge.export.precision_search import SearchPoint, SearchResult


def result() -> SearchResult:
    points = (
        SearchPoint("float32", {}, 0.0, 1.0, True, False),
        SearchPoint("all int8", {"net": {"a": "int8"}}, math.inf, 0.4, False, False),
        SearchPoint("one group", {"net": {"b": "fp16"}}, 0.2, 0.9, True, False),
        SearchPoint("greedy", {"net": {"a": "fp16"}}, 0.1, 0.6, True, True),
    )
    chosen = points[-1]
    return SearchResult(
        {"net": {"a": "fp16"}},
        chosen.groups,
        0.9,
        0.899,
        chosen.loss_points,
        chosen.time_ratio,
        {},
        points,
        (),
        4,
        0,
        0,
    )


def test_rows_are_json_fastest_first_with_the_front_marked() -> None:
    rows = json.loads(json.dumps(pareto_rows(result()), allow_nan=False))
    assert [row["kind"] for row in rows] == ["all int8", "greedy", "one group", "float32"]
    assert [row["front"] for row in rows] == [False, True, False, True]
    assert [row["chosen"] for row in rows] == [False, True, False, False]
    assert rows[0]["loss_points"] is None


def test_the_plot_is_a_png_and_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    first = pareto_png(result(), 0.5)
    assert first == pareto_png(result(), 0.5)
    assert image.open(io.BytesIO(first)).size == (840, 540)
    assert first != pareto_png(result(), 0.2)
