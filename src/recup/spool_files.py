"""What stands in the spool of a run, read as far as it is whole.

Covers finding spool directories, their `status.json`, and the record batches of a stream
that may be cut anywhere, empty, or garbage after a point: every complete batch comes out,
the rest is counted as damage.  It does not cover what is made of the batches
(`recup.storage`, `recup.sealing`), nor writing them (`recup.spool`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.errors import RunDamaged
from recup.schema import TABLES, VERSION, Column
from recup.spool_status import is_written

ROLES = ("scheduler", "worker", "nanny", "client", "launcher")
_READ_WHOLE_BYTES = 4_000_000
"""Files up to this size are read at once: a run of a thousand workers must not need as many open files."""
_MARK_BYTES = 512
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, TypeError, KeyError)

KEY_COLUMNS = (
    Column("Number of the key in this run", name="key_id", kind="int64"),
    Column("The key as Dask shows it", name="key", kind="text", null="lost: its row in the spool is damaged"),
    Column("str, tuple, int, float, bytes or the class of the key", name="key_type", kind="category"),
)
"""Columns of `keys`, in a spool (numbers of that spool) and in an opened run."""

_ARROW_TYPES = {
    "int64": pa.int64(),
    "key": pa.int32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "category": pa.dictionary(pa.int32(), pa.string()),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Damage:
    """The part of a stream after its last complete batch."""

    lost_bytes: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a stream found: whole batches as (rows, earliest value of the sort column)."""

    batches: tuple[tuple[int, int], ...]
    damage: Damage | None

    @property
    def row_count(self) -> int:
        """Rows in complete batches."""
        return sum(rows for rows, _ in self.batches)


class _FirstBytes(io.RawIOBase):
    """A file as if it ended at a size.

    Not a memory map: a writer that meets a full disk cuts its file, which would end a reader
    with SIGBUS.
    """

    def __init__(self, path: Path, size_bytes: int):
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._size = size_bytes

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes, none past the size."""
        left = self._size - self._file.tell()
        return self._file.read(left if count < 0 else min(count, left))

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@dataclasses.dataclass(frozen=True, slots=True)
class StreamFile:
    """One table's file of one spool, up to the size it had when it was found."""

    path: Path
    table: str
    size_bytes: int

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns the table should have."""
        return KEY_COLUMNS if self.table == "keys" else TABLES[self.table].columns

    def batches(self, damage: list[Damage] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield every complete batch; what follows them is appended to `damage`.

        A batch is complete when it is whole, decompresses, and holds values of the types
        the schema asks for.  Nothing after the first that is not is read: a lost
        dictionary would give later rows wrong texts.

        Raises
        ------
        RunDamaged
            The file system does not give the file; that is no damage of the file.
        """
        end = 0
        try:
            with self._open() as source:
                reader = pa.ipc.open_stream(source)
                _check_types(reader.schema, self.columns)
                end = source.tell()
                while True:
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        break
                    batch.validate(full=True)
                    for column in batch.columns:  # which leaves the text of dictionaries unchecked
                        if pa.types.is_dictionary(column.type):
                            column.dictionary.validate(full=True)
                    end = source.tell()
                    yield batch
            reason = "bytes after the end of the stream"
        except _UNREADABLE as error:
            # Arrow reports bad data as OSError too, but without a number of the system.
            if isinstance(error, OSError) and error.errno is not None:
                raise RunDamaged(f"{self.path} cannot be read: {error.strerror}. Mend that and try again.") from error
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"[:200]
        if self.size_bytes > end and damage is not None:
            damage.append(Damage(self.size_bytes - end, reason))

    def _open(self) -> Any:
        if self.size_bytes <= _READ_WHOLE_BYTES:
            with open(self.path, "rb") as file:
                return pa.BufferReader(file.read(self.size_bytes))
        return pa.PythonFile(_FirstBytes(self.path, self.size_bytes), mode="r")

    def mark(self, size_bytes: int | None = None) -> int:
        """Return a number that tells this file from another of its name: a checksum of the bytes before an offset."""
        end = self.size_bytes if size_bytes is None else size_bytes
        with open(self.path, "rb") as file:
            file.seek(max(0, end - _MARK_BYTES))
            return zlib.crc32(file.read(min(end, _MARK_BYTES)))

    def scan(self, sort: str | None = None) -> Scan:
        """Read the stream once for its row counts, the earliest value of its sort column and its damage."""
        found: list[tuple[int, int]] = []
        damage: list[Damage] = []
        for batch in self.batches(damage):
            lowest = 0
            if sort is not None and batch.num_rows:
                index = batch.schema.get_field_index(sort)
                lowest = int(order_values(batch.column(index)).min()) if index >= 0 else 0
            found.append((batch.num_rows, lowest))
        return Scan(tuple(found), damage[0] if damage else None)


def order_values(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return a column of times as whole nanoseconds; null and what is no number come first."""
    if pa.types.is_floating(column.type):
        seconds = column.fill_null(0.0).to_numpy(zero_copy_only=False)
        seconds = np.clip(np.nan_to_num(seconds, posinf=0.0, neginf=0.0), -9e9, 9e9)
        values: npt.NDArray[np.int64] = (seconds * 1e9).astype(np.int64)
    else:
        values = column.fill_null(0).to_numpy(zero_copy_only=False)
    return values


def _check_types(schema: pa.Schema, columns: tuple[Column, ...]) -> None:
    """Refuse a header whose columns are not those of the table; a column of later versions may be missing."""
    present = 0
    for column in columns:
        index = schema.get_field_index(column.name)
        if index >= 0:
            present += 1
            expected = _ARROW_TYPES[column.kind]
            if schema.field(index).type not in (expected, pa.int64() if column.name == "key_id" else expected):
                raise ValueError(f"column {column.name} is {schema.field(index).type}, not {expected}")
    if not present or (columns is KEY_COLUMNS and present < len(KEY_COLUMNS)):
        raise ValueError("the header names none, or not enough, of the table's columns")


@dataclasses.dataclass(frozen=True, slots=True)
class SpoolDirectory:
    """One server's spool (of one epoch: a server whose files were removed starts another).

    Attributes
    ----------
    status : dict
        Content of `status.json`; empty when it is missing or damaged.
    files : dict
        Every table's stream by table name, `keys` included.
    damaged_files : tuple of str
        Names of files that are no table's.
    """

    path: Path
    role: str
    server_id: str
    epoch: int
    status: dict[str, Any]
    files: dict[str, StreamFile]
    strange_files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def is_closed(self) -> bool | None:
        """Whether the server said that its record ended in order; None when nothing tells."""
        closed = self.status.get("closed")
        return closed if isinstance(closed, bool) else None

    @property
    def last_sign_ns(self) -> int | None:
        """When the server last wrote its status, on its own clock."""
        time_ns = self.status.get("time_ns")
        return time_ns if isinstance(time_ns, int) else None

    @property
    def is_alive(self) -> bool:
        """Whether rows may still be coming (`recup.spool_status.is_written`)."""
        return is_written(self.status)


def find_spools(run: Path) -> list[SpoolDirectory]:
    """Return the spools of a run: the scheduler's first, then by role and name."""
    try:
        entries = sorted(each for each in (run / "spool").iterdir() if each.is_dir())
    except OSError:
        return []
    spools = [_spool_directory(each) for each in entries]
    return sorted(spools, key=lambda s: (ROLES.index(s.role) if s.role in ROLES else len(ROLES), s.name))


def _spool_directory(path: Path) -> SpoolDirectory:
    status = _read_status(path / "status.json")
    files: dict[str, StreamFile] = {}
    strange = []
    for entry in sorted(path.iterdir()):
        if entry.name == "status.json":
            continue
        if entry.suffix == ".arrows" and (entry.stem in TABLES or entry.stem == "keys") and entry.is_file():
            files[entry.stem] = StreamFile(entry, entry.stem, entry.stat().st_size)
        else:
            strange.append(entry.name)
    role, server_id, epoch = _identity(path.name, status, files)
    return SpoolDirectory(path, role, server_id, epoch, status, files, tuple(strange))


def _identity(name: str, status: dict[str, Any], files: dict[str, StreamFile]) -> tuple[str, str, int]:
    """Return role, server id and epoch; the directory's name is shortened, so a file that fits it is asked first."""
    role, _, rest = name.partition("-")
    epoch_match = re.search(r"\.(\d+)$", rest)
    epoch = int(epoch_match[1]) if epoch_match else 0
    claims = [status]
    for file in files.values():
        if file.size_bytes:
            try:
                metadata = pa.ipc.open_stream(file._open()).schema.metadata or {}
                claims.append({key.decode(): value.decode() for key, value in metadata.items()})
                break
            except _UNREADABLE:
                continue
    for claim in claims:
        server_id = claim.get("server_id")
        if claim.get("role") == role and isinstance(server_id, str) and server_id:
            shortened = "".join(c if c.isalnum() or c in "-_." else "_" for c in server_id)[:120]
            if rest == shortened:
                return role, server_id, 0
            if epoch_match and rest == f"{shortened}.{epoch}":
                return role, server_id, epoch
    return role, rest.removesuffix(f".{epoch}") if epoch_match else rest, epoch


def _read_status(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def written_by_newer(file: StreamFile) -> bool:
    """Whether a newer recup wrote the file, with a schema this one does not know."""
    try:
        metadata = pa.ipc.open_stream(file._open()).schema.metadata or {}
        return int(metadata.get(b"recup_schema_version", b"0")) > VERSION
    except _UNREADABLE:
        return False
