"""How the rows of a table are stored in Parquet, and the SQL that gives them back exactly.

A run of a million tasks is 14 million rows; most of their volume is text and numbers that
repeat what other columns say.  Stored are therefore

* keys as numbers into `keys`, given out in the order in which tasks were first assigned:
  attempts, transitions and keys then count up together;
* `run_id` as its distance from the number of the key (0 where nothing is retried);
* `start`, `finish` and the cause of a transition as one text of few values, ``start>finish>cause``;
* `stimulus_id` of transitions as its cause and its time, where the text is
  ``<cause>-<repr of the time>``, else whole;
* a stop as the duration since the start, where start + duration is exactly the stop;
* the moment of a transition in microseconds, where it is a whole number of them;
* the text of a key without its 32-digit hexadecimal token, and the token as 16 bytes;
* rows of a row group in an order that puts like beside like: row groups are disjoint in
  time, so time still prunes them.

Covers both directions for one batch of rows.  It does not cover files (`recup.sealing`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recup.schema import TABLES, Column

Int64s = npt.NDArray[np.int64]

_SERVER_ID = Column("Server id of the observer", name="server_id", kind="category")
_ROLE = Column("Role of the observer: scheduler, worker, nanny, client or launcher", name="role", kind="category")

_CATEGORY = pa.dictionary(pa.int32(), pa.string())
_TYPES = {
    "int64": pa.int64(),
    "key": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "category": _CATEGORY,
}
SQL_TYPES = {
    "int64": "bigint",
    "key": "varchar",
    "float64": "double",
    "bool": "boolean",
    "text": "varchar",
    "category": "varchar",
}

LOCAL_ORDER: dict[str, tuple[str, ...]] = {
    "scheduler_transitions": (),
    "results": ("worker", "compute_start_s"),
    "startstops": ("key_id", "run_id_offset", "role"),
    "receptions": ("server_id", "key_id"),
    "tasks": ("server_id", "submission", "priority_order"),
    "dependencies": ("server_id", "submission", "key_id", "dependency_id"),
    "fused_tasks": ("server_id", "submission", "key_id", "inner_key_id"),
    "samples": ("metric", "server_id", "subject"),
    "fine_metrics": ("context", "activity", "prefix", "span_id", "server_id"),
}
"""Order of the rows inside one row group; elsewhere by server, then as written."""

_TRANSITIONS = ("scheduler_transitions", "worker_transitions")
_STOPS = {
    "results": ("compute_start_s", "compute_stop_s", "compute_duration_s"),
    "startstops": ("start_s", "stop_s", "duration_s"),
    "transfers": ("start_s", "stop_s", "duration_s"),
}
_MOMENTS = (*_TRANSITIONS, "results", "receptions")
"""Tables whose `time_ns` is recorded in whole microseconds; older recups recorded nanoseconds."""
_STIMULUS = r"^(?s:(?P<cause>.*))-(?P<time>[1-9][0-9]{9,10}\.[0-9]{1,7})$"
_TOKEN = r"^(?s:(?P<before>.*?))(?P<token>[0-9a-f]{32})(?s:(?P<after>.*))$"
_EXTREME = 1 << 61
"""A run id this large is no run id and is stored as null: its distance might not fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredColumn:
    """One column of a Parquet file: its type, and the schema's words about it."""

    name: str
    arrow_type: pa.DataType
    meaning: str
    unit: str | None = None

    @property
    def field(self) -> pa.Field:
        """Arrow field with meaning and unit as metadata."""
        notes = {"meaning": self.meaning, **({"unit": self.unit} if self.unit else {})}
        return pa.field(self.name, self.arrow_type, metadata=notes)


def observer_columns(table: str) -> tuple[Column, Column]:
    """Return the two first columns of an opened table; `observer_role` where it has a `role` of its own."""
    taken = "role" in TABLES[table].column_names
    return _SERVER_ID, dataclasses.replace(_ROLE, name="observer_role") if taken else _ROLE


def merge_column(table: str) -> str | None:
    """Return the column by whose value rows of several servers are put in order; None keeps the order of files."""
    if table == "keys":
        return None
    return "start_s" if table == "startstops" else next(iter(TABLES[table].sort), None)


def merge_columns(table: str) -> list[str]:
    """Return the stored columns that hold the values of `merge_column`; an older recup wrote no `time_us`."""
    column = merge_column(table)
    return [] if column is None else ["time_us", column] if table in _MOMENTS else [column]


def merge_values(table: str, rows: pa.Table) -> pa.Array:
    """Return the values of `merge_column`, of a table that has one, out of rows in stored form."""
    values = rows.column(merge_column(table)).combine_chunks()
    if "time_us" not in rows.column_names:
        return values
    return pc.coalesce(pc.multiply(rows.column("time_us").combine_chunks(), 1000), values)


def stored_columns(table: str) -> list[StoredColumn]:
    """Return the columns of a table's Parquet file, in order."""
    stored = [StoredColumn(c.name, _TYPES[c.kind], c.meaning) for c in observer_columns(table)]
    for column in TABLES[table].columns:
        if column.kind == "key":
            stored.append(StoredColumn(f"{column.name}_id", pa.int64(), f"{column.meaning}: number into `keys`"))
        elif _is_attempt(table, column):
            stored.append(StoredColumn("run_id_offset", pa.int64(), "run_id less key_id"))
        elif column.name == "stimulus_id" and table in _TRANSITIONS:
            stored.append(
                StoredColumn(
                    "change", _CATEGORY, "start>finish or start>finish>cause, cause being stimulus_id less its time"
                )
            )
            stored.append(StoredColumn("stimulus_cause", _CATEGORY, "The cause where `change` cannot hold it"))
            stored.append(StoredColumn("stimulus_s", pa.float64(), "Time at the end of stimulus_id", "s"))
        elif column.name == "time_ns" and table in _MOMENTS:
            stored.append(StoredColumn("time_us", pa.int64(), column.meaning, "us"))
            meaning = f"{column.meaning}; only where time_us does not tell"
            stored.append(StoredColumn("time_ns", pa.int64(), meaning, column.unit))
        elif column.name == _STOPS.get(table, ("", "", ""))[1]:
            start, _, duration = _STOPS[table]
            stored.append(StoredColumn(duration, pa.float64(), f"{column.name} less {start}", "s"))
            stored.append(
                StoredColumn(column.name, pa.float64(), f"{column.meaning}; only where {duration} does not tell", "s")
            )
        else:
            stored.append(StoredColumn(column.name, _TYPES[column.kind], column.meaning, column.unit))
    return stored


def stored_schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a table's Parquet file."""
    return pa.schema([column.field for column in stored_columns(table)])


def _is_attempt(table: str, column: Column) -> bool:
    return column.name == "run_id" and any(c.name == "key" and c.kind == "key" for c in TABLES[table].columns)


# ---------------------------------------------------------------- rows to their stored form


class KeyNumbers:
    """Numbers of one spool's keys in the run.

    A key whose text is lost gets a negative number of its own, made from the spool's name:
    it has no row in `keys`, and rows about it still belong together.
    """

    def __init__(self, spool_name: str, local: Int64s, number: Int64s):
        order = np.argsort(local, kind="stable")
        self._local, self._number = local[order], number[order]
        self._unknown_base = (zlib.crc32(spool_name.encode()) >> 2) << 32

    def of(self, values: pa.Array) -> pa.Array:
        """Return the run's numbers of this spool's numbers; null stays null."""
        mask = ~np.asarray(pc.is_valid(values))
        wanted = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        unknown = -1 - (self._unknown_base + (wanted & 0xFFFFFFFF))
        if not len(self._local):
            return pa.array(unknown, mask=mask)
        places = np.minimum(np.searchsorted(self._local, wanted), len(self._local) - 1)
        return pa.array(np.where(self._local[places] == wanted, self._number[places], unknown), mask=mask)


def to_stored(table: str, batches: Sequence[pa.RecordBatch], server_id: str, role: str, keys: KeyNumbers) -> pa.Table:
    """Return batches of one stream in stored form, as one chunk.

    A column that the stream lacks (an older recup wrote it) is null.
    """
    rows = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    count = rows.num_rows
    observer, observer_role = observer_columns(table)
    arrays: dict[str, pa.Array] = {
        observer.name: _constant(server_id, count),
        observer_role.name: _constant(role, count),
    }
    for column in TABLES[table].columns:
        values = _column(rows, column)
        if column.kind == "key":
            arrays[f"{column.name}_id"] = keys.of(values)
        elif _is_attempt(table, column):
            arrays["run_id_offset"] = _offset(values, arrays["key_id"])
        else:
            arrays[column.name] = values
    if table in _TRANSITIONS:
        arrays |= _change(arrays["start"], arrays["finish"], *_split_stimulus(arrays["stimulus_id"]))
    if table in _MOMENTS:
        arrays["time_us"], arrays["time_ns"] = _microseconds(arrays["time_ns"])
    if table in _STOPS:
        start, stop, duration = _STOPS[table]
        arrays[duration], arrays[stop] = _duration(arrays[start], arrays[stop])
    schema = stored_schema(table)
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def as_stored_now(table: str, rows: pa.Table) -> pa.Table:
    """Return rows in stored form, which an older recup may have written, in the form of this one."""
    schema = stored_schema(table)
    if table in _MOMENTS and "time_us" not in rows.column_names:
        times_us, times_ns = _microseconds(rows.column("time_ns").combine_chunks())
        rows = rows.drop_columns("time_ns").append_column("time_us", times_us).append_column("time_ns", times_ns)
        rows = rows.select(schema.names)
    return rows.cast(schema)


def _constant(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text], pa.string()))


def _column(rows: pa.Table, column: Column) -> pa.Array:
    if rows.schema.get_field_index(column.name) < 0:
        missing = pa.int32() if column.kind == "key" else _TYPES[column.kind]
        return pa.nulls(rows.num_rows, missing)
    chunks = rows.column(column.name)
    return chunks.chunk(0) if chunks.num_chunks else pa.nulls(0, chunks.type)


def _offset(run_ids: pa.Array, key_ids: pa.Array) -> pa.Array:
    values = pc.fill_null(run_ids, _EXTREME).to_numpy(zero_copy_only=False)
    mask = (values >= _EXTREME) | (values <= -_EXTREME)
    base = pc.fill_null(key_ids, 0).to_numpy(zero_copy_only=False)
    return pa.array(np.where(mask, 0, values) - base, mask=mask)


def _split_stimulus(values: pa.DictionaryArray) -> tuple[pa.Array, pa.Array]:
    """Return cause and time; each distinct text is split once, and stays whole when its parts do not give it back."""
    texts = values.dictionary
    parts = pc.extract_regex(texts, _STIMULUS)
    causes, times = pc.struct_field(parts, "cause"), pc.struct_field(parts, "time")
    seconds = pc.cast(times, pa.float64())
    exact = pc.fill_null(pc.equal(pc.cast(seconds, pa.string()), times), False)
    causes = pc.dictionary_encode(pc.if_else(exact, causes, texts))
    cause = pa.DictionaryArray.from_arrays(pc.take(causes.indices, values.indices), causes.dictionary)
    return cause, pc.take(pc.if_else(exact, seconds, pa.scalar(None, pa.float64())), values.indices)


def _change(start: pa.Array, finish: pa.Array, cause: pa.Array, time_s: pa.Array) -> dict[str, pa.Array]:
    """Return the stored columns of transitions; `change` is null where its parts could not be told apart."""
    parts = (start, finish, cause)
    codes = [pc.fill_null(part.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) for part in parts]
    words = [[*part.dictionary.to_pylist(), None] for part in parts]
    combined = (codes[0] * (len(words[1]) + 1) + codes[1]) * (len(words[2]) + 1) + codes[2]
    _, first, places = np.unique(combined, return_index=True, return_inverse=True)
    texts = []
    for row in first:
        one, two, three = (word[code[row]] for word, code in zip(words, codes, strict=True))
        told = one is not None and two is not None and ">" not in one + two
        texts.append((f"{one}>{two}" if three is None else f"{one}>{two}>{three}") if told else None)
    change = pa.array(texts, pa.string()).dictionary_encode()
    change = pa.DictionaryArray.from_arrays(pc.take(change.indices, pa.array(places)), change.dictionary)
    untold = pc.is_null(change)
    nothing = pa.scalar(None, pa.string())

    def kept(part: pa.Array) -> pa.Array:
        if not pc.any(untold).as_py():
            return pa.nulls(len(part), _CATEGORY)
        return pc.if_else(untold, pc.cast(part, pa.string()), nothing).dictionary_encode()

    return {
        "start": kept(start),
        "finish": kept(finish),
        "change": change,
        "stimulus_cause": kept(cause),
        "stimulus_s": time_s,
    }


def _microseconds(times: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return times in microseconds, and in nanoseconds those that are no whole number of them."""
    exact = pc.fill_null(times, 1).to_numpy(zero_copy_only=False)
    micro = exact // 1000
    # Of the lowest numbers the product wraps around, and is then no equal.
    told = micro * 1000 == exact
    return pa.array(micro, mask=~told), pc.if_else(pa.array(told), pa.scalar(None, pa.int64()), times)


def _duration(start: pa.Array, stop: pa.Array) -> tuple[pa.Array, pa.Array]:
    begin, end = (pc.fill_null(each, np.nan).to_numpy(zero_copy_only=False) for each in (start, stop))
    with np.errstate(invalid="ignore", over="ignore"):
        duration = end - begin
        # Compared as bits: -0.0 equals 0.0 and is not the same.
        told = ((begin + duration).view(np.int64) == end.view(np.int64)) & ~np.isnan(end)
    return pa.array(duration, mask=~told), pc.if_else(pa.array(told), pa.scalar(None, pa.float64()), stop)


# ---------------------------------------------------------------- keys

KEY_SCHEMA = pa.schema(
    [
        StoredColumn("key_id", pa.int64(), "Number of the key in this run").field,
        StoredColumn("before", pa.string(), "Text of the key before its token; all of it where there is none").field,
        StoredColumn("token", pa.binary(16), "First 32 hexadecimal digits of the key").field,
        StoredColumn("after", pa.string(), "Text of the key after its token").field,
        StoredColumn("key_type", _CATEGORY, "str, tuple, int, float, bytes or the class of the key").field,
    ]
)


def keys_to_stored(first_number: int, texts: pa.Array, key_types: pa.Array) -> pa.Table:
    """Return keys, numbered from `first_number`, in stored form."""
    parts = pc.extract_regex(texts, _TOKEN)
    before, token, after = (pc.struct_field(parts, name) for name in ("before", "token", "after"))
    has_token = pc.is_valid(token)
    digits = np.frombuffer("".join(token.drop_null().to_pylist()).encode(), np.uint8).reshape(-1, 2)
    nibbles = np.where(digits > 57, digits - 87, digits - 48).astype(np.uint8)
    packed = pa.Array.from_buffers(
        pa.binary(16), len(nibbles) // 16, [None, pa.py_buffer((nibbles[:, 0] << 4 | nibbles[:, 1]).tobytes())]
    )
    places = np.cumsum(np.asarray(has_token)) - 1
    numbers = np.arange(first_number, first_number + len(texts))
    arrays = [
        pa.array(numbers),
        pc.if_else(has_token, before, texts),
        pc.take(packed, pa.array(places, mask=~np.asarray(has_token))),
        after,
        key_types if pa.types.is_dictionary(key_types.type) else pc.dictionary_encode(key_types),
    ]
    return pa.Table.from_arrays(arrays, schema=KEY_SCHEMA)


KEYS_SQL = """
select
    key_id,
    case when token is null then before else before || lower(hex(token)) || after end as key,
    key_type
from {source}
"""
"""The table `keys` as documented."""

# ---------------------------------------------------------------- stored form back to rows


_CHANGE_SQL = {
    "start": "coalesce(split_part(change, '>', 1), start)",
    "finish": "coalesce(split_part(change, '>', 2), finish)",
    "stimulus_id": (
        "coalesce(case when change ^@ (split_part(change, '>', 1) || '>' || split_part(change, '>', 2) || '>') "
        "then substr(change, length(split_part(change, '>', 1)) + length(split_part(change, '>', 2)) + 3) end, "
        "stimulus_cause) || case when stimulus_s is null then '' else '-' || cast(stimulus_s as varchar) end"
    ),
}


FILLED_SQL = """
select path_in_schema
from parquet_metadata({path})
where path_in_schema in ('time_us', 'time_ns')
group by path_in_schema
having sum(num_values - coalesce(stats_null_count, 0)) > 0
"""
"""Which of the two columns of times hold any value in a Parquet file."""


def raw_select(table: str, source: str, filled: Collection[str] = ("time_us", "time_ns")) -> str:
    """Return the query for a table with its documented columns, keys as numbers only.

    Of transitions also `stimulus_s`, the time at the end of `stimulus_id` (null: none was split off): to put the text
    together costs more than all else, so rows of a few causes are best told by this first.

    `filled` are the columns of times that hold any value in the source (`FILLED_SQL`): a file of an older recup has no
    `time_us`, and DuckDB leaves out row groups by a time only where one column tells it.
    """
    expressions = [column.name for column in observer_columns(table)]
    for column in TABLES[table].columns:
        if column.kind == "key":
            expressions.append(f"{column.name}_id")
        elif _is_attempt(table, column):
            expressions.append("coalesce(key_id, 0) + run_id_offset as run_id")
        elif table in _TRANSITIONS and column.name in _CHANGE_SQL:
            expressions.append(f"{_CHANGE_SQL[column.name]} as {column.name}")
        elif column.name == _STOPS.get(table, ("", "", ""))[1]:
            start, stop, duration = _STOPS[table]
            expressions.append(f"coalesce({start} + {duration}, {stop}) as {stop}")
        elif column.name == "time_ns" and table in _MOMENTS and "time_us" in filled:
            exact = "coalesce(time_us * 1000, time_ns)" if "time_ns" in filled else "time_us * 1000"
            expressions.append(f"{exact} as time_ns")
        else:
            expressions.append(f'"{column.name}"')
    if table in _TRANSITIONS:
        expressions.append("stimulus_s")
    return f"select {', '.join(expressions)} from {source}"


def documented_select(table: str) -> str:
    """Return the query for a table as documented: keys as text, beside their numbers."""
    expressions = [f"t.{column.name}" for column in observer_columns(table)]
    joins = []
    for column in TABLES[table].columns:
        if column.kind == "key":
            alias = f"k_{column.name}"
            expressions += [f'{alias}.key as "{column.name}"', f"t.{column.name}_id"]
            joins.append(f"left join keys {alias} on {alias}.key_id = t.{column.name}_id")
        else:
            expressions.append(f't."{column.name}"')
    return f"select {', '.join(expressions)} from raw.{table} t {' '.join(joins)}"


def documented_columns(table: str) -> list[tuple[str, str, Column]]:
    """Return (name, SQL type, column of the schema) of a table as documented, in order."""
    found = [(column.name, "varchar", column) for column in observer_columns(table)]
    for column in TABLES[table].columns:
        found.append((column.name, SQL_TYPES[column.kind], column))
        if column.kind == "key":
            number = dataclasses.replace(column, meaning=f"{column.meaning}: number into `keys`", kind="int64")
            found.append((f"{column.name}_id", "bigint", number))
    return found


def raw_columns(table: str) -> list[tuple[str, str]]:
    """Return (name, SQL type) of a table with keys as numbers only, in order."""
    found = [
        (name, sql_type)
        for name, sql_type, column in documented_columns(table)
        if not (column.kind == "key" and name == column.name)
    ]
    return [*found, ("stimulus_s", "double")] if table in _TRANSITIONS else found
