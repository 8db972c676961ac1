"""From the records of the runs to figures, a Markdown table and a plot.

A figure is the median over the repetitions, with the smallest and the largest where there are more
than one. Percentiles are over the outputs of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from workload import PERIOD_S, SCENARIOS, length_s

NAN = float("nan")
FIELDS = ("emitted", "handed", "model", "video", "audio", "imu", "finite", "said")


def outputs(record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The outputs of a run by column, up to a period after the last sample; times in seconds."""
    rows = np.array(record["outputs"], dtype=float).reshape(-1, len(FIELDS))
    rows = rows[rows[:, 0] <= (seconds + PERIOD_S) * 1e9]
    columns = {name: rows[:, i] for i, name in enumerate(FIELDS)}
    return {
        name: values if name in ("finite", "said") else values / 1e9
        for name, values in columns.items()
    }


def after_fault(scenario: str, seconds: float) -> float:
    """Frames captured later than this must have their outputs again, or still."""
    if scenario in ("handover", "nominal", "overload", "drift"):
        return 0.0
    return seconds * {"video-stall": 3 / 4, "sink-block": 7 / 10}.get(scenario, 1 / 2)


def percentile(values: Any, q: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, q)) if len(known) else NAN


def figures(record: dict[str, Any], scenario: str, seconds: float) -> dict[str, float]:
    """The figures of one run; times in ms unless their name says otherwise."""
    seconds = length_s(scenario, seconds)
    o = outputs(record, seconds)
    handover_us = (o["emitted"] - o["handed"] - o["model"]) * 1e6
    first = after_fault(scenario, seconds)
    rests_on = np.where(np.isnan(o["video"]), o["emitted"], o["emitted"] - o["video"])
    after = (rests_on > first + 1e-3) & (o["finite"] > 0)
    if scenario == "handover":
        due = 300.0
    elif scenario == "overload":
        due = seconds / (3 * PERIOD_S)
    else:
        due = math.floor(seconds / PERIOD_S + 1e-6) - math.floor(first / PERIOD_S + 1e-6)
    edges = np.concatenate([[0.0], o["emitted"], [seconds]])
    steps = np.diff(o["emitted"])
    skew = (o["video"] - o["audio"]) * 1e3
    fed, arrived = sum(record.get("fed", {}).values()), sum(record.get("arrived", {}).values())
    values = {
        "outputs": len(after),
        "after_percent": 100 * after.sum() / due,
        "first_after": (o["emitted"][after][0] - first) * 1e3 if after.any() else NAN,
        "during_stall": float(
            ((o["emitted"] > first - seconds / 2 + 0.1) & (o["emitted"] < first)).sum()
        ),
        "handover_p50_us": percentile(handover_us, 50),
        "handover_p99_us": percentile(handover_us, 99),
        "cpu": record.get("cpu_s", NAN) / max(len(after), 1) * 1e3,
        "rsd_percent": 100 * float(steps.std() / steps.mean()) if len(steps) > 1 else NAN,
        "gap_s": float(np.diff(edges).max()),
        "skew_p50": percentile(skew, 50),
        "skew_spread": percentile(skew, 95) - percentile(skew, 5),
        "not_finite": float((o["finite"] == 0).sum()),
        "said": float((after & (o["said"] > 0)).sum()),
        "lost": fed - arrived,
        "unfed": sum(record.get("scheduled", {}).values()) - fed,
        "dropped_told": record.get("told", {}).get("dropped", NAN),
        "drift_ppm": record.get("told", {}).get("drift_ppm", NAN),
        "refused": record.get("refused", NAN),
        "stop": record.get("stop_s", NAN) * 1e3,
        **{name: record.get(name, NAN) for name in ("import_s", "import_mb", "rss_mb")},
    }
    for name in ("video", "audio", "imu"):
        values[f"{name}_p50"] = percentile(o[name], 50) * 1e3
        values[f"{name}_p99"] = percentile(o[name], 99) * 1e3
        values[f"{name}_max"] = percentile(o[name], 100) * 1e3
        known = ~np.isnan(o[name])
        line = np.polyfit(o["emitted"][known], o[name][known], 1) if known.sum() > 2 else [NAN]
        values[f"{name}_slope"] = float(line[0]) * 1e3
    cycles = np.array(record.get("cycles", ()), dtype=float).reshape(-1, 3)
    if len(cycles):
        marks = np.array(record["marks"], dtype=float)
        grown = marks[-1] - marks[0] if len(marks) > 1 else np.full(4, NAN)
        values |= {
            "cycles": len(cycles),
            "cycle_p50": percentile(cycles[:, 0], 50) * 1e3,
            "stop_p99": percentile(cycles[:, 1], 99) * 1e3,
            "without_output": float((cycles[:, 2] == 0).sum()),
            "rss_kb_a_cycle": grown[1] / grown[0] * 1024,
            "threads_grown": grown[2],
            "files_grown": grown[3],
        }
    return values


class Cell:
    """The figures of one peer in one scenario over the repetitions, written as text."""

    def __init__(self, peer: dict[str, Any], scenario: str, seconds: float) -> None:
        self.records = peer["runs"].get(scenario, [])
        can = [record for record in self.records if not record.get("cannot")]
        self.runs = [figures(record, scenario, seconds) for record in can]

    def median(self, name: str) -> float:
        values = [run[name] for run in self.runs if not math.isnan(run.get(name, NAN))]
        return float(np.median(values)) if values else NAN

    def text(self, name: str, digits: int = 0) -> str:
        """Median, and the spread where there is one; a dash where there is no figure."""
        values = [run[name] for run in self.runs if not math.isnan(run.get(name, NAN))]
        if not values:
            return "-"
        middle = f"{np.median(values):.{digits}f}"
        low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
        return middle if low == high else f"{middle} ({low} to {high})"

    def trouble(self) -> str:
        """Why there is no figure, or how the runs ended."""
        for record in self.records:
            if why := record.get("cannot"):
                return f"cannot be expressed: {why}"
        errors = [record["error"] for record in self.records if record.get("error")]
        return f"{errors[0][:120]}" if errors else ""


def _stall(cell: Cell) -> str:
    return (
        f"{cell.text('after_percent')} % after it, the first {cell.text('first_after')} ms later; "
        f"{cell.text('during_stall')} during it"
    )


def _cycles(cell: Cell) -> str:
    return (
        f"{cell.text('cycles')} of {cell.text('cycle_p50')} ms, stop p99 {cell.text('stop_p99', 1)} ms, "
        f"{cell.text('rss_kb_a_cycle')} kB a cycle, threads {cell.text('threads_grown')}, "
        f"files {cell.text('files_grown')}, without output {cell.text('without_output')}"
    )


FAULTS: dict[str, tuple[str, Callable[[Cell], str]]] = {
    "overload": (
        "outputs of what the model can do in series; age of the frame p50, max, growth; of the sound",
        lambda c: (
            f"{c.text('after_percent')} %; {c.text('video_p50')}, {c.text('video_max')} ms, "
            f"{c.text('video_slope')} ms/s; {c.text('audio_p50')} ms"
        ),
    ),
    "imu-silent": (
        "outputs of those due in the silence; oldest IMU that one rests on; outputs that say it is missing",
        lambda c: f"{c.text('after_percent')} %; {c.text('imu_max')} ms; {c.text('said')} say it",
    ),
    "video-stall": ("outputs of those due after the stall", _stall),
    "backward": (
        "outputs of those due after it; samples refused",
        lambda c: f"{c.text('after_percent')} %; {c.text('refused')} refused",
    ),
    "nan": (
        "outputs that are NaN; outputs without, of those due from the burst on",
        lambda c: f"{c.text('not_finite')} NaN; {c.text('after_percent')} %",
    ),
    "drift": (
        "frame later than sound p50, its spread p5 to p95; drift reported",
        lambda c: (
            f"{c.text('skew_p50', 1)} ms, {c.text('skew_spread', 1)} ms; {c.text('drift_ppm')} ppm"
        ),
    ),
    "exception": (
        "outputs of those due after it",
        lambda c: f"{c.text('after_percent')} %",
    ),
    "sink-block": (
        "outputs of those due after it; oldest frame, longest gap",
        lambda c: f"{c.text('after_percent')} %; {c.text('video_max')} ms, {c.text('gap_s', 2)} s",
    ),
    "cycles": ("number and length, stop, growth of memory, threads, open files", _cycles),
}


def row(*cells: Any) -> str:
    return (
        "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"
    )


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return [row(*head), row(*("---" for _ in head)), *(row(*cells) for cells in rows), ""]


def versions(peer: dict[str, Any]) -> str:
    found = [r["versions"] for runs in peer["runs"].values() for r in runs if r.get("versions")]
    return ", ".join(f"{k} {v}" for k, v in found[0].items()) if found else "-"


def load(*peers: dict[str, Any]) -> str:
    """From the smallest to the largest load average before a run; what else ran is in it."""
    loads = [r["load_average"] for peer in peers for runs in peer["runs"].values() for r in runs]
    return f"{min(loads):.1f} to {max(loads):.1f}" if loads else "-"


def markdown(results: dict[str, Any]) -> str:
    """The report."""
    machine, seconds, peers = results["machine"], results["seconds"], results["peers"]
    lines = [
        f"Processor {machine['processor']}, {machine['cores']} cores; {machine['system']}; "
        f"Python {machine['python']}; load average {machine['load_average_before']:.1f} before the first, "
        f"{machine['load_average_after']:.1f} after the last. {results['repeat']} run(s) of {seconds:g} s: "
        "median, (smallest to largest). ONNX Runtime has one thread everywhere.",
        "",
    ]
    lines += [
        f"{name}: not run, {peer['not_run']}\n" for name, peer in peers.items() if peer["not_run"]
    ]
    ran = {name: peer for name, peer in peers.items() if not peer["not_run"]}
    lines += table(
        ["peer", "versions", "environment, MB", "load average before its runs"],
        [
            [name, versions(peer), f"{peer['size_mb']:.0f}", load(peer)]
            for name, peer in ran.items()
        ],
    )

    def cells(scenario: str) -> dict[str, Cell]:
        return {name: Cell(peer, scenario, seconds) for name, peer in ran.items()}

    if "handover" in results["scenarios"]:
        lines += [f"**Hand-over only**: {SCENARIOS['handover']}.", ""]
        lines += table(
            [
                "peer",
                "p50, µs",
                "p99, µs",
                "CPU a tick, ms",
                "outputs of 300",
                "import, s",
                "memory after it, MB",
                "memory, MB",
            ],
            [
                [
                    name,
                    cell.text("handover_p50_us"),
                    cell.text("handover_p99_us"),
                    cell.text("cpu", 2),
                    cell.text("outputs"),
                    cell.text("import_s", 2),
                    cell.text("import_mb"),
                    cell.text("rss_mb") + (f" {cell.trouble()}" if cell.trouble() else ""),
                ]
                for name, cell in cells("handover").items()
            ],
        )
    if "nominal" in results["scenarios"]:
        lines += [
            "**Real time**: 30 frames/s, 50 blocks of sound/s, 100 IMU rows/s. Fusedge decides at "
            "ticks of its own, half a period after a frame; the others decide with each frame.",
            "",
        ]
        lines += table(
            [
                "peer",
                "outputs, %",
                "hand-over p50, µs",
                "p99, µs",
                "age of frame p50, ms",
                "p99, ms",
                "jitter, % rsd",
                "frame later than sound p50, ms",
                "CPU an output, ms",
                "samples lost",
                "told dropped",
                "stop, ms",
            ],
            [
                [
                    name,
                    cell.text("after_percent"),
                    cell.text("handover_p50_us"),
                    cell.text("handover_p99_us"),
                    cell.text("video_p50", 1),
                    cell.text("video_p99", 1),
                    cell.text("rsd_percent", 1),
                    cell.text("skew_p50", 1),
                    cell.text("cpu", 2),
                    cell.text("lost"),
                    cell.text("dropped_told"),
                    cell.text("stop", 1) + (f" {cell.trouble()}" if cell.trouble() else ""),
                ]
                for name, cell in cells("nominal").items()
            ],
        )
    for scenario in results["scenarios"]:
        if scenario in FAULTS:
            what, write = FAULTS[scenario]
            lines += [f"**{scenario}**: {SCENARIOS[scenario]}. Given: {what}.", ""]
            rows = []
            for name, cell in cells(scenario).items():
                trouble = cell.trouble()
                cannot = trouble.startswith("cannot")
                rows.append([name, trouble if cannot else write(cell), "" if cannot else trouble])
            lines += table(["peer", "result", "how it ended"], rows)
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """The plot, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = results["seconds"]
    ran = {name: peer for name, peer in results["peers"].items() if not peer["not_run"]}
    names = list(ran)
    colors = dict(zip(names, pyplot.get_cmap("tab10").colors, strict=False))
    figure, ((cost, age), (silent, kept)) = pyplot.subplots(2, 2, figsize=(14, 9))

    for i, name in enumerate(names):
        cell = Cell(ran[name], "handover", seconds)
        p50, p99 = cell.median("handover_p50_us"), cell.median("handover_p99_us")
        cost.barh(i, p50, color=colors[name])
        cost.plot([p50, p99], [i, i], color="black", lw=1)
        cost.plot(p99, i, "|", color="black", ms=12)
        if not math.isnan(p50):
            cost.text(p99, i, f"  {p50:.0f} / {p99:.0f} µs", va="center")
    cost.set(title="Hand-over without a model: p50 (bar) and p99 (mark)", xlabel="µs")
    cost.set_yticks(range(len(names)), names)
    cost.margins(x=0.35)
    cost.set_xlim(left=0)
    cost.invert_yaxis()

    for name in names:
        for record in ran[name]["runs"].get("overload", [])[:1]:
            o = outputs(record, seconds)
            age.plot(o["emitted"], o["video"], ".-", color=colors[name], label=name, ms=3, lw=1)
    age.axhline(4 * PERIOD_S, color="gray", ls=":", label="a period and the model")
    age.set(title="Model three times too slow: age of the newest frame over time, s", yscale="log")
    age.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=4)

    for i, name in enumerate(names):
        for record in ran[name]["runs"].get("imu-silent", [])[:1]:
            o = outputs(record, seconds)
            said = o["said"] > 0
            silent.plot(
                o["emitted"][~said], np.full((~said).sum(), i), "|", color="tab:blue", ms=14
            )
            silent.plot(o["emitted"][said], np.full(said.sum(), i), "|", color="tab:orange", ms=14)
    silent.axvline(seconds / 2, color="black", ls=":")
    silent.plot([], [], "|", color="tab:blue", ms=14, label="an output")
    silent.plot([], [], "|", color="tab:orange", ms=14, label="marked: an input is missing")
    silent.set(title="IMU silent from the dotted line: outputs over time, s")
    silent.set_yticks(range(len(names)), names)
    silent.set_ylim(len(names) - 0.4, -0.6)
    silent.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=2)

    others = ("overload", "drift", "cycles")
    faults = [name for name in results["scenarios"] if name in FAULTS and name not in others]
    share = np.array(
        [[Cell(ran[n], f, seconds).median("after_percent") for f in faults] for n in names]
    ).reshape(len(names), len(faults))
    if faults and names:
        kept.imshow(np.clip(share, 0, 100), cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
        for i in range(len(names)):
            for j in range(len(faults)):
                value = share[i, j]
                kept.text(
                    j, i, "n/a" if math.isnan(value) else f"{value:.0f}", ha="center", va="center"
                )
        kept.set_xticks(range(len(faults)), faults, rotation=20)
        kept.set_yticks(range(len(names)), names)
    kept.set(title="Outputs without NaN after the fault, % of those due")

    machine = results["machine"]
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores, load average before the runs "
        f"{load(*ran.values())}; {results['repeat']} run(s) of {seconds:g} s"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=100)
