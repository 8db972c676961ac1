"""What it costs to read a camera in a process of its own: `python -m benchmarks.handover`.

A child process makes VGA images at 30 Hz, filled but not computed; the time counts from the finished
image in the child to the moment that the reader has it. Beside it in the same run: the same
images, one by one in turn, as bytes through a pipe of multiprocessing, which is what one would do without
a ring, and eight bytes through a bare pipe, below which nothing in Python can come.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.figures import Figure, at_most, main, told
from fusedge.bundle.sample import Sample
from fusedge.devices.capture.address import Request, parse
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.source import SCHEMES

SHAPE = (480, 640, 3)
PERIOD_S = 1 / 30


class Camera:
    """Images at 30 Hz, stamped when they are finished."""

    live = True
    uri = "camera:bench"
    modalities = ("view",)
    channels: Mapping[str, tuple[str, ...]] = {"view": ("r", "g", "b")}
    units: Mapping[str, tuple[str, ...]] = {}
    warnings: tuple[str, ...] = ()

    def __init__(self, request: Request) -> None:
        self._request = request

    def samples(self) -> Iterator[Sample]:
        for number in range(1 << 40):
            time.sleep(PERIOD_S)
            image = self._request.allocate(SHAPE)
            image.fill(number % 256)
            now_ns = self._request.now_ns()
            yield Sample("view", now_ns, now_ns, image)

    def close(self) -> None:
        """Its process is ended."""


def open_camera(request: Request) -> Camera:
    return Camera(request)


def _pipe(connection: Connection, whole: bool) -> None:
    image = np.empty(SHAPE, np.uint8)
    for number in range(1 << 40):
        time.sleep(PERIOD_S)
        image.fill(number % 256)
        stamp = time.monotonic_ns().to_bytes(8, "little")
        connection.send_bytes(stamp)
        if whole:
            connection.send_bytes(image.data.cast("B"))


def _ring_us(frames: int) -> list[float]:
    uri = "camera:bench"
    source = IsolatedSource(
        uri, parse(uri, SCHEMES), None, opener="benchmarks.handover:open_camera"
    )
    times, kept = [], None
    for number, sample in enumerate(source.samples()):
        times.append((time.monotonic_ns() - sample.arrival_ns) / 1e3)
        kept = sample  # as the runtime does: until the next one is there
        if number == frames:
            break
    assert kept is not None
    source.close()
    return times[1:]


def _pipe_us(frames: int, whole: bool) -> list[float]:
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_pipe, args=(writer, whole), daemon=True)
    process.start()
    times = []
    for _ in range(frames + 1):
        sent_ns = int.from_bytes(reader.recv_bytes(), "little")
        if whole:
            np.frombuffer(reader.recv_bytes(), np.uint8).reshape(SHAPE)
        times.append((time.monotonic_ns() - sent_ns) / 1e3)
    process.kill()
    process.join()
    return times[1:]


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    rounds = int(arguments.rounds)
    ring: list[float] = []
    pipe: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):
        ring += _ring_us(arguments.frames // rounds)
        pipe += _pipe_us(arguments.frames // rounds, True)
        bare += _pipe_us(arguments.frames // rounds, False)
    return [
        at_most("VGA image through the ring, p50", float(np.median(ring)), 100, "µs"),
        told("the same, p99", float(np.percentile(ring, 99)), "µs"),
        told("eight bytes through a pipe, p50", float(np.median(bare)), "µs"),
        told("VGA image through a pipe, p50", float(np.median(pipe)), "µs"),
        told("the same, p99", float(np.percentile(pipe, 99)), "µs"),
        told("ring to pipe, p50", float(np.median(ring) / np.median(pipe)), "times"),
    ]


if __name__ == "__main__":
    main(__doc__, measure, frames=600, rounds=3)
