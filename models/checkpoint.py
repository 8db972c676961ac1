"""Where a training goes on from, bit for bit, after it has been stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import write_whole


class Checkpoint:
    """The state of a run in one file of a folder, which is replaced as a whole.

    `fingerprint` says what the run depends on: another run's checkpoint is refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = folder / "checkpoint.safetensors", fingerprint

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors after a step."""
        metadata = {"fingerprint": self.fingerprint, "step": str(step)}
        fresh = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        write_whole(self.path, save(fresh, metadata))

    def read(self) -> tuple[int, dict[str, Tensor]] | None:
        """The step and its tensors; None where nothing is kept. Raises FusedgeError."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FusedgeError(f"cannot be read: {error.strerror}", where=str(self.path)) from None
        try:
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length])["__metadata__"]
            tensors = load(content)
            step, fingerprint = int(metadata["step"]), metadata["fingerprint"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise FusedgeError(
                f"the checkpoint is damaged: {error}",
                where=str(self.path),
                hint="train with --fresh to start again",
            ) from error
        if fingerprint != self.fingerprint:
            raise FusedgeError(
                "the checkpoint belongs to another recipe or other recordings",
                where=str(self.path),
                hint="train with --fresh to start again, or into another folder",
            )
        return step, tensors
