"""Whole sessions of the shipped bundle, as a user starts and stops them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import fusedge

INTERRUPTED = 130


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline, "nothing was written in 30 s"
        time.sleep(0.05)


def test_the_demo_decides_every_second_and_leaves_decisions_and_a_picture(tmp_path: Path) -> None:
    result = fusedge("demo", "--speed", "max", "--out", str(tmp_path), "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["summary"]["ledger_balanced"]
    lines = read_lines(tmp_path / "decisions.jsonl")
    decisions = [line for line in lines if line["type"] == "decision"]
    assert [d["t_s"] for d in decisions] == [float(t) for t in range(1, 60)]
    assert any(not d["modalities"]["gps"]["present"] for d in decisions)
    assert any(line["type"] == "event" for line in lines)
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        out = tmp_path / name
        result = fusedge(
            "run", "driving", "--source", "sim:?duration_s=120&seed=7", "--out", str(out)
        )
        assert result.returncode == 0, result.stderr
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_decisions_go_to_standard_output_where_no_terminal_is(tmp_path: Path) -> None:
    result = fusedge("run", "driving", "--source", "sim:?duration_s=40", cwd=tmp_path)
    assert result.returncode == 0
    kinds = [json.loads(line)["type"] for line in result.stdout.splitlines()]
    assert kinds[0] == "session"
    assert kinds[-1] == "summary"
    assert kinds.count("decision") == 39
    assert list(tmp_path.iterdir()) == []


def test_a_modality_left_out_is_missing_in_every_decision() -> None:
    result = fusedge("run", "driving", "--source", "sim:?duration_s=40", "--without", "road")
    decisions = [json.loads(line) for line in result.stdout.splitlines()[1:-1]]
    assert all(
        d["modalities"]["road"] == {"present": False, "age_s": None}
        and d["outputs"]["style"]["contributions"]["road"] == 0.0
        for d in decisions
        if d["type"] == "decision"
    )


@pytest.mark.real_time
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_run_keeps_what_was_decided_and_closes_the_ledger(
    tmp_path: Path, signalled: signal.Signals
) -> None:
    out = tmp_path / "decisions.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fusedge.cli", "run", "driving"),
            *("--source", "sim:?duration_s=3600", "--speed", "20", "--out", str(out)),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(out, lines=10)
    process.send_signal(signalled)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == INTERRUPTED, errors
    assert "Traceback" not in errors
    lines = read_lines(out)
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["ended"] == "interrupted"
    assert lines[-1]["ledger_balanced"]


def test_interrupting_an_export_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out.fusedge"
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedge.cli", "export", "driving", "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(6)  # within the imports or the tracing, wherever the machine is by then
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("the export was done before it was interrupted")
    assert process.returncode == INTERRUPTED, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    command = (
        f"{sys.executable} -m fusedge.cli run driving --source sim:?duration_s=600 | head -n 2"
    )
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert len(result.stdout.splitlines()) == 2
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.4, 0.8])
def test_an_interrupt_while_starting_leaves_no_traceback(after_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedge.cli", "run", "driving", "--source", "sim:", "--speed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    # Before Python runs our first line, the signal is Python's own to answer.
    assert "fusedge" not in errors or "Traceback" not in errors


@pytest.mark.real_time
def test_a_reader_that_does_not_read_does_not_hold_up_the_end() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "fusedge.cli", "run", "driving"]
    command += ["--source", "sim:?duration_s=3600", "--speed", "200"]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    time.sleep(6)  # a pipe holds 64 KiB: 130 decisions
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    os.close(reader)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "left behind" in errors


@pytest.mark.real_time
def test_a_reader_that_goes_away_ends_a_session_in_real_time_with_status_1() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "fusedge.cli", "run", "driving"]
    command += ["--source", "sim:?duration_s=3600", "--speed", "100"]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert os.read(reader, 100).startswith(b'{"type":"session"')
    os.close(reader)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and "Traceback" not in errors
