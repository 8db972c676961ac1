"""The digest of the code changes with whatever part of the code is asked for, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusedge.export import sources
from fusedge.export.sources import sources_sha256


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("models/a.py", "models/deep/b.py", "runtime/c.py", "cli/d.py", "cli/e.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"NAME = {name!r}\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    return tmp_path


def digest() -> str:
    sources_sha256.cache_clear()
    return sources_sha256("models", "cli/d.py")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("models/a.py", True),
        ("models/deep/b.py", True),
        ("models/deep/new.py", True),
        ("cli/d.py", True),
        ("cli/e.py", False),
        ("runtime/c.py", False),
        ("models/__pycache__/a.cpython-312.pyc", False),
        ("models/notes.md", False),
        *((f"models/{name}", False) for name in ("a.py~", "a.pyc", "a.py.orig", "a.pyi", "#a.py#")),
        *((f"models/{name}", False) for name in (".a.py", ".#a.py", ".ipynb_checkpoints/a.py")),
    ],
)
def test_what_is_written_counts_where_it_is_asked_for(root: Path, name: str, counts: bool) -> None:
    before = digest()
    (root / name).parent.mkdir(exist_ok=True)
    with (root / name).open("a") as file:
        file.write("MORE = 1\n")
    assert (digest() != before) == counts


def test_a_file_that_moves_or_goes_counts(root: Path) -> None:
    before = digest()
    (root / "models/a.py").rename(root / "models/z.py")
    moved = digest()
    (root / "models/z.py").unlink()
    assert len({before, moved, digest()}) == 3


def test_what_only_looks_like_a_file_does_not_count(root: Path) -> None:
    before = digest()
    (root / "models/gone.py").symlink_to("nowhere.py")
    (root / "models/.#a.py").symlink_to("somebody@a.machine:1")
    (root / "models/folder.py").mkdir()
    assert digest() == before


def test_code_that_is_nowhere_is_an_error(root: Path) -> None:
    for place in ("models/gone.py", "modles"):
        with pytest.raises(ValueError, match=f"no code at {place}"):
            sources_sha256(place)


def test_all_that_shapes_a_bundle_or_a_session_is_found_where_fusedge_is_installed() -> None:
    sources_sha256.cache_clear()
    packages = ("bundle", "devices", "export", "models", "runtime")
    assert len({sources_sha256(name) for name in packages}) == len(packages)
