"""Units of channels, and what turns a number in one into a number in another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from fusedge.bundle.errors import FusedgeError

G = 9.80665  # standard gravity, m/s2 (CGPM 1901)


class Unit(NamedTuple):
    """Of what quantity; `value * factor + offset` is in the quantity's base unit."""

    quantity: str
    factor: float
    offset: float = 0.0


UNITS: Mapping[str, Unit] = {
    "1": Unit("ratio", 1),
    "count": Unit("ratio", 1),
    "%": Unit("ratio", 0.01),
    "m": Unit("length", 1),
    "km": Unit("length", 1000),
    "ft": Unit("length", 0.3048),
    "s": Unit("time", 1),
    "ms": Unit("time", 1e-3),
    "us": Unit("time", 1e-6),
    "ns": Unit("time", 1e-9),
    "m/s": Unit("speed", 1),
    "km/h": Unit("speed", 1 / 3.6),
    "mph": Unit("speed", 0.44704),
    "kn": Unit("speed", 1852 / 3600),
    "m/s2": Unit("acceleration", 1),
    "g": Unit("acceleration", G),
    "rad": Unit("angle", 1),
    "deg": Unit("angle", math.pi / 180),
    "rad/s": Unit("angular speed", 1),
    "deg/s": Unit("angular speed", math.pi / 180),
    "rpm": Unit("angular speed", math.pi / 30),
    "Hz": Unit("frequency", 1),
    "Pa": Unit("pressure", 1),
    "kPa": Unit("pressure", 1000),
    "bar": Unit("pressure", 1e5),
    "K": Unit("temperature", 1),
    "degC": Unit("temperature", 1, 273.15),
    "degF": Unit("temperature", 5 / 9, 273.15 - 32 * 5 / 9),
    "T": Unit("magnetic field", 1),
    "uT": Unit("magnetic field", 1e-6),
    "V": Unit("voltage", 1),
    "A": Unit("current", 1),
    "N": Unit("force", 1),
    "Nm": Unit("torque", 1),
}
# As DBC files and sensors write them.
_SPELLINGS: Mapping[str, str] = {
    "": "1",
    "kph": "km/h",
    "kmh": "km/h",
    "km/hour": "km/h",
    "kmph": "km/h",
    "mps": "m/s",
    "m/sec": "m/s",
    "mi/h": "mph",
    "m/s^2": "m/s2",
    "m/s²": "m/s2",
    "m/s/s": "m/s2",
    "degree": "deg",
    "degrees": "deg",
    "°": "deg",
    "deg/sec": "deg/s",
    "degree/s": "deg/s",
    "°/s": "deg/s",
    "radian": "rad",
    "rad/sec": "rad/s",
    "rev/min": "rpm",
    "1/min": "rpm",
    "percent": "%",
    "degree c": "degC",
    "°c": "degC",
    "c": "degC",
    "knots": "kn",
    "sec": "s",
}


def unit(name: str) -> Unit | None:
    """The unit of that name, in one of its spellings; None where it is not known."""
    name = name.strip()
    found = UNITS.get(name)
    if found is None:
        spelling = _SPELLINGS.get(name.casefold())
        folded = {known.casefold(): known for known in UNITS}.get(name.casefold())
        found = UNITS.get(spelling or folded or "")
    return found


class Conversion(NamedTuple):
    """`value * factor + offset`."""

    factor: float
    offset: float

    def __call__(self, value: float) -> float:
        """The number in the other unit."""
        return value * self.factor + self.offset


def conversion(have: str, want: str, where: str = "") -> Conversion:
    """What turns a number in unit `have` into one in `want`.

    Raises FusedgeError where they are not of one quantity. Units that are spelt alike need not be known.
    """
    if have.strip() == want.strip():
        return Conversion(1.0, 0.0)
    source, target = unit(have), unit(want)
    if source is None or target is None:
        name = have if source is None else want
        raise FusedgeError(f"unknown unit {name!r}", where=where, hint=f"known: {', '.join(UNITS)}")
    if source.quantity != target.quantity:
        raise FusedgeError(
            f"{have} is a {source.quantity}, {want} a {target.quantity}", where=where
        )
    return Conversion(
        source.factor / target.factor, (source.offset - target.offset) / target.factor
    )
