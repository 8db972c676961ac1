"""The highest ONNX opset that each TensorRT reads whole."""

from __future__ import annotations

# From this version on: docs/operators.md of github.com/onnx/onnx-tensorrt at each release. Opset 25 came to
# its parser with 11.5, while the "ONNX Opset Guide" of docs.nvidia.com says 25 of all of 11.
_MAX_OPSETS = (
    ((11, 5), 25),
    ((10, 15), 24),
    ((10, 0), 20),
    ((8, 5), 17),
    ((8, 0), 13),
    ((7, 1), 11),
)


def max_opset(tensorrt: str) -> int | None:
    """Of a version such as `8.5.2`; None of one before 7.1. (TensorRT-RTX has none: 1.7 read opset 30.)"""
    major, minor = f"{tensorrt}.0".split(".")[:2]
    number = (int(major), int(minor))
    return next((most for least, most in _MAX_OPSETS if number >= least), None)
