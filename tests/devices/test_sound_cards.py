"""Microphones keep their names; the kernel's tables are laid out as it does, in a temporary folder."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.sound_cards import (
    Roots,
    capture_of,
    captures,
    card_rate_hz,
    microphones,
    resolve,
    targets,
)

# As snd-usb-audio writes them.
STREAM = """Jabra Speak at usb-0000:00:14.0-2, full speed : USB Audio

Playback:
  Status: Stop
  Interface 2
    Altset 1
    Format: S16_LE
    Channels: 2
    Endpoint: 0x03 (3 OUT) (ADAPTIVE)
    Rates: 8000, 48000

Capture:
  Status: Stop
  Interface 1
    Altset 1
    Format: S16_LE
    Channels: 1
    Endpoint: 0x83 (3 IN) (SYNC)
    Rates: 16000, 48000
    Bits: 16
    Channel map: MONO
  Interface 1
    Altset 2
    Format: S24_3LE
    Channels: 2
    Endpoint: 0x83 (3 IN) (SYNC)
    Rates: 8000 - 96000 (continuous)
"""


class Machine:
    """Folders as the kernel makes them, and a PortAudio that has just started."""

    def __init__(self, folder: Path) -> None:
        self.roots = Roots(folder / "sys", folder / "proc", folder / "dev")
        self.devices: list[dict[str, Any]] = []
        self.cards: list[str] = []
        for path in ("sys/class/sound", "proc/asound", "dev/snd"):
            (folder / path).mkdir(parents=True)

    def card(
        self,
        number: int,
        card_id: str,
        name: str,
        *,
        usb: dict[str, str] | None = None,
        port: str = "1",
        interface: str = "00",
        captures: tuple[int, ...] = (0,),
        inputs: int = 2,
    ) -> None:
        sysfs = self.roots.sysfs
        card = sysfs / f"class/sound/card{number}"
        card.mkdir()
        (card / "id").write_text(card_id + "\n")
        (sysfs / f"class/sound/controlC{number}").mkdir()
        (sysfs / f"class/sound/pcmC{number}D0p").mkdir()
        if usb is not None:
            folder = sysfs / f"devices/usb1/1-{port}"
            inside = folder / f"1-{port}:1.{int(interface)}"
            inside.mkdir(parents=True)
            (inside / "bInterfaceNumber").write_text(interface + "\n")
            for key, value in usb.items():
                (folder / key).write_text(value + "\n")
            (card / "device").symlink_to(inside)
        else:
            (sysfs / "devices/pci").mkdir(parents=True, exist_ok=True)
            (card / "device").symlink_to(sysfs / "devices/pci")
        kind, at = (
            ("USB-Audio", f"usb-0000:00:14.0-{port}, full speed")
            if usb
            else ("HDA-Intel", "irq 31")
        )
        self.cards.append(f"{number:2} [{card_id:15}]: {kind} - {name}\n{'':22}{name} at {at}\n")
        (self.roots.proc / "asound/cards").write_text("".join(self.cards))
        for device in captures:
            (sysfs / f"class/sound/pcmC{number}D{device}c").mkdir()
            (self.roots.dev / f"snd/pcmC{number}D{device}c").touch()
            self.offer(f"{name}: PCM {device} (hw:{number},{device})", inputs)

    def offer(self, name: str, inputs: int = 128, hostapi: int = 0) -> None:
        self.devices.append(
            {
                "index": len(self.devices),
                "name": name,
                "max_input_channels": inputs,
                "hostapi": hostapi,
            }
        )

    def resolve(self, target: str, default: int = -1) -> int:
        return resolve(address(target), self.portaudio(default), self.roots)

    def name(self, target: str) -> str:
        """The device of PortAudio that a target is resolved to."""
        return str(self.devices[self.resolve(target)]["name"])

    def portaudio(self, default: int = -1) -> Any:
        chosen = SimpleNamespace(device=(default, -1), hostapi=0)
        return SimpleNamespace(query_devices=lambda: self.devices, default=chosen)

    def refused(self, target: str, default: int = -1) -> str:
        with pytest.raises(FusedgeError) as caught:
            self.resolve(target, default)
        return caught.value.line()


def address(target: str) -> Address:
    return Address(f"mic:{target}", "mic", target, {})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A laptop with two capture devices, a webcam and a headset."""
    machine = Machine(tmp_path)
    machine.card(0, "PCH", "HDA Intel PCH", captures=(0, 2))
    webcam = {"manufacturer": "", "product": "HD Pro Webcam C920", "serial": "5C1F"}
    machine.card(1, "C920", "HD Pro Webcam C920", usb=webcam | {"idVendor": "046d"}, interface="02")
    headset = {"manufacturer": "GN  Audio", "product": "Jabra/Speak (510)", "idProduct": "0422"}
    machine.card(2, "USB", "Jabra Speak", usb=headset | {"idVendor": "0b0e"}, port="2", inputs=1)
    machine.offer("default")
    machine.offer("pulse")
    return machine


def test_usb_cards_have_the_names_of_udev(machine: Machine) -> None:
    assert [(c.card, c.device, c.card_id, c.by_id) for c in captures(machine.roots)] == [
        (0, 0, "PCH", ""),
        (0, 2, "PCH", ""),
        (1, 0, "C920", "usb-046d_HD_Pro_Webcam_C920_5C1F-02"),
        (2, 0, "USB", "usb-GN_Audio_Jabra_Speak__510_-00"),
    ]


def test_every_device_has_a_target_that_names_it_alone(machine: Machine) -> None:
    chosen = targets(captures(machine.roots))
    assert chosen == [
        "hw:CARD=PCH,DEV=0",
        "hw:CARD=PCH,DEV=2",
        "by-id/usb-046d_HD_Pro_Webcam_C920_5C1F-02",
        "by-id/usb-GN_Audio_Jabra_Speak__510_-00",
    ]
    assert [machine.resolve(target) for target in chosen] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("default", 4),
        ("", 4),
        ("auto", 2),  # on USB
        ("3", 3),
        ("PCH", 0),
        ("PCH,DEV=2", 1),
        ("hw:CARD=C920", 2),
        ("by-id/usb-046d_HD_Pro_Webcam_C920_5C1F-02", 2),
        ("by-path/usb-0000:00:14.0-2", 3),
        ("by-path/usb-0000:00:14.0-2,DEV=0", 3),
        ("pro webcam", 2),
        ("pulse", 5),
        ("PULS", 5),
    ],
)
def test_targets_name_devices_of_portaudio(machine: Machine, target: str, index: int) -> None:
    assert machine.resolve(target, default=4) == index


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("C902", "mic:C902: no device C902 (there is"),
        ("hw:CARD=PCH,DEV=1", "(did you mean hw:CARD=PCH,DEV="),
        ("by-id/usb-046d_HD_Pro_Webcam_C920_FFFF-02", "(did you mean by-id/usb-046d_HD_Pro_Webcam"),
        ("99", "mic:99: no device 99"),
        ("-1", "mic:-1: no device -1"),
        ("²", "mic:²: no device ²"),
        ("9" * 5000, "mic:999"),
    ],
)
def test_the_closest_is_offered_for_what_is_not_there(
    machine: Machine, target: str, line: str
) -> None:
    assert line in machine.refused(target)


def test_a_name_that_fits_several_is_refused_with_all_of_them(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    usb = {"manufacturer": "Acme", "product": "Mic"}
    machine.card(0, "Mic", "Acme Mic", usb=usb, port="3")
    machine.card(1, "Mic_1", "Acme Mic", usb=usb, port="4.1")
    for target in ("by-id/usb-Acme_Mic-00", "acme"):
        assert machine.refused(target) == (
            f"mic:{target}: 2 microphones fit (say which: "
            "by-path/usb-0000:00:14.0-3 or by-path/usb-0000:00:14.0-4.1)"
        )
    assert targets(captures(machine.roots))[1] == "by-path/usb-0000:00:14.0-4.1"
    assert machine.resolve("by-path/usb-0000:00:14.0-4.1") == 1


def test_a_lasting_name_stays_with_its_microphone_in_any_order_of_plugging(tmp_path: Path) -> None:
    found = set()
    for turn, order in enumerate(itertools.permutations("abc")):
        machine = Machine(tmp_path / str(turn))
        for number, serial in enumerate(order):
            usb = {"manufacturer": "Acme", "product": "Mic", "serial": serial}
            card_id = f"Mic_{number}" if number else "Mic"
            machine.card(number, card_id, f"Acme {serial}", usb=usb, port=str(number + 1))
        found.add(tuple(machine.name(f"by-id/usb-Acme_Mic_{s}-00").split(":")[0] for s in "abc"))
    assert found == {("Acme a", "Acme b", "Acme c")}


def test_a_card_that_portaudio_did_not_see_is_said(machine: Machine) -> None:
    del machine.devices[3]
    assert "PortAudio does not offer Jabra Speak (see " in machine.refused("USB")
    script = "import sys; f = open(sys.argv[1]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(machine.roots.dev / "snd/pcmC2D0c")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        line = machine.refused("USB")
        holder.kill()
    assert f"pcmC2D0c is in use by python (process {holder.pid}) (close the other" in line


def test_a_machine_without_microphones_is_said(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for target in ("default", "auto", "0", "Jabra"):
        assert machine.refused(target).startswith(f"mic:{target}: no microphone found")
    machine.offer("HDMI out", inputs=0)
    assert "no microphone found" in machine.refused("default")


def test_without_alsa_the_names_of_portaudio_are_used(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for hostapi in (0, 1):  # as on Windows, where each interface has every device
        machine.offer("Built-in Microphone", 1, hostapi)
        machine.offer("Jabra Speak", 1, hostapi)
    assert machine.resolve("Jabra") == 1
    assert machine.resolve("Built-in Microphone") == 0
    assert machine.resolve("auto", default=1) == 1
    assert machine.resolve("3") == 3
    assert "did you mean Jabra Speak?" in machine.refused("Jabra Speek")


def test_portaudios_name_leads_back_to_the_card(machine: Machine) -> None:
    found = capture_of("Jabra Speak: USB Audio (hw:2,0)", machine.roots)
    assert found is not None and found.card_id == "USB"
    assert found.path == str(machine.roots.dev / "snd/pcmC2D0c")
    assert capture_of("default", machine.roots) is None
    assert capture_of("x (hw:2,1)", machine.roots) is None


def test_cards_are_listed_also_where_portaudio_is_missing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (machine.roots.proc / "asound/card2").mkdir()
    (machine.roots.proc / "asound/card2/stream0").write_text(STREAM)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    listed = microphones(machine.roots)
    assert [device.uri.partition(":")[2] for device in listed] == targets(captures(machine.roots))
    jabra = listed[-1]
    assert (jabra.kind, jabra.name) == ("microphone", "Jabra Speak")
    assert jabra.formats == (
        "1 channel, 16000, 48000 Hz",
        "2 channels, 8000 - 96000 (continuous) Hz",
    )
    assert "needs the package 'sounddevice'" in jabra.note
    with pytest.raises(MissingExtraError):
        microphones(Machine(tmp_path / "empty").roots)


def test_the_rate_of_the_card_is_that_of_our_own_capture(tmp_path: Path) -> None:
    roots = Roots(proc=tmp_path)
    (tmp_path / f"self/task/{threading.get_native_id()}").mkdir(parents=True)

    def runs(place: str, owner: int, rate: str) -> None:
        folder = tmp_path / "asound" / place
        folder.mkdir(parents=True)
        (folder / "status").write_text(f"state: RUNNING\nowner_pid   : {owner}\ntstamp      : 0\n")
        (folder / "hw_params").write_text(f"access: RW_INTERLEAVED\nchannels: 1\nrate: {rate}\n")

    runs("card0/pcm0c/sub0", 0, "32000 (32000/1)")  # another program's
    assert card_rate_hz(roots) is None
    runs("card1/pcm0c/sub0", threading.get_native_id(), "48000 (48000/1)")
    runs("card1/pcm0p/sub0", threading.get_native_id(), "44100 (44100/1)")  # not a capture
    assert card_rate_hz(roots) == 48_000
    runs("card2/pcm0c/sub0", threading.get_native_id(), "16000 (16000/1)")
    assert card_rate_hz(roots) is None  # which of them cannot be told


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_no_table_makes_the_list_fail(
    tmp_path_factory: pytest.TempPathFactory, cards: bytes, text: bytes
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.card(0, "Mic", "Acme", usb={"product": "Mic"})
    (machine.roots.proc / "asound/cards").write_bytes(cards)
    (machine.roots.sysfs / "class/sound/card0/id").write_bytes(text)
    (machine.roots.sysfs / "devices/usb1/1-1/serial").write_bytes(text)
    (machine.roots.sysfs / "class/sound/pcmC1D0c").touch()  # its card is gone
    found = captures(machine.roots)
    assert [(c.card, c.device) for c in found] == [(0, 0), (1, 0)]
    assert len(set(targets(found))) == 2


def test_a_table_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.card(0, "Mic", "Acme")
    (machine.roots.proc / "asound/cards").unlink()
    os.symlink("/dev/zero", machine.roots.proc / "asound/cards")
    assert captures(machine.roots)[0].name == "Mic"
