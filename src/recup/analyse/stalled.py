"""Stretches in which event loops stalled, what ran in their processes then, and the same by prefix.

Part of the answer of `recup.analyse.stalls`, which says how stalls are seen and what that
means.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.analyse.budget_sweep import united
from recup.analyse.rows import Document, rows_of

if TYPE_CHECKING:
    from recup.store import Run

LAG_S = 0.25
"""A loop is called stalled from this lag on: below it, a busy machine does that by itself."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ISLANDS_SQL = r"""
with processes as (
    select server_id, role, address, coalesce(host_id || ':' || pid, server_id) as process from servers
), lags as (
    select s.server_id, s.time_ns / 1e9 + coalesce(c.offset_s, 0.0) as to_s, s.value as lag_s, 'timer' as seen_by
    from raw.samples s
    left join clocks c on c.server_id = s.server_id
    where s.metric = 'event_loop_lag_s' and s.value >= $lag
    union all
    select l.server_id, l.time_ns / 1e9 + coalesce(c.offset_s, 0.0),
        try_cast(regexp_extract(l.message, 'unresponsive in \w+ for ([0-9.]+)s', 1) as double), 'log'
    from raw.logs l
    left join clocks c on c.server_id = l.server_id
    where l.message like 'Event loop was unresponsive in %'
), last_samples as (
    select server_id, max(time_ns) as last_ns, (max(time_ns) - min(time_ns)) / (count(*) - 1) as interval_ns
    from raw.clock_samples
    group by server_id
    having count(*) >= 3
), silent as (
    -- The writer of a process goes on when its loop does not: signs of life after the last sample.
    select server_id, last_ns, interval_ns, max(spools.last_sign_ns) as sign_ns
    from last_samples
    join spools using (server_id)
    where not is_closed and not exists (
        select 1 from raw.losses l where l.server_id = spools.server_id and l.kind in ('hook_failed', 'hook_disabled')
    )
    group by all
    having sign_ns - last_ns > 2 * interval_ns + 1e9 + $lag * 1e9
), seen as (
    select server_id, to_s - lag_s as from_s, to_s, seen_by from lags where lag_s >= $lag
    union all
    select server_id, (last_ns + interval_ns) / 1e9 + coalesce(c.offset_s, 0.0),
        sign_ns / 1e9 + coalesce(c.offset_s, 0.0), 'silence at the end'
    from silent
    left join clocks c using (server_id)
), placed as (
    select p.process, seen.from_s, seen.to_s, seen.seen_by
    from seen
    join processes p using (server_id)
), marked as (
    select *,
        from_s > coalesce(max(to_s) over (
            partition by process order by from_s, to_s rows between unbounded preceding and 1 preceding
        ), -1e308) as is_new
    from placed
), numbered as (
    select *, sum(is_new::integer) over (partition by process order by from_s, to_s rows unbounded preceding) as number
    from marked
), islands as (
    select process, min(from_s) as from_s, max(to_s) as to_s, string_agg(distinct seen_by, ', ' order by seen_by) as seen_by
    from numbered
    group by process, number
), named as (
    select
        process,
        string_agg(distinct role, ', ' order by role) filter (role <> 'nanny') as roles,
        string_agg(distinct address, ', ' order by address) filter (role in ('scheduler', 'worker')) as servers
    from processes
    group by process
)
select islands.process, named.roles, named.servers, from_s, to_s, islands.seen_by
from islands
join named using (process)
order by islands.process, from_s
"""

PROCESSES_SQL = """
select server_id, role, coalesce(host_id || ':' || pid, server_id) as process from servers
"""

ATTEMPTS_SQL = """
with stalled as (
    select unnest(?::varchar[]) as worker_id, unnest(?::bigint[]) as process_number
), counted as (
    select server_id as worker_id, key_id, run_id, any_value(kind) = 'coroutine' as is_coroutine,
        sum(cpu_ns) / nullif(sum(wall_ns), 0) as cpu_share, sum(queue_wait_ns) / nullif(sum(wall_ns), 0) as queue_share
    from raw.thread_counters
    where run_id is not null
    group by all
)
select
    stalled.process_number,
    coalesce(r.prefix, '') as prefix,
    r.key_id,
    coalesce(r.started_s, r.executing_s) as started_s,
    coalesce(r.stopped_s, r.ended_s, case when r.outcome = 'running_at_end' then 1e308 end) as stopped_s,
    coalesce(counted.is_coroutine, false) as is_coroutine,
    counted.cpu_share,
    counted.queue_share
from task_runs r
join stalled using (worker_id)
left join counted using (worker_id, key_id, run_id)
where coalesce(r.started_s, r.executing_s) is not null
    and coalesce(r.stopped_s, r.ended_s, case when r.outcome = 'running_at_end' then 1e308 end) is not null
"""

ON_TIME_SQL = """
with stalled as (
    select unnest(?::varchar[]) as server_id, unnest(?::bigint[]) as process_number
)
select stalled.process_number, s.time_ns / 1e9 + coalesce(c.offset_s, 0.0) as at_s
from raw.samples s
join stalled using (server_id)
left join clocks c using (server_id)
where s.metric = 'event_loop_lag_s' and s.value < ?
"""

FACTS_SQL = """
with stalls as (
    select unnest(?::bigint[]) as number, unnest(?::varchar[]) as process, unnest(?::double[]) as from_s,
        unnest(?::double[]) as to_s
), members as (
    select s.server_id, coalesce(s.host_id || ':' || s.pid, s.server_id) as process, coalesce(c.offset_s, 0.0) as offset_s
    from servers s
    left join clocks c using (server_id)
), windows as (
    select stalls.*, members.server_id, members.offset_s from stalls join members using (process)
), spilled as (
    select number, count(*) as spill_count, sum(memory_bytes) as spilled_bytes
    from windows w
    join raw.spills s on s.server_id = w.server_id and s.time_ns / 1e9 + w.offset_s between w.from_s and w.to_s + 0.01
    group by number
), disk as (
    select number, sum(least(a.stop_s, w.to_s) - greatest(a.start_s, w.from_s)) as disk_s
    from windows w
    join activities a
        on a.worker_id = w.server_id and a.action in ('disk-read', 'disk-write')
        and a.start_s < w.to_s and a.stop_s > w.from_s
    where w.server_id in (select worker_id from spilled_workers)
    group by number
), taken as (
    -- The graph is read on the loop, in the middle of the work on it.
    select number, sum(s.task_count) as graph_task_count
    from windows w
    join raw.submissions s on s.server_id = w.server_id and s.time_ns / 1e9 between w.from_s and w.to_s + 0.01
    group by number
), moved as (
    select server_id, time_ns from raw.scheduler_transitions
    union all
    select server_id, time_ns from raw.worker_transitions
), worked as (
    select number, count(*) as transition_count
    from windows w
    join moved m on m.server_id = w.server_id
        and m.time_ns between ((w.from_s - w.offset_s) * 1e9)::bigint and ((w.to_s - w.offset_s) * 1e9)::bigint
    group by number
), collections as (
    select server_id, time_ns / 1e9 as at_s, value - lag(value) over (partition by server_id order by time_ns) as growth
    from raw.samples
    where metric = 'gc_oldest_generation_count'
), collected as (
    select number, max(growth) as full_gc_count
    from windows w
    join collections g on g.server_id = w.server_id and abs(g.at_s + w.offset_s - w.to_s) < 0.05
    group by number
), contended as (
    select number, max(value) as gil_contention_ratio
    from windows w
    join raw.samples s on s.server_id = w.server_id and s.metric = 'gil_contention_ratio'
        and s.time_ns / 1e9 + w.offset_s between w.from_s and w.to_s + 1.5
    group by number
)
select number, spill_count, spilled_bytes, disk_s, graph_task_count, coalesce(transition_count, 0) as transition_count,
    full_gc_count, gil_contention_ratio
from stalls
left join spilled using (number)
left join disk using (number)
left join taken using (number)
left join worked using (number)
left join collected using (number)
left join contended using (number)
order by number
"""

KEYS_SQL = "select key_id, key from keys where key_id in (select unnest(?::bigint[]))"


# ---------------------------------------------------------------- what is known of the stalls


@dataclasses.dataclass(frozen=True, slots=True)
class Stalls:
    """Stalls of all processes as columns, and the attempts of tasks in those processes."""

    origin_s: float
    rows: list[Document]
    from_s: Floats
    to_s: Floats
    process: Ints
    """Number of the process of each stall."""
    attempts: dict[str, npt.NDArray[Any]]
    on_time: tuple[Ints, Floats]
    """Process and moment of each time a timer of these processes came in time."""


def gathered(run: Run) -> Stalls:
    """Return the stalls of a run and the attempts in their processes, read once for all tables."""
    origin_s = run.sql("select started_s from run_times").fetchall()[0][0] or 0.0
    rows = rows_of(run, ISLANDS_SQL.replace("$lag", repr(LAG_S)))
    numbers: dict[str, int] = {}
    for each in rows:
        numbers.setdefault(each["process"], len(numbers))
    workers = [
        (each["server_id"], numbers[each["process"]])
        for each in (rows_of(run, PROCESSES_SQL) if rows else ())
        if each["process"] in numbers and each["role"] == "worker"
    ]
    lists = [[each[0] for each in workers], [each[1] for each in workers]]
    found = run.sql(ATTEMPTS_SQL, lists).to_arrow_table()
    on_time = run.sql(ON_TIME_SQL, [*lists, LAG_S]).to_arrow_table()
    prefix = found["prefix"].combine_chunks().dictionary_encode()
    attempts: dict[str, npt.NDArray[Any]] = {
        name: found[name].to_numpy() for name in ("process_number", "key_id", "started_s", "stopped_s", "is_coroutine")
    }
    attempts |= {name: found[name].to_numpy().astype(float) for name in ("cpu_share", "queue_share")}
    attempts |= {"prefix": prefix.indices.to_numpy(), "names": np.array(prefix.dictionary.to_pylist(), dtype=object)}
    to_s = np.array([each["to_s"] for each in rows], dtype=float)
    last_s = max(
        (to_s.max() if len(to_s) else origin_s), run.sql("select ended_s from run_times").fetchall()[0][0] or 0
    )
    attempts["stopped_s"] = np.minimum(attempts["stopped_s"], last_s)
    return Stalls(
        origin_s,
        rows,
        np.array([each["from_s"] for each in rows], dtype=float),
        to_s,
        np.array([numbers[each["process"]] for each in rows], dtype=np.int64),
        attempts,
        (on_time["process_number"].to_numpy(), on_time["at_s"].to_numpy()),
    )


# ---------------------------------------------------------------- tables


def stalled_loops(run: Run) -> pa.Table:
    """Stretches in which an event loop was late by `LAG_S` and more: one row per process and stretch, longest first.

    Servers of one process are one row: they mostly share their loop.  The task shown is the
    one that ran longest in it; those in an unrecorded worker are not known.

    From: samples, logs, task_runs, spills, submissions
    Columns: at_s, duration_s, roles, servers, seen_by, task_count, prefix, key, coroutine_count, spill_count,
    spilled_bytes, disk_s, graph_task_count, transition_count, full_gc_count,
    gil_contention_ratio
    """
    return stall_rows(run, gathered(run), None)


_STALL_SCHEMA = pa.schema(
    [
        ("at_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("roles", pa.string()),
        ("prefix", pa.string()),
        ("task_count", pa.int64()),
        ("coroutine_count", pa.int64()),
        ("spill_count", pa.int64()),
        ("transition_count", pa.int64()),
        ("full_gc_count", pa.int64()),
        ("gil_contention_ratio", pa.float64()),
        ("graph_task_count", pa.int64()),
        ("seen_by", pa.string()),
        ("servers", pa.string()),
        ("key", pa.string()),
        ("spilled_bytes", pa.int64()),
        ("disk_s", pa.float64()),
    ]
)


def stall_rows(run: Run, found: Stalls, limit: int | None) -> pa.Table:
    """Return rows as `stalled_loops` tells them, at most `limit`."""
    order = np.argsort(found.from_s - found.to_s, kind="stable")[:limit]
    facts = {}
    if len(order):
        lists = [
            [int(i) for i in order],
            [found.rows[i]["process"] for i in order],
            found.from_s[order].tolist(),
            found.to_s[order].tolist(),
        ]
        facts = {each["number"]: each for each in rows_of(run, FACTS_SQL, lists)}
    by_process: dict[int, npt.NDArray[np.intp]] = {
        int(each): np.flatnonzero(found.attempts["process_number"] == each) for each in np.unique(found.process[order])
    }
    rows = [_stall_row(found, int(i), by_process[int(found.process[i])], facts[int(i)]) for i in order]
    ids = sorted({each["key_id"] for each in rows if each["key_id"] is not None})
    keys = dict(run.sql(KEYS_SQL, [ids]).fetchall()) if ids else {}
    for each in rows:
        each["key"] = keys.get(each.pop("key_id"))
    return pa.Table.from_pylist(rows, schema=_STALL_SCHEMA)


def _stall_row(found: Stalls, index: int, mine: npt.NDArray[np.intp], facts: Document) -> Document:
    from_s, to_s, attempts = found.from_s[index], found.to_s[index], found.attempts
    overlap = np.minimum(attempts["stopped_s"][mine], to_s) - np.maximum(attempts["started_s"][mine], from_s)
    mine, overlap = mine[overlap > 0], overlap[overlap > 0]
    longest = mine[np.argmax(overlap)] if len(mine) else None
    is_worker = "worker" in (found.rows[index]["roles"] or "")
    return {
        "at_s": from_s - found.origin_s,
        "duration_s": to_s - from_s,
        "roles": found.rows[index]["roles"],
        "servers": found.rows[index]["servers"],
        "seen_by": found.rows[index]["seen_by"],
        "task_count": len(mine) if is_worker else None,
        "coroutine_count": int(attempts["is_coroutine"][mine].sum()) if is_worker else None,
        "prefix": None if longest is None else attempts["names"][attempts["prefix"][longest]] or None,
        "key_id": None if longest is None else int(attempts["key_id"][longest]),
        **{name: facts[name] for name in ("spill_count", "spilled_bytes", "disk_s", "graph_task_count")},
        **{name: facts[name] for name in ("transition_count", "full_gc_count", "gil_contention_ratio")},
    }


def stalls_by_prefix(run: Run) -> pa.Table:
    """How much of the stalled time of workers each prefix ran in: one row per prefix that ran in any, most first.

    `stalled_share` is the share of the stalled time in which at least one task of the prefix
    ran in the process; `elsewhere_share` the share of the moments at which a loop was seen in
    time, `on_time_count`, from the first task of its process to the last.

    From: samples, logs, task_runs, thread_counters
    Columns: prefix, stall_count, stalled_s, stalled_share, elsewhere_share, on_time_count, cpu_share (of the
    attempts in stalls), queue_share (time they waited for a CPU), coroutine_share (of these attempts)
    """
    return prefix_rows(gathered(run))


_PREFIX_SCHEMA = pa.schema(
    [
        ("prefix", pa.string()),
        ("stall_count", pa.int64()),
        ("stalled_s", pa.float64()),
        ("stalled_share", pa.float64()),
        ("elsewhere_share", pa.float64()),
        ("on_time_count", pa.int64()),
        ("cpu_share", pa.float64()),
        ("queue_share", pa.float64()),
        ("coroutine_share", pa.float64()),
    ]
)


def prefix_rows(found: Stalls) -> pa.Table:
    """Return rows as `stalls_by_prefix` tells them."""
    attempts = found.attempts
    if not len(found.from_s) or not len(attempts["started_s"]):
        return _PREFIX_SCHEMA.empty_table()
    # Every process gets a stretch of one common axis, so that all are swept at once.
    low = min(found.from_s.min(), attempts["started_s"].min())
    high = max(found.to_s.max(), attempts["stopped_s"].max())
    width = high - low + 1.0
    begins, ends = (found.process * width + times - low for times in (found.from_s, found.to_s))
    order = np.argsort(begins)
    begins, ends = begins[order], ends[order]
    stalled_until = _amount_until(begins, ends)
    place = attempts["process_number"] * width - low
    started, stopped = place + attempts["started_s"], place + attempts["stopped_s"]
    workers = np.unique(attempts["process_number"])
    is_of_worker = np.isin(found.process[order], workers)
    total_s = float((ends - begins)[is_of_worker].sum())
    on_time = found.on_time[0] * width + found.on_time[1] - low
    # Before the first task of a process and after its last there is nothing to compare with.
    spans = [(started[mine].min(), stopped[mine].max()) for mine in (attempts["process_number"] == i for i in workers)]
    on_time = on_time[_is_within(on_time, np.array([each[0] for each in spans]), np.array([each[1] for each in spans]))]
    hit = stalled_until(stopped) - stalled_until(started)
    rows: list[Document] = []
    for number in np.unique(attempts["prefix"][hit > 0]):
        mine = np.flatnonzero(attempts["prefix"] == number)
        from_, to = united(started[mine], stopped[mine])
        in_stall_s = float((stalled_until(to) - stalled_until(from_)).sum())
        stall_count = int(
            np.count_nonzero(np.interp(ends, *_steps(from_, to)) - np.interp(begins, *_steps(from_, to)) > 0)
        )
        guilty = mine[hit[mine] > 0]
        rows.append(
            {
                "prefix": attempts["names"][number] or None,
                "stall_count": stall_count,
                "stalled_s": in_stall_s,
                "stalled_share": in_stall_s / total_s if total_s else None,
                "elsewhere_share": float(_is_within(on_time, from_, to).mean()) if len(on_time) else None,
                "on_time_count": len(on_time),
                "cpu_share": _mean(attempts["cpu_share"][guilty], hit[guilty]),
                "queue_share": _mean(attempts["queue_share"][guilty], hit[guilty]),
                "coroutine_share": float(attempts["is_coroutine"][guilty].mean()),
            }
        )
    rows.sort(key=lambda each: (-each["stalled_s"], each["prefix"] or ""))
    return pa.Table.from_pylist(rows, schema=_PREFIX_SCHEMA)


def _steps(begins: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """Return moments and the sum of the lengths of disjoint intervals until each, in order."""
    lengths = np.cumsum(ends - begins)
    at = np.column_stack((begins, ends)).ravel()
    return at, np.column_stack((lengths - (ends - begins), lengths)).ravel()


def _amount_until(begins: Floats, ends: Floats) -> Any:
    """Return a function of moments: how much of these disjoint intervals lies before each."""
    at, amount = _steps(begins, ends)
    return lambda moments: np.interp(moments, at, amount)


def _is_within(moments: Floats, begins: Floats, ends: Floats) -> npt.NDArray[np.bool_]:
    """Return for each moment whether it lies in one of these disjoint intervals, given in order."""
    last = np.searchsorted(begins, moments, side="right") - 1
    return (last >= 0) & (moments < ends[last])


def _mean(values: Floats, weights: Floats) -> float | None:
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


_PROCESS_SCHEMA = pa.schema(
    [
        ("roles", pa.string()),
        ("servers", pa.string()),
        ("stall_count", pa.int64()),
        ("stalled_s", pa.float64()),
        ("longest_s", pa.float64()),
        ("first_at_s", pa.float64()),
        ("last_at_s", pa.float64()),
    ]
)


def stalls_by_process(run: Run) -> pa.Table:
    """Stalls summed: one row per process that had any, most stalled first.

    Columns: roles, servers, stall_count, stalled_s, longest_s, first_at_s, last_at_s
    """
    return process_rows(gathered(run))


def process_rows(found: Stalls) -> pa.Table:
    """Return rows as `stalls_by_process` tells them."""
    by_process: dict[str, Document] = {}
    for each in found.rows:
        at_s, duration_s = each["from_s"] - found.origin_s, each["to_s"] - each["from_s"]
        total = by_process.setdefault(
            each["process"],
            {"roles": each["roles"], "servers": each["servers"], "stall_count": 0, "stalled_s": 0.0, "longest_s": 0.0}
            | {"first_at_s": at_s, "last_at_s": at_s},
        )
        total["stall_count"] += 1
        total["stalled_s"] += duration_s
        total["longest_s"] = max(total["longest_s"], duration_s)
        total["last_at_s"] = at_s
    rows = sorted(by_process.values(), key=lambda each: -each["stalled_s"])
    return pa.Table.from_pylist(rows, schema=_PROCESS_SCHEMA)
