"""ONNX's own node tests through export's stages: `python -m benchmarks.onnx_nodes [--limit 300 --seed 0]`.

About 1,900 models that nobody here wrote (`onnx.backend.test.case.node`). Each goes through `simplify`,
float16 where it has float32 to reduce, and the TensorRT-RTX builder: as it is, without an optimisation
profile; then with profile and repair. What needs no GPU is checked: the results of the simplified, the
repaired and the float16 graph against the test's own, by ONNX Runtime (onnx's reference where that cannot
run a graph). Where these disagree with the test itself, the stages are compared with what they gave.

Some tests give as inputs what exporters write as constants (axes, sizes). Where TensorRT refuses a model
that has such inputs, it is tried once more with the test's values as constants, and counted apart.

Each row is written to `bench-out/onnx_nodes.jsonl` at once; a run that was interrupted goes on from
there. Models run in worker processes: one that ends a worker is a row, not the end of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import DimRange, TensorSpec
from fusedge.export.engine import BuildLimits, TrialProcess
from fusedge.export.part import ModulePart
from fusedge.export.precision import reduce_graph, reduced_nodes, uniform_assignments
from fusedge.export.refusal import Refusal
from fusedge.export.repair import close, repair, run
from fusedge.export.simplify import simplify

REPOSITORY = Path(__file__).parents[1]
# Inputs that set how an operator works; TensorRT wants most of them as constants.
SETTINGS = frozenset(
    (
        *("axes", "axis", "block_shape", "delta", "depth", "dft_length", "frame_length"),
        *("frame_step", "image_shape", "k", "limit", "lower_edge_hertz", "num_mel_bins", "r"),
        *("ratio", "repeats", "roi", "sample_rate", "scales", "shape", "size", "sizes"),
        *("start", "t", "training_mode", "upper_edge_hertz", "window"),
    )
)
_DTYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
_SHAPE_WANTED = re.compile(r"missing values for shape input tensor (\S+?)[.\s]")
_HALF_TOLERANCE = 2e-2
_LIMITS = BuildLimits(timeout_s=60, memory_bytes=4 << 30)
_PART = "node"


class Case(NamedTuple):
    """A test: its model, the inputs of its first data set, and what should come out."""

    name: str
    operator: str
    model: onnx.ModelProto
    feeds: dict[str, Any]  # arrays, and lists of them
    wanted: list[Any]
    tolerance: float


def cases() -> list[Case]:
    """All node tests of the installed onnx."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():  # overflows in the tests' own numpy code
        warnings.simplefilter("ignore")
        tests = collect_testcases(None)
    operators = {test.name: test.model.graph.node[0].op_type for test in tests if test.model}
    return [_case(test, operators) for test in tests]


def _case(test: Any, operators: Mapping[str, str]) -> Case:
    whole = test.name.split("_expanded")[0]  # that of the operator, if this is of its body
    arguments, wanted = test.data_sets[0] if test.data_sets else ((), ())
    pairs = zip(test.model.graph.input, arguments, strict=False)
    feeds = {spec.name: _value(value) for spec, value in pairs if value is not None}
    operator = operators.get(whole, operators[test.name])
    return Case(
        test.name, operator, test.model, feeds, [_value(v) for v in wanted], max(test.rtol, 1e-4)
    )


def _value(value: Any) -> Any:
    """An array, or a list of them where the test has a sequence."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list) else np.asarray(value)


class Trier:
    """Asks TensorRT about the graphs of one case; its own values for inputs that are shapes."""

    def __init__(self, process: TrialProcess, case: Case) -> None:
        self._process, self._feeds = process, case.feeds
        self._dims = {
            dim.dim_param: DimRange(least=size, usual=size, greatest=size)
            for value in case.model.graph.input
            if value.name in case.feeds and not isinstance(case.feeds[value.name], list)
            for dim, size in zip(
                value.type.tensor_type.shape.dim, case.feeds[value.name].shape, strict=False
            )
            if dim.dim_param and size > 0
        }
        self._answers: dict[bytes, Refusal | None] = {}

    def bare(self, graph: bytes) -> Refusal | None:
        """Without a profile for inputs that are shapes."""
        if graph not in self._answers:
            self._answers[graph] = self._process.trial(graph, self._dims)
        return self._answers[graph]

    def trial(self, graph: bytes) -> Refusal | None:
        """With a profile: only TensorRT knows which inputs it takes for shapes."""
        refusal = self.bare(graph)
        values: dict[str, list[int]] = {}
        while refusal and (asked := self._asked(refusal, values)):
            values |= {name: self._feeds[name].reshape(-1).tolist() for name in asked}
            refusal = self._process.trial(graph, self._dims, values)
        return refusal

    def _asked(self, refusal: Refusal, known: Collection[str]) -> list[str]:
        """The inputs whose values the refusal asks for; the first time it may ask for all."""
        able = [
            name
            for name, value in self._feeds.items()
            if not isinstance(value, list) and value.dtype.kind in "iu" and value.ndim < 2
        ]
        if "no optimization profile" in refusal.reason and not known:
            return able
        found = _SHAPE_WANTED.search(refusal.reason)
        return [found[1]] if found and found[1] in able and found[1] not in known else []


def examine(case: Case, process: TrialProcess) -> dict[str, Any]:
    """Everything that is learned about one case."""
    trier = Trier(process, case)
    began = time.monotonic()
    reference = run(case.model, case.feeds)
    row: dict[str, Any] = {
        "name": case.name,
        "operator": case.operator,
        "onnxruntime": _verdict(reference, case.wanted, case.tolerance),
        "bare": _told(trier.bare(case.model.SerializeToString())),
    }
    if row["onnxruntime"] == "differs" and not _same(reference, run(case.model, case.feeds), 0):
        row["onnxruntime"] = "random"
    wanted = case.wanted if row["onnxruntime"] == "equal" else reference
    if row["onnxruntime"] == "random":
        wanted = None
    row["as it is"] = _built(case.model, case, trier, wanted, case.tolerance)
    if row["as it is"]["refusal"] and (fixed := _with_constants(case)) is not None:
        row["as it is, settings constant"] = _built(fixed, case, trier, wanted, case.tolerance)
    row |= _reduced_rows(case, trier, wanted)
    return {**row, "seconds": round(time.monotonic() - began, 2)}


def _reduced_rows(case: Case, trier: Trier, wanted: list[Any] | None) -> dict[str, Any]:
    """The case as a part of a bundle: simplified, and in float16."""
    try:
        part = _as_part(case.model)
    except FusedgeError as error:
        return {"part": error.what}
    rows: dict[str, Any] = {"part": None}
    try:
        slim = simplify(case.model, part)
    except FusedgeError as error:
        return {**rows, "simplify": error.what}
    rows["simplify"] = None
    rows["simplified"] = _built(slim, case, trier, wanted, case.tolerance)
    if rows["simplified"]["refusal"] and (fixed := _with_constants(case)) is not None:
        try:
            smaller = simplify(fixed, _as_part(fixed))
        except FusedgeError as error:
            rows["simplify, settings constant"] = error.what
        else:
            rows["simplified, settings constant"] = _built(
                smaller, case, trier, wanted, case.tolerance
            )
            slim, part = smaller, _as_part(smaller)
    assignment = uniform_assignments(slim, "fp16")[0]
    if assignment:
        try:
            half = reduce_graph(slim, part, assignment)
        except FusedgeError as error:
            return {**rows, "fp16": error.what}
        if reduced_nodes(half):
            rows["fp16"] = _built(half, case, trier, wanted, _HALF_TOLERANCE)
    return rows


def _built(
    graph: onnx.ModelProto, case: Case, trier: Trier, wanted: list[Any] | None, tolerance: float
) -> dict[str, Any]:
    """What the builder and the repair make of a graph, and whether the graph is still right."""
    feeds = {v.name: case.feeds[v.name] for v in graph.graph.input if v.name in case.feeds}
    repaired = repair(graph, trier.trial, feeds)
    return {
        "refusal": _told(repaired.refusal),
        "repairs": list(repaired.repairs),
        "results": _verdict(run(repaired.graph, feeds), wanted, tolerance),
    }


def _told(refusal: Refusal | None) -> dict[str, Any] | None:
    return asdict(refusal) if refusal else None


def _verdict(found: list[Any] | None, wanted: list[Any] | None, tolerance: float) -> str:
    if found is None:
        return "not run"
    if wanted is None:
        return "not compared"
    return "equal" if _same(wanted, found, tolerance) else "differs"


def _same(wanted: Sequence[Any] | None, found: Sequence[Any] | None, tolerance: float) -> bool:
    if wanted is None or found is None or len(wanted) != len(found):
        return False
    return all(close(a, b, tolerance) for a, b in zip(wanted, found, strict=True))


def _with_constants(case: Case) -> onnx.ModelProto | None:
    """The model with its settings as constants; None where it has none."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(case.model)
    settings = [
        value.name
        for value in case.model.graph.input
        if value.name in SETTINGS and value.name in case.feeds and case.feeds[value.name].ndim < 2
    ]
    if not settings:
        return None
    del fixed.graph.input[:]
    fixed.graph.input.extend(v for v in case.model.graph.input if v.name not in settings)
    fixed.graph.initializer.extend(
        numpy_helper.from_array(case.feeds[name], name) for name in settings
    )
    return fixed


def _as_part(model: onnx.ModelProto) -> ModulePart:
    """A part with the model's interface and no module; raises FusedgeError where a part cannot have it."""
    return ModulePart(
        name=_PART,
        kind="model",
        modality=None,
        rate_hz=None,
        module=nn.Identity(),
        inputs=tuple(_spec(value, "input") for value in model.graph.input),
        outputs=tuple(_spec(value, "output") for value in model.graph.output),
        dims={},
    )


def _spec(value: onnx.ValueInfoProto, role: str) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        held = value.type.WhichOneof("value") or "no"
        raise FusedgeError(f"a part has no {kind if tensor.elem_type else held} tensors")
    shape = [dim.dim_value if dim.HasField("dim_value") else "free" for dim in tensor.shape.dim]
    row = {"name": value.name, "role": role, "dtype": dtype, "shape": shape}
    try:
        return TensorSpec.model_validate(row)
    except ValueError as error:
        raise FusedgeError(f"not a tensor of a part: {row}: {error}") from None


def work(file: Path, names: Sequence[str]) -> None:
    """Examine cases one by one and write a row each; the name goes first, in case it is the last."""
    logging.disable(logging.ERROR)
    chosen = {case.name: case for case in cases()}
    with file.open("a", encoding="utf-8") as rows, TrialProcess(limits=_LIMITS) as process:
        for name in names:
            print(json.dumps({"begun": name}), file=rows, flush=True)
            print(json.dumps(examine(chosen[name], process)), file=rows, flush=True)


def read_rows(file: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Rows by name, and the names that were begun and not ended. A torn last line is left out."""
    rows: dict[str, dict[str, Any]] = {}
    begun: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "begun" in row:
            begun.append(row["begun"])
        else:
            rows[row["name"]] = row
    return rows, [name for name in begun if name not in rows]


def measure(folder: Path, names: Sequence[str], workers: int) -> dict[str, dict[str, Any]]:
    """All rows of `names`, from `folder` where they are there, measured where not."""
    files = [folder / f"onnx_nodes.{number}.jsonl" for number in range(workers)]
    gathered = folder / "onnx_nodes.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        _gather(file, gathered)
    known = read_rows(gathered)[0]
    left = [name for name in names if name not in known]
    queues = [left[number::workers] for number in range(workers)]
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        while any(queues) or running:
            for number, queue in enumerate(queues):
                if number in running and running[number].poll() is None:
                    continue
                ended = running.pop(number, None)
                rows, open_names = read_rows(files[number])
                done = {*rows, *_note_ending(files[number], ended, open_names)}
                queues[number] = [name for name in queue if name not in done]
                if queues[number]:
                    running[number] = _start(files[number], queues[number])
            if sys.stderr.isatty():
                print(f"\r{_count(files)} of {len(left)}", end="", file=sys.stderr, flush=True)
            time.sleep(1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
        for file in files:
            _gather(file, gathered)
    found = read_rows(gathered)[0]
    return {name: found[name] for name in names}


def _note_ending(
    file: Path, ended: subprocess.Popen[bytes] | None, open_names: Sequence[str]
) -> list[str]:
    """A row for the model at which a worker died; raises if it never got to a model."""
    if ended is None or ended.returncode == 0:
        return []
    if not open_names:
        raise SystemExit(f"a worker ended with status {ended.returncode} before its first model")
    with file.open("a", encoding="utf-8") as rows:
        for name in open_names:
            print(json.dumps({"name": name, "worker": ended.returncode}), file=rows)
    return list(open_names)


def _start(file: Path, names: Sequence[str]) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "benchmarks.onnx_nodes", "--work", str(file))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdin is not None
    process.stdin.write("\n".join(names).encode())
    process.stdin.close()
    return process


def _gather(file: Path, into: Path) -> None:
    rows = read_rows(file)[0]
    with into.open("a", encoding="utf-8") as gathered:
        for row in rows.values():
            print(json.dumps(row), file=gathered)
    file.unlink(missing_ok=True)


def _count(files: Sequence[Path]) -> int:
    return sum(len(read_rows(file)[0]) for file in files)


def outcome(row: Mapping[str, Any], *stages: str) -> str:
    """What became of a model in the last of these stages that it reached."""
    if "worker" in row:
        return "ended the worker"
    reached = [stage for stage in stages if isinstance(row.get(stage), Mapping)]
    if not reached and row["part"]:
        return "not such a part"
    if not reached and (row["simplify"] or isinstance(row.get(stages[0]), str)):
        return "refused by the stage itself"
    if not reached:
        return "nothing to reduce"
    last = row[reached[-1]]
    if last["refusal"]:
        stage = last["refusal"]["stage"]
        return f"refused ({stage})"
    if last["results"] == "differs":
        return "wrong"
    words = "built after repair" if last["repairs"] else "built"
    return f"{words}, settings constant" if reached[-1].endswith("constant") else words


_KINDS = (
    (r"does not have|[dD]ata ?type|unsupported input type|UINT8|[tT]ype ", "a type that it lacks"),
    (r"must resolve|initializer|is_weights|not a constant|build-time", "wants a constant"),
    (r"no operator|no runners|layerImpls", "an operator that it lacks"),
    (r"[sS]upport|==|training", "a mode of an operator that it lacks"),
)


def reason_kind(reason: str) -> str:
    """The kind of a refusal, in a few words."""
    return next((words for pattern, words in _KINDS if re.search(pattern, reason)), "other")


def report(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures, for JSON."""
    every = list(rows.values())
    alive = [row for row in every if "worker" not in row]
    chains = {
        "as it is, no profile": None,
        "as it is, profile and repair": ("as it is", "as it is, settings constant"),
        "simplified, profile and repair": ("simplified", "simplified, settings constant"),
        "fp16, profile and repair": ("fp16",),
    }
    outcomes = {
        title: Counter(
            ("refused" if row["bare"] else "built") if stages is None else outcome(row, *stages)
            for row in alive
        )
        for title, stages in chains.items()
    }
    stages = ("as it is", "as it is, settings constant")
    refused = [row for row in alive if outcome(row, *stages).startswith("refused")]
    lasts = {row["name"]: row.get(stages[1], row[stages[0]])["refusal"] for row in refused}
    by_operator: dict[str, Counter[str]] = defaultdict(Counter)
    for row in alive:
        by_operator[row["operator"]][outcome(row, *stages)] += 1
    everywhere = [
        row[stage]
        for row in alive
        for stage in (*stages, "simplified", "simplified, settings constant", "fp16")
        if isinstance(row.get(stage), Mapping)
    ]
    return {
        "models": len(every),
        "ended the worker": [row["name"] for row in every if "worker" in row],
        "crashed the builder": sorted(
            row["name"]
            for row in alive
            if any(
                isinstance(v, Mapping)
                and ((v.get("refusal") or v) or {}).get("stage") in ("crash", "timeout")
                for v in row.values()
            )
        ),
        "outcomes": {title: dict(counts.most_common()) for title, counts in outcomes.items()},
        "reasons": dict(Counter(reason_kind(r["reason"]) for r in lasts.values()).most_common()),
        "refusals that name node or operator": sum(
            bool(r["node"] or r["operator"]) for r in lasts.values()
        ),
        "repairs": dict(
            Counter(text for row in everywhere for text in row["repairs"]).most_common()
        ),
        "onnxruntime": dict(Counter(row["onnxruntime"] for row in alive).most_common()),
        "onnxruntime differs": sorted(
            row["name"] for row in alive if row["onnxruntime"] == "differs"
        ),
        "simplify failed": {row["name"]: row["simplify"] for row in alive if row.get("simplify")},
        "fp16 failed": {
            row["name"]: row["fp16"] for row in alive if isinstance(row.get("fp16"), str)
        },
        "wrong": {
            stage: sorted(
                row["name"]
                for row in alive
                if isinstance(row.get(stage), Mapping) and row[stage]["results"] == "differs"
            )
            for stage in (*stages, "simplified", "simplified, settings constant", "fp16")
        },
        "operators": {name: dict(counts) for name, counts in sorted(by_operator.items())},
        "refused": {
            name: [r["operator"] or "", reason_kind(r["reason"]), r["reason"][:160]]
            for name, r in sorted(lasts.items())
        },
    }


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The figures as text."""
    total = figures["models"]
    ended, crashed = len(figures["ended the worker"]), len(figures["crashed the builder"])
    yield f"{total} models; {ended} ended the worker, {crashed} crashed or outlasted the builder"
    for title, counts in figures["outcomes"].items():
        yield f"\n{title}"
        for words, count in counts.items():
            yield f"  {words:40} {count:5}  {100 * count / total:5.1f} %"
    for title in ("reasons", "repairs", "onnxruntime"):
        yield f"\n{title}"
        for words, count in figures[title].items():
            yield f"  {words:60} {count:5}"
    yield "\nwrong"
    for stage, names in figures["wrong"].items():
        yield f"  {stage:40} {len(names):5}  {' '.join(names[:4])}"
    yield f"\nsimplify failed on {len(figures['simplify failed'])}"
    yield f"fp16 failed on {len(figures['fp16 failed'])}"
    yield "\noperators with refusals: refused of all"
    for name, counts in figures["operators"].items():
        refused = sum(count for words, count in counts.items() if words.startswith("refused"))
        if refused:
            yield f"  {name:40} {refused:4} of {sum(counts.values()):4}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=0, help="a random choice of so many models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench-out")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, sys.stdin.read().split())
        return
    names = sorted(case.name for case in cases())
    random.Random(arguments.seed).shuffle(names)
    chosen = names[: arguments.limit or None]
    figures = report(measure(arguments.out, chosen, arguments.workers))
    (arguments.out / "onnx_nodes.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print("\n".join(lines(figures)))


if __name__ == "__main__":
    main()
