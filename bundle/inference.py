"""How a part is loaded in ONNX Runtime: what export proves is loaded exactly as the runtime loads it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from fusedge.bundle.errors import FusedgeError, MissingExtraError

CPU = "CPUExecutionProvider"
# ONNX Runtime 1.32 crashes (SIGSEGV) on float16 attention when it fuses a transpose behind a cast.
DISABLED_OPTIMIZERS = {name: ["MatmulTransposeFusion"] for name in ("fp16", "bf16", "mixed")}
_FATAL_ONLY = 4  # errors come as exceptions


def onnxruntime() -> Any:
    """The imported module; raises MissingExtraError where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "cpu", "running a part")
    try:
        import onnxruntime as module
    except ImportError as error:
        raise FusedgeError(
            f"onnxruntime is installed but cannot be imported: {error}",
            hint="install it again: pip install --force-reinstall onnxruntime",
        ) from None
    return module


def open_session(
    graph: bytes,
    precision: str,
    provider: str = CPU,
    *,
    provider_options: Mapping[str, str] | None = None,
    devices: Sequence[Any] = (),
    entries: Mapping[str, str] | None = None,
) -> Any:
    """An InferenceSession on one provider and one thread; raises what ONNX Runtime raises.

    `devices` are those of a provider that comes as a plug-in, `entries` the session's settings. ONNX
    Runtime puts what the provider cannot run on the CPU, unless the entries forbid it; it never tries
    another provider.

    One thread: the parts are small, so that more cost more than they bring, and sums over several
    would differ in their last bits from run to run.
    """
    module = onnxruntime()
    options = module.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    settings = dict(provider_options or {})
    if devices:
        options.add_provider_for_devices(devices, settings)
    return module.InferenceSession(
        graph,
        options,
        None if devices else [(provider, settings)],
        disabled_optimizers=DISABLED_OPTIMIZERS.get(precision),
        enable_fallback=0,
    )
