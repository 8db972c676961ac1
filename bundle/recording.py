"""What a recording says: topics, schemas, and samples as messages and back, to the bit.

A recording is an MCAP file of JSON messages. Log time is arrival, publish time is capture, both on the
session's clock. Sound, images and positions have Foxglove's schemas, so that its viewer shows them;
what these cannot say but a replay needs stands in the same message, in fields of our own:

- `arrival_ns` and `timestamp_ns`, where a time is below 0 and so cannot be in MCAP's header;
- `stamp`, where it is not `capture`;
- `bits`, the float32 of a series in base64, where one is infinite or a NaN with a payload (a plain
  NaN, a channel that was not measured, is null).

Sound is `pcm-s16`, which the viewer plays, where that is exact, else `pcm-f32`. An image is PNG, or
JPEG where the user chose it and with it a recording that is not exact. Any other array, such as a
malformed one, is a `fusedge.Array`. `data` comes last in its message, so that neither side parses it
as JSON.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle import png
from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import Manifest
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import NANOSECONDS

MAX_DATA_BYTES = 96 << 20  # of a sample: an RGB frame of 7680 x 4320 has 95 MiB
MAX_TEXT_BYTES = 1 << 20  # of a message but for its `data`: decisions have some 2 kB
MAX_NAME = 1000  # characters of a modality or a reason
_MAX_DIMENSIONS = 8
_MAX_CHANNELS = 10_000  # of a series, of some 30 bytes each
_DATA = b',"data":"'
_INT64 = range(-(2**63), 2**63)
_PLAIN_NAN = np.array(np.nan, np.float32).tobytes()

Form = Literal["series", "location", "image", "audio", "array", "rejection", "document"]
_WITH_PAYLOAD: tuple[Form, ...] = ("image", "audio", "array")


@dataclass(frozen=True)
class Track:
    """What a recording knows of a modality: names of its channels, samples a second (0: unknown), and
    of a series the channels' units (none: unknown).
    """

    channels: tuple[str, ...]
    rate_hz: float = 0.0
    units: tuple[str, ...] = ()


class Channel(NamedTuple):
    """Where a message belongs: its topic, the schema's name, and how to read it."""

    topic: str
    schema: str
    form: Form
    modality: str = ""


class Message(NamedTuple):
    """A message; times are 0 where they are below 0, and then stand in `data` as well."""

    channel: Channel
    log_ns: int
    publish_ns: int
    data: bytes


class Document(NamedTuple):
    """Something else than input: a decision, an event, an entry of the journal, a gap."""

    channel: Channel
    log_ns: int
    publish_ns: int
    data: bytes

    def fields(self) -> dict[str, Any]:
        """The JSON object; raises ValueError where it is none."""
        return _parse(self.data)


REJECTIONS = Channel("/fusedge/rejections", "fusedge.Rejection", "rejection")
JOURNAL = Channel("/fusedge/journal", "fusedge.Journal", "document")
DECISIONS = Channel("/fusedge/decisions", "fusedge.Decision", "document")
EVENTS = Channel("/fusedge/events", "fusedge.Event", "document")
GAPS = Channel("/fusedge/gaps", "fusedge.Gap", "document")
OWN_CHANNELS: Mapping[str, Channel] = {
    channel.topic: channel for channel in (REJECTIONS, JOURNAL, DECISIONS, EVENTS, GAPS)
}


def tracks_of(manifest: Manifest) -> dict[str, Track]:
    """The tracks of a bundle's modalities."""
    return {
        m.name: Track(
            tuple(channel.name for channel in m.channels),
            m.rate_hz,
            tuple(channel.unit for channel in m.channels) if m.kind == "series" else (),
        )
        for m in manifest.modalities
    }


def sample_channel(modality: str, form: Form) -> Channel:
    """Where samples of a modality lie; odd arrays have a topic of their own, for a topic has one schema."""
    topic = f"/{modality}/array" if form == "array" else f"/{modality}"
    return Channel(topic, _SAMPLE_SCHEMAS[form], form, modality)


def sample_message(sample: Sample, track: Track | None, jpeg_quality: int | None = None) -> Message:
    """A sample as a message; `read_sample` gives the same bits back, unless images are JPEG.

    Raises FusedgeError where the data has more than MAX_DATA_BYTES or is no plain numbers.
    """
    data, timestamp_ns = sample.data, int(sample.timestamp_ns)
    if data.nbytes > MAX_DATA_BYTES or data.dtype.kind not in "biuf":
        raise FusedgeError(
            f"a sample of {data.nbytes} bytes of {data.dtype} cannot be recorded",
            where=sample.modality,
        )
    form = _form(data, track)
    fields: dict[str, Any] = {"timestamp": _foxglove_time(timestamp_ns)}
    payload: bytes | None = None
    if form == "image":
        payload, encoding = _encode_image(data, jpeg_quality)
        fields |= {"frame_id": sample.modality, "format": encoding}
    elif form == "audio":
        payload, encoding = _encode_audio(data)
        fields |= {
            "format": encoding,
            "sample_rate": round(track.rate_hz) if track else 0,
            "number_of_channels": data.shape[1],
        }
    elif form == "array":
        payload = data.tobytes()
        fields |= {"dtype": data.dtype.str, "shape": data.shape}
    else:
        assert track is not None, "a series has a track"
        fields |= _series_fields(data, track, sample.modality, form)
    if sample.stamp != "capture":
        fields["stamp"] = sample.stamp
    channel = sample_channel(sample.modality, form)
    return _message(channel, int(sample.arrival_ns), timestamp_ns, fields, payload)


def rejection_message(rejection: Rejection) -> Message:
    """A rejection as a message."""
    arrival_ns = rejection.arrival_ns
    fields = {
        "modality": rejection.modality,
        "reason": rejection.reason,
        "detail": rejection.detail,
        "samples": rejection.samples,
    }
    return _message(REJECTIONS, arrival_ns, arrival_ns, fields, None)


def document_message(
    channel: Channel, log_ns: int, publish_ns: int, fields: Mapping[str, Any]
) -> Message:
    """Anything else; its own fields must say the times where they matter."""
    data = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    return Message(channel, _header_ns(log_ns), _header_ns(publish_ns), data)


def read_message(message: Message, track: Track | None) -> Sample | Rejection | Document:
    """What a message says; raises ValueError, in a few words, where it is none of ours.

    Its size must have been bounded by MAX_MESSAGE_BYTES.
    """
    channel = message.channel
    if channel.form == "document":
        return Document(*message)
    head, payload = message.data, b""
    if channel.form in _WITH_PAYLOAD:
        head, _, payload = message.data.partition(_DATA)
        if not payload.endswith(b'"}'):
            raise ValueError("data is not the last field")
        head += b"}"
    fields = _parse(head)
    arrival_ns = _integer(fields.get("arrival_ns", message.log_ns))
    if channel.form == "rejection":
        texts = [fields.get(name) for name in ("modality", "reason", "detail")]
        samples = _integer(fields.get("samples"))
        if not all(isinstance(text, str) for text in texts) or samples < 0:
            raise ValueError("not a rejection")
        modality, reason, detail = (str(text) for text in texts)
        if max(len(modality), len(reason)) > MAX_NAME:
            raise ValueError("a name that is too long")
        return Rejection(modality, arrival_ns, reason, detail, samples)
    stamp: StampKind = "arrival" if fields.get("stamp") == "arrival" else "capture"
    timestamp_ns = _integer(fields.get("timestamp_ns", message.publish_ns))
    try:
        data = _data(channel, fields, binascii.a2b_base64(payload[:-2]), track)
    except (KeyError, TypeError, OverflowError, binascii.Error):
        raise ValueError(f"not a {channel.schema}") from None
    return Sample(channel.modality, timestamp_ns, arrival_ns, data, stamp)


MAX_MESSAGE_BYTES = MAX_DATA_BYTES * 4 // 3 + MAX_TEXT_BYTES


def max_message_bytes(form: Form) -> int:
    """The longest message of a form that is worth parsing."""
    return MAX_MESSAGE_BYTES if form in _WITH_PAYLOAD else MAX_TEXT_BYTES


def _form(data: NDArray[Any], track: Track | None) -> Form:
    floats = data.dtype == np.float32 and data.dtype.isnative and data.size > 0
    if floats and data.ndim == 2:
        return "audio"
    named = track is not None and len(track.channels) == data.size <= _MAX_CHANNELS
    if floats and data.ndim == 1 and track is not None and named:
        return "location" if {"latitude", "longitude"} <= set(track.channels) else "series"
    return "image" if png.can_encode(data) else "array"


def _series_fields(
    data: NDArray[np.float32], track: Track, modality: str, form: Form
) -> dict[str, Any]:
    finite = np.isfinite(data)
    numbers: list[float | None] = data.tolist()
    fields: dict[str, Any] = {}
    if not finite.all():
        odd = data[~finite].tobytes()
        if odd != _PLAIN_NAN * (len(odd) // 4):
            fields["bits"] = base64.b64encode(data.astype("<f4").tobytes()).decode()
        numbers = [v if ok else None for v, ok in zip(numbers, finite.tolist(), strict=True)]
    values = dict(zip(track.channels, numbers, strict=True))
    if form == "location":
        fields |= {
            "frame_id": modality,
            "latitude": values.pop("latitude"),
            "longitude": values.pop("longitude"),
            "altitude": values.pop("altitude", 0.0),
            "position_covariance": [0.0] * 9,
            "position_covariance_type": 0,
        }
    return {**fields, "values": values}


def _encode_image(data: NDArray[np.uint8], jpeg_quality: int | None) -> tuple[bytes, str]:
    if jpeg_quality is None or data.shape[2] not in (1, 3):
        return png.encode(data), "png"
    image = pillow().fromarray(data[:, :, 0] if data.shape[2] == 1 else data)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue(), "jpeg"


def pillow() -> Any:
    """The module PIL.Image; raises MissingExtraError where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "record", "JPEG in recordings") from None
    return Image


def _encode_audio(data: NDArray[np.float32]) -> tuple[bytes, str]:
    with np.errstate(invalid="ignore", over="ignore"):
        integers = (data * np.float32(32768)).astype("<i2")
    if _from_s16(integers).tobytes() == data.tobytes():
        return integers.tobytes(), "pcm-s16"
    return data.astype("<f4").tobytes(), "pcm-f32"


def _from_s16(integers: NDArray[np.int16]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = integers.astype(np.float32) / np.float32(32768)
    return values


def _data(
    channel: Channel, fields: Mapping[str, Any], payload: bytes, track: Track | None
) -> NDArray[Any]:
    if channel.form == "array":
        return _array(fields["dtype"], fields["shape"], payload)
    if channel.form == "image":
        return _decode_image(fields["format"], payload)
    if channel.form == "audio":
        columns = _integer(fields["number_of_channels"])
        if columns < 1 or fields["format"] not in ("pcm-s16", "pcm-f32"):
            raise ValueError("not sound of a recording")
        if fields["format"] == "pcm-s16":
            return _from_s16(np.frombuffer(payload, "<i2").reshape(-1, columns))
        return np.frombuffer(payload, "<f4").astype(np.float32, copy=False).reshape(-1, columns)
    if track is None:
        raise ValueError("its channels have no names")
    if "bits" in fields:
        values = np.frombuffer(binascii.a2b_base64(fields["bits"]), "<f4")
        if len(values) != len(track.channels):
            raise ValueError("another number of channels")
        return values.astype(np.float32, copy=False)
    numbers = {**fields, **fields["values"]} if channel.form == "location" else fields["values"]
    with np.errstate(over="ignore"):
        return np.array([_number(numbers[name]) for name in track.channels], np.float32)


def _number(value: object) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return float(value)


def _array(dtype: object, shape: object, payload: bytes) -> NDArray[Any]:
    kind = np.dtype(str(dtype)[:8])
    if kind.kind not in "biuf" or not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("not an array of numbers")
    sides = [_integer(side) for side in shape]
    if not all(0 <= side <= MAX_DATA_BYTES for side in sides):
        raise ValueError("a side that no array has")
    if math.prod(sides) * kind.itemsize != len(payload):
        raise ValueError("its shape and its size differ")
    return np.frombuffer(payload, kind).reshape(sides)


def _decode_image(encoding: object, payload: bytes) -> NDArray[np.uint8]:
    if encoding == "png":
        return png.decode(payload, MAX_DATA_BYTES)
    if encoding != "jpeg":
        raise ValueError("neither PNG nor JPEG")
    module = pillow()
    try:
        image = module.open(io.BytesIO(payload), formats=("JPEG",))
        width, height = image.size
        if image.mode not in ("L", "RGB") or width * height * 3 > MAX_DATA_BYTES:
            raise ValueError(f"an image of {width} x {height}, {image.mode}")
        pixels = np.asarray(image)
    except Exception as error:  # on a damaged file Pillow raises whatever went wrong inside
        raise ValueError(f"not a JPEG of a recording ({type(error).__name__})") from None
    return pixels.reshape(height, width, -1)


def _message(
    channel: Channel,
    log_ns: int,
    publish_ns: int,
    fields: dict[str, Any],
    payload: bytes | None,
) -> Message:
    if log_ns != _header_ns(log_ns):
        fields["arrival_ns"] = log_ns
    if publish_ns != _header_ns(publish_ns):
        fields["timestamp_ns"] = publish_ns
    data = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    if payload is not None:
        data = b"".join((data[:-1], _DATA, binascii.b2a_base64(payload, newline=False), b'"}'))
    return Message(channel, _header_ns(log_ns), _header_ns(publish_ns), data)


def _header_ns(time_ns: int) -> int:
    """MCAP's times are unsigned; viewers take them for signed ones of 64 bits."""
    return time_ns if 0 <= time_ns < 2**63 else 0


def _foxglove_time(time_ns: int) -> dict[str, int]:
    sec, nsec = divmod(_header_ns(time_ns), NANOSECONDS)
    return {"sec": sec, "nsec": nsec}


def _parse(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError("too long")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def _integer(value: object) -> int:
    """An int64 as it is; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
        raise ValueError("not a whole number of 64 bits")
    return value


def _object(title: str, description: str, **properties: Any) -> dict[str, Any]:
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": properties,
    }


_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_BYTES = {"type": "string", "contentEncoding": "base64"}
_TIME = {
    "type": "object",
    "title": "time",
    "properties": {
        "sec": {"type": "integer", "minimum": 0},
        "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
}
_EXACT = {  # what a replay needs besides
    "stamp": {"enum": ["capture", "arrival"]},
    "arrival_ns": _WHOLE,
    "timestamp_ns": _WHOLE,
}
_VALUES = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
_SAMPLE_SCHEMAS: Mapping[Form, str] = {
    "series": "fusedge.Series",
    "location": "foxglove.LocationFix",
    "image": "foxglove.CompressedImage",
    "audio": "foxglove.RawAudio",
    "array": "fusedge.Array",
}
FORMS: Mapping[str, Form] = {schema: form for form, schema in _SAMPLE_SCHEMAS.items()}
SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    schema["title"]: schema
    for schema in (
        _object(
            "fusedge.Series",
            "One number a channel; null was not measured",
            timestamp=_TIME,
            values=_VALUES,
            bits=_BYTES,
            **_EXACT,
        ),
        _object(
            "foxglove.LocationFix",
            "A position; covariance is unknown",
            timestamp=_TIME,
            frame_id=_TEXT,
            latitude=_NUMBER,
            longitude=_NUMBER,
            altitude=_NUMBER,
            position_covariance={"type": "array", "items": _NUMBER, "minItems": 9, "maxItems": 9},
            position_covariance_type={"type": "integer", "minimum": 0, "maximum": 3},
            values=_VALUES,
            bits=_BYTES,
            **_EXACT,
        ),
        _object(
            "foxglove.CompressedImage",
            "An image as PNG or JPEG",
            timestamp=_TIME,
            frame_id=_TEXT,
            data=_BYTES,
            format=_TEXT,
            **_EXACT,
        ),
        _object(
            "foxglove.RawAudio",
            "A block of sound, interleaved, little-endian; its stamp is that of its last sample",
            timestamp=_TIME,
            data=_BYTES,
            format=_TEXT,
            sample_rate=_WHOLE,
            number_of_channels=_WHOLE,
            **_EXACT,
        ),
        _object(
            "fusedge.Array",
            "Any other array: NumPy's name of its type, its shape, its bytes",
            timestamp=_TIME,
            dtype=_TEXT,
            shape={"type": "array", "items": _WHOLE},
            data=_BYTES,
            **_EXACT,
        ),
        _object(
            "fusedge.Rejection",
            "Input that could not become a sample",
            modality=_TEXT,
            reason=_TEXT,
            detail=_TEXT,
            samples=_WHOLE,
            arrival_ns=_WHOLE,
            timestamp_ns=_WHOLE,
        ),
        _object(
            "fusedge.Journal",
            "A step that the pipeline began (cut, tick), the end of a part's run (finish), "
            "or a change of the bundle (swapped)",
            type={"enum": ["cut", "tick", "finish", "swapped"]},
            modality=_TEXT,
            end_ns=_WHOLE,
            tick_ns=_WHOLE,
            skipped=_WHOLE,
            reason=_TEXT,
            part=_TEXT,
            failure=_TEXT,
            now_ns=_WHOLE,
            rows=_WHOLE,
            row=_WHOLE,
            bundle_sha256=_TEXT,
        ),
        _object(
            "fusedge.Decision",
            "What the pipeline said at one tick, as in its JSON Lines",
            type=_TEXT,
            t_s=_NUMBER,
            outputs={"type": "object"},
            modalities={"type": "object"},
            latency_ms=_NUMBER,
            problem={"type": ["string", "null"]},
        ),
        _object(
            "fusedge.Event",
            "The start, rise or end of an event, as in the JSON Lines",
            type=_TEXT,
            name=_TEXT,
            number=_WHOLE,
            phase=_TEXT,
            t_s=_NUMBER,
            level=_WHOLE,
            peak=_NUMBER,
            duration_s=_NUMBER,
        ),
        _object("fusedge.Gap", "Entries that were lost before they could be recorded", lost=_WHOLE),
    )
}
