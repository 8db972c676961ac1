"""Windows for training follow the rules of the runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fusedge.bundle.sample import Recording, Series
from fusedge.bundle.window import NANOSECONDS, grid_ns, hold, to_ns
from fusedge.models import driving
from fusedge.models.dataset import make_drive
from fusedge.models.fusion_model import FusionModel
from fusedge.models.prediction import predict
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
