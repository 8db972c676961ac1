"""A bundle planned on every target of the tables, and how what runs a part decides its estimate."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import DimRange
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.detection.machine_target import machine_target
from fusedge.devices.targets.facts.table import (
    cpu_compute,
    find_target,
    jetson_cpu,
    jetsons,
    power_modes,
    target_names,
)
from fusedge.devices.targets.planning.fit import Limits, fit
from fusedge.devices.targets.preflight.software import software_of
from fusedge.export import target_plan
from fusedge.export.target_plan import (
    Asked,
    Device,
    TargetPlan,
    Works,
    fit_modes,
    own_modes,
    plan_target,
)
from tests.devices.recorded_machines import NAMES, absent, recorded
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def works() -> Works:
    return Works(open_bundle("driving"))


def device(name: str, jetpack: str | None = None) -> Device:
    target = find_target(name)
    return Device(target, software_of(target, jetpack, None))


def planned(works: Works, name: str, **asked: object) -> TargetPlan:
    return plan_target(works, device(name), Asked(**asked))  # type: ignore[arg-type]


def test_every_target_in_every_power_mode_is_planned_and_what_is_missing_has_a_reason(
    works: Works,
) -> None:
    names = [*target_names()]
    names += [f"{row.name}:{mode}" for row in jetsons().values() for mode in power_modes(row)]
    for name in names:
        made = planned(works, name)
        assert made.plan is not None
        figures = (made.plan.load, made.plan.worst_s, made.plan.energy_j)
        assert all(figure is None or 0 < figure < math.inf for figure in figures), name
        assert (None not in figures) or made.plan.unknown, name
        assert all(each.seconds is None or each.kernels > 0 for each in made.estimates.values())


def test_what_no_engine_runs_is_estimated_on_the_processor(works: Works) -> None:
    made = planned(works, "jetson-xavier-nx-8gb")
    assert {route.device for route in made.preflight.routes.values()} == {"cpu"}
    assert made.plan is not None
    (processor,) = made.plan.devices
    assert processor.device == "cpu"
    cores = jetson_cpu(made.device.target).cores
    assert cores is not None
    assert processor.cores == min(cores, 4)


def test_a_processor_of_which_nothing_is_known_is_unknown_and_not_the_gpu(works: Works) -> None:
    card = device("rtx-4090")
    route = planned(works, "jetson-xavier-nx-8gb").preflight.routes["imu"]
    assert route.device == "cpu"
    assert card.compute(route).multiprocessors == 0
    assert card.rates_of(route) is None


def test_the_dla_and_onnx_runtime_on_a_gpu_are_told_as_what_they_are_counted(works: Works) -> None:
    assert planned(works, "rtx-4090").notes == ()
    (onnx,) = planned(works, "rtx-4090", backend="onnx").notes
    assert "counted as TensorRT" in onnx


def test_the_dla_is_counted_as_the_gpu_where_engines_run(works: Works, tmp_path: Path) -> None:
    fixed = Works(write_tiny_bundle(tmp_path / "tiny.fusedge"))
    one = DimRange(least=1, usual=1, greatest=1)
    for name, part in fixed.parts.items():
        graphs = tuple(g.model_copy(update={"precision": "fp16"}) for g in part.graphs)
        dims = dict.fromkeys(part.dims, one)
        fixed.parts[name] = part.model_copy(update={"dims": dims, "graphs": graphs})
    parts = tuple(fixed.parts.values())
    fixed.bundle.manifest = fixed.bundle.manifest.model_copy(update={"parts": parts})
    orin, asked = device("jetson-orin-nx-16gb", "6.2"), Asked(dla=True)
    made = plan_target(fixed, orin, asked)
    assert {route.backend for route in made.preflight.routes.values()} == {"native"}
    assert made.notes == ("the DLA is counted as the GPU",)
    without = plan_target(works, orin, asked)  # its sizes change, so no DLA runs it
    assert {route.backend for route in without.preflight.routes.values()} == {"onnx"}
    assert not any("DLA" in note for note in without.notes)


def test_the_memory_of_the_computer_around_a_graphics_card_is_looked_at(works: Works) -> None:
    card = device("rtx-4090")
    for size_gb, verdict in ((None, "unknown"), (16, "fits"), (0.5, "refused")):
        memory = None if size_gb is None else size_gb * 1e9
        beside = cpu_compute(None, cores=8, cpu_mhz=None, memory_bytes=memory)
        found = plan_target(works, replace(card, processor=beside), Asked()).preflight.findings
        (finding,) = (f for f in found if "the computer's memory" in f.sentence)
        assert finding.verdict == verdict


def test_what_is_not_known_of_a_device_is_named(works: Works) -> None:
    pi = device("raspberry-pi-5-8gb")
    compute = pi.target.compute
    for changed, missing in (
        ({"bandwidth_bytes_per_s": None}, "the bandwidth of the memory"),
        ({"peak": {}}, "the peak in fp32"),
        ({"cpu_mhz": None}, "the clock"),
        ({"cpu_mhz": None, "peak": {}}, "the peak in fp32 and the clock"),
    ):
        target = replace(pi.target, compute=replace(compute, **changed))
        made = plan_target(works, replace(pi, target=target), Asked())
        assert made.plan is not None
        said = f"{missing} of this CPU, so how long these parts take: imu, gps, road, head"
        assert [line for line in made.plan.unknown if line.startswith(said)], made.plan.unknown


def test_each_graph_is_counted_once(works: Works) -> None:
    assert works.of("imu", "fp32", 2) is works.of("imu", "fp32", 2)


def test_a_fit_has_all_power_modes_and_the_graphs_of_the_bundle(works: Works) -> None:
    orin = device("jetson-orin-nx-16gb")
    modes = fit_modes(works, orin, Asked())
    row = jetsons()["jetson-orin-nx-16gb"]
    assert [mode.name.partition(":")[2] for mode in modes] == list(power_modes(row))
    for mode in modes:
        assert not mode.alike
        assert mode.precisions.keys() == works.parts.keys()
        assert {name for found in mode.precisions.values() for name in found} == {"fp32", "fp16"}
    (only,) = fit_modes(works, device("jetson-orin-nx-16gb:15W"), Asked(precision="fp16"))
    assert {name for found in only.precisions.values() for name in found} == {"fp16"}


def test_the_modes_are_those_of_the_jetpack(works: Works) -> None:
    target = find_target("jetson-orin-nano-8gb", "standard")
    old = Device(target, software_of(target, "6.1", None))
    assert [m.name.partition(":")[2] for m in fit_modes(works, old, Asked())] == ["15W", "7W"]


def test_a_mode_that_came_after_the_jetpack_is_not_proposed(works: Works) -> None:
    for release, late in (("6.2.3", False), ("7.2", True)):
        agx = device("jetson-agx-orin-32gb", release)
        names = [mode.name.partition(":")[2] for mode in fit_modes(works, agx, Asked())]
        assert "MAXN" in names
        assert ("MAXN_SUPER" in names) == late


def here(machine: Machine) -> Device:
    """A machine as the target `local`."""
    target = machine_target(machine, absent)
    target = replace(target, name=target.device)
    return Device(target, software_of(target, None, machine), modes=own_modes(machine, target))


def with_modes(name: str, *more: str, **values: Any) -> Machine:
    """A recorded Jetson with more power modes in its nvpmodel configuration."""
    machine = recorded(name)
    assert machine.jetson is not None
    modes = (*machine.jetson.power_modes, *more)
    jetson = machine.jetson.model_copy(update={"power_modes": modes, **values})
    return machine.model_copy(update={"jetson": jetson})


JETSONS = [name for name in NAMES if (jetson := recorded(name).jetson) and jetson.power_modes]


@pytest.mark.parametrize("name", JETSONS)
def test_the_modes_of_this_machine_are_those_of_its_own_configuration(
    works: Works, name: str
) -> None:
    own = ("gaming-2.0", "MY_MODE")
    machine = with_modes(name, *own)
    assert machine.jetson is not None
    modes = fit_modes(works, here(machine), Asked())
    assert [mode.name.partition(":")[2] for mode in modes] == list(machine.jetson.power_modes)
    known = power_modes(jetsons()[here(machine).target.device], machine.jetson.configuration)
    for row in fit(works.bundle.manifest, modes, Limits()).rows:
        mode = row.mode.partition(":")[2]
        if mode in known:
            assert row.watts == known[mode].watts
        else:  # MAXP_CORE_DENVER of a TX2 is in no table either
            assert mode in own or (name, mode) == ("jetson-tx2", "MAXP_CORE_DENVER")
            assert (row.fits, row.watts, row.plan.worst_s) == (False, None, None)
            assert row.reason.startswith("unknown: the peak in fp32, the clock and ")


def test_a_configuration_that_was_not_read_leaves_the_modes_of_the_table(works: Works) -> None:
    machine = recorded("jetson-agx-orin")
    assert machine.jetson is not None
    jetson = machine.jetson.model_copy(update={"power_modes": (), "power_mode": None})
    device = here(machine.model_copy(update={"jetson": jetson}))
    names = {mode.name.partition(":")[2] for mode in fit_modes(works, device, Asked())}
    assert {"MAXN", "MODE_15W", "MODE_30W", "MODE_50W"} <= names


def test_an_own_mode_that_the_machine_is_in_has_the_clocks_that_are_set(works: Works) -> None:
    machine = with_modes("jetson-orin-nano-super", "MY_MODE", power_mode="MY_MODE", gpu_max_mhz=500)
    modes = fit_modes(works, here(machine), Asked())
    *_, as_25w, _, own = fit(works.bundle.manifest, modes, Limits()).rows
    assert (as_25w.mode, own.mode) == ("jetson-orin-nano-8gb:25W", "jetson-orin-nano-8gb:MY_MODE")
    assert own.fits and own.watts is None
    assert own.plan.load and as_25w.plan.load and own.plan.load > as_25w.plan.load


def test_every_mode_of_this_machine_has_the_memory_and_cores_of_this_process() -> None:
    limited = {"usable_cores": 2, "memory_limit_bytes": 1 << 30}
    machine = with_modes("jetson-orin-nano-super").model_copy(update=limited)
    modes = here(machine).modes
    assert {(m.compute.cores, m.compute.memory_bytes) for m in modes.values()} == {(2, 1 << 30)}
    free = here(recorded("jetson-agx-orin")).modes  # 8 cores now, and 12 in MAXN
    assert {name: each.compute.cores for name, each in free.items()} == {
        "MAXN": 12,
        "MODE_15W": 4,
        "MODE_30W": 8,
        "MODE_50W": 12,
    }


def test_a_fit_looks_at_each_precision_and_number_of_streams_once(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: Counter[tuple[str, int]] = Counter()

    def counted(*args: Any, **asked: Any) -> Any:
        looked[asked["precision"], asked["streams"]] += 1
        return preflight(*args, **asked)

    preflight = target_plan.preflight
    monkeypatch.setattr(target_plan, "preflight", counted)
    for precision, expected in (("fp16", {"fp16"}), ("auto", {"auto", "fp16", "fp32"})):
        looked.clear()
        fit_modes(works, device("jetson-orin-nano-8gb"), Asked(precision=precision))
        assert {name for name, streams in looked if streams == 1} == expected
        assert set(looked.values()) == {1}


def test_onnx_runtime_has_one_precision_for_all_parts(works: Works) -> None:
    for name, options in (("raspberry-pi-5-8gb", {}), ("rtx-4090", {"backend": "onnx"})):
        (mode,) = fit_modes(works, device(name), Asked(**options))
        assert mode.alike
        (row,) = fit(works.bundle.manifest, [mode], Limits()).rows
        assert len(set(row.precision.values())) == 1


def test_no_more_streams_are_proposed_than_have_room_in_memory(works: Works) -> None:
    small = device("raspberry-pi-5-8gb")
    compute = small.target.compute
    needed = [
        plan_target(works, small, Asked(streams=n)).preflight.memory.needed("memory")
        for n in (9, 10)
    ]
    room = replace(compute, memory_bytes=sum(needed) / 2)
    tight = Device(replace(small.target, compute=room), small.software)
    (mode,) = fit_modes(works, tight, Asked())
    assert mode.most_streams == 9
    (row,) = fit(works.bundle.manifest, [mode], Limits()).rows
    assert row.streams == 9


def test_a_bundle_without_engines_and_with_one_precision_is_planned_too(tmp_path: Path) -> None:
    tiny = Works(write_tiny_bundle(tmp_path / "tiny.fusedge"))
    made = planned(tiny, "rtx-5090", streams=3)
    assert made.plan is not None
    assert {work.batch for name, work in made.works.items() if name != "head"} == {3}
    assert made.works["head"].batch == 3  # two modalities, each left out once
