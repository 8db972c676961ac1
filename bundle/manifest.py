"""The manifest: everything that the runtime, a verifier or a planner must know about a bundle.

`manifest.json` is this model, version 4. Unknown and repeated fields are refused, so that a typo or
another version never passes in silence.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fusedge.bundle.errors import BundleError, FusedgeError, first_problem

FORMAT_VERSION = 4
MAX_BUFFERED = 10_000_000  # grid points that one modality may keep: 200 s of sound at 48 kHz
MAX_BUFFERED_BYTES = 1 << 30  # of images that one modality may keep: 19 s of VGA at 60 Hz
MAX_FILE_BYTES = 2 << 30  # ONNX, as every protobuf, ends at 2 GiB
MAX_BUNDLE_BYTES = 8 << 30  # far beyond any set of encoders for the edge; bounds `verify`
MAX_TEXT = 1000
MAX_SIZE = 1 << 16  # of a named dim, such as the batch: far beyond what fits into a GPU
MAX_NUMBERS = 1 << 28  # of all tensors of a part at its usual sizes: 1 GiB as float32


def _only_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("text must be printable, on one line")
    return text


# Text is shown as it stands: without escape codes, line breaks and marks that turn its direction.
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_only_printable)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=80)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1e-5, le=1_000_000, allow_inf_nan=False)]  # once a day to 1 MHz
# As fast as windows can come; a run makes each decision, however many pass between two samples.
DecisionRate = Annotated[float, Field(ge=1e-5, le=1000, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dim = Annotated[int, Field(ge=1)] | Name
Precision = Literal["fp32", "fp16", "bf16", "int8"]
GraphPrecision = Precision | Literal["mixed"]
GRAPH_PRECISIONS = (*get_args(Precision), "mixed")
Flavour = Literal["tensorrt", "tensorrt_rtx"]
Dtype = Literal["float32", "uint8", "int32", "int64", "bool"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Channel(_Strict):
    """One number of a sample, with its unit and the range outside of which it is not believed."""

    name: Name
    unit: Text
    minimum: float
    maximum: float
    frozen_s: PositiveSeconds | None = Field(
        default=None, description="a value that stands still for longer is not believed; none: may"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Channel:
        if not self.minimum < self.maximum:
            raise ValueError(f"channel {self.name}: minimum must be below maximum")
        return self


class FrontEnd(_Strict):
    """What makes a modality's samples of what a device gives, with a part of kind `front`.

    - `largest_face`: of whole frames in RGB, the aligned crop of one face; none where there is no face.
    - `speech`: sound in which nobody speaks is taken out.
    """

    kind: Literal["largest_face", "speech"]
    part: Name


class Modality(_Strict):
    """A kind of input and how its samples become windows.

    Windows lie on a grid of whole multiples of `hop_s` in capture time and are `window_s` long at
    `rate_hz`. The window that ends at `e` is cut when the clock passes `e + latency_s + lateness_s`.

    A sample of a `series` is one number a channel, of an `image` one frame of `height` x `width`
    with 8 bits a channel, and of `audio` a block of sound.
    """

    name: Name
    kind: Literal["series", "image", "audio"]
    description: Text
    channels: tuple[Channel, ...] = Field(min_length=1)
    height: int | None = Field(default=None, ge=1, le=8192, description="of an image, in pixels")
    width: int | None = Field(default=None, ge=1, le=8192, description="of an image, in pixels")
    rate_hz: Rate = Field(description="samples a second on the window's grid")
    window_s: PositiveSeconds
    hop_s: PositiveSeconds = Field(ge=0.001, description="time from one window to the next")
    resample: Literal["hold", "newest", "exact", "contiguous"] = Field(
        description="how samples become a window: see fusedge.bundle.window"
    )
    max_hold_s: PositiveSeconds = Field(
        description="longest time for which a sample stands in for the grid points after it"
    )
    latency_s: Seconds = Field(
        description="known delay of the stamps against the true capture time"
    )
    lateness_s: Seconds = Field(
        description="how much later than its stamp a sample may arrive; of sound with a block of 20 ms; "
        "for what blocks are longer, the runtime waits besides"
    )
    max_age_s: PositiveSeconds = Field(description="an embedding older than this is missing")
    return_windows: int = Field(
        ge=1, description="fresh windows in a row before it is present again"
    )
    min_valid: float = Field(ge=0, le=1, description="least valid share of a window's grid points")
    prepare: tuple[Text, ...] = Field(
        description="what must be done outside of the graphs, in order"
    )
    front: FrontEnd | None = None

    @property
    def window_samples(self) -> int:
        """Grid points in a window."""
        return round(self.window_s * self.rate_hz)

    def with_latency(self, latency_s: float) -> Modality:
        """With another known delay of its stamps; raises FusedgeError where that cannot be."""
        try:
            return Modality.model_validate({**self.model_dump(), "latency_s": latency_s})
        except ValidationError as error:
            raise FusedgeError(
                f"latency of {latency_s:g} s: {error.errors()[0]['msg']}",
                where=f"modality {self.name}",
            ) from None

    @property
    def delay_s(self) -> float:
        """Time from a window's end until it is cut."""
        return self.latency_s + self.lateness_s

    @property
    def kept_s(self) -> float:
        """For how long samples may be needed."""
        return self.window_s + self.hop_s + self.delay_s + self.max_age_s + self.max_hold_s

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Of one grid point: `(channels,)`, or `(height, width, channels)` for an image."""
        size = (self.height or 0, self.width or 0) if self.kind == "image" else ()
        return (*size, len(self.channels))

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Of a window, without the batch: `(grid points, *item_shape)`."""
        return (self.window_samples, *self.item_shape)

    @property
    def valid_shape(self) -> tuple[int, ...]:
        """Of what tells measured from missing: by channel, for images by frame."""
        return self.window_shape[:1] if self.kind == "image" else self.window_shape

    @model_validator(mode="after")
    def _consistent(self) -> Modality:
        names = [channel.name for channel in self.channels]
        if len(set(names)) != len(names):
            raise ValueError(f"modality {self.name}: channel names repeat")
        if self.window_samples < 1 or not math.isclose(
            self.window_samples, self.window_s * self.rate_hz, rel_tol=1e-6
        ):
            raise ValueError(f"modality {self.name}: window_s * rate_hz must be a whole number")
        self._check_kind()
        points = self.rate_hz * self.kept_s
        if points > MAX_BUFFERED:
            raise ValueError(f"modality {self.name}: more than {MAX_BUFFERED} samples to keep")
        if self.kind == "image" and points * math.prod(self.item_shape) > MAX_BUFFERED_BYTES:
            raise ValueError(f"modality {self.name}: more than {MAX_BUFFERED_BYTES} bytes to keep")
        if self.max_age_s < self.delay_s:
            raise ValueError(
                f"modality {self.name}: max_age_s is below latency_s + lateness_s, "
                "so that it could never be present"
            )
        return self

    def _check_kind(self) -> None:
        if (self.kind == "image") != (self.height is not None and self.width is not None):
            raise ValueError(f"modality {self.name}: an image has a height and a width, others not")
        if (self.kind == "audio") != (self.resample == "contiguous"):
            raise ValueError(f"modality {self.name}: sound, and sound alone, is contiguous")
        needed = None if self.front is None else _FRONT_KINDS[self.front.kind]
        if needed is not None and self.kind != needed:
            raise ValueError(f"modality {self.name}: such a front end is of a modality of {needed}")
        if self.resample == "exact" and self.lateness_s < self.max_hold_s:
            raise ValueError(
                f"modality {self.name}: exact stamps may be max_hold_s after the grid point, "
                "so lateness_s must be as long"
            )


_FRONT_KINDS = {"largest_face": "image", "speech": "audio"}


class TensorSpec(_Strict):
    """An input or output of a part. Named dims are free at run time, within `Part.dims`.

    Those of encoders and heads are float32, but a window of images, which is uint8. `input` and
    `output` are what a plain model and a front end's part take and give.
    """

    name: Name
    role: Literal[
        "window",
        "valid",
        "embedding",
        "presence",
        "age",
        "state_in",
        "state_out",
        "logits",
        "input",
        "output",
    ]
    dtype: Dtype
    shape: tuple[Dim, ...]
    modality: Name | None = None


class StatePair(_Strict):
    """State that a part carries from step to step: `output` feeds `input` of the next step.

    Before the first step and after a reset it is `initial`: zeros, or the values of a file of the
    bundle, little-endian float32 of the state's shape without the batch.
    """

    input: Name
    output: Name
    initial: Text = Field(default="zeros", description="`zeros`, or a file of the bundle")
    reset: Literal["gap"] = Field(
        default="gap", description="when it is forgotten: where the modality was lost"
    )


class DimRange(_Strict):
    """Sizes that a named dim can have; engines are built for this range and tuned for `usual`."""

    least: int = Field(ge=1)
    usual: int = Field(ge=1)
    greatest: int = Field(ge=1, le=MAX_SIZE)

    @model_validator(mode="after")
    def _ordered(self) -> DimRange:
        if not self.least <= self.usual <= self.greatest:
            raise ValueError("a dim's sizes must be ordered: least, usual, greatest")
        return self


BATCH = DimRange(least=1, usual=4, greatest=8)


class Graph(_Strict):
    """One ONNX file of a part, at one precision. Inputs and outputs are the same at any precision."""

    file: Text
    precision: GraphPrecision
    opset: int = Field(ge=13)
    nodes: int = Field(ge=1)
    precision_by_node: dict[Text, Precision] = Field(
        default_factory=dict, description="nodes that compute in another precision than fp32"
    )


class Engine(_Strict):
    """A TensorRT engine: what was asked for and what was achieved. One may serve several targets."""

    file: Text
    targets: tuple[Text, ...] = Field(min_length=1)
    flavour: Flavour
    version: Text
    compute_capabilities: tuple[Text, ...] = Field(min_length=1)
    precision_requested: GraphPrecision
    precision_by_node: dict[Text, Text] = Field(
        description="achieved, for each layer that computes, as in the network that was built"
    )
    flags: tuple[Text, ...]
    repairs: tuple[Text, ...] = Field(
        default=(), description="what had to be changed for the parser, the results being the same"
    )
    dims: dict[Name, DimRange] = Field(description="of the optimisation profile")
    power_mode: Text | None = Field(
        default=None, description="in which it was tuned, where the device has such"
    )
    bytes: int = Field(ge=1)

    @property
    def layers_by_precision(self) -> dict[str, int]:
        """How many layers achieved each precision."""
        return dict(sorted(Counter(self.precision_by_node.values()).items()))


class Part(_Strict):
    """One graph that runs by itself: an encoder of one modality, what the front end of one runs, the fusion
    head, or a plain model.

    A plain model is the only part of its bundle and has no rate: whoever loads it runs it.
    """

    name: Name
    kind: Literal["encoder", "front", "head", "model"]
    modality: Name | None = None
    rate_hz: Rate | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: dict[Name, DimRange] = Field(
        default_factory=lambda: {"batch": BATCH}, description="sizes of the named dims"
    )
    state: tuple[StatePair, ...] = ()
    graphs: tuple[Graph, ...] = Field(min_length=1)
    engines: tuple[Engine, ...] = ()
    weights: Text = Field(
        default="", description="whose they are, if not the model's own: package, version, licence"
    )

    def graph(self, precision: str) -> Graph:
        """The ONNX file at a precision; raises BundleError where the bundle has none."""
        for graph in self.graphs:
            if graph.precision == precision:
                return graph
        raise BundleError(
            f"part {self.name} has no {precision} graph",
            hint=f"it has {', '.join(g.precision for g in self.graphs)}",
        )


class Output(_Strict):
    """What the head computes, and how it becomes a steady label; a classification so far."""

    name: Name
    kind: Literal["classification"] = "classification"
    logits: Name
    labels: tuple[Text, ...] = Field(min_length=2)
    temperature: float = Field(
        ge=1e-3, le=1e3, description="logits are divided by it before softmax"
    )
    smoothing_s: Seconds = Field(description="time constant of the exponential mean; 0 is off")
    hysteresis: float = Field(ge=0, lt=1, description="lead in probability that a new label needs")

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("labels repeat")
        return labels


class EventRule(_Strict):
    """Events by threshold on a low-passed channel of one modality, with rising levels."""

    name: Name
    modality: Name
    channel: Name
    direction: Literal["positive", "negative", "both"]
    levels: tuple[float, ...] = Field(min_length=1, description="rising, in the channel's unit")
    lowpass_hz: Rate = Field(description="corner of the one-pole low-pass")
    hold_s: Seconds = Field(description="how long a level must be held before it counts")
    release: float = Field(gt=0, le=1, description="share of the first level below which it ends")

    @field_validator("levels")
    @classmethod
    def _rising(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if levels[0] <= 0 or any(a >= b for a, b in itertools.pairwise(levels)):
            raise ValueError("levels must be positive and rising")
        return levels


class Fusion(_Strict):
    """How the head joins the modalities, and the order of `presence` and `age` columns."""

    kind: Text = Field(description="such as concatenation, sum, gated, cross_attention")
    decision_rate_hz: DecisionRate
    modalities: tuple[Name, ...] = Field(min_length=1)
    embedding_size: int = Field(ge=1)


class PartParity(_Strict):
    """Difference of one output of a part, at one precision, from the original module.

    `max_relative` is `|a - b|` over the largest value in the row, but at least 1 (for embeddings and a
    plain model's outputs at least the largest of all cases, at most 1); of whole numbers and truth values
    it is the share that is not equal. It is at most `tolerance`. The part `end-to-end` is the whole model,
    step by step with state fed back.
    """

    part: Name
    precision: GraphPrecision
    output: Name
    cases: int = Field(ge=1)
    max_absolute: float
    max_relative: float
    argmax_agreement: float | None = None
    tolerance: float = Field(gt=0)
    run_by: Text = Field(description="what computed it, such as `onnxruntime 1.32.0 cpu`")


class Provenance(_Strict):
    """Where the weights come from, and under which licence they may be used."""

    task: Text
    weights_sha256: Sha256
    training_data: Text
    weights_licence: Text
    attribution: Text
    tools: dict[Text, Text]


class File(_Strict):
    """Size and hash of a file of the bundle."""

    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: Sha256


class Manifest(_Strict):
    """The whole contract between export and runtime.

    It is of a fusion model, with modalities, encoders, a head and outputs, or of a plain model: one
    part and nothing of these.

    Any change of it, be it a field or a kind, raises `format_version`: another program then says so,
    not that the bundle is broken.
    """

    format_version: int = Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)
    name: Name
    description: Text
    modalities: tuple[Modality, ...] = ()
    parts: tuple[Part, ...] = Field(min_length=1)
    fusion: Fusion | None = None
    outputs: tuple[Output, ...] = ()
    events: tuple[EventRule, ...] = ()
    provenance: Provenance
    parity: tuple[PartParity, ...] = ()
    accuracy: dict[Text, float] = Field(default_factory=dict, description="figure name to value")
    files: dict[str, File]
    signature: str | None = Field(
        default=None, description="file with the Ed25519 signature over this manifest"
    )

    @property
    def encoders(self) -> tuple[Part, ...]:
        """The encoder parts, in the order of `fusion.modalities`."""
        by_modality = {part.modality: part for part in self.parts if part.kind == "encoder"}
        return tuple(by_modality[name] for name in self.require_fusion().modalities)

    @property
    def head(self) -> Part:
        """The fusion head."""
        return next(part for part in self.parts if part.kind == "head")

    def require_fusion(self) -> Fusion:
        """How the head joins the modalities; raises BundleError for a plain model."""
        if self.fusion is None:
            raise BundleError(
                f"{self.name} is a plain model without modalities, which has no sessions",
                hint="load it in your own program: fusedge.runtime.backend",
            )
        return self.fusion

    def modality(self, name: str) -> Modality:
        """The modality of that name, which the manifest must have."""
        return next(m for m in self.modalities if m.name == name)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        for part in self.parts:
            _check_tensors(part)
            _check_dims(part)
            _check_states(part)
        _check_names(self)
        if self.fusion is None:
            _check_plain(self)
        else:
            _check_encoders(self, self.fusion)
            _check_fronts(self)
            _check_head(self, self.fusion)
        _check_events(self)
        _check_files(self)
        return self


def _check_names(manifest: Manifest) -> None:
    for kind, names in (
        ("modality", [m.name for m in manifest.modalities]),
        ("part", [p.name for p in manifest.parts]),
        ("output", [o.name for o in manifest.outputs]),
        ("event", [e.name for e in manifest.events]),
    ):
        if len(set(names)) != len(names):
            raise ValueError(f"{kind} names repeat")


def _check_plain(manifest: Manifest) -> None:
    """Without `fusion`, there is one part of kind `model` and nothing that feeds or reads it."""
    if [part.kind for part in manifest.parts] != ["model"]:
        raise ValueError("without fusion there must be exactly one part, of kind model")
    if manifest.modalities or manifest.outputs or manifest.events:
        raise ValueError("a plain model has no modalities, outputs and events")


_ROLES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "encoder": (frozenset({"window", "valid", "state_in"}), frozenset({"embedding", "state_out"})),
    "head": (
        frozenset({"embedding", "presence", "age", "state_in"}),
        frozenset({"logits", "state_out"}),
    ),
    "model": (frozenset({"input"}), frozenset({"output"})),
    "front": (frozenset({"input"}), frozenset({"output"})),
}


def _check_tensors(part: Part) -> None:
    for specs, roles in zip((part.inputs, part.outputs), _ROLES[part.kind], strict=True):
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ValueError(f"part {part.name}: tensor names repeat")
        for spec in specs:
            if spec.role not in roles:
                raise ValueError(f"part {part.name}: {spec.name} cannot be {spec.role} here")
    precisions = [graph.precision for graph in part.graphs]
    if len(set(precisions)) != len(precisions):
        raise ValueError(f"part {part.name}: two graphs at one precision")
    if (part.modality is None) != (part.kind not in ("encoder", "front")):
        raise ValueError(
            f"part {part.name}: encoders and front ends have a modality, others have none"
        )
    if (part.rate_hz is None) != (part.kind == "model"):
        raise ValueError(
            f"part {part.name}: encoders, front ends and the head have a rate, a model has none"
        )


def _check_dims(part: Part) -> None:
    used = {dim for spec in part.inputs for dim in spec.shape if isinstance(dim, str)}
    for kind, dims in (("part", part.dims), *(("engine", engine.dims) for engine in part.engines)):
        if set(dims) != used:
            raise ValueError(
                f"part {part.name}: the {kind}'s dims are {', '.join(sorted(dims)) or 'none'}, "
                f"those of its inputs {', '.join(sorted(used)) or 'none'}"
            )
    usual = {name: dim.usual for name, dim in part.dims.items()}
    numbers = sum(  # a dim that only an output has is what comes of the data
        math.prod(usual.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.shape)
        for spec in (*part.inputs, *part.outputs)
    )
    if numbers > MAX_NUMBERS:
        raise ValueError(f"part {part.name}: its tensors have more than {MAX_NUMBERS} numbers")


def _check_states(part: Part) -> None:
    inputs = {spec.name: spec for spec in part.inputs if spec.role == "state_in"}
    outputs = {spec.name: spec for spec in part.outputs if spec.role == "state_out"}
    pairs = [(pair.input, pair.output) for pair in part.state]
    if sorted(i for i, _ in pairs) != sorted(inputs) or sorted(o for _, o in pairs) != sorted(
        outputs
    ):
        raise ValueError(f"part {part.name}: state pairs and state tensors differ")
    for source, sink in pairs:
        if inputs[source].shape != outputs[sink].shape:
            raise ValueError(f"part {part.name}: state {source} and {sink} differ in shape")
        batch, *sizes = inputs[source].shape or (0,)
        if batch != "batch" or any(isinstance(size, str) for size in sizes):
            raise ValueError(f"part {part.name}: state {source} must be [batch, fixed sizes]")


def _check_encoders(manifest: Manifest, fusion: Fusion) -> None:
    if sorted(fusion.modalities) != sorted(m.name for m in manifest.modalities):
        raise ValueError("fusion.modalities and modalities differ")
    encoders = [part for part in manifest.parts if part.kind == "encoder"]
    if sorted(str(p.modality) for p in encoders) != sorted(m.name for m in manifest.modalities):
        raise ValueError("there must be exactly one encoder for each modality")
    for part in encoders:
        modality = manifest.modality(str(part.modality))
        window = ("batch", *modality.window_shape)
        dtype = "uint8" if modality.kind == "image" else "float32"
        specs = [(s.shape, s.dtype) for s in part.inputs if s.role == "window"]
        if specs != [(window, dtype)]:
            raise ValueError(f"part {part.name}: needs one {dtype} window input of shape {window}")
        valid = ("batch", *modality.valid_shape)
        specs = [(s.shape, s.dtype) for s in part.inputs if s.role == "valid"]
        # Sound and images are seldom missing in part, so their encoders need not look at it.
        if specs != [(valid, "float32")] and (specs or modality.kind == "series"):
            raise ValueError(f"part {part.name}: needs one float32 valid input of shape {valid}")
        embeddings = [spec.shape for spec in part.outputs if spec.role == "embedding"]
        if embeddings != [("batch", fusion.embedding_size)]:
            raise ValueError(f"part {part.name}: embedding differs from fusion.embedding_size")


def _check_fronts(manifest: Manifest) -> None:
    fronts = sorted((p.name, str(p.modality)) for p in manifest.parts if p.kind == "front")
    named = sorted((m.front.part, m.name) for m in manifest.modalities if m.front is not None)
    if fronts != named:
        raise ValueError("each front end has one part of its modality, and each such part one")


def _check_head(manifest: Manifest, fusion: Fusion) -> None:
    others = [part.kind for part in manifest.parts if part.kind not in ("encoder", "front")]
    if others != ["head"]:
        raise ValueError("there must be exactly one head")
    if not manifest.outputs:
        raise ValueError("a fusion model has outputs")
    head, size = manifest.head, fusion.embedding_size
    embedded = [spec.modality for spec in head.inputs if spec.role == "embedding"]
    if embedded != list(fusion.modalities):
        raise ValueError("head: embedding inputs must follow fusion.modalities")
    count = len(fusion.modalities)
    roles = [spec.role for spec in head.inputs]
    if roles.count("presence") != 1 or roles.count("age") != 1:
        raise ValueError("head: needs one presence and one age input")
    for spec in head.inputs:
        shapes = {"embedding": size, "presence": count, "age": count}
        if spec.role in shapes and spec.shape != ("batch", shapes[spec.role]):
            raise ValueError(f"head: input {spec.name} must be [batch, {shapes[spec.role]}]")
    logits = {spec.name: spec.shape for spec in head.outputs if spec.role == "logits"}
    for output in manifest.outputs:
        if logits.get(output.logits) != ("batch", len(output.labels)):
            raise ValueError(f"output {output.name}: the head has no logits for its labels")


def _check_events(manifest: Manifest) -> None:
    for rule in manifest.events:
        modality = next((m for m in manifest.modalities if m.name == rule.modality), None)
        if modality is None or rule.channel not in [c.name for c in modality.channels]:
            raise ValueError(f"event {rule.name}: no channel {rule.modality}.{rule.channel}")


def _check_files(manifest: Manifest) -> None:
    signature = [] if manifest.signature is None else [manifest.signature]
    for path in (*manifest.files, *signature):
        check_path(path)
        if path == "manifest.json":
            raise ValueError("manifest.json cannot list itself")
    if manifest.signature in manifest.files:
        raise ValueError("the signature cannot be listed with a hash: it signs the hashes")
    if sum(file.bytes for file in manifest.files.values()) > MAX_BUNDLE_BYTES:
        raise ValueError(f"files have more than {MAX_BUNDLE_BYTES} bytes in all")
    for part in manifest.parts:
        files = [graph.file for graph in part.graphs] + [engine.file for engine in part.engines]
        files += [pair.initial for pair in part.state if pair.initial != "zeros"]
        for file in files:
            if file not in manifest.files:
                raise ValueError(f"part {part.name}: file {file} is not listed with a hash")


def check_path(path: str) -> None:
    """Refuse a path that is not plain, relative and inside the bundle (ValueError)."""
    pure = PurePosixPath(path)
    plain = pure.as_posix() == path and not pure.is_absolute() and ".." not in pure.parts
    plain = plain and path.isprintable() and not any(c in path for c in "\\:")
    if not plain or path in ("", ".") or len(path) > 240:
        raise ValueError(f"path {path!r} is not plain and relative")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a field given twice, one reader would take the first, another the last."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{repeated[:80]!r} is given twice")
    return fields


def parse_manifest(text: bytes, where: str) -> Manifest:
    """The manifest in JSON text; raises BundleError with the first reason, in one line."""
    import json

    try:
        raw = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json cannot be parsed: {error}", where=where) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if type(version) is int and version > 0 and version != FORMAT_VERSION:
        age = "newer" if version > FORMAT_VERSION else "older"
        raise BundleError(
            f"bundle format {version} is {age} than this program, which reads {FORMAT_VERSION}",
            where=where,
            hint="export it again with this version" + (", or upgrade fusedge" * (age == "newer")),
        )
    try:
        return Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise BundleError(
            f"manifest.json is not valid: {first_problem(error)}",
            where=where,
        ) from None
