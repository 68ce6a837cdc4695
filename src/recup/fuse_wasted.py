"""View of work that was thrown away or done again, attempt by attempt.

Part of `recup.fuse`, which says what all views have in common.
"""

from __future__ import annotations

from recup.store import View

CLOSINGS = """\
removals as (
    select distinct server_id as scheduler_id, stimulus_id, address
    from raw.workers
    where action = 'remove' and stimulus_id is not null
), closings as (
    select scheduler_id, stimulus_id, any_value(address) as address from removals group by scheduler_id, stimulus_id
)
"""
"""Which worker went by a cause, as parts of a query."""

WASTED_ATTEMPTS = View(
    "wasted_attempts",
    "One row per attempt that came to nothing, or whose result there had been before: why, and the time it took.",
    (),
    f"""
with several as (
    select scheduler_id, key_id from task_runs where outcome = 'memory' group by all having count(*) > 1
), made as (
    select t.*, lag(t.stored_s) over (partition by t.scheduler_id, t.key_id order by t.attempt_number) as before_s,
        row_number() over (partition by t.scheduler_id, t.key_id order by t.attempt_number) as turn
    from task_runs t
    semi join several on several.scheduler_id = t.scheduler_id and several.key_id = t.key_id
    where t.outcome = 'memory'
), departures as (
    select t.server_id as scheduler_id, t.key_id, t.time_ns / 1e9 as gone_s, t.stimulus_id
    from raw.scheduler_transitions t
    semi join several on several.scheduler_id = t.server_id and several.key_id = t.key_id
    where t.start = 'memory' and t.finish <> 'memory'
), revivals as (
    select t.server_id as scheduler_id, t.key_id, t.time_ns / 1e9 as wanted_s, t.stimulus_id
    from raw.scheduler_transitions t
    semi join several on several.scheduler_id = t.server_id and several.key_id = t.key_id
    where t.start <> 'waiting' and t.finish = 'waiting'
), {CLOSINGS}
select
    scheduler_id, key_id, run_id, prefix, worker, attempt_number, ended_s,
    outcome::varchar as kind,
    coalesce(compute_s, case when ended_s - executing_s is not null then greatest(ended_s - executing_s, 0) end) as wasted_s,
    case outcome
        when 'lost' then end_cause
        when 'error' then regexp_extract(exception_text, '^([A-Za-z_][A-Za-z_0-9.]*)', 1)
        when 'cancelled' then regexp_replace(end_cause, '-[0-9.]+$', '')
    end as cause,
    false as is_direct
from task_runs
where outcome in ('lost', 'error', 'cancelled', 'rescheduled')
union all
-- A result that is computed again pulls again what it needs, though that was released in order: what made it wanted
-- tells both from what a client asked for again.
select
    m.scheduler_id, m.key_id, m.run_id, m.prefix, m.worker, m.attempt_number, m.ended_s,
    case when c.stimulus_id is not null then 'lost result' else 'computed again' end,
    m.compute_s,
    case when c.stimulus_id is not null then r.stimulus_id else regexp_replace(r.stimulus_id, '-[0-9.]+$', '') end,
    coalesce(d.stimulus_id = r.stimulus_id, false)
from made m
asof left join departures d
    on d.scheduler_id = m.scheduler_id and d.key_id = m.key_id and m.before_s <= d.gone_s
asof left join revivals r
    on r.scheduler_id = m.scheduler_id and r.key_id = m.key_id and m.assigned_s >= r.wanted_s
left join closings c on c.scheduler_id = r.scheduler_id and c.stimulus_id = r.stimulus_id
where m.turn > 1
""",
    is_kept=True,
    is_inner=True,
)
