"""Bundles and targets for tests of the preflight: the shipped bundle, changed by a field or two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import BATCH, Engine, Manifest
from fusedge.devices.targets.facts.table import Target, find_target
from fusedge.devices.targets.preflight.findings import Finding, verdict
from fusedge.devices.targets.preflight.preflight import Preflight, preflight
from fusedge.devices.targets.preflight.software import Software, software_of
from fusedge.devices.targets.work import PartWork
from fusedge.export.part_work import part_work

Works = Mapping[tuple[str, str], PartWork]

ORIN = "jetson-orin-nano-8gb"
XAVIER = "jetson-xavier-nx-8gb"
WITH_DLA = "jetson-orin-nx-16gb"


def works_of(bundle: Any) -> Works:
    """Of all parts of a bundle, by name and precision."""
    return {
        (part.name, graph.precision): part_work(bundle, part, graph.precision)
        for part in bundle.manifest.parts
        for graph in part.graphs
    }


_SHIPPED = open_bundle("driving")
DRIVING = _SHIPPED.manifest
WORKS = works_of(_SHIPPED)


def plan_for(
    manifest: Manifest, works: Works, name: str, jetpack: str | None = None, **asked: Any
) -> Preflight:
    target = find_target(name)
    return preflight(manifest, works, target, software_of(target, jetpack, None), **asked)


def findings_of(plan: Preflight, subject: str) -> list[Finding]:
    """Those of one subject."""
    return [finding for finding in plan.findings if finding.subject == subject]


def the_one(plan: Preflight, subject: str, verdict: str, words: str) -> Finding:
    """The only finding of that subject and verdict, which must contain these words."""
    found = [f for f in findings_of(plan, subject) if f.verdict == verdict and words in f.sentence]
    assert len(found) == 1, [(f.verdict, f.sentence) for f in findings_of(plan, subject)]
    return found[0]


def with_parts(manifest: Manifest, **changes: Any) -> Manifest:
    """With these fields of all parts."""
    parts = tuple(part.model_copy(update=changes) for part in manifest.parts)
    return manifest.model_copy(update={"parts": parts})


def with_graphs(manifest: Manifest, **changes: Any) -> Manifest:
    """With one graph a part, of which these fields are changed."""
    parts = tuple(
        part.model_copy(update={"graphs": (part.graphs[0].model_copy(update=changes),)})
        for part in manifest.parts
    )
    return manifest.model_copy(update={"parts": parts})


def an_engine(**changes: Any) -> Engine:
    """An engine of JetPack 6.2 for Orin; `changes` are fields of the manifest."""
    fields: dict[str, Any] = {
        "file": "engines/all.engine",
        "targets": (ORIN,),
        "flavour": "tensorrt",
        "version": "10.3.0.30",
        "compute_capabilities": ("8.7",),
        "precision_requested": "fp16",
        "precision_by_node": {},
        "flags": (),
        "dims": {"batch": BATCH},
        "bytes": 1000,
    }
    return Engine(**{**fields, **changes})


def with_engine(manifest: Manifest, **changes: Any) -> Manifest:
    return with_parts(manifest, engines=(an_engine(**changes),))


def with_operator(works: Works, operator: str, kind: Any = None) -> Works:
    """The first node of each part has another operator."""
    changed = {}
    for key, work in works.items():
        first, *others = work.nodes
        node = replace(first, operator=operator, kind=kind or first.kind)
        changed[key] = replace(work, nodes=(node, *others))
    return changed


def software_for(target: Target, **changes: Any) -> Software:
    return replace(software_of(target, None, None), **changes)


def check_sentences(plan: Preflight) -> None:
    """All findings of a plan can be read by a newcomer, and are in order."""
    assert plan.findings
    for finding in plan.findings:
        text = f"{finding.sentence} {finding.way_out}"
        assert re.fullmatch(r"[A-Z].*\.", finding.sentence), finding.sentence
        assert len(finding.sentence) < 300 and finding.sentence.isprintable()
        assert not re.search(r"None|True|False|\[\W|\{|\}|\('|\bnan\b", text), text
        assert "=" not in finding.sentence
        assert finding.way_out or finding.verdict in ("fits", "warning", "unknown"), finding
    order = [finding.verdict for finding in plan.findings]
    assert order == sorted(order, key=["refused", "unknown", "warning", "fits"].index)
    assert plan.will_run == ("refused" not in order) == verdict(plan.findings)
