"""A simulated drive, so that the product runs with nothing plugged in: the source `sim:`.

It has the modalities and channels of `fusedge.devices.capture.driving` and changes its driving style
on a script. The style of a stretch is a parameter here, so what a model says about it is no
measure of the model: never report it as accuracy.

One vehicle on a straight-running road, in steps of 0.1 s. A driver holds a wandering speed, follows a
lead vehicle at a headway, keeps the lane with an error that has the time scale and spread of the
style, changes lanes, and now and then brakes, speeds up or turns harder. The sensors are those of
the recordings: a phone whose filter takes slow accelerations for tilt, a GPS that lags, a lane
tracker that loses the lane in a lane change. The numbers are set so that medians over trips of
spreads, percentiles and rates come near those of the 33 trips of UAH-DriveSet v1 of drivers D1, D2,
D3, D5 and D6; only such aggregates are in here.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.driving import channel_names, channel_units, select
from fusedge.devices.capture.wanted import names_of

STEP_S = 0.1  # the phone's motion rate is 9.9 Hz
FRAME_S = 0.04  # the lane tracker's rate is 24 Hz
JITTER_S = 0.005
MAX_DURATION_S = 7 * 86_400.0
GPS_LAG_STEPS = 8.5  # GPS speed against motion, the phone's high-pass allowed for: median 0.85 s
COURSE_SPAN_STEPS = 20
COURSE_RESOLUTION = math.radians(0.352)
SPEED_RESOLUTION = 0.1

# The phone's filter passes 0.13 / 0.39 / 0.63 of an acceleration at 0.03 / 0.075 / 0.17 Hz, a first-order
# high-pass at 0.1 Hz with this gain; what it takes away shows as 0.07 rad of tilt for 1 m/s2.
FILTER_GAIN = 0.65
FILTER_S = 1 / (2 * math.pi * 0.1)
TILT = 0.07

_NOT_SEEN = (math.nan, math.nan, math.nan)
_Reading = tuple[float, str, tuple[float, ...]]
"""Time in s, modality, all its channels."""


class Style(NamedTuple):
    """How a style drives on one road. Spreads are standard deviations; rates count per 10 km."""

    speed: float
    speed_spread: float
    pedal: float
    """Spread of the acceleration that the foot adds, m/s2."""
    lateral: float
    """Spread of the lateral acceleration that the road and the speed make, m/s2."""
    braking: float
    turns: float
    accelerations: float
    lane_changes: float
    offset: float
    """Mean lane offset, m."""
    weave: float
    """Spread of the error in the lane, m, before the steering lag."""
    steering_lag_s: float
    lead_share: float
    lead_s: float
    """Mean time behind one lead vehicle."""
    headway: float
    """Median headway, s."""
    headway_spread: float
    """Spread of its logarithm."""
    others: float
    """Mean count of vehicles in other lanes."""


def _styles(**columns: tuple[float, float, float]) -> dict[str, Style]:
    """Styles from columns, one for each field of Style."""
    return {
        name: Style(**{field: column[place] for field, column in columns.items()})
        for place, name in enumerate(("normal", "drowsy", "aggressive"))
    }


STYLES: Mapping[str, Mapping[str, Style]] = {
    "motorway": _styles(
        speed=(29.0, 26.6, 35.0),
        speed_spread=(3.4, 2.6, 4.5),
        pedal=(0.28, 0.27, 0.42),
        lateral=(0.62, 0.66, 1.0),
        braking=(1.2, 1.8, 7.0),
        turns=(1.5, 2.5, 4.1),
        accelerations=(0.3, 0.3, 1.5),
        lane_changes=(8.8, 8.2, 8.9),
        offset=(-0.05, 0.21, -0.06),
        weave=(0.25, 0.5, 0.27),
        steering_lag_s=(0.6, 1.0, 0.5),
        lead_share=(0.76, 0.7, 0.82),
        lead_s=(20, 18, 20),
        headway=(1.1, 1.15, 0.65),
        headway_spread=(0.5, 0.4, 0.5),
        others=(0.6, 0.9, 0.9),
    ),
    "secondary": _styles(
        speed=(25.0, 25.8, 30.2),
        speed_spread=(1.4, 1.3, 3.2),
        pedal=(0.26, 0.27, 0.42),
        lateral=(0.6, 0.66, 0.76),
        braking=(0.2, 2.0, 6.0),
        turns=(0.7, 3.0, 1.2),
        accelerations=(0.2, 0.3, 1.5),
        lane_changes=(1.8, 2.8, 0.8),
        offset=(-0.04, 0.17, -0.15),
        weave=(0.26, 0.5, 0.31),
        steering_lag_s=(0.6, 1.0, 0.6),
        lead_share=(0.36, 0.09, 0.82),
        lead_s=(25, 12, 90),
        headway=(0.95, 1.6, 0.5),
        headway_spread=(0.6, 0.5, 0.25),
        others=(0.1, 0.06, 0.1),
    ),
}

DEFAULT_SCRIPT = "normal:20,aggressive:20,drowsy:20"


@dataclass(frozen=True)
class Options:
    """What to drive: `script` of (style, seconds), repeated until `duration_s` is over.

    In an outage (modality to first and last second) the modality is silent.
    """

    seed: int
    duration_s: float
    road: str
    script: tuple[tuple[str, float], ...]
    outages: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def style_at(self, time_s: float) -> str:
        """The scripted style at a time."""
        time_s %= sum(seconds for _, seconds in self.script)
        for style, seconds in self.script:
            if time_s < seconds:
                return style
            time_s -= seconds
        return self.script[-1][0]


def open_simulation(request: Request) -> SimulatedDrive:
    """The source that a `sim:` URI names."""
    address = request.address
    options = parse_options(address.uri, address.target, address.options)
    return SimulatedDrive(address.uri, options, names_of(request.wanted))


def parse_options(uri: str, target: str, options: Mapping[str, str]) -> Options:
    """The options of a `sim:` URI; raises FusedgeError for a value that makes no sense."""
    if target:
        raise FusedgeError(f"sim: takes options only, not {target!r}", where=uri)
    road = options.get("road", "motorway")
    if road not in STYLES:
        raise UnknownNameError("road", road, STYLES)
    script = []
    for entry in options.get("script", DEFAULT_SCRIPT).split(","):
        style, _, seconds = entry.partition(":")
        if style not in STYLES[road]:
            raise UnknownNameError("style", style, STYLES[road])
        script.append((style, _number(uri, "script", seconds, 0.1)))
    total = sum(seconds for _, seconds in script)
    outages = {}
    for name in options:
        if name.endswith("_outage"):
            start, _, end = options[name].partition(":")
            first = _number(uri, name, start, 0)
            outages[name.removesuffix("_outage")] = (first, _number(uri, name, end, first))
    seed = options.get("seed", "1")
    if not (seed.isascii() and seed.isdigit() and len(seed) <= 18):
        raise FusedgeError(f"seed={seed} is not a whole number", where=uri)
    duration_s = _number(uri, "duration_s", options.get("duration_s", str(total)), 0.1)
    return Options(int(seed), duration_s, road, tuple(script), outages)


def _number(uri: str, option: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= MAX_DURATION_S:
        raise FusedgeError(
            f"{option}: {text!r} is not a time from {least:g} to {MAX_DURATION_S:g} s", where=uri
        )
    return value


class SimulatedDrive:
    """The source `sim:`, from its options: same seed, same bytes. See the module for what it drives.

    Stamps are capture times from 0; every sample arrives at its stamp.
    """

    live = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self, uri: str, options: Options, wanted: Mapping[str, tuple[str, ...]] | None
    ) -> None:
        self.uri = uri
        self.options = options
        self._columns = select(uri, wanted)
        self.modalities = tuple(self._columns)
        self.channels = channel_names(self._columns)
        self.units = channel_units(self._columns)
        self._closed = threading.Event()

    def samples(self) -> Iterator[Sample | Rejection]:
        """The samples of the drive in the order of time."""
        options = self.options
        drive = _Drive(options.road, options.style_at(0), _Dice(options.seed))
        for number in range(math.ceil(options.duration_s / STEP_S)):
            readings = drive.step(number, options.style_at(number * STEP_S))
            for time_s, modality, values in sorted(readings, key=itemgetter(0)):
                if self._closed.is_set():
                    return
                if time_s < options.duration_s and self._heard(modality, time_s):
                    data = np.array([values[c] for c in self._columns[modality]], np.float32)
                    stamp_ns = to_ns(time_s)
                    yield Sample(modality, stamp_ns, stamp_ns, data)

    def close(self) -> None:
        """End the iterator before its next sample."""
        self._closed.set()

    def _heard(self, modality: str, time_s: float) -> bool:
        start, end = self.options.outages.get(modality, (0.0, 0.0))
        return modality in self._columns and not start <= time_s < end


def _stream(draw: Callable[[int], NDArray[np.float64]]) -> Iterator[float]:
    """Endless random numbers; drawing many at a time is 50 times faster."""
    while True:
        yield from draw(1024).tolist()


class _Dice:
    """Random numbers, normal and uniform, from one generator."""

    def __init__(self, seed: int) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        self._normals, self._uniforms = _stream(rng.standard_normal), _stream(rng.random)

    def normal(self) -> float:
        """Mean 0, variance 1."""
        return next(self._normals)

    def uniform(self) -> float:
        """From 0 up to, not including, 1."""
        return next(self._uniforms)

    def exponential(self) -> float:
        """Mean 1."""
        return -math.log1p(-self.uniform())


class _Wander:
    """Noise of unit variance with a time constant."""

    def __init__(self, dice: _Dice, constant_s: float) -> None:
        self._normal = dice.normal
        self._keep = math.exp(-STEP_S / constant_s)
        self._kick = math.sqrt(1 - self._keep**2)
        self._value = 0.0

    def step(self) -> float:
        self._value = self._keep * self._value + self._kick * self._normal()
        return self._value


class _Lag:
    """First-order low-pass."""

    def __init__(self, value: float) -> None:
        self.value = value

    def step(self, value: float, constant_s: float) -> float:
        self.value += (value - self.value) * -math.expm1(-STEP_S / constant_s)
        return self.value


class _Pulse:
    """Half a sine wave that is started now and then."""

    def __init__(self) -> None:
        self._time_s = self._duration_s = self._peak = 0.0

    def start(self, peak: float, duration_s: float) -> None:
        if self._time_s >= self._duration_s:
            self._time_s, self._duration_s, self._peak = 0.0, duration_s, peak

    def step(self) -> float:
        if self._time_s >= self._duration_s:
            return 0.0
        self._time_s += STEP_S
        return self._peak * math.sin(math.pi * min(1.0, self._time_s / self._duration_s))


class _LaneChange:
    """Takes 6 s. The tracker sees it up to the line, loses the lane for 1.7 s, then sees the next."""

    DURATION_S = 6.0
    LOST_S = 1.7

    def __init__(self) -> None:
        self._time_s = self.DURATION_S
        self._side = 1
        self._lane = 1  # of 0, 1, 2 from the left

    def start(self, to_right: bool) -> None:
        if self._time_s >= self.DURATION_S:
            self._side = 1 if self._lane == 0 or (self._lane == 1 and to_right) else -1
            self._lane += self._side
            self._time_s = 0.0

    def step(self, width: float) -> tuple[float, bool]:
        """Place against the middle of the present lane (m, + right), and whether it is lost."""
        if self._time_s >= self.DURATION_S:
            return 0.0, False
        self._time_s += STEP_S
        after_s = self._time_s - self.DURATION_S / 2
        moved = width * (1 - math.cos(math.pi * min(1.0, self._time_s / self.DURATION_S))) / 2
        return self._side * (moved if after_s < 0 else moved - width), 0 <= after_s < self.LOST_S


class _LeadVehicle:
    """The vehicle ahead: it comes, is followed at a headway of its own, and goes."""

    def __init__(self, dice: _Dice) -> None:
        self.present = False
        self._dice = dice
        self._gap = self._speed = self._headway = self._hidden_s = 0.0
        self._foot = _Wander(dice, 3)

    def step(self, style: Style, speed: float, target: float) -> float:
        """Drive on by one step; the greatest acceleration with which the gap is kept, m/s2."""
        foot, dice = self._foot.step(), self._dice
        away_s = style.lead_s * (1 - style.lead_share) / style.lead_share
        if dice.uniform() * (style.lead_s if self.present else away_s) < STEP_S:
            self.present = not self.present
            headway = style.headway * math.exp(style.headway_spread * dice.normal())
            self._headway = min(max(headway, 0.3), 5.0)
            self._gap = speed * self._headway * (0.9 + 0.4 * dice.uniform())
            self._speed = speed - dice.uniform()
        if not self.present:
            return math.inf
        # a little slower than the own driver would go, so that the headway is the driver's choice
        self._speed += ((target - 1.5 - self._speed) / 15 + 0.15 * foot) * STEP_S
        self._gap = max(self._gap + (self._speed - speed) * STEP_S, 4.0)
        wish = 0.4 * (self._speed - speed) + 0.06 * (self._gap - self._headway * speed)
        return max(wish, -4.0)

    def leave(self) -> None:
        """Out of the way, for the lane was changed."""
        self.present = False

    def seen(self, speed: float) -> tuple[float, float]:
        """Distance in m and headway in s as the camera tells them, NaN while it has lost sight."""
        self._hidden_s = max(0.0, self._hidden_s - STEP_S)
        lost_every_s = 25 if self._gap < 25 else 7
        if self._dice.uniform() * lost_every_s < STEP_S:
            self._hidden_s = 0.7 * self._dice.exponential()
        if not self.present or self._hidden_s > 0:
            return math.nan, math.nan
        return self._gap, self._gap / max(speed, 1.0)


class _Drive:
    """The state of the vehicle, its driver, the road and the sensors."""

    def __init__(self, road: str, style: str, dice: _Dice) -> None:
        self._styles = STYLES[road]
        self._motorway = road == "motorway"
        self._dice = dice
        self._speed = self._styles[style].speed
        self._heading = self._yaw = 0.0
        span = math.ceil(GPS_LAG_STEPS + COURSE_SPAN_STEPS) + 1
        self._history = deque([(self._speed, 0.0)] * span, span)
        self._target, self._pedal, self._command = _Wander(dice, 80), _Wander(dice, 2), _Lag(0.0)
        self._foot, self._swerve = _Pulse(), _Pulse()
        self._bend = _Wander(dice, 4 if self._motorway else 6)
        self._bends = _Wander(dice, 20)
        self._weave = _Wander(dice, 4)
        self._held = _Lag(self._styles[style].offset)
        self._lane, self._lead = _LaneChange(), _LeadVehicle(dice)
        self._lost_s = 0.0
        self._others = 0
        self._slow_forward, self._slow_right = _Lag(0.0), _Lag(0.0)
        self._grade, self._bank = _Wander(dice, 20), _Wander(dice, 20)
        self._bump = _Wander(dice, 0.3)
        self._wide, self._skew = _Wander(dice, 2), _Wander(dice, 2)
        self._width = self._position = 0.0

    def step(self, number: int, name: str) -> list[_Reading]:
        """Drive on by one step and return what the sensors read in it."""
        style, dice = self._styles[name], self._dice
        chance = self._speed * STEP_S / 1e4  # of an event with a rate of 1 per 10 km
        start_s, delay_s = number * STEP_S, JITTER_S * dice.uniform()
        previous = self._position
        forward = self._drive(style, chance)
        right, heading, lost = self._steer(style, chance)
        readings: list[_Reading] = [(start_s + delay_s, "imu", self._imu(forward, right))]
        ahead = (*self._lead.seen(self._speed), self._count(style))
        noise = 0.045 if self._motorway else 0.025
        first, last = (math.ceil(round(t / FRAME_S, 6)) for t in (start_s, start_s + STEP_S))
        for frame in range(first, last):
            time_s = frame * FRAME_S
            position = previous + (self._position - previous) * (time_s - start_s) / STEP_S
            lane = (
                position + noise * dice.normal(),
                heading + math.radians(0.01) * dice.normal(),
                self._width + noise * dice.normal(),
            )
            road = (*(_NOT_SEEN if lost else lane), *ahead)
            readings.append((time_s + delay_s, "road", road))
        if number % round(1 / STEP_S) == 0:
            readings.append((start_s + JITTER_S, "gps", self._gps()))
        return readings

    def _drive(self, style: Style, chance: float) -> float:
        """Move along the road; the acceleration in m/s2."""
        dice = self._dice
        target = style.speed + style.speed_spread * self._target.step()
        wish = min(max(0.12 * (target - self._speed), -0.8), 0.8)
        wish = min(wish, self._lead.step(style, self._speed, target))
        # with these peaks, the filtered ones are those of the recordings: medians of the levels are
        # 0.14, 0.24 and 0.46 g of braking, 0.09 and 0.12 g of speeding up
        event = dice.uniform()
        if event < chance * style.braking:
            self._foot.start(-min(2.4 + dice.exponential(), 7.0), 1.5 + 2 * dice.uniform())
        elif event > 1 - chance * style.accelerations:
            self._foot.start(1.4 + 0.4 * dice.uniform(), 2 + 2 * dice.uniform())
        forward = self._command.step(wish, 0.6) + style.pedal * self._pedal.step()
        forward = max(forward + self._foot.step(), -self._speed / STEP_S)
        self._speed += forward * STEP_S
        return forward

    def _steer(self, style: Style, chance: float) -> tuple[float, float, bool]:
        """Move across the road: acceleration to the right, heading to the lane, and lane lost."""
        dice = self._dice
        if dice.uniform() < chance * style.turns:
            peak = math.copysign(2.0 + 0.8 * dice.exponential(), dice.normal())
            self._swerve.start(peak, 2 + 2 * dice.uniform())
        bends = 0.3 + 0.75 * abs(self._bends.step()) if self._motorway else 1.0  # in places
        right = style.lateral * bends * self._bend.step() + self._swerve.step()

        width = 3.05 if self._motorway else 2.95
        self._width = width + 0.24 * self._wide.step()
        before = self._held.value
        goal = style.offset + style.weave * self._weave.step()
        held = self._held.step(goal, style.steering_lag_s)
        event = dice.uniform()
        if event < chance * style.lane_changes:
            self._lane.start(dice.uniform() < 0.5)
        elif event > 1 - chance * (8 if self._motorway else 4):
            self._lost_s = 1.2 * dice.exponential()
        place, crossing = self._lane.step(width)
        if crossing:
            self._lead.leave()
        self._lost_s = max(0.0, self._lost_s - STEP_S)
        self._position = held + place

        across = (held - before) / STEP_S / max(self._speed, 5.0)
        # the tracker's heading follows the offset's rate with a gain of 0.03 to 0.1 only
        heading = math.radians(0.03 + 0.042 * self._skew.step()) + 0.06 * across
        turn = -right / max(self._speed, 5.0) * STEP_S
        self._heading += turn
        self._yaw += turn + 0.0003 * dice.normal()
        self._history.append((self._speed, self._heading))
        return right, heading, crossing or self._lost_s > 0

    def _imu(self, forward: float, right: float) -> tuple[float, ...]:
        normal = self._dice.normal
        slow_forward = self._slow_forward.step(forward, FILTER_S)
        slow_right = self._slow_right.step(right, FILTER_S)
        bump = self._bump.step()
        rough = self._speed / 27  # vertical spread rises with speed: 0.21, 0.24, 0.28 m/s2
        return (
            FILTER_GAIN * (forward - slow_forward) - 0.02 + 0.07 * normal(),
            FILTER_GAIN * (right - slow_right) + 0.085 * normal(),
            -0.108 + rough * (0.19 * normal() + 0.07 * bump * abs(bump)),
            -1.555 + 0.025 * self._grade.step() - TILT * slow_forward,
            (0.03 if self._motorway else 0.024) * self._bank.step() - 0.7 * TILT * slow_right,
            math.remainder(self._yaw, 2 * math.pi),
        )

    def _gps(self) -> tuple[float, float]:
        speed, course = self._ago(GPS_LAG_STEPS)
        change = abs(course - self._ago(GPS_LAG_STEPS + COURSE_SPAN_STEPS)[1])
        steps = round(change / COURSE_RESOLUTION)
        speed = round((speed + 0.08 * self._dice.normal()) / SPEED_RESOLUTION) * SPEED_RESOLUTION
        return max(0.0, speed), steps * COURSE_RESOLUTION / (COURSE_SPAN_STEPS * STEP_S)

    def _ago(self, steps: float) -> tuple[float, float]:
        """Speed and heading some steps ago."""
        late, early = self._history[-1 - math.floor(steps)], self._history[-1 - math.ceil(steps)]
        return (late[0] + early[0]) / 2, (late[1] + early[1]) / 2

    def _count(self, style: Style) -> float:
        """Vehicles in view; those in other lanes come and stay for 3 s on average."""
        event = self._dice.uniform()
        if event < style.others * STEP_S / 3:
            self._others += 1
        elif event > 1 - self._others * STEP_S / 3:
            self._others -= 1
        return float(self._others + self._lead.present)
