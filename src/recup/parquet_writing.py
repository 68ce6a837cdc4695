"""Rows to one Parquet file, each column in the encoding that is smallest for this run.

Covers row groups, their inner order and the choice of encodings, which is made by trying
them on the first row group.  It does not cover what the columns are (`recup.storage`).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recup.storage import LOCAL_ORDER, merge_columns

ROW_GROUP_ROWS = 131_072
_TRIED_ROWS = 32_768
_FEW_ROWS = 1_000
_TRYING_LEVEL = 3
_LEVEL_OF_ONE_GROUP = 15
"""Level of zstd for a table of one row group, where time does not matter."""
_WITH_SCHEMA = not hasattr(pq.ParquetWriter, "add_key_value_metadata")
"""Whether Arrow's own copy of the schema, as large as all else in a footer, must be there: older pyarrow
writes metadata of ours only with it."""
_DICTIONARY = "dictionary"
_QUICK = {pa.int64(): "DELTA_BINARY_PACKED"}


class TableWriter:
    """Writes tables in stored form, in the order given, into row groups.

    Nothing is written, not even the file, until the first row comes.

    Parameters
    ----------
    path : Path
        File to make; the caller renames it.
    table : str
        Name of the table; tells the order of rows inside a row group.
    level : int
        Level of zstd; below 3 encodings are not tried out.
    """

    def __init__(self, path: Path, table: str, schema: pa.Schema, metadata: dict[bytes, bytes], level: int):
        self._path = path
        self._table = table
        self._schema = schema.with_metadata(metadata)
        self._level = level
        self._bounded = [name for name in schema.names if name in (*merge_columns(table), "key_id")]
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._row_count = 0

    def add(self, rows: pa.Table) -> None:
        """Take rows; written as soon as they fill row groups."""
        self._waiting.append(rows)
        self._waiting_rows += rows.num_rows
        if self._waiting_rows >= 4 * ROW_GROUP_ROWS:
            self._write(ROW_GROUP_ROWS)

    def close(self) -> int:
        """Write the rest and the footer; returns the rows written."""
        self._write(1)
        if self._writer is not None:
            if not _WITH_SCHEMA:
                self._writer.add_key_value_metadata(self._schema.metadata)
            self._writer.close()
        return self._row_count

    def _write(self, at_least: int) -> None:
        if not self._waiting_rows:
            return
        rows = pa.concat_tables(self._waiting).unify_dictionaries().combine_chunks()
        start = 0
        while rows.num_rows - start >= at_least:
            group = self._ordered(rows.slice(start, ROW_GROUP_ROWS))
            if self._writer is None:
                is_whole = at_least == 1 and group.num_rows == rows.num_rows
                self._writer = _open(self._path, self._schema, group, self._level, self._bounded if is_whole else None)
            self._writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            self._row_count += group.num_rows
            start += group.num_rows
        self._waiting = [rows.slice(start)]
        self._waiting_rows = rows.num_rows - start

    def _ordered(self, group: pa.Table) -> pa.Table:
        columns = LOCAL_ORDER.get(self._table, ("server_id",) if "server_id" in group.column_names else ())
        keys = [_codes(group.column(name)) for name in reversed(columns)]
        return group.take(pa.array(np.lexsort(keys))) if keys else group


def _codes(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return numbers that order a column: texts in the order of their dictionary, nulls as -1."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.indices
    codes: npt.NDArray[Any] = array.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes


def write_few(path: Path, rows: pa.Table, level: int) -> None:
    """Write a table of few rows as it is."""
    with _open(path, rows.schema, rows, level, []) as writer:
        writer.write_table(rows)


def _open(path: Path, schema: pa.Schema, first: pa.Table, level: int, bounded: list[str] | None) -> pq.ParquetWriter:
    """Open a file for its first row group.

    `bounded` are the columns whose bounds are told where there will be no other row group:
    bounds of all are a third of a small file, and one row group is read as a whole anyway.
    """
    smallest = {field.name: _smallest(first.column(field.name), field, level) for field in schema}
    encodings = {name: encoding for name, encoding in smallest.items() if encoding != _DICTIONARY}
    if bounded is not None and level >= _TRYING_LEVEL:
        level = max(level, _LEVEL_OF_ONE_GROUP)
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=level,
        use_dictionary=[name for name in smallest if name not in encodings] or False,
        column_encoding=encodings or None,
        write_statistics=True if bounded is None else bounded or False,
        store_schema=_WITH_SCHEMA,
    )


def _smallest(column: pa.ChunkedArray, field: pa.Field, level: int) -> str:
    """Return the encoding that makes the column smallest."""
    kind = field.type
    candidates = ["PLAIN"]
    if pa.types.is_dictionary(kind):
        candidates = [_DICTIONARY, "PLAIN"] if len(column) <= _FEW_ROWS else [_DICTIONARY]
    elif pa.types.is_integer(kind):
        candidates = [_DICTIONARY, "PLAIN", "DELTA_BINARY_PACKED"]
    elif pa.types.is_floating(kind):
        # Pyarrow 16.0 cannot read byte streams of a column with nulls.
        candidates = [_DICTIONARY, "PLAIN"] if column.null_count else [_DICTIONARY, "PLAIN", "BYTE_STREAM_SPLIT"]
    elif pa.types.is_string(kind):
        candidates = [_DICTIONARY, "PLAIN", "DELTA_BYTE_ARRAY"]
    if level < _TRYING_LEVEL:
        return candidates[0] if pa.types.is_dictionary(kind) else _QUICK.get(kind, "PLAIN")
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda encoding: _size(column.slice(0, _TRIED_ROWS), field, encoding, level))


def _size(column: pa.ChunkedArray, field: pa.Field, encoding: str, level: int) -> int:
    target = io.BytesIO()
    is_dictionary = encoding == _DICTIONARY
    pq.write_table(
        pa.Table.from_arrays([column], names=[field.name]),
        target,
        compression="zstd",
        compression_level=level,
        use_dictionary=is_dictionary,
        column_encoding=None if is_dictionary else {field.name: encoding},
        write_statistics=False,
        store_schema=False,
    )
    return target.tell()
