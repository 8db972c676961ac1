"""The search's ledger: what was written is read, and what is damaged is counted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.export.search_ledger import SearchLedger


def filled(path: Path) -> bytes:
    ledger = SearchLedger(path)
    for index in range(5):
        ledger.put(f"key{index}", {"score": 0.1 * index, "groups": {"net": {"first": "int8"}}})
    return path.read_bytes()


def test_records_are_read_again(tmp_path: Path) -> None:
    filled(tmp_path / "new" / "ledger.jsonl")
    ledger = SearchLedger(tmp_path / "new" / "ledger.jsonl")
    assert ledger.get("key3") == {"score": 0.1 * 3, "groups": {"net": {"first": "int8"}}}
    assert ledger.get("key9") is None
    assert ledger.damaged == 0


def test_a_line_cut_at_any_byte_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    content = filled(path)
    last = content[: content[:-1].rindex(b"\n") + 1]
    for length in range(len(last) + 1, len(content) - 1):
        path.write_bytes(content[:length])
        ledger = SearchLedger(path)
        assert ledger.damaged == 1 and ledger.get("key4") is None and ledger.get("key3")
        ledger.put("key4", {"score": 1.0})
        again = SearchLedger(path)
        assert again.get("key4") == {"score": 1.0} and again.damaged == 1


@given(st.integers(0, 1000), st.integers(0, 255))
def test_an_altered_byte_never_changes_a_record(place: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        content = bytearray(filled(path))
        wanted = {f"key{i}": SearchLedger(path).get(f"key{i}") for i in range(5)}
        content[place % len(content)] = value
        path.write_bytes(content)
        ledger = SearchLedger(path)
        for key, record in wanted.items():
            assert ledger.get(key) in (record, None)


@given(st.binary(max_size=300))
def test_any_content_is_read_and_added_to(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        path.write_bytes(content)
        SearchLedger(path).put("key", {"score": 0.5})
        assert SearchLedger(path).get("key") == {"score": 0.5}


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FusedgeError, match="cannot keep the search's ledger"):
        SearchLedger(tmp_path / "file" / "ledger.jsonl")


def test_a_place_that_goes_away_costs_the_resumption_only(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "ledger.jsonl"
    ledger = SearchLedger(path)
    path.unlink()
    path.parent.rmdir()
    ledger.put("key", {"score": 0.5})
    assert ledger.unwritten == 1 and ledger.get("key") == {"score": 0.5}
