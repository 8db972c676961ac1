"""Will a bundle run on a target: findings as a whole, trust and power modes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.detection.machine_target import local_cpu, machine_target
from fusedge.devices.targets.facts.table import (
    find_target,
    jetpacks,
    jetpacks_for,
    jetsons,
    target_names,
)
from fusedge.devices.targets.preflight.findings import Finding, joined, listed
from fusedge.devices.targets.preflight.preflight import preflight
from fusedge.devices.targets.preflight.software import software_of
from tests.devices.preflight_cases import (
    DRIVING,
    ORIN,
    WORKS,
    XAVIER,
    an_engine,
    check_sentences,
    findings_of,
    plan_for,
    software_for,
    the_one,
    with_engine,
    with_operator,
    with_parts,
)
from tests.devices.recorded_machines import absent, recorded

# Overall


def test_every_target_and_backend_gives_sentences() -> None:
    for name in target_names():
        target = find_target(name)
        row = target.row
        packs = [each.name for each in jetpacks_for(row)] if name in jetsons() else [None]
        for jetpack in packs:
            software = software_of(target, jetpack, None)
            for asked in (
                {"backend": "auto"},
                {"backend": "native", "dla": True},
                {"backend": "onnx"},
            ):
                plan = preflight(DRIVING, WORKS, target, software, **asked)
                check_sentences(plan)
                assert set(plan.routes) == {part.name for part in DRIVING.parts}


def test_the_same_fact_of_several_parts_is_told_once() -> None:
    first, second = Finding("opset", "fits", "A.", parts=("a",)), Finding("opset", "fits", "A.")
    refused = Finding("memory", "refused", "B.", "more")
    found = joined([first, replace(second, parts=("b", "a")), refused])
    assert found == [refused, Finding("opset", "fits", "A.", parts=("a", "b"))]
    assert [listed("a"), listed("ab"), listed("abc")] == ["a", "a and b", "a, b and c"]
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"


def test_a_hostile_bundle_is_told_in_short_sentences() -> None:
    long = "9" * 900
    version = with_engine(DRIVING, version=long, power_mode=long)
    elsewhere = with_engine(DRIVING, compute_capabilities=tuple(f"{long}{i}" for i in range(99)))
    strange = with_operator(WORKS, "\x1b[31m\n" + "x" * 5000, kind="unknown")
    for manifest in (version, elsewhere):
        plan = plan_for(manifest, strange, ORIN, "6.2")
        check_sentences(plan)
    software = software_for(find_target(ORIN), tensorrt=long)
    check_sentences(preflight(version, strange, find_target(ORIN), software))


def test_a_bundle_without_engines_is_planned_with_those_that_can_be_built() -> None:
    plan = plan_for(DRIVING, WORKS, ORIN, "6.2")
    finding = the_one(plan, "engine", "warning", "no engine")
    assert finding.parts == ("imu", "gps", "road", "head")
    assert "on the device" in finding.way_out
    assert plan.will_run
    assert {(r.backend, r.precision, r.device) for r in plan.routes.values()} == {
        ("native", "fp16", "gpu")
    }


def test_an_engine_for_a_desktop_gpu_is_built_anywhere() -> None:
    plan = plan_for(DRIVING, WORKS, "rtx-4090")
    finding = the_one(plan, "engine", "warning", "no engine")
    assert finding.way_out == "fusedge build BUNDLE --target rtx-4090"


def test_onnx_runtime_runs_what_it_is_asked_to() -> None:
    plan = plan_for(DRIVING, WORKS, "raspberry-pi-5-8gb")
    assert plan.will_run and not findings_of(plan, "engine") and not findings_of(plan, "backend")
    assert {(r.backend, r.precision, r.device) for r in plan.routes.values()} == {
        ("onnx", "fp32", "cpu")
    }


def test_no_part_runs_on_a_gpu_that_is_not_there() -> None:
    for name in target_names():
        target = find_target(name)
        if target.compute_capability is None:
            plan = plan_for(DRIVING, WORKS, name, backend="native")
            assert not plan.will_run
            assert {(r.backend, r.device) for r in plan.routes.values()} == {("onnx", "cpu")}
            assert not [row for row in plan.memory.rows if "CUDA" in row.what]


def test_a_plain_model_is_planned_without_modalities() -> None:
    part = DRIVING.parts[0].model_copy(update={"kind": "model"})
    plain = DRIVING.model_copy(update={"parts": (part,), "modalities": (), "fusion": None})
    plan = plan_for(plain, WORKS, ORIN, "6.2")
    assert plan.will_run and set(plan.routes) == {"imu"}
    assert not [row for row in plan.memory.rows if "kept" in row.what]


def test_a_jetpack_cannot_be_chosen_for_a_module_that_no_table_has() -> None:
    """Be its part unlisted, or not read, as in a container; a processor or a card never has one."""
    whole, container = recorded("jetson-orin-nano-super"), recorded("jetson-orin-container")
    assert whole.jetson is not None
    unlisted = whole.jetson.model_copy(update={"module": None, "part": "p3767-0099"})
    for machine in (whole.model_copy(update={"jetson": unlisted}), container):
        target = machine_target(machine, absent)
        with pytest.raises(
            FusedgeError, match="module of this Jetson is not in the tables"
        ) as told:
            software_of(target, "6.2", machine)
        assert target.name in told.value.line() and len(told.value.line().splitlines()) == 1
        assert software_of(target, None, machine).jetpack == jetpacks()["6.2"]
        with pytest.raises(FusedgeError, match="for Jetson modules only"):
            software_of(local_cpu(machine), "6.2", machine)
    chosen = software_of(machine_target(whole, absent), "6.1", whole)
    assert chosen.jetpack == jetpacks()["6.1"]
    card = recorded("desktop-rtx-4090")
    with pytest.raises(FusedgeError, match="for Jetson modules only"):
        software_of(machine_target(card, absent), "6.2", card)


# Trust and power mode


def test_engines_from_elsewhere_need_trust() -> None:
    built = with_engine(DRIVING)
    assert (
        "--allow-unsigned-engines"
        in the_one(
            plan_for(built, WORKS, ORIN, "6.2"), "trust", "warning", "executable code"
        ).way_out
    )
    assert not findings_of(plan_for(built, WORKS, ORIN, "6.2", trusted=True), "trust")
    assert not findings_of(plan_for(DRIVING, WORKS, ORIN, "6.2"), "trust")


def test_an_engine_of_another_power_mode_is_a_warning() -> None:
    built = with_engine(DRIVING, power_mode="25W")
    finding = the_one(plan_for(built, WORKS, f"{ORIN}:15W", "6.2"), "power mode", "warning", "25W")
    assert "15W" in finding.sentence
    assert not findings_of(plan_for(built, WORKS, f"{ORIN}:25W", "6.2"), "power mode")
    assert not findings_of(
        plan_for(with_engine(DRIVING), WORKS, f"{ORIN}:15W", "6.2"), "power mode"
    )


def test_the_engine_of_this_power_mode_is_the_one_that_counts() -> None:
    both = (an_engine(power_mode="25W"), an_engine(power_mode="15W", precision_requested="fp32"))
    plan = plan_for(with_parts(DRIVING, engines=both), WORKS, f"{ORIN}:15W", "6.2")
    assert not findings_of(plan, "power mode")
    assert {route.precision for route in plan.routes.values()} == {"fp32"}
    asked = plan_for(
        with_parts(DRIVING, engines=both), WORKS, f"{ORIN}:15W", "6.2", precision="fp16"
    )
    assert findings_of(asked, "power mode")
    assert {route.precision for route in asked.routes.values()} == {"fp16"}


# Any software


_VERSIONS = st.one_of(st.none(), st.from_regex(r"\d{1,3}(\.\d{1,3}){0,3}", fullmatch=True))


@settings(max_examples=150, deadline=None)
@given(
    tensorrt=_VERSIONS,
    python=st.one_of(st.none(), st.from_regex(r"\d\.\d{1,2}", fullmatch=True)),
    onnxruntime=_VERSIONS,
    architecture=st.sampled_from(("x86_64", "aarch64", "armv7l")),
    installed=st.booleans(),
    engine_version=_VERSIONS,
    name=st.sampled_from(("rtx-4090", ORIN, XAVIER, "raspberry-pi-5-8gb")),
    backend=st.sampled_from(("auto", "native", "onnx")),
    precision=st.sampled_from(("auto", "fp32", "fp16", "int8")),
    dla=st.booleans(),
)
def test_any_software_gives_readable_findings(
    tensorrt: str | None,
    python: str | None,
    onnxruntime: str | None,
    architecture: str,
    installed: bool,
    engine_version: str | None,
    name: str,
    backend: str,
    precision: str,
    dla: bool,
) -> None:
    target = find_target(name)
    software = software_for(
        target,
        tensorrt=tensorrt,
        python=python,
        onnxruntime=onnxruntime,
        architecture=architecture,
        installed=installed,
    )
    manifest = DRIVING
    if engine_version is not None:
        manifest = with_engine(
            DRIVING,
            version=engine_version,
            flavour=target.flavour or "tensorrt",
            compute_capabilities=(target.compute_capability or "8.7",),
        )
    plan = preflight(
        manifest, WORKS, target, software, backend=backend, precision=precision, dla=dla
    )
    check_sentences(plan)
    if backend == "onnx" or (target.flavour is None and backend == "auto"):
        assert {route.backend for route in plan.routes.values()} == {"onnx"}
    if precision == "int8" and engine_version is None:
        assert not plan.will_run  # the bundle has no such graph
