"""`fusedge keys`: make a pair of keys, trust somebody's, see whom this user trusts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.keys import (
    PRIVATE,
    PUBLIC,
    load_public_key,
    load_trusted_keys,
    new_key,
    trust,
    trust_folder,
)
from fusedge.cli.console import console, print_json
from fusedge.cli.options import JsonOption

VARIABLE = "FUSEDGE_KEY_PASSPHRASE"

keys = typer.Typer(
    no_args_is_help=True,
    help="Make keys that sign bundles, and say whose signatures to trust.",
)


def passphrase(*, confirm: bool = False) -> str:
    """Of a private key: from the environment, else asked for; never from the command line, where
    every user of the machine could read it.
    """
    if given := os.environ.get(VARIABLE):
        try:
            given.encode()
        except UnicodeEncodeError:
            raise FusedgeError("is no text in UTF-8", where=VARIABLE) from None
        return given
    if not sys.stdin.isatty():
        raise FusedgeError(
            "the passphrase of the private key is needed, and nobody is there to be asked",
            hint=f"set {VARIABLE}",
        )
    return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True))


@keys.command("new")
def new(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Of the two files to write.")],
    encrypt: Annotated[
        bool,
        typer.Option("--passphrase", help=f"Encrypt the private key: asks, or takes {VARIABLE}."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an Ed25519 key: NAME.key.pem signs bundles and stays with you, NAME.pub.pem is for others."""
    public = new_key(name, passphrase(confirm=True) if encrypt else None)
    private_file, public_file = f"{name}{PRIVATE}", f"{name}{PUBLIC}"
    if as_json:
        print_json(
            {"private": private_file, "public": public_file, "fingerprint": public.fingerprint}
        )
        return
    console.print(
        f"{private_file}: signs bundles; keep it to yourself\n"
        f"{public_file}: give it to those who run them\nfingerprint {public.fingerprint}",
        markup=False,
        soft_wrap=True,
    )


@keys.command("trust")
def trust_command(
    file: Annotated[Path, typer.Argument(metavar="PUBLIC.pem", help="Somebody's public key.")],
    name: Annotated[
        str | None, typer.Option(help="Under which name to keep it. Default: its file's.")
    ] = None,
) -> None:
    """Trust the bundles, engines included, that this key signs, from now on and for this user.

    Compare the fingerprint with what its owner tells you, by another way than the key came.
    """
    key = load_public_key(file)
    chosen = file.name.removesuffix(".pem").removesuffix(".pub") if name is None else name
    place = trust(key, chosen)
    console.print(f"trusted: {place}\nfingerprint {key.fingerprint}", markup=False, soft_wrap=True)


@keys.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """Show the keys that this user trusts; delete a file to trust it no longer."""
    trusted = load_trusted_keys()
    if as_json:
        rows = [{"name": key.name, "fingerprint": key.fingerprint} for key in trusted]
        print_json({"folder": str(trust_folder()), "keys": rows})
        return
    console.print(f"{trust_folder()}: {len(trusted)} keys", markup=False, soft_wrap=True)
    for key in trusted:
        console.print(f"{key.fingerprint}  {key.name}", markup=False, soft_wrap=True)
