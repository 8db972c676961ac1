"""Pictures and sound out of PyAV's frames, in the form that a bundle takes, and what decodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import Address, Request, Wanted, shown
from fusedge.devices.capture.resampling import Resampler
from fusedge.devices.capture.wanted import COLOURS, modality_of, picture_size

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame

MAX_PIXELS = 7680 * 4320  # 8K; a file may promise more than there is memory, and FFmpeg refuses
RATES_HZ = (1_000, 768_000)  # beyond any recorder's
MAX_CHANNELS = 8
MAX_PACKET_S = 10.0
CODEC_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC in libavformat/avformat.h
_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
MODALITIES: Mapping[str, tuple[Literal["image", "audio"], str, str]] = {
    "video": ("image", "camera", "modality"),
    "audio": ("audio", "microphone", "sound"),
}
"""Of each type of stream the kind of its modality, its default name, and the option that names it."""


def pyav() -> Any:
    """The package `av`, with FFmpeg's log off: it would show the password of a network address."""
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "camera", "reading films and network cameras") from None
    av.logging.set_level(None)
    return av


def text_options() -> dict[str, str]:
    """Options of `av.open` for texts that are not in UTF-8, which PyAV takes from version 19 on."""
    return {"metadata_errors": "replace"} if int(pyav().__version__.partition(".")[0]) < 19 else {}


def modality_for(
    address: Address, wanted: Wanted, type_: str
) -> tuple[str, Modality | None] | None:
    """The modality that streams of the type `video` or `audio` give; None where none is wanted.

    Raises what `modality_of` raises for a name that is not wanted, and where it could be one of several.
    """
    kind, default, option = MODALITIES[type_]
    there = wanted is None or any(spec.kind == kind for spec in wanted.values())
    if not there and option not in address.options:
        return None
    return modality_of(address, wanted, kind, default, option)


def none_wanted(request: Request) -> FusedgeError:
    """The error for a source of sound and pictures of which neither is wanted or there."""
    if request.wanted is None:
        return request.address.error("has neither pictures nor sound")
    return request.address.error(
        f"offers none of the wanted modalities ({', '.join(request.wanted) or 'none wanted'})",
        hint="it gives pictures and sound",
    )


def stream_of(container: InputContainer, type_: str) -> Stream | None:
    """The first stream of the type that can be decoded and is no cover picture."""
    for stream in container.streams:
        if stream.type != type_ or stream.codec_context is None:
            continue
        if not int(stream.disposition) & _COVER:
            return stream
    return None


def converter_for(
    address: Address,
    stream: Stream,
    spec: Modality | None,
    allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]],
) -> Pictures | Sound:
    """What makes items of the stream's frames; raises FusedgeError where that cannot be `spec`."""
    context: Any = stream.codec_context
    if stream.type == "video":
        if spec is not None and len(spec.channels) not in (1, 3):
            raise address.error(f"{spec.name} has {len(spec.channels)} channels, a picture 1 or 3")
        context.thread_count = 2
        context.options = CODEC_OPTIONS
        return Pictures(spec, allocate)
    context.thread_count = 1
    count = context.channels
    if (
        not count
    ):  # it begins later in the file, so that nothing is known: frames tell, and mono suits any
        return Sound(spec, 1, 0)
    if not sensible(context.sample_rate, count):
        raise address.error(f"sound of {count} channels at {context.sample_rate} Hz")
    if spec is not None and not mixes(count, len(spec.channels)):
        raise address.error(
            f"has {count} channels of sound, {spec.name} {len(spec.channels)}",
            hint="they must be as many, or one of them 1",
        )
    return Sound(spec, count, context.sample_rate)


class Opened(NamedTuple):
    """A container, and by what the pictures in it are decoded."""

    container: InputContainer
    decoder: str


def open_decoder(address: Address, open_with: Callable[[HWAccel | None], InputContainer]) -> Opened:
    """A container whose pictures are decoded by what the option `decoder` says: `cpu`, `auto` or a device.

    `auto` takes the first device that can. A device that cannot is an error; nothing falls back in silence.
    """
    pyav()
    from av.codec.hwaccel import HWAccel, hwdevices_available

    devices = hwdevices_available()
    choice = address.choice("decoder", ("auto", "cpu", *devices), "cpu")
    if choice == "auto":
        for device in devices:
            if not _trouble(device):
                with suppress(*faults()):  # it cannot decode this stream
                    accelerator = HWAccel(device, allow_software_fallback=False)
                    return Opened(open_with(accelerator), device)
    elif choice != "cpu":
        if trouble := _trouble(choice):
            raise address.error(
                f"decoder={choice} does not work here: {trouble}", "use decoder=cpu"
            )
        return Opened(open_with(HWAccel(choice, allow_software_fallback=False)), choice)
    return Opened(open_with(None), "cpu")


def _trouble(device: str) -> str:
    """Why a device of this machine decodes no video; empty where it does."""
    from av.codec import Codec
    from av.codec.hwaccel import HWAccel

    try:
        HWAccel(device).create(Codec("h264", "r"))
    except Exception as error:  # a driver that is not there raises what it likes
        return reason_of(error)
    return ""


def to_stamp(ticks: int | None, time_base: Any) -> int | None:
    """A time in ns, from one in units of a stream's time base (a fraction of a second)."""
    if ticks is None or time_base is None or not time_base.denominator:
        return None
    return int(ticks * time_base.numerator * NANOSECONDS // time_base.denominator)


def faults() -> tuple[type[Exception], ...]:
    """What PyAV raises over input that is damaged or gone."""
    return (pyav().FFmpegError, ArithmeticError, MemoryError, OSError, RuntimeError, ValueError)


def reason_of(error: Exception) -> str:
    """What an error of PyAV says, without the address that it quotes."""
    return getattr(error, "strerror", None) or shown(str(error)) or type(error).__name__


def is_timeout(error: Exception) -> bool:
    """Whether it says that nothing came in time."""
    from av.error import ExitError

    return isinstance(error, (ExitError, TimeoutError))


class Pictures:
    """Contract: frames become images uint8 `[height, width, channels]`, upright, in RGB, or grey where the
    modality has one channel. The size is what the modality asks for (see `picture_size`), else the first
    frame's for all of them.
    """

    def __init__(
        self, spec: Modality | None, allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]]
    ) -> None:
        from av.video.reformatter import VideoReformatter

        self._allocate = allocate
        self._reformatter = VideoReformatter()
        self._spec = spec
        self._size: tuple[int, int] | None = None
        self.channels: tuple[str, ...] = COLOURS
        if spec is not None:
            self.channels = tuple(channel.name for channel in spec.channels)

    def image(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The picture of a frame."""
        quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
        turned = quarter_turns % 2 == 1
        upright = (frame.width, frame.height) if turned else (frame.height, frame.width)
        if self._spec is not None:
            size = picture_size(self._spec, *upright)
        else:
            size = self._size = self._size or upright
        height, width = size[::-1] if turned else size
        count = len(self.channels)
        shrinks = width * height < frame.width * frame.height
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24" if count == 3 else "gray",
            interpolation="AREA" if shrinks else "BICUBIC",
            threads=1,
        )
        plane = scaled.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels = lines[:height, : width * count].reshape(height, width, count)
        image = self._allocate((*size, count))
        np.copyto(image, np.rot90(pixels, quarter_turns))
        return image


class Block(NamedTuple):
    """Sound float32 `[samples, channels]`, and when its last sample was captured."""

    data: NDArray[np.float32]
    last_ns: int


class Sound:
    """Contract: frames become blocks float32 `[samples, channels]` at the modality's rate and number of
    channels, else as the frames have them. Several channels become one by their mean. A change of
    the frames' rate, and `restart`, begin anew, so that no sound is smeared over a gap.
    """

    def __init__(self, spec: Modality | None, count: int, rate_hz: int) -> None:
        self._rate_hz = None if spec is None else spec.rate_hz
        self._resampler: Resampler | None = None
        self._rate_in_hz = rate_hz
        self.channels = tuple(c.name for c in spec.channels) if spec else _channel_names(count)

    def restart(self) -> None:
        """Forget the sound so far: what follows does not go on from it."""
        self._resampler = None

    @property
    def rate_hz(self) -> float:
        """Of the blocks."""
        return self._rate_hz or self._rate_in_hz

    def block(self, frame: AudioFrame, begin_ns: int) -> Block | None:
        """The sound that comes out once the frame, which begins at `begin_ns`, has gone in, if any.

        Raises ValueError for a frame whose channels or rate are not to be believed.
        """
        count, rate_in_hz = frame.layout.nb_channels, frame.sample_rate
        if not sensible(rate_in_hz, count):
            raise ValueError(f"{count} channels at {rate_in_hz} Hz")
        if not mixes(count, len(self.channels)):
            raise ValueError(f"{count} channels instead of {len(self.channels)}")
        rate_out_hz = self._rate_hz or rate_in_hz
        if self._resampler is None or rate_in_hz != self._rate_in_hz:
            self._rate_in_hz = rate_in_hz
            self._resampler = Resampler(rate_in_hz, rate_out_hz, len(self.channels))
        data = self._resampler.process(mixed(samples_of(frame), len(self.channels)))
        if not len(data):
            return None
        end_s = frame.samples / rate_in_hz - self._resampler.lag_s
        return Block(data, begin_ns + to_ns(end_s - 1 / rate_out_hz))

    def size(self, duration_ns: int) -> int:
        """How many samples of the account sound of that length is, which a file may say at will."""
        return max(1, round(min(duration_ns / NANOSECONDS, MAX_PACKET_S) * self.rate_hz))


def samples_of(frame: AudioFrame) -> NDArray[np.float32]:
    """The sound of a `sensible` frame, float32 `[samples, channels]`, whole numbers scaled to -1 … 1.

    Not by the frame's own `planes`: they take what follows the eighth channel in memory for a ninth.
    """
    from av.audio.plane import AudioPlane

    count, planar = frame.layout.nb_channels, frame.format.is_planar
    kind = frame.format.name.removesuffix("p")
    if kind not in _SAMPLE_TYPES:
        raise ValueError(f"sound as {kind}")
    dtype = np.dtype(_SAMPLE_TYPES[kind])
    planes = [AudioPlane(frame, place) for place in range(count if planar else 1)]
    length = frame.samples * (1 if planar else count)
    values = np.stack([np.frombuffer(memoryview(p), dtype, length) for p in planes], axis=-1)
    samples: NDArray[np.float32] = values.reshape(-1, count).astype(np.float32)
    if dtype.kind != "f":
        samples -= 128 if dtype.kind == "u" else 0
        samples /= 2.0 ** (8 * dtype.itemsize - 1)
    return samples


def sensible(rate_hz: int, channels: int) -> bool:
    """Whether sound can be so."""
    return RATES_HZ[0] <= rate_hz <= RATES_HZ[1] and 1 <= channels <= MAX_CHANNELS


def mixes(have: int, want: int) -> bool:
    """Whether so many channels can become so many."""
    return have == want or 1 in (have, want)


def mixed(samples: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Sound float32 `[N, C]` with `count` channels: all alike from one, and their mean into one."""
    if samples.shape[1] == count:
        return samples
    if count == 1:
        mean: NDArray[np.float32] = samples.mean(axis=1, keepdims=True, dtype=np.float32)
        return mean
    return np.repeat(samples, count, axis=1)


def _channel_names(count: int) -> tuple[str, ...]:
    return ("sound",) if count == 1 else tuple(f"sound_{number + 1}" for number in range(count))
