from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request, Wanted, parse
from fusedge.devices.capture.rtsp import (
    MAX_WAIT_NS,
    MAX_WAITING_BYTES,
    Backlog,
    NetworkCamera,
    Received,
    open_stream,
)
from fusedge.devices.capture.source import SCHEMES, open_source
from fusedge.runtime.sound_stream import SoundStream
from tests.devices.modalities import audio, by_name, image
from tests.media_clip import write_clip
from tests.rtsp_server import RtspServer, missing
from tests.runtime.streams import MS, run

pytestmark = pytest.mark.real_time
SECOND = 1_000_000_000
BOTH = by_name(image("camera", 24, 32), audio("microphone", 16_000))
PASSWORD = "p@ss:word/1"
ESCAPED = "p%40ss%3Aword%2F1"

if reason := missing():
    pytest.skip(f"no RTSP server: {reason}", allow_module_level=True)


def opened(uri: str, wanted: Wanted = None) -> NetworkCamera:
    return open_stream(Request(parse(uri, SCHEMES), wanted, time.monotonic_ns))


def refusal(uri: str, wanted: Wanted = None) -> str:
    with pytest.raises(FusedgeError) as caught:
        opened(uri, wanted).close()
    assert "\n" not in caught.value.line()
    return caught.value.line()


def until(source: NetworkCamera, seconds: float) -> list[Sample | Rejection]:
    """What comes until so long after the first sample."""
    items: list[Sample | Rejection] = []
    start_ns = None
    for item in source.samples():
        items.append(item)
        if isinstance(item, Sample):
            start_ns = start_ns or item.arrival_ns
            if item.arrival_ns - start_ns > seconds * SECOND:
                source.close()
    return items


def samples(items: list[Sample | Rejection], modality: str) -> list[Sample]:
    return [item for item in items if isinstance(item, Sample) and item.modality == modality]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_clip(path, 30, options={"g": "25", "bf": "0", "preset": "ultrafast"})


@pytest.fixture(scope="module")
def server(film: Path) -> Iterator[RtspServer]:
    with RtspServer(film) as server:
        yield server


@pytest.mark.parametrize("packet_ms", [20, 160])
def test_sound_in_long_packets_is_used(film: Path, packet_ms: int) -> None:
    """From 8 kHz, at which the resampler gives 0.1 s at once, however short the packets are."""
    fields = {"window_s": 0.1, "hop_s": 0.1, "lateness_s": 0.1, "max_age_s": 1.0, "min_valid": 1.0}
    spec = BOTH["microphone"].model_copy(update=fields)
    with RtspServer(film, packet_ms=packet_ms) as server:
        sound = samples(until(opened(server.uri(), by_name(spec)), 3.0), "microphone")
    assert max(len(block.data) for block in sound) / 16_000 > 0.9 * max(0.1, packet_ms / 1000)
    windows = run(SoundStream(spec), sound, sound[-1].arrival_ns / MS)
    assert len(windows) > 20
    assert sum(not window.complete for window in windows[2:]) <= 1  # the machine is not alone here


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_pictures_and_sound_come_live_on_one_clock(server: RtspServer, transport: str) -> None:
    source = opened(server.uri(options=f"transport={transport}"), BOTH)
    assert source.live
    assert source.modalities == ("camera", "microphone")
    assert not source.warnings
    items = until(source, 2.6)
    arrivals = [item.arrival_ns for item in items]
    assert arrivals == sorted(arrivals)
    pictures, sound = samples(items, "camera"), samples(items, "microphone")
    for sample in pictures + sound:
        assert sample.stamp == "capture"
        assert 0 <= sample.arrival_ns - sample.timestamp_ns < 0.5 * SECOND
    assert {p.data.shape for p in pictures} == {(24, 32, 3)}
    assert {b.data.shape[1:] for b in sound} == {(1,)}
    assert len(pictures) > 40
    steps = np.diff([p.timestamp_ns for p in pictures[5:]]) / SECOND
    assert np.median(steps) == pytest.approx(0.04, abs=0.002)
    bright = [p.data[:, 16:].mean() > 120 for p in pictures]
    seen = [
        pictures[n].timestamp_ns / SECOND
        for n in range(1, len(pictures))
        if bright[n] and not bright[n - 1]
    ]
    heard: list[float] = []
    for block in sound:
        loud = np.flatnonzero(np.abs(block.data[:, 0]) > 0.1)
        if len(loud):
            begin_s = block.timestamp_ns / SECOND - (len(block.data) - 1 - loud[0]) / 16_000
            if not heard or begin_s - heard[-1] > 0.5:
                heard.append(begin_s)
    pairs = [(s, min(heard, key=lambda h: abs(h - s))) for s in seen]
    assert len(pairs) >= 2
    for flash_s, beep_s in pairs:
        assert flash_s == pytest.approx(beep_s, abs=0.05)


def test_what_came_before_the_source_was_ready_is_stale(server: RtspServer) -> None:
    items = until(opened(server.uri(), BOTH), 0.5)
    first = samples(items, "camera")[0]
    before = items[: items.index(first)]
    stale = Counter(r.modality for r in before if isinstance(r, Rejection) and r.reason == "stale")
    assert stale["camera"] > 0
    assert first.arrival_ns - first.timestamp_ns < 0.2 * SECOND


def test_who_joins_between_key_pictures_gets_whole_ones_only(tmp_path: Path) -> None:
    options = {"g": "75", "bf": "0", "preset": "ultrafast", "sc_threshold": "0"}
    film = write_clip(tmp_path / "film.mp4", 12, options=options)
    with RtspServer(film, shared=True) as server:
        first = opened(server.uri(), BOTH)
        reader = threading.Thread(target=lambda: list(first.samples()))
        reader.start()
        time.sleep(0.3)
        items = until(opened(server.uri(), {"camera": BOTH["camera"]}), 0.2)
        first.close()
        reader.join()
    pictures = samples(items, "camera")
    assert pictures  # red at the left edge, which no picture has that is made up
    assert all(p.data[:, :6, 0].mean() > 150 > p.data[:, :6, 1].mean() for p in pictures)
    assert sum(isinstance(item, Rejection) and item.reason == "stale" for item in items) > 3


def test_only_what_is_wanted_is_asked_of_the_server(server: RtspServer) -> None:
    items = until(opened(server.uri(), {"microphone": BOTH["microphone"]}), 0.3)
    assert {item.modality for item in items} == {"microphone"}


def test_a_reader_that_is_slow_gets_new_pictures_and_the_rest_is_counted(
    server: RtspServer,
) -> None:
    source = opened(server.uri(), BOTH)
    ages_s: list[float] = []
    counts: Counter[str] = Counter()
    for item in source.samples():
        if isinstance(item, Rejection):
            counts[item.reason] += item.modality == "camera"
        elif item.modality == "camera":
            counts["sample"] += 1
            ages_s.append((item.arrival_ns - item.timestamp_ns) / SECOND)
            time.sleep(0.3)  # 7 periods
            if len(ages_s) == 6:
                source.close()
    assert max(ages_s) < 0.6  # and does not grow to 6 times 0.3 s
    assert counts["stale"] > 20


def test_a_server_that_dies_is_an_error_and_its_return_is_found(film: Path) -> None:
    server = RtspServer(film)
    source = opened(server.uri(), BOTH)
    with pytest.raises(FusedgeError, match="the server has ended the stream"):
        for item in source.samples():
            if isinstance(item, Sample):
                server.kill()
    source.close()
    assert "connection refused" in refusal(server.uri())
    with RtspServer(film, port=server.port) as again:
        assert samples(until(opened(again.uri(), BOTH), 0.2), "camera")


def test_a_server_that_falls_silent_is_an_error(film: Path) -> None:
    with RtspServer(film) as server:
        source = opened(server.uri(), BOTH)
        silent_ns = 0
        try:
            with pytest.raises(FusedgeError, match="silent for 2 s"):
                for item in source.samples():
                    if isinstance(item, Sample) and not silent_ns:
                        server.signal(signal.SIGSTOP)
                        silent_ns = time.monotonic_ns()
        finally:
            server.signal(signal.SIGCONT)
        assert time.monotonic_ns() - silent_ns < 5 * SECOND
        source.close()


def test_a_server_with_a_password_is_opened_with_it_only_and_it_is_never_shown(
    film: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RtspServer(film, login=f"driver:{PASSWORD}") as server:
        lines = [
            refusal(server.uri()),
            refusal(server.uri(login="driver:wrong-secret")),
            refusal(server.uri("/nothing", login=f"driver:{ESCAPED}")),
        ]
        source = opened(server.uri(login=f"driver:{ESCAPED}"), BOTH)
        assert samples(until(source, 0.2), "camera")
    assert "the server wants a password" in lines[0]
    assert "refuses this user or password" in lines[1]
    assert "no such stream" in lines[2]
    out, err = capfd.readouterr()
    for text in (*lines, source.uri, *source.warnings, out, err):
        assert "driver" not in text
        assert "secret" not in text
        assert ESCAPED not in text
        assert PASSWORD not in text


def test_each_way_not_to_be_reached_has_a_line_of_its_own(server: RtspServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    assert "the server has no such stream" in refusal(server.uri("/nothing"))
    assert "connection refused" in refusal(f"rtsp://127.0.0.1:{closed}/live")
    assert "there is no such host" in refusal("rtsp://nowhere.invalid/live")
    assert "cannot be opened" in refusal("rtsp://127.0.0.1:port/live")
    assert "did you mean 'tcp'" in refusal(server.uri(options="transport=tpc"))
    assert "unknown decoder" in refusal(server.uri(options="decoder=gpu"))


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedge.devices.capture.rtsp.OPEN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        line = refusal(f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/live")
    assert "no answer within 0.5 s" in line


def test_close_ends_a_waiting_reader_at_once(film: Path) -> None:
    with RtspServer(film) as server:
        source = opened(server.uri(), BOTH)
        ended_ns: list[int] = []

        def read() -> None:
            for _ in source.samples():
                started.set()
            ended_ns.append(time.monotonic_ns())

        started = threading.Event()
        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(10)
        server.signal(signal.SIGSTOP)  # so that it waits
        time.sleep(0.3)
        closed_ns = time.monotonic_ns()
        source.close()
        source.close()
        reader.join(2)
        server.signal(signal.SIGCONT)
        assert ended_ns and ended_ns[0] - closed_ns < 0.2 * SECOND


def test_a_source_closed_before_it_is_read_gives_nothing(server: RtspServer) -> None:
    source = opened(server.uri(), BOTH)
    source.close()
    source.close()
    assert list(source.samples()) == []


def test_nothing_is_left_of_streams_that_were_opened(server: RtspServer) -> None:
    closed = f"rtsp://127.0.0.1:{server.port}/nothing"

    def use(read: bool) -> None:
        source = opened(server.uri(), {"microphone": BOTH["microphone"]})
        if read:
            next(source.samples())
        source.close()
        refusal(closed)

    def left() -> tuple[int, int]:
        deadline_ns = time.monotonic_ns() + 5 * SECOND
        while threading.active_count() > threads and time.monotonic_ns() < deadline_ns:
            time.sleep(0.01)
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    threads = threading.active_count()
    use(read=True)
    before = left()
    for number in range(20):
        use(read=number % 2 == 0)
    assert left() == before


def test_a_stream_is_read_in_a_process_of_its_own(server: RtspServer) -> None:
    source = open_source(server.uri(), BOTH, time.monotonic_ns)
    kinds: set[str] = set()
    for item in source.samples():
        if isinstance(item, Sample):
            kinds.add(item.modality)
        if len(kinds) == 2:
            break
    source.close()
    assert kinds == {"camera", "microphone"}


def packet(arrival_ms: int, key: bool | None = False, size: int = 1000, stream: int = 0) -> Any:
    return Received(None, stream, arrival_ms * 1_000_000, False, key, 1, size)


def taken(backlog: Backlog) -> list[Received]:
    backlog.end("over")
    return list(iter(backlog.take, None))


def test_a_backlog_of_a_second_is_dropped_up_to_the_newest_key_picture() -> None:
    backlog = Backlog()
    for n in range(11):
        backlog.put(packet(n * 100, key=n in (0, 4, 8)))
    assert len(backlog.take_dropped()) == 0
    backlog.put(packet(1100))
    assert backlog.take_dropped() == {0: 8}
    assert [p.arrival_ns // 100_000_000 for p in taken(backlog)] == [8, 9, 10, 11]


def test_without_a_key_picture_all_is_dropped_until_one_comes_but_sound_goes_on() -> None:
    backlog = Backlog()
    for n in range(12):
        backlog.put(packet(n * 100, key=n == 0))
    backlog.put(packet(1200))
    backlog.put(packet(1210, key=None, stream=1))
    backlog.put(packet(1300, key=True))
    backlog.put(packet(1400))
    assert backlog.take_dropped() == {0: 13}
    assert [(p.stream, p.arrival_ns // 10_000_000) for p in taken(backlog)] == [
        (1, 121),
        (0, 130),
        (0, 140),
    ]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from([True, False, None]),
            st.sampled_from([10, 1 << 22, MAX_WAITING_BYTES]),
            st.booleans(),
        )
    )
)
def test_a_backlog_is_bounded_and_accounts_for_all(
    steps: list[tuple[int, bool | None, int, bool]],
) -> None:
    backlog = Backlog()
    waiting: list[Received] = []
    now_ms = dropped = got = 0
    for wait_ms, key, size, take in steps:
        now_ms += wait_ms
        backlog.put(packet(now_ms, key, size))
        if take and backlog._waiting:
            assert backlog.take() is not None
            got += 1
        dropped += sum(backlog.take_dropped().values())
        waiting = list(backlog._waiting)
        assert sum(p.size for p in waiting) <= MAX_WAITING_BYTES
        assert all(now_ms * 1_000_000 - p.arrival_ns <= MAX_WAIT_NS for p in waiting)
    assert got + dropped + len(waiting) == len(steps)
