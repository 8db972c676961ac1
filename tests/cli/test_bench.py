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


@pytest.fixture
def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr("fusedge.cli.machine_bench._probed", lambda *arguments: iter(()))


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
        (["--batch", "1"] * 40, "32 batches can be measured, not 40"),
        (["-o", "."], "no regular file"),
        (["-o", "x" * 256], "File name too long"),
    ],
)
def test_what_cannot_be_measured_is_one_line(place: Path, words: list[str], said: str) -> None:
    done = fusedge("bench", str(place), *words)
    assert done.returncode == 1 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not kept(place)


@pytest.mark.usefixtures("no_probes")
def test_what_was_measured_is_told_where_it_cannot_be_kept(place: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")  # as a home that cannot be written to
    out = tmp_path / "here.json"
    for words, written in (([], []), (["-o", str(out)], [str(out)])):
        command = ["bench", str(place), *BRIEF, "--batch", "1", *words, "--json"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert all(part["times"] for part in told["parts"]) and told["written"] == written
        assert "not kept" in told["notes"][-1] and "cache" in told["notes"][-1]
    assert load_profile(out).parts


@pytest.mark.usefixtures("no_probes")
def test_rows_that_no_part_takes_are_said(place: Path) -> None:
    command = ["bench", str(place), *BRIEF, "--batch", "3", "--batch", "999", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [each["batch"] for each in told["parts"][0]["times"]] == [1, 3]
    assert "part fast_encoder does not take 999 rows: measured at 1, 3" in told["notes"]


def test_without_room_for_temporary_files_there_are_times_and_a_note(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    result = CliRunner().invoke(app, ["bench", str(place), *BRIEF, "--batch", "1", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert all(part["times"] for part in told["parts"])
    assert "No usable temporary directory" in told["notes"][0]


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"", b"{}"])
def test_a_file_that_is_no_profile_is_not_replaced(place: Path, content: bytes) -> None:
    other = place.with_name("other")
    other.write_bytes(content)
    done = fusedge("bench", str(place), "-o", str(other), "--budget", "600")
    assert done.returncode == 1 and "no profile, so it is not replaced" in done.stderr
    assert other.read_bytes() == content


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
