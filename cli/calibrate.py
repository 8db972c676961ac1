"""`fusedge calibrate`: how a motion sensor sits in the vehicle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Annotated, Any, NamedTuple

import typer
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.sample import Sample
from fusedge.cli.console import console, print_json
from fusedge.cli.main import stop_signals
from fusedge.cli.options import JsonOption
from fusedge.devices.capture.address import shown
from fusedge.devices.capture.mount import (
    ACCELERATIONS,
    ANGULAR_VELOCITIES,
    SENSOR_CHANNELS,
    MountCalibration,
    save_mount,
)
from fusedge.devices.capture.source import Source, open_source
from fusedge.devices.capture.units import Conversion, conversion, unit
from fusedge.runtime.clock import LiveClock
from fusedge.runtime.feed import feed_without_bundle
from fusedge.runtime.session import SILENCE_S

POLL_S = 0.05
PATIENCE_S = 0.3  # for sources to end


def calibrate(
    source: Annotated[str, typer.Option(help="The motion sensor, or a recording of it, as a URI.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the mount; a new one.")],
    speed_source: Annotated[
        str | None,
        typer.Option(
            help="What gives the speed, as a URI (GPS, CAN, OBD). Makes it quicker and surer; "
            "a recording in --source may hold it itself."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find how a motion sensor sits in the vehicle, at any angle, by standing still and driving.

    Fix the sensor, stand still on level ground for some seconds, then drive: corners to both sides,
    speeding up and braking on straights, a minute or two of it with a speed and some minutes without. It
    ends by itself when the evidence suffices. Exit status 1 if it does not, with what is missing.

    Examples:

    - `fusedge calibrate --source imu:iio:0 --speed-source gps:/dev/ttyACM0 -o mount.json`
    - `fusedge run driving --source imu:iio:0?mount=mount.json`
    """
    _check(out)
    calibration = MountCalibration()
    stop = Event()
    uris = [uri for uri in (source, speed_source) if uri is not None]
    with stop_signals(stop.set, once=False), console.status("waiting", spinner="dots") as status:
        failures = _drive(calibration, uris, stop, status.update)
    calibration.finish()
    for uri, failure in failures.items():
        line = f"note: source {printable(uri)} failed, first: {failure}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    mount, evidence = calibration.mount, calibration.evidence
    if mount is None:
        raise FusedgeError(
            f"no mount found: {calibration.missing}", where=", ".join(map(shown, uris))
        )
    save_mount(out, mount, evidence)
    if as_json:
        print_json(
            {
                "file": str(out),
                "rotation": mount.rotation.tolist(),
                "gravity": mount.gravity,
                "evidence": evidence._asdict(),
            }
        )
        return
    console.print(
        f"mount found by {evidence.method}, forward to ± {evidence.error_deg:.1f} degrees "
        f"(agreement {evidence.agreement:.2f}, {evidence.rests} rests, {evidence.left_turns} left and "
        f"{evidence.right_turns} right turns, {evidence.moving_s:.0f} s of driving): {out}",
        markup=False,
        soft_wrap=True,
    )


def _check(out: Path) -> None:
    """That the file can be written is known before the drive."""
    if out.exists():
        raise FusedgeError("exists already", where=str(out), hint="choose another -o")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise FusedgeError(
            f"nothing can be written there: {error.strerror}",
            where=str(out.parent),
            hint="choose another -o",
        ) from None


class _Columns(NamedTuple):
    """Where values are found, and what turns each into our unit."""

    modality: str
    places: list[int]
    conversions: list[Conversion]

    def values(self, data: NDArray[Any]) -> list[float]:
        pairs = zip(self.places, self.conversions, strict=True)
        return [convert(float(data[place])) for place, convert in pairs]


def _drive(
    calibration: MountCalibration,
    uris: Sequence[str],
    stop: Event,
    show: Callable[[str], None],
) -> dict[str, str]:
    """Feed the calibration until it is done, the sources end or `stop` is set; what failed, by URI."""
    live = LiveClock()
    with ExitStack() as opened:
        sources: list[Source] = []
        for uri in uris:
            sources.append(open_source(uri, None, live.now_ns))
            opened.callback(sources[-1].close)
        motion = _columns(sources[:1], SENSOR_CHANNELS)
        speed = _columns(sources[::-1], {"speed": "m/s"})
        if motion is None:
            raise FusedgeError(
                f"gives no {ACCELERATIONS[0]} to {ANGULAR_VELOCITIES[2]}",
                where=sources[0].uri,
                hint="the motion sensor's own channels are needed, as imu: gives and records them",
            )
        if speed is None and len(sources) > 1:
            raise FusedgeError("gives no speed", where=sources[1].uri)
        feed, clock = feed_without_bundle(
            sources, uris, lambda uri: open_source(uri, None, live.now_ns), live, SILENCE_S
        )
        opened.pop_all()
    try:
        feed.start()
        shown = ""
        while not stop.is_set() and calibration.mount is None:
            items = feed.take(None)
            for item in items:
                if not isinstance(item, Sample):
                    continue
                if item.modality == motion.modality:
                    row = motion.values(item.data)
                    calibration.add(item.timestamp_ns, row[:3], row[3:])
                if speed is not None and item.modality == speed.modality:
                    calibration.add_speed(item.timestamp_ns, *speed.values(item.data))
            if calibration.missing != shown:
                shown = calibration.missing
                show(f"not yet: {shown}")
            if not items:
                if feed.ended:
                    break
                feed.supervise(clock.now_ns())
                stop.wait(POLL_S)
    finally:
        feed.stop()
        feed.join(PATIENCE_S)
    return {uri: failure for uri, failure in feed.first_failures().items() if failure}


def _columns(sources: Sequence[Source], units: Mapping[str, str]) -> _Columns | None:
    """The first modality that has all these channels, in whatever units; unknown ones are as they are."""
    for source in sources:
        for modality, channels in source.channels.items():
            if not set(units) <= set(channels):
                continue
            places = [channels.index(name) for name in units]
            had = source.units.get(modality) or ("",) * len(channels)
            conversions = [
                _conversion(had[place], want, f"{name} of {source.uri}")
                for place, (name, want) in zip(places, units.items(), strict=True)
            ]
            return _Columns(modality, places, conversions)
    return None


def _conversion(have: str, want: str, where: str) -> Conversion:
    known = bool(have.strip()) and unit(have) is not None
    return conversion(have if known else want, want, where)
