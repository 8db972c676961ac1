"""`fusedge report`: all about a bundle, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.signature import signature_state
from fusedge.cli.console import console, print_json
from fusedge.cli.options import BundleArgument, JsonOption
from fusedge.cli.tasks import find_bundle


def report(
    bundle: BundleArgument,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Page to write. Default: report.html, none with --json."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="What the export wrote about itself: NAME.export.json."),
    ] = None,
    run: Annotated[
        bool, typer.Option(help="Run each graph for a second, to see what it costs here.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Report on a bundle: parts, rates, parity, precision, cost, engines, figures, licence, hashes.

    The page is one file that loads nothing from elsewhere. With --json the same is printed for machines.

    Examples:

    - `fusedge report driving -o driving.html`
    - `fusedge report out.fusedge --record out.export.json -o out.html`
    """
    page = out or (None if as_json else Path("report.html"))
    if page is not None and page.suffix != ".html":
        raise FusedgeError("is no name for a page", where=str(page), hint="-o NAME.html")
    from fusedge.export.report import make_report, read_record

    if page is not None:
        from fusedge.export.report_html import render
    opened = find_bundle(bundle)
    written = read_record(record) if record else None
    state = signature_state(opened)
    with console.status("verify") as status:
        made = make_report(
            opened, state, written, run=run, progress=lambda what: status.update(f"run {what}")
        )
    if page is not None:
        page.write_text(render(made), "utf-8")
        console.print(f"wrote {page}", markup=False, soft_wrap=True)
    if as_json:
        print_json(made.model_dump(mode="json"))
