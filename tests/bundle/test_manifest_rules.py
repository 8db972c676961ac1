"""Each rule of the manifest, with one manifest that breaks it."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

import fusedge.bundle.manifest as manifest_module
from fusedge.bundle.errors import MAX_LENGTH, BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.manifest import (
    MAX_BUNDLE_BYTES,
    MAX_FILE_BYTES,
    MAX_NUMBERS,
    MAX_SIZE,
    MAX_TEXT,
    Manifest,
    check_path,
    parse_manifest,
)
from tests.tiny_bundle import modality, tiny_manifest

Edit = Callable[[dict[str, Any]], object]
MODALITIES = (modality("fast"), modality("slow"))
FILES = {f"parts/{name}.onnx": b"" for name in ("fast", "slow", "head")}
FAST, SLOW, HEAD = range(3)


@functools.cache
def raw_manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = tiny_manifest(MODALITIES, FILES).model_dump(mode="json")
    return loaded


def parse(*edits: Edit) -> Manifest:
    raw = copy.deepcopy(raw_manifest())
    for edit in edits:
        edit(raw)
    return parse_manifest(json.dumps(raw).encode(), "here")


def in_part(part: int, tensors: str, place: int, **changes: Any) -> Edit:
    """Change one tensor of one part."""
    return lambda raw: raw["parts"][part][tensors][place].update(changes)


def in_modality(**changes: Any) -> Edit:
    return lambda raw: raw["modalities"][0].update(changes)


def in_event(**changes: Any) -> Edit:
    return lambda raw: raw["events"][0].update(changes)


def in_output(**changes: Any) -> Edit:
    return lambda raw: raw["outputs"][0].update(changes)


def twice(field: str) -> Edit:
    return lambda raw: raw[field].append(raw[field][0])


def graph_twice(raw: dict[str, Any]) -> None:
    raw["parts"][HEAD]["graphs"] *= 2


def add_presence_to_encoder(raw: dict[str, Any]) -> None:
    spec = {"name": "p", "role": "presence", "dtype": "float32", "shape": ["batch", 2]}
    raw["parts"][FAST]["inputs"].append(spec)


def state_of(size: int) -> Edit:
    """A state of this size in the first encoder."""
    return lambda raw: [
        in_part(FAST, tensors, place, shape=["batch", size])(raw)
        for tensors, place in (("inputs", 2), ("outputs", 1))
    ]


def size_of(name: str, size: int) -> Edit:
    return lambda raw: raw["files"][f"parts/{name}.onnx"].update(bytes=size)


def fill_up(raw: dict[str, Any]) -> None:
    """The greatest files, a byte more than a bundle may hold."""
    entry = raw["files"]["parts/head.onnx"]
    for place in range(MAX_BUNDLE_BYTES // MAX_FILE_BYTES):
        raw["files"][f"more{place}"] = {**entry, "bytes": MAX_FILE_BYTES}
    entry["bytes"] = 1


# Rows that no fusion model of the tests has.

ENGINE = {
    "file": "parts/head.onnx",
    "targets": ["t"],
    "flavour": "tensorrt",
    "version": "10",
    "compute_capabilities": ["8.7"],
    "precision_requested": "fp16",
    "precision_by_node": {"conv": "fp16"},
    "flags": ["FP16"],
    "repairs": ["inlined"],
    "dims": {"batch": {"least": 1, "usual": 1, "greatest": 1}},
    "power_mode": "15W",
    "bytes": 1,
}
PLAIN = {
    "name": "model",
    "kind": "model",
    "inputs": [
        {"name": "tokens", "role": "input", "dtype": "int64", "shape": ["batch", "length"]},
    ],
    "outputs": [
        {"name": "scores", "role": "output", "dtype": "float32", "shape": ["batch", 4]},
    ],
    "dims": {
        "batch": {"least": 1, "usual": 4, "greatest": 8},
        "length": {"least": 1, "usual": 16, "greatest": 128},
    },
    "graphs": [{"file": "parts/head.onnx", "precision": "fp32", "opset": 18, "nodes": 1}],
}


def make_plain(raw: dict[str, Any]) -> None:
    """A manifest of a plain model."""
    raw.update(modalities=[], parts=[copy.deepcopy(PLAIN)], outputs=[], events=[], fusion=None)


BROKEN: dict[str, tuple[Edit, str]] = {
    "channel without a range": (
        lambda raw: raw["modalities"][0]["channels"][0].update(minimum=100),
        "minimum must be below maximum",
    ),
    "channel twice": (
        lambda raw: raw["modalities"][0]["channels"][0].update(name="c1"),
        "channel names repeat",
    ),
    "window of half a sample": (in_modality(window_s=0.55), "must be a whole number"),
    "window of no sample": (in_modality(window_s=0.01, rate_hz=10), "must be a whole number"),
    "never present": (in_modality(latency_s=2), "could never be present"),
    "hop of nothing": (in_modality(hop_s=1e-12), "hop_s"),
    "more decisions than a run can make": (
        lambda raw: raw["fusion"].update(decision_rate_hz=1000.1),
        "decision_rate_hz",
    ),
    "rate of almost nothing": (
        lambda raw: raw["fusion"].update(decision_rate_hz=1e-300),
        "decision_rate_hz",
    ),
    "buffer beyond all memory": (
        in_modality(rate_hz=1_000_000, max_age_s=86_400),
        "samples to keep",
    ),
    "image without a size": (in_modality(kind="image"), "an image has a height and a width"),
    "series with a size": (in_modality(height=2, width=2), "an image has a height and a width"),
    "sound with holes": (in_modality(kind="audio"), "sound alone, is contiguous"),
    "series without holes": (in_modality(resample="contiguous"), "sound alone, is contiguous"),
    "exact stamps in no time": (
        in_modality(resample="exact", max_hold_s=0.2),
        "lateness_s must be as long",
    ),
    "images beyond all memory": (
        in_modality(kind="image", height=8192, width=8192, rate_hz=20),
        "bytes to keep",
    ),
    "window of bytes in a series": (
        in_part(FAST, "inputs", 0, dtype="uint8"),
        "needs one float32 window input",
    ),
    "frozen at once": (
        lambda raw: raw["modalities"][0]["channels"][0].update(frozen_s=0),
        "frozen_s",
    ),
    "no window in a row": (in_modality(return_windows=0), "return_windows"),
    "more than all of a window": (in_modality(min_valid=1.01), "min_valid"),
    "unknown kind": (in_modality(kind="video"), "kind"),
    "modality twice": (twice("modalities"), "modality names repeat"),
    "part twice": (
        lambda raw: raw["parts"][0].update(name="head"),
        "part names repeat",
    ),
    "output twice": (twice("outputs"), "output names repeat"),
    "event twice": (twice("events"), "event names repeat"),
    "fusion of others": (
        lambda raw: raw["fusion"].update(modalities=["fast", "other"]),
        "fusion.modalities and modalities differ",
    ),
    "no head": (lambda raw: raw["parts"].pop(HEAD), "exactly one head"),
    "no encoder": (lambda raw: raw["parts"].pop(FAST), "one encoder for each modality"),
    "encoder of another modality": (
        lambda raw: raw["parts"][FAST].update(modality="slow"),
        "one encoder for each modality",
    ),
    "encoder of no modality": (
        lambda raw: raw["parts"][FAST].update(modality=None),
        "encoders and front ends have a modality",
    ),
    "front end without its part": (
        lambda raw: raw["modalities"][0].update(front={"kind": "speech", "part": "voice_activity"}),
        "such a front end is of a modality of audio",
    ),
    "part of a front end that no modality names": (
        lambda raw: raw["parts"].append(
            {
                **raw["parts"][FAST],
                "name": "loose",
                "kind": "front",
                "inputs": [],
                "outputs": [],
                "dims": {},
                "state": [],
            }
        ),
        "each front end has one part",
    ),
    "head of a modality": (
        lambda raw: raw["parts"][HEAD].update(modality="fast"),
        "others have none",
    ),
    "window of another shape": (
        in_part(FAST, "inputs", 0, shape=["batch", 4, 2]),
        "needs one float32 window input",
    ),
    "valid of another shape": (
        in_part(FAST, "inputs", 1, shape=["batch", 5]),
        "needs one float32 valid input",
    ),
    "no window": (in_part(FAST, "inputs", 0, role="valid"), "needs one float32 window input"),
    "embedding of another size": (
        in_part(FAST, "outputs", 0, shape=["batch", 3]),
        "embedding differs from fusion.embedding_size",
    ),
    "state without its pair": (
        lambda raw: raw["parts"][FAST]["state"].clear(),
        "state pairs and state tensors differ",
    ),
    "state that is not a tensor": (
        lambda raw: raw["parts"][FAST]["state"][0].update(input="window"),
        "state pairs and state tensors differ",
    ),
    "state that changes its shape": (
        in_part(FAST, "outputs", 1, shape=["batch", 2]),
        "differ in shape",
    ),
    "state of free size": (
        lambda raw: [
            in_part(FAST, tensors, place, shape=["batch", "batch"])(raw)
            for tensors, place in (("inputs", 2), ("outputs", 1))
        ],
        "must be [batch, fixed sizes]",
    ),
    "state without a batch": (
        lambda raw: [
            in_part(FAST, tensors, place, shape=[])(raw)
            for tensors, place in (("inputs", 2), ("outputs", 1))
        ],
        "must be [batch, fixed sizes]",
    ),
    "input twice": (in_part(FAST, "inputs", 1, name="window"), "tensor names repeat"),
    "presence in an encoder": (add_presence_to_encoder, "cannot be presence here"),
    "window in the head": (in_part(HEAD, "inputs", 2, role="window"), "cannot be window here"),
    "logits from an encoder": (in_part(FAST, "outputs", 0, role="logits"), "cannot be logits here"),
    "two graphs at one precision": (graph_twice, "two graphs at one precision"),
    "embeddings out of order": (
        lambda raw: raw["parts"][HEAD]["inputs"].reverse(),
        "must follow fusion.modalities",
    ),
    "fusion out of order": (
        lambda raw: raw["fusion"]["modalities"].reverse(),
        "must follow fusion.modalities",
    ),
    "head embedding of another size": (
        in_part(HEAD, "inputs", 0, shape=["batch", 5]),
        "input embedding.fast must be [batch, 2]",
    ),
    "presence of another size": (
        in_part(HEAD, "inputs", 2, shape=["batch", 3]),
        "input presence must be [batch, 2]",
    ),
    "no presence": (lambda raw: raw["parts"][HEAD]["inputs"].pop(2), "one presence and one age"),
    "no age": (lambda raw: raw["parts"][HEAD]["inputs"].pop(3), "one presence and one age"),
    "more labels than logits": (
        in_output(labels=["left", "right", "back"]),
        "the head has no logits for its labels",
    ),
    "logits that the head has not": (in_output(logits="other"), "the head has no logits"),
    "label twice": (in_output(labels=["left", "left"]), "labels repeat"),
    "one label": (in_output(labels=["left"]), "labels"),
    "temperature of nothing": (in_output(temperature=1e-320), "temperature"),
    "hysteresis that none can pass": (in_output(hysteresis=1), "hysteresis"),
    "event of another modality": (in_event(modality="other"), "no channel other.c0"),
    "event of another channel": (in_event(channel="c9"), "no channel fast.c9"),
    "levels that fall": (in_event(levels=[20, 10]), "levels must be positive and rising"),
    "level of nothing": (in_event(levels=[0, 10]), "levels must be positive and rising"),
    "level twice": (in_event(levels=[10, 10]), "levels must be positive and rising"),
    "no level": (in_event(levels=[]), "levels"),
    "release of nothing": (in_event(release=0), "release"),
    "graph that is not listed": (
        lambda raw: raw["files"].pop("parts/head.onnx"),
        "file parts/head.onnx is not listed with a hash",
    ),
    "manifest that lists itself": (
        lambda raw: raw["files"].update({"manifest.json": raw["files"]["parts/head.onnx"]}),
        "cannot list itself",
    ),
    "file beyond ONNX": (size_of("head", MAX_FILE_BYTES + 1), "bytes"),
    "more than a bundle may hold": (fill_up, f"more than {MAX_BUNDLE_BYTES} bytes in all"),
    "signature that is listed": (
        lambda raw: raw.update(signature="parts/head.onnx"),
        "it signs the hashes",
    ),
    "dim without a range": (
        lambda raw: raw["parts"][FAST]["dims"].clear(),
        "the part's dims are none, those of its inputs batch",
    ),
    "range of a dim that no input has": (
        lambda raw: raw["parts"][FAST]["dims"].update(steps=raw["parts"][FAST]["dims"]["batch"]),
        "the part's dims are batch, steps, those of its inputs batch",
    ),
    "engine without a range": (
        lambda raw: raw["parts"][HEAD].update(engines=[{**ENGINE, "dims": {}}]),
        "the engine's dims are none",
    ),
    "dim of any size": (
        lambda raw: raw["parts"][FAST]["dims"]["batch"].update(greatest=MAX_SIZE + 1),
        f"less than or equal to {MAX_SIZE}",
    ),
    "state beyond all memory": (
        state_of(10**12),
        f"part fast_encoder: its tensors have more than {MAX_NUMBERS} numbers",
    ),
    "input of a plain model beyond all memory": (
        lambda raw: (
            make_plain(raw),
            raw["parts"][0]["inputs"][0]["shape"].append(MAX_NUMBERS // 64 + 1),
        ),
        f"part model: its tensors have more than {MAX_NUMBERS} numbers",
    ),
    "sizes out of order": (
        lambda raw: raw["parts"][FAST]["dims"]["batch"].update(usual=65),
        "ordered: least, usual, greatest",
    ),
    "initial state that is not listed": (
        lambda raw: raw["parts"][FAST]["state"][0].update(initial="state/x.f32"),
        "file state/x.f32 is not listed with a hash",
    ),
    "part without a rate": (
        lambda raw: raw["parts"][FAST].update(rate_hz=None),
        "encoders, front ends and the head have a rate",
    ),
    "fusion without its description": (
        lambda raw: raw.pop("fusion"),
        "without fusion there must be exactly one part",
    ),
    "plain model in a fusion": (
        lambda raw: raw["parts"].append(PLAIN),
        "exactly one head",
    ),
    "fusion without outputs": (lambda raw: raw["outputs"].clear(), "a fusion model has outputs"),
    "plain model with modalities": (
        lambda raw: (make_plain(raw), raw.update(modalities=raw_manifest()["modalities"])),
        "a plain model has no modalities",
    ),
    "plain model with a rate": (
        lambda raw: (make_plain(raw), raw["parts"][0].update(rate_hz=1)),
        "a model has none",
    ),
    "plain model with state": (
        lambda raw: (make_plain(raw), raw["parts"][0]["inputs"][0].update(role="state_in")),
        "cannot be state_in here",
    ),
    "output of another kind": (in_output(kind="regression"), "kind"),
    "signature outside": (lambda raw: raw.update(signature="../x"), "not plain and relative"),
    "hash that is none": (
        lambda raw: raw["files"]["parts/head.onnx"].update(sha256="0" * 63),
        "sha256",
    ),
    "size below zero": (lambda raw: raw["files"]["parts/head.onnx"].update(bytes=-1), "bytes"),
}


@pytest.mark.parametrize(("edit", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_manifest_that_breaks_a_rule_is_refused(edit: Edit, reason: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(edit)
    assert reason in caught.value.line()
    assert caught.value.line().startswith("here: manifest.json is not valid: ")


def test_the_unbroken_manifest_is_read() -> None:
    assert parse() == tiny_manifest(MODALITIES, FILES)


def test_a_plain_model_is_read_and_has_no_sessions() -> None:
    manifest = parse(make_plain)
    assert [part.kind for part in manifest.parts] == ["model"]
    with pytest.raises(BundleError, match="a plain model without modalities"):
        manifest.require_fusion()


def test_a_state_may_begin_with_values_of_a_file() -> None:
    pair = (
        parse(lambda raw: raw["parts"][FAST]["state"][0].update(initial="parts/slow.onnx"))
        .parts[FAST]
        .state[0]
    )
    assert (pair.initial, pair.reset) == ("parts/slow.onnx", "gap")


def test_the_greatest_numbers_are_allowed() -> None:
    assert (
        parse(lambda raw: raw["fusion"].update(decision_rate_hz=1000))
        .require_fusion()
        .decision_rate_hz
        == 1000
    )
    parse(size_of("head", MAX_FILE_BYTES))


def test_an_output_is_a_classification_unless_it_says_so() -> None:
    assert parse(lambda raw: raw["outputs"][0].pop("kind")).outputs[0].kind == "classification"


# Text. One string of each field, and each key that is free.

PARITY = {
    "part": "head",
    "precision": "fp32",
    "output": "logits",
    "cases": 1,
    "max_absolute": 0,
    "max_relative": 0,
    "tolerance": 1,
    "run_by": "onnxruntime",
}


def full(raw: dict[str, Any]) -> None:
    """Give every field a value."""
    raw["modalities"][0]["prepare"] = ["filter"]
    raw["parts"][HEAD]["engines"] = [ENGINE]
    raw["provenance"]["tools"] = {"torch": "2"}
    raw.update(parity=[PARITY], accuracy={"f1": 0.5}, signature="signature")


def texts(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """Every place of a string and, with True, of a key."""
    if isinstance(node, str):
        yield path, False
    elif isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key), True
            yield from texts(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from texts(value, (*path, index))


def full_manifest() -> dict[str, Any]:
    raw = copy.deepcopy(raw_manifest())
    full(raw)
    return copy.deepcopy(raw)


def test_the_full_manifest_is_read_and_has_every_field() -> None:
    parse(full)
    text = json.dumps(full_manifest())
    for name, model in vars(manifest_module).items():
        if isinstance(model, type) and issubclass(model, BaseModel) and not name.startswith("_"):
            # What is left out is no text.
            assert all(
                f'"{field}"' in text for field in {*model.model_fields} - {"argmax_agreement"}
            )


@pytest.mark.parametrize("text", ["a\x1b[2J", "a\nb", "\u202ea", "\x9b1m", "x" * 100_000])
def test_text_that_would_harm_a_terminal_is_refused_wherever_it_stands(text: str) -> None:
    for path, is_key in texts(full_manifest()):
        raw = full_manifest()
        *way, last = path
        node = functools.reduce(lambda inner, step: inner[step], way, raw)
        node[text if is_key else last] = node.pop(last) if is_key else text
        with pytest.raises(BundleError) as caught:
            parse_manifest(json.dumps(raw).encode(), "here")
        line = caught.value.line()
        assert line.isprintable() and len(line) < MAX_LENGTH + 100, path


def test_plain_text_of_any_language_is_allowed() -> None:
    for text in ("Müdigkeit, 眠気", "m/s²", "", "x" * MAX_TEXT):
        assert parse(lambda raw, t=text: raw.update(description=t)).description == text  # type: ignore[misc]


# A field given twice.


@pytest.mark.parametrize("again", ["9", "1"])
def test_a_version_given_twice_is_refused(again: str) -> None:
    text = json.dumps(raw_manifest())
    with pytest.raises(BundleError, match="'format_version' is given twice"):
        parse_manifest(f'{{"format_version": {again}, {text[1:]}'.encode(), "here")


def test_any_key_given_twice_is_refused_in_one_line() -> None:
    text = json.dumps(full_manifest())
    keys = [match.start() for match in re.finditer(r'"[^"]*": ', text)]
    for start in keys:
        key = text[start : text.index(":", start)]
        with pytest.raises(BundleError, match="is given twice") as caught:
            parse_manifest(f"{text[:start]}{key}: 0, {text[start:]}".encode(), "here")
        assert caught.value.line().isprintable()


def test_a_million_keys_with_one_twice_are_refused_at_once() -> None:
    text = "{" + "".join(f'"{i}":0,' for i in range(500_000)) + '"499999":0}'
    with pytest.raises(BundleError, match="'499999' is given twice"):
        parse_manifest(text.encode(), "here")


def test_encoders_follow_the_order_of_fusion() -> None:
    shuffled = parse(lambda raw: raw["parts"].reverse())
    assert [part.modality for part in shuffled.encoders] == ["fast", "slow"]
    assert shuffled.head.kind == "head"
    assert shuffled.modality("slow").window_samples == 1


def test_a_precision_that_a_part_has_not_is_told() -> None:
    with pytest.raises(BundleError, match=r"part head has no fp16 graph \(it has fp32\)"):
        parse().head.graph("fp16")


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../x",
        "/x",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "C:x",
        "a\0b",
        "a\x1b[2Jb",
        "x" * 241,
    ],
)
def test_a_path_that_leads_out_or_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not plain and relative"):
        check_path(path)
    entry = raw_manifest()["files"]["parts/head.onnx"]
    with pytest.raises(BundleError, match="not plain and relative"):
        parse(lambda raw: raw["files"].update({path: entry}))


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "..a/b..c", "a b/é"])
def test_a_plain_path_is_allowed(path: str) -> None:
    check_path(path)


def test_an_error_is_one_line_of_bounded_length() -> None:
    line = FusedgeError("a\n b\r\tc\x1b[31m", where="x\u2028y", hint="z" * 10_000).line()
    assert line.startswith("x y: a b c\N{REPLACEMENT CHARACTER}[31m (zz")
    assert line.isprintable() and len(line) < MAX_LENGTH + 100


def test_a_mistyped_name_gets_the_closest_match_or_the_table() -> None:
    assert "did you mean 'driving'?" in UnknownNameError("x", "drivng", ["driving", "sea"]).line()
    assert "known: driving, sea" in UnknownNameError("x", "qqqq", ["sea", "driving"]).line()
