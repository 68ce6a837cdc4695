"""Views under the join of I/O: whose log it is, how its clock stands, when attempts held which thread.

Part of `recup.fuse`, which says what all views have in common.  Times here are
nanoseconds on the clock of the worker that ran the attempt: Darshan reads the same clock,
so nothing has to be aligned between hosts.

Bounds of error, from the surest:

beacon     bytes written by the worker between two readings of its clock, and seen by Darshan;
           all of them must agree, to half of what they leave open plus a microsecond
log start  Darshan's start lies up to 25 ms after the zero of its segments: the middle, 12.5 ms
           either way.  Logs before format 3.41 know whole seconds only
"""

from __future__ import annotations

from recup.store import View, ViewColumn

IO_PROCESSES = View(
    "io_processes",
    "One row per server: the process it ran in, as a number; servers of one process share it.",
    (),
    """
with named as (
    select host_id, any_value(hostname) as hostname from raw.hosts group by host_id
), worker_processes as (
    select host_id, pid, count(*) as worker_count from servers where role = 'worker' group by host_id, pid
), doubtful as (
    -- An attempt that is not recorded might have done what looks like another's alone.
    select distinct server_id, true as is_doubtful
    from raw.losses
    where "table" in ('results', 'thread_counters', 'worker_transitions')
)
select
    s.server_id,
    s.role,
    s.scheduler_id,
    s.address,
    s.pid,
    split_part(lower(named.hostname), '.', 1) as short_name,
    dense_rank() over (order by s.host_id, s.pid, case when s.pid is null then s.server_id end) as process,
    s.role = 'worker' and w.worker_count = 1 as is_only_worker,
    c.offset_s,
    c.error_s,
    c.delay_error_s,
    coalesce(is_doubtful, false) as is_doubtful
from servers s
left join named on named.host_id = s.host_id
left join worker_processes w on w.host_id is not distinct from s.host_id and w.pid = s.pid
left join clocks c on c.server_id = s.server_id
left join doubtful d on d.server_id = s.server_id
""",
    is_kept=True,
    is_inner=True,
)

IO_CLOCKS = View(
    "io_clocks",
    "One row per Darshan log: the process it is of, and where the zero of its segments lies on that process's clock.",
    (
        ViewColumn("log", "Name of the log"),
        ViewColumn("process", "Number of the process, shared by the servers in it", null="none of the record fits"),
        ViewColumn("matched_by", "beacon, host and process id, process id (the log names no host), or none"),
        ViewColumn("scheduler_id", "Server id of the scheduler", null="no process fits"),
        ViewColumn("worker_id", "Server id of the worker", null="no process fits, or it holds no or several workers"),
        ViewColumn("worker", "Address of the worker", null="no process fits, or it holds no or several workers"),
        ViewColumn("has_thread_ids", "Whether segments name their thread"),
        ViewColumn("zero_ns", "Zero of the segments, on the clock of the process", "ns", "the log tells no start"),
        ViewColumn("error_ns", "Bound of what the zero may be off by", "ns", "the log tells no start"),
        ViewColumn("basis", "beacon; log start (0 to 25 ms after the zero, the middle is taken); or unknown"),
        ViewColumn("beacon_count", "Bytes of beacons found in the log"),
        ViewColumn("offset_s", "To be added to that clock to get the scheduler's", "s", "not known"),
        ViewColumn("alignment_error_s", "Bound of the offset's error", "s", "not known"),
        ViewColumn("is_doubtful", "Whether attempts of the process may be missing from the record"),
    ),
    """
with beacons as (
    select
        s.log,
        b.server_id,
        b.time_ns - (s.start_s * 1e9)::bigint as lowest_ns,
        b.after_ns - (s.stop_s * 1e9)::bigint as highest_ns
    from raw.io_segments s
    join raw.clock_beacons b on b.path = s.path and b."offset" = s."offset"
    where s.direction = 'write' and s.nbytes = 1 and s.module = 'POSIX' and isfinite(s.start_s) and isfinite(s.stop_s)
    -- A byte written twice leaves open which write is which.
    qualify count(*) over (partition by s.log, s.path, s."offset") = 1
), by_beacon as (
    select
        log,
        any_value(server_id) as server_id,
        count(*) as beacon_count,
        -- Bounds that exclude each other show a clock that was set or drifted: then all of them are possible.
        max(lowest_ns) <= min(highest_ns) + 2000 as is_one_zero,
        case when is_one_zero then least(max(lowest_ns), min(highest_ns)) else min(lowest_ns) end as from_ns,
        case when is_one_zero then greatest(max(lowest_ns), min(highest_ns)) else max(highest_ns) end as to_ns
    from beacons
    group by log
    having count(distinct server_id) = 1
), by_beacon_file as (
    -- A memory map has no segments, but it counts the writes to the beacon, which has one writer.
    select f.log, any_value(b.server_id) as server_id
    from raw.io_files f
    join (select distinct path, server_id from raw.clock_beacons) b on b.path = f.path
    where f.module = 'POSIX' and f.write_count > 0
    group by f.log
    having count(distinct b.server_id) = 1
), logs as (
    select
        log,
        any_value(pid) as pid,
        any_value(split_part(lower(hostname), '.', 1)) as short_name,
        bool_or(has_thread_ids) as has_thread_ids,
        any_value(start_s) as start_s,
        coalesce(any_value(try_cast(format_version as double)) < 3.405, false) as is_whole_seconds
    from raw.io_logs
    group by log
), by_name as (
    select log, any_value(process) as process, bool_and(is_host_known) as is_host_known
    from (
        select l.log, p.process, p.short_name is not null and l.short_name is not null as is_host_known
        from logs l
        join io_processes p
            on p.pid = l.pid and (p.short_name = l.short_name or p.short_name is null or l.short_name is null)
        -- Where hosts are told, those of which none is told are no candidates.
        qualify is_host_known = bool_or(is_host_known) over (partition by l.log)
    )
    group by log
    having count(distinct process) = 1
), matched as (
    select
        l.*,
        coalesce(p.process, n.process) as process,
        case
            when p.process is not null then 'beacon'
            when n.is_host_known then 'host and process id'
            when n.process is not null then 'process id'
            else 'none'
        end as matched_by,
        b.beacon_count,
        b.from_ns,
        b.to_ns
    from logs l
    left join by_beacon b on b.log = l.log
    left join by_beacon_file bf on bf.log = l.log
    left join io_processes p on p.server_id = coalesce(b.server_id, bf.server_id)
    left join by_name n on n.log = l.log
), known as (
    select
        process,
        any_value(scheduler_id) as scheduler_id,
        any_value(server_id) filter (is_only_worker) as worker_id,
        any_value(address) filter (is_only_worker) as worker,
        any_value(offset_s) filter (role = 'worker') as worker_offset_s,
        any_value(error_s) filter (role = 'worker') as worker_error_s,
        any_value(offset_s) as offset_s,
        any_value(error_s) as error_s,
        bool_or(is_doubtful) as is_doubtful
    from io_processes
    group by process
)
select
    m.log,
    m.process,
    m.matched_by,
    k.scheduler_id,
    k.worker_id,
    k.worker,
    m.has_thread_ids,
    case
        when from_ns is not null then from_ns + (to_ns - from_ns) // 2
        when is_whole_seconds then (start_s * 1e9)::bigint + 487_500_000
        else (start_s * 1e9)::bigint - 12_500_000
    end as zero_ns,
    case
        when from_ns is not null then (to_ns - from_ns + 1) // 2 + 1000
        when start_s is null then null
        when is_whole_seconds then 512_500_000
        else 12_500_000
    end as error_ns,
    case when from_ns is not null then 'beacon' when start_s is not null then 'log start' else 'unknown' end as basis,
    coalesce(m.beacon_count, 0) as beacon_count,
    coalesce(k.worker_offset_s, k.offset_s) as offset_s,
    coalesce(k.worker_error_s, k.error_s) as alignment_error_s,
    coalesce(k.is_doubtful, false) as is_doubtful
from matched m
left join known k on k.process = m.process
""",
    is_kept=True,
)

IO_ATTEMPTS = View(
    "io_attempts",
    "One row per stretch of time in which an attempt ran, on its worker's clock: surely from `in_from_ns` to "
    "`in_to_ns`, at most from `out_from_ns` to `out_to_ns`.  What the thread counted and what the worker told Dask, less "
    "the shift Dask put on it, bound each other.  `is_open`: it began, and no end is recorded.",
    (),
    """
with begun as (
    select server_id, key_id, run_id, min(time_ns) as executing_ns
    from raw.worker_transitions
    where finish = 'executing' and run_id is not null
    group by all
), told as (
    select
        r.server_id,
        r.key_id,
        r.run_id,
        r.thread,
        b.executing_ns,
        r.scheduler_delay_s as delay_s,
        p.delay_error_s,
        ((r.compute_start_s - r.scheduler_delay_s) * 1e9)::bigint as from_ns,
        ((r.compute_stop_s - r.scheduler_delay_s) * 1e9)::bigint as to_ns,
        -- It began after the loop gave it to a thread, and ended before the loop heard of that: which was up to a
        -- microsecond after the time told.
        b.executing_ns - 1000 as earliest_ns,
        r.time_ns - (to_ns - from_ns) + 2000 as latest_ns
    from raw.results r
    join io_processes p on p.server_id = r.server_id
    left join begun b on b.server_id = r.server_id and b.key_id = r.key_id and b.run_id = r.run_id
    where r.role <> 'scheduler' and r.compute_start_s is not null and r.compute_stop_s is not null
        and r.scheduler_delay_s is not null
), delays as (
    select server_id, executing_ns as at_ns, delay_s from told where executing_ns is not null
    union all
    select server_id, time_ns, scheduler_delay_s from raw.clock_samples where scheduler_delay_s is not null
), later_delays as (
    select server_id, at_ns, max(delay_s) as delay_s from delays group by server_id, at_ns
), bounded as (
    select
        t.*,
        from_ns between earliest_ns and latest_ns as is_possible,
        -- The delay is noted when the loop gives the task away, and read by Dask a moment later.  Where the delay seen
        -- next, after the latest possible start, is another, it may have changed in that moment.
        coalesce(((t.delay_s - l.delay_s) * 1e9)::bigint, 0) as change_ns,
        from_ns + change_ns between earliest_ns and latest_ns as is_change_possible,
        case
            when executing_ns is null then coalesce((delay_error_s * 1e9)::bigint, 1_000_000_000)
            when is_possible then 1000 + case when is_change_possible then abs(change_ns) else 0 end
            else greatest((latest_ns - earliest_ns) // 2, 0) + 1000
        end as error_ns,
        case when executing_ns is null or is_possible then 0 else (earliest_ns + latest_ns) // 2 - from_ns end as shift_ns
    from told t
    asof left join later_delays l on l.server_id = t.server_id and l.at_ns >= greatest(t.latest_ns, t.executing_ns)
), spans as (
    select *, from_ns + shift_ns as begun_ns, to_ns + shift_ns as done_ns, to_ns - from_ns as held_ns from bounded
), counted as (
    -- Dask's own span holds the counted one, which begins a moment after its time was read: how long the two are
    -- bounds how far they may lie apart.  The counted length is of the monotonic clock, which may part from the wall
    -- clock by some millionths.
    select
        c.server_id,
        c.key_id,
        c.run_id,
        case when c.kind <> 'coroutine' then c.thread end as thread,
        c.time_ns as from_ns,
        c.time_ns + c.wall_ns as to_ns,
        1000 + c.wall_ns // 100_000 as drift_ns,
        greatest(coalesce(s.held_ns - c.wall_ns, 100_000), 0) as slack_ns,
        c.time_ns - slack_ns - 1000 as out_from_ns,
        c.time_ns + c.wall_ns + slack_ns + drift_ns as out_to_ns,
        c.time_ns + 1000 as counted_from_ns,
        c.time_ns + c.wall_ns - drift_ns as counted_to_ns,
        s.begun_ns + s.error_ns as told_from_ns,
        s.done_ns - s.error_ns as told_to_ns
    from raw.thread_counters c
    left join spans s on s.server_id = c.server_id and s.key_id = c.key_id and s.run_id = c.run_id
), stretches as (
    select
        server_id, key_id, run_id, thread, from_ns, to_ns, out_from_ns, out_to_ns,
        case when told_from_ns >= out_from_ns then least(counted_from_ns, told_from_ns) else counted_from_ns end
            as in_from_ns,
        case when told_to_ns <= out_to_ns then greatest(counted_to_ns, told_to_ns) else counted_to_ns end as in_to_ns
    from counted
    union all
    select
        server_id, key_id, run_id, thread, begun_ns, done_ns, begun_ns - error_ns, done_ns + error_ns,
        begun_ns + error_ns, done_ns - error_ns
    from spans
    where not exists (
        select 1
        from raw.thread_counters c
        where c.server_id = spans.server_id and c.key_id = spans.key_id and c.run_id = spans.run_id
    )
), open_ends as (
    select t.server_id, t.key_id, t.run_id, min(t.time_ns) as from_ns
    from raw.worker_transitions t
    where t.finish = 'executing' and t.run_id is not null and not exists (
        select 1
        from stretches s
        where s.server_id = t.server_id and s.key_id = t.key_id and s.run_id = t.run_id
    )
    group by all
), in_turn as (
    -- A thread holds one attempt at a time: it let go of one before it surely held the next.
    select
        * exclude (out_from_ns, out_to_ns),
        greatest(out_from_ns, case when thread is not null then lag(core_to_ns ignore nulls) over turns end)
            as out_from_ns,
        least(out_to_ns, case when thread is not null then lead(core_from_ns ignore nulls) over turns end) as out_to_ns
    from (
        select
            *,
            case when in_from_ns <= in_to_ns then in_from_ns end as core_from_ns,
            case when in_from_ns <= in_to_ns then in_to_ns end as core_to_ns
        from stretches
    )
    window turns as (partition by server_id, thread order by in_from_ns, in_to_ns)
), every_one as (
    select
        server_id, key_id, run_id, thread, from_ns, to_ns, out_from_ns, out_to_ns, in_from_ns, in_to_ns, false as is_open
    from in_turn
    union all
    -- It may have run until its result was told; where none was, to the end.
    select
        o.server_id, o.key_id, o.run_id, null, o.from_ns, coalesce(r.to_ns, 4611686018427387904) as to_ns, o.from_ns - 1000,
        to_ns + 2000, to_ns, o.from_ns, true
    from open_ends o
    left join (
        select server_id, key_id, run_id, max(time_ns) as to_ns
        from raw.results
        where role <> 'scheduler'
        group by all
    ) r on r.server_id = o.server_id and r.key_id = o.key_id and r.run_id = o.run_id
), prefixes as (
    select server_id as scheduler_id, key_id, any_value(prefix) as prefix from raw.tasks group by all
)
select
    row_number() over () as attempt,
    p.process,
    e.thread,
    p.server_id as worker_id,
    p.address as worker,
    p.scheduler_id,
    e.key_id,
    keys.key,
    e.run_id,
    prefixes.prefix,
    e.is_open,
    e.from_ns,
    e.to_ns,
    e.out_from_ns,
    e.out_to_ns,
    e.in_from_ns,
    e.in_to_ns
from every_one e
join io_processes p on p.server_id = e.server_id
semi join io_clocks c on c.process = p.process
left join keys on keys.key_id = e.key_id
left join prefixes on prefixes.scheduler_id = p.scheduler_id and prefixes.key_id = e.key_id
""",
    is_kept=True,
    is_inner=True,
)

IO_HOLDERS = View(
    "io_holders",
    "One row per thread that held an attempt, also where no end of one is recorded: its number.",
    (),
    """
select row_number() over () as holder, process, thread
from (
    select process, thread from io_attempts where thread is not null
    union
    select p.process, t.thread
    from raw.threads t
    join io_processes p on p.server_id = t.server_id
    where p.process in (select process from io_attempts)
)
""",
    is_kept=True,
    is_inner=True,
)

IO_TURNS = View(
    "io_turns",
    "One row per moment at which an attempt may have begun to hold a thread: the attempt, and until when those before "
    "it may have held the thread.",
    (),
    """
select
    h.holder,
    a.attempt,
    a.out_from_ns,
    a.in_from_ns,
    a.in_to_ns,
    a.out_to_ns,
    max(a.out_to_ns) over (turns rows between unbounded preceding and 1 preceding) as before_to_ns
from io_attempts a
join io_holders h on h.process = a.process and h.thread = a.thread
window turns as (partition by h.holder order by a.out_from_ns, a.attempt)
-- Of attempts that may have begun in the same moment the last stands for all: it knows of those before it.
qualify lead(a.out_from_ns) over turns is distinct from a.out_from_ns
""",
    is_kept=True,
    is_inner=True,
)

IO_STEPS = View(
    "io_steps",
    "One row per scope and moment: how many attempts may have begun (`is_begin`) or have surely ended by then, and the "
    "sum of their numbers.  Begun less ended is what may run; where that is one, the sums leave its number.  A scope "
    "is a thread (its holder) with the attempts whose thread is not known, or a whole process (its number, negative).",
    (),
    """
with members as (
    select h.holder as scope, a.attempt, a.out_from_ns, a.out_to_ns
    from io_attempts a
    join io_holders h on h.process = a.process and (h.thread = a.thread or a.is_open)
    union all
    select -process, attempt, out_from_ns, out_to_ns from io_attempts
), moments as (
    select scope, true as is_begin, out_from_ns as at_ns, attempt from members
    union all
    select scope, false, out_to_ns, attempt from members
)
select scope, is_begin, at_ns, row_number() over so_far as attempts, (sum(attempt) over so_far)::bigint as numbers
from moments
window so_far as (partition by scope, is_begin order by at_ns, attempt rows unbounded preceding)
qualify lead(at_ns) over (partition by scope, is_begin order by at_ns, attempt) is distinct from at_ns
""",
    is_kept=True,
    is_inner=True,
)
