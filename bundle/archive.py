"""Reading and writing bundles: a folder, or the same as one `.fusedge` file (zip).

Nothing is unpacked to disk: a file is read, its size and SHA-256 compared with the manifest, and
only then handed out. A bundle may come from anywhere, so what it can cost to read is bounded: the
manifest bounds the files (`MAX_FILE_BYTES`, `MAX_BUNDLE_BYTES`), the archive's own size bounds what
it may unpack to, and `verify` holds one piece of one file at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from fusedge.bundle.errors import BundleError, FusedgeError
from fusedge.bundle.manifest import File, Manifest, parse_manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
MAX_SIGNATURE_BYTES = 64 << 10
# A zip of size n may unpack to 100 n, or to 64 MiB where that is more. Weights hardly compress (less
# than 2 times), deflate can reach 1032 times. The size on disk, unlike the sizes that the archive
# states for its entries, cannot be forged, and counts data once that several entries share.
MAX_INFLATION = 100
INFLATION_FREE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
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
_MAY_WRITE = "choose a folder that you may write to, with -o"
_NO_SPACE = "free some space, or choose a place on another disk, with -o"
_WRITE_ADVICE: Mapping[int | None, str] = {
    errno.EACCES: _MAY_WRITE,
    errno.EPERM: _MAY_WRITE,
    errno.EROFS: _MAY_WRITE,
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.ENAMETOOLONG: "choose a shorter name, with -o",
}
_WHOLE_AGAIN = "copy the bundle again, or export it anew"
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # same input, same bytes


class Bundle:
    """An opened bundle. `manifest` is validated; files are verified whenever they are read.

    `manifest_bytes` is the text that `manifest` was read from, and `signature_bytes` the file that is
    named as its signature, None where none is: they are judged by `signature.py`, not here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not _exists(path):
            raise BundleError(
                "no such bundle",
                where=str(path),
                hint="give a .fusedge file, a bundle folder, or the name of a shipped bundle",
            )
        self._zip = None if path.is_dir() else _open_zip(path)
        self.manifest_bytes = self._read_raw(MANIFEST, MAX_MANIFEST_BYTES)
        self.manifest: Manifest = parse_manifest(self.manifest_bytes, str(path))
        self.sha256 = hashlib.sha256(self.manifest_bytes).hexdigest()
        if self._zip is not None:
            self._refuse_bomb(path.stat().st_size)
        signature = self.manifest.signature
        self.signature_bytes = (
            None if signature is None else self._read_raw(signature, MAX_SIGNATURE_BYTES)
        )

    def read(self, name: str) -> bytes:
        """The bytes of a file that the manifest lists, verified; raises BundleError otherwise."""
        data = io.BytesIO()
        self._check(name, data.write)
        return data.getvalue()

    def verify(self) -> int:
        """Read and check every listed file, refuse unlisted ones; the number of files checked."""
        self.refuse_unlisted()
        for name in self.manifest.files:
            self._check(name, len)
        return len(self.manifest.files)

    def refuse_unlisted(self) -> None:
        """Raise BundleError where a file lies in the bundle that the manifest does not list."""
        present = set(self._names()) - {MANIFEST, self.manifest.signature}
        unlisted = sorted(present - set(self.manifest.files))
        if unlisted:
            raise self._damaged(f"{unlisted[0]} is not listed in the manifest")

    def _check(self, name: str, keep: Callable[[bytes], object]) -> None:
        """Hand a listed file piece by piece to `keep`; BundleError where it is not as listed."""
        listed = self.manifest.files.get(name)
        if listed is None:
            raise BundleError(f"{name} is not listed in the manifest", where=str(self.path))
        size, digest = 0, hashlib.sha256()
        for chunk in self._chunks(name, listed.bytes):
            size += len(chunk)
            digest.update(chunk)
            keep(chunk)
        if size != listed.bytes or digest.hexdigest() != listed.sha256:
            raise self._damaged(
                f"{name} was altered or truncated: its SHA-256 differs from the manifest"
            )

    def _refuse_bomb(self, archive_bytes: int) -> None:
        total = sum(file.bytes for file in self.manifest.files.values())
        if total > max(INFLATION_FREE_BYTES, MAX_INFLATION * archive_bytes):
            raise BundleError(
                f"its {archive_bytes} bytes would unpack to {total}, as no bundle with weights does",
                where=str(self.path),
                hint="do not trust it; if you made it yourself, export it as a folder",
            )

    def _damaged(self, what: str) -> BundleError:
        return BundleError(what, where=str(self.path), hint=_WHOLE_AGAIN)

    def _names(self) -> list[str]:
        if self._zip is not None:
            return [info.filename for info in self._zip.infolist() if not info.is_dir()]
        found = self.path.rglob("*")
        return [
            p.relative_to(self.path).as_posix() for p in found if p.is_symlink() or not p.is_dir()
        ]

    def _read_raw(self, name: str, limit: int) -> bytes:
        return b"".join(self._chunks(name, limit))

    def _chunks(self, name: str, limit: int) -> Iterator[bytes]:
        """The file in pieces, `limit` bytes at most."""
        size = 0
        try:
            with self._open(name) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    size += len(chunk)
                    if size > limit:
                        raise self._damaged(f"{name} is larger than it says")
                    yield chunk
        except (KeyError, FileNotFoundError):
            raise self._damaged(f"{name} is missing") from None
        except (OSError, *_ZIP_ERRORS) as error:
            raise self._damaged(f"{name} cannot be read: {error}") from None

    def _open(self, name: str) -> IO[bytes]:
        if self._zip is not None:
            return self._zip.open(name)
        file = self.path / name
        if file.resolve() != self.path.resolve() / name:
            raise self._damaged(f"{name} is a link")
        if file.exists() and not file.is_file():
            raise self._damaged(f"{name} is not a file")
        return file.open("rb")


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
        raise BundleError(
            "compressed in a way that bundles never are", where=str(path), hint=_WHOLE_AGAIN
        )
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise BundleError("two files have the same name", where=str(path), hint=_WHOLE_AGAIN)
    return archive


def file_entry(data: bytes) -> File:
    """Size and hash of a file, for the manifest."""
    return File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_bundle(
    path: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    sign: Callable[[bytes], bytes] | None = None,
) -> Bundle:
    """Write a bundle atomically: a zip where the name ends in `.fusedge`, else a folder.

    `sign` makes of `manifest.json` the content of the signature's file, where the manifest names one.
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
    if (manifest.signature is None) != (sign is None):
        raise ValueError("a manifest with a signature needs `sign`, one without must not have it")
    text = manifest.model_dump_json(indent=1).encode() + b"\n"
    content = {MANIFEST: text, **files}
    if manifest.signature is not None and sign is not None:
        content[manifest.signature] = sign(text)
    check_destination(path)
    place = path.resolve()
    temporary = _beside(place, f"partial{place.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".fusedge":
            _write_zip(temporary, content)
        else:
            _write_folder(temporary, content)
        Bundle(temporary).verify()
        _replace(temporary, place)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        _remove(temporary)
    return Bundle(path)


def check_destination(path: Path) -> None:
    """Refuse at once, before any work, a place where `write_bundle` could not write or must not.

    Raises FusedgeError; leaves nothing behind.
    """
    try:
        place = path.resolve()
        _beside(place, f"partial{place.suffix}").exists()  # its name is the longest
        _refuse_other_folder(place)
        if place.exists() and not place.is_dir() and path.suffix != ".fusedge":
            raise OSError(errno.EEXIST, "a file lies where the folder should be")
        above = next(folder for folder in place.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise OSError(errno.ENOTDIR, f"{above} is not a folder")
        probe = _beside(above / place.name, "probe")  # trying is surer than asking for permission
        probe.mkdir()
        probe.rmdir()
    except (OSError, RuntimeError, ValueError) as error:  # a link in a circle, a null character
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: Exception) -> FusedgeError:
    number = error.errno if isinstance(error, OSError) else None
    hint = _WRITE_ADVICE.get(number, "choose another place, with -o")
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return FusedgeError(f"cannot write the bundle: {reason}", where=str(path), hint=hint)


def _beside(place: Path, suffix: str) -> Path:
    """A name that is not taken, in the same folder: renaming one to the other is atomic."""
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.{suffix}")


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
        old = _beside(path, "old")
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
