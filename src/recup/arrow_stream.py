"""Rows of a table to an Arrow IPC stream, without pyarrow.

pyarrow would do this in ten lines, but importing it adds 24 MB to every scheduler and
worker, and writing with it 50 MB more; a recorder has to be smaller than that.  What is
written here is the documented format (https://arrow.apache.org/docs/format/Columnar.html,
"IPC Streaming Format") and any Arrow library reads it; the tests read it with pyarrow.

Covers writing: schema, record batches with zstd-compressed buffers, replaced
dictionaries; columns of the kinds in `recup.schema.KINDS`.  It does not cover reading.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt

from recup.schema import Column

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CONTINUATION = b"\xff\xff\xff\xff"
END_OF_STREAM = _CONTINUATION + b"\0\0\0\0"
_ZSTD, _METADATA_V5 = 1, 4
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_INT, _FLOAT, _UTF8, _BOOL = 2, 3, 5, 6
_ARROW_TYPE = {"int64": (_INT, 64), "key": (_INT, 32), "float64": (_FLOAT, 64), "text": (_UTF8, 0), "bool": (_BOOL, 0)}
SMALLEST_COMPRESSED = 2048
"""Below this many bytes a zstd frame costs more time than it saves space."""
_ZSTD_LEVEL = -1
"""A quarter less time than level 1 on batches of one flush, for as good a ratio; sealing compresses anew."""
DICTIONARY_LIMIT = 256
"""Categories kept from batch to batch; past it a batch brings only its own, not all again."""

Buffer = bytes | memoryview | bytearray
Intern = Callable[[Sequence[Any]], npt.NDArray[Any]]
Dictionary = tuple[int, int, Buffer, Buffer]
Compress = Callable[[Buffer], bytes]


# ---------------------------------------------------------------- values to buffers


def _validity(mask: Any) -> tuple[bytes, int]:
    """Bitmap of the non-null rows and the number of nulls."""
    return np.packbits(mask, bitorder="little").tobytes(), int(len(mask) - mask.sum())


def _fixed(data: npt.NDArray[Any], null_value: int | None) -> tuple[Buffer, int, Buffer]:
    """Return validity, nulls and data of numbers, one of which may stand for null."""
    if null_value is not None:
        mask = data != null_value
        if not mask.all():
            return (*_validity(mask), data.tobytes())
    return b"", 0, data.tobytes()


def _numbers(values: Sequence[Any], code: str, null_value: int | None) -> tuple[Buffer, int, Buffer, int]:
    """Return validity, nulls, data and the number of values that were not numbers."""
    try:
        data = np.frombuffer(struct.pack(f"={len(values)}{code}", *values), dtype=code)
    except (struct.error, TypeError, OverflowError, ValueError):
        return _numbers_with_none(values, code, null_value)
    return (*_fixed(data, null_value), 0)


def _numbers_with_none(values: Sequence[Any], code: str, null_value: int | None) -> tuple[Buffer, int, Buffer, int]:
    try:
        data = array.array(code, [0 if value is None else value for value in values])
    except (TypeError, OverflowError, ValueError):
        return _odd_numbers(values, code, null_value)
    mask = np.array([value is not None for value in values], dtype=bool)
    if null_value is not None:
        mask &= np.frombuffer(data, dtype=f"=i{data.itemsize}") != null_value
    return (*_validity(mask), data.tobytes(), 0)


def _odd_numbers(values: Sequence[Any], code: str, null_value: int | None) -> tuple[Buffer, int, Buffer, int]:
    convert: Callable[[Any], Any] = float if code == "d" else int
    data, mask, degraded = array.array(code), [], 0
    for value in values:
        try:
            if value is None or value == null_value:
                raise LookupError
            data.append(convert(value))
            mask.append(True)
        except Exception as reason:  # noqa: BLE001 - a user's number class may raise anything
            degraded += not isinstance(reason, LookupError)
            data.append(0)
            mask.append(False)
    return (*_validity(np.array(mask, dtype=bool)), data.tobytes(), degraded)


def numbered(numbers: Mapping[Any, int], values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return the number of each value; KeyError when one has none."""
    return np.fromiter(map(numbers.__getitem__, values), dtype="<i4", count=len(values))


def _texts(values: Sequence[Any]) -> tuple[Buffer, int, Buffer, Buffer, int]:
    """Return validity, nulls, offsets, data and the number of values that were not text."""
    validity: Buffer = b""
    nulls = degraded = 0
    try:
        joined = "".join(values)
    except TypeError:
        mask = np.array([value is not None for value in values], dtype=bool)
        validity, nulls = _validity(mask) if not mask.all() else (b"", 0)
        degraded = sum(value is not None and not isinstance(value, str) for value in values)
        values = ["" if value is None else as_text(value) for value in values]
        joined = "".join(values)
    lengths: Iterable[int]
    if joined.isascii():
        data, lengths = joined.encode("ascii"), map(len, values)
    else:
        pieces = [value.encode("utf-8", "backslashreplace") for value in values]
        data, lengths = b"".join(pieces), map(len, pieces)
    offsets = np.zeros(len(values) + 1, dtype="<i4")
    np.cumsum(np.fromiter(lengths, dtype="<i4", count=len(values)), out=offsets[1:])
    return validity, nulls, offsets.tobytes(), data, degraded


def as_text(value: Any) -> str:
    """Return `str(value)`, or a text that says why there is none; never raises."""
    try:
        return str.__str__(value) if isinstance(value, str) else str(value)
    except Exception as reason:  # noqa: BLE001 - __str__ of a user's class may raise anything
        return f"<{type(value).__name__} whose str() raised {type(reason).__name__}>"


# ---------------------------------------------------------------- metadata messages


def _end_message(builder: Any, header_type: int, header: int, body_length: int) -> bytes:
    """Finish a Message table and frame it as the stream wants it."""
    builder.StartObject(5)
    builder.PrependInt64Slot(3, body_length, 0)
    builder.PrependUOffsetTRelativeSlot(2, header, 0)
    builder.PrependInt16Slot(0, _METADATA_V5, 0)
    builder.PrependUint8Slot(1, header_type, 0)
    builder.Finish(builder.EndObject())
    metadata = bytes(builder.Output())
    metadata += bytes(-(len(metadata) + 8) % 8)
    return _CONTINUATION + struct.pack("<i", len(metadata)) + metadata


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _key_values(builder: Any, pairs: dict[str, str]) -> int:
    entries = []
    for key, value in pairs.items():
        key_offset, value_offset = builder.CreateString(key), builder.CreateString(value)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key_offset, 0)
        builder.PrependUOffsetTRelativeSlot(1, value_offset, 0)
        entries.append(builder.EndObject())
    return _vector(builder, entries)


def _arrow_type(builder: Any, code: int, bits: int) -> int:
    builder.StartObject(2)
    if code == _INT:
        builder.PrependInt32Slot(0, bits, 0)
        builder.PrependBoolSlot(1, True, False)
    elif code == _FLOAT:
        builder.PrependInt16Slot(0, 2, 0)  # Precision.DOUBLE
    return int(builder.EndObject())


def _schema_message(columns: Sequence[Column], metadata: dict[str, str]) -> bytes:
    builder = flatbuffers.Builder(4096)
    fields = []
    for number, column in enumerate(columns):
        code, bits = _ARROW_TYPE["text" if column.kind == "category" else column.kind]
        name = builder.CreateString(column.name)
        # Units and meanings are in the schema module; here they would cost kilobytes per file.
        notes = _key_values(builder, {"kind": column.kind})
        type_offset = _arrow_type(builder, code, bits)
        children = _vector(builder, [])
        dictionary = 0
        if column.kind == "category":
            index_type = _arrow_type(builder, _INT, 32)
            builder.StartObject(4)
            builder.PrependInt64Slot(0, number, -1)
            builder.PrependUOffsetTRelativeSlot(1, index_type, 0)
            dictionary = builder.EndObject()
        builder.StartObject(7)
        builder.PrependUOffsetTRelativeSlot(0, name, 0)
        builder.PrependBoolSlot(1, True, False)
        builder.PrependUint8Slot(2, code, 0)
        builder.PrependUOffsetTRelativeSlot(3, type_offset, 0)
        if dictionary:
            builder.PrependUOffsetTRelativeSlot(4, dictionary, 0)
        builder.PrependUOffsetTRelativeSlot(5, children, 0)
        builder.PrependUOffsetTRelativeSlot(6, notes, 0)
        fields.append(builder.EndObject())
    field_vector, notes = _vector(builder, fields), _key_values(builder, metadata)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(1, field_vector, 0)
    builder.PrependUOffsetTRelativeSlot(2, notes, 0)
    return _end_message(builder, _SCHEMA, builder.EndObject(), 0)


class BatchTemplate:
    """The metadata of a batch with a given number of columns and buffers, its numbers left open.

    Only the numbers change from batch to batch, so the flatbuffer is built once, with a
    mark in place of each number, and the numbers are put where the marks were found: the
    size of the body, rows, rows and nulls of each column, place and size of each buffer.

    Attributes
    ----------
    open : bytes
        The framed message, with marks.
    places : bytes
        Where the numbers go, in eights of bytes; int32 each.
    """

    def __init__(self, column_count: int, buffer_count: int, dictionary_id: int | None = None):
        marks = iter(range(0x5EC0_0000_0001, 0x5EC0_0000_0001 + 3 + 2 * (column_count + buffer_count)))
        order: list[int] = []

        def mark() -> int:
            order.append(next(marks))
            return order[-1]

        builder = flatbuffers.Builder(1024)
        builder.StartObject(2)
        builder.PrependInt8Slot(0, _ZSTD, 0)
        compression = builder.EndObject()
        body_length, row_count = mark(), mark()
        vectors = []
        for count in (column_count, buffer_count):
            numbers = [(mark(), mark()) for _ in range(count)]
            builder.StartVector(16, count, 8)
            for first, second in reversed(numbers):
                builder.PrependInt64(second)
                builder.PrependInt64(first)
            vectors.append(builder.EndVector())
        builder.StartObject(5)
        builder.PrependInt64Slot(0, row_count, 0)
        builder.PrependUOffsetTRelativeSlot(1, vectors[0], 0)
        builder.PrependUOffsetTRelativeSlot(2, vectors[1], 0)
        builder.PrependUOffsetTRelativeSlot(3, compression, 0)
        header, header_type = builder.EndObject(), _RECORD_BATCH
        if dictionary_id is not None:
            builder.StartObject(3)
            builder.PrependInt64Slot(0, dictionary_id, -1)
            builder.PrependUOffsetTRelativeSlot(1, header, 0)
            header, header_type = builder.EndObject(), _DICTIONARY_BATCH
        self.open = _end_message(builder, header_type, header, body_length)
        places = [self.open.index(struct.pack("<q", each)) for each in order]
        assert not any(place % 8 for place in places), "a flatbuffer aligns its numbers"
        self.places = (np.array(places) // 8).astype("=i4").tobytes()


def framed(
    template: BatchTemplate, row_count: int, nodes: list[int], buffers: Sequence[Buffer], compress: Compress
) -> bytes:
    """Return a message with its body: the buffers, compressed where they are not small."""
    body: list[Buffer] = []
    places: list[int] = []
    position = 0
    for buffer in buffers:
        size = len(buffer)
        if size:
            if size < SMALLEST_COMPRESSED:
                buffer, size = b"\xff\xff\xff\xff\xff\xff\xff\xff" + buffer, size + 8
            else:
                packed = compress(buffer)
                buffer, size = struct.pack("<q", size) + packed, len(packed) + 8
        places += (position, size)
        padding = -size % 8
        body.append(buffer)
        if padding:
            body.append(bytes(padding))
        position += size + padding
    message = np.frombuffer(bytearray(template.open), dtype="<i8")
    message[np.frombuffer(template.places, dtype="=i4")] = (position, row_count, *nodes, *places)
    return message.tobytes() + b"".join(body)


def compressor() -> Compress:
    """Return a function that makes a zstd frame of a buffer.

    Its tables are a hundred kilobytes: with one for each stream they are never in the
    processor's caches, and compressing takes half as long again.
    """
    made = zstd.ZstdCompressor(level=_ZSTD_LEVEL)
    return partial(made.compress, mode=made.FLUSH_FRAME)


Frame = Callable[[BatchTemplate, int, list[int], Sequence[Buffer], Compress], bytes]


# ---------------------------------------------------------------- the stream


class ArrowStream:
    """Encoder of one table's stream: hands out bytes, keeps no file.

    `header()` comes first; then `batch()` per set of rows.  After a write that failed,
    `forget()` makes the next batch repeat the dictionaries that may be missing.  `compress`
    is one of `compressor()`; streams of one thread best share it.  `frame` is `framed`, or
    what does the same in C.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        metadata: dict[str, str],
        intern: Intern,
        compress: Compress,
        frame: Frame = framed,
    ):
        self.columns = columns
        self._metadata = metadata
        self._intern = intern
        self._frame = frame
        self._compress = compress
        self._categories: dict[str, dict[Any, int]] = {c.name: {} for c in columns if c.kind == "category"}
        buffer_count = sum(3 if column.kind == "text" else 2 for column in columns)
        self._template = BatchTemplate(len(columns), buffer_count)
        self._dictionary_templates: dict[int, BatchTemplate] = {}
        self.degraded_count = 0

    def header(self) -> bytes:
        """Return the schema message."""
        return _schema_message(self.columns, self._metadata)

    def forget(self) -> None:
        """Repeat every dictionary with the next batch."""
        for codes in self._categories.values():
            codes.clear()

    def batch(self, values_by_column: Sequence[Sequence[Any]]) -> bytes:
        """Return the messages of one record batch; values of each column in row order."""
        row_count = len(values_by_column[0])
        messages: list[bytes] = []
        nodes: list[int] = []
        buffers: list[Buffer] = []
        for number, (column, values) in enumerate(zip(self.columns, values_by_column, strict=True)):
            kind = column.kind
            if kind == "category":
                validity, nulls, data = _fixed(self._codes(number, column.name, values, messages), -1)
                column_buffers = [validity, data]
            elif kind == "text":
                validity, nulls, offsets, data, degraded = _texts(values)
                self.degraded_count += degraded
                column_buffers = [validity, offsets, data]
            elif kind == "bool":
                mask = np.array([value is not None for value in values], dtype=bool)
                validity, nulls = _validity(mask) if not mask.all() else (b"", 0)
                column_buffers = [validity, np.packbits([bool(v) for v in values], bitorder="little").tobytes()]
            elif kind == "key":
                validity, nulls, data = _fixed(self._intern(values), -1)
                column_buffers = [validity, data]
            else:
                validity, nulls, data, degraded = _numbers(values, "q" if kind == "int64" else "d", column.null_value)
                self.degraded_count += degraded
                column_buffers = [validity, data]
            nodes += (row_count, nulls)
            buffers += column_buffers
        messages.append(self._frame(self._template, row_count, nodes, buffers, self._compress))
        return b"".join(messages)

    def ready_batch(self, nodes: list[int], buffers: Sequence[Buffer], dictionaries: Iterable[Dictionary]) -> bytes:
        """Return the messages of one record batch whose buffers are made already.

        `nodes` are rows and nulls of each column; a dictionary is (number of its column,
        texts, offsets, data) and replaces the one before it.
        """
        messages = [
            self._dictionary(number, count, [count, 0], [b"", offsets, data])
            for number, count, offsets, data in dictionaries
        ]
        messages.append(self._frame(self._template, nodes[0], nodes, buffers, self._compress))
        return b"".join(messages)

    def _dictionary(self, number: int, count: int, nodes: list[int], buffers: list[Buffer]) -> bytes:
        template = self._dictionary_templates.get(number)
        if template is None:
            template = self._dictionary_templates[number] = BatchTemplate(1, 3, number)
        return self._frame(template, count, nodes, buffers, self._compress)

    def _codes(self, number: int, name: str, values: Sequence[Any], messages: list[bytes]) -> npt.NDArray[Any]:
        """Return the code of each value, adding the dictionary to `messages` when it grew."""
        codes = self._categories[name]
        if codes:
            try:
                return numbered(codes, values)
            except (KeyError, TypeError):
                pass
        try:
            distinct = dict.fromkeys(values)
        except TypeError:  # unhashable: not text
            values = [None if value is None else as_text(value) for value in values]
            distinct = dict.fromkeys(values)
        new = [value for value in distinct if value not in codes]
        if len(codes) + len(new) > DICTIONARY_LIMIT:
            codes.clear()
            new = list(distinct)
        # A dictionary without None has not been written yet: readers want one, even empty.
        if not codes:
            codes[None] = -1
            new = [value for value in new if value is not None]
        codes.update(zip(new, range(len(codes) - 1, len(codes) - 1 + len(new)), strict=True))
        categories = list(codes)[1:]
        validity, nulls, offsets, data, degraded = _texts(categories)
        self.degraded_count += degraded
        messages.append(self._dictionary(number, len(categories), [len(categories), nulls], [validity, offsets, data]))
        return numbered(codes, values)
