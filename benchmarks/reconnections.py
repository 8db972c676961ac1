"""What is left of a device that comes and goes: `python -m benchmarks.reconnections`.

Each of these is lost and found again a thousand times, those that take seconds to open 50 times, by the
runtime's own feed, with a back-off of 10 ms: a GPS receiver, an OBD adapter and a CAN adapter on
pseudo-terminals that vanish, a camera whose process crashes, and a network camera whose server is killed.
Memory is that of this process, after a fifth of the times and at the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Figure, at_most, exactly, main
from fusedge.devices.capture.address import parse
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.source import SCHEMES, Source, open_source
from fusedge.runtime import backoff
from fusedge.runtime.clock import LiveClock
from fusedge.runtime.feed import PumpedFeed
from tests.devices.elm327_adapter import Adapter
from tests.devices.nmea_log import rmc
from tests.devices.slcan_adapter import Lawicel
from tests.devices.test_gps import Receiver
from tests.media_clip import write_clip
from tests.rtsp_server import RtspServer

PATIENCE_S = 60.0
DBC = 'VERSION ""\nBU_: A\nBO_ 180 M: 1 A\n SG_ S : 0|8@1+ (1,0) [0|255] "" A\n'


class Device(NamedTuple):
    """What can be lost, at `uri`, and found again; `poke` makes it say something."""

    uri: str
    lose: Callable[[], object]
    find: Callable[[], object]
    poke: Callable[[], object] = lambda: None


class Left(NamedTuple):
    memory_mb: float
    threads: int
    files: int


def left() -> Left:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Left(pages * 4096 / 1e6, threading.active_count(), len(os.listdir("/proc/self/fd")))


def flap(device: Device, times: int, open_uri: Callable[[], Source]) -> tuple[Left, Left]:
    """Lose and find it; what there was after a fifth of the times and at the end."""
    clock = LiveClock()
    feed = PumpedFeed([(open_uri(), open_uri)], clock, PATIENCE_S)
    feed.start()

    def wait_for(
        happened: Callable[[dict[str, int]], bool], poke: Callable[[], object] = lambda: None
    ) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            feed.take(None)
            feed.supervise(clock.now_ns())
            (report,) = feed.report().values()
            if happened(report):
                return
            assert time.monotonic() < end, report
            poke()
            time.sleep(0.005)

    early = None
    for number in range(times):
        (report,) = feed.report().values()
        received = report["received"]
        wait_for(lambda report, received=received: report["received"] > received, device.poke)  # type: ignore[misc]
        device.lose()
        wait_for(lambda report, number=number: report["failures"] > number)  # type: ignore[misc]
        device.find()
        wait_for(lambda report, number=number: report["restarts"] > number)  # type: ignore[misc]
        if number == times // 5:
            early = left()
    late = left()
    feed.stop()
    assert not feed.join(5)
    assert early is not None
    return early, late


class Gps:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "ttyGPS"
        self.uri = f"gps:{self._path}?baud=9600"
        self.find()

    def find(self) -> None:
        self._receiver = Receiver()
        self._receiver.keep_sending(rmc, every_s=0.01)
        self._path.symlink_to(self._receiver.path)

    def lose(self) -> None:
        self._path.unlink()
        self._receiver.vanish()


class Can:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        dbc = folder / "car.dbc"
        dbc.write_text(DBC)
        self.find()
        self.uri = (
            f"can:{self._adapter.path}?interface=slcan&bitrate=500000&dbc={dbc}&map={{s: M.S 1}}"
        )

    def find(self) -> None:
        self._adapter = Lawicel(self._folder)

    def lose(self) -> None:
        self._adapter.unplug()

    def poke(self) -> None:
        self._adapter.frame(b"\1")


class Obd:
    def __init__(self, folder: Path) -> None:
        self._adapter = Adapter(folder)
        self.uri = f"obd:{self._adapter.path}"
        self.lose = self._adapter.unplug

    def find(self) -> None:
        self._adapter.asked.clear()  # its own notes of what it was asked
        self._adapter.plug()


class Network:
    def __init__(self, folder: Path) -> None:
        self._film = write_clip(folder / "film.mp4", 30, options={"g": "25", "bf": "0"})
        self._server = RtspServer(self._film)
        self.uri = self._server.uri()

    def lose(self) -> None:
        self._server.kill()

    def find(self) -> None:
        self._server = RtspServer(self._film, port=self._server.port)


def opener(uri: str) -> Callable[[], Source]:
    return lambda: open_source(uri, None, time.monotonic_ns)


def crashing(times: int) -> tuple[Left, Left]:
    uri = "camera:bench"
    device = Device(uri, lambda: None, lambda: None)

    def open_uri() -> Source:
        opener = "tests.devices.child_sources:crashing"
        return IsolatedSource(uri, parse(uri, SCHEMES), None, opener=opener)

    return flap(device, times, open_uri)


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    backoff.FIRST_S = backoff.LONGEST_S = 0.01
    times, slow = int(arguments.times), int(arguments.slow)
    figures: list[Figure] = []

    def tell(name: str, count: int, early: Left, late: Left) -> None:
        grown = late.memory_mb - early.memory_mb
        figures.append(at_most(f"{name}, {count} times: memory in the last 80 %", grown, 1.0, "MB"))
        same = f"{late.threads - early.threads} threads, {late.files - early.files} files"
        figures.append(exactly("the same: more than there were", same, "0 threads, 0 files"))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gps, can, obd = Gps(folder), Can(folder), Obd(folder)
        for label, count, device in (
            ("GPS receiver", times, Device(gps.uri, gps.lose, gps.find)),
            ("OBD adapter", times, Device(obd.uri, obd.lose, obd.find)),
            ("CAN adapter", slow, Device(can.uri, can.lose, can.find, can.poke)),
        ):
            tell(label, count, *flap(device, count, opener(device.uri)))
        tell("camera whose process crashes", times, *crashing(times))
        server = Network(folder)
        camera = Device(server.uri, server.lose, server.find)
        tell("network camera", slow, *flap(camera, slow, opener(server.uri)))
        server.lose()
        obd.lose()
        gps.lose()
        can.lose()
    return figures


if __name__ == "__main__":
    main(__doc__, measure, times=1000, slow=50)
