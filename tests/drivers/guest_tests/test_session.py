"""A camera, a microphone and a CAN bus in one session, which decides whatever is pulled out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import LiveClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from tests.drivers.kernel import bind_vivid, can_link, can_send, unbind_vivid
from tests.media_bundle import MODALITIES, PERIOD_S, write_media_bundle

pytestmark = pytest.mark.real_time
CAMERA = "camera:by-path/platform:vivid-000?width=320&height=180"
MICROPHONE = "mic:hw:CARD=Loopback,DEV=1"
DBC = """VERSION ""
BU_: ECU
BO_ 256 MOTION: 2 ECU
 SG_ X : 0|8@1- (0.1,0) [-10|10] "" ECU
 SG_ Y : 8|8@1- (0.1,0) [-10|10] "" ECU
"""
# The guest is ten to thirty times slower than a device.
SLOW = {"lateness_s": 1.0, "max_age_s": 4.0}


@pytest.fixture
def traffic() -> Iterator[None]:
    """Frames on vcan0, twenty a second."""
    ended = threading.Event()

    def send() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            with suppress(OSError):  # the link is down
                can_send(256, bytes([number % 50, 5]))

    thread = threading.Thread(target=send)
    thread.start()
    yield
    ended.set()
    thread.join()


class Running:
    """A session in a thread."""

    def __init__(self, session: Session) -> None:
        self.memory = MemorySink()
        self.session = session
        self.notices: list[str] = []
        self.reports: list[SessionReport] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.reports.append(run(self.session, [self.memory], notice=self.notices.append))

    def await_presence(self, **wanted: bool) -> None:
        """Until a new decision has these modalities, or has them not."""
        seen, end = len(self.memory.decisions), time.monotonic() + 60
        while time.monotonic() < end:
            newest = self.memory.decisions[seen:][-1:]
            if newest and all(newest[0].modalities[n].present == p for n, p in wanted.items()):
                return
            time.sleep(0.1)
        present = {n: m.present for n, m in self.memory.decisions[-1].modalities.items()}
        raise AssertionError(f"{present}, not {wanted}; {self.notices}")

    def stop(self) -> SessionReport:
        self.session.stop()
        self._thread.join(20)
        return self.reports[0]


def test_decisions_go_on_whatever_is_pulled_out(tmp_path: Path, traffic: None) -> None:
    dbc = tmp_path / "car.dbc"
    dbc.write_text(DBC)
    bundle = write_media_bundle(
        tmp_path / "media.fusedge", tuple(m.model_copy(update=SLOW) for m in MODALITIES)
    )
    bus = f"can:vcan0?modality=motion&dbc={dbc}&map={{x: MOTION.X 1, y: MOTION.Y 1}}"
    session = Session(bundle, [CAMERA, MICROPHONE, bus], LiveClock(), silence_s=30)
    running = Running(session)
    running.await_presence(view=True, sound=True, motion=True)

    pulls: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
        ("view", unbind_vivid, bind_vivid),
        ("motion", lambda: can_link(False), lambda: can_link(True)),
    ]
    for name, out, back in pulls:
        others = {"view", "sound", "motion"} - {name}
        out()
        running.await_presence(**{name: False}, **dict.fromkeys(others, True))
        back()
        running.await_presence(view=True, sound=True, motion=True)
    report = running.stop()

    assert report.summary["ledger_balanced"]
    sources = report.summary["sources"]
    assert set(sources) == {CAMERA, MICROPHONE, bus}
    assert {uri: source["restarts"] for uri, source in sources.items()} == {
        CAMERA: 1,
        MICROPHONE: 0,
        bus: 1,
    }
    times = [decision.timestamp_ns for decision in running.memory.decisions]
    ticks = (times[-1] - times[0]) / to_ns(PERIOD_S) + 1
    assert len(times) >= 0.9 * ticks
    assert len(times) + report.summary["ticks_skipped"] >= ticks
