"""Reads and writes held against the computing they are part of: by prefix, file, worker and thread.

Part of the answer of `recup.analyse.storage`: the tables.  With Darshan, seconds are
thread-seconds of traced reads and writes, and of C streams it counted.  Without it, what
threads of tasks counted themselves, which tells bytes and calls but no seconds and no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

GROUPS = {"prefix": ("prefix",), "worker": ("worker",), "thread": ("worker", "thread")}
"""What rows can be of beside files, and the columns that name one."""
FILES_SHOWN = 1000

_HAS_STREAMS_SQL = """
select count(*) > 0 from raw.io_files
where module = 'STDIO' and coalesce(read_bytes, 0) + coalesce(written_bytes, 0) > 0 and coalesce(path, '') not like '<STD%'
"""

_STREAMS = """
    union all by name
    select
        t.log,
        t.path,
        t.prefix,
        t.worker,
        t.key_id,
        t.run_id,
        t.read_bytes,
        t.written_bytes,
        coalesce(t.read_bytes, 0) + coalesce(t.written_bytes, 0) as stream_bytes,
        t.io_s,
        false as is_runtime,
        t.key_id is not null as is_of_task
    from task_io_streams t
"""


def _pieces(has_streams: bool) -> str:
    return f"""
with pieces as (
    select
        n.log,
        n.path,
        a.prefix,
        coalesce(a.worker, k.worker) as worker,
        s.thread,
        a.key_id,
        a.run_id,
        s.read_bytes,
        s.written_bytes,
        s.read_count + s.write_count as request_count,
        s.small_count,
        coalesce(s.small_io_s, 0.0) as small_io_s,
        coalesce(s.read_io_s, 0.0) as read_io_s,
        s.io_s,
        s.read_from,
        s.read_to,
        n.is_runtime,
        s.attempt is not null as is_of_task
    from io_sums s
    join io_names n on n.file = s.file
    left join io_clocks k on k.log = n.log
    left join io_attempts a on a.attempt = s.attempt
    where not n.is_beacon
    {_STREAMS if has_streams else ""}
)
"""


def _grouped_sql(by: str, has_streams: bool) -> str:
    names = ", ".join(GROUPS[by])
    return f"""
{_pieces(has_streams)}
, summed as (
    select
        {names},
        sum(io_s) as io_s,
        coalesce(sum(read_bytes), 0)::bigint as read_bytes,
        coalesce(sum(written_bytes), 0)::bigint as written_bytes,
        coalesce(sum(request_count), 0)::bigint as request_count,
        sum(small_count) / nullif(sum(request_count), 0) as small_share,
        coalesce(sum(small_io_s), 0.0) as small_io_s,
        {"coalesce(sum(stream_bytes), 0)::bigint" if has_streams else "0::bigint"} as stream_bytes,
        count(distinct path) as file_count
    from pieces
    where is_of_task
    group by {names}
), computing as (
    select {names}, count(*) as attempt_count, sum(compute_s) as compute_s
    from task_runs
    where compute_s is not null
    group by {names}
)
select
    {", ".join(f"summed.{name}" for name in GROUPS[by])},
    attempt_count,
    compute_s,
    io_s,
    io_s / nullif(compute_s, 0) as io_share,
    read_bytes,
    written_bytes,
    request_count,
    small_share,
    small_io_s,
    stream_bytes,
    file_count
from summed
left join computing on {" and ".join(f"computing.{name} is not distinct from summed.{name}" for name in GROUPS[by])}
order by io_s desc nulls last, {", ".join(f"summed.{name}" for name in GROUPS[by])}
"""


def _files_sql(has_streams: bool) -> str:
    return f"""
{_pieces(has_streams)}
, of_host as (
    -- A path on two hosts may be two files: what was read again is told by host, and so at least that much.
    select
        p.path,
        sum(p.io_s) as io_s,
        coalesce(sum(p.read_bytes), 0)::bigint as read_bytes,
        coalesce(sum(p.written_bytes), 0)::bigint as written_bytes,
        coalesce(sum(p.request_count), 0)::bigint as request_count,
        sum(p.small_count) as small_count,
        sum(p.read_io_s) as read_io_s,
        greatest(sum(p.read_bytes) filter (p.read_to is not null) - (max(p.read_to) - min(p.read_from)), 0) as reread_bytes,
        count(distinct p.worker) filter (p.read_bytes > 0) as reader_worker_count,
        count(distinct (p.key_id, p.run_id)) filter (p.is_of_task and p.read_bytes > 0) as reader_task_count
    from pieces p
    left join raw.io_logs l on l.log = p.log
    where not p.is_runtime and p.path is not null
    group by p.path, l.hostname
), opened as (
    select
        path,
        sum(open_count)::bigint as open_count,
        sum(meta_s) as meta_s,
        sum(try_cast(counters ->> '$.POSIX_SEQ_READS' as bigint)) as sequential_reads,
        sum(try_cast(counters ->> '$.POSIX_SEQ_WRITES' as bigint)) as sequential_writes,
        sum(coalesce(read_count, 0) + coalesce(write_count, 0)) as counted
    from raw.io_files
    where module = 'POSIX'
    group by path
)
select
    h.path,
    sum(h.io_s) as io_s,
    sum(h.read_bytes)::bigint as read_bytes,
    sum(h.written_bytes)::bigint as written_bytes,
    sum(h.request_count)::bigint as request_count,
    sum(h.small_count) / nullif(sum(h.request_count), 0) as small_share,
    coalesce(sum(h.reread_bytes), 0)::bigint as reread_bytes,
    coalesce(sum(h.read_io_s * h.reread_bytes / nullif(h.read_bytes, 0)), 0.0) as reread_io_s,
    sum(h.reader_worker_count)::bigint as reader_worker_count,
    sum(h.reader_task_count)::bigint as reader_task_count,
    any_value(o.open_count) as open_count,
    any_value(o.meta_s) as meta_s,
    any_value((coalesce(o.sequential_reads, 0) + coalesce(o.sequential_writes, 0)) / nullif(o.counted, 0))
        as sequential_share
from of_host h
left join opened o on o.path = h.path
group by h.path
"""


def _counted_sql(by: str) -> str:
    names = ", ".join(GROUPS[by])
    return f"""
with counted as (
    select c.*, s.address as worker
    from counter_sums c
    join servers s on s.server_id = c.server_id
    where c.is_counted
)
select
    {names},
    sum(attempt_count)::bigint as attempt_count,
    sum(wall_ns) / 1e9 as wall_s,
    sum(blocked_ns) / 1e9 as blocked_s,
    sum(blocked_ns) / nullif(sum(wall_ns), 0) as blocked_share,
    sum(system_ns) / 1e9 as system_s,
    sum(read_chars_bytes)::bigint as read_bytes,
    sum(written_chars_bytes)::bigint as written_bytes,
    sum(call_count)::bigint as call_count,
    sum(moved_chars_bytes) / nullif(sum(call_count), 0) as mean_call_bytes,
    sum(storage_read_bytes)::bigint as storage_read_bytes,
    sum(storage_written_bytes)::bigint as storage_written_bytes,
    sum(major_fault_count)::bigint as major_fault_count
from counted
group by {names}
order by read_bytes + written_bytes desc nulls last, {names}
"""


COUNTED_SQL = {by: _counted_sql(by) for by in GROUPS}
"""What threads of tasks counted, by what rows are of."""


def has_streams(run: Run) -> bool:
    """Return whether files were read or written through C streams, of which Darshan traces no single request."""
    ((found,),) = run.sql(_HAS_STREAMS_SQL).fetchall()
    return bool(found)


def storage_by(run: Run, by: str = "prefix") -> pa.Table:
    """Time of tasks in reads and writes: one row per prefix, worker or thread, most first.  Needs Darshan.

    io_share is of their computing time (null where none is recorded).  What is of no task
    for sure is not in it: `recup io` tells how much that is.  stream_bytes, of C streams,
    are part of read and written bytes, and their requests are not counted.

    From: task_io, task_io_streams, task_runs
    Columns: prefix, worker, or worker and thread; attempt_count, compute_s, io_s, io_share, read_bytes,
    written_bytes, request_count, small_share (requests below 1 MiB), small_io_s, stream_bytes, file_count
    """
    return run.sql(_grouped_sql(by, has_streams(run))).to_arrow_table()


def storage_files(run: Run, limit: int = FILES_SHOWN) -> pa.Table:
    """Files that processes read or wrote: one row per path, most time first, `limit` rows.  Needs Darshan.

    Files of Python, Dask and recup are left out.  reread_bytes is at least what was read
    more than once on a host: bytes read less the range they lie in.

    From: task_io, task_io_streams, io_files
    Columns: path, io_s, read_bytes, written_bytes, request_count, small_share, reread_bytes, reread_io_s (its part
    of the time in reads), reader_worker_count, reader_task_count, open_count, meta_s (opens, stats, seeks, closes),
    sequential_share (requests at or after the end of the one before)
    """
    return run.sql(
        f"{_files_sql(has_streams(run))} order by io_s desc nulls last, path limit ?", [limit]
    ).to_arrow_table()


FILE_TOTALS = """
select
    count(*) as file_count,
    coalesce(sum(io_s), 0.0) as io_s,
    coalesce(sum(read_bytes), 0)::bigint as read_bytes,
    coalesce(sum(read_bytes + written_bytes), 0)::bigint as moved_bytes,
    coalesce(sum(request_count), 0)::bigint as request_count,
    coalesce(sum(request_count * (1 - sequential_share)), 0)::bigint as random_count,
    coalesce(sum(io_s) filter (sequential_share < 0.8), 0.0) as random_io_s,
    coalesce(sum(reread_bytes), 0)::bigint as reread_bytes,
    coalesce(sum(reread_io_s), 0.0) as reread_io_s,
    count(*) filter (reread_bytes > 0) as reread_file_count,
    arg_min(path, (-reread_bytes, path)) filter (reread_bytes > 0) as most_reread_path,
    max(reread_bytes) as most_reread_bytes,
    arg_min(reader_task_count, (-reread_bytes, path)) as most_reread_task_count,
    arg_min(reader_worker_count, (-reread_bytes, path)) as most_reread_worker_count,
    coalesce(sum(open_count), 0)::bigint as open_count,
    max(open_count) as most_open_count,
    arg_min(path, (-open_count, path)) filter (open_count is not null) as most_opened_path,
    coalesce(sum(meta_s), 0.0) as meta_s
from files
"""


def file_totals(run: Run) -> dict[str, float | int | str | None]:
    """Return `storage_files` of all files summed up, and the files that stand out."""
    (totals,) = rows_of(run, f"with files as ({_files_sql(has_streams(run))}) {FILE_TOTALS}")
    return totals


def storage_counted(run: Run, by: str = "prefix") -> pa.Table:
    """What threads of tasks counted: one row per prefix, worker or thread, most bytes first.

    Bytes and calls count sockets and pipes, and what the page cache gave; storage_*_bytes
    went to or came from a device.  blocked_s is all waiting: for I/O, locks, the GIL, sleep.

    From: thread_counters, tasks
    Columns: prefix, worker, or worker and thread; attempt_count, wall_s, blocked_s, blocked_share, system_s (CPU in
    the kernel), read_bytes, written_bytes, call_count, mean_call_bytes, storage_read_bytes, storage_written_bytes,
    major_fault_count
    """
    return run.sql(COUNTED_SQL[by]).to_arrow_table()
