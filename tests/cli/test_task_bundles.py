"""A task's name is a bundle for every command: shipped, or exported on its first use and found again."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.lookup import shipped_bundles
from fusedge.cli import tasks
from fusedge.cli.app import app
from fusedge.export import kept_bundle, packages
from tests.export.tiny_fusion import MODALITIES, TinyModel, make_task
from tests.tiny_bundle import write_tiny_bundle

ANNOUNCED = "exporting emotion to "


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an empty cache beside it."""
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The task `emotion` is a small model; the list says how often it is loaded."""
    loaded: list[str] = []

    def load(name: str, checkpoint: Path | None) -> Any:
        loaded.append(name)
        return TinyModel(MODALITIES[:1]), make_task(MODALITIES[:1])

    monkeypatch.setattr(tasks, "load_for_export", load)
    return loaded


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return loads(monkeypatch)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the small `emotion` has been exported."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDGE_CACHE", str(folder))
        loads(patch)
        result = CliRunner().invoke(app, ["inspect", "emotion"])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if "export" in line]
    assert line.startswith(f"{ANNOUNCED}{folder / 'bundles' / 'emotion.fusedge'}, once; it takes")
    return folder


@pytest.fixture
def exported(cache: Path, place: Path) -> Path:
    """The bundle in a copy of that cache."""
    shutil.copytree(cache, place / "cache")
    return place / "cache" / "bundles" / "emotion.fusedge"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def refused(*words: str) -> str:
    """The one line with which a command is refused."""
    result = invoke(*words)
    assert isinstance(result.exception, FusedgeError), result.output
    assert result.stdout == "" and result.stderr == ""
    return result.exception.line()


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "emotion", "--json"),
        ("verify", "emotion", "--json"),
        ("report", "emotion", "--no-run", "--json"),
        ("plan", "emotion", "--target", "cpu", "--json"),
        ("soak", "emotion", "--hours", "0.01", "--json"),
        ("build", "emotion", "--target", "rtx-4090", "-o", "/proc/nowhere/out.fusedge"),
        ("bench", "emotion", "--precision", "none"),
        ("run", "emotion", "--source", "none:"),
        ("run", "appliance.yaml"),
        ("replay", "none.mcap", "emotion"),
        ("sign", "emotion", "--key", "none.pem", "-o", "out.fusedge"),
    ],
    ids=" ".join,
)
def test_every_command_takes_the_task_s_name_and_exports_only_once(
    exported: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    Path("appliance.yaml").write_text(
        "pipelines: [{name: one, bundle: emotion, sources: ['none:']}]\n"
    )
    opened: list[Path] = []
    read = Bundle.__init__

    def noting(self: Bundle, path: Path) -> None:
        opened.append(path)
        read(self, path)

    monkeypatch.setattr(Bundle, "__init__", noting)
    result = invoke(*words)
    assert exported in opened, result.output
    assert "unknown bundle" not in str(result.exception)
    assert loaded == [] and "export" not in result.stderr


@pytest.mark.parametrize("name", ["emotion.safetensors", "emotion.figures.json", "emotion.md"])
def test_other_weights_figures_or_card_make_the_bundle_again(
    exported: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path
) -> None:
    weights = shutil.copytree(tasks.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(tasks, "WEIGHTS", weights)
    tasks.find_bundle("emotion")
    assert loaded == []
    with (weights / name).open("ab") as file:
        file.write(b" ")
    with monkeypatch.context() as patch:
        patch.setattr(kept_bundle, "kept_bundle", lambda path, made_from, *rest, **given: made_from)
        changed: Any = tasks.find_bundle("emotion")
        patch.setattr(tasks, "WEIGHTS", Path(tasks.__file__).parents[1] / "models" / "weights")
        shipped: Any = tasks.find_bundle("emotion")
    assert changed != shipped


@pytest.mark.parametrize("task", tasks.TASKS)
def test_figures_of_other_weights_go_into_no_bundle(
    task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tasks, "WEIGHTS", shutil.copytree(tasks.WEIGHTS, tmp_path / "weights"))
    tasks.load_for_export(task, None)
    with (tasks.WEIGHTS / f"{task}.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(FusedgeError, match=f"figures are of other weights than {task}"):
        tasks.load_for_export(task, None)


def test_a_damaged_bundle_is_exported_again_and_both_is_said(
    exported: Path, loaded: list[str]
) -> None:
    whole = exported.read_bytes()
    exported.write_bytes(whole[: len(whole) // 2])
    result = invoke("inspect", "emotion", "--json")
    assert result.exit_code == 0 and loaded == ["emotion"]
    assert json.loads(result.stdout)["name"] == "tiny"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"{exported}: not a readable bundle")
    assert first.endswith("it is exported again") and second.startswith(ANNOUNCED)
    assert exported.read_bytes() == whole


def test_what_lies_in_the_working_directory_under_the_name_wins(
    place: Path, loaded: list[str]
) -> None:
    for name in ("emotion", "driving"):
        write_tiny_bundle(Path(name))
        assert json.loads(invoke("inspect", name, "--json").stdout)["name"] == "tiny"
    assert loaded == []


def test_what_lies_there_and_is_no_bundle_is_told_apart_from_the_shipped_one(place: Path) -> None:
    for name in ("emotion", "driving"):
        Path(name).mkdir()
        line = refused("inspect", name)
        assert "manifest.json is missing" in line
        assert f"in another one {name} is the shipped bundle" in line


def test_the_bundle_that_comes_with_the_package_is_taken_from_there(
    place: Path, loaded: list[str]
) -> None:
    assert tasks.find_bundle("driving").path == shipped_bundles()["driving"]
    assert loaded == [] and not (place / "cache").exists()


def test_a_mistyped_task_gets_the_closest_match(place: Path) -> None:
    assert "did you mean 'emotion'?" in refused("inspect", "emotoin")
    assert "did you mean 'driving'?" in refused("verify", "drving")


@pytest.mark.parametrize("words", [("inspect", "emotion"), ("run", "emotion", "--source", "sim:")])
def test_without_pytorch_the_extra_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    line = refused(*words)
    assert "exporting emotion on its first use needs the package 'torch'" in line
    assert "pip install 'fusedge[export]'" in line
    assert not (place / "cache").exists()


def uninstall_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules and its metadata, as pip does."""
    version = packages.version

    def version_left(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(packages, "version", version_left)
    monkeypatch.setitem(sys.modules, "torch", None)


def test_what_was_exported_is_found_where_pytorch_is_not_installed_any_more(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall_pytorch(monkeypatch)
    result = invoke("inspect", "emotion", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["name"] == "tiny"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{exported}: was exported by other versions of the tools; it is taken")


def test_what_others_made_is_not_taken_only_since_pytorch_is_not_installed(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall_pytorch(monkeypatch)
    monkeypatch.setattr(kept_bundle, "CODE_SHA256", "of another version of Fusedge")
    result = invoke("inspect", "emotion")
    assert isinstance(result.exception, MissingExtraError), result.output


@pytest.mark.parametrize("letters", [255, 300, 5000])
@pytest.mark.parametrize(
    "words", [("inspect",), ("build", "--target", "cpu"), ("sign", "--key", "none.pem")]
)
def test_a_name_too_long_for_any_file_is_an_unknown_one(
    place: Path, words: tuple[str, ...], letters: int
) -> None:
    line = refused(words[0], "a" * letters, *words[1:])
    assert line.startswith("unknown bundle") and "known: driving, emotion" in line


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    monkeypatch.setenv("FUSEDGE_CACHE", "/proc/nowhere")
    line = refused("inspect", "emotion")
    assert "/proc/nowhere/bundles: no bundle can be kept here" in line and "FUSEDGE_CACHE" in line
    assert loaded == []


@pytest.mark.parametrize("by", ["name", "path"])
@pytest.mark.parametrize("task", ["driving", "emotion"])
@pytest.mark.parametrize(
    "command", [("build",), ("sign", "--key", "none.pem")], ids=["build", "sign"]
)
def test_no_command_changes_a_task_s_bundle_in_its_place(
    exported: Path, loaded: list[str], command: tuple[str, ...], task: str, by: str
) -> None:
    path = exported if task == "emotion" else shipped_bundles()[task]
    before = path.read_bytes()
    line = refused(command[0], task if by == "name" else str(path), *command[1:])
    assert "not changed" in line and "-o" in line
    assert path.read_bytes() == before and loaded == []


COMMANDS = ("run", "inspect", "verify", "report", "plan", "bench", "build", "sign", "soak")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_says_that_a_task_s_name_will_do(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400"})
    assert "emotion, whose bundle is exported on its first use" in " ".join(result.stdout.split())
