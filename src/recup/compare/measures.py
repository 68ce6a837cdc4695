"""What is measured of each run before two are compared: rows by subject, all alike.

Covers one run: its budget, and tables of prefixes, workers, transfers, steals, I/O and
memory, each a mapping of subject to numbers, with subjects that two runs share (a prefix,
the name of a worker, never an address or a key).  It does not compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recup.analyse.budget import budget_by_prefix, budget_by_worker, budget_totals
from recup.analyse.io import io_by, io_source
from recup.analyse.rows import Document, rows_of

if TYPE_CHECKING:
    from recup.store import Run

Numbers = dict[str, float | None]
Subjects = dict[str, Numbers]

STALL_S = 0.25
"""An event loop that is later than this stood still, where a task of its process ran meanwhile: a busy machine alone
makes loops late by a tenth of a second."""
LONE_STALL_S = 1.0
"""The same where no task ran in its process: starting processes and importing make loops late by half a second."""
UNKNOWN = "(graph not recorded)"

# Time that a thread stood ready and had no CPU is the machine's, not the task's.
PREFIXES_SQL = """
with used as (
    select scheduler_id, key_id, run_id, sum(cpu_s) as cpu_s, sum(queue_wait_s) as queue_wait_s,
        sum(written_chars_bytes) as written_bytes, sum(read_chars_bytes) as read_bytes
    from task_counters
    where run_id is not null and kind = 'task'
    group by all
), told as (
    select r.scheduler_id, r.key_id, r.prefix, r.worker_id, r.outcome, r.compute_s, r.attempt_number, r.is_from_steal,
        u.cpu_s, u.written_bytes, u.read_bytes,
        -- greatest() passes over nulls: an attempt that was stolen or lost took no time that is told.
        case when r.compute_s is not null then greatest(r.compute_s - coalesce(u.queue_wait_s, 0.0), 0.0) end as own_s
    from task_runs r
    left join used u using (scheduler_id, key_id, run_id)
)
"""
BY_PREFIX_SQL = f"""
{PREFIXES_SQL}
select
    prefix,
    count(distinct (scheduler_id, key_id)) as task_count,
    count(*) as attempt_count,
    count(*) filter (outcome = 'error') as error_count,
    count(*) filter (outcome = 'lost') as lost_count,
    sum(compute_s) as compute_s,
    count(own_s) as told_count,
    median(own_s) as median_s,
    quantile_cont(own_s, 0.25) as q25_s,
    quantile_cont(own_s, 0.75) as q75_s,
    median(cpu_s) as median_cpu_s,
    median(written_bytes) as median_written_bytes,
    median(read_bytes) as median_read_bytes
from told
group by prefix
"""
CELLS_SQL = f"""
{PREFIXES_SQL}
, names as (
    select worker_id, coalesce(any_value(name), any_value(address), worker_id) as name from worker_lives group by worker_id
), worker_told as (
    select prefix, names.name as worker, own_s
    from told
    join names using (worker_id)
    where own_s is not null
)
select prefix, worker, count(*) as told_count, median(own_s) as median_s,
    quantile_cont(own_s, 0.25) as q25_s, quantile_cont(own_s, 0.75) as q75_s
from worker_told
group by all
order by prefix, worker
"""
AGAIN_SQL = """
select count(*) as attempt_count, coalesce(sum(compute_s), 0.0) as compute_s
from task_runs
where attempt_number > 1 and not is_from_steal
"""
"""Attempts of tasks that had been sent to a worker before, steals left out."""

NAMES_SQL = """
select worker_id, address, name, row_number() over (partition by scheduler_id order by came_s, address) as place
from worker_lives
"""
TRANSFERS_SQL = """
select source_worker_id, destination_worker_id, count(*) as transfer_count, sum(nbytes)::bigint as moved_bytes,
    sum(duration_s) as transfer_s
from transfers_distinct
where destination_worker_id is not null
group by all
"""
STEALS_SQL = """
with prefixes as (
    select server_id, key_id, any_value(prefix) as prefix from raw.tasks group by all
)
select p.prefix,
    count(*) filter (s.decision = 'request') as request_count,
    count(*) filter (s.decision = 'confirm') as steal_count
from raw.steals s
left join prefixes p on p.server_id = s.server_id and p.key_id = s.key_id
group by all
"""
SPILLS_SQL = """
select server_id,
    count(*) filter (direction = 'spill') as spill_count,
    coalesce(sum(memory_bytes) filter (direction = 'spill'), 0)::bigint as spilled_bytes,
    count(*) filter (direction = 'unspill') as unspill_count
from raw.spills
group by server_id
"""
MEMORY_SQL = """
select w.worker_id, w.memory_limit_bytes,
    (select max(s.value) from raw.samples s where s.server_id = w.worker_id and s.metric = 'process_memory_bytes')
        as peak_bytes
from worker_lives w
where w.worker_id is not null
"""
COUNTED_IO_SQL = """
select prefix, sum(read_chars_bytes)::bigint as read_bytes, sum(written_chars_bytes)::bigint as written_bytes,
    sum(read_call_count)::bigint as read_count, sum(write_call_count)::bigint as write_count
from task_counters
where run_id is not null
group by prefix
"""
# A machine that stands still makes every loop late at once: then the scheduler's, too.
STALLS_SQL = """
with span as (
    select first_task_s, last_task_s from run_summary
), late as (
    select m.server_id, m.role, m.time_ns / 1e9 + coalesce(c.offset_s, 0.0) as stop_s, m.value as lag_s,
        m.time_ns / 1e9 + coalesce(c.offset_s, 0.0) - m.value as start_s
    from raw.samples m
    left join clocks c on c.server_id = m.server_id
    where m.metric = 'event_loop_lag_s' and m.subject is null and m.value >= ?
), alone as (
    select l.*
    from late l, span
    where l.stop_s > first_task_s and l.start_s < last_task_s and not exists (
        select 1 from late o where o.role is distinct from l.role and o.start_s < l.stop_s and o.stop_s > l.start_s
    )
    order by l.lag_s desc
    limit 1000
), ran as (
    select a.server_id, a.stop_s, r.prefix,
        sum(least(r.stopped_s, a.stop_s) - greatest(r.started_s, a.start_s)) as overlap_s
    from alone a
    join task_runs r on r.worker_id = a.server_id and r.started_s < a.stop_s and r.stopped_s > a.start_s
    group by all
)
select a.role, a.lag_s, r.prefix
from alone a
left join (
    select server_id, stop_s, arg_max(prefix, overlap_s) as prefix, sum(overlap_s) as overlap_s
    from ran
    group by all
) r on r.server_id = a.server_id and r.stop_s = a.stop_s
where a.lag_s >= ? or r.overlap_s >= a.lag_s / 2
order by a.lag_s desc
"""
"""One row per stall of a loop, with the prefix that ran longest in its process meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measures:
    """What is measured of one run.

    Attributes
    ----------
    run_id : str
        The run.
    wall_s : float
        Wall time of the budget; its categories sum to it.
    thread_count : float
        Threads that the budget divides by.
    categories : dict
        Wall seconds by category.
    prefixes, workers, transfers, steals, io, memory : dict of dict
        Numbers by subject.
    cells : list of dict
        Durations by prefix and worker.
    deaths : list of dict
        Workers that went before their time, as `recup.analyse.deaths` tells.
    again : dict
        Attempts of tasks that had been sent to a worker before, and their seconds.
    stalls : dict
        ``stall_s`` seconds in which loops of workers or of the scheduler stood still; ``longest_s``; ``prefix``
        that ran most meanwhile; ``role`` of most of it.
    facts : dict
        What of it was recorded.
    """

    run_id: str
    wall_s: float
    thread_count: float
    categories: dict[str, float]
    prefixes: Subjects
    workers: Subjects
    transfers: Subjects
    steals: Subjects
    io: Subjects
    memory: Subjects
    cells: list[Document]
    deaths: list[Document]
    again: Document
    stalls: Document
    facts: Document

    def total(self, table: str, column: str) -> float:
        """Return the sum of a column of one of the tables by subject."""
        subjects: Subjects = getattr(self, table)
        return sum(row.get(column) or 0.0 for row in subjects.values())


FACTS_SQL = """
select
    (select count(*) from spools) as server_count,
    (select count(*) from worker_lives) as worker_count,
    (select count(*) from worker_lives where is_captured) as captured_count,
    (select count(*) from raw.thread_counters) as counted_count,
    (select count(*) from raw.io_logs) as log_count,
    (select count(*) from raw.scheduler_transitions) as transition_count,
    (select count(*) from raw.tasks) as task_count
"""


def measure(run: Run) -> Measures:
    """Return what is measured of a run.

    From: `recup.analyse.budget`, task_runs, task_counters, worker_lives, transfers_distinct, steals, spills, samples
    """
    totals = budget_totals(run).to_pylist()
    thread_s = sum(row["thread_s"] for row in totals)
    wall_s = sum(row["wall_s"] for row in totals)
    names = worker_names(rows_of(run, NAMES_SQL))
    (facts,) = rows_of(run, FACTS_SQL)
    facts["io_source"] = io_source(run)
    return Measures(
        run_id=run.run_id,
        wall_s=wall_s,
        thread_count=thread_s / wall_s if wall_s > 0 else 0.0,
        categories={row["category"]: row["wall_s"] for row in totals},
        prefixes=_prefixes(run),
        workers=_workers(run, names),
        transfers=_transfers(run, names),
        steals=by_subject(rows_of(run, STEALS_SQL), "prefix"),
        io=_io(run, facts["io_source"]),
        memory=_memory(run, names),
        cells=rows_of(run, CELLS_SQL),
        deaths=_deaths(run),
        again=rows_of(run, AGAIN_SQL)[0],
        stalls=_stalls(run),
        facts=facts,
    )


def worker_names(lives: Sequence[Document]) -> dict[str, str]:
    """Return what each worker is called in both runs: its name; its place by arrival where its name is its address."""
    found = {}
    for row in lives:
        name, address = row["name"], row["address"]
        is_own = bool(name) and name != address and "://" not in name
        found[row["worker_id"] or address or ""] = name if is_own else f"worker {row['place']} to come"
    return found


def by_subject(rows: Sequence[Document], column: str) -> Subjects:
    """Return rows as numbers by subject; subjects that are null become `UNKNOWN`."""
    return {
        row[column] or UNKNOWN: {
            name: value for name, value in row.items() if name != column and not isinstance(value, str)
        }
        for row in rows
    }


def summed(rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> Subjects:
    """Return numbers added up by subject."""
    found: Subjects = {}
    for subject, numbers in rows:
        into = found.setdefault(subject, {})
        for name, value in numbers.items():
            into[name] = value if into.get(name) is None else (into[name] or 0.0) + (value or 0.0)
    return found


def _prefixes(run: Run) -> Subjects:
    found = by_subject(rows_of(run, BY_PREFIX_SQL), "prefix")
    for row in budget_by_prefix(run).to_pylist():
        into = found.setdefault(row["prefix"] or UNKNOWN, {})
        into["thread_s"] = row["total_s"]
        for name in ("cpu", "blocked", "io", "transfer_wait", "scheduler_latency", "spill"):
            into[f"{name}_s"] = row[f"{name}_s"]
    return found


_BUSY = ("cpu_s", "cpu_wait_s", "blocked_s", "io_s", "not_split_s", "unfinished_s")


def _workers(run: Run, names: Mapping[str, str]) -> Subjects:
    rows = []
    for row in budget_by_worker(run).to_pylist():
        busy_s = sum(row[name] for name in _BUSY)
        told = {
            "start_count": 1.0,
            "thread_s": row["total_s"],
            "busy_s": busy_s,
            "transfer_wait_s": row["transfer_wait_s"],
            "spill_s": row["spill_s"] + row["worker_paused_s"],
            "idle_s": row["imbalance_s"] + row["no_task_ready_s"] + row["nothing_submitted_s"],
        }
        rows.append((names.get(row["worker_id"] or row["worker"] or "", UNKNOWN), told))
    return summed(rows)


def _transfers(run: Run, names: Mapping[str, str]) -> Subjects:
    rows = []
    for row in rows_of(run, TRANSFERS_SQL):
        ends = [
            names.get(row[side] or "", "a worker not known") for side in ("source_worker_id", "destination_worker_id")
        ]
        rows.append((" to ".join(ends), {name: row[name] for name in ("transfer_count", "moved_bytes", "transfer_s")}))
    return summed(rows)


def _io(run: Run, source: str) -> Subjects:
    """Return reads and writes by prefix: bytes and calls by the counters of threads, files and seconds by Darshan."""
    found = by_subject(rows_of(run, COUNTED_IO_SQL), "prefix")
    if source == "darshan":
        for row in io_by(run, "prefix").to_pylist():
            if row["owner"] == "task":
                found.setdefault(row["prefix"] or UNKNOWN, {}).update(
                    file_read_bytes=row["read_bytes"], file_written_bytes=row["written_bytes"], io_s=row["io_s"]
                )
    return found


def _memory(run: Run, names: Mapping[str, str]) -> Subjects:
    spills = {row["server_id"]: row for row in rows_of(run, SPILLS_SQL)}
    rows = []
    for row in rows_of(run, MEMORY_SQL):
        spilled = spills.get(row["worker_id"], {})
        numbers = {name: float(spilled.get(name, 0)) for name in ("spill_count", "spilled_bytes", "unspill_count")}
        rows.append((names.get(row["worker_id"], UNKNOWN), numbers))
    found = summed(rows)
    for row in rows_of(run, MEMORY_SQL):
        into = found[names.get(row["worker_id"], UNKNOWN)]
        into["limit_bytes"] = row["memory_limit_bytes"]
        into["peak_bytes"] = max(into.get("peak_bytes") or 0.0, row["peak_bytes"] or 0.0) or None
    return found


def _deaths(run: Run) -> list[Document]:
    from recup.analyse.deaths import worker_deaths

    return [dict(row) for row in worker_deaths(run).to_pylist()]


def _stalls(run: Run) -> Document:
    late = rows_of(run, STALLS_SQL, [STALL_S, LONE_STALL_S])
    by_role: dict[str, float] = {}
    by_prefix: dict[str, float] = {}
    for row in late:
        by_role[row["role"]] = by_role.get(row["role"], 0.0) + row["lag_s"]
        if row["prefix"]:
            by_prefix[row["prefix"]] = by_prefix.get(row["prefix"], 0.0) + row["lag_s"]
    return {
        "stall_s": sum(by_role.values()),
        "count": len(late),
        "longest_s": max((row["lag_s"] for row in late), default=0.0),
        "role": max(by_role, key=lambda role: by_role[role]) if by_role else None,
        "prefix": max(by_prefix, key=lambda prefix: by_prefix[prefix]) if by_prefix else None,
    }
