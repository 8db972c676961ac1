"""The `fusedge` command: one module a subcommand, errors of one line, exit status 0, 1 or 2."""

from __future__ import annotations

import difflib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from fusedge.bundle.errors import FusedgeError
from fusedge.cli import demo, devices, evaluate, export, inspect, run, train, verify

INTERRUPTED = 130


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
    help="Take a trained multimodal fusion model from PyTorch to an edge device, and keep it right.",
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("devices")(devices.devices)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)


def main() -> None:
    """Entry point."""
    try:
        app()
    except FusedgeError as error:
        print(f"fusedge: {error.line()}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("fusedge: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away; do not fail again when Python flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
