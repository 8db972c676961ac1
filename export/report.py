"""What there is to say about a bundle, in one object: the JSON report is this, the page shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, first_problem
from fusedge.bundle.manifest import Manifest, Sha256, Text
from fusedge.bundle.regular_file import read_file
from fusedge.bundle.signature import SignatureState, signer
from fusedge.devices.targets.detection.detect import detect
from fusedge.export.node_cost import GraphCost, measure_graph

MAX_RECORD_BYTES = 16 << 20
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineBuild(_Strict):
    """How long it took to build a part's engine for these targets; `cached`: it was there already."""

    part: Text
    targets: tuple[Text, ...]
    build_s: Number = Field(ge=0)
    cached: bool = False


class SearchPoint(_Strict):
    """An assignment of precisions that was tried.

    `speed_ratio` is its speed over that of fp32, `metric` the task's own metric, `loss` how much of it
    was lost against fp32, in percentage points.
    """

    label: Text
    speed_ratio: Number = Field(gt=0)
    metric: Number
    loss: Number
    chosen: bool = False


class Search(_Strict):
    """The search for the fastest precision within a budget of loss, in percentage points of `metric`."""

    metric: Text
    budget: Number
    points: tuple[SearchPoint, ...]


class ExportRecord(_Strict):
    """What an export knows and a bundle does not hold, since it differs from run to run.

    `weights_sha256` is that of the manifest's provenance: it ties a record to its model.
    """

    weights_sha256: Sha256
    build_s: tuple[EngineBuild, ...] = ()
    search: Search | None = None
    stage_s: dict[Text, Number] = Field(default_factory=dict, description="seconds by stage")


class Report(_Strict):
    """All about one bundle. `machine` says where `costs` were measured."""

    sha256: str
    signature: SignatureState
    signed_by: str | None
    manifest: Manifest
    machine: str
    costs: tuple[GraphCost, ...]
    record: ExportRecord | None


def read_record(path: Path) -> ExportRecord:
    """The record that an export wrote beside its bundle; raises FusedgeError where it is none."""
    content = read_file(path, MAX_RECORD_BYTES)
    try:
        return ExportRecord.model_validate_json(content)
    except ValidationError as error:
        raise FusedgeError(
            f"is no record of an export: {first_problem(error)}",
            where=str(path),
        ) from None


def make_report(
    bundle: Bundle,
    signature: SignatureState,
    record: ExportRecord | None = None,
    *,
    run: bool = True,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Verify a bundle and report on it; with `run`, its graphs are run to see what they cost here, but
    never those of a bundle with a wrong signature.

    Raises BundleError where a file is damaged, FusedgeError where the record is of another model.
    """
    bundle.verify()
    if record and record.weights_sha256 != bundle.manifest.provenance.weights_sha256:
        raise FusedgeError("the record is of another model's export", where=str(bundle.path))
    costs = []
    for part in bundle.manifest.parts if run and signature is not SignatureState.INVALID else ():
        for graph in part.graphs:
            progress(f"{part.name} {graph.precision}")
            costs.append(measure_graph(bundle, part, graph))
    key = signer(bundle)
    return Report(
        sha256=bundle.sha256,
        signature=signature,
        signed_by=key.fingerprint if key else None,
        manifest=bundle.manifest,
        machine=_machine(),
        costs=tuple(costs),
        record=record,
    )


def _machine() -> str:
    machine = detect()
    return (
        f"{machine.processor or machine.architecture}, one thread, "
        f"ONNX Runtime {machine.onnxruntime or 'not installed'} on its CPU provider"
    )
