"""SQL asked by hand: from a query to a table on the terminal, CSV, JSON or Parquet.

Covers writing the answer of one query on an opened run, and the complaints DuckDB has on
the way.  It does not cover what tables there are (`recup.schema`, `recup.fuse`).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from recup.errors import BadQuery, RecupError
from recup.schema import TABLES
from recup.terminal import Page, inert, json_text, plain_value

if TYPE_CHECKING:
    from recup.store import Run

TABLE_ROWS = 100
"""Rows of a table shown where no limit is given."""
_CHUNK_ROWS = 10_000


def tables_and_views(run: Run) -> list[dict[str, Any]]:
    """Return one row per table and view of a run: name, kind (table or view), row_count.

    Counting the rows of a view means asking it, which may take a moment in a large run.
    """
    names = [(name, "table") for name in run.tables] + [(name, "view") for name in run.views]
    rows = []
    for name, kind in names:
        counted = f'raw."{name}"' if name in TABLES else f'"{name}"'
        ((count,),) = run.sql(f"select count(*) from {counted}").fetchall()
        rows.append({"name": name, "kind": kind, "row_count": count})
    return rows


def write_answer(relation: Any, form: str, output: str | None, limit: int | None) -> None:
    """Write the rows of a relation as ``table``, ``csv``, ``json`` or ``parquet``, to a file or stdout.

    Raises
    ------
    BadQuery
        DuckDB fails while it computes the answer.
    RecupError
        The file cannot be written.
    """
    import duckdb

    from recup.store import one_line

    try:
        if form == "parquet":
            _write_parquet(relation, str(output), limit)
        elif output is None:
            _write_text(relation, form, sys.stdout, limit)
        else:
            with open(output, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                _write_text(relation, form, file, limit)
    except duckdb.Error as reason:
        raise BadQuery(one_line(reason)) from reason
    except OSError as reason:
        if output is None:
            raise
        raise RecupError(f"{output} cannot be written: {reason.strerror}.") from reason


def _write_text(relation: Any, form: str, stream: IO[str], limit: int | None) -> None:
    if form == "table":
        _write_table(relation, stream, TABLE_ROWS if limit is None else limit)
    elif form == "csv":
        # Data for programs stays as it is; a person's terminal is not to be acted upon.
        shown = inert if stream.isatty() else str
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(relation.columns)
        for row in _rows(relation, limit):
            writer.writerow(["" if value is None else shown(plain_value(value)) for value in row])
    else:
        rows = [dict(zip(relation.columns, row, strict=True)) for row in _rows(relation, limit)]
        stream.write(json_text(rows) + "\n")


def _write_table(relation: Any, stream: IO[str], limit: int) -> None:
    rows = list(_rows(relation, limit + 1))
    page = Page(stream, whole_rows=True)
    numbers = {"BIGINT", "INTEGER", "DOUBLE", "FLOAT", "HUGEINT", "UBIGINT", "SMALLINT", "TINYINT"}
    headings = [
        f">{name}" if str(kind) in numbers else name
        for name, kind in zip(relation.columns, relation.types, strict=True)
    ]
    page.table(headings, [[plain_value(value) for value in row] for row in rows[:limit]])
    if len(rows) > limit:
        page.line(f"the first {limit} rows; --limit gives more", "dim")


def _rows(relation: Any, limit: int | None) -> Iterator[tuple[Any, ...]]:
    """Yield rows as plain values, a batch at a time."""
    for batch in _reader(relation, limit):
        columns = [column.to_pylist() for column in batch.columns]
        yield from zip(*columns, strict=True)


def _reader(relation: Any, limit: int | None) -> Any:
    limited = relation if limit is None else relation.limit(limit)
    read = getattr(limited, "to_arrow_reader", None) or limited.fetch_record_batch  # the older name, before DuckDB 1.5
    return read(_CHUNK_ROWS)


def _write_parquet(relation: Any, output: str, limit: int | None) -> None:
    import pyarrow.parquet as pq

    reader = _reader(relation, limit)
    temporary = Path(f"{output}.part")
    try:
        with pq.ParquetWriter(temporary, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
