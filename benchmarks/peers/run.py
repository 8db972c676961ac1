"""Fusedge beside its peers in the same scenarios: `make bench-peers`.

Every peer has an environment of its own in `.venv/`, made on demand from `environments/`, and runs
alone, one process (with its children) at a time, in an order that rotates with each repetition.
What cannot be installed or run is in the table with the reason. Results: a table on standard output
and in `bench-out/peers.md`, a plot in `bench-out/peers.png`, everything in `bench-out/peers.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from model import fusion_model
from report import markdown, plot
from rich.console import Console
from workload import SCENARIOS, length_s

from bundle import write_fusion_bundle

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
console = Console(stderr=True)


class Peer(NamedTuple):
    """A row of the comparison: its driver and environment, its variant, and what is imported."""

    driver: str
    variant: str
    package: str
    distributions: tuple[str, ...]


PEERS = {
    "bare": Peer("bare", "", "queue", ()),
    "ezmsg": Peer("ezmsg", "", "ezmsg.core", ("ezmsg",)),
    "mediapipe": Peer("mediapipe", "", "mediapipe", ("mediapipe",)),
    "mediapipe-latest": Peer("mediapipe", "latest", "mediapipe", ("mediapipe",)),
    "dora": Peer("dora", "", "dora", ("dora-rs", "dora-rs-cli")),
    "fusedge": Peer("fusedge", "", "fusedge.runtime.runner", ("fusedge",)),
    "roboflow": Peer("roboflow", "", "inference:InferencePipeline", ("inference-cpu",)),
}


def install(name: str) -> str:
    """Make the environment `name` unless it is there; a reason in one line where it fails."""
    wanted = (HERE / "environments" / f"{name}.txt").read_text()
    folder = HERE / ".venv" / name
    ready, log = folder / "ready.txt", folder / "install.log"
    if ready.exists() and ready.read_text() == wanted:
        return ""
    started = time.monotonic()
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check"]
    requirements = HERE / "environments" / f"{name}.txt"
    with console.status(f"{name}: making its environment") as status:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        with log.open("w") as lines:
            process = subprocess.Popen(
                [*pip, "-r", requirements],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for line in process.stdout or ():
                lines.write(line)
                status.update(f"{name}: {line.strip()[:90]}")
    if process.wait():
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        return f"cannot be installed: {errors[0] if errors else 'see ' + log.name}"
    ready.write_text(wanted)
    console.print(f"{name}: environment made in {time.monotonic() - started:.0f} s")
    return ""


def drive(name: str, scenario: str, options: argparse.Namespace, files: dict[str, Path]) -> Any:
    """The record of one peer in one scenario; a process that hangs is killed with its children."""
    peer = PEERS[name]
    environment = HERE / ".venv" / peer.driver
    with tempfile.TemporaryDirectory() as folder:
        spec, out, log = (Path(folder) / n for n in ("spec.json", "out.json", "log.txt"))
        spec.write_text(
            json.dumps(
                {
                    **peer._asdict(),
                    "distributions": [*peer.distributions, "numpy", "onnxruntime"],
                    "scenario": scenario,
                    "seconds": options.seconds,
                    "cycles": options.cycles,
                    "budget_s": options.cycle_budget,
                    "out": str(out),
                    **{key: str(path) for key, path in files.items()},
                }
            )
        )
        length = options.cycle_budget if scenario == "cycles" else options.seconds
        limit_s = 60 + 2 * length_s(scenario, length)
        with log.open("w") as lines:
            process = subprocess.Popen(
                [environment / "bin" / "python", HERE / "drive.py", spec],
                cwd=folder,
                env={
                    **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                    "VIRTUAL_ENV": str(environment),
                    "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
                },
                stdout=lines,
                stderr=lines,
                start_new_session=True,
            )
            try:
                died = (
                    f"the process ended with status {code}"
                    if (code := process.wait(limit_s))
                    else ""
                )
            except subprocess.TimeoutExpired:
                died = f"hung: killed after {limit_s:.0f} s"
            with suppress(ProcessLookupError):  # what hangs, and what a peer has left behind
                os.killpg(process.pid, signal.SIGKILL)
        record = json.loads(out.read_text()) if out.exists() else {"outputs": []}
        if died:
            last = (log.read_text().strip().splitlines() or [""])[-1]
            record["error"] = record.get("error") or f"{died}: {last[:200]}"
    return record


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
    }


def size_mb(folder: Path) -> float:
    """The size of an environment."""
    files = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=10, help="length of a scenario")
    parser.add_argument("--repeat", type=int, default=1, help="5 for figures to publish")
    parser.add_argument("--cycles", type=int, default=1000, help="starts and stops at most")
    parser.add_argument("--cycle-budget", type=float, default=20, help="seconds for them at most")
    parser.add_argument("--quick", action="store_true", help="everything once, 3 s each")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench-out")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeat, options.cycle_budget = 3, 1, 3
    options.out.mkdir(parents=True, exist_ok=True)

    results: dict[str, Any] = {
        "machine": machine(),
        "seconds": options.seconds,
        "repeat": options.repeat,
        "scenarios": {name: SCENARIOS[name] for name in options.scenarios},
        "peers": {},
    }
    failed = {name: install(name) for name in {PEERS[peer].driver: 0 for peer in options.peers}}
    for name in options.peers:
        driver = PEERS[name].driver
        size = None if failed[driver] else size_mb(HERE / ".venv" / driver)
        results["peers"][name] = {"not_run": failed[driver], "size_mb": size, "runs": {}}
    running = [name for name in options.peers if not results["peers"][name]["not_run"]]

    files = {
        "model": options.out / "fusion.onnx",
        "bundle_30": options.out / "fusion-30.fusedge",
        "bundle_100": options.out / "fusion-100.fusedge",
    }
    files["model"].write_bytes(fusion_model())
    write_fusion_bundle(files["bundle_30"], 30)
    write_fusion_bundle(files["bundle_100"], 100)
    total, done = options.repeat * len(options.scenarios) * len(running), 0
    for repetition in range(options.repeat):
        turn = repetition % max(len(running), 1)
        for scenario in options.scenarios:
            for name in running[turn:] + running[:turn]:
                done += 1
                load = os.getloadavg()[0]
                record = {"load_average": load, **drive(name, scenario, options, files)}
                results["peers"][name]["runs"].setdefault(scenario, []).append(record)
                outputs = len(record["outputs"]) or len(record.get("cycles", ()))
                note = record.get("cannot") or record["error"] or f"{outputs} outputs"
                console.print(f"[{done}/{total}] {scenario} {name}: {note}", markup=False)
                (options.out / "peers.json").write_text(json.dumps(results))

    results["machine"]["load_average_after"] = os.getloadavg()[0]
    (options.out / "peers.json").write_text(json.dumps(results))
    table = markdown(results)
    (options.out / "peers.md").write_text(table)
    print(table)
    plot(results, options.out / "peers.png")


if __name__ == "__main__":
    main()
