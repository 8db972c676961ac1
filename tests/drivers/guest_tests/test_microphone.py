"""Microphones with real drivers: the loopback card, and USB microphones of `snd-usb-audio`.

They are opened as the product opens them, in a process of their own: PortAudio sees only those cards
that are there when it starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sounddevice

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.sound_cards import captures, targets
from fusedge.devices.capture.source import Source, open_source
from tests.devices.modalities import audio, by_name
from tests.drivers.gadgets import UsbMicrophone

pytestmark = pytest.mark.real_time
LOOPBACK = "mic:hw:CARD=Loopback,DEV=1"
BY_ID = "mic:by-id/usb-Fusedge_Test_Microphone_M1-00"
ROOT = Path(__file__).parents[3]


def opened(uri: str, rate_hz: float | None = None) -> IsolatedSource:
    wanted = None if rate_hz is None else by_name(audio("sound", rate_hz))
    source = open_source(uri, wanted, time.monotonic_ns)
    assert isinstance(source, IsolatedSource)
    return source


def heard(source: Source, seconds: float) -> list[Sample | Rejection]:
    """All that comes until so much sound has come; the source is closed then."""
    items: list[Sample | Rejection] = []
    stream = source.samples()
    try:
        for item in stream:
            items.append(item)
            first = next((i for i in items if isinstance(i, Sample)), None)
            if first and item.arrival_ns - first.arrival_ns >= seconds * NANOSECONDS:
                return items
    finally:
        source.close()
    raise AssertionError(f"it ended after {items}")


def sounds(items: list[Sample | Rejection]) -> list[Sample]:
    return [item for item in items if isinstance(item, Sample)]


def tone_hz(items: list[Sample | Rejection], rate_hz: float) -> float:
    """The loudest frequency of the later half."""
    heard = np.concatenate([sample.data[:, 0] for sample in sounds(items)])
    heard = heard[len(heard) // 2 :]
    return (
        float(np.abs(np.fft.rfft(heard * np.hanning(len(heard)))).argmax()) * rate_hz / len(heard)
    )


def apart_s(items: list[Sample | Rejection], rate_hz: float) -> float:
    """By how much the stamps, and the samples that came or are known to be lost, differ at the end."""
    first, *later = items
    assert isinstance(first, Sample)
    count = sum(i.samples if isinstance(i, Rejection) else len(i.data) for i in later)
    return (sounds(later)[-1].timestamp_ns - first.timestamp_ns) / NANOSECONDS - count / rate_hz


def refused(uri: str, rate_hz: float | None = None) -> str:
    with pytest.raises(FusedgeError) as caught:
        opened(uri, rate_hz).close()
    return caught.value.line()


@contextmanager
def played(tone: float) -> Iterator[None]:
    """A tone at the other end of the loopback."""
    sounddevice._terminate()
    sounddevice._initialize()
    count = 0

    def play(block: np.ndarray[Any, Any], frames: int, *_: Any) -> None:
        nonlocal count
        phase = 2 * np.pi * tone / 48_000 * np.arange(count, count + frames)
        count += frames
        block[:] = 0.5 * np.sin(phase)[:, None]

    number = next(d["index"] for d in sounddevice.query_devices() if "(hw:0,0)" in d["name"])
    with sounddevice.OutputStream(48_000, 4800, number, 2, "float32", latency=0.5, callback=play):
        yield


def listed() -> dict[str, dict[str, Any]]:
    """As a new process lists them."""
    script = (
        "import json; from fusedge.devices.capture.sound_cards import microphones; "
        "print(json.dumps([d._asdict() for d in microphones()]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    return {device["uri"]: device for device in json.loads(done.stdout)}


def test_microphones_are_listed_with_lasting_names_and_what_they_give() -> None:
    with UsbMicrophone("M1") as usb:
        usb.plug()
        found = listed()
    assert set(found) == {"mic:hw:CARD=Loopback,DEV=0", LOOPBACK, BY_ID, "mic:default"}
    assert found[BY_ID] == {
        "kind": "microphone",
        "name": "Test Microphone",
        "uri": BY_ID,
        "formats": ["1 channel, 48000 Hz"],
        "note": "",
    }
    assert "48000" in found[LOOPBACK]["formats"][0]


def test_sound_is_heard_at_the_right_rate_with_stamps_of_capture() -> None:
    with played(1000):
        source = opened(LOOPBACK, 16_000)
        assert source.channels == {"sound": ("channel_0",)} and source.warnings == ()
        items = heard(source, 3)
    assert tone_hz(items, 16_000) == pytest.approx(1000, abs=2)
    samples = sounds(items)
    assert {sample.stamp for sample in samples} == {"capture"}
    for earlier, later in pairwise(samples):
        assert earlier.timestamp_ns < later.timestamp_ns <= later.arrival_ns
    assert abs(apart_s(items, 16_000)) < 0.05


def test_resampling_by_alsa_is_told() -> None:
    with opened_and_closed("mic:default?rate=44100") as source:
        (warning,) = source.warnings
        assert "ALSA resamples from 48000 to 44100 Hz" in warning


@contextmanager
def opened_and_closed(uri: str) -> Iterator[IsolatedSource]:
    source = opened(uri)
    try:
        yield source
    finally:
        source.close()


def test_a_microphone_comes_and_goes_five_times_and_leaves_nothing_behind() -> None:
    def once(usb: UsbMicrophone) -> None:
        usb.plug()
        source = opened(BY_ID, 16_000)
        with pytest.raises(FusedgeError, match=r"is silent|has ended") as failure:
            for number, item in enumerate(source.samples()):
                assert isinstance(item, Sample) and item.stamp == "capture"
                if number == 3:
                    usb.unplug()
                    began = time.monotonic()
        assert time.monotonic() - began < 10
        assert failure.value.where == BY_ID
        source.close()

    with UsbMicrophone("M1") as usb:
        once(usb)
        assert "no device by-id/usb-Fusedge_Test_Microphone_M1-00" in refused(BY_ID)
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(4):
            once(usb)
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_microphone_that_stays_plugged_but_gives_nothing_raises() -> None:
    with UsbMicrophone("M1") as usb:
        usb.plug()
        source = opened("mic:Test Micro", 16_000)
        with pytest.raises(FusedgeError, match="is silent"):
            for _ in source.samples():
                usb.frozen = True
        source.close()


def test_equal_microphones_without_numbers_are_told_apart_by_their_ports() -> None:
    with UsbMicrophone(None, tone_hz=500) as first, UsbMicrophone(None, tone_hz=900) as second:
        first.plug(2)
        second.plug(3)
        assert targets(captures())[-2:] == [
            "by-path/usb-vhci_hcd.0-3",
            "by-path/usb-vhci_hcd.0-4",
        ]
        for place, tone in (("3", 500), ("4", 900)):
            items = heard(opened(f"mic:by-path/usb-vhci_hcd.0-{place}", 16_000), 1.5)
            assert tone_hz(items, 16_000) == pytest.approx(tone, abs=15)
        line = refused("mic:by-id/usb-Fusedge_Test_Microphone-00")
        assert "2 microphones fit (say which: by-path/usb-vhci_hcd.0-3 or by-path" in line


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_what_is_lost_while_the_process_stands_still_is_counted(seconds: float) -> None:
    with played(1000):
        source = opened(LOOPBACK, 16_000)
        threading.Timer(2, os.kill, (source.process_id, signal.SIGSTOP)).start()
        threading.Timer(2 + seconds, os.kill, (source.process_id, signal.SIGCONT)).start()
        items = heard(source, 5 + seconds)
    losses = [item for item in items if isinstance(item, Rejection)]
    assert losses and {loss.reason for loss in losses} <= {"overflow", "overflow_in_driver"}
    assert sum(loss.samples for loss in losses) / 16_000 > seconds - 0.3
    assert abs(apart_s(items, 16_000)) < 0.05


def test_a_card_that_another_program_uses_is_said_with_its_name() -> None:
    script = (
        "import sounddevice as sd\n"
        "n = [d['index'] for d in sd.query_devices() if 'Test Microphone' in d['name']][0]\n"
        "s = sd.InputStream(48000, device=n, channels=1, callback=lambda *_: None)\n"
        "s.start(); print('open', flush=True); input()"
    )
    with UsbMicrophone("M1") as usb:
        usb.plug()
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            try:
                assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
                line = refused(BY_ID)
                note = listed()[BY_ID]["note"]
            finally:
                holder.kill()
    assert f"is in use by python (process {holder.pid})" in line
    assert f"in use by python (process {holder.pid})" in note


def test_a_card_that_may_not_be_used_is_said() -> None:
    # Another user may not read Python's own files here, so all is imported before.
    script = (
        "import grp, os\n"
        "import sounddevice\n"
        "from fusedge.devices.capture.address import Request, parse\n"
        "from fusedge.devices.capture.microphone import open_microphone\n"
        "from fusedge.devices.capture.source import SCHEMES\n"
        "sounddevice._terminate()\n"
        "os.setuid(65534)\n"
        "sounddevice._initialize()\n"
        "for target in ('hw:CARD=Loopback', 'auto', 'default'):\n"
        "    try: open_microphone(Request(parse('mic:' + target, SCHEMES), None, int))\n"
        "    except Exception as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done
    for target, line in zip(("hw:CARD=Loopback", "auto", "default"), lines, strict=True):
        assert f"mic:{target}: no permission for /dev/snd/pcmC0D0c (" in line


def test_a_rate_that_a_card_does_not_have_is_refused_with_those_that_it_has() -> None:
    with UsbMicrophone("M1") as usb:
        usb.plug()
        line = refused(f"{BY_ID}?rate=16000")
    assert (
        "Test Microphone: USB Audio (hw:1,0) does not capture at 16000 Hz (it does at 48000)"
        in line
    )
