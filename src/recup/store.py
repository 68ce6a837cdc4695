"""A run opened for reading: its tables and views in SQL, Arrow or pandas.

The same code opens a run that was sealed, one that was not, one that is still growing and
one that was killed.  What is not sealed is made into Parquet in a temporary directory,
table by table as they are asked for, and shows the state of the moment of opening.

Covers opening and asking.  It does not cover what views say (`recup.fuse`, loaded from
here so that it is not imported from its left), sealing (`recup.sealing`), nor files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import html
import importlib
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recup import __version__
from recup.derived import answer_digest, keep_answer, tables_digest, take_answer
from recup.errors import BadQuery, RecupError, RunDamaged
from recup.run_tables import SPOOL_COLUMNS, Tables
from recup.rundir import find_run, read_manifest
from recup.schema import TABLES, VERSION
from recup.sealing import RunStillWritten, SealReport, seal
from recup.spool_files import KEY_COLUMNS
from recup.storage import (
    FILLED_SQL,
    KEYS_SQL,
    documented_columns,
    documented_select,
    merge_columns,
    raw_columns,
    raw_select,
)

if TYPE_CHECKING:
    import pandas

__all__ = ["MissingExtra", "Run", "RunStillWritten", "SealReport", "View", "ViewColumn", "open_run", "seal"]

VIEW_MODULES = ("recup.fuse",)
"""Modules whose `VIEWS` every run offers."""

_MEMORY_BYTES = 5 << 29
"""What DuckDB may hold, so that a process that asks stays below 4 GB; the rest goes to the spill directory."""
_WORTH_KEEPING_S = 0.2
"""An answer that took less is computed anew by the next command: small runs stay as they are."""
_THREADS = 8
"""More threads of DuckDB hold more at a time and gain little on tables of this size."""
_TOGETHER = 2
"""Calls made at the same time: each holds arrays of its own, and DuckDB has threads for what they ask."""
_PARQUET_ERRORS = (duckdb.Error, pa.ArrowException, OSError)
_WORD = re.compile(r"\w+")
_LISTING_WORDS = {"show", "duckdb_tables", "duckdb_views", "duckdb_columns", "information_schema"}
_TABLE_NAMES = (*TABLES, "keys", "spools")


class MissingExtra(RecupError):
    """A library that this one call needs is not installed."""


@dataclasses.dataclass(frozen=True, slots=True)
class ViewColumn:
    """One column of a view."""

    name: str
    meaning: str
    unit: str | None = None
    null: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A conclusion drawn from raw tables.

    Attributes
    ----------
    name, meaning : str
        What it is called and what one row says.
    columns : tuple of ViewColumn
        Its columns, in the order the query gives them.
    sql : str
        The query, on tables `raw.<table>` (keys as numbers), `keys`, `spools` and other views.
    is_kept : bool
        Whether the answer is kept once asked for, since others build on it: in memory, and of
        a sealed run on disk for the next command (`recup.derived`).
    is_inner : bool
        Whether it only serves other views.
    """

    name: str
    meaning: str
    columns: tuple[ViewColumn, ...]
    sql: str
    is_kept: bool = False
    is_inner: bool = False


def open_run(path_or_name: str | os.PathLike[str] = "last") -> Run:
    """Open a run for reading: a directory, a run id, the start of one, or ``last``.

    Raises
    ------
    RunNotFound, RunTooNew, RunDamaged
        There is no such run, or it cannot be read by this recup.
    """
    return Run(find_run(path_or_name))


class Run:
    """One run, open for reading; a context manager.

    Attributes
    ----------
    path : Path
        The run directory.
    run_id : str
        Its name.
    manifest : dict
        Content of `run.json`, or what stands for it.
    is_sealed : bool
        Whether its tables hold all its rows.
    unreadable : dict of str
        Sealed tables whose file is damaged or gone, with which of it; they are asked as if they
        had no rows, and the completeness statement says so.
    tables, views : tuple of str
        What can be asked for.  A table without rows is there, with its columns.

    Raises
    ------
    RunNotFound, RunTooNew, RunDamaged
        The directory cannot be read as a run.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.run_id = str(self.manifest.get("run_id") or self.path.name)
        self._source = Tables(self.path)
        self.is_sealed = self._source.is_absorbed()
        self.unreadable: dict[str, str] = self._source.unreadable() if self.is_sealed else {}
        self._views = {view.name: view for name in VIEW_MODULES for view in importlib.import_module(name).VIEWS}
        self.tables: tuple[str, ...] = _TABLE_NAMES
        self.views: tuple[str, ...] = tuple(view.name for view in self._views.values() if not view.is_inner)
        # Names with * or [ would be patterns to DuckDB: it is shown links instead.
        self._directory = Path(tempfile.mkdtemp(prefix="recup-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._ready: set[str] = set()
        self._has_keys = False
        self._making = threading.RLock()
        self._own = threading.local()
        try:
            self._connection = self._connect()
        except BaseException:
            self._remove()
            raise

    def _connect(self) -> duckdb.DuckDBPyConnection:
        sealed = self._directory / "sealed"
        with contextlib.suppress(OSError):
            sealed.symlink_to(self._source.sealed)
        allowed = [f"{self._directory}/", f"{self._source.sealed}/"]
        connection = duckdb.connect(":memory:")
        connection.execute("create schema raw")
        connection.execute(f"set temp_directory = {_quoted(str(self._directory / 'spill'))}")
        connection.execute(f"set memory_limit = '{_memory_bytes()}B'")
        connection.execute(f"set threads = {min(_THREADS, len(os.sched_getaffinity(0)))}")
        # It would go to stdout, among what is asked for.  In a notebook without ipywidgets it can only be left as it is.
        with contextlib.suppress(duckdb.InvalidInputException):
            connection.execute("set enable_progress_bar = false")
        connection.execute("set global python_enable_replacements = false")  # of cursors too
        connection.execute("set python_enable_replacements = false")
        connection.execute("set autoinstall_known_extensions = false")
        connection.execute("set autoload_known_extensions = false")
        connection.execute(f"set allowed_directories = [{', '.join(map(_quoted, allowed))}]")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        return connection

    # ------------------------------------------------------------ asking

    def sql(self, query: str, parameters: Sequence[Any] | None = None) -> duckdb.DuckDBPyRelation:
        """Return the answer to a query on the run's tables and views, as a DuckDB relation.

        Tables have their documented names and columns, keys as text and as number
        (``key``, ``key_id``); as ``raw.<table>`` they have the numbers only, which is
        faster.  One statement, reading only; no other file can be read.

        Raises
        ------
        BadQuery
            The query cannot be understood, or would change something.
        """
        connection: duckdb.DuckDBPyConnection = getattr(self._own, "connection", self._connection)
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1:
                raise BadQuery(f"One statement is asked at a time; this is {len(statements)}.")
            if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise BadQuery("A run is only read: use select, from, with, describe, summarize, show or explain.")
            self._ensure(self._names_in(query))
            return connection.sql(query, params=list(parameters) if parameters else None)
        except duckdb.Error as reason:
            raise BadQuery(one_line(reason)) from reason

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what calls that ask this run return, in their order, made a few at a time in threads.

        No relation of them may be used afterwards.  What a call raises is raised here, that
        of the first in order; calls not begun by then are not made.
        """

        def asked(call: Callable[[], Any]) -> Any:
            self._own.connection = self._connection.cursor()
            try:
                return call()
            finally:
                self._own.connection.close()
                del self._own.connection

        count = min(_TOGETHER, len(os.sched_getaffinity(0)), len(calls))
        if count < 2:
            return [call() for call in calls]
        with ThreadPoolExecutor(count, thread_name_prefix="recup-asks") as pool:
            begun = [pool.submit(asked, call) for call in calls]
            try:
                return [each.result() for each in begun]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def relation(self, name: str) -> duckdb.DuckDBPyRelation:
        """Return a table or view as a DuckDB relation, in no particular order."""
        self._check_name(name)
        return self.sql(f'from "{name}"')

    def arrow(self, name: str) -> pa.Table:
        """Return a table or view as an Arrow table, with meaning and unit of each column as field metadata.

        Rows are in the order of the table's own time, where it has one.
        """
        self._check_name(name)
        order = TABLES[name].sort if name in TABLES else ()
        query = f'from "{name}"' + (f" order by {', '.join(order)}" if order else "")
        rows = self.sql(query).to_arrow_table()
        notes = {each["column"]: each for each in self._columns_of(name)}
        fields = []
        for field in rows.schema:
            note = notes.get(field.name, {})
            told = {key: note[key] for key in ("meaning", "unit", "null") if note.get(key)}
            fields.append(field.with_metadata(told) if told else field)
        return rows.cast(pa.schema(fields, metadata={"recup_schema_version": str(VERSION), "table": name}))

    def df(self, name: str) -> pandas.DataFrame:
        """Return a table or view as a pandas DataFrame.

        Raises
        ------
        MissingExtra
            pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as reason:
            raise MissingExtra("df() needs pandas: pip install pandas. arrow() gives the same without it.") from reason
        return self.arrow(name).to_pandas()

    def schema(self) -> pa.Table:
        """Return the data dictionary: one row per column of every table and view.

        Columns: kind (table or view), table, column, type, unit, null, meaning.
        """
        rows = [
            {"kind": "view" if name in self._views else "table", "table": name, **each}
            for name in (*self.tables, *self.views)
            for each in self._columns_of(name)
        ]
        names = ("kind", "table", "column", "type", "unit", "null", "meaning")
        return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names]))

    def _columns_of(self, name: str) -> list[dict[str, str | None]]:
        if name in self._views:
            return [
                {"column": c.name, "type": None, "unit": c.unit, "null": c.null or None, "meaning": c.meaning}
                for c in self._views[name].columns
            ]
        if name == "spools":
            return [
                {"column": c.name, "type": str(c.arrow_type), "unit": c.unit, "null": None, "meaning": c.meaning}
                for c in SPOOL_COLUMNS
            ]
        columns = documented_columns(name) if name != "keys" else [(c.name, _KEY_TYPES[c.name], c) for c in KEY_COLUMNS]
        return [
            {"column": column_name, "type": kind, "unit": c.unit, "null": c.null or None, "meaning": c.meaning}
            for column_name, kind, c in columns
        ]

    # ------------------------------------------------------------ tables as they are needed

    def _check_name(self, name: str) -> None:
        if name not in self.tables and name not in self._views:
            close = difflib.get_close_matches(name, [*self.tables, *self.views], 3)
            hint = f" Did you mean {' or '.join(close)}?" if close else " `recup schema` lists them."
            raise BadQuery(f"A run has no table or view {name!r}.{hint}")

    def _names_in(self, query: str) -> set[str]:
        """Return the tables and views a query may need: every one it mentions, in whatever place."""
        known = {*self.tables, *self._views}
        words = {word.lower() for word in _WORD.findall(query)}
        return words & known or (known if words & _LISTING_WORDS else set())

    def _ensure(self, names: set[str]) -> None:
        if names <= self._ready:
            return
        with self._making:
            for name in sorted(names - self._ready):
                if name not in self._ready:
                    if name in self._views:
                        self._ensure_view(self._views[name])
                    else:
                        self._ensure_table(name)
                    self._ready.add(name)

    def _ensure_view(self, view: View) -> None:
        # Views stand on those before them only, whatever words their queries hold.
        order = list(self._views)
        self._ensure(self._names_in(view.sql) - set(order[order.index(view.name) :]))
        if not view.is_kept:
            self._connection.execute(f"create view {view.name} as {view.sql}")
            return
        digest = self._digests().get(view.name)
        if digest is not None and self._take_kept(view, digest):
            return
        begun = time.monotonic()
        self._connection.execute(f"create table {view.name} as {view.sql}")
        if digest is not None and time.monotonic() - begun >= _WORTH_KEEPING_S:
            self._keep(view, digest)

    # ------------------------------------------------------------ answers kept on disk

    def _digests(self) -> dict[str, str]:
        """Return the digest of each view whose answer may be kept on disk: none while rows may still come."""
        if not self.is_sealed:
            return {}
        try:
            parts = [__version__, duckdb.__version__, str(VERSION), tables_digest(self._source.sealed), KEYS_SQL]
        except OSError:
            return {}
        parts += [raw_select(name, name) for name in TABLES]
        digests = {}
        for view in self._views.values():
            parts.append(f"{view.name} {view.sql}")
            if view.is_kept:
                digests[view.name] = answer_digest(parts)
        return digests

    def _take_kept(self, view: View, digest: str) -> bool:
        """Have a view answered from what an earlier command kept; False where that cannot be."""
        taken = self._directory / f"kept-{view.name}.parquet"
        try:
            if not take_answer(self.path / "derived", view.name, digest, taken):
                return False
            self._connection.execute(f"create view {view.name} as from read_parquet({_quoted(str(taken))})")
        except (OSError, duckdb.Error):
            return False
        return True

    def _keep(self, view: View, digest: str) -> None:
        """Keep the answer of a view for the next command; where that cannot be, this one goes on without."""
        made = self._directory / f"made-{view.name}.parquet"
        source = _quoted(str(made))
        with contextlib.suppress(OSError, duckdb.Error):
            self._connection.execute(
                f"copy {view.name} to {source} (format parquet, compression zstd, compression_level 1)"
            )
            types = [
                self._connection.execute(f"describe from {each}").fetchall()
                for each in (view.name, f"read_parquet({source})")
            ]
            # Parquet lacks some types; and tables sealed anew meanwhile were no ground for this answer.
            if types[0] == types[1] and self._digests().get(view.name) == digest:
                keep_answer(made, self.path / "derived", view.name, digest, self._digests())
                self._connection.execute(f"alter table {view.name} rename to answer_of_{view.name}")
                if self._take_kept(view, digest):
                    self._connection.execute(f"drop table answer_of_{view.name}")
                else:
                    self._connection.execute(f"alter table answer_of_{view.name} rename to {view.name}")
        made.unlink(missing_ok=True)

    def _ensure_table(self, name: str) -> None:
        if name == "spools":
            path = self._directory / ("sealed/spools.parquet" if self.is_sealed else "spools.parquet")
            if not self.is_sealed:
                pq.write_table(self._source.spool_rows(), path)
            self._connection.execute(f"create view spools as from read_parquet({_quoted(str(path))})")
            return
        if name != "keys":
            self._ensure({"keys"})
        path_found = self._parquet(name)
        source = f"read_parquet({_quoted(str(path_found))})"
        try:
            if name == "keys":
                empty = [(column.name, _KEY_TYPES[column.name]) for column in KEY_COLUMNS]
                self._connection.execute(
                    f"create view keys as {KEYS_SQL.format(source=source) if path_found else _empty(empty)}"
                )
                return
            rows = _empty(raw_columns(name))
            if path_found is not None:
                rows = raw_select(name, source, self._filled_times(name, path_found))
            self._connection.execute(f"create view raw.{name} as {rows}")
            self._connection.execute(f"create view {name} as {documented_select(name)}")
        except duckdb.Error as reason:
            raise RunDamaged(
                f"Table {name} of {self.path} cannot be read: {one_line(reason)}. "
                f"Restore {self._source.sealed / name}.parquet from a copy of the run, or remove it to ask the rest."
            ) from reason

    def _filled_times(self, name: str, path: Path) -> list[str]:
        """Return which columns of times of a table's Parquet file hold any value; all, where it has but one."""
        columns = merge_columns(name)
        if len(columns) < 2:
            return columns
        found = self._connection.execute(FILLED_SQL.format(path=_quoted(str(path)))).fetchall()
        return [column for (column,) in found]

    def _parquet(self, name: str) -> Path | None:
        """Return the table's Parquet file as DuckDB may read it, made now if need be; None when it has no rows."""
        sealed = self._source.sealed / f"{name}.parquet"
        shown = self._directory / "sealed" / f"{name}.parquet"
        if self.is_sealed:
            return shown if sealed.is_file() and name not in self.unreadable else None
        made = self._directory / f"{name}.parquet"
        if name == "keys":
            self._source.write_keys(made, 1)
        elif self._source.write_table(name, made, 1) is None:
            return shown
        return made if made.is_file() else None

    # ------------------------------------------------------------ life

    def close(self) -> None:
        """Close the run; relations of it can no longer be asked."""
        self._connection.close()
        self._remove()

    def __enter__(self) -> Run:
        """Return the run itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the run."""
        self.close()

    def __repr__(self) -> str:
        """Show name and state."""
        return f"<recup.Run {self.run_id} {'sealed' if self.is_sealed else 'not sealed'}>"

    def _repr_html_(self) -> str:
        """Show the run in a notebook: its name, its state, and the rows of its tables."""
        counts = [(name, self._row_count(name)) for name in TABLES]
        rows = "".join(
            f"<tr><td>{name}</td><td style='text-align:right'>{count:,}</td></tr>" for name, count in counts if count
        )
        state = f"{self.manifest.get('state', 'unknown')}, {'sealed' if self.is_sealed else 'not sealed'}"
        return (
            f"<b>recup run {html.escape(self.run_id)}</b> ({html.escape(state)})<br>"
            f"<code>{html.escape(str(self.path))}</code>"
            f"<table><thead><tr><th>table</th><th>rows</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    def _row_count(self, name: str) -> int:
        return int(self.sql(f"select count(*) from raw.{name}").fetchall()[0][0])


def _memory_bytes() -> int:
    """Return what DuckDB may hold: less on a machine that has little."""
    return min(_MEMORY_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


_KEY_TYPES = {"key_id": "bigint", "key": "varchar", "key_type": "varchar"}


def _empty(columns: Sequence[tuple[str, str]]) -> str:
    nothing = [f'cast(null as {kind}) as "{name}"' for name, kind in columns]
    return f"select {', '.join(nothing)} where false"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def one_line(reason: Exception) -> str:
    """Return DuckDB's message without its picture of the query; a sealed table is named as the run does."""
    told = re.sub(r'"?\S*/sealed/(\w+\.parquet)"?', r"tables/\1", str(reason))
    lines = [line.strip() for line in told.partition("LINE 1")[0].splitlines()]
    return " ".join(filter(None, lines)) or type(reason).__name__
