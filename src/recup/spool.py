"""Rows out of a running workload and onto disk, at a bounded cost and without ever raising.

One `Spool` per server (scheduler, worker, nanny, client): rows per table that hooks add to
(`recup.rows`), and one file per table, ``spool/<role>-<server id>/<table>.arrows``.  One
writer thread per process writes the rows once in 0.8 s.  What has been written survives the
death of the process, whatever kills it: nothing waits in a user-space buffer.

Covers files, full or vanished disks, forks, and the count of all that was lost.  It does
not cover what the rows say (`recup.schema`), how they wait and become batches
(`recup.rows`), nor reading them back (`recup.store`).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from recup.rows import Rows, best_form
from recup.schema import TABLES, VERSION, Column, Loss, Table, table_of
from recup.spool_status import StatusFile
from recup.spool_table import TableFile

logger = logging.getLogger("recup")

FLUSH_INTERVAL_S = 0.8
"""A killed process loses at most the rows of this long (the promise is one second).

Each flush has a cost of its own, and the more rows it takes, the longer their code and data stay in the caches."""
_BUFFERED_VALUES_LIMIT = 20_000_000
"""Values waiting in one spool (8 bytes each, plus what they point to) before rows are dropped."""
_INTERNED_KEYS_LIMIT = 65_536
"""Keys remembered at a time; a key met again later is written again under a new number."""
_LOOK_S = 2.0
"""How often all files are looked at whether they are still there; each look hands the GIL to and fro."""
_LINGER_S = 10.0
"""How long a closed spool is kept at hand; rows of task threads that outlive their worker are looked for after it too."""
_LOSSES_LIMIT = 200
"""Different losses told of one flush; further ones are added up without their details."""

KEY_COLUMNS = (
    Column("Number of the key in this spool", name="key_id", kind="int64"),
    Column("The key as Dask shows it", name="key", kind="text"),
    Column("str, tuple, int, float, bytes or the class of the key", name="key_type", kind="category"),
)


def key_text(key: Any) -> str:
    """Return a key as Dask shows it, or a text that says why it cannot be shown."""
    if type(key) is str:
        return key
    try:
        return str(key)
    except Exception as reason:  # noqa: BLE001 - a user's key class may raise anything
        return f"<{type(key).__name__} whose str() raised {type(reason).__name__}>"


_Batch = tuple[str, TableFile, bytes, int]
"""Table, its file, messages, rows."""


class Spool:
    """The rows of one server, on their way to its directory.

    Nothing here raises into the caller.  What cannot be written is counted, and the count
    is written as soon as anything can be (`losses`).

    Parameters
    ----------
    run_directory : Path
        Directory of the run; created when the first row is written.
    role, server_id : str
        Who observes: ``scheduler``, ``worker``, ``nanny``, ``client``, and its Dask id.
    """

    def __init__(self, run_directory: Path, role: str, server_id: str):
        self.run_directory = Path(run_directory)
        self.role = role
        self.server_id = server_id
        self.directory = self.run_directory / "spool" / f"{role}-{_file_name(server_id)}"
        self._form = best_form(key_text)
        self._rows: dict[str, Rows] = {}
        self._files: dict[str, TableFile] = {}
        self._epoch = 0
        self._status = StatusFile()
        self._looked_at_s = 0.0
        self.closed_at_s: float | None = None
        self.counters: dict[str, float] = {}
        self.describing: threading.Thread | None = None
        self.prepare: list[Callable[[], None]] = []  # by the writer thread, before each flush
        self.limits: list[Callable[[], None]] = []  # by `limit`: cut what waits elsewhere for the writer thread
        self._lost: dict[tuple[str, str, str, bool], int] = {}
        # Held for a few steps only; a signal's handler may lose something while its thread holds it.
        self._losing = threading.RLock()
        self._failures: dict[str, int] = {}
        _WRITER.add(self)

    # ------------------------------------------------------------ taking rows

    def extender(self, table_name: str) -> Callable[[tuple[Any, ...]], None]:
        """Return the fastest way to add a row: a function taking its values in column order.

        The tuple must hold exactly the table's columns; hot hooks use this, all else `put`.
        """
        return self._waiting(table_name).put

    def slots(self, table_name: str) -> Any:
        """Return where compiled hooks put rows of a table (`recup.columns.Slots`); None where nothing is compiled."""
        return self._waiting(table_name).slots() if self._form.takes_slots else None

    def put(self, row: Any) -> None:
        """Add one row of any table; never raises, never blocks."""
        try:
            if self.role != "forked":
                self._waiting(table_of(row).name).put(row)
        except Exception as reason:  # noqa: BLE001 - recup must not disturb its host
            self.lose("hook_failed", None, f"put: {reason!r}")

    def lose(self, kind: str, table_name: str | None, detail: str, row_count: int = -1) -> None:
        """Count something that is not recorded, of a number of rows where that is known; the same is added up."""
        with contextlib.suppress(Exception), self._losing:
            key = (kind, table_name or "", detail, row_count >= 0)
            if key not in self._lost and len(self._lost) >= _LOSSES_LIMIT:
                key = (kind, table_name or "", "of many kinds; these are further ones", row_count >= 0)
            self._lost[key] = self._lost.get(key, 0) + max(row_count, 0)

    def unwritten_losses(self) -> dict[str, int]:
        """Return rows lost by kind and table that are not in `losses` yet; -1 where some are of unknown number."""
        with self._losing:
            lost = list(self._lost.items())
        sums: dict[str, int] = {}
        for (kind, table, _, is_counted), count in lost:
            name = f"{kind}:{table}"
            sums[name] = -1 if not is_counted or sums.get(name) == -1 else sums.get(name, 0) + count
        return sums

    def guard(self, name: str, hook: Callable[..., Any], *, table_name: str | None = None) -> Callable[..., Any]:
        """Return the hook with every exception counted; after 100 failures it is switched off."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._failures.get(name, 0) >= 100:
                return None
            try:
                return hook(*args, **kwargs)
            except Exception as reason:  # noqa: BLE001 - recup must not disturb its host
                self.failed(name, reason, table_name)
                return None

        return guarded

    def failed(self, name: str, reason: BaseException, table_name: str | None = None) -> bool:
        """Count a failure of a hook; True when it has failed so often that it should stop."""
        count = self._failures[name] = self._failures.get(name, 0) + 1
        if count <= 100:
            self.lose("hook_failed", table_name, f"{name}: {type(reason).__name__}: {key_text(reason)[:200]}", 1)
        if count == 100:
            self.lose("hook_disabled", table_name, f"{name} failed 100 times and is switched off")
        return count >= 100

    @property
    def row_counts(self) -> dict[str, int]:
        """Rows written so far, by table."""
        return {name: file.row_count for name, file in self._files.items()}

    def _call_each(self, hooks: list[Callable[[], None]]) -> None:
        """Call them one by one; what one raises is counted and keeps none of the others from its work."""
        for hook in hooks:
            self.guard(getattr(hook, "__qualname__", type(hook).__name__), hook)()

    def _waiting(self, table_name: str) -> Rows:
        rows = self._rows.get(table_name)
        if rows is None:
            rows = self._rows.setdefault(table_name, Rows(TABLES[table_name]))
        return rows

    # ------------------------------------------------------------ writing

    def limit(self) -> None:
        """Drop the oldest rows of the fullest buffers when a stuck disk has let too much wait.

        Called once a second from the event loop: the writer thread may be the one stuck.
        """
        self._call_each(self.limits)
        waiting = {name: rows.value_count for name, rows in list(self._rows.items())}
        while sum(waiting.values()) > _BUFFERED_VALUES_LIMIT:
            name = max(waiting, key=waiting.__getitem__)
            dropped = self._rows[name].drop_oldest(waiting[name] - 1)
            if dropped:
                self.lose("dropped", name, "the disk did not take rows fast enough", dropped)
                waiting[name] = self._rows[name].value_count
            else:  # the writer has them
                del waiting[name]

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Have every row taken so far written; False when the disk did not take them in time."""
        return _WRITER.flush(timeout_s)

    def close(self) -> None:
        """Flush and say that the spool ended in order; rows may still follow and are written."""
        # A short program may end before it has been described; a thread that could not be started describes nothing.
        if self.describing is not None and self.describing.ident is not None:
            self.describing.join(2.0)
        self.closed_at_s = time.monotonic()
        self.flush()

    def write(self) -> None:
        """Write what is in the buffers; called by the writer thread only."""
        try:
            if self.role != "forked":
                # Its block has to exist before a disk fills, and its server be named before it is killed.
                if self._status.is_new:
                    self._status.write(self)
                self._call_each(self.prepare)
                self._write_rows()
                self._write_losses()
                self._status.write(self)
                now = time.monotonic()
                for file in self._files.values():
                    file.rest(now)
        except BaseException as reason:  # noqa: BLE001 - the writer must live on, whatever a key's __hash__ raises
            self.lose("hook_failed", None, f"write: {reason!r}"[:300])

    def write_late(self) -> None:
        """Write rows that came long after the spool was closed, if any; called by the writer thread only."""
        if self.role != "forked" and (self._lost or any(map(len, self._rows.values()))):
            self.write()
            self._release()

    def _write_losses(self) -> None:
        """Write what was lost; on failure it stays counted for the next time."""
        with self._losing:
            lost, self._lost = self._lost, {}
        if not lost:
            return
        now, table = time.time_ns(), TABLES["losses"]
        values: list[Any] = []
        for (kind, name, detail, is_counted), count in lost.items():
            values.extend(Loss(now, kind, name or None, count if is_counted else -1, detail))
        try:
            file = self._file(table)
            file.write(self._form.batch(file.stream, values)[0], len(lost))
        except BaseException as reason:
            for (kind, name, detail, is_counted), count in lost.items():
                self.lose(kind, name or None, detail, count if is_counted else -1)
            if not isinstance(reason, OSError):
                raise
            self._form.forget([self._files["losses"].stream])

    def _write_rows(self) -> None:
        """Write the rows that wait now: those that come meanwhile would keep a slow disk for ever."""
        # Tables of step 2 come first: the keys they bring are then known to the others.
        waiting = {name: len(rows) for name in TABLES if (rows := self._rows.get(name))}
        if any(file.is_gone for file in self._looked_at(waiting)):
            self._begin_anew()
        is_well = True
        while waiting and is_well:
            ready, is_encoded = self._encoded(waiting)
            is_well = self._put_down(ready)
            if not is_encoded:
                self._forget()
        self._form.let_go()

    def _looked_at(self, waiting: dict[str, int]) -> list[TableFile]:
        """Return the files to be seen to: one tells when a directory was removed, all of them from time to time."""
        files = [self._files[name] for name in ("keys", *waiting) if name in self._files]
        now = time.monotonic()
        if now - self._looked_at_s < _LOOK_S and self.closed_at_s is None:
            return files[:1]
        self._looked_at_s = now
        return files

    def _encoded(self, waiting: dict[str, int]) -> tuple[list[_Batch], bool]:
        """Make a batch of each table's oldest rows; stops early, and returns False too, where that fails."""
        ready: list[_Batch] = []
        for name in list(waiting):
            values, row_count = self._rows[name].take()
            waiting[name] -= row_count
            if waiting[name] <= 0 or not row_count:
                del waiting[name]
            if not row_count:
                continue
            try:
                file = self._file(TABLES[name])
                data, degraded = self._form.batch(file.stream, values)
            except BaseException as reason:  # noqa: BLE001 - one bad batch must not end the recording
                self.lose("dropped", name, f"could not encode: {reason!r}"[:300], row_count)
                return ready, False
            finally:
                self._rows[name].let_go()
            ready.append((name, file, data, row_count))
            if degraded:
                self.lose("degraded", name, "values of an unexpected type, kept as text or null", degraded)
        return ready, True

    def _put_down(self, ready: list[_Batch]) -> bool:
        """Write batches, the keys they brought before them; False where the disk did not take one."""
        try:
            if self._form.new_key_count:
                keys = self._files.get("keys") or self._add_file("keys", KEY_COLUMNS)
                ready.insert(0, ("keys", keys, *self._form.new_keys(keys.stream)))
            if self._form.key_count > _INTERNED_KEYS_LIMIT:
                self._form.forget_keys()
        except BaseException as reason:  # noqa: BLE001 - what was encoded is lost, and its dictionaries with it
            self._unwritten(ready, "dropped", f"could not encode keys: {reason!r}"[:300])
            return True
        is_well = True
        for place, (name, file, data, row_count) in enumerate(ready):
            try:
                file.write(data, row_count)
            except BaseException as reason:  # noqa: BLE001 - as above
                is_well = False
                is_over = isinstance(reason, (FileNotFoundError, FileExistsError)) or file.is_torn
                lost = ready[place:] if is_over or name == "keys" else [ready[place]]
                what = getattr(reason, "strerror", None) or reason
                self._unwritten(lost, "write_failed", f"{what}: {self.directory.name}")
                if is_over:
                    self._begin_anew()
                if len(lost) > 1:
                    break
        return is_well

    def _unwritten(self, batches: list[_Batch], kind: str, detail: str) -> None:
        """Count the rows of batches that did not reach the disk, and repeat what later ones need of them."""
        self._forget()
        for name, _, _, row_count in batches:
            if name != "keys":
                self.lose(kind, name, detail, row_count)

    def _begin_anew(self) -> None:
        """Start all files of the spool anew, as one is gone or torn; the rows of those that are gone are lost."""
        for name, each in self._files.items():
            # Of a server that closed they may have been sealed and taken away: what is missing then is seen there.
            if each.row_count and self.closed_at_s is None and each.is_gone:
                self.lose("write_failed", name, "files of the spool were removed while being written", each.row_count)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Go on in another directory: the one so far is another's, or its files are not what was written."""
        self._forget()
        for file in self._files.values():
            file.close()
        self._status.leave()
        self._files.clear()
        self._epoch += 1
        self.directory = self.directory.with_name(f"{self.role}-{_file_name(self.server_id)}.{self._epoch}")

    def _forget(self) -> None:
        """Repeat keys and dictionaries, since some may not have reached the disk."""
        self._form.forget(file.stream for file in self._files.values())

    def _file(self, table: Table) -> TableFile:
        return self._files.get(table.name) or self._add_file(table.name, table.columns)

    def _add_file(self, name: str, columns: Sequence[Column]) -> TableFile:
        metadata = {
            "recup_schema_version": str(VERSION),
            "table": name,
            "role": self.role,
            "server_id": self.server_id,
            "pid": str(os.getpid()),
            "epoch": str(self._epoch),
        }
        stream = self._form.stream(columns, metadata)
        file = self._files[name] = TableFile(self.directory / f"{name}.arrows", stream)
        return file

    def _release(self) -> None:
        for file in self._files.values():
            file.close()
        self._status.close()

    def _abandon(self) -> None:
        """In a forked child: take and write nothing, the parent still has the rows."""
        self.role = "forked"
        self._losing = threading.RLock()
        for rows in self._rows.values():
            rows.clear()
        self._release()


class _Writer:
    """The process's one writer thread, started with the first spool."""

    def __init__(self) -> None:
        self._spools: list[Spool] = []
        self._let_go_of: weakref.WeakSet[Spool] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._requested = 0
        self._served = 0
        self._progress = threading.Condition()

    def add(self, spool: Spool) -> None:
        with self._lock:
            self._spools.append(spool)
            if self._thread is None:
                os.register_at_fork(after_in_child=self._after_fork)
                atexit.register(self.flush, 5.0)
                # A worker under a nanny leaves through multiprocessing, which may skip atexit.
                Finalize(None, self.flush, args=(5.0,), exitpriority=0)
                self._thread = threading.Thread(target=self._run, name="recup-writer", daemon=True)
                self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Have the writer thread write everything; False when it has not done so in time.

        The caller never touches the disk: a file system that hangs cannot hold it for longer.
        """
        if self._thread is None or not self._thread.is_alive():
            return False
        with self._progress:
            self._requested += 1
            request = self._requested
            self._wake.set()
            return self._progress.wait_for(lambda: self._served >= request, timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(FLUSH_INTERVAL_S)
            self._wake.clear()
            with self._progress:
                request = self._requested
            for spool in list(self._spools):
                spool.write()
                self._let_go(spool)
            for spool in list(self._let_go_of):
                spool.write_late()
            with self._progress:
                self._served = request
                self._progress.notify_all()

    def _let_go(self, spool: Spool) -> None:
        # Task threads may outlive their worker's teardown and still add rows; what adds them holds the spool.
        if spool.closed_at_s is not None and time.monotonic() - spool.closed_at_s > _LINGER_S:
            with self._lock, contextlib.suppress(ValueError):
                self._spools.remove(spool)
            spool._release()
            self._let_go_of.add(spool)

    def _after_fork(self) -> None:
        for spool in [*self._spools, *self._let_go_of]:
            spool._abandon()
        self.__init__()  # type: ignore[misc]


_WRITER = _Writer()


def flush_all(timeout_s: float = 5.0) -> bool:
    """Write every row taken so far by any spool of this process; False when that took too long."""
    return _WRITER.flush(timeout_s)


def _file_name(server_id: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in server_id)[:120]
