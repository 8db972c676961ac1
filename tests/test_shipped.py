"""What is shipped belongs together: weights, bundle, figures, card, licence."""

from __future__ import annotations

import hashlib
import json

from fusedge.bundle.lookup import open_bundle
from fusedge.cli.tasks import WEIGHTS
from fusedge.models.fusion_model import load_model, parameter_count

BUNDLE = open_bundle("driving")


def test_the_bundle_was_exported_from_the_weights_beside_it() -> None:
    weights = (WEIGHTS / "driving.safetensors").read_bytes()
    assert BUNDLE.manifest.provenance.weights_sha256 == hashlib.sha256(weights).hexdigest()


def test_every_file_of_the_bundle_is_whole() -> None:
    assert BUNDLE.verify() == len(BUNDLE.manifest.files)


def test_figures_and_model_card_in_the_bundle_are_those_beside_the_weights() -> None:
    measured = json.loads((WEIGHTS / "driving.figures.json").read_text())
    assert BUNDLE.manifest.accuracy == measured["figures"]
    assert BUNDLE.read("MODEL-CARD.md") == (WEIGHTS / "driving.md").read_bytes()


def test_the_licence_of_the_weights_travels_with_them() -> None:
    assert "non-commercial" in BUNDLE.manifest.provenance.weights_licence
    assert BUNDLE.read("LICENSE-WEIGHTS.md") == (WEIGHTS / "LICENSE-WEIGHTS.md").read_bytes()
    assert "UAH-DriveSet" in BUNDLE.manifest.provenance.attribution


def test_every_part_passed_the_gate_at_both_precisions() -> None:
    measured = {(row.part, row.precision) for row in BUNDLE.manifest.parity}
    names = [part.name for part in BUNDLE.manifest.parts]
    wanted = {(name, p) for name in (*names, "end-to-end") for p in ("fp32", "fp16")}
    assert measured == wanted
    assert not any(part.engines for part in BUNDLE.manifest.parts)


def test_the_network_is_small() -> None:
    model, _ = load_model(WEIGHTS / "driving.safetensors")
    assert parameter_count(model) <= 1_000_000
