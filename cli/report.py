"""A session's report for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusedge.runtime.session import SessionReport

MAX_FAULTS = 20  # that are shown


def print_report(report: SessionReport, console: Console) -> None:
    """Decisions, times, the ledger: what ran, how long it took and what became of every sample."""
    summary, timing = report.summary, report.timing
    skipped = summary["ticks_skipped"]
    console.print(
        f"{summary['ended']}: [bold]{summary['decisions']}[/] decisions"
        + (f", [red]{skipped} ticks skipped[/]" if skipped else "")
        + escape(
            "".join(f"; {name}: {_counts(labels)}" for name, labels in summary["labels"].items())
        )
    )
    console.print(_time_table(timing))
    console.print(_ledger_table(summary["ledger"]))
    balance = (
        "[green]balances to the sample[/]"
        if summary["ledger_balanced"]
        else ("[bold red]does NOT balance: please report this[/]")
    )
    console.print(f"ledger: received = used + dropped + in flight {balance}")
    console.print(
        f"{timing['wall_s']:.1f} s, {timing['cpu_s']:.1f} s of CPU, "
        f"{timing['peak_rss_mb']:.0f} MB at most"
    )
    if "chaos" in summary:
        _print_faults(summary["chaos"], console)
    for name, modality in summary["modalities"].items():
        for channel, count in modality["implausible_values"].items():
            console.print(f"[yellow]{name}.{channel}: {count} values out of range, not used[/]")


def _print_faults(chaos: dict[str, Any], console: Console) -> None:
    faults, total = chaos["faults"], sum(chaos["count"].values())
    console.print(f"chaos: {total} faults")
    for fault in faults[:MAX_FAULTS]:
        times = f"{fault['start_s']:.1f} to {fault['end_s']:.1f} s"
        console.print(f"  {times}: {fault['kind']} of {fault['target']}", markup=False)
    if total > MAX_FAULTS:
        console.print("  the others are in the summary of --json or --out")


def _counts(labels: dict[str, int]) -> str:
    return ", ".join(f"{label} {count}" for label, count in labels.items() if count) or "none"


def _time_table(timing: dict[str, Any]) -> Table:
    table = Table(title="time on this machine, in µs", title_justify="left")
    for column in ("", "count", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        **{f"part {name}": row for name, row in timing["parts"].items()},
        "a step of the pipeline": timing["step"],
        "tick to decision, in recording time": timing["tick_to_decision"],
    }
    for name, row in rows.items():
        if row["max_us"]:  # a virtual clock stands still between tick and decision
            cells = [f"{row[key]:.0f}" for key in ("p50_us", "p90_us", "p99_us", "max_us")]
            table.add_row(name, str(row["count"]), *cells)
    return table


def _ledger_table(ledger: dict[str, Any]) -> Table:
    table = Table(title="samples", title_justify="left")
    for column in ("modality", "received", "used", "dropped", "in flight"):
        table.add_column(column, justify="left" if column in ("modality", "dropped") else "right")
    for name, account in ledger.items():
        dropped = ", ".join(f"{reason} {n}" for reason, n in account["dropped"].items())
        table.add_row(
            name,
            str(account["received"]),
            str(account["used"]),
            escape(dropped) or "none",
            str(account["in_flight"]),
        )
    return table
