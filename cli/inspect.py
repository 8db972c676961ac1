"""`fusedge inspect`: what is in a bundle."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fusedge.bundle.manifest import Manifest, Modality, Part
from fusedge.cli.console import console, print_json
from fusedge.cli.options import BundleArgument, JsonOption
from fusedge.cli.tasks import find_bundle


def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show a bundle: modalities, parts, rates, precisions, engines, parity, figures, licence."""
    opened = find_bundle(bundle)
    manifest = opened.manifest
    if as_json:
        print_json({"sha256": opened.sha256, **manifest.model_dump(mode="json")})
        return
    console.print(f"[bold]{manifest.name}[/]  {escape(manifest.description)}")
    console.print(
        f"decisions at {manifest.fusion.decision_rate_hz:g} Hz, fusion by "
        f"{escape(manifest.fusion.kind)}, embeddings of {manifest.fusion.embedding_size}"
        if manifest.fusion
        else "a plain model: no modalities, no sessions"
    )
    if manifest.modalities:
        console.print(_modalities(manifest.modalities))
    console.print(_parts(manifest))
    if any(part.engines for part in manifest.parts):
        console.print(_engines(manifest.parts))
    for output in manifest.outputs:
        console.print(f"output [bold]{output.name}[/]: {escape(', '.join(output.labels))}")
    for rule in manifest.events:
        levels = ", ".join(f"{level:g}" for level in rule.levels)
        console.print(f"event [bold]{rule.name}[/]: {rule.modality}.{rule.channel} beyond {levels}")
    for figure, value in manifest.accuracy.items():
        console.print(f"{figure}: {value:g}", markup=False)
    provenance = manifest.provenance
    console.print(
        f"weights: {provenance.weights_licence}; trained on {provenance.training_data}",
        markup=False,
    )
    for part in manifest.parts:
        if part.weights:
            console.print(f"weights of {part.name}: {part.weights}", markup=False, soft_wrap=True)
    console.print(f"manifest SHA-256 {opened.sha256}", soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _add_row(table: Table, *cells: str) -> None:
    """What comes from a bundle is shown as it stands, with no markup in it."""
    table.add_row(*(Text(cell) for cell in cells))


def _modalities(modalities: tuple[Modality, ...]) -> Table:
    table = _table("modalities", "name", "channels", "grid", "window / hop", "latency", "max age")
    for modality in modalities:
        _add_row(
            table,
            modality.name,
            ", ".join(f"{c.name} [{c.unit}]" for c in modality.channels),
            f"{modality.rate_hz:g} Hz",
            f"{modality.window_s:g} / {modality.hop_s:g} s",
            f"{modality.latency_s:g} s",
            f"{modality.max_age_s:g} s",
        )
    return table


def _parts(manifest: Manifest) -> Table:
    table = _table("parts", "name", "rate", "state", "graph", "size", "reduced nodes", "parity")
    parity = {  # of several outputs, the one that is closest to its tolerance
        (row.part, row.precision): row
        for row in sorted(manifest.parity, key=lambda row: row.max_relative / row.tolerance)
    }
    for part in manifest.parts:
        for graph in part.graphs:
            row = parity.get((part.name, graph.precision))
            _add_row(
                table,
                part.name,
                f"{part.rate_hz:g} Hz" if part.rate_hz else "",
                str(len(part.state)) if part.state else "none",
                graph.precision,
                f"{manifest.files[graph.file].bytes / 1024:.0f} KiB",
                f"{len(graph.precision_by_node)} of {graph.nodes}",
                f"{row.max_absolute:.1e} in {row.cases} cases" if row else "not measured",
            )
    return table


def _engines(parts: tuple[Part, ...]) -> Table:
    table = _table("engines", "part", "target", "built by", "asked for", "achieved", "size")
    for part in parts:
        for engine in part.engines:
            layers = ", ".join(f"{n} {kind}" for kind, n in engine.layers_by_precision.items())
            _add_row(
                table,
                part.name,
                ", ".join(engine.targets),
                f"{engine.flavour} {engine.version}",
                engine.precision_requested,
                layers,
                f"{engine.bytes / 1024:.0f} KiB",
            )
    return table
