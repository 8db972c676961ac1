"""`fusedge build` as a user runs it: real engines for desktop GPUs, and clear words without a GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import built_here
from fusedge.cli.app import app
from fusedge.export import engine
from fusedge.export.cache import Cache
from fusedge.export.engine import BuildLimits, BuiltEngine, EngineRequest
from tests.cli.command import fusedge
from tests.tiny_bundle import write_tiny_bundle

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'fusedge[rtx]'",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))
    return write_tiny_bundle(tmp_path / "tiny.fusedge").path


@needs_rtx
def test_engines_are_built_into_the_bundle_and_it_verifies(place: Path, tmp_path: Path) -> None:
    done = fusedge("build", str(place), "--target", "rtx-4090", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["complete"] and told["sha256"] == Bundle(place).sha256
    assert [row["state"] for row in told["engines"]] == ["built"] * 3
    for part in Bundle(place).manifest.parts:
        (row,) = part.engines
        assert row.targets == ("rtx-4090",) and row.compute_capabilities == ("8.9",)
        assert built_here(Bundle(place).manifest.files[row.file].sha256)
    verified = fusedge("verify", str(place))
    assert verified.returncode == 0, verified.stderr

    again = fusedge("build", str(place), "--target", "rtx-4090")
    assert again.returncode == 0 and again.stderr.count("present") == 3
    assert "nothing to add" in again.stderr


@needs_rtx
def test_a_part_that_cannot_be_built_is_one_line_and_status_1(place: Path) -> None:
    done = fusedge("build", str(place), "--target", "rtx-2080-ti", "--json")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "part head, target rtx-2080-ti" in line and "export with fp16" in line
    assert [row["state"] for row in json.loads(done.stdout)["engines"]][-1] == "failed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "rtx4090"], "did you mean 'rtx-4090'"),
        (["--target", "jetson-orin-nano-8gb"], "with --target local"),
        (["--target", "rtx-4090", "--precision", "fp16"], "has no fp16 graph (it has fp32)"),
        (["--target", "rtx-4090", "--dla", "0"], "has no DLA"),
        (["--target", "cpu"], "target cpu: there are no engines for it"),
    ],
)
@needs_rtx
def test_what_cannot_be_built_is_one_line(place: Path, words: list[str], message: str) -> None:
    before = Bundle(place).sha256
    done = fusedge("build", str(place), *words, "--json")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and message in line
    assert Bundle(place).sha256 == before


@needs_rtx
def test_the_memory_of_a_build_has_a_limit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = engine._build

    def noted(request: EngineRequest, limits: BuildLimits, cache: Cache) -> BuiltEngine:
        asked.append(limits.memory_bytes)
        return real(request, limits, cache)

    monkeypatch.setattr(engine, "_build", noted)
    words = ("build", str(place), "--target", "rtx-4090", "--memory", "1024")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and asked == [1 << 30] * 3


def test_a_shipped_bundle_is_not_changed() -> None:
    done = fusedge("build", "driving", "--target", "rtx-4090")
    assert done.returncode == 1 and "choose a -o" in done.stderr


def test_without_a_gpu_the_local_one_is_said_to_be_missing(place: Path) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    done = fusedge("build", str(place))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "target local: this machine has no NVIDIA GPU to build for" in line
    assert "--target rtx-4090" in line
