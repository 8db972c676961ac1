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
    "mm": Unit("length", 1e-3),
    "cm": Unit("length", 1e-2),
    "km": Unit("length", 1000),
    "ft": Unit("length", 0.3048),
    "s": Unit("time", 1),
    "ms": Unit("time", 1e-3),
    "us": Unit("time", 1e-6),
    "ns": Unit("time", 1e-9),
    "min": Unit("time", 60),
    "h": Unit("time", 3600),
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
    "hPa": Unit("pressure", 100),
    "kPa": Unit("pressure", 1000),
    "MPa": Unit("pressure", 1e6),
    "mbar": Unit("pressure", 100),
    "bar": Unit("pressure", 1e5),
    "psi": Unit("pressure", 4.4482216152605 / 0.0254**2),  # lbf/in2, NIST SP 811
    "K": Unit("temperature", 1),
    "degC": Unit("temperature", 1, 273.15),
    "degF": Unit("temperature", 5 / 9, 273.15 - 32 * 5 / 9),
    "T": Unit("magnetic field", 1),
    "uT": Unit("magnetic field", 1e-6),
    "V": Unit("voltage", 1),
    "mV": Unit("voltage", 1e-3),
    "A": Unit("current", 1),
    "mA": Unit("current", 1e-3),
    "W": Unit("power", 1),
    "kW": Unit("power", 1000),
    "N": Unit("force", 1),
    "kN": Unit("force", 1000),
    "Nm": Unit("torque", 1),
}
# Case counts. These are what sensors write, and the 115 DBC files of opendbc 0.3.1; C, F, G and NM are
# there temperatures, an acceleration and torques.
_WRITTEN: Mapping[str, tuple[str, ...]] = {
    "1": ("-", "unitless", "Unitless", "Unit_None"),
    "count": ("counts", "Counts"),
    "%": ("percent", "Percent", "Unit_PerCent"),
    "m": ("meter", "meters", "Meters", "Unit_Meter"),
    "mm": ("millimeter", "Unit_MilliMeter"),
    "cm": ("Unit_Centimeter",),
    "km": ("Km", "kilometer", "Unit_KiloMeter"),
    "ft": ("feet",),
    "s": ("sec", "secs", "second", "seconds", "Seconds", "Unit_Secon"),
    "ms": ("millisecond", "Unit_MilliSecon"),
    "us": ("usec", "uSec"),
    "min": ("Min", "minute", "minutes", "Minute", "Minutes", "Unit_Minut"),
    "h": ("hr", "hour", "hours", "Hour", "Hours", "Unit_Hours"),
    "m/s": ("mps", "m/sec", "meters/sec", "Unit_MeterPerSecon", "Unit_MeterPerSecond"),
    "km/h": (
        *("kph", "Kph", "KPH", "kmh", "kmph", "Km/h", "km / h", "km/hr", "km/hour"),
        *("kilometer/hour", "Unit_KiloMeterPerHour", "Unit_KilometerPerHour"),
    ),
    "mph": ("MPH", "mi/h"),
    "kn": ("knots",),
    "m/s2": (
        *("m/s^2", "m/s²", "m/s/s", "m/s**2", "m/sec^2"),
        *("Unit_MeterPerSeconSquar", "Unit_MeterPerSquareSecond"),
    ),
    "g": ("G", "Unit_ForceOfGravi"),
    "rad": ("radian", "radians"),
    "deg": ("Deg", "degree", "degrees", "Degree", "Degrees", "°", "Unit_DegreOfArc"),
    "rad/s": ("rad/sec", "radians/sec", "radians/second"),
    "deg/s": (
        *("Deg/s", "deg/S", "deg/sec", "degree/s", "degrees/sec", "degrees/second", "°/s"),
        *("Unit_DegreOfArcPerSecon", "Unit_DegreePerSecond"),
    ),
    "rpm": ("RPM", "rev/min", "1/min", "r/min", "R/min", "U/min", "upm", "Unit_MinutInver"),
    "Hz": ("Unit_Hertz",),
    "kPa": ("KPa", "kpa", "kilopascal", "KiloPascal"),
    "MPa": ("Mpa",),
    "mbar": ("Millibar", "Unit_MilliBar"),
    "bar": ("Bar", "Unit_Bar"),
    "psi": ("Psi", "PSI"),
    "degC": (
        *("C", "°C", "DegC", "deg C", "degreesC", "degree C", "Degrees C", "Unit_DegreCelsi"),
    ),
    "degF": ("F",),
    "V": ("volt", "volts", "Volt", "Volts", "VOLT", "Unit_Volt"),
    "mV": ("Unit_MilliVolt",),
    "A": ("ampere", "Amps", "Unit_Amper"),
    "mA": ("Unit_MilliAmper",),
    "W": ("watts", "Unit_Watt"),
    "kW": ("kw", "KW", "Unit_KiloWatt"),
    "kN": ("Unit_KiloNewto",),
    "Nm": ("NM", "N.m", "Unit_NewtoMeter"),
}
_SPELLINGS = {spelling: name for name, spellings in _WRITTEN.items() for spelling in spellings}


def unit(name: str) -> Unit | None:
    """The unit of that name, in one of its spellings; None where it is not known."""
    name = name.strip()
    return UNITS.get(_SPELLINGS.get(name, name))


class Conversion(NamedTuple):
    """`value * factor + offset`."""

    factor: float
    offset: float

    def __call__(self, value: float) -> float:
        """The number in the other unit."""
        return value * self.factor + self.offset


def conversion(have: str, want: str, where: str = "") -> Conversion:
    """What turns a number in unit `have` into one in `want`.

    A number whose unit nobody knows (`have` empty) is taken as it is. Raises FusedgeError where the
    units are not of one quantity; units that are spelt alike need not be known.
    """
    if have.strip() in ("", want.strip()):
        return Conversion(1.0, 0.0)
    source, target = unit(have), unit(want)
    if source is None or target is None:
        name = have if source is None else want
        raise FusedgeError(f"unknown unit {name!r}", where=where, hint=f"known: {', '.join(UNITS)}")
    if source.quantity != target.quantity:
        raise FusedgeError(
            f"{have} is {_a(source.quantity)}, {want} {_a(target.quantity)}", where=where
        )
    return Conversion(
        source.factor / target.factor, (source.offset - target.offset) / target.factor
    )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
