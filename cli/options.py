"""Arguments and options that several commands share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.runtime.chaos import EVERY_S, KINDS, Chaos, parse_kinds
from fusedge.runtime.clock import Clock

# A thousand times as much, and more, is still a seed for PyTorch: trainings make their own from it.
MOST_SEED = 2**31 - 1
BUNDLE_HELP = (
    "A .fusedge file, a bundle folder, or a task: driving, whose bundle comes with the package, or "
    "emotion, whose bundle is exported on its first use (with the extras export and emotion) and kept."
)
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP)]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="The task whose model is meant: driving or emotion.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, for machines.")
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="FUSEDGE_DATA",
        help="Folder of the recordings; each set lies in its own folder in it.",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        help="What runs the parts: native is the bundle's TensorRT engines, onnx is ONNX Runtime, auto an "
        "engine if one fits this very device. What is named is never replaced by something else."
    ),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        help="ONNX Runtime's provider: cpu, cuda, tensorrt or tensorrt-rtx; several with commas between "
        "them are tried in that order. auto takes the fastest that there is, and says why."
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="fp32, fp16, bf16, int8 or mixed, as far as the bundle has it. auto: as the engine, else fp32."
    ),
]
AllowEnginesOption = Annotated[
    bool,
    typer.Option(
        "--allow-unsigned-engines",
        help="Load engines that were neither built here nor signed by a key that you trust. They are "
        "code: only from where you know.",
    ),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        "--record", help="New MCAP file for the whole session, to be replayed or seen in Foxglove."
    ),
]
RecordEventsOption = Annotated[
    str | None,
    typer.Option(
        "--record-events",
        metavar="TIME",
        help="Keep clips of this time (10s) before and after each event and change of a label.",
    ),
]
ClipsOption = Annotated[
    Path, typer.Option("--clips", help="Folder for the clips of --record-events.")
]
JpegOption = Annotated[
    int | None,
    typer.Option(
        "--jpeg",
        min=1,
        max=95,
        help="Record images as JPEG of this quality; no exact replay then. Default: lossless.",
    ),
]
ShowOption = Annotated[
    bool,
    typer.Option(
        "--show",
        help="Watch it in a window: the camera's frame with faces, what is decided, on what. q ends it.",
    ),
]
ChaosOption = Annotated[
    str,
    typer.Option(
        "--chaos",
        metavar="KINDS",
        help="Let things fail on purpose: kinds with commas between them, or all. The summary says "
        "which fault struck what, and when.\n\n"
        + "\n".join(
            f"- {name}: {kind.what}{' (not with --speed max)' if kind.real else ''}"
            for name, kind in KINDS.items()
        ),
    ),
]
ChaosSeedOption = Annotated[
    int,
    typer.Option("--chaos-seed", help="Of all that is random in --chaos; the same one repeats it."),
]
ChaosEveryOption = Annotated[
    float,
    typer.Option(
        "--chaos-every",
        min=1,
        metavar="SECONDS",
        help="Mean time between two faults of a kind at one source, part or sink.",
    ),
]


def is_from_command_line(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given there, and is no default and not from the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def chaos_of(kinds: str, clock: Clock, seed: int, every_s: float = EVERY_S) -> Chaos | None:
    """The faults that --chaos asks for; None where it is left out."""
    return Chaos(parse_kinds(kinds), clock, seed=seed, every_s=every_s) if kinds else None


def forget(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the files in a folder that have one of these patterns, such as `fold-*/weights.npz`."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink()


def writable_folder(path: Path) -> Path:
    """The folder, made where it is not there; raises FusedgeError where it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise FusedgeError(
            f"cannot write here: {error.strerror}", where=str(path), hint="choose another -o"
        ) from None
    return path


@contextmanager
def folder_for_results(path: Path) -> Iterator[Path]:
    """As `writable_folder`; what was made of it is gone afterwards where nothing was written into it."""
    made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        yield writable_folder(path)
    finally:
        with suppress(OSError):  # the first one that holds something, or is not there
            for folder in made:
                folder.rmdir()
