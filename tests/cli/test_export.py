"""`fusedge export` with models of a user's own, and what it says where it cannot go on."""

from __future__ import annotations

import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from examples import fusion_model, plain_model
from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.cli.app import app
from fusedge.runtime.backend import open_part
from tests.cli.command import fusedge

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAIN = ("examples.plain_model:make", "--example", "inputs.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the examples and what the plain one writes."""
    place = tmp_path_factory.mktemp("user")
    shutil.copytree(EXAMPLES, place / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    plain_model.main(place)
    return place


@pytest.fixture(autouse=True)
def _in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FUSEDGE_DATA", raising=False)  # it would be as --data in every command
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))


def exported(*words: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    done = fusedge("export", *words, "--json", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_plain_model_is_searched_exported_and_run(tmp_path: Path) -> None:
    out, page = tmp_path / "digits.fusedge", tmp_path / "digits.html"
    words = (*PLAIN, "--checkpoint", "weights.safetensors", "-o", str(out), "--report", str(page))
    others = page.with_suffix(".json")
    others.write_text("the user's own", "utf-8")
    said = exported(*words, "--precision", "auto", "--budget", "5")
    assert said["complete"] and said["metric"]["name"] == "agreement with fp32"
    assert said["metric"]["fp32"] == 1.0 and said["metric"]["chosen"] >= 0.95
    assert {row["precision"] for row in said["parity"]} == {"fp32", "mixed"}
    assert "<html" in page.read_text("utf-8")
    assert others.read_text("utf-8") == "the user's own"
    record = json.loads(page.with_suffix(".export.json").read_text("utf-8"))
    assert record["search"]["budget"] == 5 and record["search"]["points"]

    torch.manual_seed(0)
    model = plain_model.DigitNet().eval()
    pictures = np.load("inputs.npz")["picture"]
    with torch.no_grad():
        wanted = model(torch.from_numpy(pictures))
    with open_part(Bundle(out)) as part:
        found = part.run({"picture": pictures})
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-5)
    # All of it is taken up from the first time.
    again = exported(*words, "--precision", "auto", "--budget", "5")
    assert again["sha256"] == said["sha256"]
    assert "trace" not in again["stage_s"] and "trace" in said["stage_s"]


def test_int8_is_calibrated_on_the_example_and_its_metric_told(tmp_path: Path) -> None:
    out = tmp_path / "digits.fusedge"
    words = ("--precision", "int8", "--calibration", "entropy", "--budget", "100")
    said = exported(*PLAIN, *words, "-o", str(out))
    (part,) = Bundle(out).manifest.parts
    assert set(part.graph("int8").precision_by_node.values()) == {"int8"}
    assert 0.0 <= said["metric"]["chosen"] <= 1.0


def test_a_fusion_model_of_ones_own_becomes_parts_that_run(tmp_path: Path) -> None:
    fusion_model.main(Path.cwd())
    out = tmp_path / "room.fusedge"
    words = ("--checkpoint", "weights.safetensors", "--precision", "fp32", "-o", str(out))
    exported("examples.fusion_model:make", *words)
    manifest = Bundle(out).manifest
    assert [part.kind for part in manifest.parts] == ["encoder"] * 3 + ["head"]
    assert all(part.state for part in manifest.parts if part.name != "camera")
    soaked = fusedge("soak", str(out), "--hours", "0.01", cwd=tmp_path)
    assert soaked.returncode == 0, soaked.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("drivng",), "did you mean 'driving'"),
        (("driving", "--precision", "fp8"), "precision 'fp8'"),
        (("driving", "--precision", "fp15"), "did you mean 'fp16'"),
        (("driving", "--precision", "int8"), "needs recorded input"),
        (("driving", "--precision", "auto"), "needs recorded input"),
        (("driving", "--calibration", "minmax"), "calibration 'minmax'"),
        (("driving", "--report", "page.txt"), "--report NAME.html"),
        (("driving", "--target", "rtx-4091"), "did you mean 'rtx-4090'"),
        (("driving", "--dim", "batch=4:1:8"), "rising sizes"),
        (("driving", "--dim", "batch=a:b:c"), "rising sizes"),
        (("driving", "--opset", "16"), "17 to 22"),
        (("driving", "--data", "nowhere", "--precision", "int8"), "nowhere"),
        (("driving", "--dim", "bathc=1:2:4"), "unknown dim 'bathc' (did you mean 'batch'?)"),
        (("driving", "--axes", "imu=batch"), "--axes is for plain models"),
        (("driving", "--example", "nosuch.npz"), "--example is for plain models"),
        (("driving", "--report", "nowhere/page.html"), "cannot write the report: No such file"),
        (("driving", "--report", "examples"), "--report NAME.html"),
        (("examples.fusion_model:make", "--axes", "a=batch"), "--axes is for plain models"),
        (("examples.fusion_model:make", "--dim", "tokens=1:2:4"), "unknown dim 'tokens'"),
        (("examples.fusion_model:make", "--data", "."), "`evaluation`"),
        ((*PLAIN, "--data", "."), "--data is for shipped tasks"),
        (("examples.plain_model:make",), "needs --example NPZ"),
        (("examples.plain_model:mak", "--example", "inputs.npz"), "did you mean 'make'"),
        (("examples.fusion_model:make", "--example", "inputs.npz"), "is for plain models"),
        (("examples.plain_model:make", "--example", "weights.safetensors"), "an .npz file"),
        ((*PLAIN, "--axes", "picture"), "is not INPUT=DIM"),
        ((*PLAIN, "--axes", "pictures=batch,32,32"), "did you mean 'picture'"),
        ((*PLAIN, "--checkpoint", "inputs.npz"), "inputs.npz"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    words: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(FusedgeError) as failure:
        app(["export", *words, "-o", str(tmp_path / "out.fusedge")], standalone_mode=False)
    line = failure.value.line()
    assert reason in line and "\n" not in line
    assert not (tmp_path / "out.fusedge").exists()


@pytest.mark.parametrize("out", ["page.html", "page.export.json", "."])
def test_a_report_is_not_written_into_the_bundle(out: str) -> None:
    with pytest.raises(FusedgeError, match=r"page.html: the report would be written into"):
        app(["export", "driving", "--report", "page.html", "-o", out], standalone_mode=False)


def test_what_a_model_prints_is_no_output_and_the_environments_data_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "loud.py").write_text(
        "from torch import nn\n"
        "print('imported')\n"
        "class Loud(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        print('run')\n"
        "        return super().forward(x)\n"
        "def make():\n"
        "    print('made')\n"
        "    return Loud(3, 2)\n"
    )
    np.savez(folder / "x.npz", x=np.ones((2, 3), np.float32))
    monkeypatch.setenv("FUSEDGE_DATA", "nowhere")
    words = ("loud:make", "--example", "x.npz", "--precision", "fp32")
    said = exported(*words, "-o", str(tmp_path / "loud.fusedge"))
    assert said["complete"]


def refusal_of_example(content: bytes, path: Path) -> str:
    """What is said of an example with these bytes; empty if it is taken."""
    path.write_bytes(content)
    words = ["export", "examples.plain_model:make", "--example", str(path), "--axes", "no=batch"]
    with pytest.raises(FusedgeError) as failure:
        app([*words, "-o", "out.fusedge"], standalone_mode=False)
    line = failure.value.line()
    assert "\n" not in line
    return line if "cannot be read as an .npz file" in line else ""


def packed(compressed: bool = False) -> bytes:
    file = BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(file, picture=np.arange(20.0), other=np.ones(3))
    return file.getvalue()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(compressed=st.booleans(), place=st.integers(0), new=st.binary(min_size=1, max_size=8))
@example(compressed=True, place=70, new=b"\xff" * 8)
def test_a_damaged_example_is_refused_in_one_line(
    compressed: bool, place: int, new: bytes, tmp_path: Path
) -> None:
    content = bytearray(packed(compressed))
    place %= len(content)
    content[place : place + len(new)] = new
    refusal_of_example(bytes(content), tmp_path / "damaged.npz")


def test_an_example_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)}
    )
    with ZipFile(path, "w") as archive:
        archive.writestr("picture.npy", header.getvalue())
    assert refusal_of_example(path.read_bytes(), path)
    content = bytearray(packed())
    for entry in re.finditer(rb"PK\x01\x02", content):  # of the directory, where sizes stand
        content[entry.start() + 24 : entry.start() + 28] = (3 << 30).to_bytes(4, "little")
    assert "it holds more than 4 GiB" in refusal_of_example(bytes(content), path)
    assert "cannot be read" in refusal_of_example(packed()[:-30], path)
    assert not refusal_of_example(packed(), path)
