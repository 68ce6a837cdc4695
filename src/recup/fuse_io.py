"""Views that join Darshan's I/O to attempts of tasks: who did which read and write, and how sure that is.

Part of `recup.fuse`, which says what all views have in common; whose log it is and how
clocks stand is in `recup.fuse_io_clocks`, what is known of files in `recup.fuse_io_files`.

A segment is claimed for an attempt only where nothing else is possible:

thread       it lies, with all bounds of error, inside the one attempt that held its thread
time_unique  its thread is not told, and one attempt of the process could have done it: it lies
             inside, nothing else may have run, and nothing used the file outside tasks
path         its thread is not told, and its file was opened once and closed inside this attempt
shared       attempts could have done it, by its thread or (not told) its process, or threads that
             they started and left behind: none is claimed
helper       its thread runs no task, but attempts ran meanwhile: none is claimed
none         no attempt could have done it, nothing is known of its process, or it may be of another
             file than Darshan says (`is_phantom`; `recup.fuse_io_files` says when)

Without thread ids, a thread that a task started and left behind may do what looks like that of
the task running then.  So `time_unique` and `path` also ask that, in the whole stretch of time in
which attempts ran, the reads (the writes) that Darshan traced in the process are, in number and
bytes, those that the kernel counted in the attempts' own threads (`io_spells`).  Less than that
would not do: a task that also writes to a socket would cover for the thread.  Where attempts were
not counted nothing is claimed by time or path.

Without thread ids, files of Python, Dask and recup are never claimed, as the main thread
reads and writes them while tasks run; nor are files on which Darshan may have booked what
was done to others.
"""

from __future__ import annotations

from recup.fuse_io_clocks import IO_ATTEMPTS, IO_CLOCKS, IO_HOLDERS, IO_PROCESSES, IO_STEPS, IO_TURNS
from recup.fuse_io_files import IO_FILE_OWNERS, IO_LOOSE_FILES, IO_NAMES, IO_SPELLS
from recup.fuse_io_totals import IO_SUMS, TASK_IO_STREAMS, TASK_IO_TOTALS
from recup.store import View, ViewColumn

ATTRIBUTIONS = ("thread", "time_unique", "path", "shared", "helper", "none")
"""Every value of `task_io.attribution`; the first three claim an attempt."""

_NO_CLAIM = "no attempt is claimed"
_CLAIMED = (
    ViewColumn("scheduler_id", "Server id of the scheduler", null="nothing is known of the process"),
    ViewColumn("key", "Dask key of the task that did it", null=_NO_CLAIM),
    ViewColumn("key_id", "Number of the key", null=_NO_CLAIM),
    ViewColumn("run_id", "Attempt", null=f"{_NO_CLAIM}, or a method of an actor"),
    ViewColumn("prefix", "Dask's task prefix", null=f"{_NO_CLAIM}, or the graph is not recorded"),
    ViewColumn("worker", "Address of the worker", null="nothing is known of the process, or it is no worker"),
    ViewColumn("worker_id", "Server id of the worker", null="nothing is known of the process, or it is no worker"),
)

_ATTRIBUTION = f"enum{ATTRIBUTIONS}"

IO_CLAIMS = View(
    "io_claims",
    "One row per traced read or write, as numbers, with the attempt claimed for it.  Ten million rows are joined once "
    "for all that is asked of them, so they are kept, and kept narrow.",
    (),
    f"""
with files as (
    select n.*, c.process, c.zero_ns, c.error_ns, coalesce(c.is_doubtful, true) as is_doubtful
    from io_names n
    left join io_clocks c on c.log = n.log
), placed as (
    select
        f.file::integer as file,
        s.direction = 'write' as is_write,
        s.module = 'MPI-IO' as is_mpi,
        s."offset",
        s.nbytes,
        s.thread,
        f.zero_ns + try_cast(s.start_s * 1e9 as bigint) - f.error_ns as from_ns,
        f.zero_ns + try_cast(s.stop_s * 1e9 as bigint) + f.error_ns as to_ns,
        f.doubt_from_s is not null and not coalesce(s.stop_s <= f.doubt_from_s, false) as is_phantom,
        case when not f.is_beacon and not is_phantom then coalesce(h.holder, -f.process) end::integer as scope
    from raw.io_segments s
    join files f on f.log = s.log and f.file_id = s.file_id
    left join io_holders h on h.process = f.process and h.thread = s.thread
), by_thread as materialized (
    select
        p.*,
        case
            when t.in_from_ns <= p.from_ns and p.to_ns <= t.in_to_ns and coalesce(t.before_to_ns < p.from_ns, true)
            then t.attempt
        end::integer as attempt
    from placed p
    asof left join io_turns t on t.holder = p.scope and p.to_ns >= t.out_from_ns
), weighed as (
    select
        q.*,
        coalesce(b.attempts, 0) - coalesce(e.attempts, 0) as candidate_count,
        case when candidate_count = 1 then coalesce(b.numbers, 0) - coalesce(e.numbers, 0) end as only_attempt,
        coalesce(case when q.is_write then s.is_all_written else s.is_all_read end, false) as is_counted
    from (select * exclude (attempt) from by_thread where attempt is null and scope is not null and from_ns is not null) q
    asof left join (select * from io_steps where is_begin) b on b.scope = q.scope and q.to_ns >= b.at_ns
    asof left join (select * from io_steps where not is_begin) e on e.scope = q.scope and q.from_ns > e.at_ns
    asof left join io_spells s on s.process = -q.scope and q.to_ns >= s.from_ns
), judged as (
    select
        w.* exclude (only_attempt, is_counted),
        case
            when w.thread is not null or w.candidate_count = 0 or not w.is_counted then null
            when only_one.thread is not null and only_one.in_from_ns <= w.from_ns and w.to_ns <= only_one.in_to_ns
                and loose.file is null and not f.is_runtime and not f.is_doubtful and f.doubt_from_s is null
            then 'time_unique'
            when owner.in_from_ns <= w.from_ns and w.to_ns <= owner.in_to_ns then 'path'
        end as claim,
        case claim when 'time_unique' then w.only_attempt when 'path' then owner.attempt end as attempt
    from weighed w
    join files f on f.file = w.file
    left join io_attempts only_one on only_one.attempt = w.only_attempt
    left join io_loose_files loose on loose.file = w.file
    left join io_file_owners o on o.file = w.file
    left join io_attempts owner on owner.attempt = o.attempt
), every_one as (
    select *, 1 as candidate_count, 'thread' as attribution from by_thread where attempt is not null
    union all by name
    select *, 'none' as attribution from by_thread where attempt is null and (scope is null or from_ns is null)
    union all by name
    select
        * exclude (claim),
        case
            when claim is not null then claim
            when candidate_count = 0 then 'none'
            when thread is not null and scope < 0 then 'helper'
            else 'shared'
        end as attribution
    from judged
)
select
    file,
    is_write,
    is_mpi,
    "offset",
    nbytes,
    thread,
    from_ns,
    to_ns,
    is_phantom,
    attempt::integer as attempt,
    candidate_count::integer as candidate_count,
    attribution::{_ATTRIBUTION} as attribution
from every_one
""",
    is_kept=True,
    is_inner=True,
)

TASK_IO = View(
    "task_io",
    "One row per read or write that Darshan's DXT traced, with the attempt that did it where that is sure.  Nothing is "
    "left out: rows of which no attempt is claimed keep a null key, so totals add up.  Times are the scheduler's.",
    (
        ViewColumn("log", "Name of the Darshan log"),
        ViewColumn("module", "POSIX or MPI-IO; what MPI-IO does is in POSIX rows again"),
        ViewColumn("direction", "read or write"),
        ViewColumn(
            "path",
            "Path by which the file was opened; its new name where it surely was renamed later",
            null="the log lost the name",
        ),
        ViewColumn("written_as", "The name by which it was opened", null="not renamed, or whether it was is not sure"),
        ViewColumn("offset", "Offset in the file; wrong for appends", null="not told by MPI-IO"),
        ViewColumn("nbytes", "Bytes asked for or moved", "bytes"),
        ViewColumn("start_s", "Start", "s", "the log tells no start"),
        ViewColumn("stop_s", "Stop", "s", "the log tells no start"),
        *_CLAIMED,
        ViewColumn("thread", "threading.get_ident() of the thread that did it", null="not in this log"),
        ViewColumn("attribution", "thread, time_unique, path (these claim an attempt), shared, helper or none"),
        ViewColumn("candidate_count", "Attempts that could have done it", null="nothing is known of the process"),
        ViewColumn(
            "clock_error_s", "Bound of what start and stop may be off by, on the scheduler's clock", "s", "not known"
        ),
        ViewColumn(
            "is_phantom",
            "Whether Darshan may have booked another descriptor's bytes on this file: a descriptor of it was duplicated "
            "or reopened as a C stream, whose close Darshan does not see, and this is not from before that",
        ),
        ViewColumn("is_runtime", "Whether it is a file of Python, Dask or recup"),
    ),
    """
with files as (
    select
        n.*,
        c.process,
        c.scheduler_id,
        c.worker_id,
        c.worker,
        c.zero_ns,
        c.error_ns,
        c.offset_s,
        c.alignment_error_s
    from io_names n
    left join io_clocks c on c.log = n.log
)
select
    f.log,
    case when e.is_mpi then 'MPI-IO' else 'POSIX' end as module,
    case when e.is_write then 'write' else 'read' end as direction,
    f.path,
    f.written_as,
    e."offset",
    e.nbytes,
    (e.from_ns + f.error_ns) / 1e9 + coalesce(f.offset_s, 0.0) as start_s,
    (e.to_ns - f.error_ns) / 1e9 + coalesce(f.offset_s, 0.0) as stop_s,
    coalesce(a.scheduler_id, f.scheduler_id) as scheduler_id,
    a.key,
    a.key_id,
    a.run_id,
    a.prefix,
    coalesce(a.worker, f.worker) as worker,
    coalesce(a.worker_id, f.worker_id) as worker_id,
    e.thread,
    e.attribution::varchar as attribution,
    coalesce(e.candidate_count, case when f.process is not null then 0 end)::bigint as candidate_count,
    f.error_ns / 1e9 + f.alignment_error_s as clock_error_s,
    e.is_phantom,
    f.is_runtime
from io_claims e
join files f on f.file = e.file
left join io_attempts a on a.attempt = e.attempt
""",
)

IO_VIEWS: tuple[View, ...] = (
    IO_PROCESSES,
    IO_CLOCKS,
    IO_ATTEMPTS,
    IO_HOLDERS,
    IO_TURNS,
    IO_STEPS,
    IO_NAMES,
    IO_LOOSE_FILES,
    IO_FILE_OWNERS,
    IO_SPELLS,
    IO_CLAIMS,
    IO_SUMS,
    TASK_IO,
    TASK_IO_STREAMS,
    TASK_IO_TOTALS,
)
"""Views of I/O, those they need before them."""
