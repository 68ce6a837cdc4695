"""`seal`: the spool of a run becomes Parquet tables, for good.

Covers order and safety: idempotent, resumable, refused while the run is written, and the
spool goes only when every row of it was read back.  It does not cover how tables are made
(`recup.run_tables`) nor how they are read (`recup.store`).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from recup.errors import RecupError, RunDamaged
from recup.parquet_writing import write_few
from recup.run_tables import Tables, open_parquet
from recup.rundir import find_run, read_manifest, update_manifest

_REMOVED = ".spool-sealed"
_LEVEL = 9


class RunStillWritten(RecupError):
    """A process of the run is alive and writing; sealing now would miss its rows."""


@dataclasses.dataclass(frozen=True, slots=True)
class SealReport:
    """What a seal did.

    Attributes
    ----------
    path : Path
        The run.
    row_counts : dict
        Rows of each table that was written now; empty when all was sealed before.
    sizes_bytes : dict
        Size of every file of tables, whenever it was sealed; `columns` describes the others.
    damaged_files : tuple of str
        Spool files with an unreadable end; each is a row of `losses`.
    spool_removed : bool
        Whether the spool is gone.
    duration_s : float
        Time it took.
    """

    path: Path
    row_counts: dict[str, int]
    sizes_bytes: dict[str, int]
    damaged_files: tuple[str, ...]
    spool_removed: bool
    duration_s: float


def seal(
    path: str | os.PathLike[str],
    *,
    keep_spool: bool = False,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> SealReport:
    """Turn the spool of a run into Parquet tables; what was sealed before is left as it is.

    Every table is read back before it takes its place, and the spool is removed only when
    all of them are in place and no writer is alive.  Of a file with an unreadable end a
    copy stays under ``damaged``.

    Parameters
    ----------
    path : str or path
        The run, as `find_run` takes it.
    keep_spool : bool
        Leave the spool where it is.
    force : bool
        Seal although a process is still writing; its spool stays, and rows to come are
        taken by the next seal.
    progress : callable, optional
        Called with (table, number of tables done, number of tables).

    Raises
    ------
    RunStillWritten
        A server of the run showed life in the last five seconds.
    RunNotFound, RunTooNew, RunDamaged
        The run cannot be opened.
    OSError
        The disk does not take the tables; the spool is untouched.
    """
    begun = time.monotonic()
    run = find_run(path)
    read_manifest(run)
    shutil.rmtree(run / _REMOVED, ignore_errors=True)
    tables = Tables(run)
    alive = [spool.name for spool in tables.spools if spool.is_alive]
    if alive and not force:
        raise RunStillWritten(
            f"{run} is still being written by {', '.join(alive[:3])}{' and others' if len(alive) > 3 else ''}. "
            "Wait for it to end, or give force (--force) to seal what is there."
        )
    row_counts: dict[str, int] = {}
    damaged = [f"{s.name}/{f.path.name}" for s in tables.spools for f in s.files.values() if tables.damage(s, f)]
    if tables.spools and not tables.is_absorbed():
        row_counts = _write_all(tables, progress)
    removed = bool(tables.spools) and not keep_spool and not alive
    if removed:
        _set_aside(run, damaged)
        # Renamed first: a removal cut short must not leave half a spool that looks like a whole one.
        os.rename(run / "spool", run / _REMOVED)
        shutil.rmtree(run / _REMOVED, ignore_errors=True)
    if tables.sealed.is_dir() and (row_counts or not read_manifest(run).get("sealed")):
        update_manifest(run, sealed=True)
    sizes = {each.stem: each.stat().st_size for each in sorted(tables.sealed.glob("*.parquet"))}
    return SealReport(run, row_counts, sizes, tuple(damaged), removed, time.monotonic() - begun)


def _set_aside(run: Path, damaged: list[str]) -> None:
    """Keep files that could not be read to their end: someone may yet read more of them."""
    for name in damaged:
        target = run / "damaged" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(run / "spool" / name, target)
        _sync(target)


def _write_all(tables: Tables, progress: Callable[[str, int, int], None] | None) -> dict[str, int]:
    target = tables.sealed
    target.mkdir(exist_ok=True)
    for leftover in target.glob(".*.parquet"):
        leftover.unlink()
    names = tables.names()
    counts = {}
    # Keys first: numbers are never given out anew, so tables and keys stay true to each other at every moment.
    for number, name in enumerate(["keys", *names]):
        temporary = target / f".{name}.parquet"
        if name == "keys":
            written: int | None = tables.write_keys(temporary, _LEVEL)
        else:
            written = tables.write_table(name, temporary, _LEVEL)
        if temporary.is_file():
            counts[name] = verify(temporary, written or 0)
            os.replace(temporary, target / f"{name}.parquet")
        if progress is not None:
            progress(name, number + 1, len(names) + 2)
    # Spools last: they say that all there was is in the tables.
    for name, rows in (("columns", tables.column_rows()), ("spools", tables.spool_rows())):
        temporary = target / f".{name}.parquet"
        write_few(temporary, rows, _LEVEL)
        os.replace(temporary, target / f"{name}.parquet")
    _sync(target)
    if progress is not None:
        progress("spools", len(names) + 2, len(names) + 2)
    return counts


def verify(path: Path, row_count: int) -> int:
    """Read a Parquet file back from the disk and return its rows; raises RunDamaged when it is not what was written."""
    _sync(path)
    file = open_parquet(path)
    try:
        found: int = sum(file.read_row_group(group).num_rows for group in range(file.num_row_groups))
    except (pa.ArrowException, OSError) as reason:
        raise RunDamaged(f"{path} cannot be read back: {reason}. The spool is kept; try again.") from reason
    if found != row_count:
        raise RunDamaged(f"{path} holds {found} rows instead of {row_count}. The spool is kept; try again.")
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
