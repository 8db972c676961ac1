"""dora: four processes under `dora run`, three sources and the fusion node, over Arrow arrays.

Frames have a queue of one, sound and IMU of a second; an input that is silent for a second is told to
the fusion node (`input_timeout`), and a node that fails is started again (`restart_policy`). The
processor time and memory are those of the daemon and the nodes, sources included.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dora
import numpy as np
import pyarrow
from workload import HEIGHT, MODALITIES, WIDTH, Event, Output, Run

START_S = 4.0  # the nodes have to import and find each other first: measured 1.5 to 2.5 s
QUEUE = {"video": 1, "audio": 50, "imu": 100}


def stream(run: Run) -> None:
    """Start the dataflow, interrupt it as by Ctrl-C, and gather what the nodes have written."""
    run.foreign = True
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        if run.scenario != "cycles":
            run.spec["epoch_ns"] = time.monotonic_ns() + int(START_S * 1e9)
        spec = Path(folder) / "spec.json"
        spec.write_text(json.dumps(run.spec))

        def node(name: str) -> dict:
            return {
                "id": name,
                "path": sys.executable,
                "args": f"{here / 'drive.py'} {spec} {name}",
            }

        sources = [{**node(name), "outputs": ["sample"]} for name in MODALITIES]
        inputs = {
            name: {"source": f"{name}/sample", "queue_size": QUEUE[name], "input_timeout": 1.0}
            for name in MODALITIES
        }
        fusion = {**node("fusion"), "inputs": inputs, "restart_policy": "on-failure"}
        flow = Path(folder) / "dataflow.yml"
        flow.write_text(json.dumps({"nodes": [*sources, fusion]}))  # JSON is YAML
        command = [Path(sys.executable).parent / "dora", "run", "--log-level", "error", flow]
        daemon = subprocess.Popen(command, cwd=folder, stdout=sys.stderr)
        if run.scenario == "cycles":
            run.begin()
            while not list(Path(folder).glob("fusion.*")) and not run.over():
                time.sleep(0.005)
            run.first.set()
        else:
            time.sleep(START_S - 0.1)
            run.begin()
        run.wait_for_end()
        daemon.send_signal(signal.SIGINT)
        daemon.wait()
        for path in sorted(Path(folder).glob("*.json")):
            if path != spec:
                gather(run, json.loads(path.read_text()))


def gather(run: Run, record: dict) -> None:
    for name, put in record["put_ns"].items():
        run.put_ns[name].update(put)
    for name, count in record["arrived"].items():
        run.arrived[name] += count
    run.outputs += [Output(*output) for output in record["outputs"]]
    run.errors += record["errors"]


def node(run: Run, role: str) -> None:
    """A source, or the fusion node, until the daemon says stop; it leaves its record beside the spec."""
    try:
        if role == "fusion":
            fuse(run)
        else:
            source(run, role)
    finally:
        leave(run, role)


def leave(run: Run, role: str) -> None:
    record = {
        "put_ns": run.put_ns if role != "fusion" else {},
        "arrived": run.arrived,
        "outputs": run.outputs,
        "errors": run.errors,
    }
    path = Path(sys.argv[1]).parent / f"{role}.{os.getpid()}.json"
    path.write_text(json.dumps(record))


def source(run: Run, modality: str) -> None:
    peer = dora.Node()

    def push(event: Event) -> None:
        metadata = {"index": event.index, "put_ns": run.put_ns[modality][event.index]}
        peer.send_output("sample", pyarrow.array(event.data.ravel()), metadata)

    run.feed(push, modality)
    while (event := peer.next()) and event["type"] != "STOP":
        continue


def fuse(run: Run) -> None:
    silent: set[str] = set()
    peer = dora.Node()
    run.begin()
    for event in peer:
        if event["type"] == "STOP":
            return
        if event["type"] == "INPUT_CLOSED":
            silent.add(event["id"])
        if event["type"] != "INPUT":
            continue
        modality, metadata = event["id"], event["metadata"]
        silent.discard(modality)
        data = event["value"].to_numpy()
        if modality == "video":
            data = data.reshape(HEIGHT, WIDTH, 3)
        run.put_ns[modality][metadata["index"]] = metadata["put_ns"]
        if run.take(modality, metadata["index"], np.asarray(data)):
            run.emit(*run.fuse(), said=len(silent))
            if run.scenario == "cycles":
                leave(run, "fusion")
