"""`fusedge plan` as a user runs it: what it prints, the exit status, and one line for what is wrong."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from typer.testing import CliRunner

from fusedge.bundle.archive import file_entry, write_bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.lookup import open_bundle
from fusedge.cli import plan_report
from fusedge.cli.app import app
from fusedge.cli.plan_plot import draw_fit
from fusedge.devices.targets.calibration.profile import (
    FORMAT_VERSION,
    BatchTimes,
    Calibration,
    Conditions,
    KindCost,
    MachineIdentity,
    MeasuredPart,
    Profile,
    identity_of,
    profile_path,
    write_profile,
)
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.detection.machine_target import machine_target
from fusedge.devices.targets.facts.rows import Configuration
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.planning.fit import Limits, fit
from fusedge.devices.targets.preflight.findings import amount
from fusedge.devices.targets.work import Kind
from tests.cli.command import fusedge
from tests.devices.recorded_machines import recorded
from tests.devices.test_bundle_plan import plain, tiny
from tests.devices.test_fit import PARTS, mode
from tests.tiny_bundle import modality, tiny_manifest, write_tiny_bundle

ORIN = "jetson-orin-nano-8gb"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))


def plan(*words: str) -> Result:
    """In this process; an error of one line is in `exception`."""
    return CliRunner().invoke(app, ["plan", *words])


def planned(*words: str) -> dict[str, Any]:
    """What `--json` tells of the one target."""
    done = plan(*words, "--json")
    assert done.exit_code == 0, done.exception
    (row,) = json.loads(done.stdout)["targets"]
    assert isinstance(row, dict)
    return row


def refusal(*words: str) -> str:
    """The one line of an error."""
    done = plan(*words)
    assert isinstance(done.exception, FusedgeError), done.output
    return done.exception.line()


def test_a_target_that_it_runs_on_is_told_whole() -> None:
    done = fusedge("plan", "driving", "--target", f"{ORIN}:15W", "--jetpack", "6.2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = " ".join(done.stderr.split())
    for expected in (
        f"driving on {ORIN}:15W: TensorRT 10.3.0.30 of JetPack 6.2, Python 3.10",
        "15 W",
        "memory",
        "bound by",
        "launch",
        "decision latency",
        "energy of a decision",
        "expected error",
        "ignored",
        "estimates: from efficiencies of a table",
    ):
        assert expected in said
    assert said.endswith("will run")


def test_a_target_that_it_does_not_run_on_is_refused_with_the_way_out() -> None:
    done = plan("driving", "--target", "jetson-xavier-nx-8gb")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    first = next(line for line in lines if line.startswith("refused"))
    assert "Python 3.8" in first
    assert lines[lines.index(first) + 1].startswith("  way out: ")
    assert lines[-1].startswith("will not run: ")


def test_machines_are_told_all_that_people_are() -> None:
    row = planned("driving", "--target", f"{ORIN}:15W")
    manifest = open_bundle("driving").manifest
    assert (row["target"], row["power_mode"], row["will_run"]) == (f"{ORIN}:15W", "15W", True)
    assert row["compute"]["watts"] == 15
    assert {finding["verdict"] for finding in row["findings"]} <= {"warning", "unknown", "fits"}
    memory = row["memory"]
    needed = sum(each["bytes"] for each in memory["rows"])
    assert memory["places"]["memory"]["needed"] == needed < memory["places"]["memory"]["capacity"]
    assert [part["part"] for part in row["parts"]] == [part.name for part in manifest.parts]
    for part in row["parts"]:
        assert part["seconds"] == pytest.approx(sum(part["by_bound"].values()))
        assert part["operations"] > 0
        assert part["bytes"] > 0
        assert part["share"] == pytest.approx(part["seconds"] * part["rate_hz"])
    whole = row["plan"]
    assert whole["load"] == pytest.approx(sum(part["share"] for part in row["parts"]))
    assert whole["worst_s"] == pytest.approx(sum(part["seconds"] for part in row["parts"]))
    assert whole["error"] > 1
    assert not any(rates["measured"] for rates in row["rates"].values())


# Objects whose keys are names: of precisions, operators, parts.
NAMED = frozenset(
    (
        *(".targets[].compute.peak", ".targets[].parts[].by_bound", ".targets[].parts[].by_kind"),
        *(".targets[].parts[].unknown", ".fit.rows[].precision", ".fit.rows[].slower"),
        ".fit.rows[].rates_hz",
    )
)


def documented() -> dict[str, dict[str, str]]:
    """By place in the JSON, the keys that docs/targets.md has in its table, and when each is null."""
    text = (REPOSITORY / "docs/targets.md").read_text("utf-8")
    _, _, text = text.partition("\n## For scripts: `--json`\n")
    text, _, _ = text.partition("\n## ")
    places: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"\*\*`(\S+)`\*\*", line):
            keys = places.setdefault(heading[1], {})
        elif row := re.fullmatch(r"\| `(\w+)` \| .+ \| (.+) \|", line):
            keys[row[1]] = row[2]
    return places


def told_keys(value: Any, place: str, named: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """Each key of the JSON with its place and value. `{}` is an object whose keys are names."""
    if place == ".fit.rows[].plan":
        place = ".targets[].plan"
    if isinstance(value, list):
        for each in value:
            yield from told_keys(each, f"{place}[]", named)
    elif isinstance(value, dict) and f"{place}{{}}" in named:
        for each in value.values():
            yield from told_keys(each, f"{place}{{}}", named)
    elif isinstance(value, dict) and place not in NAMED:
        for key, each in value.items():
            yield place, key, each
            yield from told_keys(each, f"{place.rstrip('.')}.{key}", named)


def test_every_key_for_machines_is_documented_with_when_it_is_null(tmp_path: Path) -> None:
    tables = documented()
    found: dict[str, set[str]] = {}
    for words in (
        ("driving", "--target", "rtx-4090", "--target", "jetson-nano-4gb"),
        ("driving", "--target", ORIN, "--fit"),
        ("driving", "--target", "raspberry-pi-5-8gb", "--fit", "--latency", "0.001"),
        ("driving", "--target", "rtx-4090", "--precision", "int8"),
        ("driving", "--target", "cpu"),
        (plain_bundle(tmp_path), "--target", "rtx-4090", "--fit"),
    ):
        told = json.loads(plan(*words, "--json").stdout)
        for place, key, value in told_keys(told, ".", tables):
            found.setdefault(place, set()).add(key)
            assert value is not None or tables[place][key] != "-", (place, key)
    assert found == {place: set(keys) for place, keys in tables.items()}


def test_an_error_leaves_machines_nothing_to_read() -> None:
    done = fusedge("plan", "driving", "--target", "rtx-4091", "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_a_lower_power_mode_is_slower() -> None:
    slow, fast = (planned("driving", "--target", f"{ORIN}:{mode}") for mode in ("7W", "MAXN_SUPER"))
    assert slow["plan"]["load"] > fast["plan"]["load"]
    assert slow["plan"]["worst_s"] > fast["plan"]["worst_s"]


def test_several_targets_have_a_row_each_and_one_that_is_refused_decides() -> None:
    targets = ("rtx-4090", "raspberry-pi-5-8gb", "jetson-nano-4gb")
    words = [word for target in targets for word in ("--target", target)]
    done = plan("driving", *words)
    assert done.exit_code == 1
    for target in targets:
        (line,) = (line for line in done.stderr.splitlines() if line.startswith(f"{target} "))
        assert ("will not run" in line) == (target == "jetson-nano-4gb")
    assert "bound by" not in done.stderr
    told = json.loads(plan("driving", *words, "--json").stdout)
    assert [row["will_run"] for row in told["targets"]] == [True, True, False]
    assert told["fit"] is None


def test_more_streams_are_more_load() -> None:
    one, eight = (
        planned("driving", "--target", ORIN, "--streams", str(streams)) for streams in (1, 8)
    )
    assert one["plan"]["load"] < eight["plan"]["load"] < 8 * one["plan"]["load"]
    assert {part["batch"] for part in eight["parts"] if part["part"] != "head"} == {8}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--target", f"{ORIN}:16W"],
            "unknown power mode of jetson-orin-nano-8gb '16W' (did you mean",
        ),
        (["--target", "rtx-4091"], "unknown target 'rtx-4091' (did you mean 'rtx-4090'?)"),
        (["--target", "rtx-4090:15W"], "rtx-4090: has no power modes (say --target rtx-4090)"),
        (["--target", ORIN, "--jetpack", "6.9"], "unknown JetPack '6.9'"),
        (["--target", "rtx-4090", "--jetpack", "6.2"], "is for Jetson modules only"),
        (["--precision", "fp17"], "unknown precision 'fp17' (did you mean 'fp16'?)"),
        (["--backend", "tensorrt"], "unknown backend 'tensorrt'"),
        (["--batch", "4"], "the batch of a fusion model follows from its streams (--streams N)"),
        (["--plot", "plan.jpg"], "plan.jpg: is no name for the picture (--plot NAME.png)"),
        (["--profile", "none.json"], "none.json: "),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], expected: str) -> None:
    assert expected in refusal("driving", *words)


@pytest.mark.parametrize(
    "words", [["--streams", "0"], ["--load", "101"], ["--latency", "0"], ["--batch", "x"], []]
)
def test_a_wrong_use_is_status_2(words: list[str]) -> None:
    assert plan(*(["driving"] if words else []), *words).exit_code == 2


def test_a_precision_that_the_bundle_lacks_is_refused() -> None:
    done = plan("driving", "--target", "rtx-4090", "--precision", "int8", "--json")
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)["targets"]
    assert (row["plan"], row["parts"]) == (None, [])
    assert "int8" in row["verdict"]


def test_without_onnx_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None; from fusedge.cli.main import main; "
        "sys.argv[1:] = ['plan', 'driving', '--target', 'rtx-4090']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "needs the package 'onnx'" in line
    assert "pip install 'fusedge[plan]'" in line


def test_a_graph_that_cannot_be_counted_is_one_line_with_its_part(tmp_path: Path) -> None:
    specs = (modality("fast"), modality("slow"))
    files = dict.fromkeys(("parts/fast.onnx", "parts/slow.onnx", "parts/head.onnx"), b"no graph")
    bundle = write_bundle(tmp_path / "x.fusedge", tiny_manifest(specs, files), files)
    assert "part fast_encoder, fp32" in refusal(str(bundle.path), "--target", "rtx-4090")


def onnx_of(node: Any, opsets: dict[str, int]) -> bytes:
    """A graph of one node between two float32 tensors of `[batch, 64]`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in ("a", "b")
    ]
    graph = helper.make_graph([node], "one", [tensors[0]], [tensors[1]])
    imports = [helper.make_opsetid(*pair) for pair in opsets.items()]
    content: bytes = helper.make_model(
        graph, opset_imports=imports, ir_version=9
    ).SerializeToString()
    return content


def plain_bundle(folder: Path, node: Any = None, **opsets: int) -> str:
    """A plain model of one node, 2 to 32 rows."""
    content = onnx_of(node or helper.make_node("Tanh", ["a"], ["b"]), {"": 18, **opsets})
    manifest = plain().model_dump()
    spec = {"dtype": "float32", "shape": ("batch", 64), "modality": None}
    part = {
        **manifest["parts"][0],
        "inputs": ({**spec, "name": "a", "role": "input"},),
        "outputs": ({**spec, "name": "b", "role": "output"},),
        "state": (),
        "graphs": ({"file": "m.onnx", "precision": "fp32", "opset": 18, "nodes": 1},),
    }
    fields = {**manifest, "parts": (part,), "files": {"m.onnx": file_entry(content)}}
    made = type(plain()).model_validate({**fields, "signature": None})
    return str(write_bundle(folder / "plain.fusedge", made, {"m.onnx": content}).path)


def test_a_plain_model_has_latency_and_throughput_at_its_batch(tmp_path: Path) -> None:
    path = plain_bundle(tmp_path)
    row = planned(path, "--target", "rtx-4090", "--batch", "16")
    assert row["parts"][0]["batch"] == 16
    whole = row["plan"]
    assert whole["throughput_hz"] == pytest.approx(16 / whole["worst_s"])
    assert whole["load"] is None
    said = plan(path, "--target", "rtx-4090").stderr
    assert "throughput" in said
    assert "decision" not in said
    assert "a batch of 64 cannot be: the model takes 2 to 32" in refusal(path, "--batch", "64")


def test_an_unknown_operator_is_counted_as_unknown(tmp_path: Path) -> None:
    node = helper.make_node("Mystery", ["a"], ["b"], domain="some.where")
    path = plain_bundle(tmp_path, node, **{"some.where": 1})
    row = planned(path, "--target", "raspberry-pi-5-8gb")
    assert sum(row["parts"][0]["unknown"].values()) == 1
    assert row["plan"]["lower_bound"]
    target = ("--target", "raspberry-pi-5-8gb")
    lines = [" ".join(line.split()) for line in plan(path, *target).stderr.splitlines()]
    (latency,) = (line for line in lines if line.startswith("latency of a run"))
    assert latency.startswith("latency of a run at least")
    (throughput,) = (line for line in lines if line.startswith("throughput"))
    assert throughput.startswith("throughput at most")
    (energy,) = (line for line in lines if line.startswith("energy of a run"))
    assert energy.endswith("J, by the power limit")
    assert "at most" not in energy
    several = plan(path, *target, "--target", "rtx-4090", "--fit").stderr
    assert several.count("at least") == 4  # a row of each in the table of targets, and in the fit
    assert "not counted, so it may take more: Mystery" in several


def test_an_operator_that_does_not_exist_is_unknown(tmp_path: Path) -> None:
    path = plain_bundle(tmp_path, helper.make_node("NoSuchOp", ["a"], ["b"]))
    for target in ("rtx-4090", "raspberry-pi-5-8gb"):
        found = planned(path, "--target", target)["findings"]
        about = [each for each in found if "NoSuchOp" in each["sentence"]]
        assert [each["verdict"] for each in about] == ["unknown", "warning"]


def test_native_without_a_gpu_has_no_figures_of_one() -> None:
    done = plan("driving", "--target", "raspberry-pi-5-8gb", "--backend", "native")
    assert done.exit_code == 1
    assert "GPU native" not in done.stderr
    assert "CUDA" not in done.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown "),
        (0, "0 "),
        (2.5e-7, "0.25 µ"),
        (0.0009996, "1 m"),
        (0.9996, "1 "),
        (999.4, "999 "),
        (999.6e6, "1 G"),
        (2.25e15, "2.25 P"),
    ],
)
def test_amounts_have_the_prefix_that_fits(value: float | None, shown: str) -> None:
    assert amount(value) == shown


@given(st.floats(1e-9, 1e17))
def test_figures_are_never_written_with_an_exponent(value: float) -> None:
    assert "e" not in amount(value)
    assert "e" not in plan_report._percent(min(value + 1e-6, 1e6))


def test_a_fit_recommends_the_mode_of_fewest_watts_and_draws_all(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    done = plan("driving", "--target", ORIN, "--plot", str(first))
    assert done.exit_code == 0, done.exception
    assert f"recommended: {ORIN}:7W with " in done.stderr
    told = json.loads(plan("driving", "--target", ORIN, "--plot", str(second), "--json").stdout)
    rows = told["fit"]["rows"]
    assert [row["mode"] for row in rows] == [
        f"{ORIN}:{mode}" for mode in ("7W", "15W", "25W", "MAXN_SUPER")
    ]
    assert all(row["fits"] and row["streams"] >= 1 for row in rows)
    assert first.read_bytes()[:4] == b"\x89PNG"
    assert first.read_bytes() == second.read_bytes()


def test_a_fit_of_one_power_mode_is_of_that_one() -> None:
    told = json.loads(plan("driving", "--target", f"{ORIN}:15W", "--fit", "--json").stdout)
    assert [row["mode"] for row in told["fit"]["rows"]] == [f"{ORIN}:15W"]


def test_a_picture_of_what_is_unknown_is_drawn_without_a_warning(tmp_path: Path) -> None:
    slow = mode(seconds={part: {"fp32": None} for part in PARTS})
    found = fit(tiny(), [slow], Limits(latency_s=0.1))  # at a tick of the axis
    unlimited = replace(found.rows[0].plan, decision_rate_hz=None)  # as of a plain model
    plain_fit = replace(found, limits=Limits(), rows=(replace(found.rows[0], plan=unlimited),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, each in enumerate((found, plain_fit)):
            draw_fit(each, "unknown", tmp_path / f"{number}.png")
            assert (tmp_path / f"{number}.png").read_bytes()[:4] == b"\x89PNG"


def test_modes_of_several_devices_are_told_apart_in_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--target", "raspberry-pi-5-8gb", "--target", "jetson-agx-orin-64gb", "--fit")
    said = plan("driving", *words).stderr
    assert "…" not in said
    first = [line.split(" ")[0] for line in said.splitlines()]
    for name in ("MAXN", "MODE_15W", "MODE_30W", "MODE_50W"):
        assert first.count(name) == 1


def test_a_target_that_is_left_out_of_the_fit_and_the_picture_is_named(tmp_path: Path) -> None:
    picture, old = tmp_path / "no.png", ("--target", "jetson-nano-4gb")
    alone = plan("driving", *old, "--plot", str(picture))
    assert alone.exit_code == 1
    assert not picture.exists()
    assert alone.stderr.splitlines()[-2:] == [
        "jetson-nano-4gb: no fit: it will not run",
        f"no picture: {picture} is not written",
    ]
    beside = plan("driving", *old, "--target", ORIN, "--fit")
    assert "jetson-nano-4gb: no fit: it will not run" in beside.stderr.splitlines()
    assert f"{ORIN}: no fit" not in beside.stderr
    assert "no fit" not in plan("driving", *old).stderr


def test_where_nothing_fits_the_status_is_1(tmp_path: Path) -> None:
    done = plan("driving", "--target", ORIN, "--fit", "--latency", "0.001")
    assert done.exit_code == 1
    assert "at any rate" in done.stderr
    assert done.stderr.splitlines()[-1] == "nothing fits"


ORIN_AT_15W = MachineIdentity(
    processor="Cortex-A78AE",
    target=ORIN,
    power_mode="15W",
    gpu_driver=None,
    onnxruntime=None,
    tensorrt={},
)


def profile(
    path: Path,
    machine: MachineIdentity = ORIN_AT_15W,
    provider: str = "native",
    precision: str = "fp16",
) -> str:
    """Of a machine whose every kernel takes a millisecond, at 3 W while it computes."""
    cost = KindCost(
        overhead_s=1e-3,
        operations_per_s={"fp32": 1e15, "fp16": 1e15},
        bytes_per_s=1e15,
        source="test",
    )
    kinds: tuple[Kind, ...] = (
        "convolution", "depthwise", "product", "recurrent", "attention", "normalisation", "pooling",
        "elementwise", "movement",
    )  # fmt: skip
    times = (BatchTimes(batch=1, runs=10, p50_s=0.01, p90_s=0.01, p99_s=0.01),)
    parts = tuple(
        MeasuredPart(
            bundle="driving",
            part=part.name,
            provider=provider,
            precision=precision,
            times=times,
            energy_j=0.03,
        )
        for part in open_bundle("driving").manifest.parts
    )
    calibration = Calibration(
        provider=provider,
        precision=precision,
        kinds=dict.fromkeys(kinds, cost),
        run_s=0,
        tensor_s=0,
        error=1.2,
        graphs=1,
        kernels=1,
    )
    made = Profile(
        format_version=FORMAT_VERSION,
        machine=machine,
        date="2026-11-30",
        conditions=Conditions(load_average=0, governor=None, cores=6),
        parts=parts,
        calibrations=(calibration,),
    )
    write_profile(made, path)
    return str(path)


def test_a_profile_takes_the_place_of_the_table(tmp_path: Path) -> None:
    path = profile(tmp_path / "orin.json")
    row = planned("driving", "--target", f"{ORIN}:15W", "--profile", path)
    for part in row["parts"]:
        assert part["seconds"] == pytest.approx(1e-3 * part["kernels"], rel=1e-3)
        assert row["rates"][part["part"]]["measured"]
    whole = row["plan"]
    assert whole["error"] == 1.2
    # 3 W for as long as it computes, a decision a second.
    assert whole["energy_measured"]
    assert whole["energy_j"] == pytest.approx(3 * whole["load"])
    assert any("Cortex-A78AE, 2026-11-30" in note for note in row["notes"])


def test_a_profile_is_converted_to_another_power_mode_by_the_clocks(tmp_path: Path) -> None:
    path = profile(tmp_path / "orin.json")
    measured, slower = (
        planned("driving", "--target", f"{ORIN}:{mode}", "--profile", path)
        for mode in ("15W", "7W")
    )
    ratio = slower["plan"]["load"] / measured["plan"]["load"]
    assert ratio == pytest.approx(612 / 408, rel=0.05)
    assert any("converted by the clocks" in note for note in slower["notes"])
    assert not slower["plan"]["energy_measured"]


def test_what_a_profile_lacks_comes_from_the_table_and_is_told(tmp_path: Path) -> None:
    path = profile(tmp_path / "orin.json")
    words = ("--target", f"{ORIN}:15W", "--profile", path, "--precision", "fp32")
    row = planned("driving", *words)
    assert not any(rates["measured"] for rates in row["rates"].values())
    assert any("it has nothing for imu, gps, road and head" in note for note in row["notes"])


def profile_in(mode: str, path: Path) -> str:
    return profile(path, ORIN_AT_15W.model_copy(update={"power_mode": mode}))


@pytest.mark.parametrize("mode", ["MY_MODE", "2", "15w", ""])
def test_a_profile_in_a_mode_that_no_table_has_leaves_the_table_and_is_told(
    mode: str, tmp_path: Path
) -> None:
    words = ("--target", f"{ORIN}:15W")
    row = planned("driving", *words, "--profile", profile_in(mode, tmp_path / "orin.json"))
    assert row["plan"] == planned("driving", *words)["plan"]
    told = f"it was measured in power mode {mode}, and clocks to convert it to 15W are not known"
    (note,) = (note for note in row["notes"] if note.startswith("it "))
    assert note == f"{told}: imu, gps, road and head by the table of efficiencies"
    done = plan("driving", "--target", ORIN, "--profile", str(tmp_path / "orin.json"), "--fit")
    assert done.exit_code == 0, done.exception


@pytest.mark.parametrize(
    ("name", "measured", "configuration"),
    [("jetson-orin-nx-16gb", "MAXN", "standard"), (ORIN, "15W", "super")],
)
def test_a_profile_is_converted_from_the_older_set_of_modes_too_but_rather_from_the_same(
    name: str, measured: str, configuration: Configuration, tmp_path: Path
) -> None:
    identity = ORIN_AT_15W.model_copy(update={"target": name, "power_mode": measured})
    path = profile(tmp_path / "nx.json", identity)
    row = planned("driving", "--target", f"{name}:MAXN_SUPER", "--profile", path)
    told = f"it was measured in power mode {measured}, and is converted by the clocks"
    assert told in row["notes"]
    there, here = (
        find_target(f"{name}:{mode}", of).power_mode
        for mode, of in ((measured, configuration), ("MAXN_SUPER", None))
    )
    assert there and there.gpu_mhz and here and here.gpu_mhz
    for part in row["parts"]:
        expected = 1e-3 * part["kernels"] * there.gpu_mhz / here.gpu_mhz
        assert part["seconds"] == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def orin_in_own_mode(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine is an Orin Nano in a power mode of its user's own, and has another such one."""
    found = recorded("jetson-orin-nano-super")
    assert found.jetson is not None
    modes = (*found.jetson.power_modes, "MY_MODE", "OTHER")
    jetson = found.jetson.model_copy(update={"power_mode": "MY_MODE", "power_modes": modes})
    machine = found.model_copy(update={"jetson": jetson})
    monkeypatch.setattr("fusedge.devices.targets.detection.detect.detect", lambda: machine)
    return machine


def test_what_was_measured_in_an_own_mode_is_used_in_it_and_converted_to_the_others(
    orin_in_own_mode: Machine,
) -> None:
    identity = identity_of(orin_in_own_mode, machine_target(orin_in_own_mode))
    assert identity.power_mode == "MY_MODE"
    profile(profile_path(identity), identity, "cuda", "fp32")
    words = ("--backend", "onnx", "--precision", "fp32", "--target", "local", "--fit", "--json")
    told = json.loads(plan("driving", *words).stdout)
    (row,) = told["targets"]
    assert (row["target"], row["power_mode"]) == (ORIN, "MY_MODE")
    assert all(rates["measured"] for rates in row["rates"].values())
    assert not any("converted" in note for note in row["notes"])
    rows = {each["mode"].partition(":")[2]: each for each in told["fit"]["rows"]}
    assert list(rows) == ["15W", "25W", "MAXN_SUPER", "MY_MODE", "OTHER"]
    assert [each["fits"] for each in rows.values()] == [True, True, True, True, False]
    own, slower = rows["MY_MODE"]["plan"], rows["15W"]["plan"]
    assert own["error"] == 1.2
    converted = math.exp(math.hypot(math.log(1.2), math.log(1.5)))
    assert slower["error"] == pytest.approx(converted)
    assert slower["load"] > own["load"]


def test_another_jetpack_on_this_machine_has_the_modes_of_the_table(
    orin_in_own_mode: Machine,
) -> None:
    words = ("--target", "local", "--jetpack", "6.2", "--fit", "--json")
    rows = json.loads(plan("driving", *words).stdout)["fit"]["rows"]
    assert {row["mode"] for row in rows} <= {
        f"{ORIN}:{mode}" for mode in ("7W", "15W", "25W", "MAXN_SUPER")
    }


def test_a_profile_of_another_device_is_refused(tmp_path: Path) -> None:
    path = profile(tmp_path / "orin.json")
    line = refusal("driving", "--target", "rtx-4090", "--profile", path)
    assert f"the profile was measured on {ORIN}, which says nothing of rtx-4090" in line


def test_this_machine_is_the_target_where_none_is_named(tmp_path: Path) -> None:
    path = str(write_tiny_bundle(tmp_path / "tiny.fusedge").path)
    here = planned(path, "--backend", "onnx")
    assert here == planned(path, "--target", "local", "--backend", "onnx")


def test_what_was_measured_on_this_machine_is_used_by_itself() -> None:
    machine = detect()
    identity = identity_of(machine, machine_target(machine))
    for kept in (False, True):
        if kept:
            profile(profile_path(identity), identity, "cpu", "fp32")
        row = planned("driving", "--target", "cpu")
        measured = [bool(rates and rates["measured"]) for rates in row["rates"].values()]
        assert measured == [kept] * 4
