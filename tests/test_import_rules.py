"""The import contracts of pyproject.toml (`make lint` applies them) catch what they forbid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {
    "bundle": (),
    "devices/capture": ("fusedge.bundle",),
    "devices/targets": ("fusedge.bundle",),
    "devices/targets/work": (),
    "devices/targets/facts": ("fusedge.devices.targets.work",),
    "devices/targets/tensorrt_api": ("fusedge.devices.targets.facts",),
    "devices/targets/detection": ("fusedge.devices.targets.tensorrt_api",),
    "devices/targets/preflight": ("fusedge.devices.targets.detection",),
    "devices/targets/telemetry": ("fusedge.devices.targets.detection",),
    "devices/targets/planning": ("fusedge.devices.targets.preflight",),
    "devices/targets/calibration": (
        "fusedge.devices.targets.planning",
        "fusedge.devices.targets.telemetry",
    ),
    "models": ("fusedge.bundle", "torch"),
    "export": ("fusedge.models", "fusedge.devices.targets", "fusedge.bundle", "torch"),
    "runtime": ("fusedge.devices.capture", "fusedge.bundle"),
    "cli": ("fusedge.export", "fusedge.runtime", "fusedge.models", "fusedge.bundle"),
}


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(REPOSITORY / "pyproject.toml", house)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(house)}
    return subprocess.run(
        command, cwd=house, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small `fusedge` in which every package imports what it may."""
    for package, imports in PACKAGES.items():
        module = tmp_path / "fusedge" / package / "allowed.py"
        module.parent.mkdir(parents=True)
        lines = [f"import {name}.allowed" if "." in name else f"import {name}" for name in imports]
        module.write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_allowed_imports_pass(house: Path) -> None:
    done = lint(house)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "statement"),
    [
        ("bundle", "import fusedge.devices.targets.allowed"),
        ("devices/targets", "import fusedge.runtime.allowed"),
        ("devices/targets/facts", "import fusedge.devices.targets.detection.allowed"),
        ("devices/targets/preflight", "import fusedge.devices.targets.planning.allowed"),
        ("devices/targets/preflight", "import fusedge.devices.targets.telemetry.allowed"),
        ("models", "import fusedge.devices.targets.allowed"),
        ("models", "import cv2"),
        ("export", "import fusedge.devices.capture.allowed"),
        ("export", "import fusedge.runtime.allowed"),
        ("runtime", "import fusedge.models.allowed"),
        ("runtime", "import fusedge.export.allowed"),
        ("runtime", "def late() -> None:\n    import torch"),
        ("devices/capture", "import torch"),
        ("runtime", "import fusedge.cli.allowed"),
    ],
)
def test_a_forbidden_import_is_caught(house: Path, package: str, statement: str) -> None:
    (house / "fusedge" / package / "forbidden.py").write_text(statement + "\n")
    done = lint(house)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "forbidden" in done.stdout.split("Broken contracts")[1]
