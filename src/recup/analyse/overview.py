"""The first page of a run: what ran, on what, what came of it, and what is not known.

Covers facts and totals that a reader wants before asking anything.  It does not judge
performance, nor does it go into single tasks (`story`) or lines of the map (`coverage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recup.analyse.listing import run_state, servers_of, wall_s
from recup.analyse.profile import profile_request
from recup.analyse.rows import Document, rows_of
from recup.completeness import completeness, verdict

if TYPE_CHECKING:
    from recup.store import Run

HOSTS_SQL = """
select
    any_value(hostname) as hostname,
    any_value(operating_system) as operating_system,
    any_value(architecture) as architecture,
    any_value(cpu_model) as cpu_model,
    any_value(cpu_count) as cpu_count,
    any_value(core_count) as core_count,
    any_value(memory_bytes) as memory_bytes,
    any_value(container) as container
from raw.hosts
group by host_id
order by hostname
"""

BATCH_JOBS_SQL = """
select distinct system, job_id
from raw.batch_jobs
where system <> 'none'
order by all
"""

SOFTWARE_SQL = """
select python_version, dask_version, distributed_version, recup_version, count(*) as process_count
from raw.processes
group by 1, 2, 3, 4
order by process_count desc, 1, 2, 3, 4
"""

CLUSTERS_SQL = """
with lives as (
    select
        scheduler_id,
        count(*) as worker_count,
        count(*) filter (not is_captured) as uncaptured_count,
        sum(thread_count)::bigint as thread_count,
        sum(memory_limit_bytes)::bigint as memory_limit_bytes
    from worker_lives
    group by scheduler_id
), came as (
    select server_id as scheduler_id, count(distinct client) as client_count
    from raw.clients
    where client <> 'fire-and-forget'
    group by server_id
), graphs as (
    select server_id as scheduler_id, count(*) as graph_count
    from raw.submissions
    group by server_id
), schedulers as (
    select server_id as scheduler_id, address
    from servers
    where role = 'scheduler'
)
select
    scheduler_id,
    address,
    coalesce(worker_count, 0) as worker_count,
    coalesce(uncaptured_count, 0) as uncaptured_count,
    coalesce(thread_count, 0) as thread_count,
    memory_limit_bytes,
    coalesce(client_count, 0) as client_count,
    coalesce(graph_count, 0) as graph_count
from schedulers
left join lives using (scheduler_id)
left join came using (scheduler_id)
left join graphs using (scheduler_id)
order by scheduler_id
"""
"""One row per scheduler; threads and memory are those of all workers that ever came."""

WORKER_ENDS_SQL = """
select scheduler_id, ended, reason, count(*) as worker_count
from worker_lives
group by 1, 2, 3
order by worker_count desc, 1, 2, 3
"""

PREFIXES_SQL = """
with told as (
    select server_id, key_id, true as is_listed, prefix, function is null and priority_order is null as is_plain
    from raw.tasks
    union all by name
    select
        server_id,
        key_id,
        time_ns,
        finish as step,
        case finish
            when 'memory' then 'done'
            when 'erred' then if(start = 'processing', 'failed', 'blocked')
        end as state
    from raw.scheduler_transitions
    where finish in ('memory', 'erred', 'waiting', 'forgotten')
    union all by name
    select scheduler_id as server_id, key_id, run_id, true as is_attempt, outcome, compute_s, nbytes
    from attempt_facts
), known as (
    -- In one go: to join what is grouped one by one costs as much again.
    select
        bool_or(is_listed) is not null as is_known,
        any_value(prefix) as prefix,
        arg_max(state, time_ns) as state,
        arg_max(step, time_ns) as last_step,
        -- What a client scattered is listed with the graphs that use it, and was given neither an order nor an attempt.
        bool_and(is_plain) and count(is_attempt) = 0 and bool_and(step = 'forgotten') is not false as is_scattered,
        count(is_attempt) as attempt_count,
        count(*) filter (outcome = 'error') as failed_attempt_count,
        count(*) filter (outcome = 'lost') as lost_attempt_count,
        sum(compute_s) as compute_s,
        count(compute_s) as computed_count,
        sum(nbytes) as result_bytes
    from told
    group by server_id, key_id
), judged as (
    select
        *,
        case
            when not is_known then null
            when is_scattered then 'scattered'
            when state is not null then state
            when last_step = 'forgotten' then 'given up'
            else 'without result'
        end as fate
    from known
)
select
    prefix,
    count(*) filter (fate <> 'scattered') as task_count,
    count(*) filter (fate = 'done') as done_count,
    count(*) filter (fate = 'failed') as failed_count,
    count(*) filter (fate = 'blocked') as blocked_count,
    count(*) filter (fate = 'given up') as given_up_count,
    count(*) filter (fate = 'without result') as without_result_count,
    count(*) filter (fate = 'scattered') as scattered_count,
    coalesce(sum(attempt_count), 0)::bigint as attempt_count,
    coalesce(sum(failed_attempt_count), 0)::bigint as failed_attempt_count,
    coalesce(sum(lost_attempt_count), 0)::bigint as lost_attempt_count,
    sum(compute_s) as compute_s,
    sum(compute_s) / nullif(sum(computed_count), 0) as mean_s,
    sum(result_bytes)::bigint as result_bytes
from judged
where is_known or attempt_count > 0
group by prefix
order by compute_s desc nulls last, task_count desc, prefix
"""
"""One row per task prefix; a task is a key of a scheduler, its outcome the last it reached.

`blocked` tasks never ran because a task they need failed; `given_up` ones were cancelled, or nobody wanted them any
more, before they had a result.  Seconds and bytes are those of all attempts, as `task_runs` has them, so a task
computed twice counts twice.  Attempts of tasks whose graph is not recorded have a row without a prefix and add no task.
"""

TRAFFIC_SQL = """
select
    count(*) as transfer_count,
    coalesce(sum(nbytes), 0)::bigint as transfer_bytes,
    coalesce(sum(duration_s), 0) as transfer_s,
    (select count(*) from raw.spills where direction = 'spill') as spill_count,
    (select coalesce(sum(memory_bytes), 0)::bigint from raw.spills where direction = 'spill') as spill_bytes,
    (select count(*) from raw.spills where direction = 'unspill') as unspill_count,
    (select count(*) from raw.steals where decision = 'request') as steal_request_count,
    (select count(*) from raw.steals where decision = 'confirm') as steal_count,
    (select max(value)::bigint from raw.samples where metric = 'memory_process_bytes') as worker_peak_memory_bytes
from transfers_distinct
where destination_worker_id is not null
"""
"""One row; transfers are those between workers, told once where both ends recorded them."""

ERRORS_SQL = """
with each_task as (
    select
        key_id,
        count(distinct run_id) as attempt_count,
        min(time_ns) as first_ns,
        arg_min(worker, time_ns) as worker,
        arg_min(exception_text, time_ns) as exception_text
    from raw.errors
    group by key_id
), results as (
    select key_id, arg_max(finish, time_ns) = 'memory' as is_done
    from raw.scheduler_transitions
    where finish in ('memory', 'erred') and key_id in (select key_id from each_task)
    group by key_id
)
select key, attempt_count, worker, exception_text, coalesce(is_done, false) as is_done, count(*) over () as error_count,
    count(*) filter (is_done) over () as done_count
from each_task
left join results using (key_id)
left join keys using (key_id)
order by is_done, first_ns, key
limit 5
"""
"""The first tasks of which an attempt failed, of how many, and how many of them were done by a later one."""

LOGS_SQL = """
select level, logger, message, count(*) as record_count
from raw.logs
where level in ('WARNING', 'ERROR', 'CRITICAL')
group by 1, 2, 3
order by level = 'WARNING', record_count desc, logger, message
"""

SUBMISSIONS_SQL = """
with innermost as (
    select server_id, submission, arg_max(path, depth) as path, arg_max(line, depth) as line,
        arg_max(line_text, depth) as line_text
    from raw.submission_frames
    group by server_id, submission
), sent as (
    select server_id, submission, time_ns, call, task_count
    from raw.client_submissions
)
select call, path, line, line_text, count(*) as submission_count, sum(task_count)::bigint as task_count
from sent
left join innermost using (server_id, submission)
group by 1, 2, 3, 4
order by min(time_ns)
"""
"""One row per place in the user's code that submits, with graphs sent and tasks before optimization."""


def overview(run: Run) -> Document:
    """Return the first page of a run as one document of plain values.

    From: run.json, the completeness statement, views of `recup.fuse` and raw tables
    Keys: run, completeness, hosts, batch_jobs, profile (null: none), software, clusters, worker_ends,
    submissions, tasks, traffic, errors, logs
    """
    findings = completeness(run)
    prefixes = rows_of(run, PREFIXES_SQL)
    traffic = rows_of(run, TRAFFIC_SQL)[0]
    return {
        "run": run_facts(run),
        "completeness": {
            "verdict": verdict(findings),
            "findings": finding_rows(findings),
        },
        "hosts": rows_of(run, HOSTS_SQL),
        "batch_jobs": rows_of(run, BATCH_JOBS_SQL),
        "profile": profile_request(run),
        "software": rows_of(run, SOFTWARE_SQL),
        "clusters": rows_of(run, CLUSTERS_SQL),
        "worker_ends": rows_of(run, WORKER_ENDS_SQL),
        "submissions": rows_of(run, SUBMISSIONS_SQL),
        "tasks": {
            **{name: sum(row[name] for row in prefixes) for name in _COUNTS},
            "compute_s": sum(row["compute_s"] or 0.0 for row in prefixes),
            "prefixes": prefixes,
        },
        "traffic": traffic,
        "errors": rows_of(run, ERRORS_SQL),
        "logs": rows_of(run, LOGS_SQL),
    }


def finding_rows(findings: Sequence[Any]) -> list[Document]:
    """Return findings of the completeness statement as plain rows: level, subject, statement, numbers."""
    return [{name: getattr(each, name) for name in ("level", "subject", "statement", "numbers")} for each in findings]


_COUNTS = (
    *(f"{name}_count" for name in ("task", "done", "failed", "blocked", "given_up", "without_result", "scattered")),
    *("attempt_count", "failed_attempt_count", "lost_attempt_count"),
)


def run_facts(run: Run) -> Document:
    """Return what stands of a run outside its tables: name, place, state, command, how it ended."""
    manifest = run.manifest
    servers = servers_of(run.path)
    state = run_state(manifest, servers)
    names = ("way", "command", "cwd", "started_ns", "ended_ns", "exit_code", "signal", "recup_version")
    return {
        "run_id": run.run_id,
        "path": str(run.path),
        "state": state,
        "wall_s": wall_s(manifest, servers, state),
        "is_sealed": run.is_sealed,
        **{name: manifest.get(name) for name in names},
    }
