"""Rows made from files of other tools, written into a run's spool as its servers write theirs.

A spool appears whole or not at all: it is written beside the spool of the run and renamed
into place.  Covers rows and Arrow batches of any table without keys.  It does not cover
where rows come from.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from recup import __version__
from recup.errors import RecupError
from recup.run_tables import read_parquet
from recup.schema import TABLES, VERSION
from recup.spool_files import find_spools

_BATCH_ROWS = 4096
_END_MARK_BYTES = 8
_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "category": pa.dictionary(pa.int32(), pa.string()),
}


def spool_schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a table without keys as it stands in the spool."""
    return pa.schema([(column.name, _TYPES[column.kind]) for column in TABLES[table].columns])


class SpoolFiles:
    """The spool of one foreign file: a context manager that puts it in place when its block ends well.

    Attributes
    ----------
    row_counts : dict
        Rows written, by table.
    """

    def __init__(self, run: Path, role: str, server_id: str):
        self.row_counts: dict[str, int] = {}
        self._run = run
        self._role = role
        self._server_id = server_id
        self._building = run / f".ingest-{os.getpid()}"

    def __enter__(self) -> SpoolFiles:
        shutil.rmtree(self._building, ignore_errors=True)
        try:
            self._building.mkdir()
        except OSError as reason:
            raise unwritable(self._run, reason) from reason
        return self

    def __exit__(
        self, kind: type[BaseException] | None, reason: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put_in_place()
        finally:
            shutil.rmtree(self._building, ignore_errors=True)
        if isinstance(reason, OSError):
            raise unwritable(self._run, reason) from reason

    def write_rows(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Write rows of a table, each in the order of its columns."""
        self.write_batches(table, row_batches(table, rows))

    def write_batches(self, table: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Write batches that have the table's columns in the form of the spool; none leaves no file."""
        metadata = {
            "recup_schema_version": str(VERSION), "recup_version": __version__, "table": table,
            "role": self._role, "server_id": self._server_id,
        }  # fmt: skip
        schema = spool_schema(table).with_metadata(metadata)
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        path = self._building / f"{table}.arrows"
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, schema, options=options) as stream,
        ):
            count = 0
            for batch in itertools.chain([first], batches):
                stream.write_batch(batch.cast(schema) if batch.schema != schema else batch)
                count += batch.num_rows
        # A spool's streams have no end mark, as their servers may always go on: it would count as damage.
        os.truncate(path, path.stat().st_size - _END_MARK_BYTES)
        self.row_counts[table] = self.row_counts.get(table, 0) + count

    def _put_in_place(self) -> None:
        status = {
            "time_ns": time.time_ns(), "hostname": socket.gethostname(), "role": self._role,
            "server_id": self._server_id, "pid": os.getpid(), "closed": True,
            "row_counts": self.row_counts, "unwritten_losses": {}, "counters": {},
        }  # fmt: skip
        (self._building / "status.json").write_text(json.dumps(status) + "\n")
        spool = self._run / "spool"
        spool.mkdir(exist_ok=True)
        shortened = "".join(c if c.isalnum() or c in "-_." else "_" for c in self._server_id)[:120]
        name = f"{self._role}-{shortened}"
        for epoch in itertools.count():
            target = spool / (f"{name}.{epoch}" if epoch else name)
            if not target.exists():
                os.rename(self._building, target)
                return


def unwritable(run: Path, reason: OSError) -> RecupError:
    """Return the error that says that a run's directory does not take files."""
    return RecupError(f"{run} cannot be written: {reason.strerror}. Make room or mend that, and ingest again.")


def row_batches(table: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[pa.RecordBatch]:
    """Yield rows of a table as batches in the form of the spool."""
    schema = spool_schema(table)
    rows = iter(rows)
    while group := list(itertools.islice(rows, _BATCH_ROWS)):
        arrays = []
        for field, values in zip(schema, zip(*group, strict=True), strict=True):
            if pa.types.is_dictionary(field.type):
                arrays.append(pa.array(values, pa.string()).dictionary_encode())
            else:
                arrays.append(pa.array(values, field.type))
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def read_spooled(run: Path, role: str, table: str, column: str) -> Iterator[str]:
    """Yield the texts of a column of a table that servers of a role wrote into a run, sealed or not."""
    sealed = run / "tables" / f"{table}.parquet"
    if sealed.is_file():
        rows = read_parquet(sealed)
        roles = rows.column("role" if "role" in rows.column_names else "observer_role").to_pylist()
        if column in rows.column_names:
            yield from (text for text, each in zip(rows.column(column).to_pylist(), roles, strict=True) if each == role)
    for spool in find_spools(run):
        if spool.role == role and table in spool.files:
            for batch in spool.files[table].batches():
                if column in batch.schema.names:
                    yield from batch.column(column).to_pylist()
