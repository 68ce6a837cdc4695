"""Rows between the hooks that give them and the stream that writes them: packed, or as lists.

Where `recup.packed_rows` was compiled, rows are packed as they come and columns are made
without Python objects.  Elsewhere a table's rows are one list of values; the result is the
same, at about three times the cost.  Both forms have the same methods, which `recup.spool`
calls; nothing else should.

Covers waiting rows, numbers of keys, and batches.  It does not cover files.

Why lists of flat values, where it is lists: `list.extend(tuple)` is one atomic call under
the GIL, costs about 0.1 us, keeps no tuple alive for the garbage collector to visit, and a
column is then a slice, `values[i::width]`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from recup.arrow_stream import ArrowStream, numbered
from recup.schema import Column, Table

try:
    from recup import packed_rows
except ImportError:  # built without a C compiler
    packed_rows = None  # type: ignore[assignment]

_CHUNK_ROWS = 8192
_LETTERS = {"int64": "i", "float64": "f", "bool": "b", "text": "t", "category": "c", "key": "k"}


class WaitingRows(Protocol):
    """Rows of one table that wait to be written."""

    def put(self, row: tuple[Any, ...], /) -> None:
        """Add one row, whose values must be those of the table's columns."""

    def __len__(self) -> int: ...

    def take(self) -> Any:
        """Return the oldest rows, a chunk of them at most, for `Form.batch`; None when no row waits."""

    def drop_oldest(self, value_limit: int) -> int:
        """Drop rows when more values than that wait; returns the number of rows dropped."""

    def take_degraded_count(self) -> int:
        """Return how many values were not of their column's type since the last call."""

    def clear(self) -> None:
        """Forget all that waits."""


class Form(Protocol):
    """How one spool's rows wait, and how batches are made of them."""

    @property
    def key_count(self) -> int:
        """Keys remembered."""

    def rows(self, table: Table) -> WaitingRows:
        """Return a place for rows of the table."""

    def stream(self, columns: Sequence[Column], metadata: dict[str, str]) -> ArrowStream:
        """Return the stream of one table's file."""

    def batch(self, stream: ArrowStream, rows: Any, taken: Any) -> bytes:
        """Return the messages of what was taken of the rows."""

    def row_count(self, taken: Any) -> int:
        """Return the number of rows in what was taken."""

    def new_keys(self, stream: ArrowStream) -> tuple[bytes, int]:
        """Return the messages of the keys numbered since the last call, and how many they are."""

    @property
    def new_key_count(self) -> int:
        """Keys numbered since `new_keys` was called."""

    def forget_keys(self) -> None:
        """Number every key anew when it is met again."""

    def forget(self, streams: Iterable[ArrowStream]) -> None:
        """Repeat all keys, and the dictionaries of these streams."""


def letters(columns: Sequence[Column]) -> bytes:
    """Return the kinds of the columns as `recup.packed_rows` wants them."""
    return "".join(_LETTERS[column.kind] for column in columns).encode()


class ListRows:
    """Rows of one table that wait, as one list of values."""

    def __init__(self, width: int):
        self._values: list[Any] = []
        self._width = width
        self._taking = threading.Lock()
        self.degraded_count = 0
        self.put: Callable[[tuple[Any, ...]], None] = self._values.extend

    def __len__(self) -> int:
        return len(self._values) // self._width

    def take(self) -> list[list[Any]] | None:
        """Return columns of the oldest rows, at most a chunk of them; None when no row waits."""
        with self._taking:
            values = self._values[: _CHUNK_ROWS * self._width]
            del self._values[: len(values)]
        return [values[i :: self._width] for i in range(self._width)] if values else None

    def drop_oldest(self, value_limit: int) -> int:
        """Drop half of the rows when more values than that wait; returns the number of rows dropped."""
        if len(self._values) <= value_limit or not self._taking.acquire(timeout=0.05):
            return 0
        try:
            surplus = len(self) - value_limit // 2 // self._width
            del self._values[: surplus * self._width]
            return surplus
        finally:
            self._taking.release()

    def take_degraded_count(self) -> int:
        """Return how many values were not of their column's type since the last call."""
        count, self.degraded_count = self.degraded_count, 0
        return count

    def clear(self) -> None:
        """Forget all that waits."""
        self._values.clear()


class ListForm:
    """Rows as lists: what any Python can do."""

    def __init__(self, show_key: Callable[[Any], str]):
        self._show_key = show_key
        self._ids: dict[Any, int] = {None: -1}
        self._new: list[Any] = []
        self._next_id = 0

    def rows(self, table: Table) -> ListRows:
        """Return a place for rows of the table."""
        return ListRows(len(table.columns))

    def stream(self, columns: Sequence[Column], metadata: dict[str, str]) -> ArrowStream:
        """Return the stream of one table's file."""
        return ArrowStream(columns, metadata, self._intern)

    def batch(self, stream: ArrowStream, rows: ListRows, columns: list[list[Any]]) -> bytes:
        """Return the messages of what `take` gave."""
        before = stream.degraded_count
        data = stream.batch(columns)
        rows.degraded_count += stream.degraded_count - before
        return data

    @staticmethod
    def row_count(columns: list[list[Any]]) -> int:
        """Return the number of rows in what `take` gave."""
        return len(columns[0])

    def new_keys(self, stream: ArrowStream) -> tuple[bytes, int]:
        """Return the messages of the keys numbered since the last call, and how many they are."""
        keys, self._new = self._new, []
        ids = range(self._next_id - len(keys), self._next_id)
        return stream.batch([ids, list(map(self._show_key, keys)), [type(key).__name__ for key in keys]]), len(keys)

    @property
    def key_count(self) -> int:
        """Keys remembered."""
        return len(self._ids) - 1

    @property
    def new_key_count(self) -> int:
        """Keys numbered since `new_keys` was called."""
        return len(self._new)

    def forget_keys(self) -> None:
        """Number every key anew when it is met again."""
        self._ids = {None: -1}
        self._new.clear()

    def forget(self, streams: Iterable[ArrowStream]) -> None:
        """Repeat all keys, and the dictionaries of these streams."""
        self.forget_keys()
        for stream in streams:
            stream.forget()

    def _intern(self, values: Sequence[Any]) -> npt.NDArray[Any]:
        ids = self._ids
        try:
            return numbered(ids, values)
        except (KeyError, TypeError):
            pass
        new = [value for value in dict.fromkeys(values) if value not in ids]
        first = self._next_id
        self._next_id += len(new)
        ids.update(zip(new, range(first, self._next_id), strict=True))
        self._new += new
        return numbered(ids, values)


class PackedForm:
    """Rows packed by `recup.packed_rows`."""

    def __init__(self, show_key: Callable[[Any], str]):
        self._key_texts = packed_rows.KeyTexts(show_key)
        self._keys = packed_rows.KeyNumbers()
        self._key_types: dict[str, int] = {}
        self._encoders: WeakKeyDictionary[ArrowStream, packed_rows.Encoder] = WeakKeyDictionary()

    def rows(self, table: Table) -> packed_rows.Rows:
        """Return a place for rows of the table."""
        return packed_rows.Rows(letters(table.columns), self._key_texts)

    def stream(self, columns: Sequence[Column], metadata: dict[str, str]) -> ArrowStream:
        """Return the stream of one table's file."""
        stream = ArrowStream(columns, metadata, _no_values)
        self._encoders[stream] = packed_rows.Encoder(letters(columns), [column.null_value for column in columns])
        return stream

    def batch(self, stream: ArrowStream, rows: packed_rows.Rows, block: packed_rows.Block) -> bytes:
        """Return the messages of what `take` gave."""
        return stream.ready_batch(*self._encoders[stream].columns(block, self._keys))

    @staticmethod
    def row_count(block: packed_rows.Block) -> int:
        """Return the number of rows in what `take` gave."""
        return len(block)

    def new_keys(self, stream: ArrowStream) -> tuple[bytes, int]:
        """Return the messages of the keys numbered since the last call, and how many they are."""
        first, count, offsets, data, types = self._keys.new()
        known = len(self._key_types)
        codes = np.array([self._key_types.setdefault(each, len(self._key_types)) for each in types], dtype="<i4")
        dictionaries = []
        if len(self._key_types) > known:
            texts = [each.encode() for each in self._key_types]
            places = np.cumsum([0, *map(len, texts)], dtype="<i4")
            dictionaries.append((2, len(texts), places.tobytes(), b"".join(texts)))
        ids = np.arange(first, first + count, dtype="<i8")
        return stream.ready_batch(
            [count, 0] * 3, [b"", ids.tobytes(), b"", offsets, data, b"", codes.tobytes()], dictionaries
        ), count

    @property
    def key_count(self) -> int:
        """Keys remembered."""
        return len(self._keys)

    @property
    def new_key_count(self) -> int:
        """Keys numbered since `new_keys` was called."""
        return self._keys.new_count

    def forget_keys(self) -> None:
        """Number every key anew when it is met again."""
        self._keys.forget()

    def forget(self, streams: Iterable[ArrowStream]) -> None:
        """Repeat all keys, and the dictionaries of these streams."""
        self.forget_keys()
        self._key_types.clear()
        for stream in streams:
            self._encoders[stream].forget()


def _no_values(values: Sequence[Any]) -> npt.NDArray[Any]:
    raise TypeError("keys of packed rows are numbered before they come here")


def best_form(show_key: Callable[[Any], str]) -> Form:
    """Return the packed form where it was built, else lists."""
    return ListForm(show_key) if packed_rows is None else PackedForm(show_key)
