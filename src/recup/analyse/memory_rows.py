"""Memory of workers, results held and results spilled, as queries.

Part of `recup.analyse.memory`.
"""

from __future__ import annotations

DEFAULT_FRACTIONS = {"target": 0.6, "spill": 0.7, "pause": 0.8, "terminate": 0.95}
"""Dask's own `distributed.worker.memory.*`, for workers whose configuration is not recorded."""

_LIVES = """
with run_start as (
    select started_s as zero_s, ended_s as end_s from run_times
), lives as (
    select *, row_number() over (order by came_s, address, worker_id) as life from worker_lives
), placed_lives as (
    select * from lives where address is not null and came_s is not null
)
"""

OVER_TIME_SQL = f"""
{_LIVES}
, told as (
    select
        server_id as scheduler_id,
        subject as worker,
        time_ns,
        max(value) filter (metric = 'memory_process_bytes')::bigint as process_bytes,
        max(value) filter (metric = 'memory_managed_bytes')::bigint as managed_bytes,
        max(value) filter (metric = 'memory_unmanaged_old_bytes')::bigint as unmanaged_old_bytes,
        max(value) filter (metric = 'memory_unmanaged_recent_bytes')::bigint as unmanaged_recent_bytes,
        max(value) filter (metric = 'memory_spilled_bytes')::bigint as spilled_bytes
    from raw.samples
    where subject is not null and metric in (
        'memory_process_bytes', 'memory_managed_bytes', 'memory_unmanaged_old_bytes', 'memory_unmanaged_recent_bytes',
        'memory_spilled_bytes'
    ) and isfinite(value)
    group by server_id, subject, time_ns
), over_time as (
    select t.*, t.time_ns / 1e9 - run_start.zero_s as at_s, l.life, l.worker_id, nullif(l.memory_limit_bytes, 0) as limit_bytes
    from told t
    cross join run_start
    asof left join placed_lives l
        on l.scheduler_id = t.scheduler_id and l.address = t.worker and t.time_ns / 1e9 >= l.came_s
)
"""

MEMORY_OVER_TIME_SQL = f"""
{OVER_TIME_SQL}
select at_s, worker, worker_id, process_bytes, managed_bytes, unmanaged_old_bytes, unmanaged_recent_bytes, spilled_bytes,
    limit_bytes
from over_time
order by at_s, worker
"""

SUMMED_SQL = f"""
{OVER_TIME_SQL}
, moments as (
    select *, floor((at_s - min(at_s) over ()) * ?::double / nullif(max(at_s) over () - min(at_s) over (), 0)) as moment
    from over_time
), of_workers as (
    select
        moment,
        worker,
        max(at_s) as at_s,
        avg(process_bytes) as process_bytes,
        avg(managed_bytes) as managed_bytes,
        avg(unmanaged_old_bytes) as unmanaged_old_bytes,
        avg(unmanaged_recent_bytes) as unmanaged_recent_bytes,
        avg(spilled_bytes) as spilled_bytes,
        max(process_bytes / limit_bytes) as limit_share
    from moments
    group by moment, worker
)
select
    max(at_s) as at_s,
    count(*) as worker_count,
    sum(process_bytes)::bigint as process_bytes,
    sum(managed_bytes)::bigint as managed_bytes,
    sum(unmanaged_old_bytes)::bigint as unmanaged_old_bytes,
    sum(unmanaged_recent_bytes)::bigint as unmanaged_recent_bytes,
    sum(spilled_bytes)::bigint as spilled_bytes,
    max(limit_share) as fullest_worker_share
from of_workers
group by moment
order by at_s
"""
"""One row per moment, all workers together, at most as many moments as asked for and one."""

WORKERS_SQL = f"""
{OVER_TIME_SQL}
, configured as (
    select
        p.server_id as worker_id,
        max(try_cast(c.value as double)) filter (c.name = 'distributed.worker.memory.target') as target_share,
        max(try_cast(c.value as double)) filter (c.name = 'distributed.worker.memory.spill') as spill_share,
        max(try_cast(c.value as double)) filter (c.name = 'distributed.worker.memory.pause') as pause_share,
        max(try_cast(c.value as double)) filter (c.name = 'distributed.worker.memory.terminate') as terminate_share,
        true as is_configured
    from raw.processes p
    join (
        select distinct config_digest, name, value from raw.config where name like 'distributed.worker.memory.%'
    ) c on c.config_digest = p.config_digest
    where p.role = 'worker'
    group by p.server_id
), fractions as (
    -- Not configured is Dask's default; configured as false is no threshold.
    select
        l.life,
        case when f.is_configured then f.target_share else {DEFAULT_FRACTIONS["target"]} end as target_share,
        case when f.is_configured then f.spill_share else {DEFAULT_FRACTIONS["spill"]} end as spill_share,
        case when f.is_configured then f.pause_share else {DEFAULT_FRACTIONS["pause"]} end as pause_share,
        case when f.is_configured then f.terminate_share else {DEFAULT_FRACTIONS["terminate"]} end as terminate_share,
        coalesce(f.is_configured, false) as is_configured
    from lives l
    left join configured f on f.worker_id = l.worker_id
), measured as (
    select life, at_s, process_bytes, managed_bytes from over_time where life is not null
    union all
    select l.life, s.time_ns / 1e9 + coalesce(c.offset_s, 0.0) - run_start.zero_s, s.value::bigint, null
    from raw.samples s
    join lives l on l.worker_id = s.server_id
    cross join run_start
    left join clocks c on c.server_id = s.server_id
    where s.metric = 'process_memory_bytes' and s.subject is null and s.role = 'worker'
    union all
    -- What a nanny measured when it killed its worker.
    select l.life, e.time_ns / 1e9 - run_start.zero_s, try_cast(try(e.payload ->> '$.rss') as bigint), null
    from raw.events e
    join placed_lives l on l.scheduler_id = e.server_id and l.address = try(e.payload ->> '$.worker')
        and coalesce(l.pid = try_cast(try(e.payload ->> '$.pid') as bigint), true)
    cross join run_start
    where e.topic = 'worker-restart-memory'
), crossed as (
    select
        m.life,
        max(m.process_bytes) as sampled_bytes,
        arg_max(m.at_s, (m.process_bytes, -m.at_s)) filter (m.process_bytes is not null) as sampled_at_s,
        min(m.at_s) filter (m.managed_bytes > f.target_share * nullif(l.memory_limit_bytes, 0)) as above_target_at_s,
        min(m.at_s) filter (m.process_bytes > f.spill_share * nullif(l.memory_limit_bytes, 0)) as above_spill_at_s,
        min(m.at_s) filter (m.process_bytes > f.pause_share * nullif(l.memory_limit_bytes, 0)) as above_pause_at_s,
        min(m.at_s) filter (m.process_bytes > f.terminate_share * nullif(l.memory_limit_bytes, 0)) as above_terminate_at_s
    from measured m
    join lives l on l.life = m.life
    join fractions f on f.life = m.life
    group by m.life
), peaks as (
    -- The kernel's peak starts at that of the process that spawned this one: only what grew is the worker's.
    select l.life, max(s.value)::bigint as peak_bytes
    from raw.samples s
    join lives l on l.worker_id = s.server_id
    where s.metric = 'process_peak_memory_bytes' and s.subject is null and s.role = 'worker'
    group by l.life
    having max(s.value) > arg_min(s.value, s.time_ns)
), fullest as (
    select
        life,
        max(process_bytes) as told_bytes,
        arg_max(managed_bytes, (process_bytes, -at_s)) filter (process_bytes is not null) as managed_bytes,
        arg_max(unmanaged_old_bytes + unmanaged_recent_bytes, (process_bytes, -at_s))
            filter (process_bytes is not null) as unmanaged_bytes,
        max(spilled_bytes) as spilled_bytes
    from over_time
    group by life
), before_peaks as (
    select l.life, l.scheduler_id, l.address, r.zero_s, c.sampled_at_s, o.at_s, o.managed_bytes, o.spilled_bytes
    from lives l
    join crossed c on c.life = l.life
    asof join (from over_time where life is not null) o on o.life = l.life and c.sampled_at_s >= o.at_s
    cross join run_start r
    where c.sampled_bytes > 0.5 * nullif(l.memory_limit_bytes, 0)
), bounded as (
    -- No more can be managed at the peak than was, was on disk, was made or came since the sample before it.
    select
        b.life,
        (b.managed_bytes + b.spilled_bytes + coalesce(made.nbytes, 0) + coalesce(came.nbytes, 0))::bigint as managed_most_bytes
    from before_peaks b
    left join (
        select b.life, sum(t.nbytes) as nbytes
        from before_peaks b
        join task_runs t on t.scheduler_id = b.scheduler_id and t.worker = b.address
            and t.stored_s - b.zero_s between b.at_s - 1 and b.sampled_at_s + 1
        group by b.life
    ) made on made.life = b.life
    left join (
        select b.life, sum(t.nbytes) as nbytes
        from before_peaks b
        join transfers_distinct t on t.scheduler_id = b.scheduler_id and t.destination_worker = b.address
            and t.stop_s - b.zero_s between b.at_s - 1 and b.sampled_at_s + 1
        group by b.life
    ) came on came.life = b.life
), statuses as (
    select
        server_id as scheduler_id,
        topic as worker,
        time_ns / 1e9 as from_s,
        try(payload ->> '$.status') as status,
        lead(time_ns / 1e9) over (partition by server_id, topic order by time_ns) as to_s
    from raw.events
    where action = 'worker-status-change'
), pauses as (
    select l.life, p.from_s, least(coalesce(p.to_s, r.end_s), coalesce(l.left_s, r.end_s)) as to_s
    from (select * from statuses where status = 'paused') p
    asof join placed_lives l on l.scheduler_id = p.scheduler_id and l.address = p.worker and p.from_s >= l.came_s
    cross join run_start r
), busy as (
    select
        p.life,
        sum(greatest(least(coalesce(t.stopped_s, t.ended_s), p.to_s) - greatest(coalesce(t.started_s, t.executing_s), p.from_s), 0))
            as busy_s
    from pauses p
    join lives l on l.life = p.life
    join task_runs t on t.scheduler_id = l.scheduler_id and t.worker = l.address
    group by p.life
), paused as (
    select life, count(*) as pause_count, sum(greatest(to_s - from_s, 0)) as paused_s from pauses group by life
), spill_times as (
    select l.life, sum(f.value) as spill_s
    from raw.fine_metrics f
    join lives l on l.worker_id = f.server_id
    where f.unit = 'seconds' and (
        f.activity in ('disk-read', 'disk-write')
        or (f.context = 'memory-monitor' and f.activity in ('serialize', 'compress'))
    )
    group by l.life
), spilled as (
    select
        l.life,
        sum(s.memory_bytes) filter (s.direction = 'spill')::bigint as spilled_bytes,
        sum(s.memory_bytes) filter (s.direction = 'unspill')::bigint as unspilled_bytes
    from raw.spills s
    join lives l on l.worker_id = s.server_id
    group by l.life
)
select
    l.address as worker,
    l.worker_id,
    l.thread_count,
    bounded.managed_most_bytes,
    nullif(l.memory_limit_bytes, 0) as limit_bytes,
    greatest(crossed.sampled_bytes, peaks.peak_bytes) as peak_bytes,
    greatest(crossed.sampled_bytes, peaks.peak_bytes) / nullif(l.memory_limit_bytes, 0) as peak_share,
    crossed.sampled_at_s,
    fullest.told_bytes,
    fullest.managed_bytes,
    fullest.unmanaged_bytes,
    crossed.above_target_at_s,
    crossed.above_spill_at_s,
    crossed.above_pause_at_s,
    crossed.above_terminate_at_s,
    paused.pause_count,
    paused.paused_s,
    case
        when paused.paused_s is null then 0.0
        when l.thread_count is not null then greatest(paused.paused_s * l.thread_count - coalesce(busy.busy_s, 0), 0)
    end as paused_thread_s,
    greatest(spilled.spilled_bytes, fullest.spilled_bytes) as spilled_bytes,
    spilled.unspilled_bytes,
    spill_times.spill_s,
    f.target_share,
    f.spill_share,
    f.pause_share,
    f.terminate_share,
    f.is_configured
from lives l
join fractions f on f.life = l.life
left join crossed on crossed.life = l.life
left join peaks on peaks.life = l.life
left join fullest on fullest.life = l.life
left join bounded on bounded.life = l.life and not coalesce(peaks.peak_bytes > crossed.sampled_bytes, false)
left join paused on paused.life = l.life
left join busy on busy.life = l.life
left join spilled on spilled.life = l.life
left join spill_times on spill_times.life = l.life
order by peak_share desc nulls last, peak_bytes desc nulls last, worker
"""
"""One row per life of a worker, the fullest first."""

_HELD = """
with run_start as (
    select started_s as zero_s, ended_s as end_s from run_times
), held as (
    select prefix, nbytes, stored_s, gone_s
    from attempt_facts
    where stored_s is not null and nbytes is not null
), steps as (
    select prefix, stored_s as step_s, nbytes as step from held
    union all
    select prefix, gone_s, -nbytes from held where gone_s is not null
)
"""

HELD_SQL = f"""
{_HELD}
select prefix, nbytes, stored_s, gone_s from held
"""
"""One row per result held: when it came, and when it went (null: not before the end)."""

_SPILLED = """
with prefixes as (
    select key_id, any_value(prefix) as prefix
    from raw.tasks
    where key_id in (select key_id from raw.spills)
    group by key_id
)
"""

SPILLED_PREFIXES_SQL = f"""
{_SPILLED}
select p.prefix, sum(s.memory_bytes)::bigint as spilled_bytes
from raw.spills s
left join prefixes p on p.key_id = s.key_id
where s.direction = 'spill'
group by p.prefix
"""

HELD_OVER_TIME_SQL = f"""
{_HELD}
, moments as (
    select
        coalesce(prefix, '') as prefix,
        ceil((s.step_s - r.zero_s) * ?::double / nullif(r.end_s - r.zero_s, 0)) as moment,
        sum(step) as step
    from steps s
    cross join run_start r
    group by all
), chosen as (
    select prefix from moments group by prefix order by sum(greatest(step, 0)) desc, prefix limit ?
), named as (
    select case when prefix in (from chosen) then prefix end as prefix, moment, sum(step) as step from moments group by all
), grid as (
    select n.prefix, m.moment
    from (select distinct prefix from named) n
    cross join (select distinct moment from named) m
)
select
    g.moment / ? * (r.end_s - r.zero_s) as at_s,
    nullif(g.prefix, '') as prefix,
    g.prefix is null as is_rest,
    sum(coalesce(n.step, 0)) over (partition by g.prefix order by g.moment)::bigint as held_bytes
from grid g
cross join run_start r
left join named n on n.prefix is not distinct from g.prefix and n.moment = g.moment
order by at_s, is_rest, prefix
"""

LARGEST_SQL = """
with run_start as (
    select started_s as zero_s, ended_s as end_s from run_times
), largest as (
    select key_id, run_id, prefix, worker, typename, nbytes, stored_s, gone_s
    from attempt_facts
    where stored_s is not null and nbytes is not null
    order by nbytes desc, stored_s
    limit ?
)
select
    keys.key,
    l.prefix,
    l.nbytes,
    l.typename,
    l.worker,
    l.stored_s - r.zero_s as stored_at_s,
    coalesce(l.gone_s, r.end_s) - l.stored_s as held_s,
    l.gone_s is null as is_held_at_end,
    l.run_id
from largest l
cross join run_start r
left join keys on keys.key_id = l.key_id
order by l.nbytes desc, stored_at_s
"""

SPILLS_SQL = f"""
{_SPILLED}
select
    p.prefix,
    s.address as worker,
    sum(x.memory_bytes) filter (x.direction = 'spill')::bigint as spilled_bytes,
    sum(x.disk_bytes) filter (x.direction = 'spill')::bigint as disk_bytes,
    count(*) filter (x.direction = 'spill') as spill_count,
    sum(x.memory_bytes) filter (x.direction = 'unspill')::bigint as unspilled_bytes,
    count(*) filter (x.direction = 'unspill') as unspill_count,
    min(x.time_ns) / 1e9 + coalesce(any_value(c.offset_s), 0.0) - (select started_s from run_times) as first_at_s
from raw.spills x
left join prefixes p on p.key_id = x.key_id
left join servers s on s.server_id = x.server_id
left join clocks c on c.server_id = x.server_id
group by p.prefix, x.server_id, s.address
order by spilled_bytes desc nulls last, p.prefix, worker
"""
