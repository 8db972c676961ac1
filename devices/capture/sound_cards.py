"""Microphones: which there are, by what name each stays the same, and which of PortAudio's it is.

PortAudio numbers devices anew at every start and takes its names from drivers, so that two equal
microphones differ by the number of their card alone. The names here are those of the links which udev
makes in /dev/snd/by-id (60-persistent-alsa.rules), computed from sysfs, so that they hold without udev.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.capture.access import busy, holders_of, missing, refusal
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.inputs import InputDevice
from fusedge.devices.capture.sysfs import text_attribute
from fusedge.devices.capture.usb_names import usb_name

USUAL_RATES_HZ = (8000, 16000, 22050, 32000, 44100, 48000, 96000, 192000)
_PCM = re.compile(r"pcmC(\d+)D(\d+)c")
_CARD = re.compile(r"^ *(\d+) \[.*?\]: .*? - (.*)\n +(.*)$", re.MULTILINE)  # /proc/asound/cards
_PLACE = re.compile(r" at (usb-[^\s,]+)")


class Roots(NamedTuple):
    """Where the kernel tells of its sound cards."""

    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")


MACHINE = Roots()


class Capture(NamedTuple):
    """A device of a card from which sound can be captured."""

    card: int
    device: int
    card_id: str
    """As ALSA has it in `hw:CARD=…`."""
    name: str
    by_id: str
    """As udev has it in /dev/snd/by-id; empty where the card is not on USB."""
    place: str
    """The USB port that it is plugged into, as its driver names it; or empty."""
    path: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its card, most lasting first."""
        by_id = (f"by-id/{self.by_id}",) if self.by_id else ()
        place = (f"by-path/{self.place}",) if self.place else ()
        return (*by_id, *place, f"hw:CARD={self.card_id}", self.card_id)


def captures(roots: Roots = MACHINE) -> list[Capture]:
    """What the cards of this machine can capture with, by card and device."""
    listed = {
        int(number): (name, longer)
        for number, name, longer in _CARD.findall(text_attribute(roots.proc / "asound/cards"))
    }
    found = []
    for entry in (roots.sysfs / "class/sound").glob("pcmC*c"):
        match = _PCM.fullmatch(entry.name)
        if match is None:
            continue
        card, device = int(match[1]), int(match[2])
        folder = roots.sysfs / f"class/sound/card{card}"
        card_id = text_attribute(folder / "id") or str(card)
        name, longer = listed.get(card, (card_id, ""))
        place = _PLACE.search(longer)
        interface = Path(os.path.realpath(folder / "device"))
        number = text_attribute(interface / "bInterfaceNumber")
        by_id = f"usb-{usb_name(interface.parent)}-{number}" if number else ""
        path = str(roots.dev / "snd" / entry.name)
        at = place[1] if place else ""
        found.append(Capture(card, device, card_id, name, by_id, at, path))
    return sorted(found)


def targets(known: list[Capture]) -> list[str]:
    """For each the name for its URI that lasts longest and that no other has."""
    first = _first(known)
    shared = Counter(name for capture in first.values() for name in capture.names)
    chosen = []
    for capture in known:
        name = next((n for n in capture.names if shared[n] == 1), f"hw:CARD={capture.card_id}")
        plain = capture == first[capture.card] and not name.startswith("hw:")
        chosen.append(name if plain else f"{name},DEV={capture.device}")
    return chosen


def portaudio() -> Any:
    """The package sounddevice; raises a FusedgeError where it or the library that it needs is missing."""
    try:
        import sounddevice
    except ImportError:
        raise MissingExtraError("sounddevice", "mic", "a microphone") from None
    except OSError as error:
        raise FusedgeError(f"{error}", hint="sudo apt-get install libportaudio2") from None
    return sounddevice


class _Choice(NamedTuple):
    """What a target may name: a card's device, or else a device of PortAudio's alone."""

    target: str
    names: tuple[str, ...]
    text: str
    capture: Capture | None = None
    number: int = -1


def resolve(address: Address, sd: Any, roots: Roots = MACHINE) -> int:
    """The number by which PortAudio, loaded as `sd`, has the microphone that a URI names.

    The target is `default` (what the system has chosen), `auto` (the first card, USB before others),
    a number of PortAudio's, `by-id/NAME`, `by-path/NAME`, a card's id or `hw:CARD=ID`, each with
    `,DEV=N` for another than the card's first device, PortAudio's name, or a part of one name.
    Raises FusedgeError where there is no such microphone, several fit, or it may not be used.
    """
    known, offered, target = captures(roots), _inputs(sd), address.target
    if target == "auto" and known:
        on_usb = [capture for capture in known if capture.by_id]
        return _offered(address, (on_usb or known)[0], offered)
    if not known and not offered:
        raise _none(address, known)
    if target in ("", "auto", "default"):
        index = int(sd.default.device[0])
        if index not in offered:
            raise _none(address, known)
        return index
    numbers = {str(index): index for index in offered}
    if target in numbers:
        return numbers[target]
    choices = _choices(sd, known, offered)
    fitting = [choice for choice in choices if target in choice.names]
    fitting = fitting or [c for c in choices if target.casefold() in c.text.casefold()]
    if not fitting or target.isdecimal():
        raise missing(address, target, [choice.target for choice in choices])
    if len(fitting) > 1:
        hint = f"say which: {' or '.join(choice.target for choice in fitting)}"
        raise address.error(f"{len(fitting)} microphones fit", hint=hint)
    chosen = fitting[0]
    return chosen.number if chosen.capture is None else _offered(address, chosen.capture, offered)


def _inputs(sd: Any) -> dict[int, Any]:
    """PortAudio's devices that can capture, by number."""
    return {d["index"]: d for d in sd.query_devices() if d["max_input_channels"] > 0}


def _choices(sd: Any, known: list[Capture], offered: Mapping[int, Any]) -> list[_Choice]:
    first, choices = _first(known), []
    for capture, target in zip(known, targets(known), strict=True):
        names = tuple(f"{name},DEV={capture.device}" for name in capture.names)
        if capture == first[capture.card]:
            names, text = names + capture.names, capture.name
        else:
            text = ""
        choices.append(_Choice(target, names, text, capture))
    for index, device in _others(sd, known, offered).items():
        name = device["name"]
        choices.append(_Choice(name, (name,), name, number=index))
    return choices


def _others(sd: Any, known: list[Capture], offered: Mapping[int, Any]) -> dict[int, Any]:
    """What PortAudio has besides the cards: a sound server, or the devices of another system.

    Windows has every device once for each of its interfaces: those of the usual one.
    """
    places = [_hardware(capture) for capture in known]
    return {
        index: device
        for index, device in offered.items()
        if device["hostapi"] == sd.default.hostapi
        and not any(place in device["name"] for place in places)
    }


def _hardware(capture: Capture) -> str:
    """How the name ends that PortAudio gives to a card's device, without ALSA's plugins."""
    return f"(hw:{capture.card},{capture.device})"


def _first(known: list[Capture]) -> dict[int, Capture]:
    """Of each card its first device."""
    return {capture.card: capture for capture in sorted(known, reverse=True)}


def _offered(address: Address, capture: Capture, offered: Mapping[int, Any]) -> int:
    for index, device in offered.items():
        if device["name"].endswith(_hardware(capture)):
            return index
    if not os.access(capture.path, os.R_OK | os.W_OK):
        raise refusal(address, capture.path, errno.EACCES)
    if holders_of(capture.path):
        raise busy(address, capture.path)
    raise address.error(f"PortAudio does not offer {capture.name}", hint=f"see {capture.path}")


def _none(address: Address, known: list[Capture]) -> FusedgeError:
    for capture in known:
        if not os.access(capture.path, os.R_OK | os.W_OK):
            return refusal(address, capture.path, errno.EACCES)
    return address.error("no microphone found", hint="`fusedge devices` lists what there is")


def capture_of(name: str, roots: Roots = MACHINE) -> Capture | None:
    """The card's device that PortAudio has under a name; None where that is something else."""
    return next((c for c in captures(roots) if name.endswith(_hardware(c))), None)


def card_rate_hz(roots: Roots = MACHINE) -> int | None:
    """The rate of the card that this process captures from; None where it is not told, or of several."""
    rates = set()
    for status in (roots.proc / "asound").glob("card*/pcm*c/sub*/status"):
        owner = re.search(r"owner_pid\s*:\s*(\d+)", text_attribute(status))
        if owner and (roots.proc / "self/task" / owner[1]).exists():
            rate = re.search(
                r"^rate: (\d+)", text_attribute(status.with_name("hw_params")), re.MULTILINE
            )
            rates.add(int(rate[1]) if rate else None)
    return rates.pop() if len(rates) == 1 else None


def microphones(roots: Roots = MACHINE) -> list[InputDevice]:
    """The microphones of this machine: those of its cards, then what else PortAudio offers.

    Raises FusedgeError where there is no card and PortAudio is missing.
    """
    known, lack = captures(roots), ""
    sd: Any = None
    try:
        sd = portaudio()
    except FusedgeError as error:
        if not known:
            raise
        lack = error.line()
    offered = {} if sd is None else _inputs(sd)
    listed = []
    for capture, target in zip(known, targets(known), strict=True):
        offers = [d for d in offered.values() if d["name"].endswith(_hardware(capture))]
        formats = _usb_formats(capture, roots) or tuple(_formats(sd, d) for d in offers)
        notes = [lack] if lack else []
        if not os.access(capture.path, os.R_OK | os.W_OK):
            why = refusal(Address("", "mic", target, {}), capture.path, errno.EACCES)
            notes.append(f"{why.what} ({why.hint})")
        elif holders := holders_of(capture.path):
            notes.append(f"in use by {', '.join(holders)}")
        listed.append(
            InputDevice("microphone", capture.name, f"mic:{target}", formats, "; ".join(notes))
        )
    for index, device in _others(sd, known, offered).items():
        name = device["name"]
        if index == sd.default.device[0]:
            listed.append(InputDevice("microphone", f"the system's choice: {name}", "mic:default"))
        elif sd.query_hostapis(device["hostapi"])["name"] != "ALSA":  # its plugins are legion
            listed.append(InputDevice("microphone", name, f"mic:{name}", (_formats(sd, device),)))
    return listed


def _usb_formats(capture: Capture, roots: Roots) -> tuple[str, ...]:
    path = roots.proc / f"asound/card{capture.card}/stream{capture.device}"
    text = text_attribute(path).partition("Capture:")[2]
    found = re.findall(r"Channels: (\d+)\n(?:.*\n)*?\s*Rates: (.+)", text)
    return tuple(dict.fromkeys(f"{_channels(int(n))}, {rates.strip()} Hz" for n, rates in found))


def _formats(sd: Any, device: Mapping[str, Any]) -> str:
    rates = ", ".join(map(str, offered_rates(sd, device))) or "no usual rate"
    return f"{_channels(device['max_input_channels'])}, {rates} Hz"


def offered_rates(sd: Any, device: Mapping[str, Any]) -> list[int]:
    """Which of the usual rates PortAudio says that its device can capture at."""
    channels, rates = min(device["max_input_channels"], 2), []
    for rate_hz in USUAL_RATES_HZ:
        try:
            sd.check_input_settings(device["index"], channels, "float32", samplerate=rate_hz)
        except sd.PortAudioError:
            continue
        rates.append(rate_hz)
    return rates


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"
