"""`fusedge bench` as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.cli.app import app
from fusedge.devices.targets.calibration.profile import load_profile, rates_of
from tests.cli.command import fusedge
from tests.tiny_bundle import write_tiny_bundle

BRIEF = ("--budget", "0.1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))
    return write_tiny_bundle(tmp_path / "tiny.fusedge").path


def kept(place: Path) -> list[Path]:
    return list((place.parent / "cache/profiles").glob("*"))


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_all_parts_are_measured_and_the_rates_are_kept(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    done = fusedge("bench", str(place), *BRIEF, "--batch", "1", "-o", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [part["part"] for part in told["parts"]] == ["fast_encoder", "slow_encoder", "head"]
    assert all(not part["problem"] and part["times"][0]["p50_s"] > 0 for part in told["parts"])
    assert told["written"] == [*map(str, kept(place)), str(out)]
    profile = load_profile(out)
    rates = rates_of(profile, "cpu", "fp32")
    assert rates is not None and rates.measured
    # Kinds that this bundle has none of come from the probes.
    assert {"convolution", "depthwise", "recurrent", "attention", "product"} <= rates.kinds.keys()
    assert load_profile(kept(place)[0]).calibrations == profile.calibrations


def test_people_get_a_table_and_one_line_of_what_it_is_worth(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = fusedge("bench", str(place), *BRIEF, "--provider", "cpu", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert "p50" in done.stderr and "cpu fp32" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "kinds of nodes" in last and "expected error" in last


def test_without_onnx_parts_are_measured_and_the_calibration_says_what_it_lacks(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "fusedge.export.part_work", raising=False)
    result = CliRunner().invoke(app, ["bench", str(place), *BRIEF, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["calibrations"] == [] and len(told["parts"]) == 3
    (note,) = told["notes"]
    assert "no calibration" in note and "fusedge[plan]" in note


def test_a_part_that_does_not_run_is_a_row_and_status_1(place: Path) -> None:
    done = fusedge("bench", str(place), *BRIEF, "--provider", "cuda", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert all("CUDAExecutionProvider" in part["problem"] for part in told["parts"])
    assert told["calibrations"] == []
    last = done.stderr.strip().splitlines()[-1]
    assert "part fast_encoder: does not run on cuda, fp32" in last and "2 more failed" in last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--precision", "fp16"], "has nothing at fp16 to run on cpu"),
        (["--provider", "gpu"], "unknown provider 'gpu'"),
        (["--backend", "tensor"], "unknown backend 'tensor'"),
        (["--backend", "native"], "has nothing to run on native"),
        (["--backend", "native", "--provider", "cpu"], "provider cpu is of ONNX Runtime"),
    ],
)
def test_what_cannot_be_measured_is_one_line(place: Path, words: list[str], said: str) -> None:
    done = fusedge("bench", str(place), *words)
    assert done.returncode == 1 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not kept(place)


def test_a_place_that_cannot_be_written_to_is_said_before_anything_is_measured(
    place: Path,
) -> None:
    done = fusedge("bench", str(place), "-o", str(place / "x.json"), "--budget", "600")
    assert done.returncode == 1 and "cannot write here" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_leaves_no_process_behind(place: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "fusedge.cli", "bench", str(place), "--budget", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while not (found := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    if number is not signal.SIGKILL:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "fusedge: interrupted"
    for child in found:
        while is_alive(int(child)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
