"""Signatures: what was signed is trusted, what was changed since is refused, no stranger is believed."""

from __future__ import annotations

import json
import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle import archive
from fusedge.bundle.archive import MANIFEST, Bundle, file_entry, write_bundle
from fusedge.bundle.errors import BundleError, FusedgeError, MissingExtraError
from fusedge.bundle.keys import (
    MAX_KEY_BYTES,
    PublicKey,
    load_private_key,
    load_public_key,
    load_trusted_keys,
    new_key,
    trust,
    trust_folder,
)
from fusedge.bundle.signature import (
    SIGNATURE,
    SignatureState,
    sign_bundle,
    signature_state,
    signer,
)
from tests.tiny_bundle import write_tiny_bundle

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

Key = ed25519.Ed25519PrivateKey
# As in RFC 8032, section 7.1: the first test's key.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")


def never() -> str:
    raise AssertionError("no passphrase is needed")


def public(key: Key) -> PublicKey:
    return PublicKey(key.public_key().public_bytes_raw())


@pytest.fixture(scope="module")
def owner() -> Key:
    return Key.from_private_bytes(SECRET)


@pytest.fixture(scope="module")
def stranger() -> Key:
    return Key.from_private_bytes(bytes(32))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("plain") / "tiny.fusedge")


@pytest.fixture(scope="module")
def signed(plain: Bundle, owner: Key, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle as a folder; tests only read it."""
    return sign_bundle(plain, owner, tmp_path_factory.mktemp("signed") / "tiny").path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


class Texts:
    """A bundle's manifest and signature as they would be read from it."""

    def __init__(self, manifest: bytes, signature: bytes) -> None:
        self.manifest_bytes, self.signature_bytes = manifest, signature


# What was signed is trusted.


def test_a_signed_bundle_is_trusted_by_who_trusts_its_key(signed: Path, owner: Key) -> None:
    bundle = Bundle(signed)
    assert bundle.verify() == 3
    assert signature_state(bundle, [public(owner)]) is SignatureState.TRUSTED
    assert signer(bundle) == public(owner)


def test_a_stranger_s_signature_is_right_but_not_trusted(
    signed: Path, owner: Key, stranger: Key
) -> None:
    for keys in ([], [public(stranger)]):
        assert signature_state(Bundle(signed), keys) is SignatureState.UNKNOWN_KEY


def test_a_bundle_without_a_signature_is_unsigned(
    plain: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)  # nor is the package needed for that
    assert signature_state(plain) is SignatureState.UNSIGNED
    assert signer(plain) is None


@pytest.mark.parametrize("name", ["again.fusedge", "again"])
def test_the_same_bundle_and_key_give_the_same_bytes(
    plain: Bundle, signed: Path, owner: Key, tmp_path: Path, name: str
) -> None:
    first = sign_bundle(plain, owner, tmp_path / name)
    second = sign_bundle(Bundle(signed), owner, tmp_path / f"2-{name}")
    assert first.signature_bytes == second.signature_bytes == Bundle(signed).signature_bytes
    assert first.manifest_bytes == second.manifest_bytes == Bundle(signed).manifest_bytes
    if first.path.is_file():
        assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize("name", ["tiny.fusedge", "tiny"])
def test_signing_in_place_keeps_all_files_and_replaces_an_earlier_signature(
    tmp_path: Path, owner: Key, stranger: Key, name: str
) -> None:
    before = write_tiny_bundle(tmp_path / name)
    for key in (stranger, owner):
        after = sign_bundle(Bundle(before.path), key, before.path)
    assert signature_state(after, [public(owner)]) is SignatureState.TRUSTED
    assert after.manifest.files == before.manifest.files
    assert after.manifest.model_copy(update={"signature": None}) == before.manifest
    assert sorted(os.listdir(tmp_path)) == [name]


def test_a_signature_can_be_checked_without_fusedge(signed: Path, owner: Key) -> None:
    algorithm, key, signature = (signed / SIGNATURE).read_text().split()
    assert algorithm == "ed25519" and key == public(owner).raw.hex()
    message = (signed / MANIFEST).read_bytes()
    owner.public_key().verify(bytes.fromhex(signature), message)  # raises where it is wrong


def test_a_damaged_bundle_is_not_signed(tmp_path: Path, owner: Key) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    before = (bundle.path / MANIFEST).read_bytes()
    (bundle.path / "parts/head.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"parts/head\.onnx was altered"):
        sign_bundle(bundle, owner, bundle.path)
    assert (bundle.path / MANIFEST).read_bytes() == before
    assert not (bundle.path / SIGNATURE).exists()


def test_a_signature_that_cannot_be_written_leaves_the_bundle_as_it_was(
    tmp_path: Path, owner: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.fusedge")
    before = bundle.path.read_bytes()

    def full(path: Path, content: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_write_zip", full)
    with pytest.raises(FusedgeError, match="No space left"):
        sign_bundle(bundle, owner, bundle.path)
    assert bundle.path.read_bytes() == before and os.listdir(tmp_path) == ["tiny.fusedge"]


def test_a_named_signature_is_never_written_without_one(plain: Bundle, tmp_path: Path) -> None:
    files = {name: plain.read(name) for name in plain.manifest.files}
    named = plain.manifest.model_copy(update={"signature": SIGNATURE})
    with pytest.raises(ValueError, match="needs `sign`"):
        write_bundle(tmp_path / "a", named, files)
    with pytest.raises(ValueError, match="must not have it"):
        write_bundle(tmp_path / "a", plain.manifest, files, sign=lambda text: text)


# Whatever was changed since is refused.


@given(data=st.data())
def test_any_flipped_byte_of_the_manifest_or_the_signature_is_refused(
    signed: Path, owner: Key, data: st.DataObject
) -> None:
    """Whether or not the key is known: a flip must not make it a stranger's either."""
    texts = [(signed / MANIFEST).read_bytes(), (signed / SIGNATURE).read_bytes()]
    which = data.draw(st.sampled_from([0, 1]))
    place = data.draw(st.integers(0, len(texts[which]) - 1))
    mask = data.draw(st.integers(1, 255))
    changed = bytearray(texts[which])
    changed[place] ^= mask
    texts[which] = bytes(changed)
    for keys in ([public(owner)], []):
        assert signature_state(Texts(*texts), keys) is SignatureState.INVALID


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode()))
def test_what_is_no_signature_is_invalid(signed: Path, owner: Key, content: bytes) -> None:
    texts = Texts((signed / MANIFEST).read_bytes(), content)
    assert signature_state(texts, [public(owner)]) is SignatureState.INVALID


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text[:-1],
        lambda text: text[:-2] + b"\n",
        lambda text: text + b"\n",
        lambda text: text + text,
        lambda text: text.upper(),
        lambda text: text.replace(b"ed25519", b"none"),
        lambda text: text.replace(b" ", b"\t"),
        lambda text: b"ed25519 " + b"0" * 64 + b" " + b"0" * 128 + b"\n",
        # The neutral point as key and as R: it fits every message in a careless implementation.
        lambda text: b"ed25519 01" + b"0" * 62 + b" 01" + b"0" * 126 + b"\n",
    ],
)
def test_a_signature_in_another_form_is_invalid_or_a_stranger_s(
    signed: Path, owner: Key, change: object
) -> None:
    texts = Texts((signed / MANIFEST).read_bytes(), change((signed / SIGNATURE).read_bytes()))  # type: ignore[operator]
    assert signature_state(texts, [public(owner)]) is not SignatureState.TRUSTED


def edited(signed: Path, folder: Path, **changes: object) -> Path:
    """A copy of a signed folder whose manifest was changed, with right hashes and the old signature."""
    bundle = Bundle(signed)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    raw = json.loads(bundle.manifest_bytes)
    if weights := changes.pop("weights", None):
        files["parts/head.onnx"] = weights  # type: ignore[assignment]
        raw["files"]["parts/head.onnx"] = file_entry(files["parts/head.onnx"]).model_dump()
    raw.update(changes)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(raw, indent=1))
    (folder / SIGNATURE).write_bytes((signed / SIGNATURE).read_bytes())
    return folder


def test_a_file_replaced_with_its_hash_in_the_manifest_is_refused(
    signed: Path, owner: Key, tmp_path: Path
) -> None:
    bundle = Bundle(edited(signed, tmp_path, weights=b"other weights"))
    assert bundle.verify() == 3  # whole by its own word
    assert signature_state(bundle, [public(owner)]) is SignatureState.INVALID


def test_a_file_replaced_under_a_right_signature_is_refused_when_read(
    signed: Path, owner: Key, tmp_path: Path
) -> None:
    bundle = sign_bundle(Bundle(signed), owner, tmp_path / "tiny")
    (bundle.path / "parts/head.onnx").write_bytes(b"other weights")
    assert signature_state(bundle, [public(owner)]) is SignatureState.TRUSTED
    with pytest.raises(BundleError, match="was altered"):
        bundle.read("parts/head.onnx")


def test_a_signature_moved_from_another_bundle_is_refused(
    signed: Path, owner: Key, tmp_path: Path
) -> None:
    other = write_tiny_bundle(tmp_path / "other", description="another model")
    sign_bundle(other, owner, other.path)
    (other.path / SIGNATURE).write_bytes((signed / SIGNATURE).read_bytes())
    assert signature_state(Bundle(other.path), [public(owner)]) is SignatureState.INVALID


def test_a_trusted_key_s_name_on_a_stranger_s_signature_is_refused(
    signed: Path, owner: Key, stranger: Key
) -> None:
    text = (signed / MANIFEST).read_bytes()
    forged = f"ed25519 {public(owner).raw.hex()} {stranger.sign(text).hex()}\n".encode()
    state = signature_state(Texts(text, forged), [public(owner), public(stranger)])
    assert state is SignatureState.INVALID


def test_a_signature_taken_off_leaves_a_bundle_that_is_unsigned(
    signed: Path, owner: Key, tmp_path: Path
) -> None:
    folder = edited(signed, tmp_path, signature=None)
    with pytest.raises(BundleError, match=r"manifest\.sig is not listed"):
        Bundle(folder).verify()
    (folder / SIGNATURE).unlink()
    assert signature_state(Bundle(folder), [public(owner)]) is SignatureState.UNSIGNED


def test_the_bytes_that_are_judged_are_those_that_were_parsed(
    signed: Path, owner: Key, tmp_path: Path
) -> None:
    """Who swaps the file after it was opened changes nothing."""
    bundle = sign_bundle(Bundle(signed), owner, tmp_path / "tiny")
    (bundle.path / MANIFEST).write_text("{}")
    assert signature_state(bundle, [public(owner)]) is SignatureState.TRUSTED
    assert bundle.manifest == Bundle(signed).manifest


def test_a_huge_signature_in_an_archive_is_refused_on_opening(signed: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.fusedge"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in (p for p in signed.rglob("*") if p.is_file() and p.name != SIGNATURE):
            target.write(file, file.relative_to(signed).as_posix())
        target.writestr(SIGNATURE, bytes(100 << 20))
    with pytest.raises(BundleError, match=r"manifest\.sig is larger"):
        Bundle(path)


# Keys.


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_new_key_is_its_owner_s_alone_and_signs(
    tmp_path: Path, plain: Bundle, passphrase: str | None
) -> None:
    key = new_key(tmp_path / "fleet", passphrase)
    private = tmp_path / "fleet.key.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    loaded = load_private_key(private, never if passphrase is None else lambda: "correct horse")
    bundle = sign_bundle(plain, loaded, tmp_path / "signed.fusedge")
    assert load_public_key(tmp_path / "fleet.pub.pem") == key
    assert signature_state(bundle, [key]) is SignatureState.TRUSTED
    assert (b"ENCRYPTED" in private.read_bytes()) == (passphrase is not None)


@pytest.mark.parametrize("taken", ["fleet.key.pem", "fleet.pub.pem"])
def test_a_key_is_never_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(FusedgeError, match="is there already"):
        new_key(tmp_path / "fleet", None)
    assert (tmp_path / taken).read_text() == "precious"
    assert os.listdir(tmp_path) == [taken]


def test_a_wrong_passphrase_is_told_in_one_line(tmp_path: Path) -> None:
    new_key(tmp_path / "fleet", "right")
    for wrong in ("wrong", ""):
        with pytest.raises(FusedgeError, match="the passphrase is wrong"):
            load_private_key(tmp_path / "fleet.key.pem", lambda text=wrong: text)


def test_the_fingerprint_is_that_of_the_key_in_der(owner: Key) -> None:
    import hashlib

    der = owner.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert public(owner).fingerprint == hashlib.sha256(der).hexdigest()


OTHER_KINDS = {
    "RSAP": lambda: rsa.generate_private_key(65537, 1024),
    "DSAP": lambda: dsa.generate_private_key(1024),
    "ECP": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed448P": ed448.Ed448PrivateKey.generate,
    "X25519P": x25519.X25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_key_of_another_kind_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    key = OTHER_KINDS[kind]()  # type: ignore[operator]
    pem, file = serialization.Encoding.PEM, tmp_path / "other.pem"
    file.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(FusedgeError, match=f"of another kind .*{kind}ublicKey"):
        load_public_key(file)
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(FusedgeError, match=f"of another kind .*{kind}rivateKey"):
        load_private_key(file, never)


def test_the_two_halves_of_a_key_are_not_mixed_up(tmp_path: Path) -> None:
    new_key(tmp_path / "fleet", None)
    with pytest.raises(FusedgeError, match=r"is a private key.*ends in \.pub\.pem"):
        load_public_key(tmp_path / "fleet.key.pem")
    with pytest.raises(FusedgeError, match=r"no private key.*ends in \.key\.pem"):
        load_private_key(tmp_path / "fleet.pub.pem", never)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A private and a public key."""
    folder = tmp_path_factory.mktemp("pem")
    new_key(folder / "k", None)
    return (folder / "k.key.pem").read_bytes(), (folder / "k.pub.pem").read_bytes()


@given(data=st.data())
def test_a_damaged_key_is_refused_in_one_line(
    pem: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Or read as some key, where the damage leaves one: never anything else."""
    folder = tmp_path_factory.getbasetemp()
    for content, load in (
        (pem[0], lambda path: load_private_key(path, lambda: "x")),
        (pem[1], load_public_key),
    ):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 8)))
        damaged = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
        (folder / "damaged.pem").write_bytes(damaged)
        try:
            load(folder / "damaged.pem")  # type: ignore[operator]
        except FusedgeError as error:
            assert error.line().isprintable()


def test_a_file_beyond_any_key_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.pem").write_bytes(b"-" * (MAX_KEY_BYTES + 1))
    with pytest.raises(FusedgeError, match="has more than"):
        load_public_key(tmp_path / "huge.pem")
    for missing in ("none.pem", "a\0b"):
        with pytest.raises(FusedgeError, match="cannot be read"):
            load_public_key(tmp_path / missing)


# Whom the user trusts.


def test_a_key_is_trusted_once_the_user_says_so(home: Path, signed: Path, owner: Key) -> None:
    assert load_trusted_keys() == ()
    assert trust(public(owner), "owner") == trust_folder() / "owner.pem"
    assert signature_state(Bundle(signed)) is SignatureState.TRUSTED
    with pytest.raises(FusedgeError, match="is there already"):
        trust(PublicKey(bytes(32)), "owner")
    assert [key.raw for key in load_trusted_keys()] == [public(owner).raw]
    (trust_folder() / "owner.pem").unlink()
    assert signature_state(Bundle(signed)) is SignatureState.UNKNOWN_KEY


def test_given_keys_take_the_place_of_the_trusted_ones(
    home: Path, pem: tuple[bytes, bytes], owner: Key
) -> None:
    trust(public(owner), "owner")
    (home / "given.pem").write_bytes(pem[1])
    keys = load_trusted_keys([home / "given.pem"])
    assert [key.name for key in keys] == ["given.pem"]
    assert load_trusted_keys([]) == ()


def test_a_trusted_key_that_is_none_is_told(home: Path) -> None:
    trust_folder().mkdir(parents=True)
    (trust_folder() / "broken.pem").write_text("-----BEGIN PUBLIC KEY-----\n")
    with pytest.raises(FusedgeError, match=r"broken\.pem: holds no public key"):
        load_trusted_keys()


def test_an_unsigned_bundle_asks_for_no_key(home: Path, plain: Bundle) -> None:
    trust_folder().mkdir(parents=True)
    (trust_folder() / "broken.pem").write_text("no key")
    assert signature_state(plain) is SignatureState.UNSIGNED


def test_without_the_package_a_signed_bundle_opens_and_its_signature_is_not_guessed(
    signed: Path, owner: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bundle = Bundle(signed)
    assert bundle.verify() == 3
    with pytest.raises(MissingExtraError, match=r"pip install 'fusedge\[sign\]'"):
        signature_state(bundle, [public(owner)])


@pytest.mark.parametrize("name", ["", ".", "..", ".fleet", "a/b", "a b", "a\n", "''"])
def test_a_key_has_a_name_that_a_file_can_have(home: Path, name: str, owner: Key) -> None:
    with pytest.raises(FusedgeError, match="is no name for a key"):
        trust(public(owner), name)
    if "/" not in name:
        with pytest.raises(FusedgeError, match="is no name for a key"):
            new_key(home / name if name.strip(".") else Path(name), None)
    assert not trust_folder().exists() and not list(home.rglob("*.pem"))
