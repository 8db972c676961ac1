"""What the parts run on, as a user asks for it and is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusedge.bundle.keys import load_private_key, new_key, trust_folder
from fusedge.bundle.signature import sign_bundle
from fusedge.runtime.backend import BackendSetting
from tests.cli.command import fusedge
from tests.runtime.gpu_double import with_engines
from tests.tiny_bundle import write_tiny_bundle

SINES = "sim:?duration_s=5"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine with a GPU is one without, here


def test_engines_are_trusted_if_a_key_signed_them_that_the_user_trusts(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    new_key(tmp_path / "fleet", None)
    key = load_private_key(tmp_path / "fleet.key.pem", str)
    plain = write_tiny_bundle(tmp_path / "plain.fusedge")
    signed = sign_bundle(plain, key, tmp_path / "signed.fusedge")
    setting = BackendSetting("auto", "auto", "auto", False)
    assert not setting.trusted(plain) and not setting.trusted(signed)
    trust_folder().mkdir(parents=True)
    public = (tmp_path / "fleet.pub.pem").read_bytes()
    (trust_folder() / "fleet.pub.pem").write_bytes(public)
    assert setting.trusted(signed) and not setting.trusted(plain)


def test_a_run_tells_what_the_parts_run_on_and_why(tmp_path: Path) -> None:
    drive = str(tmp_path / "drive.mcap")
    run = fusedge("run", "driving", "--source", SINES, "--record", drive, "--out", "-")
    assert run.returncode == 0, run.stderr
    assert (
        "imu, gps, road, head on CPUExecutionProvider, fp32: the bundle has no engine" in run.stderr
    )
    header = json.loads(run.stdout.splitlines()[0])
    assert header["parts"]["head"]["provider"] == "CPUExecutionProvider"
    replay = fusedge("replay", drive, "--provider", "cpu", "--json")
    assert replay.returncode == 0 and json.loads(replay.stdout)["identical"]
    refused = fusedge("replay", drive, "--backend", "native")
    assert refused.returncode == 1 and "part imu: the bundle has no engine" in refused.stderr


def test_engines_that_cannot_run_here_are_a_warning_or_an_error_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    from fusedge.bundle.lookup import open_bundle

    bundle = str(with_engines(open_bundle("driving"), tmp_path / "engines.fusedge").path)
    run = fusedge("run", bundle, "--source", SINES, "--out", str(tmp_path / "out.jsonl"))
    assert run.returncode == 0, run.stderr
    assert "imu, gps, road, head: the bundle's engines are not used: " in run.stderr
    refused = fusedge("run", bundle, "--source", SINES, "--backend", "native")
    assert refused.returncode == 1 and len(refused.stderr.strip().splitlines()) == 1
    both = fusedge("run", bundle, "--source", SINES, "--backend", "native", "--provider", "cpu")
    assert both.returncode == 1 and "the native backend has none" in both.stderr
