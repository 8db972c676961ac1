"""`fusedge keys`, `sign` and `verify` as a user has them: who vouches for a bundle, what may be loaded."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.bundle.archive import MANIFEST, Bundle, file_entry, write_bundle
from fusedge.bundle.built_here import remember_built
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.keys import load_private_key, new_key
from fusedge.bundle.manifest import Engine
from fusedge.bundle.signature import SIGNATURE, sign_bundle
from fusedge.cli.app import app
from fusedge.cli.keys import passphrase
from tests.cli.command import fusedge
from tests.tiny_bundle import write_tiny_bundle

pytest.importorskip("cryptography")
ENGINE = "engines/rtx-4090/head.engine"
PASSPHRASE = "FUSEDGE_KEY_PASSPHRASE"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folders, and no passphrase of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bundle_with_engine(path: Path) -> Bundle:
    """The tiny bundle; its head has an engine, which nobody runs."""
    plain = write_tiny_bundle(path)
    files = {name: plain.read(name) for name in plain.manifest.files} | {ENGINE: b"code"}
    head = plain.manifest.head
    engine = Engine(
        file=ENGINE,
        targets=("rtx-4090",),
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        compute_capabilities=("8.9",),
        precision_requested="fp16",
        precision_by_node={"dense": "fp16"},
        flags=(),
        dims=head.dims,
        bytes=4,
    )
    parts = (*plain.manifest.parts[:-1], head.model_copy(update={"engines": (engine,)}))
    listed = {name: file_entry(content) for name, content in files.items()}
    manifest = plain.manifest.model_copy(update={"parts": parts, "files": listed})
    return write_bundle(path, manifest, files)


def signed_bundle(path: Path) -> Bundle:
    """The tiny bundle, signed by a new key `fleet`."""
    new_key(Path("fleet"), None)
    return sign_bundle(write_tiny_bundle(path), load_private_key(Path("fleet.key.pem"), str), path)


def verified(*words: str) -> dict[str, object]:
    done = fusedge("verify", *words, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def refused(*words: str) -> str:
    """The one line with which a command fails."""
    done = fusedge(*words)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_from_a_new_key_to_a_trusted_bundle(home: Path) -> None:
    name = "tiny.fusedge"
    bundle_with_engine(home / name)
    made = json.loads(fusedge("keys", "new", "fleet", "--json").stdout)
    assert stat.S_IMODE(Path(made["private"]).stat().st_mode) == 0o600

    before = verified(name)
    assert (before["signature"], before["signed_by"]) == ("unsigned", None)
    assert "not signed (ask for a signed one" in refused("verify", name, "--require-signature")

    signed = json.loads(fusedge("sign", name, "--key", "fleet.key.pem", "--json").stdout)
    assert signed["fingerprint"] == made["fingerprint"]
    stranger = verified(name)
    assert (stranger["signature"], stranger["signed_by"]) == ("unknown_key", made["fingerprint"])
    assert made["fingerprint"] in refused("verify", name, "--require-signature")

    assert fusedge("keys", "trust", "fleet.pub.pem").returncode == 0
    listed = json.loads(fusedge("keys", "list", "--json").stdout)["keys"]
    assert listed == [{"name": "fleet.pem", "fingerprint": made["fingerprint"]}]
    known = verified(name, "--require-signature")
    assert known["signature"] == "trusted" and known["sha256"] == signed["sha256"]
    assert "right, by a key that you trust" in fusedge("verify", name).stderr


def test_a_given_key_takes_the_place_of_those_that_are_trusted(home: Path) -> None:
    signed_bundle(home / "tiny.fusedge")
    new_key(Path("other"), None)
    assert verified("tiny.fusedge", "--key", "fleet.pub.pem")["signature"] == "trusted"
    fusedge("keys", "trust", "fleet.pub.pem", "--name", "us")
    assert verified("tiny.fusedge", "--key", "other.pub.pem")["signature"] == "unknown_key"
    both = ("--key", "other.pub.pem", "--key", "fleet.pub.pem")
    assert verified("tiny.fusedge", *both)["signature"] == "trusted"


@pytest.mark.parametrize("file", [MANIFEST, SIGNATURE])
def test_a_wrong_signature_is_an_error_whoever_is_trusted(home: Path, file: str) -> None:
    signed_bundle(home / "tiny")
    text = (home / "tiny" / file).read_text()
    changed = text.replace("by hand", "by  hand") if file == MANIFEST else text.upper()
    assert changed != text
    (home / "tiny" / file).write_text(changed)
    assert "the signature is wrong" in refused("verify", "tiny")
    assert "the signature is wrong" in refused("verify", "tiny", "--key", "fleet.pub.pem")


def test_each_engine_is_told_to_be_loadable_or_not_and_why(home: Path) -> None:
    bundle = bundle_with_engine(home / "tiny.fusedge")

    def engine() -> tuple[object, object]:
        (row,) = verified("tiny.fusedge", *key)["engines"]  # type: ignore[misc]
        assert (row["part"], row["file"], row["targets"]) == ("head", ENGINE, ["rtx-4090"])
        return row["may_load"], row["reason"]

    new_key(Path("fleet"), None)
    key: tuple[str, ...] = ()
    unknown = (False, "not signed by a key that you trust, and not built here")
    assert engine() == unknown
    sign_bundle(bundle, load_private_key(Path("fleet.key.pem"), str), bundle.path)
    assert engine() == unknown
    key = ("--key", "fleet.pub.pem")  # which `run` does not know
    assert engine() == unknown
    remember_built(bundle.manifest.files[ENGINE].sha256)
    assert engine() == (True, "built on this machine")
    fusedge("keys", "trust", "fleet.pub.pem")
    assert engine() == (True, "signed by a key that you trust")
    shown = fusedge("verify", "tiny.fusedge").stderr
    assert f"{ENGINE}: may be loaded, signed by a key that you trust" in shown


def test_a_passphrase_comes_from_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(home / "tiny.fusedge")
    sign = ("sign", "tiny.fusedge", "--key", "fleet.key.pem")
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    assert fusedge("keys", "new", "fleet", "--passphrase").returncode == 0
    assert "ENCRYPTED" in (home / "fleet.key.pem").read_text()
    assert fusedge(*sign).returncode == 0
    monkeypatch.setenv(PASSPHRASE, "wrong")
    assert "the passphrase is wrong" in refused(*sign)


def test_an_encrypted_key_without_anyone_to_ask_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(Path("fleet"), "correct horse")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(FusedgeError, match=f"nobody is there to be asked .set {PASSPHRASE}"):
        load_private_key(Path("fleet.key.pem"), passphrase)


def test_a_signed_copy_leaves_the_bundle_and_the_package_alone(home: Path) -> None:
    before = write_tiny_bundle(home / "tiny.fusedge").path.read_bytes()
    new_key(Path("fleet"), None)
    copy = ("--key", "fleet.key.pem", "-o", "copy.fusedge")
    assert fusedge("sign", "tiny.fusedge", *copy).returncode == 0
    assert (home / "tiny.fusedge").read_bytes() == before
    assert verified("copy.fusedge", "--key", "fleet.pub.pem")["signature"] == "trusted"
    line = refused("sign", "driving", "--key", "fleet.key.pem")
    assert "part of the installed package" in line and "-o signed.fusedge" in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("sign", "tiny.fusedge", "--key", "fleet.pub.pem"), "no private key in PEM"),
        (("sign", "tiny.fusedge", "--key", "none.pem"), "none.pem: cannot be read"),
        (("verify", "tiny.fusedge", "--key", "fleet.key.pem"), "is a private key"),
        (("verify", "tiny.fusedge", "--key", "tiny.fusedge"), "no public key in PEM"),
        (("keys", "new", "fleet"), "fleet.pub.pem: is there already"),
        (("keys", "new", "x" * 300), "cannot be written"),
        (("keys", "trust", "fleet.key.pem"), "is a private key"),
        (("keys", "trust", "fleet.pub.pem", "--name", "../x"), "is no name for a key"),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(
    home: Path, words: tuple[str, ...], reason: str
) -> None:
    signed_bundle(home / "tiny.fusedge")
    error = CliRunner().invoke(app, words).exception  # which `main` prints as one line
    assert isinstance(error, FusedgeError) and reason in error.line()
