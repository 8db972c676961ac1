"""A fusion model becomes parts whose inputs and outputs are those of the manifest."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.export.cases import part_cases
from fusedge.export.split import ModulePart, split
from fusedge.models import driving
from fusedge.models.fusion_model import FusionModel
from tests.export.tiny_fusion import HIDDEN, MODALITIES, SIZE, TinyEncoder, TinyModel


def test_an_encoder_has_its_state_as_inputs_and_outputs(parts: tuple[ModulePart, ...]) -> None:
    imu = parts[0]
    assert [(s.name, s.role, s.shape) for s in imu.inputs] == [
        ("window", "window", ("batch", 10, 3)),
        ("valid", "valid", ("batch", 10, 3)),
        ("state_in.tail", "state_in", ("batch", 6, 2)),
        ("state_in.hidden", "state_in", ("batch", HIDDEN)),
    ]
    assert [(s.name, s.role, s.shape) for s in imu.outputs] == [
        ("embedding", "embedding", ("batch", SIZE)),
        ("state_out.tail", "state_out", ("batch", 6, 2)),
        ("state_out.hidden", "state_out", ("batch", HIDDEN)),
    ]
    assert [(p.input, p.output) for p in imu.state] == [
        ("state_in.tail", "state_out.tail"),
        ("state_in.hidden", "state_out.hidden"),
    ]


def test_the_head_takes_one_embedding_for_each_modality(parts: tuple[ModulePart, ...]) -> None:
    head = parts[-1]
    assert [(s.name, s.shape, s.modality) for s in head.inputs] == [
        ("embedding.imu", ("batch", SIZE), "imu"),
        ("embedding.gps", ("batch", SIZE), "gps"),
        ("embedding.road", ("batch", SIZE), "road"),
        ("presence", ("batch", 3), None),
        ("age", ("batch", 3), None),
    ]
    assert [(s.name, s.shape) for s in head.outputs] == [("logits", ("batch", 3))]


def test_parts_run_at_the_rates_of_the_manifest(parts: tuple[ModulePart, ...]) -> None:
    assert [(p.name, p.rate_hz) for p in parts] == [
        ("imu", 1.0),
        ("gps", 1.0),
        ("road", 1.0),
        ("head", 1.0),
    ]


def _with_encoder(encoder: nn.Module) -> TinyModel:
    model = TinyModel()
    model.encoders["gps"] = encoder
    return model


class _Stateless(nn.Module):
    def forward(self, window: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor]:
        return (window.mean(dim=-1, keepdim=True).expand(-1, -1, SIZE),)


class _Forgetful(_Stateless):
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"hidden": (4,)}

    def forward(self, window: torch.Tensor, valid: torch.Tensor, _: torch.Tensor) -> tuple:  # type: ignore[override, type-arg]
        return super().forward(window, valid)


class _Failing(_Forgetful):
    def forward(self, window: torch.Tensor, valid: torch.Tensor, _: torch.Tensor) -> tuple:  # type: ignore[override, type-arg]
        return (window @ torch.zeros(5, 5),)


class _Wider(_Stateless):
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def forward(self, window: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor]:
        return (window.mean(dim=-1, keepdim=True).expand(-1, -1, SIZE + 1),)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (_Stateless(), "part gps: the encoder has no method state_shapes()"),
        (_Forgetful(), "part gps: .* the encoder returns [8] .* and the states [4]"),
        (_Failing(), "part gps: the module fails on window [2, 1, 2], .*RuntimeError"),
        (_Wider(), "different sizes: ['8', '9']"),
    ],
)
def test_an_encoder_that_breaks_the_interface_is_named(encoder: nn.Module, message: str) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*").replace(r"\ ", " ")
    with pytest.raises(FusedgeError, match=pattern):
        split(_with_encoder(encoder), MODALITIES, 1.0)


class _EmptyState(TinyEncoder):
    """A convolution over one step has a tail of no elements."""

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"tail": super().state_shapes()["tail"], "empty": (0, 4), "hidden": (HIDDEN,)}

    def forward(self, window, valid, tail, empty, hidden):  # type: ignore[no-untyped-def, override]
        embedding, tail, hidden = super().forward(window, valid, tail, hidden)
        return embedding, tail, empty + 0, hidden


def test_a_state_without_elements_is_no_input() -> None:
    part = split(_with_encoder(_EmptyState(MODALITIES[1])), MODALITIES, 1.0)[1]
    assert [s.name for s in part.inputs[2:]] == ["state_in.tail", "state_in.hidden"]
    assert [s.name for s in part.outputs[1:]] == ["state_out.tail", "state_out.hidden"]
    assert [o.shape for o in part.module(*part.zeros(3))] == [(3, SIZE), (3, 4, 2), (3, HIDDEN)]


def test_the_driving_model_has_the_interface() -> None:
    specs = driving.modalities()
    parts = split(FusionModel(driving.model_config()).eval(), specs, driving.DECISION_RATE_HZ)
    assert [part.name for part in parts] == ["imu", "gps", "road", "head"]
    assert [part.rate_hz for part in parts] == [2.0, 1.0, 2.0, 1.0]
    cases = part_cases(parts, specs)  # raises where an answer is not finite
    assert len(cases["head"]) == 432


def test_a_description_of_other_modalities_is_refused(model: TinyModel) -> None:
    with pytest.raises(FusedgeError, match="imu, gps, road, its description imu, gps"):
        split(model, MODALITIES[:2], 1.0)


def test_a_head_with_other_outputs_than_described_is_refused(model: TinyModel) -> None:
    with pytest.raises(FusedgeError, match="part head: the head returns"):
        split(model, MODALITIES, 1.0, ("style", "event"))
