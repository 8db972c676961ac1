"""The signature of a bundle: Ed25519 over the bytes of `manifest.json`, which holds every file's hash.

The manifest names the signature's file, so that the signature covers that there is one. The file is one
line, `ed25519 PUBLIC-KEY SIGNATURE`, in hexadecimal. The key in it tells a wrong signature from one by a
stranger, and whom to ask; it is never trusted for being there: the user's own keys are (`keys.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from fusedge.bundle.archive import Bundle, write_bundle
from fusedge.bundle.keys import PublicKey, load_trusted_keys, need_cryptography

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "manifest.sig"
_FORM = re.compile(rb"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")


class SignatureState(Enum):
    """What a bundle's signature is worth."""

    UNSIGNED = "unsigned"
    TRUSTED = "trusted"
    """Right, and by a key that the user trusts."""
    UNKNOWN_KEY = "unknown_key"
    """Right, but by a key that the user does not trust: it says that the bundle is whole, no more."""
    INVALID = "invalid"
    """Wrong: the bundle or its signature was changed, or the signature is another bundle's."""


def signature_state(
    bundle: Bundle, trusted_keys: Iterable[PublicKey] | None = None
) -> SignatureState:
    """What the signature is worth to who trusts these keys; None: those that the user trusts.

    Only the manifest is looked at: each file is compared with it when it is read. Raises FusedgeError
    where the user's keys cannot be read, MissingExtraError where a signed bundle meets no `cryptography`.
    """
    if bundle.signature_bytes is None:
        return SignatureState.UNSIGNED
    need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    parsed = _FORM.fullmatch(bundle.signature_bytes)
    if parsed is None:
        return SignatureState.INVALID
    key, signature = (bytes.fromhex(field.decode()) for field in parsed.groups())
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, bundle.manifest_bytes)
    except (InvalidSignature, ValueError):  # ValueError: bytes that are no key
        return SignatureState.INVALID
    trusted = load_trusted_keys() if trusted_keys is None else trusted_keys
    known = any(key == one.raw for one in trusted)
    return SignatureState.TRUSTED if known else SignatureState.UNKNOWN_KEY


def signer(bundle: Bundle) -> PublicKey | None:
    """The key that a bundle claims to be signed with; None where it names none."""
    parsed = _FORM.fullmatch(bundle.signature_bytes or b"")
    return PublicKey(bytes.fromhex(parsed[1].decode())) if parsed else None


def sign_bundle(bundle: Bundle, key: Ed25519PrivateKey, out: Path) -> Bundle:
    """Write the bundle, signed, to `out`, which may be where it is; an earlier signature is replaced.

    All of it is verified first: whoever signs vouches for every file. The same bundle and key give the
    same bytes. Raises BundleError, and FusedgeError where it cannot be written.
    """
    bundle.verify()
    manifest = bundle.manifest.model_copy(update={"signature": SIGNATURE})
    files = {name: bundle.read(name) for name in manifest.files}
    public = key.public_key().public_bytes_raw()
    return write_bundle(
        out,
        manifest,
        files,
        sign=lambda text: f"ed25519 {public.hex()} {key.sign(text).hex()}\n".encode(),
    )
