"""Each rule of the manifest, with one manifest that breaks it."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from fusedge.bundle.errors import MAX_LENGTH, BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Manifest, check_path, parse_manifest
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
    "rate of almost nothing": (lambda raw: raw.update(decision_rate_hz=1e-300), "decision_rate_hz"),
    "buffer beyond all memory": (
        in_modality(rate_hz=1_000_000, max_age_s=86_400),
        "samples to keep",
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
        "an encoder has a modality",
    ),
    "head of a modality": (
        lambda raw: raw["parts"][HEAD].update(modality="fast"),
        "the head has none",
    ),
    "window of another shape": (
        in_part(FAST, "inputs", 0, shape=["batch", 4, 2]),
        "needs one window input",
    ),
    "valid of another shape": (
        in_part(FAST, "inputs", 1, shape=["batch", 5]),
        "needs one valid input",
    ),
    "no window": (in_part(FAST, "inputs", 0, role="valid"), "needs one window input"),
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
            in_part(FAST, tensors, place, shape=["batch", "steps"])(raw)
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
    ["", ".", "..", "../x", "a/../x", "/x", "a//b", "./a", "a/", "a\\b", "C:x", "a\0b", "x" * 241],
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
