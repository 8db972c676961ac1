"""Whatever is wrong with the input: one line that says what, where and what to do, and a status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fusedge.bundle.lookup import shipped_bundles
from fusedge.bundle.manifest import FORMAT_VERSION
from tests.cli.command import fusedge
from tests.devices.synthetic_trip import write_trip


def refused(*words: str, status: int = 1) -> str:
    """The one line with which a command is refused."""
    result = fusedge(*words)
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fusedge: ")
    return lines[0]


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return Path(shutil.copy(shipped_bundles()["driving"], tmp_path / "copy.fusedge"))


def rewrite_manifest(path: Path, change: dict[str, object]) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["manifest.json"] = json.dumps(json.loads(content["manifest.json"]) | change).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_a_missing_bundle_is_named() -> None:
    assert "nowhere.fusedge: no such bundle" in refused("verify", "nowhere.fusedge")


def test_a_mistyped_bundle_gets_the_closest_match() -> None:
    assert "did you mean 'driving'?" in refused("inspect", "drving")


def test_a_truncated_bundle_is_refused(shipped: Path) -> None:
    shipped.write_bytes(shipped.read_bytes()[:-100])
    assert str(shipped) in refused("run", str(shipped), "--source", "sim:")


def test_an_altered_part_is_refused(shipped: Path) -> None:
    with zipfile.ZipFile(shipped) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["parts/head.fp32.onnx"] = content["parts/head.fp32.onnx"][:-1] + b"\0"
    with zipfile.ZipFile(shipped, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    line = refused("verify", str(shipped))
    assert "parts/head.fp32.onnx was altered or truncated" in line


def test_a_manifest_from_a_later_version_says_to_upgrade(shipped: Path) -> None:
    rewrite_manifest(shipped, {"format_version": FORMAT_VERSION + 1})
    line = refused("run", str(shipped), "--source", "sim:")
    assert "newer than this program" in line
    assert "upgrade fusedge" in line


def test_a_part_that_disagrees_with_the_manifest_is_refused(shipped: Path) -> None:
    with zipfile.ZipFile(shipped) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    head = next(part for part in manifest["parts"] if part["kind"] == "head")
    encoder = next(part for part in manifest["parts"] if part["kind"] == "encoder")
    encoder["graphs"][0]["file"] = head["graphs"][0]["file"]
    rewrite_manifest(shipped, {"parts": manifest["parts"]})
    line = refused("run", str(shipped), "--source", "sim:")
    assert f"part {encoder['name']}" in line
    assert "are not those of the manifest" in line


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("simm:", "did you mean 'sim'?"),
        ("sim:?sed=1", "did you mean 'seed'?"),
        ("sim:?script=lazy:10", "unknown style 'lazy'"),
        ("replay:/nowhere", "/nowhere: no such trip folder"),
        ("drive", "a source is named by scheme"),
    ],
)
def test_a_source_that_cannot_be_opened_says_why(source: str, reason: str) -> None:
    assert reason in refused("run", "driving", "--source", source)


def test_a_run_that_cannot_start_leaves_an_older_output_alone(tmp_path: Path) -> None:
    out = tmp_path / "decisions.jsonl"
    out.write_text("precious\n")
    refused("run", "driving", "--source", "simm:", "--out", str(out))
    assert out.read_text() == "precious\n"


def test_an_output_that_cannot_be_written_is_named() -> None:
    line = refused("run", "driving", "--source", "sim:", "--out", "/proc/nowhere/decisions.jsonl")
    assert "/proc/nowhere/decisions.jsonl: cannot write decisions" in line


def test_a_folder_that_is_no_trip_says_what_one_holds(tmp_path: Path) -> None:
    line = refused("run", "driving", "--source", f"replay:{tmp_path}")
    assert "RAW_GPS" in line


def test_unknown_names_get_the_closest_match(tmp_path: Path) -> None:
    out = str(tmp_path / "out.fusedge")
    assert "did you mean 'driving'?" in refused("export", "drivng", "-o", out)
    assert "or 'rtx-4090'?" in refused("export", "driving", "--target", "rtx-409", "-o", out)
    assert "did you mean 'gps'?" in refused(
        "run", "driving", "--source", "sim:", "--without", "gsp"
    )
    assert "unknown provider 'gpu'" in refused(
        "run", "driving", "--source", "sim:", "--provider", "gpu"
    )


def test_an_export_to_a_folder_that_cannot_be_made_is_refused() -> None:
    line = refused("export", "driving", "-o", "/proc/nowhere/out.fusedge")
    assert "/proc/nowhere/out.fusedge: cannot write the bundle" in line


def test_data_that_is_not_there_is_named_with_its_licence(tmp_path: Path) -> None:
    line = refused("train", "driving", "--data", str(tmp_path), "-o", str(tmp_path / "run"))
    assert "non-commercial" in line


def test_a_mistyped_command_gets_the_closest_match() -> None:
    result = fusedge("exprot")
    assert result.returncode == 2
    assert "Did you mean 'export'?" in result.stderr


def test_a_broken_trip_is_run_to_its_end_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", seconds=40)
    imu = trip / "RAW_ACCELEROMETERS.txt"
    rows = imu.read_text().splitlines(keepends=True)
    rows[50] = rows[49]  # a repeated stamp
    rows[100] = rows[60]  # a stamp from the past
    rows[150] = rows[150].replace(rows[150].split()[5], "nan", 1)
    imu.write_text("".join(rows) + "39.9 1 0.0")  # torn
    (trip / "RAW_GPS.txt").write_text("")
    result = fusedge("run", "driving", "--source", f"replay:{trip}", "--json")
    assert result.returncode == 1, result.stderr
    assert "RAW_GPS.txt is empty: no gps" in result.stderr
    assert "RAW_ACCELEROMETERS.txt:401: torn" in result.stderr
    assert "ran to the end, but 1 of its rows could not be read" in result.stderr
    summary = json.loads(result.stdout)["summary"]
    assert summary["ledger_balanced"]
    assert summary["decisions"] >= 38
    dropped = summary["ledger"]["imu"]["dropped"]
    assert dropped["duplicate"] == 1
    assert dropped["late"] == 1
    assert dropped["malformed"] == 1


def test_a_trip_of_which_nothing_can_be_used_is_refused_at_the_end(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", seconds=4)
    for file in trip.glob("*.txt"):
        file.write_bytes(bytes(range(256)) * 40)
    result = fusedge("run", "driving", "--source", f"replay:{trip}", "--json")
    assert result.returncode == 1
    assert "not one sample could be used" in result.stderr
    assert "Traceback" not in result.stderr


def test_names_from_outside_cannot_steer_the_terminal(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip\x1b]0;owned\x07", seconds=40)
    (trip / "RAW_GPS.txt").unlink()
    result = fusedge(
        "run", "driving", "--source", f"replay:{trip}", "--table", "--out", "/dev/null"
    )
    assert "no gps" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    "words", [("run", "driving", "--source", "sim:"), ("inspect", "driving", "--json"), ("--help",)]
)
def test_a_full_disk_behind_standard_output_is_one_line(words: tuple[str, ...]) -> None:
    line = " ".join(("{python} -m fusedge.cli", *words, ">/dev/full")).format(python=sys.executable)
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_closed_standard_output_is_one_line() -> None:
    line = f"{sys.executable} -m fusedge.cli devices >&-"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "fusedge: standard output is closed\n")


def test_a_file_that_holds_no_decisions_is_not_replaced(shipped: Path) -> None:
    before = shipped.read_bytes()
    line = refused("run", str(shipped), "--source", "sim:?duration_s=2", "--out", str(shipped))
    assert "holds no decisions, so it is not replaced" in line
    assert shipped.read_bytes() == before


def test_a_picture_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    out = tmp_path / "decisions.jsonl"
    line = refused(
        *("run", "driving", "--source", "sim:?duration_s=2", "--out", str(out)),
        *("--picture", "/proc/nowhere/trip.png"),
    )
    assert "cannot write the picture" in line


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_place_for_results_that_cannot_be_written_is_one_line(
    command: str, tmp_path: Path
) -> None:
    trip = write_trip(tmp_path / "D1" / "20151110175712-16km-D1-NORMAL1-SECONDARY", seconds=4)
    line = refused(command, "driving", "--data", str(trip.parents[1]), "-o", "/proc/nowhere")
    assert "/proc/nowhere" in line


def test_a_picture_is_never_drawn_over_what_is_no_file() -> None:
    line = refused(
        *("run", "driving", "--source", "sim:?duration_s=2"),
        *("--out", "/dev/null", "--picture", "/dev/full"),
    )
    assert "/dev/full: is there and no picture" in line


def test_a_modality_that_gave_nothing_useful_is_a_problem(tmp_path: Path) -> None:
    trip = write_trip(tmp_path / "trip", seconds=40)
    gps = trip / "RAW_GPS.txt"
    gps.write_text(gps.read_text().replace(" 40.5 -3.3 ", " 0.0 0.0 "))
    result = fusedge("run", "driving", "--source", f"replay:{trip}", "--json")
    assert result.returncode == 1
    assert "not one sample of gps could be used" in result.stderr
