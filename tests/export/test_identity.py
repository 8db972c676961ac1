"""Two modules have one identity only if they compute the same."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fusedge.export.identity import NoIdentityError, computed, identity
from fusedge.export.plain import plain_part
from fusedge.export.subject import Subject, fusion_subject, plain_subject
from fusedge.export.task import provenance
from tests.export.tiny_fusion import MODALITIES, TinyModel, make_task


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
    "a builtin": lambda m: setattr(m, "norm", torch.relu),
}


def test_equal_modules_have_one_identity() -> None:
    assert identity(scaled()) == identity(scaled()) == identity(copy.deepcopy(scaled()))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_gives_another_identity(change: Callable[[Scaled], object]) -> None:
    changed = scaled()
    change(changed)
    assert identity(changed) != identity(scaled())


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
    assert identity(layer) == identity(copy.deepcopy(layer))


def test_order_of_modules_counts() -> None:
    first, second = scaled(), nn.Linear(1, 1)
    assert identity(first, second) != identity(second, first)


@pytest.mark.parametrize(
    "value",
    [object(), {}.get, scaled().forward, sys.stdout, torch.ones(1, dtype=torch.bfloat16)],
    ids=["object", "builtin of an object", "method", "file", "bfloat16"],
)
def test_what_cannot_be_told_apart_has_no_identity(value: object) -> None:
    module = scaled()
    module.odd = value
    with pytest.raises(NoIdentityError):
        identity(module)


def test_a_hook_has_no_identity() -> None:
    module = scaled()
    module.layer.register_forward_hook(lambda m, x, y: 2 * y)
    with pytest.raises(NoIdentityError, match="hooks"):
        identity(module)


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


def test_a_layer_counts_as_often_as_it_is_used() -> None:
    layer = nn.Linear(2, 2)
    assert identity(nn.Sequential(layer, layer)) != identity(nn.Sequential(layer, layer, layer))


@pytest.mark.parametrize("keyword", [False, True])
def test_what_a_function_has_as_defaults_counts(keyword: bool) -> None:
    def with_factor(k: float) -> Scaled:
        module = scaled()
        module.act = (lambda x, *, k=k: x * k) if keyword else (lambda x, k=k: x * k)
        return module

    assert identity(with_factor(1.0)) == identity(with_factor(1.0))
    assert identity(with_factor(1.0)) != identity(with_factor(2.0))


TABLE = {"factor": 1.0}


class ReadsTable(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * TABLE["factor"],)


def test_what_is_neither_an_attribute_nor_code_shows_in_what_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = [np.ones((2, 3), np.float32)]
    before = computed(ReadsTable(), inputs)
    assert computed(ReadsTable(), inputs) == before
    monkeypatch.setitem(TABLE, "factor", 2.0)
    assert computed(ReadsTable(), inputs) != before


def test_a_module_that_fails_has_no_identity() -> None:
    with pytest.raises(NoIdentityError, match="it fails: RuntimeError"):
        computed(nn.Linear(2, 2), [np.ones((2, 3), np.float32)])


def plain(module: nn.Module) -> Subject:
    example = {"x": np.ones((2, 3), np.float32)}
    part = plain_part(module, example)
    return plain_subject(part, example, "plain", "", provenance())


def test_the_key_of_a_plain_model_follows_tables_of_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = plain(ReadsTable()).key
    assert before is not None and plain(ReadsTable()).key == before
    monkeypatch.setitem(TABLE, "factor", 2.0)
    assert plain(ReadsTable()).key != before


def test_the_key_of_a_fusion_model_follows_what_each_part_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key() -> str | None:
        return fusion_subject(TinyModel(MODALITIES[1:]), make_task(MODALITIES[1:])).key

    before = key()
    assert before is not None and key() == before
    monkeypatch.setattr(torch, "relu", torch.tanh)
    assert key() != before


def test_without_a_key_the_reason_is_told() -> None:
    module = ReadsTable()
    module.odd = object()
    subject = plain(module)
    assert subject.key is None and subject.no_key == "cannot tell one object from another"
