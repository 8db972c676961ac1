"""The file of a recording: MCAP that is readable at any moment, and a reader that trusts nothing.

The file begins with a metadata record, `fusedge.recording`, that says what it is. Messages follow in the
order in which things happened, numbered by `sequence`, in chunks with a checksum. An index comes at
the end; the reader does without it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.recording import (
    FORMS,
    GAPS,
    MAX_MESSAGE_BYTES,
    MAX_NAME,
    OWN_CHANNELS,
    SCHEMAS,
    Channel,
    Document,
    Message,
    Track,
    max_message_bytes,
    read_message,
    sample_channel,
)
from fusedge.bundle.sample import Rejection, Sample

FORMAT_VERSION = 1
METADATA, SUMMARY = "fusedge.recording", "fusedge.summary"
MAGIC = b"\x89MCAP0\r\n"
CHUNK_BYTES = 1 << 20  # begins a new one; the recorder's flushes make them smaller
MAX_CHUNK_BYTES = MAX_MESSAGE_BYTES + 2 * CHUNK_BYTES
MAX_METADATA_BYTES = 4 << 20
MAX_DEFINITION_BYTES = 64 << 10  # of a schema or channel; ours have 1 kB
_HEAD = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQQ")
_HEADER, _SCHEMA, _CHANNEL, _MESSAGE_CODE, _CHUNK, _METADATA_CODE, _DATA_END = (
    0x01, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x0F,
)  # fmt: skip


class Info(BaseModel):
    """What a recording says of itself; `session` is the session's header, which names a bundle
    where there was one.

    `exact` is False where it does not hold everything that a replay to the bit needs, and `clip` then
    says what surroundings it shows, if it is a clip.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = Field(ge=1)
    fusedge: str
    exact: bool
    clip: str
    tracks: dict[str, Track]
    session: dict[str, Any]


class Gap(NamedTuple):
    """A place where messages are missing: how many if that is known (else 0), and why.

    `modality` is set where one message of it could not be read.
    """

    log_ns: int
    lost: int
    reason: str
    modality: str = ""


def require_mcap() -> None:
    """Raises MissingExtraError where the package mcap is not installed."""
    try:
        import mcap.writer  # noqa: F401
    except ImportError:
        raise MissingExtraError("mcap", "record", "recording and replaying MCAP") from None


class RecordingWriter:
    """A new file of a recording.

    `add` only works in memory; `flush` hands all that was added to the operating system, which keeps
    it if this process is killed. Where that fails with OSError, what is left stays in memory and the
    file is whole as far as it goes: the next `flush` goes on at the very byte.
    """

    def __init__(self, path: Path, info: Info) -> None:
        """Create the file; raises FusedgeError where it is there already or cannot be made."""
        require_mcap()
        from mcap.writer import CompressionType, Writer

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            there = isinstance(error, FileExistsError)
            raise FusedgeError(
                "is there already, and a recording is never replaced"
                if there
                else f"cannot record here: {error.strerror or error}",
                where=str(path),
                hint="choose another name",
            ) from None
        self._spool = _Spool()
        # With all indexes memory grows by 9.3 MB an hour (IMU, GPS and road; a chunk each 0.25 s). It
        # would still by 5.6 MB without that of messages, and Foxglove would then show none.
        self._writer: Any = Writer(self._spool, CHUNK_BYTES, CompressionType.ZSTD)  # type: ignore[arg-type]
        self._writer.start(profile="fusedge")
        fields = info.model_dump(mode="json")
        self._writer.add_metadata(METADATA, {k: json.dumps(v) for k, v in fields.items()})
        self._channels: dict[Channel, int] = {}
        self._schemas: dict[str, int] = {}
        self._sequence = 0

    @property
    def bytes_written(self) -> int:
        """The file's size so far."""
        return self._spool.written

    @property
    def must_flush(self) -> bool:
        """Whether whole chunks wait in memory."""
        return bool(self._spool.waiting)

    def add(self, message: Message) -> None:
        """Append a message."""
        number = self._channels.get(message.channel) or self._register(message.channel)
        self._writer.add_message(
            number, message.log_ns, message.data, message.publish_ns, self._sequence
        )
        self._sequence = (self._sequence + 1) % 2**32

    def _register(self, channel: Channel) -> int:
        schema = self._schemas.get(channel.schema)
        if schema is None:
            text = json.dumps(SCHEMAS[channel.schema]).encode()
            schema = self._writer.register_schema(channel.schema, "jsonschema", text)
            self._schemas[channel.schema] = schema
        about = {"modality": channel.modality} if channel.modality else {}
        number: int = self._writer.register_channel(channel.topic, "json", schema, about)
        self._channels[channel] = number
        return number

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._writer.flush()
        self._spool.drain(self._file)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and the index, and close the file, also after an OSError."""
        try:
            self._writer.flush()
            self._writer.add_metadata(SUMMARY, {k: json.dumps(v) for k, v in summary.items()})
            self._writer.finish()
            self._spool.drain(self._file)
        finally:
            os.close(self._file)


class _Spool:
    """The bytes of a file that wait to be written; mcap's writer takes it for the file itself."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        self.written = 0

    def write(self, data: bytes) -> int:
        self.waiting += data
        return len(data)

    def tell(self) -> int:
        return self.written + len(self.waiting)

    def flush(self) -> None:
        """The writer's flush is not the file's."""

    def drain(self, file: int) -> None:
        while self.waiting:
            count = os.write(file, self.waiting)
            self.written += count
            del self.waiting[:count]


class RecordingFile:
    """A recording, opened; whatever the file holds, only FusedgeError is raised, and only at the start.

    `complete` tells whether it was closed in order. `problem` is empty, or says once `entries` has
    ended what first could not be read.
    """

    def __init__(self, path: Path) -> None:
        require_mcap()
        self.path = path
        self.problem = ""
        try:
            with path.open("rb") as file:
                self._size = file.seek(0, os.SEEK_END)
                file.seek(max(0, self._size - len(MAGIC)))
                self.complete = file.read() == MAGIC and self._size > 2 * len(MAGIC)
                file.seek(0)
                if file.read(len(MAGIC)) != MAGIC:
                    raise FusedgeError("is not an MCAP file", where=str(path))
                self.info = self._find_info(file)
        except OSError as error:
            raise FusedgeError(
                f"cannot be read: {error.strerror or error}", where=str(path)
            ) from None
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, Channel] = {}
        self._sequence = 0

    def _find_info(self, file: BinaryIO) -> Info:
        from mcap.records import Metadata

        for code, data in self._records(file):
            if code == _METADATA_CODE:
                record = _parsed(Metadata, data)
                if record is not None and record.name == METADATA:
                    return self._info(record.metadata)
            elif code != _HEADER:
                break
        raise FusedgeError(
            "is not a recording of fusedge, or ends before it begins", where=str(self.path)
        )

    def _info(self, fields: Mapping[str, str]) -> Info:
        try:
            values = {name: json.loads(text) for name, text in fields.items()}
            version = values.get("format_version")
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise FusedgeError(
                    f"is a recording of format {version}, newer than this program",
                    where=str(self.path),
                    hint="upgrade fusedge",
                )
            return Info.model_validate(values)
        except (ValidationError, ValueError, RecursionError):
            raise FusedgeError(
                "says of itself what cannot be understood", where=str(self.path)
            ) from None

    def entries(self) -> Iterator[Sample | Rejection | Document | Gap]:
        """Everything in the order in which it happened, up to the first byte that makes no sense.

        A chunk that is damaged, but ends where it should, becomes a gap.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(len(MAGIC))
                for code, data in self._records(file):
                    inner = self._unpacked(data) if code == _CHUNK else [(code, data)]
                    for kind, record in inner:
                        if kind == _MESSAGE_CODE:
                            yield from self._message(record)
                        elif kind in (_SCHEMA, _CHANNEL):
                            self._register(kind, record)
        except OSError as error:
            self._note(f"cannot be read on ({error.strerror or error})")

    def _note(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Code and bytes of the records that matter, up to the end of the data."""
        while True:
            offset = file.tell()
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                self._note(f"is cut off at byte {offset}")
                return
            code, length = _HEAD.unpack(head)
            if code == _DATA_END:
                return
            if length > self._size - file.tell():
                self._note(f"is cut off or damaged at byte {offset}")
                return
            limits = {_CHUNK: MAX_CHUNK_BYTES, _METADATA_CODE: MAX_METADATA_BYTES}
            if code in (*limits, _HEADER, _SCHEMA, _CHANNEL, _MESSAGE_CODE):
                if length > limits.get(code, MAX_CHUNK_BYTES):
                    self._note(f"has a record of {length} bytes at byte {offset}")
                    return
                yield code, file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)

    def _unpacked(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        from mcap.records import Chunk

        chunk = _parsed(Chunk, data)
        content = None if chunk is None else _decompressed(chunk)
        if content is None:
            self._note("has a damaged chunk")
            return
        place = 0
        while place + _HEAD.size <= len(content):
            code, length = _HEAD.unpack_from(content, place)
            place += _HEAD.size
            if length > len(content) - place:
                break
            yield code, content[place : place + length]
            place += length
        if place != len(content):
            self._note("has a damaged chunk")

    def _register(self, code: int, data: bytes) -> None:
        from mcap import records

        if len(data) > MAX_DEFINITION_BYTES:
            return
        if code == _SCHEMA:
            schema = _parsed(records.Schema, data)
            if schema is not None and schema.name in SCHEMAS:
                self._schemas[schema.id] = schema.name
            return
        channel = _parsed(records.Channel, data)
        if channel is None:
            return
        name = self._schemas.get(channel.schema_id, "")
        own = OWN_CHANNELS.get(channel.topic)
        modality = channel.metadata.get("modality")
        if own is not None and own.schema == name:
            self._channels[channel.id] = own
        elif name in FORMS and modality and len(modality) <= MAX_NAME:
            self._channels[channel.id] = sample_channel(modality, FORMS[name])

    def _message(self, data: bytes) -> Iterator[Sample | Rejection | Document | Gap]:
        if len(data) < _MESSAGE.size:
            self._note("has a message without a head")
            return
        number, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(data)
        channel = self._channels.get(number)
        if channel is None:
            return  # of another program, or of a chunk that was damaged: then the numbers tell
        if sequence != self._sequence:
            lost = (sequence - self._sequence) % 2**32
            forward = lost < 2**31
            yield Gap(log_ns, lost if forward else 0, "messages are missing or out of order")
        self._sequence = (sequence + 1) % 2**32
        try:
            if len(data) - _MESSAGE.size > max_message_bytes(channel.form):
                raise ValueError("too long")
            message = Message(channel, log_ns, publish_ns, data[_MESSAGE.size :])
            entry = read_message(message, self.info.tracks.get(channel.modality))
            if isinstance(entry, Document) and channel is GAPS:
                lost = entry.fields().get("lost")
                yield Gap(log_ns, lost if isinstance(lost, int) else 0, "recording fell behind")
            else:
                yield entry
        except ValueError as error:
            yield Gap(log_ns, 1, f"message {sequence}: {error}", channel.modality)


def _parsed(kind: Any, data: bytes) -> Any:
    """A record of mcap from its bytes, None where they are no such record."""
    from mcap.data_stream import ReadDataStream
    from mcap.exceptions import McapError

    try:
        return kind.read(ReadDataStream(io.BytesIO(data)))
    except (McapError, struct.error, ValueError, OverflowError):
        return None


def _decompressed(chunk: Any) -> bytes | None:
    """What a chunk holds, None where it is not what its checksum says or larger than it may be."""
    import lz4.frame
    import zstandard

    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        return None
    try:
        if chunk.compression == "zstd":
            unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            content = unpacker.stream_reader(io.BytesIO(chunk.data)).read(size + 1)
        elif chunk.compression == "lz4":
            content = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
        elif chunk.compression == "":
            content = chunk.data
        else:
            return None
    except (zstandard.ZstdError, RuntimeError, ValueError, EOFError):
        return None
    crc_matches = not chunk.uncompressed_crc or zlib.crc32(content) == chunk.uncompressed_crc
    return content if len(content) == size and crc_matches else None
