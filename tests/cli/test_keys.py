"""`fusedge keys`: what is no name and no passphrase is one line, not a file or a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.keys import new_key
from fusedge.cli.app import app
from fusedge.cli.keys import VARIABLE

pytest.importorskip("cryptography")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("new", ""), "'' is no name for a key"),
        (("new", ".."), "'..' is no name for a key"),
        (("trust", "fleet.pub.pem", "--name", ".."), "'..' is no name for a key"),
        (("trust", "fleet.pub.pem", "--name", ""), "'' is no name for a key"),
        (("new", "other", "--passphrase"), f"{VARIABLE}: is no text in UTF-8"),
    ],
)
def test_a_name_or_passphrase_that_is_none_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setitem(os.environ, VARIABLE, os.fsdecode(b"\xff"))
    monkeypatch.chdir(tmp_path)
    new_key(Path("fleet"), None)
    before = sorted(tmp_path.rglob("*"))
    error = CliRunner().invoke(app, ("keys", *words)).exception  # which `main` prints as one line
    assert isinstance(error, FusedgeError) and reason in error.line()
    assert sorted(tmp_path.rglob("*")) == before
