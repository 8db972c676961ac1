"""The account of memory, and whether a target has enough."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fusedge.bundle.manifest import DimRange, Flavour, FrontEnd, Modality
from fusedge.devices.capture.wanted import FRAME_SIZE
from fusedge.devices.targets.detection.machine_target import local_cpu, machine_target
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.preflight.preflight import Preflight, preflight
from fusedge.devices.targets.preflight.software import software_of
from tests.devices.preflight_cases import (
    DRIVING,
    ORIN,
    WORKS,
    findings_of,
    plan_for,
    software_for,
    the_one,
    with_engine,
    with_parts,
    works_of,
)
from tests.devices.recorded_machines import absent, recorded
from tests.tiny_bundle import write_tiny_bundle


def _memory(plan: Preflight) -> dict[str, int]:
    return {f"{row.place}: {row.what}": row.bytes or 0 for row in plan.memory.rows}


def test_the_account_of_memory_adds_up() -> None:
    plan = plan_for(DRIVING, WORKS, ORIN, "6.2")
    rows = plan.memory.rows
    assert plan.memory.needed("memory") == sum(row.bytes or 0 for row in rows)
    assert all(len(row.source) > 6 for row in rows)
    assert len({(row.place, row.what) for row in rows}) == len(rows)
    assert 1e9 < plan.memory.needed("memory") < 2e9
    assert the_one(plan, "memory", "fits", "of 8.59 GB of memory are needed")


def test_a_graphics_card_has_its_own_memory() -> None:
    plan = plan_for(DRIVING, WORKS, "rtx-4090")
    assert set(plan.memory.capacity) == {"memory", "GPU memory"}
    assert the_one(plan, "memory", "fits", "GPU memory")
    assert the_one(plan, "memory", "unknown", "the computer's memory")
    target = find_target("rtx-4090")
    small = preflight(DRIVING, WORKS, target, software_for(target), host_memory_bytes=5e8)
    assert the_one(small, "memory", "refused", "500 MB of the computer's memory")


def test_what_the_firmware_reserves_is_not_counted_twice() -> None:
    target = find_target(ORIN)
    read = replace(target, compute=replace(target.compute, memory_bytes=7.4 * 2**30))
    software = software_of(target, "6.2", None)
    reserved = "memory: reserved by the firmware"
    assert reserved in _memory(preflight(DRIVING, WORKS, target, software))
    assert reserved not in _memory(preflight(DRIVING, WORKS, read, software))


@pytest.mark.parametrize("name", ["jetson-orin-nano-super", "laptop", "desktop-rtx-4090"])
@pytest.mark.parametrize("on_processor", [False, True])
def test_the_system_takes_the_memory_that_a_container_is_denied(
    name: str, on_processor: bool
) -> None:
    """Of a limit near all memory, it takes what it does not find beyond."""

    def needed(beyond: float | None) -> int:
        machine = recorded(name)
        assert machine.memory_bytes is not None
        limit = None if beyond is None else machine.memory_bytes - int(beyond)
        machine = machine.model_copy(update={"memory_limit_bytes": limit})
        target = local_cpu(machine) if on_processor else machine_target(machine, absent)
        found = preflight(
            DRIVING,
            WORKS,
            target,
            software_of(target, None, machine),
            host_memory_bytes=local_cpu(machine).compute.memory_bytes,
        )
        assert found.memory.capacity["memory"] == machine.usable_memory_bytes
        rows = [row for row in found.memory.rows if row.what.startswith("operating system")]
        assert ["beyond the limit" in row.source for row in rows] == [(beyond or 0) > 0]
        return rows[0].bytes or 0

    whole = needed(None)
    assert whole >= 300e6 and needed(-1e9) == needed(0) == whole
    assert needed(100e6) == whole - 100e6
    assert needed(whole) == needed(3e9) == 0


def test_a_build_in_a_container_needs_no_memory_for_the_system() -> None:
    target = find_target("jetson-orin-nano-4gb")
    target = replace(target, compute=replace(target.compute, memory_bytes=3.5 * 2**30))
    software = software_of(target, "6.2", None)

    def sentence(beyond: int) -> str:
        small = replace(target, memory_beyond_bytes=beyond)
        plan = preflight(DRIVING, WORKS, small, software)
        return the_one(plan, "memory", "warning", "Building an engine").sentence

    assert "the operating system included" in sentence(0)
    assert "system" not in sentence(10**9)


def test_too_little_memory_is_refused() -> None:
    target = find_target(ORIN)
    software = software_of(target, "6.2", None)

    def with_memory(size_bytes: float) -> Preflight:
        small = replace(target, compute=replace(target.compute, memory_bytes=size_bytes))
        return preflight(DRIVING, WORKS, small, software)

    needed = with_memory(4e9).memory.needed("memory")

    def verdict_at(share: float) -> str:
        plan = with_memory(needed / share)
        found = [f for f in findings_of(plan, "memory") if "are needed" in f.sentence]
        assert f"({share:.0%})" in found[0].sentence
        return found[0].verdict

    assert [verdict_at(share) for share in (0.5, 0.9, 1.1)] == ["fits", "warning", "refused"]


def test_tensorrt_before_8_6_takes_more_memory() -> None:
    what = "memory: CUDA and TensorRT's libraries"
    old, new = (
        _memory(plan_for(DRIVING, WORKS, ORIN, pack, backend="native")) for pack in ("5.1.2", "6.2")
    )
    assert old[what] > new[what] + new["memory: CUDA's context"]


def test_tensorrt_rtx_counts_its_versions_anew() -> None:
    """Its 1.7 is newer than TensorRT's 8.6; an unknown version of either is the newest."""
    target = find_target("rtx-4090")

    def libraries(flavour: Flavour, version: str | None) -> dict[str, int]:
        card, software = replace(target, flavour=flavour), software_for(target, tensorrt=version)
        software = replace(software, tensorrt_flavour=flavour)
        plan = preflight(DRIVING, WORKS, card, software, backend="native")
        return {what: size for what, size in _memory(plan).items() if "CUDA" in what}

    newest = libraries("tensorrt_rtx", None)
    assert set(newest) == {"memory: CUDA and TensorRT's libraries", "GPU memory: CUDA's context"}
    assert libraries("tensorrt_rtx", "1.0.0.21") == libraries("tensorrt_rtx", "1.7.1") == newest
    assert libraries("tensorrt", "8.6.1") == libraries("tensorrt", None) == newest
    assert set(libraries("tensorrt", "8.5.3")) == {"GPU memory: CUDA and TensorRT's libraries"}


def test_big_weights_are_named() -> None:
    big = dict(WORKS)
    big["road", "fp16"] = replace(WORKS["road", "fp16"], weight_bytes=10**11)
    finding = the_one(plan_for(DRIVING, big, ORIN, "6.2"), "memory", "refused", "engine of road")
    assert "100 GB" in finding.sentence


def test_what_was_not_counted_makes_the_memory_unknown() -> None:
    some = {key: work for key, work in WORKS.items() if key[0] != "road"}
    plan = plan_for(DRIVING, some, ORIN, "6.2")
    assert the_one(plan, "memory", "unknown", "graph of road")
    unsized = {key: replace(work, activation_bytes=None) for key, work in WORKS.items()}
    assert the_one(plan_for(DRIVING, unsized, ORIN, "6.2"), "memory", "unknown", "and 3 more")


def test_engines_take_memory_for_their_greatest_sizes() -> None:
    small, great = (
        _memory(plan_for(with_parts(DRIVING, dims={"batch": dims}), WORKS, ORIN, "6.2"))
        for dims in (
            DimRange(least=1, usual=1, greatest=2),
            DimRange(least=1, usual=1, greatest=32),
        )
    )
    what = "memory: inputs and outputs of head"
    assert great[what] == 16 * small[what]
    assert great["memory: engine of head"] == small["memory: engine of head"]


def test_streams_share_parts_but_not_what_they_keep() -> None:
    one, four, many = (
        _memory(plan_for(DRIVING, WORKS, ORIN, "6.2", streams=streams)) for streams in (1, 4, 9)
    )
    kept = "memory: samples of imu that are kept"
    assert many[kept] == 9 * one[kept]
    assert many["memory: engine of imu"] == one["memory: engine of imu"]
    results = "memory: intermediate results of imu"
    assert one[results] * 5 == four[results] * 2 and many[results] == four[results]


def test_captured_sound_and_pictures_take_memory() -> None:
    imu, *others = DRIVING.modalities
    changes = {"kind": "image", "height": 480, "width": 640, "channels": imu.channels[:3]}
    camera = imu.model_copy(update=changes)
    sound = imu.model_copy(
        update={"name": "cabin", "kind": "audio", "rate_hz": 16000.0, "channels": imu.channels[:1]}
    )
    manifest = DRIVING.model_copy(update={"modalities": (camera, sound, *others)})
    rows = _memory(plan_for(manifest, WORKS, ORIN, "6.2"))
    frames = 2 * camera.kept_s * camera.rate_hz
    assert rows["memory: samples of imu that are kept"] == pytest.approx(
        frames * 480 * 640 * 3, 0.01
    )
    seconds = 2 * (2 * sound.kept_s + 10)
    assert rows["memory: samples of cabin that are kept"] == pytest.approx(
        seconds * 16000 * 5, 0.01
    )
    assert "memory: process that captures cabin" in rows


def test_a_front_end_takes_whole_frames_beside_the_crops_that_are_kept() -> None:
    imu, *others = DRIVING.modalities
    changes = {"kind": "image", "height": 48, "width": 48, "channels": imu.channels[:1]}
    crops = imu.model_copy(update=changes)
    front = FrontEnd(kind="largest_face", part="detector")
    faces = crops.model_copy(update={"front": front})
    most = math.prod(FRAME_SIZE) * 3

    def rows_with(modality: Modality, streams: int = 1) -> dict[str, int]:
        manifest = DRIVING.model_copy(update={"modalities": (modality, *others)})
        return _memory(plan_for(manifest, WORKS, ORIN, "6.2", streams=streams))

    what = "memory: whole frames of imu for its front end"
    assert rows_with(faces)[what] % most == 0 and rows_with(faces)[what] >= 3 * most
    assert rows_with(faces, streams=4)[what] == 4 * rows_with(faces)[what]
    assert what not in rows_with(crops)
    kept = "memory: samples of imu that are kept"
    assert rows_with(faces)[kept] == rows_with(crops)[kept] < most
    speech = imu.model_copy(
        update={"kind": "audio", "rate_hz": 16000.0, "channels": imu.channels[:1], "front": front}
    )
    assert what not in rows_with(speech)


def test_a_build_on_a_small_module_is_warned_of() -> None:
    small = plan_for(DRIVING, WORKS, "jetson-orin-nano-4gb", "6.2")
    assert "--workspace" in the_one(small, "memory", "warning", "Building an engine").way_out
    assert not [
        f
        for f in findings_of(plan_for(DRIVING, WORKS, ORIN, "6.2"), "memory")
        if "Building" in f.sentence
    ]
    built = plan_for(with_engine(DRIVING), WORKS, "jetson-orin-nano-4gb", "6.2")
    assert not [f for f in findings_of(built, "memory") if "Building" in f.sentence]


def test_a_tiny_bundle_on_a_small_computer(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.fusedge")
    plan = plan_for(bundle.manifest, works_of(bundle), "raspberry-pi-4-4gb")
    assert plan.will_run and the_one(plan, "memory", "fits", "of 4.29 GB")
