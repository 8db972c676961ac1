"""The voice encoder as a stream: chunks, gains, silence, and as a graph."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.takes import FOLDS
from fusedge.models.emotion.voice_encoder import (
    HOP,
    RATE_HZ,
    VoiceClassifier,
    VoiceConfig,
    VoiceEncoder,
    join,
    join_classifiers,
    load_voice,
    voice_bytes,
)
from fusedge.models.emotion.voice_ensemble import EnsembleRecipe
from fusedge.models.fusion_model import parameter_count

HOPS = 24
SMALL = VoiceConfig(channels=(4, 6, 8), width=12, judgements=5, level=6, long=9)


def member(seed: int) -> VoiceEncoder:
    """A small encoder whose norms have seen something."""
    torch.manual_seed(seed)
    encoder = VoiceEncoder(SMALL)
    encoder.train()
    with torch.no_grad():
        for _ in range(3):
            encoder(sound(4), torch.ones(4, HOPS * HOP, 1), *encoder.zero_states(4))
    return encoder.eval()


def sound(batch: int = 2, seed: int = 0) -> Tensor:
    """Bursts of a harmonic tone in faint noise, `[B, HOPS * HOP, 1]`."""
    generator = torch.Generator().manual_seed(seed)
    time_s = torch.arange(HOPS * HOP) / RATE_HZ
    pitch = 100 + 150 * torch.rand(batch, 1, generator=generator)
    tone = sum(torch.sin(2 * torch.pi * n * pitch * time_s) / n for n in range(1, 9))
    bursts = (torch.sin(2 * torch.pi * 1.5 * time_s) > 0).float()
    noise = 1e-3 * torch.randn(batch, HOPS * HOP, generator=generator)
    return (0.1 * tone * bursts + noise).unsqueeze(-1)


def whole(encoder: VoiceEncoder, window: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
    valid = torch.ones_like(window) if valid is None else valid
    with torch.no_grad():
        return encoder(window * valid, valid, *encoder.zero_states(len(window)))


@pytest.fixture(scope="module")
def encoder() -> VoiceEncoder:
    return join([member(1), member(2), member(3)])


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_of_any_number_of_hops_equal_the_whole_with_gaps(
    encoder: VoiceEncoder, chunk: int
) -> None:
    window = sound()
    valid = torch.ones_like(window)
    valid[:, 5 * HOP : 9 * HOP + 100] = 0
    expected, *end = whole(encoder, window, valid)
    states: tuple[Tensor, ...] = encoder.zero_states(2)
    embeddings = []
    for first in range(0, HOPS, chunk):
        span = slice(first * HOP, (first + chunk) * HOP)
        with torch.no_grad():
            embedding, *rest = encoder((window * valid)[:, span], valid[:, span], *states)
        states = tuple(rest)
        embeddings.append(embedding)
    torch.testing.assert_close(torch.cat(embeddings, 1), expected, atol=1e-4, rtol=0)
    for state, last in zip(states, end, strict=True):
        torch.testing.assert_close(state, last, atol=1e-4, rtol=1e-4)


def test_states_have_the_declared_shapes_and_are_never_empty(encoder: VoiceEncoder) -> None:
    embedding, *states = whole(encoder, sound(3))
    assert embedding.shape == (3, HOPS, encoder.config.size)
    shapes = [tuple(state.shape[1:]) for state in states]
    assert shapes == list(encoder.state_shapes().values())
    assert all(size >= 1 for shape in shapes for size in shape)


def test_what_comes_later_changes_nothing_before(encoder: VoiceEncoder) -> None:
    window = sound()
    changed = window.clone()
    changed[:, 12 * HOP :] = torch.randn_like(changed[:, 12 * HOP :])
    before, after = (whole(encoder, x)[0] for x in (window, changed))
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=1e-5, rtol=0)
    assert (before[:, 12] - after[:, 12]).abs().max() > 1e-3


@pytest.mark.parametrize("gain", [0.1, 0.3, 5.0])
def test_the_gain_of_the_microphone_decides_nothing(encoder: VoiceEncoder, gain: float) -> None:
    embedding, louder = (whole(encoder, x)[0] for x in (sound(), gain * sound()))
    other = whole(encoder, sound(seed=1))[0]
    assert (embedding - louder).abs().max() < 0.02 * (embedding - other).abs().max()


@pytest.mark.parametrize(
    "window",
    [
        torch.zeros(1, HOPS * HOP, 1),
        torch.full((1, HOPS * HOP, 1), 1.0),
        torch.sign(torch.sin(torch.arange(HOPS * HOP) / 7)).reshape(1, -1, 1),
        torch.cat([torch.zeros(1, 12 * HOP, 1), torch.ones(1, 12 * HOP, 1)], 1),
    ],
    ids=["silence", "offset", "full scale", "step"],
)
def test_no_sound_gives_a_nan(encoder: VoiceEncoder, window: Tensor) -> None:
    for valid in (torch.ones_like(window), torch.zeros_like(window)):
        outputs = whole(encoder, window, valid)
        assert all(output.isfinite().all() for output in outputs)


def test_long_silence_ends_in_one_embedding_and_is_forgotten(encoder: VoiceEncoder) -> None:
    silence = torch.zeros(1, HOPS * HOP, 1)
    _, *states = whole(encoder, silence)
    with torch.no_grad():
        embedding, *states = encoder(silence, torch.ones_like(silence), *states)
        torch.testing.assert_close(embedding, embedding[:, :1].expand_as(embedding))
        speech = sound(1)
        after, *_ = encoder(speech, torch.ones_like(speech), *states)
    # The level and the moments are full of speech after the longer of their memories.
    fresh = whole(encoder, speech)[0]
    torch.testing.assert_close(after[:, -1], fresh[:, -1], atol=1e-4, rtol=0)


def test_joined_members_stand_side_by_side() -> None:
    members = [member(1), join([member(2), member(3)])]
    expected = torch.cat([whole(m, sound())[0] for m in members], dim=-1)
    torch.testing.assert_close(whole(join(members), sound())[0], expected, atol=1e-5, rtol=0)


def test_the_default_ensemble_has_at_most_two_million_parameters() -> None:
    recipe = EnsembleRecipe()
    config = replace(recipe.config, members=len(FOLDS) + recipe.whole)
    assert parameter_count(VoiceEncoder(config)) <= 2_000_000


@pytest.mark.parametrize("attention", [0.0, -13.0])
def test_onnx_graph_equals_the_module_also_where_it_hardly_attends(
    encoder: VoiceEncoder, attention: float, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    encoder = copy.deepcopy(encoder)
    torch.nn.init.constant_(encoder.attention.bias, attention)
    names = list(encoder.state_shapes())
    window = sound(1)[:, :HOP]
    torch.onnx.export(
        encoder,
        (window, torch.ones_like(window), *encoder.zero_states(1)),
        tmp_path / "voice.onnx",
        input_names=["window", "valid", *names],
        output_names=["embedding", *(f"new_{name}" for name in names)],
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(tmp_path / "voice.onnx", providers=["CPUExecutionProvider"])
    expected = whole(encoder, sound(1))[0].numpy()
    states = [state.numpy() for state in encoder.zero_states(1)]
    for hop in range(HOPS):
        piece = sound(1)[:, hop * HOP : (hop + 1) * HOP].numpy()
        feed = {"window": piece, "valid": np.ones_like(piece)}
        embedding, *states = session.run(None, feed | dict(zip(names, states, strict=True)))
        np.testing.assert_allclose(embedding[:, 0], expected[:, hop], rtol=0, atol=1e-6)


def test_a_file_gives_back_the_classifier_and_its_notes(tmp_path: Path) -> None:
    model = join_classifiers([VoiceClassifier(SMALL).eval() for _ in range(2)])
    path = tmp_path / "voice.safetensors"
    path.write_bytes(voice_bytes(model, {"temperature": "1.2"}))
    loaded, notes = load_voice(path)
    assert (loaded.config, notes) == (model.config, {"temperature": "1.2"})
    embedding = whole(model.encoder, sound())[0]
    assert torch.equal(loaded(whole(loaded.encoder, sound())[0]), model(embedding))


@pytest.mark.parametrize("cut", [0, 7, 500])
def test_a_torn_file_is_refused_in_a_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "voice.safetensors"
    path.write_bytes(voice_bytes(VoiceClassifier(SMALL), {})[:cut])
    with pytest.raises(FusedgeError, match="cannot be read") as caught:
        load_voice(path)
    assert "\n" not in str(caught.value)
