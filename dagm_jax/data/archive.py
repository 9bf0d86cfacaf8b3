"""Zip archives from the net, unpacked so that nothing lands outside the target and nothing fills the disk."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

from dagm_jax.errors import UserError, printable

# Limits of an archive: files, bytes in all, and bytes for each packed byte. A class of DAGM 2007 has at most 2,612
# files and 0.6 GB; its pictures, being packed already, hardly shrink.
MAX_FILES, MAX_BYTES, MAX_RATIO = 10_000, 4 << 30, 50
# Names that lead elsewhere, here or on Windows: absolute, with a drive, a backslash, or a part "..".
_OUTSIDE = re.compile(r"/|[A-Za-z]:|.*\\|(.*/)?\.\.(/|$)", re.DOTALL)
# Errors of zipfile and its decompressor for a damaged archive, and of files in place of folders.
_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, ValueError),
    *(zlib.error, FileExistsError, NotADirectoryError, IsADirectoryError),
)


def extract(archive: Path, target: Path) -> None:
    """Unpacks the zip ``archive`` into the new folder ``target``, which appears only when it is whole.

    Raises UserError, and leaves nothing behind, for what is no zip, is damaged or encrypted, for names that lead out
    of the target, links and other special files, and beyond the limits.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as source:
            problem = _find_problem(source.infolist())
            if problem is not None:
                raise _refusal(archive, problem)
            # Reads no more of a file than the size that was checked, and raises where there is more.
            source.extractall(scratch)
        os.replace(scratch, target)
    except _DAMAGE as error:
        raise _refusal(archive, f"is not a whole zip archive ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refusal(archive: Path, why: str) -> UserError:
    return UserError(f"{printable(archive)} {printable(why)}; delete it and download it again")


def _find_problem(entries: list[zipfile.ZipInfo]) -> str | None:
    """Why an archive must not be unpacked, or None."""
    if len(entries) > MAX_FILES:
        return f"holds {len(entries)} files, more than the limit of {MAX_FILES}"
    size, packed = (sum(getattr(e, name) for e in entries) for name in ("file_size", "compress_size"))
    if size > MAX_BYTES:
        return f"unpacks to {size} bytes, more than the limit of {MAX_BYTES}"
    if size > MAX_RATIO * packed:
        return f"grows from {packed} to {size} bytes, beyond the limit of {MAX_RATIO} to 1"
    for entry in entries:
        # orig_filename: zipfile's own name is cut off at a NUL.
        if "\0" in entry.orig_filename or _OUTSIDE.match(entry.orig_filename):
            return f"holds '{entry.orig_filename}', which leads out of the archive's own folder"
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"holds '{entry.filename}', which is a link or a special file"
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"holds '{entry.filename}', which is packed otherwise than by deflate"
    return None
