"""Sources that misbehave in a process of their own: openers for IsolatedSource, named `module:function`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request

HEIGHT, WIDTH = 480, 640


class Frames:
    """`number` images, each filled with its number, then what `after` does."""

    live = True
    modalities = ("view",)
    channels: Mapping[str, tuple[str, ...]] = {"view": ("r", "g", "b")}
    units: Mapping[str, tuple[str, ...]] = {}
    warnings: tuple[str, ...] = ("as asked for",)

    def __init__(
        self, request: Request, number: int, after: Callable[[], object] = lambda: None
    ) -> None:
        self.uri = request.address.uri
        spec = (request.wanted or {}).get("view")
        self._shape = (spec.height, spec.width, 3) if spec else (HEIGHT, WIDTH, 3)
        self._request, self._number, self._after = request, number, after
        self._closed = threading.Event()
        self.period_s = 0.002

    def samples(self) -> Iterator[Sample | Rejection]:
        for number in range(self._number):
            if self._closed.wait(self.period_s):
                return
            image = self._request.allocate(self._shape)
            image[:] = number % 251
            now_ns = self._request.now_ns()
            yield Sample("view", now_ns, now_ns, image)
        yield Rejection("view", self._request.now_ns(), "stale", "one", 3)
        self._after()

    def close(self) -> None:
        self._closed.set()


def ten(request: Request) -> Frames:
    return Frames(request, 10)


def endless(request: Request) -> Frames:
    return Frames(request, 1 << 40)


def crashing(request: Request) -> Frames:
    return Frames(request, 2, lambda: os.kill(os.getpid(), signal.SIGSEGV))


def hanging(request: Request) -> Frames:
    return Frames(request, 2, lambda: time.sleep(3600))


def raising(request: Request) -> Frames:
    def fail() -> None:
        raise request.address.error("the camera is gone", hint="plug it in")

    return Frames(request, 2, fail)


def breaking(request: Request) -> Frames:
    return Frames(request, 2, lambda: [][1])


def refusing(request: Request) -> Frames:
    raise request.address.error("no such camera", hint="there is none")


def never(request: Request) -> Frames:
    time.sleep(3600)
    raise AssertionError


def leaving(request: Request) -> Frames:
    os._exit(3)


class Hoarder(Frames):
    """Holds several images before it hands them over, as a decoder does; drops every third one."""

    def samples(self) -> Iterator[Sample | Rejection]:
        held = []
        for number in range(self._number):
            image = self._request.allocate(self._shape)
            image[:] = number
            if number % 3:
                held.append(Sample("view", number, number, image))
            if len(held) == 5:
                yield from held
                held.clear()


def hoarding(request: Request) -> Frames:
    return Hoarder(request, 120)


class Sound(Frames):
    """Blocks of sound of all sizes, as large as an hour's."""

    modalities = ("sound",)
    channels: Mapping[str, tuple[str, ...]] = {"sound": ("m",)}

    def samples(self) -> Iterator[Sample | Rejection]:
        for size in (1, 160, 5000, 200_000):
            block = np.arange(size, dtype=np.float32)[:, None]
            yield Sample("sound", size, size, block, "arrival")


def sound(request: Request) -> Frames:
    return Sound(request, 0)
