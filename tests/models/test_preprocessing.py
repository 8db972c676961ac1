"""Preprocessing modules do what they say, and streams equal sequences."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedge.bundle.errors import FusedgeError
from fusedge.models.log_mel import LogMel, LogMelConfig, StreamingLogMel
from fusedge.models.preprocessing import ImageInput, Normalise
from fusedge.models.rolling import STATISTICS, RollingStatistics
from tests.models import log_mel_reference

REFERENCE = json.loads(log_mel_reference.FILE.read_text())
SOUND = LogMelConfig(sample_rate_hz=16000, n_mels=40, n_fft=512, win_length=400, hop_length=160)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- images


def test_an_image_is_normalised_by_channel() -> None:
    frames = torch.randint(0, 256, (2, 3, 5, 7, 3), dtype=torch.uint8)
    wanted = (frames.double() / 255 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    got = ImageInput(*IMAGENET)(frames)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted.permute(0, 1, 4, 2, 3), atol=1e-6, rtol=0)


def test_bgr_takes_the_colours_of_rgb_frames_from_the_other_end() -> None:
    frames = torch.randint(0, 256, (1, 1, 4, 4, 3), dtype=torch.uint8)
    # The mean is in the network's order: blue first.
    got = ImageInput((10.0, 20.0, 30.0), (1.0, 1.0, 1.0), scale=1.0, order="bgr")(frames)
    assert torch.equal(got[0, 0, 0], frames[0, 0, ..., 2] - 10.0)
    assert torch.equal(got[0, 0, 2], frames[0, 0, ..., 0] - 30.0)


def test_grey_images_have_one_channel() -> None:
    white = torch.full((1, 1, 2, 2, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(ImageInput((0.5,), (0.5,))(white), torch.ones(1, 1, 1, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (((0.5, 0.5), (1.0,)), "2 means for 1 deviations"),
        (((0.5,), (0.0,)), "above 0"),
        (((float("nan"),), (1.0,)), "finite"),
        (((), ()), "0 means"),
    ],
)
def test_constants_that_do_not_fit_are_refused(arguments: Any, reason: str) -> None:
    for module in (ImageInput, Normalise):
        with pytest.raises(FusedgeError, match=reason):
            module(*arguments)


def test_bgr_needs_three_channels() -> None:
    with pytest.raises(FusedgeError, match="bgr has 3 channels, not 1"):
        ImageInput((0.5,), (0.5,), order="bgr")


# --- sensors


def test_a_large_offset_does_not_cost_precision() -> None:
    pressure_pa = 101_325 + torch.arange(-8, 9).float().reshape(1, -1, 1)
    got = Normalise((101_325.0,), (10.0,))(pressure_pa, torch.ones_like(pressure_pa))
    assert got.flatten().tolist() == pytest.approx([n / 10 for n in range(-8, 9)], abs=1e-7)


def test_what_is_not_valid_becomes_the_mean_and_what_is_far_the_limit() -> None:
    x = torch.tensor([[[torch.nan], [torch.inf], [-1e30], [5.0], [1e30]]])
    valid = torch.tensor([[[0.0], [0.0], [1.0], [1.0], [1.0]]])
    assert Normalise((3.0,), (2.0,), limit=4.0)(x, valid).flatten().tolist() == [0, 0, -4, 1, 4]


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(FusedgeError, match="limit must be above 0"):
        Normalise((0.0,), (1.0,), limit=0.0)


# --- log-mel


@pytest.mark.parametrize("package", ["torchaudio", "librosa"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("title", log_mel_reference.CONFIGS)
def test_log_mel_is_that_of_torchaudio_and_librosa(title: str, center: bool, package: str) -> None:
    config = LogMelConfig(
        sample_rate_hz=log_mel_reference.RATE_HZ, **log_mel_reference.CONFIGS[title]
    )
    got = LogMel(config, center)(torch.from_numpy(log_mel_reference.signal())[None])[0]
    wanted = REFERENCE[package][f"{title}, {'centred' if center else 'inside'}"]
    # Their float64 against our float32, on bands down to 100 dB below the loudest: up to 0.006 dB. Both
    # of them differ by 0.004 dB from each other.
    tolerance = {"ln": 0.003, "log10": 0.001, "db": 0.01}[config.log]
    np.testing.assert_allclose(got.numpy(), wanted, atol=tolerance, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    n_fft=st.integers(16, 600),
    shorter=st.integers(0, 15),
    hop=st.integers(1, 300),
    length=st.integers(601, 1500),
    center=st.booleans(),
)
def test_power_is_that_of_torch_stft(
    n_fft: int, shorter: int, hop: int, length: int, center: bool
) -> None:
    config = LogMelConfig(
        sample_rate_hz=16000,
        n_mels=4,
        n_fft=n_fft,
        win_length=n_fft - shorter,
        hop_length=hop,
        log="db",
    )
    wave = noise(2, length, seed=length)
    layer = LogMel(config, center)
    spectrum = torch.stft(
        wave.double(),
        n_fft,
        hop,
        n_fft - shorter,
        torch.hann_window(n_fft - shorter, dtype=torch.float64),
        center=center,
        return_complex=True,
    )
    bands = torch.einsum("bft,mf->btm", spectrum.abs() ** 2, _dense_filters(layer, n_fft))
    torch.testing.assert_close(
        layer(wave).double(), 10 * bands.clamp(min=1e-10).log10(), atol=1e-3, rtol=0
    )


def _dense_filters(layer: LogMel, n_fft: int) -> Tensor:
    from fusedge.models.log_mel import mel_filters

    filters = mel_filters(layer.config)
    assert filters.shape == (4, n_fft // 2 + 1)
    return filters


def test_both_shapes_of_sound_are_taken() -> None:
    wave = noise(2, 1600)
    layer = LogMel(SOUND)
    assert layer(wave).shape == (2, 1 + (1600 - 512) // 160, 40)
    assert torch.equal(layer(wave.unsqueeze(-1)), layer(wave))


def test_silence_is_the_floor_and_full_scale_is_finite() -> None:
    layer = LogMel(SOUND)
    assert layer(torch.zeros(1, 1600)).unique().tolist() == pytest.approx([np.log(1e-10)])
    square = torch.ones(1, 1600)
    square[:, ::2] = -1
    assert layer(square).isfinite().all()
    assert layer(torch.full((1, 1600), 1e-42)).isfinite().all()  # denormal


@pytest.mark.parametrize("hops_at_once", [1, 3, 12])
def test_log_mel_in_steps_equals_one_sequence(hops_at_once: int) -> None:
    layer, wave = StreamingLogMel(SOUND), noise(2, 12 * 160, 1)
    start = torch.zeros(2, *layer.state_shape)
    whole, end = layer(wave, start)
    state, steps = start, []
    for block in wave.split(hops_at_once * 160, dim=1):
        features, state = layer(block, state)
        assert features.shape == (2, hops_at_once, 40)
        steps.append(features)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)
    assert torch.equal(state, end)


def test_a_stream_hears_what_a_recording_after_silence_has() -> None:
    config = LogMelConfig(16000, n_mels=40, n_fft=400, win_length=400, hop_length=160)
    layer, wave = StreamingLogMel(config), noise(1, 1600, 1)
    streamed, _ = layer(wave, torch.zeros(1, *layer.state_shape))
    silence = torch.zeros(1, 400 - 160, 1)
    recorded = LogMel(config)(torch.cat([silence, wave], dim=1))
    torch.testing.assert_close(streamed, recorded, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"win_length": 600}, "win_length must be at most n_fft"),
        ({"hop_length": 0}, "sizes must be at least 1"),
        ({"f_max_hz": 9000.0}, "f_max_hz <= sample_rate_hz / 2"),
        ({"f_min_hz": 8000.0}, "f_min_hz < f_max_hz"),
        ({"floor": 0.0}, "floor must be above 0"),
    ],
)
def test_impossible_sound_settings_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FusedgeError, match=reason):
        LogMelConfig(**{**vars(SOUND), **changes})


def test_a_stream_with_holes_between_frames_is_refused() -> None:
    with pytest.raises(FusedgeError, match="hop_length must be at most win_length"):
        StreamingLogMel(LogMelConfig(16000, n_mels=8, n_fft=64, win_length=64, hop_length=65))


def test_too_short_a_sound_to_mirror_is_refused() -> None:
    with pytest.raises(FusedgeError, match="256 samples are too few to mirror 256"):
        LogMel(SOUND, center=True)(torch.zeros(1, 256))


# --- rolling statistics


def in_numpy(x: Tensor, valid: Tensor, length: int, hop: int, rate_hz: float) -> Tensor:
    """The definition, window by window in float64."""
    batch, samples, channels = x.shape
    rows = np.zeros((batch, samples // hop, len(STATISTICS), channels))
    for b, n, c in np.ndindex(batch, samples // hop, channels):
        window = slice(max(0, (n + 1) * hop - length), (n + 1) * hop)
        seen = valid[b, window, c].numpy() > 0
        values = x[b, window, c].double().numpy()[seen]
        times = np.arange(len(seen))[seen] / rate_hz
        if not len(values):
            continue
        slope = np.polyfit(times, values, 1)[0] if len(values) > 1 else 0
        rows[b, n, :, c] = (
            len(values) / length, values.mean(), values.std(), values.min(), values.max(), slope,
        )  # fmt: skip
    return torch.from_numpy(rows).flatten(2)


@pytest.mark.parametrize(("length", "hop"), [(1, 1), (7, 1), (10, 5), (12, 12)])
def test_rolling_statistics_are_those_of_numpy(length: int, hop: int) -> None:
    x, valid = noise(2, 60, 3), (noise(2, 60, 3, seed=1) > 0.3).float()
    valid[1, 20:40] = 0  # longer than any window
    x[valid == 0] = torch.nan
    layer = RollingStatistics(3, length, hop, rate_hz=20.0)
    got, _ = layer(x, valid, torch.zeros(2, *layer.state_shape))
    wanted = in_numpy(x, valid, length, hop, 20.0)
    torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("hops_at_once", [1, 4])
def test_rolling_statistics_in_steps_equal_one_sequence(hops_at_once: int) -> None:
    layer = RollingStatistics(2, 20, 5, rate_hz=50.0)
    x, valid = noise(3, 60, 2), (noise(3, 60, 2, seed=2) > 0).float()
    start = torch.zeros(3, *layer.state_shape)
    whole, end = layer(x, valid, start)
    state, steps = start, []
    for values, mask in zip(
        x.split(5 * hops_at_once, 1), valid.split(5 * hops_at_once, 1), strict=True
    ):
        row, state = layer(values, mask, state)
        steps.append(row)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=0)
    assert torch.equal(state, end)


def test_a_ramp_has_its_slope_a_second_and_a_constant_none_at_any_offset() -> None:
    layer = RollingStatistics(2, 25, 25, rate_hz=10.0)
    seconds = torch.arange(25) / 10.0
    x = torch.stack([3.0 * seconds, torch.full((25,), 101_325.0)], dim=-1)[None]
    rows, _ = layer(x, torch.ones_like(x), torch.zeros(1, *layer.state_shape))
    named = dict(zip(STATISTICS, rows[0, 0].unflatten(0, (6, 2)).tolist(), strict=True))
    assert named["slope"] == pytest.approx([3.0, 0.0], abs=1e-5)
    assert named["deviation"] == pytest.approx(
        [3 * seconds.std(correction=0).item(), 0.0], abs=1e-5
    )
    assert named["coverage"] == [1.0, 1.0]


def test_a_length_must_hold_a_hop() -> None:
    with pytest.raises(FusedgeError, match="a hop of 6 samples does not fit"):
        RollingStatistics(1, 5, 6, rate_hz=1.0)
