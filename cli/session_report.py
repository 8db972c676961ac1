"""A session's report, in words and tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusedge.bundle.errors import printable
from fusedge.runtime.front.fronts import NOTHING_SEEN
from fusedge.runtime.session import SessionReport

MAX_FAULTS = 20  # that are shown


def print_report(report: SessionReport, console: Console) -> None:
    """Decisions, times, the ledger: what ran, how long it took and what became of every sample."""
    summary, timing = report.summary, report.timing
    skipped, on_nothing = summary["ticks_skipped"], summary["decisions_on_nothing"]
    console.print(
        f"{summary['ended']}: [bold]{summary['decisions']}[/] decisions"
        + (f", {on_nothing} with nothing present" if on_nothing else "")
        + (f", [red]{skipped} ticks skipped[/]" if skipped else "")
        + escape(
            "".join(f"; {name}: {_counts(labels)}" for name, labels in summary["labels"].items())
        )
    )
    console.print(_time_table(timing))
    console.print(_ledger_table(summary))
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
    for name, front in summary.get("fronts", {}).items():
        left_out = name in report.header["without"]
        told = "left out" if left_out else _seen(front, summary["ledger"][name])
        console.print(f"{name}: {told}", markup=False)
    if "telemetry" in timing:
        _print_telemetry(timing["telemetry"], console)
    if "chaos" in summary:
        _print_faults(summary["chaos"], console)
    for name, modality in summary["modalities"].items():
        for what, counts in (
            ("out of range", modality["implausible_values"]),
            ("frozen", modality["frozen_values"]),
        ):
            for channel, count in counts.items():
                console.print(f"[yellow]{name}.{channel}: {count} values {what}, not used[/]")
        _print_clock(name, modality["clock"], console)
    for estimate in summary.get("latency_estimates", ()):
        lag = estimate["seconds"]
        told = "cannot be told" if lag is None else f"{lag:.2f} s, as measured"
        console.print(f"delay of {estimate['speed']}: {told} by {estimate['acceleration']}")
    for swap in summary.get("swaps", ()):
        console.print(
            f"change of bundle: {swap['state']}, {swap['agreed']} of {swap['compared']} ticks agreed"
            + escape(f"; {swap['reason']}" if swap["reason"] else "")
        )
    if timing["left_behind"]:
        left = escape(", ".join(timing["left_behind"]))
        console.print(f"[yellow]left behind, since it did not end in time: {left}[/]")


def _seen(front: dict[str, Any], account: dict[str, Any]) -> str:
    """What a front end made of what came to it, in words."""
    sound = front["kind"] == "speech"
    if not front["heard_s" if sound else "frames"]:
        if not account["received"]:
            return "nothing came"
        # The front end has counted none: they have been through one.
        if account["used"] or account["in_flight"] or NOTHING_SEEN & account["dropped"].keys():
            return "already prepared in the recording"
        return f"no usable {'sound' if sound else 'frame'} came"
    if sound:
        return f"speech in {front['speech_s']:.1f} of {front['heard_s']:.1f} s of sound"
    return (
        f"a face in {front['frames_with_face']} of {front['frames']} frames looked at, "
        f"tracks in all: {front['faces']}; {front['samples']} crops given"
    )


def _print_telemetry(machine: dict[str, Any], console: Console) -> None:
    """The machine's greatest temperature, mean load, clock and power; what it throttled for."""

    def of(kind: str, name: str) -> dict[str, float] | None:
        found: dict[str, float] | None = machine.get(kind, {}).get(name)
        return found

    limits = machine["limits"]
    told = [f"power mode {machine['power_mode']}"] if machine["power_mode"] else []
    temperatures = {name: c["max"] for name, c in machine.get("temperature_c", {}).items()}
    if temperatures:
        hottest = max(temperatures, key=lambda name: float(temperatures[name]))
        told.append(f"{temperatures[hottest]:.0f} °C at most ({hottest})")
    for name, title in (("cpu", "CPU"), ("gpu", "GPU")):
        if load := of("utilisation_percent", name):
            told.append(f"{title} {load['mean']:.0f} % busy")
    if clock := of("frequency_mhz", "gpu"):
        limit = limits["frequency_mhz"].get("gpu")
        told.append(f"GPU {clock['mean']:.0f}" + (f" of {limit:.0f}" if limit else "") + " MHz")
    told += [f"{name} {watts['mean']:.1f} W" for name, watts in machine.get("power_w", {}).items()]
    if (ram := of("memory_bytes", "ram")) and (total := limits["memory_bytes"].get("ram")):
        told.append(f"memory {ram['max'] / total:.0%} full at most")
    if told:
        console.print(f"machine: {', '.join(told)}", markup=False, soft_wrap=True)
    for reason, times in machine["throttle_reasons"].items():
        line = (
            f"throttled for {times['seconds']:.0f} s, first at {times['first_s']:.0f} s: {reason}"
        )
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def _print_clock(name: str, clock: dict[str, Any], console: Console) -> None:
    """What the clock of a source did, where it did anything."""
    if clock.get("drift_ppm"):
        console.print(f"{name}: drift {clock['drift_ppm']:+.1f} ppm, {clock['steps']} steps")
    elif clock.get("epoch"):
        steps = ", ".join(f"{kind} {count}" for kind, count in clock["steps"].items())
        console.print(
            f"[yellow]{name}: its clock stepped ({steps}), now {clock['offset_s']:+.3f} s[/]"
        )


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


def _ledger_table(summary: dict[str, Any]) -> Table:
    """Samples by modality, then what of runs, sources and sinks was lost, where anything was."""
    table = Table(title="ledger", title_justify="left")
    for column in ("", "received", "used", "dropped", "in flight"):
        table.add_column(column, justify="left" if column in ("", "dropped") else "right")
    rows = {f"samples of {name}": account for name, account in summary["ledger"].items()}
    others = {f"runs of {name}": part["runs"] for name, part in summary["parts"].items()}
    others |= {f"from {name}": account for name, account in summary["sources"].items()}
    others |= {f"to {name}": account for name, account in summary["sinks"].items()}
    rows |= {name: account for name, account in others.items() if account["dropped"]}
    for name, account in rows.items():
        dropped = ", ".join(f"{reason} {n}" for reason, n in account["dropped"].items())
        table.add_row(
            escape(printable(name)),
            str(account["received"]),
            str(account["used"]),
            escape(printable(dropped)) or "none",
            str(account["in_flight"]),
        )
    return table
