"""What `fusedge demo` cannot do it says before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.cli import demo, demo_film
from fusedge.cli.app import app


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("it was made all the same")

    monkeypatch.setattr(demo_film, "write_film", refuse)
    monkeypatch.setattr(demo, "shipped_bundle", refuse)


def refused(*words: str) -> FusedgeError:
    result = CliRunner().invoke(app, ["demo", *words])
    assert isinstance(result.exception, FusedgeError), result.exception
    return result.exception


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize("task", ["driving", "emotion"])
@pytest.mark.parametrize("speed", ["fast", "0", "-1", "nan", "inf"])
def test_a_wrong_speed_is_refused_at_once(tmp_path: Path, task: str, speed: str) -> None:
    out = tmp_path / "out"
    assert "is not a speed" in refused(task, "--speed", speed, "--out", str(out)).what
    assert not out.exists()


@pytest.mark.usefixtures("nothing_is_made")
def test_without_a_display_show_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    monkeypatch.delenv("DISPLAY", raising=False)
    out = tmp_path / "out"
    error = refused("emotion", "--show", "--out", str(out))
    assert "window" in error.what and "--show" in error.hint
    assert not out.exists()


@pytest.mark.usefixtures("nothing_is_made")
def test_a_mistyped_task_gets_the_closest_match() -> None:
    error = refused("emotoin")
    assert isinstance(error, UnknownNameError) and "'emotion'" in error.hint
