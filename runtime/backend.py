"""What runs a part: an engine for this very device, or ONNX Runtime, and the reason for the choice.

An engine is taken if the bundle has one for the compute capability of this GPU, it may be trusted, and it
loads and runs; else ONNX Runtime's providers are tried in order. What is named is never replaced: with
`backend="native"`, or one provider, there is an error instead of a fallback.

The same setting gives the same choice on the same machine. It is in the session's header, and `fusedge
replay` uses what the recording was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import built_here
from fusedge.bundle.errors import FusedgeError, UnknownNameError, printable
from fusedge.bundle.inference import onnxruntime
from fusedge.bundle.manifest import Engine, Part
from fusedge.bundle.signature import SignatureState, signature_state
from fusedge.devices.targets.detection.power_mode import read_power_modes
from fusedge.devices.targets.facts.engine_fit import is_for_gpu, is_for_version
from fusedge.devices.targets.tensorrt_api import load as load_tensorrt
from fusedge.runtime.cuda import Cuda, load_cuda
from fusedge.runtime.native_part import NativePart
from fusedge.runtime.onnx_part import PROVIDERS, MissingProviderError, OnnxPart
from fusedge.runtime.part_tensors import check_feeds, zeros

AUTO, NATIVE, ONNX = "auto", "native", "onnx"
BACKENDS = (AUTO, NATIVE, ONNX)
PROVIDER_ORDER = ("tensorrt-rtx", "tensorrt", "cuda", "cpu")


def _signed(bundle: Bundle) -> bool:
    return signature_state(bundle) is SignatureState.TRUSTED


@dataclass(frozen=True)
class BackendSetting:
    """What the user wants the parts to run on.

    `provider` is `auto`, one name, or names in the order in which they are to be tried with commas between
    them; a name means ONNX Runtime. With `precision` `auto`, an engine decides it, and ONNX Runtime runs
    fp32. `trusted` says whether a bundle's engines may run though they were built elsewhere: by default,
    if it is signed by a key that the user trusts (`fusedge keys`).

    Raises FusedgeError for a name that is unknown.
    """

    backend: str = AUTO
    provider: str = AUTO
    precision: str = AUTO
    allow_unsigned_engines: bool = False
    trusted: Callable[[Bundle], bool] = field(default=_signed, compare=False)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UnknownNameError("backend", self.backend, BACKENDS)
        if AUTO in self.providers:
            raise FusedgeError(
                "provider auto is an order by itself, so it cannot be one of several",
                hint="leave it out, or give it alone",
            )
        for name in self.providers:
            if name not in PROVIDERS:
                raise UnknownNameError("provider", name, (AUTO, *PROVIDERS))
        if self.backend == NATIVE and self.provider != AUTO:
            raise FusedgeError(
                f"provider {self.provider} is of ONNX Runtime, the native backend has none",
                hint="leave one of the two out",
            )

    @property
    def providers(self) -> tuple[str, ...]:
        """Those to try, in order."""
        if self.provider == AUTO:
            return PROVIDER_ORDER
        return tuple(name.strip() for name in self.provider.split(","))

    @property
    def takes_engines(self) -> bool:
        """Whether an engine may be used."""
        return self.backend == NATIVE or (self.backend == AUTO and self.provider == AUTO)


AUTOMATIC = BackendSetting()


@dataclass(frozen=True)
class Choice:
    """What runs a part, and why nothing that would have come before it.

    `no_engine` says why no engine does, where one was looked for; `engine` is the SHA-256 of one that does.
    `cpu_nodes` are the nodes that a device's provider left to the CPU, None where nobody can tell.
    `tuned_elsewhere` says that the engine was tuned in another power mode than the machine is in.
    """

    backend: str
    provider: str
    precision: str
    reason: str
    no_engine: str = ""
    engine: str = ""
    cpu_nodes: int | None = 0
    tuned_elsewhere: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the session's header."""
        shown: dict[str, Any] = {
            "backend": self.backend,
            "provider": self.provider,
            "precision": self.precision,
            "reason": self.reason,
        }
        if self.engine:
            shown["engine_sha256"] = self.engine
        if self.cpu_nodes != 0:
            shown["cpu_nodes"] = self.cpu_nodes
        return shown


PartBackend = OnnxPart | NativePart
_Key = tuple[str, str, BackendSetting]


class SharedParts:
    """Parts that several sessions of one process run: of the same bundle, with the same setting, each is
    loaded once, and let go when no session has it any more. Sessions that share a part can run it
    together, as one batch.
    """

    def __init__(self) -> None:
        self._parts: WeakValueDictionary[_Key, PartBackend] = WeakValueDictionary()
        self._choices: dict[_Key, Choice] = {}

    def loader(self, bundle: Bundle, setting: BackendSetting) -> PartLoader:
        """How one session loads its parts; a part that it asks for again has failed, and is its own."""
        return PartLoader(bundle, setting, shared=self)

    def get(self, key: _Key) -> tuple[PartBackend, Choice] | None:
        """A part that some session has loaded."""
        loaded = self._parts.get(key)
        return None if loaded is None else (loaded, self._choices[key])

    def put(self, key: _Key, loaded: PartBackend, choice: Choice) -> None:
        """Let others have it, unless they have one."""
        if key not in self._parts:
            self._choices[key] = choice
            self._parts[key] = loaded


class PartLoader:
    """Loads the parts of a bundle. `chosen` says what each one runs on.

    Called again for a part, since it failed, it chooses anew: where the GPU is gone, the CPU is left. What
    is then another choice is a line in `changes`.
    """

    def __init__(
        self,
        bundle: Bundle,
        setting: BackendSetting,
        *,
        shared: SharedParts | None = None,
        cuda: Callable[[], Cuda] = load_cuda,
        tensorrt: Callable[[str], Any] = load_tensorrt,
    ) -> None:
        self.bundle, self.setting = bundle, setting
        self.chosen: dict[str, Choice] = {}
        self.changes: list[str] = []
        self._shared, self._cuda, self._tensorrt = shared, cuda, tensorrt

    def __call__(self, part: Part) -> PartBackend:
        """What runs it; raises FusedgeError where nothing that was asked for can."""
        key = (self.bundle.sha256, part.name, self.setting)
        before = self.chosen.get(part.name)
        known = self._shared.get(key) if self._shared is not None and before is None else None
        loaded, choice = known or self._choose(part)
        if self._shared is not None:
            self._shared.put(key, loaded, choice)
        self.chosen[part.name] = choice
        if before is not None and before != choice:
            self.changes.append(f"part {part.name} now runs on {choice.provider}: {choice.reason}")
        return loaded

    def warnings(self) -> list[str]:
        """What must be said of the choices, a line for all parts that it is true of."""
        parts: dict[str, list[str]] = {}
        for part in self.bundle.manifest.parts:
            choice = self.chosen.get(part.name)
            if choice is None:
                continue
            if choice.cpu_nodes != 0:
                count = "some" if choice.cpu_nodes is None else choice.cpu_nodes
                line = f"{count} nodes run on the CPU, which {choice.provider} did not take"
                parts.setdefault(line, []).append(part.name)
            if part.engines and choice.no_engine:
                line = f"the bundle's engines are not used: {choice.no_engine}"
                parts.setdefault(line, []).append(part.name)
            if choice.tuned_elsewhere:
                parts.setdefault(choice.tuned_elsewhere, []).append(part.name)
        return [f"{', '.join(names)}: {line}" for line, names in parts.items()]

    def _choose(self, part: Part) -> tuple[PartBackend, Choice]:
        no_engine = ""
        if self.setting.takes_engines:
            try:
                return self._native(part)
            except FusedgeError as error:
                if self.setting.backend == NATIVE:
                    raise
                no_engine = _reason(error, f"part {part.name}")
        return self._onnx(part, no_engine)

    def _onnx(self, part: Part, no_engine: str) -> tuple[OnnxPart, Choice]:
        precision = "fp32" if self.setting.precision == AUTO else self.setting.precision
        absent: list[str] = []
        reasons = [no_engine] if no_engine else []
        *others, last = self.setting.providers
        for provider in others:
            try:
                loaded = self._on_provider(part, provider, precision)
                break
            except MissingProviderError:
                absent.append(provider)
            except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
                reasons.append(f"{provider}: {_reason(error, f'part {part.name}')}")
        else:
            loaded = self._on_provider(part, last, precision)
        if absent:
            version = onnxruntime().__version__
            reasons.append(f"ONNX Runtime {version} has no {', '.join(absent)}")
        left = loaded.cpu_nodes
        return loaded, Choice(
            "onnxruntime",
            loaded.provider,
            precision,
            "; ".join(reasons) or "asked for",
            no_engine,
            cpu_nodes=None if left is None else left.total(),
        )

    def _on_provider(self, part: Part, provider: str, precision: str) -> OnnxPart:
        loaded = OnnxPart(self.bundle, part, provider, precision)
        if provider != "cpu":
            self._try_out(part, loaded)
        return loaded

    def _native(self, part: Part) -> tuple[NativePart, Choice]:
        if not part.engines:
            raise self._no_engine(part, "the bundle has no engine")
        device = self._cuda().device()
        reasons: dict[str, None] = {}  # each once, in order
        mode = read_power_modes().current
        for engine in sorted(part.engines, key=lambda engine: engine.power_mode != mode):
            if not is_for_gpu(engine, device.compute_capability):
                continue
            if self.setting.precision not in (AUTO, engine.precision_requested):
                reasons[f"the engine is {engine.precision_requested}"] = None
                continue
            try:
                loaded = self._load_engine(part, engine)
            except Exception as error:  # native code raises what it likes
                reasons[_reason(error, engine.file)] = None
                continue
            return loaded, Choice(
                NATIVE,
                engine.flavour,
                engine.precision_requested,
                f"an engine for compute capability {device.compute_capability} ({device.name})",
                engine=self.bundle.manifest.files[engine.file].sha256,
                tuned_elsewhere=_tuned_elsewhere(engine, mode),
            )
        built_for = sorted({cc for engine in part.engines for cc in engine.compute_capabilities})
        other = (
            f"engines are for compute capability {', '.join(built_for)}, and {device.name} has "
            f"{device.compute_capability}"
        )
        raise self._no_engine(part, "; ".join(reasons) or other)

    def _no_engine(self, part: Part, what: str) -> FusedgeError:
        return FusedgeError(
            what,
            where=f"{self.bundle.path}: part {part.name}",
            hint="build one: fusedge build BUNDLE --target local",
        )

    def _load_engine(self, part: Part, engine: Engine) -> NativePart:
        self._check_trust(engine)
        trt = self._tensorrt(engine.flavour)
        _check_version(engine, trt.__version__)
        loaded = NativePart(
            self.bundle.read(engine.file),
            f"{self.bundle.path}: {engine.file}",
            part,
            engine,
            trt,
            self._cuda(),
        )
        try:
            self._try_out(part, loaded)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _check_trust(self, engine: Engine) -> None:
        """An engine is executable code."""
        if not (
            self.setting.allow_unsigned_engines
            or built_here(self.bundle.manifest.files[engine.file].sha256)
            or self.setting.trusted(self.bundle)
        ):
            raise FusedgeError(
                "neither built on this machine nor signed by a key that you trust; if you know where it "
                "comes from: --allow-unsigned-engines",
                where=engine.file,
            )

    def _try_out(self, part: Part, loaded: PartBackend) -> None:
        """Run it before a window waits for it: the first run may compile, the second captures a graph."""
        fusion = self.bundle.manifest.fusion
        # The head runs once more without each modality.
        rows = 1 + len(fusion.modalities) if fusion is not None and part.kind == "head" else 1
        feeds = zeros(part, rows)
        for _ in range(2):
            loaded.run(feeds)


class OpenPart:
    """A part for a program of your own, see `open_part`. `choice` says what it runs on."""

    def __init__(self, part: Part, loaded: PartBackend, choice: Choice) -> None:
        self.part, self.choice = part, choice
        self._loaded: PartBackend | None = loaded

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name.

        Raises FusedgeError where the feeds are not the part's inputs in names, dtypes and shapes, or a
        named dim is outside of the range that the bundle states.
        """
        if self._loaded is None:
            raise FusedgeError("is closed", where=f"part {self.part.name}")
        check_feeds(self.part, feeds)
        outputs = self._loaded.run(feeds)
        return dict(zip((spec.name for spec in self.part.outputs), outputs, strict=True))

    def close(self) -> None:
        """Give back what it holds, such as memory of the GPU."""
        loaded, self._loaded = self._loaded, None
        if isinstance(loaded, NativePart):
            loaded.close()

    def __enter__(self) -> OpenPart:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_part(bundle: Bundle, name: str = "", setting: BackendSetting = AUTOMATIC) -> OpenPart:
    """A part of a bundle, to be run by your own program; the only one where `name` is left out.

    This is the way to run a plain model, which has no modalities and so no sessions:

        from fusedge.bundle.lookup import open_bundle
        from fusedge.runtime.backend import open_part

        with open_part(open_bundle("classifier.fusedge")) as model:
            print(model.choice.provider, model.choice.reason)
            outputs = model.run({"image": image})  # image: float32 [batch, 3, 224, 224]
            print(outputs["logits"].argmax(axis=1))

    Raises FusedgeError where nothing that the setting names can run it.
    """
    parts = {part.name: part for part in bundle.manifest.parts}
    if not name and len(parts) == 1:
        (name,) = parts
    if name not in parts:
        raise UnknownNameError("part", name, parts)
    loader = PartLoader(bundle, setting)
    loaded = loader(parts[name])
    return OpenPart(parts[name], loaded, loader.chosen[name])


def _reason(error: Exception, known: str) -> str:
    """Of an error, in one line; where it lies too, unless that is the place that is spoken of anyway."""
    if not isinstance(error, FusedgeError):
        return printable(str(error))
    return error.what if error.where.endswith(known) or not error.where else error.line()


def _tuned_elsewhere(engine: Engine, mode: str | None) -> str:
    """A Jetson's power mode changes its number of multiprocessors, for which kernels were chosen."""
    if engine.power_mode in (None, mode):
        return ""
    return (
        f"the engine was tuned in power mode {engine.power_mode}, and this machine is in "
        f"{mode or 'an unknown one'}: fusedge build BUNDLE --target local tunes one for it"
    )


def _check_version(engine: Engine, installed: str) -> None:
    if not is_for_version(engine, installed):
        raise FusedgeError(
            f"built by TensorRT {engine.version}, and {installed} is installed", where=engine.file
        )
