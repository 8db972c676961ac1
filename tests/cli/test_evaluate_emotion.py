"""`fusedge eval emotion`, whole, on made-up faces, takes and a film, whose figures are known beforehand."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from fusedge.bundle.manifest import DimRange, Modality, TensorSpec
from fusedge.cli import emotion_evaluation, emotion_folds
from fusedge.cli.app import app
from fusedge.cli.emotion_conversation import NOTHING
from fusedge.cli.emotion_evaluation import RUNS
from fusedge.cli.emotion_folds import kept
from fusedge.export import packaged_parts, sources
from fusedge.export.part import ModulePart
from fusedge.models.emotion import protocols, voice_ensemble
from fusedge.models.emotion.face_augmentation import CONDITIONS, changed
from fusedge.models.emotion.face_encoder import FaceConfig, FaceEncoder
from fusedge.models.emotion.ferplus import read_faces
from fusedge.models.emotion.head_training import HeadRecipe
from fusedge.models.emotion.labels import FACE_LABELS, FERPLUS, LABELS, RAVDESS, places
from fusedge.models.emotion.model import emotion_bytes, load_emotion
from fusedge.models.emotion.protocols import PAIRED, PairedRecipe
from fusedge.models.emotion.takes import ACTION_UNITS, RATE_HZ, fold_of
from fusedge.models.emotion.training import assemble
from fusedge.models.emotion.voice_encoder import VoiceClassifier, VoiceConfig
from fusedge.models.emotion.voice_ensemble import EnsembleRecipe
from fusedge.models.emotion.voice_training import VoiceRecipe, train_member
from tests.media_clip import write_clip
from tests.other_process import loaded_anew

av = pytest.importorskip("av")

VOICE = VoiceConfig(channels=(4, 4, 4), width=8, judgements=4, level=10, long=10)
RECIPE = PairedRecipe(
    kinds=("late_product", "sum"),
    head=HeadRecipe(steps=150, batch=64),
    voice=EnsembleRecipe(VOICE, VoiceRecipe(steps=1, batch=4, lengths=(10,), later=4), whole=1),
    folds=(0,),
)
FILM = "ravdess_01-01-01-01-01-01-01.mp4"
TORN = "a_01-01-03-01-01-01-01.mp4"
UNITS = ("action_units",)
LOUD_S, TAKE_S = 0.9, 1.3
FIRST = (2, 5)  # actors of the first fold
# By actor the emotions that are spoken, as RAVDESS codes them.
SPOKEN = {2: (1, 3, 4, 5), 5: (2, 6, 7, 8), 3: range(1, 9), 10: range(1, 9)}


class Everywhere(nn.Module):
    """A face in the middle of whatever it is shown."""

    box: Tensor

    def __init__(self) -> None:
        super().__init__()
        points = [(0.5, 0.5), (0.4, 0.4), (0.45, 0.45), (0.55, 0.45), (0.5, 0.5), (0.5, 0.55)]
        points += [(0.35, 0.45), (0.65, 0.45)]
        self.register_buffer("box", torch.tensor(points).reshape(1, 1, 16))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        seen = image.float().mean(dim=(1, 2, 3)).reshape(-1, 1)
        return self.box + 0 * seen.unsqueeze(-1), 0.9 + 0 * seen


class Loudness(nn.Module):
    """Loud sound is speech."""

    def forward(self, samples: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return (10 * samples.abs().mean(dim=1, keepdim=True)).clamp(max=1.0), state * 0.5


def front_parts(modalities: Sequence[Modality]) -> tuple[ModulePart, ...]:
    """In the place of those of packages, which take a minute to export."""

    def spec(name: str, role: Any, *shape: Any, dtype: Any = "float32") -> TensorSpec:
        return TensorSpec(name=name, role=role, dtype=dtype, shape=("batch", *shape))

    state = TensorSpec(name="state", role="input", dtype="float32", shape=(2, "batch", 3))
    kinds: dict[str, Any] = {
        "largest_face": (
            Everywhere(),
            10.0,
            (spec("image", "input", 128, 128, 3, dtype="uint8"),),
            (spec("boxes", "output", 1, 16), spec("scores", "output", 1)),
        ),
        "speech": (
            Loudness(),
            RATE_HZ / 512,
            (spec("samples", "input", 576), state),
            (
                spec("probability", "output", 1),
                state.model_copy(update={"name": "new_state", "role": "output"}),
            ),
        ),
    }
    parts = []
    for modality in modalities:
        if modality.front is not None:
            module, rate_hz, inputs, outputs = kinds[modality.front.kind]
            parts.append(
                ModulePart(
                    name=modality.front.part,
                    kind="front",
                    modality=modality.name,
                    rate_hz=rate_hz,
                    module=module.eval(),
                    inputs=inputs,
                    outputs=outputs,
                    dims={"batch": DimRange(least=1, usual=1, greatest=2)},
                    weights="nobody's",
                )
            )
    return tuple(parts)


def write_takes(folder: Path) -> None:
    """Noise, then silence; action units that tell the emotion, but sad ones of fold one look angry."""
    random = np.random.default_rng(4)
    names, units = [], []
    for actor, emotions in SPOKEN.items():
        for emotion in emotions:
            names.append(f"{emotion:02d}-01-01-01-{actor:02d}")
            looks = 5 if emotion == 4 and actor in FIRST else emotion
            units.append(3 * np.eye(ACTION_UNITS)[looks])
            wave = random.normal(0, 6000, (1, round(TAKE_S * RATE_HZ))).astype(np.int16)
            wave[:, round(LOUD_S * RATE_HZ) :] = 0
            path = folder / "ravdess-voice" / f"Actor_{actor:02d}" / f"03-01-{names[-1]}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(path, "w", format="flac") as file:
                stream = file.add_stream("flac", rate=RATE_HZ, layout="mono")
                frame = av.AudioFrame.from_ndarray(wave, "s16", "mono")
                frame.sample_rate = RATE_HZ
                file.mux([*stream.encode(frame), *stream.encode(None)])
    (folder / "ravdess-au").mkdir()
    np.savez(
        folder / "ravdess-au" / "ravdess_au.npz",
        clip=np.array([f"01-01-{name}" for name in names]),
        au=np.array(units, np.float32),
    )


def write_faces(folder: Path, weights: Path) -> None:
    """Faces whose label is what the network itself says of them, and two of them in both splits.

    It has no voice, which a film then need not have either.
    """
    torch.manual_seed(1)
    model = assemble({"face": FaceEncoder(FaceConfig((4, 6, 8, 10), (1, 1, 1)))}, "late_product")
    random = np.random.default_rng(6)
    images = random.integers(0, 256, (80, 6, 6), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    face = model.encoder("face")
    window = torch.from_numpy(images)[:, None, ..., None]
    presence = torch.ones(len(images), 1)

    @torch.no_grad()
    def logits() -> Tensor:
        said = face.encoder.logits(window)  # type: ignore[operator, union-attr]
        return model.head(face.embed(said), presence, 0.1 * presence)  # type: ignore[no-any-return]

    with torch.no_grad():  # so that it says all that it can say
        last: Any = face.get_submodule("encoder.classifier")
        last.weight *= 4000
        last.bias -= face.encoder.logits(window).mean(dim=0)  # type: ignore[operator, union-attr]
        weights.write_bytes(emotion_bytes(model, {"temperature": "1.0", "training_data": "none"}))
        model = load_emotion(weights)[0]  # in the file they are rounded
        face = model.encoder("face")
    (best, second), (said, _) = (rows.T for rows in logits().softmax(dim=1).topk(2))
    sure = ((best - second) > 0.1).nonzero()[:40, 0]
    images, said = images[sure.numpy()], said[sure]
    assert len(images) == 40
    names = ["not_a_face", *reversed(list(FERPLUS)), "unknown"]
    votes = np.zeros((len(images), 10), np.uint8)
    for row, place in enumerate(said.tolist()):
        (word,) = (word for word, label in FERPLUS.items() if label == LABELS[place])
        votes[row, names.index(word)] = 10
    assert len(set(said.tolist())) > 4
    (folder / "ferplus").mkdir(parents=True)
    arrays: dict[str, Any] = {"images": images, "votes": votes, "vote_names": np.array(names)}
    np.savez(folder / "ferplus" / "valid.npz", **arrays)
    arrays |= {"images": np.concatenate([images[:2], 255 - images[2:]])}
    np.savez(folder / "ferplus" / "train.npz", **arrays)


def words(place: Path) -> list[str]:
    weights = str(place / "weights.safetensors")
    return ["--data", str(place / "data"), "-o", str(place / "out"), "--weights", weights]


def run(*words: str) -> Result:
    result = CliRunner().invoke(app, ["eval", "emotion", *words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def monkey() -> Iterator[pytest.MonkeyPatch]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # those of such small sums mostly wait for each other
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, monkey: pytest.MonkeyPatch) -> Path:
    """A folder with `data`, and with what the command has left in `out`.

    A voice's member says by its first numbers which groups of actors it has heard.
    """
    place = tmp_path_factory.mktemp("eval")
    folder = place / "data" / "emotion"
    write_takes(folder)
    write_faces(folder, place / "weights.safetensors")
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / FILM, 1.2, fps=10, size=(96, 96))
    (folder / "clips" / TORN).write_bytes((folder / "clips" / FILM).read_bytes()[:300])
    (folder / "clips" / f"._{FILM}").write_bytes(b"what macOS lays beside a film")
    monkey.setattr(packaged_parts, "front_parts", front_parts)
    monkey.setattr(protocols, "PairedRecipe", lambda: RECIPE)
    # Networks with a voice take long to export: what is trained on it alone is that with action units.
    runs = {n: r._replace(names=r.names if r.names == UNITS else PAIRED) for n, r in RUNS.items()}
    monkey.setattr(emotion_evaluation, "RUNS", runs)
    monkey.setattr(emotion_evaluation, "TALKS", (PAIRED,))
    train = train_member
    actors = [int(name[-2:]) for name in sorted(path.stem for path in folder.rglob("*.flac"))]

    def telling(data: Any, chosen: np.ndarray[Any, Any], *rest: Any) -> VoiceClassifier:
        member = train(data, chosen, *rest)
        with torch.no_grad():
            member.judge.weight.zero_()
            member.judge.bias.zero_()
            member.judge.bias[sorted({fold_of(actors[n]) for n in chosen})] = 1.0
        return member

    monkey.setattr(voice_ensemble, "train_member", telling)
    run(*words(place))
    return place


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "out" / "eval.json").read_text())
    return found


def test_faces_are_judged_each_by_itself_and_labels_are_read_by_name(
    report: dict[str, Any],
) -> None:
    faces = report["faces"]
    assert faces["all"]["count"] == 40 and faces["all"]["accuracy"] == 1.0
    assert faces["without_copies"]["count"] == 38
    assert faces["all"]["undecided"] == 0 and "calm" not in faces["all"]["recall"]


@torch.no_grad()
def test_faces_under_conditions_are_those_that_the_network_is_shown(
    place: Path, report: dict[str, Any]
) -> None:
    model, _ = load_emotion(place / "weights.safetensors")
    faces = read_faces(place / "data" / "emotion" / "ferplus" / "valid.npz")
    face, presence = model.encoder("face"), torch.ones(len(faces), 1)
    under = report["faces"]["under"]
    assert set(under) == set(CONDITIONS)
    for name, change in CONDITIONS.items():
        window = torch.from_numpy(changed(faces.images, change))[:, None, ..., None]
        said = model.head(face.embed(face.encoder.logits(window)), presence, 0.1 * presence)  # type: ignore[operator, union-attr]
        right = said.argmax(dim=1).numpy() == np.array(places(FACE_LABELS))[faces.labels]
        assert under[name]["accuracy"] == pytest.approx(right.mean(), abs=1.5 / 40), name
    assert len({row["accuracy"] for row in under.values()}) > 3


def test_takes_in_a_row_are_a_conversation_whose_truth_is_known(
    place: Path, report: dict[str, Any]
) -> None:
    (figures,) = report["conversations"].values()
    said = np.load(place / "out" / "fold-1" / "conversations-action_units-voice.npz")
    played = [said["truth"][said["session"] == actor] for actor in (0, 1)]
    for actor, truth in zip(FIRST, played, strict=True):
        labels = [LABELS[place] for place in dict.fromkeys(truth.tolist())]
        assert sorted(labels) == sorted(tuple(RAVDESS.values())[n - 1] for n in SPOKEN[actor])
    # Action units are of the take that was played a tick ago; sad ones of this fold look angry.
    looks = np.where(said["truth"] == LABELS.index("sad"), LABELS.index("angry"), said["truth"])
    for session in (0, 1):
        own = said["session"] == session
        momentary = said["probabilities"][own].argmax(axis=1)
        assert (momentary[1:] == looks[own][:-1]).all() and said["emitted"][own][0] == NOTHING
        begins = np.flatnonzero(np.diff(said["take"][own], prepend=-1))
        assert begins.tolist() == [round(TAKE_S * 10) * number for number in range(4)]
        assert said["since_s"][own][begins] == pytest.approx([0.1] * 4)
    per_minute = 600 / len(said["truth"])
    assert figures["takes"] == 8 and figures["became_right"] == figures["right_at_end"] == 7 / 8
    counts = {name: rate / per_minute for name, rate in figures["changes_per_minute"].items()}
    assert counts == pytest.approx({"true": 6, "momentary": 5, "emitted": 5})
    assert 0.5 < figures["seconds_to_right"] < 1.0  # the smoothing's


def test_the_emotion_in_a_take_s_name_is_the_label_that_is_scored(report: dict[str, Any]) -> None:
    alone = report["takes"]["runs"]["action units, trained alone"]
    expected = {label: 0.0 if label == "sad" else 1.0 for label in RAVDESS.values()}
    assert alone["recall"] == expected
    assert alone["accuracy"] == alone["emitted_accuracy"] == 7 / 8
    assert alone["by_sex"] == {"women": 3 / 4, "men": 1.0}
    assert alone["by_fold"] == {"1": 7 / 8}


def test_a_network_that_is_trained_on_one_modality_is_given_that_one() -> None:
    for name, run in RUNS.items():
        assert run.given == (run.names if "trained alone" in name else run.given)
        assert ("past the front end" in name) == (run.prepared == ("voice",))
    assert {run.names for run in RUNS.values()} == {PAIRED, UNITS, ("voice",)}


def test_a_dropped_modality_is_not_there_and_what_is_given_is(report: dict[str, Any]) -> None:
    runs = report["takes"]["runs"]
    assert len(runs) == 7
    for figures in runs.values():
        assert (figures["count"], figures["undecided"], figures["whole"]) == (8, 0, 1.0)
    assert runs["action units, voice dropped"]["accuracy"] == 7 / 8
    # All voices of the fold say the same.
    assert runs["voice, action units dropped"]["accuracy"] == 1 / 8
    assert runs["voice, trained alone, past the front end"]["accuracy"] == 1 / 8


def test_no_member_that_heard_an_actor_judges_a_take_of_that_actor(place: Path) -> None:
    folder = place / "out" / "fold-1"
    model, _ = load_emotion(folder / "action_units-voice.safetensors")
    heard: Any = model.encoder("voice").get_parameter("classifier.judge.bias")
    assert (heard > 0).tolist() == [False, True, True, *[False] * 5]
    said = np.load(folder / "opinions.npz")
    rest = [2 if actor == 10 else 1 for _ in range(8) for actor in (3, 10)]
    assert said["rest"].shape == (16, 8, 8) and said["own"].shape == (8, 1, 8)
    for number, group in enumerate(rest):  # in order of their names: emotion, then actor
        assert (said["rest"][number, :, group] == 0).all()
        assert (said["rest"][number, :, 3 - group] > 0).all()
    assert (said["own"][:, :, 0] == 0).all() and (said["own"][:, :, 1:3] > 0).all()


def test_kinds_of_fusion_are_compared_and_chosen_on_others_than_they_are_scored_on(
    report: dict[str, Any],
) -> None:
    takes = report["takes"]
    assert tuple(takes["kinds"]) == RECIPE.kinds and takes["fusion"] == "late_product"
    for row in takes["kinds"].values():
        assert row["action_units"] == 7 / 8 and row["voice"] == 1 / 8
        assert row["inner"] * 16 == round(row["inner"] * 16)  # of the sixteen takes of the others


def test_a_film_goes_through_the_front_ends(report: dict[str, Any]) -> None:
    film = report["clips"][FILM]
    seen = film["fronts"]["face"]
    assert seen["frames"] == seen["frames_with_face"] == 12
    assert film["problem"] == "" and film["ledger_balanced"]
    assert film["decisions_on"]["face"] == film["decisions"] - film["decisions_on_nothing"] > 8
    assert film["changes_per_minute"] == 0 and film["shares"] == {film["label"]: 1.0}
    asked = {row["what"]: row for row in report["asked"]}
    assert asked[f"{FILM}: frames with a face"]["met"]
    neutral = asked[f"{FILM}: decisions that say neutral"]
    assert neutral["measured"] == float(film["label"] == "neutral")


def test_a_film_that_cannot_be_read_is_said_not_to_be_and_the_others_are_measured(
    report: dict[str, Any],
) -> None:
    assert list(report["clips"]) == [TORN, FILM]
    torn = report["clips"][TORN]
    assert list(torn) == ["problem"] and "cannot be read" in torn["problem"]
    rows = [row for row in report["asked"] if row["what"].startswith(TORN)]
    assert [row["what"] for row in rows] == [
        f"{TORN}: frames with a face", f"{TORN}: decisions that say happy",
    ]  # fmt: skip
    assert [(row["measured"], row["met"]) for row in rows] == [(None, False)] * 2


def test_without_films_that_is_said_and_what_was_asked_of_them_was_not_measured(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "data" / "emotion" / "clips")
    again = run(*words(tmp_path), "--json")
    assert "clips: holds no films" in again.stderr.replace("\n", "")
    found = json.loads(again.stdout)
    assert found["clips"] == {}
    (row,) = [row for row in found["asked"] if "films" in row["what"]]
    assert row["what"] == "films: frames with a face"
    assert (row["measured"], row["met"]) == (None, False)
    shown = run(*words(tmp_path)).stderr
    assert "films: frames with a face" in shown and "not measured" in shown


def test_what_was_asked_stands_beside_what_was_measured(
    place: Path, report: dict[str, Any]
) -> None:
    asked = {row["what"]: row for row in report["asked"]}
    assert asked["FER+ valid, face: accuracy"]["met"]
    voice = asked["RAVDESS, voice: accuracy"]
    assert (voice["asked"], voice["measured"], voice["met"]) == (0.62, 1 / 8, False)
    weights = (place / "weights.safetensors").read_bytes()
    assert report["manifest"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert report["manifest"]["figures"]["ferplus_valid_accuracy_face"] == 1.0


def test_what_was_done_is_found_again(
    place: Path, report: dict[str, Any], monkey: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("done twice")

    with monkey.context() as patch:
        patch.setattr(voice_ensemble, "train_member", refuse)
        patch.setattr("fusedge.cli.emotion_folds.train_head", refuse)
        patch.setattr("fusedge.export.pipeline.export_bundle", refuse)
        again = run(*words(place), "--json")
    assert json.loads(again.stdout) == report
    assert "export" not in again.stderr


def test_what_is_kept_under_another_key_or_damaged_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"a": np.array(made)}

    for key in ("one", "one", "two"):
        found = kept(path, key, make)
    assert made == [0, 1] and found["a"].tolist() == [0, 1]
    assert list(kept(path, "two", make)) == ["a"] and made == [0, 1]
    path.write_bytes(path.read_bytes()[:100])
    kept(path, "two", make)
    assert made == [0, 1, 2]


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What lies on the disk at each place of Fusedge's code."""
    code = dict.fromkeys(("bundle", "devices", "models", "runtime"), "1")
    code |= {"cli/emotion_conversation.py": "1", "cli/emotion_sessions.py": "1", "export": "1"}

    def digest(*places: str) -> str:
        return " ".join(f"{place} {code[place]}" for place in places)

    monkeypatch.setattr(sources, "sources_sha256", digest)
    return code


@pytest.fixture
def process(code: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Of the code as it lies there now."""
    return lambda: loaded_anew(emotion_folds, monkeypatch)


def is_made(process: Any, path: Path, *code: str) -> bool:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"a": np.zeros(1)}

    process.kept(path, "key", make, *code)
    return bool(made)


def test_what_was_kept_is_made_anew_where_the_code_that_made_it_has_changed(
    tmp_path: Path, code: dict[str, str], process: Callable[[], Any]
) -> None:
    path = tmp_path / "kept.npz"
    for place in code:  # of what a bundle decided, by all that plays it: all but what exports
        code[place] = "2"
        assert is_made(process(), path) == (place != "export")
        assert not is_made(process(), path)
    heard = tmp_path / "heard.npz"
    assert is_made(process(), heard, process().HEARING_SHA256)
    code["runtime"] = "3"  # no runtime takes part in what classifiers say
    assert not is_made(process(), heard, process().HEARING_SHA256)
    code["models"] = "3"
    assert is_made(process(), heard, process().HEARING_SHA256)


def test_what_old_code_makes_after_its_files_were_edited_is_not_kept_as_the_new_code_s(
    tmp_path: Path, code: dict[str, str], process: Callable[[], Any]
) -> None:
    training = process()
    for place in code:
        code[place] = "edited"
    for code_of in ("PLAYING_SHA256", "HEARING_SHA256"):
        path = tmp_path / code_of
        assert is_made(training, path, getattr(training, code_of))
        assert not is_made(training, path, getattr(training, code_of))
        assert is_made(process(), path, getattr(process(), code_of))


OWN = ("notes.txt", "weights.safetensors", "fold-1/notes.npz", "voice/mine.safetensors", "fold-9/a")


@pytest.fixture
def left(place: Path, tmp_path: Path) -> Path:
    """A folder like `place`, with other files in `out` too."""
    for name in ("data", "weights.safetensors"):
        (tmp_path / name).symlink_to(place / name)
    shutil.copytree(place / "out", tmp_path / "out")
    for name in OWN:
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    return tmp_path


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


class StoppedError(Exception):
    """The command goes no further."""


@pytest.mark.parametrize("fresh", [True, False])
def test_fresh_forgets_all_that_was_left_and_nothing_else(
    left: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    def stop(*given: object) -> None:
        raise StoppedError

    monkeypatch.setattr(emotion_evaluation, "exported", stop)
    before = files(left / "out")
    result = CliRunner().invoke(
        app, ["eval", "emotion", *words(left), *(["--fresh"] if fresh else [])]
    )
    assert isinstance(result.exception, StoppedError)
    assert files(left / "out") == (set(OWN) if fresh else before)


def test_fresh_forgets_nothing_where_there_is_nothing_to_measure(left: Path) -> None:
    before = files(left / "out")
    given = [*words(left), "--data", str(left / "none"), "--fresh"]
    assert CliRunner().invoke(app, ["eval", "emotion", *given]).exit_code != 0
    assert files(left / "out") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("emotoin",), "'emotion'"),
        (("driving", "--weights", "w.safetensors"), "driving trains each fold anew"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_a_line(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["eval", *words])
    assert result.exit_code != 0
    assert said in str(result.exception) + result.output
