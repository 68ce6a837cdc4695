"""View of attempts: each time a task was sent to a worker, what became of it.

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

from recup.fuse_attempts import WHO
from recup.store import View, ViewColumn

_BOOKED = ",\n".join(
    f"""\
    case when p.is_told_by_worker or spans.is_told_by_scheduler
        then coalesce(case when spans.is_told then spans.{name} else spans.scheduler_{name} end, 0.0)
    end as {name}"""
    for name in ("transfer_s", "disk_read_s", "disk_write_s", "deserialize_s")
).lstrip()
"""What Dask books on an attempt beside computing: by its worker where that is told, else by the scheduler."""

ATTEMPT_FACTS = View(
    "attempt_facts",
    "One row per attempt: the columns of `task_runs`, and what several answers ask of each beside them.  `gone_s`: its "
    "result left the memory of the cluster; `remote_count`: inputs that were elsewhere; `waited_s`, `inputs_s`: it stopped "
    "waiting on its worker, and was ready there; `seceded_s`; and what its thread counted.",
    (),
    f"""
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
), gone as (
    select n.observer as scheduler, t.key_id, t.time_ns as gone_ns
    from raw.scheduler_transitions t
    join server_numbers n on n.server_id = t.server_id
    where t.start = 'memory' and t.finish <> 'memory'
), gone_again as (
    select scheduler, key_id from gone group by all having count(*) > 1
), only_gone as (
    from gone
    anti join gone_again using (scheduler, key_id)
), one_of_gone as (
    select t.run_id, g.*
    from (from tried semi join gone_again using (scheduler, key_id) where ended_state = 'memory') t
    asof join (from gone semi join gone_again using (scheduler, key_id)) g
        on g.scheduler = t.scheduler and g.key_id = t.key_id and t.ended_ns <= g.gone_ns
), counted as (
    select
        n.observer as worker_number,
        c.key_id,
        c.run_id,
        any_value(c.cpu_ns) as cpu_ns,
        any_value(c.queue_wait_ns) as queue_wait_ns,
        any_value(c.wall_ns) as wall_ns,
        any_value(c.major_fault_count) as major_fault_count
    from raw.thread_counters c
    join server_numbers n on n.server_id = c.server_id
    where c.run_id is not null and c.kind = 'task'
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
        coalesce(only_ready.ready_ns, one_of_ready.ready_ns) as ready_ns,
        coalesce(only_gone.gone_ns, one_of_gone.gone_ns) as gone_ns
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
    left join only_gone
        on only_gone.scheduler = t.scheduler
        and only_gone.key_id = t.key_id
        and t.ended_state = 'memory'
        and t.ended_ns <= only_gone.gone_ns
    left join one_of_gone
        on one_of_gone.scheduler = t.scheduler and one_of_gone.key_id = t.key_id and one_of_gone.run_id = t.run_id
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
    {_BOOKED},
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
    end as clock_error_s,
    p.gone_ns / 1e9 as gone_s,
    p.remote_count,
    p.waited_ns / 1e9 + coalesce(offset_s, 0.0) as waited_s,
    p.inputs_ns / 1e9 + coalesce(offset_s, 0.0) as inputs_s,
    p.is_constrained,
    p.seceded_ns / 1e9 + coalesce(offset_s, 0.0) as seceded_s,
    counted.cpu_ns / 1e9 as cpu_s,
    counted.queue_wait_ns / 1e9 as queue_wait_s,
    -- The three come from clocks of different resolution; greatest() would make 0 of what is not known.
    case when counted.cpu_ns is not null
        then greatest(counted.wall_ns - counted.cpu_ns - coalesce(counted.queue_wait_ns, 0), 0) / 1e9
    end as blocked_s,
    counted.major_fault_count
from placed p
left join keys on keys.key_id = p.key_id
left join server_numbers schedulers on schedulers.observer = p.scheduler
left join server_numbers workers on workers.observer = p.worker_number
left join clocks on clocks.server_id = workers.server_id
left join removals
    on removals.scheduler = p.scheduler and removals.worker = p.worker and removals.end_cause = p.end_cause
left join last_seen on last_seen.scheduler = p.scheduler and last_seen.key_id = p.key_id
left join doubtful on doubtful.scheduler = p.scheduler
left join counted
    on counted.worker_number = p.worker_number and counted.key_id = p.key_id and counted.run_id = p.run_id
left join spans on spans.scheduler = p.scheduler and spans.key_id = p.key_id and spans.run_id = p.run_id
""",
    is_kept=True,
    is_inner=True,
)

_TASK_RUN_COLUMNS = (
    *WHO,
    ViewColumn("prefix", "Dask's task prefix", null="the graph is not recorded"),
    ViewColumn("group", "Dask's task group", null="the graph is not recorded"),
    ViewColumn("function", "Function it calls", null="data, alias or not found"),
    ViewColumn("submission", "Into `submissions`: the graph that brought the task", null="the graph is not recorded"),
    ViewColumn("worker", "Address of the worker", null="not told"),
    ViewColumn("worker_id", "Server id of the worker", null="not told"),
    ViewColumn("host_id", "Host of the worker", null="not told"),
    ViewColumn("thread", "threading.get_ident() of its thread", null="on the event loop, or it did not end"),
    ViewColumn("submitted_s", "When the scheduler took its graph", "s", "the graph is not recorded"),
    ViewColumn("ready_s", "When nothing but a free worker was wanting", "s", "does not follow"),
    ViewColumn("assigned_s", "When the scheduler sent it, or moved it here", "s", "the scheduler did not record it"),
    ViewColumn("received_s", "When the worker took it in", "s", "the worker did not record it"),
    ViewColumn("executing_s", "When the worker's loop gave it to a thread", "s", "it did not, or did not record it"),
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
)

TASK_RUNS = View(
    "task_runs",
    "One row per attempt to run a task: each time the scheduler sent it to a worker.  A task that was retried, "
    "stolen or lost has several.  Outcomes: see the outcome column; what is not known is unknown.",
    _TASK_RUN_COLUMNS,
    f"""select {", ".join(f'"{column.name}"' for column in _TASK_RUN_COLUMNS)} from attempt_facts""",
)
