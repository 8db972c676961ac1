"""URIs of sources, `SCHEME:TARGET?OPTION=VALUE&…`, and what is asked of a source with one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Modality

Wanted = Mapping[str, Modality] | None
"""The modalities that a bundle takes, by name, as its manifest describes them; None: all there is."""

# A password may hold what should be escaped, and may be in the path or query, as some cameras want it.
_CREDENTIALS = re.compile(r"^(rtsp:/*|\w+://).*@", re.DOTALL)
_PARAMETERS = re.compile(
    r"((?:user|usr|login|pass|passwd|password|pwd|psw|token|key|auth)\w*=)[^&/?#]*", re.I
)


def shown(uri: str) -> str:
    """The URI without the user and password that a network address may hold."""
    hidden = _CREDENTIALS.sub(r"\1…@", uri)
    return hidden if hidden == uri and "://" not in uri else _PARAMETERS.sub(r"\1…", hidden)


class Address(NamedTuple):
    """A parsed URI. The getters raise a FusedgeError that names the option for a value out of place."""

    uri: str
    """As it may be shown."""
    scheme: str
    target: str
    options: Mapping[str, str]

    def text(self, option: str, default: str = "") -> str:
        """The option's value."""
        return self.options.get(option, default)

    def number(self, option: str, default: float | None, least: float, most: float) -> float | None:
        """The option as a number from `least` to `most`; `default` where it is not given."""
        text = self.options.get(option)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or "_" in text:
            raise FusedgeError(
                f"{option}={text} is not a number from {least:g} to {most:g}", where=self.uri
            )
        return value

    def whole(self, option: str, default: int | None, least: int, most: int) -> int | None:
        """The option as a whole number from `least` to `most`; `default` where it is not given."""
        value = self.number(option, default, least, most)
        if value is None or value == int(value):
            return None if value is None else int(value)
        raise FusedgeError(f"{option}={value:g} is not a whole number", where=self.uri)

    def choice(self, option: str, choices: Iterable[str], default: str) -> str:
        """The option as one of `choices`."""
        value, known = self.options.get(option, default), list(choices)
        if value not in known:
            raise UnknownNameError(f"{option} in {self.uri}", value, known)
        return value

    def error(self, what: str, hint: str = "") -> FusedgeError:
        """An error about this source."""
        return FusedgeError(what, where=self.uri, hint=hint)


class Request(NamedTuple):
    """What a source is opened with.

    `now_ns` is the clock with which a live source stamps arrival, in nanoseconds. `allocate` gives an
    uninitialised uint8 array of a shape for the data of the next image, where it need not be copied
    once more: a source of images asks for one an image, fills it and yields it.
    """

    address: Address
    wanted: Wanted
    now_ns: Callable[[], int]
    allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]] = lambda shape: np.empty(
        shape, np.uint8
    )


def parse(uri: str, schemes: Mapping[str, Any]) -> Address:
    """Split a URI; `schemes` have a `form` for the hint and know their `options`.

    The query of a network address (`rtsp://…`) belongs to its server; options follow `#`.
    Raises UnknownNameError for an unknown scheme or option, FusedgeError for one given twice.
    """
    name, colon, rest = uri.partition(":")
    if not colon:
        forms = ", ".join(scheme.form for scheme in schemes.values())
        raise FusedgeError(
            "a source is named by scheme", where=shown(uri), hint=f"write one of: {forms}"
        )
    if name not in schemes:
        raise UnknownNameError("source scheme", name, schemes)
    network = rest.startswith("//")
    if name == "rtsp" and not network:
        raise FusedgeError("is no network address", where=shown(uri), hint="write rtsp://HOST/PATH")
    login = rest[: rest.rfind("@") + 1] if network else ""  # may hold a # of its own
    target, _, query = rest[len(login) :].partition("#" if network else "?")
    target = login + target
    return Address(
        shown(uri),
        name,
        f"{name}:{target}" if network else target,
        _options(shown(uri), name, query, schemes[name].options),
    )


def _options(uri: str, scheme: str, query: str, known: Collection[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for option, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if option not in known:
            raise UnknownNameError(f"option of {scheme}:", option, known)
        if option in options:
            raise FusedgeError(f"option {option!r} is given twice", where=uri)
        options[option] = value
    return options
