"""`fusedge verify`: is this bundle whole, unaltered and consistent?"""

from __future__ import annotations

from fusedge.bundle.lookup import open_bundle
from fusedge.cli.console import console, print_json
from fusedge.cli.options import BundleArgument, JsonOption
from fusedge.runtime.backend import OnnxPart


def verify(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check a bundle: manifest, hash of every file, and each graph against the manifest.

    Exit status 0 if all of it holds, 1 with the first reason otherwise. Engines are checked by
    hash only: loading one needs the device that it was built for. A signature is not checked.
    """
    opened = open_bundle(bundle)
    files = opened.verify()
    graphs = 0
    for part in opened.manifest.parts:
        for graph in part.graphs:
            OnnxPart(opened, part, "cpu", graph.precision)
            graphs += 1
    signature = "absent" if opened.manifest.signature is None else "present, not checked"
    if as_json:
        print_json(
            {
                "bundle": opened.manifest.name,
                "sha256": opened.sha256,
                "files": files,
                "graphs_loaded": graphs,
                "signature": signature,
            }
        )
        return
    console.print(
        f"{opened.path}: whole. {files} files have the hashes of the manifest, {graphs} graphs load "
        f"and match it. Signature: {signature}.",
        markup=False,
        soft_wrap=True,
    )
