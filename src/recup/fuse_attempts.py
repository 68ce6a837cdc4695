"""Views of attempts: each time a task was sent to a worker, what became of it.

Part of `recup.fuse`, which says what all views have in common.

How an outcome is reached, first rule that holds:

memory          the scheduler took the result
lost            the scheduler ended the attempt by removing its worker
error           the scheduler took the failure; or the worker told of it; or the scheduler
                ended the attempt because of a message ``task-erred``
rescheduled     the task itself raised Reschedule
stolen          the next attempt of the key began by moving it off this worker
cancelled       the scheduler gave the attempt up for another reason: see `end_cause`
memory, error   of attempts whose end the scheduler did not record: by the worker's word
running_at_end  nothing ended it, nothing happened to the key afterwards, and the scheduler
                lost no transitions
unknown         all else
"""

from __future__ import annotations

from recup.store import View, ViewColumn

_WHO = (
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
    select o.scheduler, r.key_id, r.run_id, min(r.time_ns) as received_ns, any_value(o.observer) as worker_number
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
        min(t.time_ns) filter (t.finish = 'executing') as executing_ns,
        bool_or(t.finish = 'rescheduled') as is_rescheduled,
        bool_or(t.finish = 'cancelled' or t.state = 'cancelled') as is_cancelled
    from raw.worker_transitions t
    join observers o on o.server_id = t.server_id
    where t.run_id is not null and (t.finish in ('executing', 'rescheduled', 'cancelled') or t.state = 'cancelled')
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
    select scheduler, key_id, run_id from begun
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
    executing_ns,
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

TASK_RUNS = View(
    "task_runs",
    "One row per attempt to run a task: each time the scheduler sent it to a worker.  A task that was retried, "
    "stolen or lost has several.  Outcomes: see the outcome column; what is not known is unknown.",
    (
        *_WHO,
        ViewColumn("prefix", "Dask's task prefix", null="the graph is not recorded"),
        ViewColumn("group", "Dask's task group", null="the graph is not recorded"),
        ViewColumn("function", "Function it calls", null="data, alias or not found"),
        ViewColumn(
            "submission", "Into `submissions`: the graph that brought the task", null="the graph is not recorded"
        ),
        ViewColumn("worker", "Address of the worker", null="not told"),
        ViewColumn("worker_id", "Server id of the worker", null="not told"),
        ViewColumn("host_id", "Host of the worker", null="not told"),
        ViewColumn("thread", "threading.get_ident() of its thread", null="on the event loop, or it did not end"),
        ViewColumn("submitted_s", "When the scheduler took its graph", "s", "the graph is not recorded"),
        ViewColumn("ready_s", "When nothing but a free worker was wanting", "s", "does not follow"),
        ViewColumn(
            "assigned_s", "When the scheduler sent it, or moved it here", "s", "the scheduler did not record it"
        ),
        ViewColumn("received_s", "When the worker took it in", "s", "the worker did not record it"),
        ViewColumn(
            "executing_s", "When the worker's loop gave it to a thread", "s", "it did not, or did not record it"
        ),
        ViewColumn("started_s", "Start of the computation", "s", "did not end, or not told"),
        ViewColumn("stopped_s", "Stop of the computation", "s", "did not end, or not told"),
        ViewColumn("stored_s", "When the scheduler took the result", "s", "it did not"),
        ViewColumn("ended_s", "When the scheduler ended the attempt", "s", "it did not, as far as recorded"),
        ViewColumn("compute_s", "Stopped less started", "s", "did not end, or not told"),
        ViewColumn("transfer_s", "Sum of the fetches Dask books on it; they may overlap", "s", "not told"),
        ViewColumn(
            "disk_read_s",
            "Sum of times above 5 ms to get inputs out of the worker's store; of a disk only where it spilled",
            "s",
            "not told",
        ),
        ViewColumn(
            "disk_write_s",
            "Time above 5 ms to put the result into the worker's store; on a disk only where it spilled",
            "s",
            "not told",
        ),
        ViewColumn("deserialize_s", "Time spent unpacking the task", "s", "not told"),
        ViewColumn("nbytes", "Size of the result by Dask's sizeof", "bytes", "no result"),
        ViewColumn("typename", "Type of the result", null="no result"),
        ViewColumn(
            "outcome",
            "memory, error, rescheduled, stolen (off this worker), cancelled, lost (with its worker), running_at_end "
            "or unknown",
        ),
        ViewColumn("end_cause", "Stimulus that ended it on the scheduler", null="it did not end there"),
        ViewColumn("exception_text", "repr of the exception", null="it did not fail, or not told"),
        ViewColumn("is_from_steal", "Whether it began by being stolen from another worker"),
        ViewColumn("attempt_number", "1 for the first attempt of the key at this scheduler, and on"),
        ViewColumn("clock_error_s", "Bound of what times of the worker may be off by", "s", "no bound is known"),
    ),
    """
with tried as materialized (
    from attempts
), tried_again as (
    select scheduler, key_id from tried group by all having count(*) > 1
), turns as (
    -- Windows, and below asof joins, only where a key has several: they cost ten times what a join on numbers does.
    select
        scheduler,
        key_id,
        run_id,
        row_number() over key_order as attempt_number,
        lead(assigned_ns) over key_order as next_ns,
        lead(is_from_steal and assigned_ns is not null) over key_order as is_next_steal,
        lead(victim) over key_order as next_victim
    from tried
    semi join tried_again using (scheduler, key_id)
    window key_order as (partition by scheduler, key_id order by place_ns, run_id)
), listed as (
    select n.observer as scheduler, t.key_id, s.time_ns, t.submission, t.prefix, t."group", t.function
    from raw.tasks t
    join raw.submissions s on s.server_id = t.server_id and s.submission = t.submission
    join server_numbers n on n.server_id = t.server_id
), listed_again as (
    select scheduler, key_id from listed group by all having count(*) > 1
), forgotten as (
    select n.observer as scheduler, t.key_id, t.time_ns as forgotten_ns
    from raw.scheduler_transitions t
    join server_numbers n on n.server_id = t.server_id
    semi join listed_again on listed_again.scheduler = n.observer and listed_again.key_id = t.key_id
    where t.finish = 'forgotten'
), listed_anew as (
    -- A graph lists known tasks too: what brought a task is the first since it was last forgotten.
    select
        scheduler,
        key_id,
        min(time_ns) as time_ns,
        min(submission) as submission,
        arg_min(prefix, submission) as prefix,
        arg_min("group", submission) as "group",
        arg_min(function, submission) as function
    from (
        select l.*, forgotten.forgotten_ns
        from (from listed semi join listed_again using (scheduler, key_id)) l
        asof left join forgotten
            on forgotten.scheduler = l.scheduler
            and forgotten.key_id = l.key_id
            and l.time_ns >= forgotten.forgotten_ns
    )
    group by scheduler, key_id, forgotten_ns
), only_graphs as (
    from listed
    anti join listed_again using (scheduler, key_id)
), one_of_graphs as (
    select t.run_id, g.*
    from (from tried semi join listed_again using (scheduler, key_id)) t
    asof join listed_anew g on g.scheduler = t.scheduler and g.key_id = t.key_id and t.place_ns >= g.time_ns
), readied as (
    select n.observer as scheduler, t.key_id, t.finish as from_state, t.time_ns as ready_ns
    from raw.scheduler_transitions t
    join server_numbers n on n.server_id = t.server_id
    where t.finish in ('queued', 'no-worker')
), readied_again as (
    select scheduler, key_id, from_state from readied group by all having count(*) > 1
), only_ready as (
    from readied
    anti join readied_again using (scheduler, key_id, from_state)
), one_of_ready as (
    select t.run_id, r.*
    from (from tried semi join readied_again using (scheduler, key_id, from_state)) t
    asof join (from readied semi join readied_again using (scheduler, key_id, from_state)) r
        on r.scheduler = t.scheduler
        and r.key_id = t.key_id
        and r.from_state = t.from_state
        and t.assigned_ns >= r.ready_ns
), removals as (
    select distinct n.observer as scheduler, w.address as worker, w.stimulus_id as end_cause, true as is_removed
    from raw.workers w
    join server_numbers n on n.server_id = w.server_id
    where w.action = 'remove' and w.stimulus_id is not null
), last_seen as (
    select n.observer as scheduler, t.key_id, max(t.time_ns) as last_ns
    from raw.scheduler_transitions t
    join server_numbers n on n.server_id = t.server_id
    semi join (select distinct scheduler, key_id from tried where ended_ns is null) open_ends
        on open_ends.scheduler = n.observer and open_ends.key_id = t.key_id
    group by all
), doubtful as (
    select distinct n.observer as scheduler, true as is_doubtful
    from raw.losses l
    join server_numbers n on n.server_id = l.server_id
    where l."table" = 'scheduler_transitions' and l.kind <> 'not_captured'
), spans as (
    select
        n.scheduler,
        p.key_id,
        p.run_id,
        bool_or(p.role <> 'scheduler') as is_told,
        bool_or(p.role = 'scheduler') as is_told_by_scheduler,
        sum(p.stop_s - p.start_s) filter (p.role <> 'scheduler' and p.action = 'transfer') as transfer_s,
        sum(p.stop_s - p.start_s) filter (p.role <> 'scheduler' and p.action = 'disk-read') as disk_read_s,
        sum(p.stop_s - p.start_s) filter (p.role <> 'scheduler' and p.action = 'disk-write') as disk_write_s,
        sum(p.stop_s - p.start_s) filter (p.role <> 'scheduler' and p.action = 'deserialize') as deserialize_s,
        sum(p.stop_s - p.start_s) filter (p.role = 'scheduler' and p.action = 'transfer') as scheduler_transfer_s,
        sum(p.stop_s - p.start_s) filter (p.role = 'scheduler' and p.action = 'disk-read') as scheduler_disk_read_s,
        sum(p.stop_s - p.start_s) filter (p.role = 'scheduler' and p.action = 'disk-write') as scheduler_disk_write_s,
        sum(p.stop_s - p.start_s) filter (p.role = 'scheduler' and p.action = 'deserialize')
            as scheduler_deserialize_s
    from raw.startstops p
    join server_numbers n on n.server_id = p.server_id
    where p.run_id is not null
    group by all
), lives as (
    select s.observer as scheduler, l.address as worker, n.observer as worker_number, l.came_s
    from worker_lives l
    join server_numbers s on s.server_id = l.scheduler_id
    left join server_numbers n on n.server_id = l.worker_id
    where l.address is not null and l.came_s is not null
), lived_there as (
    select t.scheduler, t.key_id, t.run_id, lives.worker_number
    from tried t
    asof join lives
        on lives.scheduler = t.scheduler and lives.worker = t.worker and t.assigned_ns / 1e9 >= lives.came_s
    where t.worker_number is null
), placed as (
    select
        t.* exclude (worker_number),
        coalesce(t.worker_number, lived_there.worker_number) as worker_number,
        coalesce(turns.attempt_number, 1) as attempt_number,
        turns.next_ns,
        turns.is_next_steal,
        turns.next_victim,
        coalesce(only_graphs.submission, one_of_graphs.submission) as submission,
        coalesce(only_graphs.prefix, one_of_graphs.prefix) as prefix,
        coalesce(only_graphs."group", one_of_graphs."group") as "group",
        coalesce(only_graphs.function, one_of_graphs.function) as function,
        coalesce(only_graphs.time_ns, one_of_graphs.time_ns) as submitted_ns,
        coalesce(only_ready.ready_ns, one_of_ready.ready_ns) as ready_ns
    from tried t
    left join turns using (scheduler, key_id, run_id)
    left join only_graphs
        on only_graphs.scheduler = t.scheduler and only_graphs.key_id = t.key_id and t.place_ns >= only_graphs.time_ns
    left join one_of_graphs
        on one_of_graphs.scheduler = t.scheduler and one_of_graphs.key_id = t.key_id and one_of_graphs.run_id = t.run_id
    left join only_ready
        on only_ready.scheduler = t.scheduler
        and only_ready.key_id = t.key_id
        and only_ready.from_state = t.from_state
        and t.assigned_ns >= only_ready.ready_ns
    left join one_of_ready
        on one_of_ready.scheduler = t.scheduler and one_of_ready.key_id = t.key_id and one_of_ready.run_id = t.run_id
    left join lived_there
        on lived_there.scheduler = t.scheduler and lived_there.key_id = t.key_id and lived_there.run_id = t.run_id
)
select
    schedulers.server_id as scheduler_id,
    keys.key,
    p.key_id,
    p.run_id,
    p.prefix,
    p."group",
    p.function,
    p.submission,
    p.worker,
    workers.server_id as worker_id,
    clocks.host_id,
    p.thread,
    p.submitted_ns / 1e9 as submitted_s,
    case when p.from_state = 'waiting' then p.assigned_ns else p.ready_ns end / 1e9 as ready_s,
    p.assigned_ns / 1e9 as assigned_s,
    p.received_ns / 1e9 + coalesce(offset_s, 0.0) as received_s,
    p.executing_ns / 1e9 + coalesce(offset_s, 0.0) as executing_s,
    case when p.worker_delay_s is not null then p.worker_start_s - p.worker_delay_s + coalesce(offset_s, 0.0)
        else coalesce(p.worker_start_s, p.scheduler_start_s) end as started_s,
    case when p.worker_delay_s is not null then p.worker_stop_s - p.worker_delay_s + coalesce(offset_s, 0.0)
        else coalesce(p.worker_stop_s, p.scheduler_stop_s) end as stopped_s,
    case when p.ended_state = 'memory' then p.ended_ns / 1e9 end as stored_s,
    case when p.ended_ns is null and p.is_next_steal then p.next_ns else p.ended_ns end / 1e9 as ended_s,
    coalesce(p.worker_stop_s - p.worker_start_s, p.scheduler_stop_s - p.scheduler_start_s) as compute_s,
    case when p.is_told_by_worker or spans.is_told_by_scheduler
        then coalesce(case when spans.is_told then spans.transfer_s else spans.scheduler_transfer_s end, 0.0)
    end as transfer_s,
    case when p.is_told_by_worker or spans.is_told_by_scheduler
        then coalesce(case when spans.is_told then spans.disk_read_s else spans.scheduler_disk_read_s end, 0.0)
    end as disk_read_s,
    case when p.is_told_by_worker or spans.is_told_by_scheduler
        then coalesce(case when spans.is_told then spans.disk_write_s else spans.scheduler_disk_write_s end, 0.0)
    end as disk_write_s,
    case when p.is_told_by_worker or spans.is_told_by_scheduler
        then coalesce(case when spans.is_told then spans.deserialize_s else spans.scheduler_deserialize_s end, 0.0)
    end as deserialize_s,
    p.nbytes,
    p.typename,
    case
        when p.ended_state = 'memory' then 'memory'
        when p.ended_ns is not null and removals.is_removed then 'lost'
        when p.ended_state = 'erred' or p.is_failed or coalesce(p.worker_outcome, '') = 'error'
            or p.end_cause like 'task-erred-%' then 'error'
        when p.is_rescheduled or p.end_cause like 'reschedule-%' then 'rescheduled'
        when p.ended_ns is null and p.is_next_steal and p.next_victim in (p.worker, '') then 'stolen'
        when p.ended_ns is not null then 'cancelled'
        when p.worker_outcome = 'memory' then 'memory'
        when p.is_cancelled then 'cancelled'
        when p.assigned_ns is not null and p.next_ns is null and last_seen.last_ns <= p.assigned_ns
            and doubtful.is_doubtful is null and p.worker_outcome is null then 'running_at_end'
        else 'unknown'
    end as outcome,
    p.end_cause,
    p.exception_text,
    p.is_from_steal,
    p.attempt_number,
    case
        when p.worker_start_s is null and p.scheduler_start_s is null then clocks.error_s
        when p.worker_delay_s is null then clocks.delay_error_s
        -- Dask's delay may have changed between the transition and the start of the thread; then these contradict.
        when p.worker_start_s - p.worker_delay_s < p.executing_ns / 1e9 - 1e-6
            or p.worker_stop_s - p.worker_delay_s > p.told_ns / 1e9 + 1e-6 then clocks.delay_error_s
        else clocks.error_s
    end as clock_error_s
from placed p
left join keys on keys.key_id = p.key_id
left join server_numbers schedulers on schedulers.observer = p.scheduler
left join server_numbers workers on workers.observer = p.worker_number
left join clocks on clocks.server_id = workers.server_id
left join removals
    on removals.scheduler = p.scheduler and removals.worker = p.worker and removals.end_cause = p.end_cause
left join last_seen on last_seen.scheduler = p.scheduler and last_seen.key_id = p.key_id
left join doubtful on doubtful.scheduler = p.scheduler
left join spans on spans.scheduler = p.scheduler and spans.key_id = p.key_id and spans.run_id = p.run_id
""",
    is_kept=True,
)

ACTIVITIES = View(
    "activities",
    "One row per stretch of time Dask books on an attempt: computing, fetching inputs, reading and writing the disk.",
    (
        *_WHO,
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
