"""`fusedge sign`: vouch for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.keys import PublicKey, load_private_key
from fusedge.bundle.signature import sign_bundle
from fusedge.cli.console import console, print_json
from fusedge.cli.keys import passphrase
from fusedge.cli.options import BundleArgument, JsonOption
from fusedge.cli.tasks import find_bundle, is_shipped


def sign(
    bundle: BundleArgument,
    key: Annotated[
        Path, typer.Option(metavar="PRIVATE.pem", help="Private key, from `fusedge keys new`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write the signed bundle here. Default: in its place."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle and sign it: its manifest, and with it the hash of every file.

    Whoever trusts your key will load its engines, which are executable code. An earlier signature is
    replaced. If the key has a passphrase, it is asked for, or taken from FUSEDGE_KEY_PASSPHRASE.

    Examples:

    - `fusedge keys new fleet`
    - `fusedge sign driving.fusedge --key fleet.key.pem`
    - `fusedge verify driving.fusedge --key fleet.pub.pem --require-signature`
    """
    if out is None and is_shipped(bundle):
        raise FusedgeError(
            "is part of the installed package or comes from it, and is not changed",
            where=bundle,
            hint="write the signed one elsewhere: -o signed.fusedge",
        )
    opened = find_bundle(bundle)
    private = load_private_key(key, passphrase)
    fingerprint = PublicKey(private.public_key().public_bytes_raw()).fingerprint
    signed = sign_bundle(opened, private, out or opened.path)
    if as_json:
        print_json(
            {"bundle": str(signed.path), "sha256": signed.sha256, "fingerprint": fingerprint}
        )
        return
    console.print(f"{signed.path}: signed by the key {fingerprint}", markup=False, soft_wrap=True)
