"""A fusion model becomes parts whose inputs and outputs are those of the manifest."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Channel, Modality
from fusedge.export.part import ModulePart
from fusedge.export.split import split
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


class _Forgetful(nn.Module):
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"hidden": (4,)}

    def forward(self, window: torch.Tensor, valid: torch.Tensor, _: torch.Tensor) -> tuple:  # type: ignore[type-arg]
        return (window.mean(dim=-1, keepdim=True).expand(-1, -1, SIZE),)


class _Failing(_Forgetful):
    def forward(self, window: torch.Tensor, valid: torch.Tensor, _: torch.Tensor) -> tuple:  # type: ignore[type-arg]
        return (window @ torch.zeros(5, 5),)


class _Simple(nn.Module):
    """One embedding for each window, of the window alone."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.size = size

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return window.flatten(1).float().mean(dim=-1, keepdim=True).expand(-1, self.size)


class _TwoInARow(_Simple):
    """Gives one embedding, however many windows there are."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return super().forward(window)[:, None]


class _Flat(_Simple):
    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return super().forward(window)[:, 0]


class _Named(_Simple):
    def forward(self, window: torch.Tensor, *_: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"embedding": super().forward(window)}


class _Greedy(_Simple):
    def forward(self, window, valid, hidden):  # type: ignore[no-untyped-def, override]
        return super().forward(window)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (_Forgetful(), "part gps: .* the encoder returns [8] .* and the states [4]"),
        (_Failing(), "part gps: the module fails on [2, 1, 2], [2, 1, 2], [2, 4]: RuntimeError"),
        (_Simple(SIZE + 1), "different sizes: ['8', '9']"),
        (_TwoInARow(), "part gps: for two windows in a row the encoder returns [1, 8] .*not two"),
        (_Flat(), "part gps: for one window the encoder returns [] .*not an embedding"),
        (_Named(), "part gps: an output is a dict, not a tensor"),
        (
            _Greedy(),
            "part gps: the encoder's forward takes (window, valid, hidden) (forward(window)",
        ),
    ],
)
def test_an_encoder_that_breaks_the_interface_is_named(encoder: nn.Module, message: str) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*").replace(r"\ ", " ")
    with pytest.raises(FusedgeError, match=pattern):
        split(_with_encoder(encoder), MODALITIES, 1.0)


def test_a_series_part_has_a_valid_input_that_does_something() -> None:
    part = split(_with_encoder(_Simple()), MODALITIES, 1.0)[1]
    assert [s.name for s in part.inputs] == ["window", "valid"]
    window = torch.tensor([[[1.0, 3.0]]])
    assert part.module(window, torch.ones_like(window))[0].tolist() == [[2.0] * SIZE]
    assert part.module(window, torch.zeros_like(window))[0].tolist() == [[0.0] * SIZE]


class _WithValid(_Simple):
    def forward(self, window: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(window) * valid.flatten(1).mean(dim=-1, keepdim=True)


class _Optional(_Simple):
    def forward(self, window: torch.Tensor, loud: bool = False) -> torch.Tensor:  # type: ignore[override]
        assert not loud
        return super().forward(window)


def _media(kind: str) -> Modality:
    image = {"height": 4, "width": 6, "resample": "newest"} if kind == "image" else {}
    return MODALITIES[1].model_copy(
        update={
            "kind": kind,
            "resample": "contiguous",
            "rate_hz": 2.0,
            "channels": (Channel(name="level", unit="1", minimum=0, maximum=255),) * 3,
            **image,
        }
    )


@pytest.mark.parametrize(
    ("kind", "encoder", "inputs"),
    [
        ("image", _Simple(), [("window", "uint8", ("batch", 2, 4, 6, 3))]),
        (
            "image",
            _WithValid(),
            [
                ("window", "uint8", ("batch", 2, 4, 6, 3)),
                ("valid", "float32", ("batch", 2)),
            ],
        ),
        ("audio", _Optional(), [("window", "float32", ("batch", 2, 3))]),
    ],
)
def test_sound_and_images_have_the_inputs_that_their_encoder_takes(
    kind: str, encoder: nn.Module, inputs: list[tuple[str, str, tuple[int | str, ...]]]
) -> None:
    specs = (MODALITIES[0], _media(kind), MODALITIES[2])
    part = split(_with_encoder(encoder), specs, 1.0)[1]
    assert [(s.name, s.dtype, s.shape) for s in part.inputs] == inputs
    assert part.sequence is not None
    windows = [zeros[:, None].expand(-1, 4, *zeros.shape[1:]) for zeros in part.zeros(3)]
    assert part.sequence(*windows)[0].shape == (3, 4, SIZE)


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
    model = FusionModel(driving.model_config()).eval()
    parts = split(model, specs, driving.DECISION_RATE_HZ)
    assert [part.name for part in parts] == ["imu", "gps", "road", "head"]
    assert [part.rate_hz for part in parts] == [2.0, 1.0, 2.0, 1.0]
    torch.manual_seed(0)
    windows = {m.name: torch.randn(2, 3, *m.window_shape) for m in specs}
    valid = {name: torch.ones_like(window) for name, window in windows.items()}
    presence = torch.tensor([1.0, 0.0, 1.0]).expand(2, 3, 3)
    age = torch.rand(2, 3, 3)
    with torch.no_grad():
        embeddings = [p.sequence(windows[p.name], valid[p.name])[0] for p in parts[:-1]]
        (logits,) = parts[-1].sequence(*embeddings, presence, age)
        torch.testing.assert_close(model(windows, valid, presence, age), logits)


def test_an_encoder_that_names_its_states_gives_the_same_in_one_sequence(
    parts: tuple[ModulePart, ...],
) -> None:
    imu = parts[0]
    torch.manual_seed(0)
    windows, valid = torch.randn(3, 5, 10, 3), torch.ones(3, 5, 10, 3)
    with torch.no_grad():
        (whole,) = imu.sequence(windows, valid)
        states = [torch.from_numpy(state) for state in imu.initial_state(3).values()]
        for step in range(5):
            embedding, *states = imu.module(windows[:, step], valid[:, step], *states)
            torch.testing.assert_close(embedding, whole[:, step])


def test_a_description_of_other_modalities_is_refused(model: TinyModel) -> None:
    with pytest.raises(FusedgeError, match="imu, gps, road, its description imu, gps"):
        split(model, MODALITIES[:2], 1.0)


def test_a_head_with_other_outputs_than_described_is_refused(model: TinyModel) -> None:
    with pytest.raises(FusedgeError, match="part head: the head returns"):
        split(model, MODALITIES, 1.0, ("style", "event"))


def test_a_module_without_encoders_is_no_fusion_model() -> None:
    with pytest.raises(FusedgeError, match="the fusion model has no `modalities`"):
        split(nn.Linear(2, 2), MODALITIES, 1.0)  # type: ignore[arg-type]


class _OwnForward(TinyModel):
    def forward(self, imu: torch.Tensor, gps: torch.Tensor) -> torch.Tensor:
        return imu + gps


def test_a_forward_of_the_whole_with_other_arguments_is_refused_at_once() -> None:
    with pytest.raises(
        FusedgeError, match=r"takes \(imu, gps\) \(forward\(windows, valid, presence, age\)"
    ):
        split(_OwnForward(), MODALITIES, 1.0)


def test_a_modality_called_head_is_refused() -> None:
    specs = (MODALITIES[0].model_copy(update={"name": "head"}), *MODALITIES[1:])
    with pytest.raises(FusedgeError, match="a modality is called head"):
        split(TinyModel(specs), specs, 1.0)


@pytest.mark.parametrize("name", ["presence", "age", "embedding.imu"])
def test_logits_with_the_name_of_another_tensor_are_refused(model: TinyModel, name: str) -> None:
    with pytest.raises(FusedgeError, match=f"the head's logits '{name}' have the name of another"):
        split(model, MODALITIES, 1.0, (name,))


class _Attending(nn.Module):
    """Attention without a mask over tokens: the modalities, if its inputs are those of one decision."""

    def __init__(self, over_time: bool = False) -> None:
        super().__init__()
        self.over_time, self.out = over_time, nn.Linear(SIZE, 3)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        imu, gps, presence, _ = tensors
        x = imu + gps if self.over_time else torch.stack([imu, gps * presence[..., :1]], dim=1)
        y = nn.functional.scaled_dot_product_attention(x, x, x)
        logits: torch.Tensor = self.out(y if self.over_time else y.mean(1))
        return logits


def _with_head(head: nn.Module) -> TinyModel:
    model = TinyModel(MODALITIES[:2])
    model.head = head
    return model


def test_a_head_may_attend_to_two_modalities() -> None:
    head = _Attending()
    part = split(_with_head(head), MODALITIES[:2], 1.0)[-1]
    assert not part.state and part.sequence is not None
    torch.manual_seed(0)
    inputs = [torch.rand(3, 4, *zeros.shape[1:]) for zeros in part.zeros(3)]
    (whole,) = part.sequence(*inputs)
    for step in range(4):
        torch.testing.assert_close(whole[:, step], head(*(tensor[:, step] for tensor in inputs)))


def test_a_head_that_attends_to_all_decisions_is_refused() -> None:
    with pytest.raises(FusedgeError, match="part head: attention attends to all of time"):
        split(_with_head(_Attending(over_time=True)), MODALITIES[:2], 1.0)


def test_a_head_that_returns_no_tensor_is_named(model: TinyModel) -> None:
    model.head = _Named()
    with pytest.raises(FusedgeError, match="part head"):
        split(model, MODALITIES, 1.0)
