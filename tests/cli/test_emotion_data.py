"""`fusedge train emotion` and `fusedge eval emotion` look at all data before they begin anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fusedge.bundle.errors import FusedgeError
from fusedge.cli import emotion_evaluation
from fusedge.cli.app import app
from fusedge.models.emotion import training
from fusedge.models.emotion.ferplus import Faces
from fusedge.models.emotion.labels import FERPLUS
from fusedge.models.emotion.takes import Take
from tests.devices.test_flac import write_flac
from tests.export.tiny_fusion import MODALITIES, TinyModel, make_task

pytest.importorskip("av")

ACTORS = (1, 2, 3)  # of three groups
NAMES = [f"{emotion:02d}-01-01-01-{actor:02d}" for actor in ACTORS for emotion in range(1, 9)]


class BegunError(Exception):
    """All data was found good."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with what suffices."""
    data = tmp_path_factory.mktemp("data")
    folder = data / "emotion"
    for name in NAMES:
        path = folder / "ravdess-voice" / f"Actor_{name[-2:]}" / f"03-01-{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flac(path)
    (folder / "ravdess-au").mkdir()
    np.savez(
        folder / "ravdess-au" / "ravdess_au.npz",
        clip=np.array([f"01-01-{name}" for name in NAMES]),
        au=np.zeros((len(NAMES), 35), np.float32),
    )
    (folder / "ferplus").mkdir()
    write_faces(folder, "train", 480)
    write_faces(folder, "valid", 16)
    return data


def write_faces(folder: Path, split: str, count: int, without: str = "") -> None:
    names = [*FERPLUS, "unknown", "not_a_face"]
    votes = np.eye(10, dtype=np.uint8)[np.arange(count) % 8] * 10
    if without:
        votes[votes[:, names.index(without)] > 0] = np.eye(10, dtype=np.uint8)[0]
    images = np.random.default_rng(count).integers(0, 256, (count, 48, 48), np.uint8)
    path = folder / "ferplus" / f"{split}.npz"
    np.savez(path, images=images, votes=votes, vote_names=np.array(names))


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "data"))


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*given: Any, **options: Any) -> None:
        raise BegunError(given)

    monkeypatch.setattr(training, "train_emotion", begin)
    monkeypatch.setattr(emotion_evaluation, "load_for_export", begin)
    monkeypatch.setattr(emotion_evaluation, "exported", begin)


def run(command: str, data: Path, *words: str) -> Result:
    out = str(data.parent / "out")
    return CliRunner().invoke(app, [command, "emotion", "--data", str(data), "-o", out, *words])


def test_what_suffices_is_begun_with(good: Path) -> None:
    result = run("train", good)
    assert isinstance(result.exception, BegunError), result.exception
    faces, takes, *_ = result.exception.args[0]
    assert isinstance(faces, Faces) and len(faces) == 480
    assert [type(take) for take in takes] == [Take] * 24
    assert isinstance(run("eval", good).exception, BegunError)


def voice(folder: Path, name: str = NAMES[-1]) -> Path:
    return folder / "ravdess-voice" / f"Actor_{name[-2:]}" / f"03-01-{name}.flac"


def add_actor_25(folder: Path) -> None:
    path = voice(folder, "01-01-01-01-25")
    path.parent.mkdir()
    shutil.copy(voice(folder), path)


def damage_sound(folder: Path) -> None:
    content = bytearray(voice(folder).read_bytes())
    content[-9000:-8900] = bytes(100)
    voice(folder).write_bytes(content)


def lose_action_unit(folder: Path) -> None:
    units = np.zeros((len(NAMES), 35), np.float32)
    units[7, 3] = np.nan
    clips = np.array([f"01-01-{name}" for name in NAMES])
    np.savez(folder / "ravdess-au" / "ravdess_au.npz", clip=clips, au=units)


def rename_array(folder: Path) -> None:
    with (folder / "ravdess-au" / "ravdess_au.npz").open("wb") as file:
        np.save(file, np.zeros((24, 35), np.float32))


def leave_two_groups(folder: Path) -> None:
    shutil.rmtree(folder / "ravdess-voice" / "Actor_01")


def leave_one_group(folder: Path) -> None:
    leave_two_groups(folder)
    shutil.rmtree(folder / "ravdess-voice" / "Actor_02")


def same_faces(folder: Path) -> None:
    write_faces(folder, "valid", 480)


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BOTH: list[tuple[Callable[[Path], Any], str, str]] = [
    (add_actor_25, "03-01-01-01-01-01-25.flac", "is named with the actor 25, not 01 to 24"),
    (damage_sound, voice(Path()).name, "is damaged"),
    (lose_action_unit, "ravdess_au.npz", f"row 7 (01-01-{NAMES[7]}): action unit 3 is nan"),
    (rename_array, "ravdess_au.npz", "it is no .npz file"),
    *(
        (lambda folder, place=place: put_pipe(folder / place), Path(place).name, "no regular file")
        for place in (
            "ferplus/train.npz",
            "ferplus/valid.npz",
            "ravdess-au/ravdess_au.npz",
            str(voice(Path())),
        )
    ),
    (leave_one_group, "ravdess-voice", "takes of 1 groups of actors are too few"),
    (lambda folder: shutil.rmtree(folder / "ravdess-voice"), "ravdess-voice", "holds no voices"),
    (lambda folder: shutil.rmtree(folder / "ferplus"), "ferplus", "is missing"),
    (lambda folder: shutil.rmtree(folder), "ravdess-voice", "holds no voices"),
]


@pytest.mark.parametrize(
    ("command", "spoil", "where", "said"),
    [
        *(("train", *row) for row in BOTH),
        ("train", same_faces, "train.npz", "has no face to train on that is neutral and none"),
        (
            "train",
            lambda folder: write_faces(folder, "train", 480, without="contempt"),
            "train.npz",
            "has no face to train on that is contempt",
        ),
        (
            "train",
            lambda folder: write_faces(folder, "train", 16),
            "train.npz",
            "has no face",
        ),
        *(("eval", *row) for row in BOTH[:-1]),
        ("eval", lambda folder: shutil.rmtree(folder), "valid.npz", "is missing"),
        ("eval", leave_two_groups, "ravdess-voice", "of 2 groups of actors are too few, 3 are"),
    ],
)
def test_data_that_does_not_do_is_refused_in_a_line_before_anything_begins(
    data: Path, command: str, spoil: Callable[[Path], Any], where: str, said: str
) -> None:
    spoil(data / "emotion")
    error = run(command, data).exception
    assert isinstance(error, FusedgeError), error
    assert where in error.where and said in error.line() and error.hint
    assert "\n" not in error.line()
    assert not (data.parent / "out").exists(), "nothing was done, and nothing is left"


@pytest.mark.parametrize("model", ["driving", "emotion"])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_folder_that_was_made_for_nothing_is_gone_and_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (command, model, "--data", "nowhere")
    for place in ((), ("-o", "new/and/deep"), ("-o", "kept/new")):
        if "kept/new" in place:
            Path("kept").mkdir()
        assert isinstance(CliRunner().invoke(app, [*words, *place]).exception, FusedgeError)
        assert [path.name for path in tmp_path.rglob("*")] == ["kept"] * Path("kept").exists()
    Path("kept/old").mkdir()
    (Path("kept/old") / "mine").write_text("x")
    CliRunner().invoke(app, [*words, "-o", "kept/old"])
    assert (Path("kept/old") / "mine").read_text() == "x"
    Path("kept/old/mine").unlink()
    CliRunner().invoke(app, [*words, "-o", "kept/old"])
    assert Path("kept/old").is_dir()


def test_weights_that_see_no_face_are_refused_before_anything_is_exported(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = TinyModel(MODALITIES), make_task(MODALITIES)
    monkeypatch.setattr(emotion_evaluation, "load_emotion_task", lambda weights: blind)
    error = run("eval", good, "--weights", "blind.safetensors").exception
    assert isinstance(error, FusedgeError), error
    assert error.where == "blind.safetensors" and "faces are measured" in error.what


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_seed_is_a_number_that_every_training_can_make_its_own_from(
    good: Path, command: str
) -> None:
    assert isinstance(run(command, good, "--seed", str(2**31 - 1)).exception, BegunError)
    for seed in ("-1", str(2**31), str(10**30)):
        result = run(command, good, "--seed", seed)
        assert result.exit_code == 2 and "--seed" in result.output
