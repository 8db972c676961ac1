"""`fusedge eval emotion`: the task's figures, measured on exported bundles that the runtime runs.

`eval.json` holds

- `faces`: FER+ valid by the weights' bundle, `all` and `without_copies` of training images, and `under`
  each of the CONDITIONS of a webcam;
- `takes`: RAVDESS with actors left out. `runs` by what a network was trained on, what it was given, and
  whether sound went past the front end; `headline` names three of them, through it. `fusion` is their kind;
  `kinds` are compared in PyTorch, on what classifiers said at the end of each take: accuracy with `both`
  modalities and with each alone, and `inner`: with both, on the actors that the first fold is trained on,
  by heads that had not met them. `sharper` is by fold what the temperature of the voice's ensemble is of
  its members', as the other folds tell;
- `conversations` by what was given: see conversation_figures;
- `clips` by file: what front ends saw and heard, the `shares` of the emitted labels,
  the most frequent one, and its changes a minute, beside those of the momentary label; of one that cannot
  be read nothing but its `problem`;
- `asked`: what was asked for, what was measured (null: it was not), and whether it is `met`;
- `manifest`: what is to lie beside the weights for the manifest of their bundle.

Figures have `accuracy`, `macro_f1`, `calibration_error` (expected, 15 bins), `recall` by label, `count` and
`undecided`, which is wrong. Of takes besides accuracy `by_sex` of the speaker and `by_fold`, `whole`: the
share that was decided on all that was given, and `emitted_accuracy`: of the smoothed label.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import write_whole
from fusedge.cli.console import console, print_json
from fusedge.cli.emotion_conversation import conversation_figures
from fusedge.cli.emotion_folds import Folds, OpenFold, Run, Say, kept
from fusedge.cli.emotion_sessions import Arrays, Player
from fusedge.cli.emotion_task import load_emotion_task
from fusedge.cli.options import forget
from fusedge.cli.tasks import load_for_export
from fusedge.devices.capture.flac import read_flac
from fusedge.export.kept_bundle import NOTE, exported
from fusedge.models.emotion.face_augmentation import CONDITIONS, Change, changed
from fusedge.models.emotion.ferplus import Faces, read_faces, without_copies
from fusedge.models.emotion.labels import FACE_LABELS, LABELS, RAVDESS, VOICE_LABELS, places
from fusedge.models.emotion.protocols import PAIRED, PairedRecipe, score
from fusedge.models.emotion.takes import read_takes

_UNITS, _VOICE = ("action_units",), ("voice",)
RUNS: Mapping[str, Run] = {
    "action units and voice": Run(PAIRED, PAIRED),
    "action units and voice, past the front end": Run(PAIRED, PAIRED, _VOICE),
    "voice, action units dropped": Run(PAIRED, _VOICE),
    "action units, voice dropped": Run(PAIRED, _UNITS),
    "voice, trained alone": Run(_VOICE, _VOICE),
    "voice, trained alone, past the front end": Run(_VOICE, _VOICE, _VOICE),
    "action units, trained alone": Run(_UNITS, _UNITS),
}
HEADLINE = ("action units and voice", "voice, trained alone", "action units, trained alone")
DROPPED = {
    "voice, action units dropped": "voice, trained alone",
    "action units, voice dropped": "action units, trained alone",
}
TALKS = (PAIRED, _VOICE)
"""What is given in conversations."""
LEFT = (
    *("eval.json", "faces.npz", "faces-under-*.npz", "weights.fusedge", f"weights.fusedge{NOTE}"),
    "voice/voice-without-*.safetensors",
    *(f"fold-[1-5]/{name}.npz" for name in ("opinions", "inner", "outer", "trained-*")),
    "fold-[1-5]/conversations-*.npz",
    *(
        f"fold-[1-5]/{'-'.join(names)}.{kind}"
        for names in (PAIRED, _UNITS, _VOICE)
        for kind in ("safetensors", "fusedge", f"fusedge{NOTE}")
    ),
)
"""Patterns of what is left in the folder `out`."""
_FILMS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
_RAVDESS_FILM = re.compile(r"(?:^|_)0[12]-0[12]-(0[1-8])-\d\d-\d\d-\d\d-\d\d$")


@dataclass(frozen=True)
class Asked:
    """One line of the table: at least or, if not `least`, at most `asked` was to be `measured`.

    None: it was not measured.
    """

    what: str
    asked: float
    measured: float | None
    least: bool = True

    @property
    def met(self) -> bool:
        """False of NaN as well, and of what was not measured."""
        if self.measured is None:
            return False
        return self.measured >= self.asked if self.least else self.measured <= self.asked


def evaluate_emotion(
    data: Path,
    out: Path,
    weights: Path | None,
    seed: int,
    fresh: bool,
    as_json: bool,
    recipe: PairedRecipe,
) -> None:
    """Measure all, write `eval.json` into the folder `out`, and print it. Raises FusedgeError.

    What is found there of earlier calls is not done again, unless `fresh`, which forgets it.
    """

    def say(what: str) -> None:
        console.print(what, style="dim", markup=False, soft_wrap=True)

    folder = data / "emotion"
    valid, train = (read_faces(folder / "ferplus" / f"{name}.npz") for name in ("valid", "train"))
    takes = read_takes(folder, read_flac, groups=3)  # one held out, and two to train on
    loaded = load_for_export("emotion", None) if weights is None else load_emotion_task(weights)
    if "face" not in loaded[0].modalities:
        raise FusedgeError(
            f"its model takes {' and '.join(loaded[0].modalities)} alone, and faces are measured",
            where=str(weights),
            hint="give weights of a model that takes face as well",
        )
    if fresh:
        forget(out, LEFT)
    bundle = exported(*loaded, out / "weights.fusedge", say)
    player = Player(bundle)
    say(f"{len(valid)} faces of FER+ valid")
    faces = _face_figures(valid, train, _seen(player, valid.images, out / "faces.npz"))
    faces["under"] = _condition_figures(player, valid, out, say)
    played = _clip_figures(player, folder / "clips", say)
    folds = Folds(takes, out, recipe, seed, say).all()
    runs = {
        name: _take_figures(folds, [fold.run(run) for fold in folds]) for name, run in RUNS.items()
    }
    report: dict[str, Any] = {
        "faces": faces,
        "takes": {
            "headline": list(HEADLINE),
            "runs": runs,
            "fusion": recipe.chosen,
            "kinds": _kind_figures(folds),
            "sharper": {str(fold.number + 1): fold.sharper for fold in folds},
        },
        "conversations": {
            " and ".join(names).replace("_", " "): conversation_figures(
                [fold.conversations(names) for fold in folds]
            )
            for names in TALKS
        },
        "clips": played,
    }
    asked = _asked(faces, runs, played)
    report["asked"] = [{**asdict(row), "met": row.met} for row in asked]
    report["manifest"] = _manifest(bundle, faces)
    write_whole(out / "eval.json", json.dumps(report, indent=1).encode() + b"\n")
    if as_json:
        print_json(report)
        return
    console.print(_run_table(faces, runs))
    console.print(_condition_table(faces))
    console.print(_recall_table(faces, runs))
    console.print(_kind_table(report["takes"]))
    console.print(_conversation_table(report["conversations"]))
    console.print(_clip_table(played))
    console.print(_asked_table(asked))
    console.print(f"wrote {out / 'eval.json'}", markup=False)


def _clip_figures(player: Player, folder: Path, say: Say) -> dict[str, Any]:
    """By film; a damaged one does not keep others from being measured."""
    figures: dict[str, Any] = {}
    films = (path for path in folder.glob("[!.]*") if path.suffix.lower() in _FILMS)
    for path in sorted(films):
        say(f"clip {path.name}")
        try:
            figures[path.name] = player.clip(path)
        except FusedgeError as error:
            figures[path.name] = {"problem": str(error)}
        if figures[path.name]["problem"]:
            say(f"clip {path.name}: {figures[path.name]['problem']}")
    if not figures:
        say(f"{folder}: holds no films, and nothing is measured on any")
    return figures


def _seen(
    player: Player, images: NDArray[np.uint8], path: Path, change: Change | None = None
) -> Arrays:
    """See Player.faces, of images after a change; kept at `path`."""

    def play() -> Arrays:
        return player.faces(images if change is None else changed(images, change))

    key = f"{player.bundle.sha256} {hashlib.sha256(images.tobytes()).hexdigest()}"
    return kept(path, key, play)


def _condition_figures(player: Player, valid: Faces, out: Path, say: Say) -> dict[str, Any]:
    """By condition, what is said of the same faces under it."""
    labels = np.array(places(FACE_LABELS))[valid.labels]
    figures = {}
    for name, change in CONDITIONS.items():
        say(f"{len(valid)} faces of FER+ valid: {name}")
        path = out / f"faces-under-{name.replace(' ', '-')}.npz"
        arrays = _seen(player, valid.images, path, change)
        figures[name] = score(labels, arrays["probabilities"], FACE_LABELS)
    return figures


def _face_figures(valid: Faces, train: Faces, arrays: Arrays) -> dict[str, Any]:
    labels = np.array(places(FACE_LABELS))[valid.labels]
    others = {image.tobytes() for image in without_copies(valid, train).images}
    new = np.array([image.tobytes() in others for image in valid.images])
    probabilities = arrays["probabilities"]
    return {
        "all": score(labels, probabilities, FACE_LABELS),
        "without_copies": score(labels[new], probabilities[new], FACE_LABELS),
    }


def _take_labels(folds: Sequence[OpenFold]) -> NDArray[np.int64]:
    places_of = places(VOICE_LABELS)
    return np.array([places_of[take.label] for fold in folds for take in fold.takes])


def _take_figures(folds: Sequence[OpenFold], arrays: Sequence[Arrays]) -> dict[str, Any]:
    """Figures of a run over all folds."""
    labels = _take_labels(folds)
    probabilities, emitted, whole = (
        np.concatenate([each[name] for each in arrays])
        for name in ("probabilities", "emitted", "whole")
    )
    female = np.array([take.female for fold in folds for take in fold.takes])
    number = np.repeat([fold.number for fold in folds], [len(fold.takes) for fold in folds])

    def accuracy(chosen: NDArray[np.bool_]) -> float | None:
        if not chosen.any():
            return None
        return float(score(labels[chosen], probabilities[chosen], VOICE_LABELS)["accuracy"])

    return {
        **score(labels, probabilities, VOICE_LABELS),
        "emitted_accuracy": float((emitted == labels).mean()),
        "whole": float(whole.mean()),
        "by_sex": {"women": accuracy(female), "men": accuracy(~female)},
        "by_fold": {str(fold.number + 1): accuracy(number == fold.number) for fold in folds},
    }


def _kind_figures(folds: Sequence[OpenFold]) -> dict[str, Any]:
    """Each kind of fusion on the same opinions."""
    labels, said = _take_labels(folds), [fold.outer() for fold in folds]
    inner = folds[0].inner()
    figures: dict[str, Any] = {}
    for kind in said[0]:
        shown = [np.array_split(each[kind].argmax(axis=1), 1 + len(PAIRED)) for each in said]
        right = [
            float((np.concatenate(each) == labels).mean()) for each in zip(*shown, strict=True)
        ]
        figures[kind] = dict(zip(("both", *PAIRED), right, strict=True))
        figures[kind]["inner"] = float(inner[kind].mean())
    return figures


def _asked(
    faces: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], clips: Mapping[str, Any]
) -> list[Asked]:
    face, accuracy = faces["all"], {name: figures["accuracy"] for name, figures in runs.items()}
    both, voice, _ = (accuracy[name] for name in HEADLINE)
    gain = both - max(accuracy[name] for pair in DROPPED.items() for name in pair)
    rows = [
        Asked("FER+ valid, face: accuracy", 0.80, face["accuracy"]),
        Asked("RAVDESS, voice: accuracy", 0.62, voice),
        Asked("RAVDESS, action units and voice: accuracy", 0.777, both),
        Asked("RAVDESS: points of fusion over the better single one", 0.10, gain),
    ]
    for name, alone in DROPPED.items():
        lost = accuracy[alone] - accuracy[name]
        rows.append(Asked(f"{name}: points below {alone}", 0.02, lost, least=False))
    for name, figures in {
        "face": face,
        **{name: runs[name] for name in (*HEADLINE, *DROPPED)},
    }.items():
        error = figures["calibration_error"]
        rows.append(Asked(f"{name}: calibration error", 0.05, error, least=False))
    for name, clip in (clips or {"films": {}}).items():
        seen = clip["fronts"]["face"] if "fronts" in clip else None
        shown = seen and seen["frames_with_face"] / max(1, seen["frames"])
        rows.append(Asked(f"{name}: frames with a face", 1.0, shown))
        film = _RAVDESS_FILM.search(Path(name).stem)
        if film is not None:
            label = tuple(RAVDESS.values())[int(film[1]) - 1]
            share = clip["shares"].get(label, 0.0) if "shares" in clip else None
            rows.append(Asked(f"{name}: decisions that say {label}", 0.5, share))
    return rows


def _manifest(bundle: Bundle, faces: Mapping[str, Any]) -> dict[str, Any]:
    """`emotion.figures.json` beside the weights: what their bundle itself did, and no other network."""
    figures = {
        "ferplus_valid_accuracy_face": faces["all"]["accuracy"],
        "ferplus_valid_calibration_error_face": faces["all"]["calibration_error"],
    }
    return {
        "weights_sha256": bundle.manifest.provenance.weights_sha256,
        "figures": {name: round(value, 4) for name, value in figures.items() if value is not None},
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _named(
    faces: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    return {
        "FER+ valid, face": faces["all"],
        "FER+ valid, face, without copies": faces["without_copies"],
        **runs,
    }


def _run_table(faces: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("given", "decisions", "accuracy", "macro-F1", "ECE", "women", "men", "emitted")
    table = _table("through the exported bundles; RAVDESS with actors left out", *columns)
    for name, row in _named(faces, runs).items():
        sex = row.get("by_sex", {})
        own = (row["accuracy"], row["macro_f1"], row["calibration_error"])
        shares = (*own, sex.get("women"), sex.get("men"), row.get("emitted_accuracy"))
        count = f"{row['count'] - row['undecided']}/{row['count']}"
        table.add_row(name, count, *map(_percent, shares))
    return table


def _recall_table(faces: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("recall by label", "given", *LABELS)
    for name, row in _named(faces, runs).items():
        table.add_row(name, *(_percent(row["recall"].get(label)) for label in LABELS))
    return table


def _condition_table(faces: Mapping[str, Any]) -> Table:
    table = _table("FER+ valid, face, as a webcam may see it", "condition", "accuracy", "ECE")
    for name, row in {"none": faces["all"], **faces["under"]}.items():
        table.add_row(name, *map(_percent, (row["accuracy"], row["calibration_error"])))
    return table


def _conversation_table(conversations: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(
        "takes in a row, of actors left out; label changes a minute, and when labels are right",
        *("given", "minutes", "true", "emitted", "momentary"),
        *("takes", "ever right", "after", "right at the end", "of the time"),
    )
    for name, row in conversations.items():
        changes, wait_s = row["changes_per_minute"], row["seconds_to_right"]
        table.add_row(
            name,
            f"{row['minutes']:.1f}",
            *(f"{changes[label]:.1f}" for label in ("true", "emitted", "momentary")),
            str(row["takes"]),
            _percent(row["became_right"]),
            "" if wait_s is None else f"{wait_s:.1f} s",
            _percent(row["right_at_end"]),
            _percent(row["right_of_time"]),
        )
    return table


def _kind_table(takes: Mapping[str, Any]) -> Table:
    table = _table(
        "kinds of fusion, in PyTorch, on what was said at the end of a take",
        *("kind", "inner", "both", *PAIRED),
    )
    for kind, row in takes["kinds"].items():
        name = f"{kind} (exported)" if kind == takes["fusion"] else kind
        table.add_row(name, *(_percent(row[key]) for key in ("inner", "both", *PAIRED)))
    return table


def _clip_table(clips: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("film", "faces", "speech", "decisions", "most", "changes/min", "momentary")
    table = _table("films, through sources and front ends; faces of frames looked at", *columns)
    for name, row in clips.items():
        if "fronts" not in row:
            table.add_row(name, "not read")
            continue
        face, voice = (row["fronts"].get(name, {}) for name in ("face", "voice"))
        table.add_row(
            name,
            f"{face['frames_with_face']}/{face['frames']}",
            f"{voice['speech_s']:.1f}/{voice['heard_s']:.1f} s" if voice else "",
            str(row["decisions"] - row["decisions_on_nothing"]),
            f"{row['label']} {_percent(row['shares'].get(row['label']))}",
            f"{row['changes_per_minute']:.1f}",
            f"{row['momentary_changes_per_minute']:.1f}",
        )
    return table


def _asked_table(asked: Sequence[Asked]) -> Table:
    table = _table("asked and measured", "what", "asked", "measured", "")
    for row in asked:
        sign = "≥" if row.least else "≤"
        verdict = "met" if row.met else "not measured" if row.measured is None else "MISSED"
        table.add_row(row.what, f"{sign} {_percent(row.asked)}", _percent(row.measured), verdict)
    return table
