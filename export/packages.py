"""Optional packages: a missing one becomes an error that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from fusedge.bundle.errors import MissingExtraError

# What takes part in an export and is recorded in the manifest.
_TOOLS = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")
# The user chooses which ONNX Runtime: it is in an extra of its own.
_OTHER_EXTRAS = {"onnxruntime": "cpu"}


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turn a missing package inside of the block into MissingExtraError.

    A missing module of Fusedge itself is a bug and passes through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "fusedge"):
            raise
        raise MissingExtraError(package, _OTHER_EXTRAS.get(package, extra), purpose) from None


def tool_versions() -> dict[str, str]:
    """Versions of the packages that take part in an export, for the manifest."""
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # such as onnxruntime-gpu in place of onnxruntime
            continue
    return versions
