"""Bundles on disk: what is written can be read, and what was damaged is refused in one line."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle import archive
from fusedge.bundle.archive import MANIFEST, Bundle, check_destination, write_bundle
from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import FORMAT_VERSION
from tests.tiny_bundle import tiny_manifest, write_tiny_bundle


def content(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in bundle.manifest.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle as a file; tests only read it."""
    path = tmp_path_factory.mktemp("whole") / "tiny.fusedge"
    write_tiny_bundle(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good bundle as a folder, to be damaged."""
    write_tiny_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def refusal(path: Path) -> str:
    """The one line with which a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        Bundle(path).verify()
    line = str(caught.value)
    assert line.isprintable() and line.startswith(str(path))
    return line


def rezipped(whole: Path, change: Callable[[dict[str, bytes]], None], path: Path) -> Path:
    """A copy of the bundle with changed files, otherwise a good archive."""
    with zipfile.ZipFile(whole) as source:
        files = {name: source.read(name) for name in source.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as target:
        for name, data in files.items():
            target.writestr(name, data)
    return path


# What is written can be read.


def test_a_file_and_a_folder_hold_the_same(tmp_path: Path) -> None:
    file = write_tiny_bundle(tmp_path / "tiny.fusedge")
    folder = write_tiny_bundle(tmp_path / "tiny")
    assert zipfile.is_zipfile(file.path) and folder.path.is_dir()
    assert file.manifest == folder.manifest
    assert content(file) == content(folder)
    assert file.sha256 == folder.sha256
    assert file.verify() == folder.verify() == 3


def test_a_manifest_survives_the_round_trip(whole: Path) -> None:
    bundle = Bundle(whole)
    expected = tiny_manifest(bundle.manifest.modalities, content(bundle))
    assert bundle.manifest == expected


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, whole: Path) -> None:
    write_tiny_bundle(tmp_path / "again.fusedge")
    assert (tmp_path / "again.fusedge").read_bytes() == whole.read_bytes()


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    for name in ("a/b/tiny.fusedge", "c/d/tiny"):
        assert write_tiny_bundle(tmp_path / name).verify() == 3


def test_a_bundle_is_opened_by_path_and_a_wrong_name_is_told(whole: Path) -> None:
    assert open_bundle(str(whole)).manifest.name == "tiny"
    with pytest.raises(UnknownNameError, match="unknown bundle 'drivign'"):
        open_bundle("drivign")


@pytest.mark.parametrize("name", ["absent.fusedge", "x" * 300, "a\0b"])
def test_a_path_without_a_bundle_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle(tmp_path / name)


def test_only_a_listed_file_can_be_read(folder: Path) -> None:
    for name in ("../secret", MANIFEST, "parts"):
        with pytest.raises(BundleError, match="not listed in the manifest"):
            Bundle(folder).read(name)


# Damage of a file.


def identical_or_refused(path: Path, data: bytes, original: dict[str, bytes]) -> bool:
    """Whether a damaged file passes; it may only where the damage changes nothing that is read."""
    path.write_bytes(data)
    try:
        bundle = Bundle(path)
        bundle.verify()
    except BundleError as error:
        assert error.line().isprintable()
        return False
    assert content(bundle) == original
    return True


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, whole: Path) -> None:
    data, original = whole.read_bytes(), content(Bundle(whole))
    path = tmp_path / "cut.fusedge"
    lengths = {*range(0, len(data), 11), *range(len(data) - 64, len(data))}
    passed = [n for n in lengths if identical_or_refused(path, data[:n], original)]
    assert not passed


def test_any_changed_byte_of_the_directory_is_refused_or_harmless(
    tmp_path: Path, whole: Path
) -> None:
    data, original = whole.read_bytes(), content(Bundle(whole))
    start = data.index(b"PK\x01\x02")
    refused = 0
    for place in range(start, len(data)):
        for mask in (0x06, 0x40):  # deflate becomes LZMA, version 2.0 becomes 8.4
            damaged = bytearray(data)
            damaged[place] ^= mask
            passed = identical_or_refused(tmp_path / "x.fusedge", bytes(damaged), original)
            refused += not passed
    assert refused > (len(data) - start) / 2


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_changed_byte_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, place: float, mask: int
) -> None:
    data = bytearray(whole.read_bytes())
    data[int(place * len(data))] ^= mask
    path = tmp_path_factory.getbasetemp() / "flipped.fusedge"
    identical_or_refused(path, bytes(data), content(Bundle(whole)))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_bundle_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.fusedge"
    assert not identical_or_refused(path, data, {})


def test_a_bundle_with_a_spare_file_on_the_way_in_is_refused(tmp_path: Path, whole: Path) -> None:
    path = rezipped(whole, lambda files: files.update({"extra.txt": b"x"}), tmp_path / "x.fusedge")
    assert "extra.txt is not listed in the manifest" in refusal(path)


def test_a_bundle_without_a_listed_file_is_refused(tmp_path: Path, whole: Path) -> None:
    path = rezipped(whole, lambda files: files.pop("parts/head.onnx"), tmp_path / "x.fusedge")
    assert "parts/head.onnx is missing" in refusal(path)


@pytest.mark.parametrize("name", ["../escape.onnx", "/tmp/escape.onnx", "parts/../../escape.onnx"])
def test_an_archive_entry_outside_the_bundle_is_refused_and_not_written(
    tmp_path: Path, whole: Path, name: str
) -> None:
    path = rezipped(whole, lambda files: files.update({name: b"x"}), tmp_path / "x.fusedge")
    assert "not listed" in refusal(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_two_entries_of_one_name_are_refused(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "twice.fusedge"
    shutil.copy(whole, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as target:
            target.writestr("parts/head.onnx", b"another")
    assert "two files have the same name" in refusal(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(tmp_path: Path, whole: Path, method: int) -> None:
    path = tmp_path / "x.fusedge"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in refusal(path)


def zip_bomb(true_size: int, told_size: int) -> bytes:
    """An archive whose one entry, the manifest, says `told_size` and unpacks to `true_size`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        target.writestr(MANIFEST, b" " * true_size)
    true, told = (n.to_bytes(4, "little") for n in (true_size, told_size))
    return buffer.getvalue().replace(true, told)


@pytest.mark.parametrize("told", [10, 200 << 20])
def test_a_zip_bomb_takes_bounded_memory(tmp_path: Path, told: int) -> None:
    import tracemalloc

    path = tmp_path / "bomb.fusedge"
    path.write_bytes(zip_bomb(200 << 20, told))
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def with_zeros(path: Path, size: int, count: int = 1) -> Path:
    """A sound bundle with files of nothing but zeros in it."""
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    names = [f"zeros{i}" for i in range(count)]
    write_tiny_bundle(path)
    with zipfile.ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist()}
    raw = json.loads(files[MANIFEST])
    raw["files"] |= {name: {"bytes": size, "sha256": digest.hexdigest()} for name in names}
    files[MANIFEST] = json.dumps(raw).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, data in files.items():
            target.writestr(name, data)
        for name in names:
            with target.open(name, "w", force_zip64=True) as stream:
                for _ in range(size >> 20):
                    stream.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize(("size", "count"), [(160 << 20, 1), (32 << 20, 5)])
def test_a_bundle_that_unpacks_to_absurdly_much_is_not_opened(
    tmp_path: Path, size: int, count: int
) -> None:
    path = with_zeros(tmp_path / "bomb.fusedge", size, count)
    with pytest.raises(BundleError, match=r"would unpack to .* as no bundle .*do not trust it"):
        Bundle(path)


@pytest.mark.parametrize("as_folder", [False, True])
def test_verify_keeps_no_file_in_memory(tmp_path: Path, as_folder: bool) -> None:
    import tracemalloc

    path = with_zeros(tmp_path / "zeros.fusedge", 48 << 20)
    if as_folder:
        path = tmp_path / "zeros"
        zipfile.ZipFile(tmp_path / "zeros.fusedge").extractall(path)
    bundle = Bundle(path)
    tracemalloc.start()
    try:
        assert bundle.verify() == 4
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert bundle.read("zeros0") == bytes(48 << 20)


def test_a_file_that_is_longer_than_it_says_is_refused(tmp_path: Path, whole: Path) -> None:
    def grow(files: dict[str, bytes]) -> None:
        files["parts/head.onnx"] += b"\0" * 1_000_000

    assert "larger than it says" in refusal(rezipped(whole, grow, tmp_path / "x.fusedge"))


# Damage of a folder.


def test_an_altered_file_is_refused(folder: Path) -> None:
    file = folder / "parts/head.onnx"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    assert "parts/head.onnx was altered" in refusal(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "parts/head.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    assert "parts/head.onnx was altered or truncated" in refusal(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "parts/fast.onnx").unlink()
    assert "parts/fast.onnx is missing" in refusal(folder)


def test_a_folder_without_manifest_is_refused(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert "manifest.json is missing" in refusal(folder)


def test_an_unlisted_file_is_refused(folder: Path) -> None:
    (folder / "parts/notes.txt").write_text("x")
    assert "parts/notes.txt is not listed" in refusal(folder)


@pytest.mark.parametrize("name", [MANIFEST, "parts/head.onnx"])
def test_a_link_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name} is a link" in refusal(folder)


def test_a_linked_folder_inside_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "parts", tmp_path / "parts")
    (folder / "parts").symlink_to(tmp_path / "parts")
    assert "parts" in refusal(folder)


def test_a_link_in_a_circle_is_refused(folder: Path) -> None:
    (folder / "parts/head.onnx").unlink()
    (folder / "parts/head.onnx").symlink_to("head.onnx")
    refusal(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang_the_reader(folder: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, "parts/head.onnx"):
        (folder / name).rename(tmp_path / "kept")
        os.mkfifo(folder / name)
        assert f"{name} is not a file" in refusal(folder)
        (folder / name).unlink()
        (tmp_path / "kept").rename(folder / name)
    os.mkfifo(tmp_path / "pipe.fusedge")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe.fusedge")


@pytest.mark.parametrize("damage", ["missing", "altered", "longer", "link", "unlisted", "unread"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_every_damage_says_what_to_do(
    folder: Path, whole: Path, tmp_path: Path, kind: str, damage: str
) -> None:
    name = "parts/head.onnx"
    if kind == "folder":
        path, file = folder, folder / name
        data = file.read_bytes()
        file.unlink()
        if damage == "link":
            file.symlink_to(folder / MANIFEST)
        elif damage == "unread":
            file.mkdir()
        elif damage != "missing":
            file.write_bytes({"altered": data[:-1], "longer": data + b"x"}.get(damage, data))
            (folder / ("extra" if damage == "unlisted" else name)).touch()
    elif damage == "unread":
        path = tmp_path / "x.fusedge"
        data = bytearray(whole.read_bytes())
        data[data.index(name.encode()) + len(name) + 9] ^= 0xFF  # inside of the packed data
        path.write_bytes(data)
    else:

        def change(files: dict[str, bytes]) -> None:
            data = files.pop(name)
            if damage != "missing":
                files[name] = {"altered": data[:-1], "longer": data + b"x"}.get(damage, b"")
            if damage == "unlisted":
                files["extra"] = b""

        path = rezipped(whole, change, tmp_path / "x.fusedge")
    assert "(copy the bundle again, or export it anew)" in refusal(path)


# The signature.


@pytest.fixture
def signed(folder: Path) -> Path:
    """A bundle that names a signature and has it."""
    edited(folder, lambda raw: raw.update(signature="manifest.sig"))
    (folder / "manifest.sig").write_bytes(bytes(64))
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".fusedge")
    with zipfile.ZipFile(path, "w") as target:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            target.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("pack", [Path, zipped])
def test_a_signature_that_is_named_must_be_there(
    signed: Path, pack: Callable[[Path], Path]
) -> None:
    assert Bundle(pack(signed)).verify() == 3
    (signed / "manifest.sig").write_bytes(bytes(archive.MAX_SIGNATURE_BYTES + 1))
    with pytest.raises(BundleError, match=r"manifest\.sig is larger"):
        Bundle(pack(signed))
    (signed / "manifest.sig").unlink()
    with pytest.raises(BundleError, match=r"manifest\.sig is missing \(copy the bundle again"):
        Bundle(pack(signed))


def edited(folder: Path, edit: Callable[[dict[str, object]], object]) -> Path:
    raw = json.loads((folder / MANIFEST).read_text("utf-8"))
    edit(raw)
    (folder / MANIFEST).write_text(json.dumps(raw), "utf-8")
    return folder


def test_a_later_version_is_refused_before_anything_else(folder: Path) -> None:
    line = refusal(
        edited(folder, lambda raw: raw.update(format_version=FORMAT_VERSION + 1, surprise=1))
    )
    newer = f"bundle format {FORMAT_VERSION + 1} is newer than this program, which reads {FORMAT_VERSION}"
    assert newer in line
    assert "upgrade" in line


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "1", None, [1]])
def test_a_version_that_is_none_is_refused(folder: Path, version: object) -> None:
    assert "format_version" in refusal(
        edited(folder, lambda raw: raw.update(format_version=version))
    )


def test_an_unknown_field_is_refused(folder: Path) -> None:
    assert "smothing" in refusal(edited(folder, lambda raw: raw.update(smothing=1)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("name", "a b"),
        ("modalities", {}),
        ("modalities", []),
        ("parts", "head"),
        ("fusion", []),
        ("outputs", []),
        ("provenance", None),
        ("files", []),
        ("signature", 1),
    ],
)
def test_a_field_of_a_wrong_type_or_value_is_refused(
    folder: Path, field: str, value: object
) -> None:
    assert field in refusal(edited(folder, lambda raw: raw.update({field: value})))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_is_not_finite_is_refused(folder: Path, number: str) -> None:
    text = (
        (folder / MANIFEST).read_text("utf-8").replace('"minimum": -100.0', f'"minimum": {number}')
    )
    assert number in text
    (folder / MANIFEST).write_text(text, "utf-8")
    refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"3",
        b"[]",
        b"\xff\xfe{}",
        b'{"format_version": 1}',
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b"[" * 200_000,
        b'{"files":' * 200_000,
        b'{"format_version":' + b"9" * 10_000 + b"}",
        b'{"\\u001b[31m\\u2028red": 1}',
        b'{"' + b"x" * 100_000 + b'": 1}',
    ],
)
def test_a_text_that_is_no_manifest_is_refused(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    assert len(refusal(folder)) < 4000


def test_a_manifest_without_end_is_refused(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as stream:
        stream.write(b" " * archive.MAX_MANIFEST_BYTES)
    assert "manifest.json is larger than it says" in refusal(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path to a value in a JSON document."""
    if path:
        yield path
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


@given(data=st.data(), value=json_values)
def test_a_manifest_with_any_value_anywhere_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, data: st.DataObject, value: object
) -> None:
    raw = json.loads(zipfile.ZipFile(whole).read(MANIFEST))
    *path, last = data.draw(st.sampled_from(list(places(raw))))
    node = raw
    for step in path:
        node = node[step]
    node[last] = value
    folder = tmp_path_factory.getbasetemp() / "manifest-only"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(raw), "utf-8")
    try:
        Bundle(folder)
    except BundleError as error:
        assert error.line().isprintable() and len(error.line()) < 4000


# Writing.


def partial_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["tiny.fusedge", "tiny"])
def test_a_new_bundle_replaces_the_old_one(tmp_path: Path, name: str) -> None:
    write_tiny_bundle(tmp_path / name, description="old")
    write_tiny_bundle(tmp_path / name, description="new")
    assert Bundle(tmp_path / name).manifest.description == "new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["tiny.fusedge", "tiny"])
@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failing_write_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failing: str
) -> None:
    write_tiny_bundle(tmp_path / name, description="old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def no_rename(self: Path, target: Path) -> None:
        if ".partial" in self.name:
            full()
        os.rename(self, target)

    if failing == "fsync":
        monkeypatch.setattr(archive.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "rename", no_rename)
        monkeypatch.setattr(Path, "replace", no_rename)
    with pytest.raises(FusedgeError, match="cannot write the bundle: No space left on device"):
        write_tiny_bundle(tmp_path / name, description="new")
    monkeypatch.undo()
    assert Bundle(tmp_path / name).manifest.description == "old"
    assert Bundle(tmp_path / name).verify() == 3
    assert not partial_files(tmp_path)


def test_an_interrupt_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive.os, "fsync", interrupt)
    for name in ("tiny.fusedge", "tiny"):
        with pytest.raises(KeyboardInterrupt):
            write_tiny_bundle(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny.fusedge", "tiny"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FusedgeError, match=r"cannot write the bundle: .*with -o"):
        write_tiny_bundle(tmp_path / "file" / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FusedgeError, match="Permission denied"):
        write_tiny_bundle(tmp_path / "tiny.fusedge")


def file_here(place: Path) -> None:
    place.write_text("years")


def other_folder_here(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("years")


def file_above(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("years")


def circle_above(place: Path) -> None:
    place.parent.rmdir()
    place.parent.symlink_to(place.parent)


@pytest.mark.parametrize(
    ("name", "prepare", "reason"),
    [
        ("tiny", file_here, "a file lies where the folder should be"),
        ("tiny", other_folder_here, "will not replace this folder"),
        ("tiny.fusedge", other_folder_here, "will not replace this folder"),
        ("tiny", file_above, "is not a folder"),
        ("deep/tiny.fusedge", lambda place: place.parent.write_text(""), "is not a folder"),
        ("tiny", circle_above, "cannot write"),
        ("a\0b", None, "null"),
        ("x" * 240 + ".fusedge", None, "choose a shorter name, with -o"),
    ],
)
def test_a_place_that_would_fail_is_refused_before_any_work(
    tmp_path: Path, name: str, prepare: Callable[[Path], object] | None, reason: str
) -> None:
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / name
    if prepare is not None:
        prepare(place)
    before = sorted(tmp_path.rglob("*"))
    for write in (check_destination, write_tiny_bundle):
        with pytest.raises(FusedgeError, match=reason) as caught:
            write(place)
        assert "with -o" in caught.value.hint or "name a new folder" in caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(self: Path) -> None:
        assert self.parent == tmp_path
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbid)
    for name in ("tiny", "new/folder/tiny.fusedge"):
        with pytest.raises(FusedgeError, match="a folder that you may write to, with -o"):
            check_destination(tmp_path / name)


def test_a_good_place_is_let_through_and_left_as_it_is(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "old")
    write_tiny_bundle(tmp_path / "old.fusedge")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name in ("old", "old.fusedge", "empty", "new", "new.fusedge", "a/b/new.fusedge"):
        check_destination(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "a folder that you may write to"),
        (errno.EACCES, "a folder that you may write to"),
        (errno.EIO, "choose another place"),
    ],
)
def test_a_failing_write_is_told_with_advice_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(archive.os, "fsync", fail)
    with pytest.raises(FusedgeError, match=os.strerror(number)) as caught:
        write_tiny_bundle(tmp_path / "tiny.fusedge")
    assert caught.value.hint.startswith(("choose " + advice, advice))


@pytest.mark.parametrize("name", ["work", "work.fusedge"])
def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years")
    with pytest.raises(FusedgeError, match="will not replace this folder"):
        write_tiny_bundle(tmp_path / name)
    write_tiny_bundle(tmp_path / "tiny")
    (tmp_path / "tiny" / "thesis.txt").write_text("years")
    with pytest.raises(FusedgeError, match=r"thesis\.txt is not listed"):
        write_tiny_bundle(tmp_path / "tiny")
    assert (tmp_path / "tiny/thesis.txt").read_text() == "years"
    assert (tmp_path / name / "thesis.txt").read_text() == "years"


def test_the_working_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FusedgeError, match="will not replace this folder"):
        write_tiny_bundle(Path())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_writing_refuses_files_that_the_manifest_does_not_describe(
    tmp_path: Path, whole: Path
) -> None:
    bundle = Bundle(whole)
    files = content(bundle)
    for wrong in ({**files, "more": b"x"}, {**files, "parts/head.onnx": b"x"}, {}):
        with pytest.raises(ValueError, match="the manifest does not describe"):
            write_bundle(tmp_path / "x.fusedge", bundle.manifest, wrong)
    assert list(tmp_path.iterdir()) == []
