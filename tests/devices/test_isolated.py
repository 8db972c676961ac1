"""Sources in a process of their own: what they give, how they end, and that nothing is left of them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import parse
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.source import SCHEMES
from tests.devices.modalities import by_name, image

pytestmark = pytest.mark.real_time
URI = "camera:0"
REPOSITORY = Path(__file__).parents[2]


def isolated(name: str, uri: str = URI, **options: float) -> IsolatedSource:
    opener = f"tests.devices.child_sources:{name}"
    wanted = by_name(image("view", 480, 640))
    return IsolatedSource(uri, parse(uri, SCHEMES), wanted, opener=opener, **options)


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_everything_comes_over_as_it_was() -> None:
    source = isolated("ten")
    assert (source.modalities, source.live) == (("view",), True)
    assert source.channels == {"view": ("r", "g", "b")}
    assert source.warnings == ("as asked for",)
    *samples, rejection = list(source.samples())
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.detail, rejection.samples) == ("stale", "one", 3)
    for number, sample in enumerate(samples):
        assert isinstance(sample, Sample) and sample.stamp == "capture"
        assert sample.data.shape == (480, 640, 3) and (sample.data == number).all()
        assert not sample.data.flags.writeable
    source.close()
    source.close()


def test_images_are_not_overwritten_while_somebody_looks_at_them() -> None:
    """Also by views of views, and with more of them than the ring has slots."""
    source = isolated("endless")
    kept = []
    for number, sample in enumerate(source.samples()):
        kept.append((number, sample.data[None, None][:, :, 10:20]))  # type: ignore[union-attr]
        if len(kept) == 100:
            break
    for number, view in kept:
        assert (view == number % 251).all()
    source.close()
    for number, view in kept:  # and after the end
        assert (view == number % 251).all()


def test_a_slot_is_used_again_when_nobody_looks() -> None:
    source = isolated("endless")
    addresses = set()
    for number, sample in enumerate(source.samples()):
        addresses.add(sample.data.__array_interface__["data"][0])  # type: ignore[union-attr]
        del sample
        if number == 300:
            break
    assert len(addresses) < 20
    source.close()


def test_images_that_are_held_back_or_dropped_before_they_are_sent_stay_whole() -> None:
    source = isolated("hoarding")
    numbers = []
    for sample in source.samples():
        assert isinstance(sample, Sample)
        assert (sample.data == sample.timestamp_ns).all()
        numbers.append(sample.timestamp_ns)
    assert numbers == [number for number in range(120) if number % 3][: len(numbers)]
    assert len(numbers) == 80
    source.close()


def test_sound_comes_over_in_blocks_of_any_size() -> None:
    source = isolated("sound")
    sizes = []
    for sample in source.samples():
        assert isinstance(sample, Sample) and sample.stamp == "arrival"
        assert sample.data.dtype == np.float32
        assert (sample.data[:, 0] == np.arange(len(sample.data))).all()
        sizes.append(len(sample.data))
    assert sizes == [1, 160, 5000, 200_000]
    source.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crashing", "its process crashed (SIGSEGV)"),
        ("raising", "the camera is gone (plug it in)"),
        ("breaking", "IndexError: list index out of range"),
    ],
)
def test_what_goes_wrong_in_the_process_is_raised_here(name: str, message: str) -> None:
    source = isolated(name)
    items = source.samples()
    assert all(isinstance(next(items), Sample) for _ in range(2))
    next(items)  # the rejection
    with pytest.raises(FusedgeError) as error:
        next(items)
    assert error.value.line() == f"camera:0: {message}"
    source.close()
    assert not is_running(source.process_id)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refusing", "no such camera (there is none)"),
        ("leaving", "its process ended with status 3"),
        ("nothing_of_the_kind", "AttributeError"),
    ],
)
def test_a_source_that_cannot_be_opened_says_so(name: str, message: str) -> None:
    with pytest.raises(FusedgeError) as error:
        isolated(name)
    assert message in error.value.line()


def test_one_that_never_opens_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(FusedgeError, match=r"did not open within 0\.5 s"):
        isolated("never", open_s=0.5)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["hanging", "endless"])
def test_close_ends_who_waits_and_the_process(name: str) -> None:
    source = isolated(name)
    items = source.samples()
    next(items)
    ended = threading.Event()

    def read() -> None:
        for _ in items:
            pass
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.1)
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 2
    assert ended.wait(2) and not is_running(source.process_id)
    reader.join()


def test_a_password_is_neither_shown_nor_on_the_command_line() -> None:
    uri = "rtsp://user:secret@127.0.0.1/stream"
    source = isolated("endless", uri)
    command = Path(f"/proc/{source.process_id}/cmdline").read_bytes()
    assert b"secret" not in command and "secret" not in source.uri
    source.close()


PARENT = """
import sys, threading
from tests.devices.test_isolated import isolated
kept = []  # a source that nobody holds ends by itself
threading.Thread(target=lambda: kept.append(isolated(sys.argv[1])), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["endless", "hanging", "never"])
def parent(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, request.param],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def test_the_process_ends_with_its_parent_however_that_ends(
    parent: subprocess.Popen[str],
) -> None:
    assert parent.stdout is not None and parent.stdout.readline()
    time.sleep(1)  # of opening, or of hanging while it opens
    children = Path(f"/proc/{parent.pid}/task").glob("*/children")
    (process_id,) = map(int, " ".join(file.read_text() for file in children).split())
    assert is_running(process_id)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(process_id)


def test_a_process_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    for _ in range(20):
        with pytest.raises(OSError, match="/no/such/python"):
            isolated("ten")
    assert len(os.listdir("/proc/self/fd")) <= before  # an earlier test's may have gone


def test_signals_to_the_whole_group_are_the_parents_to_answer() -> None:
    source = isolated("endless")
    items = source.samples()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        next(items)
        os.kill(source.process_id, number)
    assert all(isinstance(next(items), Sample) for _ in range(50))
    source.close()


def test_reopening_leaves_nothing_behind() -> None:
    def state() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def cycle(name: str) -> None:
        try:
            source = isolated(name)
        except FusedgeError:
            return
        next(source.samples())
        source.close()

    cycle("endless")
    before = state()
    for name in ("endless", "crashing", "hanging", "refusing", "raising") * 2:
        cycle(name)
    assert state() == before
