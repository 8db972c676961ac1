"""What `fusedge plan` prints: of one target all, of several a row each, and the rows of a fit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fusedge.bundle.manifest import Manifest
from fusedge.cli.console import console
from fusedge.devices.targets.planning.bundle_plan import BundlePlan
from fusedge.devices.targets.planning.fit import Fit, FitRow
from fusedge.devices.targets.planning.kernels import kernels_of
from fusedge.devices.targets.preflight.findings import amount
from fusedge.export.target_plan import TargetPlan

_STYLES = {"refused": "bold red", "unknown": "yellow", "warning": "yellow", "fits": "green"}
_SMALL = 0.01  # of the memory that is needed: such rows are shown as one


class TargetRow:
    """A bundle on one target, as it is shown."""

    def __init__(self, manifest: Manifest, planned: TargetPlan) -> None:
        self.manifest, self.planned = manifest, planned

    @property
    def will_run(self) -> bool:
        """Whether nothing is against it."""
        return self.planned.preflight.will_run and self.planned.plan is not None

    @property
    def verdict(self) -> str:
        """In a line."""
        against = [f for f in self.planned.preflight.findings if f.verdict == "refused"]
        if against:
            return f"will not run: {against[0].sentence}"
        load = self.planned.plan.load if self.planned.plan else None
        if load is not None and load > 1:
            return "will run, but more is due than it can compute"
        return "will run"

    @property
    def precisions(self) -> str:
        """Of the parts, each once."""
        return ", ".join(dict.fromkeys(r.precision for r in self.planned.preflight.routes.values()))

    def parts(self) -> list[dict[str, Any]]:
        """What each part takes, for the table and for machines."""
        loads = {load.part: load for load in self.planned.plan.parts} if self.planned.plan else {}
        rows = []
        for name, work in self.planned.works.items():
            route, estimate = self.planned.preflight.routes[name], self.planned.estimates[name]
            kernels = kernels_of(work, route.device)
            rows.append(
                {
                    "part": name,
                    **asdict(route),
                    "batch": work.batch,
                    "operations": sum(sum(each.operations.values()) for each in kernels),
                    "bytes": sum(each.bytes for each in kernels),
                    "kernels": estimate.kernels,
                    "seconds": estimate.seconds,
                    "paused_s": estimate.paused_s,
                    "by_bound": dict(estimate.by_bound),
                    "by_kind": dict(estimate.by_kind),
                    "unknown": dict(estimate.unknown),
                    "rate_hz": loads[name].rate_hz if name in loads else None,
                    "share": loads[name].share if name in loads else None,
                }
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        device, found = self.planned.device, self.planned.preflight
        compute, system = device.target.compute, device.software.system_tensorrt
        return {
            "target": device.target.name,
            "power_mode": device.target.power_mode.name if device.target.power_mode else None,
            "source": device.target.source,
            "compute": {**vars(compute), "peak": dict(compute.peak)},
            "software": {
                **vars(device.software),
                "jetpack": device.software.jetpack.name if device.software.jetpack else None,
                "system_tensorrt": None if system is None else system.model_dump(),
            },
            "will_run": self.will_run,
            "verdict": self.verdict,
            "findings": [asdict(finding) for finding in found.findings],
            "memory": {
                "rows": [asdict(row) for row in found.memory.rows],
                "places": {
                    place: {"needed": found.memory.needed(place), "capacity": capacity}
                    for place, capacity in found.memory.capacity.items()
                },
            },
            "parts": self.parts(),
            "plan": None if self.planned.plan is None else asdict(self.planned.plan),
            "rates": {
                name: None
                if rates is None
                else {"measured": rates.measured, "source": rates.source}
                for name, rates in self.planned.rates.items()
            },
            "notes": list(self.planned.notes),
        }


def print_row(row: TargetRow) -> None:
    """All about one target."""
    _print_device(row)
    _print_findings(row)
    console.print(_memory(row))
    if row.planned.plan is not None:
        console.print(_parts(row))
        console.print(_bundle(row.planned.plan))
        _print_basis(row)
    style = _STYLES["fits" if row.will_run else "refused"]
    console.print(row.verdict, style=style, markup=False, soft_wrap=True)


def print_rows(rows: list[TargetRow]) -> None:
    """A row for each target."""
    columns = ("target", "verdict", "precision", "load", "latency", "energy", "error")
    table = _table("targets", *columns, wrap=("verdict", "precision"))
    for row in rows:
        plan = row.planned.plan
        figures = _figures(plan) if plan else ("",) * 4
        style = _STYLES["fits" if row.will_run else "refused"]
        verdict, _, _ = row.verdict.partition(":")
        cells = (Text(row.planned.device.target.name), Text(verdict, style))
        table.add_row(*cells, row.precisions, *figures)
    console.print(table)
    for row in rows:
        if not row.will_run:
            said = f"{row.planned.device.target.name}: {row.verdict}"
            console.print(said, style=_STYLES["refused"], markup=False, soft_wrap=True)


def print_fit(found: Fit) -> None:
    """A row for each power mode, and what is recommended."""
    latency = "one decision period"
    if found.limits.latency_s is not None:
        latency = _time(found.limits.latency_s)
    title = f"fit: load up to {_percent(found.limits.load)}, a decision at worst after {latency}"
    columns = ("mode", "W", "fits", "precision", "rates", "load", "latency", "energy", "streams")
    table = _table(title, *columns, wrap=("mode", "fits", "precision", "rates"))
    devices = {row.mode.partition(":")[0] for row in found.rows}
    for row in found.rows:
        name = row.mode if len(devices) > 1 else row.mode.rpartition(":")[2]
        chosen = Text(name.replace(":", ":\n"), "bold" if row.mode == found.recommended else "")
        watts = "unknown" if row.watts is None else f"{row.watts:g}"
        *figures, _ = _figures(row.plan)
        streams = str(row.streams) if row.fits else ""
        table.add_row(chosen, watts, _fits(row), _precision(row), _rates(row), *figures, streams)
    console.print(table)
    for row in found.rows:
        for said in (row.reason, row.note):
            if said:
                console.print(f"{row.mode}: {said}", markup=False, soft_wrap=True)
    said = "nothing fits"
    for row in found.rows:
        if row.mode == found.recommended:
            precision, rates = (f(row).replace("\n", ", ") for f in (_precision, _rates))
            said = f"recommended: {row.mode} with {precision}, rates {rates}, up to {row.streams} streams"
            said += "" if row.sure else ", though not surely"
    style = _STYLES["fits" if found.recommended else "refused"]
    console.print(said, style=style, markup=False, soft_wrap=True)


def fit_as_dict(found: Fit) -> dict[str, Any]:
    """For machines."""
    return asdict(found)


def _print_device(row: TargetRow) -> None:
    target, software = row.planned.device.target, row.planned.device.software
    compute = target.compute
    mode = ""
    if target.power_mode and ":" not in target.name:
        mode = f", power mode {target.power_mode.name}"
    said = [software.tensorrt_title if target.flavour else ""]
    said += [f"ONNX Runtime {software.onnxruntime}" if software.onnxruntime else ""]
    said += [f"Python {software.python}" if software.python else ""]
    console.print(
        f"{row.manifest.name} on {target.name}{mode}: {', '.join(each for each in said if each)}",
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    each_core = " a core" if compute.multiprocessors == 0 else ""
    peaks = [
        f"{amount(peak)}op/s{each_core} in {name}"
        for name, peak in compute.peak.items()
        if peak is not None
    ]
    figures = [
        *(peaks or ["peaks unknown"]),
        f"{amount(compute.bandwidth_bytes_per_s)}B/s",
        f"memory {amount(compute.memory_bytes)}B",
        "watts unknown" if compute.watts is None else f"{compute.watts:g} W",
    ]
    console.print(f"at most {', '.join(figures)}", markup=False, soft_wrap=True)
    console.print(f"source: {target.source}", style="dim", markup=False, soft_wrap=True)


def _print_findings(row: TargetRow) -> None:
    for finding in row.planned.preflight.findings:
        parts = f" ({', '.join(finding.parts)})" if finding.parts else ""
        console.print(
            Text(finding.verdict, _STYLES[finding.verdict]),
            f"{finding.subject}: {finding.sentence}{parts}",
            markup=False,
            soft_wrap=True,
        )
        if finding.way_out:
            console.print(f"  way out: {finding.way_out}", markup=False, soft_wrap=True)


def _memory(row: TargetRow) -> Table:
    memory = row.planned.preflight.memory
    table = _table("memory", "what", "size", "where", "source", wrap=("what", "where", "source"))
    for place, capacity in memory.capacity.items():
        rows = [each for each in memory.rows if each.place == place]
        least = _SMALL * memory.needed(place)
        for each in rows:
            if each.bytes is None or each.bytes >= least:
                size = "unknown" if each.bytes is None else f"{amount(each.bytes)}B"
                table.add_row(each.what, size, place, Text(each.source, "dim"))
        small = [each.bytes for each in rows if each.bytes is not None and each.bytes < least]
        if small:
            what = f"{len(small)} more, each below {_SMALL:.0%} (all with --json)"
            table.add_row(what, f"{amount(sum(small))}B", place)
        whole = "unknown" if capacity is None else f"{amount(capacity)}B"
        table.add_row("in all", f"{amount(memory.needed(place))}B", place, f"of {whole}")
    return table


def _parts(row: TargetRow) -> Table:
    parts = row.parts()
    columns = ("part", "runs on", "rows", "ops", "bytes", "kernels", "latency", "bound by")
    columns = (*columns, *(("rate", "load") if row.manifest.fusion else ()))
    unknown = any(part["unknown"] for part in parts)
    columns = (*columns, *(("not counted",) if unknown else ()))
    table = _table("parts", *columns, wrap=("part", "runs on", "bound by", "not counted"))
    for part in parts:
        on = f"{part['device'].upper()} {part['backend']} {part['precision']}"
        by_bound = part["by_bound"]
        most = max(by_bound, key=lambda bound: by_bound[bound], default="")
        bound = f"{most} {by_bound[most] / part['seconds']:.0%}" if part["seconds"] else ""
        cells: list[str | Text] = [
            part["part"],
            on,
            str(part["batch"]),
            amount(part["operations"]),
            f"{amount(part['bytes'])}B",
            str(part["kernels"]),
            _time(part["seconds"])
            + (f"\n{_time(part['paused_s'])}" if part["paused_s"] is not None else ""),
            bound,
        ]
        if row.manifest.fusion:
            cells += [f"{amount(part['rate_hz'])}Hz", _percent(part["share"])]
        if unknown:
            said = ", ".join(f"{count} {name}" for name, count in part["unknown"].items())
            cells.append(Text(said, "yellow"))
        table.add_row(*cells)
    return table


def _bundle(plan: BundlePlan) -> Table:
    title = "bundle" if plan.streams == 1 else f"bundle, {plan.streams} streams"
    table = _bare_table(title, show_header=False)
    least = "at least " if plan.lower_bound else ""
    for device in plan.devices:
        whole = "of the GPU"
        if device.device == "cpu":
            whole = f"of {device.cores} cores" if device.cores > 1 else "of one core"
        load = "unknown" if device.load is None else f"{least}{_percent(device.load)} {whole}"
        table.add_row("load", load)
    if plan.throughput_hz is not None:
        paused_s = plan.parts[0].paused_s
        after = "" if paused_s is None else f", {least}{_time(paused_s)} after a pause"
        table.add_row("latency of a run", f"{least}{_time(plan.worst_s)}{after}")
        digits = 0 if plan.throughput_hz >= 100 else 2
        most = "at most " if plan.lower_bound else ""
        table.add_row("throughput", f"{most}{plan.throughput_hz:,.{digits}f} rows/s")
    elif plan.decision_rate_hz is not None:
        latency = f"{least}{_time(plan.typical_s)} typical, {_time(plan.worst_s)} at worst"
        known = f"{latency}, at {plan.decision_rate_hz:g} Hz"
        table.add_row("decision latency", "unknown" if plan.worst_s is None else known)
    for age in plan.ages:
        waits = f"stamps {_time(age.latency_s)} late, {_time(age.lateness_s)} for late samples"
        if age.computing_s:
            waits += f", {_time(age.computing_s)} for its encoder"
        table.add_row(
            f"newest {age.modality} then",
            f"{_time(age.typical_s)} old typically, {_time(age.worst_s)} at worst ({waits})",
        )
    energy = "unknown"
    if plan.energy_j is not None and plan.energy_measured:
        energy = f"{least}{amount(plan.energy_j)}J, measured"
    elif plan.energy_j is not None:
        # Of a time that is a lower bound, at a power that is an upper one: neither.
        most = "" if plan.lower_bound else "at most, "
        energy = f"{amount(plan.energy_j)}J, {most}by the power limit"
    table.add_row("energy of a run" if plan.throughput_hz else "energy of a decision", energy)
    for unknown in plan.unknown:
        table.add_row("unknown", unknown)
    if plan.worst_s is not None:
        table.add_row("expected error", f"a factor of {plan.error:.3g} either way")
    table.add_row("ignored", "\n".join(plan.ignored))
    return table


def _print_basis(row: TargetRow) -> None:
    """What the estimates rest on."""
    sources = dict.fromkeys(
        rates.source if rates.measured else f"from efficiencies of a table: {rates.source}"
        for rates in row.planned.rates.values()
        if rates is not None
    )
    for line in (*sources, *row.planned.notes):
        console.print(f"estimates: {line}", style="dim", markup=False, soft_wrap=True)


def _figures(plan: BundlePlan) -> tuple[str, str, str, str]:
    """Load, latency, energy and error."""
    least = "at least\n" if plan.lower_bound else ""  # on its own line: columns stay narrow
    load, latency = _percent(plan.load), _time(plan.worst_s)
    if plan.load is not None:
        load = least + load
    if plan.worst_s is not None:
        latency = least + latency
    energy = "unknown" if plan.energy_j is None else f"{amount(plan.energy_j)}J"
    error = "" if plan.worst_s is None else f"factor {plan.error:.3g}"
    return "" if plan.decision_rate_hz is None else load, latency, energy, error


def _fits(row: FitRow) -> Text:
    if row.plan.worst_s is None:
        return Text("unknown", _STYLES["unknown"])
    if not row.fits:
        return Text("no", _STYLES["refused"])
    said = "at lower rates" if row.slower else "yes"
    return Text(
        said if row.sure else f"{said}, not surely", _STYLES["fits" if row.sure else "warning"]
    )


def _precision(row: FitRow) -> str:
    values = row.precision
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "\n".join(f"{name} {value}" for name, value in values.items())


def _rates(row: FitRow) -> str:
    if not row.slower:
        return "as they are"
    return "\n".join(
        f"{name} {amount(row.rates_hz[name])}Hz (1/{n})" for name, n in row.slower.items()
    )


def _table(title: str, *columns: str, wrap: Collection[str]) -> Table:
    """Narrow enough for 80 columns: only columns of words wrap, and no figure is cut."""
    table = _bare_table(title)
    for column in columns:
        table.add_column(column, no_wrap=column not in wrap, overflow="fold")
    return table


def _bare_table(title: str, *, show_header: bool = True) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_header=show_header,
    )


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{amount(seconds)}s"


def _percent(share: float | None) -> str:
    if share is None:
        return "unknown"
    return f"{share * 100:.2g} %" if share < 0.0995 else f"{share * 100:.0f} %"
