"""Rows between the hooks that give them and the stream that writes them.

A table's rows wait as one list of values; those of compiled hooks wait as they are to be
written (`recup.columns.Slots`).  Where that module was compiled, batches are made of them
there, else in Python: the result is the same, at about twice the cost.  Both forms have
the same methods, which `recup.spool` calls; nothing else should.

Covers waiting rows, numbers of keys, and batches.  It does not cover files.

Why lists of flat values: `list.extend(tuple)` is one atomic call under the GIL, costs
about 0.1 us, keeps no tuple alive for the garbage collector to visit, and touches little
memory.  The hooks that Dask calls most have numbers and references stored side by side
instead; giving texts their numbers in the hook was tried, and cost the event loop, whose
caches hold other things, more than it spared the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy.typing as npt

from recup.arrow_stream import ArrowStream, compressor, numbered
from recup.schema import Column, Table

try:
    from recup import columns as compiled
    from recup.columns import framed
except ImportError:  # built without a C compiler, or left over from an older recup
    compiled = None  # type: ignore[assignment]

_CHUNK_ROWS = 8192
_LETTERS = {"int64": "i", "float64": "f", "bool": "b", "text": "t", "category": "c", "key": "k"}


class Form(Protocol):
    """How batches are made of one spool's rows."""

    takes_slots: bool
    """Whether rows of compiled hooks can be made batches of."""

    @property
    def key_count(self) -> int:
        """Keys remembered."""

    def stream(self, columns: Sequence[Column], metadata: dict[str, str]) -> ArrowStream:
        """Return the stream of one table's file."""

    def batch(self, stream: ArrowStream, values: Any) -> tuple[bytes, int]:
        """Return the messages of rows as `Rows.take` gave them, and how many values were not of their column's type."""

    def new_keys(self, stream: ArrowStream) -> tuple[bytes, int]:
        """Return the messages of the keys numbered since the last call, and how many they are."""

    @property
    def new_key_count(self) -> int:
        """Keys numbered since `new_keys` was called."""

    def forget_keys(self) -> None:
        """Number every key anew when it is met again."""

    def forget(self, streams: Iterable[ArrowStream]) -> None:
        """Repeat all keys, and the dictionaries of these streams."""

    def let_go(self) -> None:
        """Let go of the keys of the last batches, which may be large."""


def letters(columns: Sequence[Column]) -> bytes:
    """Return the kinds of the columns as `recup.columns` wants them."""
    return "".join(_LETTERS[column.kind] for column in columns).encode()


class Rows:
    """Rows of one table that wait to be written: as one list of values, and those of compiled hooks as they are."""

    def __init__(self, table: Table):
        self._values: list[Any] = []
        self._columns = table.columns
        self._width = len(table.columns)
        self._taking = threading.Lock()
        self._slots: compiled.Slots | None = None
        self.put: Callable[[tuple[Any, ...]], None] = self._values.extend
        """Add one row, whose values must be those of the table's columns."""

    def __len__(self) -> int:
        return len(self._values) // self._width + (0 if self._slots is None else len(self._slots))

    @property
    def value_count(self) -> int:
        """Values that wait."""
        return len(self._values) + (0 if self._slots is None else self._width * len(self._slots))

    def slots(self) -> compiled.Slots:
        """Return where compiled hooks put rows of this table."""
        if self._slots is None:
            self._slots = compiled.Slots(letters(self._columns), [column.null_value for column in self._columns])
        return self._slots

    def take(self) -> tuple[Any, int]:
        """Return the oldest rows for `Form.batch`, of a chunk of them at most, and their number; they wait no longer."""
        with self._taking:
            values = self._values[: _CHUNK_ROWS * self._width]
            del self._values[: len(values)]
        if values or self._slots is None:
            return values, len(values) // self._width
        return self._slots, self._slots.take()

    def let_go(self) -> None:
        """Let go of the rows taken last: they have been written, and the keys in them may be large."""
        if self._slots is not None:
            self._slots.let_go()

    def drop_oldest(self, value_limit: int) -> int:
        """Drop rows down to half the limit when more values than that wait; returns the number of rows dropped."""
        dropped = 0 if self._slots is None else self._slots.drop_oldest(value_limit // self._width)
        if len(self._values) <= value_limit or not self._taking.acquire(timeout=0.05):
            return dropped
        try:
            surplus = len(self._values) // self._width - value_limit // 2 // self._width
            del self._values[: surplus * self._width]
            return dropped + surplus
        finally:
            self._taking.release()

    def clear(self) -> None:
        """Forget all that waits; in a forked child, whose parent may have been taking."""
        self._taking = threading.Lock()
        self._values.clear()
        if self._slots is not None:
            self._slots.clear()


class PythonForm:
    """Batches made in Python."""

    takes_slots = False

    def __init__(self, show_key: Callable[[Any], str]):
        self._show_key = show_key
        self._ids: dict[Any, int] = {None: -1}
        self._new: list[Any] = []
        self._next_id = 0
        self._compress = compressor()

    def stream(self, columns: Sequence[Column], metadata: dict[str, str]) -> ArrowStream:
        """Return the stream of one table's file."""
        return ArrowStream(columns, metadata, self._intern, self._compress)

    def batch(self, stream: ArrowStream, values: Any) -> tuple[bytes, int]:
        """Return the messages of rows, and how many values were not of their column's type."""
        width, before = len(stream.columns), stream.degraded_count
        data = stream.batch([values[i::width] for i in range(width)])
        return data, stream.degraded_count - before

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

    def let_go(self) -> None:
        """Do nothing: keys are kept by their numbers here."""

    def _intern(self, values: Sequence[Any]) -> npt.NDArray[Any]:
        ids = self._ids
        try:
            return numbered(ids, values)
        except (KeyError, TypeError):
            pass
        new = [value for value in dict.fromkeys(values) if value not in ids]
        ids.update(zip(new, range(self._next_id, self._next_id + len(new)), strict=True))
        # Should memory fail before, no number has been given: keys that are told have theirs.
        self._new += new
        self._next_id += len(new)
        return numbered(ids, values)


class CompiledForm:
    """Batches made by `recup.columns`."""

    takes_slots = True

    def __init__(self, show_key: Callable[[Any], str]):
        self._keys = compiled.KeyNumbers(show_key)
        self._compress = compressor()
        self._encoders: WeakKeyDictionary[ArrowStream, compiled.Encoder] = WeakKeyDictionary()

    def stream(self, columns: Sequence[Column], metadata: dict[str, str]) -> ArrowStream:
        """Return the stream of one table's file."""
        stream = ArrowStream(columns, metadata, _no_values, self._compress, framed)
        self._encoders[stream] = compiled.Encoder(letters(columns), [column.null_value for column in columns])
        return stream

    def batch(self, stream: ArrowStream, values: Any) -> tuple[bytes, int]:
        """Return the messages of rows, and how many values were not of their column's type."""
        encoder = self._encoders[stream]
        before = encoder.degraded_count
        data = stream.ready_batch(*encoder.columns(values, self._keys))
        return data, encoder.degraded_count - before

    def new_keys(self, stream: ArrowStream) -> tuple[bytes, int]:
        """Return the messages of the keys numbered since the last call, and how many they are."""
        values = self._keys.new()
        return self.batch(stream, values)[0], len(values) // len(stream.columns)

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
        for stream in streams:
            self._encoders[stream].forget()

    def let_go(self) -> None:
        """Let go of the keys of the last batches, which may be large."""
        self._keys.let_go()


def _no_values(values: Sequence[Any]) -> npt.NDArray[Any]:
    raise TypeError("keys are numbered by the compiled encoder")


def best_form(show_key: Callable[[Any], str]) -> Form:
    """Return the compiled form where it was built, else the one in Python."""
    return PythonForm(show_key) if compiled is None else CompiledForm(show_key)
