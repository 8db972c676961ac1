"""The guest has the devices that the other tests rely on, and they can be unplugged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import can
import cv2
import numpy as np
import pytest
import serial
import sounddevice

from tests.drivers.gadgets import UsbCamera, UsbMicrophone, UsbSerial
from tests.drivers.kernel import (
    BUS_OFF,
    bind_vivid,
    bus_info,
    can_error,
    can_link,
    can_send,
    reload_vivid,
    set_control,
    unbind_vivid,
)
from tests.drivers.usbip import wait_for

CARDS = Path("/proc/asound/cards")


def frames(device: str, count: int) -> list[tuple[np.ndarray[Any, Any], float]]:
    """Frames of a camera, each with the age of its time stamp in seconds."""
    camera = cv2.VideoCapture(device, cv2.CAP_V4L2)
    assert camera.isOpened(), device
    got: list[tuple[np.ndarray[Any, Any], float]] = []
    for _ in range(count):
        good, frame = camera.read()
        assert good, f"{device}: frame {len(got)}"
        got.append((frame, time.monotonic() - camera.get(cv2.CAP_PROP_POS_MSEC) / 1000))
    camera.release()
    return got


def video_nodes(folder: Path) -> list[str]:
    """The nodes of a USB camera: the one with the pictures comes first."""
    names = (path.name for path in folder.glob("*:*/video4linux/video*"))
    return [f"/dev/{name}" for name in sorted(names, key=lambda name: int(name[5:]))]


def tone_hz(samples: np.ndarray[Any, Any], rate_hz: int) -> float:
    """The loudest frequency."""
    spectrum = np.abs(np.fft.rfft(samples.astype(float)))
    return float(np.argmax(spectrum)) * rate_hz / len(samples)


def sound_device(name: str) -> int:
    """PortAudio's number of a device; it looks for devices only when it starts."""
    sounddevice._terminate()
    sounddevice._initialize()
    found = [
        number
        for number, device in enumerate(sounddevice.query_devices())
        if name in device["name"]
    ]
    assert found, (
        f"{name} is not among {[device['name'] for device in sounddevice.query_devices()]}"
    )
    return found[0]


def recorded(device: int, count: int, rate_hz: int) -> np.ndarray[Any, Any]:
    with sounddevice.InputStream(rate_hz, device=device, channels=1, dtype="int16") as stream:
        blocks = [stream.read(count // 10)[0] for _ in range(10)]
    return np.concatenate(blocks)[:, 0]


@pytest.mark.parametrize("number", [0, 1])
def test_a_virtual_camera_gives_frames_with_stamps_of_the_past(number: int) -> None:
    assert bus_info(f"/dev/video{number}") == f"platform:vivid-00{number}"
    got = frames(f"/dev/video{number}", 5)
    assert all(frame.shape == (480, 640, 3) and frame.std() > 10 for frame, _ in got)
    assert all(0 <= age_s < 1 for _, age_s in got), [age_s for _, age_s in got]


def test_virtual_cameras_vanish_and_come_back_with_their_numbers_exchanged() -> None:
    camera = cv2.VideoCapture("/dev/video0", cv2.CAP_V4L2)
    assert camera.read()[0]
    unbind_vivid()
    assert not camera.read()[0]
    camera.release()
    assert not Path("/dev/video0").exists()
    bind_vivid()
    reload_vivid(1, 0)
    assert bus_info("/dev/video1") == "platform:vivid-000"
    assert frames("/dev/video0", 2)
    reload_vivid(0, 1)
    assert bus_info("/dev/video0") == "platform:vivid-000"


def test_one_virtual_camera_can_be_lost_alone() -> None:
    camera = cv2.VideoCapture("/dev/video0", cv2.CAP_V4L2)
    assert camera.read()[0]
    set_control("/dev/video0", "Disconnect", 1)
    assert not camera.read()[0]
    assert frames("/dev/video1", 2)
    camera.release()
    assert frames("/dev/video0", 2)


def test_the_loopback_card_passes_sound() -> None:
    rate_hz = 16000
    played = 0

    def play(block: np.ndarray[Any, Any], count: int, *_: Any) -> None:
        nonlocal played
        block[:, 0] = 8000 * np.sin(2 * np.pi * 500 / rate_hz * np.arange(played, played + count))
        played += count

    player, recorder = sound_device("(hw:0,0)"), sound_device("(hw:0,1)")
    with sounddevice.OutputStream(rate_hz, 1600, player, 1, "int16", callback=play):
        heard = recorded(recorder, rate_hz, rate_hz)
    assert abs(tone_hz(heard[rate_hz // 2 :], rate_hz) - 500) < 10


def test_can_passes_frames_and_errors_and_its_loss() -> None:
    with can.Bus("vcan0", interface="socketcan") as bus:
        can_send(0x123, b"abc")
        can_send(0x18DAF110, b"defg")
        can_error(BUS_OFF)
        first, second, third = (bus.recv(5) for _ in range(3))
        assert first is not None and second is not None and third is not None
        assert (first.arbitration_id, bytes(first.data), first.is_extended_id) == (
            0x123,
            b"abc",
            False,
        )
        assert (second.arbitration_id, second.is_extended_id) == (0x18DAF110, True)
        assert third.is_error_frame and third.arbitration_id == BUS_OFF
        can_link(False)
        with pytest.raises(can.CanOperationError):
            bus.recv(5)
        can_link(True)
        can_send(0x124, b"")
        message = bus.recv(5)
        assert message is not None and message.arbitration_id == 0x124


def test_a_microphone_comes_and_goes_ten_times() -> None:
    with UsbMicrophone("M1") as microphone:
        for _ in range(10):
            folder = microphone.plug()
            assert (folder / "serial").read_text() == "M1\n"
            assert "USB-Audio - Test Microphone" in CARDS.read_text()
            microphone.unplug()
            assert "USB-Audio" not in CARDS.read_text()


def test_a_microphone_is_heard_and_lost_and_heard_again() -> None:
    with UsbMicrophone("M1", tone_hz=600) as microphone:
        for _ in range(2):
            microphone.plug()
            number = sound_device("Test Microphone")
            heard = recorded(number, 24000, 48000)
            assert abs(tone_hz(heard[12000:], 48000) - 600) < 10
            assert_lost_in_silence(microphone, number)


def assert_lost_in_silence(microphone: UsbMicrophone, number: int) -> None:
    """PortAudio does not say that a microphone is gone, and a read would never return."""
    calls: list[int] = []
    stream = sounddevice.InputStream(
        48000, device=number, channels=1, callback=lambda _, count, *__: calls.append(count)
    )
    stream.start()
    wait_for(lambda: calls, "sound")
    microphone.unplug()
    before = len(calls)
    time.sleep(0.5)
    assert len(calls) <= before + 1 and stream.active
    stream.abort()
    stream.close()


class SlowMicrophone(UsbMicrophone):
    """Reads what the kernel asks for so slowly that some of it is read after unplugging."""

    @property
    def isochronous(self) -> frozenset[int]:  # type: ignore[override]
        time.sleep(0.03)
        return frozenset({1})


def test_a_slow_microphone_does_not_answer_after_its_return_what_it_was_asked_before() -> None:
    with SlowMicrophone("M1") as microphone:
        for _ in range(4):
            microphone.plug()
            number = sound_device("Test Microphone")
            assert_lost_in_silence(microphone, number)
            assert not microphone._unread and not microphone._open


def test_a_serial_port_comes_and_goes_ten_times() -> None:
    with UsbSerial("S1") as device:
        for turn in range(10):
            device.plug()
            with serial.Serial("/dev/ttyACM0", timeout=5) as port:
                device.send(b"$GP%d\n" % turn)
                assert port.readline() == b"$GP%d\n" % turn
                port.write(b"ATZ\r")
                assert device.heard(4) == b"ATZ\r"
            device.unplug()
            assert not Path("/dev/ttyACM0").exists()


def test_a_serial_port_is_lost_while_it_is_read() -> None:
    with UsbSerial("S1") as device:
        device.plug()
        with serial.Serial("/dev/ttyACM0", timeout=5) as port:
            device.send(b"x")
            assert port.read(1) == b"x"
            device.unplug()
            with pytest.raises(serial.SerialException):
                port.read(1)


def test_two_cameras_change_their_nodes_with_the_order_in_which_they_are_plugged_in() -> None:
    with UsbCamera("A", grey=60) as first, UsbCamera("B", grey=200) as second:
        for order in ([first, second], [second, first]):
            cameras = [(camera, camera.plug(port)) for port, camera in enumerate(order)]
            nodes = [video_nodes(folder)[0] for _, folder in cameras]
            assert nodes == ["/dev/video2", "/dev/video4"]
            for (camera, folder), node in zip(cameras, nodes, strict=True):
                assert (folder / "serial").read_text().strip() == camera.serial
                frame, age_s = frames(node, 2)[1]
                assert abs(frame.mean() - camera.grey) < 20
                assert 0 <= age_s < 1
            first.unplug()
            second.unplug()


def test_a_camera_is_lost_while_it_is_read() -> None:
    with UsbCamera("A") as device:
        (node, *_) = video_nodes(device.plug())
        camera = cv2.VideoCapture(node, cv2.CAP_V4L2)
        assert camera.read()[0]
        device.unplug()
        assert not camera.read()[0]
        camera.release()
        (node, *_) = video_nodes(device.plug())
        assert frames(node, 2)
