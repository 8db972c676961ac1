"""What a part costs here, and which nodes it goes to: measured with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.inference import DISABLED_OPTIMIZERS, onnxruntime, open_session
from fusedge.bundle.manifest import Graph, Part
from fusedge.bundle.noise import least_batch, noise

TOP_NODES = 12
_BUDGET_S = 0.3  # for each graph and measurement, beyond one run
_MAX_RUNS = 100
_MAX_EVENTS = 20_000  # of a profile: 800 bytes each
_KERNEL = "_kernel_time"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class NodeCost(_Frozen):
    """A node of the graph as ONNX Runtime runs it: fused nodes bear the name of one of them."""

    node: str
    operator: str
    share: float
    """Of the time that all nodes of the graph take."""


class GraphCost(_Frozen):
    """One graph at the least batch and the usual sizes of its other dims, on one thread of the CPU.

    `us_per_run` is the median in µs, None where it could not be measured, which `note` then explains.
    The shares of the nodes are measured apart from it: a profile costs time, and tells whole µs only.
    """

    part: str
    precision: str
    batch: int
    runs: int = 0
    us_per_run: float | None = None
    nodes: tuple[NodeCost, ...] = ()
    note: str = ""


def measure_graph(bundle: Bundle, part: Part, graph: Graph) -> GraphCost:
    """Run a graph of a bundle on seeded noise. What it computes is not looked at.

    Raises BundleError where its file is damaged; whatever else goes wrong is the result's `note`.
    """
    batch = least_batch(part)
    empty = GraphCost(part=part.name, precision=graph.precision, batch=batch)
    try:
        feeds = noise(part, batch)
    except FusedgeError as error:  # too large to be tried
        return empty.model_copy(update={"note": error.what})
    content = bundle.read(graph.file)
    try:
        times = _time(open_session(content, graph.precision), feeds)
        nodes = _profile(content, graph, feeds)
    except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
        return empty.model_copy(update={"note": printable(f"does not run: {error}")})
    median = statistics.median(times) * 1e6
    return empty.model_copy(update={"runs": len(times), "us_per_run": median, "nodes": nodes})


def _time(session: Any, feeds: dict[str, NDArray[Any]]) -> list[float]:
    """Seconds of each run after the first."""
    session.run(None, feeds)
    times: list[float] = []
    while len(times) < _MAX_RUNS and (not times or sum(times) < _BUDGET_S):
        start = perf_counter()
        session.run(None, feeds)
        times.append(perf_counter() - start)
    return times


def _profile(content: bytes, graph: Graph, feeds: dict[str, NDArray[Any]]) -> tuple[NodeCost, ...]:
    """The nodes that take most, by ONNX Runtime's own profile."""
    module = onnxruntime()
    options = module.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = module.InferenceSession(
            content,
            options,
            ["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS.get(graph.precision),
        )
        for _ in range(max(2, min(_MAX_RUNS, _MAX_EVENTS // graph.nodes))):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8", errors="replace"))
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
            name = printable(event["name"].removesuffix(_KERNEL)) or "(without a name)"
            times[name, event["args"]["op_name"]].append(event["dur"])
    # Without the slowest tenth, in which the thread was interrupted.
    costs = {node: sum(sorted(each)[: -(len(each) // 10) or None]) for node, each in times.items()}
    total = sum(costs.values()) or 1.0
    top = sorted(costs, key=lambda node: (-costs[node], node))[:TOP_NODES]
    return tuple(NodeCost(node=n, operator=op, share=costs[n, op] / total) for n, op in top)
