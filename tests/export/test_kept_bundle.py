"""A bundle is taken as it lies there only if all that it was made from is the same, and it is whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import EventRule, FrontEnd, TensorSpec
from fusedge.export import kept_bundle as module
from fusedge.export import packages, sources
from fusedge.export.kept_bundle import NOTE, exported, kept_bundle, made_from
from fusedge.export.part import ModulePart
from fusedge.export.subject import Subject, fusion_subject
from fusedge.export.task import Task
from tests.bundle.test_bundle_files import rezipped
from tests.export.front_fusion import FACE, FrontModel, front_task
from tests.export.tiny_fusion import MODALITIES, TinyModel, make_task
from tests.other_process import loaded_anew

SPECS = MODALITIES[:1]


class Everywhere(nn.Module):
    """A face wherever one looks."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean(dim=(1, 2, 3)) * self.share


def front(share: float = 0.5, weights: str = "nobody's") -> ModulePart:
    return ModulePart(
        name="face_detector",
        kind="front",
        modality="face",
        rate_hz=10.0,
        module=Everywhere(share).eval(),
        inputs=(TensorSpec(name="image", role="input", dtype="uint8", shape=("batch", 8, 8, 3)),),
        outputs=(TensorSpec(name="scores", role="output", dtype="float32", shape=("batch",)),),
        weights=weights,
    )


def tiny() -> tuple[TinyModel, Task]:
    return TinyModel(SPECS), make_task(SPECS)


def with_front() -> tuple[FrontModel, Task]:
    return FrontModel([FACE]), front_task([FACE], [front()])


def spec_of(task: Task, **changes: Any) -> dict[str, Any]:
    return {"modalities": (task.modalities[0].model_copy(update=changes),)}


def output_of(task: Task, **changes: Any) -> dict[str, Any]:
    return {"outputs": (task.outputs[0].model_copy(update=changes),)}


def provenance_of(task: Task, **changes: Any) -> dict[str, Any]:
    return {"provenance": task.provenance.model_copy(update=changes)}


EVENT = EventRule(
    name="turn",
    modality="imu",
    channel="yaw",
    direction="both",
    levels=(1.0,),
    lowpass_hz=1.0,
    hold_s=0.1,
    release=0.5,
)
CHANGES: Mapping[str, Callable[[Task], dict[str, Any]]] = {
    "name": lambda task: {"name": "other"},
    "description": lambda task: {"description": "Another one."},
    "decision rate": lambda task: {"decision_rate_hz": 2.0},
    "latency of a modality": lambda task: spec_of(task, latency_s=0.2),
    "age at which it is missing": lambda task: spec_of(task, max_age_s=9.0),
    "kind of fusion": lambda task: {"fusion_kind": "sum"},
    "labels": lambda task: output_of(task, labels=("normal", "aggressive", "drowsy")),
    "temperature": lambda task: output_of(task, temperature=1.5),
    "smoothing": lambda task: output_of(task, smoothing_s=1.0),
    "hysteresis": lambda task: output_of(task, hysteresis=0.1),
    "licence": lambda task: provenance_of(task, weights_licence="CC0"),
    "training data": lambda task: provenance_of(task, training_data="more"),
    "hash of the weights": lambda task: provenance_of(task, weights_sha256="0" * 64),
    "events": lambda task: {"events": (EVENT,)},
    "figures": lambda task: {"accuracy": {"macro_f1": 0.5}},
    "a document": lambda task: {"documents": {"LICENSE-WEIGHTS.md": b"MIT\n"}},
    "another document": lambda task: {"documents": {**task.documents, "MODEL-CARD.md": b"x"}},
}
FRONT_CHANGES: Mapping[str, Callable[[Task], dict[str, Any]]] = {
    "a front end's network": lambda task: {"fronts": (front(0.25),)},
    "whose weights it has": lambda task: {"fronts": (front(weights="somebody's"),)},
    "its rate": lambda task: {"fronts": (replace(front(), rate_hz=5.0),)},
    "its settings": lambda task: spec_of(task, front=FrontEnd(kind="speech", part="face_detector")),
}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        *(pytest.param(tiny, change, id=what) for what, change in CHANGES.items()),
        *(pytest.param(with_front, change, id=what) for what, change in FRONT_CHANGES.items()),
    ],
)
def test_a_bundle_is_made_from_every_fact_of_the_task_and_from_its_front_ends(
    make: Callable[[], tuple[nn.Module, Task]], change: Callable[[Task], dict[str, Any]]
) -> None:
    model, task = make()
    changed = replace(task, **change(task))
    before, after = (made_from(fusion_subject(model, each)) for each in (task, changed))
    assert before is not None and after not in (None, before)


def test_no_field_of_a_task_is_left_out_here() -> None:
    changed = {name for make in CHANGES.values() for name in make(tiny()[1])}
    changed |= {name for make in FRONT_CHANGES.values() for name in make(with_front()[1])}
    assert changed == {field.name for field in fields(Task)} - {"evaluation"}


def test_a_bundle_is_made_from_its_weights_and_the_same_ones_give_the_same() -> None:
    first, again, other = (tiny() for _ in range(3))
    with torch.no_grad():
        next(other[0].head.parameters()).view(-1)[0] += 1e-3
    keys = [made_from(fusion_subject(*each)) for each in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported bundle."""
    folder = tmp_path_factory.mktemp("made")
    said: list[str] = []
    exported(*tiny(), folder / "tiny.fusedge", said.append)
    assert said == ["export tiny.fusedge"]
    return folder


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may damage."""
    shutil.copytree(made, tmp_path / "kept")
    return tmp_path / "kept" / "tiny.fusedge"


class AskedForError(Exception):
    """Something is to be exported."""


def asked_for() -> Subject:
    raise AskedForError


def found(path: Path, said: list[str], **changes: Any) -> None:
    """Raises AskedForError where the bundle is not taken as it lies there."""
    given = {"made_from": made_from(fusion_subject(*tiny())), **changes}
    kept_bundle(path, make=asked_for, say=said.append, **given)


def test_what_was_made_from_the_same_is_found_again_in_silence(path: Path) -> None:
    said: list[str] = []
    found(path, said)
    assert said == []


@pytest.mark.parametrize(
    "changes", [{"precision": "fp16"}, {"made_from": "something else"}, {"made_from": None}]
)
def test_what_was_made_from_something_else_is_made_again(
    path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(AskedForError):
        found(path, [], **changes)


def test_other_code_makes_it_again_and_it_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CODE_SHA256", "other code")
    said: list[str] = []
    with pytest.raises(AskedForError):
        found(path, said)
    assert said == [f"{path}: was made from something else; it is exported again"]


def test_the_code_that_counts_is_that_which_was_loaded(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_made_from = made_from(fusion_subject(*tiny()))
    for package in ("bundle", "export", "models"):
        (tmp_path / "edited" / package).mkdir(parents=True)
        (tmp_path / "edited" / package / "a.py").write_text("")
    sources.sources_sha256.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "ROOT", tmp_path / "edited")
        kept_bundle(path, was_made_from, asked_for, pytest.fail)
        now = sources.sources_sha256("bundle", "export", "models")
        patch.setattr(sources, "CODE_SHA256", now)  # in a process that begins now
        with pytest.raises(AskedForError):
            loaded_anew(module, patch).kept_bundle(path, was_made_from, asked_for, [].append)
    sources.sources_sha256.cache_clear()


def missing() -> Subject:
    raise MissingExtraError("torch", "export", "exporting")


VERSION = packages.version


def other_version(changed: str, number: str | None, name: str) -> str:
    """Of a package; `changed` has this one, or is not installed."""
    if name != changed:
        return VERSION(name)
    if number is None:
        raise PackageNotFoundError(name)
    return number


TOOLS: Mapping[str, Callable[[str], str]] = {
    f"{name} {fate}": partial(other_version, name, number)
    for name in ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")
    for fate, number in (("uninstalled", None), ("updated", "99"))
}


@pytest.mark.parametrize("change", TOOLS)
def test_what_other_tools_made_is_made_again_where_it_can_be_and_else_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(packages, "version", TOOLS[change])
    said: list[str] = []
    with pytest.raises(AskedForError):
        found(path, said)
    assert said == []
    kept_bundle(path, made_from(fusion_subject(*tiny())), missing, said.append)
    (line,) = said
    assert line.startswith(f"{path}: was exported by other versions of the tools; it is taken")
    assert "exporting needs the package 'torch'" in line


def test_what_other_tools_made_is_replaced_and_it_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "version", TOOLS["onnxruntime updated"])
    before = path.read_bytes()
    said: list[str] = []
    exported(*tiny(), path, said.append)
    assert said == [
        f"{path}: was exported by other versions of the tools; it is exported again",
        "export tiny.fusedge",
    ]
    found(path, said)
    assert len(said) == 2 and path.read_bytes() != before


@pytest.mark.parametrize("damage", ["weights", "facts", "code", "note"])
def test_what_cannot_be_made_again_is_taken_only_if_it_is_whole_and_of_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(module, "tool_versions", lambda: {"torch": "99"})
    facts = made_from(fusion_subject(*tiny()))
    if damage == "weights":
        DAMAGE["a part altered"](path)
    elif damage == "code":
        monkeypatch.setattr(module, "CODE_SHA256", "other code")
    elif damage == "note":
        DAMAGE["no note"](path)
    else:
        facts = "something else"
    with pytest.raises(MissingExtraError):
        kept_bundle(path, facts, missing, [].append)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], Any]) -> None:
    rezipped(path, change, path)


def manifest(content: dict[str, bytes], **changes: object) -> None:
    content["manifest.json"] = json.dumps(json.loads(content["manifest.json"]) | changes).encode()


DAMAGE: Mapping[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a part altered": lambda path: rewritten(
        path, lambda content: content.update({"parts/head.fp32.onnx": b"x"})
    ),
    "a part missing": lambda path: rewritten(path, lambda c: c.pop("parts/head.fp32.onnx")),
    "something added": lambda path: rewritten(path, lambda c: c.update({"run.sh": b"x"})),
    "an unknown version": lambda path: rewritten(path, lambda c: manifest(c, format_version=999)),
    "the manifest altered": lambda path: rewritten(path, lambda c: manifest(c, description="x")),
    "no note": lambda path: path.with_name(path.name + NOTE).unlink(),
    "the note cut": lambda path: path.with_name(path.name + NOTE).write_bytes(b"abc"),
    "the note no text": lambda path: path.with_name(path.name + NOTE).write_bytes(b"\xff\0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_again_and_it_is_said_in_a_line(path: Path, damage: str) -> None:
    DAMAGE[damage](path)
    said: list[str] = []
    with pytest.raises(AskedForError):
        found(path, said)
    (line,) = said
    assert line.startswith(f"{path}: ") and line.endswith("; it is exported again")
    assert len(line.splitlines()) == 1


UNREADABLE: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (Path.unlink, "No such file or directory"),
    "endless": (lambda note: note.write_bytes(bytes(1 << 20)), "has more than 1000 bytes"),
    "nobody's to read": (lambda note: note.chmod(0), "Permission denied"),
}


@pytest.mark.parametrize("fate", UNREADABLE)
def test_a_note_that_cannot_be_read_is_not_taken_for_one_of_something_else(
    path: Path, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = path.with_name(path.name + NOTE)
    change, reason = UNREADABLE[fate]
    change(note)
    if reason == "Permission denied":  # which does not keep root from reading
        opened = Path.open

        def refusing(self: Path, *given: Any, **options: Any) -> Any:
            if self == note:
                raise PermissionError(errno.EACCES, reason)
            return opened(self, *given, **options)

        monkeypatch.setattr(Path, "open", refusing)
    said: list[str] = []
    with pytest.raises(AskedForError):
        found(path, said)
    (line,) = said
    assert NOTE in line and reason in line and "something else" not in line


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("end", ["", NOTE], ids=["bundle", "note"])
@pytest.mark.parametrize("facts", ["the same", "others", "none"])
def test_where_no_file_can_be_put_nothing_is_exported_and_nothing_hangs(
    path: Path, kind: Callable[[Path], None], end: str, facts: str
) -> None:
    place = path.with_name(path.name + end)
    place.unlink()
    kind(place)
    of_these = {"the same": {}, "others": {"made_from": "others"}, "none": {"made_from": None}}
    said: list[str] = []
    with pytest.raises(FusedgeError) as caught:
        found(path, said, **of_these[facts])
    assert caught.value.where == str(place) and caught.value.hint == "remove it"
    assert said == []


def test_a_damaged_bundle_is_as_before_when_it_was_made_again(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    said: list[str] = []
    exported(*tiny(), path, said.append)
    assert path.read_bytes() == whole and len(said) == 2
    found(path, said)


def test_a_model_that_cannot_be_told_from_others_is_not_kept_and_that_is_said(
    tmp_path: Path,
) -> None:
    model, task = tiny()
    model.head.register_forward_hook(lambda *given: None)
    said: list[str] = []
    exported(model, task, tmp_path / "tiny.fusedge", said.append)
    first, second = said
    assert first.startswith("tiny.fusedge cannot be found again: hooks")
    assert second == "export tiny.fusedge"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.fusedge"]
