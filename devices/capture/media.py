"""Files with sound and pictures."""

from __future__ import annotations

import difflib
import heapq
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.decoding import (
    CODEC_OPTIONS,
    Opened,
    Pictures,
    Sound,
    converter_for,
    faults,
    modality_for,
    none_wanted,
    open_decoder,
    pyav,
    reason_of,
    stream_of,
    text_options,
    to_stamp,
)
from fusedge.devices.capture.gif import blocks_of
from fusedge.devices.capture.source import Source

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer
    from av.packet import Packet

# FFmpeg's names of what cameras and recorders write. Formats that open further files (playlists, lists of
# files, session descriptions) are not among them, and so are refused.
FORMATS = "mov,matroska,mpegts,mpeg,avi,gif,wav,w64,aiff,caf,flac,mp3,aac,ogg"
# Of these FFmpeg guesses the length from the size and the first bit rate. An MP3 may state it (Xing).
GUESSED_FORMATS = ("aac", "mp3")
MAX_LEAP_NS = to_ns(10)
MAX_GIF_NS = to_ns(655.35)  # a picture's time is 16 bits of 10 ms
MAX_FALL_NS = to_ns(1)
PIECE_S = 0.02  # of sound at most in a sample, as of a microphone
GAP_NS = to_ns(0.04)  # sound that is missing; stamps in ms, as Matroska's, jitter by 1 ms
PERIOD_NS = to_ns(0.04)  # of pictures, where a file tells neither rate nor length
SHORT_S, SHORT_SHARE = 1.0, 0.1  # less than announced by this much: it was cut off
LENGTH_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
MAX_ERRORS = 16  # of reading, in a row
_READ_BYTES = 1 << 18


def open_media(request: Request) -> Source:
    """The source `file:NAME` of a file with sound, pictures or both; raises FusedgeError.

    A GIF that has one picture is a still.
    """
    from fusedge.devices.capture.still import open_still

    file = _File(request.address, threading.Event())
    try:
        gif = blocks_of(file)
    except OSError as error:
        raise _unopened(request.address, Path(request.address.target), error) from None
    finally:
        file.close()
    if gif is not None and gif.pictures < 2:
        return open_still(request)
    return MediaFile(request, None if gif is None else gif.whole)


def has_telemetry(address: Address) -> bool:
    """Whether the film says that a GoPro camera's telemetry is in it; raises FusedgeError for no film."""
    file = _File(address, threading.Event())
    try:
        with _open(address, file, "data").container as film:
            names = [stream.metadata.get("handler_name", "") for stream in film.streams]
    finally:
        file.close()
    return any("GoPro MET" in name for name in names)


class MediaFile:
    """Contract: pictures and sound of a file on one clock, which starts at 0 with the file.

    Only what is wanted is decoded: pictures of the first video stream (see Pictures) and sound of the first
    audio stream (see Sound). Each is read by itself and they are merged by time, so that a file may
    lay them out as it likes. Items arrive at their stamp, or later where stamps fall. Stamps
    that are missing or leap: see StreamTime; the first in a row is an `implausible_stamp`.

    What cannot be decoded, and a picture that the decoder had to make up in part, is `malformed`. A
    file that ends in the midst of a frame ends with what was whole, and a stream that ends before the
    file says so is `malformed` there; one that is shorter than the other is a warning. Raises
    FusedgeError for what is no such file, and for one that has none of what is wanted. `whole` is how
    many of its pictures are whole, where that is known beforehand: those after them are `malformed`.
    """

    live = False

    def __init__(self, request: Request, whole: int | None = None) -> None:
        self._whole = whole
        self.uri = request.address.uri
        self._closed = threading.Event()
        self._claim = threading.Lock()
        self._tracks: list[_Track] = []
        warnings: list[str] = []
        timeline = Timeline()
        try:
            for type_ in ("video", "audio"):
                found = modality_for(request.address, request.wanted, type_)
                if found is not None:
                    self._add(request, type_, *found, timeline, warnings)
            if not self._tracks:
                lacking = "; ".join(warnings)
                raise request.address.error(lacking) if lacking else none_wanted(request)
        except BaseException:
            self.close()
            raise
        ends_s = {track.modality: track.announced_s for track in self._tracks}
        longest_s = max(ends_s.values())
        warnings += [
            f"{modality} ends at {end_s:.1f} s of {longest_s:.1f} s"
            for modality, end_s in ends_s.items()
            if end_s and _is_short(end_s, longest_s)
        ]
        self.modalities = tuple(track.modality for track in self._tracks)
        self.channels = {track.modality: track.converter.channels for track in self._tracks}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self.warnings = tuple(f"{self.uri}: {warning}" for warning in warnings)

    def _add(
        self,
        request: Request,
        type_: str,
        modality: str,
        spec: Modality | None,
        timeline: Timeline,
        warnings: list[str],
    ) -> None:
        file = _File(request.address, self._closed)
        try:
            container, decoder = _open(request.address, file, type_)
            stream: Any = stream_of(container, type_)
            if stream is None:
                container.close()
                file.close()
                if request.wanted is not None:
                    warnings.append(f"no {modality}, for it has no {type_} stream")
                return
            if type_ == "video" and not stream.codec_context.width:  # FFmpeg has tried in vain
                raise request.address.error("its pictures cannot be decoded, or are too large")
            converter = converter_for(request.address, stream, spec, request.allocate)
            timeline.begin(container)
            track = _Track(modality, file, container, stream, converter, timeline, self._whole)
            self._tracks.append(track)
        except BaseException:
            file.close()
            raise
        if type_ == "video" and request.address.text("decoder") == "auto":
            warnings.append(f"{modality} is decoded by {decoder}")

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        if not self._claim.acquire(blocking=False):  # closed
            return
        try:
            feeds = [track.items() for track in self._tracks]
            for item in heapq.merge(*feeds, key=attrgetter("arrival_ns")):
                if self._closed.is_set():
                    return
                yield item
        finally:
            self._release()

    def close(self) -> None:
        """See Source; from now on the file ends where it is being read."""
        self._closed.set()
        if self._claim.acquire(blocking=False):  # nobody reads
            self._release()

    def _release(self) -> None:
        for track in self._tracks:
            track.close()


class Timeline:
    """What the streams of a file share: by how much their stamps are shifted, so as to start at 0."""

    def __init__(self) -> None:
        self.shift_ns: int | None = None

    def begin(self, container: InputContainer) -> None:
        """Take the start of the file, as its header has it."""
        if self.shift_ns is None:
            self.shift_ns = -int(container.start_time or 0) * 1000  # from AV_TIME_BASE, 1 us


class StreamTime:
    """Contract: `place` gives the time of a stream's next item, from 0 on, by its stamp.

    A stamp more than 10 s after the end of what came before, or 1 s before it, has leapt; time goes on
    from that end, for this stream and for the others when they leap as well, so that they stay
    together. If the next one is back in line, so is time. Without a stamp an item follows the one
    before. So the length of a replay is bounded by its items. `place` says what was wrong, if anything.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._shift_ns = self._earlier_ns = timeline.shift_ns or 0
        self.end_ns = 0
        self.derived = False

    def place(self, stamp_ns: int | None, length_ns: int) -> tuple[int, str]:
        """When an item of that length begins, and what is wrong with its stamp."""
        trouble = ""
        begin_ns = self.end_ns
        if stamp_ns is not None:
            shared_ns = self._timeline.shift_ns or 0
            for shift_ns in (self._shift_ns, shared_ns, self._earlier_ns):
                if -MAX_FALL_NS <= stamp_ns + shift_ns - self.end_ns <= MAX_LEAP_NS:
                    self._shift_ns = shift_ns
                    break
            else:
                leap_s = (stamp_ns + self._shift_ns - self.end_ns) / NANOSECONDS
                trouble = f"at {self.end_ns / NANOSECONDS:.3f} s stamps leap by {leap_s:.3f} s"
                self._earlier_ns = self._shift_ns
                self._timeline.shift_ns = self._shift_ns = self.end_ns - stamp_ns
            begin_ns = stamp_ns + self._shift_ns
        elif not self.derived:
            trouble = f"at {self.end_ns / NANOSECONDS:.3f} s stamps are missing"
        self.derived = stamp_ns is None
        self.end_ns = max(self.end_ns, begin_ns + length_ns)
        return begin_ns, trouble


class _Track:
    """A stream of a file, read through a container of its own."""

    def __init__(
        self,
        modality: str,
        file: _File,
        container: InputContainer,
        stream: Any,
        converter: Pictures | Sound,
        timeline: Timeline,
        whole: int | None,
    ) -> None:
        self.modality = modality
        self.converter = converter
        self._file, self._container, self._stream = file, container, stream
        self._time = StreamTime(timeline)
        self.announced_s = _announced_s(container, stream, timeline.shift_ns or 0)
        self._faults = faults()
        self._arrival_ns = 0
        self._whole = whole
        self._longest_ns = MAX_GIF_NS if container.format.name == "gif" else MAX_LEAP_NS
        rate = getattr(stream, "average_rate", None)
        self._period_ns = PERIOD_NS
        if rate and rate > 0:
            self._period_ns = min(MAX_LEAP_NS, int(NANOSECONDS / rate))

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def items(self) -> Iterator[Sample | Rejection]:
        """All of the stream; one that is much shorter than the file announces was cut off."""
        yield from self._read()
        end_s = self._time.end_ns / NANOSECONDS
        if _is_short(end_s, self.announced_s) and not self._file.ended:
            detail = f"ends at {end_s:.3f} s, where the file says {self.announced_s:.3f} s"
            yield self._rejection("malformed", detail)

    def _read(self) -> Iterator[Sample | Rejection]:
        packets = self._container.demux(self._stream)
        errors = 0
        while errors < MAX_ERRORS:
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV raises it at the end of a file in which streams were added
                break
            except self._faults as error:
                errors += 1
                yield self._malformed(error)
                packets = self._container.demux(self._stream)
                continue
            if packet is None:
                return
            errors = 0
            yield from self._decoded(packet)
        yield from self._decoded(None)

    def _decoded(self, packet: Packet[Any] | None) -> Iterator[Sample | Rejection]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except self._faults as error:
            if packet is not None and packet.size:
                length_ns = to_stamp(packet.duration, self._stream.time_base) or 0
                yield self._malformed(error, length_ns)
            return
        for frame in frames:
            yield from self._items_of(frame)

    def _items_of(self, frame: Any) -> Iterator[Sample | Rejection]:
        converter, time = self.converter, self._time
        end_ns = time.end_ns
        length_ns = self._length_ns(frame)
        stamp_ns, trouble = time.place(to_stamp(frame.pts, self._stream.time_base), length_ns)
        if trouble:
            yield self._rejection("implausible_stamp", trouble)
        try:
            if isinstance(converter, Pictures):
                if frame.is_corrupt or self._whole == 0:
                    raise ValueError("a picture is damaged")
                if self._whole is not None:
                    self._whole -= 1
                data: Any = converter.image(frame)
            else:
                if trouble or stamp_ns - end_ns > GAP_NS:
                    converter.restart()
                block = converter.block(frame, stamp_ns)
                if block is None:
                    return
                data, stamp_ns = block
        except self._faults as error:
            yield self._malformed(error, length_ns)
            return
        stamp: StampKind = "arrival" if time.derived else "capture"
        for piece, piece_ns in self._pieces(data, stamp_ns):
            self._arrival_ns = max(self._arrival_ns, piece_ns)
            yield Sample(self.modality, piece_ns, self._arrival_ns, piece, stamp)

    def _pieces(self, data: NDArray[Any], stamp_ns: int) -> Iterator[tuple[NDArray[Any], int]]:
        """A picture, or a block of sound in pieces, each with its stamp: how long the packets of a file are
        must not decide how late its sound comes.
        """
        if not isinstance(self.converter, Sound):
            yield data, stamp_ns
            return
        rate_hz = self.converter.rate_hz
        step = max(1, round(PIECE_S * rate_hz))
        for first in range(0, len(data), step):
            piece = data[first : first + step]
            after = len(data) - first - len(piece)
            yield piece, stamp_ns - to_ns(after / rate_hz)

    def _length_ns(self, frame: Any) -> int:
        if isinstance(self.converter, Sound):
            return int(frame.samples * NANOSECONDS // max(1, frame.sample_rate))
        length_ns = to_stamp(frame.duration, self._stream.time_base) or 0
        return length_ns if 0 < length_ns <= self._longest_ns else self._period_ns

    def _malformed(self, error: Exception, length_ns: int = 0) -> Rejection:
        samples = self.converter.size(length_ns) if isinstance(self.converter, Sound) else 1
        detail = f"after {self._time.end_ns / NANOSECONDS:.3f} s: {reason_of(error)}"
        return self._rejection("malformed", detail, samples)

    def _rejection(self, reason: str, detail: str, samples: int = 1) -> Rejection:
        return Rejection(self.modality, self._arrival_ns, reason, detail, samples)


def _announced_s(container: InputContainer, stream: Any, shift_ns: int) -> float:
    """When a stream ends, as the file says; 0 where it does not.

    Matroska tells the length of the whole file only; writers put that of a stream into a tag. A length for
    which the file has the bytes at its bit rate may be a guess, and nothing of the file is missing then.
    """
    if container.format.name in GUESSED_FORMATS:
        room_s = 8 * container.size / max(1, stream.codec_context.bit_rate or 0)
        if container.format.name == "aac" or room_s > 0.99 * (container.duration or 0) / 1e6:
            return 0.0
    if stream.duration is not None:
        end_ns = to_stamp((stream.start_time or 0) + stream.duration, stream.time_base) or 0
        return max(0, end_ns + shift_ns) / NANOSECONDS
    if tag := LENGTH_TAG.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    return (container.duration or 0) / 1e6  # AV_TIME_BASE, 1 us


def _is_short(end_s: float, announced_s: float) -> bool:
    return announced_s - end_s > max(SHORT_S, SHORT_SHARE * announced_s)


class _File:
    """A regular file, which ends for its reader when `closed` is set. FFmpeg opens none by itself."""

    def __init__(self, address: Address, closed: threading.Event) -> None:
        path = Path(address.target)
        self.name = path.name
        self._closed = closed
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is not waited for
        except (OSError, ValueError) as error:
            raise _unopened(address, path, error) from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise address.error(
                "is not a file", hint="devices and folders have schemes of their own"
            )
        self._file = os.fdopen(handle, "rb", buffering=0)

    @property
    def ended(self) -> bool:
        """Whether it was closed while it was read."""
        return self._closed.is_set()

    def read(self, size: int) -> bytes:
        return b"" if self._closed.is_set() else self._file.read(size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _unopened(address: Address, path: Path, error: Exception) -> FusedgeError:
    if isinstance(error, FileNotFoundError):
        try:
            names = os.listdir(path.parent)  # noqa: PTH208
        except OSError:
            names = []
        close = difflib.get_close_matches(path.name, names, n=1)
        return address.error("no such file", hint=f"did you mean {close[0]}?" if close else "")
    return address.error(f"cannot be opened: {getattr(error, 'strerror', None) or error}")


def _open(address: Address, file: _File, type_: str) -> Opened:
    av = pyav()

    def open_with(accelerator: HWAccel | None) -> InputContainer:
        file.seek(0)
        container: InputContainer = av.open(
            file,
            "r",
            options=CODEC_OPTIONS,
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
            buffer_size=_READ_BYTES,
            hwaccel=accelerator,
            **text_options(),
        )
        return container

    try:
        if type_ == "video":
            return open_decoder(address, open_with)
        return Opened(open_with(None), "cpu")
    except faults() as error:
        raise address.error(
            f"cannot be read as sound or pictures: {reason_of(error)}", hint=f"formats: {FORMATS}"
        ) from None
