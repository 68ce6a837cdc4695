"""Views of servers: who they are, how their clocks stand, how workers came and went.

Part of `recup.fuse`, which says what all views have in common.
"""

from __future__ import annotations

from recup.store import View, ViewColumn

_SCHEDULER_ID = ViewColumn("scheduler_id", "Server id of the scheduler", null="not told")

SERVERS = View(
    "servers",
    "One row per server: those with a spool, and workers that only the scheduler told of.",
    (
        ViewColumn("server_id", "Server id"),
        ViewColumn("role", "scheduler, worker, nanny, client or launcher"),
        ViewColumn("scheduler_id", "Server id of its scheduler, itself for a scheduler", null="not told"),
        ViewColumn("host_id", "Host it ran on", null="not told"),
        ViewColumn("address", "Address", null="it has none, or it was not told"),
        ViewColumn("pid", "Process id", null="not told"),
        ViewColumn("is_captured", "Whether it has a spool"),
    ),
    """
with named as (
    select server_id, any_value(role) as role, true as is_captured, any_value(pid) as pid
    from spools
    group by server_id
), told as (
    select
        server_id,
        any_value(role) as role,
        any_value(scheduler_id) as scheduler_id,
        any_value(host_id) as host_id,
        any_value(address) as address,
        any_value(pid) as pid
    from raw.processes
    group by server_id
), met as (
    select
        worker_id as server_id,
        any_value(server_id) as scheduler_id,
        any_value(address) as address,
        any_value(pid) as pid
    from raw.workers
    where worker_id is not null
    group by worker_id
), schedulers as (
    select server_id from named where role = 'scheduler'
    union
    select server_id from raw.workers
), only_one as (
    select any_value(server_id) as server_id from schedulers having count(*) = 1
)
select
    coalesce(named.server_id, told.server_id, met.server_id) as server_id,
    coalesce(named.role, told.role, 'worker') as role,
    case
        when coalesce(named.role, told.role) = 'scheduler' then coalesce(named.server_id, told.server_id)
        else coalesce(told.scheduler_id, met.scheduler_id, (select server_id from only_one))
    end as scheduler_id,
    told.host_id,
    coalesce(told.address, met.address) as address,
    coalesce(told.pid, named.pid, met.pid) as pid,
    coalesce(named.is_captured, false) as is_captured
from named
full join told on told.server_id = named.server_id
full join met on met.server_id = coalesce(named.server_id, told.server_id)
""",
    is_kept=True,
)

CLOCKS = View(
    "clocks",
    "One row per server: how its clock stands to its scheduler's.",
    (
        ViewColumn("server_id", "Server id"),
        ViewColumn("role", "Its role"),
        _SCHEDULER_ID,
        ViewColumn("host_id", "Host it ran on", null="not told"),
        ViewColumn("offset_s", "To be added to its clock to get the scheduler's", "s", "not known"),
        ViewColumn(
            "error_s",
            "Bound of the offset's error: a microsecond on one host, else the widest deviation of a sample from the "
            "median",
            "s",
            "not known",
        ),
        ViewColumn(
            "delay_error_s",
            "Bound of the error of times that Dask itself shifted by its scheduler_delay",
            "s",
            "no sample of scheduler_delay",
        ),
        ViewColumn("sample_count", "Samples of scheduler_delay"),
        ViewColumn(
            "basis", "scheduler, same host (one clock), scheduler_delay (median of three or more samples) or unknown"
        ),
    ),
    """
with delays as (
    select
        server_id,
        median(scheduler_delay_s) as middle_s,
        min(scheduler_delay_s) as lowest_s,
        max(scheduler_delay_s) as highest_s,
        count(scheduler_delay_s) as sample_count
    from raw.clock_samples
    where scheduler_delay_s is not null
    group by server_id
), based as (
    select
        s.server_id,
        s.role,
        s.scheduler_id,
        s.host_id,
        coalesce(d.sample_count, 0) as sample_count,
        d.middle_s,
        d.lowest_s,
        d.highest_s,
        case
            when s.server_id = s.scheduler_id then 'scheduler'
            when s.host_id = scheduler.host_id then 'same host'
            when d.sample_count >= 3 then 'scheduler_delay'
            else 'unknown'
        end as basis
    from servers s
    left join servers scheduler on scheduler.server_id = s.scheduler_id
    left join delays d on d.server_id = s.server_id
), aligned as (
    select
        *,
        case
            when basis in ('scheduler', 'same host') then 0.0
            when basis = 'scheduler_delay' then middle_s
        end as offset_s
    from based
)
select
    server_id,
    role,
    scheduler_id,
    host_id,
    offset_s,
    case basis
        when 'scheduler' then 0.0
        when 'same host' then 1e-6
        when 'scheduler_delay' then greatest(highest_s - middle_s, middle_s - lowest_s)
    end as error_s,
    greatest(abs(highest_s - offset_s), abs(lowest_s - offset_s)) as delay_error_s,
    sample_count,
    basis
from aligned
""",
    is_kept=True,
)

WORKER_LIVES = View(
    "worker_lives",
    "One row per life of a worker: from its arrival at a scheduler to its end.",
    (
        _SCHEDULER_ID,
        ViewColumn("worker_id", "Server id of the worker", null="not told"),
        ViewColumn("address", "Its address; the same may be used by another life later", null="not told"),
        ViewColumn("name", "Its name", null="none"),
        ViewColumn("host", "Host part of the address", null="not told"),
        ViewColumn("host_id", "Host it ran on", null="not told"),
        ViewColumn("pid", "Process id", null="not told"),
        ViewColumn("thread_count", "Task threads", null="not told"),
        ViewColumn("memory_limit_bytes", "Memory limit, 0 is none", "bytes", "not told"),
        ViewColumn(
            "came_s", "When the scheduler took it in; of a worker it never saw, when the worker began", "s", "not told"
        ),
        ViewColumn("left_s", "When the scheduler removed it", "s", "it did not, as far as recorded"),
        ViewColumn(
            "ended",
            "closed (in order, by its own word), signal N or exited N (by its nanny's), removed (by the scheduler; how "
            "it ended is not known), there at the end, or unknown",
        ),
        ViewColumn(
            "process_end_s",
            "When its nanny saw its process end",
            "s",
            "its nanny saw none, or which it was is not known",
        ),
        ViewColumn("reason", "Reason its nanny gave", null="none given"),
        ViewColumn("removal_cause", "Stimulus of the removal", null="not removed or not told"),
        ViewColumn("is_captured", "Whether it has a spool"),
        ViewColumn("last_sign_s", "Last sign of life in its own record", "s", "not captured, or its status is lost"),
    ),
    """
with came as (
    select server_id as scheduler_id, worker_id, address, name, host, pid, thread_count, memory_limit_bytes,
        time_ns as came_ns
    from raw.workers
    where action <> 'remove'
), gone as (
    select server_id as scheduler_id, worker_id, address, time_ns as left_ns, stimulus_id
    from raw.workers
    where action = 'remove'
), lives as (
    select
        came.*,
        -- The next removal at this address is another worker's when it names another.
        case when gone.worker_id is distinct from came.worker_id and gone.worker_id is not null then null
            else gone.left_ns end as left_ns,
        gone.stimulus_id as removal_cause
    from came
    asof left join gone
        on gone.scheduler_id = came.scheduler_id and gone.address = came.address and came.came_ns <= gone.left_ns
    union all by name
    select s.scheduler_id, s.server_id as worker_id, s.address, s.pid, p.time_ns as came_ns
    from servers s
    left join (select server_id, min(time_ns) as time_ns from raw.processes group by server_id) p using (server_id)
    where s.role = 'worker' and not exists (select 1 from came where came.worker_id = s.server_id)
), own_ends as (
    select distinct server_id as worker_id from raw.process_ends where how = 'closed' and subject = server_id
), known_lives as (
    select
        lives.*,
        row_number() over (order by came_ns, lives.address, worker_id, left_ns) as life,
        servers.host_id,
        coalesce(servers.is_captured, false) as is_captured,
        clocks.offset_s
    from lives
    left join servers on servers.server_id = lives.worker_id
    left join clocks on clocks.server_id = lives.worker_id
), nanny_ends as (
    select
        row_number() over (order by e.time_ns, e.subject) as number,
        e.subject as address,
        e.pid,
        n.host_id,
        e.time_ns as end_ns,
        e.time_ns / 1e9 + coalesce(c.offset_s, 0.0) as end_s,
        e.exit_code,
        e.signal,
        e.reason
    from raw.process_ends e
    left join servers n on n.server_id = e.server_id
    left join clocks c on c.server_id = e.server_id
    where e.subject <> e.server_id
), ends_by_pid as (
    -- A nanny may still name the worker before the one whose process ended.
    select l.life, e.*
    from known_lives l
    join nanny_ends e on e.pid = l.pid and l.came_ns <= e.end_ns
        and coalesce(e.host_id = l.host_id, regexp_replace(e.address, ':\\d+$', '') = regexp_replace(l.address, ':\\d+$', ''))
    qualify row_number() over (partition by l.life order by e.end_ns, e.number) = 1
), ends_by_address as (
    select l.life, e.*
    from known_lives l
    join nanny_ends e on e.address = l.address and l.came_ns <= e.end_ns and (e.pid is null or l.pid is null)
    where l.life not in (select life from ends_by_pid) and e.number not in (select number from ends_by_pid)
    qualify row_number() over (partition by l.life order by e.end_ns, e.number) = 1
), ends as (
    from ends_by_pid
    union all
    from ends_by_address
), signs as (
    select server_id as worker_id, max(last_sign_ns) as last_sign_ns from spools group by server_id
)
select
    lives.scheduler_id,
    lives.worker_id,
    lives.address,
    lives.name,
    lives.host,
    lives.host_id,
    lives.pid,
    lives.thread_count,
    lives.memory_limit_bytes,
    lives.came_ns / 1e9 as came_s,
    lives.left_ns / 1e9 as left_s,
    case
        when own_ends.worker_id is not null then 'closed'
        when e.signal is not null then 'signal ' || e.signal
        when e.exit_code is not null then 'exited ' || e.exit_code
        when lives.left_ns is not null then 'removed'
        when lives.scheduler_id is not null and exists (
            select 1 from raw.workers w where w.worker_id = lives.worker_id and w.server_id = lives.scheduler_id
        ) then 'there at the end'
        else 'unknown'
    end as ended,
    e.end_s as process_end_s,
    e.reason,
    case when lives.left_ns is not null then lives.removal_cause end as removal_cause,
    lives.is_captured,
    signs.last_sign_ns / 1e9 + lives.offset_s as last_sign_s
from known_lives lives
left join ends e on e.life = lives.life
left join own_ends on own_ends.worker_id = lives.worker_id
left join signs on signs.worker_id = lives.worker_id
""",
    is_kept=True,
)
