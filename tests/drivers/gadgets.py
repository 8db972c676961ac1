"""USB devices to plug in and pull out: a camera, a microphone, a serial port."""

from __future__ import annotations

import struct
import threading
import time

import numpy as np

from tests.drivers.usbip import (
    FULL_SPEED,
    Setup,
    StallError,
    Transfer,
    UsbDevice,
    descriptor,
    endpoint,
    interface,
)

_GET_CUR, _GET_INFO = 0x81, 0x86


class UsbCamera(UsbDevice):
    """A camera of the video class, driven by `uvcvideo`: 320 x 240 YUYV at 10 frames a second.

    Its picture is a plain grey of the level `grey`. `frozen` keeps it plugged in but silent.
    """

    WIDTH, HEIGHT, INTERVAL_S = 320, 240, 0.1
    device_class = (0xEF, 2, 1)  # what has interfaces in groups
    product = 2
    PAYLOAD = 16384  # 32 packets of 512 bytes, the most that the driver asks for at once

    def __init__(self, serial: str | None, name: str = "Test Camera", grey: int = 128) -> None:
        super().__init__(name, serial, self._describe(), count=2)
        self.grey = grey
        self.frozen = False
        self._probe = self._offer()

    def _describe(self) -> bytes:
        camera = descriptor(0x24, struct.pack("<BBHBBHHHBH", 2, 1, 0x201, 0, 0, 0, 0, 0, 2, 0))
        stream = descriptor(0x24, struct.pack("<BBHBBB", 3, 2, 0x101, 0, 1, 0))
        units = camera + stream
        head = struct.pack("<BHHIBB", 1, 0x100, 13 + len(units), 1_000_000, 1, 1)
        control = interface(0, 0, 0, (0x0E, 1, 0)) + descriptor(0x24, head) + units
        yuyv = bytes.fromhex("5955593200001000800000aa00389b71")
        pictures = descriptor(0x24, struct.pack("<BBB16s6B", 4, 1, 1, yuyv, 16, 1, 0, 0, 0, 0))
        size = self.WIDTH * self.HEIGHT * 2
        interval = round(self.INTERVAL_S * 1e7)
        rate = round(size * 8 / self.INTERVAL_S)
        frame = struct.pack(
            "<BBBHHIIII", 5, 1, 0, self.WIDTH, self.HEIGHT, rate, rate, size, interval
        )
        pictures += descriptor(0x24, frame + struct.pack("<BI", 1, interval))
        head = struct.pack("<BBHBBBBBBBB", 1, 1, 14 + len(pictures), 0x81, 0, 2, 0, 0, 0, 1, 0)
        streaming = interface(1, 0, 1, (0x0E, 2, 0)) + descriptor(0x24, head) + pictures
        group = descriptor(0x0B, bytes([0, 2, 0x0E, 3, 0, 0]))
        return group + control + streaming + endpoint(0x81, 2, 512, 0)

    def _offer(self) -> bytes:
        """The one way to stream, as the answer to every proposal."""
        interval = round(self.INTERVAL_S * 1e7)
        size = self.WIDTH * self.HEIGHT * 2
        return struct.pack("<HBBI5HII", 0, 1, 1, interval, 0, 0, 0, 0, 0, size, self.PAYLOAD)

    def control(self, setup: Setup, data: bytes) -> bytes:
        """Agree on how to stream."""
        if setup.about & 0xFF != 1:
            raise StallError
        return b"\x03" if setup.request == _GET_INFO else self._probe

    def work(self) -> None:
        """Send pictures to who reads."""
        parity = 0
        while self.plugged:
            start = time.monotonic()
            if not self.frozen and (first := self.transfer(1, 1)) is not None:
                parity ^= 1
                self._send_frame(first, parity)
            time.sleep(max(0.0, start + self.INTERVAL_S - time.monotonic()))

    def _send_frame(self, transfer: Transfer | None, parity: int) -> None:
        picture = bytes([self.grey, 128]) * (self.WIDTH * self.HEIGHT)
        step = self.PAYLOAD - 2
        for start in range(0, len(picture), step):
            if transfer is None:
                return  # nobody reads any longer
            last = start + step >= len(picture)
            self.complete(
                transfer, bytes([2, 0x80 | last << 1 | parity]) + picture[start : start + step]
            )
            if not last:
                transfer = self.transfer(1, 1)


class UsbMicrophone(UsbDevice):
    """A microphone of the audio class, driven by `snd-usb-audio`: one channel of 16 bits.

    It hears a tone of `tone_hz`. `frozen` keeps it plugged in but silent.
    """

    product = 3
    speed = FULL_SPEED
    isochronous = frozenset({1})

    def __init__(
        self,
        serial: str | None,
        name: str = "Test Microphone",
        rate_hz: int = 48000,
        tone_hz: float = 440.0,
    ) -> None:
        self.rate_hz = rate_hz
        self.tone_hz = tone_hz
        self.frozen = False
        super().__init__(name, serial, self._describe(), count=2)

    def _describe(self) -> bytes:
        units = descriptor(0x24, struct.pack("<BBHBBHBB", 2, 1, 0x201, 0, 1, 0, 0, 0))
        units += descriptor(0x24, struct.pack("<BBHBBB", 3, 2, 0x101, 0, 1, 0))
        head = descriptor(0x24, struct.pack("<BHHBB", 1, 0x100, 9 + len(units), 1, 1))
        control = interface(0, 0, 0, (1, 1, 0)) + head + units
        sound = descriptor(0x24, struct.pack("<BBBH", 1, 2, 1, 1))
        rate = self.rate_hz.to_bytes(3, "little")
        sound += descriptor(0x24, bytes([2, 1, 1, 2, 16, 1]) + rate)
        sound += endpoint(0x81, 5, self.rate_hz // 1000 * 2 + 2, 1, bytes(2))
        sound += descriptor(0x25, bytes([1, 0, 0, 0, 0]))
        idle = interface(1, 0, 0, (1, 2, 0))
        return control + idle + interface(1, 1, 1, (1, 2, 0)) + sound

    def work(self) -> None:
        """Send sound to who reads."""
        sent = 0
        due = time.monotonic()
        while self.plugged:
            if self.frozen or (transfer := self.transfer(1, 0.1)) is None:
                time.sleep(0.01)
                due = time.monotonic()
                continue
            # One packet is a millisecond; a transfer is complete when its last one is through.
            samples = self.rate_hz * len(transfer.packets) // 1000
            due += len(transfer.packets) / 1000
            time.sleep(max(0.0, due - time.monotonic()))
            phase = 2 * np.pi * self.tone_hz / self.rate_hz * np.arange(sent, sent + samples)
            sent += samples
            self.complete(transfer, (8000 * np.sin(phase)).astype("<i2").tobytes())


class UsbSerial(UsbDevice):
    """A serial port of the communications class, driven by `cdc-acm`: `/dev/ttyACM0` and so on."""

    product = 4
    device_class = (0xEF, 2, 1)

    def __init__(self, serial: str | None, name: str = "Test Serial") -> None:
        super().__init__(name, serial, self._describe(), count=2)
        self._coding = struct.pack("<IBBB", 9600, 0, 0, 8)
        self._heard = bytearray()
        self._outgoing = bytearray()
        self._news = threading.Condition()

    def _describe(self) -> bytes:
        group = descriptor(0x0B, bytes([0, 2, 2, 2, 1, 0]))
        control = interface(0, 0, 1, (2, 2, 1))
        for content in ((0, 0x10, 1), (1, 0, 1), (2, 2), (6, 0, 1)):
            control += descriptor(0x24, bytes(content))
        control += endpoint(0x82, 3, 8, 9)
        data = (
            interface(1, 0, 2, (10, 0, 0)) + endpoint(0x81, 2, 512, 0) + endpoint(0x03, 2, 512, 0)
        )
        return group + control + data

    def control(self, setup: Setup, data: bytes) -> bytes:
        """Speed and lines are noted; they change nothing here."""
        if setup.request == 0x20:
            self._coding = data
        return self._coding

    def send(self, data: bytes) -> None:
        """Have the machine read these bytes; kept until it opens the port, lost at unplugging."""
        with self._news:
            self._outgoing += data
            self._news.notify_all()

    def heard(self, count: int, limit_s: float = 5) -> bytes:
        """The next bytes that the machine has written, `count` unless that takes too long."""
        with self._news:
            self._news.wait_for(lambda: len(self._heard) >= count, limit_s)
            data = bytes(self._heard[:count])
            del self._heard[:count]
            return data

    def written(self, number: int, data: bytes) -> None:
        """Keep it for `heard`."""
        with self._news:
            self._heard += data
            self._news.notify_all()

    def work(self) -> None:
        """Send what `send` was given."""
        with self._news:
            self._outgoing.clear()
            self._heard.clear()
        while self.plugged:
            with self._news:
                if not self._news.wait_for(lambda: self._outgoing, 0.1):
                    continue
            transfer = self.transfer(1, 0.1)
            if transfer is None:
                continue
            with self._news:
                data = bytes(self._outgoing[: transfer.length])
                del self._outgoing[: transfer.length]
            self.complete(transfer, data)
