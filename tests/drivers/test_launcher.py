"""The launcher of the guest says in one line what it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.drivers import guest


def module(folder: Path, name: str, depends: str) -> Path:
    """A file with the strings by which a kernel module names what it needs."""
    path = folder / f"{name}.ko"
    path.write_bytes(b"ELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
    return path


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    needs = {"snd_usb_audio": "snd-pcm,usbcore", "snd_pcm": "snd", "snd": "", "usbcore": ""}
    files = {name: module(tmp_path, name, depends) for name, depends in needs.items()}
    order = guest.load_order(["snd-usb-audio"], files)
    assert order == ["snd", "snd_pcm", "usbcore", "snd_usb_audio"]
    with pytest.raises(guest.GuestError, match="no module vivid"):
        guest.load_order(["vivid"], files)


def test_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guest, "QEMU", "qemu-system-none")
    monkeypatch.setattr("sys.argv", ["guest"])
    assert guest.main() == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "apt-get install qemu-system-x86" in said


def test_a_download_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(guest.GuestError, match=r"^no apt-nothing;"):
        guest.called("apt-nothing", "download")
    with pytest.raises(guest.GuestError, match=r"^ls .*/absent failed: ls: .*No such file"):
        guest.called("ls", str(tmp_path / "absent"))


def test_only_the_guest_collects_its_tests() -> None:
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "--confcutdir=tests/drivers"]
    for folder, status in (("tests/drivers", 0), ("tests/drivers/guest_tests", 4)):
        done = subprocess.run(
            [*collect, folder], cwd=guest.REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == status and "test_guest.py::" not in done.stdout, done.stdout
    assert "make test-drivers" in done.stderr + done.stdout
