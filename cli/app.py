"""The `fusedge` command line: one module a subcommand."""

from __future__ import annotations

import difflib
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fusedge.cli.bench import bench
from fusedge.cli.build import build
from fusedge.cli.bundle_report import report
from fusedge.cli.calibrate import calibrate
from fusedge.cli.demo import demo
from fusedge.cli.devices import devices
from fusedge.cli.evaluate import evaluate
from fusedge.cli.export import export
from fusedge.cli.inspect import inspect
from fusedge.cli.keys import keys
from fusedge.cli.plan import plan
from fusedge.cli.record import record
from fusedge.cli.replay import replay
from fusedge.cli.run import run
from fusedge.cli.sign import sign
from fusedge.cli.soak import soak
from fusedge.cli.train import train
from fusedge.cli.verify import verify


class _SuggestingGroup(TyperGroup):
    """Offers the closest command for a mistyped one, and lists commands in their own order."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else " Try 'fusedge --help'."
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    cls=_SuggestingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fusedge {version('fusedge')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take a trained multimodal fusion model from PyTorch to an edge device, and keep it right."""


app.command("demo")(demo)
app.command("run")(run)
app.command("record")(record)
app.command("replay")(replay)
app.command("soak")(soak)
app.command("export")(export)
app.command("build")(build)
app.command("inspect")(inspect)
app.command("report")(report)
app.command("verify")(verify)
app.command("sign")(sign)
app.add_typer(keys, name="keys")
app.command("plan")(plan)
app.command("bench")(bench)
app.command("devices")(devices)
app.command("calibrate")(calibrate)
app.command("train")(train)
app.command("eval")(evaluate)
