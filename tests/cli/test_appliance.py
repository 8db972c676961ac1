"""`fusedge run` with a file of pipelines, known delays and a bundle that is changed, as a user has them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.lookup import open_bundle, shipped_bundles
from fusedge.cli.app import app
from fusedge.cli.run import run_appliance
from fusedge.runtime.appliance import load_appliance
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from tests.cli.command import fusedge
from tests.devices.synthetic_trip import write_trip

INTERRUPTED = 130
TWO = """
speed: {speed}
pipelines:
  - name: cab-1
    bundle: driving
    sources: ["sim:?duration_s={seconds}&seed=1"]
    out: out/cab-1.jsonl
  - name: cab-2
    bundle: driving
    sources: ["{second}"]
    without: [road]
    out: out/cab-2.jsonl
"""


def write(path: Path, speed: object = "max", seconds: int = 20, second: str = "") -> Path:
    second = second or f"sim:?duration_s={seconds}&seed=2"
    path.write_text(TWO.format(speed=speed, seconds=seconds, second=second))
    return path


def lines(path: Path, kind: str = "decision") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if record["type"] == kind]


def test_each_pipeline_decides_as_it_does_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "two.yaml")
    result = fusedge("run", str(path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.index("cab-1") < result.stderr.index("cab-2")
    for number, without in ((1, []), (2, ["road"])):
        alone = tmp_path / "alone.jsonl"
        source = f"sim:?duration_s=20&seed={number}"
        session = Session(open_bundle("driving"), [source], VirtualClock(), without=without)
        run(session, [JsonLinesSink(alone)])
        written = tmp_path / f"out/cab-{number}.jsonl"
        assert lines(written) == lines(alone) != []
        assert len(lines(written)) == 19
        assert lines(written, "summary")[0]["ledger_balanced"]


@pytest.mark.real_time
def test_machines_get_the_reports_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "two.yaml", speed=20, seconds=10)
    result = fusedge("run", str(path), "--json")
    assert result.returncode == 0, result.stderr
    reports = json.loads(result.stdout)
    assert list(reports) == ["cab-1", "cab-2"]
    for name, report in reports.items():
        assert report["session"]["bundle"] == "driving" and report["session"]["clock"] == "paced"
        summary = report["summary"]
        assert summary["ended"] == "end of input" and summary["ledger_balanced"]
        written = lines(tmp_path / f"out/{name}.jsonl")
        assert len(written) == summary["decisions"]
        assert len(written) + summary["ticks_skipped"] >= 9
    assert reports["cab-2"]["session"]["without"] == ["road"]


def test_one_pipeline_with_a_problem_is_named_and_the_others_are_complete(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", seconds=20)
    (trip / "RAW_GPS.txt").write_text("")
    result = fusedge("run", str(write(tmp_path / "two.yaml", second=f"replay:{trip}")), "--json")
    assert result.returncode == 1
    assert "cab-2: warning: " in result.stderr and "RAW_GPS.txt is empty: no gps" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"fusedge: cab-2: replay:{trip}: ran to the end, but ")
    assert list(json.loads(result.stdout)) == ["cab-1", "cab-2"]
    assert len(lines(tmp_path / "out/cab-1.jsonl")) == 19


@pytest.mark.real_time
def test_an_interrupt_ends_all_pipelines_with_their_summaries(tmp_path: Path) -> None:
    path = write(tmp_path / "two.yaml", speed=10, seconds=3600)
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedge.cli", "run", str(path)], stderr=subprocess.PIPE, text=True
    )
    outs = [tmp_path / f"out/cab-{number}.jsonl" for number in (1, 2)]
    wait_for_lines(outs[0], 4)
    wait_for_lines(outs[1], 4)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == INTERRUPTED, errors
    assert time.monotonic() - asked < 3 and "Traceback" not in errors
    for out in outs:
        (summary,) = lines(out, "summary")
        assert summary["ended"] == "interrupted" and summary["ledger_balanced"]


def wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 30
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "nothing was written in 30 s"
        time.sleep(0.02)


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("pipelines: [{name: a, bundle: driving, source: ['sim:']}]")
    result = fusedge("run", str(path))
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fusedge: {path}: pipelines.0.source")


def refused_words(*words: str) -> str:
    """What is said of a command, in this process."""
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, FusedgeError)
    return error.line()


def options_of_run() -> dict[str, list[str]]:
    """Every option of `fusedge run` but --json, with a value that it takes."""
    commands: Any = get_command(app)
    options = [p for p in commands.commands["run"].params if p.name not in ("bundle", "as_json")]
    return {option.opts[0]: [] if option.is_flag else ["1"] for option in options}


def test_whatever_is_given_beside_a_file_of_pipelines_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "two.yaml")
    options = options_of_run()
    assert {"--source", "--speed", "--watch", "--table", "--chaos-seed"} <= options.keys()
    for option, value in options.items():
        said = refused_words("run", str(path), "--json", option, *value)
        assert said.startswith(f"{path}: {option}: settings are in the file"), said
    said = refused_words("run", str(path), "--no-table", "--out", "x", "--provider", "cpu")
    assert f"{path}: --out, --table, --provider: settings are in the file" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [(), ("--speed", "max")])
def test_to_watch_a_bundle_takes_time_that_goes_by(words: tuple[str, ...], tmp_path: Path) -> None:
    said = refused_words("run", "driving", "--source", "sim:", "--watch", *words)
    assert "a bundle is watched in real time only (with speed 1" in said
    assert "watched in real time only" in refused(tmp_path, "watch: true", "speed: max")


@pytest.mark.real_time
@pytest.mark.parametrize("speed", ["max", "40"])
def test_chaos_strikes_the_pipelines_that_ask_for_it(tmp_path: Path, speed: str) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        f"speed: {speed}\npipelines:\n"
        "  - {name: a, bundle: driving, sources: ['sim:?duration_s=60'], out: a.jsonl}\n"
        "  - {name: b, bundle: driving, sources: ['sim:?duration_s=60'], out: b.jsonl,\n"
        "     chaos: 'silence,disk-full', chaos_seed: 3, chaos_every: 6}\n"
    )
    run_appliance(load_appliance(path), as_json=True)
    ((calm,), (struck,)) = (lines(tmp_path / f"{name}.jsonl", "summary") for name in "ab")
    assert "chaos" not in calm and calm["ledger_balanced"] and struck["ledger_balanced"]
    (header,) = lines(tmp_path / "b.jsonl", "session")
    assert header["chaos"] == {"seed": 3, "kinds": ["silence", "disk-full"], "every_s": 6}
    assert all(count >= 1 for count in struck["chaos"]["count"].values())
    assert len(lines(tmp_path / "b.jsonl")) < len(lines(tmp_path / "a.jsonl"))


def refused(tmp_path: Path, fields: str, head: str = "speed: 50") -> str:
    """What is said of a file whose second pipeline has something that cannot be."""
    fields = f"{{name: b, bundle: driving, sources: ['sim:?duration_s=2'], {fields}}}"
    if "bundle:" in fields.removeprefix("{name: b, bundle"):
        fields = fields.replace("bundle: driving, ", "")
    first = "{name: a, bundle: driving, sources: ['sim:?duration_s=2']}"
    path = tmp_path / "two.yaml"
    path.write_text(f"{head}\npipelines: [{first}, {fields}]")
    with pytest.raises(FusedgeError) as caught:
        run_appliance(load_appliance(path), as_json=True)
    return caught.value.line()


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("bundle: drivng", "unknown bundle 'drivng' (did you mean 'driving'?)"),
        ("bundle: ./none.fusedge", "no such bundle"),
        ("without: [gsp]", "unknown modality 'gsp' (did you mean 'gps'?)"),
        ("latency_s: {gsp: 1}", "unknown modality 'gsp'"),
        ("latency_s: {gps: 80000}", "modality gps: latency of 80000 s: "),
        ("provider: gpu", "unknown provider 'gpu'"),
        ("precision: int4", "part imu has no int4 graph"),
        ("record_events: soon", "'soon' is not a time"),
        ("chaos: stal", "unknown kind of chaos 'stal' (did you mean 'stall'?)"),
        (
            "measure_latency: [{speed: gps.sped, acceleration: imu.roll}]",
            "unknown channel 'gps.sped'",
        ),
        ("out: /proc/nowhere/x.jsonl", "/proc/nowhere/x.jsonl: cannot write decisions"),
        ("record: two.yaml", "two.yaml: is there already"),
        ("out: two.yaml", "two.yaml: is there and holds no decisions"),
    ],
)
def test_what_a_pipeline_cannot_have_is_said_before_anything_runs(
    tmp_path: Path, fields: str, said: str
) -> None:
    assert said in refused(tmp_path, fields)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("speed: quick", "speed 'quick' is not a speed"),
        ("speed: -1", "speed '-1' is not a speed"),
        ("speed: .inf", "speed 'inf' is not a speed"),
        ("speed: live", "sim:?duration_s=2: has a time of its own"),
        ("speed: 50\ncores: [4095]", "cores 4095: this process may use"),
    ],
)
def test_what_the_machine_cannot_do_is_said(tmp_path: Path, head: str, said: str) -> None:
    assert said in refused(tmp_path, "without: []", head)


def test_a_first_output_that_cannot_be_written_closes_the_pipelines_behind_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(write(path, speed=50).read_text().replace("out/cab-1", "/proc/nowhere/cab-1"))
    with pytest.raises(FusedgeError, match=r"/proc/nowhere/cab-1\.jsonl: cannot write decisions"):
        run_appliance(load_appliance(path), as_json=True)


def test_a_known_delay_is_recorded_and_replayed(tmp_path: Path) -> None:
    pytest.importorskip("mcap")
    path, plain, delayed = tmp_path / "x.mcap", tmp_path / "plain.jsonl", tmp_path / "delayed.jsonl"
    command = ("run", "driving", "--source", "sim:?duration_s=20")
    given = ("--latency", "gps=1.2", "--record", str(path), "--out", str(delayed))
    result = fusedge(*command, *given)
    assert result.returncode == 0, result.stderr
    (header,) = lines(delayed, "session")
    assert header["latency_s"] == {"gps": 1.2}
    run(Session(open_bundle("driving"), [command[3]], VirtualClock()), [JsonLinesSink(plain)])
    assert lines(plain) != lines(delayed), "the delay matters"
    replayed = fusedge("replay", str(path), "--json")
    assert replayed.returncode == 0, replayed.stderr
    report = json.loads(replayed.stdout)
    assert report["identical"] and report["identical_decisions"] == 19


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--latency", "gps"), "--latency 'gps' says no delay (write gps=0.85)"),
        (("--latency", "gps=soon"), "says no delay"),
        (("--latency", "gsp=1"), "unknown modality 'gsp' (did you mean 'gps'?)"),
        (("--latency", "gps=nan"), "modality gps: latency of nan s: "),
        (("--cores", "zero"), "--cores 'zero' names no cores"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(words: tuple[str, ...], said: str) -> None:
    assert said in refused_words("run", "driving", "--source", "sim:", *words)


def other(path: Path) -> Path:
    """The shipped bundle with another description, as a file of its own."""
    with zipfile.ZipFile(shipped_bundles()["driving"]) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(content["manifest.json"])
    manifest["description"] = "the next one"
    content["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.real_time
def test_a_bundle_that_is_replaced_during_a_run_is_changed_to(tmp_path: Path) -> None:
    running = Path(shutil.copy(shipped_bundles()["driving"], tmp_path / "running.fusedge"))
    following = other(tmp_path / "following.fusedge")
    before, after = Bundle(running).sha256, Bundle(following).sha256
    assert before != after
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fusedge.cli", "run", str(running), "--watch", "--json"),
            *("--source", "sim:?duration_s=24", "--speed", "8", "--out", str(out)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_lines(out, 3)
    following.replace(running)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    report = json.loads(output)
    assert report["session"]["bundle_sha256"] == before
    (swap,) = report["summary"]["swaps"]
    assert (swap["state"], swap["bundle_sha256"], swap["reason"]) == ("done", after, "")
    assert swap["compared"] >= 5  # its memory is younger, so that not all labels are the same
    (retired,) = report["summary"]["retired"]
    assert retired["bundle_sha256"] == before and retired["ledger_balanced"]
    assert report["summary"]["ledger_balanced"]
    times = [decision["t_s"] for decision in lines(out)]
    assert times == sorted(set(times)) and len(times) >= 22, "each tick once"
