"""A small net of convolutions and a transformer block, and a graph that reduction finds awkward."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fusedge.bundle.inference import open_session
from fusedge.bundle.manifest import TensorSpec
from fusedge.export.part import ModulePart
from fusedge.export.simplify import simplify
from fusedge.export.trace import trace

Array = NDArray[np.float32]
CLASSES = 4


class SmallNet(nn.Module):
    """`[B, 3, 16, 16] -> [B, 4]`: two convolutions, self-attention over 16 places, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.classify = nn.Linear(32, CLASSES)

    def forward(self, window: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.second(torch.relu(self.first(window))))
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        share = torch.softmax(q @ k.transpose(1, 2) / 32**0.5, dim=-1)
        x = x + self.out(share @ v)
        return (self.classify(x.mean(dim=1)),)


def spec(name: str, role: str, *shape: int) -> TensorSpec:
    fields = {"name": name, "role": role, "dtype": "float32", "shape": ("batch", *shape)}
    return TensorSpec.model_validate(fields)


@cache
def small_part(name: str = "net") -> ModulePart:
    return ModulePart(
        name,
        "encoder",
        name,
        10.0,
        SmallNet().eval(),
        (spec("window", "window", 3, 16, 16),),
        (spec("embedding", "embedding", CLASSES),),
    )


@cache
def small_graph(opset: int = 18) -> onnx.ModelProto:
    """The simplified float32 graph; not to be changed."""
    return simplify(trace(small_part(), opset), small_part())


def windows(count: int, seed: int = 0) -> Array:
    """Noise over bright and dark fields, float32 `[count, 3, 16, 16]`."""
    random = np.random.default_rng(seed)
    fields = random.uniform(-2, 2, size=(count, 3, 1, 1))
    return (fields + random.normal(0, 0.5, size=(count, 3, 16, 16))).astype(np.float32)


def run(graph: onnx.ModelProto, batch: Array) -> Array:
    result: Array = open_session(graph.SerializeToString(), "fp16").run(None, {"window": batch})[0]
    return result


def awkward_graph() -> tuple[onnx.ModelProto, ModulePart]:
    """What converters get wrong: an output that is used inside, an output of a kept kind, a constant
    that kept and reduced nodes share, a mask beyond float16, and an outer tensor inside of an If."""
    constants = {
        "mask": np.array([0, -1e9, 0, -1e9], np.float32),
        "two": np.array([2.0], "f4"),
        "yes": np.array(True),
    }
    branches = [
        helper.make_graph(
            [helper.make_node("Add", ["share", "embedding"], [f"sum.{name}"], f"{name}/add")],
            name,
            [],
            [helper.make_tensor_value_info(f"sum.{name}", TensorProto.FLOAT, ["batch", 4])],
        )
        for name in ("then", "else")
    ]
    outputs = ("embedding", "state_out.share", "state_out.sum")
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["window", "two"], ["embedding"], "scale"),
            helper.make_node("Add", ["embedding", "mask"], ["masked"], "mask"),
            helper.make_node("Softmax", ["masked"], ["share"], "share", axis=1),
            helper.make_node("Pow", ["share", "two"], ["state_out.share"], "square"),
            helper.make_node(
                "If",
                ["yes"],
                ["state_out.sum"],
                "choice",
                then_branch=branches[0],
                else_branch=branches[1],
            ),
        ],
        "graph",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    part = ModulePart(
        "part",
        "encoder",
        "part",
        1.0,
        nn.Identity(),
        (spec("window", "window", 4),),
        (spec("embedding", "embedding", 4), *(spec(o, "state_out", 4) for o in outputs[1:])),
    )
    return model, part
