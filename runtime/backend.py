"""Runs a part. The one backend so far is ONNX Runtime; the session says which provider it got."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.inference import onnxruntime, open_session
from fusedge.bundle.manifest import Part, TensorSpec

Array = NDArray[np.float32]
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}

_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


class OnnxPart:
    """A part on ONNX Runtime, checked against the manifest before it runs for the first time.

    Raises BundleError where the graph's inputs and outputs are not those of the manifest, and
    FusedgeError where the provider that was asked for is not the one that runs it: nothing falls
    back in silence.
    """

    def __init__(self, bundle: Bundle, part: Part, provider: str, precision: str) -> None:
        wanted = PROVIDERS.get(provider)
        if wanted is None:
            raise UnknownNameError("provider", provider, PROVIDERS)
        if wanted not in onnxruntime().get_available_providers():
            raise FusedgeError(
                f"ONNX Runtime {onnxruntime().__version__} has no {wanted} on this machine",
                hint="--provider cpu, or install 'fusedge[gpu]'",
            )
        graph = part.graph(precision)
        where = f"{bundle.path}: part {part.name}"
        content = bundle.read(graph.file)
        try:
            self._session = open_session(content, precision, wanted)
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
            raise BundleError(f"{graph.file} does not load: {error}", where=where) from None
        self.provider: str = self._session.get_providers()[0]
        if self.provider != wanted:
            raise FusedgeError(
                f"asked for {wanted}, ONNX Runtime chose {self.provider}",
                where=where,
                hint="check the driver and libraries of the device, or --provider cpu",
            )
        _compare(self._session.get_inputs(), part.inputs, "input", where)
        _compare(self._session.get_outputs(), part.outputs, "output", where)
        self._outputs = [spec.name for spec in part.outputs]

    def run(self, feeds: Mapping[str, Any]) -> list[Array]:
        """The outputs, in the manifest's order, for inputs by name."""
        outputs: list[Array] = self._session.run(self._outputs, feeds)
        return outputs


class SharedParts:
    """Parts that several sessions of one process run: of the same bundle, on the same provider, each is
    loaded once. Sessions that share a part can run it together, as one batch.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str, str, str], OnnxPart] = {}

    def loader(self, bundle: Bundle, provider: str, precision: str) -> Callable[[Part], OnnxPart]:
        """How one session loads its parts; a part that it asks for again has failed, and is its own."""
        given: set[str] = set()

        def load(part: Part) -> OnnxPart:
            key = (bundle.sha256, part.name, provider, precision)
            if part.name in given or key not in self._parts:
                loaded = OnnxPart(bundle, part, provider, precision)
                self._parts.setdefault(key, loaded)
            else:
                loaded = self._parts[key]
            given.add(part.name)
            return loaded

        return load


def _compare(found: list[Any], wanted: tuple[TensorSpec, ...], kind: str, where: str) -> None:
    specs = {spec.name: spec for spec in wanted}
    if {node.name for node in found} != set(specs):
        raise BundleError(
            f"the graph's {kind}s ({', '.join(sorted(n.name for n in found))}) are not those of "
            f"the manifest ({', '.join(sorted(specs))})",
            where=where,
        )
    for node in found:
        spec = specs[node.name]
        fits = len(node.shape) == len(spec.shape) and all(
            a == b if isinstance(b, int) else not isinstance(a, int)  # a free dim must be free
            for a, b in zip(node.shape, spec.shape, strict=True)
        )
        if node.type != _TYPES[spec.dtype] or not fits:
            raise BundleError(
                f"{kind} {node.name} is {node.type} {node.shape}, "
                f"the manifest says {spec.dtype} {list(spec.shape)}",
                where=where,
            )
