"""`fusedge soak` and `fusedge run --chaos`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.cli import soak as command
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.soak import Soak
from tests.cli.command import fusedge
from tests.media_bundle import write_media_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_media_bundle(tmp_path_factory.mktemp("b") / "media.fusedge").path)


def test_a_short_soak_passes(bundle: str) -> None:
    result = fusedge("soak", bundle, "--hours", "0.02", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["missed"] == [] and report["ledger_exact"]
    assert report["skew_ms"] < 5 and report["chaos"] is None
    assert report["slope"] is None


def test_a_recording_is_repeated_and_survives_chaos() -> None:
    words = ("--source", "sim:?duration_s=40", "--hours", "0.1", "--chaos", "all")
    result = fusedge("soak", "driving", *words, "--chaos-every", "20")
    assert result.returncode == 0, result.stderr
    assert "samples, exact" in result.stderr and "stall" in result.stderr
    assert "too short to judge" in result.stderr and "MB a day" not in result.stderr
    assert result.stdout == ""


class Leak(Sink):
    """Keeps 100 kB with every decision, beyond what the process has free."""

    name = "leak"

    def open(self, header: dict[str, Any]) -> None:
        self.kept: list[bytearray] = []

    def write(self, item: Any) -> None:
        self.kept.append(bytearray(b"x" * 100_000))

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing to end."""


def test_a_leak_is_an_error(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(*arguments: Any, **options: Any) -> Soak:
        return Soak(*arguments, **options, sinks=[Leak()])

    monkeypatch.setattr(command, "Soak", leaking)
    with pytest.raises(FusedgeError, match=r"memory grew by \d+\.\d MB"):  # exit status 1
        command.soak(bundle, hours=0.1)


def test_chaos_is_repeatable_and_told(bundle: str, tmp_path: Path) -> None:
    out, written = tmp_path / "out", []
    for seed in ("1", "1", "2"):
        words = ("--source", "sim:", "--chaos", "stall,part-nan,disk-full", "--chaos-seed", seed)
        result = fusedge("run", "driving", *words, "--chaos-every", "5", "--out", str(out))
        assert result.returncode == 0, result.stderr
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]
    summary = json.loads(written[0].splitlines()[-1])
    assert {fault["kind"] for fault in summary["chaos"]["faults"]} == {
        "stall",
        "part-nan",
        "disk-full",
    }


def test_a_mistyped_kind_gets_its_closest_match() -> None:
    result = fusedge("run", "driving", "--source", "sim:", "--chaos", "stal")
    assert result.returncode == 1
    assert result.stderr == "fusedge: unknown kind of chaos 'stal' (did you mean 'stall'?)\n"
