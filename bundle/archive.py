"""Reading and writing bundles: a folder, or the same as one `.fusedge` file (zip).

Nothing is unpacked to disk: a file is read into memory, its size and SHA-256 compared with the
manifest, and only then handed out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from fusedge.bundle.errors import BundleError, FusedgeError
from fusedge.bundle.manifest import File, Manifest, parse_manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises on a damaged archive: an unknown version is a NotImplementedError, a flag for
# encryption a RuntimeError, a name that is no text a ValueError.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # same input, same bytes


class Bundle:
    """An opened bundle. `manifest` is validated; files are verified whenever they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not _exists(path):
            raise BundleError(
                "no such bundle",
                where=str(path),
                hint="give a .fusedge file, a bundle folder, or the name of a shipped bundle",
            )
        self._zip = None if path.is_dir() else _open_zip(path)
        raw = self._read_raw(MANIFEST, MAX_MANIFEST_BYTES)
        self.manifest: Manifest = parse_manifest(raw, str(path))
        self.sha256 = hashlib.sha256(raw).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of a file that the manifest lists, verified; raises BundleError otherwise."""
        listed = self.manifest.files.get(name)
        if listed is None:
            raise BundleError(f"{name} is not listed in the manifest", where=str(self.path))
        data = self._read_raw(name, listed.bytes)
        if len(data) != listed.bytes or hashlib.sha256(data).hexdigest() != listed.sha256:
            raise BundleError(
                f"{name} was altered or truncated: its SHA-256 differs from the manifest",
                where=str(self.path),
                hint="copy the bundle again, or export it anew",
            )
        return data

    def verify(self) -> int:
        """Read and check every listed file, refuse unlisted ones; the number of files checked."""
        self.refuse_unlisted()
        for name in self.manifest.files:
            self.read(name)
        return len(self.manifest.files)

    def refuse_unlisted(self) -> None:
        """Raise BundleError where a file lies in the bundle that the manifest does not list."""
        present = set(self._names()) - {MANIFEST, self.manifest.signature}
        unlisted = sorted(present - set(self.manifest.files))
        if unlisted:
            raise BundleError(f"{unlisted[0]} is not listed in the manifest", where=str(self.path))

    def _names(self) -> list[str]:
        if self._zip is not None:
            return [info.filename for info in self._zip.infolist() if not info.is_dir()]
        found = self.path.rglob("*")
        return [
            p.relative_to(self.path).as_posix() for p in found if p.is_symlink() or not p.is_dir()
        ]

    def _read_raw(self, name: str, limit: int) -> bytes:
        try:
            if self._zip is not None:
                with self._zip.open(name) as stream:
                    data = stream.read(limit + 1)
            else:
                file = self.path / name
                if file.resolve() != self.path.resolve() / name:
                    raise BundleError(f"{name} is a link", where=str(self.path))
                if file.exists() and not file.is_file():
                    raise BundleError(f"{name} is not a file", where=str(self.path))
                with file.open("rb") as stream:
                    data = stream.read(limit + 1)
        except (KeyError, FileNotFoundError):
            raise BundleError(f"{name} is missing", where=str(self.path)) from None
        except (OSError, *_ZIP_ERRORS) as error:
            raise BundleError(f"{name} cannot be read: {error}", where=str(self.path)) from None
        if len(data) > limit:
            raise BundleError(f"{name} is larger than it says", where=str(self.path))
        return data


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be searched
        return False


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        if not path.is_file():
            raise OSError("it is neither a file nor a folder")
        archive = zipfile.ZipFile(path)
    except (OSError, *_ZIP_ERRORS) as error:
        raise BundleError(
            f"not a readable bundle: {error}",
            where=str(path),
            hint="it may be truncated; copy it again",
        ) from None
    infos = archive.infolist()
    if any(info.compress_type not in _ZIP_METHODS for info in infos):
        raise BundleError("compressed in a way that bundles never are", where=str(path))
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise BundleError("two files have the same name", where=str(path))
    return archive


def file_entry(data: bytes) -> File:
    """Size and hash of a file, for the manifest."""
    return File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle atomically: a zip where the name ends in `.fusedge`, else a folder.

    The old bundle at `path`, if any, is replaced only when the new one is complete and verified.
    A folder that holds anything else is left alone (FusedgeError).
    """
    wrong = sorted(
        name
        for name in set(files) | set(manifest.files)
        if name not in files or manifest.files.get(name) != file_entry(files[name])
    )
    if wrong:
        raise ValueError(f"the manifest does not describe {wrong[0]}")
    content = {MANIFEST: manifest.model_dump_json(indent=1).encode() + b"\n", **files}
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial{place.suffix}")
    try:
        _refuse_other_folder(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".fusedge":
            _write_zip(temporary, content)
        else:
            _write_folder(temporary, content)
        Bundle(temporary).verify()
        _replace(temporary, place)
    except OSError as error:
        raise FusedgeError(
            f"cannot write the bundle: {error.strerror or error}",
            where=str(path),
            hint="choose a folder that you may write to, with -o",
        ) from None
    finally:
        _remove(temporary)
    return Bundle(path)


def _write_zip(path: Path, content: Mapping[str, bytes]) -> None:
    with path.open("xb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name in sorted(content):
                info = zipfile.ZipInfo(name, _ZIP_EPOCH)
                info.create_system = 3  # Unix, wherever it is written: the bytes are the same
                info.external_attr = 0o644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content[name])
        stream.flush()
        os.fsync(stream.fileno())


def _write_folder(path: Path, content: Mapping[str, bytes]) -> None:
    for name in sorted(content):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as stream:
            stream.write(content[name])
            stream.flush()
            os.fsync(stream.fileno())


def _refuse_other_folder(path: Path) -> None:
    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        Bundle(path).refuse_unlisted()
    except BundleError as error:
        raise FusedgeError(
            f"will not replace this folder, it is not a bundle: {error.what}",
            where=str(path),
            hint="name a new folder or a .fusedge file, or remove this one first",
        ) from None


def _replace(new: Path, path: Path) -> None:
    if path.is_dir():
        old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise
        _remove(old)
    else:
        new.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # it was never made, or its folder is none
            path.unlink()
