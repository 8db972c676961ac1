"""ONNX operators that TensorRT does not build, by flavour and version.

`tensorrt`: docs/operators.md of github.com/onnx/onnx-tensorrt at 8.5 and 10.15, and its Changelog.md.
`tensorrt_rtx`: measured with TensorRT-RTX 1.7.1 on ONNX's own node tests (benchmarks/onnx_nodes.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from fusedge.bundle.manifest import Flavour
from fusedge.devices.targets.facts.engine_fit import version_number

_NO_TENSORRT = frozenset(
    [
        "Bernoulli",
        "BitCast",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Compress",
        "ConcatFromSequence",
        "CumProd",
        "Det",
        "ImageDecoder",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "Optional",
        "OptionalGetElement",
        "QLinearConv",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    ]
)
_NO_RTX = _NO_TENSORRT | {"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"}
# None of them has these; `fusedge build` writes them in others, which it can where sizes are known.
_REWRITTEN = frozenset(
    [
        "AffineGrid",
        "BitShift",
        "CausalConvWithState",
        "CenterCropPad",
        "Col2Im",
        "ConvInteger",
        "DynamicQuantizeLinear",
        "LinearAttention",
        "MatMulInteger",
        "NegativeLogLikelihoodLoss",
        "QLinearMatMul",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
    ]
)
# The first version of `tensorrt` that reads them; before it, those of _FUNCTIONS are rewritten.
_FIRST_VERSIONS: dict[str, tuple[int, ...]] = {
    "GroupNormalization": (8, 6),
    "IsInf": (8, 6),
    "LayerNormalization": (8, 6),
    "Hardmax": (9, 2),
    "DeformConv": (10, 1),
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "STFT": (10, 5),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
    "Swish": (11, 0),
    "DFT": (11, 2, 1),  # a plug-in
}
# ONNX defines them by simpler operators, or there is another form in export/operator_forms.py.
_FUNCTIONS = frozenset(
    [
        "Attention",
        "BlackmanWindow",
        "DFT",
        "GroupNormalization",
        "HammingWindow",
        "HannWindow",
        "LayerNormalization",
        "RMSNormalization",
        "RotaryEmbedding",
        "Swish",
    ]
)


def unbuilt_operators(
    operators: Iterable[str], flavour: Flavour, tensorrt: str | None
) -> tuple[list[str], list[str]]:
    """Of these operators, those that this TensorRT cannot build, and those that are rewritten for it.

    `tensorrt` is its version, None for the newest one. What is in neither list may still fail: many
    operators have limits.
    """
    lacking: list[str] = []
    rewritten: list[str] = []
    number = (99,) if tensorrt is None else version_number(tensorrt)
    for operator in sorted(set(operators)):
        if operator in (_NO_RTX if flavour == "tensorrt_rtx" else _NO_TENSORRT):
            lacking.append(operator)
        elif operator in _REWRITTEN or (flavour == "tensorrt_rtx" and operator == "DFT"):
            rewritten.append(operator)
        elif flavour == "tensorrt" and number < _FIRST_VERSIONS.get(operator, (0, 0)):
            (rewritten if operator in _FUNCTIONS else lacking).append(operator)
    return lacking, rewritten
