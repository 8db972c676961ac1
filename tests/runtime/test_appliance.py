"""The file that describes what one process runs: what it takes, and what it says of a wrong one."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.runtime.appliance import MAX_BYTES, Appliance, load_appliance
from fusedge.runtime.chaos import EVERY_S
from fusedge.runtime.session import HANG_S, SILENCE_S

ONE = "{name: cab, bundle: driving, sources: ['sim:']}"
VALID = f"pipelines: [{ONE}]\n"


def load(tmp_path: Path, text: str | bytes) -> Appliance:
    path = tmp_path / "appliance.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_appliance(path)


def refused(tmp_path: Path, text: str | bytes) -> str:
    """What is said of a file, behind its name."""
    with pytest.raises(FusedgeError) as caught:
        load(tmp_path, text)
    line = caught.value.line()
    where = f"{tmp_path / 'appliance.yaml'}: "
    assert line.startswith(where) and line.isprintable() and len(line) < 1500
    return line.removeprefix(where)


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    appliance = load(tmp_path, VALID)
    assert (appliance.speed, appliance.threads, appliance.cores) == ("live", 0, ())
    (cab,) = appliance.pipelines
    assert (cab.name, cab.bundle, cab.sources) == ("cab", "driving", ("sim:",))
    assert (cab.backend, cab.provider, cab.precision, cab.without) == ("auto", "auto", "auto", ())
    assert (cab.silence_s, cab.hang_s, cab.watch) == (SILENCE_S, HANG_S, False)
    assert (cab.out, cab.picture, cab.record, cab.record_events, cab.jpeg) == (None,) * 5
    assert cab.clips == tmp_path / "clips/cab"


def test_everything_that_can_be_said_is_taken(tmp_path: Path) -> None:
    appliance = load(
        tmp_path,
        """
        speed: 4.5
        threads: 3
        cores: [0, 1]
        pipelines:
          - name: cab-1
            bundle: mine.fusedge
            sources: ["sim:?seed=1", "replay:drive.mcap"]
            without: [gps]
            provider: cuda
            precision: fp16
            latency_s: {gps: 0.85}
            measure_latency:
              - {speed: gps.speed, acceleration: imu.longitudinal_acceleration, highpass_hz: 0.1}
            silence_s: 3
            hang_s: 0.5
            watch: true
            out: decisions/one.jsonl
            picture: /pictures/one.png
            record: one.mcap
            record_events: 10s
            clips: kept
            jpeg: 80
            chaos: stall,nan
            chaos_seed: 7
            chaos_every: 12.5
          - {name: cab-2, bundle: driving, sources: ["sim:?seed=2"]}
        """,
    )
    assert (appliance.speed, appliance.threads, appliance.cores) == ("4.5", 3, (0, 1))
    one, two = appliance.pipelines
    assert one.sources == ("sim:?seed=1", "replay:drive.mcap") and one.without == ("gps",)
    assert one.latency_s == {"gps": 0.85} and one.watch and one.jpeg == 80
    assert one.measure_latency[0].highpass_hz == 0.1
    assert (one.silence_s, one.hang_s, one.record_events) == (3, 0.5, "10s")
    assert one.out == tmp_path / "decisions/one.jsonl"
    assert one.picture == Path("/pictures/one.png")
    assert (one.record, one.clips) == (tmp_path / "one.mcap", tmp_path / "kept")
    assert (one.chaos, one.chaos_seed, one.chaos_every) == ("stall,nan", 7, 12.5)
    assert two.name == "cab-2" and two.out is None
    assert (two.chaos, two.chaos_seed, two.chaos_every) == ("", 0, EVERY_S)


@pytest.mark.parametrize(
    ("text", "speed"), [("1", "1"), ("0.5", "0.5"), ("max", "max"), ("'3'", "3"), ("live", "live")]
)
def test_a_speed_may_be_a_number_or_a_word(tmp_path: Path, text: str, speed: str) -> None:
    assert load(tmp_path, f"speed: {text}\n{VALID}").speed == speed


def test_a_bundle_beside_the_file_is_that_one_and_else_a_name_stays_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.fusedge").write_bytes(b"")
    text = "pipelines: [{name: a, bundle: mine.fusedge, sources: ['sim:']}, " + ONE + "]"
    mine, shipped = load(tmp_path, text).pipelines
    assert mine.bundle == str(tmp_path / "mine.fusedge") and shipped.bundle == "driving"


def test_a_recording_beside_the_file_is_that_one_and_other_sources_stay(tmp_path: Path) -> None:
    (tmp_path / "trips/one").mkdir(parents=True)
    (tmp_path / "drive.mcap").write_bytes(b"")
    given = {
        "replay:drive.mcap": f"replay:{tmp_path / 'drive.mcap'}",
        "replay:./trips/one": f"replay:{tmp_path / 'trips/one'}",
        f"replay:{tmp_path / 'drive.mcap'}": f"replay:{tmp_path / 'drive.mcap'}",
        "replay:elsewhere.mcap": "replay:elsewhere.mcap",
        "replay:": "replay:",
        "sim:?seed=1": "sim:?seed=1",
        "sim:drive.mcap": "sim:drive.mcap",
        "drive.mcap": "drive.mcap",
        f"replay:{'x' * 5000}": f"replay:{'x' * 5000}",
        "replay:a\\0b": "replay:a\0b",
    }
    sources = ", ".join(f'"{uri}"' for uri in given)
    text = f"pipelines: [{{name: a, bundle: {'x' * 5000}, sources: [{sources}]}}]"
    assert load(tmp_path, text).pipelines[0].sources == tuple(given.values())


NUMBERS = ("silence_s", "hang_s", "jpeg", "chaos_seed", "chaos_every")


@pytest.mark.parametrize("value", ["true", "false", "yes", "'3'"])
def test_only_a_number_is_a_number_and_only_true_is_true(tmp_path: Path, value: str) -> None:
    delay = "measure_latency: [{{speed: a, acceleration: b, highpass_hz: {0}}}]"
    fields = [*(f"{name}: {{0}}" for name in NUMBERS), "latency_s: {{gps: {0}}}", delay]
    texts = [pipeline(field.format(value)) for field in fields]
    texts += [f"{VALID}{field}: {value}\n" for field in ("threads", "cores", "speed")]
    texts += [f"{VALID}cores: [{value}]\n"]
    for text in texts:
        if "speed: '" not in text:
            assert "Input should be a valid" in refused(tmp_path, text), text
    for number in ("0", "1", "'true'"):
        said = refused(tmp_path, pipeline(f"watch: {number}"))
        assert "pipelines.0.watch: Input should be a valid boolean" in said


def pipeline(fields: str) -> str:
    return f"pipelines: [{{name: cab, bundle: driving, sources: ['sim:'], {fields}}}]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Input should be a valid dictionary"),
        ("- 1\n", "Input should be a valid dictionary"),
        ("pipelines: []\n", "pipelines: Tuple should have at least 1 item"),
        ("speed: 1\n", "pipelines: Field required"),
        (VALID + "sped: 1\n", "sped: Extra inputs are not permitted"),
        (pipeline("outt: x"), "pipelines.0.outt: Extra inputs are not permitted"),
        (
            pipeline("measure_latency: [{speed: a, acceleration: b, hz: 1}]"),
            "pipelines.0.measure_latency.0.hz: Extra inputs",
        ),
        (VALID + "speed: 1\nspeed: 2\n", "'speed' is given twice"),
        (pipeline("name: other"), "'name' is given twice"),
        (pipeline("latency_s: {gps: 1, gps: 2}"), "'gps' is given twice"),
        ("a: &a 1\nb: *a\n" + VALID, "aliases (*name) are not taken"),
        (VALID + "threads: many\n", "threads: Input should be a valid integer"),
        (VALID + "threads: -1\n", "threads: Input should be greater than or equal to 0"),
        (VALID + "threads: 257\n", "threads: Input should be less than or equal to 256"),
        (VALID + "cores: 1\n", "cores: Input should be a valid tuple"),
        (VALID + "cores: [0, -1]\n", "cores.1: Input should be greater than or equal to 0"),
        (VALID + "speed: [1]\n", "speed: Input should be a valid string"),
        (VALID + "speed:\n", "speed: Input should be a valid string"),
        (pipeline("latency_s: {gps: -1}"), "pipelines.0.latency_s.gps: Input should be greater"),
        (pipeline("latency_s: {gps: .nan}"), "pipelines.0.latency_s.gps: Input should be a finite"),
        (pipeline("silence_s: 0"), "pipelines.0.silence_s: Input should be greater than 0"),
        (pipeline("hang_s: .inf"), "pipelines.0.hang_s: Input should be"),
        (pipeline("jpeg: 96"), "pipelines.0.jpeg: Input should be less than or equal to 95"),
        (pipeline("watch: often"), "pipelines.0.watch: Input should be a valid boolean"),
        (pipeline('out: "a\\0b"'), "pipelines.0.out: Value error, a path cannot hold a zero byte"),
        (
            "pipelines: [{name: a, bundle: b, sources: []}]",
            "pipelines.0.sources: Tuple should have",
        ),
        ("pipelines: [{name: a, bundle: b, sources: 'sim:'}]", "pipelines.0.sources: Input should"),
        ("pipelines: [{name: a, sources: ['sim:']}]", "pipelines.0.bundle: Field required"),
        ("pipelines: [{name: ../x, bundle: b, sources: ['sim:']}]", "pipelines.0.name: String"),
        (f"pipelines: [{ONE}, {ONE}]", "two pipelines have one name"),
        (f"pipelines: [{', '.join([ONE] * 65)}]", "pipelines: Tuple should have at most 64 items"),
        (pipeline("out: x, picture: x"), "two outputs go to one file"),
        ("pipelines: [", "is no YAML that can be taken: while parsing"),
        ("pipelines:\n\t- 1\n", "is no YAML that can be taken: while scanning"),
        (f"{VALID}---\n{VALID}", "is no YAML that can be taken: expected a single document"),
        (
            "pipelines: !!python/object/apply:os.system ['true']",
            "tags (",
        ),
        ("? [a]\n: 1\n", "found unhashable key"),
        (VALID + "speed: 2020-99-99\n", "month must be in 1..12"),
        (VALID + f"threads: {'9' * 6000}\n", "is no YAML that can be taken: Exceeds the limit"),
        ("[" * 5000, "more than 32 levels deep"),
        ("{a: " * 3000, "more than 32 levels deep"),
        ("a\0b", "is no YAML that can be taken: unacceptable character"),
        ("speed: 1".encode("utf-16"), "is no YAML that can be taken: 'utf-8' codec"),
        (b"name: caf\xe9", "is no YAML that can be taken: 'utf-8' codec"),
        ("#" * (MAX_BYTES + 1), f"has more than {MAX_BYTES} bytes"),
    ],
    ids=itertools.count(),
)
def test_what_is_wrong_is_said_in_a_line_with_its_place(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    assert said in refused(tmp_path, text)


def test_a_large_file_of_keys_is_read_in_no_time(tmp_path: Path) -> None:
    keys = "".join(f"k{number}: 1\n" for number in range(5_000))
    assert "Extra inputs" in refused(tmp_path, keys + VALID)


@pytest.mark.parametrize("second", ["x", "./x", "y/../x", "{folder}/x"])
@pytest.mark.parametrize("kinds", [("out", "out"), ("out", "record"), ("picture", "record")])
def test_two_pipelines_cannot_write_one_file(
    tmp_path: Path, second: str, kinds: tuple[str, str]
) -> None:
    second = second.format(folder=tmp_path)
    pipelines = ", ".join(
        f"{{name: {name}, bundle: driving, sources: ['sim:'], {kind}: {path}}}"
        for name, kind, path in zip("ab", kinds, ("x", second), strict=True)
    )
    assert refused(tmp_path, f"pipelines: [{pipelines}]") == "two outputs go to one file"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(FusedgeError) as caught:
            load_appliance(path)
        assert caught.value.line().startswith(f"{path}: cannot be read: {why}")


def test_no_more_is_read_than_is_taken(tmp_path: Path) -> None:
    endless = Path("/dev/zero")
    if not os.access(endless, os.R_OK):
        pytest.skip("no /dev/zero here")
    with pytest.raises(FusedgeError, match="it is no regular file"):
        load_appliance(endless)


def test_nothing_from_the_file_steers_the_terminal(tmp_path: Path) -> None:
    for text in (
        f'{VALID}"a\\e[31m\\nb": 1\n',
        'pipelines: "\\e[31m"',
        f'{VALID}"\\e": 1\n"\\e": 2\n',
    ):
        assert refused(tmp_path, text).isprintable()


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
names = st.sampled_from(["speed", "pipelines", "name", "bundle", "sources", "out", "jpeg", "cores"])
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(names | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(tree=trees)
def test_any_tree_is_taken_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, tree: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"pipelines": [{"name": "a", "bundle": "b", "sources": ["s"]}]}))
    load_appliance(path)
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    try:
        load_appliance(path)
    except FusedgeError as error:
        assert error.line().isprintable()


@given(content=st.binary(max_size=200) | st.text("{}[]:-*&!|>'\"\n\t ab1", max_size=60))
def test_any_bytes_are_taken_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FusedgeError) as caught:
        load_appliance(path)
    assert caught.value.line().isprintable()
