"""Whether tasks are too small and the scheduler saturated: Dask's own work against that of the tasks.

Covers how long tasks of each prefix compute against what stands between two of them in a
thread, and the scheduler's CPU time, transitions and event loop over time.  It does not
cover time that goes into moving results (`transfers`) or into waiting for tasks (`budget`).

The gap is what a task costs its thread beyond its own time, observed without estimate: from
the stop of one task in a thread to the start of the next, where the next one was ready
before that stop, had all inputs on its worker, and wanted no resource.  Gaps of a second
and more have other causes (a paused worker, a stalled event loop) and are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.rows import Document, rows_of
from recup.terminal import count_text, seconds_text

if TYPE_CHECKING:
    from recup.store import Run

BIN_COUNT = 60
BIN_LEAST_S = 1.0
"""Samples of the scheduler come once a second: shorter bins hold none."""
SMALL_FACTOR = 10.0
"""Tasks are small when they compute less than this many times what Dask spends on each ..."""
SMALL_SHARE = 0.1
"""... and when this share of the time of their threads goes by between them."""
SMALL_ATTEMPTS = 500
"""A prefix with fewer attempts costs too little to speak of."""
SMALL_SAID_S = 1.0
SMALL_SAID_SHARE = 0.01
"""Thread-seconds between small tasks, and their share of all computing, below which nothing is said."""
SATURATED_SHARE = 0.9
"""The scheduler is one thread: at this share of a core it has no time left."""
SATURATED_S = 2.0
GAP_LONGEST_S = 1.0
IDLE_SHARE = 0.1
"""Saturation harms when at least this share of the threads is idle meanwhile."""

Floats = npt.NDArray[np.float64]

GAPS_SQL = """
with wanting as (
    select distinct server_id as scheduler_id, key_id
    from raw.tasks
    where restrictions is not null and try(json_extract_string(restrictions, '$.resources')) not in ('{}', 'null')
), threads as (
    -- To part so many rows by a number costs less than by a text.
    select worker_id, thread, row_number() over () as number from (select distinct worker_id, thread from attempt_facts)
), ran as (
    select
        scheduler_id, key_id, prefix, started_s, stopped_s, compute_s,
        started_s - executing_s as handing_over_s, stored_s - stopped_s as storing_s,
        attempt_facts.thread is not null and remote_count = 0 and coalesce(disk_read_s, 0.0) = 0.0 as is_plain,
        least(ready_s, received_s) as there_s,
        lag(stopped_s) over in_thread as before_s,
        coalesce(lag(disk_write_s) over in_thread, 0.0) as before_write_s
    from attempt_facts
    join threads on threads.worker_id is not distinct from attempt_facts.worker_id
        and threads.thread is not distinct from attempt_facts.thread
    where started_s is not null and stopped_s is not null
    window in_thread as (partition by number order by started_s)
), gaps as (
    select ran.*,
        case
            when is_plain and there_s <= before_s and started_s between before_s and before_s + ?
                and wanting.key_id is null and before_write_s = 0.0
            then started_s - before_s
        end as gap_s
    from ran
    left join wanting using (scheduler_id, key_id)
)
select
    prefix,
    count(*) as attempt_count,
    sum(compute_s) as compute_s,
    median(compute_s) as median_s,
    quantile_cont(compute_s, 0.95) as q95_s,
    count(gap_s) as seen_gap_count,
    median(gap_s) as gap_median_s,
    sum(gap_s) as gaps_s,
    median(handing_over_s) as handing_over_s,
    median(storing_s) as storing_s
from gaps
group by prefix
order by attempt_count desc, prefix
"""

SCHEDULERS_SQL = """
with done as (
    select scheduler_id, count(*) as attempt_count, min(assigned_s) as from_s, max(coalesce(ended_s, stopped_s)) as to_s
    from task_runs
    group by scheduler_id
)
select
    s.server_id as scheduler_id,
    coalesce(done.attempt_count, 0) as attempt_count,
    done.from_s,
    done.to_s,
    (
        select string_agg(distinct o.role, ', ' order by o.role)
        from servers o
        where o.host_id = s.host_id and o.pid = s.pid and o.server_id <> s.server_id and o.role <> 'nanny'
    ) as shares_process_with
from servers s
left join done on done.scheduler_id = s.server_id
where s.role = 'scheduler'
order by s.server_id
"""

SAMPLES_SQL = """
select
    time_ns / 1e9 as at_s,
    max(value) filter (metric = 'process_user_cpu_s') + max(value) filter (metric = 'process_system_cpu_s') as cpu_s,
    max(value) filter (metric = 'event_loop_lag_s') as lag_s,
    max(value) filter (metric = 'queued_tasks_count') as queued_count,
    sum(value) filter (metric = 'processing_count') as processing_count
from raw.samples
where server_id = ? and role = 'scheduler'
    and metric in (
        'process_user_cpu_s', 'process_system_cpu_s', 'event_loop_lag_s', 'queued_tasks_count', 'processing_count'
    )
group by time_ns
having cpu_s is not null
order by at_s
"""

TRANSITIONS_SQL = """
select floor((time_ns / 1e9 - ?) / ?)::bigint as bin, count(*) as transition_count
from raw.scheduler_transitions
where server_id = ? and time_ns / 1e9 between ? and ?
group by bin
"""

RUNS_SQL = "select started_s, stopped_s from task_runs where scheduler_id = ? and stopped_s >= started_s"

THREADS_SQL = """
select came_s, left_s, thread_count
from worker_lives
where scheduler_id = ? and came_s is not null and thread_count is not null
"""


# ---------------------------------------------------------------- tables


def overhead_by_prefix(run: Run) -> pa.Table:
    """What tasks compute against what stands between them in their threads: one row per prefix, most attempts first.

    `gaps_s` sums the gaps (see the module); `seen_gap_count` says in how many places one could be
    told.  `gap_share` is gaps by gaps and computing, of all attempts where a gap follows.
    `handing_over_s` is the median from when the worker gave a task to a thread to when its
    code began; `storing_s` from its stop to when the scheduler took the result.

    From: task_runs
    Columns: prefix, attempt_count, compute_s, median_s, q95_s, gap_median_s, gaps_s, gap_share, seen_gap_count,
    handing_over_s, storing_s
    """
    rows = rows_of(run, GAPS_SQL, [GAP_LONGEST_S])
    for each in rows:
        mean_s = (each["compute_s"] or 0.0) / each["attempt_count"]
        around_s = (each["gaps_s"] or 0.0) + mean_s * each["seen_gap_count"]
        each["gap_share"] = each["gaps_s"] / around_s if each["gaps_s"] is not None and around_s else None
    return pa.Table.from_pylist(rows, schema=_PREFIX_SCHEMA)


_PREFIX_SCHEMA = pa.schema(
    [
        ("prefix", pa.string()),
        ("attempt_count", pa.int64()),
        ("compute_s", pa.float64()),
        ("median_s", pa.float64()),
        ("q95_s", pa.float64()),
        ("gap_median_s", pa.float64()),
        ("gaps_s", pa.float64()),
        ("gap_share", pa.float64()),
        ("seen_gap_count", pa.int64()),
        ("handing_over_s", pa.float64()),
        ("storing_s", pa.float64()),
    ]
)


def scheduler_load(run: Run) -> pa.Table:
    """What each scheduler did from the first task it sent to the last that ended: one row per scheduler.

    CPU time is that of its process, which may hold other servers: `shares_process_with`.

    From: samples, scheduler_transitions, task_runs
    Columns: scheduler_id, window_s, attempt_count, transition_count, transitions_per_second, cpu_s, cpu_share (of one core),
    cpu_per_attempt_s, lag_median_s, lag_q95_s, lag_max_s, shares_process_with
    """
    return pa.Table.from_pylist([load for load, _ in _loads(run)], schema=_LOAD_SCHEMA)


_LOAD_SCHEMA = pa.schema(
    [
        ("scheduler_id", pa.string()),
        ("window_s", pa.float64()),
        ("attempt_count", pa.int64()),
        ("transition_count", pa.int64()),
        ("transitions_per_second", pa.float64()),
        ("cpu_s", pa.float64()),
        ("cpu_share", pa.float64()),
        ("cpu_per_attempt_s", pa.float64()),
        ("lag_median_s", pa.float64()),
        ("lag_q95_s", pa.float64()),
        ("lag_max_s", pa.float64()),
        ("shares_process_with", pa.string()),
    ]
)


def scheduler_over_time(run: Run) -> pa.Table:
    """The same over time: one row per scheduler and bin of at least a second, in order of time.

    `ready_task_count` is the tasks queued or on workers less those that computed; inputs of
    some may have been on their way.

    From: samples, scheduler_transitions, task_runs, worker_lives
    Columns: at_s, bin_s, cpu_share, transitions_per_second, lag_max_s, thread_count, busy_share, ready_task_count,
    scheduler_id
    """
    return pa.Table.from_pylist([each for _, bins in _loads(run) for each in bins], schema=_TIME_SCHEMA)


_TIME_SCHEMA = pa.schema(
    [
        ("at_s", pa.float64()),
        ("bin_s", pa.float64()),
        ("cpu_share", pa.float64()),
        ("transitions_per_second", pa.float64()),
        ("lag_max_s", pa.float64()),
        ("thread_count", pa.float64()),
        ("busy_share", pa.float64()),
        ("ready_task_count", pa.float64()),
        ("scheduler_id", pa.string()),
    ]
)


def _loads(run: Run) -> list[tuple[Document, list[Document]]]:
    origin_s = run.sql("select started_s from run_times").fetchall()[0][0] or 0.0
    return [_load(run, each, origin_s) for each in rows_of(run, SCHEDULERS_SQL)]


def _load(run: Run, scheduler: Document, origin_s: float) -> tuple[Document, list[Document]]:
    """Return the row of `scheduler_load` and the rows of `scheduler_over_time` of one scheduler."""
    name, from_s, to_s = scheduler["scheduler_id"], scheduler["from_s"], scheduler["to_s"]
    load = dict.fromkeys(_LOAD_SCHEMA.names) | {
        name: scheduler[name] for name in ("scheduler_id", "attempt_count", "shares_process_with")
    }
    if from_s is None or to_s is None or to_s <= from_s:
        return load, []
    window_s = to_s - from_s
    bin_s = max(window_s / BIN_COUNT, BIN_LEAST_S)
    edges = from_s + bin_s * np.arange(int(np.ceil(window_s / bin_s)) + 1)
    edges[-1] = to_s
    widths = np.diff(edges)
    edges, widths = (edges, widths) if widths[-1] > 0 else (edges[:-1], widths[:-1])
    counts = np.zeros(len(widths))
    for bin_number, count in run.sql(TRANSITIONS_SQL, [from_s, bin_s, name, from_s, to_s]).fetchall():
        counts[min(bin_number, len(counts) - 1)] += count
    load |= {
        "window_s": window_s,
        "transition_count": int(counts.sum()),
        "transitions_per_second": float(counts.sum() / window_s),
    }
    samples = run.sql(SAMPLES_SQL, [name]).to_arrow_table()
    at_s, cpu_s, lag_s, queued, processing = (
        samples[column].to_numpy().astype(float)
        for column in ("at_s", "cpu_s", "lag_s", "queued_count", "processing_count")
    )
    cpu_share = _cpu_share(at_s, cpu_s, edges)
    within = (at_s >= from_s) & (at_s <= to_s)
    lags = lag_s[within & ~np.isnan(lag_s)]
    if len(at_s) > 1 and at_s[0] <= from_s + BIN_LEAST_S and at_s[-1] >= to_s - BIN_LEAST_S:
        used_s = float(np.interp(to_s, at_s, cpu_s) - np.interp(from_s, at_s, cpu_s))
        load |= {
            "cpu_s": used_s,
            "cpu_share": used_s / window_s,
            "cpu_per_attempt_s": used_s / scheduler["attempt_count"],
        }
    if len(lags):
        load |= {
            "lag_median_s": float(np.median(lags)),
            "lag_q95_s": float(np.quantile(lags, 0.95)),
            "lag_max_s": float(lags.max()),
        }
    times = run.sql(RUNS_SQL, [name]).to_arrow_table()
    busy_s = _busy(times["started_s"].to_numpy(), times["stopped_s"].to_numpy(), edges)
    threads = _threads(rows_of(run, THREADS_SQL, [name]), edges)
    waiting = np.nan_to_num(queued) + np.nan_to_num(processing)
    bins = []
    for i, width in enumerate(widths):
        inside = (at_s >= edges[i]) & (at_s < edges[i + 1])
        lag = lag_s[inside & ~np.isnan(lag_s)]
        bins.append(
            {
                "at_s": edges[i] - origin_s,
                "bin_s": width,
                "cpu_share": None if np.isnan(cpu_share[i]) else cpu_share[i],
                "transitions_per_second": counts[i] / width,
                "lag_max_s": float(lag.max()) if len(lag) else None,
                "thread_count": threads[i],
                "busy_share": min(busy_s[i] / width / threads[i], 1.0) if threads[i] else None,
                "ready_task_count": max(float(waiting[inside].mean()) - busy_s[i] / width, 0.0)
                if inside.any()
                else None,
                "scheduler_id": name,
            }
        )
    return load, bins


def _cpu_share(at_s: Floats, cpu_s: Floats, edges: Floats) -> Floats:
    """Return the share of a core used in each bin; NaN where samples do not reach across it."""
    if len(at_s) < 2:
        return np.full(len(edges) - 1, np.nan)
    used = np.diff(np.interp(edges, at_s, cpu_s)) / np.diff(edges)
    # Samples a little inside the bin will do, as they come once a second.
    is_known = (edges[:-1] >= at_s[0] - BIN_LEAST_S) & (edges[1:] <= at_s[-1] + BIN_LEAST_S)
    return np.where(is_known, used, np.nan)


def _busy(started: Floats, stopped: Floats, edges: Floats) -> Floats:
    """Return the seconds that attempts computed in each bin."""
    if not len(started):
        return np.zeros(len(edges) - 1)
    # Time computed until a moment: that of all stopped before, and of those running since their starts.
    totals = []
    for times in (np.sort(started), np.sort(stopped)):
        before = np.searchsorted(times, edges)
        sums = np.concatenate(([0.0], np.cumsum(times - edges[0])))
        totals.append(before * (edges - edges[0]) - sums[before])
    busy: Floats = np.diff(totals[0] - totals[1])
    return busy


def _threads(lives: list[Document], edges: Floats) -> Floats:
    """Return the mean number of threads there in each bin."""
    widths, threads = np.diff(edges), np.zeros(len(edges) - 1)
    for each in lives:
        left_s = edges[-1] if each["left_s"] is None else each["left_s"]
        there = np.minimum(edges[1:], left_s) - np.maximum(edges[:-1], each["came_s"])
        threads += each["thread_count"] * np.clip(there, 0.0, None) / widths
    return threads


# ---------------------------------------------------------------- the answer

_LARGER = "Put more work into a task: larger chunks or partitions, batches of items, fused functions."


def overhead(run: Run) -> Answer:
    """Are tasks too small, is the scheduler saturated?"""
    prefixes = overhead_by_prefix(run)
    loads = _loads(run)
    small = _small_conclusions(prefixes, [load for load, _ in loads])
    saturated = [each for load, bins in loads if (each := _saturated(load, bins)) is not None]
    return Answer(
        _headline(prefixes, loads, small, saturated),
        ranked([*small, *saturated]),
        (
            AnswerTable("prefixes", "What tasks compute and what stands between them, most attempts first", prefixes),
            AnswerTable(
                "schedulers",
                "Schedulers, from their first task to their last",
                pa.Table.from_pylist([load for load, _ in loads], schema=_LOAD_SCHEMA),
            ),
            AnswerTable(
                "over-time",
                "Schedulers over time",
                pa.Table.from_pylist([each for _, bins in loads for each in bins], schema=_TIME_SCHEMA),
            ),
        ),
        _basis(prefixes, loads),
    )


def _headline(
    prefixes: pa.Table,
    loads: list[tuple[Document, list[Document]]],
    small: list[Conclusion],
    saturated: list[Conclusion],
) -> str:
    rows = prefixes.to_pylist()
    if not rows:
        return "No task is known to have computed."
    compute_s, gaps_s = sum(each["compute_s"] or 0.0 for each in rows), sum(each["gaps_s"] or 0.0 for each in rows)
    count = sum(each["attempt_count"] for each in rows)
    said = [
        f"Tasks of {_named([each.subject for each in small])} are too small"
        if small
        else "Tasks are not too small as far as recorded",
        "the scheduler was saturated" if saturated else None,
    ]
    mean = f"{count_text(count)} attempts computed {seconds_text(compute_s / count)} each on average"
    gap = f", and {seconds_text(gaps_s)} of threads went by between them" if gaps_s else ""
    busy = [load["cpu_share"] for load, _ in loads if load["cpu_share"] is not None]
    cpu = f"; the scheduler's process used {max(busy):.0%} of a core" if busy else ""
    return f"{' and '.join(each for each in said if each)}: {mean}{gap}{cpu}."


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more prefixes" if len(names) > 3 else "")


def _small_conclusions(prefixes: pa.Table, loads: list[Document]) -> list[Conclusion]:
    # The CPU of a scheduler alone in its process is the least that Dask spends on a task.
    alone = [load["cpu_per_attempt_s"] for load in loads if not load["shares_process_with"]]
    least_s = min((each for each in alone if each is not None), default=None) if len(alone) == len(loads) else None
    all_s = sum(each["compute_s"] or 0.0 for each in prefixes.to_pylist())
    said = []
    for each in prefixes.to_pylist():
        if each["attempt_count"] < SMALL_ATTEMPTS or each["median_s"] is None:
            continue
        subject = each["prefix"] or "tasks without a recorded graph"
        they = (
            f"{count_text(each['attempt_count'])} attempts of {subject} compute {seconds_text(each['median_s'])} each"
        )
        evidence = {name: each[name] for name in ("attempt_count", "median_s", "gap_median_s", "gaps_s", "gap_share")}
        if each["gap_median_s"] is not None:
            if each["median_s"] >= SMALL_FACTOR * each["gap_median_s"] or (each["gap_share"] or 0.0) < SMALL_SHARE:
                continue
            if each["gaps_s"] < max(SMALL_SAID_S, SMALL_SAID_SHARE * all_s):
                continue
            statement = (
                f"{they} (median), and {seconds_text(each['gap_median_s'])} goes by in a thread before the next starts: "
                f"{seconds_text(each['gaps_s'])} of threads in all."
            )
            said.append(Conclusion("overhead", subject, statement, "certain", each["gaps_s"], _LARGER, evidence))
        elif least_s is not None and each["median_s"] < SMALL_FACTOR * least_s:
            statement = f"{they} (median), and the scheduler's CPU spends {seconds_text(least_s)} on each."
            evidence["cpu_per_attempt_s"] = least_s
            said.append(Conclusion("overhead", subject, statement, "likely", None, _LARGER, evidence))
    return said


def _saturated(load: Document, bins: list[Document]) -> Conclusion | None:
    """Return what to say of a scheduler whose core was full while threads idled and tasks were there."""
    full = [
        each
        for each in bins
        if (each["cpu_share"] or 0.0) >= SATURATED_SHARE
        and each["busy_share"] is not None
        and each["busy_share"] <= 1.0 - IDLE_SHARE
        and (each["ready_task_count"] or 0.0) >= 1.0
    ]
    full_s = sum(each["bin_s"] for each in full)
    if full_s < SATURATED_S:
        return None
    idle_s = sum((1.0 - each["busy_share"]) * each["thread_count"] * each["bin_s"] for each in full)
    rate = sum(each["transitions_per_second"] * each["bin_s"] for each in full) / full_s
    shared = load["shares_process_with"]
    alone = f", in a process with {shared}, whose work is in it" if shared else ""
    evidence: dict[str, Any] = {"full_s": full_s, "idle_s": idle_s, "transitions_per_second": rate}
    return Conclusion(
        "overhead",
        "scheduler",
        f"For {seconds_text(full_s)} the scheduler used {SATURATED_SHARE:.0%} of a core or more{alone}, at "
        f"{count_text(round(rate))} transitions per second, while threads idled though tasks were queued or on workers.",
        "possible" if shared else "likely",
        idle_s,
        "Fewer and larger tasks; fewer workers with more threads; a scheduler in a process of its own."
        if shared
        else "Fewer and larger tasks; fewer workers with more threads.",
        evidence,
    )


def _basis(prefixes: pa.Table, loads: list[tuple[Document, list[Document]]]) -> str:
    parts = ["It stands on times of attempts and on samples of the scheduler, one a second."]
    rows = prefixes.to_pylist()
    if rows and not any(each["seen_gap_count"] for each in rows):
        parts.append(
            "No gap between tasks of a thread could be told: workers did not record, or tasks never waited at them."
        )
    if any(load["shares_process_with"] for load, _ in loads):
        parts.append("The scheduler shares its process: its CPU time is an upper bound.")
    if any(load["window_s"] is not None and load["cpu_s"] is None for load, _ in loads):
        parts.append("Its CPU time is not known for the whole time.")
    return " ".join(parts)
