"""`fusedge record` and `fusedge replay` as a user runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("mcap")

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.recording import tracks_of
from fusedge.bundle.recording_file import RecordingFile
from fusedge.bundle.sample import Rejection, Sample
from fusedge.cli.app import app
from fusedge.cli.record import parse_duration, recorders
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.driving import CHANNELS
from fusedge.devices.capture.sim import SimulatedDrive, parse_options
from fusedge.devices.capture.source import SCHEMES, Scheme
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.recorder import EventClips, Recorder
from tests.cli.command import fusedge
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of the shipped bundle over a simulated drive."""
    path = tmp_path_factory.mktemp("recording") / "drive.mcap"
    bundle = open_bundle("driving")
    session = Session(bundle, ["sim:?duration_s=30"], VirtualClock())
    run(session, [Recorder(path, tracks_of(bundle.manifest))])
    return path


def test_a_source_is_recorded_and_decides_the_same_when_it_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    done = fusedge("record", "--source", "sim:?duration_s=30", "-o", str(path), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ended"] == "end of input"
    assert report["ledger"]["imu"]["received"] == report["ledger"]["imu"]["used"] == 300
    assert report["bytes"] == path.stat().st_size
    decisions = []
    for source in (f"replay:{path}", "sim:?duration_s=30"):
        done = fusedge("run", "driving", "--source", source, "--no-table", "--out", "-")
        assert done.returncode == 0, done.stderr
        decisions.append([line for line in done.stdout.splitlines() if '"decision"' in line])
    assert decisions[0] == decisions[1] != []


def test_a_recording_stops_after_its_time(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    done = fusedge("record", "--source", "sim:", "-o", str(path), "--seconds", "5")
    assert done.returncode == 0, done.stderr
    assert "time is up: 5.0 s" in done.stderr
    assert "imu" in done.stderr


def test_a_replay_is_identical(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "now.jsonl"
    done = fusedge("replay", str(recording), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "identical: 29 of 29 decisions" in done.stderr
    assert out.read_text().count('"type":"decision"') == 29


def test_a_replay_for_machines(recording: Path) -> None:
    done = fusedge("replay", str(recording), "driving", "--json")
    report = json.loads(done.stdout)
    assert (report["identical"], report["identical_decisions"]) == (True, 29)
    assert len(report["sha256"]) == 64


def test_a_difference_fails(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.mcap"
    bundle = open_bundle("driving")
    recorder = Recorder(path, tracks_of(bundle.manifest))
    recorder.open(RecordingFile(recording).info.session)

    sink = recorder
    session = Session(bundle, ["sim:?duration_s=30"], VirtualClock())

    class Crooked(Recorder):
        def __init__(self) -> None:
            self.name = "crooked"

        def open(self, header: object) -> None: ...

        def write(self, item: object) -> None:
            if isinstance(item, Sample) and item.timestamp_ns > 10 * 10**9:
                item = Rejection(item.modality, item.arrival_ns, "torn", "")
            sink.write(item)  # type: ignore[arg-type]

        def close(self, summary: object) -> None:
            sink.close({})

    run(session, [Crooked()])
    done = fusedge("replay", str(path))
    assert done.returncode == 1
    assert "different" in done.stderr or "makes no sense" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_bundle_is_refused_unless_it_is_asked_for(recording: Path, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    done = fusedge("replay", str(recording), str(tmp_path / "tiny"))
    assert done.returncode == 1
    assert "another bundle" in done.stderr
    done = fusedge("replay", str(recording), "driving", "--other-bundle", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["decisions"] == 29


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay", "none.mcap"], "No such file"),
        (["replay", "none.mcap", "driving"], "No such file"),
        (["record", "--source", "sim:", "-o", "there.mcap"], "never replaced"),
        (["record", "--source", "sim:", "--source", "sim:?seed=2", "-o", "x.mcap"], "two sources"),
        (["record", "--source", "replay:none.mcap", "-o", "x.mcap"], "No such file"),
        (["record", "--source", "sim:", "-o", "/proc/x.mcap"], "cannot record here"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "there.mcap").write_text("mine")
    done = fusedge(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "there.mcap").read_text() == "mine"
    assert not (tmp_path / "x.mcap").exists()


@pytest.mark.parametrize("name", [None, 1, "", "none", ["driving"], {"driving": 1}])
def test_a_recording_that_names_no_bundle_asks_for_one(tmp_path: Path, name: object) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, tracks_of(open_bundle("driving").manifest))
    recorder.open({"bundle": name, "bundle_sha256": "0"})
    recorder.close({})
    for words in (["replay", str(path)], ["replay", str(path), "--other-bundle"]):
        error = CliRunner().invoke(app, words).exception
        assert isinstance(error, FusedgeError)
        assert "name the bundle after the recording" in error.line()


@pytest.mark.parametrize(("count", "words"), [(1, ["a source"]), (2, ["2 sources"])])
def test_a_source_that_failed_is_told_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, words: list[str]
) -> None:
    class Broken(SimulatedDrive):
        def __init__(self, uri: str, modality: str) -> None:
            wanted = {modality: tuple(CHANNELS[modality])}
            super().__init__(uri, parse_options(uri, "", {}), wanted)

        def samples(self) -> Iterator[Sample | Rejection]:
            yield from islice(super().samples(), 5)
            raise OSError("unplugged")

    def open_broken(request: Request) -> Broken:
        return Broken(request.address.uri, request.address.target)

    scheme = Scheme("", frozenset(), open_broken, live=False)
    monkeypatch.setitem(SCHEMES, "broken", scheme)  # type: ignore[misc]
    uris = ["broken:gps", "broken:imu"][:count]
    sources = [word for uri in uris for word in ("--source", uri)]
    path = tmp_path / "a.mcap"
    done = CliRunner().invoke(app, ["record", *sources, "-o", str(path)])
    assert isinstance(done.exception, FusedgeError)
    assert f"{', '.join(uris)}: recorded, but {words[0]} failed" in done.exception.line()
    for uri in uris:
        assert f"note: source {uri} failed, first: OSError: unplugged\n" in done.stderr
    assert RecordingFile(path).complete
    done = CliRunner().invoke(app, ["record", *sources, "-o", str(tmp_path / "b.mcap"), "--json"])
    assert done.exit_code == 1
    given = json.loads(done.stdout)["sources"]
    assert [given[uri]["failures"] for uri in uris] == [1] * count


def test_ctrl_c_ends_a_recording_in_order(tmp_path: Path) -> None:
    path = tmp_path / "long.mcap"
    command = [sys.executable, "-m", "fusedge.cli", "record", "--source", "sim:?duration_s=600000"]
    with subprocess.Popen([*command, "-o", str(path)], stderr=subprocess.PIPE, text=True) as child:
        while not (path.exists() and path.stat().st_size > 50_000):
            time.sleep(0.02)
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors
    assert "stopped" in errors
    assert RecordingFile(path).complete


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("10", 10), ("1.5s", 1.5), ("500ms", 0.5), ("2min", 120)]
)
def test_times_are_written_as_people_do(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "1h", "s", "1e3s", "11min", "nan", "10 s s"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(FusedgeError, match="is not a time"):
        parse_duration(text)


def test_options_become_sinks(tmp_path: Path) -> None:
    manifest = open_bundle("driving").manifest
    both = recorders(manifest, tmp_path / "a.mcap", "10s", tmp_path / "clips", None)
    assert [type(sink) for sink in both] == [Recorder, EventClips]
    assert not recorders(manifest, None, None, tmp_path, None)
