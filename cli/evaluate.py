"""`fusedge eval`: honest figures for a task's model, measured on the exported bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.cli.options import MOST_SEED, DataOption, JsonOption, ModelArgument, folder_for_results
from fusedge.cli.tasks import check_task


def evaluate(
    model: ModelArgument,
    data: DataOption = Path("../shared/data"),
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder for folds and eval.json; found again. Default: runs/eval-MODEL.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Of emotion: weights (.safetensors) for faces and films. Default: the shipped ones."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of every fold's training.")
    ] = 0,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Forget what earlier calls for this task left in --out, and nothing else.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a task's model through export and runtime.

    **driving**: each driver is left out in turn: a model is trained on the others, exported, and its bundle
    runs the trips of the one left out, with every subset of modalities. Then: the same network trained
    on a single modality; motorway to secondary road; and, for comparison only, a random split of
    overlapping windows, which leaks.

    **emotion**: the weights' bundle runs the faces of FER+ `valid`, and films through the real front ends
    (faces found, changes of the label a minute). The shipped weights were not trained on these faces, but
    maybe on others of the same people; actors in films of RAVDESS they have heard. Then five times a group
    of actors of RAVDESS is left out: networks are trained on the others and exported, and their bundles
    run the takes of those left out, with voice and action units, with each dropped, and trained on one
    alone; kinds of fusion are compared.
    What was asked for stands beside what was measured. Voices train for an hour or two, the rest takes
    half an hour; stopped, it goes on from there. Data: `emotion/ferplus`, `emotion/ravdess-voice`,
    `emotion/ravdess-au` and `emotion/clips`.

    Examples:

    - `fusedge eval driving --data DATA`
    - `fusedge eval emotion --data DATA -o runs/eval-emotion --json > figures.json`
    - `fusedge eval emotion --data DATA --weights runs/emotion/weights.safetensors`
    """
    check_task(model, "train", "evaluation")
    if weights is not None and model != "emotion":
        raise FusedgeError(f"--weights: {model} trains each fold anew", hint="leave it out")
    with folder_for_results(out or Path(f"runs/eval-{model}")) as folder:
        if model == "driving":
            from fusedge.cli.driving_evaluation import evaluate_driving

            evaluate_driving(data, folder, seed, fresh, as_json)
            return
        from fusedge.cli.emotion_evaluation import evaluate_emotion
        from fusedge.models.emotion.protocols import PairedRecipe

        evaluate_emotion(data, folder, weights, seed, fresh, as_json, PairedRecipe())
