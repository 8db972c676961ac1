"""The search: within the budget whatever the metric does, with few evaluations, and resumable."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Precision
from fusedge.export.calibration import calibrate
from fusedge.export.emulate import emulated
from fusedge.export.node_groups import node_groups
from fusedge.export.precision import reduce_graph, reduced_nodes
from fusedge.export.precision_search import SearchProblem, SearchResult, search
from fusedge.export.search_ledger import SearchLedger
from fusedge.export.speed import CpuSpeed, Speed
from tests.export.small_net import run, small_graph, small_part, windows

BATCH = windows(400, seed=9)
LABELS = run(small_graph(), BATCH).argmax(axis=1)
GAIN: Mapping[Precision, float] = {"int8": 0.06, "bf16": 0.01, "fp16": 0.01}


def agreement(graphs: Mapping[str, bytes]) -> float:
    """The share of windows whose greatest output is that of the float32 graph, least of the parts."""
    models = [emulated(onnx.load_from_string(graph)) for graph in graphs.values()]
    return min(float((run(model, BATCH).argmax(axis=1) == LABELS).mean()) for model in models)


def by_count(gain: Mapping[Precision, float]) -> Callable[[str, bytes], Speed]:
    """A machine on which each reduced node saves a share of the time."""

    def speed(part: str, graph: bytes) -> Speed:
        nodes = reduced_nodes(onnx.load_from_string(graph))
        ratio = 1 - sum(gain[precision] for precision in nodes.values())
        return Speed(ratio, ratio - 0.01, ratio + 0.01, 1e-3)

    return speed


def problem(
    budget_points: float,
    metric: Callable[[Mapping[str, bytes]], float] = agreement,
    speed: Callable[[str, bytes], Speed] = by_count(GAIN),  # noqa: B008
    precisions: tuple[Precision, ...] = ("int8", "fp16"),
    names: tuple[str, ...] = ("net",),
) -> SearchProblem:
    calibration = calibrate(small_graph(), [{"window": windows(16)}])
    return SearchProblem(
        parts=[small_part(name) for name in names],
        graphs=dict.fromkeys(names, small_graph()),
        calibrations=dict.fromkeys(names, calibration),
        metric=metric,
        metric_identity="agreement",
        speed=speed,
        speed_identity="nodes",
        precisions=precisions,
        budget_points=budget_points,
    )


def rebuilt(result: SearchResult, asked: SearchProblem) -> dict[str, onnx.ModelProto]:
    return {
        part.name: reduce_graph(
            asked.graphs[part.name],
            part,
            result.assignment.get(part.name, {}),
            asked.calibrations[part.name],
        )
        for part in asked.parts
    }


def test_a_wide_budget_takes_the_fastest_precision_at_once() -> None:
    result = search(problem(100), SearchLedger())
    assert set(result.assignment["net"].values()) == {"int8"}
    assert result.evaluations == 4  # float32, each precision, and the chosen once more
    assert result.time_ratio == pytest.approx(1 - 7 * GAIN["int8"])


def test_a_narrow_budget_mixes_precisions_within_it() -> None:
    wide = search(problem(100), SearchLedger())
    assert wide.loss_points > 0.4, "int8 throughout must lose something for this test"
    asked = problem(0.4)
    result = search(asked, SearchLedger())
    graphs = rebuilt(result, asked)
    score = agreement({name: graph.SerializeToString() for name, graph in graphs.items()})
    assert score == result.metric
    assert (result.metric_fp32 - score) * 100 == result.loss_points <= 0.4
    assert wide.time_ratio < result.time_ratio < 1
    assert reduced_nodes(graphs["net"]) == result.assignment["net"]
    groups = len(node_groups(small_graph()))
    moves = 2 * groups
    assert result.evaluations <= moves + 4 * math.ceil(math.log2(moves + 1)) + 5
    (chosen,) = [point for point in result.points if point.chosen]
    assert chosen.groups == result.groups
    better = [p for p in result.points if p.within_budget and p.time_ratio < chosen.time_ratio]
    assert better == []


def test_bfloat16_is_judged_where_the_cpu_has_no_kernels_for_it() -> None:
    result = search(problem(5, precisions=("bf16",)), SearchLedger())
    assert set(result.assignment["net"].values()) == {"bf16"}
    assert result.refused == ()


def test_int8_that_is_slower_loses() -> None:
    slow: Mapping[Precision, float] = {**GAIN, "int8": -0.1}
    result = search(problem(100, speed=by_count(slow)), SearchLedger())
    assert set(result.assignment["net"].values()) == {"fp16"}


def test_what_is_not_surely_faster_stays_in_float32() -> None:
    def unsure(part: str, graph: bytes) -> Speed:
        return Speed(0.9, 0.7, 1.05, 1e-3)

    result = search(problem(100, speed=unsure), SearchLedger())
    assert result.assignment == {} and result.loss_points == 0 and result.time_ratio == 1
    assert result.evaluations == 1


@pytest.mark.parametrize("seed", range(6))
def test_no_metric_makes_it_overrun_the_budget(seed: int) -> None:
    """A metric without rhyme or reason, sometimes no number at all."""

    def wild(graphs: Mapping[str, bytes]) -> float:
        if graphs["net"] == small_graph().SerializeToString(deterministic=True):
            return 0.9
        digest = hashlib.sha256(bytes([seed]) + graphs["net"]).digest()
        return math.nan if digest[0] < 20 else 0.9 - 0.03 * digest[1] / 255

    asked = problem(1.0, metric=wild)
    result = search(asked, SearchLedger())
    graphs = rebuilt(result, asked)
    data = {name: g.SerializeToString(deterministic=True) for name, g in graphs.items()}
    assert 90 - wild(data) * 100 <= 1.0 + 1e-9
    assert result.metric == wild(data)


def test_an_assignment_that_does_not_hold_when_measured_anew_is_not_chosen() -> None:
    seen: set[bytes] = set()

    def flaky(graphs: Mapping[str, bytes]) -> float:
        again = graphs["net"] in seen
        seen.add(graphs["net"])
        return 0.5 if again else 0.9

    result = search(problem(1.0, metric=flaky), SearchLedger())
    assert result.assignment == {} and result.metric == 0.9


def test_a_speed_that_was_luck_is_not_chosen() -> None:
    seen: set[bytes] = set()

    def lucky(part: str, graph: bytes) -> Speed:
        again = graph in seen
        seen.add(graph)
        return Speed(1.0, 0.9, 1.1, 1e-3) if again else Speed(0.5, 0.5, 0.5, 1e-3)

    result = search(problem(100, speed=lucky), SearchLedger())
    assert result.assignment == {} and result.time_ratio == 1


def test_a_part_counts_by_its_rate() -> None:
    asked = problem(100, names=("often", "seldom"), precisions=("fp16",))
    often, seldom = asked.parts
    parts = [replace(often, rate_hz=30.0), replace(seldom, rate_hz=10.0)]

    def only_often(part: str, graph: bytes) -> Speed:
        ratio = 0.5 if part == "often" else 2.0
        return Speed(ratio, ratio, ratio, 1e-3)

    result = search(replace(asked, parts=parts, speed=only_often), SearchLedger())
    assert set(result.assignment) == {"often"}
    assert result.time_ratio == pytest.approx((30 * 0.5 + 10) / 40)


def test_a_graph_that_does_not_run_is_told_and_left_out() -> None:
    def refuses_int8(part: str, graph: bytes) -> Speed:
        if "int8" in reduced_nodes(onnx.load_from_string(graph)).values():
            raise FusedgeError("no int8 here", where=f"part {part}")
        return by_count(GAIN)(part, graph)

    result = search(problem(100, speed=refuses_int8), SearchLedger())
    assert set(result.assignment["net"].values()) == {"fp16"}
    assert result.refused == ("part net: no int8 here",)


def test_a_precision_that_this_machine_lacks_is_told_once() -> None:
    full = {"net": small_graph().SerializeToString()}
    measure = CpuSpeed(full, {"net": {"window": windows(1)}})
    asked = problem(100, speed=measure, precisions=("bf16",))
    result = search(replace(asked, speed_identity=measure.identity), SearchLedger())
    assert result.measured_on == measure.identity and "onnxruntime" in result.measured_on
    (reason,) = result.refused
    assert "part net, speed: ONNX Runtime does not run the graph" in reason
    assert result.assignment == {}


def test_a_metric_that_is_no_number_and_a_negative_budget_are_refused() -> None:
    with pytest.raises(FusedgeError, match="float32 graphs is no number"):
        search(problem(1, metric=lambda graphs: math.nan), SearchLedger())
    with pytest.raises(FusedgeError, match="not possible"):
        search(problem(-1), SearchLedger())


def test_a_finished_search_is_read_from_its_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = search(problem(0.5), SearchLedger(path))
    again = search(problem(0.5), SearchLedger(path))
    assert (
        again.evaluations == 1 and again.reused == first.evaluations - 1
    )  # float32 is measured anew
    assert (again.groups, again.points) == (first.groups, first.points)
    other = replace(problem(0.5), metric_identity="other data")
    assert search(other, SearchLedger(path)).reused == 0
    stricter = problem(0.5, metric=lambda graphs: agreement(graphs) - 0.1)  # of the same name
    assert search(stricter, SearchLedger(path)).reused == 0
    ledger = SearchLedger(path)
    ledger.clear()
    assert search(problem(0.5), ledger).reused == 0
    assert search(problem(0.5), SearchLedger(path)).evaluations == 1


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    program = """
        import os, signal, sys
        from pathlib import Path
        from fusedge.export.precision_search import search
        from fusedge.export.search_ledger import SearchLedger
        from tests.export.test_precision_search import agreement, problem
        calls = []
        def metric(graphs):
            calls.append(1)
            if len(calls) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return agreement(graphs)
        search(problem(0.5, metric=metric), SearchLedger(Path(sys.argv[1])))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    path.write_bytes(path.read_bytes() + b'{"check": "cut o')
    resumed = search(problem(0.5), SearchLedger(path))
    whole = search(problem(0.5), SearchLedger())
    assert resumed.reused == 6 and resumed.damaged_lines == 1
    assert resumed.evaluations == whole.evaluations - 6
    assert resumed.groups == whole.groups and np.isclose(resumed.time_ratio, whole.time_ratio)
