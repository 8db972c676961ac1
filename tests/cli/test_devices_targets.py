"""`fusedge devices`: what it says of a machine, and the list of targets."""

from __future__ import annotations

import json

import pytest

from fusedge.cli import devices as command
from fusedge.cli.devices_targets import list_targets
from fusedge.devices.capture.listing import Inputs
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.facts.table import find_target, target_names
from tests.cli.command import fusedge
from tests.devices.recorded_machines import NAMES, recorded


def shown(
    found: str | Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    machine = recorded(found) if isinstance(found, str) else found
    monkeypatch.setattr(command, "detect", lambda: machine)
    monkeypatch.setattr(command, "list_inputs", lambda: Inputs((), ()))
    monkeypatch.setattr(command.console, "width", 200)
    command.devices()
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_machine_is_shown(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"memory {(recorded(name).memory_bytes or 0) / 2**30:.1f} GiB" in shown(
        name, monkeypatch, capsys
    )


def test_a_jetson_is_shown_with_its_power_modes_and_the_name_to_plan_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = recorded("jetson-orin-nano-super").model_copy(update={"python": "3.12.1"})
    text = shown(found, monkeypatch, capsys)
    assert "target jetson-orin-nano-8gb:25W" in text
    assert "module jetson-orin-nano-8gb, part p3767-0005" in text
    assert "JetPack 6.2, L4T 36.4.3" in text
    assert "power mode 25W, of 15W, 25W, MAXN_SUPER" in text
    assert "the system's 10.3.0 is for Python 3.10, and this is 3.12" in text
    alike = found.model_copy(update={"python": "3.10.12"})
    assert "10.3.0 is for this Python 3.10, but" in shown(alike, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("part", "module"),
    [("p3767-0099", "part p3767-0099, in no table, tegra234"), (None, "tegra234")],
)
def test_a_module_that_no_table_has_is_shown_with_its_part(
    part: str | None,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = recorded("jetson-orin-nano-super")
    assert found.jetson is not None
    other = found.jetson.model_copy(update={"module": None, "part": part})
    text = shown(found.model_copy(update={"jetson": other}), monkeypatch, capsys)
    assert f"module {module} JetPack" in text
    unknown = found.model_copy(update={"jetson": other.model_copy(update={"soc": None})})
    assert f"module {module.removesuffix(', tegra234').replace('tegra234', 'unknown')} " in shown(
        unknown, monkeypatch, capsys
    )


def test_several_gpus_are_shown_each_with_its_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown("server-two-gpus", monkeypatch, capsys)
    assert "NVIDIA L4, 22.5 GiB, compute 8.9, target l4" in text
    assert "NVIDIA A100 80GB PCIe, 80.0 GiB, compute 8.0, split into instances (MIG)" in text
    assert "MIG 3g.40gb, 39.2 GiB, compute 8.0, target a100-80gb-pcie-mig-3g-40gb" in text


def test_limits_of_a_container_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown("container-with-limits", monkeypatch, capsys)
    assert "usable cores 2 of 8, for 2.5 cores' time" in text
    assert "of which usable 2.0 GiB" in text and "container podman" in text


def test_a_machine_is_told_whole_to_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = recorded("jetson-tx2")
    monkeypatch.setattr(command, "detect", lambda: found)
    monkeypatch.setattr(command, "list_inputs", lambda: Inputs((), ()))
    command.devices(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == "jetson-tx2-8gb:MAXN"
    assert {name: told[name] for name in found.model_dump()} == found.model_dump(mode="json")


def test_all_targets_are_listed_for_machines() -> None:
    done = fusedge("devices", "--targets", "--json")
    targets = {each["name"]: each for each in json.loads(done.stdout)["targets"]}
    assert done.returncode == 0 and tuple(targets) == target_names()
    for name, each in targets.items():
        assert each["peak_operations_per_s"] == dict(find_target(name).compute.peak)
    nano = targets["jetson-orin-nano-8gb"]
    modes = {
        mode["target"]: mode for mode in nano["power_modes"] if mode["configuration"] == "super"
    }
    assert find_target("jetson-orin-nano-8gb:15W").compute.watts == 15.0
    assert modes["jetson-orin-nano-8gb:15W"]["watts"] == 15.0
    assert sum(mode["default"] for mode in modes.values()) == 1


def test_all_targets_are_listed_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.console, "width", 80)
    list_targets(as_json=False)
    lines = capsys.readouterr().err.splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = {word for line in lines for word in line.split()}
    assert set(target_names()) <= words and {"25W*,", "MAXN_SUPER"} <= words
