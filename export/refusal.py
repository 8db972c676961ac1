"""What TensorRT says of a graph that it does not take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Refusal:
    """Why TensorRT did not take a graph: at which stage, for what reason, and at which node."""

    stage: Literal["parse", "build", "crash", "timeout"]
    reason: str
    node: str | None = None
    operator: str | None = None
