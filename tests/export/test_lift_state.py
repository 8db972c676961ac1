"""The memory of ordinary layers becomes states: N steps in ONNX Runtime equal one sequence in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import open_session
from fusedge.bundle.manifest import Modality
from fusedge.export.part import ModulePart
from fusedge.export.split import split
from fusedge.export.trace import trace
from fusedge.models.streaming import CausalAttention, CausalConv1d
from tests.export.tiny_fusion import modality

GRID, CHANNELS, SIZE, STEPS = 4, 3, 6, 7
SERIES = modality("imu", {"ax": 2.0, "ay": 2.0, "yaw": 1.0}, float(GRID))


class OneModality(nn.Module):
    """An encoder, with a head that needs no attention."""

    modalities = ("imu",)

    def __init__(self, encoder: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.only, self.head = encoder, head or Head()
        self.eval()

    def encoder(self, name: str) -> nn.Module:
        return self.only


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(SIZE + 2, 2)

    def forward(self, embedding: Tensor, presence: Tensor, age: Tensor) -> Tensor:
        return self.out(torch.cat([embedding, presence, age], dim=-1))


def parts_of(
    encoder: nn.Module, head: nn.Module | None = None, spec: Modality = SERIES
) -> tuple[ModulePart, ...]:
    return split(OneModality(encoder, head), [spec], 1.0)


class Over(nn.Module):
    """A sequence layer over the samples of the windows, and one embedding at the end of each window."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.out = nn.LazyLinear(SIZE)

    def layers(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name != "out":
                y = layer(x)
                x = y[0] if isinstance(y, tuple) else y
        return x

    def forward(self, window: Tensor) -> Tensor:
        return torch.tanh(self.out(self.layers(window)[:, GRID - 1 :: GRID]))


class TimeFirst(Over):
    def layers(self, x: Tensor) -> Tensor:
        return super().layers(x.transpose(0, 1)).transpose(0, 1)


class ChannelsFirst(Over):
    def layers(self, x: Tensor) -> Tensor:
        return super().layers(x.transpose(1, 2)).transpose(1, 2)


class LearnedStart(Over):
    """Recurrent layers that begin with parameters."""

    def __init__(self) -> None:
        super().__init__(
            gru=nn.GRU(CHANNELS, 5, 2, batch_first=True), lstm=nn.LSTM(5, 4, batch_first=True)
        )
        self.first = nn.Parameter(torch.randn(2, 1, 5))
        self.cell = nn.Parameter(torch.randn(1, 1, 4))

    def layers(self, x: Tensor) -> Tensor:
        x, _ = self.gru(x, self.first.expand(-1, x.shape[0], -1))
        cell = self.cell.expand(-1, x.shape[0], -1)
        return self.lstm(x, (torch.zeros_like(cell), cell))[0]


class PadsByFunction(Over):
    """The usual causal convolution, twice in one module, and a shift by one step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(CHANNELS, 4, 3), nn.Conv1d(4, 4, 2, dilation=5)

    def layers(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv1(functional.pad(x.transpose(1, 2), (2, 0))))
        y = self.conv2(functional.pad(y, pad=(5, 0), value=0.5)).transpose(1, 2)
        return y + functional.pad(y, (0, 0, 1, -1))


class Images(Over):
    """Pads two dims at once, of which one is time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (6, 3))

    def layers(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x[:, None], (1, 1, 5, 0))).transpose(1, 2).flatten(2)


class TwiceInOnePass(Over):
    """One layer with two memories: each call has its own sequence."""

    def __init__(self) -> None:
        super().__init__(gru=nn.GRU(CHANNELS, 4, batch_first=True))

    def layers(self, x: Tensor) -> Tensor:
        return self.gru(x)[0] + self.gru(-2 * x)[0]


class LastStates(Over):
    """Takes the last hidden states in place of the outputs, over the one window that it gets."""

    def __init__(self) -> None:
        super().__init__(lstm=nn.LSTM(CHANNELS, 5, 2, bias=False, batch_first=True, proj_size=4))

    def forward(self, window: Tensor) -> Tensor:
        y, (h, _) = self.lstm(window)
        ends = y[:, GRID - 1 :: GRID]
        if window.shape[1] == GRID:  # must agree with the outputs then
            ends = ends + h[-1][:, None] - y[:, -1:]
        return self.out(ends)


ENCODERS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = {
    "deep gru, time first": (lambda: TimeFirst(gru=nn.GRU(CHANNELS, 5, 3)), {"gru": (3, 5)}),
    "lstm and rnn": (
        lambda: Over(
            lstm=nn.LSTM(CHANNELS, 5, 2, batch_first=True),
            a=nn.RNN(5, 5, 2, batch_first=True),
            b=nn.RNN(5, 4, nonlinearity="relu", batch_first=True),
        ),
        {"lstm.h": (2, 5), "lstm.c": (2, 5), "a": (2, 5), "b": (1, 4)},
    ),
    "last states, projected": (LastStates, {"lstm.h": (2, 5), "lstm.c": (2, 5)}),
    "learned start": (LearnedStart, {"gru": (2, 5), "lstm.h": (1, 4), "lstm.c": (1, 4)}),
    "pad modules": (
        lambda: ChannelsFirst(
            conv=nn.Sequential(
                nn.ZeroPad1d((2, 0)),
                nn.Conv1d(CHANNELS, 4, 3),
                nn.ReLU(),
                nn.ConstantPad1d((4, 0), 1.5),
                nn.Conv1d(4, 4, 3, dilation=2),
            )
        ),
        {"conv.0": (CHANNELS, 2), "conv.3": (4, 4)},
    ),
    "pads by function": (PadsByFunction, {"pad": (3, 2), "pad.2": (4, 5), "pad.3": (1, 4)}),
    "two dims padded": (Images, {"pad": (1, 5, 5)}),
    "causal convolutions": (
        lambda: Over(a=CausalConv1d(CHANNELS, 4, 3, dilation=2), b=CausalConv1d(4, 5, 4)),
        {"a": (CHANNELS, 4), "b": (4, 3)},
    ),
    "bounded attention": (
        lambda: Over(attention=nn.Sequential(nn.Linear(CHANNELS, 8), CausalAttention(8, 2, 9))),
        {"attention.1": (9, 17)},
    ),
    "a layer twice": (TwiceInOnePass, {"gru": (1, 4), "gru.2": (1, 4)}),
}


def run_steps(
    part: ModulePart, session: Any, inputs: list[np.ndarray], resets: tuple[int, ...] = ()
) -> list[np.ndarray]:
    """The outputs `[B, N, ...]` of single steps in ONNX Runtime, each state fed back."""
    names = [spec.name for spec in part.inputs if spec.role != "state_in"]
    states = first = part.initial_state(len(inputs[0]))
    steps = []
    for step in range(inputs[0].shape[1]):
        if step in resets:
            states = first
        feeds = {name: array[:, step] for name, array in zip(names, inputs, strict=True)}
        values = session.run([s.name for s in part.outputs], {**feeds, **states})
        outputs = dict(zip([s.name for s in part.outputs], values, strict=True))
        states = {pair.input: outputs.pop(pair.output) for pair in part.state}
        steps.append(list(outputs.values()))
    return [np.stack(arrays, axis=1) for arrays in zip(*steps, strict=True)]


def randoms(part: ModulePart, batch: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [
        np.ones((batch, STEPS, *spec.shape[1:]), np.float32)
        if spec.role == "valid"
        else random.normal(size=(batch, STEPS, *spec.shape[1:])).astype(np.float32)
        for spec in part.inputs
        if spec.role != "state_in"
    ]


def whole(part: ModulePart, inputs: list[np.ndarray]) -> list[np.ndarray]:
    assert part.sequence is not None
    with torch.no_grad():
        return [o.numpy() for o in part.sequence(*(torch.from_numpy(a) for a in inputs))]


@pytest.mark.parametrize("kind", ENCODERS)
def test_single_steps_equal_one_sequence(kind: str) -> None:
    make, shapes = ENCODERS[kind]
    torch.manual_seed(0)
    encoder = make()
    encoder(torch.zeros(1, GRID, CHANNELS))
    part = parts_of(encoder)[0]
    assert {spec.name: spec.shape[1:] for spec in part.inputs if spec.role == "state_in"} == {
        f"state_in.{name}": shape for name, shape in shapes.items()
    }
    session = open_session(trace(part).SerializeToString(), "fp32")
    inputs = randoms(part, 3)
    (expected,) = whole(part, inputs)
    assert expected.shape == (3, STEPS, SIZE) and np.ptp(expected, axis=1).min() > 1e-4
    (got,) = run_steps(part, session, inputs)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    (alone,) = run_steps(part, session, [array[1:2] for array in inputs])
    np.testing.assert_allclose(alone, expected[1:2], atol=2e-6)
    # After a reset the rest is as if it were the first.
    (again,) = run_steps(part, session, inputs, resets=(4,))
    (rest,) = whole(part, [array[:, 4:] for array in inputs])
    np.testing.assert_allclose(again[:, 4:], rest, atol=2e-6)
    assert np.abs(again[:, 4:] - expected[:, 4:]).max() > 1e-4


class Recurrent(Over):
    def __init__(self) -> None:
        super().__init__(gru=nn.GRU(CHANNELS, 5, batch_first=True))


class StartsFromInput(Recurrent):
    def layers(self, x: Tensor) -> Tensor:
        first = x.mean(dim=(1, 2)).expand(1, 5, -1).transpose(1, 2)
        return self.gru(x, first.contiguous())[0]


class Packed(Recurrent):
    def layers(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]


class Loop(Over):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(CHANNELS, 5)

    def layers(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        steps = []
        for step in x.unbind(1):
            h = self.cell(step, h)
            steps.append(h)
        return torch.stack(steps, dim=1)


class RowsTogether(Recurrent):
    """One stream's samples after the other's, as one sequence."""

    def layers(self, x: Tensor) -> Tensor:
        return self.gru(x.flatten(0, 1)[None])[0].view(len(x), -1, 5)


class BothStreams(Recurrent):
    """Two rows for each element of the batch."""

    def layers(self, x: Tensor) -> Tensor:
        return self.gru(torch.cat([x, -x]))[0][: len(x)]


class Cuts(Over):
    def forward(self, window: Tensor) -> Tensor:
        return self.out(functional.pad(window, (0, 0, -1, 0))[:, ::GRID])


class BytesPadded(Over):
    def layers(self, x: Tensor) -> Tensor:
        return functional.pad(x.int(), (0, 0, 1, 0))[:, 1:].float()


def attention(**options: bool) -> nn.Module:
    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x)[0]

    return Attention(CHANNELS, 1, batch_first=True, **options)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            Over(gru=nn.GRU(CHANNELS, 5, batch_first=True, bidirectional=True)),
            "part imu: gru is bidirectional, so it looks ahead",
        ),
        (Over(gru=nn.GRU(CHANNELS, 5)), r"part imu: gru runs over the batch .* \(batch_first=True"),
        (RowsTogether(), "part imu: gru runs over the batch"),
        (BothStreams(), r"part imu: gru runs over time with shapes \[4, 4, 3\] for a batch of 2"),
        (StartsFromInput(), "part imu: gru has an initial state that depends on the input"),
        (Packed(), "part imu: gru runs over packed sequences"),
        (Loop(), "part imu: cell is called differently often .*a loop over time cannot be lifted"),
        (
            ChannelsFirst(a=nn.Identity(), conv=nn.Conv1d(CHANNELS, 5, 3, padding=1)),
            "part imu: conv pads both ends of time",
        ),
        (
            ChannelsFirst(conv=nn.Conv1d(CHANNELS, 5, 3, padding="same")),
            "part imu: conv pads both ends of time",
        ),
        (ChannelsFirst(pad=nn.ZeroPad1d((1, 1))), "part imu: pad pads the end of time"),
        (ChannelsFirst(pad=nn.ReplicationPad1d((2, 0))), "part imu: pad pads time by replicate"),
        (Cuts(), "part imu: pad cuts off a part of time"),
        (BytesPadded(), "part imu: pad pads values of torch.int32"),
        (Over(a=nn.Sequential(attention())), "part imu: a.0 attends to all of time"),
    ],
)
def test_memory_that_cannot_be_lifted_is_refused_by_name(encoder: nn.Module, message: str) -> None:
    with pytest.raises(FusedgeError, match=message):
        parts_of(encoder)


class Windowed(nn.Module):
    """Everything that looks ahead, but only inside of one window."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, 4, 3, padding=1)
        self.gru = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.mix = attention()
        self.out = nn.Linear(6, SIZE)

    def forward(self, window: Tensor) -> Tensor:
        y = self.conv(self.mix(window).transpose(1, 2)).transpose(1, 2)
        return self.out(self.gru(y)[0][:, -1])


class WindowedInARow(Windowed):
    def forward(self, window: Tensor) -> Tensor:
        windows = window.reshape(-1, GRID, CHANNELS)
        return super().forward(windows).reshape(window.shape[0], -1, SIZE)


@pytest.mark.parametrize("encoder", [Windowed(), WindowedInARow()])
def test_what_starts_anew_with_each_window_has_no_state(encoder: nn.Module) -> None:
    part = parts_of(encoder)[0]
    assert not part.state
    inputs = randoms(part, 2)
    (got,) = run_steps(part, open_session(trace(part).SerializeToString(), "fp32"), inputs)
    np.testing.assert_allclose(got, whole(part, inputs)[0], atol=2e-6)


class RecurrentHead(nn.Module):
    """Remembers earlier decisions, from a learned start."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIZE + 2, 4, batch_first=True)
        self.first = nn.Parameter(torch.ones(1, 1, 4))
        self.style, self.event = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, embedding: Tensor, presence: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([embedding * presence, presence, age], dim=-1)
        y, _ = self.gru(x, self.first.repeat(1, x.shape[0], 1))
        return self.style(y), self.event(y)


class NamedStates(nn.Module):
    """The same memory, but named by the head itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIZE + 2, 4, batch_first=True)
        self.style, self.event = nn.Linear(4, 3), nn.Linear(4, 2)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"gru": (1, 4)}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *inputs, state = tensors
        y, last = self.gru(torch.cat(inputs, dim=-1), state.transpose(0, 1).contiguous())
        return self.style(y), self.event(y), last.transpose(0, 1)


@pytest.mark.parametrize("head", [RecurrentHead(), NamedStates()])
def test_a_head_may_remember(head: nn.Module) -> None:
    model = OneModality(Windowed(), head)
    part = split(model, [SERIES], 1.0, ["style", "event"])[-1]
    assert [(s.name, s.shape) for s in part.outputs] == [
        ("style", ("batch", 3)),
        ("event", ("batch", 2)),
        ("state_out.gru", ("batch", 1, 4)),
    ]
    start = part.initial_state(2)["state_in.gru"]
    assert start.shape == (2, 1, 4) and (start == float(isinstance(head, RecurrentHead))).all()
    inputs = randoms(part, 3)
    session = open_session(trace(part).SerializeToString(), "fp32")
    for got, expected in zip(run_steps(part, session, inputs), whole(part, inputs), strict=True):
        assert expected.shape[:2] == (3, STEPS)
        np.testing.assert_allclose(got, expected, atol=2e-6)


class OverTokens(nn.Module):
    """A recurrent layer that runs over modalities, not over time."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIZE, 4, batch_first=True)
        self.out = nn.Linear(5, 2)

    def forward(self, embedding: Tensor, presence: Tensor, age: Tensor) -> Tensor:
        tokens = torch.stack([embedding, -embedding], dim=1)
        return self.out(torch.cat([self.gru(tokens)[0][:, -1], presence - age], dim=-1))


def test_a_head_that_runs_over_modalities_has_no_state() -> None:
    head = parts_of(Windowed(), OverTokens())[-1]
    assert not head.state
    assert [o.shape for o in whole(head, randoms(head, 2))] == [(2, STEPS, 2)]


def test_memory_needs_windows_that_follow_one_another() -> None:
    overlapping = SERIES.model_copy(update={"hop_s": 0.5})
    with pytest.raises(
        FusedgeError, match=r"memory \(gru\), but its windows of 1 s come every 0.5 s"
    ):
        parts_of(Recurrent(), spec=overlapping)
    part = parts_of(WindowedInARow(), spec=overlapping)[0]
    assert whole(part, randoms(part, 2))[0].shape == (2, STEPS, SIZE)


def test_a_module_that_remembers_is_not_changed() -> None:
    encoder = Recurrent()
    encoder(torch.zeros(1, GRID, CHANNELS))
    before = [(name, list(m._forward_hooks)) for name, m in encoder.named_modules()]
    parts_of(encoder)
    assert [(name, list(m._forward_hooks)) for name, m in encoder.named_modules()] == before


def test_states_are_named_in_the_manifests_alphabet() -> None:
    name = "a layer (of many)/" + "x" * 80
    part = parts_of(Over(**{name: nn.GRU(CHANNELS, 5, batch_first=True)}))[0]
    assert part.inputs[-1].name == "state_in." + "x" * 60


def test_attention_sees_only_its_past() -> None:
    torch.manual_seed(0)
    layer = CausalAttention(4, 2, past=3).eval()
    x = torch.randn(1, 10, 4)
    with torch.no_grad():
        before = layer(x)
        changed = x.clone()
        changed[:, 4] += 1
        moved = (layer(changed) - before).abs().amax(dim=-1)[0] > 1e-6
        alone = layer(x[:, :1])
    assert moved.tolist() == [4 <= step <= 7 for step in range(10)]
    # The first step has nothing but itself to attend to.
    torch.testing.assert_close(alone, layer.out(layer.key_value(x[:, :1])[..., 4:]))


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="5 channels do not divide into 2 heads"):
        CausalAttention(5, 2, past=3)
