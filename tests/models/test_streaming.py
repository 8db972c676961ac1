"""N steps equal one sequence, for every layer with memory and for whole encoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusedge.models.driving import model_config
from fusedge.models.encoders import EncoderConfig, SeriesEncoder, Term
from fusedge.models.streaming import History, RollingMean


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rolling_mean_in_steps_equals_one_sequence() -> None:
    layer, x = RollingMean(3, 6), noise(2, 20, 3)
    state = torch.zeros(2, *layer.state_shape)
    whole, end = layer(x, state)
    steps = []
    for n in range(20):
        y, state = layer(x[:, n : n + 1], state)
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(state, end)


def test_history_keeps_the_last_inputs() -> None:
    x = noise(1, 9, 3)
    joined, state = History(3, 4)(x, torch.zeros(1, 4, 3))
    assert joined.shape == (1, 13, 3)
    torch.testing.assert_close(state, x[:, -4:])


def test_rolling_mean_forgets_what_is_older_than_its_length() -> None:
    x = torch.zeros(1, 10, 3)
    x[:, 0] = 6.0
    mean, _ = RollingMean(3, 6)(x, torch.zeros(1, 5, 3))
    assert mean[0, :, 0].tolist() == [1.0] * 6 + [0.0] * 4


def small_encoder() -> SeriesEncoder:
    torch.manual_seed(3)
    terms = (
        Term("value", (0,)),
        Term("difference", (0,), 7),
        Term("angle_difference", (1,), 3),
        Term("magnitude", (0, 1)),
        Term("product", (0, 1)),
    )
    return SeriesEncoder(EncoderConfig(2, 5, terms, 4, 6, 8, 3))


def encoders() -> list[tuple[str, SeriesEncoder]]:
    config = model_config()
    return [("small", small_encoder())] + [
        (name, SeriesEncoder(encoder)) for name, encoder in config.encoders.items()
    ]


@pytest.mark.parametrize(("name", "encoder"), encoders())
def test_encoder_steps_equal_one_sequence_with_gaps(name: str, encoder: SeriesEncoder) -> None:
    hop, channels, steps = encoder.config.hop, encoder.config.channels, 90
    valid = (noise(2, steps * hop, channels, seed=1) > -0.5).float()
    valid[:, 20 * hop : 40 * hop] = 0
    window = noise(2, steps * hop, channels) * valid
    with torch.no_grad():
        whole, *end = encoder(window, valid, *encoder.zero_states(2))
        states: tuple[Tensor, ...] = encoder.zero_states(2)
        for n in range(steps):
            span = slice(n * hop, (n + 1) * hop)
            embedding, *rest = encoder(window[:, span], valid[:, span], *states)
            states = tuple(rest)
            torch.testing.assert_close(embedding, whole[:, n : n + 1], atol=1e-5, rtol=0)
    for state, expected in zip(states, end, strict=True):
        torch.testing.assert_close(state, expected, atol=1e-6, rtol=0)


def test_states_have_the_declared_shapes_and_are_never_empty() -> None:
    for _, encoder in encoders():
        hop, channels = encoder.config.hop, encoder.config.channels
        zeros = torch.zeros(3, hop, channels)
        _, *states = encoder(zeros, zeros, *encoder.zero_states(3))
        shapes = [tuple(state.shape[1:]) for state in states]
        assert shapes == list(encoder.state_shapes().values())
        assert all(size >= 1 for shape in shapes for size in shape)


def test_nothing_measured_always_gives_the_same_embedding_and_leaves_no_trace() -> None:
    encoder = small_encoder()
    zeros = torch.zeros(1, 50, 2)
    embedding, *states = encoder(zeros, zeros, *encoder.zero_states(1))
    assert torch.equal(embedding, embedding[:, :1].expand_as(embedding))
    assert not any(state.any() for state in states)


def test_an_angle_that_wraps_is_no_step() -> None:
    encoder = small_encoder()
    angle = torch.linspace(0, 12, 200)
    wrapped = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
    valid = torch.ones(1, 200, 2)
    outputs = []
    for course in (angle, wrapped):
        window = torch.stack([torch.zeros(200), course], -1)[None]
        terms, *_ = encoder.extractor._terms(window, valid, encoder.zero_states(1)[0])
        outputs.append(terms[..., 2])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)


def test_calibration_spreads_the_edges_over_the_data() -> None:
    encoder = small_encoder()
    window = 10 + 3 * noise(1000, 2)
    encoder.extractor.calibrate([(window, torch.ones_like(window))])
    edges = encoder.extractor.edges[0]
    assert (edges.diff() > 0).all()
    expected = window[:, 0].quantile(torch.tensor([0.03, 0.97]))
    torch.testing.assert_close(edges[[0, -1]], expected, atol=1e-3, rtol=0)
    features, *_ = encoder.extractor(
        window[None], torch.ones(1, 1000, 2), *encoder.zero_states(1)[:2]
    )
    assert features[:, 20:].mean().abs() < 0.2
