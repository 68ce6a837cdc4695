"""What work stealing did: requests, tasks moved, the inputs that had to follow them, tasks stolen again and again.

Part of the answer of `recup.analyse.movement`.  Locality is lost where an input of a
stolen task went from the victim to the thief after the theft: that is counted for sure.
Inputs that came from a third worker might have had to be fetched anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.answers import Conclusion
from recup.analyse.rows import Document
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

STOLEN_COUNT = 10
"""Stolen tasks of a prefix below which nothing is said: they cost less than the sentence."""
WAIT_RATIO = 0.5
"""Stolen tasks that wait for their inputs longer than this part of their computing gained little by moving."""
AGAIN_COUNT = 3
"""Times a task is stolen from which on it is going round."""
AGAIN_SHARE = 0.1
"""Part of the stolen tasks that goes round, from which on it is said."""
IDLE_S = 0.5
"""Thread-seconds idle for inputs of stolen tasks below which stealing is not said to cost."""

COUNTS_SQL = """
select
    count(*) filter (decision = 'request') as request_count,
    count(*) filter (decision = 'confirm') as steal_count,
    count(distinct (server_id, key_id)) filter (decision = 'confirm') as task_count
from raw.steals
"""

_MOVES = """
with prefixes as (
    select server_id as scheduler_id, key_id, any_value(prefix) as prefix
    from raw.tasks
    where key_id in (select key_id from raw.steals)
    group by all
), confirmed as (
    select server_id as scheduler_id, key_id, run_id, time_ns / 1e9 as stolen_s, victim, thief
    from raw.steals
    where decision = 'confirm'
)
"""

STEALS_SQL = f"""
{_MOVES}
, stolen as (
    select c.*, r.worker_id, r.started_s, r.compute_s, r.received_s, r.waited_s, r.clock_error_s
    from confirmed c
    left join (
        select scheduler_id, key_id, run_id, worker_id, started_s, compute_s, received_s, waited_s, clock_error_s
        from attempt_facts where is_from_steal
    ) r using (scheduler_id, key_id, run_id)
), needed as (
    select distinct s.scheduler_id, s.key_id, s.run_id, s.worker_id, s.victim, s.stolen_s, s.started_s,
        coalesce(s.clock_error_s, 0.0) + 1e-3 as slack_s, d.dependency_id
    from stolen s
    join raw.dependencies d on d.server_id = s.scheduler_id and d.key_id = s.key_id
    where s.worker_id is not null
), moves as (
    select t.destination_worker_id as worker_id, t.source_worker, t.start_s, t.stop_s, k.key_id as dependency_id,
        k.nbytes, k.server_id, k.transfer
    from transfers_distinct t
    join raw.transfer_keys k
        on k.server_id = case when t.incoming_transfer is null then t.source_worker_id else t.destination_worker_id end
        and k.transfer = coalesce(t.incoming_transfer, t.outgoing_transfer)
    where t.destination_worker_id in (select worker_id from stolen) and k.key_id in (select dependency_id from needed)
), fetched as (
    -- One movement serves every stolen task that needs it: it is booked on the first.
    select
        m.server_id,
        m.transfer,
        m.dependency_id,
        arg_min(struct_pack(scheduler_id := n.scheduler_id, key_id := n.key_id), n.stolen_s) as task,
        any_value(m.nbytes) as nbytes,
        bool_or(m.source_worker = n.victim) as is_from_victim
    from needed n
    join moves m on m.worker_id = n.worker_id and m.dependency_id = n.dependency_id
    where m.start_s >= n.stolen_s - n.slack_s and m.stop_s <= coalesce(n.started_s, 'infinity'::double) + n.slack_s
    group by m.server_id, m.transfer, m.dependency_id
), fetched_of_prefix as (
    select
        p.prefix,
        sum(f.nbytes)::bigint as fetched_bytes,
        coalesce(sum(f.nbytes) filter (f.is_from_victim), 0)::bigint as fetched_from_victim_bytes
    from fetched f
    left join prefixes p on p.scheduler_id = f.task.scheduler_id and p.key_id = f.task.key_id
    group by p.prefix
), requested as (
    select p.prefix, count(*) as request_count
    from raw.steals s
    left join prefixes p on p.scheduler_id = s.server_id and p.key_id = s.key_id
    where s.decision = 'request'
    group by p.prefix
), attempts as (
    select prefix, count(*) as task_count from task_runs where attempt_number = 1 group by prefix
), of_prefix as (
    select
        p.prefix,
        count(*) as steal_count,
        count(distinct (s.scheduler_id, s.key_id)) as stolen_task_count,
        sum(s.compute_s) as compute_s,
        sum(greatest(s.waited_s - s.received_s, 0.0)) filter (s.waited_s - s.received_s is not null) as wait_s
    from stolen s
    left join prefixes p using (scheduler_id, key_id)
    group by p.prefix
)
select
    coalesce(o.prefix, r.prefix) as prefix,
    attempts.task_count,
    coalesce(r.request_count, 0) as request_count,
    coalesce(o.steal_count, 0) as steal_count,
    coalesce(o.stolen_task_count, 0) as stolen_task_count,
    coalesce(o.steal_count, 0) / attempts.task_count as steals_per_task,
    coalesce(f.fetched_bytes, 0) as fetched_bytes,
    coalesce(f.fetched_from_victim_bytes, 0) as fetched_from_victim_bytes,
    o.wait_s,
    o.compute_s
from of_prefix o
full join requested r on r.prefix is not distinct from o.prefix
left join fetched_of_prefix f on f.prefix is not distinct from coalesce(o.prefix, r.prefix)
left join attempts on attempts.prefix is not distinct from coalesce(o.prefix, r.prefix)
order by steal_count desc, request_count desc, coalesce(o.prefix, r.prefix)
"""

AGAIN_SQL = f"""
{_MOVES}
, often as (
    select scheduler_id, key_id, count(*) as steal_count, count(distinct thief) as thief_count,
        min(stolen_s) as first_s, max(stolen_s) as last_s
    from confirmed
    group by scheduler_id, key_id
    having count(*) > 1
    order by steal_count desc, first_s
    limit ?
)
select
    keys.key,
    prefix,
    steal_count,
    thief_count,
    first_s - (select started_s from run_times) as first_at_s,
    last_s - (select started_s from run_times) as last_at_s
from often
left join prefixes using (scheduler_id, key_id)
left join keys on keys.key_id = often.key_id
order by steal_count desc, first_at_s, keys.key
"""


def steals_by_prefix(run: Run) -> pa.Table:
    """What work stealing moved: one row per prefix, most stolen first.

    A request may be turned down as the task runs by then; that costs next to nothing.
    fetched_bytes are inputs that reached the thief between the theft and the start of the
    stolen task; of them those from the victim moved for the theft alone.  wait_s is the
    time of stolen tasks from their arrival to their last input; threads work meanwhile.

    From: steals, task_runs, dependencies, transfers_distinct, transfer_keys, worker_transitions
    Columns: prefix, task_count, request_count, steal_count, stolen_task_count, steals_per_task, fetched_bytes,
    fetched_from_victim_bytes, wait_s, compute_s (of the stolen attempts)
    """
    return run.sql(STEALS_SQL).to_arrow_table()


def stolen_again(run: Run, limit: int = 100) -> pa.Table:
    """Tasks stolen more than once: one row per key, most often first, `limit` rows.

    From: steals, tasks
    Columns: key, prefix, steal_count, thief_count, first_at_s, last_at_s
    """
    return run.sql(AGAIN_SQL, [limit]).to_arrow_table()


def stealing_conclusions(stolen: Document, steals: pa.Table, repeated: pa.Table) -> list[Conclusion]:
    """Return what is to be said of work stealing; `stolen` is the row of `COUNTS_SQL` and idle_thread_s."""
    found = []
    idle = stolen["idle_thread_s"] or 0.0
    rows = steals.to_pylist()
    all_wait = sum(row["wait_s"] or 0.0 for row in rows)
    for row in rows:
        wait, compute = row["wait_s"], row["compute_s"]
        if row["steal_count"] < STOLEN_COUNT or not wait or not compute or not row["fetched_from_victim_bytes"]:
            continue
        cost = idle * wait / all_wait
        if wait < WAIT_RATIO * compute or cost < IDLE_S:
            continue
        name = row["prefix"] or "unknown prefix"
        found.append(
            Conclusion(
                "transfers",
                name,
                f"{plural(row['steal_count'], 'task')} of {name} moved by stealing, and "
                f"{bytes_text(row['fetched_from_victim_bytes'])} of inputs followed from where they had been: they "
                f"waited {seconds_text(wait)} for inputs to compute for {seconds_text(compute)}.",
                "likely",
                cost,
                "Make these tasks longer or their inputs smaller, pin them with `workers=`, or compare a run with "
                "`distributed.scheduler.work-stealing: false`.",
                {
                    "steal_count": row["steal_count"],
                    "fetched_from_victim_bytes": row["fetched_from_victim_bytes"],
                    "wait_s": wait,
                    "compute_s": compute,
                },
            )
        )
    round_trips = [row for row in repeated.to_pylist() if row["steal_count"] >= AGAIN_COUNT]
    if len(round_trips) >= STOLEN_COUNT and len(round_trips) >= AGAIN_SHARE * stolen["task_count"]:
        most = round_trips[0]
        found.append(
            Conclusion(
                "transfers",
                most["prefix"] or "stealing",
                f"{plural(len(round_trips), 'task')} went round: each was stolen {AGAIN_COUNT} times or more, one "
                f"{most['steal_count']} times, of {plural(stolen['task_count'], 'task')} stolen at all.",
                "certain",
                None,
                "Dask misjudges how long these tasks take or how large their inputs are: set "
                "`distributed.scheduler.default-task-durations` for the prefix, or compare a run without stealing.",
                {"round_task_count": len(round_trips), "most_stolen_count": most["steal_count"]},
            )
        )
    return found
