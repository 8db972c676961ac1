"""A GPS receiver at a serial port: a real pseudo-terminal with a writer at its other end."""

from __future__ import annotations

import gc
import math
import os
import select
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.fixes import CHANNELS, Fix, FixRows
from fusedge.devices.capture.gps import RATES
from fusedge.devices.capture.source import Source, open_source
from fusedge.devices.capture.wanted import RowLayout
from tests.devices.modalities import by_name, series
from tests.devices.nmea_log import drive, gga, rmc, sentence

pytestmark = pytest.mark.real_time
S = 1_000_000_000


class Receiver:
    """The other end of the cable: sends what it is given, again and again or once."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, data: bytes) -> None:
        os.write(self._master, data)

    def keep_sending(self, make: Callable[[int], bytes], every_s: float = 0.02) -> None:
        def run() -> None:
            number = 0
            while not self._stop.wait(every_s):
                if select.select([], [self._master], [], 0)[1]:  # it waits for no reader
                    self.send(make(number))
                number += 1

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def quiet(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self._stop.clear()

    def vanish(self) -> None:
        self.quiet()
        for fd in (self._master, self._slave):
            if fd >= 0:
                os.close(fd)
        self._master = self._slave = -1


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.vanish()


def gps(path: str, query: str = "", wanted: Any = None) -> Source:
    return open_source(f"gps:{path}{query}", wanted, time.monotonic_ns)


def listening(receiver: Receiver, query: str = "", wanted: Any = None) -> Source:
    """A source that is open; what came before was thrown away, as ports do."""
    receiver.keep_sending(lambda number: sentence("GPGSV,1,1,00"), every_s=0.002)
    try:
        return gps(receiver.path, query, wanted)
    finally:
        receiver.quiet()


def modality(**units: str) -> dict[str, Modality]:
    return by_name(series("gps", units, rate_hz=1, max_hold_s=2))


def take(source: Source, count: int) -> list[Sample | Rejection]:
    items = []
    for item in source.samples():
        items.append(item)
        if len(items) == count:
            source.close()
            break
    return items


def values(source: Source, item: Sample | Rejection) -> dict[str, float]:
    assert isinstance(item, Sample), item
    return dict(zip(source.channels[item.modality], item.data.tolist(), strict=True))


def rows(**units: str) -> FixRows:
    address = Address("gps:x", "gps", "x", {})
    spec = modality(**units)["gps"] if units else None
    return FixRows(RowLayout(address, "gps", spec, CHANNELS))


def row(given: Sample | Rejection) -> dict[str, float]:
    assert isinstance(given, Sample), given
    return dict(zip(CHANNELS, given.data.tolist(), strict=True))


def fix(second: float, course_deg: float = 90.0, speed: float = 20.0, east_m: float = 0.0) -> Fix:
    return Fix(round(second * S), 40.5, -3.25 + east_m / 84_553, speed, math.radians(course_deg))


def test_fixes_come_with_their_own_times(receiver: Receiver) -> None:
    source = listening(receiver)
    receiver.send(b"".join(drive(3)))
    assert source.live and source.modalities == ("gps",)
    assert source.channels == {"gps": tuple(CHANNELS)}
    items = take(source, 3)
    first = values(source, items[0])
    assert first["speed"] == pytest.approx(20, abs=1e-3)
    assert first["latitude"] == pytest.approx(40.5) and math.isnan(first["altitude"])
    assert values(source, items[1])["altitude"] == 610
    assert all(isinstance(item, Sample) and item.stamp == "capture" for item in items)
    assert all(item.timestamp_ns <= item.arrival_ns for item in items if isinstance(item, Sample))


def test_wanted_units_and_a_channel_that_is_not_measured(receiver: Receiver) -> None:
    source = listening(receiver, "", modality(speed="km/h", vertical_speed="m/s"))
    receiver.send(b"".join(drive(1)))
    (item,) = take(source, 1)
    assert isinstance(item, Sample) and item.data[0] == pytest.approx(72, abs=0.01)
    assert math.isnan(item.data[1])
    (warning,) = source.warnings
    assert warning.endswith("gps comes without vertical_speed; not measured")


def test_what_is_no_fix_is_counted(receiver: Receiver) -> None:
    source = listening(receiver, "?baud=9600")
    receiver.send(
        rmc(0) + rmc(1, status="V") + b"$GPRMC,torn\r\n" + rmc(2).replace(b",A,", b",B,") + rmc(3)
    )
    items = take(source, 5)
    reasons = [item.reason if isinstance(item, Rejection) else "" for item in items]
    assert reasons == ["", "no_fix", "malformed", "malformed", ""]


def test_a_wrong_rate_is_told(receiver: Receiver) -> None:
    # what a receiver at 9600 baud looks like at 4800
    receiver.keep_sending(lambda number: bytes([0x98, 0x7E, 0xF8, number & 0xFF]) * 50)
    with pytest.raises(FusedgeError) as raised:
        gps(receiver.path, "?baud=4800")
    line = raised.value.line()
    assert "bytes but not one NMEA sentence at 4800 baud (baud=auto finds the rate)" in line
    with pytest.raises(FusedgeError, match="not one NMEA sentence at any usual rate"):
        gps(receiver.path)


def test_the_rate_is_found(receiver: Receiver) -> None:
    import serial

    probe = serial.Serial(receiver.path, 9600)
    probe.close()

    def send(number: int) -> bytes:
        rate = tty.tcgetattr(receiver._slave)[4]  # type: ignore[attr-defined]
        return rmc(number) if rate == tty.B38400 else b"\xf8\x7e" * 50  # type: ignore[attr-defined]

    receiver.keep_sending(send)
    source = gps(receiver.path)
    assert isinstance(take(source, 1)[0], Sample)


class OneRate(Receiver):
    """Sends bursts every second; at another rate they are as many bytes as the line makes of them."""

    def __init__(self, rate: int) -> None:
        super().__init__()
        code = getattr(tty, f"B{rate}")

        def send(number: int) -> bytes:
            set_to = tty.tcgetattr(self._slave)[4]  # type: ignore[attr-defined]
            burst = rmc(number) + gga(number) + sentence("GPGSV,1,1,00") * 12
            if set_to == code:
                return burst
            faster = SPEEDS[set_to] / rate
            return b"\xf8\x80\x1e" * max(1, round(len(burst) * min(4, faster) / 3))

        self.keep_sending(send, every_s=1.0)


SPEEDS = {getattr(tty, f"B{rate}"): rate for rate in RATES}


def test_a_receiver_that_comes_back_is_read_at_once(tmp_path: Path) -> None:
    link = tmp_path / "ttyGPS"
    took = []
    for _ in range(2):
        receiver = OneRate(57600)
        link.unlink(missing_ok=True)
        link.symlink_to(receiver.path)
        start = time.monotonic()
        source = gps(str(link))
        took.append(time.monotonic() - start)
        assert isinstance(take(source, 1)[0], Sample)
        receiver.vanish()
    assert took[0] < 12 and took[1] < 2
    # set to another rate meanwhile
    receiver = OneRate(RATES[0])
    link.unlink()
    link.symlink_to(receiver.path)
    assert isinstance(take(gps(str(link)), 1)[0], Sample)
    receiver.vanish()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?baud=fast", "baud=fast is not a number from 300 to 4e+06"),
        ("?baud=9600.5", "baud=9600.5 is not a whole number"),
        ("?bauds=9600", "did you mean 'baud'?"),
    ],
)
def test_a_wrong_option_is_told(receiver: Receiver, query: str, message: str) -> None:
    with pytest.raises(FusedgeError) as raised:
        gps(receiver.path, query)
    assert message in raised.value.line()


def test_a_port_that_is_away_or_silent_is_told(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FusedgeError, match="no device /dev/ttyNONE"):
        gps("/dev/ttyNONE")
    monkeypatch.setattr("fusedge.devices.capture.gps.QUIET_READS", 3)
    with pytest.raises(FusedgeError, match="not one byte in"):
        gps(receiver.path)


def test_a_receiver_without_rmc_is_told(receiver: Receiver) -> None:
    receiver.keep_sending(lambda number: gga(number) * 10)
    source = gps(receiver.path)
    with pytest.raises(FusedgeError, match="but no RMC"):
        list(source.samples())


def test_a_receiver_that_vanishes_raises(receiver: Receiver) -> None:
    source = listening(receiver)
    receiver.send(rmc(0))
    items = source.samples()
    assert isinstance(next(items), Sample)
    receiver.vanish()
    with pytest.raises(FusedgeError, match="the receiver is gone"):
        list(items)


def test_a_silent_receiver_gives_nothing_and_closing_ends_it_at_once(receiver: Receiver) -> None:
    source = listening(receiver)
    receiver.send(rmc(0))
    items: list[Any] = []
    thread = threading.Thread(target=lambda: items.extend(source.samples()))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    start = time.monotonic()
    source.close()
    source.close()
    thread.join(1)
    assert not thread.is_alive() and time.monotonic() - start < 0.2
    assert len(items) == 1


def test_a_port_that_is_in_use_is_told(receiver: Receiver) -> None:
    source = listening(receiver)
    with pytest.raises(FusedgeError, match="in use"):
        gps(receiver.path)
    source.close()


def test_a_thousand_times_opened_and_closed_leaves_nothing(receiver: Receiver) -> None:
    receiver.keep_sending(lambda number: rmc(number % 1000), every_s=0.0005)

    def once(read: bool) -> None:
        source = gps(receiver.path, "?baud=9600")
        if read:
            next(iter(source.samples()))
        source.close()

    for _ in range(10):
        once(True)
    gc.collect()
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(1000):
        once(number % 2 == 0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


def test_opening_that_fails_leaves_nothing(receiver: Receiver) -> None:
    receiver.keep_sending(lambda number: b"\x00" * 700)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(FusedgeError):
            gps(receiver.path, "?baud=9600")
    assert len(os.listdir("/proc/self/fd")) == before


def test_course_change_is_the_unsigned_rate_over_two_seconds() -> None:
    making = rows()
    courses = [350, 355, 5, 15, 10, 5]
    changes = [
        row(making.row(fix(k, course), k * S))["course_change"] for k, course in enumerate(courses)
    ]
    assert all(math.isnan(change) for change in changes[:2])
    assert [math.degrees(c) for c in changes[2:]] == pytest.approx([7.5, 10, 2.5, 5], abs=1e-4)


def test_at_ten_hertz_it_is_the_same() -> None:
    making = rows()
    last = {}
    for k in range(40):
        last = row(making.row(fix(k / 10, k), k * S // 10))
    assert math.degrees(last["course_change"]) == pytest.approx(10, abs=1e-3)


def test_a_gap_or_standstill_voids_it_for_two_seconds() -> None:
    making = rows()

    def change(second: float, speed: float = 20.0) -> float:
        return row(making.row(fix(second, 90, speed), round(second * S)))["course_change"]

    assert [math.isnan(change(k)) for k in range(4)] == [True, True, False, False]
    assert [math.isnan(change(k)) for k in (6, 7, 8)] == [True, True, False]
    assert math.isnan(change(9, 1.0))
    assert [math.isnan(change(k)) for k in (10, 11, 12)] == [False, True, False]
    making.lost(13 * S, "")
    assert [math.isnan(change(k)) for k in (13, 14, 15)] == [True, True, False]


def test_the_course_of_a_standing_vehicle_is_not_measured() -> None:
    standing = row(rows().row(fix(0, 45, 0.3), 0))
    assert math.isnan(standing["course"]) and standing["speed"] == pytest.approx(0.3)
    unknown = row(rows().row(fix(0, 45, math.nan), 0))
    assert math.isnan(unknown["course"])


def test_a_jump_is_refused_until_it_proves_true() -> None:
    making = rows()
    making.row(fix(0), 0)

    def at(second: float, east_m: float) -> str:
        item = making.row(fix(second, east_m=east_m), round(second * S))
        return item.reason if isinstance(item, Rejection) else ""

    assert [at(1, 9000), at(2, 40)] == ["position_jump", ""]
    assert [at(k, 9000 + 20 * k) for k in (3, 4, 5, 6)] == ["position_jump"] * 2 + [""] * 2
    # places that jump about never prove anything
    assert [at(k, 50_000 * k) for k in range(7, 12)] == ["position_jump"] * 5


def test_a_receivers_leap_in_time_begins_its_clock_anew() -> None:
    making = rows()
    arrivals = [k * S for k in range(20)]
    stamps = []
    for k, arrival_ns in enumerate(arrivals):
        leap = 20 * 365 * 86_400 if k >= 8 else 0  # the week's rollover
        item = making.row(fix(k + leap), arrival_ns)
        assert isinstance(item, Sample)
        stamps.append(item.timestamp_ns)
    assert stamps == arrivals


def test_a_late_delivery_does_not_move_the_stamp() -> None:
    making = rows()
    stamps = []
    for k in range(10):
        late_ns = 400_000_000 if k == 5 else 20_000_000
        item = making.row(fix(k), k * S + late_ns)
        assert isinstance(item, Sample)
        stamps.append(item.timestamp_ns - k * S)
    assert stamps == [20_000_000] * 10


def test_a_fix_without_a_time_is_stamped_on_arrival() -> None:
    item = rows().row(fix(0)._replace(time_ns=None), 7 * S)
    assert isinstance(item, Sample)
    assert (item.timestamp_ns, item.stamp) == (7 * S, "arrival")


@given(
    st.lists(
        st.tuples(
            st.integers(-(10**19), 10**19) | st.none(),
            st.floats(-90, 90),
            st.floats(-180, 180),
            st.floats(0, 2000) | st.just(math.nan),
            st.floats(0, 7) | st.just(math.nan),
        ),
        max_size=30,
    )
)
def test_no_fix_raises(fixes: list[tuple[Any, ...]]) -> None:
    making = rows()
    for k, given_fix in enumerate(fixes):
        item = making.row(Fix(*given_fix), k * S)
        if isinstance(item, Sample):
            assert item.timestamp_ns <= item.arrival_ns
            assert not row(item)["course_change"] > math.pi


def test_sentences_of_other_kinds_are_no_samples(receiver: Receiver) -> None:
    source = listening(receiver)
    receiver.send(sentence("GPGSV,1,1,00") + sentence("GPTXT,01,01,02,hello") + rmc(0) + rmc(1))
    items = take(source, 2)
    assert all(isinstance(item, Sample) for item in items)
