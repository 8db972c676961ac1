"""How a motion sensor sits in the vehicle: found by standing still and driving, kept in a file.

Vehicle axes are forward, left and up (ISO 8855); a mount is the rotation from the sensor's axes to
them. At rest a sensor feels nothing but the ground, which pushes up. In motion, a vehicle that does not
slide feels, in its horizontal plane, `a + i v w`: what its speed changes by, forward, and speed times
yaw rate, to the left. With speeds, the rotation that turns this into what the sensor feels is
forward. Without, what the yaw rate does not explain of the horizontal acceleration lies along the
forward axis, for a driver brakes and speeds up on straight roads as well; and what it does explain
points left in a left turn, which tells forward from backward.

With speeds, it is at rest where nothing shakes and the speed is near 0. Without, where nothing shakes,
alike in most of such seconds in acceleration and rotation; steady motion straight on feels the same,
and tells up as well.

What cannot be found out: the slope of the ground at rest; a sensor that counts acceleration negative, as
that of iOS, which passes for one upside down; and without speeds, a gyroscope of the wrong sign (forward
is then backward), and a sensor so damped that the same steady bend or push lasts longer than its rests.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.units import G

FORMAT = "fusedge-mount-1"
MAX_FILE_BYTES = 1 << 16
ORTHONORMAL = 1e-3  # a file is written with more digits
GRAVITY_RANGE = (0.9 * G, 1.1 * G)  # what a sensor with an error of scale may feel at rest

ACCELERATIONS = ("acceleration_x", "acceleration_y", "acceleration_z")
ANGULAR_VELOCITIES = ("angular_velocity_x", "angular_velocity_y", "angular_velocity_z")
SENSOR_CHANNELS: Mapping[str, str] = {
    **dict.fromkeys(ACCELERATIONS, "m/s2"),
    **dict.fromkeys(ANGULAR_VELOCITIES, "rad/s"),
}
VEHICLE_CHANNELS: Mapping[str, str] = {
    "longitudinal_acceleration": "m/s2",
    "lateral_acceleration": "m/s2",
    "vertical_acceleration": "m/s2",
    "roll_rate": "rad/s",
    "pitch_rate": "rad/s",
    "yaw_rate": "rad/s",
}

# A phone in a car (cloudpose, 342 s): within a second at rest, spreads up to 0.23 m/s2 and 0.010 rad/s;
# in motion, from 0.36 and 0.023 on.
STILL_ACCELERATION = 0.25
STILL_RATE = 0.015
REST_S = 2
REST_SPEED = 1.0  # m/s; a GPS receiver at rest may give half of it
ALIKE_ACCELERATION = 0.5  # m/s2, of rests: their slopes differ by 3 degrees there
ALIKE_RATE = 0.01  # rad/s, of rests: a bend of 2 km at 20 m/s
ALIKE_TRIES = 200
MOVED = math.radians(10)
MOVED_UNSEEN = math.radians(20)  # without speeds; 3.6 m/s2, so that no driver speeds up like it
BLOCK_NS = NANOSECONDS
BLOCK_ROWS = (5, 4096)  # fewer tell nothing; more are left out
MAX_BLOCKS = 3600
MAX_SPEEDS = 40_000
SOLVE_EVERY = 5  # seconds, and more as they become many: an hour of them takes 0.1 s
SOLVE_SHARE = 20
MAX_VALUE = 1e6
DRIVE_S = 90  # without speeds; the same phone's axis was right to 2 degrees from then on
SPEED_DRIVE_S = 30
UPRIGHT_S = 60  # of driving, where no rest tells what is up
TURN_RATE = 0.05  # rad/s, a bend of 300 m at 15 m/s
TURN_ANGLE = math.radians(20)
TURNS = 3
RATIO = 4.0  # of variance along to across, turns allowed for; 9 for the phone
SPEEDS = (3.0, 60.0)  # m/s that the turns may speak for
AGREEMENT = (
    0.7  # correlation of what is felt with what is expected; 0.87 by turns and 0.93 by speed there
)
GAIN = (0.6, 1.4)  # felt over expected: 0.97 there, 0.79 in comma2k19; 0.28 if km/h pass for m/s
PART_GAIN = (0.4, 1.6)  # of the same, along and across by themselves
MIN_CHANGE = 0.3  # m/s2, standard deviation of what a part is expected to be, for it to tell
MISFIT = "the speed does not fit the motion: wrong unit, another vehicle, or the gyroscope turned"
MAX_LAG_S = 3.0  # of a GPS receiver's speed; the longest seen is 2.1 s
LAG_STEP_S = 0.25
FOLDS = 10
MAX_ERROR_DEG = 4.0


class Mount(NamedTuple):
    """`rotation` `[3, 3]`: forward, left and up in sensor axes, one a row. `gravity`: what the sensor
    feels at rest, m/s2.
    """

    rotation: NDArray[np.float64]
    gravity: float

    def vehicle(self, values: Mapping[str, float]) -> dict[str, float]:
        """VEHICLE_CHANNELS from SENSOR_CHANNELS, NaN where one is lacking.

        Longitudinal is positive when speeding up, lateral in a right turn, vertical upward without gravity;
        rates are right-handed about forward, left and up, so that yaw is positive in a left turn.
        """
        felt = [values.get(name, math.nan) for name in ACCELERATIONS]
        turned = [values.get(name, math.nan) for name in ANGULAR_VELOCITIES]
        forward, left, up = (self.rotation @ felt).tolist()
        rates = (self.rotation @ turned).tolist()
        return dict(zip(VEHICLE_CHANNELS, (forward, -left, up - self.gravity, *rates), strict=True))


ALIGNED = Mount(np.eye(3), G)
"""The sensor's axes are the vehicle's: x forward, y left, z up."""


class Evidence(NamedTuple):
    """What a calibration rests on. `agreement` is the correlation of what is felt with what the speed, or
    the yaw rate, lets expect; `error_deg` the standard error of forward within the horizontal plane,
    by leaving out a tenth of the drive at a time. How level the ground was at rest cannot be told.
    """

    method: str = ""
    """`speed` or `turns`."""
    rests: int = 0
    moving_s: float = 0.0
    left_turns: int = 0
    right_turns: int = 0
    agreement: float = 0.0
    error_deg: float = 180.0


class _Fit(NamedTuple):
    forward: complex
    """Of length 1, in the horizontal plane."""
    agreement: float
    doubt: str
    """Why it must not be believed, or empty."""


class MountCalibration:
    """Finds the mount from rows of a motion sensor and, where there are, speeds of the vehicle.

    Contract: `mount` is None until the evidence suffices, and `missing` says what is lacking; from then
    on it never changes. Any rotation is found. Rows and speeds come in the order of time, on one
    clock; what is no number, or beyond any sensor, is passed over. Memory is bounded to the last hour.
    Speeds that do not fit are never passed over. A sensor that is turned over meanwhile begins anew.
    """

    def __init__(self) -> None:
        self.mount: Mount | None = None
        self.evidence = Evidence()
        self.missing = "no motion was measured yet"
        self._blocks: deque[tuple[float, ...]] = deque(maxlen=MAX_BLOCKS)
        self._speeds: deque[tuple[float, float]] = deque(maxlen=MAX_SPEEDS)
        self._rows: list[Sequence[float]] = []
        self._first_ns = self._last_ns = 0
        self._new = 0

    def add(
        self, time_ns: int, acceleration: Sequence[float], angular_velocity: Sequence[float]
    ) -> None:
        """A row in sensor axes: x, y, z in m/s2 and in rad/s."""
        row = (*acceleration, *angular_velocity)
        if self.mount is not None or not all(abs(value) < MAX_VALUE for value in row):
            return
        if not self._first_ns <= time_ns < self._first_ns + BLOCK_NS:
            self._close_block()
            self._first_ns = time_ns
        if len(self._rows) < BLOCK_ROWS[1]:
            self._rows.append(row)
            self._last_ns = time_ns

    def add_speed(self, time_ns: int, speed: float) -> None:
        """The vehicle's speed in m/s; its delay against the motion, up to 3 s, is allowed for."""
        time_s = time_ns / NANOSECONDS
        if abs(speed) < MAX_VALUE and (not self._speeds or time_s > self._speeds[-1][0]):
            self._speeds.append((time_s, speed))

    def finish(self) -> None:
        """Use what has come since the last attempt: to be called where the input ends."""
        self._close_block()
        if self.mount is None and self._blocks:
            self._solve()

    def _close_block(self) -> None:
        rows, self._rows = np.array(self._rows, np.float64), []
        if len(rows) < BLOCK_ROWS[0]:
            return
        spread = rows.std(0)
        still = (
            float(np.linalg.norm(spread[:3])) < STILL_ACCELERATION
            and float(np.linalg.norm(spread[3:])) < STILL_RATE
        )
        middle_s = (self._first_ns + self._last_ns) / 2 / NANOSECONDS
        self._blocks.append((middle_s, *rows.mean(0).tolist(), float(still)))
        self._new += 1
        if self._new >= max(SOLVE_EVERY, len(self._blocks) // SOLVE_SHARE):
            self._new = 0
            self._solve()

    def _solve(self) -> None:
        blocks, speeds = np.array(self._blocks), np.array(self._speeds).reshape(-1, 2)
        state = _state(blocks, speeds)
        by_speed = len(speeds) > 1
        places = [*_rests(state.rest if by_speed else blocks[:, 7] > 0)]
        felt = [blocks[place, 1:4].mean(0) for place in places]
        moved = MOVED if by_speed else MOVED_UNSEEN
        if len(places) > 1 and _angle(felt[-1], np.mean(felt[:-1], axis=0)) > moved:
            for _ in range(places[-1].start):
                self._blocks.popleft()
            blocks = np.array(self._blocks)
            state = _state(blocks, speeds)
        drive = _Drive(blocks, state, speeds)
        self.evidence = drive.evidence
        self.missing = drive.missing
        if not drive.missing:
            self.mount = drive.mount()


class _State(NamedTuple):
    """What the vehicle does, by the second."""

    rest: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    shaken: NDArray[np.bool_]
    """Though the speed is near 0."""


def _state(blocks: NDArray[np.float64], speeds: NDArray[np.float64]) -> _State:
    still = blocks[:, 7] > 0
    if len(speeds) > 1:
        lags = np.arange(0, MAX_LAG_S + 0.1, 0.5)
        fast = np.abs(_speed_at(blocks[:, :1] + lags, speeds))  # NaN is neither
        slow = (fast < REST_SPEED).all(1)
        moving = np.asarray((fast >= REST_SPEED).any(1), bool)
        return _State(still & slow, moving, slow & ~still)
    rest = np.zeros(len(blocks), bool)
    for one in _rests(_alike(blocks[:, 1:4], blocks[:, 4:7], still)):
        rest[one] = True
    return _State(rest, ~rest, np.zeros(len(rest), bool))


def _alike(
    felt: NDArray[np.float64], turned: NDArray[np.float64], still: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The most of the still seconds that are alike."""

    def near(some: NDArray[np.intp]) -> NDArray[np.bool_]:
        off, rate_off = (np.linalg.norm(a - a[some].mean(0), axis=1) for a in (felt, turned))
        return np.asarray(still & (off < ALIKE_ACCELERATION) & (rate_off < ALIKE_RATE), bool)

    places = np.flatnonzero(still)
    step = 1 + len(places) // ALIKE_TRIES
    groups = [near(places[k : k + 1]) for k in range(0, len(places), step)]
    most = max(groups, key=np.count_nonzero, default=still)
    return near(np.flatnonzero(most)) if groups else still


def _speed_at(times: NDArray[np.float64], speeds: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where it is not known."""
    at, values = speeds[:, 0], speeds[:, 1]
    place = np.clip(np.searchsorted(at, times), 1, len(at) - 1)
    known = (at[place] - at[place - 1] < MAX_LAG_S) & (times >= at[0]) & (times <= at[-1])
    return np.where(known, np.interp(times, at, values), math.nan)


class _Drive:
    """One attempt. `blocks` `[N, 8]` are seconds: time, acceleration, angular velocity, still or not;
    `speeds` `[M, 2]` times and speeds.
    """

    def __init__(
        self, blocks: NDArray[np.float64], state: _State, speeds: NDArray[np.float64]
    ) -> None:
        self._times, self._felt = blocks[state.moving, 0], blocks[state.moving, 1:4]
        self._turned = blocks[state.moving, 4:7]
        self._speeds = speeds
        self._forward = 0j
        self._motions: dict[float, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        rests = [*_rests(state.rest)]
        if rests:
            self._up = np.mean([blocks[rest, 1:4].mean(0) for rest in rests], axis=0)
            resting = np.concatenate([blocks[rest] for rest in rests])
            self._turned = self._turned - resting[:, 4:7].mean(0)
        elif len(self._felt):
            self._up = self._felt.mean(0)
        else:
            self._up = blocks[:, 1:4].mean(0)
        self.evidence = Evidence(rests=len(rests), moving_s=float(state.moving.sum()))
        self.missing = self._attempt(int(state.shaken.sum()))

    def _attempt(self, shaken_s: int) -> str:
        """Fill in `evidence`; what is missing."""
        rests, seconds = self.evidence.rests, self.evidence.moving_s
        with_speed = len(self._speeds) > 1
        if not rests and not with_speed:
            return f"not one rest of {REST_S} s, which tells what is up: stand still for a while"
        need_s = DRIVE_S if not with_speed else SPEED_DRIVE_S if rests else UPRIGHT_S
        if seconds < need_s:
            if shaken_s >= SPEED_DRIVE_S:
                return f"{MISFIT} (it is near 0 in {shaken_s} s of motion)"
            return f"{seconds:.0f} of {need_s} s of driving"
        if doubt := self._gravity_doubt():
            return doubt
        if not with_speed:
            return self._judge("turns", self._turns_fit)
        lag_s = self._lag_s()
        for _ in range(0 if rests else 3):  # what is up follows from what is forward, and so on
            everything = np.ones(len(self._times), bool)
            self._level(self._speed_fit(lag_s, everything).forward, lag_s)
        return self._judge("speed", lambda part: self._speed_fit(lag_s, part))

    def _judge(self, method: str, fit_to: Callable[[NDArray[np.bool_]], _Fit]) -> str:
        fit = fit_to(np.ones(len(self._times), bool))
        yaw, _ = self._plane()
        left, right = _turns(yaw)
        error_deg = _error_deg(fit.forward, len(self._times), fit_to)
        self.evidence = self.evidence._replace(
            method=method,
            left_turns=left,
            right_turns=right,
            agreement=fit.agreement,
            error_deg=error_deg,
        )
        self._forward = fit.forward
        if doubt := self._gravity_doubt():
            return doubt
        if method == "turns" and left + right < TURNS:
            return f"{left + right} of {TURNS} turns: drive round some corners"
        if fit.doubt:
            return fit.doubt
        if not error_deg <= MAX_ERROR_DEG:
            return f"forward is uncertain by {error_deg:.0f} degrees: drive on"
        return ""

    def _gravity_doubt(self) -> str:
        gravity = float(np.linalg.norm(self._up))
        if GRAVITY_RANGE[0] <= gravity <= GRAVITY_RANGE[1]:
            return ""
        return f"{gravity:.2f} m/s2 are felt at rest, not about {G:.1f}: is the unit right?"

    def mount(self) -> Mount:
        """The mount of an attempt that misses nothing."""
        up, first, second = self._axes()
        forward = self._forward.real * first + self._forward.imag * second
        return Mount(
            np.array([forward, np.cross(up, forward), up]), float(np.linalg.norm(self._up))
        )

    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Up, and two horizontal axes of which the second is to the left of the first."""
        up = self._up / np.linalg.norm(self._up)
        first = np.cross(np.eye(3)[int(np.argmin(np.abs(up)))], up)
        first /= np.linalg.norm(first)
        return up, first, np.cross(up, first)

    def _plane(self) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
        """Yaw rate, and horizontal acceleration as a complex number, of each second."""
        up, first, second = self._axes()
        return self._turned @ up, self._felt @ first + 1j * (self._felt @ second)

    def _lag_s(self) -> float:
        """That of the speed against the motion."""
        everything = np.ones(len(self._times), bool)
        lags: list[float] = np.arange(0, MAX_LAG_S + LAG_STEP_S / 2, LAG_STEP_S).tolist()
        return max(lags, key=lambda lag_s: self._speed_fit(lag_s, everything).agreement)

    def _motion(self, lag_s: float) -> NDArray[np.complex128]:
        """What the speed lets expect; NaN where it is not known."""
        if lag_s not in self._motions:
            at = self._times + lag_s
            before, middle, after = (_speed_at(at + d, self._speeds) for d in (-0.5, 0, 0.5))
            self._motions[lag_s] = after - before, middle
        change, speed = self._motions[lag_s]
        yaw, _ = self._plane()
        motion: NDArray[np.complex128] = change + 1j * speed * yaw
        return motion

    def _speed_fit(self, lag_s: float, part: NDArray[np.bool_]) -> _Fit:
        motion, (_, felt) = self._motion(lag_s), self._plane()
        part = part & np.isfinite(motion)
        if part.sum() < SPEED_DRIVE_S / 2:
            return _Fit(1, 0.0, "the speed is not known for most of the drive")
        motion, felt = motion[part] - motion[part].mean(), felt[part] - felt[part].mean()
        product = complex(np.vdot(motion, felt))
        power, total = float(np.vdot(motion, motion).real), float(np.vdot(felt, felt).real)
        if not power or not total or not product:
            return _Fit(1, 0.0, "the speed does not change: speed up and brake")
        agreement, forward = abs(product) / math.sqrt(power * total), product / abs(product)
        return _Fit(forward, agreement, _misfit(motion, felt / forward, agreement))

    def _turns_fit(self, part: NDArray[np.bool_]) -> _Fit:
        yaw, felt = self._plane()
        yaw, felt = yaw[part], felt[part]
        yaw, felt = yaw - yaw.mean(), felt - felt.mean()
        by_yaw = complex(np.vdot(yaw, felt)) / max(float(yaw @ yaw), 1e-12)
        rest = felt - by_yaw * yaw
        spread, axes = np.linalg.eigh(np.cov(rest.real, rest.imag))
        forward = complex(axes[0, 1], axes[1, 1])
        speed = (by_yaw / (1j * forward)).real
        if speed < 0:
            forward, speed = -forward, -speed
        across = float((felt / forward).imag.var()) or 1.0
        agreement = speed * float(yaw.std()) / math.sqrt(across)
        doubt = ""
        if not SPEEDS[0] <= speed <= SPEEDS[1] or agreement < AGREEMENT:
            doubt = (
                f"turns and acceleration agree by {agreement:.2f} only: drive round more corners"
            )
        elif spread[1] < RATIO * spread[0]:
            doubt = "speeding up and braking do not stand out: do more of both"
        return _Fit(forward, agreement, doubt)

    def _level(self, forward: complex, lag_s: float) -> None:
        """Take up from what is felt, without what the speed explains."""
        _, first, second = self._axes()
        motion = self._motion(lag_s) * forward
        known = np.isfinite(motion)
        explained = np.outer(motion[known].real, first) + np.outer(motion[known].imag, second)
        if known.any():
            self._up = (self._felt[known] - explained).mean(0)


def _misfit(motion: NDArray[np.complex128], felt: NDArray[np.complex128], agreement: float) -> str:
    """Why what is felt, forward and to the left, is not what the speed lets expect; or empty.

    Each part is looked at by itself as well: with the gyroscope turned, what it explains points
    to the other side, and where turns prevail that side would be forward.
    """
    if agreement < AGREEMENT:
        return f"{MISFIT}, or too little speeding up and braking (they agree by {agreement:.2f})"
    gain = float(np.vdot(motion, felt).real) / float(np.vdot(motion, motion).real)
    if not GAIN[0] <= gain <= GAIN[1]:
        return f"{MISFIT} ({gain:.2f} of what it lets expect is felt)"
    for name, expected, got in (
        ("forward", motion.real, felt.real),
        ("to the side", motion.imag, felt.imag),
    ):
        if expected.std() >= MIN_CHANGE:
            gain = float(expected @ got) / float(expected @ expected)
            if not PART_GAIN[0] <= gain <= PART_GAIN[1]:
                return f"{MISFIT} ({gain:.2f} of what it lets expect is felt {name})"
        elif name == "forward":
            return "the speed hardly changes: speed up and brake"
    return ""


def _rests(still: NDArray[np.bool_]) -> Iterator[slice]:
    """Where it stands still for long enough."""
    end = 0
    for value, group in itertools.groupby(still.tolist()):
        start, end = end, end + len(list(group))
        if value and end - start >= REST_S:
            yield slice(start, end)


def _turns(yaw: NDArray[np.float64]) -> tuple[int, int]:
    """How many turns to the left and to the right there are in yaw rates by the second."""
    sides = np.sign(yaw) * (np.abs(yaw) > TURN_RATE)
    left = right = 0
    for side, group in itertools.groupby(zip(sides, yaw, strict=True), key=operator.itemgetter(0)):
        if abs(sum(rate for _, rate in group)) >= TURN_ANGLE:
            left, right = left + int(side > 0), right + int(side < 0)
    return left, right


def _error_deg(forward: complex, count: int, fit: Callable[[NDArray[np.bool_]], _Fit]) -> float:
    """The standard error of the direction, by the jackknife over stretches of the drive."""
    fold = np.arange(count) * FOLDS // count
    turned = [np.angle(fit(fold != k).forward / forward) for k in range(FOLDS)]
    return math.degrees(math.sqrt((FOLDS - 1) * float(np.var(turned))))


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    cosine = float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)
    return math.acos(max(-1.0, min(1.0, cosine)))


def save_mount(path: Path, mount: Mount, evidence: Evidence) -> None:
    """Write a mount as JSON; raises FusedgeError where that cannot be."""
    content = {
        "format": FORMAT,
        "rotation": mount.rotation.tolist(),
        "gravity": mount.gravity,
        "evidence": evidence._asdict(),
    }
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise FusedgeError(
            f"cannot be written: {error.strerror}", where=str(path), hint="choose another -o"
        ) from None


def load_mount(path: Path) -> Mount:
    """Read a mount; raises FusedgeError where the file is missing or holds no rotation."""
    hint = "make one with fusedge calibrate"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise FusedgeError(
            f"cannot be read: {error.strerror}", where=str(path), hint=hint
        ) from None
    try:
        mount = _parse(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise FusedgeError(f"not a mount: {error}", where=str(path), hint=hint) from None
    return mount


def _parse(content: Any) -> Mount:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    rows, gravity = content.get("rotation"), content.get("gravity", 0)
    if not (
        isinstance(rows, list)
        and [len(row) for row in rows if isinstance(row, list)] == [3, 3, 3]
        and len(rows) == 3
        and all(_number(value) for row in rows for value in row)
    ):
        raise ValueError("rotation is not three rows of three numbers")
    rotation = np.array(rows, np.float64)
    if not np.abs(rotation @ rotation.T - np.eye(3)).max() <= ORTHONORMAL:
        raise ValueError("the rows of rotation are not at right angles and of length 1")
    if np.linalg.det(rotation) < 0:
        raise ValueError("rotation turns left into right")
    if _number(gravity) and GRAVITY_RANGE[0] <= float(gravity) <= GRAVITY_RANGE[1]:
        return Mount(rotation, float(gravity))
    raise ValueError(f"gravity is not from {GRAVITY_RANGE[0]:.1f} to {GRAVITY_RANGE[1]:.1f}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 100
