"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE", help="A .fusedge file, a bundle folder, or a shipped bundle's name."
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="The task whose model is meant: driving.")
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
ProviderOption = Annotated[
    str,
    typer.Option(
        help="ONNX Runtime provider: cpu, cuda, tensorrt or tensorrt-rtx. Never another in silence."
    ),
]
PrecisionOption = Annotated[
    str, typer.Option(help="Which of the bundle's graphs to run: fp32 or fp16.")
]
