"""Which modality of the bundle a source is to give, and which of its channels it can."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Channel, Modality
from fusedge.devices.capture.address import Address, Wanted
from fusedge.devices.capture.units import conversion

COLOURS = ("red", "green", "blue")
FRAME_SIZE = (720, 1280)  # height and width of the largest frame that a front end is given
_FRAME_CHANNELS = tuple(Channel(name=n, unit="1", minimum=0, maximum=255) for n in COLOURS)


def names_of(wanted: Wanted) -> dict[str, tuple[str, ...]] | None:
    """Each wanted modality with the names of its channels."""
    if wanted is None:
        return None
    return {name: tuple(c.name for c in spec.channels) for name, spec in wanted.items()}


def modality_of(
    address: Address, wanted: Wanted, kind: str, default: str, option: str = "modality"
) -> tuple[str, Modality | None]:
    """The modality that a source gives, as what is `given` of it (None: as the device has it).

    It is the one that the URI's option names; else `default` if that is wanted; else, for images and
    sound, the only one of its kind. Raises FusedgeError where none is left, or several are.
    """
    named = address.options.get(option)
    if wanted is None:
        return named or default, None
    of_kind = [name for name, spec in wanted.items() if spec.kind == kind]
    if named is not None:
        if named not in of_kind:
            raise UnknownNameError(f"{kind} modality in {address.uri}", named, of_kind)
        return named, given(wanted[named])
    if default in of_kind:
        return default, given(wanted[default])
    if len(of_kind) == 1 and kind != "series":
        return of_kind[0], given(wanted[of_kind[0]])
    if of_kind:
        raise address.error(
            f"may give one of {', '.join(of_kind)}", hint=f"say which: {option}={of_kind[0]}"
        )
    raise FusedgeError(
        f"offers none of the wanted modalities ({', '.join(wanted) or 'none wanted'})",
        where=address.uri,
        hint=f"it gives {kind}",
    )


def given(spec: Modality) -> Modality:
    """What a source gives of a modality: its samples, or, for a front end of faces, whole frames in RGB.

    Their height and width are then the most that a frame may have, see `picture_size`.
    """
    if spec.front is None or spec.kind != "image":
        return spec
    whole = {"channels": _FRAME_CHANNELS, "height": FRAME_SIZE[0], "width": FRAME_SIZE[1]}
    return spec.model_copy(update=whole)


def picture_size(spec: Modality, height: int, width: int) -> tuple[int, int]:
    """Height and width in which a source gives a picture of `height` x `width`, for a `given` modality.

    It is stretched to the modality's size. A whole frame, for a front end, keeps its own; only if it is
    larger than FRAME_SIZE, upright or on its side, it is shrunk, alike in height and width.
    """
    if spec.front is None:
        return spec.height or 0, spec.width or 0
    long, short = max(FRAME_SIZE), min(FRAME_SIZE)
    scale = min(1.0, long / max(height, width), short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class _OtherAxesError(UnknownNameError):
    """Channels in other axes than the wanted ones: the closest name would mislead."""

    def __init__(self, kind: str, name: str, offered: Collection[str]) -> None:
        hint = f"it gives {', '.join(offered)}: axes of the sensor or the earth, not the vehicle's"
        FusedgeError.__init__(self, f"unknown {kind} {name!r}", hint=hint)


def unknown_channel(
    address: Address, modality: str, wanted: Sequence[str], offered: Collection[str]
) -> UnknownNameError:
    """The error for a modality of which not one wanted channel is offered."""
    kind = f"channel of {modality} in {address.uri}"
    axes = ("_x", "_y", "_z")
    if any(o.endswith(axes) for o in offered) and not any(w.endswith(axes) for w in wanted):
        return _OtherAxesError(kind, wanted[0], offered)
    return UnknownNameError(kind, wanted[0], offered)


def unmeasured(address: Address, modality: str, lacking: Sequence[str]) -> str:
    """The warning for wanted channels that are not offered."""
    return f"{address.uri}: {modality} comes without {', '.join(lacking)}; not measured"


class Damage(str):
    """A warning of input that is there and cannot be read; any other tells of what was never there."""

    __slots__ = ()


class RowLayout:
    """How the channels that a source offers become the rows of a modality.

    `offered` are the source's channels with their units. With a description of the modality, rows have
    its channels in its order and units; what is not offered stays NaN, and `warnings` says so.
    Raises UnknownNameError where not one channel is offered, FusedgeError where a unit cannot be
    converted. A unit that is not known (empty) is taken for the wanted one.
    """

    def __init__(
        self, address: Address, modality: str, spec: Modality | None, offered: Mapping[str, str]
    ) -> None:
        self.modality = modality
        units = dict(offered) if spec is None else {c.name: c.unit for c in spec.channels}
        self.channels, self.units = tuple(units), tuple(units.values())
        self.warnings: tuple[str, ...] = ()
        given = [name for name in self.channels if name in offered]
        if not given:
            raise unknown_channel(address, modality, self.channels, offered)
        lacking = [name for name in self.channels if name not in offered]
        if lacking:
            self.warnings = (unmeasured(address, modality, lacking),)
        self._columns = {
            name: (
                self.channels.index(name),
                conversion(offered[name], units[name], f"{modality}.{name} in {address.uri}"),
            )
            for name in given
        }

    @property
    def used(self) -> tuple[str, ...]:
        """The offered channels that rows have."""
        return tuple(self._columns)

    def row(self, values: Mapping[str, float]) -> NDArray[np.float32]:
        """A row float32 `[channels]` from values in the offered units; NaN for what is not there."""
        row = np.full(len(self.channels), math.nan, np.float32)
        for name, value in values.items():
            place = self._columns.get(name)
            if place is not None:
                column, convert = place
                row[column] = convert(value)
        return row
