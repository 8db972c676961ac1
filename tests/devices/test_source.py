"""Sources by URI."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.devices.capture.address import Wanted
from fusedge.devices.capture.source import Source, open_source
from tests.devices.modalities import driving, named
from tests.devices.synthetic_trip import write_trip


def now_ns() -> int:
    raise AssertionError("a recorded or simulated source has a time base of its own")


def open_(uri: str, wanted: Wanted = None) -> Source:
    return open_source(uri, driving() if wanted is None else wanted, now_ns)


def test_both_schemes_open_and_yield(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "a trip")
    for uri in (f"replay:{trip}", "sim:", "sim:?seed=2&duration_s=2"):
        source = open_(uri)
        assert source.uri == uri and not source.live and source.warnings == ()
        assert source.modalities == ("imu", "gps", "road")
        assert next(iter(source.samples())).arrival_ns >= 0
        source.close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("reply:x", "did you mean 'replay'?"),
        ("sim:?sed=1", "did you mean 'seed'?"),
        ("sim:?seed=1&seed=2", "given twice"),
        ("replay:x?speed=2", "unknown option of replay: 'speed'"),
        ("drive", "a source is named by scheme"),
        ("", "a source is named by scheme"),
        ("replay:", "not a trip"),
        ("sim:motorway", "takes options only"),
        ("sim:?road=motorwy", "did you mean 'motorway'?"),
        ("sim:?script=drowzy:20", "did you mean 'drowsy'?"),
        ("sim:?script=normal", "script: '' is not a time"),
        ("sim:?script=normal:0", "is not a time"),
        ("sim:?script=", "unknown style"),
        ("sim:?seed=-1", "seed=-1 is not a whole number"),
        ("sim:?seed=1.5", "is not a whole number"),
        ("sim:?duration_s=inf", "is not a time"),
        ("sim:?duration_s=1e9", "is not a time"),
        ("sim:?gps_outage=40:30", "is not a time"),
        ("sim:?gps_outage=40", "is not a time"),
    ],
)
def test_a_wrong_uri_is_refused_in_one_line(uri: str, message: str) -> None:
    with pytest.raises(FusedgeError) as error:
        open_(uri)
    assert message in error.value.line() and "\n" not in error.value.line()


@pytest.mark.parametrize("scheme", ["replay", "sim"])
def test_channels_that_cannot_be_given_are_refused(tmp_path: Path, scheme: str) -> None:
    uri = f"replay:{write_trip(tmp_path / 'trip')}" if scheme == "replay" else f"{scheme}:"
    with pytest.raises(UnknownNameError, match="did you mean 'speed'"):
        open_(uri, named(gps=["sped"]))
    with pytest.raises(FusedgeError, match="offers none of the wanted modalities"):
        open_(uri, named(face=["pixels"]))


def test_a_modality_that_another_source_gives_is_left_to_it() -> None:
    source = open_("sim:?duration_s=1", named(face=["pixels"], gps=["speed"]))
    assert source.modalities == ("gps",)
    assert [item.modality for item in source.samples()] == ["gps"]
