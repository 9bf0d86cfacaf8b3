"""Tests of unpacking: honest archives come out whole; hostile and damaged ones leave nothing behind."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dagm_jax.data import archive as module
from dagm_jax.data.archive import extract
from dagm_jax.errors import UserError


def archive(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return path


def archive_of_one(path: Path, name: str, mode: int = 0) -> Path:
    """An archive with one entry of any name and mode."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.create_system = 3
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("fine", b"1")
        target.writestr(info, b"/etc")
    return path


def assert_refused(path: Path, match: str) -> None:
    """It is refused in one line, and the folder beside it is as it was."""
    with pytest.raises(UserError, match=match) as caught:
        extract(path, path.parent / "deep" / "target")
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, "deep"])
    assert list((path.parent / "deep").iterdir()) == []


def test_an_honest_archive_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """Would catch: files lost, emptied or moved to other folders."""
    image = np.random.default_rng(0).bytes(99_999)
    files = {"Class1/Train/0576.PNG": image, "Class1/Test/": b"", "Class1/x..y.txt": b""}
    extract(archive(tmp_path / "a.zip", files), tmp_path / "out" / "target")
    found = {p.relative_to(tmp_path / "out/target").as_posix() for p in (tmp_path / "out").rglob("*")} - {"."}
    assert found == {"Class1", "Class1/Train", "Class1/Train/0576.PNG", "Class1/Test", "Class1/x..y.txt"}
    assert (tmp_path / "out/target/Class1/Train/0576.PNG").read_bytes() == image
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["target"]


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "//evil", "C:/evil", "c:evil", "..\\evil", "a\\b", "..", "a/.."],
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    """Would catch: files written anywhere on the disk by an archive from the net."""
    assert_refused(archive_of_one(tmp_path / "a.zip", name), "leads out of")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR], ids=["link", "pipe", "device"])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    """Would catch: a link to / through which later files of the archive leave the folder."""
    path = archive_of_one(tmp_path / "a.zip", "Class1", kind | 0o777)
    assert_refused(path, "'Class1', which is a link or a special file")


def test_the_number_and_size_of_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a disk filled by a small archive, or by many honest files, each below a limit of its own."""
    bomb = archive(tmp_path / "a.zip", {"small": b"1", "big": bytes(8 << 20)})
    assert_refused(bomb, r"grows from \d+ to 8388609 bytes, beyond the limit of 50 to 1")
    path = archive(tmp_path / "a.zip", {f"{i}": bytes(600) for i in range(10)}, zipfile.ZIP_STORED)
    for limit, value, match in (
        ("MAX_BYTES", 5999, "unpacks to 6000 bytes, more than the limit of 5999"),
        ("MAX_FILES", 9, "holds 10 files, more than the limit of 9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            assert_refused(path, match)
    extract(path, tmp_path / "target")


def test_a_header_that_lies_about_the_size_writes_no_more_than_it_said(tmp_path: Path) -> None:
    """Would catch: limits that are held against the table of contents alone, which the archive's maker wrote."""
    path = archive(tmp_path / "a.zip", {"big": bytes(8 << 20)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    assert struct.unpack_from("<I", data, entry + 24)[0] == 8 << 20
    struct.pack_into("<I", data, entry + 24, 100)
    path.write_bytes(data)
    assert_refused(path, "is not a whole zip archive")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_and_other_files_are_refused(tmp_path: Path, method: int) -> None:
    """Would catch: a download that was cut off, or a page of HTML, unpacked in part; a trace of a decompressor, whose
    errors are not zipfile's."""
    path = archive(tmp_path / "a.zip", {"a": np.random.default_rng(0).bytes(5000)}, method)
    whole = path.read_bytes()
    flipped = [
        whole[:place] + bytes(b ^ 255 for b in whole[place : place + 8]) + whole[place + 8 :]
        for place in range(60, 3000, 97)
    ]
    for data in (whole[:-30], b"<html>", b"", *flipped):
        path.write_bytes(data)
        assert_refused(path, "is not a whole zip archive")


def test_what_zipfile_cannot_unpack_is_refused(tmp_path: Path) -> None:
    """Would catch: zipfile's RuntimeError about a password, or an error of the file system, as a traceback."""
    assert_refused(archive(tmp_path / "a.zip", {"a": b"1", "a/b": b"2"}), "is not a whole zip archive")
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        assert_refused(archive(tmp_path / "a.zip", {"a": b"1"}, method), "packed otherwise than by deflate")
    path = archive(tmp_path / "a.zip", {"a": b"1"})
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\x01\x02") + 8, 1)
    path.write_bytes(data)
    assert_refused(path, "is not a whole zip archive .*encrypted")
