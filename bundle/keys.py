"""Ed25519 keys in PEM files: those that sign bundles, and those whose signatures a user trusts."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.regular_file import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
PRIVATE, PUBLIC = ".key.pem", ".pub.pem"
MAX_KEY_BYTES = 16 << 10  # an Ed25519 key in PEM has 120 to 300
_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: what precedes the 32 bytes


@dataclass(frozen=True)
class PublicKey:
    """The 32 bytes of a public key; `name` says where it comes from."""

    raw: bytes
    name: str = ""

    @property
    def fingerprint(self) -> str:
        """What people compare: as by `openssl pkey -pubin -in KEY -outform DER | sha256sum`."""
        return hashlib.sha256(_DER_PREFIX + self.raw).hexdigest()


def need_cryptography() -> None:
    """Raise MissingExtraError where the package is not installed."""
    if importlib.util.find_spec("cryptography") is None:
        raise MissingExtraError("cryptography", "sign", "signing and checking signatures")


def trust_folder() -> Path:
    """Where the keys that this user trusts lie: `~/.config/fusedge/trusted-keys`."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "fusedge" / "trusted-keys"


def new_key(name: Path, passphrase: str | None) -> PublicKey:
    """Make a pair of keys: `name.key.pem`, for its owner alone (mode 0600), and `name.pub.pem`.

    With a passphrase the private key is encrypted. Raises FusedgeError where either file is there already,
    or the name is none.
    """
    _check_name(name.name)
    need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public_file = name.with_name(name.name + PUBLIC)
    _write_new(public_file, public, 0o644)
    try:
        _write_new(name.with_name(name.name + PRIVATE), private, 0o600)
    except FusedgeError:
        public_file.unlink()
        raise
    return load_public_key(public_file)


def load_private_key(path: Path, passphrase: Callable[[], str]) -> Ed25519PrivateKey:
    """The key that signs; `passphrase` is asked only if it is encrypted. Raises FusedgeError."""
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_file(path, MAX_KEY_BYTES)
    wrong = "holds no private key in PEM"
    try:
        try:
            key = load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            wrong = "the passphrase is wrong, or the key is damaged"
            key = load_pem_private_key(content, passphrase().encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: an empty passphrase
        hint = f"a key made by `fusedge keys new` ends in {PRIVATE}"
        raise FusedgeError(wrong, where=str(path), hint=hint) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(path, key)
    return key


def load_public_key(path: Path) -> PublicKey:
    """The key of a file; raises FusedgeError where it holds none, or of another kind."""
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_file(path, MAX_KEY_BYTES)
    if b"PRIVATE KEY" in content:
        raise FusedgeError(
            "is a private key, which must stay with its owner",
            where=str(path),
            hint=f"give the public one, which ends in {PUBLIC}",
        )
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise FusedgeError(
            "holds no public key in PEM",
            where=str(path),
            hint=f"a key made by `fusedge keys new` ends in {PUBLIC}",
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _other_kind(path, key)
    return PublicKey(key.public_bytes_raw(), path.name)


def load_trusted_keys(files: Iterable[Path] | None = None) -> tuple[PublicKey, ...]:
    """The keys of these files; without any given, all `*.pem` of the user's trust folder.

    Raises FusedgeError for a file that is no such key: a trusted key is never left out in silence.
    """
    chosen = sorted(trust_folder().glob("*.pem")) if files is None else files
    return tuple(load_public_key(file) for file in chosen)


def trust(key: PublicKey, name: str) -> Path:
    """Put a key among those that the user trusts; the file.

    Raises FusedgeError if the name is taken, or is none.
    """
    _check_name(name)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    place = trust_folder() / f"{name}.pem"
    content = Ed25519PublicKey.from_public_bytes(key.raw).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    _write_new(place, content, 0o644)
    return place


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise FusedgeError(
            f"{name!r} is no name for a key",
            hint="letters, digits, '.', '_' and '-', such as fleet",
        )


def _other_kind(path: Path, key: object) -> FusedgeError:
    return FusedgeError(
        f"is a key of another kind ({type(key).__name__.lstrip('_')}), bundles are signed by Ed25519",
        where=str(path),
        hint="make one with `fusedge keys new NAME`",
    )


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise FusedgeError(
            "is there already, and a key is never replaced",
            where=str(path),
            hint="choose another name",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        reason = error.strerror if isinstance(error, OSError) else None
        raise FusedgeError(f"cannot be written: {reason or error}", where=str(path)) from None
