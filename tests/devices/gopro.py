"""Telemetry as a GoPro writes it, by itself or in an MP4 file without picture and sound."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def entry(key: str, kind: str, size: int, data: bytes) -> bytes:
    """An entry with `data` in pieces of `size`; kind "" is for entries within."""
    head = struct.pack(">4sBBH", key.encode(), ord(kind) if kind else 0, size, len(data) // size)
    return head + data + b"\0" * (-len(data) % 4)


def nested(key: str, *entries: bytes) -> bytes:
    return entry(key, "", 1, b"".join(entries))


def shorts(key: str, rows: Sequence[Sequence[int]]) -> bytes:
    flat = [number for row in rows for number in row]
    return entry(key, "s", 2 * len(rows[0]), struct.pack(f">{len(flat)}h", *flat))


def longs(key: str, rows: Sequence[Sequence[int]]) -> bytes:
    flat = [number for row in rows for number in row]
    return entry(key, "l", 4 * len(rows[0]), struct.pack(f">{len(flat)}l", *flat))


def motion(
    key: str, rows: Sequence[Sequence[int]], axes: str = "ZXY", scale: int = 100, unit: str = ""
) -> bytes:
    unit = unit or {"ACCL": "m/s\xb2", "GYRO": "rad/s"}[key]
    parts = [entry("SIUN", "c", len(unit), unit.encode("latin-1")), shorts("SCAL", [[scale]])]
    if axes:
        parts.append(entry("ORIN", "c", 1, axes.encode()))
    return nested("STRM", *parts, shorts(key, rows))


def gps5(rows: Sequence[Sequence[int]], fix: int = 3) -> bytes:
    return nested(
        "STRM",
        entry("GPSF", "L", 4, struct.pack(">L", fix)),
        longs("SCAL", [[10**7], [10**7], [1000], [1000], [100]]),
        longs("GPS5", rows),
    )


def gps9(rows: Sequence[Sequence[int]]) -> bytes:
    data = b"".join(struct.pack(">7lHH", *row) for row in rows)
    return nested(
        "STRM",
        entry("TYPE", "c", 1, b"lllllllSS"),
        longs("SCAL", [[s] for s in (10**7, 10**7, 1000, 1000, 100, 1, 1000, 100, 1)]),
        entry("GPS9", "?", 32, data),
    )


def device(*streams: bytes, name: str = "Camera", number: int = 1) -> bytes:
    return nested(
        "DEVC",
        entry("DVID", "L", 4, struct.pack(">L", number)),
        entry("DVNM", "c", 1, name.encode()),
        *streams,
    )


def film(payloads: Sequence[bytes], durations_ms: Sequence[int]) -> bytes:
    """An MP4 file with one track of telemetry."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">L4s", 8 + len(body), kind) + body

    def full(kind: bytes, *numbers: int, rest: bytes = b"") -> bytes:
        return box(kind, b"\0" * 4, struct.pack(f">{len(numbers)}L", *numbers), rest)

    start = box(b"ftyp", b"mp41", b"\0" * 4, b"mp41")
    total = sum(durations_ms)
    count = len(payloads)
    times = [number for duration in durations_ms for number in (1, duration)]
    table = box(
        b"stbl",
        full(b"stsd", 1, rest=box(b"gpmd", b"\0" * 6, struct.pack(">HL", 1, 0))),
        full(b"stts", count, *times),
        full(b"stsc", 1, 1, count, 1),
        full(b"stsz", 0, count, *map(len, payloads)),
        full(b"stco", 1, len(start) + 8),
    )
    handler = box(b"hdlr", b"\0" * 8, b"meta", b"\0" * 12, b"GoPro MET\0")
    header = full(b"gmin", 0, 0, 0)
    minf = box(b"minf", box(b"gmhd", header), table)
    media = box(b"mdia", full(b"mdhd", 0, 0, 1000, total, 0), handler, minf)
    track = box(b"trak", full(b"tkhd", 0, 0, 1, 0, total, *[0] * 15), media)
    movie = full(b"mvhd", 0, 0, 1000, total, 0x10000, *[0] * 19, 2)
    return start + box(b"mdat", *payloads) + box(b"moov", movie, track)
