"""What a camera is set to: the best of what it offers, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Modality
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.pixels import LAYOUTS
from fusedge.devices.capture.v4l2 import RATE_TOLERANCE, Offer, Setting

MAX_SIDE = 8192  # pixels, as in the manifest
MAX_RATE_HZ = 1000.0


class Choice(NamedTuple):
    """How a camera is to be set, and what of that is not as it was wanted."""

    format: str
    width: int
    height: int
    rate_hz: float
    warnings: tuple[str, ...] = ()


def choose(
    address: Address, offers: Sequence[Offer], now: Setting, spec: Modality | None
) -> Choice:
    """The best of what a camera offers, for the URI's options and the modality that is wanted.

    An option is kept to, or it is an error. Without one, the size is the smallest that is not smaller
    than the modality's on both sides, the rate the slowest that is not below the modality's, and the
    format the one that has these; without a modality they are as the camera is set `now`, but for a
    format that cannot be read or is slower. If nothing is that large or fast, what comes closest.
    """
    readable = [offer for offer in offers if offer.format in LAYOUTS]
    if not readable:
        formats = ", ".join(sorted({offer.format for offer in offers})) or "no format"
        hint = "a raw sensor is read by csi:0 on a Jetson"
        raise address.error(f"gives {formats}, of which none can be read", hint=hint)
    readable = _of_format(address, readable, spec)
    asked = [address.whole(side, None, 1, MAX_SIDE) for side in ("width", "height")]
    rate = address.number("fps", None, 0.1, MAX_RATE_HZ) or (spec or now).rate_hz
    least = [1, 1] if spec is None and any(asked) else [(spec or now).width, (spec or now).height]
    least = [option or side or 1 for option, side in zip(asked, least, strict=True)]
    fitting, warnings = _fitting(readable, least, asked), []
    if not fitting:
        if any(asked):
            raise _no_such_size(address, readable, least)
        fitting = _largest(readable)
        if spec is not None and spec.front is None:
            size = f"{fitting[0].width}x{fitting[0].height}"
            warnings = [
                f"{address.uri}: gives at most {size}, enlarged to {spec.width}x{spec.height}"
            ]

    def rank(fit: _Fit) -> tuple[float, int, int]:
        shortfall = max(0.0, rate * (1 - RATE_TOLERANCE) - fit.offer.rate(rate))
        return shortfall, fit.width * fit.height, _preference(fit.offer.format, spec)

    best = min(fitting, key=rank)
    chosen = best.offer.rate(rate)
    return Choice(best.offer.format, best.width, best.height, chosen, tuple(warnings))


def achieved(address: Address, choice: Choice, got: Setting, spec: Modality | None) -> Choice:
    """What a camera was really set to, with a warning for each difference.

    Raises FusedgeError where an option is not kept to, or frames come in a form that cannot be read.
    """
    layout = LAYOUTS.get(got.format)
    asked = f"{choice.format} {choice.width}x{choice.height}"
    given = f"{got.format} {got.width}x{got.height}"
    if layout is None:
        raise address.error(f"gives {given}, which cannot be read, though set to {asked}")
    if not layout.compressed and got.line_bytes not in (0, got.width * layout.channels):
        hint = "choose another format or size"
        raise address.error(f"gives {given} in lines of {got.line_bytes} bytes", hint=hint)
    warnings = list(choice.warnings)
    if given != asked:
        if {"format", "width", "height"} & address.options.keys():
            raise address.error(f"gives {given}, though set to {asked}")
        warnings.append(f"{address.uri}: gives {given}, though set to {asked}")
    rate = got.rate_hz or choice.rate_hz
    wanted = address.number("fps", None, 0.1, MAX_RATE_HZ)
    least = wanted or (spec.rate_hz if spec is not None else 0.0)
    if rate and (
        rate < least * (1 - RATE_TOLERANCE) or (wanted and rate > wanted * (1 + RATE_TOLERANCE))
    ):
        warnings.append(f"{address.uri}: gives {rate:.4g} pictures a second, not {least:.4g}")
    return Choice(got.format, got.width, got.height, rate, tuple(warnings))


class _Fit(NamedTuple):
    offer: Offer
    width: int
    height: int


def _fitting(
    offers: Sequence[Offer], least: Sequence[int], asked: Sequence[int | None]
) -> list[_Fit]:
    """Each offer in its smallest size that is large enough, if it is what was asked for."""
    fits = []
    for offer in offers:
        width, height = offer.width.at_least(least[0]), offer.height.at_least(least[1])
        if width and height and asked[0] in (None, width) and asked[1] in (None, height):
            fits.append(_Fit(offer, width, height))
    return fits


def _largest(offers: Sequence[Offer]) -> list[_Fit]:
    fits = [_Fit(offer, offer.width.greatest, offer.height.greatest) for offer in offers]
    area = max(fit.width * fit.height for fit in fits)
    return [fit for fit in fits if fit.width * fit.height == area]


def _of_format(address: Address, readable: list[Offer], spec: Modality | None) -> list[Offer]:
    asked = address.text("format").upper()
    if asked:
        fits = [offer for offer in readable if offer.format == asked]
        if not fits:
            raise UnknownNameError(
                f"format of {address.uri}", asked, {offer.format for offer in readable}
            )
        return fits
    grey = spec is not None and len(spec.channels) == 1
    return [o for o in readable if grey or o.format != "GREY"] or readable


def _preference(format: str, spec: Modality | None) -> int:
    if spec is not None and len(spec.channels) == 1 and format == "GREY":
        return -1
    return list(LAYOUTS).index(format)


def _no_such_size(address: Address, offers: list[Offer], least: list[int]) -> FusedgeError:
    def distance(offer: Offer) -> int:
        return sum(
            max(span.least - side, side - span.greatest, 0)
            for span, side in zip((offer.width, offer.height), least, strict=True)
        )

    sizes = list(dict.fromkeys(offer.size for offer in sorted(offers, key=distance)))[:3]
    return address.error("does not offer this size", hint=f"closest: {', '.join(sizes)}")
