"""The search of a precision on a GPU: real engines of TensorRT-RTX, run by the double of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.plain_model import DigitNet
from fusedge.bundle.errors import FusedgeError
from fusedge.cli import engine_speed
from fusedge.cli.engine_speed import EngineSpeed, gpu_of
from fusedge.devices.targets.detection.local import LocalGpu
from fusedge.devices.targets.facts.table import find_target
from fusedge.export.cache import Cache
from fusedge.export.engine import BuildLimits, BuiltEngine, EngineRequest, build_engine
from fusedge.export.evaluation import RowsEvaluation
from fusedge.export.pipeline import ExportOptions, export_bundle
from fusedge.export.plain import plain_part
from fusedge.export.subject import Subject, plain_subject
from fusedge.export.task import provenance
from tests.runtime.gpu_double import CudaApi, Tensorrt, gpu

RTX_4090 = LocalGpu(find_target("rtx-4090"), "NVIDIA GeForce RTX 4090", "580.1", None)
EXAMPLE = {"picture": np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)}


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Tensorrt:
    """The double; of each engine that is built it gets the graph, which it computes."""
    pytest.importorskip("tensorrt_rtx")
    double = Tensorrt(CudaApi())

    def build(request: EngineRequest, limits: BuildLimits, cache: Cache) -> BuiltEngine:
        built = build_engine(request, limits, cache)
        double.graphs[built.data] = request.graph
        return built

    monkeypatch.setattr(engine_speed, "build_engine", build)
    return double


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    part = plain_part(DigitNet().eval(), EXAMPLE)
    return plain_subject(part, EXAMPLE, "digits", "a test", provenance())


def test_a_search_builds_engines_and_measures_them(
    tmp_path: Path, trt: Tensorrt, subject: Subject
) -> None:
    cache = Cache(tmp_path / "cache")
    meter = partial(EngineSpeed, subject.parts, RTX_4090, BuildLimits(), cache, **gpu(trt))
    options = ExportOptions(targets=("rtx-4090",), precision="auto", budget_points=100, cache=cache)
    (part,) = subject.parts
    done = export_bundle(
        subject,
        tmp_path / "digits.fusedge",
        options,
        evaluation=lambda graphs: RowsEvaluation(part, EXAMPLE, graphs[part.name]),
        speed=meter,
    )
    assert done.search is not None
    assert done.search.measured_on.startswith("tensorrt_rtx ")
    assert "NVIDIA GeForce RTX 4090" in done.search.measured_on
    assert len(trt.graphs) >= 3  # float32 and what was tried
    assert not any("measured on the CPU" in note for note in done.notes)
    assert not trt.api.live  # what the GPU gave is given back


def test_a_graph_that_does_not_build_has_no_speed(
    tmp_path: Path, trt: Tensorrt, subject: Subject
) -> None:
    graphs = {"model": b"no graph"}
    meter = EngineSpeed(
        subject.parts, RTX_4090, BuildLimits(), Cache(None), graphs, {"model": EXAMPLE}, **gpu(trt)
    )
    with pytest.raises(FusedgeError, match="part model, target rtx-4090"):
        meter("model", b"no graph")
    assert not trt.api.live


def test_a_gpu_counts_only_where_it_is_one_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_speed, "detect", lambda: None)
    monkeypatch.setattr(engine_speed, "local_gpu", lambda machine: RTX_4090)
    assert gpu_of(["rtx-3090", "rtx-4080"]) is RTX_4090  # of the same generation
    assert gpu_of(["rtx-3090"]) is None

    def none(machine: object) -> LocalGpu:
        raise FusedgeError("this machine has no NVIDIA GPU")

    monkeypatch.setattr(engine_speed, "local_gpu", none)
    assert gpu_of(["rtx-4090"]) is None
