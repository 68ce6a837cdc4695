"""Which task did which I/O: reads and writes by task, prefix, file, worker or thread.

Covers files that Darshan traced, and C streams it counted; without Darshan, what threads of
tasks counted themselves (sockets and pipes included).  What belongs to no task for sure is
a row of its own, so that rows add up to what was recorded.  How a read or write gets its
task is in `recup.fuse_io`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.rows import Document, rows_of
from recup.errors import BadQuery
from recup.fuse_io_totals import SMALL_BYTES
from recup.terminal import bytes_text, plural

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

GROUPS = {
    "task": ("key", "run_id", "prefix", "worker"),
    "prefix": ("prefix",),
    "file": ("path",),
    "worker": ("worker",),
    "thread": ("worker", "thread"),
}
"""What rows can be of, and the columns that name one."""
SOURCES = ("darshan", "thread counters", "none")
HOW_TO_RECORD = (
    "No I/O was recorded: `recup run --darshan ...` records files of workers; the counters of threads come with every "
    "worker that recup records."
)
"""What to say of a run without either source."""
_NEEDS_DARSHAN = "`recup run --darshan ...` records them."
REST = "rest of the process: helper threads, coroutines, child processes, Dask itself"
"""Owner of what no task's own thread read and wrote; the kernel adds children to the process that waited for them."""

_SOURCE_SQL = """
select
    (select count(*) from raw.io_logs) > 0 and (select count(*) from raw.io_segments) + (
        select count(*) from raw.io_files where module in ('POSIX', 'STDIO')
    ) > 0 as has_darshan,
    (select count(*) from raw.thread_counters) > 0 as has_counters
"""

_OWNERS = """
case
    when is_phantom then 'perhaps of another file than Darshan says'
    when attribution in ('thread', 'time_unique', 'path') then 'task'
    when attribution = 'shared' then 'tasks, but not sure which or whether'
    when attribution = 'helper' then 'helper threads while tasks ran'
    when scheduler_id is null then 'no task: processes without recup, e.g. children of tasks'
    else 'no task: imports, Dask itself, recup'
end
"""
# Dask gives methods of actors no prefix; their key <prefix of the actor>.<method> is one, as in `recup profile`.
_PREFIX = "coalesce(prefix, case when run_id is null then key end)"
_PIECES = f"""
with traced as (
    select log, direction, path, nbytes, start_s, stop_s, key, run_id, {_PREFIX} as prefix, worker, thread,
        {_OWNERS} as owner
    from task_io
    where module = 'POSIX'
), streams as (
    select * replace ({_PREFIX} as prefix), false as is_phantom
    from task_io_streams
), pieces as (
    select *, 'traced' as kind, 1 as count from traced
    union all by name
    select log, 'read' as direction, path, read_bytes as nbytes, io_s, key, run_id, prefix, worker, {_OWNERS} as owner,
        'stream' as kind, read_count as count
    from streams
    union all by name
    select log, 'write' as direction, path, written_bytes as nbytes, key, run_id, prefix, worker, {_OWNERS} as owner,
        'stream' as kind, write_count as count
    from streams
)
"""


def _darshan_sql(by: str) -> str:
    # What is of no task has no key and no prefix: rows of these are told apart by why that is.
    names = ", ".join(GROUPS[by])
    owner = ", owner" if by in ("task", "prefix") else ""
    return f"""
{_PIECES}
, timed as (
    select
        *,
        case kind
            when 'stream' then io_s
            else greatest(stop_s - greatest(start_s, coalesce(max(stop_s) over so_far, start_s)), 0.0)
        end as alone_s
    from pieces
    window so_far as (
        partition by kind, {names}{owner}, log, thread order by start_s, stop_s
        rows between unbounded preceding and 1 preceding
    )
)
select
    {names},
    {"owner" if owner else "null::varchar as owner"},
    coalesce(sum(nbytes) filter (direction = 'read'), 0)::bigint as read_bytes,
    coalesce(sum(nbytes) filter (direction = 'write'), 0)::bigint as written_bytes,
    coalesce(sum(count) filter (direction = 'read'), 0)::bigint as read_count,
    coalesce(sum(count) filter (direction = 'write'), 0)::bigint as write_count,
    coalesce(sum(nbytes) filter (kind = 'stream'), 0)::bigint as stream_bytes,
    sum(alone_s) as io_s,
    count(distinct path) as file_count,
    count(distinct (key, run_id)) filter (owner = 'task') as task_count,
    count(*) filter (kind = 'traced' and nbytes < {SMALL_BYTES}) / nullif(count(*) filter (kind = 'traced'), 0)
        as small_share,
    coalesce(sum(nbytes) filter (owner = 'task'), 0) / nullif(sum(nbytes), 0) as attributed_share
from timed
group by {names}{owner}
having sum(count) > 0
order by read_bytes + written_bytes desc, {names}
"""


DARSHAN_SQL = {by: _darshan_sql(by) for by in GROUPS}
"""The question by what rows are of; io_s counts once where reads and writes of one thread overlap."""

_REST = f"""
homes as (
    -- Servers in one process share its counters.  A process id comes again, but not within a minute.
    select server_id, role, address, min(server_id) over (partition by host, pid, life) as home
    from (
        select *, count(*) filter (is_later) over (partition by host, pid order by started_s, server_id) as life
        from (
            select *, started_s - lag(started_s) over (partition by host, pid order by started_s, server_id) > 60 as is_later
            from (
                select s.server_id, s.role, s.address, s.pid, coalesce(s.host_id, s.server_id) as host, p.started_s
                from servers s
                left join (
                    select server_id, any_value(process_started_s) as started_s from raw.processes group by server_id
                ) p on p.server_id = s.server_id
            )
        )
    )
), totals as (
    -- Counters of a process only grow; recup sees them from its first sample on.
    select
        home,
        max(value) filter (metric = 'process_read_bytes') - min(value) filter (metric = 'process_read_bytes') as read_bytes,
        max(value) filter (metric = 'process_written_bytes') - min(value) filter (metric = 'process_written_bytes')
            as written_bytes
    from raw.samples s
    join homes using (server_id)
    where metric in ('process_read_bytes', 'process_written_bytes') and subject is null and s.role = 'worker'
    group by home
), of_tasks as (
    select home, sum(read_chars_bytes) as read_bytes, sum(written_chars_bytes) as written_bytes
    from counter_sums
    join homes using (server_id)
    group by home
), in_one as (
    select
        home,
        count(*) filter (role = 'worker') as worker_count,
        min(address) filter (role = 'worker') as worker,
        bool_or(role = 'scheduler') as has_scheduler,
        bool_or(role = 'client') as has_client
    from homes
    group by home
), rest_pieces as (
    -- greatest() alone would make 0 of what is not known.
    select
        case when worker_count = 1 then worker end as worker,
        case when worker_count > 1 then '{REST.replace("process", "process of ' || worker_count || ' workers", 1)}' else '{REST}' end
            || case when has_scheduler then ', the scheduler' else '' end
            || case when has_client then ', a client' else '' end as owner,
        case when t.read_bytes is not null then greatest(t.read_bytes - coalesce(k.read_bytes, 0), 0)::bigint end
            as got_bytes,
        case when t.written_bytes is not null then greatest(t.written_bytes - coalesce(k.written_bytes, 0), 0)::bigint end
            as put_bytes,
        got_bytes + put_bytes as moved_bytes
    from totals t
    join in_one using (home)
    left join of_tasks k using (home)
)
"""

_TASK_PIECES = """
pieces as (
    select
        c.key_id,
        c.run_id,
        coalesce(any_value(p.prefix), case when c.run_id is null then any_value(keys.key) end) as prefix,
        s.address as worker,
        'task' as owner,
        sum(c.read_chars_bytes) as got_bytes,
        sum(c.written_chars_bytes) as put_bytes,
        sum(c.read_call_count) as got_count,
        sum(c.write_call_count) as put_count,
        sum(c.read_chars_bytes + c.written_chars_bytes) as moved_bytes,
        1 as attempt_count
    from raw.thread_counters c
    join servers s on s.server_id = c.server_id
    left join (select key_id, any_value(prefix) as prefix from raw.tasks group by key_id) p on p.key_id = c.key_id
    left join keys on c.run_id is null and keys.key_id = c.key_id
    group by c.key_id, c.run_id, s.address
    union all by name
    from rest_pieces
)
"""

_SUMMED_PIECES = """
pieces as (
    select coalesce(c.prefix, keys.key) as prefix, s.address as worker, c.thread, 'task' as owner, c.read_chars_bytes as got_bytes,
        c.written_chars_bytes as put_bytes, c.read_call_count as got_count, c.write_call_count as put_count,
        c.moved_chars_bytes as moved_bytes, c.key_id as method_id,
        case when c.key_id is null then c.attempt_count end as attempt_count
    from counter_sums c
    join servers s on s.server_id = c.server_id
    left join keys on keys.key_id = c.key_id
    union all by name
    from rest_pieces
)
"""


def _counters_sql(by: str) -> str:
    names = ", ".join(GROUPS[by])
    # Calls of one method of an actor count as one task.
    methods = "" if by == "task" else " + count(distinct method_id)"
    return f"""
with {_REST}, {_TASK_PIECES if by == "task" else _SUMMED_PIECES}
select
    {names},
    owner,
    coalesce(sum(got_bytes), 0)::bigint as read_bytes,
    coalesce(sum(put_bytes), 0)::bigint as written_bytes,
    sum(got_count)::bigint as read_count,
    sum(put_count)::bigint as write_count,
    null::bigint as stream_bytes,
    null::double as io_s,
    null::bigint as file_count,
    (coalesce(sum(attempt_count), 0){methods})::bigint as task_count,
    null::double as small_share,
    coalesce(sum(moved_bytes) filter (owner = 'task'), 0) / nullif(sum(moved_bytes), 0) as attributed_share
from pieces
{"left join keys using (key_id)" if by == "task" else ""}
group by {names}, owner
having sum(moved_bytes) > 0
order by read_bytes + written_bytes desc, {names}
"""


COUNTERS_SQL = {by: _counters_sql(by) for by in GROUPS if by != "file"}
"""The question to thread counters; the rest is a row per process (where rows are prefixes, per kind of process)."""

RECORD_SQL = """
with workers as (
    select count(*) as worker_count from worker_lives
), logs as (
    select
        count(*) as log_count,
        count(*) filter (segment_count < operation_count or lost is not null) as partial_count,
        count(*) filter (is_killed) as killed_count,
        coalesce(sum(segment_count), 0)::bigint as segment_count,
        sum(operation_count)::bigint as operation_count
    from raw.io_logs
), clocks_of_logs as (
    select
        count(distinct worker_id) as worker_with_log_count,
        count(*) filter (process is null) as unmatched_count,
        -- A memory map has no segments that would need either.
        count(*) filter (basis <> 'beacon' and worker_id is not null and not is_killed) as no_beacon_count,
        count(*) filter (not has_thread_ids and worker_id is not null and not is_killed) as no_thread_count,
        max(error_ns) filter (worker_id is not null and not is_killed) / 1e9 as clock_error_s
    from io_clocks
    join (select log, bool_or(is_killed) as is_killed from raw.io_logs group by log) using (log)
), gaps as (
    -- What servers said themselves: of logs that never came it is told above.
    select count(distinct server_id) as gap_count, any_value(detail order by time_ns) as gap
    from raw.losses
    where "table" in ('io_segments', 'io_files') and kind = 'gap' and role = 'worker'
), seen as (
    -- Of a module that is cut short there may be more in segments than in counters.
    select log, greatest(
        coalesce((select sum(nbytes) from raw.io_segments s where s.log = l.log and s.module = 'POSIX'), 0),
        coalesce((select sum(read_bytes + written_bytes) from raw.io_files f where f.log = l.log and f.module = 'POSIX'), 0)
    ) + coalesce(
        (select sum(read_bytes + written_bytes) from raw.io_files f where f.log = l.log and f.module = 'STDIO'), 0
    ) as nbytes
    from raw.io_logs l
), seen_of_workers as (
    select worker_id, sum(nbytes) as nbytes
    from seen
    join (select log, worker_id from io_clocks where worker_id is not null) using (log)
    group by worker_id
), moved_by_tasks as (
    select server_id as worker_id, sum(moved_chars_bytes) as nbytes from counter_sums group by server_id
), beside as (
    select
        sum(m.nbytes) as moved_bytes,
        coalesce(sum(greatest(m.nbytes - s.nbytes, 0)), 0)::bigint as unseen_bytes,
        coalesce(unseen_bytes > greatest(0.1 * moved_bytes, 1048576), false) as is_much_unseen
    from moved_by_tasks m
    join seen_of_workers s using (worker_id)
)
select *
from workers, logs, clocks_of_logs, (select unseen_bytes, is_much_unseen from beside), gaps,
    (select count(*) as endless_count from io_attempts where is_open)
"""
"""One row: how much of the I/O of a run its Darshan logs hold.

Unseen is what threads of tasks moved by the kernel's counters, more than Darshan counted in
all of their process; it is said where it is more than a tenth and a MiB.
"""

WHY_NO_LOG_SQL = """
select distinct detail from raw.losses where "table" in ('io_logs', 'io_files', 'io_segments') order by detail
"""
"""Reasons why a run that was to have Darshan logs has none."""

COUNTED_SQL = """
select
    (select count(*) from worker_lives) as worker_count,
    count(distinct server_id) as counted_worker_count,
    count(*) as attempt_count,
    count(*) filter (read_chars_bytes is null) as uncounted_count
from raw.thread_counters
"""

CLASSES_SQL = """
select
    attribution,
    count(*) as count,
    coalesce(sum(nbytes), 0)::bigint as nbytes,
    count(*) / sum(count(*)) over () as count_share,
    coalesce(sum(nbytes) / nullif(sum(sum(nbytes)) over (), 0), 0.0) as bytes_share
from task_io
where module = 'POSIX'
group by attribution
order by nbytes desc, attribution
"""
"""One row per attribution of traced reads and writes, and its share."""


def io_source(run: Run) -> str:
    """Return what tells of I/O in a run: ``darshan``, ``thread counters`` or ``none``."""
    ((has_darshan, has_counters),) = run.sql(_SOURCE_SQL).fetchall()
    return "darshan" if has_darshan else "thread counters" if has_counters else "none"


def io_by(run: Run, by: str = "prefix") -> pa.Table:
    """Reads and writes summed: one row per task, prefix, file, worker or thread, most bytes first.

    Of tasks and prefixes there is one more row per reason why I/O is of no task (`owner`);
    rows add up to all that was recorded.  From thread counters sockets count too, and
    io_s, files and small requests are null; the rest of a process of several workers has
    a null worker.

    From: task_io, task_io_streams; else thread_counters, samples
    Columns: those of `GROUPS`, owner (task, else why no task is known; null for files, workers and threads of Darshan), read_bytes, written_bytes, read_count, write_count,
    stream_bytes, io_s, file_count, task_count, small_share, attributed_share

    Raises
    ------
    BadQuery
        Rows of files are asked for, and no Darshan log tells of any; or `by` is no such thing.
    """
    if by not in GROUPS:
        raise BadQuery(f"I/O is told by {', '.join(GROUPS)}, not by {by!r}.")
    source = io_source(run)
    if source == "darshan":
        return run.sql(DARSHAN_SQL[by]).to_arrow_table()
    if by == "file":
        raise BadQuery(f"No Darshan log is in this run, so files are not known. {_why_no_log(run) or _NEEDS_DARSHAN}")
    return run.sql(COUNTERS_SQL[by]).to_arrow_table()


def io_record(run: Run) -> Document:
    """Return how complete the record of I/O is: source, numbers and one statement of what is missing.

    Keys: source, statement, is_complete, numbers, classes (one row per attribution)
    """
    source = io_source(run)
    if source == "darshan":
        (numbers,) = rows_of(run, RECORD_SQL)
        lacks = _lacks(numbers)
        whole = f"Darshan traced {numbers['segment_count']:,} reads and writes in {numbers['log_count']} logs"
        statement = f"{whole}; {'; '.join(lacks)}." if lacks else f"{whole}, all that it counted."
        return {
            "source": source,
            "statement": statement,
            "is_complete": not lacks,
            "numbers": numbers,
            "classes": rows_of(run, CLASSES_SQL),
        }
    why_not = _why_no_log(run)
    if source == "none":
        statement = f"No I/O was recorded. {why_not}" if why_not else HOW_TO_RECORD
        return {"source": source, "statement": statement, "is_complete": False, "numbers": {}, "classes": []}
    (numbers,) = rows_of(run, COUNTED_SQL)
    statement = (
        f"No Darshan log: counters of threads in {numbers['counted_worker_count']} of {numbers['worker_count']} workers "
        f"tell bytes by task, sockets included, and no files. {why_not or '`recup run --darshan ...` records files.'}"
    )
    return {"source": source, "statement": statement, "is_complete": False, "numbers": numbers, "classes": []}


def _why_no_log(run: Run) -> str:
    """Return why Darshan, which was asked for, left nothing; empty where it was not asked for."""
    if not (run.path / "foreign" / "darshan" / "request.json").is_file():
        return ""
    reasons = run.sql(WHY_NO_LOG_SQL).fetchall()
    said = reasons[0][0] if reasons else "no worker left a log"
    more = f" (and {plural(len(reasons) - 1, 'more reason')})" if len(reasons) > 1 else ""
    return f"Darshan was asked for: {said}{more}."


def _lacks(numbers: Document) -> list[str]:
    """Return what is missing or less sure, each in words."""
    workers, logged = numbers["worker_count"], numbers["worker_with_log_count"]
    operations, segments = numbers["operation_count"], numbers["segment_count"]
    lacks = {
        f"{workers - logged} of {workers} workers left no log": workers > logged,
        f"{(operations or 0) - segments:,} of {operations or 0:,} operations are not traced": (operations or 0)
        > segments,
        f"{numbers['partial_count']} logs are partial or damaged": numbers["partial_count"] > 0,
        f"{numbers['killed_count']} are of killed processes, counters only": numbers["killed_count"] > 0,
        f"of {numbers['gap_count']} workers: {numbers['gap']}": numbers["gap_count"] > 0,
        f"{numbers['endless_count']} tasks have no recorded end, so that what they did is of none for sure": numbers[
            "endless_count"
        ]
        > 0,
        f"{numbers['no_beacon_count']} logs have no beacon, so that times are known to "
        f"{1e3 * (numbers['clock_error_s'] or 0):.3g} ms only": numbers["no_beacon_count"] > 0,
        f"{numbers['no_thread_count']} logs name no threads, so that few segments have one possible task": numbers[
            "no_thread_count"
        ]
        > 0,
        f"threads of tasks moved {bytes_text(numbers['unseen_bytes'])} more than Darshan counted, by sockets, pipes or "
        "calls it does not see (sendfile, copy_file_range)": numbers["is_much_unseen"],
    }
    return [text for text, holds in lacks.items() if holds]
