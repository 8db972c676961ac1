"""How a session that failed ends on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.cli import run
from fusedge.runtime.session import SessionReport


@pytest.mark.parametrize(
    ("remarks", "decisions", "hint"),
    [
        ([], 0, ""),
        ([], 3, "what was decided is written"),
        (["imu: late"], 0, "see the notes above"),
        (["imu: late"], 3, "see the notes above; what was decided is written"),
    ],
)
def test_the_hint_leads_to_no_notes_and_decisions_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, remarks: list[str], decisions: int, hint: str
) -> None:
    monkeypatch.setattr(run, "print_report", lambda report, console: None)
    summary: dict[str, Any] = {"remarks": remarks, "decisions": decisions}
    report = SessionReport("end of input", {"sources": ["file:a"]}, summary, {}, "it failed")
    with pytest.raises(FusedgeError, match="file:a: ran to the end, but it failed") as caught:
        run.finish(report, as_json=False)
    assert caught.value.hint == hint
