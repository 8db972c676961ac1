"""Python and ONNX Runtime on a target, and what software it has."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.local import resolve_target
from fusedge.devices.targets.detection.machine_target import machine_target
from fusedge.devices.targets.facts.table import find_target, jetpacks, jetpacks_for, jetsons
from fusedge.devices.targets.preflight.preflight import preflight
from fusedge.devices.targets.preflight.software import software_of
from tests.devices.preflight_cases import (
    DRIVING,
    ORIN,
    WORKS,
    XAVIER,
    check_sentences,
    plan_for,
    software_for,
    the_one,
)
from tests.devices.recorded_machines import NAMES, absent, recorded

# Python and ONNX Runtime


def test_the_python_of_jetpack_5_is_too_old() -> None:
    plan = plan_for(DRIVING, WORKS, ORIN, "5.1.2")
    finding = the_one(plan, "python", "refused", "JetPack 5.1.2 has Python 3.8")
    assert finding.way_out.startswith("install JetPack") and "--backend onnx" in finding.way_out
    assert not plan.will_run
    on_cpu = plan_for(DRIVING, WORKS, ORIN, "5.1.2", backend="onnx")
    assert the_one(on_cpu, "python", "warning", "JetPack 5.1.2 has Python 3.8")
    xavier = the_one(plan_for(DRIVING, WORKS, XAVIER), "python", "refused", "3.8").way_out
    assert xavier.startswith("install Python 3.10")
    assert the_one(plan_for(DRIVING, WORKS, ORIN, "6.2"), "python", "fits", "Python 3.10")


def test_a_python_of_the_future_is_refused() -> None:
    target = find_target("rtx-4090")
    plan = preflight(DRIVING, WORKS, target, software_for(target, python="3.99"))
    assert the_one(plan, "python", "refused", "not for Python 3.99 yet")


def test_the_last_onnx_runtime_of_a_python_is_named() -> None:
    finding = the_one(
        plan_for(DRIVING, WORKS, ORIN, "6.2"), "onnxruntime", "warning", "is the last"
    )
    assert finding.way_out == "pip install 'onnxruntime<1.24'"
    plan = plan_for(DRIVING, WORKS, "raspberry-pi-5-8gb")
    assert the_one(plan, "onnxruntime", "fits", "has ready-made packages")


def test_an_architecture_without_wheels_is_refused() -> None:
    target = find_target("cpu")
    plan = preflight(DRIVING, WORKS, target, software_for(target, architecture="armv7l"))
    assert the_one(plan, "onnxruntime", "refused", "armv7l")
    gpu = find_target("rtx-4090")
    not_needed = preflight(DRIVING, WORKS, gpu, software_for(gpu, architecture="riscv64"))
    assert the_one(not_needed, "onnxruntime", "warning", "riscv64")


def test_on_a_jetson_the_gpu_packages_are_not_those_of_pypi() -> None:
    plan = plan_for(DRIVING, WORKS, ORIN, "6.2", backend="onnx")
    finding = the_one(plan, "onnxruntime", "fits", "for the GPU")
    assert "jetson" in finding.way_out and "PyPI's is not for this GPU" in finding.way_out
    desktop = the_one(plan_for(DRIVING, WORKS, "rtx-4090"), "onnxruntime", "fits", "for the GPU")
    assert desktop.way_out == ""


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        # by the kernels in the library of the CUDA provider, see the table
        *((name, "1.29") for name in ("b200", "b300")),
        *((name, "1.27") for name in ("v100-sxm2-16gb",)),
        *((name, "") for name in ("rtx-4090", "rtx-5090", "t4", "h100-sxm", "a100-sxm4-40gb")),
    ],
)
def test_the_last_onnx_runtime_for_a_gpu_is_named(name: str, bound: str) -> None:
    plan = plan_for(DRIVING, WORKS, name, backend="onnx")
    if bound:
        finding = the_one(plan, "onnxruntime", "warning", f"For the GPU of {name}")
        assert finding.way_out == f"pip install 'onnxruntime-gpu<{bound}'"
    else:
        assert the_one(plan, "onnxruntime", "fits", "for the GPU")


def test_another_python_than_that_of_jetpack_has_no_gpu() -> None:
    plan = plan_for(DRIVING, WORKS, XAVIER, backend="onnx")
    assert plan.will_run
    assert {route.device for route in plan.routes.values()} == {"cpu"}
    assert the_one(plan, "onnxruntime", "warning", "uses the processor there").way_out == ""
    assert the_one(plan, "onnxruntime", "fits", "for Python 3.10 to 3.13 on aarch64")


# The software of a target


def test_the_newest_jetpack_whose_facts_are_known_is_taken_unless_another_is_named() -> None:
    for name, row in jetsons().items():
        target = find_target(name)
        newest = software_of(target, None, None)
        known = [each for each in jetpacks_for(row) if each.confirmed]
        assert newest.jetpack == known[-1] and newest.architecture == "aarch64"
        assert newest.tensorrt == known[-1].tensorrt
    named = software_of(find_target(ORIN), "5.1.2", None)
    assert (named.python, named.tensorrt) == (
        jetpacks()["5.1.2"].python,
        jetpacks()["5.1.2"].tensorrt,
    )


@pytest.mark.parametrize(
    ("name", "jetpack", "words"),
    [
        (XAVIER, "6.2", "not for this module"),
        (ORIN, "6.22", "did you mean '6.2"),
        ("rtx-4090", "6.2", "for Jetson modules only"),
        ("cpu", "6.2", "for Jetson modules only"),
    ],
)
def test_a_jetpack_that_cannot_be_is_refused(name: str, jetpack: str, words: str) -> None:
    with pytest.raises(FusedgeError, match=re.escape(words)):
        software_of(find_target(name), jetpack, None)


def test_an_unknown_jetpack_offers_those_of_the_module() -> None:
    with pytest.raises(UnknownNameError, match=r"5\.1"):
        software_of(find_target(XAVIER), "banana", None)


def test_this_machine_is_described_as_it_is() -> None:
    machine = detect()
    target = find_target("cpu")
    software = software_of(target, None, machine)
    assert software.installed and software.onnxruntime == machine.onnxruntime
    plan = preflight(DRIVING, WORKS, target, software)
    assert plan.will_run
    assert the_one(plan, "onnxruntime", "fits", f"{machine.onnxruntime} is installed")


@pytest.mark.parametrize("name", NAMES)
def test_recorded_machines_are_planned_for_as_they_are(name: str) -> None:
    machine = recorded(name)
    if name == "server-two-gpus":  # which is the first, only CUDA knows
        target = resolve_target("cpu", machine)
    else:
        target = machine_target(machine, load=absent)
    software = software_of(target, None, machine)
    assert software.installed and software.onnxruntime == machine.onnxruntime
    if machine.jetson is not None:
        assert (software.jetpack and software.jetpack.name) == machine.jetson.jetpack
    for backend in ("auto", "native", "onnx"):
        check_sentences(preflight(DRIVING, WORKS, target, software, backend=backend))


def test_a_named_jetpack_stands_for_an_upgrade_of_this_machine() -> None:
    machine = recorded("jetson-orin-nano-super")
    target = resolve_target("local", machine)
    assert software_of(target, None, machine).tensorrt is None  # it is for another Python
    upgraded = software_of(target, "6.2", machine)
    assert not upgraded.installed and upgraded.tensorrt == jetpacks()["6.2"].tensorrt


def test_graphics_processors_with_an_arm_processor_are_known() -> None:
    target = find_target("rtx-4090")
    assert software_of(target, None, None).architecture == "x86_64"
    for name in ("gb10", "dgx-spark", "gh200-96gb"):
        assert software_of(replace(target, name=name), None, None).architecture == "aarch64"
