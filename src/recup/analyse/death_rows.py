"""Deaths of workers, the tasks on them and the tasks blamed for them, as queries.

Part of `recup.analyse.deaths`.
"""

from __future__ import annotations

BLAMED_SHOWN = 100
"""Blamed tasks that are rows at most."""

_LIVES = """
with run_start as (
    select started_s as zero_s from run_times
), told as (
    -- What the worker, its nanny or the scheduler published of an end that was meant.
    select
        server_id as scheduler_id,
        coalesce(nullif(try(payload ->> '$.worker'), ''), topic) as address,
        case
            when topic = 'worker-restart-memory' then 'memory'
            when action in ('closing-worker', 'retired', 'close-worker') then 'closing'
        end as kind,
        time_ns / 1e9 as time_s,
        try_cast(try(payload ->> '$.pid') as bigint) as pid,
        try_cast(try(payload ->> '$.rss') as bigint) as rss_bytes
    from raw.events
    where topic = 'worker-restart-memory' or action in ('closing-worker', 'retired', 'close-worker')
    union all
    -- Publishing is best effort: the nanny's log says the same.
    select
        s.scheduler_id,
        regexp_extract(l.message, 'Worker (\\S+) \\(pid=', 1),
        'memory',
        l.time_ns / 1e9 + coalesce(c.offset_s, 0.0),
        try_cast(regexp_extract(l.message, '\\(pid=(\\d+)\\)', 1) as bigint),
        null
    from raw.logs l
    join servers s on s.server_id = l.server_id
    left join clocks c on c.server_id = l.server_id
    where l.logger = 'distributed.nanny' and contains(l.message, '% memory budget')
), missed as (
    select server_id as scheduler_id, time_ns / 1e9 as time_s, unnest(from_json(payload -> '$.workers', '["varchar"]')) as address
    from raw.events
    where action = 'worker-ttl-timed-out'
), schedulers as (
    select server_id as scheduler_id, max(time_ns) / 1e9 as last_s from raw.scheduler_transitions group by server_id
), seen_later as (
    -- Once a second, whether anything is to do or not.
    select server_id as scheduler_id, max(time_ns) / 1e9 as last_s from raw.clock_samples group by server_id
), cut_off as (
    select server_id as worker_id from spools group by server_id having not bool_or(is_closed) and not bool_or(is_alive)
), lives as (
    select
        w.*,
        row_number() over (order by w.came_s, w.address, w.worker_id) as life,
        case when w.ended like 'signal %' then try_cast(substr(w.ended, 8) as integer) end as signal,
        case when w.ended like 'exited %' then try_cast(substr(w.ended, 8) as integer) end as exit_code,
        lead(w.came_s) over (partition by w.scheduler_id, w.name order by w.came_s) as next_came_s
    from worker_lives w
    -- A life may be told twice: as it came, and as it was there when the record began.
    qualify row_number() over (partition by w.scheduler_id, w.worker_id, w.address, w.left_s order by w.came_s) = 1
), judged as (
    select
        e.*,
        coalesce(e.left_s, case when e.signal is not null or e.exit_code is not null then e.process_end_s end) as died_s,
        m.rss_bytes as terminated_bytes,
        m.life is not null as is_memory_kill,
        c.life is not null as is_closing,
        coalesce(e.reason like 'check-worker-ttl%' or e.removal_cause like 'check-worker-ttl%', false)
            or t.life is not null as is_heartbeat_missed
    from lives e
    left join (
        select l.life, max(told.rss_bytes) as rss_bytes
        from lives l
        join told on told.kind = 'memory' and told.address = l.address and told.time_s >= l.came_s
            and (told.pid is null or l.pid is null or told.pid = l.pid)
        group by l.life
    ) m on m.life = e.life
    left join (
        select distinct l.life
        from lives l
        join told on told.kind = 'closing' and told.address = l.address and told.time_s between l.came_s - 1 and
            coalesce(l.left_s, told.time_s) + 5
    ) c on c.life = e.life
    left join (
        select distinct l.life
        from lives l
        join missed on missed.address = l.address and missed.time_s >= l.came_s
            and missed.time_s <= coalesce(l.left_s, missed.time_s) + 5
    ) t on t.life = e.life
), lost as (
    select scheduler_id, end_cause, count(*) as assigned_count
    from task_runs
    where outcome = 'lost'
    group by scheduler_id, end_cause
), dead as (
    select j.*, coalesce(lost.assigned_count, 0) as assigned_count
    from judged j
    left join lost on lost.scheduler_id = j.scheduler_id and lost.end_cause = j.removal_cause
    left join schedulers on schedulers.scheduler_id = j.scheduler_id
    left join seen_later on seen_later.scheduler_id = j.scheduler_id
    left join cut_off on cut_off.worker_id = j.worker_id
    where j.is_memory_kill
        or j.is_heartbeat_missed
        -- A nanny that gives a reason means it; a worker that says so itself closes in order.
        or (j.reason is null and not j.is_closing and (j.signal is not null or j.exit_code is not null))
        -- Connections of a cluster that ends break too: only what cost tasks, or long before the end, is a death.
        -- Of an idle one the end is that of the scheduler's samples, if its own record did not end in order.
        or (
            j.ended = 'removed' and j.reason is null and not j.is_closing
            and coalesce(j.removal_cause not like 'retire%', true)
            and (
                lost.assigned_count > 0
                or schedulers.last_s > j.left_s + 1
                or (cut_off.worker_id is not null and seen_later.last_s > j.left_s + 2)
            )
        )
)
"""

DEATHS_SQL = f"""
{_LIVES}
, own as (
    select d.life, arg_max(s.value, s.time_ns) as memory_bytes, max(s.value) as peak_bytes,
        max(s.time_ns) / 1e9 + coalesce(any_value(c.offset_s), 0.0) as memory_at
    from dead d
    join raw.samples s on s.server_id = d.worker_id and s.metric = 'process_memory_bytes' and s.subject is null
    left join clocks c on c.server_id = s.server_id
    group by d.life
), peaks as (
    -- The kernel's peak starts at that of the process that spawned this one: only what grew is the worker's.
    select d.life, max(s.value) as peak_bytes
    from dead d
    join raw.samples s on s.server_id = d.worker_id and s.metric = 'process_peak_memory_bytes' and s.subject is null
    group by d.life
    having max(s.value) > arg_min(s.value, s.time_ns)
), seen as (
    select
        d.life,
        arg_max(s.value, s.time_ns) filter (s.metric = 'memory_process_bytes') as memory_bytes,
        max(s.value) filter (s.metric = 'memory_process_bytes') as peak_bytes,
        arg_max(s.value, s.time_ns) filter (s.metric = 'memory_managed_bytes') as managed_bytes
    from dead d
    join raw.samples s on s.server_id = d.scheduler_id and s.subject = d.address
        and s.metric in ('memory_process_bytes', 'memory_managed_bytes')
        and s.time_ns / 1e9 between d.came_s and d.died_s
    group by d.life
), machines as (
    select host_id, max(memory_bytes) as memory_bytes, any_value(hostname) as hostname from raw.hosts group by host_id
), boxes as (
    select server_id, any_value(host_id) as host_id, max(cgroup_memory_limit_bytes) as cgroup_limit_bytes,
        any_value(pid) as pid
    from raw.processes
    group by server_id
), neighbours as (
    -- Processes of the run on the same machine, each by its last sample in the ten seconds before.
    select life, sum(value) as host_run_bytes
    from (
        select d.life, b.pid, arg_max(s.value, s.time_ns) as value
        from dead d
        join boxes b on b.host_id = d.host_id
        join raw.samples s on s.server_id = b.server_id and s.metric = 'process_memory_bytes' and s.subject is null
        left join clocks c on c.server_id = s.server_id
        where s.time_ns / 1e9 + coalesce(c.offset_s, 0.0) between d.died_s - 10 and d.died_s
        group by d.life, b.pid
    )
    group by life
)
select
    d.life,
    d.scheduler_id,
    d.worker_id,
    d.address as worker,
    d.name,
    coalesce(machines.hostname, d.host) as host,
    d.pid,
    d.thread_count,
    d.came_s - run_start.zero_s as came_at_s,
    d.died_s - run_start.zero_s as died_at_s,
    d.signal,
    d.exit_code,
    d.reason as nanny_reason,
    d.removal_cause,
    d.is_memory_kill,
    d.is_heartbeat_missed,
    d.last_sign_s > d.died_s + 2 as is_alive_after,
    case when d.is_captured then d.died_s - d.last_sign_s end as record_gap_s,
    nullif(d.memory_limit_bytes, 0) as limit_bytes,
    own.memory_bytes::bigint as last_bytes,
    d.died_s - own.memory_at as last_before_s,
    greatest(peaks.peak_bytes, own.peak_bytes, seen.peak_bytes, d.terminated_bytes)::bigint as peak_bytes,
    seen.memory_bytes::bigint as scheduler_last_bytes,
    seen.managed_bytes::bigint as managed_bytes,
    d.terminated_bytes,
    boxes.cgroup_limit_bytes,
    machines.memory_bytes as host_bytes,
    neighbours.host_run_bytes::bigint as host_run_bytes,
    d.assigned_count,
    case when d.next_came_s > d.died_s then d.next_came_s - d.died_s end as absent_s
from dead d
cross join run_start
left join own on own.life = d.life
left join peaks on peaks.life = d.life
left join seen on seen.life = d.life
left join boxes on boxes.server_id = d.worker_id
left join machines on machines.host_id = d.host_id
left join neighbours on neighbours.life = d.life
order by d.died_s nulls last, d.address
"""
"""One row per death; `life` numbers them."""

TASKS_SQL = f"""
{_LIVES}
, there as (
    select d.life, d.died_s, d.thread_count, d.is_captured, t.*
    from dead d
    join task_runs t on t.scheduler_id = d.scheduler_id and t.outcome = 'lost' and t.end_cause = d.removal_cause
    union all
    -- The scheduler may have ended before it noticed.
    select d.life, d.died_s, d.thread_count, d.is_captured, t.*
    from dead d
    join task_runs t on t.scheduler_id = d.scheduler_id and t.worker_id = d.worker_id
        and t.outcome in ('running_at_end', 'unknown')
    where d.left_s is null and t.assigned_s <= d.died_s
), seceded as (
    select distinct w.server_id, w.key_id, w.run_id
    from raw.worker_transitions w
    join dead d on d.worker_id = w.server_id
    where w.finish = 'long-running'
), fastest as (
    select prefix, min(compute_s) as fastest_s from task_runs where compute_s is not null group by prefix
), blamed as (
    select distinct server_id as scheduler_id, key_id, run_id
    from raw.scheduler_transitions t
    join dead d on d.scheduler_id = t.server_id and d.removal_cause = t.stimulus_id
    where t.start = 'processing' and t.finish = 'erred'
), seen as (
    select
        there.*,
        executing_s is not null and started_s is null as is_executing,
        -- Its end may be lost with the worker, and what came next in its thread unrecorded: as when the next task
        -- crashes at once.  What ran for less than any other of its prefix held its thread to the end.
        is_executing and seceded.key_id is null and coalesce(died_s - executing_s < 0.9 * fastest.fastest_s, true)
            as is_holding,
        blamed.key_id is not null as is_blamed
    from there
    left join seceded
        on seceded.server_id = there.worker_id and seceded.key_id = there.key_id and seceded.run_id = there.run_id
    left join fastest on fastest.prefix = there.prefix
    left join blamed
        on blamed.scheduler_id = there.scheduler_id and blamed.key_id = there.key_id and blamed.run_id = there.run_id
), counted as (
    select
        *,
        count(*) over (partition by life) as there_count,
        count(*) filter (is_holding) over (partition by life) as held_count
    from seen
)
select
    life,
    scheduler_id,
    key_id,
    run_id,
    key,
    prefix,
    worker,
    died_s - run_start.zero_s as died_at_s,
    case
        when is_executing then 'executing'
        when started_s is not null then 'ended, not yet told'
        when there_count = 1 then 'only task there'
        when held_count >= thread_count then 'not begun'
        else 'unknown'
    end as state,
    case when is_executing then died_s - executing_s end as ran_s,
    is_blamed,
    attempt_number,
    count(*) over (partition by life, state) as alike_count
from counted
cross join run_start
"""
"""One row per attempt on a worker when it died."""

TOP_TASKS_SQL = f"""
{TASKS_SQL}
order by died_s, life, is_blamed desc, case state when 'executing' then 0 when 'only task there' then 1 when 'unknown' then 2 else 3 end,
    ran_s desc nulls last, key_id
"""

BLAMED_SQL = f"""
with there as materialized (
    {TASKS_SQL}
), blamed as (
    select distinct scheduler_id, key_id from there where is_blamed
), chosen as (
    from blamed order by key_id limit {BLAMED_SHOWN}
), at_deaths as (
    select
        t.*,
        (
            select string_agg(distinct o.prefix, ', ' order by o.prefix)
            from there o
            where o.life = t.life and o.state = 'executing' and o.key_id <> t.key_id
        ) as other_prefixes
    from there t
    join chosen on chosen.scheduler_id = t.scheduler_id and chosen.key_id = t.key_id
)
select
    any_value(key) as key,
    any_value(prefix) as prefix,
    count(*) as death_count,
    count(*) filter (state = 'executing') as executing_count,
    count(*) filter (state = 'only task there') as only_task_count,
    count(*) filter (state = 'ended, not yet told') as ended_count,
    count(*) filter (state = 'not begun') as not_begun_count,
    count(*) filter (state = 'unknown') as unknown_count,
    string_agg(distinct other_prefixes, ', ') filter (state <> 'executing') as others,
    min(life) as first_life,
    (select count(*) from blamed) as blamed_count
from at_deaths
group by scheduler_id, key_id
order by death_count desc, key
"""
