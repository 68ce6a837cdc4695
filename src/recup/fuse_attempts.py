"""Views of attempts as single tables tell of them: sent, received, begun, told; and what Dask books on each.

Part of `recup.fuse`, which says what all views have in common.  What became of each is
`recup.fuse_task_runs`'.
"""

from __future__ import annotations

from recup.store import View, ViewColumn

WHO = (
    ViewColumn("scheduler_id", "Server id of the scheduler"),
    ViewColumn("key", "Dask key of the task", null="its text is lost"),
    ViewColumn("key_id", "Number of the key"),
    ViewColumn("run_id", "Attempt; with scheduler and key it names one", null="not told"),
)

SERVER_NUMBERS = View(
    "server_numbers",
    "One row per server: its number and that of its scheduler (0: not told), for joins of many rows.",
    (),
    """
with numbered as (
    select server_id, scheduler_id, cast(row_number() over (order by server_id) as integer) as observer from servers
)
select n.server_id, n.observer, coalesce(s.observer, 0) as scheduler
from numbered n
left join numbered s on s.server_id = n.scheduler_id
""",
    is_kept=True,
    is_inner=True,
)

ATTEMPTS = View(
    "attempts",
    "One row per attempt: what single tables tell of it, as numbers.",
    (),
    """
with observers as (
    select server_id, observer, scheduler from server_numbers
), sent as (
    select n.observer as scheduler, key_id, run_id, time_ns as assigned_ns, worker, from_state, victim
    from (
        select server_id, key_id, run_id, time_ns, worker, start as from_state, null as victim
        from raw.scheduler_transitions
        where finish = 'processing' and run_id is not null
        union all
        select server_id, key_id, run_id, time_ns, thief, null, coalesce(victim, '')
        from raw.steals
        where decision = 'confirm' and run_id is not null
    )
    join observers n using (server_id)
), sent_twice as (
    select scheduler, key_id, run_id from sent group by all having count(*) > 1
), assigned as (
    -- To choose among rows costs much, here and below, and next to no attempt has several.
    select scheduler, key_id, run_id, assigned_ns, worker, from_state, victim is not null as is_from_steal, victim
    from sent
    anti join sent_twice using (scheduler, key_id, run_id)
    union all
    select
        scheduler,
        key_id,
        run_id,
        min(assigned_ns),
        arg_min(worker, assigned_ns),
        arg_min(from_state, assigned_ns),
        bool_and(victim is not null),
        any_value(victim)
    from sent
    semi join sent_twice using (scheduler, key_id, run_id)
    group by scheduler, key_id, run_id
), finished as (
    select
        n.observer as scheduler,
        t.key_id,
        t.run_id,
        t.time_ns as ended_ns,
        t.finish as ended_state,
        t.stimulus_id as end_cause
    from raw.scheduler_transitions t
    join observers n on n.server_id = t.server_id
    where t.start = 'processing' and t.run_id is not null
), finished_twice as (
    select scheduler, key_id, run_id from finished group by all having count(*) > 1
), ended as (
    from finished
    anti join finished_twice using (scheduler, key_id, run_id)
    union all
    select scheduler, key_id, run_id, min(ended_ns), arg_min(ended_state, ended_ns), arg_min(end_cause, ended_ns)
    from finished
    semi join finished_twice using (scheduler, key_id, run_id)
    group by scheduler, key_id, run_id
), received as (
    select
        o.scheduler,
        r.key_id,
        r.run_id,
        min(r.time_ns) as received_ns,
        max(r.remote_count) as remote_count,
        any_value(o.observer) as worker_number
    from raw.receptions r
    join observers o on o.server_id = r.server_id
    where r.run_id is not null
    group by all
), begun as (
    select
        o.scheduler,
        t.key_id,
        t.run_id,
        any_value(o.observer) as worker_number,
        min(t.time_ns) filter (t.start = 'waiting') as waited_ns,
        min(t.time_ns) filter (t.finish = 'ready') as inputs_ns,
        bool_or(t.finish = 'constrained') as is_constrained,
        min(t.time_ns) filter (t.finish = 'executing') as executing_ns,
        min(t.time_ns) filter (t.finish = 'long-running') as seceded_ns,
        bool_or(t.finish = 'rescheduled') as is_rescheduled,
        bool_or(t.finish = 'cancelled' or t.state = 'cancelled') as is_cancelled,
        bool_or(t.finish in ('executing', 'rescheduled', 'cancelled') or t.state = 'cancelled') as is_begun
    from raw.worker_transitions t
    join observers o on o.server_id = t.server_id
    where t.run_id is not null and (
        t.finish in ('ready', 'constrained', 'executing', 'long-running', 'rescheduled', 'cancelled')
        or t.start = 'waiting' or t.state = 'cancelled'
    )
    group by all
), told as (
    select
        r.role = 'scheduler' as is_by_scheduler,
        case when r.role = 'scheduler' then o.observer else o.scheduler end as scheduler,
        r.key_id,
        r.run_id,
        o.observer as worker_number,
        r.time_ns as told_ns,
        r.outcome,
        r.worker,
        r.thread,
        r.nbytes,
        r.typename,
        r.compute_start_s as start_s,
        r.compute_stop_s as stop_s,
        r.scheduler_delay_s as delay_s
    from raw.results r
    join observers o on o.server_id = r.server_id
    where r.run_id is not null
), told_twice as (
    select is_by_scheduler, scheduler, key_id, run_id from told group by all having count(*) > 1
), told_once as (
    from told
    anti join told_twice using (is_by_scheduler, scheduler, key_id, run_id)
    union all
    select unnest(first) from (
        select arg_min(told, told_ns) as first
        from told
        semi join told_twice using (is_by_scheduler, scheduler, key_id, run_id)
        group by is_by_scheduler, scheduler, key_id, run_id
    )
), failed as (
    select
        case when e.role = 'scheduler' then o.observer else o.scheduler end as scheduler,
        e.key_id,
        e.run_id,
        arg_min(e.exception_text, (e.role = 'scheduler', e.time_ns)) as exception_text,
        bool_or(e.role <> 'scheduler') as is_told_by_worker
    from raw.errors e
    join observers o on o.server_id = e.server_id
    where e.run_id is not null
    group by all
), attempts as (
    select scheduler, key_id, run_id from assigned
    union
    select scheduler, key_id, run_id from ended
    union
    select scheduler, key_id, run_id from received
    union
    select scheduler, key_id, run_id from told_once where not is_by_scheduler
    union
    select scheduler, key_id, run_id from begun where is_begun
)
select
    a.scheduler,
    a.key_id,
    a.run_id,
    assigned_ns,
    coalesce(assigned_ns, received_ns, executing_ns, ended_ns) as place_ns,
    coalesce(assigned.worker, w.worker, s.worker) as worker,
    coalesce(w.worker_number, received.worker_number, begun.worker_number) as worker_number,
    from_state,
    coalesce(is_from_steal, false) as is_from_steal,
    victim,
    ended_ns,
    ended_state,
    end_cause,
    received_ns,
    remote_count,
    waited_ns,
    inputs_ns,
    coalesce(is_constrained, false) as is_constrained,
    executing_ns,
    seceded_ns,
    coalesce(is_rescheduled, false) or coalesce(w.outcome, '') = 'rescheduled' as is_rescheduled,
    coalesce(is_cancelled, false) as is_cancelled,
    w.outcome as worker_outcome,
    w.told_ns,
    w.told_ns is not null as is_told_by_worker,
    coalesce(w.thread, s.thread) as thread,
    coalesce(w.nbytes, s.nbytes) as nbytes,
    coalesce(w.typename, s.typename) as typename,
    w.start_s as worker_start_s,
    w.stop_s as worker_stop_s,
    w.delay_s as worker_delay_s,
    s.start_s as scheduler_start_s,
    s.stop_s as scheduler_stop_s,
    exception_text,
    coalesce(failed.is_told_by_worker, false) as is_failed
from attempts a
left join assigned using (scheduler, key_id, run_id)
left join ended using (scheduler, key_id, run_id)
left join received using (scheduler, key_id, run_id)
left join begun using (scheduler, key_id, run_id)
left join (from told_once where not is_by_scheduler) w using (scheduler, key_id, run_id)
left join (from told_once where is_by_scheduler) s using (scheduler, key_id, run_id)
left join failed using (scheduler, key_id, run_id)
""",
    is_inner=True,
)

ACTIVITIES = View(
    "activities",
    "One row per stretch of time Dask books on an attempt: computing, fetching inputs, reading and writing the disk.",
    (
        *WHO,
        ViewColumn("worker", "Address of the worker", null="not told"),
        ViewColumn("worker_id", "Server id of the worker", null="only the scheduler told"),
        ViewColumn(
            "thread", "threading.get_ident() of the thread that computed", null="not a computation, or not told"
        ),
        ViewColumn("action", "compute, transfer, disk-read, disk-write, deserialize"),
        ViewColumn("start_s", "Start", "s"),
        ViewColumn("stop_s", "Stop", "s"),
        ViewColumn("duration_s", "Stop less start", "s"),
        ViewColumn("source", "Worker a transfer came from", null="not a transfer or not told"),
        ViewColumn("seen_by", "worker, or scheduler where the worker told nothing of the attempt"),
        ViewColumn("clock_error_s", "Bound of what start and stop may be off by", "s", "no bound is known"),
    ),
    """
with observed as (
    select server_id, role, key_id, run_id, worker, thread, 'compute' as action, compute_start_s as start_s,
        compute_stop_s as stop_s, null as source, scheduler_delay_s as delay_s
    from raw.results
    where compute_start_s is not null and compute_stop_s is not null
    union all
    select server_id, role, key_id, run_id, null, null, action, start_s, stop_s, source,
        -- Dask leaves disk times on the worker's own clock and shifts the others.
        case when action like 'disk-%' then 0.0 end
    from raw.startstops
), placed as (
    select o.*, s.scheduler_id, s.address, c.offset_s, c.error_s, c.delay_error_s
    from observed o
    join servers s on s.server_id = o.server_id
    left join clocks c on c.server_id = o.server_id
), told_by_workers as (
    select distinct s.scheduler_id, r.key_id, r.run_id
    from raw.results r
    join servers s on s.server_id = r.server_id
    where r.role <> 'scheduler'
), lives as (
    select address, any_value(worker_id) as worker_id from worker_lives group by address having count(*) = 1
)
select
    p.scheduler_id,
    keys.key,
    p.key_id,
    p.run_id,
    coalesce(p.worker, case when p.role <> 'scheduler' then p.address end) as worker,
    case when p.role <> 'scheduler' then p.server_id else lives.worker_id end as worker_id,
    p.thread,
    p.action,
    p.start_s + coalesce(coalesce(p.offset_s, 0.0) - p.delay_s, 0.0) as start_s,
    p.stop_s + coalesce(coalesce(p.offset_s, 0.0) - p.delay_s, 0.0) as stop_s,
    p.stop_s - p.start_s as duration_s,
    p.source,
    case when p.role = 'scheduler' then 'scheduler' else 'worker' end as seen_by,
    case when p.role = 'scheduler' then worker_clock.delay_error_s
        when p.delay_s is not null then p.error_s
        else p.delay_error_s
    end as clock_error_s
from placed p
left join told_by_workers t on t.scheduler_id = p.scheduler_id and t.key_id = p.key_id and t.run_id = p.run_id
left join lives on lives.address = p.worker
left join clocks worker_clock on worker_clock.server_id = lives.worker_id
left join keys on keys.key_id = p.key_id
where p.role <> 'scheduler' or t.run_id is null
""",
)
