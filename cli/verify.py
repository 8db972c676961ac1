"""`fusedge verify`: is this bundle whole, unaltered and consistent, and who vouches for it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import built_here
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.keys import load_trusted_keys
from fusedge.bundle.signature import SignatureState, signature_state, signer
from fusedge.cli.console import console, print_json
from fusedge.cli.options import BundleArgument, JsonOption
from fusedge.cli.tasks import find_bundle
from fusedge.runtime.onnx_part import OnnxPart

_MEANING = {
    SignatureState.UNSIGNED: "absent",
    SignatureState.TRUSTED: "right, by a key that you trust",
    SignatureState.UNKNOWN_KEY: "right, but by a key that you do not trust",
}


def verify(
    bundle: BundleArgument,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PUBLIC.pem",
            help="Trust this key, in place of those of `fusedge keys list`; several times for more.",
        ),
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Fail unless a trusted key signed it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: manifest, hash of every file, each graph against the manifest, signature.

    Exit status 0 if all of it holds, 1 with the first reason otherwise. A signature that is wrong is
    always an error; none, or one by a key that you do not trust, only with --require-signature.
    Engines are checked by hash, for loading one needs the device that it was built for; and it is told
    for each whether `run` may load it at all, by the keys of `fusedge keys list`: it is executable code.
    """
    opened = find_bundle(bundle)
    files = opened.verify()
    state = _signature(opened, key, require_signature)
    graphs = 0
    for part in opened.manifest.parts:
        for graph in part.graphs:
            OnnxPart(opened, part, "cpu", graph.precision)
            graphs += 1
    engines = _engines(opened)
    public = signer(opened)
    if as_json:
        print_json(
            {
                "bundle": opened.manifest.name,
                "sha256": opened.sha256,
                "files": files,
                "graphs_loaded": graphs,
                "signature": state.value,
                "signed_by": public.fingerprint if public else None,
                "engines": engines,
            }
        )
        return
    by = f" ({public.fingerprint})" if public else ""
    console.print(
        f"{opened.path}: whole. {files} files have the hashes of the manifest, {graphs} graphs load "
        f"and match it. Signature: {_MEANING[state]}{by}.",
        markup=False,
        soft_wrap=True,
    )
    for engine in engines:
        verdict = "may be loaded" if engine["may_load"] else "refused"
        console.print(
            f"{engine['file']}: {verdict}, {engine['reason']}", markup=False, soft_wrap=True
        )


def _signature(bundle: Bundle, keys: list[Path] | None, required: bool) -> SignatureState:
    where = str(bundle.path)
    state = signature_state(bundle, load_trusted_keys(keys) if keys else None)
    if state is SignatureState.INVALID:
        raise FusedgeError(
            "the signature is wrong: the bundle was changed after it was signed, or it is another's",
            where=where,
            hint="do not use it; get it again from whoever signed it",
        )
    if required and state is not SignatureState.TRUSTED:
        public = signer(bundle)
        raise FusedgeError(
            f"signed by a key that you do not trust: {public.fingerprint}"
            if public
            else "not signed",
            where=where,
            hint="`fusedge keys trust` that key, if its owner is known to you"
            if public
            else "ask for a signed one, or sign it yourself with `fusedge sign`",
        )
    return state


def _engines(bundle: Bundle) -> list[dict[str, object]]:
    """Each engine, and whether this user's runtime would load it, by whose word.

    The runtime knows the keys of `fusedge keys list` only, whichever this command was given.
    """
    with_engines = any(part.engines for part in bundle.manifest.parts)
    trusted = with_engines and signature_state(bundle) is SignatureState.TRUSTED
    rows: list[dict[str, object]] = []
    for part in bundle.manifest.parts:
        for engine in part.engines:
            if trusted:
                allowed, reason = True, "signed by a key that you trust"
            elif built_here(bundle.manifest.files[engine.file].sha256):
                allowed, reason = True, "built on this machine"
            else:
                allowed, reason = False, "not signed by a key that you trust, and not built here"
            rows.append(
                {
                    "part": part.name,
                    "file": engine.file,
                    "targets": list(engine.targets),
                    "may_load": allowed,
                    "reason": reason,
                }
            )
    return rows
