"""The client of ELM327 adapters."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.devices.capture.elm327 import ClosedError, Elm327, Reply
from tests.devices.elm327_adapter import Adapter

pytestmark = pytest.mark.real_time
RPM = 0x0C


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Adapter]:
    made = Adapter(tmp_path)
    yield made
    if made.path.exists():
        made.unplug()


def client(adapter: Adapter, protocol: str = "auto") -> Elm327:
    return Elm327(serial.Serial(str(adapter.path), timeout=0.02), protocol, time.monotonic_ns)


def ask(elm: Elm327, pid: int = RPM, length: int = 2) -> Reply:
    elm.send(pid, length)
    while (reply := elm.poll()) is None:
        pass
    return reply


def test_it_sets_the_adapter_up_and_reads_a_value(adapter: Adapter) -> None:
    elm = client(adapter, "6")
    elm.start()
    assert adapter.asked == ["ATZ", "ATE0", "ATL0", "ATS0", "ATH0", "ATAT1", "ATSP6"]
    assert ask(elm) == Reply((b"\x1a\xf8",))
    elm.close()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"410C1AF8\r", (b"\x1a\xf8",)),
        (b"41 0C 1A F8 \r", (b"\x1a\xf8",)),
        (b"SEARCHING...\r410C1AF8\r", (b"\x1a\xf8",)),
        (b"SEARCHING...410C1AF8\r", (b"\x1a\xf8",)),
        (b"BUS INIT: OK\r410C1AF8\r", (b"\x1a\xf8",)),
        (b"BUS INIT: ...OK\r\n410C1AF8\r\n", (b"\x1a\xf8",)),
        (b"\x00410C1A\x00F8\r", (b"\x1a\xf8",)),
        (b"410C1AF8\r410C1B00\r", (b"\x1a\xf8", b"\x1b\x00")),
        (b"NO DATA\r", "no_data"),
        (b"UNABLE TO CONNECT\r", "no_data"),
        (b"SEARCHING...UNABLE TO CONNECT\r", "no_data"),
        (b"BUS INIT: ERROR\r", "no_data"),
        (b"BUS INIT: ...ERROR\r", "no_data"),
        (b"CAN ERROR\r", "no_data"),
        (b"STOPPED\r", "malformed"),
        (b"BUFFER FULL\r", "malformed"),
        (b"?\r", "malformed"),
        (b"", "malformed"),
        (b"410C1A\r", "malformed"),  # a digit is lost
        (b"410C1AF\r", "malformed"),
        (b"410C1AF800\r", "malformed"),
        (b"410C1AFX\r", "malformed"),
        (b"410C1AF8<DATA ERROR\r", "malformed"),
        (b"410D64\r", "malformed"),  # the late answer to another question
        (b"410C1AF8\r410C1\r", "malformed"),
        (b"7F010C12\r", "malformed"),
        (b"\xff\xfe\x80\r", "malformed"),
        (b"x" * 10000, "malformed"),
        (b"\r\rELM327 v1.5\r", "adapter_reset"),
        (b"LV RESET\r", "adapter_reset"),
        (b"010C\r410C1AF8\r", "adapter_reset"),  # with echo: nobody has set it up
    ],
)
def test_each_kind_of_reply(
    adapter: Adapter, said: bytes, expected: str | tuple[bytes, ...]
) -> None:
    elm = client(adapter)
    elm.start()
    adapter.said = said
    reply = ask(elm)
    assert (reply.reason or reply.data) == expected
    adapter.said = None
    assert ask(elm) == Reply((b"\x1a\xf8",)), "the next answer is to the next question"
    elm.close()


def test_a_garbled_prompt_does_not_shift_the_answers(adapter: Adapter) -> None:
    elm = client(adapter)
    elm.start()
    adapter.delay_s = 0.05
    adapter.said = b"410C>1AF8\r"
    assert ask(elm).reason == "malformed"
    adapter.said = None
    for _ in range(3):
        assert ask(elm, 0x0D, 1) == Reply((b"\x64",))
        assert ask(elm) == Reply((b"\x1a\xf8",))
    elm.close()


def test_an_adapter_that_was_busy_is_set_up_all_the_same(adapter: Adapter) -> None:
    elm = client(adapter)
    elm.start()
    adapter.delay_s = 0.5
    elm.send(RPM, 2)
    elm.start()
    adapter.delay_s = 0
    assert ask(elm).data
    elm.close()


def test_closing_ends_what_waits(adapter: Adapter) -> None:
    elm = client(adapter)
    elm.start()
    adapter.mute = True
    elm.send(RPM, 2)
    assert elm.poll() is None
    elm.close()
    elm.close()
    with pytest.raises(ClosedError):
        elm.poll()
    with pytest.raises(ClosedError):
        elm.wait(60)


def test_an_adapter_that_is_pulled_out_is_an_os_error(adapter: Adapter) -> None:
    elm = client(adapter)
    elm.start()
    adapter.unplug()
    with pytest.raises(OSError):
        ask(elm)
    elm.close()


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30), st.sampled_from([b"41", b"0C", b"1AF8", b"\r", b">", b" "])
        )
    ).map(b"".join)
)
def test_no_bytes_break_it_or_give_another_number(noise: bytes) -> None:
    """Noise before the answer: it is the answer that was given, or none."""
    master, slave = os.openpty()
    port = serial.Serial(os.ttyname(slave), timeout=0.001)
    elm = Elm327(port, "auto", time.monotonic_ns)
    elm.send(RPM, 2)
    os.write(master, noise + b"410C0000\r\r>")
    reply = elm.poll()
    for _ in range(20):
        reply = reply or elm.poll()
    assert reply is not None
    assert bool(reply.data) != bool(reply.reason)
    assert {len(data) for data in reply.data} <= {2}
    # 1AF8 is only what the noise itself says in full
    assert b"\x1a\xf8" not in reply.data or b"410C1AF8" in noise.translate(None, b" \0\t")
    elm.close()
    os.close(master)
    os.close(slave)
