"""Windows for training follow the rules of the runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fusedge.bundle.sample import Recording, Sample, Series
from fusedge.bundle.window import NANOSECONDS, grid_ns, hold, to_ns
from fusedge.models import driving
from fusedge.models.dataset import Drive, make_drive
from fusedge.models.fusion_model import FusionModel
from fusedge.models.prediction import predict
from fusedge.runtime.sample_stream import SampleStream
from tests.models.synthetic import recording

MODALITIES = driving.modalities(gps_latency_s=1.45)


def without(whole: Recording, name: str, start_s: float, end_s: float) -> Recording:
    series = whole.series[name]
    seconds = series.timestamps_ns / NANOSECONDS
    kept = (seconds < start_s) | (seconds >= end_s)
    cut = Series(series.timestamps_ns[kept], series.values[kept])
    return replace(whole, series={**whole.series, name: cut})


def test_every_window_is_the_one_that_the_runtime_would_cut() -> None:
    trip = recording(1, "A", 0)
    drive = make_drive(trip, MODALITIES, driving.LABELS)
    first_ns = min(int(s.timestamps_ns[0]) for s in trip.series.values())
    for modality in MODALITIES:
        track, size = drive.tracks[modality.name], modality.window_samples
        delay_ns = to_ns(modality.latency_s) + to_ns(modality.lateness_s)
        hop_ns = to_ns(modality.hop_s)
        for tick in (10, 55):
            now_ns = first_ns + to_ns(float(drive.ticks[tick]))
            end_ns = (now_ns - delay_ns) // hop_ns * hop_ns
            expected, valid, _ = hold(
                trip.series[modality.name].timestamps_ns - to_ns(modality.latency_s),
                trip.series[modality.name].values,
                grid_ns(end_ns, size, modality.rate_hz),
                to_ns(modality.max_hold_s),
            )
            span = slice(int(track.newest[tick]) * size, (int(track.newest[tick]) + 1) * size)
            np.testing.assert_array_equal(track.window[span], expected)
            np.testing.assert_array_equal(track.valid[span], valid)
            assert np.isclose(track.age[tick], (now_ns - end_ns) / NANOSECONDS)


@pytest.mark.parametrize(("rate_hz", "window_s", "hop_s"), [(30, 1, 0.1), (48_000, 0.025, 0.01)])
def test_windows_of_any_rate_are_those_of_the_runtime(
    rate_hz: float, window_s: float, hop_s: float
) -> None:
    changes = {"rate_hz": rate_hz, "window_s": window_s, "hop_s": hop_s, "min_valid": 0.9}
    changes |= {"max_hold_s": 1.5 / rate_hz, "latency_s": 0.013}
    modality = MODALITIES[0].model_copy(update=changes)
    random = np.random.default_rng(3)
    seconds = np.arange(round(3 * rate_hz)) / rate_hz + 5
    seconds += random.uniform(0, 0.4 / rate_hz, len(seconds))
    stamps = (seconds[random.random(len(seconds)) < 0.95] * NANOSECONDS).astype(np.int64)
    values = random.normal(size=(len(stamps), len(modality.channels))).astype(np.float32)
    trip = replace(recording(0, "A", 0), series={modality.name: Series(stamps, values)})
    drive = make_drive(trip, [modality], driving.LABELS)

    stream, track = SampleStream(modality), drive.tracks[modality.name]
    size, compared = modality.window_samples, 0
    for stamp, data in zip(stamps.tolist(), values, strict=True):
        while stream.due_ns < stamp:
            end_ns, window = stream.next_end_ns, stream.cut()
            assert end_ns is not None
            row = end_ns // stream.hop_ns - first_hop(drive, stamps, stream.hop_ns)
            if row * size >= len(track.window):  # windows after the last tick serve none
                continue
            compared += 1
            span = slice(row * size, (row + 1) * size)
            np.testing.assert_array_equal(track.window[span], window.values[0])
            np.testing.assert_array_equal(track.valid[span], window.valid[0])
        stream.push(Sample(modality.name, stamp, stamp, data))
    assert compared > 10
    assert 0 < track.valid.any(-1).reshape(-1, size).any(-1).sum() < compared  # some were refused


def first_hop(drive: Drive, stamps: NDArray[np.int64], hop_ns: int) -> int:
    """The number of the first window, whose end is `hop_ns` times that; a drive starts a tick early."""
    first_tick_ns = int(stamps[0]) + to_ns(float(drive.ticks[0]))
    return (first_tick_ns - NANOSECONDS) // hop_ns + 1


def test_a_silent_modality_ages_and_then_is_missing() -> None:
    drive = make_drive(without(recording(0, "A", 0), "imu", 50, 60), MODALITIES, driving.LABELS)
    track, at = drive.tracks["imu"], lambda s: int(np.flatnonzero(drive.ticks >= s)[0])
    assert track.newest[at(48)] >= 0
    assert track.age[at(51.5)] > 1
    assert (track.newest[at(54) : at(59)] == -1).all()
    assert track.newest[at(63)] >= 0


def test_implausible_values_are_not_measured() -> None:
    trip = recording(0, "A", 0)
    trip.series["gps"].values[40:60, 0] = 1e6
    drive = make_drive(trip, MODALITIES, driving.LABELS)
    assert drive.tracks["gps"].window.max() < 100
    assert (drive.tracks["gps"].valid[:, 0] == 0).sum() >= 18


def test_a_modality_without_data_is_missing_and_the_others_decide() -> None:
    drive = make_drive(without(recording(0, "A", 0), "road", 0, 1e6), MODALITIES, driving.LABELS)
    assert (drive.tracks["road"].newest == -1).all()
    torch.manual_seed(0)
    model = FusionModel(driving.model_config()).eval()
    everything, others = (predict(model, drive, MODALITIES, s) for s in (None, ("imu", "gps")))
    assert np.isfinite(everything).all()
    np.testing.assert_array_equal(everything, others)
