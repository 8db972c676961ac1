"""What an export knows and a bundle does not hold: how long builds took, and what a search tried."""

from __future__ import annotations

import math

from fusedge.export.pipeline import Exported
from fusedge.export.report import EngineBuild, ExportRecord, Search, SearchPoint


def record_of(exported: Exported, budget_points: float) -> ExportRecord:
    """The record of an export, for the report."""
    found, metric = exported.search, exported.metric
    return ExportRecord(
        weights_sha256=exported.bundle.manifest.provenance.weights_sha256,
        build_s=tuple(
            EngineBuild(
                part=request.part,
                targets=tuple(target.name for target in request.targets),
                build_s=built.build_s,
                cached=built.cached,
            )
            for request, built in exported.engines.built
        ),
        search=None
        if found is None or metric is None
        else Search(
            metric=metric[0],
            budget=budget_points,
            points=tuple(
                SearchPoint(
                    label=point.kind,
                    speed_ratio=1 / point.time_ratio,
                    metric=found.metric_fp32 - point.loss_points / 100,
                    loss=point.loss_points,
                    chosen=point.chosen,
                )
                for point in found.points
                if math.isfinite(point.loss_points)
            ),
        ),
        stage_s={stage: round(seconds, 3) for stage, seconds in exported.stage_s.items()},
    )
