"""`fusedge devices --watch`: a reading a second."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from fusedge.cli.devices_watch import _table
from fusedge.devices.targets.telemetry.reading import Frequency, Reading
from tests.cli.command import fusedge


def test_readings_are_json_lines_for_machines() -> None:
    done = fusedge("devices", "--watch", "--count", "2", "--json")
    assert done.returncode == 0 and not done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["time_ns"] > first["time_ns"]
    assert (
        set(first)
        == set(second)
        >= {
            *("temperatures_c", "frequencies", "power_w", "memory", "utilisation_percent"),
            *("throttling", "throttle_reasons", "power_mode", "notes", "hottest", "board_w"),
        }
    )


def test_readings_are_a_line_each_where_there_is_no_terminal() -> None:
    pytest.importorskip("psutil")
    done = fusedge("devices", "--count", "1")
    assert done.returncode == 0 and not done.stdout
    line, *notes = done.stderr.splitlines()
    assert "MiB: ram " in line and "process " in line
    assert all(note.startswith("note: ") for note in notes)


def test_the_table_shows_names_as_they_are_and_what_holds_the_machine_back() -> None:
    reading = Reading(
        temperatures_c={"a[/b]": 90.0, "[red]": 50.0},
        frequencies={"gpu": Frequency(612.0, 918.0)},
        throttling=True,
        throttle_reasons=("heat [x]",),
        notes=("[/note]",),
    )
    text = StringIO()
    Console(file=text, width=100).print(_table(reading))
    shown = text.getvalue()
    for words in ("a[/b] 90.0 ([red] 50)", "gpu 612 of 918", "heat [x]", "[/note]"):
        assert words in shown


def test_ctrl_c_ends_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedge.cli", "devices", "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0 and not complaints
