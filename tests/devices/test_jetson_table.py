"""The tables of Jetson modules and JetPacks agree with each other and with what NVIDIA publishes."""

from __future__ import annotations

import itertools

import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.devices.targets.facts.rows import Configuration, Jetson, PowerMode
from fusedge.devices.targets.facts.table import (
    Target,
    dla_operators,
    find_target,
    generations,
    jetpack_of_l4t,
    jetpacks,
    jetpacks_for,
    jetson_by_part,
    jetson_cpu,
    jetsons,
    power_modes,
    processors,
)
from fusedge.devices.targets.preflight.software import software_of

CONFIGURATIONS: tuple[Configuration, ...] = ("standard", "super")
ALL = [
    pytest.param(row, configuration, id=f"{name}-{configuration}")
    for name, row in jetsons().items()
    for configuration in CONFIGURATIONS
    if any(mode.configuration == configuration for mode in row.modes)
]

# NVIDIA's specifications of the modules: the memory's bandwidth in GB/s.
BANDWIDTHS = {
    "jetson-nano-4gb:MAXN": 25.6,
    "jetson-nano-2gb:MAXN": 25.6,
    "jetson-tx2-8gb:MAXN": 59.7,
    "jetson-tx2-4gb:MAXN": 51.2,
    "jetson-tx2i:MAXN": 51.2,
    "jetson-tx2-nx:MAXN": 51.2,
    "jetson-xavier-nx-8gb:20W_6CORE": 59.7,
    "jetson-xavier-nx-16gb:20W_6CORE": 59.7,
    "jetson-agx-xavier-32gb:MAXN": 136.5,
    "jetson-agx-xavier-64gb:MAXN": 136.5,
    "jetson-agx-xavier-industrial:MAXN": 136.5,
    "jetson-orin-nano-4gb:10W": 34,
    "jetson-orin-nano-4gb:MAXN_SUPER": 51,
    "jetson-orin-nano-8gb:15W": 68,
    "jetson-orin-nano-8gb:MAXN_SUPER": 102,
    "jetson-orin-nx-8gb:MAXN": 102.4,
    "jetson-orin-nx-16gb:MAXN": 102.4,
    "jetson-agx-orin-32gb:MAXN": 204.8,
    "jetson-agx-orin-64gb:MAXN": 204.8,
    "jetson-agx-orin-devkit-32gb:MAXN": 204.8,
    "jetson-agx-orin-industrial:MAXN": 204.8,
    "jetson-thor-t4000:MAXN": 273,
    "jetson-thor-t5000:MAXN": 273,
}
# NVIDIA's specifications of the modules, in 10^12 operations a second, dense, of the GPU alone.
PEAKS = [
    ("jetson-nano-4gb:MAXN", "fp16", 0.472),
    ("jetson-tx2-8gb:MAXN", "fp16", 1.33),
    ("jetson-tx2i:MAXN", "fp16", 1.26),
    ("jetson-tx2-nx:MAXN", "fp16", 1.33),
    ("jetson-agx-xavier-32gb:MAXN", "fp32", 1.41),
    ("jetson-agx-xavier-32gb:MAXN", "fp16", 11),
    ("jetson-agx-xavier-32gb:MAXN", "int8", 22),
    ("jetson-agx-orin-64gb:MAXN", "fp32", 5.3),
    ("jetson-agx-orin-64gb:MAXN", "fp16", 43),
    ("jetson-agx-orin-64gb:MAXN", "int8", 85),
    ("jetson-agx-orin-64gb:50W", "int8", 109 / 2),
    ("jetson-agx-orin-64gb:30W", "int8", 41 / 2),
    ("jetson-agx-orin-32gb:MAXN", "int8", 54),
    ("jetson-agx-orin-industrial:MAXN", "fp32", 4.8),
    ("jetson-agx-orin-industrial:MAXN", "int8", 78),
    ("jetson-thor-t5000:MAXN", "fp4", 1035),
    ("jetson-thor-t5000:MAXN", "int8", 517),
    ("jetson-thor-t4000:MAXN", "fp4", 600),
    ("jetson-thor-t4000:MAXN", "fp8", 300),
    ("jetson-thor-t4000:MAXN", "fp16", 150),
]
# What NVIDIA calls AI performance: TOPS of sparse int8, which are twice the dense ones, of GPU and DLAs.
SPARSE_TOPS = {
    "jetson-orin-nano-4gb:10W": 20,
    "jetson-orin-nano-4gb:MAXN_SUPER": 34,
    "jetson-orin-nano-8gb:15W": 40,
    "jetson-orin-nano-8gb:MAXN_SUPER": 67,
    "jetson-orin-nx-8gb:MAXN": 70,
    "jetson-orin-nx-8gb:MAXN_SUPER": 117,
    "jetson-orin-nx-16gb:MAXN": 100,
    "jetson-orin-nx-16gb:MAXN_SUPER": 157,
    "jetson-agx-orin-32gb:MAXN": 200,
    "jetson-agx-orin-32gb:MAXN_SUPER": 241,
    "jetson-agx-orin-64gb:MAXN": 275,
    "jetson-agx-orin-industrial:MAXN": 248,
}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def published(name: str) -> Target:
    """The target that figures are published of, whose 10W and 15W are those of before the super modes."""
    return find_target(name, "standard" if name.endswith((":10W", ":15W")) else None)


def modes_of(row: Jetson, configuration: Configuration) -> list[PowerMode]:
    return list(power_modes(row, configuration).values())


def compute(mode: PowerMode) -> float:
    return (mode.tpcs or 0) * (mode.gpu_mhz or 0)


@pytest.mark.parametrize("row", jetsons().values(), ids=jetsons())
def test_a_module_refers_to_rows_that_exist(row: Jetson) -> None:
    assert row.cpu in processors()
    assert row.compute_capability in generations()
    assert (row.dlas > 0) == (row.dla_version is not None) == (row.dla_int8_operations is not None)
    assert row.dlas == 0 or row.dla_version in dla_operators()
    releases = [release.name for release in jetpacks_for(row)]
    assert releases[0] == row.jetpack_first
    assert releases[-1] == (row.jetpack_last or list(jetpacks())[-1])
    for mode in row.modes:
        assert mode.jetpack_first is None or mode.jetpack_first in releases[1:]
        assert row.dlas or mode.dla_mhz is None


@pytest.mark.parametrize(("row", "configuration"), ALL)
def test_every_mode_of_every_module_is_a_target(row: Jetson, configuration: Configuration) -> None:
    for mode in modes_of(row, configuration):
        for said in (mode.name, mode.name.lower(), mode.name.removeprefix("MODE_")):
            target = find_target(f"{row.name}:{said}", configuration)
            assert target.name == f"{row.name}:{mode.name}"
            assert target.power_mode == mode
            assert target.compute.watts == mode.watts
            assert jetson_cpu(target).cpu_mhz == mode.cpu_mhz
    default = find_target(row.name, configuration)
    assert default.power_mode is not None
    assert default.power_mode.default
    assert default.name == row.name


@pytest.mark.parametrize(("row", "configuration"), ALL)
def test_no_mode_goes_above_the_fastest(row: Jetson, configuration: Configuration) -> None:
    modes = modes_of(row, configuration)
    fastest = max(modes, key=lambda mode: (compute(mode), mode.emc_mhz or 0, mode.dla_mhz or 0))
    for mode in modes:
        assert (mode.tpcs or 0) <= (fastest.tpcs or 0)
        assert (mode.emc_mhz or 0) <= (fastest.emc_mhz or 0)
        assert (mode.dla_mhz or 0) <= (fastest.dla_mhz or 0)
        assert (mode.gpu_mhz or 0) <= (fastest.gpu_mhz or 0)
    full = next((mode for mode in modes if mode.name.startswith("MAXN")), None)
    for mode in modes if full else []:
        assert full is not None
        assert (mode.cpus or 0) <= (full.cpus or 0)
        assert (mode.cpu_mhz or 0) <= (full.cpu_mhz or 0)


@pytest.mark.parametrize(("row", "configuration"), ALL)
def test_more_watts_never_compute_less(row: Jetson, configuration: Configuration) -> None:
    known = [mode for mode in modes_of(row, configuration) if mode.watts and mode.gpu_mhz]
    for less, more in itertools.permutations(known, 2):
        if (less.watts or 0) < (more.watts or 0):
            assert compute(less) <= compute(more)


def test_more_watts_can_have_a_lower_clock() -> None:
    """Orin NX at 25W has twice the clusters of 15W, at two thirds of the clock."""
    modes = power_modes(jetsons()["jetson-orin-nx-16gb"])
    assert (modes["25W"].tpcs, modes["25W"].gpu_mhz) == (4, 408)
    assert (modes["15W"].tpcs, modes["15W"].gpu_mhz) == (2, 612)


@pytest.mark.parametrize(("name", "gb_s"), BANDWIDTHS.items())
def test_the_bandwidth_is_the_published_one(name: str, gb_s: float) -> None:
    found = published(name).compute.bandwidth_bytes_per_s
    assert found == pytest.approx(gb_s * 1e9, rel=0.02)


def test_every_module_has_a_published_bandwidth() -> None:
    assert {name.partition(":")[0] for name in BANDWIDTHS} == set(jetsons())


@pytest.mark.parametrize(("name", "precision", "tera"), PEAKS)
def test_the_peak_is_the_published_one(name: str, precision: str, tera: float) -> None:
    peak = find_target(name).compute.peak
    assert dict(peak)[precision] == pytest.approx(tera * 1e12, rel=0.03)


@pytest.mark.parametrize(("name", "tops"), SPARSE_TOPS.items())
def test_gpu_and_dlas_make_the_published_ai_performance(name: str, tops: float) -> None:
    target = published(name)
    row, mode = target.row, target.power_mode
    assert isinstance(row, Jetson)
    assert mode is not None
    dla = row.dlas * (row.dla_int8_operations or 0) * (mode.dla_mhz or 0) * 1e6
    sparse = 2 * ((target.compute.peak["int8"] or 0) + dla)
    assert sparse == pytest.approx(tops * 1e12, rel=0.03)


def test_thor_has_its_highest_clock_in_maxn_only() -> None:
    """With fewer clusters switched on, its GPU has a higher clock than with all of them at 120W."""
    modes = power_modes(jetsons()["jetson-thor-t5000"])
    assert [modes[name].gpu_mhz for name in ("MAXN", "120W", "90W")] == [1575, 1386, 1530]
    assert find_target("jetson-thor-t5000:MAXN").compute.multiprocessors == 20


def test_what_is_not_known_is_none() -> None:
    compute_of = find_target("jetson-agx-xavier-industrial").compute
    assert compute_of.peak["int8"] is None
    assert compute_of.cpu_mhz is None
    assert compute_of.bandwidth_bytes_per_s is not None
    assert find_target("jetson-agx-xavier-32gb:MAXN").compute.watts is None


def test_a_part_number_is_of_one_module() -> None:
    parts = [part for row in jetsons().values() for part in row.parts]
    assert len(set(parts)) == len(parts)
    assert all(row.parts for row in jetsons().values())


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("p3767-0005", "jetson-orin-nano-8gb"),
        ("p3767-0000", "jetson-orin-nx-16gb"),
        ("p3701-0000", "jetson-agx-orin-devkit-32gb"),
        ("p3701-0005", "jetson-agx-orin-64gb"),
        ("p3448-0000", "jetson-nano-4gb"),
        ("p3834-0008", "jetson-thor-t5000"),
    ],
)
def test_a_part_number_finds_its_module(part: str, name: str) -> None:
    found = jetson_by_part(part)
    assert found is not None
    assert found.name == name


def test_an_unknown_part_finds_nothing() -> None:
    assert jetson_by_part("p9999-0000") is None


def test_an_unknown_mode_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'MAXN_SUPER'"):
        find_target("jetson-orin-nano-8gb:maxn-super")


def test_a_mode_by_number_is_refused_with_the_names() -> None:
    with pytest.raises(FusedgeError, match=r"jetson-orin-nano-8gb: .*differ from board to board"):
        find_target("jetson-orin-nano-8gb:0")
    with pytest.raises(FusedgeError, match="15W, 7W, 25W, MAXN_SUPER"):
        find_target("jetson-orin-nano-8gb:15")


@pytest.mark.parametrize(
    ("said", "offered"),
    [
        ("jetson-xavier-nx-8gb:15W", ["MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE"]),
        ("jetson-agx-xavier-32gb:30w", ["MODE_30W_ALL", "MODE_30W_6CORE", "MODE_30W_2CORE"]),
        ("jetson-orin-nano-8gb:16W", ["did you mean '15W'"]),
        ("jetson-agx-orin-64gb:60W", ["known: MAXN, MODE_15W, MODE_30W, MODE_50W"]),
    ],
)
def test_a_mode_that_several_have_is_answered_with_all_of_them(
    said: str, offered: list[str]
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_target(said)
    assert all(name in str(caught.value) for name in offered)


def test_the_older_modes_are_known_where_no_configuration_is_asked_for() -> None:
    assert find_target("jetson-orin-nx-16gb:MAXN").compute.watts == 25
    # A board with JetPack 6.2 can have been flashed with either set.
    assert find_target("jetson-orin-nx-16gb:MAXN", jetpack=jetpacks()["6.2"]).compute.watts == 25
    with pytest.raises(FusedgeError, match="MAXN is one of the standard modes"):
        find_target("jetson-orin-nx-16gb:MAXN", "super")
    # Where both have the mode, the newer one's clocks count.
    assert find_target("jetson-orin-nano-8gb:15W").compute.cpu_mhz == 1497.6
    assert find_target("jetson-orin-nano-8gb:15W", "standard").compute.cpu_mhz == 1510.4


@pytest.mark.parametrize("row", jetsons().values(), ids=jetsons())
def test_a_mode_is_there_from_the_release_on_that_brought_it(row: Jetson) -> None:
    order = list(jetpacks())
    for jetpack in jetpacks_for(row):
        there = power_modes(row, None, jetpack)
        assert sum(mode.default for mode in there.values()) == 1
        assert {mode.configuration for mode in there.values()} <= {
            "standard",
            jetpack.configuration,
        }
        assert all(
            order.index(mode.jetpack_first or "4.4") <= order.index(jetpack.name)
            for mode in there.values()
        )
        for name in {mode.name for mode in row.modes}:
            try:
                found = find_target(f"{row.name}:{name}", jetpack=jetpack).power_mode
            except FusedgeError as error:
                assert f"power mode {name} came with JetPack " in str(error)
                assert name not in there
            else:
                assert found is not None
                assert found.configuration <= jetpack.configuration


@pytest.mark.parametrize(
    ("said", "jetpack", "first"),
    [
        ("jetson-orin-nx-16gb:40W", "6.1", "6.2"),
        ("jetson-orin-nano-8gb:MAXN_SUPER", "5.1.2", "6.2"),
        ("jetson-agx-orin-32gb:maxn_super", "6.2", "7.2"),
    ],
)
def test_a_mode_of_a_later_release_says_which(said: str, jetpack: str, first: str) -> None:
    with pytest.raises(FusedgeError, match=f"came with JetPack {first}, and this is {jetpack}"):
        find_target(said, jetpack=jetpacks()[jetpack])
    assert find_target(said, jetpack=jetpacks()[first]).power_mode is not None


def test_releases_of_jetpack_are_in_order() -> None:
    releases = list(jetpacks().values())
    for older, newer in itertools.pairwise(releases):
        assert version(older.name) < version(newer.name)
        assert version(older.tensorrt) <= version(newer.tensorrt)
        assert version(older.python) <= version(newer.python)
        assert older.configuration <= newer.configuration  # once super, always super
    drivers = [driver for release in releases for driver in release.l4t]
    assert len(set(drivers)) == len(drivers)
    newest = [max(map(version, release.l4t)) for release in releases if release.l4t]
    assert newest == sorted(newest)
    for release in releases:
        assert set(release.capabilities) <= set(generations())


@pytest.mark.parametrize(
    ("l4t", "name"),
    [
        ("32.7.1", "4.6.1"),
        ("35.4.1", "5.1.2"),
        ("35.6.5", "5.1.7"),
        ("36.4.3", "6.2"),
        ("36.4.99", None),
        ("", None),
    ],
)
def test_the_jetpack_of_a_jetson_linux(l4t: str, name: str | None) -> None:
    found = jetpack_of_l4t(l4t)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("module", "first", "last", "without"),
    [
        ("jetson-nano-4gb", "4.4", "4.6.6", "5.0.2"),
        ("jetson-xavier-nx-16gb", "4.6.1", "5.1.7", "6.0"),
        ("jetson-orin-nano-8gb", "5.1.1", "7.2.2", "7.0"),
        ("jetson-thor-t5000", "7.0", "7.2.2", "6.2"),
    ],
)
def test_the_releases_for_a_module(module: str, first: str, last: str, without: str) -> None:
    names = [release.name for release in jetpacks_for(jetsons()[module])]
    assert (names[0], names[-1]) == (first, last)
    assert without not in names


@pytest.mark.parametrize("row", jetsons().values(), ids=jetsons())
def test_the_release_that_is_taken_is_the_newest_that_is_known_in_full(row: Jetson) -> None:
    taken = software_of(find_target(row.name), None, None).jetpack
    confirmed = [release for release in jetpacks_for(row) if release.confirmed]
    assert taken == confirmed[-1]
    assert taken.l4t
    assert taken.name == ("7.2.1" if row.jetpack_last is None else row.jetpack_last)


def test_super_modes_came_with_jetpack_6_2() -> None:
    first = next(row.name for row in jetpacks().values() if row.configuration == "super")
    assert first == "6.2"
    with_super = {
        name
        for name, row in jetsons().items()
        if any(mode.configuration == "super" for mode in row.modes)
    }
    assert with_super == {name for name in jetsons() if name.startswith("jetson-orin-n")}


def test_which_releases_build_for_the_dla() -> None:
    """TensorRT 10.7 was the last with DLA until 11.4.1, and JetPack 7 has later ones."""
    assert {name for name, row in jetpacks().items() if not row.dla} == {
        name for name in jetpacks() if name.startswith("7.")
    }
    assert jetpacks()["7.2.2"].tensorrt_optional == "11.4.1"


def test_the_opset_follows_from_the_last_jetpack() -> None:
    assert find_target("jetson-nano-4gb").max_opset == 13
    assert find_target("jetson-xavier-nx-8gb").max_opset == 17
    assert find_target("jetson-orin-nano-8gb").max_opset is None


def test_the_newer_dla_runs_what_the_older_does_but_minimum() -> None:
    older, newer = (set(dla_operators()[number].operators) for number in (1, 2))
    assert older - newer == {"Min"}
    assert newer - older == {"Abs", "Cos", "Equal", "Reshape", "Slice", "Softmax", "Transpose"}
