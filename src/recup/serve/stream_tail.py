"""What a stream of the spool has gained since it was last read.

Covers one table's file: only new bytes are read, and only whole batches are taken, so a
stream may be cut anywhere and is read again from there.  Dictionaries read before are kept,
since later batches need them.  Keys are looked up in their file when they are shown, and
not kept.  It reads streams that grow; `recup.spool_files` reads those that stand still.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table

READ_BYTES = 2_000_000
"""Bytes taken from a file at a time, so that reading a long run shows how far it is."""
_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_LARGEST_MESSAGE_BYTES = 1 << 30
_KEPT_BATCHES = 8
UNREADABLE = (
    pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, struct.error,
)  # fmt: skip
"""What reading bad bytes may raise."""


class Message(NamedTuple):
    """One message of a stream: what it is, where it begins and ends."""

    kind: int
    begin: int
    end: int
    dictionary: int | None


class GrownBatch(NamedTuple):
    """A new batch and where it stands in the file."""

    rows: pa.RecordBatch
    begin: int
    end: int


def messages(data: bytes) -> Iterator[Message]:
    """Yield the whole messages at the beginning of some bytes of a stream.

    Raises
    ------
    ValueError, struct.error
        They are no messages.
    """
    place = 0
    while place + 8 <= len(data):
        mark, size = struct.unpack_from("<Ii", data, place)
        if mark != _CONTINUATION or not 0 <= size <= _LARGEST_MESSAGE_BYTES:
            raise ValueError("no message where one should begin")
        body = place + 8 + size
        if size == 0 or body > len(data):
            return
        root = Table(data, place + 8 + encode.Get(packer.uoffset, data, place + 8))
        kind = _number(root, 1, number_types.Uint8Flags)
        length = _number(root, 3, number_types.Int64Flags)
        if kind not in (_SCHEMA, _DICTIONARY, _BATCH) or not 0 <= length <= _LARGEST_MESSAGE_BYTES:
            raise ValueError("a message of no known kind or size")
        if body + length > len(data):
            return
        dictionary = None
        if kind == _DICTIONARY:
            header = Table(data, root.Indirect(root.Pos + root.Offset(8)))
            dictionary = _number(header, 0, number_types.Int64Flags)
        yield Message(kind, place, body + length, dictionary)
        place = body + length


def _number(table: Any, field: int, flags: Any) -> int:
    place = table.Offset(4 + 2 * field)
    return int(table.Get(flags, table.Pos + place)) if place else 0


class StreamTail:
    """One stream, read as it grows.

    Parameters
    ----------
    is_held : bool
        Whether the file is kept open, so that its last bytes can be read after it was removed.

    Attributes
    ----------
    offset : int
        Bytes read: the end of the last whole batch.
    problem : str or None
        Why nothing more is read; None while all is well.
    """

    def __init__(self, path: Path, *, is_held: bool = False):
        self.path = path
        self.offset = 0
        self._is_held = is_held
        self._descriptor = -1
        self.problem: str | None = None
        self._header = b""
        self._dictionaries: dict[int, bytes] = {}

    def size(self) -> int:
        """Return the bytes the file has now; 0 where it is gone or no file."""
        try:
            return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else os.lstat(self.path).st_size
        except OSError:
            return 0

    def read(self, upto: int | None = None, limit: int = READ_BYTES) -> list[GrownBatch]:
        """Return the whole batches that are new, up to an offset of the file and about `limit` bytes."""
        if self.problem is not None:
            return []
        upto = self.size() if upto is None else upto
        while self.offset < upto:
            wanted = min(limit, upto - self.offset)
            batches: list[GrownBatch] = []
            try:
                data = self._bytes(self.offset, wanted)
            except OSError as reason:
                self.problem = f"{self.path.name} cannot be read: {reason.strerror}"
                return []
            try:
                self._take(data, batches)
            except (OSError, *UNREADABLE) as reason:  # Arrow reports bad data as OSError too
                self.problem = f"{self.path.name} is damaged after {self.offset} bytes: {reason}"[:300]
                return batches
            if batches or wanted < limit:
                return batches
            limit *= 4  # one batch larger than that
        return []

    def again(self, begin: int, end: int) -> pa.RecordBatch:
        """Return a batch read before; texts of its categories may be of later batches."""
        return self._decoded(self._bytes(begin, end - begin))[0]

    def _bytes(self, begin: int, count: int) -> bytes:
        if self._descriptor >= 0:
            return os.pread(self._descriptor, count, begin)
        # A link could lead anywhere on this disk.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if self._is_held:
            self._descriptor = descriptor
            weakref.finalize(self, os.close, descriptor)
            return os.pread(descriptor, count, begin)
        try:
            return os.pread(descriptor, count, begin)
        finally:
            os.close(descriptor)

    def _take(self, data: bytes, batches: list[GrownBatch]) -> None:
        """Append the whole batches of some bytes; where bytes are bad, those before them, and raise."""
        found: list[Message] = []
        bad: Exception | None = None
        try:
            found.extend(messages(data))
        except UNREADABLE as reason:
            bad = reason
        while found and found[-1].kind == _DICTIONARY:  # they come with the batch that needs them
            found.pop()
        if found and not self._header and found[0].kind == _SCHEMA:
            first = found.pop(0)
            self._header = data[: first.end]
            self.offset += 0 if found else first.end
        if found:
            whole = [each for each in found if each.kind == _BATCH]
            rows = self._decoded(data[found[0].begin : found[-1].end])
            batches += [
                GrownBatch(each, self.offset + at.begin, self.offset + at.end)
                for each, at in zip(rows, whole, strict=True)
            ]
            for each in found:
                if each.dictionary is not None:
                    self._dictionaries[each.dictionary] = data[each.begin : each.end]
            self.offset += found[-1].end
        if bad is not None:
            raise bad

    def _decoded(self, data: bytes) -> list[pa.RecordBatch]:
        stream = b"".join((self._header, *self._dictionaries.values(), data))
        batches = list(pa.ipc.open_stream(pa.BufferReader(stream)))
        for batch in batches:
            batch.validate(full=True)
            for column in batch.columns:  # which leaves the text of dictionaries unchecked
                if pa.types.is_dictionary(column.type):
                    column.dictionary.validate(full=True)
        return batches


class KeyTail:
    """The keys of one spool as it grows: where each stands, and its text when asked for."""

    def __init__(self, path: Path, *, is_held: bool = False):
        self.stream = StreamTail(path, is_held=is_held)
        self._first_ids: list[int] = []
        self._places: list[tuple[int, int, int]] = []
        self._kept: OrderedDict[int, list[str | None]] = OrderedDict()

    def read(self) -> Iterator[tuple[int, list[str | None]]]:
        """Yield new keys as (number of the first, texts); numbers follow one another."""
        while batches := self.stream.read():
            for rows, begin, end in batches:
                if rows.num_rows:
                    first = int(rows.column("key_id")[0].as_py())
                    texts = rows.column("key").to_pylist()
                    self._first_ids.append(first)
                    self._places.append((begin, end, len(texts)))
                    self._keep(len(self._places) - 1, texts)
                    yield first, texts

    def text(self, key_id: int) -> str | None:
        """Return the text of a key; None where it is lost."""
        place = bisect.bisect_right(self._first_ids, key_id) - 1
        if place < 0 or key_id - self._first_ids[place] >= self._places[place][2]:
            return None
        if place not in self._kept:
            with contextlib.suppress(OSError, *UNREADABLE):
                begin, end, _ = self._places[place]
                self._keep(place, self.stream.again(begin, end).column("key").to_pylist())
        texts = self._kept.get(place)
        return None if texts is None else texts[key_id - self._first_ids[place]]

    def _keep(self, place: int, texts: list[str | None]) -> None:
        self._kept[place] = texts
        while len(self._kept) > _KEPT_BATCHES:
            self._kept.popitem(last=False)
