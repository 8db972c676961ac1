"""A car behind an ELM327 adapter as a source."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.obd import PIDS
from fusedge.devices.capture.source import Source, open_source
from tests.devices.elm327_adapter import Adapter

pytestmark = pytest.mark.real_time
NAMES = tuple(PIDS)
ALL = (100.0, 1726.0, 50.196, 20.0, 101.0, 30.0, 83.0)


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Adapter]:
    made = Adapter(tmp_path)
    yield made
    if made.path.exists():
        made.unplug()


def modality(
    *channels: tuple[str, str], max_hold_s: float = 1.0, rate_hz: float = 100.0
) -> Modality:
    return Modality.model_validate(
        {
            "name": "obd",
            "kind": "series",
            "description": "a car",
            "channels": [
                {"name": name, "unit": unit, "minimum": -1e4, "maximum": 1e4}
                for name, unit in channels
            ],
            "rate_hz": rate_hz,
            "window_s": 1.0,
            "hop_s": 1.0,
            "resample": "hold",
            "max_hold_s": max_hold_s,
            "latency_s": 0.0,
            "lateness_s": 0.1,
            "max_age_s": 1.0,
            "return_windows": 1,
            "min_valid": 0.5,
            "prepare": [],
        }
    )


def open_(
    adapter: Adapter, options: str = "", wanted: Modality | None = None, hurry: int = 1
) -> Source:
    """The source; time-outs on a clock that runs `hurry` times as fast are over sooner."""
    uri = f"obd:{adapter.path}{options}"
    modalities = None if wanted is None else {"obd": wanted}
    return open_source(uri, modalities, lambda: hurry * time.monotonic_ns())


def rows(items: Iterator[Sample | Rejection], count: int) -> list[Sample]:
    found: list[Sample] = []
    while len(found) < count:
        item = next(items)
        if isinstance(item, Sample):
            found.append(item)
    return found


def until(items: Iterator[Sample | Rejection], reason: str) -> Rejection:
    for item in items:
        if isinstance(item, Rejection) and item.reason == reason:
            return item
    raise AssertionError(f"no {reason}")


def test_rows_have_what_the_car_says(adapter: Adapter) -> None:
    source = open_(adapter)
    assert source.live and source.warnings == () and source.modalities == ("obd",)
    assert source.channels == {"obd": NAMES}
    items = source.samples()
    row = None
    for _ in range(3):  # rows come at most 20 times a second, whatever the adapter does
        row = rows(items, 1)[0]
    assert row is not None and row.data.tolist() == pytest.approx(ALL, abs=1e-3)
    assert row.stamp == "arrival" and row.timestamp_ns == row.arrival_ns
    source.close()
    assert list(items) == []


def test_channels_come_in_the_units_of_the_modality(adapter: Adapter) -> None:
    wanted = modality(("rpm", "rpm"), ("speed", "m/s"), ("throttle", "1"), ("gear", "1"))
    source = open_(adapter, wanted=wanted)
    assert source.channels == {"obd": ("rpm", "speed", "throttle", "gear")}
    assert "comes without gear" in source.warnings[0]
    row = rows(source.samples(), 5)[-1]
    assert row.data[:3].tolist() == pytest.approx([1726, 100 / 3.6, 0.50196], abs=1e-4)
    assert math.isnan(row.data[3])
    source.close()
    assert {asked for asked in adapter.asked if asked.startswith("01")} == {
        *("0100", "010C", "010D", "0111")
    }


def test_what_the_car_does_not_have_is_nan_and_never_zero(adapter: Adapter) -> None:
    adapter.values[0] = "08380000"  # load and temperature are among what it does not have
    source = open_(adapter, "?channels=speed,load,rpm")
    assert source.warnings == (f"{source.uri}: the car has no load; not measured",)
    row = rows(source.samples(), 3)[-1]
    assert row.data[0] == 100 and math.isnan(row.data[1]) and row.data[2] == 1726
    source.close()
    assert adapter.count("0104") == 0


def test_of_several_ecus_each_may_have_a_part(adapter: Adapter) -> None:
    adapter.values[0], adapter.ecus = "00100000", ("410000080000",)
    source = open_(adapter, "?channels=speed,rpm")
    assert source.warnings == ()
    source.close()


def test_a_value_that_is_not_renewed_is_not_held_for_long(adapter: Adapter) -> None:
    source = open_(adapter, wanted=modality(("rpm", "rpm"), ("speed", "km/h"), max_hold_s=0.1))
    items = source.samples()
    assert rows(items, 2)[-1].data.tolist() == [1726, 100]
    del adapter.values[0x0C]
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        row = rows(items, 1)[0]
    assert math.isnan(row.data[0]) and row.data[1] == 100
    source.close()


def test_a_real_adapter_takes_90_ms_an_answer(adapter: Adapter) -> None:
    adapter.delay_s = 0.09
    source = open_(adapter, "?channels=speed,rpm")
    taken = rows(source.samples(), 6)
    seconds = (taken[-1].arrival_ns - taken[0].arrival_ns) / 1e9
    assert 0.4 < seconds < 1.5
    assert taken[-1].data.tolist() == [100, 1726]
    source.close()


def test_ignition_off_is_asked_on_and_goes_on(adapter: Adapter) -> None:
    source = open_(adapter, "?channels=speed,rpm")
    items = source.samples()
    rows(items, 2)
    adapter.no_car = "NO DATA"
    first, second = until(items, "no_data"), until(items, "no_data")
    assert second.arrival_ns - first.arrival_ns >= 1e9
    asked = len(adapter.asked)
    until(items, "no_data")
    assert len(adapter.asked) - asked <= 3, "a car that is off is asked about once a second"
    adapter.no_car = ""
    assert rows(items, 2)[-1].data.tolist() == [100, 1726]
    assert adapter.count("ATZ") == 1
    source.close()


def test_without_a_car_it_opens_and_says_so(adapter: Adapter) -> None:
    adapter.no_car, adapter.values[0] = "UNABLE TO CONNECT", "00180000"
    source = open_(adapter, "?channels=speed,rpm,load")
    assert source.warnings == (f"{source.uri}: no car answers yet; is the ignition on?",)
    items = source.samples()
    assert "UNABLE TO CONNECT" in until(items, "no_data").detail
    adapter.no_car = ""
    lacking = until(items, "unsupported_pid")
    assert lacking.detail == "the car has no load"
    assert rows(items, 2)[-1].data[:2].tolist() == [100, 1726]
    source.close()


def test_a_long_search_for_the_car_is_no_silence(adapter: Adapter) -> None:
    adapter.search_s = 1.5
    source = open_(adapter, hurry=5)
    assert "no car answers yet" in source.warnings[0]
    items = source.samples()
    searching = [until(items, "no_data") for _ in range(3)]
    assert searching[-1].detail == "the adapter searches for the car"
    assert 1e9 <= searching[2].arrival_ns - searching[1].arrival_ns < 2e9
    rows(items, 1)
    assert adapter.count("0100") == 1, "the search is not cut off by another question"
    source.close()


def test_an_adapter_that_resets_is_set_up_again(adapter: Adapter) -> None:
    source = open_(adapter, "?channels=speed,rpm&protocol=6")
    items = source.samples()
    rows(items, 2)
    for times in (2, 3):
        adapter.reset()
        until(items, "adapter_reset")
        assert rows(items, 2)[-1].data.tolist() == [100, 1726]
        assert adapter.count("ATZ") == adapter.count("ATSP6") == times
    source.close()


def test_an_adapter_that_says_nothing_is_set_up_again_or_given_up(adapter: Adapter) -> None:
    source = open_(adapter, "?channels=speed,rpm", hurry=8)
    items = source.samples()
    rows(items, 2)
    adapter.mute = True
    assert until(items, "silent").detail.startswith("no reply to 01")
    adapter.mute = False
    rows(items, 2)
    adapter.mute = True
    until(items, "silent")
    with pytest.raises(FusedgeError, match="is gone: no ELM327 answers"):
        next(items)


def test_garbage_is_rejected_and_gives_no_number(adapter: Adapter) -> None:
    source = open_(adapter, "?channels=speed")
    items = source.samples()
    rows(items, 1)
    for said in (b"41\xff0D64\r", b"410C1AF8\r", b"410D6\r", b"BUFFER FULL\r"):
        adapter.said = said
        until(items, "malformed")
        assert all(isinstance(next(items), Rejection) for _ in range(2))
    adapter.said = None
    assert rows(items, 1)[0].data.tolist() == [100]
    source.close()


def test_an_adapter_that_is_pulled_out_and_returns(adapter: Adapter) -> None:
    source = open_(adapter)
    items = source.samples()
    rows(items, 2)
    adapter.unplug()
    with pytest.raises(FusedgeError, match="is gone") as error:
        rows(items, 1000)
    assert "\n" not in error.value.line()
    with pytest.raises(FusedgeError, match="no device"):
        open_(adapter)
    adapter.plug()
    source = open_(adapter)
    rows(source.samples(), 1)
    source.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?baud=fast", "baud=fast is not a number"),
        ("?protocol=X", "unknown protocol"),
        ("?channels=speed,torque", "unknown channel"),
        ("?channels=", "unknown channel"),
        ("?chanels=speed", "did you mean 'channels'?"),
    ],
)
def test_a_wrong_uri_is_refused_in_one_line(adapter: Adapter, options: str, message: str) -> None:
    with pytest.raises(FusedgeError) as error:
        open_(adapter, options)
    assert message in error.value.line() and "\n" not in error.value.line()


def test_a_channel_that_no_car_has_offers_the_closest(adapter: Adapter) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'speed'"):
        open_(adapter, wanted=modality(("sped", "m/s")))


def test_another_device_than_an_adapter_is_told(adapter: Adapter) -> None:
    adapter.mute = True
    with pytest.raises(FusedgeError, match=r"no ELM327 answers on .* at 9600 baud"):
        open_(adapter, "?baud=9600", hurry=8)


def test_closing_ends_the_iterator_at_once(adapter: Adapter) -> None:
    for prepare in ("no_car", "mute"):
        source = open_(adapter, "?channels=speed")
        items = source.samples()
        rows(items, 1)
        setattr(adapter, prepare, "NO DATA" if prepare == "no_car" else True)
        ended = threading.Event()
        thread = threading.Thread(target=lambda items=items, e=ended: (list(items), e.set()))
        thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        source.close()
        source.close()
        assert ended.wait(2) and time.monotonic() - started < 0.2
        thread.join()
        adapter.no_car, adapter.mute = "", False


def test_nothing_is_left_behind(adapter: Adapter) -> None:
    def handles() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before, threads = handles(), threading.active_count()
    for turn in range(60):
        source = open_(adapter, "?channels=speed")
        if turn % 2:
            rows(source.samples(), 1)
        source.close()
        with pytest.raises(FusedgeError):
            open_(adapter, wanted=modality(("speed", "bar")))
    assert handles() <= before and threading.active_count() == threads
