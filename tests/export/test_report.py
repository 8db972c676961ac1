"""The report of a bundle: complete, honest about what was not measured, safe whoever made the bundle."""

from __future__ import annotations

import importlib
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.archive import MANIFEST, Bundle, file_entry, write_bundle
from fusedge.bundle.errors import BundleError, FusedgeError, MissingExtraError
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    DimRange,
    Engine,
    Graph,
    Manifest,
    Part,
    PartParity,
    Provenance,
    TensorSpec,
)
from fusedge.bundle.noise import MAX_INPUT_BYTES
from fusedge.bundle.signature import SIGNATURE, SignatureState
from fusedge.export.node_cost import NodeCost, measure_graph
from fusedge.export.report import ExportRecord, Report, make_report, read_record
from tests.cli.command import fusedge
from tests.tiny_bundle import write_tiny_bundle

pytest.importorskip("matplotlib")
from fusedge.export.report_html import render

HOSTILE = """<script>alert("1")</script><img src=x onerror='x'>&lt;$x^2$"""
RECORD: dict[str, Any] = {
    "weights_sha256": "0" * 64,
    "build_s": [{"part": "head", "targets": ["rtx-4090"], "build_s": 1.25, "cached": True}],
    "search": {
        "metric": "macro F1",
        "budget": 0.5,
        "points": [
            {"label": "fp32", "speed_ratio": 1, "metric": 0.81, "loss": 0},
            {"label": "all fp16", "speed_ratio": 1.4, "metric": 0.808, "loss": 0.2, "chosen": True},
            {"label": "all int8", "speed_ratio": 2, "metric": 0.7, "loss": 11},
        ],
    },
    "stage_s": {"trace": 3.5},
}


def parity(**changes: Any) -> PartParity:
    fields = {
        "part": "head",
        "precision": "fp16",
        "output": "logits",
        "cases": 432,
        "max_absolute": 2e-3,
        "max_relative": 1e-3,
        "argmax_agreement": 0.9975,
        "tolerance": 1e-2,
        "run_by": "onnxruntime 1.32.0 cpu",
    }
    return PartParity(**{**fields, **changes})  # type: ignore[arg-type]


def full_bundle(path: Path, text: str = "a text") -> Bundle:
    """The tiny bundle with all that a manifest can tell; `text` stands wherever one may."""
    plain = write_tiny_bundle(path)
    engine_file = "engines/head.engine"
    files = {name: plain.read(name) for name in plain.manifest.files} | {engine_file: b"code"}
    head = plain.manifest.head
    engine = Engine(
        file=engine_file,
        targets=("rtx-4090",),
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        compute_capabilities=("8.9",),
        precision_requested="fp16",
        precision_by_node={text: "fp16", "b": "fp32", "c": text},
        flags=(text,),
        repairs=("opset lowered to 18",),
        dims=head.dims,
        power_mode=text,
        bytes=4,
    )
    parts = (*plain.manifest.parts[:-1], head.model_copy(update={"engines": (engine,)}))
    provenance = plain.manifest.provenance.model_copy(
        update={"weights_licence": text, "attribution": text, "tools": {text: "1.0"}}
    )
    manifest = plain.manifest.model_copy(
        update={
            "parts": parts,
            "provenance": provenance,
            "description": text,
            "parity": (parity(), parity(output="state", max_relative=0.5), parity(run_by=text)),
            "accuracy": {"macro F1": 0.8125, text: 1.0},
            "files": {name: file_entry(content) for name, content in files.items()},
        }
    )
    return write_bundle(path, manifest, files)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Report:
    bundle = full_bundle(tmp_path_factory.mktemp("full") / "tiny.fusedge")
    record = ExportRecord.model_validate_json(json.dumps(RECORD))
    return make_report(bundle, SignatureState.UNSIGNED, record)


@pytest.fixture(scope="module")
def page(full: Report) -> str:
    return render(full)


def dense_graph(name: str) -> bytes:
    """A large product, named as given, behind a small sum."""
    weights = np.ones((512, 512), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "one"], ["y"], name="front/add"),
            helper.make_node("MatMul", ["y", "w"], ["z"], name=name),
        ],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64, 512])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 64, 512])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(weights[:1, :1], "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def plain_bundle(path: Path, graph: bytes, *, usual: int = 1, least: int = 1) -> Bundle:
    """A plain model with one graph."""
    shape = ("batch", "rows", 512)
    part = Part(
        name="model",
        kind="model",
        inputs=(TensorSpec(name="x", role="input", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="z", role="output", dtype="float32", shape=shape),),
        dims={
            "batch": DimRange(least=least, usual=usual, greatest=usual),
            "rows": DimRange(least=1, usual=64, greatest=64),
        },
        graphs=(Graph(file="model.onnx", precision="fp32", opset=18, nodes=2),),
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="plain",
        description="one graph",
        parts=(part,),
        provenance=Provenance(
            task="none",
            weights_sha256="0" * 64,
            training_data="none",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        files={"model.onnx": file_entry(graph)},
    )
    return write_bundle(path, manifest, {"model.onnx": graph})


class Page(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def charts(page: str) -> Iterator[ElementTree.Element]:
    """Each chart, parsed as XML, which is stricter than a browser."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    for piece in page.split("<svg ")[1:]:
        svg = piece.partition("</svg>")[0]
        yield ElementTree.fromstring(f"<svg {names} {svg}</svg>")


# What it says.


def test_the_page_tells_all_that_the_manifest_and_the_record_know(full: Report, page: str) -> None:
    text = Page(page).text
    manifest = full.manifest
    told = [manifest.name, full.sha256, "Nobody has signed this bundle.", "Apache-2.0"]
    told += [f"{modality.rate_hz:g} Hz" for modality in manifest.modalities]
    told += [spec.name for part in manifest.parts for spec in (*part.inputs, *part.outputs)]
    told += [file.sha256 for file in manifest.files.values()]
    told += [
        "tensorrt_rtx 1.7.1.116, compute capability 8.9",
        "opset lowered to 18",
        "1.2 s (cached)",
    ]
    told += ["1.0e-03", "99.75%", "432", "0.8125", "all fp16", "0.8080", "3.5 s", "left, right"]
    told += ["1 fp16", "1 fp32"]
    told.remove("Apache-2.0")  # the text of `full` stands in its place
    assert [one for one in told if one not in text] == []


def test_a_difference_beyond_its_tolerance_is_marked(page: str) -> None:
    assert page.count('<span class="bad">no</span>') == 1
    assert page.count('<span class="good">yes</span>') == 2


def test_the_json_holds_the_same_and_can_be_read_back(full: Report) -> None:
    assert Report.model_validate_json(full.model_dump_json()) == full


def test_the_same_report_gives_the_same_page(full: Report, page: str) -> None:
    assert render(full) == page


@pytest.mark.parametrize("state", SignatureState)
def test_the_page_says_what_the_signature_is_worth(full: Report, state: SignatureState) -> None:
    texts = {
        SignatureState.UNSIGNED: "Nobody has signed",
        SignatureState.TRUSTED: "Signed by a key that was trusted",
        SignatureState.UNKNOWN_KEY: "a key that was not trusted",
        SignatureState.INVALID: "The signature is wrong",
    }
    key = None if state is SignatureState.UNSIGNED else "ab" * 32
    plain = full.manifest.model_copy(update={"parity": ()})
    changes = {"signature": state, "signed_by": key, "manifest": plain, "costs": (), "record": None}
    text = Page(render(full.model_copy(update=changes))).text
    assert [other for other, words in texts.items() if words in text] == [state]
    assert ("abab" in text) == (key is not None)


def test_what_was_not_measured_is_said_to_be_so(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "plain", dense_graph("body/matmul"))
    page = Page(render(make_report(bundle, SignatureState.UNSIGNED, run=False)))
    for words in (
        "Not measured: the graphs were not run.",
        "Accuracy: not measured.",
        "None: ONNX Runtime runs the graphs.",
        "a plain model, without modalities",
    ):
        assert words in page.text
    assert "Search" not in page.text and "Export" not in page.text


# What a hostile bundle can do to it: nothing.


def test_a_hostile_text_stays_a_text(tmp_path: Path) -> None:
    bundle = full_bundle(tmp_path / "tiny", HOSTILE)
    record = ExportRecord.model_validate_json(json.dumps(RECORD).replace("all fp16", "<b>x</b>"))
    report = make_report(bundle, SignatureState.UNSIGNED, record)
    node = NodeCost(node=HOSTILE[:40], operator="Mul", share=1.0)  # as a graph may call it
    cost = report.costs[0].model_copy(update={"nodes": (node,)})
    report = report.model_copy(update={"costs": (cost,)})
    page = Page(source := render(report))
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "style", "body", "section", "details", "summary"),
        *("h1", "h2", "h3", "p", "div", "table", "tr", "th", "td", "span", "code"),
        *("svg", "defs", "g", "path", "use", "text", "clippath", "rect"),
    }
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "href"})
    links = [attributes.get("xlink:href") or "#" for _, attributes in page.tags]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in source.replace("url(#", "")
    assert page.text.count(HOSTILE) >= 6
    assert f"{HOSTILE[:40]} (Mul)" in page.text


def test_charts_are_whole_and_take_the_colour_of_the_page(full: Report, page: str) -> None:
    drawings = list(charts(page))
    assert len(drawings) == 4 + len(full.costs)  # parity, precision, search, cost; nodes of each
    for drawing in drawings:
        assert any(element.text for element in drawing.iter() if element.tag.endswith("text"))
        source = ElementTree.tostring(drawing, "unicode")
        assert "currentColor" in source and "#0d0e0f" not in source


def test_the_page_forbids_scripts_and_loads_to_itself(page: str) -> None:
    policies = [a["content"] for tag, a in Page(page).tags if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_a_bundle_with_thousands_of_rows_makes_charts_that_can_be_read(full: Report) -> None:
    rows = tuple(parity(output=f"out{i}", tolerance=0.01 + i) for i in range(1000))
    report = full.model_copy(
        update={"manifest": full.manifest.model_copy(update={"parity": rows}), "costs": ()}
    )
    page = render(report)
    first = next(charts(page))
    labels = [e.text or "" for e in first.iter() if e.tag.endswith("text")]
    assert sum("head: out" in label for label in labels) == 30
    assert "head: out0, fp16" in labels and "head: out999, fp16" not in labels  # the closest ones
    assert "out999" in page


# Cost.


def test_the_node_that_takes_most_is_named_as_in_the_graph(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "plain", dense_graph("body.dense/matmul"))
    (part,) = bundle.manifest.parts
    cost = measure_graph(bundle, part, part.graphs[0])
    assert cost.note == "" and cost.runs >= 1
    assert cost.us_per_run is not None and cost.us_per_run > 0
    assert (cost.nodes[0].node, cost.nodes[0].operator) == ("body.dense/matmul", "MatMul")
    assert sum(node.share for node in cost.nodes) == pytest.approx(1)
    assert cost.batch == 1


def test_every_graph_of_a_fusion_model_is_run(full: Report) -> None:
    parts = [part.name for part in full.manifest.parts]
    assert [cost.part for cost in full.costs] == parts
    assert all(cost.us_per_run and cost.nodes and not cost.note for cost in full.costs)


def test_a_graph_that_does_not_run_is_reported_with_the_reason(tmp_path: Path) -> None:
    for content in (b"no graph", dense_graph("x").replace(b"MatMul", b"MatMuL")):
        bundle = plain_bundle(tmp_path / "plain", content)
        report = make_report(bundle, SignatureState.UNSIGNED)
        (cost,) = report.costs
        assert cost.us_per_run is None and cost.nodes == ()
        assert cost.note.startswith("does not run: ") and cost.note.isprintable()
        assert cost.note in Page(render(report)).text


def test_inputs_beyond_any_memory_are_not_made(tmp_path: Path) -> None:
    batch = MAX_INPUT_BYTES // (64 * 512 * 4) + 1
    bundle = plain_bundle(tmp_path / "plain", dense_graph("x"), usual=batch, least=batch)
    (cost,) = make_report(bundle, SignatureState.UNSIGNED).costs
    assert cost.us_per_run is None and cost.note.startswith("not run: its inputs have")


def test_graphs_under_a_wrong_signature_are_not_run(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "plain", dense_graph("x"))
    assert make_report(bundle, SignatureState.INVALID).costs == ()


def test_a_damaged_bundle_has_no_report(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "plain", dense_graph("x"))
    (bundle.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was altered"):
        make_report(bundle, SignatureState.UNSIGNED)


# The record of the export.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no record of an export"),
        ("[]", "is no record of an export"),
        ("{}", "weights_sha256: Field required"),
        (json.dumps({**RECORD, "stages": {}}), "stages: Extra inputs"),
        (json.dumps({**RECORD, "stage_s": {"a": -float("inf")}}), "stage_s.a"),
        (json.dumps({**RECORD, "stage_s": {"a\nb": 1}}), "printable"),
    ],
)
def test_a_record_that_is_none_is_refused_in_one_line(
    tmp_path: Path, content: str, reason: str
) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(FusedgeError, match=reason) as caught:
        read_record(tmp_path / "record.json")
    assert caught.value.line().isprintable()


def test_a_record_of_another_model_is_refused(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "plain", dense_graph("x"))
    with pytest.raises(FusedgeError, match="of another model"):
        make_report(bundle, SignatureState.UNSIGNED, ExportRecord(weights_sha256="1" * 64))


# The command.


def test_the_command_writes_the_page_and_prints_the_same_for_machines(tmp_path: Path) -> None:
    full_bundle(tmp_path / "tiny.fusedge")
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    words = ("report", "tiny.fusedge", "--record", "record.json", "-o", "out.html", "--json")
    done = fusedge(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = Report.model_validate_json(done.stdout)
    assert report.record is not None and report.record.stage_s == {"trace": 3.5}
    assert (tmp_path / "out.html").read_text("utf-8") == render(report)
    assert done.stderr == "wrote out.html\n"


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "fusedge.export.report_plots")
    with pytest.raises(MissingExtraError, match=r"pip install 'fusedge\[plot\]'"):
        importlib.import_module("fusedge.export.report_plots")


def test_a_wrong_signature_is_on_the_page(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    bundle = write_tiny_bundle(tmp_path / "tiny")
    raw = json.loads((bundle.path / MANIFEST).read_text())
    (bundle.path / MANIFEST).write_text(json.dumps({**raw, "signature": SIGNATURE}))
    (bundle.path / SIGNATURE).write_bytes(bytes(64))
    done = fusedge("report", "tiny", "--no-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The signature is wrong." in (tmp_path / "report.html").read_text("utf-8")


def test_only_a_page_is_written(tmp_path: Path) -> None:
    before = write_tiny_bundle(tmp_path / "tiny.fusedge").path.read_bytes()
    done = fusedge("report", "tiny.fusedge", "-o", "tiny.fusedge", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is no name for a page" in done.stderr
    assert (tmp_path / "tiny.fusedge").read_bytes() == before
