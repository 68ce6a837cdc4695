"""The tables of a run as it stands on disk: spools and what was sealed before, made into Parquet one by one.

Covers numbering the keys of all servers and putting their rows in order of time without
holding a table in memory.  It does not cover when this is done for good (`recup.sealing`)
or for the time of a look (`recup.store`), nor how a row is stored (`recup.storage`).

Each Parquet file says in its footer which rows of which spool files it holds
(``recup_absorbed``).  A seal that was interrupted, or rows of a process that outlived the
seal, are thereby taken up where it ended.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recup.errors import RunDamaged, RunTooNew
from recup.parquet_writing import TableWriter
from recup.schema import TABLES
from recup.spool_files import (
    Damage,
    Scan,
    SpoolDirectory,
    StreamFile,
    find_spools,
    order_values,
    written_by_newer,
)
from recup.storage import (
    KEY_SCHEMA,
    KeyNumbers,
    StoredColumn,
    as_stored_now,
    keys_to_stored,
    merge_column,
    merge_columns,
    merge_values,
    stored_schema,
    to_stored,
)

_UNIT_ROWS = 16_384
_POOL_ROWS = 524_288
_ABSORBED = b"recup_absorbed"
_MAGIC = b"PAR1"
"""First and last bytes of a Parquet file."""
Absorbed = dict[str, list[int]]
"""Spool file (below `spool/`) to [rows, bytes, mark] of it that a table holds."""

SPOOL_COLUMNS = (
    StoredColumn("server_id", pa.string(), "Server id of the observer"),
    StoredColumn("role", pa.string(), "Role of the observer"),
    StoredColumn("directory", pa.string(), "Name of the spool directory"),
    StoredColumn("epoch", pa.int64(), "0, or how often the server's files were removed under it"),
    StoredColumn("pid", pa.int64(), "Process id of the observer; null: its status is lost"),
    StoredColumn("is_closed", pa.bool_(), "Whether the record ended in order; null: its status is lost"),
    StoredColumn("last_sign_ns", pa.int64(), "When the server last wrote its status; null: its status is lost", "ns"),
    StoredColumn("is_alive", pa.bool_(), "Whether rows were still coming when the run was read"),
    StoredColumn("file_rows", pa.string(), "JSON: whole rows found, by table"),
    StoredColumn("status_rows", pa.string(), "JSON: rows the server said it wrote, by table"),
    StoredColumn(
        "unwritten_losses", pa.string(), "JSON: kind:table to rows lost that no row of `losses` tells (-1: unknown)"
    ),
    StoredColumn("counters", pa.string(), "JSON: counts kept by the observer, in pairs <x>_dask and <x>_recorded"),
    StoredColumn("damages", pa.string(), "JSON list: [file, lost bytes, reason] of each damaged file"),
    StoredColumn("file_extents", pa.string(), "JSON: [rows, bytes, checksum of its end] of each file when it was read"),
)
"""Columns of the table `spools`: one row per spool directory, what its server said and what was found."""
SPOOL_SCHEMA = pa.schema([column.field for column in SPOOL_COLUMNS])
_DESCRIPTION = ("table", "column", "unit", "meaning")


# ---------------------------------------------------------------- one table out of many streams


@dataclasses.dataclass(slots=True)
class _Stream:
    """Rows of one table from one spool file, or from the table as sealed before."""

    name: str
    units: list[tuple[int, int]]
    """(rows, earliest value of the merge column) of each unit."""
    read: Iterator[pa.Table]

    def floors(self) -> list[int]:
        """For each unit the earliest value in it or any later one, so units can be taken in file order."""
        lowest = np.minimum.accumulate([first for _, first in self.units][::-1])[::-1]
        return [int(value) for value in lowest]


def _merged(streams: Sequence[_Stream], table: str, pool_rows: int) -> Iterator[pa.Table]:
    """Yield the rows of all streams in order of time, holding only what overlaps in time."""
    if merge_column(table) is None:
        for stream in streams:
            yield from stream.read
        return
    order = heapq.merge(*([(floor, i) for floor in s.floors()] for i, s in enumerate(streams) if s.units))
    pending: list[pa.Table] = []
    pending_rows = 0
    for floor, index in order:
        if pending_rows >= pool_rows:
            ready, rest = _split(pending, table, floor)
            pending, pending_rows = [rest], rest.num_rows
            # What overlaps is kept for longer, so that sorting it again and again stays linear.
            pool_rows = max(pool_rows, 2 * pending_rows)
            yield ready
        unit = next(streams[index].read, None)
        if unit is not None:
            pending.append(unit)
            pending_rows += unit.num_rows
    if pending:
        yield _split(pending, table, None)[0]


def _split(tables: list[pa.Table], table: str, below: int | None) -> tuple[pa.Table, pa.Table]:
    rows = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    values = order_values(merge_values(table, rows))
    order = np.argsort(values, kind="stable")
    count = len(order) if below is None else int(np.searchsorted(values[order], below))
    return rows.take(pa.array(order[:count])), rows.take(pa.array(order[count:]))


def _units(scan: Scan, skip: int) -> list[tuple[int, int]]:
    """Group the batches of a scan, after `skip` rows, into units worth handling at once."""
    units: list[tuple[int, int]] = []
    rows, first = 0, None
    for count, lowest in scan.batches:
        taken = max(count - max(skip, 0), 0)
        skip -= count
        if taken:
            rows, first = rows + taken, lowest if first is None else min(first, lowest)
        if rows >= _UNIT_ROWS and first is not None:
            units.append((rows, first))
            rows, first = 0, None
    if rows and first is not None:
        units.append((rows, first))
    return units


def _unit_batches(file: StreamFile, skip: int, units: list[tuple[int, int]]) -> Iterator[list[pa.RecordBatch]]:
    """Yield the record batches of each unit."""
    batches = file.batches()
    for wanted, _ in units:
        group, rows = [], 0
        while rows < wanted:
            batch = next(batches, None)
            if batch is None:
                break
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            batch = batch.slice(skip)
            skip = 0
            group.append(batch)
            rows += batch.num_rows
        yield group


# ---------------------------------------------------------------- a run's tables


class Tables:
    """The tables of one run as it stands on disk, made into Parquet files one by one.

    Parameters
    ----------
    run : Path
        Run directory.  Its files are read up to the size they have now.
    """

    def __init__(self, run: Path):
        self.run = run
        self.sealed = run / "tables"
        self.spools = find_spools(run)
        self._scans: dict[Path, Scan] = {}
        self._numbers: dict[str, KeyNumbers] | None = None
        for spool in self.spools:
            for file in list(spool.files.values())[:1]:
                if written_by_newer(file):
                    raise RunTooNew(f"{file.path} was written by a newer recup. Upgrade recup to read it.")

    def names(self) -> list[str]:
        """Names of the tables that have rows, or may have."""
        present = {name for spool in self.spools for name in spool.files}
        return [name for name in TABLES if name in present or self._earlier(name).is_file() or name == "losses"]

    def _earlier(self, name: str) -> Path:
        return self.sealed / f"{name}.parquet"

    def scan(self, file: StreamFile) -> Scan:
        """Return what one pass over a file finds; made once."""
        if file.path not in self._scans:
            self._scans[file.path] = file.scan(merge_column(file.table))
        return self._scans[file.path]

    def damage(self, spool: SpoolDirectory, file: StreamFile) -> Damage | None:
        """Return the damage of a file; the unfinished end of a file that grows is none."""
        damage = self.scan(file).damage
        return None if damage is not None and spool.is_alive else damage

    # ------------------------------------------------------------ keys

    def write_keys(self, destination: Path, level: int) -> int:
        """Number the keys of all servers and write `keys.parquet`; returns how many there are."""
        earlier = self._read_earlier_keys()
        spools = [s for s in self.spools if "keys" in s.files]
        columns = [_read_keys(s.files["keys"]) for s in spools]
        identities, types = _identities([*([earlier[1:]] if earlier else []), *(c[1:] for c in columns)])
        encoded = pc.dictionary_encode(pa.chunked_array(identities, pa.large_string())).combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.large_string()).dictionary_encode()
        provisional = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        earlier_count = len(earlier[0]) if earlier else 0
        places, start = {}, earlier_count
        for spool, column in zip(spools, columns, strict=True):
            places[spool.name] = (column[0], provisional[start : start + len(column[0])])
            start += len(column[0])
        order = self._key_order(places, earlier_count, len(encoded.dictionary))
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        self._numbers = {name: KeyNumbers(name, local, number[ids]) for name, (local, ids) in places.items()}
        metadata = self._absorbing("keys", {_file_name(s.files["keys"]): self._extent(s.files["keys"]) for s in spools})
        writer = TableWriter(destination, "keys", KEY_SCHEMA, metadata, level)
        for begin in range(0, len(order), 500_000):
            chosen = encoded.dictionary.take(pa.array(order[begin : begin + 500_000]))
            parts = pc.extract_regex(chosen, r"^(?P<type>[0-9]+):(?s:(?P<key>.*))$")
            codes = pc.cast(pc.struct_field(parts, "type"), pa.int32())
            texts = pc.cast(pc.struct_field(parts, "key"), pa.string())
            key_types = pa.DictionaryArray.from_arrays(codes, pa.array(types, pa.string()))
            writer.add(keys_to_stored(begin, texts, key_types))
        return writer.close()

    def _read_earlier_keys(self) -> tuple[Any, pa.Array, pa.Array] | None:
        path = self._earlier("keys")
        if not path.is_file():
            return None
        rows = read_parquet(path).combine_chunks().cast(KEY_SCHEMA)
        text = _key_texts(rows)
        return rows.column("key_id").to_numpy(), text, rows.column("key_type")

    def _key_order(self, places: dict[str, tuple[Any, Any]], earlier_count: int, count: int) -> npt.NDArray[np.int64]:
        """Provisional numbers in their final order: as sealed before, then as first assigned, then as first met."""
        assigned = [np.arange(earlier_count)]
        for spool in self.spools:
            if spool.name in places and "scheduler_transitions" in spool.files:
                local, provisional = places[spool.name]
                met = [
                    np.asarray(pc.filter(batch["key"], pc.equal(batch["finish"], "processing")).drop_null()).astype(
                        np.int64
                    )
                    for batch in spool.files["scheduler_transitions"].batches()
                ]
                if met and len(local):
                    wanted = np.concatenate(met)
                    by_local = np.argsort(local, kind="stable")
                    found = np.minimum(np.searchsorted(local[by_local], wanted), len(local) - 1)
                    rows = by_local[found]
                    assigned.append(provisional[rows[local[rows] == wanted]])
        everything = np.concatenate([*assigned, np.arange(count)])
        _, first = np.unique(everything, return_index=True)
        order: npt.NDArray[np.int64] = everything[np.sort(first)]
        return order

    # ------------------------------------------------------------ the other tables

    def write_table(self, name: str, destination: Path, level: int) -> int | None:
        """Write one table; returns its row count, or None when the sealed one is still true.

        `write_keys` comes first.
        """
        if self._numbers is None:
            raise RuntimeError("write_keys has not been called")
        absorbed = read_absorbed(self._earlier(name))
        news: Absorbed = {}
        streams: list[_Stream] = []
        for spool in self.spools:
            file = spool.files.get(name)
            if file is None:
                continue
            rows, size, mark = absorbed.get(_file_name(file), [0, -1, 0])
            known = 0 <= size <= file.size_bytes and file.mark(size) == mark
            if known and size == file.size_bytes:
                continue
            skip = rows if known else 0
            scan = self.scan(file)
            news[_file_name(file)] = self._extent(file)
            units = _units(scan, skip)
            if units:
                streams.append(_Stream(_file_name(file), units, self._stored(name, spool, file, skip, units)))
        if name == "losses":
            streams += self._damage_streams(absorbed, news)
        if self._earlier(name).is_file():
            if not news:
                return None
            streams.insert(0, _sealed_stream(self._earlier(name), name))
        if not streams:
            return 0
        writer = TableWriter(destination, name, stored_schema(name), self._absorbing(name, news), level)
        for rows in _merged(streams, name, _POOL_ROWS):
            writer.add(rows)
        written = writer.close()
        expected = sum(rows for stream in streams for rows, _ in stream.units)
        if written != expected:
            raise RunDamaged(
                f"{name}: {written} rows were written where the spool holds {expected}; a file changed meanwhile"
            )
        return written

    def _stored(
        self, name: str, spool: SpoolDirectory, file: StreamFile, skip: int, units: list[tuple[int, int]]
    ) -> Iterator[pa.Table]:
        numbers = (self._numbers or {}).get(spool.name)
        if numbers is None:
            numbers = KeyNumbers(spool.name, np.empty(0, np.int64), np.empty(0, np.int64))
        for batches in _unit_batches(file, skip, units):
            if batches:
                yield to_stored(name, batches, spool.server_id, spool.role, numbers)

    def _damage_streams(self, absorbed: Absorbed, news: Absorbed) -> list[_Stream]:
        """Say of every damaged file, as a row of `losses`, that its end is lost."""
        streams = []
        for spool in self.spools:
            for file in spool.files.values():
                damage, mark = self.damage(spool, file), f"damage of {_file_name(file)}"
                if damage is None or mark in absorbed:
                    continue
                news[mark] = [1, 0, 0]
                when = spool.last_sign_ns or file.path.stat().st_mtime_ns
                detail = f"the last {damage.lost_bytes} bytes of {_file_name(file)} cannot be read: {damage.reason}"
                row = {
                    "server_id": spool.server_id, "role": spool.role, "time_ns": when, "kind": "damaged",
                    "table": file.table, "row_count": None, "detail": detail,
                }  # fmt: skip
                table = pa.Table.from_pylist([row], schema=stored_schema("losses"))
                streams.append(_Stream(mark, [(1, when)], iter([table])))
        return streams

    def _extent(self, file: StreamFile) -> list[int]:
        return [self.scan(file).row_count, file.size_bytes, file.mark()]

    def _absorbing(self, name: str, news: Absorbed) -> dict[bytes, bytes]:
        return {_ABSORBED: json.dumps({**read_absorbed(self._earlier(name)), **news}).encode()}

    # ------------------------------------------------------------ spools

    def spool_rows(self) -> pa.Table:
        """Return one row per spool directory, those that a seal took away included."""
        earlier = self._earlier_spools
        rows = [self._spool_row(spool, earlier.pop(spool.name, {})) for spool in self.spools]
        return pa.Table.from_pylist([*earlier.values(), *rows], schema=SPOOL_SCHEMA)

    def column_rows(self) -> pa.Table:
        """Return one row per column of the sealed files, with its unit and meaning: they tell names and types only."""
        schemas = {name: stored_schema(name) for name in self.names()} | {"keys": KEY_SCHEMA}
        # A file that an older recup wrote, and to which no row came, is as it was.
        present = {
            name: open_parquet(self._earlier(name)).schema_arrow.names
            for name in schemas
            if self._earlier(name).is_file()
        }
        rows = [
            {"table": name, "column": field.name}
            | {word.decode(): text.decode() for word, text in field.metadata.items()}
            for name, schema in (schemas | {"spools": SPOOL_SCHEMA}).items()
            for field in schema
            if name == "spools" or field.name in present.get(name, ())
        ]
        return pa.Table.from_pylist(rows, schema=pa.schema([(c, pa.string()) for c in _DESCRIPTION]))

    def _spool_row(self, spool: SpoolDirectory, earlier: dict[str, Any]) -> dict[str, Any]:
        damages = [(file, self.damage(spool, file)) for file in spool.files.values()]
        # A server that outlived a seal goes on in the same directory: what it wrote before counts on.
        counts = json.loads(earlier.get("file_rows", "{}"))
        extents = json.loads(earlier.get("file_extents", "{}"))
        for name, file in spool.files.items():
            _, size, mark = extents.get(name, [0, -1, 0])
            goes_on = 0 <= size <= file.size_bytes and file.mark(size) == mark
            counts[name] = self.scan(file).row_count + (0 if goes_on else counts.get(name, 0))
        return {
            "server_id": spool.server_id,
            "role": spool.role,
            "directory": spool.name,
            "epoch": spool.epoch,
            "pid": _integer(spool.status.get("pid")),
            "is_closed": spool.is_closed,
            "last_sign_ns": _integer(spool.last_sign_ns),
            "is_alive": spool.is_alive,
            "file_rows": json.dumps(counts),
            "status_rows": _counts(spool.status.get("row_counts")),
            "unwritten_losses": _counts(spool.status.get("unwritten_losses")),
            "counters": _counts(spool.status.get("counters")),
            "damages": json.dumps(
                [[file.path.name, damage.lost_bytes, damage.reason] for file, damage in damages if damage is not None]
                + [[name, None, "no table of recup"] for name in spool.strange_files]
            ),
            "file_extents": json.dumps({name: self._extent(file) for name, file in spool.files.items()}),
        }

    @functools.cached_property
    def _earlier_spools(self) -> dict[str, dict[str, Any]]:
        path = self._earlier("spools")
        return {row["directory"]: row for row in read_parquet(path).to_pylist()} if path.is_file() else {}

    def unreadable(self) -> dict[str, str]:
        """Return sealed tables that have rows and whose file is not there, or no Parquet file, with what is wrong."""
        found = {}
        rows = Counter[str]()
        for spool in self._earlier_spools.values():
            rows.update(json.loads(spool["file_rows"]))
        for name in sorted(name for name, count in rows.items() if count):
            try:
                with open(self.sealed / f"{name}.parquet", "rb") as file:
                    begins = file.read(4)
                    file.seek(-4, os.SEEK_END)
                    if begins != _MAGIC or file.read(4) != _MAGIC:
                        found[name] = "is damaged"
            except FileNotFoundError:
                found[name] = "is not there"
            except OSError as reason:
                found[name] = f"cannot be read ({reason.strerror or reason})"
        return found

    def is_absorbed(self) -> bool:
        """Whether the sealed tables hold all there is in the spool, told by the sizes and ends of files."""
        if not self._earlier("spools").is_file():
            return False
        known = {name: json.loads(row["file_extents"]) for name, row in self._earlier_spools.items()}
        # A closed server whose spool was taken away may still write its status: that alone is no row.
        return all(
            spool.name in known
            and all(known[spool.name].get(name, [])[1:] == [f.size_bytes, f.mark()] for name, f in spool.files.items())
            for spool in self.spools
        )


def _file_name(file: StreamFile) -> str:
    return f"{file.path.parent.name}/{file.path.name}"


def _counts(value: Any) -> str:
    numbers = {k: v for k, v in value.items() if isinstance(v, int | float)} if isinstance(value, dict) else {}
    return json.dumps(numbers)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and abs(value) < 1 << 62 else None


def _read_keys(file: StreamFile) -> tuple[npt.NDArray[np.int64], pa.ChunkedArray, pa.ChunkedArray]:
    """Return number, text and type of the keys in one spool, as far as they are whole."""
    rows = pa.Table.from_batches(
        list(file.batches()),
        schema=None if file.size_bytes and file.scan().batches else _NO_KEYS,
    ).unify_dictionaries()
    local = pc.fill_null(rows.column("key_id"), -1).to_numpy().astype(np.int64)
    return local, rows.column("key"), rows.column("key_type")


_NO_KEYS = pa.schema(
    [("key_id", pa.int64()), ("key", pa.string()), ("key_type", pa.dictionary(pa.int32(), pa.string()))]
)


def _identities(columns: Sequence[tuple[Any, Any]]) -> tuple[list[pa.Array], list[str]]:
    """Return one text per key that tells text and type apart: "<number of the type>:<text>"."""
    types: dict[str, int] = {}
    identities: list[pa.Array] = []
    for texts, key_types in columns:
        for text, key_type in zip(texts.chunks, key_types.chunks, strict=True) if len(texts) else ():
            codes = [types.setdefault(name or "", len(types)) for name in key_type.dictionary.to_pylist()]
            prefix = pc.take(pa.array([f"{code}:" for code in codes], pa.large_string()), key_type.indices)
            whole = pc.binary_join_element_wise(
                pc.fill_null(prefix, f"{types.setdefault('', len(types))}:"),
                pc.cast(pc.fill_null(text, ""), pa.large_string()),
                pa.scalar("", pa.large_string()),
            )
            identities.append(whole)
    return identities, list(types)


def _key_texts(rows: pa.Table) -> pa.ChunkedArray:
    """Return the texts of stored keys."""
    tokens = [None if each is None else each.hex() for each in rows.column("token").to_pylist()]
    token = pa.array(tokens, pa.string())
    before, after = rows.column("before").combine_chunks(), rows.column("after").combine_chunks()
    joined = pc.binary_join_element_wise(before, token, after, "")
    return pa.chunked_array([pc.if_else(pc.is_valid(token), joined, before)])


def _sealed_stream(path: Path, table: str) -> _Stream:
    file = open_parquet(path)
    groups = range(file.num_row_groups)
    columns = [name for name in merge_columns(table) if name in file.schema_arrow.names]
    units = []
    for group in groups:
        first = 0
        if columns:
            first = int(order_values(merge_values(table, file.read_row_group(group, columns=columns))).min())
        units.append((file.metadata.row_group(group).num_rows, first))
    return _Stream(path.name, units, (as_stored_now(table, file.read_row_group(group)) for group in groups))


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a sealed table.

    Raises
    ------
    RunDamaged
        It is no readable Parquet file.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as reason:
        raise RunDamaged(
            f"{path} cannot be read: {reason}. If the run's spool is there, move the file away and run `recup seal`."
        ) from reason


def read_parquet(path: Path) -> pa.Table:
    """Read a sealed table whole; raises RunDamaged when it cannot be."""
    try:
        return open_parquet(path).read()
    except (pa.ArrowException, OSError, ValueError) as reason:
        raise RunDamaged(f"{path} cannot be read: {reason}.") from reason


def read_absorbed(path: Path) -> Absorbed:
    """Return which rows of which spool files a sealed table holds."""
    if not path.is_file():
        return {}
    content = (open_parquet(path).metadata.metadata or {}).get(_ABSORBED, b"{}")
    absorbed: Absorbed = json.loads(content)
    return absorbed
