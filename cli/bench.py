"""`fusedge bench`: how fast this machine runs a bundle's parts, and a profile for later estimates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import GRAPH_PRECISIONS, MAX_SIZE
from fusedge.bundle.regular_file import refuse_special
from fusedge.cli.console import console, print_json
from fusedge.cli.options import AllowEnginesOption, BundleArgument, JsonOption, writable_folder
from fusedge.cli.tasks import find_bundle

if TYPE_CHECKING:
    from fusedge.bundle.archive import Bundle
    from fusedge.devices.targets.calibration.profile import MeasuredPart, Profile

_MIB = 1 << 20
_MAX_BATCHES = 32
_BUSY = 0.5  # load average above which others are likely to disturb


def bench(
    bundle: BundleArgument,
    backend: Annotated[
        str,
        typer.Option(
            help="native: the bundle's engines; onnx: ONNX Runtime; auto: all that there is here."
        ),
    ] = "auto",
    provider: Annotated[
        str,
        typer.Option(
            help="Of ONNX Runtime: cpu, cuda, tensorrt, tensorrt-rtx, several with commas; auto: all here."
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16, int8, mixed; auto: all that the bundle has.")
    ] = "auto",
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=MAX_SIZE,
            help="Rows in a run; several times for more. Default: 1, 2, 4 and 8, as it takes.",
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=600,
            metavar="SECONDS",
            help="For each part, provider and precision; each probe has a twentieth of it.",
        ),
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Write the profile here as well."),
    ] = None,
    allow_unsigned_engines: AllowEnginesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's parts on this machine, and learn what estimates for it must multiply by.

    Each part runs as `fusedge run` runs it, on one thread, in a process of its own: median and slow runs,
    runs after a pause (caches are cold then, as in a session), throughput by batch, memory, and energy
    where a counter can be read. Then small graphs of one kind of node each are measured, so that
    `fusedge plan` can estimate other bundles for this machine too. The profile is kept, and used by
    `fusedge plan` here from then on. With `-o` it is a file to carry along.

    Leave the machine alone meanwhile, and set a Jetson's power mode first. Exit status 1 if a part fails.

    Examples:

    - `fusedge bench driving`
    - `fusedge bench driving.fusedge --provider cpu --batch 1 --budget 5`
    - `fusedge bench driving.fusedge -o orin.json`, and at the desk:
      `fusedge plan other.fusedge --target jetson-orin-nano-8gb --profile orin.json`
    """
    opened = find_bundle(bundle)
    if out is not None:  # not only after minutes
        writable_folder(out.parent)
        _refuse_other_than_profile(out)
    if batch and len(batch) > _MAX_BATCHES:
        raise FusedgeError(
            f"{_MAX_BATCHES} batches can be measured, not {len(batch)}", where="--batch"
        )
    if precision != "auto" and precision not in GRAPH_PRECISIONS:
        raise UnknownNameError("precision", precision, ("auto", *GRAPH_PRECISIONS))
    from fusedge.cli.machine_bench import Wanted, bench_machine
    from fusedge.devices.targets.calibration.profile import (
        keep_profile,
        write_profile,
    )
    from fusedge.runtime.bench import BATCHES

    wanted = Wanted(
        providers=_providers(opened, backend, provider),
        precision=None if precision == "auto" else precision,
        batches=batch or BATCHES,
        budget_s=budget,
        allow_unsigned_engines=allow_unsigned_engines,
    )
    hidden = as_json or not console.is_terminal
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        line = bar.add_task("look", total=1.0)
        benched = bench_machine(
            opened,
            wanted,
            datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            lambda what, share: bar.update(line, description=what, completed=share),
        )
    found = benched.profile
    notes = [*benched.notes, *_not_taken(opened, batch or ())]
    written: list[Path] = []
    not_written: FusedgeError | None = None
    try:
        written.append(keep_profile(found))
    except FusedgeError as error:  # the result of minutes is told all the same
        notes.append(f"not kept, so `fusedge plan` will not use it here: {error.line()}")
    try:
        if out is not None:
            write_profile(found, out)
            written.append(out)
    except FusedgeError as error:
        not_written = error
    if as_json:
        print_json(
            {
                **found.model_dump(mode="json"),
                "notes": notes,
                "written": [str(path) for path in written],
            }
        )
    else:
        console.print(_table(found.parts))
        _print_notes(found, notes)
        console.print(_rates(found, written), markup=False, soft_wrap=True)
    if not_written is not None:
        raise not_written
    failed = [part for part in found.parts if part.problem]
    if failed:
        first = failed[0]
        more = f"; and {len(failed) - 1} more failed" if len(failed) > 1 else ""
        raise FusedgeError(
            f"does not run on {first.provider}, {first.precision}: {first.problem}{more}",
            where=f"{opened.path}: part {first.part}",
        )


def _providers(bundle: Bundle, backend: str, provider: str) -> list[str]:
    """What to measure on; raises FusedgeError for names that are unknown or do not go together."""
    from fusedge.devices.targets.calibration.profile import NATIVE
    from fusedge.runtime.backend import AUTO, BackendSetting
    from fusedge.runtime.bench import providers_here

    setting = BackendSetting(backend, provider)
    if backend == NATIVE:
        return [NATIVE]
    if provider != AUTO:
        return list(dict.fromkeys(setting.providers))
    here = providers_here(bundle)
    return here if backend == AUTO else [name for name in here if name != NATIVE]


def _refuse_other_than_profile(out: Path) -> None:
    from fusedge.devices.targets.calibration.profile import load_profile

    refuse_special(out)
    if out.exists():
        try:
            load_profile(out)
        except FusedgeError as error:
            raise FusedgeError(
                f"is there and no profile, so it is not replaced: {error.what}",
                where=str(out),
                hint="choose another -o FILE, or remove it first",
            ) from None


def _not_taken(bundle: Bundle, asked: Sequence[int]) -> Iterator[str]:
    from fusedge.runtime.bench import batches_of

    for part in bundle.manifest.parts:
        taken = batches_of(part, asked)
        if left := sorted(set(asked) - set(taken)):
            yield (
                f"part {part.name} does not take {', '.join(map(str, left))} rows: "
                f"measured at {', '.join(map(str, taken))}"
            )


def _table(parts: tuple[MeasuredPart, ...]) -> Table:
    table = Table(
        title="one run, in µs, and as it was estimated before; rows a second by batch",
        title_justify="left",
    )
    table.add_column("part")
    table.add_column("on", no_wrap=True)
    for column in ("one run", "estimate", "rows/s", "memory", "energy"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in parts:
        place = part.part, f"{part.provider} {part.precision}"
        if part.problem:
            table.add_row(*place, Text("failed", "bold red"))
            continue
        first = part.times[0]
        runs = {"p50": first.p50_s, "p90": first.p90_s, "p99": first.p99_s}
        if part.paused is not None:
            runs["after a pause"] = part.paused.p50_s
        table.add_row(
            *place,
            "\n".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in runs.items()),
            "" if part.estimated_s is None else f"{part.estimated_s * 1e6:.0f}",
            "\n".join(f"{each.batch}: {each.rows_per_s:.0f}" for each in part.times),
            _memory(part),
            "" if part.energy_j is None else f"{part.energy_j * 1e3:.3g} mJ",
        )
    return table


def _memory(part: MeasuredPart) -> str:
    sizes = (part.memory_bytes, ""), (part.gpu_memory_bytes, " GPU")
    return "\n".join(f"{size / _MIB:.0f} MiB{where}" for size, where in sizes if size is not None)


def _print_notes(profile: Profile, notes: Sequence[str]) -> None:
    conditions = profile.conditions
    lines = dict.fromkeys([*notes, *(note for part in profile.parts for note in part.notes)])
    if conditions.load_average is not None and conditions.load_average > _BUSY:
        lines[
            f"the load average was {conditions.load_average:g} on {conditions.cores} cores: "
            "other programs may have made it slower"
        ] = None
    if conditions.governor not in (None, "performance"):
        lines[f"the CPU's governor is {conditions.governor}: clocks change while it measures"] = (
            None
        )
    for line in lines:
        console.print(f"note: {line}", style="yellow", markup=False, soft_wrap=True)


def _rates(profile: Profile, written: Sequence[Path]) -> str:
    told = "; ".join(
        f"{each.provider} {each.precision}: {len(each.kinds)} kinds of nodes from {each.graphs} graphs, "
        f"expected error {(each.error - 1) * 100:.0f} %"
        for each in profile.calibrations
    )
    place = f"wrote {written[-1]}" if written else "not written"
    return f"{place}: {told or 'measured times alone, no rates'}"
