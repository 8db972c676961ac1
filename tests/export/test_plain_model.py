"""A module that is no fusion model becomes one part, described by an example of its inputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import open_session
from fusedge.bundle.manifest import BATCH, DimRange
from fusedge.export.plain import plain_part
from fusedge.export.trace import trace


class Words(nn.Module):
    """Class scores of a text, and of every second token, which is another dim."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, ids: Tensor, scale: Tensor | None = None, *, mask: Tensor) -> dict[str, Any]:
        x = self.table(ids) * mask[..., None].to(torch.float32)
        scores = self.out(x)
        if scale is not None:
            scores = scores * scale[:, None]
        return OrderedDict(scores=scores.sum(dim=1), tokens=scores, some=scores[:, ::2], none=None)


IDS = np.array([[3, 1, 4, 1, 5]], np.int64)
MASK = np.array([[True, True, True, False, True]])
TOKENS = {"tokens": DimRange(least=1, usual=5, greatest=12)}
AXES = {"ids": ("batch", "tokens"), "mask": ("batch", "tokens")}


def words() -> nn.Module:
    return Words().eval()


def test_dims_are_fixed_unless_they_are_named() -> None:
    part = plain_part(words(), {"mask": MASK, "ids": IDS})
    assert (part.kind, part.name, part.rate_hz, part.state) == ("model", "model", None, ())
    assert part.dims == {"batch": BATCH}
    assert [(s.name, s.role, s.dtype, s.shape) for s in part.inputs] == [
        ("ids", "input", "int64", ("batch", 5)),
        ("mask", "input", "bool", ("batch", 5)),
    ]
    assert [(s.name, s.role, s.dtype, s.shape) for s in part.outputs] == [
        ("scores", "output", "float32", ("batch", 3)),
        ("tokens", "output", "float32", ("batch", 5, 3)),
        ("some", "output", "float32", ("batch", 3, 3)),
    ]


def test_named_dims_are_free_in_the_graph() -> None:
    part = plain_part(words(), {"ids": IDS, "mask": MASK}, "text", AXES, TOKENS)
    assert part.name == "text" and part.dims == {"batch": BATCH, **TOKENS}
    assert [s.shape for s in part.outputs] == [
        ("batch", 3),
        ("batch", "tokens", 3),
        ("batch", "some.1", 3),  # follows from the tokens, but is another size
    ]
    session = open_session(trace(part).SerializeToString(), "fp32")
    random = np.random.default_rng(0)
    for batch, tokens in ((1, 1), (3, 12), (2, 7)):
        feeds = {
            "ids": random.integers(0, 20, (batch, tokens)),
            "mask": random.random((batch, tokens)) < 0.5,
        }
        expected = words()(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        for name, got in zip(("scores", "tokens", "some"), session.run(None, feeds), strict=True):
            np.testing.assert_allclose(got, expected[name].detach(), atol=1e-6)


def test_an_input_may_be_left_out_or_given() -> None:
    scale = np.ones((1, 3), np.float32)
    part = plain_part(words(), {"mask": MASK, "scale": scale, "ids": IDS})
    assert [s.name for s in part.inputs] == ["ids", "scale", "mask"]


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Record:
    hidden: list[Tensor]
    x: Tensor


class Returns(nn.Module):
    """Returns what it is told to make of its input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


X = {"x": np.ones((2, 4), np.float32)}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1, None, [x, x * 2]), ["output", "output.2", "output.2.1"]),
        (lambda x: ((x + 1, x * 2), x * 3), ["output", "output.1", "output.1.1"]),
        (lambda x: {"x": x + 1, "x.out": x * 2}, ["x.out", "x.out.1"]),
        (lambda x: Pair(x + 1, x * 2), ["left", "right"]),
        (lambda x: Record([x + 1, x + 2], x * 2), ["hidden", "hidden.1", "x.out"]),
        (lambda x: {"a": {"b": x + 1}, "c": x.int()}, ["a.b", "c"]),
    ],
)
def test_outputs_are_named_as_the_module_names_them(make: Any, names: list[str]) -> None:
    assert [spec.name for spec in plain_part(Returns(make), X).outputs] == names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.sum(), r"output output: has the shape \[\] .*without the batch"),
        (lambda x: x.T, r"output output: has the shape \[4, 2\] for a batch of 2"),
        (lambda x: torch.ones(2, 3), r"output output: has the shape \[2, 3\]"),
        (lambda x: {"y": x.double()}, "output y: float64 is not one of float32, uint8"),
        (lambda x: {"y": (x, "text")}, "part model: the module returns a str as y.1"),
        (lambda x: None, "part model: the module returns no tensor"),
        (lambda x: {"a b": x}, "output a b: 'a b': String should match pattern"),
        (lambda x: x[:, 9], r"part model: the module fails on x \[2, 4\]: IndexError"),
    ],
)
def test_outputs_that_a_graph_cannot_have_are_named(make: Any, message: str) -> None:
    with pytest.raises(FusedgeError, match=message):
        plain_part(Returns(make), X)


@pytest.mark.parametrize(
    ("example", "axes", "dims", "message"),
    [
        (
            {"idz": IDS, "mask": MASK},
            {},
            {},
            "unknown input of the example 'idz' .did you mean 'ids'",
        ),
        ({"ids": IDS}, {}, {}, "the example has no array 'mask'.*ids=..., scale=..., mask=..."),
        ({"ids": IDS.astype(float), "mask": MASK}, {}, {}, "input ids: float64 .*ids.astype"),
        ({"ids": IDS[0, 0], "mask": MASK}, {}, {}, r"input ids: the example has shape \[\]"),
        ({"ids": IDS, "mask": MASK}, {"x": ("batch",)}, {}, "unknown input 'x'"),
        (
            {"ids": IDS, "mask": MASK},
            {"ids": ("batch",)},
            {},
            "input ids: the axes batch do not fit",
        ),
        ({"ids": IDS, "mask": MASK}, {"ids": ("tokens", 5)}, {}, "do not fit"),
        ({"ids": IDS, "mask": MASK}, {"ids": ("batch", 6)}, {}, r"batch, 6 do not fit .*\[1, 5\]"),
        ({"ids": IDS, "mask": MASK}, {"ids": ("batch", "tokens")}, {}, "--dim tokens=1:5:5"),
        ({"ids": IDS, "mask": MASK}, {}, TOKENS, "unknown dim 'tokens' .known: batch"),
        ({"ids": IDS, "mask": MASK[:, :4]}, AXES, TOKENS, "5 and 4 for the dim tokens"),
        (
            {"ids": IDS, "mask": MASK},
            AXES,
            {"tokens": DimRange(least=1, usual=2, greatest=4)},
            "input ids: the example's 5 is not within 1 to 4",
        ),
        (
            {"ids": IDS, "mask": MASK},
            AXES,
            {"tokens": DimRange(least=5, usual=5, greatest=5)},
            "tokens of ids has one size only, 5, .* with 5 in place of tokens",
        ),
        (
            {"ids": np.full((1, 5), 99), "mask": MASK},
            {},
            {},
            r"fails on ids \[2, 5\], mask .*Index",
        ),
    ],
)
def test_an_example_that_does_not_fit_is_named(
    example: Any, axes: Any, dims: Any, message: str
) -> None:
    with pytest.raises(FusedgeError, match=message):
        plain_part(words(), example, axes=axes, dims=dims)
