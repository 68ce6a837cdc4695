"""Is storage the bottleneck: time in reads and writes, and the ways of reading and writing that waste it.

Covers what Darshan traced, held against the computing time of tasks: prefixes that spend
it in I/O, small requests, bytes read again, storms of opens, random access, many small
files, uneven load.  The rules are those of Drishti where it has one, and none speaks
unless it costs time: small requests that take no time do no harm.  Without Darshan, calls
and waits of threads hint at I/O and no more.  Collective I/O, of MPI, is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.io import HOW_TO_RECORD, io_record
from recup.analyse.rows import Document, rows_of
from recup.analyse.storage_rows import file_totals, storage_by, storage_counted, storage_files
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    from recup.store import Run

COST_S = 0.25
"""Seconds of threads below which nothing is said."""
COST_SHARE = 0.05
"""Part of all computing time below which nothing is said."""
BOUND_SHARE = 0.3
"""A prefix that spends this part of its time in reads and writes is bound by them."""
SMALL_SHARE = 0.1
"""Drishti: more than a tenth of the requests small, and more than a thousand of them."""
REQUEST_COUNT = 1000
REREAD_SHARE = 0.3
"""Part of the bytes read that had been read before, from which on it is said."""
META_SHARE = 0.3
"""Part of the time in files that goes into opening, closing and looking at them, from which on it is said."""
RANDOM_SHARE = 0.2
"""Drishti: more than a fifth of the requests not sequential, and more than a thousand of them."""
SMALL_FILE_COUNT = 1000
SMALL_FILE_BYTES = 1 << 20
"""More files than this of less than this on average are many small files."""
UNEVEN_RATIO = 2.0
"""A worker with this many times the I/O time of the usual worker bears an uneven load."""
SMALL_CALL_BYTES = 64 << 10
"""Without Darshan, calls smaller than this on average are small."""
BLOCKED_SHARE = 0.5
"""Without Darshan, threads that wait this part of their time may wait for storage."""
STORAGE_BYTES = 64 << 20
"""And only where they moved this much from or to a device."""

COMPUTING_SQL = """
select coalesce(sum(compute_s), 0.0) as compute_s, count(compute_s) as attempt_count from task_runs
"""

_REDUCE = "read and write larger pieces (chunks, buffers), keep what is read in memory, or use faster or nearer storage"


def storage(run: Run) -> Answer:
    """Return how much of the tasks' time went into storage, and what wasted it."""
    record = io_record(run)
    ((computing, _),) = run.sql(COMPUTING_SQL).fetchall()
    if record["source"] == "darshan":
        return _traced(run, record, computing)
    if record["source"] == "none":
        return Answer("Whether storage was the bottleneck is not known.", (), (), HOW_TO_RECORD)
    prefixes = storage_counted(run, "prefix")
    return Answer(
        _counted_headline(prefixes),
        ranked(_counted_conclusions(prefixes.to_pylist(), computing)),
        tuple(
            AnswerTable(f"{by}{'es' if by == 'prefix' else 's'}", title, storage_counted(run, by))
            for by, title in (
                ("prefix", "What threads of tasks counted, by prefix, most bytes first"),
                ("worker", "By worker, most bytes first"),
                ("thread", "By thread, most bytes first"),
            )
        ),
        f"{record['statement']} Time in reads and writes is not known: waits may be for locks, the GIL or sleep as well.",
    )


def _traced(run: Run, record: Document, computing: float) -> Answer:
    prefixes, workers = storage_by(run, "prefix"), storage_by(run, "worker")
    totals: Document = file_totals(run)
    found = [
        *_prefix_conclusions(prefixes.to_pylist(), computing),
        *_reread_conclusions(totals, computing),
        *_open_conclusions(totals, computing),
        *_random_conclusions(totals, computing),
        *_worker_conclusions(run, workers.to_pylist(), computing),
    ]
    io_s = sum(row["io_s"] or 0.0 for row in prefixes.to_pylist())
    share = f", {io_s / computing:.1%} of their computing time" if computing else ""
    return Answer(
        f"Tasks spent {seconds_text(io_s)} in reads and writes of files{share}; processes moved "
        f"{bytes_text(totals['moved_bytes'])} in {plural(totals['file_count'], 'file')}.",
        ranked(found),
        (
            AnswerTable("prefixes", "Time of tasks in reads and writes by prefix, most first", prefixes),
            AnswerTable("files", "Files by time in reads and writes, most first", storage_files(run)),
            AnswerTable("workers", "By worker, most first", workers),
            AnswerTable("threads", "By thread, most first", storage_by(run, "thread")),
        ),
        f"{record['statement']} Only what is of one task for sure is counted as of tasks.",
    )


def _is_worth(seconds: float, computing: float) -> bool:
    return seconds >= COST_S and seconds >= COST_SHARE * computing


def _prefix_conclusions(prefixes: list[Document], computing: float) -> list[Conclusion]:
    found = []
    for row in prefixes:
        io_s, share = row["io_s"] or 0.0, row["io_share"]
        is_small = (
            (row["small_share"] or 0.0) > SMALL_SHARE
            and row["small_share"] * row["request_count"] > REQUEST_COUNT
            and _is_worth(row["small_io_s"], computing)
        )
        is_bound = share is not None and share >= BOUND_SHARE and _is_worth(io_s, computing)
        if not is_bound and not is_small:
            continue
        name = row["prefix"] or "unknown prefix"
        part = f" ({share:.0%} of its computing)" if share is not None else ""
        moved = f"{bytes_text(row['read_bytes'])} read, {bytes_text(row['written_bytes'])} written"
        small = (
            f" {row['small_share']:.0%} of its {row['request_count']:,} requests are below 1 MiB and take "
            f"{seconds_text(row['small_io_s'])}."
        )
        found.append(
            Conclusion(
                "storage",
                name,
                f"{name} spends {seconds_text(io_s)} in reads and writes of files{part}: {moved}.{small if is_small else ''}",
                "likely",
                io_s if is_bound else row["small_io_s"],
                "Read and write in pieces of 1 MiB and more: larger chunks, buffered files, or a format that keeps what "
                "belongs together in one place."
                if is_small
                else f"{_REDUCE[0].upper()}{_REDUCE[1:]}.",
                {
                    name: row[name]
                    for name in ("io_s", "io_share", "read_bytes", "written_bytes", "request_count", "small_share")
                }
                | {"small_io_s": row["small_io_s"]},
            )
        )
    return found


def _reread_conclusions(totals: Document, computing: float) -> list[Conclusion]:
    again, cost = totals["reread_bytes"], totals["reread_io_s"]
    if not again or again < REREAD_SHARE * totals["read_bytes"] or not _is_worth(cost, computing):
        return []
    path = totals["most_reread_path"]
    return [
        Conclusion(
            "storage",
            path,
            f"At least {bytes_text(again)} of {bytes_text(totals['read_bytes'])} read from files had been read before, in "
            f"{plural(totals['reread_file_count'], 'file')}; most of {path}: {bytes_text(totals['most_reread_bytes'])} "
            f"again, by {plural(totals['most_reread_task_count'], 'task')} on "
            f"{plural(totals['most_reread_worker_count'], 'worker')}.",
            "likely",
            cost,
            "Read it once and keep it: within a task in memory, for several tasks as the result of one, or cut chunks so "
            "that no two tasks read the same part of a file.",
            {"reread_bytes": again, "read_bytes": totals["read_bytes"], "reread_io_s": cost, "path": path},
        )
    ]


def _open_conclusions(totals: Document, computing: float) -> list[Conclusion]:
    meta, whole = totals["meta_s"], totals["meta_s"] + totals["io_s"]
    if not whole or meta < META_SHARE * whole or not _is_worth(meta, computing):
        return []
    files = totals["file_count"]
    mean = totals["moved_bytes"] / files
    many = (
        f" {files:,} files hold {bytes_text(mean)} each on average."
        if files >= SMALL_FILE_COUNT and mean < SMALL_FILE_BYTES
        else f" {totals['most_opened_path']} was opened {totals['most_open_count']:,} times."
        if (totals["most_open_count"] or 0) > 1
        else ""
    )
    return [
        Conclusion(
            "storage",
            "opens and closes",
            f"Opening, closing and looking at files took {seconds_text(meta)}, {meta / whole:.0%} of the time in files: "
            f"{plural(totals['open_count'], 'open')} of {plural(files, 'file')}.{many}",
            "likely",
            meta,
            "Open a file once per task and read all of it that is wanted, and keep many small pieces in one file (zip "
            "store, sharded zarr, Parquet with larger row groups).",
            {"meta_s": meta, "meta_share": meta / whole, "open_count": totals["open_count"], "file_count": files},
        )
    ]


def _random_conclusions(totals: Document, computing: float) -> list[Conclusion]:
    count, requests = totals["random_count"], totals["request_count"]
    if count <= REQUEST_COUNT or count <= RANDOM_SHARE * requests or not _is_worth(totals["random_io_s"], computing):
        return []
    return [
        Conclusion(
            "storage",
            "random access",
            f"{count / requests:.0%} of {requests:,} requests went backwards in their file; files so used took "
            f"{seconds_text(totals['random_io_s'])}.",
            "possible",
            None,
            "Read in the order of the file: chunks along the axis in which it is stored, or copy it into a layout of the "
            "chunks that are read.",
            {"random_count": count, "request_count": requests, "random_io_s": totals["random_io_s"]},
        )
    ]


def _worker_conclusions(run: Run, workers: list[Document], computing: float) -> list[Conclusion]:
    known = {row["worker"]: row["io_s"] or 0.0 for row in workers if row["worker"] is not None}
    others = rows_of(run, "select distinct worker from io_clocks where worker is not null")
    times = sorted([*known.values(), *(0.0 for row in others if row["worker"] not in known)])
    if len(times) < 2 or not known:
        return []
    worker, most = max(known.items(), key=lambda item: item[1])
    usual = times[(len(times) - 2) // 2]
    if most < UNEVEN_RATIO * usual or not _is_worth(most - usual, computing):
        return []
    return [
        Conclusion(
            "storage",
            worker,
            f"Worker {worker} spent {seconds_text(most)} in reads and writes, the usual worker {seconds_text(usual)}.",
            "possible",
            None,
            "Spread tasks that read and write over workers; where one storage is slower, see `recup slow`.",
            {"io_s": most, "usual_io_s": usual},
        )
    ]


# ---------------------------------------------------------------- without Darshan


def _counted_headline(prefixes: pa.Table) -> str:
    rows = prefixes.to_pylist()

    def total(name: str) -> Any:
        return sum(row[name] or 0 for row in rows)

    wall = total("wall_s")
    waits = f" and waited for {total('blocked_s') / wall:.0%} of their time, for whatever" if wall else ""
    return (
        f"Without Darshan the time in files is not known; threads of tasks read {bytes_text(total('read_bytes'))} and "
        f"wrote {bytes_text(total('written_bytes'))}, sockets included{waits}."
    )


def _counted_conclusions(prefixes: list[Document], computing: float) -> list[Conclusion]:
    found = []
    for row in prefixes:
        name = row["prefix"] or "unknown prefix"
        spent = row["blocked_s"] + (row["system_s"] or 0.0)
        mean, calls = row["mean_call_bytes"], row["call_count"] or 0
        moved = (row["storage_read_bytes"] or 0) + (row["storage_written_bytes"] or 0)
        if not _is_worth(spent, computing):
            continue
        evidence = {
            name: row[name] for name in ("blocked_s", "system_s", "call_count", "mean_call_bytes", "major_fault_count")
        } | {"storage_bytes": moved}
        if calls > REQUEST_COUNT and mean < SMALL_CALL_BYTES and spent >= BOUND_SHARE * row["wall_s"]:
            statement = (
                f"{name} made {calls:,} read and write calls of {bytes_text(mean)} on average, and spent "
                f"{seconds_text(spent)} of {seconds_text(row['wall_s'])} in the kernel or waiting; how much of it for "
                "files is not known."
            )
            advice = "Buffer, or read and write larger pieces; `recup run --darshan` tells files and times."
        elif moved >= STORAGE_BYTES and row["blocked_share"] >= BLOCKED_SHARE:
            statement = (
                f"{name} moved {bytes_text(moved)} from or to storage and waited for {row['blocked_share']:.0%} of its "
                "time; it may have been for storage, or for locks, the GIL or sleep."
            )
            advice = "`recup run --darshan` tells how long reads and writes took."
        elif (row["major_fault_count"] or 0) > max(REQUEST_COUNT, row["attempt_count"]) and (
            row["blocked_share"] >= BLOCKED_SHARE
        ):
            statement = (
                f"{name} waited for {row['blocked_share']:.0%} of its time, and {row['major_fault_count']:,} pages came "
                "from disk: files mapped into memory, or swap."
            )
            advice = "Read mapped files in larger pieces, and look whether the host swaps."
        else:
            continue
        found.append(Conclusion("storage", name, statement, "possible", None, advice, evidence))
    return found
