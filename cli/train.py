"""`fusedge train`: a task's model from recordings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusedge.bundle.errors import UnknownNameError
from fusedge.cli.console import console, print_json
from fusedge.cli.driving_task import read_recordings
from fusedge.cli.emotion_task import read_data
from fusedge.cli.options import (
    MOST_SEED,
    DataOption,
    JsonOption,
    ModelArgument,
    folder_for_results,
    forget,
)
from fusedge.cli.tasks import check_task

if TYPE_CHECKING:
    from torch.nn import Module

    from fusedge.models.fusion import FusionKind

Show = Callable[[str, int, int, float], None]
LOG_EVERY = 100  # steps, where there is no terminal for a bar


def train(
    model: ModelArgument,
    data: DataOption = Path("../shared/data"),
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Folder for checkpoints and weights. Default: runs/MODEL."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Same seed and recordings, same weights.")
    ] = 0,
    fusion: Annotated[
        str | None,
        typer.Option(
            help="concatenation, sum, gated, cross_attention, late_average or, of emotion, late_product. "
            "Default: the task's."
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Forget the checkpoints and pieces in --out and start again. Weights that lie there stay "
            "until new ones are whole.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a task's model on all recordings in a folder; writes weights.safetensors.

    `driving` reads the trips of UAH-DriveSet. `emotion` reads faces of FER+ and takes of RAVDESS in
    DATA/emotion (its model card says which files and arrays, and where to get them), and trains face,
    voices and head one after the other, about two hours on two cores.

    It saves a checkpoint now and then. Called again with the same folder, it goes on from there, bit
    for bit as if it had not stopped. For honest figures see `fusedge eval`, which leaves drivers and
    actors out.
    """
    check_task(model, "train", "training")
    from fusedge.models.fusion import FUSION_KINDS
    from fusedge.models.fusion_model import parameter_count

    if fusion and fusion not in FUSION_KINDS:
        raise UnknownNameError("fusion", fusion, FUSION_KINDS)
    out = out or Path("runs") / model
    columns = (
        TextColumn("{task.description}, step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with (
        folder_for_results(out),
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        row = bar.add_task(model, total=None, loss=float("nan"))

        def show(what: str, step: int, steps: int, loss: float) -> None:
            bar.update(row, description=what, total=steps, completed=step, loss=loss)
            if not console.is_terminal and (step % LOG_EVERY == 0 or step == steps):
                console.print(f"{what}: step {step} of {steps}, loss {loss:.3f}", markup=False)

        train_task = {"driving": _train_driving, "emotion": _train_emotion}[model]
        trained, path = train_task(data, out, seed, cast("FusionKind | None", fusion), fresh, show)
    if as_json:
        print_json({"weights": str(path), "parameters": parameter_count(trained)})
    else:
        console.print(
            f"wrote {path}, {parameter_count(trained)} parameters; "
            f"export it with: fusedge export {model} --checkpoint {path} -o mine.fusedge",
            markup=False,
            soft_wrap=True,
        )


def _train_driving(
    data: Path, out: Path, seed: int, fusion: FusionKind | None, fresh: bool, show: Show
) -> tuple[Module, Path]:
    from fusedge.models import driving
    from fusedge.models.driving_training import train_driving
    from fusedge.models.training import TrainingConfig

    recordings = read_recordings(data)
    if fresh:
        forget(out, ["checkpoint.safetensors"])
    drivers = len({recording.group for recording in recordings})
    console.print(f"{len(recordings)} trips of {drivers} drivers")
    trained = train_driving(
        recordings,
        out,
        fusion=fusion or driving.FUSION,
        recipe=TrainingConfig(seed=seed),
        progress=partial(show, "train"),
    )
    return trained.model, trained.path


def _train_emotion(
    data: Path, out: Path, seed: int, fusion: FusionKind | None, fresh: bool, show: Show
) -> tuple[Module, Path]:
    from fusedge.models.emotion.training import FUSION, PIECES, EmotionRecipe, train_emotion

    faces, takes = read_data(data)
    if fresh:
        forget(out, PIECES)
    actors = len({take.actor for take in takes})
    console.print(f"{len(faces)} faces; {len(takes)} takes of {actors} actors")
    recipe = EmotionRecipe(seed=seed, fusion=fusion or FUSION)
    trained = train_emotion(faces, takes, out, recipe, show)
    return trained.model, trained.path
