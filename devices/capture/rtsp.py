"""Network cameras, with their sound."""

from __future__ import annotations

import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from fusedge.bundle.errors import FusedgeError
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
    is_timeout,
    modality_for,
    none_wanted,
    open_decoder,
    pyav,
    reason_of,
    stream_of,
    text_options,
    to_stamp,
)
from fusedge.devices.capture.device_clock import DeviceClock

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer

OPEN_S = 10.0
SILENCE_S = (
    2.0  # FFmpeg hands out the picture that it held back, and waits as long again: 4 s < Pump's 5
)
LATE_NS = to_ns(0.2)  # a picture that has waited for longer is not worth converting
MAX_WAIT_NS = to_ns(1)
MAX_WAITING_BYTES = 32 << 20  # two seconds of the fattest camera, 100 Mbit/s
PAUSE_NS = to_ns(0.002)  # a packet that was there already is read in 0.05 ms
GAP_NS = to_ns(0.04)
TRANSPORTS = ("tcp", "udp")


def open_stream(request: Request) -> NetworkCamera:
    """The source `rtsp://USER:PASSWORD@HOST/PATH`; raises FusedgeError."""
    return NetworkCamera(request)


class NetworkCamera:
    """Contract: pictures (see Pictures) and sound (see Sound) of an RTSP server, both on one clock.

    Samples are stamped when they were captured, as far as DeviceClock can tell; the delay of the
    camera's encoder and the network is not known, and FFmpeg holds back each picture until the next
    begins. The first picture is the newest: what came while the stream was examined is `stale`.
    So are pictures that have waited for 0.2 s, where this machine does not keep up; before anything
    waits for 1 s, all up to the newest picture that stands by itself is dropped without being decoded.

    Raises FusedgeError at opening, when the server ends the stream and when it is silent for 2 to 4 s.
    The thread that reads, and with it the connection, ends with the next packet after `close`, or as for
    silence.
    """

    live = True

    def __init__(self, request: Request) -> None:
        address = self._address = request.address
        self.uri = address.uri
        self._now_ns = request.now_ns
        self._clock = DeviceClock()
        self._backlog = Backlog()
        self._claim = threading.Lock()
        self._faults = faults()
        self._arrival_ns = 0
        wanted = {
            type_: found
            for type_ in ("video", "audio")
            if (found := modality_for(address, request.wanted, type_)) is not None
        }
        if not wanted:
            raise none_wanted(request)
        self._container, decoder = _open(address, tuple(wanted), request.now_ns)
        warnings: list[str] = []
        self._tracks: dict[int, _Track] = {}
        try:
            for type_, (modality, spec) in wanted.items():
                stream = stream_of(self._container, type_)
                if stream is None:
                    warnings.append(f"no {modality}, for it sends no {type_}")
                    continue
                converter = converter_for(address, stream, spec, request.allocate)
                self._tracks[stream.index] = _Track(modality, stream, converter)
            if not self._tracks:
                raise address.error("; ".join(warnings))
        except BaseException:
            self._container.close()
            raise
        if address.text("decoder") == "auto" and "video" in wanted:
            warnings.append(f"pictures are decoded by {decoder}")
        tracks = self._tracks.values()
        self.modalities = tuple(track.modality for track in tracks)
        self.channels = {track.modality: track.converter.channels for track in tracks}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self.warnings = tuple(f"{self.uri}: {warning}" for warning in warnings)

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        if not self._claim.acquire(blocking=False):  # closed
            return
        threading.Thread(target=self._receive, name="rtsp", daemon=True).start()
        backlog = self._backlog
        try:
            while (received := backlog.take()) is not None:
                yield from self._shed()
                yield from self._decoded(received)
            yield from self._shed()
            if backlog.failure:
                raise self._address.error(backlog.failure)
        finally:
            backlog.close()

    def _shed(self) -> Iterator[Rejection]:
        for index, samples in self._backlog.take_dropped().items():
            yield self._rejection(self._tracks[index], "stale", "not decoded", samples)

    def close(self) -> None:
        """See Source."""
        self._backlog.close()
        if self._claim.acquire(blocking=False):  # nobody reads
            self._container.close()

    def _receive(self) -> None:
        """Read all that comes, at once; runs in a thread of its own, which has the container."""
        backlog, caught_up = self._backlog, False
        failure = "the server has ended the stream"
        try:
            ready_ns = self._now_ns()
            for packet in self._container.demux([track.stream for track in self._tracks.values()]):
                arrival_ns = self._now_ns()
                caught_up = caught_up or arrival_ns - ready_ns > PAUSE_NS
                if not packet.size or not backlog.put(
                    self._received(packet, arrival_ns, caught_up)
                ):
                    break
                ready_ns = self._now_ns()
        except self._faults as error:
            failure = (
                f"silent for {SILENCE_S:g} s and more" if is_timeout(error) else reason_of(error)
            )
        finally:
            backlog.end(failure)
            self._container.close()

    def _received(self, packet: Any, arrival_ns: int, caught_up: bool) -> Received:
        index = packet.stream_index
        track = self._tracks[index]
        key = packet.is_keyframe if track.pictures else None
        samples, size = track.size(packet), packet.size
        return Received(packet, index, arrival_ns, not caught_up, key, samples, size)

    def _decoded(self, received: Received) -> Iterator[Sample | Rejection]:
        packet, arrival_ns, old = received.packet, received.arrival_ns, received.old
        track = self._tracks[received.stream]
        stamp_ns = to_stamp(packet.pts, track.time_base)
        if stamp_ns is not None and not old:
            track.offset_ns = self._clock.place(stamp_ns, arrival_ns) - stamp_ns
        try:
            frames = track.context.decode(packet)
        except self._faults as error:
            yield self._rejection(track, "malformed", reason_of(error), track.size(packet))
            return
        track.whole = track.whole or received.key is not False or bool(frames)
        if not track.whole:
            yield self._rejection(
                track, "stale", "before the first picture that stands by itself", 1
            )
        for frame in frames:
            if old or (track.pictures and self._backlog.newest_ns - arrival_ns > LATE_NS):
                yield self._rejection(track, "stale", "waited", track.size(frame))
                continue
            try:
                sample = self._sample(track, frame, arrival_ns)
            except self._faults as error:
                yield self._rejection(track, "malformed", reason_of(error), track.size(frame))
                continue
            if sample is not None:
                yield sample

    def _sample(self, track: _Track, frame: Any, packet_ns: int) -> Sample | None:
        stamp_ns = to_stamp(frame.pts, track.time_base)
        stamp: StampKind = "arrival"
        if stamp_ns is None or track.offset_ns is None:
            begin_ns = packet_ns
        else:
            begin_ns, stamp = stamp_ns + track.offset_ns, "capture"
        converter = track.converter
        if isinstance(converter, Pictures):
            if frame.is_corrupt:
                raise ValueError("a picture is damaged")
            data: Any = converter.image(frame)
        else:
            if begin_ns - track.end_ns > GAP_NS:
                converter.restart()
            track.end_ns = begin_ns + frame.samples * NANOSECONDS // max(1, frame.sample_rate)
            block = converter.block(frame, begin_ns)
            if block is None:
                return None
            data, begin_ns = block
        self._arrive()
        return Sample(
            track.modality, min(begin_ns, self._arrival_ns), self._arrival_ns, data, stamp
        )

    def _arrive(self) -> int:
        self._arrival_ns = max(self._arrival_ns, self._now_ns())
        return self._arrival_ns

    def _rejection(self, track: _Track, reason: str, detail: str, samples: int) -> Rejection:
        return Rejection(track.modality, self._arrive(), reason, detail, samples)


class _Track:
    """A stream of the server, and where its stamps lie on the session's clock."""

    def __init__(self, modality: str, stream: Any, converter: Pictures | Sound) -> None:
        self.modality = modality
        self.stream = stream  # the reader's; what is needed of it is kept here
        self.context = stream.codec_context
        self.time_base = stream.time_base
        self.converter = converter
        self.pictures = isinstance(converter, Pictures)
        self.offset_ns: int | None = None
        self.end_ns = 0
        self.whole = False  # whether a picture that stands by itself has come

    def size(self, item: Any) -> int:
        """How many samples of the account a packet or frame is."""
        if isinstance(self.converter, Pictures):
            return 1
        return self.converter.size(to_stamp(item.duration, self.time_base) or 0)


class Received(NamedTuple):
    """A packet of a stream. It is `old` if it was there before the source began to read; `key` says of a
    picture whether it stands by itself. It counts as `samples` and takes `size` bytes.
    """

    packet: Any
    stream: int
    arrival_ns: int
    old: bool
    key: bool | None
    samples: int
    size: int


class Backlog:
    """Contract: packets wait here for the decoder, for at most 1 s by arrival and in bounded memory.

    Where that would be exceeded, all up to the newest picture that stands by itself is dropped; if
    none waits, everything, and pictures until the next such. What is dropped is counted.
    """

    def __init__(self) -> None:
        self.newest_ns = 0
        self.failure = ""
        self._waiting: deque[Received] = deque()
        self._bytes = 0
        self._dropped: Counter[int] = Counter()
        self._key_missing = False
        self._changed = threading.Condition()
        self._closed = self._ended = False

    def put(self, received: Received) -> bool:
        """Add what has come; False once closed."""
        with self._changed:
            self.newest_ns = received.arrival_ns
            self._waiting.append(received)
            self._bytes += received.size
            if received.key is not None and self._key_missing:
                self._key_missing = not received.key
                if not received.key:
                    self._drop(self._waiting.pop())
            while self._is_over(received.arrival_ns):
                self._shed()
            self._changed.notify()
            return not self._closed

    def _is_over(self, now_ns: int) -> bool:
        too_old = self._waiting and now_ns - self._waiting[0].arrival_ns > MAX_WAIT_NS
        return bool(too_old) or self._bytes > MAX_WAITING_BYTES

    def _shed(self) -> None:
        keys = [at for at, received in enumerate(self._waiting) if received.key]
        drop = keys[-1] if keys and keys[-1] > 0 else len(self._waiting)
        if drop == len(self._waiting):
            self._key_missing = True
        for _ in range(drop):
            self._drop(self._waiting.popleft())

    def _drop(self, received: Received) -> None:
        self._bytes -= received.size
        self._dropped[received.stream] += received.samples

    def take(self) -> Received | None:
        """The oldest, which is waited for; None when closed, or when all is taken and no more will come."""
        with self._changed:
            while not (self._waiting or self._ended or self._closed):
                self._changed.wait()
            if not self._waiting:
                return None
            received = self._waiting.popleft()
            self._bytes -= received.size
            return received

    def take_dropped(self) -> Counter[int]:
        """How many samples of each stream were dropped since this was last asked."""
        with self._changed:
            dropped, self._dropped = self._dropped, Counter()
            return dropped

    def end(self, failure: str) -> None:
        """Nothing more will come, and why."""
        with self._changed:
            self._ended = True
            self.failure = "" if self._closed else failure
            self._changed.notify()

    def close(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self.failure = ""
            self._changed.notify()


def _open(address: Address, types: tuple[str, ...], now_ns: Callable[[], int]) -> Opened:
    options = {
        **CODEC_OPTIONS,
        "rtsp_transport": address.choice("transport", TRANSPORTS, "tcp"),
        "allowed_media_types": "+".join(types),
        "protocol_whitelist": "rtsp,rtp,tcp,udp",
        "timeout": str(int(OPEN_S * 1e6)),  # of the socket, in us
        "analyzeduration": "500000",  # us; the description of the stream says most
        "fpsprobesize": "0",
        "max_delay": "200000",  # us that a UDP packet which comes out of turn is waited for
        "buffer_size": str(1 << 20),  # of a UDP socket: a key picture comes in one burst
    }
    av = pyav()

    def open_with(accelerator: HWAccel | None) -> InputContainer:
        container: InputContainer = av.open(
            address.target,
            "r",
            format="rtsp",
            options=options,
            timeout=(OPEN_S, SILENCE_S),
            hwaccel=accelerator,
            **text_options(),
        )
        return container

    begun_ns = now_ns()
    try:
        return open_decoder(address, open_with)
    except faults() as error:
        if now_ns() - begun_ns >= to_ns(OPEN_S) or is_timeout(error):
            raise address.error(f"no answer within {OPEN_S:g} s") from None
        raise _refusal(address, error) from None


def _refusal(address: Address, error: Exception) -> FusedgeError:
    from av.error import HTTPForbiddenError, HTTPNotFoundError, HTTPUnauthorizedError

    url = urlsplit(address.target)
    if isinstance(error, (HTTPUnauthorizedError, HTTPForbiddenError)):
        given = "@" in url.netloc
        what = (
            "the server refuses this user or password" if given else "the server wants a password"
        )
        return address.error(what, hint="rtsp://USER:PASSWORD@HOST/PATH, with %40 for @")
    if isinstance(error, HTTPNotFoundError):
        return address.error("the server has no such stream", hint="check the path")
    if isinstance(error, ConnectionRefusedError):
        return address.error("no server answers there: connection refused", hint="check the port")
    with suppress(ValueError, UnicodeError):  # what is no host name
        try:
            socket.getaddrinfo(url.hostname, None)
        except socket.gaierror:
            return address.error("there is no such host", hint="check its name")
    return address.error(f"cannot be opened: {reason_of(error)}")
