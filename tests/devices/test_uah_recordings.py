"""The reader on the real recordings, which lie beside the project and never in it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.sample import Rejection
from fusedge.devices.capture.replay.uah import TripSource, read_recording
from tests.devices.synthetic_trip import WANTED


def test_the_reader_knows_every_folder(trips: list[Path]) -> None:
    assert len({trip.name for trip in trips}) == len(trips) >= 30
    assert {trip.parent.name for trip in trips} >= {"D1", "D2", "D3", "D5", "D6"}


@pytest.mark.real_time
def test_a_motorway_trip_is_read_whole_and_fast(trips: list[Path]) -> None:
    trip = next(trip for trip in trips if "D1-AGGRESSIVE-MOTORWAY" in trip.name)
    start = time.process_time()
    source = TripSource("replay:", trip, WANTED)
    items = list(source.samples())
    took_s = time.process_time() - start
    assert source.warnings == ()
    counts = Counter(item.modality for item in items)
    assert counts["imu"] > 7000 and counts["gps"] > 700 and counts["road"] > 16000
    # a budget of 1000 times real time: replay must reach 100 times with everything else in it
    assert took_s < items[-1].arrival_ns / 1e9 / 1000


def test_few_rows_are_rejected_and_each_for_want_of_a_fix(trips: list[Path]) -> None:
    rejected = Counter(
        item.reason
        for trip in trips[::8]
        for item in TripSource("replay:", trip, WANTED).samples()
        if isinstance(item, Rejection)
    )
    assert set(rejected) <= {"no_fix"} and sum(rejected.values()) < 20


def test_values_are_what_the_units_promise(trips: list[Path]) -> None:
    recording = read_recording(next(trip for trip in trips if "D2-NORMAL-MOTORWAY" in trip.name))
    imu, gps, road = (recording.series[m].values for m in ("imu", "gps", "road"))
    assert np.isfinite(imu).all() and np.isfinite(gps[:, 0]).all()
    assert np.percentile(np.abs(imu[:, :3]), 99) < 3  # m/s2
    assert 20 < np.median(gps[:, 0]) < 40  # m/s
    assert 2 < np.nanmedian(road[:, 2]) < 4  # m
    ratio = road[:, 3] / road[:, 4]  # lead distance over its time is the own speed
    assert 20 < np.nanmedian(ratio) < 40
    assert {kind for kind, _, _ in recording.reference_events} <= {
        "braking",
        "turn",
        "acceleration",
    }
