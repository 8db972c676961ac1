"""A GPS receiver at a USB serial port with the kernel's driver: fixes, pulling out, plugging in."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.fixes import CHANNELS
from fusedge.devices.capture.source import Source, open_source
from tests.devices.nmea_log import gga, rmc
from tests.drivers.gadgets import UsbSerial

URI = "gps:by-id/usb-Fusedge_Test_Serial_GPS-if00"


@contextmanager
def receiver() -> Iterator[UsbSerial]:
    """Sends a burst of sentences ten times a second, plugged in or not."""
    stop = threading.Event()
    with UsbSerial("GPS") as device:

        def send() -> None:
            second = 0
            while not stop.wait(0.1):
                device.send(rmc(second) + gga(second))
                second += 1

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield device
        finally:
            stop.set()
            thread.join()


def gps() -> Source:
    return open_source(URI, None, time.monotonic_ns)


def fixes(source: Source, count: int) -> list[Sample]:
    found = []
    items = source.samples()
    for item in items:
        if isinstance(item, Sample):
            found.append(item)
        if len(found) == count:
            break
    source.close()
    items.close()  # type: ignore[attr-defined]
    return found


def test_fixes_come_from_a_port_that_is_named_by_its_id() -> None:
    with receiver() as device:
        device.plug()
        first, second, third = fixes(gps(), 3)
        row = dict(zip(CHANNELS, third.data.tolist(), strict=True))
        assert row["speed"] == pytest.approx(20, abs=1e-3)
        assert row["latitude"] == pytest.approx(40.5) and row["altitude"] == 610
        assert first.stamp == second.stamp == "capture"


def test_pulled_out_and_plugged_in_again_ten_times_leaves_nothing() -> None:
    fds = threads = 0
    with receiver() as device:
        for turn in range(10):
            device.plug()
            source = gps()
            items = source.samples()
            while isinstance(next(items), Rejection):
                pass
            device.unplug()
            with pytest.raises(FusedgeError, match="the receiver is gone"):
                for _ in items:
                    pass
            source.close()
            with pytest.raises(FusedgeError, match="no device by-id/usb-Fusedge_Test_Serial_GPS"):
                gps()
            gc.collect()
            if turn == 1:
                fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        assert len(os.listdir("/proc/self/fd")) <= fds
        assert threading.active_count() <= threads
