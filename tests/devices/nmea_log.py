"""NMEA sentences of a made-up drive."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

KNOT = 1852 / 3600


def sentence(body: str) -> bytes:
    """`$BODY*CHECKSUM` with its end."""
    checksum = reduce(lambda a, b: a ^ b, body.encode())
    return f"${body}*{checksum:02X}\r\n".encode()


def angle(degrees: float, digits: int, sides: str) -> str:
    whole, minutes = divmod(abs(degrees) * 60, 60)
    return f"{int(whole):0{digits}d}{minutes:08.5f},{sides[degrees < 0]}"


def rmc(
    second: float,
    latitude: float = 40.5,
    longitude: float = -3.25,
    speed: float = 20.0,
    course: float = 90.0,
    status: str = "A",
    talker: str = "GP",
    date: str = "231125",
) -> bytes:
    """Of a second after noon; speed in m/s, course in degrees."""
    place = f"{angle(latitude, 2, 'NS')},{angle(longitude, 3, 'EW')}"
    return sentence(
        f"{talker}RMC,{clock(second)},{status},{place},{speed / KNOT:.4f},{course:.3f},{date},,,A"
    )


def gga(
    second: float,
    latitude: float = 40.5,
    longitude: float = -3.25,
    altitude: float = 610.0,
    quality: int = 1,
    talker: str = "GP",
) -> bytes:
    place = f"{angle(latitude, 2, 'NS')},{angle(longitude, 3, 'EW')}"
    return sentence(
        f"{talker}GGA,{clock(second)},{place},{quality},09,0.9,{altitude:.1f},M,50.0,M,,"
    )


def clock(second: float) -> str:
    hundredths = round(second * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"12{minutes:02d}{rest / 100:05.2f}"


def drive(seconds: int, turn_deg_s: float = 0.0) -> Iterator[bytes]:
    """A burst a second, at 20 m/s, eastward at first."""
    latitude, longitude, course = 40.5, -3.25, 90.0
    for second in range(seconds):
        yield rmc(second, latitude, longitude, course=course % 360) + gga(
            second, latitude, longitude
        )
        latitude += 20 * math.cos(math.radians(course)) / 111_195
        longitude += 20 * math.sin(math.radians(course)) / 111_195 / math.cos(math.radians(40.5))
        course += turn_deg_s
