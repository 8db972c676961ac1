"""Architectures that nobody here wrote, through the whole export: a table of what came of each.

The model classes of the package transformers, small, with seeded random weights; nothing is downloaded.
Each is exported as a plain model exactly as its authors wrote it, must pass the parity gate at fp32 and at
fp16 (on all kinds of input that it makes from an example), and is built by TensorRT-RTX for a target:

    pip install transformers==5.24.0
    python -m benchmarks.architectures [NAME ...] [--target rtx-4090] [--json bench-out/architectures.json]

The outcome is `exported`, or what refused the model: the stage with its reason. A reason is a line that
names the part, the case, the node; anything else that is raised is a fault of Fusedge and fails the run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import GraphPrecision, Provenance
from fusedge.devices.targets.facts.table import Target, find_target
from fusedge.export.cache import Cache
from fusedge.export.engine import BuildLimits, EngineRequest, build_engine
from fusedge.export.graphs import DEFAULT_OPSET, Proved, Prover
from fusedge.export.plain import plain_part
from fusedge.export.precision import reduced_nodes
from fusedge.export.progress import Steps
from fusedge.export.subject import plain_subject

Array = np.ndarray[Any, Any]
OUT = Path("bench-out/architectures.json")
_SETTLING = 32  # noise images
LIMITS = BuildLimits(timeout_s=60)  # these build in seconds
LEAST_OUTPUT = 0.01  # parity of an output that vanishes would say nothing
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
PYRAMID = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
HEADS = {"num_attention_heads": [1, 2, 2, 4]}
IMAGE = {"image_size": 64, "patch_size": 16}
WORDS = {"vocab_size": 100}
ENCODER = {  # of a model that also has a decoder, which is not exported
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
WAVE = {
    **SMALL,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
BERT_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def noise(name: str, *shape: int, scale: float = 1.0) -> dict[str, Array]:
    values = np.random.default_rng(0).standard_normal((2, *shape)) * scale
    return {name: values.astype(np.float32)}


def pixels(size: int = 64, *frames: int) -> dict[str, Array]:
    return noise("pixel_values", *frames, 3, size, size)


def wave() -> dict[str, Array]:
    return noise("input_values", 4000, scale=0.1)


def words(length: int = 16) -> dict[str, Array]:
    """Token ids; the second sentence is shorter."""
    mask = np.ones((2, length), np.int64)
    mask[1, -length // 4 :] = 0
    ids = np.random.default_rng(0).integers(5, 100, (2, length))
    return {"input_ids": ids, "attention_mask": mask}


class Embeddings(nn.Module):
    """CLIP's two embeddings; its other output has the batch twice, for it compares all with all."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.model(
            input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values
        )
        return both.text_embeds, both.image_embeds


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, its settings and an example of its inputs.

    `pick` takes what is exported from the model, where that is not all of it.
    """

    field: str
    stem: str  # of the names of its classes: XModel and XConfig
    settings: Mapping[str, Any]
    example: Callable[[], dict[str, Array]]
    pick: Callable[[Any], nn.Module] = lambda model: model
    suffix: str = "Model"

    def build(self, transformers: Any) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.stem}Config")(**self.settings)
        model: nn.Module = self.pick(getattr(transformers, f"{self.stem}{self.suffix}")(config))
        model.eval()
        _settle(model, self.example())
        return model


def _settle(model: nn.Module, example: Mapping[str, Array]) -> None:
    """Set batch norms as training would: without it, the signal of random convolutions dies out.

    Their initial weights are small beside the norms' epsilon, so these are drawn again as well.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        return
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(convolution.weight)
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the last batch alone counts
    with torch.no_grad():
        model(*(torch.randn(_SETTLING, *values.shape[1:]) for values in example.values()))
    model.eval()


def audio_encoder(model: Any) -> nn.Module:
    encoder: nn.Module = model.get_encoder()
    return encoder


def vision(stem: str, settings: Mapping[str, Any], size: int = 64) -> Architecture:
    return Architecture("vision", stem, settings, lambda: pixels(size))


def speech(stem: str, **settings: Any) -> Architecture:
    return Architecture("speech", stem, {**WAVE, **settings}, wave)


def text(stem: str, suffix: str = "Model", **settings: Any) -> Architecture:
    return Architecture("text", stem, {**SMALL, **WORDS, **settings}, words, suffix=suffix)


WINDOWED = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
CLIP_PARTS = {
    "vision_config": {**SMALL, **IMAGE},
    "text_config": {**SMALL, **WORDS, **BERT_IDS, "max_position_embeddings": 32},
    "projection_dim": 32,
}

ARCHITECTURES: dict[str, Architecture] = {
    "ViT": vision("ViT", {**SMALL, **IMAGE}),
    "DeiT": vision("DeiT", {**SMALL, **IMAGE}),
    "BEiT": vision("Beit", {**SMALL, **IMAGE}),
    "DINOv2": vision("Dinov2", {**SMALL, "image_size": 56, "patch_size": 14}, 56),
    "SigLIP vision": vision("SiglipVision", {**SMALL, **IMAGE}),
    "Swin": vision("Swin", WINDOWED),
    "Swin V2": vision("Swinv2", WINDOWED),
    "ConvNeXt": vision("ConvNext", PYRAMID),
    "ConvNeXt V2": vision("ConvNextV2", PYRAMID),
    "ResNet": vision("ResNet", {**PYRAMID, "embedding_size": 16}),
    "RegNet": vision("RegNet", {**PYRAMID, "embedding_size": 16, "groups_width": 8}),
    "MobileNet V1": vision("MobileNetV1", {"depth_multiplier": 0.25}),
    "MobileNet V2": vision("MobileNetV2", {"depth_multiplier": 0.25}),
    "SegFormer": vision("Segformer", {**PYRAMID, **HEADS}),
    "PVT v2": vision("PvtV2", {**PYRAMID, **HEADS}),
    "PoolFormer": vision("PoolFormer", PYRAMID),
    "MobileViT": vision(
        "MobileViT",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 64],
        },
    ),
    "LeViT": vision(
        "Levit",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [16, 16, 16],
        },
    ),
    "FocalNet": vision(
        "FocalNet",
        {
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "VideoMAE": Architecture(
        "vision",
        "VideoMAE",
        {**SMALL, "image_size": 32, "patch_size": 16, "num_frames": 4},
        lambda: pixels(32, 4),
    ),
    "Wav2Vec2": speech("Wav2Vec2"),
    "HuBERT": speech("Hubert"),
    "WavLM": speech("WavLM"),
    "UniSpeech": speech("UniSpeech"),
    "SEW": speech("SEW", squeeze_factor=2),
    "Data2Vec audio": speech("Data2VecAudio", num_conv_pos_embeddings=2, conv_pos_kernel_size=5),
    "Wav2Vec2 Conformer": speech("Wav2Vec2Conformer", position_embeddings_type="rotary"),
    "Wav2Vec2-BERT": Architecture(
        "speech",
        "Wav2Vec2Bert",
        {**SMALL, "feature_projection_input_dim": 80},
        lambda: noise("input_features", 50, 80),
    ),
    "Whisper encoder": Architecture(
        "speech",
        "Whisper",
        {**ENCODER, "num_mel_bins": 40, "max_source_positions": 50},
        lambda: noise("input_features", 40, 100),
        audio_encoder,
    ),
    "Speech2Text encoder": Architecture(
        "speech",
        "Speech2Text",
        {**ENCODER, **WORDS, "conv_channels": 64, "max_source_positions": 200},
        lambda: noise("input_features", 100, 80),
        audio_encoder,
    ),
    "Audio Spectrogram Transformer": Architecture(
        "speech",
        "AST",
        {**SMALL, "max_length": 64, "num_mel_bins": 64},
        lambda: noise("input_values", 64, 64),
    ),
    "CLAP audio": Architecture(
        "speech",
        "ClapAudio",
        {
            "hidden_size": 64,
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": (4, 4),
        },
        lambda: noise("input_features", 1, 200, 16),
    ),
    "EnCodec encoder": Architecture(
        "speech",
        "Encodec",
        {
            "num_filters": 8,
            "hidden_size": 32,
            "upsampling_ratios": [4, 4],
            "codebook_size": 64,
            "codebook_dim": 32,
        },
        lambda: noise("hidden_states", 1, 1600, scale=0.1),
        lambda model: model.encoder,
    ),
    "BERT": text("Bert"),
    "DistilBERT": Architecture(
        "text",
        "DistilBert",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, **WORDS},
        words,
    ),
    "RoBERTa": text("Roberta"),
    "ALBERT": text("Albert", embedding_size=32),
    "ELECTRA": text("Electra", embedding_size=32),
    "MobileBERT": text(
        "MobileBert",
        intermediate_size=64,
        embedding_size=32,
        intra_bottleneck_size=32,
        true_hidden_size=32,
    ),
    "MPNet": text("MPNet"),
    "DeBERTa v2": text(
        "DebertaV2", relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"]
    ),
    "ModernBERT": text(
        "ModernBert",
        num_hidden_layers=3,
        local_attention=8,
        cls_token_id=1,
        sep_token_id=2,
        **BERT_IDS,
    ),
    "T5 encoder": Architecture(
        "text",
        "T5",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, **WORDS},
        words,
        suffix="EncoderModel",
    ),
    "GPT-2": Architecture(
        "text",
        "GPT2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False, **WORDS},
        words,
    ),
    "Llama": text("Llama", num_key_value_heads=2, use_cache=False),
    "Mamba": Architecture(
        "text",
        "Mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False, **WORDS},
        lambda: {"input_ids": words()["input_ids"]},
    ),
    "CLIP": Architecture(
        "multimodal", "CLIP", CLIP_PARTS, lambda: {**words(), **pixels()}, Embeddings
    ),
    "SigLIP": Architecture(
        "multimodal", "Siglip", CLIP_PARTS, lambda: {**words(), **pixels()}, Embeddings
    ),
    "PatchTST": Architecture(
        "series",
        "PatchTST",
        {
            "num_input_channels": 3,
            "context_length": 64,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
        },
        lambda: noise("past_values", 64, 3),
    ),
}


@dataclass
class Row:
    """What came of one; differences are the greatest of all outputs and cases, as the gate measures."""

    name: str
    field: str
    parameters: int = 0
    nodes: int = 0
    cases: int = 0
    largest_output: float = 0.0
    parity_fp32: float | None = None
    parity_fp16: float | None = None
    fp16_nodes: int = 0
    graph_bytes: int = 0
    engine_bytes: dict[str, int] = field(default_factory=dict)
    repairs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # stage: reason
    fault: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def export_one(name: str, architecture: Architecture, transformers: Any, target: Target) -> Row:
    row = Row(name, architecture.field)
    model = architecture.build(transformers)
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    example = architecture.example()
    provenance = Provenance(
        task=name,
        weights_sha256="0" * 64,
        training_data="none, random weights",
        weights_licence="Apache-2.0",
        attribution="transformers",
        tools={},
    )
    stage = "example"
    started = time.perf_counter()
    try:
        part = plain_part(model, example, "encoder")
        subject = plain_subject(part, example, "encoder", name, provenance)
        answers = [
            np.abs(output).max()
            for case in subject.answer().cases["encoder"]
            for output in case.expected
        ]
        row.largest_output = float(max(answers))
        prover = Prover(subject, DEFAULT_OPSET, Cache(None), Steps(lambda *_: None, 1))
        for precision in ("fp32", "fp16"):
            started, stage = time.perf_counter(), f"{precision} parity"
            proved = prover.float32() if precision == "fp32" else prover.uniform("fp16", {})
            row.seconds[precision] = round(time.perf_counter() - started, 2)
            _record(row, precision, proved)
            started, stage = time.perf_counter(), f"{precision} engine"
            _build(row, precision, proved.graphs["encoder"], part.dims, target)
            row.seconds[stage] = round(time.perf_counter() - started, 2)
    except FusedgeError as error:
        row.refused[stage] = error.line()
    except Exception:
        row.fault = traceback.format_exc(limit=-3)
    return row


def _record(row: Row, precision: str, proved: Proved) -> None:
    worst = max(parity.max_relative for parity in proved.parity)
    graph = onnx.load_model_from_string(proved.graphs["encoder"])
    if precision == "fp32":
        row.parity_fp32, row.nodes = worst, len(graph.graph.node)
        row.cases = proved.parity[0].cases
        row.graph_bytes = len(proved.graphs["encoder"])
    else:
        row.parity_fp16, row.fp16_nodes = worst, len(reduced_nodes(graph))


def _build(
    row: Row, precision: GraphPrecision, graph: bytes, dims: Mapping[str, Any], target: Target
) -> None:
    """An engine, or the reason; the other precision may still build."""
    try:
        request = EngineRequest("encoder", graph, precision, (target,), dims)
        built = build_engine(request, LIMITS)
    except FusedgeError as error:
        row.refused[f"{precision} engine"] = error.line()
        return
    row.engine_bytes[precision] = len(built.data)
    if built.repairs:
        row.repairs[precision] = built.repairs


HEADER = (
    f"{'architecture':30}{'parameters':>11}{'nodes':>7}{'cases':>6}{'fp32':>9}{'fp16':>9}"
    f"{'in fp16':>8}{'engines':>16}{'s':>6}  outcome"
)


def line(row: Row) -> str:
    engines = "/".join(
        f"{row.engine_bytes[p] / 1e6:.1f}" if p in row.engine_bytes else "-"
        for p in ("fp32", "fp16")
    )
    outcome = "exported"
    if row.repairs:
        outcome = f"exported, repaired: {'; '.join(sorted(set(sum(row.repairs.values(), ()))))}"
    if row.refused:
        outcome = "; ".join(f"{stage}: {reason}" for stage, reason in row.refused.items())
    if row.fault:
        outcome = f"FAULT: {row.fault.splitlines()[-1]}"
    elif row.largest_output < LEAST_OUTPUT:
        outcome += f" (VACUOUS: outputs up to {row.largest_output:.0e} only)"
    parity = "".join(
        f"{'-' if value is None else f'{value:.1e}':>9}"
        for value in (row.parity_fp32, row.parity_fp16)
    )
    return (
        f"{row.name:30}{row.parameters:11,}{row.nodes:7}{row.cases:6}{parity}{row.fp16_nodes:8}"
        f"{engines:>13} MB{sum(row.seconds.values()):6.1f}  {outcome}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    parser.add_argument("--target", default="rtx-4090")
    parser.add_argument("--json", type=Path, default=OUT, metavar="FILE")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtraError("transformers", "export", "this benchmark") from None
    unknown = [name for name in arguments.names if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"no architecture {unknown[0]!r}; there are {', '.join(ARCHITECTURES)}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    target = find_target(arguments.target)
    rows = []
    print(HEADER)
    for name in arguments.names or ARCHITECTURES:
        rows.append(export_one(name, ARCHITECTURES[name], transformers, target))
        print(line(rows[-1]), flush=True)
    proved = [row for row in rows if row.parity_fp16 is not None and not row.fault]
    built = [row for row in proved if set(row.engine_bytes) == {"fp32", "fp16"}]
    fields = Counter(row.field for row in proved)
    print(
        f"{len(rows)} architectures: {len(proved)} passed parity at fp32 and fp16 "
        f"({', '.join(f'{count} {kind}' for kind, count in fields.items())}), "
        f"{len(built)} of them with both engines for {target.name}"
    )
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("transformers", "torch", "onnx", "onnxruntime")}
    result = {"target": target.name, "versions": versions, "rows": [asdict(row) for row in rows]}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row.fault or row.largest_output < LEAST_OUTPUT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
