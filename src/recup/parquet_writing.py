"""Rows to one Parquet file, each column in the encoding that is smallest for this run.

Covers row groups, their inner order and the choice of encodings, which is made by trying
them on the first row group.  It does not cover what the columns are (`recup.storage`).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recup.storage import LOCAL_ORDER

ROW_GROUP_ROWS = 131_072
_DICTIONARY = "dictionary"


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
        self._schema = schema.with_metadata({**(schema.metadata or {}), **metadata})
        self._level = level
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
                self._writer = self._open(group)
            self._writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            self._row_count += group.num_rows
            start += group.num_rows
        self._waiting = [rows.slice(start)]
        self._waiting_rows = rows.num_rows - start

    def _ordered(self, group: pa.Table) -> pa.Table:
        columns = LOCAL_ORDER.get(self._table, ("server_id",) if "server_id" in group.column_names else ())
        keys = [_codes(group.column(name)) for name in reversed(columns)]
        return group.take(pa.array(np.lexsort(keys))) if keys else group

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        dictionaries, encodings = [], {}
        for field in self._schema:
            encoding = _smallest(first.column(field.name), field, self._level)
            if encoding == _DICTIONARY:
                dictionaries.append(field.name)
            else:
                encodings[field.name] = encoding
        return pq.ParquetWriter(
            self._path,
            self._schema,
            compression="zstd",
            compression_level=self._level,
            use_dictionary=dictionaries or False,
            column_encoding=encodings or None,
        )


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return numbers that order a column: texts in the order of their dictionary, nulls first."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.indices
    codes: npt.NDArray[np.int64] = array.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes


def _smallest(column: pa.ChunkedArray, field: pa.Field, level: int) -> str:
    """Return the encoding that makes the column smallest."""
    kind = field.type
    if pa.types.is_dictionary(kind) or pa.types.is_boolean(kind):
        return _DICTIONARY if pa.types.is_dictionary(kind) else "PLAIN"
    candidates = [_DICTIONARY, "PLAIN"]
    if pa.types.is_integer(kind):
        candidates.append("DELTA_BINARY_PACKED")
    elif pa.types.is_floating(kind):
        candidates.append("BYTE_STREAM_SPLIT")
    elif pa.types.is_string(kind):
        candidates.append("DELTA_BYTE_ARRAY")
    if level < 3:
        return candidates[-1] if pa.types.is_integer(kind) else "PLAIN"
    sizes = {encoding: _size(column, field, encoding, level) for encoding in candidates}
    return min(sizes, key=lambda encoding: sizes[encoding])


def _size(column: pa.ChunkedArray, field: pa.Field, encoding: str, level: int) -> int:
    target = io.BytesIO()
    choice = {"use_dictionary": True} if encoding == _DICTIONARY else {"column_encoding": {field.name: encoding}}
    pq.write_table(
        pa.Table.from_arrays([column], names=[field.name]),
        target,
        compression="zstd",
        compression_level=level,
        **{"use_dictionary": False, **choice},
    )
    return target.tell()
