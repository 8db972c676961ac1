"""Receivers behind gpsd: the real one, replaying a log of ours, and a socket that says anything."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.fixes import CHANNELS
from fusedge.devices.capture.gps import Gpsd, _host_and_port
from fusedge.devices.capture.source import Source, open_source
from tests.devices.nmea_log import drive

pytestmark = pytest.mark.real_time
VERSION = {"class": "VERSION", "release": "3.25", "proto_major": 3, "proto_minor": 15}
ONE = {"class": "DEVICES", "devices": [{"class": "DEVICE", "path": "/dev/ttyACM0"}]}
TPV: dict[str, Any] = {
    "class": "TPV",
    "device": "/dev/ttyACM0",
    "mode": 3,
    "time": "2025-11-23T12:00:00.250Z",
    "lat": 40.5,
    "lon": -3.25,
    "altMSL": 610.0,
    "speed": 20.0,
    "track": 90.0,
}


def open_gpsd(port: int, query: str = "") -> Source:
    return open_source(f"gpsd:127.0.0.1:{port}{query}", None, time.monotonic_ns)


def row(item: Sample | Rejection) -> dict[str, float]:
    assert isinstance(item, Sample), item
    return dict(zip(CHANNELS, item.data.tolist(), strict=True))


class Talker:
    """Listens on a port of this machine, and says its lines to whoever connects."""

    def __init__(self, *lines: object) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.say(*lines)
        self.heard = b""
        self._client = self._server
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def say(self, *lines: object) -> None:
        self._lines = [
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        ]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                self._client = client
                for line in self._lines:
                    client.sendall(line)
                while data := client.recv(4096):
                    self.heard += data

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self.hang_up()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@contextlib.contextmanager
def talker(*lines: object) -> Iterator[Talker]:
    server = Talker(*lines)
    try:
        yield server
    finally:
        server.stop()


def said(*lines: object) -> list[Sample | Rejection]:
    """What becomes of lines after a proper greeting."""
    with talker(
        VERSION, ONE, *lines, {**TPV, "lat": 41.0, "class": "END"}, TPV | {"mode": 0}
    ) as server:
        source = open_gpsd(server.port)
        items = []
        for item in source.samples():
            if isinstance(item, Rejection) and item.detail == "mode 0":
                break
            items.append(item)
        source.close()
    return items


def test_a_report_becomes_a_fix() -> None:
    sky = {"class": "SKY", "hdop": 0.8, "satellites": [{"used": True}, {"used": False}]}
    (item,) = said(sky, TPV)
    got = row(item)
    assert got["course"] == pytest.approx(math.pi / 2) and got["speed"] == 20
    assert got["hdop"] == pytest.approx(0.8) and got["satellites"] == 1
    assert got["altitude"] == 610
    assert isinstance(item, Sample) and item.stamp == "capture"


def test_what_is_not_given_is_not_measured() -> None:
    bare = {key: TPV[key] for key in ("class", "device", "lat", "lon")} | {"mode": 2}
    (item,) = said(bare)
    got = row(item)
    assert isinstance(item, Sample) and item.stamp == "arrival"
    assert all(math.isnan(got[name]) for name in ("speed", "course", "altitude", "hdop"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json\n", "malformed"),
        (b"[1]\n", "malformed"),
        (b"{" * 5000 + b"\n", "malformed"),
        (b"x" * 40_000 + b"\n", "malformed"),
        (TPV | {"lat": "40"}, "malformed"),
        (TPV | {"lat": 95}, "malformed"),
        (b'{"class":"TPV","mode":3,"lat":NaN,"lon":1}\n', "malformed"),
        ({"class": "ERROR", "message": "x"}, "malformed"),
        ({"class": "TPV", "mode": 1}, "no_fix"),
        ({"class": "TPV", "mode": [2]}, "no_fix"),
    ],
)
def test_what_is_no_fix_is_counted(line: object, reason: str) -> None:
    items = said(line, TPV)
    assert isinstance(items[-1], Sample)
    rejections = [item.reason for item in items[:-1] if isinstance(item, Rejection)]
    assert rejections and set(rejections) == {reason}


def test_only_the_receiver_that_was_asked_for() -> None:
    two = {"class": "DEVICES", "devices": [{"path": "/dev/a"}, {"path": "/dev/b"}]}
    with talker(VERSION, two, TPV | {"device": "/dev/a"}, TPV | {"device": "/dev/b"}) as server:
        with pytest.raises(FusedgeError, match="gpsd has /dev/a, /dev/b"):
            open_gpsd(server.port)
        with pytest.raises(FusedgeError, match="no device /dev/c"):
            open_gpsd(server.port, "?device=/dev/c")
        source = open_gpsd(server.port, "?device=/dev/b")
        assert isinstance(next(iter(source.samples())), Sample)
        source.close()
        for _ in range(200):
            if b'"device": "/dev/b"' in server.heard:
                return
            time.sleep(0.01)
    raise AssertionError(server.heard)


def of(device: str, **fields: Any) -> dict[str, Any]:
    return TPV | {"device": device} | fields


def test_a_receiver_that_comes_later_is_not_mixed_in() -> None:
    sky = {"class": "SKY", "hdop": 0.8, "uSat": 9}
    items = said(
        of("/dev/b", mode=1),
        sky | {"device": "/dev/b", "hdop": 5.0},
        TPV,
        sky | {"device": "/dev/ttyACM0"},
        sky | {"device": "/dev/b", "hdop": 5.0},
        of("/dev/b", speed=3.0),
        of("/dev/b", mode=1),
        TPV,
    )
    assert isinstance(items[0], Rejection) and items[0].reason == "no_fix"
    assert [row(item)["speed"] for item in items[1:]] == [20, 20]
    assert math.isnan(row(items[1])["hdop"])
    assert row(items[2])["hdop"] == pytest.approx(0.8) and row(items[2])["satellites"] == 9


def test_another_receiver_is_taken_once_the_first_is_lost() -> None:
    with talker(VERSION, ONE) as server:
        source = open_gpsd(server.port)
        source.close()
    assert isinstance(source, Gpsd)
    second = 1_000_000_000
    for at_s, device, comes in (
        (0, "/dev/a", True),
        (1, "/dev/b", False),
        (4, "/dev/a", True),
        (8, "/dev/b", False),
        (9.5, "/dev/b", True),
        (10, "/dev/a", False),
        (11, "/dev/b", True),
    ):
        item = source._item(of(device), round(at_s * second))
        assert (item is not None) == comes, at_s


def test_reopened_it_reads_the_receiver_that_it_read_before() -> None:
    listed: dict[str, Any] = {"class": "DEVICES", "devices": [{"path": "/dev/b"}]}
    with talker(VERSION, listed, of("/dev/b")) as server:
        source = open_gpsd(server.port)
        next(iter(source.samples()))
        source.close()
        for device in ({"path": "/dev/c"}, {"path": "/dev/a"}):
            listed["devices"].insert(0, device)
        server.say(VERSION, listed, of("/dev/a", speed=3.0), of("/dev/b"))
        source = open_gpsd(server.port)
        assert row(next(iter(source.samples())))["speed"] == 20
        source.close()


def test_a_gpsd_without_a_receiver_is_a_warning() -> None:
    with talker(VERSION, {"class": "DEVICES", "devices": []}) as server:
        source = open_gpsd(server.port)
        assert source.warnings == (f"{source.uri}: gpsd has no receiver yet",)
        source.close()


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(FusedgeError) as raised:
        open_gpsd(port)
    assert "sudo systemctl start gpsd" in raised.value.line()
    assert "\n" not in raised.value.line()


def test_another_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedge.devices.capture.gps.GPSD_TIMEOUT_S", 0.3)
    with talker(b"SSH-2.0-x\r\n") as server, pytest.raises(FusedgeError, match="this is not gpsd"):
        open_gpsd(server.port)


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("", "localhost", 2947),
        ("box", "box", 2947),
        ("box:1", "box", 1),
        (":5", "localhost", 5),
        ("[::1]:7", "::1", 7),
    ],
)
def test_where_gpsd_is(target: str, host: str, port: int) -> None:
    assert _host_and_port(Address("u", "gpsd", target, {})) == (host, port)


@pytest.mark.parametrize("target", ["a:b", "a:0", "a:70000", "::1", "a:1:2"])
def test_where_it_cannot_be(target: str) -> None:
    with pytest.raises(FusedgeError, match="is not HOST or HOST:PORT"):
        _host_and_port(Address("u", "gpsd", target, {}))


def test_a_connection_that_is_closed_raises() -> None:
    with talker(VERSION, ONE, TPV) as server:
        items = open_gpsd(server.port).samples()
        assert isinstance(next(items), Sample)
        server.hang_up()
        with pytest.raises(FusedgeError, match="gpsd has closed the connection"):
            list(items)


def test_closing_ends_a_silent_one_at_once_and_leaves_nothing() -> None:
    with talker(VERSION, ONE) as server:
        for number in range(60):
            if number == 10:
                gc.collect()
                fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
            source = open_gpsd(server.port)
            thread = threading.Thread(target=lambda s=source: list(s.samples()))
            if number % 10 == 0:
                thread.start()
                time.sleep(0.02)
            start = time.monotonic()
            source.close()
            source.close()
            if number % 10 == 0:
                thread.join(1)
                assert time.monotonic() - start < 0.2
        for _ in range(200):  # the other end closes in a thread
            if len(os.listdir("/proc/self/fd")) <= fds:
                break
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= fds
        assert threading.active_count() == threads


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


FIELDS = ("mode", "time", "lat", "lon", "alt", "speed", "track", "hdop", "uSat", "satellites")


@pytest.fixture(scope="module")
def closed_gpsd() -> Gpsd:
    with talker(VERSION, ONE) as server:
        source = open_gpsd(server.port)
        source.close()
    assert isinstance(source, Gpsd)
    return source


@given(
    st.sampled_from(["TPV", "SKY", "ERROR", "DEVICE", 1, None]),
    st.dictionaries(st.sampled_from((*FIELDS, "message", "device")), JSON),
    st.booleans(),
)
def test_no_answer_raises(
    closed_gpsd: Gpsd, kind: object, fields: dict[str, Any], otherwise_right: bool
) -> None:
    answer = {"class": kind, **(TPV if otherwise_right else {}), **fields}
    item = closed_gpsd._item(answer, 1)
    assert item is None or isinstance(item, Sample | Rejection)


class RealGpsd:
    """gpsd itself, fed by gpsfake from a log, on a port of this machine."""

    def __init__(self, log: Path, port: int) -> None:
        self.port = port
        command = ["gpsfake", "-q", "-n", "-c", "0.02", "-P", str(port), str(log)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
        )

    def open(self) -> Source:
        """Once it listens."""
        for _ in range(100):
            try:
                return open_gpsd(self.port)
            except FusedgeError as error:
                failure = error
                time.sleep(0.1)
        raise failure

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = os.environ["PATH"] + ":/usr/sbin"
    if not (shutil.which("gpsfake") and shutil.which("gpsd", path=path)):
        pytest.skip("gpsd and gpsfake are not installed (Debian: gpsd gpsd-clients)")
    file = tmp_path / "drive.nmea"
    file.write_bytes(b"".join(drive(300, turn_deg_s=3)))
    return file


def test_the_real_gpsd_dies_and_comes_back(log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gpsd = RealGpsd(log, port)
    try:
        for _ in range(2):
            source = gpsd.open()
            items = source.samples()
            samples = []
            for item in items:
                if isinstance(item, Sample):
                    samples.append(item)
                if len(samples) == 8:
                    break
            got = [dict(zip(CHANNELS, s.data.tolist(), strict=True)) for s in samples]
            moving = [one for one in got if not math.isnan(one["speed"])]
            assert len(moving) >= 6
            assert all(one["speed"] == pytest.approx(20, abs=0.01) for one in moving)
            assert all(40.4 < one["latitude"] < 40.6 for one in got)
            gpsd.kill()
            with pytest.raises(FusedgeError, match="gpsd has closed the connection"):
                list(items)
            source.close()
            gpsd = RealGpsd(log, port)
    finally:
        gpsd.kill()
