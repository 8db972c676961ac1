"""Rewrite a graph that TensorRT's parser refuses, without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import onnxslim
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

Feeds = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Refusal:
    """Why TensorRT did not take a graph: at which stage, for what reason, and at which node."""

    stage: Literal["parse", "build", "crash", "timeout"]
    reason: str
    node: str | None = None
    operator: str | None = None


Trial = Callable[[bytes], "Refusal | None"]


@dataclass(frozen=True)
class Repaired:
    """The graph that TensorRT takes, what was rewritten in it, and what it still refuses if anything.

    With a refusal left, the graph is the one that was given and `repairs` says what was tried in vain.
    """

    graph: onnx.ModelProto
    repairs: tuple[str, ...]
    refusal: Refusal | None
