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
from fusedge.bundle.manifest import DimRange, Dtype, TensorSpec
from fusedge.export.cases import part_cases
from fusedge.export.graph import check_graph
from fusedge.export.lower import lower
from fusedge.export.parity import PartSession, check_part
from fusedge.export.part import ModulePart, concrete_shape
from fusedge.export.plain_cases import plain_cases
from fusedge.export.simplify import simplify
from fusedge.export.split import split
from fusedge.export.trace import Traced, trace, trace_program
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
    window = {s.name: np.ones(concrete_shape(s, {"batch": 3}), np.float32) for s in parts[1].inputs}
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


class _Tokens(nn.Module):
    """Takes every dtype, and gives an output with a free dim of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, image: torch.Tensor, count: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        kept = self.embedding(ids) * mask[..., None]
        seen = image.float().mean((1, 2)) / 255
        rows = kept + seen[:, None] * count[:, None, None]
        return rows, torch.cat([rows, rows], dim=1), rows.argmax(-1)


@pytest.fixture(scope="module")
def tokens() -> ModulePart:
    def spec(name: str, dtype: Dtype, *shape: int | str, role: str = "input") -> TensorSpec:
        return TensorSpec.model_validate(
            {"name": name, "role": role, "dtype": dtype, "shape": ("batch", *shape)}
        )

    return ModulePart(
        name="model",
        kind="model",
        modality=None,
        rate_hz=None,
        module=_Tokens().eval(),
        inputs=(
            spec("ids", "int64", "tokens"),
            spec("mask", "bool", "tokens"),
            spec("image", "uint8", 6, 5, 4),
            spec("count", "int32"),
        ),
        outputs=(
            spec("rows", "float32", "tokens", 4, role="output"),
            spec("twice", "float32", "twice_tokens", 4, role="output"),
            spec("best", "int64", "tokens", role="output"),
        ),
        dims={
            "batch": DimRange(least=1, usual=4, greatest=8),
            "tokens": DimRange(least=1, usual=1, greatest=20),
        },
    )


@pytest.fixture(scope="module")
def traced_tokens(tokens: ModulePart) -> Traced:
    return trace_program(tokens)


def test_a_plain_model_keeps_its_dtypes_and_named_dims(
    tokens: ModulePart, traced_tokens: Traced
) -> None:
    random = np.random.default_rng(0)
    example = {
        "ids": random.integers(0, 10, (1, 5)),
        "mask": np.array([[True, True, False, True, True]]),
        "image": random.integers(0, 256, (1, 6, 5, 4), np.uint8),
        "count": np.array([3], np.int32),
    }
    graph = simplify(traced_tokens.model, tokens)
    session = PartSession(tokens, graph.SerializeToString(), "fp32", lambda: traced_tokens)
    rows = check_part(session, plain_cases(tokens, example), 1e-4)
    assert [row.output for row in rows] == ["rows", "twice", "best"]
    dims = {v.name: v.type.tensor_type.shape.dim for v in graph.graph.input}
    assert [dim.dim_param for dim in dims["ids"]] == ["batch", "tokens"]


def test_values_of_the_graph_are_known_by_their_nodes_in_torch(traced_tokens: Traced) -> None:
    nodes = {node.name for node in traced_tokens.program.graph.nodes}
    assert set(traced_tokens.values.values()) <= nodes
    assert traced_tokens.values["embedding/embedding.out0"] == "embedding"
    assert {"rows", "twice", "best"} <= set(traced_tokens.values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"shape": ("batch", "tokens", 5)},
            r"wanted \('rows', 'float32', \['batch', 'tokens', 5\]",
        ),
        ({"dtype": "int32"}, r"found \('rows', 'float32', .*wanted \('rows', 'int32'"),
        ({"shape": ("batch", 7, 4)}, r"found .*'tokens', 4\]\), wanted .*7, 4\]"),
    ],
)
def test_a_graph_that_differs_from_its_part_is_refused(
    tokens: ModulePart, traced_tokens: Traced, change: dict[str, object], reason: str
) -> None:
    first, *others = tokens.outputs
    other = dataclasses.replace(tokens, outputs=(first.model_copy(update=change), *others))
    with pytest.raises(FusedgeError, match=rf"part model, test: outputs differ .*{reason}"):
        check_graph(traced_tokens.model, other, "test")


class _Ageless(nn.Module):
    """Takes the ages, as every head, and does not look at them."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 3)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *embeddings, presence, _ = tensors
        joined = sum(e * presence[:, i : i + 1] for i, e in enumerate(embeddings))
        logits: torch.Tensor = self.out(joined)
        return logits


def test_an_input_that_decides_nothing_stays_an_input() -> None:
    model = TinyModel()
    model.head = _Ageless().eval()
    head = split(model, MODALITIES, 1.0)[-1]
    graph = simplify(trace(head), head)
    assert [value.name for value in graph.graph.input] == [spec.name for spec in head.inputs]
    assert "age" not in {name for node in graph.graph.node for name in node.input}
    check_graph(lower(graph, head, 17), head, "test")


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
