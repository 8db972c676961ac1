"""The small model, its parts and its graphs, made once for all tests of export."""

from __future__ import annotations

import importlib.util

import onnx
import pytest
import torch

from fusedge.export.part import ModulePart
from fusedge.export.simplify import simplify
from fusedge.export.split import split
from fusedge.export.trace import trace
from tests.export.tiny_fusion import MODALITIES, TinyModel


@pytest.fixture(scope="session")
def model() -> TinyModel:
    torch.set_num_threads(1)  # threads cost a tiny model more than they bring
    return TinyModel()


@pytest.fixture(scope="session")
def parts(model: TinyModel) -> tuple[ModulePart, ...]:
    return split(model, MODALITIES, decision_rate_hz=1.0)


@pytest.fixture(scope="session")
def graphs(parts: tuple[ModulePart, ...]) -> dict[str, onnx.ModelProto]:
    """The simplified float32 graph of each part."""
    return {part.name: simplify(trace(part), part) for part in parts}


@pytest.fixture(scope="session")
def rtx() -> None:
    """Skip where engines cannot be built."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'fusedge[rtx]'")
