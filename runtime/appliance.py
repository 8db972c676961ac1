"""What one process runs, as one YAML file describes it: pipelines, each with bundle, sources and sinks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from fusedge.bundle.errors import FusedgeError, first_problem
from fusedge.bundle.regular_file import read_file
from fusedge.bundle.strict_yaml import MAX_BYTES, load_yaml
from fusedge.devices.capture.source import SCHEMES
from fusedge.runtime.backend import AUTO
from fusedge.runtime.chaos import EVERY_S
from fusedge.runtime.session import HANG_S, SILENCE_S

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=80)]
Whole = Annotated[int, Strict()]  # true is no number, nor is a text
Number = Annotated[float, Strict()]
Seconds = Annotated[Number, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _usable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path cannot hold a zero byte")
    return path


Output = Annotated[Path, AfterValidator(_usable)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LatencySetting(_Strict):
    """Channels by which the delay of a modality's stamps is measured: see LatencyPair."""

    speed: str
    acceleration: str
    highpass_hz: Number = Field(default=0, ge=0, le=1000)


class PipelineSetting(_Strict):
    """One pipeline."""

    name: Name
    bundle: str = Field(description="a shipped bundle's name, or a path")
    sources: tuple[str, ...] = Field(min_length=1, description="URIs")
    without: tuple[str, ...] = ()
    backend: str = AUTO
    provider: str = AUTO
    precision: str = AUTO
    allow_unsigned_engines: Annotated[bool, Strict()] = False
    latency_s: dict[str, Annotated[Number, Field(ge=0, le=86_400)]] = Field(
        default_factory=dict, description="delay of a modality's stamps, instead of the manifest's"
    )
    measure_latency: tuple[LatencySetting, ...] = ()
    silence_s: Seconds = Field(default=SILENCE_S, description="a silent source is opened again")
    hang_s: Seconds = Field(default=HANG_S, description="a part that computes longer is given up")
    watch: Annotated[bool, Strict()] = Field(
        default=False, description="change to another bundle put at this path"
    )
    out: Output | None = Field(default=None, description="decisions as JSON Lines")
    picture: Output | None = None
    record: Output | None = Field(default=None, description="new MCAP file")
    record_events: str | None = Field(default=None, description="time before and after, as 10s")
    clips: Output | None = Field(default=None, description="folder; else clips/NAME")
    jpeg: Whole | None = Field(default=None, ge=1, le=95, description="quality of recorded images")
    chaos: str = Field(default="", description="kinds of faults on purpose, or all")
    chaos_seed: Whole = 0
    chaos_every: Seconds = Field(default=EVERY_S, ge=1, description="mean time between two faults")


class Appliance(_Strict):
    """The whole file. Relative paths are from its folder."""

    speed: str = Field(default="live", description="live, max, or a number")
    threads: Whole = Field(default=0, ge=0, le=256, description="of the crew; 0: by the cores")
    cores: tuple[Annotated[Whole, Field(ge=0, le=4095)], ...] = Field(
        default=(), description="to which the crew is bound"
    )
    pipelines: tuple[PipelineSetting, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and type(value.get("speed")) in (int, float):
            return {**value, "speed": f"{value['speed']:g}"}
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Appliance:
        names = [pipeline.name for pipeline in self.pipelines]
        if len(set(names)) != len(names):
            raise ValueError("two pipelines have one name")
        return self


def load_appliance(path: Path) -> Appliance:
    """Read the file; raises FusedgeError with the first thing that is wrong in it."""
    where = str(path)
    raw = load_yaml(read_file(path, MAX_BYTES), where)
    try:
        appliance = Appliance.model_validate(raw)
    except ValidationError as error:
        raise FusedgeError(
            first_problem(error),
            where=where,
            hint="see 'Several pipelines' in the README",
        ) from None
    pipelines = tuple(_placed(setting, path.parent) for setting in appliance.pipelines)
    outputs = [output for s in pipelines for output in (s.out, s.picture, s.record) if output]
    if len({os.path.normpath(output) for output in outputs}) != len(outputs):
        raise FusedgeError("two outputs go to one file", where=where)
    return appliance.model_copy(update={"pipelines": pipelines})


def _placed(setting: PipelineSetting, folder: Path) -> PipelineSetting:
    """With paths that do not depend on the working folder."""
    paths: dict[str, Any] = {
        name: folder / value
        for name in ("out", "picture", "record")
        if (value := getattr(setting, name)) is not None
    }
    paths["clips"] = folder / (setting.clips or Path("clips", setting.name))
    paths["bundle"] = _beside(folder, setting.bundle) or setting.bundle
    paths["sources"] = tuple(_placed_source(uri, folder) for uri in setting.sources)
    return setting.model_copy(update=paths)


def _placed_source(uri: str, folder: Path) -> str:
    """With the files that the URI names, where they lie in the folder."""
    name, _, rest = uri.partition(":")
    scheme = SCHEMES.get(name)
    if scheme is None or not scheme.paths:
        return uri  # an unknown one is told of when it is opened
    target, _, query = rest.partition("?")
    if "" in scheme.paths and target:
        target = _beside(folder, target) or target
    options = []
    for pair in query.split("&") if query else ():
        option, equals, value = pair.partition("=")
        there = _beside(folder, unquote(value)) if option in scheme.paths and value else ""
        options.append(f"{option}={quote(there)}" if there else f"{option}{equals}{value}")
    return f"{name}:{target}" + (f"?{'&'.join(options)}" if options else "")


def _beside(folder: Path, name: str) -> str:
    """The path of a file or folder in `folder`; empty where there is none."""
    try:
        return str(folder / name) if (folder / name).exists() else ""
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return ""
