"""`fusedge devices --watch`: what the machine does, once a second."""

from __future__ import annotations

import json
import sys
import threading

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fusedge.bundle.errors import printable
from fusedge.cli.console import console
from fusedge.cli.main import stop_signals
from fusedge.devices.targets.telemetry.reading import Reading
from fusedge.devices.targets.telemetry.sampler import Sampler
from fusedge.runtime.clock import LiveClock

PERIOD_S = 1.0
MIB = 1 << 20


def watch_machine(count: int, as_json: bool) -> None:
    """Show `count` readings (0: until Ctrl-C or SIGTERM), a second apart: as a table that is redrawn on a
    terminal, a line each elsewhere, and JSON Lines on standard output with `as_json`.
    """
    stopped = threading.Event()
    sampler = Sampler(LiveClock().now_ns)
    live = Live(console=console, auto_refresh=False)
    number = 0
    try:
        with stop_signals(stopped.set, once=True):
            while True:
                reading = sampler.read()
                number += 1
                _show(reading, live, as_json)
                if number == count or stopped.wait(PERIOD_S):
                    break
    finally:
        live.stop()
        sampler.close()
    if not as_json and not console.is_terminal:
        for note in reading.notes:
            console.print(f"note: {printable(note)}", style="yellow", markup=False, soft_wrap=True)


def _show(reading: Reading, live: Live, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(reading.as_dict(), allow_nan=False) + "\n")
        sys.stdout.flush()
    elif console.is_terminal:
        live.start()
        live.update(_table(reading), refresh=True)
    else:
        line = "; ".join(f"{title}: {text}" for title, text in _rows(reading))
        console.print(line, markup=False, soft_wrap=True)


def _rows(reading: Reading) -> list[tuple[str, str]]:
    """What is known, by kind, in words."""
    rows = [("power mode", reading.power_mode or "")]
    hottest = reading.hottest
    if hottest is not None:
        others = [f"{n} {c:.0f}" for n, c in reading.temperatures_c.items() if n != hottest.sensor]
        rest = f" ({', '.join(others)})" if others else ""
        rows.append(("°C", f"{hottest.sensor} {hottest.temperature_c:.1f}{rest}"))
    clocks = [
        f"{name} {clock.mhz:.0f}" + (f" of {clock.limit_mhz:.0f}" if clock.limit_mhz else "")
        for name, clock in reading.frequencies.items()
    ]
    memories = [
        f"{name} {memory.used_bytes / MIB:.0f}"
        + (f" of {memory.total_bytes / MIB:.0f}" if memory.total_bytes else "")
        for name, memory in reading.memory.items()
    ]
    loads = [f"{name} {percent:.0f}" for name, percent in reading.utilisation_percent.items()]
    power = [f"{name} {watts:.2f}" for name, watts in reading.power_w.items()]
    battery = reading.battery_percent
    rows += [
        ("MHz", ", ".join(clocks)),
        ("W", ", ".join(power)),
        ("MiB", ", ".join(memories)),
        ("% busy", ", ".join(loads)),
        ("battery", "" if battery is None else f"{battery:.0f} %"),
    ]
    if reading.throttling is not None:
        rows.append(("throttling", ", ".join(reading.throttle_reasons) or "no"))
    return [(title, printable(text)) for title, text in rows if text]


def _table(reading: Reading) -> Table:
    table = Table(show_header=False, title="this machine, Ctrl-C ends", title_justify="left")
    for title, text in _rows(reading):
        style = "bold red" if title == "throttling" and reading.throttling else None
        table.add_row(title, Text(text), style=style)
    for note in reading.notes:
        table.add_row("note", Text(printable(note)), style="yellow")
    return table
