"""Views of I/O summed up: what each attempt did, and files written through C streams.

Part of `recup.fuse`, which says what all views have in common.
"""

from __future__ import annotations

from recup.store import View, ViewColumn

SMALL_BYTES = 1 << 20
"""A read or write below this is small: the limit Drishti warns at."""

TASK_IO_STREAMS = View(
    "task_io_streams",
    "One row per file that a process used through C streams (STDIO, as numpy's `.npy` payload): DXT traces none of "
    "their reads and writes, so a file is claimed as a whole or not at all.",
    (
        ViewColumn("log", "Name of the Darshan log"),
        ViewColumn("path", "Path of the file", null="the log lost the name"),
        ViewColumn("read_bytes", "Bytes read", "bytes", "not counted"),
        ViewColumn("written_bytes", "Bytes written", "bytes", "not counted"),
        ViewColumn("read_count", "Reads", null="not counted"),
        ViewColumn("write_count", "Writes", null="not counted"),
        ViewColumn("io_s", "Time in them by Darshan's counters", "s", "not counted"),
        ViewColumn("first_s", "First open", "s", "not told"),
        ViewColumn("last_s", "Last close or use", "s", "not told"),
        ViewColumn("scheduler_id", "Server id of the scheduler", null="nothing is known of the process"),
        ViewColumn("key", "Dask key of the task that did it", null="no attempt is claimed"),
        ViewColumn("key_id", "Number of the key", null="no attempt is claimed"),
        ViewColumn("run_id", "Attempt", null="no attempt is claimed"),
        ViewColumn("prefix", "Dask's task prefix", null="no attempt is claimed"),
        ViewColumn("worker", "Address of the worker", null="nothing is known of the process"),
        ViewColumn("worker_id", "Server id of the worker", null="nothing is known of the process"),
        ViewColumn(
            "attribution",
            "path (all traced segments of the file are of this attempt, and the file was open inside it alone), "
            "time_unique (one attempt ran while it was open, and its thread wrote just these bytes that are not traced), "
            "shared (several could have done it, or a thread that one started and left behind) or none",
        ),
        ViewColumn("candidate_count", "Attempts that ran while it was open", null="nothing is known of the process"),
    ),
    """
with streams as (
    select
        s.log,
        s.file_id,
        any_value(s.path) as path,
        sum(s.read_bytes)::bigint as read_bytes,
        sum(s.written_bytes)::bigint as written_bytes,
        sum(s.read_count)::bigint as read_count,
        sum(s.write_count)::bigint as write_count,
        sum(s.read_s) + sum(s.write_s) as io_s,
        min(s.first_s) as first_s,
        max(s.last_s) as last_s
    from raw.io_files s
    where s.module = 'STDIO' and coalesce(s.path, '') not like '<STD%>'
    group by s.log, s.file_id
), placed as (
    select
        s.*,
        n.file,
        c.scheduler_id,
        c.worker_id,
        c.worker,
        c.process,
        c.offset_s,
        c.zero_ns,
        c.zero_ns + try_cast(s.first_s * 1e9 as bigint) - c.error_ns as from_ns,
        c.zero_ns + try_cast(s.last_s * 1e9 as bigint) + c.error_ns as to_ns,
        coalesce(n.is_runtime, false) or coalesce(c.is_doubtful, true) or loose.file is not null as is_unclear
    from streams s
    left join io_clocks c on c.log = s.log
    left join io_names n on n.log = s.log and n.file_id = s.file_id
    left join io_loose_files loose on loose.file = n.file
), headers as (
    -- A header, say, is traced although the payload is not.
    select p.log, p.file_id, any_value(p.file) as file, any_value(p.from_ns) as from_ns, any_value(p.to_ns) as to_ns,
        any_value(c.attempt) as attempt
    from placed p
    join io_claims c on c.file = p.file and not c.is_phantom
    group by p.log, p.file_id
    having count(distinct c.attempt) = 1 and count(*) = count(c.attempt)
), traced as (
    -- What may be of another descriptor may be another task's header as well, while the stream is used, unless it is
    -- of the same attempt.
    select h.log, h.file_id, any_value(h.attempt) as attempt
    from headers h
    join io_attempts a on a.attempt = h.attempt
    left join io_claims c on c.file = h.file and c.is_phantom
    group by h.log, h.file_id
    having bool_and(
        c.file is null or coalesce(c.to_ns < h.from_ns or c.from_ns > h.to_ns, false)
        or coalesce(c.thread = a.thread and c.from_ns >= a.in_from_ns and c.to_ns <= a.in_to_ns, false)
    )
), counted as (
    select
        p.*,
        coalesce(b.attempts, 0) - coalesce(e.attempts, 0) as possible,
        case when possible = 1 then coalesce(b.numbers, 0) - coalesce(e.numbers, 0) end as only_attempt,
        t.attempt as traced_attempt
    from placed p
    asof left join (select * from io_steps where is_begin) b on b.scope = -p.process and p.to_ns >= b.at_ns
    asof left join (select * from io_steps where not is_begin) e on e.scope = -p.process and p.from_ns > e.at_ns
    left join traced t on t.log = p.log and t.file_id = p.file_id
), traced_writes as (
    select attempt, sum(nbytes) as written_bytes
    from io_claims
    where attempt is not null and is_write and not is_mpi
    group by attempt
), own_writes as (
    -- What of the bytes that an attempt's own thread wrote is in no segment, where it can be told.
    select a.attempt, any_value(c.written_chars_bytes) - coalesce(any_value(w.written_bytes), 0) as untraced_bytes
    from io_attempts a
    join raw.thread_counters c
        on c.server_id = a.worker_id and c.key_id = a.key_id and c.run_id is not distinct from a.run_id
        and c.time_ns = a.from_ns
    left join traced_writes w on w.attempt = a.attempt
    where a.attempt in (select only_attempt from counted)
    group by a.attempt
), weighed as (
    select c.*, sum(c.written_bytes) over (partition by c.only_attempt) = o.untraced_bytes and c.read_count = 0 as is_counted
    from counted c
    left join own_writes o on o.attempt = c.only_attempt
), claimed as (
    select
        c.*,
        -- A thread that an attempt started and left behind may have done it, but for what is counted in its own.
        case when c.is_counted and not c.is_unclear and only_one.thread is not null and only_one.in_from_ns <= c.from_ns
            and c.to_ns <= only_one.in_to_ns then only_one.attempt end as time_attempt,
        case when header.in_from_ns <= c.from_ns and c.to_ns <= header.in_to_ns then header.attempt end as path_attempt
    from weighed c
    left join io_attempts only_one on only_one.attempt = c.only_attempt
    left join io_attempts header on header.attempt = c.traced_attempt
)
select
    c.log,
    c.path,
    c.read_bytes,
    c.written_bytes,
    c.read_count,
    c.write_count,
    c.io_s,
    (c.zero_ns / 1e9 + c.first_s) + coalesce(c.offset_s, 0.0) as first_s,
    (c.zero_ns / 1e9 + c.last_s) + coalesce(c.offset_s, 0.0) as last_s,
    c.scheduler_id,
    a.key,
    a.key_id,
    a.run_id,
    a.prefix,
    coalesce(a.worker, c.worker) as worker,
    coalesce(a.worker_id, c.worker_id) as worker_id,
    case
        when c.path_attempt is not null then 'path'
        when c.time_attempt is not null then 'time_unique'
        when c.possible > 0 then 'shared'
        else 'none'
    end as attribution,
    case when c.process is not null then c.possible end as candidate_count
from claimed c
left join io_attempts a on a.attempt = coalesce(c.path_attempt, c.time_attempt)
""",
)

IO_SUMS = View(
    "io_sums",
    "One row per file, attempt claimed (or none), thread and attribution: its traced reads and writes summed up.  A "
    "thread does one at a time, so seconds are thread-seconds.",
    (),
    f"""
with timed as (
    select c.*, greatest(c.to_ns - c.from_ns - 2 * k.error_ns, 0) / 1e9 as io_s
    from io_claims c
    join io_names n on n.file = c.file
    left join io_clocks k on k.log = n.log
    where not c.is_mpi and not c.is_phantom
)
select
    file,
    attempt,
    thread,
    attribution,
    coalesce(sum(nbytes) filter (not is_write), 0)::bigint as read_bytes,
    coalesce(sum(nbytes) filter (is_write), 0)::bigint as written_bytes,
    count(*) filter (not is_write) as read_count,
    count(*) filter (is_write) as write_count,
    count(*) filter (nbytes < {SMALL_BYTES}) as small_count,
    sum(io_s) filter (nbytes < {SMALL_BYTES}) as small_io_s,
    sum(io_s) filter (not is_write) as read_io_s,
    sum(io_s) as io_s,
    min("offset") filter (not is_write) as read_from,
    max("offset" + nbytes) filter (not is_write) as read_to
from timed
group by all
""",
    is_kept=True,
    is_inner=True,
)

TASK_IO_TOTALS = View(
    "task_io_totals",
    "One row per attempt of which reads or writes are claimed in `task_io`: what it did in all.",
    (
        ViewColumn("scheduler_id", "Server id of the scheduler"),
        ViewColumn("key", "Dask key of the task", null="its text is lost"),
        ViewColumn("key_id", "Number of the key"),
        ViewColumn("run_id", "Attempt", null="a method of an actor"),
        ViewColumn("prefix", "Dask's task prefix", null="the graph is not recorded"),
        ViewColumn("worker", "Address of the worker", null="not told"),
        ViewColumn("worker_id", "Server id of the worker"),
        ViewColumn("read_bytes", "Bytes read", "bytes"),
        ViewColumn("written_bytes", "Bytes written", "bytes"),
        ViewColumn("read_count", "Reads"),
        ViewColumn("write_count", "Writes"),
        ViewColumn("small_count", "Reads and writes below 1 MiB"),
        ViewColumn("io_s", "Time in reads and writes; where they overlap it counts once", "s"),
        ViewColumn("file_count", "Files read or written"),
    ),
    f"""
with claimed as (
    select
        *,
        greatest(stop_s - greatest(start_s, coalesce(max(stop_s) over so_far, start_s)), 0.0) as alone_s
    from task_io
    where module = 'POSIX' and key_id is not null
    window so_far as (
        partition by worker_id, key_id, run_id order by start_s, stop_s
        rows between unbounded preceding and 1 preceding
    )
)
select
    scheduler_id,
    any_value(key) as key,
    key_id,
    run_id,
    any_value(prefix) as prefix,
    any_value(worker) as worker,
    worker_id,
    coalesce(sum(nbytes) filter (direction = 'read'), 0)::bigint as read_bytes,
    coalesce(sum(nbytes) filter (direction = 'write'), 0)::bigint as written_bytes,
    count(*) filter (direction = 'read') as read_count,
    count(*) filter (direction = 'write') as write_count,
    count(*) filter (nbytes < {SMALL_BYTES}) as small_count,
    sum(alone_s) as io_s,
    count(distinct path) as file_count
from claimed
group by scheduler_id, worker_id, key_id, run_id
""",
)
