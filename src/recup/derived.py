"""Answers of views kept beside a sealed run, so that the next command need not compute them again.

``<run>/derived/<view>-<digest>-<checksum>.parquet``: the digest is of all the answer
follows from (queries, schema, the sealed tables' footers), so an answer of other tables or
of another recup is never taken; the checksum is of the file itself, so that a damaged one
is not either.  Nothing here is needed: it may be deleted at any time, and where it cannot
be written, answers are computed anew.

Covers names, finding, putting in place and removing.  What is kept and when is
`recup.store`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

_FOOTER = 8
_END_BYTES = 65_536
_LEFT_BEHIND_S = 3600.0
"""A temporary file this old is of a process that was killed."""
_CHUNK_BYTES = 1 << 20


def tables_digest(tables: Path) -> str:
    """Return a digest of sealed tables by their ends: small ones whole, of others at least the footer.

    A footer tells the extent of every column and which rows of which spool files are in it.

    Raises
    ------
    OSError
        They cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(tables.glob("*.parquet")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _FOOTER))
            length = max(int.from_bytes(file.read(_FOOTER)[:4], "little") + _FOOTER, _END_BYTES)
            file.seek(max(0, size - length))
            digest.update(f"{path.name} {size} ".encode() + file.read(length))
    return digest.hexdigest()


def answer_digest(parts: Iterable[str]) -> str:
    """Return the digest of an answer from all that it follows from."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()[:24]


def take_answer(directory: Path, view: str, digest: str, destination: Path) -> bool:
    """Give the kept answer a second name, or copy it; False where there is none that is whole.

    What is taken stays readable when another process removes the answer.
    """
    try:
        candidates = sorted(each for each in directory.iterdir() if each.name.startswith(f"{view}-{digest}-"))
    except OSError:
        return False
    for path in candidates:
        destination.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            try:
                os.link(path, destination)
            except OSError:
                shutil.copyfile(path, destination)
            if path.name == _name(view, digest, _checksum(destination)):
                return True
    destination.unlink(missing_ok=True)
    return False


def keep_answer(made: Path, directory: Path, view: str, digest: str, current: dict[str, str]) -> None:
    """Put a made file in place at once, and remove those that no longer say anything.

    Parameters
    ----------
    current : dict
        Digest of each view whose answer may be kept.

    Raises
    ------
    OSError
        The directory or the disk does not take it.
    """
    name = _name(view, digest, _checksum(made))
    directory.mkdir(exist_ok=True)
    temporary = directory / f".{view}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        shutil.copyfile(made, temporary)
        os.replace(temporary, directory / name)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    for other in directory.glob("*.parquet"):
        of_view, of_digest = [*other.stem.split("-"), ""][:2]
        if current.get(of_view) != of_digest or (of_view == view and other.name != name):
            with contextlib.suppress(OSError):
                other.unlink()
    for other in directory.glob(".*"):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                other.unlink()


def _name(view: str, digest: str, checksum: int) -> str:
    return f"{view}-{digest}-{checksum:08x}.parquet"


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while part := file.read(_CHUNK_BYTES):
            value = zlib.crc32(part, value)
    return value
