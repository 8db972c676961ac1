"""`fusedge train`: a task's model from recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusedge.bundle.errors import UnknownNameError
from fusedge.cli.console import console, print_json
from fusedge.cli.options import DataOption, JsonOption, ModelArgument, writable_folder
from fusedge.cli.tasks import check_task, read_recordings

LOG_EVERY = 100  # steps, where there is no terminal for a bar


def train(
    model: ModelArgument,
    data: DataOption = Path("../shared/data"),
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for checkpoints and weights.")
    ] = Path("runs/driving"),
    seed: Annotated[int, typer.Option(min=0, help="Same seed and recordings, same weights.")] = 0,
    fusion: Annotated[
        str,
        typer.Option(help="concatenation, sum, gated, cross_attention or late_average."),
    ] = "concatenation",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the checkpoint in --out and start again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a task's model on all recordings in a folder; writes weights.safetensors.

    It saves a checkpoint now and then. Called again with the same folder, it goes on from there, bit
    for bit as if it had not stopped. For honest figures see `fusedge eval`, which leaves drivers out.
    """
    check_task(model, "train", "training")
    from fusedge.models.driving_training import train_driving
    from fusedge.models.fusion import FUSION_KINDS
    from fusedge.models.fusion_model import parameter_count
    from fusedge.models.training import TrainingConfig

    if fusion not in FUSION_KINDS:
        raise UnknownNameError("fusion", fusion, FUSION_KINDS)

    writable_folder(out)
    recordings = read_recordings(data)
    if fresh:
        (out / "checkpoint.safetensors").unlink(missing_ok=True)
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    console.print(f"{len(recordings)} trips of {len({r.group for r in recordings})} drivers")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task("train", total=None, loss=float("nan"))

        def show(step: int, steps: int, loss: float) -> None:
            bar.update(row, total=steps, completed=step, loss=loss)
            if not console.is_terminal and (step % LOG_EVERY == 0 or step == steps):
                console.print(f"step {step} of {steps}, loss {loss:.3f}")

        trained = train_driving(
            recordings, out, fusion=fusion, recipe=TrainingConfig(seed=seed), progress=show
        )
    if as_json:
        print_json({"weights": str(trained.path), "parameters": parameter_count(trained.model)})
    else:
        console.print(
            f"wrote {trained.path}, {parameter_count(trained.model)} parameters; "
            f"export it with: fusedge export {model} --checkpoint {trained.path} -o mine.fusedge",
            markup=False,
            soft_wrap=True,
        )
