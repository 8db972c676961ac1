"""Devices on the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusedge.cli.run import default_speed
from fusedge.runtime.appliance import load_appliance
from tests.cli.command import fusedge


@pytest.mark.parametrize(
    ("uris", "speed"),
    [
        (["sim:", "file:a.csv", "replay:x"], "max"),
        (["sim:", "gps:/dev/ttyS9"], "live"),
        (["rtsp://host/x"], "live"),
        (["nonsense"], "max"),
    ],
)
def test_devices_run_in_real_time_by_default(uris: list[str], speed: str) -> None:
    assert default_speed(uris) == speed


def test_inputs_are_listed_for_people_and_for_machines() -> None:
    done = fusedge("devices", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and "processor" in told
    assert isinstance(told["inputs"], list) and isinstance(told["input_notes"], list)
    for device in told["inputs"]:
        assert set(device) == {"kind", "name", "uri", "formats", "note"}
        assert device["uri"].partition(":")[0] in ("camera", "csi", "mic", "can", "gps", "imu")
    shown = fusedge("devices")
    assert shown.returncode == 0
    assert all(device["uri"] in shown.stderr for device in told["inputs"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--camera", "auto"], "camera:auto: offers none of the wanted modalities"),
        (["--mic", "auto"], "mic:auto: offers none of the wanted modalities"),
        (["--source", "gps:/dev/no-such-port"], "gps:/dev/no-such-port: no device"),
        (["--source", "gps:/dev/no-such-port", "--speed", "1"], "a device has the machine's time"),
        (["--source", "imu:iio:9"], "imu:iio:9"),
        (["--source", "rtsp://me:secret@127.0.0.1:1/x"], "offers none of the wanted"),
        ([], "--camera auto; see fusedge devices"),
    ],
)
def test_a_device_that_cannot_serve_is_one_line(words: list[str], message: str) -> None:
    done = fusedge("run", "driving", *words)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and message in line
    assert "secret" not in line


def test_files_of_an_appliance_are_found_beside_it(tmp_path: Path) -> None:
    for name in ("car.dbc", "a map.yaml", "drive.csv", "mount.json"):
        (tmp_path / name).touch()
    sources = [
        "can:can0?dbc=car.dbc&map=a%20map.yaml&rate=10",
        "file:drive.csv?map={time: {column: t}}",
        "imu:iio:0?mount=mount.json",
        "gps:/dev/ttyS0?baud=9600",
        "imu:iio:1?mount=auto",
    ]
    path = tmp_path / "a.yaml"
    pipeline = {"name": "a", "bundle": "driving", "sources": sources}
    path.write_text(json.dumps({"pipelines": [pipeline]}))
    can, film, imu, gps, auto = load_appliance(path).pipelines[0].sources
    assert can == f"can:can0?dbc={tmp_path}/car.dbc&map={tmp_path}/a%20map.yaml&rate=10"
    assert film == f"file:{tmp_path}/drive.csv?map={{time: {{column: t}}}}"
    assert imu == f"imu:iio:0?mount={tmp_path}/mount.json"
    assert (gps, auto) == tuple(sources[3:])


def test_an_appliance_waits_for_its_devices(tmp_path: Path) -> None:
    """Its only device is away: it runs, says so, and is told to stop."""
    path = tmp_path / "a.yaml"
    away = {"name": "away", "bundle": "driving", "sources": ["gps:/dev/no-such-port"]}
    path.write_text(json.dumps({"pipelines": [away]}))
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedge.cli", "run", str(path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("no device /dev/no-such-port" in line and "trying again" in line for line in lines)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    (source,) = json.loads(output)["away"]["summary"]["sources"].values()
    assert source["failures"] >= 1 and source["received"] == 0
