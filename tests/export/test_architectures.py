"""Blocks as public architectures have them, as plain models through the whole path of the export.

`benchmarks/architectures.py` does the same with the real classes of the package transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedge.bundle.manifest import GraphPrecision
from fusedge.devices.targets.facts.table import find_target
from fusedge.export.engine import EngineRequest, build_engine
from fusedge.export.parity import TOLERANCE, PartSession, check_part
from fusedge.export.plain import plain_part
from fusedge.export.plain_cases import plain_cases
from fusedge.export.precision import reduce_graph, uniform_assignments
from fusedge.export.simplify import simplify
from fusedge.export.trace import trace

Array = np.ndarray[Any, Any]
WIDTH, HEADS = 32, 4


@dataclass
class Encoded:
    """What the models of transformers return is a dataclass as well."""

    last_hidden_state: Tensor
    pooled: Tensor


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return joined


class Block(nn.Module):
    """Pre-norm attention and a feed-forward net."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.first(x), mask)
        result: Tensor = x + self.net(self.second(x))
        return result


class ViTLike(nn.Module):
    """Patches by a strided convolution, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 17, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, pixel_values: Tensor) -> Encoded:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return Encoded(x, x[:, 0])


class ConformerLike(nn.Module):
    """Convolutions over the waveform, then attention and a gated depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(1, WIDTH, 10, stride=5),
            nn.GroupNorm(4, WIDTH),
            nn.GELU(),
            nn.Conv1d(WIDTH, WIDTH, 8, stride=8),
        )
        self.block = Block()
        self.gate = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, input_values: Tensor) -> Tensor:
        x = self.block(self.front(input_values.unsqueeze(1)).transpose(1, 2)).transpose(1, 2)
        x = x + functional.silu(self.norm(self.depthwise(functional.glu(self.gate(x), dim=1))))
        return x.mean(dim=-1)


class BertLike(nn.Module):
    """Words with a padding mask, relative positions by a learned bias, mean over the words that count."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        self.bias = nn.Embedding(31, HEADS)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        steps = torch.arange(input_ids.shape[1])
        bias = self.bias(steps[None] - steps[:, None] + 15).permute(2, 0, 1)[None]
        away = (1 - attention_mask[:, None, None].float()) * -1e4
        x = self.words(input_ids)
        for block in self.blocks:
            x = block(x, bias + away)
        share = attention_mask.unsqueeze(-1).float()
        return {"pooled": (x * share).sum(1) / share.sum(1).clamp(min=1.0)}


def words() -> dict[str, Array]:
    ids = np.random.default_rng(0).integers(0, 50, (2, 16))
    mask = np.ones((2, 16), np.int64)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def noise(name: str, *shape: int) -> dict[str, Array]:
    return {name: np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)}


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Array], list[str]]] = {
    "ViT": (ViTLike, noise("pixel_values", 3, 32, 32), ["last_hidden_state", "pooled"]),
    "Conformer": (ConformerLike, noise("input_values", 800), ["output"]),
    "BERT": (BertLike, words(), ["pooled"]),
}


class Gathering(nn.Module):
    """A query over what is present: the attention of a fusion head."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 1, 8))

    def forward(self, embeddings: Tensor, presence: Tensor) -> Tensor:
        query = self.query.expand(embeddings.shape[0], 1, -1, -1)
        keys = embeddings.unsqueeze(1)
        mask = presence[:, None, None] > 0
        return functional.scaled_dot_product_attention(query, keys, keys, mask).flatten(1)


def test_attention_over_nothing_gives_nothing_as_in_torch() -> None:
    torch.manual_seed(0)
    presence = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    example = {**noise("embeddings", 3, 8), "presence": presence}
    part = plain_part(Gathering().eval(), example)
    graph = simplify(trace(part), part).SerializeToString()
    parity = check_part(
        PartSession(part, graph, "fp32"), plain_cases(part, example), TOLERANCE["fp32"]
    )
    assert parity[0].max_absolute < 1e-6
    (found,) = PartSession(part, graph, "fp32").run(example, "nothing present")
    assert np.abs(found[0]).max() > 0.1
    assert not found[1].any()


class OneHead(nn.Module):
    """Attention over what each modality says, without a dim for heads."""

    def forward(self, tokens: Tensor, presence: Tensor) -> Tensor:
        mask = presence[:, None, :].expand(-1, tokens.shape[1], -1) > 0
        attended = functional.scaled_dot_product_attention(
            tokens, value=tokens, key=tokens, attn_mask=mask
        )
        return attended.mean(dim=1)


def test_attention_needs_no_dim_for_heads() -> None:
    presence = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    example = {**noise("tokens", 3, 8), "presence": presence}
    part = plain_part(OneHead().eval(), example)
    graph = simplify(trace(part), part).SerializeToString()
    session = PartSession(part, graph, "fp32")
    check_part(session, plain_cases(part, example), TOLERANCE["fp32"])


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", MODELS)
def test_a_public_kind_of_encoder_is_exported_whole(name: str) -> None:
    make, example, outputs = MODELS[name]
    torch.manual_seed(0)
    part = plain_part(make().eval(), example, "encoder")
    assert [spec.name for spec in part.outputs] == outputs
    graph = simplify(trace(part), part)
    assert all("attention" in n.name for n in graph.graph.node if n.op_type == "Softmax")
    half = reduce_graph(graph, part, uniform_assignments(graph, "fp16")[0])
    cases = plain_cases(part, example)
    graphs: dict[GraphPrecision, onnx.ModelProto] = {"fp32": graph, "fp16": half}
    for precision, made in graphs.items():
        data = made.SerializeToString(deterministic=True)
        parity = check_part(PartSession(part, data, precision), cases, TOLERANCE[precision])
        assert {row.output for row in parity} == set(outputs)
        request = EngineRequest(part.name, data, precision, (find_target("rtx-4090"),), part.dims)
        assert set(build_engine(request).precision_by_node.values()) >= {precision}
