"""What a part costs here, and which nodes it goes to: measured with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import printable
from fusedge.bundle.inference import DISABLED_OPTIMIZERS, onnxruntime, open_session
from fusedge.bundle.manifest import Graph, Part, TensorSpec

TOP_NODES = 12
MAX_INPUT_BYTES = 256 << 20  # a bundle from elsewhere may claim any window
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
    sizes = {name: dim.usual for name, dim in part.dims.items()}
    batch = part.dims["batch"].least if "batch" in part.dims else 1
    sizes["batch"] = batch
    empty = GraphCost(part=part.name, precision=graph.precision, batch=batch)
    shapes = {spec.name: _shape(spec, sizes) for spec in part.inputs}
    size = sum(math.prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize for spec in part.inputs)
    if size > MAX_INPUT_BYTES:
        return empty.model_copy(update={"note": f"not run: its inputs have {size} bytes"})
    content = bundle.read(graph.file)
    generator = np.random.default_rng(0)
    feeds = {spec.name: _noise(spec, shapes[spec.name], generator) for spec in part.inputs}
    try:
        times = _time(open_session(content, graph.precision), feeds)
        nodes = _profile(content, graph, feeds)
    except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
        return empty.model_copy(update={"note": printable(f"does not run: {error}")})
    median = statistics.median(times) * 1e6
    return empty.model_copy(update={"runs": len(times), "us_per_run": median, "nodes": nodes})


def _shape(spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)


def _noise(
    spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[Any]:
    """Values that fit the role: all there, nothing aged, indices that any table has."""
    dtype = np.dtype(spec.dtype)
    if spec.role in ("valid", "presence"):
        return np.ones(shape, dtype)
    if spec.role in ("age", "state_in") or spec.dtype in ("int32", "int64"):
        return np.zeros(shape, dtype)
    if spec.dtype == "float32":
        return generator.standard_normal(shape, np.float32)
    return generator.integers(0, 2 if spec.dtype == "bool" else 256, shape).astype(dtype)


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
