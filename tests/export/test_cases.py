"""The inputs on which an export is judged: every kind, subset, batch and size, always the same ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Channel, DimRange, Modality, TensorSpec
from fusedge.export import cases as cases_module
from fusedge.export.cases import (
    BATCHES,
    LONGEST,
    STEPS,
    VERY_LONG,
    Case,
    StreamCase,
    part_cases,
    stream_cases,
    subsets,
)
from fusedge.export.edge_inputs import KINDS, USUAL, make_windows
from fusedge.export.part import ModulePart
from fusedge.export.plain import plain_part
from fusedge.export.plain_cases import plain_cases
from fusedge.export.split import split
from tests.export.tiny_fusion import HIDDEN, MODALITIES, TinyEncoder, TinyHead, TinyModel


def _modality(kind: str, **fields: object) -> Modality:
    """Four frames of 6 x 5 in colour, or 1000 samples of stereo sound."""
    image = kind == "image"
    channels = ("red", "green", "blue") if image else ("left", "right")
    return Modality.model_validate(
        {
            "name": "road" if image else "cabin",
            "kind": kind,
            "description": kind,
            "channels": tuple(
                Channel(
                    name=name, unit="1", minimum=0 if image else -0.5, maximum=255 if image else 0.5
                )
                for name in channels
            ),
            "rate_hz": 4.0 if image else 1000.0,
            "window_s": 1.0,
            "hop_s": 1.0,
            "resample": "newest" if image else "contiguous",
            "max_hold_s": 1.0,
            "latency_s": 0.0,
            "lateness_s": 0.1,
            "max_age_s": 3.0,
            "return_windows": 1,
            "min_valid": 0.5,
            "prepare": (),
            **({"height": 6, "width": 5} if image else {}),
            **fields,
        }
    )


IMAGE, AUDIO = _modality("image"), _modality("audio")


@pytest.fixture(scope="module")
def cases(parts: tuple[ModulePart, ...]) -> dict[str, list[Case]]:
    return part_cases(parts, MODALITIES)


@pytest.fixture(scope="module")
def streams(model: TinyModel, parts: tuple[ModulePart, ...]) -> list[StreamCase]:
    return stream_cases(model, parts, MODALITIES)


def test_every_subset_batch_and_kind_of_input_is_a_case(cases: dict[str, list[Case]]) -> None:
    kinds = KINDS["series"]
    head = {case.name for case in cases["head"]}
    runs = len(BATCHES) * len(kinds) + 2  # and one kind at the usual and the greatest batch
    assert len(cases["head"]) == 2 * 2 ** len(MODALITIES) * runs
    assert "batch 8, typical input, present: imu" in head
    assert "batch 8, typical input, step 2" in {case.name for case in cases["imu"]}
    assert "batch 7, zero input, present: none" in head
    assert "batch 1, greatest input, present: imu+gps+road" in head
    assert "batch 2, typical input, present: imu+road, noise for the absent" in head
    assert "batch 7, invalid input, step 2" in {case.name for case in cases["gps"]}
    assert "batch 1, denormal input, step 1" in {case.name for case in cases["imu"]}


def test_streams_go_through_every_subset_and_one_is_very_long(streams: list[StreamCase]) -> None:
    together = [case for case in streams if len(case.expected) > 1]
    sizes = [(1, VERY_LONG), *((batch, STEPS) for batch in BATCHES)]
    assert sorted(case.size for case in together) == sorted(sizes)
    alone = [(*case.expected, case.size) for case in streams if case not in together]
    assert alone == [(modality.name, (1, LONGEST)) for modality in MODALITIES]
    for case in together:
        rows = case.inputs["head"]["presence"].reshape(-1, len(MODALITIES))
        assert len(np.unique(rows, axis=0)) == 2 ** len(MODALITIES)


def test_of_many_modalities_a_share_of_the_subsets_is_tried() -> None:
    for count in range(1, 6):
        assert len(subsets(count)) == 2**count
    many = subsets(12)
    sizes = many.sum(axis=1)
    assert len(np.unique(many, axis=0)) == len(many) < 150
    assert {size: (sizes == size).sum() for size in (0, 1, 2, 11, 12)} == {
        0: 1,
        1: 12,
        2: 66,
        11: 12,
        12: 1,
    }
    assert np.array_equal(many, subsets(12))


@pytest.mark.parametrize("kind", KINDS["series"])
def test_invalid_grid_points_are_zero_as_in_the_runtime(kind: str) -> None:
    window, valid = make_windows(MODALITIES[0], kind, (4,), np.random.default_rng(0))
    assert window.shape == valid.shape == (4, 10, 3)
    assert window.dtype == valid.dtype == np.float32
    assert not window[valid == 0].any()
    limits = np.array([channel.maximum for channel in MODALITIES[0].channels])
    assert (np.abs(window) <= limits).all() == (kind != "huge")


def test_denormal_numbers_stay_denormal() -> None:
    for modality in (MODALITIES[0], AUDIO):
        window, _ = make_windows(modality, "denormal", (1,), np.random.default_rng(0))
        assert ((window > 0) & (window < np.finfo(np.float32).tiny)).all()


@pytest.mark.parametrize("kind", KINDS["image"])
def test_images_are_frames_of_bytes(kind: str) -> None:
    window, valid = make_windows(IMAGE, kind, (3,), np.random.default_rng(0))
    assert (window.shape, window.dtype) == ((3, 4, 6, 5, 3), np.uint8)
    assert (valid.shape, valid.dtype) == ((3, 4), np.float32)
    assert not window[valid == 0].any()
    values = window.astype(int)
    spread = {"black": (0, 0), "white": (255, 255), "constant": (128, 128), "invalid": (0, 0)}
    assert (values.min(), values.max()) == spread.get(kind, (0, 255))
    assert len(np.unique(values)) > 20 or kind in spread


@pytest.mark.parametrize("kind", KINDS["audio"])
def test_sound_goes_from_silence_to_full_scale(kind: str) -> None:
    window, valid = make_windows(AUDIO, kind, (2,), np.random.default_rng(0))
    assert window.shape == valid.shape == (2, 1000, 2)
    assert window.dtype == np.float32
    levels = {"silence": {0.0}, "saturated": {-0.5, 0.5}, "constant": {0.25}, "invalid": {0.0}}
    if kind in levels:
        assert {float(value) for value in np.unique(window)} == levels[kind]
    elif kind != "denormal":
        assert 0.3 < np.abs(window).max() <= 0.5
        assert abs(window.mean()) < 0.1


def test_the_usual_kinds_are_kinds() -> None:
    for modality, kinds in USUAL.items():
        assert set(kinds) <= set(KINDS[modality])


class _Frames(nn.Module):
    """Frames `[B, n, H, W, C]` to `[B, 8]`; counts the values of the largest call."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 8)
        self.most = 0

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, window.numel())
        embedding: torch.Tensor = self.out((window.float() / 255).mean((1, 2, 3)))
        return embedding


class _Sound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 8)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.out(window.square().mean(1))
        return embedding


class _Seeing(nn.Module):
    """A camera and a microphone, without valid inputs and without memory."""

    modalities = ("road", "cabin")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"road": _Frames(), "cabin": _Sound()})
        self.head = TinyHead(2, 3)
        self.eval()

    def encoder(self, name: str) -> nn.Module:
        return self.encoders[name]


def test_kinds_of_several_modalities_are_named_together() -> None:
    model = _Seeing()
    parts = split(model, (IMAGE, AUDIO), 1.0)
    cases = part_cases(parts, (IMAGE, AUDIO))
    names = {case.name for case in cases["head"]}
    assert "batch 7, black/silence input, present: road+cabin" in names
    assert "batch 1, white/saturated input, present: cabin" in names
    assert {tuple(case.feeds) for case in cases["road"]} == {("window",)}
    sizes = {(*case.expected,): case.size for case in stream_cases(model, parts, (IMAGE, AUDIO))}
    assert sizes == {  # the last of each; without memory none is long together
        ("road", "cabin", "head"): (max(BATCHES), STEPS),
        ("road",): (1, VERY_LONG),
        ("cabin",): (1, VERY_LONG),
    }


def test_large_windows_are_taken_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    window = 4 * 6 * 5 * 3
    monkeypatch.setattr(cases_module, "_NUMBERS", 4 * window)
    model = _Seeing()
    small = _modality("audio", rate_hz=10.0)
    parts = split(model, (IMAGE, small), 1.0)
    frames = model.encoders["road"]
    assert isinstance(frames, _Frames)
    frames.most = 0
    names = {case.name for case in part_cases(parts, (IMAGE, small))["road"]}
    assert {name.split(",")[0] for name in names} == {"batch 1", "batch 2", "batch 4"}
    streams = stream_cases(model, parts, (IMAGE, small))
    together = [case.size for case in streams if len(case.expected) > 1]
    assert together == [(1, 3), (2, 2)]
    assert frames.most <= 4 * window


def test_a_large_camera_takes_no_steps_and_batches_from_the_other_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _Seeing()
    small = _modality("audio", rate_hz=10.0)
    parts = split(model, (IMAGE, small), 1.0)
    monkeypatch.setattr(cases_module, "_NUMBERS", 3 * 4 * 6 * 5 * 3)  # three windows of the camera
    cases = part_cases(parts, (IMAGE, small))
    names = {case.name.split(",")[0] for case in cases["cabin"]}
    assert {f"batch {batch}" for batch in BATCHES} <= names
    assert "batch 7, white/saturated input, present: road" in {c.name for c in cases["head"]}
    streams = stream_cases(model, parts, (IMAGE, small))
    assert {case.size for case in streams if "road" in case.expected} <= {(1, 2), (1, 3), (2, 2)}
    alone = {case.size for case in streams if (*case.expected,) == ("cabin",)}
    assert alone == {(1, STEPS), (1, 54), (2, 27), (7, 7)}  # 20 numbers a window
    assert {(1, STEPS)} < {case.size for case in streams if (*case.expected,) == ("head",)}


class _Late(nn.Module):
    """Adds the window of some windows ago, which no search for state finds."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.samples = 10 * windows
        self.out = nn.Linear(2, 8)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        x = self.out(window)
        late = torch.cat([x.new_zeros(len(x), self.samples, 8), x], dim=1)
        return (x + late[:, : x.shape[1]])[:, 9::10]


@pytest.mark.parametrize("windows", [8, VERY_LONG + 60])
def test_memory_that_was_not_lifted_is_found_beside_a_large_camera(
    windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Seeing()
    model.encoders["cabin"] = _Late(windows).eval()
    small = _modality("audio", rate_hz=10.0)
    parts = split(model, (IMAGE, small), 1.0)
    assert not parts[1].state
    camera = _modality("image", height=600, width=500)
    reason = rf"part cabin, case cabin alone.* off at step {windows + 1} "
    with pytest.raises(FusedgeError, match=reason):
        stream_cases(model, (*split(model, (camera, small), 1.0)[:1], *parts[1:]), (camera, small))


class _Faint(nn.Module):
    """Small embeddings, off by a share of themselves in single steps."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        x = window.repeat(1, 1, 4) * 1e-6
        return (x - x.mean(1, keepdim=True))[:, 9::10]


def test_small_embeddings_are_compared_by_their_own_size() -> None:
    model = _Seeing()
    model.encoders["cabin"] = _Faint().eval()
    specs = (IMAGE, _modality("audio", rate_hz=10.0))
    parts = split(model, specs, 1.0)
    with pytest.raises(FusedgeError, match=r"part cabin, .*another embedding in single steps"):
        stream_cases(model, parts, specs)


def test_windows_are_drawn_anew_and_the_same() -> None:
    parts = split(_Seeing(), (IMAGE, AUDIO), 1.0)
    case = part_cases(parts, (IMAGE, AUDIO))["road"][0]
    first, second = case.feeds["window"], case.feeds["window"]
    assert first is not second
    assert np.array_equal(first, second)


class _NanWithoutInput(TinyHead):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return super().forward(*tensors) / tensors[-2].sum(dim=1, keepdim=True)


def test_a_module_that_gives_nan_is_blamed_itself() -> None:
    model = TinyModel()
    model.head = _NanWithoutInput(len(MODALITIES), 3).eval()
    with pytest.raises(FusedgeError, match=r"part head, .*present: none.*original module gives"):
        part_cases(split(model, MODALITIES, 1.0), MODALITIES)


class _Fails(TinyEncoder):
    def forward(self, window: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if window.abs().max() > 1000:
            raise ValueError("too loud\nsecond line")
        return super().forward(window, *rest)


def test_a_module_that_fails_is_named_with_the_case() -> None:
    model = TinyModel()
    model.encoders["imu"] = _Fails(MODALITIES[0]).eval()
    reason = r"part imu, case batch 1, huge input, step 1: .*fails: ValueError: too loud$"
    with pytest.raises(FusedgeError, match=reason):
        part_cases(split(model, MODALITIES, 1.0), MODALITIES)


class _HiddenMemory(TinyEncoder):
    """Looks at the whole sequence: what it needs is not in its state."""

    def forward(self, window: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding, *states = super().forward(window, *rest)
        return (embedding + window.mean(dim=(1, 2))[:, None, None], *states)


def test_an_encoder_that_remembers_outside_of_its_state_is_refused() -> None:
    model = TinyModel()
    model.encoders["imu"] = _HiddenMemory(MODALITIES[0]).eval()
    parts = split(model, MODALITIES, 1.0)
    with pytest.raises(
        FusedgeError, match=r"part imu, .*: the module itself gives another embedding"
    ):
        stream_cases(model, parts, MODALITIES)


def test_a_sequence_of_another_length_is_refused(parts: tuple[ModulePart, ...]) -> None:
    imu = parts[0]
    assert imu.sequence is not None
    short = dataclasses.replace(imu, sequence=lambda *t: tuple(x[:, 1:] for x in imu.sequence(*t)))
    with pytest.raises(FusedgeError, match=r"part imu, .* gives embedding \[1, 49, 8\]"):
        stream_cases(TinyModel(), (short, *parts[1:]), MODALITIES)


class _Whole(TinyModel):
    """Has a forward of its own; `extra` is added between the encoders and the head."""

    extra = 0.0
    columns = slice(None)

    def forward(
        self,
        windows: dict[str, torch.Tensor],
        valid: dict[str, torch.Tensor],
        presence: torch.Tensor,
        age: torch.Tensor,
    ) -> torch.Tensor:
        embeddings = []
        for name in self.modalities:
            encoder = self.encoders[name]
            window, mask = (given[name].flatten(1, 2) for given in (windows, valid))
            states = [window.new_zeros(len(window), *s) for s in encoder.state_shapes().values()]
            embeddings.append(encoder(window, mask, *states)[0] + self.extra)
        steps = [
            self.head(*(e[:, i] for e in embeddings), presence[:, i], age[:, i])
            for i in range(presence.shape[1])
        ]
        return torch.stack(steps, dim=1)[..., self.columns]


def test_the_parts_together_equal_the_models_own_forward() -> None:
    model = _Whole()
    parts = split(model, MODALITIES, 1.0)
    together = [c for c in stream_cases(model, parts, MODALITIES) if len(c.expected) > 1]
    assert len(together) == len(BATCHES) + 1
    model.extra = 0.01
    with pytest.raises(FusedgeError, match=r"^the whole model, case batch 1, .*other logits"):
        stream_cases(model, parts, MODALITIES)
    model.columns = slice(2)
    with pytest.raises(FusedgeError, match=r"gives \[\[1, 50, 2\]\], its parts .*\[\[1, 50, 3\]\]"):
        stream_cases(model, parts, MODALITIES)


def test_the_same_model_is_judged_on_the_same_inputs(
    parts: tuple[ModulePart, ...], cases: dict[str, list[Case]]
) -> None:
    again = part_cases(parts, MODALITIES)
    for name, wanted in cases.items():
        for a, b in zip(wanted, again[name], strict=True):
            assert a.name == b.name
            assert all(np.array_equal(a.feeds[key], b.feeds[key]) for key in a.feeds)


def test_the_state_of_the_second_step_is_the_one_that_the_first_left(
    cases: dict[str, list[Case]],
) -> None:
    first, second = cases["imu"][0], cases["imu"][1]
    assert not first.feeds["state_in.hidden"].any()
    assert np.array_equal(second.feeds["state_in.hidden"], first.expected[2])
    assert second.feeds["state_in.hidden"].shape == (1, HIDDEN)


class _Remembering(TinyHead):
    """A head with a state: a running sum of the ages."""

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"sum": (3,)}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        *inputs, total = tensors
        totals = total[:, None] + torch.cumsum(inputs[-1], dim=1)
        steps = [
            super(_Remembering, self).forward(*(t[:, i] for t in inputs))
            for i in range(totals.shape[1])
        ]
        return torch.stack(steps, dim=1) + 0.01 * totals, totals[:, -1]


def test_a_head_with_memory_is_judged_over_two_steps_and_over_sequences() -> None:
    model = TinyModel()
    model.head = _Remembering(len(MODALITIES), 3).eval()
    parts = split(model, MODALITIES, 1.0)
    head = {case.name: case for case in part_cases(parts, MODALITIES)["head"]}
    state = parts[-1].state[0]
    first, second = (head[f"batch 2, typical input, present: imu, step {step}"] for step in (1, 2))
    assert not first.feeds[state.input].any()
    assert np.array_equal(second.feeds[state.input], first.expected[1])
    assert second.feeds[state.input].any()
    assert stream_cases(model, parts, MODALITIES)


def _plain(module: nn.Module) -> ModulePart:
    """Token ids, a mask of them and numbers, with a free dim."""
    return ModulePart(
        name="model",
        kind="model",
        modality=None,
        rate_hz=None,
        module=module,
        inputs=(
            TensorSpec(name="ids", role="input", dtype="int64", shape=("batch", "tokens")),
            TensorSpec(name="mask", role="input", dtype="bool", shape=("batch", "tokens")),
            TensorSpec(name="level", role="input", dtype="float32", shape=("batch", 3)),
        ),
        outputs=(TensorSpec(name="output", role="output", dtype="float32", shape=("batch", 4)),),
        dims={
            "batch": DimRange(least=1, usual=4, greatest=8),
            "tokens": DimRange(least=1, usual=6, greatest=20),
        },
    )


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.level = nn.Linear(3, 4)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        kept = self.embedding(ids) * mask[..., None]
        return (kept.sum(1) + self.level(level),)


EXAMPLE = {
    "ids": np.array([[3, 4, 5, 9, 2, 3]]),
    "mask": np.array([[True, True, True, True, False, False]]),
    "level": np.array([[0.5, -2.0, 1.0]], np.float32),
}


def test_a_plain_model_is_judged_on_its_example_and_its_edges() -> None:
    cases = {case.name: case for case in plain_cases(_plain(_Tokens()), EXAMPLE)}
    assert len(cases) == len(BATCHES) * 5 + 2 + 2
    assert len(cases["batch 8, tokens 6, example input"].feeds["ids"]) == 8
    example = cases["batch 1, tokens 6, example input"].feeds
    assert all(np.array_equal(example[name], EXAMPLE[name]) for name in EXAMPLE)
    rows = cases["batch 7, tokens 6, example input"].feeds
    assert rows["ids"][1].tolist() == [3, 3, 4, 5, 9, 2]
    assert rows["level"][1].tolist() == pytest.approx([0.45, -1.8, 0.9])
    assert cases["batch 2, tokens 20, example input"].feeds["ids"].shape == (2, 20)
    assert cases["batch 2, tokens 1, example input"].feeds["mask"].shape == (2, 1)
    large = cases["batch 2, tokens 6, large input"]
    assert large.feeds["level"][0].tolist() == [5.0, -20.0, 10.0]
    assert not large.within_limits
    for case in cases.values():
        ids = case.feeds["ids"]
        assert ids.dtype == np.int64
        assert 2 <= ids.min() <= ids.max() <= 9
        assert case.expected[0].shape == (len(ids), 4)
    assert not cases["batch 1, tokens 6, zero input"].feeds["level"].any()
    denormal = cases["batch 1, tokens 6, denormal input"].feeds["level"]
    assert (denormal > 0).all()
    assert (denormal < 1e-38).all()


def test_an_edge_that_the_model_cannot_take_is_left_out_but_not_the_example() -> None:
    class Divides(_Tokens):
        def forward(
            self, ids: torch.Tensor, mask: torch.Tensor, level: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            (output,) = super().forward(ids, mask, level)
            return (output / level.norm(dim=1, keepdim=True),)

    part = _plain(Divides())
    names = {case.name for case in plain_cases(part, EXAMPLE)}
    assert not any("zero" in name for name in names)
    assert "batch 1, tokens 6, large input" in names
    broken = {**EXAMPLE, "level": np.array([[0.5, np.nan, 1.0]], np.float32)}
    with pytest.raises(
        FusedgeError, match=r"^part model, input level: the example has NaN in 1 of 3 values"
    ):
        plain_cases(part, broken)
    silent = {**EXAMPLE, "level": np.zeros((1, 3), np.float32)}
    with pytest.raises(FusedgeError, match=r"part model, case batch 1, tokens 6, example input"):
        plain_cases(part, silent)


class _Cancelling(nn.Module):
    """What is left of a constant after its mean is taken off is rounding alone, made large here."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest = x - x.mean(dim=-1, keepdim=True)
        return rest / (rest.square().mean(dim=-1, keepdim=True) + 1e-16).sqrt()


def test_an_edge_on_which_the_module_is_off_its_own_float64_is_left_out() -> None:
    example = {"x": np.random.default_rng(0).normal(0.1, 1, (3, 1001)).astype(np.float32)}
    cases = plain_cases(plain_part(_Cancelling().eval(), example), example)
    kinds = {case.name.split(", ")[-1] for case in cases}
    assert "constant input" not in kinds
    assert {"example input", "large input"} <= kinds


def test_an_output_that_would_need_a_gradient_is_taken() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(x), 3)

    example = {"x": np.ones((2, 3), np.float32)}
    cases = plain_cases(plain_part(Constant().eval(), example), example)
    assert all((case.expected[0] == 1).all() for case in cases)
