"""Probes: valid bundles whose every node is known, and that ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from fusedge.bundle.inference import open_session
from fusedge.bundle.noise import noise
from fusedge.devices.targets.planning.kernels import kernels_of
from fusedge.devices.targets.work import Kind
from fusedge.export.part_work import count_work, part_work
from fusedge.export.probes import PART, ProbePrecision, probes, write_probe


@pytest.mark.parametrize("precision", get_args(ProbePrecision))
def test_of_every_probe_all_is_counted(precision: ProbePrecision) -> None:
    seen: set[Kind] = set()
    for probe in probes(precision):
        work = count_work(probe.graph, PART, precision, {})
        assert not work.unknown, probe.name
        kernels = kernels_of(work, "cpu")
        seen |= {kernel.kind for kernel in kernels}
        if probe.kind not in ("mixture",):
            assert probe.kind in {kernel.kind for kernel in kernels}, probe.name
    assert seen == set(get_args(Kind)) - {"free", "unknown"}


def test_probes_are_the_same_each_time() -> None:
    assert [probe.graph for probe in probes("fp32")] == [probe.graph for probe in probes("fp32")]


@pytest.mark.parametrize("precision", get_args(ProbePrecision))
def test_probes_are_bundles_that_run(tmp_path: Path, precision: ProbePrecision) -> None:
    one_of_each: dict[str, Any] = {probe.kind: probe for probe in reversed(probes(precision))}
    for kind, probe in one_of_each.items():
        bundle = write_probe(probe, precision, tmp_path / f"{kind}.fusedge")
        (part,) = bundle.manifest.parts
        assert part_work(bundle, part, precision).batch == 1
        session = open_session(bundle.read(part.graphs[0].file), precision)
        outputs = session.run(None, noise(part, 1))
        assert [out.shape for out in outputs] == [spec.shape for spec in part.outputs]
