"""Profiles of machines: kept, found again, and read as what somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.calibration.profile import (
    MAX_BYTES,
    BatchTimes,
    Calibration,
    Conditions,
    KindCost,
    MachineIdentity,
    MeasuredPart,
    Profile,
    keep_profile,
    load_profile,
    profile_for,
    profile_path,
    rates_of,
    with_earlier,
    write_profile,
)

MACHINE = MachineIdentity(
    processor="AMD EPYC",
    target="cpu",
    power_mode=None,
    gpu_driver=None,
    onnxruntime="1.32.0",
    tensorrt={},
)


def calibration(provider: str = "cpu", precision: str = "fp32", run_s: float = 2e-6) -> Calibration:
    cost = KindCost(
        overhead_s=1e-6, operations_per_s={precision: 2e11}, bytes_per_s=5e10, source="test"
    )
    return Calibration(
        provider=provider,
        precision=precision,
        kinds={"product": cost, "free": cost},
        run_s=run_s,
        tensor_s=0,
        pause_s=1e-4,
        pause_node_s=1e-6,
        pause_byte_s=1e-11,
        error=1.25,
        graphs=90,
        kernels=400,
    )


def profile(*calibrations: Calibration, machine: MachineIdentity = MACHINE) -> Profile:
    times = BatchTimes(batch=1, runs=9, p50_s=1e-4, p90_s=2e-4, p99_s=3e-4)
    return Profile(
        format_version=1,
        machine=machine,
        date="2026-01-01",
        conditions=Conditions(load_average=0.5, governor=None, cores=2),
        parts=(
            MeasuredPart(bundle="b", part="head", provider="cpu", precision="fp32", times=(times,)),
        ),
        calibrations=calibrations or (calibration(),),
    )


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = profile()
    write_profile(written, tmp_path / "new" / "p.json")
    assert load_profile(tmp_path / "new" / "p.json") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.json"]


def test_rates_are_of_one_provider_and_precision() -> None:
    found = rates_of(profile(), "cpu", "fp32")
    assert found is not None and found.measured and found.error == 1.25
    assert found.kinds["product"].operations_per_s == {"fp32": 2e11}
    assert (found.pause_s, found.pause_node_s, found.pause_byte_s) == (1e-4, 1e-6, 1e-11)
    assert "cpu" in found.source and "2026-01-01" in found.source
    assert rates_of(profile(), "cpu", "fp16") is None
    assert rates_of(profile(), "cuda", "fp32") is None


def test_the_profile_of_this_machine_is_found(tmp_path: Path) -> None:
    write_profile(profile(), profile_path(MACHINE, tmp_path))
    assert profile_for(MACHINE, "cpu", tmp_path) == profile()
    assert profile_for(MACHINE, "native", tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"power_mode": "15W"},
        {"onnxruntime": "1.33.0"},
        {"gpu_driver": "600.1"},
        {"processor": None},
        {"tensorrt": {"tensorrt": "10.3"}},
    ],
)
def test_another_clock_or_version_is_another_machine(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    write_profile(profile(), profile_path(MACHINE, tmp_path))
    assert profile_for(MACHINE.model_copy(update=change), "cpu", tmp_path) is None


def test_a_kept_profile_that_is_damaged_is_as_none(tmp_path: Path) -> None:
    path = profile_path(MACHINE, tmp_path)
    write_profile(profile(), path)
    path.write_bytes(path.read_bytes()[:-50])
    assert profile_for(MACHINE, "cpu", tmp_path) is None
    assert with_earlier(profile(), tmp_path) == profile()


def test_a_kept_profile_of_another_machine_is_not_believed(tmp_path: Path) -> None:
    other = MACHINE.model_copy(update={"processor": "another"})
    write_profile(profile(machine=other), profile_path(MACHINE, tmp_path))
    assert profile_for(MACHINE, "cpu", tmp_path) is None
    assert with_earlier(profile(), tmp_path) == profile()


def test_rates_of_other_providers_stay(tmp_path: Path) -> None:
    old = profile(calibration("cpu", run_s=9e-6), calibration("cuda"), calibration("cpu", "fp16"))
    write_profile(old, profile_path(MACHINE, tmp_path))
    both = with_earlier(profile(), tmp_path)
    assert {(c.provider, c.precision): c.run_s for c in both.calibrations} == {
        ("cpu", "fp32"): 2e-6,
        ("cuda", "fp32"): 2e-6,
        ("cpu", "fp16"): 2e-6,
    }


def changed(**changes: Any) -> bytes:
    return json.dumps({**profile().model_dump(mode="json"), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no profile"),
        (b"[]", "is no profile"),
        (b"\xff\xfe", "is no profile"),
        (b"[" * 100_000, "is no profile"),
        (changed(format_version=2), "format_version"),
        (changed(extra=1), "extra"),
        (changed(date="d" * 50), "date"),
        (changed(date="a\x1b[2Jb"), "date"),
        (changed(calibrations=[calibration().model_dump(mode="json")] * 2), "twice"),
        (changed(parts=[{}]), "parts.0"),
        (b" " * (MAX_BYTES + 1), "more than"),
    ],
)
def test_what_is_no_profile_is_refused_in_one_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(FusedgeError, match=words) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_s", -1),
        ("run_s", "1e-6"),
        ("run_s", float("inf")),
        ("error", 0.5),
        ("kinds", {"magic": {}}),
        ("provider", "a b"),
        ("graphs", 0),
    ],
)
def test_rates_that_cannot_be_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    raw = profile().model_dump(mode="json")
    raw["calibrations"][0][field] = value
    path = tmp_path / "p.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(FusedgeError, match="is no profile"):
        load_profile(path)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_a_profile_or_refused(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "p.json"
    path.write_bytes(content)
    with pytest.raises(FusedgeError):
        load_profile(path)


def test_a_profile_is_kept_for_this_user_with_what_was_known(tmp_path: Path) -> None:
    for provider in ("cuda", "cpu"):
        path = keep_profile(profile(calibration(provider)), tmp_path / "cache")
    assert path.parent.stat().st_mode & 0o077 == 0
    for provider in ("cuda", "cpu"):
        assert profile_for(MACHINE, provider, tmp_path / "cache") is not None


@pytest.mark.parametrize("slow", [{"bytes_per_s": 5e-324}, {"operations_per_s": {"fp32": 1e-300}}])
def test_rates_that_make_estimates_infinite_are_refused(
    tmp_path: Path, slow: dict[str, Any]
) -> None:
    raw = profile().model_dump(mode="json")
    raw["calibrations"][0]["kinds"]["product"].update(slow)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(FusedgeError, match="is no profile"):
        load_profile(path)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FusedgeError, match="cannot be written"):
        write_profile(profile(), tmp_path / "file" / "p.json")
