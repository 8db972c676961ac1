"""Runs pytest in a small Linux guest that has real drivers: cameras, sound cards, CAN, USB gadgets.

The guest is QEMU without acceleration, booted with Debian's kernel. It sees the files of this machine
read-only through 9p, under a tmpfs, so it runs the very Python that runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".drivers"
TESTS = Path(__file__).parent / "guest_tests"
INIT = Path(__file__).with_name("init.sh")
QEMU = "qemu-system-x86_64"
TIME_LIMIT_S = 600

EARLY_MODULES = {"virtio_pci": "", "9pnet_virtio": "", "9p": "", "overlay": ""}
"""What the guest needs to see its files, with options; dependencies are found."""
LATE_MODULES = {
    # Two cameras with one webcam input each, and no other node.
    "vivid": "n_devs=2 node_types=0x1,0x1 num_inputs=1,1 input_types=0,0",
    "snd-aloop": "index=0 pcm_substreams=2",
    "vcan": "",
    "can-raw": "",
    "slcan": "",
    "vhci-hcd": "",
    "cdc-acm": "",
    "snd-usb-audio": "",
    "uvcvideo": "",
}


class GuestError(Exception):
    """What keeps the guest from running, in one line."""


def main() -> int:
    """Run the tests; gives pytest's exit status, or 3 with a line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tests.drivers.guest", description=__doc__)
    parser.add_argument(
        "--limit-s", type=float, default=TIME_LIMIT_S, help="ends a guest that hangs"
    )
    parser.add_argument("--command", help="run this shell command instead of pytest")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after `--`")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    command = options.command or shlex.join(pytest_command(options.pytest))
    try:
        return run(command, prepare(), options.limit_s)
    except GuestError as error:
        print(f"tests.drivers.guest: {error}", file=sys.stderr)
        return 3


def pytest_command(arguments: list[str]) -> list[str]:
    """The command for the tests of the guest, or for those that `arguments` name."""
    # A hang shows where it is; a conftest above this folder imports what the guest has no time for.
    fixed = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-o", "faulthandler_timeout=90"]
    fixed += ["--confcutdir", str(TESTS.parent)]
    named = any(argument.startswith("tests/") for argument in arguments)
    tests = [] if named else [str(TESTS.relative_to(REPOSITORY))]
    return [sys.executable, "-m", "pytest", *fixed, *arguments, *tests]


def prepare() -> Path:
    """The folder with kernel, busybox and modules; fetched and unpacked where it is not there yet."""
    if shutil.which(QEMU) is None:
        raise GuestError(f"no {QEMU}; install it: apt-get install qemu-system-x86")
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n", "utf-8")
    system = CACHE / "system"
    recipe = json.dumps([EARLY_MODULES, LATE_MODULES])
    ready = system / "ready.json"
    if ready.is_file() and ready.read_text("utf-8") == recipe:
        return system
    shutil.rmtree(system, ignore_errors=True)
    system.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for package in (kernel_package(), "busybox-static"):
            called("dpkg-deb", "-x", str(fetched(package)), folder)
        shutil.copy(Path(folder) / "bin/busybox", system)
        shutil.copy(next(Path(folder).glob("boot/vmlinuz-*")), system / "vmlinuz")
        files = {file.stem.replace("-", "_"): file for file in Path(folder).rglob("*.ko")}
        for module in load_order([*EARLY_MODULES, *LATE_MODULES], files):
            shutil.copy(files[module], system / f"{module}.ko")
    ready.write_text(recipe, "utf-8")
    return system


def kernel_package() -> str:
    """The package on which Debian's `linux-image-amd64` depends."""
    found = re.search(
        r"Depends: (linux-image-\S+)", called("apt-cache", "depends", "linux-image-amd64")
    )
    if found is None:
        raise GuestError("apt knows no linux-image-amd64; run apt-get update on a Debian machine")
    return found[1]


def fetched(package: str) -> Path:
    """The package's file, downloaded where the cache has none."""
    folder = CACHE / "packages"
    folder.mkdir(exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        called("apt-get", "download", package, folder=folder)
    return next(folder.glob(f"{package}_*.deb"))


def called(*command: str, folder: Path = REPOSITORY) -> str:
    """What a command prints; its failure is a `GuestError`."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise GuestError(f"no {command[0]}; the guest is made from Debian packages") from None
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise GuestError(f"{shlex.join(command)} failed: {last}")
    return done.stdout


def load_order(wanted: list[str], files: dict[str, Path]) -> list[str]:
    """The modules and all that they depend on, each after what it needs."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        if name not in files:
            raise GuestError(f"the kernel package has no module {name}")
        # The section .modinfo holds strings with a zero after each.
        found = re.search(rb"\0depends=([^\0]*)\0", b"\0" + files[name].read_bytes())
        for needed in found[1].decode().split(",") if found else []:
            if needed:
                add(needed.replace("-", "_"))
        order.append(name)

    for name in wanted:
        add(name.replace("-", "_"))
    return order


def run(command: str, system: Path, limit_s: float) -> int:
    """The exit status of a shell command in the guest, whose output is shown as it comes."""
    with tempfile.TemporaryDirectory(prefix="results-", dir=CACHE) as folder:
        results = Path(folder)
        write_entry(results, command, system)
        write_initramfs(results / "initramfs", system, results, limit_s)
        with subprocess.Popen(
            qemu_command(system, results),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as guest:
            assert guest.stdout is not None
            timer = threading.Timer(limit_s, guest.kill)
            timer.start()
            try:
                show(guest.stdout)
            finally:
                late = not timer.is_alive()
                timer.cancel()
                guest.kill()
        status = results / "status"
        if status.is_file():
            return int(status.read_text("utf-8"))
        raise GuestError(
            f"ended after {limit_s:g} s" if late else "it stopped before the command ended"
        )


def show(output: IO[bytes]) -> None:
    """Pass on what the guest's console says, as it comes."""
    while piece := os.read(output.fileno(), 1 << 16):
        sys.stdout.buffer.write(piece.replace(b"\r", b""))
        sys.stdout.flush()


def write_entry(results: Path, command: str, system: Path) -> None:
    """The script that runs in the host's files once the devices are there."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    names = keep | {"FUSEDGE_GUEST": str(system), "PYTHONUNBUFFERED": "1"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in names.items()]
    lines += [f"cd {shlex.quote(str(REPOSITORY))}", f"({command})", "status=$?"]
    # What the drivers said is half of what a failure means.
    lines += ['[ "$status" = 0 ] || "$FUSEDGE_GUEST/busybox" dmesg | tail -n 40']
    lines += [f'echo "$status" > {shlex.quote(str(results))}/status']
    (results / "entry").write_text("\n".join(lines) + "\n", "utf-8")


def write_initramfs(path: Path, system: Path, results: Path, limit_s: float) -> None:
    """What the kernel unpacks as its first files: busybox, the init script and the modules."""
    files = {file.stem: file for file in system.glob("*.ko")}
    early = load_order(list(EARLY_MODULES), files)
    late = [name for name in load_order(list(LATE_MODULES), files) if name not in early]
    settings = {
        "EARLY": "\n".join(insmod(name, EARLY_MODULES) for name in early),
        "LATE": "\n".join(insmod(name, LATE_MODULES) for name in late),
        "RESULTS": str(results),
        "ENTRY": str(results / "entry"),
        "LIMIT_S": f"{limit_s + 30:.0f}",
    }
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    content = {"init": INIT.read_bytes(), "settings": text.encode()}
    content["bin/busybox"] = (system / "busybox").read_bytes()
    content |= {f"modules/{name}.ko": files[name].read_bytes() for name in early + late}
    with path.open("wb") as file:
        for folder in ("bin", "modules"):
            write_cpio(file, folder, 0o040755, b"")
        for name, data in content.items():
            write_cpio(file, name, 0o100755, data)
        write_cpio(file, "TRAILER!!!", 0, b"")


def insmod(name: str, options: dict[str, str]) -> str:
    """The command that loads a module; names are with `_` here and either way in `options`."""
    chosen = {module.replace("-", "_"): text for module, text in options.items()}.get(name, "")
    return f"insmod /modules/{name}.ko {chosen}".rstrip()


def write_cpio(file: IO[bytes], name: str, mode: int, data: bytes) -> None:
    """One entry of an archive in the format `newc`."""
    fields = [file.tell() + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    file.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
    file.write(bytes(-file.tell() % 4) + data)
    file.write(bytes(-file.tell() % 4))


def qemu_command(system: Path, results: Path) -> list[str]:
    """The guest: two processors, 2 GB, this machine's files, and a console on standard output."""
    shared = "security_model=none,multidevs=remap"
    return [
        *(QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-kernel", str(system / "vmlinuz"), "-initrd", str(results / "initramfs")),
        *("-append", "console=ttyS0 loglevel=1 panic=-1 mitigations=off random.trust_cpu=on"),
        *("-virtfs", f"local,path=/,mount_tag=host,readonly=on,{shared}"),
        *("-virtfs", f"local,path={results},mount_tag=results,{shared}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
