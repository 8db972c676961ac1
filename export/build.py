"""Build the engines that a bundle lacks, for the GPU of this machine or for desktop RTX GPUs.

One part at a time; each engine goes into the cache as soon as it is built, so that a build that was
interrupted goes on where it stopped. The bundle is written once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from fusedge.bundle.archive import Bundle, check_destination, file_entry, write_bundle
from fusedge.bundle.built_here import FILE, built_here
from fusedge.bundle.errors import BundleError, FusedgeError, MissingExtraError
from fusedge.bundle.manifest import Engine, Graph, GraphPrecision, Manifest, Part
from fusedge.bundle.signature import SignatureState, signature_state
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.local import LocalGpu, free_memory_bytes, local_gpu
from fusedge.devices.targets.detection.power_mode import power_mode_warning
from fusedge.devices.targets.facts.table import Target, find_target
from fusedge.devices.targets.preflight.memory_need import build_bytes
from fusedge.devices.targets.tensorrt_api import NO_OPTIONS, EngineOptions, installed_version
from fusedge.export.cache import Cache
from fusedge.export.engine import (
    BuildLimits,
    BuiltEngine,
    EngineRequest,
    build_engine,
)
from fusedge.export.progress import Progress

LOCAL = "local"


@dataclass(frozen=True)
class BuildOptions:
    """What to build. `precision` None takes each part's last graph, which is the one made for engines.

    `targets` are names of desktop RTX GPUs, or `local`. `power_mode` is the one that the machine should be
    in; another is a warning.
    """

    targets: tuple[str, ...] = (LOCAL,)
    precision: GraphPrecision | None = None
    power_mode: str | None = None
    engine: EngineOptions = NO_OPTIONS
    limits: BuildLimits = field(default_factory=lambda: BuildLimits(timeout_s=1800.0))


@dataclass(frozen=True)
class BuildRow:
    """One part for one kind of engine. `note` says what was made, or why nothing was."""

    part: str
    targets: tuple[str, ...]
    precision: str
    state: Literal["built", "cached", "present", "failed"]
    note: str
    build_s: float | None = None


@dataclass(frozen=True)
class BuildReport:
    """The bundle as it is now, what was done, and what the user should know."""

    bundle: Bundle
    rows: tuple[BuildRow, ...]
    warnings: tuple[str, ...]

    @property
    def failed(self) -> tuple[BuildRow, ...]:
        """The rows without an engine."""
        return tuple(row for row in self.rows if row.state == "failed")


@dataclass(frozen=True)
class _Group:
    """Targets that share their engines."""

    targets: tuple[Target, ...]
    local: LocalGpu | None


def build_bundle(
    bundle: Bundle,
    out: Path,
    options: BuildOptions,
    cache: Cache,
    progress: Progress = lambda stage, item, share: None,
    *,
    local: Callable[[], LocalGpu] = lambda: local_gpu(detect()),
    root: Path = Path("/"),
    free: Callable[[], Mapping[str, int]] = free_memory_bytes,
) -> BuildReport:
    """Write `bundle` to `out`, which may be its own place, with the engines that it lacked.

    An engine that is damaged, or that the runtime would not load here (neither built on this machine nor
    signed by a key that the user trusts), counts as lacking and is replaced. `local`, `root` and `free`
    describe the machine to build on. A part that cannot be built is a row of the report, and the others
    are built; then, and where nothing is missing, the bundle is still whole. `out` is as it was before
    where nothing could be built. Raises FusedgeError where nothing can be tried at all, and where the
    bundle was changed in place meanwhile.
    """
    check_destination(out)
    warnings = []
    if options.power_mode is not None and (said := power_mode_warning(options.power_mode, root)):
        warnings.append(said)
    groups = _groups(options.targets, local)
    rows: list[BuildRow] = []
    parts = list(bundle.manifest.parts)
    made: dict[str, bytes] = {}
    for number, (group, index) in enumerate((g, i) for g in groups for i in range(len(parts))):
        part = parts[index]
        names = tuple(target.name for target in group.targets)
        progress(f"engine for {', '.join(names)}", part.name, number / (len(groups) * len(parts)))
        graph = _graph(part, options.precision)
        request = _request(bundle, part, graph, group, options)
        alike = [engine for engine in part.engines if _serves(engine, request)]
        good = [e for e in alike if e.file in made or _loadable(bundle, e, cache)]
        if good:
            parts[index] = _with_targets(part, good[0], names)
            rows.append(BuildRow(part.name, names, graph.precision, "present", good[0].file))
            continue
        check = partial(_check_memory, request, free)
        try:
            built = build_engine(request, options.limits, cache, check)
        except FusedgeError as error:
            rows.append(BuildRow(part.name, names, graph.precision, "failed", error.line()))
            continue
        parts[index] = _with_engine(part, built.entry(request.file, request), alike)
        made[request.file] = built.data
        rows.append(_row(part.name, names, graph.precision, built))
    if any(not built_here(file_entry(data).sha256, cache.folder) for data in made.values()):
        warnings.append(
            f"the engines could not be listed as built here, so `fusedge run` refuses them until they are "
            f"signed: {cache.folder}/{FILE} cannot be written, or others may write to it"
        )
    in_place = out.resolve() == bundle.path.resolve()
    if parts != list(bundle.manifest.parts):
        if bundle.manifest.signature is not None:
            warnings.append("the bundle's signature is dropped, for it changed: sign it again")
        progress("write", out.name, 1.0)
        if in_place and Bundle(out).sha256 != bundle.sha256:
            raise FusedgeError(
                "the bundle was changed by another program meanwhile",
                where=str(out),
                hint="run this again: what was built is kept",
            )
        bundle = _write(bundle, out, parts, made)
    elif not in_place and all(row.state == "present" for row in rows):
        bundle = _copy(bundle, out)
    return BuildReport(bundle, tuple(rows), tuple(warnings))


def _groups(names: Sequence[str], find_local: Callable[[], LocalGpu]) -> list[_Group]:
    """The targets that share engines; all for TensorRT-RTX do, for its engines can serve many GPUs."""
    local = find_local() if LOCAL in names else None
    named = [find_target(name) for name in dict.fromkeys(names) if name != LOCAL]
    without = [target.name for target in named if target.flavour is None]
    if without:
        raise FusedgeError(
            "there are no engines for it: it runs the ONNX parts, which every bundle has",
            where=f"target {without[0]}",
        )
    elsewhere = [target.name for target in named if not target.builds_anywhere]
    if elsewhere:
        raise FusedgeError(
            "engines for it are not built here"
            if len(elsewhere) == 1
            else "engines for them are not",
            where=f"target {', '.join(elsewhere)}",
            hint="run this on the device itself, with --target local",
        )
    if local is None:
        return [_Group(tuple(named), None)]
    if local.target.builds_anywhere:
        by_name = {target.name: target for target in (local.target, *named)}
        return [_Group(tuple(by_name.values()), None)]
    return [_Group((local.target,), local), *([_Group(tuple(named), None)] if named else [])]


def _graph(part: Part, precision: GraphPrecision | None) -> Graph:
    return part.graphs[-1] if precision is None else part.graph(precision)


def _request(
    bundle: Bundle, part: Part, graph: Graph, group: _Group, options: BuildOptions
) -> EngineRequest:
    return EngineRequest(
        part.name,
        bundle.read(graph.file),
        graph.precision,
        group.targets,
        part.dims,
        options.engine,
        device=group.local.identity if group.local else "",
        power_mode=group.local.power_mode if group.local else None,
    )


def _serves(engine: Engine, request: EngineRequest) -> bool:
    """Whether it is what the request asks for, of the TensorRT that is installed."""
    same = _like(engine, request) and set(engine.flags) >= set(request.options.flags)
    serves = set(request.capabilities) <= set(engine.compute_capabilities)
    tuned = {target.name for target in request.targets} <= set(engine.targets)
    current = engine.version == installed_version(request.flavour)
    return same and serves and current and (request.flavour == "tensorrt_rtx" or tuned)


def _loadable(bundle: Bundle, engine: Engine, cache: Cache) -> bool:
    """Whether the engine is whole, and the runtime would load it here by its hash or the signature."""
    try:
        bundle.read(engine.file)
    except BundleError:
        return False
    if built_here(bundle.manifest.files[engine.file].sha256, cache.folder):
        return True
    try:
        return signature_state(bundle) is SignatureState.TRUSTED
    except MissingExtraError:  # who only builds need not have `cryptography`
        return False


def _like(engine: Engine, request: EngineRequest) -> bool:
    wanted = request.flavour, request.precision, request.power_mode, dict(request.dims)
    return wanted == (
        engine.flavour,
        engine.precision_requested,
        engine.power_mode,
        engine.dims,
    )


def _with_targets(part: Part, engine: Engine, names: Sequence[str]) -> Part:
    all_names = tuple(dict.fromkeys((*engine.targets, *names)))
    named = engine.model_copy(update={"targets": all_names})
    others = tuple(named if e is engine else e for e in part.engines)
    return part.model_copy(update={"engines": others})


def _with_engine(part: Part, new: Engine, old: Sequence[Engine]) -> Part:
    """With a new engine, in the place of `old` ones and of one of the same name."""
    others = tuple(e for e in part.engines if e.file != new.file and e not in old)
    return part.model_copy(update={"engines": (*others, new)})


def _check_memory(request: EngineRequest, free: Callable[[], Mapping[str, int]]) -> None:
    needed = build_bytes(request.flavour, len(request.graph))
    needed += request.options.workspace_bytes or 0
    for place, size in free().items():
        if size < needed:
            raise FusedgeError(
                f"a build takes about {needed >> 20} MiB, and {size >> 20} MiB of {place} are free",
                where=request.where,
                hint="stop other programs; what is built already is kept, so run this again",
            )


def _row(part: str, names: tuple[str, ...], precision: str, built: BuiltEngine) -> BuildRow:
    count = len(built.repairs)
    repaired = f", {count} repair{'s' * (count > 1)}" if count else ""
    note = f"{built.flavour} {built.version}, {len(built.data) / 1e6:.1f} MB{repaired}"
    state: Literal["cached", "built"] = "cached" if built.cached else "built"
    return BuildRow(part, names, precision, state, note, built.build_s)


def _copy(bundle: Bundle, out: Path) -> Bundle:
    """The bundle as it is, its signature with it."""
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    signature = bundle.signature_bytes
    if signature is None:
        return write_bundle(out, bundle.manifest, files)

    def same(text: bytes) -> bytes:
        if text != bundle.manifest_bytes:
            raise FusedgeError(
                "another version of Fusedge signed it, in a form that is not written any more",
                where=str(bundle.path),
                hint="nothing was to be added: copy the bundle itself",
            )
        return signature

    return write_bundle(out, bundle.manifest, files, sign=same)


def _write(bundle: Bundle, out: Path, parts: Sequence[Part], made: Mapping[str, bytes]) -> Bundle:
    old = bundle.manifest
    before = {engine.file for part in old.parts for engine in part.engines}
    engines = [engine for part in parts for engine in part.engines]
    dropped = before - {engine.file for engine in engines}
    kept = set(old.files) - dropped - set(made)
    files = {**{name: bundle.read(name) for name in sorted(kept)}, **made}
    built_by: dict[str, str] = {e.flavour: e.version for e in engines if e.file in made}
    tools = {**old.provenance.tools, **built_by}
    manifest = old.model_copy(
        update={
            "parts": tuple(parts),
            "files": {name: file_entry(files[name]) for name in sorted(files)},
            "provenance": old.provenance.model_copy(update={"tools": tools}),
            "signature": None,
        }
    )
    return write_bundle(out, Manifest.model_validate(manifest.model_dump()), files)
