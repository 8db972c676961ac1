"""A car's OBD-II plug behind an ELM327 adapter as a source: `obd:/dev/ttyUSB0?baud=38400`.

What a car answers is as old as the adapter and the car's bus make it, about 90 ms, and no part of
that can be told from outside: rows are stamped on arrival, and a constant delay is the manifest's
`latency_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from fusedge.bundle.errors import UnknownNameError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.elm327 import (
    ANSWER_NS,
    PROTOCOLS,
    AdapterError,
    ClosedError,
    Elm327,
    Reply,
)
from fusedge.devices.capture.rows import RowCollector
from fusedge.devices.capture.serial_ports import open_serial
from fusedge.devices.capture.wanted import RowLayout, modality_of

BAUD = 38_400  # of the ELM327 as it is delivered; many copies have 9600 or 115200
READ_S = 0.05
RATE_HZ = 20.0  # an adapter that answers in 90 ms gives 11 values a second, each a row
HOLD_S = 2.0  # two rounds through all channels at 90 ms each, and some
FIRST_NS = to_ns(2.5)  # in which a car that is on answers, so that `warnings` can say what it lacks
AGAIN_S = 1.0  # between two questions to a car that does not answer
REPORT_NS = to_ns(1)  # between two reports that no car answers


class Pid(NamedTuple):
    """A parameter of service 01, by SAE J1979: number, length in bytes, unit, and value of the bytes."""

    number: int
    length: int
    unit: str
    value: Callable[[bytes], float]


PIDS: Mapping[str, Pid] = {
    "speed": Pid(0x0D, 1, "km/h", lambda data: data[0]),
    "rpm": Pid(0x0C, 2, "rpm", lambda data: (data[0] * 256 + data[1]) / 4),
    "throttle": Pid(0x11, 1, "%", lambda data: data[0] * 100 / 255),
    "load": Pid(0x04, 1, "%", lambda data: data[0] * 100 / 255),
    "intake_pressure": Pid(0x0B, 1, "kPa", lambda data: data[0]),
    "intake_temperature": Pid(0x0F, 1, "degC", lambda data: data[0] - 40),
    "coolant_temperature": Pid(0x05, 1, "degC", lambda data: data[0] - 40),
}

SUPPORTED = Pid(0x00, 4, "", lambda data: int.from_bytes(data, "big"))
"""Which of the PIDs 01 to 20 an ECU has, a bit each, that of 01 the highest."""


def open_obd(request: Request) -> ObdSource:
    """The source of the car behind an adapter, which need not answer yet.

    Raises FusedgeError where the port cannot be used or no adapter answers on it.
    """
    address = request.address
    modality, spec = modality_of(address, request.wanted, "series", "obd")
    offered = {name: PIDS[name].unit for name in _names(address)}
    layout = RowLayout(address, modality, spec, offered)
    rate_hz, hold_s = (spec.rate_hz, spec.max_hold_s) if spec else (RATE_HZ, HOLD_S)
    baud = address.whole("baud", BAUD, 300, 4_000_000) or BAUD
    protocol = address.choice("protocol", PROTOCOLS, "auto")
    elm = Elm327(open_serial(address, address.target, baud, READ_S), protocol, request.now_ns)
    try:
        return ObdSource(request, layout, RowCollector(layout, rate_hz, hold_s), elm)
    except (AdapterError, OSError) as error:
        elm.close()
        raise address.error(
            f"{error} on {address.target} at {baud} baud",
            hint="adapters have baud=38400, 115200 or 9600",
        ) from None


def _names(address: Address) -> list[str]:
    if "channels" not in address.options:
        return list(PIDS)
    names = [name.strip() for name in address.text("channels").split(",")]
    for name in names:
        if name not in PIDS:
            raise UnknownNameError(f"channel in {address.uri}:", name, PIDS)
    return names


class ObdSource:
    """Asks for one channel after another; see `RowCollector` for when rows come.

    A car that does not answer (ignition off, no car) is `no_data`, at most once a second, and is asked
    on. An adapter that was reset is `adapter_reset` and set up anew, so is one that says nothing
    (`silent`). A channel that the car does not have stays NaN: `unsupported_pid`, once. A reply that is
    not to the question is `malformed`. Of several ECUs that answer the first counts. Raises FusedgeError
    when the adapter is gone.
    """

    live = True

    def __init__(
        self, request: Request, layout: RowLayout, collector: RowCollector, elm: Elm327
    ) -> None:
        self.uri = request.address.uri
        self.modalities = (layout.modality,)
        self.channels = {layout.modality: layout.channels}
        self.units = {layout.modality: layout.units}
        self._address = request.address
        self._modality = layout.modality
        self._now_ns = request.now_ns
        self._collector = collector
        self._elm = elm
        self._pids = {name: PIDS[name] for name in layout.used}
        self._reported_ns = -REPORT_NS
        elm.start()
        self._elm.send(SUPPORTED.number, SUPPORTED.length)
        self._asked_ns = self._now_ns()
        self._reply = self._first_reply()
        self.warnings = layout.warnings + self._first_warnings()

    def samples(self) -> Iterator[Sample | Rejection]:
        """Rows and rejections, in the order of arrival."""
        try:
            names = yield from self._supported()
            yield from self._values(names)
        except ClosedError:
            return
        except (AdapterError, OSError) as error:
            raise self._address.error(f"{self._address.target} is gone: {error}") from None
        finally:
            self.close()

    def close(self) -> None:
        """End the questions; waits for at most `READ_S`."""
        self._elm.close()

    def _first_reply(self) -> Reply | None:
        while self._now_ns() - self._asked_ns < FIRST_NS:
            reply = self._elm.poll()
            if reply is not None:
                return reply
        return None

    def _first_warnings(self) -> tuple[str, ...]:
        if self._reply is None or not self._reply.data:
            return (f"{self.uri}: no car answers yet; is the ignition on?",)
        had = _had(self._pids, self._reply)
        lacking = ", ".join(name for name in self._pids if name not in had)
        return (f"{self.uri}: the car has no {lacking}; not measured",) if lacking else ()

    def _supported(self) -> Generator[Rejection, None, list[str]]:
        """The channels that the car has, as soon as it answers."""
        reply, known = self._reply, self._reply is not None and bool(self._reply.data)
        if reply is None:  # the first question is still open
            reply = yield from self._answer()
        while not reply.data:
            self._elm.wait(AGAIN_S)
            reply = yield from self._ask(SUPPORTED)
        names = _had(self._pids, reply)
        for name in () if known else self._pids:
            if name not in names:
                yield self._rejection("unsupported_pid", f"the car has no {name}")
        return names or list(self._pids)  # a car that denies all is asked all the same

    def _values(self, names: Sequence[str]) -> Iterator[Sample | Rejection]:
        missed = 0
        for name in cycle(names):
            reply = yield from self._ask(self._pids[name])
            missed = missed + 1 if reply.reason == "no_data" else 0
            if reply.data:
                now_ns = self._now_ns()
                values = {name: self._pids[name].value(reply.data[0])}
                row = self._collector.add(values, now_ns, now_ns, "arrival")
                if row is not None:
                    yield row
            elif missed >= len(names):
                self._elm.wait(AGAIN_S)

    def _ask(self, pid: Pid) -> Generator[Rejection, None, Reply]:
        self._elm.send(pid.number, pid.length)
        self._asked_ns = self._now_ns()
        return (yield from self._answer())

    def _answer(self) -> Generator[Rejection, None, Reply]:
        """The reply; as long as the adapter searches for the car it is reported that nothing comes."""
        while True:
            reply = self._elm.poll()
            if reply is None:
                if self._now_ns() - self._asked_ns > ANSWER_NS:
                    yield from self._no_data("the adapter searches for the car")
                continue
            if reply.reason == "no_data":
                yield from self._no_data(reply.text)
            elif reply.reason:
                yield self._rejection(reply.reason, reply.text)
            if reply.reason in ("adapter_reset", "silent"):
                self._elm.start()
            return reply

    def _no_data(self, detail: str) -> Iterator[Rejection]:
        if self._now_ns() - self._reported_ns >= REPORT_NS:
            self._reported_ns = self._now_ns()
            yield self._rejection("no_data", detail)

    def _rejection(self, reason: str, detail: str) -> Rejection:
        return Rejection(self._modality, self._now_ns(), reason, detail)


def _had(pids: Mapping[str, Pid], reply: Reply) -> list[str]:
    """Those that at least one ECU has, by the replies to SUPPORTED."""
    bits = 0
    for data in reply.data:
        bits |= int(SUPPORTED.value(data))
    return [name for name, pid in pids.items() if bits >> (32 - pid.number) & 1]
