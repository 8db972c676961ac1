"""A part becomes a clean, repeatable ONNX graph with a free batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.export.cases import part_cases
from fusedge.export.graph import check_graph
from fusedge.export.lower import lower
from fusedge.export.parity import PartSession, check_part
from fusedge.export.simplify import simplify
from fusedge.export.split import ModulePart, concrete_shape, split
from fusedge.export.trace import trace
from tests.export.tiny_fusion import MODALITIES, TinyModel


def test_graphs_have_the_parts_inputs_and_a_free_batch(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    for part in parts:
        check_graph(graphs[part.name], part, "test")
        assert graphs[part.name].opset_import[0].version == 18


def test_the_recurrence_stays_one_node(graphs: dict[str, onnx.ModelProto]) -> None:
    kinds = [node.op_type for node in graphs["imu"].graph.node]
    assert kinds.count("GRU") == 1
    assert kinds.count("Conv") == 1


def test_nodes_have_the_names_of_the_users_modules(graphs: dict[str, onnx.ModelProto]) -> None:
    names = {node.op_type: node.name for node in graphs["imu"].graph.node}
    assert names["Conv"] == "encoder.conv/conv1d"
    assert names["LayerNormalization"] == "encoder.norm/layer_norm"
    assert len({node.name for node in graphs["imu"].graph.node}) == len(graphs["imu"].graph.node)


def test_nothing_of_the_machine_is_in_a_graph(graphs: dict[str, onnx.ModelProto]) -> None:
    for graph in graphs.values():
        data = graph.SerializeToString()
        for secret in (str(Path.home()), str(Path(__file__).parent), torch.__file__, ".py", "File"):
            assert secret.encode() not in data


def test_tracing_again_gives_the_same_bytes(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    again = split(TinyModel(), MODALITIES, 1.0)[1]
    graph = simplify(trace(again), again)
    first = graphs["gps"].SerializeToString(deterministic=True)
    assert graph.SerializeToString(deterministic=True) == first


def test_opset_17_is_reached_for_old_jetsons(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    cases = part_cases(parts, MODALITIES)
    for part in parts:
        graph = lower(graphs[part.name], part, 17)
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
        assert graph.ir_version == 8
        check_part(PartSession(part, graph.SerializeToString(), "fp32"), cases[part.name], 1e-4)


def test_operations_whose_converter_fails_are_lowered_too(parts: tuple[ModulePart, ...]) -> None:
    graph = simplify(trace(dataclasses.replace(parts[1], module=_Chunks())), parts[1])
    kinds = [node.op_type for node in graph.graph.node]
    assert (kinds.count("Split"), kinds.count("ReduceMax")) == (2, 1)
    lowered = lower(graph, parts[1], 17)
    window = {s.name: np.ones(concrete_shape(s, 3), np.float32) for s in parts[1].inputs}
    results = [
        PartSession(parts[1], g.SerializeToString(), "fp32").run(window, "ones")
        for g in (graph, lowered)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


class _Chunks(nn.Module):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left, right = tensors[0].chunk(2, dim=-1)
        head, tail = torch.split(tensors[2], [1, 3], dim=1)
        embedding = (
            (left * right + tensors[1] + head[:, :1, :1] + tail[:, :1, :1])
            .amax(dim=1)[:, :1]
            .expand(-1, 8)
        )
        return (embedding + 0, *(state * 2 for state in tensors[2:]))


def test_an_opset_outside_of_the_range_is_refused(parts: tuple[ModulePart, ...]) -> None:
    with pytest.raises(FusedgeError, match="cannot export at opset 11"):
        trace(parts[0], opset=11)


class _Branching(nn.Module):
    """Python control flow over values."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding = tensors[0].mean(dim=1)[:, :1].expand(-1, 8)
        return (embedding if embedding.sum() > 0 else -embedding, *tensors[2:])


class _FixedBatch(nn.Module):
    """Takes the batch for a constant."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding = tensors[0].mean(dim=1)[:, :1].reshape(2, 1).expand(-1, 8)
        return (embedding, *(state + 0 for state in tensors[2:]))


@pytest.mark.parametrize("module", [_Branching(), _FixedBatch()])
def test_a_module_that_cannot_be_traced_is_named(
    parts: tuple[ModulePart, ...], module: nn.Module
) -> None:
    with pytest.raises(FusedgeError, match="part gps") as caught:
        trace(dataclasses.replace(parts[1], module=module))
    assert len(caught.value.line()) < 600
