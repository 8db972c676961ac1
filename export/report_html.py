"""A report as one HTML page that loads nothing: no script, no font, no picture from elsewhere.

A bundle may come from anyone, so every text of it is escaped, and the page forbids scripts to itself.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template

from fusedge.bundle.errors import printable
from fusedge.bundle.manifest import Manifest, Part, TensorSpec
from fusedge.bundle.signature import SignatureState
from fusedge.export.report import ExportRecord, Report
from fusedge.export.report_plots import (
    cost_chart,
    node_chart,
    pareto_chart,
    parity_chart,
    precision_chart,
)

_SIGNATURES = {
    SignatureState.UNSIGNED: "Nobody has signed this bundle.",
    SignatureState.TRUSTED: "Signed by a key that was trusted where this page was made.",
    SignatureState.UNKNOWN_KEY: "Signed, by a key that was not trusted where this page was made.",
    SignatureState.INVALID: "The signature is wrong. Do not use this bundle.",
}
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4; --paper: #fff;
  --band: #f4f6f8; --good: #18794e; --bad: #c62a35; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4af; --line: #343b43;
  --paper: #14171a; --band: #1c2024; --good: #4cc38a; --bad: #ff7b84; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; }
.soft { color: var(--soft); }
.good { color: var(--good); }
.bad { color: var(--bad); font-weight: 600; }
code { font: .86em ui-monospace, monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .28rem .7rem .28rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
details { margin: .5rem 0; background: var(--band); padding: .4rem .8rem; border-radius: .4rem; }
summary { cursor: pointer; }
svg { width: 100%; max-width: 52rem; height: auto; display: block; margin: .6rem 0; }
</style>
</head>
<body>
$body
</body>
</html>
""")


class _Markup(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def render(report: Report) -> str:
    """The page. Needs matplotlib (extra `plot`)."""
    manifest = report.manifest
    sections = (
        _head(report),
        _modalities(manifest),
        _parts(manifest),
        _parity(manifest),
        _precision(manifest, report.record),
        _costs(report),
        _engines(manifest, report.record),
        _results(manifest),
        _provenance(manifest),
        _stages(report.record),
        _files(manifest),
    )
    title = html.escape(f"{manifest.name}: bundle report")
    return _PAGE.substitute(title=title, body="\n".join(s for s in sections if s))


def _head(report: Report) -> str:
    manifest = report.manifest
    good = report.signature is SignatureState.TRUSTED
    wrong = report.signature is SignatureState.INVALID
    size = sum(file.bytes for file in manifest.files.values())
    rate = (
        f"decisions at {manifest.fusion.decision_rate_hz:g} Hz, fusion by {manifest.fusion.kind}, "
        f"embeddings of {manifest.fusion.embedding_size}"
        if manifest.fusion
        else "a plain model, without modalities and sessions"
    )
    signed = _SIGNATURES[report.signature]
    return "\n".join(
        (
            f"<h1>{_text(manifest.name)}</h1>",
            f"<p>{_text(manifest.description)}</p>",
            f"<p>{len(manifest.parts)} parts, {_size(size)}; {_text(rate)}.</p>",
            f'<p class="{"good" if good else "bad" if wrong else "soft"}">{_text(signed)}'
            + (f" Key <code>{_text(report.signed_by)}</code>." if report.signed_by else "")
            + "</p>",
            f'<p class="soft">manifest SHA-256 <code>{_text(report.sha256)}</code></p>',
        )
    )


def _modalities(manifest: Manifest) -> str:
    rows = [
        (
            modality.name,
            modality.kind,
            ", ".join(f"{c.name} [{c.unit}]" for c in modality.channels),
            f"{modality.rate_hz:g} Hz",
            f"{modality.window_s:g} s",
            f"{modality.hop_s:g} s",
            f"{modality.max_age_s:g} s",
        )
        for modality in manifest.modalities
    ]
    columns = ("name", "kind", "channels", "#grid", "#window", "#hop", "#max age")
    return _section("Modalities", _table(columns, rows)) if rows else ""


def _parts(manifest: Manifest) -> str:
    rows = [
        (
            part.name,
            part.kind if part.modality is None else f"{part.kind} of {part.modality}",
            f"{part.rate_hz:g} Hz" if part.rate_hz else "",
            graph.precision,
            str(graph.opset),
            str(graph.nodes),
            _size(manifest.files[graph.file].bytes),
        )
        for part in manifest.parts
        for graph in part.graphs
    ]
    columns = ("part", "kind", "#rate", "graph", "#opset", "#nodes", "#size")
    details = [
        _details(f"{part.name}: inputs, outputs, state", _tensors(part)) for part in manifest.parts
    ]
    return _section("Parts", _table(columns, rows), *details)


def _tensors(part: Part) -> str:
    def row(direction: str, spec: TensorSpec) -> tuple[str, ...]:
        shape = ", ".join(str(dim) for dim in spec.shape)
        return direction, spec.name, spec.role, spec.dtype, f"[{shape}]"

    rows = [row("in", spec) for spec in part.inputs] + [row("out", spec) for spec in part.outputs]
    content = _table(("", "name", "role", "type", "shape"), rows)
    if part.dims:
        dims = [(n, str(d.least), str(d.usual), str(d.greatest)) for n, d in part.dims.items()]
        content += _table(("dim", "#least", "#usual", "#greatest"), dims)
    if part.state:
        states = [(pair.output, pair.input, pair.initial, pair.reset) for pair in part.state]
        content += _table(("state", "feeds", "begins with", "reset at"), states)
    return content


def _parity(manifest: Manifest) -> str:
    rows = []
    for row in manifest.parity:
        passed = row.max_relative <= row.tolerance
        agreement = row.argmax_agreement
        rows.append(
            (
                row.part,
                row.output,
                row.precision,
                str(row.cases),
                f"{row.max_absolute:.1e}",
                f"{row.max_relative:.1e}",
                f"{row.tolerance:.0e}",
                "" if agreement is None else f"{agreement:.2%}",
                _Markup(
                    f'<span class="{"good" if passed else "bad"}">{"yes" if passed else "no"}</span>'
                ),
                row.run_by,
            )
        )
    if not rows:
        return _section("Parity", _soft("Not measured."))
    columns = (
        "part",
        "output",
        "precision",
        "#cases",
        "#absolute",
        "#relative",
        "#tolerance",
        "#same label",
        "within",
        "run by",
    )
    return _section(
        "Parity",
        _soft("Largest difference of each output from the original module, over all cases."),
        parity_chart(manifest.parity),
        _details(f"all {len(rows)} outputs", _table(columns, rows)),
    )


def _precision(manifest: Manifest, record: ExportRecord | None) -> str:
    content = [
        _soft("What each graph's nodes, and each engine's layers, compute in."),
        precision_chart(manifest.parts),
    ]
    if record and record.search:
        search = record.search
        rows = [
            (
                point.label,
                f"{point.speed_ratio:.2f}",
                f"{point.metric:.4f}",
                f"{point.loss:.2f}",
                "chosen" if point.chosen else "",
            )
            for point in sorted(search.points, key=lambda point: (point.loss, -point.speed_ratio))
        ]
        columns = ("assignment", "#speed", f"#{search.metric}", "#loss", "")
        text = f"Assignments tried for {search.metric}, budget {search.budget:g} percentage points."
        content += [f"<h3>Search</h3>{_soft(text)}"]
        if search.points:
            content += [pareto_chart(search), _details("all assignments", _table(columns, rows))]
    return _section("Precision", *content)


def _costs(report: Report) -> str:
    if not report.costs:
        return _section("Cost", _soft("Not measured: the graphs were not run."))
    rates = {part.name: part.rate_hz for part in report.manifest.parts}
    rows = []
    for cost in report.costs:
        rate = rates[cost.part]
        load = (
            "" if cost.us_per_run is None or not rate else f"{cost.us_per_run * rate / 1e4:.2g} %"
        )
        time = "" if cost.us_per_run is None else f"{cost.us_per_run:.0f} µs"
        rows.append(
            (cost.part, cost.precision, str(cost.batch), str(cost.runs), time, load, cost.note)
        )
    columns = ("part", "graph", "#batch", "#runs", "#a run", "#of a core at its rate", "note")
    content = [_soft(f"Measured on {report.machine}."), _table(columns, rows)]
    if any(cost.us_per_run is not None for cost in report.costs):
        content.insert(1, cost_chart(report.costs))
    content += [
        _details(f"{cost.part} {cost.precision}: nodes that take most", node_chart(cost))
        for cost in report.costs
        if cost.nodes
    ]
    return _section("Cost", *content)


def _engines(manifest: Manifest, record: ExportRecord | None) -> str:
    times = {(b.part, b.targets): b for b in record.build_s} if record else {}
    rows = []
    for part in manifest.parts:
        for engine in part.engines:
            build = times.get((part.name, engine.targets))
            layers = [f"{count} {kind}" for kind, count in engine.layers_by_precision.items()]
            rows.append(
                (
                    part.name,
                    ", ".join(engine.targets),
                    f"{engine.flavour} {engine.version}, "
                    f"compute capability {', '.join(engine.compute_capabilities)}"
                    + (f", power mode {engine.power_mode}" if engine.power_mode else ""),
                    engine.precision_requested,
                    ", ".join(layers),
                    "; ".join((*engine.flags, *engine.repairs)),
                    _size(engine.bytes),
                    f"{build.build_s:.1f} s{' (cached)' if build.cached else ''}" if build else "",
                )
            )
    if not rows:
        return _section("Engines", _soft("None: ONNX Runtime runs the graphs."))
    columns = (
        "part",
        "targets",
        "built by",
        "requested",
        "achieved, in layers",
        "flags and repairs",
        "#size",
        "#build",
    )
    return _section("Engines", _table(columns, rows))


def _results(manifest: Manifest) -> str:
    figures = [(name, f"{value:g}") for name, value in manifest.accuracy.items()]
    outputs = [
        (
            output.name,
            ", ".join(output.labels),
            f"{output.temperature:g}",
            f"{output.smoothing_s:g} s",
        )
        for output in manifest.outputs
    ]
    events = [
        (event.name, f"{event.modality}.{event.channel}", ", ".join(f"{v:g}" for v in event.levels))
        for event in manifest.events
    ]
    tables = (
        _table(("figure", "#value"), figures) if figures else _soft("Accuracy: not measured."),
        _table(("output", "labels", "#temperature", "#smoothing"), outputs) if outputs else "",
        _table(("event", "channel", "#levels"), events) if events else "",
    )
    return _section("Figures and outputs", *tables)


def _provenance(manifest: Manifest) -> str:
    source = manifest.provenance
    rows = [
        ("licence of the weights", source.weights_licence),
        ("training data", source.training_data),
        ("attribution", source.attribution),
        *((f"weights of {part.name}", part.weights) for part in manifest.parts if part.weights),
        ("task", source.task),
        ("weights SHA-256", source.weights_sha256),
        ("tools", ", ".join(f"{name} {version}" for name, version in source.tools.items())),
    ]
    return _section("Provenance and licence", _table(("", ""), rows))


def _stages(record: ExportRecord | None) -> str:
    if not record or not record.stage_s:
        return ""
    rows = [(stage, f"{seconds:.1f} s") for stage, seconds in record.stage_s.items()]
    return _section("Export", _table(("stage", "#time"), rows))


def _files(manifest: Manifest) -> str:
    rows = [
        (name, _size(file.bytes), _Markup(f"<code>{_text(file.sha256)}</code>"))
        for name, file in manifest.files.items()
    ]
    table = _table(("file", "#size", "SHA-256"), rows)
    return _section("Files", _details(f"{len(rows)} files", table))


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{''.join(content)}</section>"


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _soft(text: str) -> str:
    return f'<p class="soft">{_text(text)}</p>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A column whose title begins with # has numbers."""
    kinds = [' class="number"' if title.startswith("#") else "" for title in columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )

    head = line("th", [title.removeprefix("#") for title in columns]) if any(columns) else ""
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _text(text: str) -> str:
    return text if isinstance(text, _Markup) else html.escape(printable(text))


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
