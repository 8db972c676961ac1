"""`fusedge inspect` shows what a bundle says, whatever it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.cli.app import app
from fusedge.cli.console import console
from tests.runtime.gpu_double import with_engines
from tests.tiny_bundle import write_tiny_bundle


@pytest.mark.parametrize("text", ["[/red]", "[red]x", "[link=x]", "\\", "[", ":bomb:"])
def test_texts_of_a_bundle_are_shown_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    bundle = with_engines(
        write_tiny_bundle(tmp_path / "plain.fusedge"),
        tmp_path / "x.fusedge",
        precision_by_node={"node": text},
        targets=(text,),
        version=text,
    )
    monkeypatch.setattr(console, "width", 200)
    with console.capture() as captured:
        result = CliRunner().invoke(app, ("inspect", str(bundle.path)))
    assert result.exit_code == 0, result.exception
    rows = [[cell.strip() for cell in line.split("│")] for line in captured.get().splitlines()]
    wanted = [text, f"tensorrt_rtx {text}", "fp32", f"1 {text}"]
    assert sum(row[2:6] == wanted for row in rows) == len(bundle.manifest.parts)
