"""Two modules have one identity only if they compute the same."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fusedge.export.identity import identity


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.factor = 2.0
        self.shape = (2, [1, None])
        self.register_buffer("hidden", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.layer(x)


def scaled() -> Scaled:
    torch.manual_seed(0)
    return Scaled()


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "a weight": lambda m: m.layer.weight.data.add_(1e-6),
    "a buffer that is not saved": lambda m: m.hidden.zero_(),
    "a number": lambda m: setattr(m, "factor", 3.0),
    "a number of another type": lambda m: setattr(m, "factor", 2),
    "a nested value": lambda m: setattr(m, "shape", (2, [1, 0])),
    "a layer's own setting": lambda m: setattr(m.layer, "in_features", 3),
    "the mode": lambda m: m.eval(),
    "another layer": lambda m: setattr(m, "layer", nn.Sequential(m.layer)),
    "a function": lambda m: setattr(m, "norm", nn.functional.relu),
}


def test_equal_modules_have_one_identity() -> None:
    assert identity(scaled()) == identity(scaled()) == identity(copy.deepcopy(scaled()))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_gives_another_identity(change: Callable[[Scaled], object]) -> None:
    changed = scaled()
    change(changed)
    assert identity(changed) not in (None, identity(scaled()))


@pytest.mark.parametrize(
    "layer",
    [
        nn.GRU(2, 3),
        nn.LSTM(2, 3, 2, proj_size=1),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2),
        nn.BatchNorm2d(3),
        nn.Conv1d(2, 2, 3, padding="same", padding_mode="reflect"),
        nn.Embedding(3, 2),
        nn.GroupNorm(1, 2),
        nn.Upsample(scale_factor=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_torch_have_an_identity(layer: nn.Module) -> None:
    assert identity(layer) is not None
    assert identity(layer) == identity(copy.deepcopy(layer))


def test_order_of_modules_counts() -> None:
    first, second = scaled(), nn.Linear(1, 1)
    assert identity(first, second) != identity(second, first)


@pytest.mark.parametrize(
    "value",
    [object(), torch.relu, scaled().forward, sys.stdout],
    ids=["object", "builtin", "method", "file"],
)
def test_what_cannot_be_told_apart_has_no_identity(value: object) -> None:
    module = scaled()
    module.odd = value
    assert identity(module) is None


def test_a_hook_has_no_identity() -> None:
    module = scaled()
    module.layer.register_forward_hook(lambda m, x, y: 2 * y)
    assert identity(module) is None


def test_a_change_of_the_users_code_gives_another_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number in (1, 2):
        file = tmp_path / f"helper{number}.py"
        file.write_text(f"FACTOR = {number}\n")
        helper = types.ModuleType("user_helper")
        helper.__file__ = str(file)
        monkeypatch.setitem(sys.modules, "user_helper", helper)
        found.append(identity(scaled()))
    assert found[0] != found[1]
