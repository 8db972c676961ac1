"""Sound of another rate is the same sound, at the same time."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.capture.resampling import Resampler

soxr = pytest.importorskip("soxr")

RATES = [(48000, 16000), (44100, 16000), (16000, 48000), (8000, 16000), (44100, 22050.5)]


def sine(rate_hz: float, frequency_hz: float, seconds: float, level: float) -> NDArray[np.float32]:
    times_s = np.arange(round(rate_hz * seconds)) / rate_hz
    wave = level * np.sin(2 * np.pi * frequency_hz * times_s)
    return wave.astype(np.float32)[:, None]


def pieces(sound: NDArray[np.float32], seed: int, longest: int) -> list[NDArray[np.float32]]:
    cuts = np.cumsum(np.random.default_rng(seed).integers(0, longest, len(sound)))
    return np.split(sound, cuts[cuts < len(sound)])


def resampled(resampler: Resampler, blocks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([resampler.process(block) for block in blocks])


def strongest_hz(sound: NDArray[np.float32], rate_hz: float) -> tuple[float, float]:
    """Frequency and level of the strongest sine."""
    window = np.hanning(len(sound))
    spectrum = np.abs(np.fft.rfft(sound[:, 0] * window))
    peak = int(np.argmax(spectrum))
    return peak * rate_hz / len(sound), 2 * spectrum[peak] / window.sum()


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), RATES)
def test_a_sine_keeps_its_frequency_and_level(rate_in_hz: float, rate_out_hz: float) -> None:
    blocks = pieces(sine(rate_in_hz, 1000, 3, 0.5), seed=1, longest=2000)
    sound = resampled(Resampler(rate_in_hz, rate_out_hz, 1), blocks)
    assert sound.dtype == np.float32 and sound.shape[1] == 1
    middle = sound[round(rate_out_hz) : round(2 * rate_out_hz)]  # 1 s: whole periods
    frequency_hz, level = strongest_hz(middle, rate_out_hz)
    assert frequency_hz == pytest.approx(1000, abs=1)
    assert level == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), RATES)
@pytest.mark.parametrize("seed", range(4))
def test_a_click_keeps_its_time_to_one_sample_whatever_the_blocks(
    rate_in_hz: float, rate_out_hz: float, seed: int
) -> None:
    sound = np.zeros((round(2 * rate_in_hz), 1), np.float32)
    click_s = 0.7 + 0.1 * seed
    sound[round(click_s * rate_in_hz)] = 1
    resampler = Resampler(rate_in_hz, rate_out_hz, 1)
    received_s, loudest, found_s = 0.0, 0.0, 0.0
    for block in pieces(sound, seed, longest=3000):
        received_s += len(block) / rate_in_hz
        out = resampler.process(block)[:, 0]
        if len(out) and np.abs(out).max() > loudest:
            # Placed as a source does it: the end of `out` lies `lag_s` before the end of the block.
            place = int(np.argmax(np.abs(out)))
            loudest = float(np.abs(out[place]))
            found_s = received_s - resampler.lag_s - (len(out) - place) / rate_out_hz
    assert found_s == pytest.approx(click_s, abs=1 / rate_out_hz)


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), RATES)
def test_an_hour_does_not_drift(rate_in_hz: int, rate_out_hz: float) -> None:
    resampler = Resampler(rate_in_hz, rate_out_hz, 1)
    block = np.zeros((10 * rate_in_hz, 1), np.float32)
    count, lags_s = 0, []
    for _ in range(360):
        count += len(resampler.process(block))
        lags_s.append(resampler.lag_s)
    assert min(lags_s) >= 0 and max(lags_s) < 0.12
    assert count / rate_out_hz == pytest.approx(3600 - lags_s[-1], abs=1e-6)


def test_what_the_new_rate_cannot_carry_is_filtered_out() -> None:
    resampler = Resampler(48000, 16000, 1)
    sound = resampled(resampler, pieces(sine(48000, 10_000, 2, 1.0), seed=3, longest=900))
    settled = sound[1600:-1600]
    assert np.abs(settled).max() < 1e-4  # 80 dB; by decimation it would be a sine of 6 kHz


def test_channels_stay_apart() -> None:
    both = np.concatenate([sine(48000, 1000, 1, 0.5), np.zeros((48000, 1), np.float32)], axis=1)
    sound = resampled(Resampler(48000, 16000, 2), pieces(both, seed=5, longest=900))
    assert np.abs(sound[:, 0]).max() > 0.4
    assert np.abs(sound[:, 1]).max() == 0


def test_a_nan_is_gone_after_the_length_of_the_filter() -> None:
    sound = sine(48000, 1000, 2, 0.5)
    sound[24_000] = np.nan
    out = resampled(Resampler(48000, 16000, 1), pieces(sound, seed=7, longest=900))
    bad = np.flatnonzero(~np.isfinite(out[:, 0]))
    times_s = bad / 16000
    assert len(bad) and times_s.min() > 0.4 and times_s.max() < 0.6


def test_nothing_comes_out_of_nothing() -> None:
    resampler = Resampler(48000, 16000, 2)
    assert resampler.process(np.empty((0, 2), np.float32)).shape == (0, 2)
    assert resampler.lag_s == 0


def test_equal_rates_pass_through_without_soxr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    resampler = Resampler(16000, 16000.0, 1)
    block = sine(16000, 440, 0.01, 1.0)
    assert resampler.process(block) is block
    assert resampler.lag_s == 0
    with pytest.raises(MissingExtraError, match=r"needs the package 'soxr'.*fusedge\[mic\]"):
        Resampler(48000, 16000, 1)


@pytest.mark.parametrize("rate_out_hz", [1e-5, 400, 1e7])
def test_rates_that_are_too_far_apart_are_refused(rate_out_hz: float) -> None:
    with pytest.raises(FusedgeError, match="48000 Hz cannot be resampled to"):
        Resampler(48_000, rate_out_hz, 1)
