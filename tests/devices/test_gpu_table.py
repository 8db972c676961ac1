"""GPUs, processors, computers and wheels of ONNX Runtime in the tables are consistent and plausible."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import pytest

from fusedge.devices.targets.facts.rows import JetPack, Wheel
from fusedge.devices.targets.facts.table import (
    computers,
    find_target,
    generations,
    gpu_by_title,
    gpu_target,
    gpus,
    jetpacks,
    jetsons,
    onnxruntime_wheels,
    processors,
    target_names,
)
from fusedge.devices.targets.facts.wheels import wheels_for

# Cards whose driver calls them nothing that a user would say; cards that are there in two sizes.
_OTHER_NAMES = {"h100-sxm": "h100-80gb-hbm3", "gh200": "gh200-480gb", "b300": "b300-sxm6-ac"}
_SIZE = re.compile(r"-\d+gb$")


def _slug(title: str) -> str:
    said = r"\b(nvidia|geforce|tesla|generation|workstation|edition)\b"
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(said, " ", title.lower())))


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _doubles(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return sorted({name for name in listed if listed.count(name) > 1})


def test_no_row_is_a_seed() -> None:
    rows = [
        *generations().values(),
        *gpus().values(),
        *processors().values(),
        *computers().values(),
        *onnxruntime_wheels(),
    ]
    assert len(rows) > 150
    assert not [row for row in rows if re.search(r"seed|to be checked|^unknown", row.source)]


def test_a_target_is_in_one_table_only() -> None:
    assert not _doubles([*gpus(), *jetsons(), *computers(), "cpu"])
    assert len(target_names()) == len(set(target_names()))


def test_gpus_are_of_known_generations_that_their_tensorrt_builds_for() -> None:
    for row in gpus().values():
        generation = generations()[row.compute_capability]
        assert row.flavour == "tensorrt" or generation.tensorrt_rtx, row.name
        assert set(row.operations) | set(row.tflops) <= set(generation.operations), row.name


def test_generations_ascend_and_their_tensorrts_too() -> None:
    listed = list(generations())
    assert listed == sorted(listed, key=_numbers)
    for row in generations().values():
        first, last = row.tensorrt_first, row.tensorrt_last
        assert first is None or last is None or _numbers(first) <= _numbers(last)
    assert {name for name, row in generations().items() if row.tensorrt_rtx} == {
        *("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    }


def test_a_generation_does_no_less_with_fewer_bits() -> None:
    ladder = ("fp32", "bf16", "fp16", "fp8", "fp4")
    for row in generations().values():
        known = [each for name in ladder if (each := row.operations.get(name)) is not None]
        assert known == sorted(known), row.compute_capability


def test_what_is_known_of_gpus_is_plausible() -> None:
    for row in gpus().values():
        assert row.multiprocessors is None or 10 <= row.multiprocessors <= 200, row.name
        assert row.boost_mhz is None or 1000 <= row.boost_mhz <= 2700, row.name
        assert row.tensor_mhz is None or (row.boost_mhz or 0) > row.tensor_mhz, row.name
        assert row.memory_gib is None or 4 <= row.memory_gib <= 300, row.name
        assert row.bandwidth_gb_s is None or 150 <= row.bandwidth_gb_s <= 8000, row.name
        assert row.watts is None or 50 <= row.watts <= 1200, row.name


def test_peaks_from_clocks_agree_with_the_makers_figures_within_3_percent() -> None:
    published = 0
    for row in gpus().values():
        for precision, tflops in row.tflops.items():
            peak = gpu_target(row).compute.peak[precision]
            assert peak == pytest.approx(tflops * 1e12, rel=0.03), (row.name, precision)
            published += 1
    assert published > 150


def test_cards_of_one_generation_may_compute_at_other_rates() -> None:
    """GeForce halves what sums in fp32; the professional Ada cards do not, but for the L40."""
    peaks = {name: find_target(name).compute for name in ("rtx-4090", "rtx-6000-ada", "l40", "l4")}
    ratio = {
        name: (each.peak["bf16"] or 0) / (each.peak["fp16"] or 1) for name, each in peaks.items()
    }
    assert ratio == {"rtx-4090": 0.5, "rtx-6000-ada": 1, "l40": 1, "l4": 1}
    assert find_target("l40").compute.peak["fp16"] == pytest.approx(181e12, rel=0.01)
    assert find_target("l40s").compute.peak["fp16"] == pytest.approx(362e12, rel=0.02)


def test_tensor_cores_of_hopper_have_a_clock_of_their_own() -> None:
    peak = find_target("h100-sxm").compute.peak
    assert peak["fp32"] == pytest.approx(132 * 256 * 1.98e9)
    assert peak["fp16"] == pytest.approx(132 * 4096 * 1.83e9)


def test_a_rate_that_is_not_known_has_no_peak() -> None:
    peak = find_target("a10g").compute.peak
    assert peak["fp32"] == pytest.approx(80 * 256 * 1.71e9)
    assert peak["fp16"] is None


def test_a_gpu_is_named_as_its_driver_names_it() -> None:
    for row in gpus().values():
        name = _OTHER_NAMES.get(row.name, row.name)
        slug = _slug(row.title)
        assert name in (slug, *(f"{slug}{size}" for size in _SIZE.findall(name))), row.title


@pytest.mark.parametrize(
    ("title", "gib", "name"),
    [
        ("NVIDIA GeForce RTX 4090", 23.99, "rtx-4090"),
        ("GeForce RTX 2080 Ti", 10.8, "rtx-2080-ti"),  # as drivers before 2021 said it
        ("Tesla T4", 14.6, "t4"),
        ("NVIDIA H100 80GB HBM3", 79.6, "h100-sxm"),
        ("NVIDIA GeForce RTX 4060 Ti", 8, "rtx-4060-ti"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 3080", 12, "rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 4090", None, "rtx-4090"),
        ("NVIDIA GeForce RTX 4060 Ti", None, None),  # which of the two cannot be said
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce GTX 1660", 6, None),
    ],
)
def test_a_gpu_is_found_by_its_drivers_title(
    title: str, gib: float | None, name: str | None
) -> None:
    row = gpu_by_title(title, None if gib is None else gib * 2**30)
    assert (row and row.name) == name


def test_only_cards_of_two_sizes_share_a_title() -> None:
    by_title: dict[str, list[str]] = {}
    for row in gpus().values():
        by_title.setdefault(row.title, []).append(row.name)
    for names in by_title.values():
        assert len({_SIZE.sub("", name) for name in names}) == 1, names
        assert len({gpus()[name].memory_gib for name in names}) == len(names), names


def test_memory_of_a_card_is_its_own_and_gb10s_is_shared() -> None:
    assert find_target("rtx-4090").compute.memory_bytes == 24 * 2**30
    shared = {name for name in gpus() if find_target(name).compute.memory_is_shared}
    assert shared == {"gb10"}


def test_a_kind_of_core_is_known_by_one_row_only() -> None:
    rows = processors().values()
    assert not _doubles(identity for row in rows for identity in (*row.parts, *row.families))
    for row in rows:
        assert row.parts or row.families, row.name
        assert "fp32" in row.operations, row.name


@pytest.mark.parametrize(
    ("identity", "name", "fp32"),
    [
        ("AuthenticAMD:26:2", "zen-5", 64),
        ("AuthenticAMD:26:36", "zen-5-mobile", 32),
        ("AuthenticAMD:25:97", "zen-4", 32),
        ("GenuineIntel:6:143", "sapphire-rapids", 64),
        ("GenuineIntel:6:190", "gracemont", 16),
        ("0x41:0xd08", "cortex-a72", 8),
        ("0x41:0xd0b", "cortex-a76", 16),
    ],
)
def test_a_core_is_known_by_its_identity(identity: str, name: str, fp32: float) -> None:
    row = processors()[name]
    assert identity in (*row.parts, *row.families)
    assert row.operations["fp32"] == fp32


def test_computers_have_known_cores_of_their_architecture() -> None:
    for row in computers().values():
        core = processors()[row.cpu]
        assert bool(core.parts) == (row.architecture == "aarch64"), row.name
        assert row.cpu_mhz is None or 1000 <= row.cpu_mhz <= 6000, row.name
        assert row.bandwidth_gb_s is None or 2 <= row.bandwidth_gb_s <= 100, row.name
        assert find_target(row.name).compute.peak["fp32"], row.name


def test_a_computers_name_says_its_memory_where_there_are_several() -> None:
    for row in computers().values():
        if size := _SIZE.search(row.name):
            assert size[0] == f"-{row.memory_gib:.0f}gb", row.name
    models: dict[str, set[float | None]] = {}
    for row in computers().values():
        for model in row.models:
            assert row.memory_gib not in models.setdefault(model, set()), model
            models[model].add(row.memory_gib)


def _covers(wheel: Wheel, version: str) -> bool:
    last = wheel.last is None or _numbers(version) <= _numbers(wheel.last)
    return _numbers(wheel.first) <= _numbers(version) and last


def test_versions_of_wheels_ascend_and_do_not_overlap() -> None:
    kinds: dict[tuple[str, str, bool], list[Wheel]] = {}
    for wheel in onnxruntime_wheels():
        kinds.setdefault((wheel.package, wheel.architecture, wheel.jetson), []).append(wheel)
        assert wheel.last is None or _numbers(wheel.first) <= _numbers(wheel.last)
        assert list(wheel.pythons) == sorted(wheel.pythons, key=_numbers)
        assert set(wheel.capabilities) <= set(generations()), wheel.package
    for wheels in kinds.values():
        for older, newer in itertools.pairwise(wheels):
            assert older.last and _numbers(older.last) < _numbers(newer.first), newer


@pytest.mark.parametrize(
    ("architecture", "python", "version", "there"),
    [
        ("x86_64", "3.10", "1.23.2", True),
        ("x86_64", "3.10", "1.24.1", False),
        ("aarch64", "3.8", "1.19.2", True),
        ("aarch64", "3.8", "1.20.0", False),
        ("aarch64", "3.14", "1.32.0", True),
        ("x86_64", "3.13", "1.19.2", False),
        ("armv7l", "3.11", "1.22.0", False),
        ("x86_64", "2.7", "1.16.0", False),
    ],
)
def test_wheels_are_there_for_some_pythons_only(
    architecture: str, python: str, version: str, there: bool
) -> None:
    wheels = wheels_for(architecture, python, package="onnxruntime")
    assert any(_covers(wheel, version) for wheel in wheels) == there


def test_the_newest_wheel_is_the_last() -> None:
    for python in ("3.8", "3.10", "3.12"):
        firsts = [_numbers(wheel.first) for wheel in wheels_for("x86_64", python)]
        assert firsts == sorted(firsts)
    assert wheels_for("x86_64", "3.12", package="onnxruntime-gpu")[-1].last is None


def test_gpu_wheels_of_servers_are_not_for_jetsons() -> None:
    """PyPI's for aarch64 installs on JetPack 7, but has no kernels for Orin and Thor."""
    (wheel,) = wheels_for("aarch64", "3.12", package="onnxruntime-gpu")
    assert not {"8.7", "11.0"} & set(wheel.capabilities)
    assert {"9.0", "12.1"} <= set(wheel.capabilities)


def test_the_plug_in_of_tensorrt_rtx_is_for_ampere_and_later() -> None:
    wheels = [each for each in onnxruntime_wheels() if "tensorrt-rtx" in each.providers]
    assert wheels
    for wheel in wheels:
        assert wheel.capabilities
        assert all(float(capability) >= 8.0 for capability in wheel.capabilities)


def test_a_document_that_nobody_opened_is_not_given_as_confirmed() -> None:
    for row in (*gpus().values(), *generations().values(), *jetsons().values()):
        if re.search("datasheet|published specifications", row.source):
            assert re.search("not confirmed|quotes it", row.source), row.source


def _jetpack(python: str, cuda: str) -> JetPack:
    like = next(iter(jetpacks().values()))
    return like.model_copy(update={"python": python, "cuda": cuda})


@pytest.mark.parametrize(
    ("python", "cuda", "version", "index"),
    [
        ("3.8", "11.4", "1.16.0", "elinux.org"),
        ("3.10", "12.2", "1.18.0", "elinux.org"),
        ("3.10", "12.6", "1.23.0", "jetson-ai-lab"),
        ("3.12", "12.6", None, ""),
        ("3.12", "13.2", None, ""),
    ],
)
def test_a_jetson_has_the_wheels_for_its_cuda(
    python: str, cuda: str, version: str | None, index: str
) -> None:
    wheels = wheels_for("aarch64", python, jetpack=_jetpack(python, cuda))
    on_gpu = [wheel for wheel in wheels if "cuda" in wheel.providers]
    assert [wheel.first for wheel in on_gpu] == ([version] if version else [])
    assert all(index in wheel.index for wheel in on_gpu)
    assert any(wheel.providers == ("cpu",) for wheel in wheels)  # its processor can always be used


def test_every_jetpack_with_gpu_wheels_is_in_the_table() -> None:
    cudas = {jetpack.cuda for jetpack in jetpacks().values()}
    assert {wheel.cuda for wheel in onnxruntime_wheels() if wheel.jetson} <= cudas
