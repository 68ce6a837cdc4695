"""One table's file in a spool: whole batches appended, or nothing.

Covers a disk that takes a part of a batch or none, files that are removed or replaced while
they are written, and files at rest.  It does not cover what is lost by that (`recup.spool`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from recup.arrow_stream import ArrowStream

_REST_S = 3.0
"""A file nothing was written to for this long is closed: descriptors are the program's, and it may need many."""


class TableFile:
    """One table's file: appends whole batches, or nothing.

    Attributes
    ----------
    is_torn : bool
        Whether its end is not that of a batch, and could not be made so.
    """

    def __init__(self, path: Path, stream: ArrowStream):
        self.path = path
        self.stream = stream
        self.row_count = 0
        self.is_torn = False
        self._descriptor = -1
        self._inode = -1
        self._size = 0
        self._written_at_s = 0.0

    def write(self, data: bytes, row_count: int) -> None:
        """Append one batch.  Where that fails the file ends where it ended before, or `is_torn`."""
        if self._descriptor < 0:
            self._open()
        try:
            self._append(data)
        except BaseException:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                self.is_torn = True
            raise
        self._size += len(data)
        self.row_count += row_count
        self._written_at_s = time.monotonic()

    @property
    def is_gone(self) -> bool:
        """Whether the file that was written is no longer there."""
        try:
            if self._descriptor >= 0:
                return os.fstat(self._descriptor).st_nlink == 0
            return self._inode >= 0 and os.stat(self.path).st_ino != self._inode
        except OSError as reason:
            return reason.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

    def _open(self) -> None:
        if self._inode >= 0:
            self._open_again()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self.path, flags, 0o644)
            self._size = 0
            header = self.stream.header()
            self._append(header)
            self._size = len(header)
            self._inode = os.fstat(self._descriptor).st_ino
        except BaseException:
            if self._descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
                self.close()
            raise

    def _open_again(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        found = os.fstat(self._descriptor)
        if (found.st_ino, found.st_size) != (self._inode, self._size):
            self.close()
            raise FileNotFoundError(errno.ENOENT, "replaced while being written", str(self.path))

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def rest(self, now_s: float) -> None:
        """Close the file when nothing was written for a while; the next write opens it again."""
        if self._descriptor >= 0 and now_s - self._written_at_s > _REST_S:
            self.close()

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
