"""Archives from the net, unpacked so that nothing lands outside the target and nothing fills the disk."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dagm_jax.data.layouts import printable
from dagm_jax.types import UserError

_CHUNK_BYTES = 1 << 20
_ENCRYPTED = 0x1
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold: files, bytes in all, and bytes for each packed byte of a file.

    A class of DAGM 2007 has at most 2,612 files and 0.6 GB; its pictures, being packed already, hardly shrink. The
    first MiB of a file does not count for the ratio: a short text file packs well.
    """

    num_files: int = 10_000
    num_bytes: int = 4 << 30
    ratio: int = 50


# What zipfile raises for a damaged archive, its decompressors' own errors among it.
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
)


def extract(archive: Path, target: Path, limits: Limits = Limits()) -> None:
    """Unpacks the zip ``archive`` into the new folder ``target``, which appears only when it is whole.

    Every entry is looked at before the first is written. Raises UserError, and leaves nothing behind, for what is
    no zip, is damaged or encrypted, for names that lead out of the target, links and other special files, and
    beyond ``limits``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as source:
            entries = source.infolist()
            _check(entries, archive, limits)
            for entry in entries:
                _unpack(source, entry, scratch)
        os.replace(scratch, target)
    except _DAMAGE as error:
        raise _refusal(archive, f"is not a whole zip archive ({error})") from error
    except OSError as error:
        # bz2 says "Invalid data stream" by an OSError without a number; the disk's own have one.
        if error.errno is not None:
            raise
        raise _refusal(archive, f"is not a whole zip archive ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refusal(archive: Path, why: str) -> UserError:
    return UserError(f"{printable(archive)} {printable(why)}; delete it and download it again")


def _check(entries: list[zipfile.ZipInfo], archive: Path, limits: Limits) -> None:
    """Nothing; raises UserError for an archive that must not be unpacked."""
    if len(entries) > limits.num_files:
        raise _refusal(archive, f"holds {len(entries)} files, more than the limit of {limits.num_files}")
    total = sum(entry.file_size for entry in entries)
    if total > limits.num_bytes:
        raise _refusal(archive, f"unpacks to {total} bytes, more than the limit of {limits.num_bytes}")
    paths: set[PurePosixPath] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        problem = _problem(entry, limits)
        if problem is None and path in paths:
            problem = "is there twice"
        if problem is not None:
            raise _refusal(archive, f"holds '{entry.filename}', which {problem}")
        paths.add(path)
    files = {PurePosixPath(entry.filename) for entry in entries if not entry.is_dir()}
    for path in paths:
        if files.intersection(path.parents):
            raise _refusal(archive, f"holds '{path.parent}', which is both a file and a folder")


def _problem(entry: zipfile.ZipInfo, limits: Limits) -> str | None:
    """Why this entry must not be unpacked, or None."""
    # What zipfile cut off after a NUL, and what Windows takes for separators and drives, are no names of ours.
    name = entry.orig_filename
    if "\0" in name or "\\" in name:
        return "is a name with a backslash or NUL"
    path = PurePosixPath(name)
    if path.is_absolute() or _DRIVE.match(name) or ".." in path.parts or not path.parts:
        return "leads out of the archive's own folder"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if entry.file_size > limits.ratio * entry.compress_size + _CHUNK_BYTES:
        return (
            f"grows from {entry.compress_size} to {entry.file_size} bytes, beyond the limit of"
            f" {limits.ratio} to 1"
        )
    return None


def _unpack(source: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Writes one checked entry below ``folder``; reading stops at the size that was checked, or fails."""
    path = folder.joinpath(*PurePosixPath(entry.filename).parts)
    if entry.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open(entry) as packed, path.open("xb") as file:
        shutil.copyfileobj(packed, file, _CHUNK_BYTES)
