"""Order and overproduction: results held in memory over time, against what the graph needs.

Covers results of tasks from when the scheduler took them to when it let them go, each
counted once: further replicas on other workers, data that clients scattered and what tasks
use while they run are left out, and sizes are Dask's sizeof.

What is needed is the peak of a run in Dask's own order: tasks start one after the other by
their priority, as many at once as there are threads, each result is let go when the last
task that uses it is through, and what a client kept is kept as long.  It knows no durations
and no transfers, so it is no promise; a peak several times as high says that tasks ran far
ahead of those that use their results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.budget_record import numbers
from recup.analyse.rows import Document, ranks, rows_of
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    import numpy.typing as npt

    from recup.analyse.budget_sweep import Integers
    from recup.store import Run

PEAK_RATIO = 2.0
"""Peaks below this many times the need are left alone: the need knows no durations."""
MEMORY_SHARE = 0.05
"""Excess below this part of the workers' memory troubles nobody."""
NO_LIMIT_BYTES = 1 << 30
"""Excess that is worth a sentence where workers have no memory limit."""
BLAME_SHARE = 0.5
"""Part of the excess that results of a prefix must make up to be named."""
KEPT_SHARE = 0.5
"""Part of the peak that was through with all its uses, from which on it is said."""
LET_GO_S = 0.1
"""A result held longer than this after its last use is kept by a client: letting go is a message or two."""
BIN_COUNT = 200

SCHEDULERS_SQL = """
select scheduler_id, sum(nbytes) as nbytes
from task_runs
where stored_s is not null
group by scheduler_id
order by nbytes desc nulls last, scheduler_id
"""

TASKS_SQL = """
select key_id, priority_user, priority_generation, priority_order, dependency_count, restrictions is not null as is_restricted
from raw.tasks
where server_id = $scheduler and key_id is not null
order by submission desc
"""
"""One row per task and graph that lists it: what the first tells comes last."""

ATTEMPTS_SQL = """
select
    key_id, prefix, stored_s, gone_s as released_s, nbytes, submitted_s, started_s, stopped_s + coalesce(clock_error_s, 0.0) as stopped_s
from attempt_facts
where scheduler_id = $scheduler and key_id is not null
"""

USES_SQL = """
select key_id, dependency_id
from raw.dependencies
where server_id = $scheduler and key_id is not null and dependency_id is not null
"""

QUEUED_SQL = """
select distinct key_id from raw.scheduler_transitions where server_id = $scheduler and finish = 'queued' and key_id is not null
"""

FACTS_SQL = """
select
    (select started_s from run_times) as started_s,
    (select ended_s from run_times) as ended_s,
    (select count(*) from task_runs where scheduler_id = $scheduler and stored_s is not null and nbytes is null)
        as unsized_count,
    (
        select count(*) from raw.scheduler_transitions
        where server_id = $scheduler and finish = 'memory' and start <> 'processing'
    ) as scattered_count,
    (select sum(thread_count) from worker_lives where scheduler_id = $scheduler)::bigint as thread_count,
    (
        select any_value(c.value)
        from raw.config c
        join raw.processes p on p.config_digest = c.config_digest
        where p.server_id = $scheduler and c.name = 'distributed.scheduler.worker-saturation'
    ) as saturation,
    (select coalesce(sum(memory_bytes), 0)::bigint from raw.spills where direction = 'spill') as spilled_bytes
"""

LIMIT_SQL = """
select sum(memory_limit_bytes)::bigint as limit_bytes, bool_or(coalesce(memory_limit_bytes, 0) = 0) as is_unlimited
from worker_lives
where scheduler_id = $scheduler and came_s <= $at_s and (left_s is null or left_s >= $at_s)
"""

AWAITED_SQL = """
with runs as (
    select key_id, any_value(prefix) as prefix, min(stored_s) as stored_s, min(started_s) as started_s
    from task_runs
    where scheduler_id = $scheduler
    group by key_id
), edges as (
    select distinct key_id, dependency_id from raw.dependencies where server_id = $scheduler
), users as (
    select distinct e.key_id
    from edges e
    join runs made on made.key_id = e.dependency_id
    left join runs used on used.key_id = e.key_id
    where made.prefix = $prefix and made.stored_s <= $at_s and coalesce(used.started_s, 'infinity'::double) > $at_s
), lasts as (
    select u.key_id, arg_max(r.prefix, (coalesce(r.stored_s, 'infinity'::double), r.prefix)) as prefix
    from users u
    join edges e on e.key_id = u.key_id
    join runs r on r.key_id = e.dependency_id
    group by u.key_id
)
select prefix, count(*) / sum(count(*)) over () as user_share
from lasts
group by prefix
qualify user_share >= 0.5 and prefix <> $prefix
order by user_share desc, prefix
limit 1
"""
"""The prefix whose result came last to those that use results of a prefix, where it is that of most of them."""

_OVER_TIME = pa.schema([("at_s", pa.float64()), ("held_bytes", pa.int64()), ("unused_bytes", pa.int64())])
_PREFIXES = pa.schema(
    [
        ("prefix", pa.string()),
        ("is_root", pa.bool_()),
        ("result_count", pa.int64()),
        ("result_bytes", pa.int64()),
        ("peak_held_bytes", pa.int64()),
        ("peak_unused_bytes", pa.int64()),
        ("peak_in_use_bytes", pa.int64()),
        ("peak_used_up_bytes", pa.int64()),
        ("peak_wanted_bytes", pa.int64()),
        ("median_until_use_s", pa.float64()),
        ("median_held_s", pa.float64()),
        ("queued_task_count", pa.int64()),
        ("restricted_task_count", pa.int64()),
    ]
)

Held = dict[str, "npt.NDArray[Any]"]
"""Results as arrays of one entry each, moments in seconds; what never came is infinity.

nbytes, stored_s, released_s, submitted_s and prefix (a number into names) are the result's own; place and last_place
are those of its task and of the last task that uses it in Dask's order; use_count counts uses, first_use_s is when the
first began, last_use_s when the last was through.
"""


def order(run: Run) -> Answer:
    """Return whether more results were held than needed, and which prefixes ran ahead."""
    schedulers = rows_of(run, SCHEDULERS_SQL)
    if not schedulers:
        return Answer(
            "No result of a task is recorded.",
            (),
            (
                AnswerTable("over-time", _TITLES["over-time"], _OVER_TIME.empty_table()),
                AnswerTable("prefixes", _TITLES["prefixes"], _PREFIXES.empty_table()),
            ),
            "Without results there is nothing to hold.",
        )
    scheduler = schedulers[0]["scheduler_id"]
    held, facts = _held(run, scheduler), _rows(run, FACTS_SQL, scheduler)[0]
    steps = _steps(held["stored_s"], held["released_s"], held["nbytes"])
    at_s, peak = _peak(held, steps)
    facts |= {"peak_at_s": at_s - (facts["started_s"] or 0.0), "peak_bytes": peak}
    facts |= {"need_bytes": _need(held, facts["thread_count"] or 1), "scheduler_count": len(schedulers)}
    facts |= _rows(run, LIMIT_SQL, scheduler, at_s=at_s)[0]
    prefixes = _by_prefix(held, at_s)
    found = [*_ahead(run, scheduler, at_s, facts, prefixes), *_kept(facts, prefixes)]
    return Answer(
        _headline(facts),
        ranked(found),
        (
            AnswerTable("prefixes", _TITLES["prefixes"], prefixes),
            AnswerTable("over-time", _TITLES["over-time"], _over_time(held, steps, facts)),
        ),
        _basis(facts),
    )


_TITLES = {
    "over-time": "Most bytes of results held at once in each stretch of time, and of them not yet used",
    "prefixes": "Results by prefix, those that held most at the peak first",
}


def results_held(run: Run) -> pa.Table:
    """Bytes of results held on all workers: one row per 200th of the time in which there were any.

    unused_bytes are of results that wait for the first task that uses them.  Each result
    counts once, wherever it is copied.

    From: task_runs, scheduler_transitions, dependencies
    Columns: at_s (start of the stretch), held_bytes, unused_bytes (the most at once within it)
    """
    table: pa.Table = order(run).tables[-1].rows
    return table


def _rows(run: Run, query: str, scheduler: str, **values: Any) -> list[Document]:
    """Return the rows of a query with named parameters, which DuckDB numbers."""
    named = {"scheduler": scheduler, **values}
    given = []
    for name, value in named.items():
        if f"${name}" in query:
            given.append(value)
            query = query.replace(f"${name}", f"${len(given)}")
    return rows_of(run, query, given)


def _table(run: Run, query: str, scheduler: str) -> pa.Table:
    return run.sql(query.replace("$scheduler", "$1"), [scheduler]).to_arrow_table()


def _held(run: Run, scheduler: str) -> Held:
    tasks, attempts, uses, queued = (
        _table(run, query, scheduler) for query in (TASKS_SQL, ATTEMPTS_SQL, USES_SQL, QUEUED_SQL)
    )
    keys, asked, user, waited = (rows["key_id"].to_numpy() for rows in (attempts, tasks, uses, queued))
    used = uses["dependency_id"].to_numpy()
    # Keys are numbered from 0: what is told of a task stands at its number.
    count = 1 + max(int(each.max(initial=-1)) for each in (keys, asked, user, used, waited))
    started, stopped, submitted = (numbers(attempts[f"{name}_s"]) for name in ("started", "stopped", "submitted"))
    began, ended, wanted = np.full(count, np.inf), np.full(count, -np.inf), np.full(count, np.inf)
    for least, moments in ((began, started), (wanted, submitted)):
        np.fmin.at(least, keys, moments)
    np.fmax.at(ended, keys, stopped)
    place = _places(tasks, asked, keys, count)
    use_count = np.bincount(used, minlength=count)
    through = np.bincount(used[np.isfinite(ended[user])], minlength=count)
    first_use, last_use, last_place = np.full(count, np.inf), np.full(count, -np.inf), np.full(count, -1.0)
    np.minimum.at(first_use, used, began[user])
    np.maximum.at(last_use, used, ended[user])
    np.maximum.at(last_place, used, place[user])
    # What several graphs list counts several times, which is as good; a use that is not through has no end.
    last_use[(use_count == 0) | (through < use_count)] = np.inf
    last_place[last_place < 0] = np.inf
    is_root, is_restricted, is_queued = (np.zeros(count, bool) for _ in range(3))
    dependencies = numbers(tasks["dependency_count"])
    is_root[asked[dependencies >= 0]] = dependencies[dependencies >= 0] == 0
    is_restricted[asked[tasks["is_restricted"].to_numpy()]] = True
    is_queued[waited] = True

    stored, nbytes = numbers(attempts["stored_s"]), numbers(attempts["nbytes"])
    chosen = np.flatnonzero(np.isfinite(stored) & np.isfinite(nbytes))
    keys = keys[chosen]
    encoded = attempts["prefix"].take(pa.array(chosen)).combine_chunks().dictionary_encode(null_encoding="encode")
    return {
        "stored_s": stored[chosen],
        "released_s": _or_never(numbers(attempts["released_s"])[chosen]),
        "first_use_s": first_use[keys],
        "last_use_s": last_use[keys],
        "last_place": last_place[keys],
        "submitted_s": wanted[keys],
        "nbytes": nbytes[chosen].astype(np.int64),
        "use_count": use_count[keys],
        "place": place[keys],
        "is_root": is_root[keys],
        "is_restricted": is_restricted[keys],
        "is_queued": is_queued[keys],
        "prefix": encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        "names": np.array(encoded.dictionary.to_pylist(), dtype=object),
    }


def _places(tasks: pa.Table, asked: Integers, keys: Integers, count: int) -> Integers:
    """Return the place in Dask's order of each task that was attempted, -1 of the others."""
    ranks = []
    for name in ("priority_user", "priority_generation", "priority_order"):
        told = numbers(tasks[name])
        values = np.full(count, np.inf)
        values[asked[~np.isnan(told)]] = told[~np.isnan(told)]
        ranks.append(values)
    place = np.full(count, -1)
    place[keys] = 0
    attempted = np.flatnonzero(place == 0)
    user, generation, order = (values[attempted] for values in ranks)
    place[attempted[np.lexsort((order, generation, user))]] = np.arange(len(attempted))
    return place


def _or_never(moments: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(np.isnan(moments), np.inf, moments)


def _steps(begin: npt.NDArray[Any], end: npt.NDArray[Any], nbytes: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Return moments in order, each once, and the sum of bytes from each on."""
    is_kept = end > begin
    begin, end, nbytes = begin[is_kept], end[is_kept], nbytes[is_kept]
    # What never ends is no step.
    is_ended = end < np.inf
    at = np.concatenate([end[is_ended], begin])
    change = np.concatenate([-nbytes[is_ended], nbytes])
    in_order = np.argsort(at)
    at, total = at[in_order], np.cumsum(change[in_order])
    is_last = np.diff(at, append=np.inf) > 0
    return at[is_last], total[is_last]


def _peak(held: Held, steps: tuple[Any, Any]) -> tuple[float, int]:
    at, total = steps
    if not len(at):
        return (float(held["stored_s"].min()) if len(held["stored_s"]) else 0.0), 0
    highest = int(np.argmax(total))
    return float(at[highest]), int(total[highest])


def _need(held: Held, thread_count: int) -> int:
    """Return the peak of a run in Dask's order; of a task computed again its largest result counts."""
    if not len(held["place"]):
        return 0
    size = int(held["place"].max()) + 1
    # Few tasks are computed again: only their results are put in order.
    is_again = np.bincount(held["place"], minlength=size)[held["place"]] > 1
    again = np.flatnonzero(is_again)
    again = again[np.lexsort((held["released_s"][again], -held["nbytes"][again], held["place"][again]))]
    again = again[np.diff(held["place"][again], prepend=-1) > 0]
    at_place = np.full(size, -1)
    for rows in (np.flatnonzero(~is_again), again):
        at_place[held["place"][rows]] = rows
    first = at_place[at_place >= 0]
    place, nbytes = held["place"][first], held["nbytes"][first]
    end = place + thread_count
    last = held["last_place"][first]
    has_uses = np.isfinite(last)
    end[has_uses] = np.maximum(end[has_uses], last[has_uses].astype(np.int64) + thread_count)
    # What a client kept is let go when the first task came of which it was let go before.
    released = held["released_s"][first]
    is_kept = ~has_uses | ~(released <= held["last_use_s"][first] + LET_GO_S)
    submitted = np.full(size, -np.inf)
    np.maximum.at(
        submitted, place, np.where(np.isfinite(held["submitted_s"][first]), held["submitted_s"][first], -np.inf)
    )
    latest = np.maximum.accumulate(submitted)
    until = np.where(np.isfinite(released), np.searchsorted(latest, released, side="right"), size)
    end = np.where(is_kept, np.maximum(end, until), end)
    change = np.bincount(place, nbytes, size + 1) - np.bincount(np.minimum(end, size), nbytes, size + 1)
    return int(np.cumsum(change).max())


def _by_prefix(held: Held, at_s: float) -> pa.Table:
    count = len(held["names"])
    code, nbytes = held["prefix"], held["nbytes"]

    def total(rows: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        return np.bincount(code[rows], None if weights is None else weights[rows], count).astype(np.int64)

    is_there = (held["stored_s"] <= at_s) & (held["released_s"] > at_s)
    has_uses = held["use_count"] > 0
    is_unused = is_there & has_uses & (held["first_use_s"] > at_s)
    is_used_up = is_there & has_uses & (held["last_use_s"] < at_s)
    is_wanted = is_there & ~has_uses
    everything = np.ones(len(code), dtype=bool)
    columns = {
        "result_count": total(everything),
        "result_bytes": total(everything, nbytes),
        "peak_held_bytes": total(is_there, nbytes),
        "peak_unused_bytes": total(is_unused, nbytes),
        "peak_in_use_bytes": total(is_there & ~is_unused & ~is_used_up & ~is_wanted, nbytes),
        "peak_used_up_bytes": total(is_used_up, nbytes),
        "peak_wanted_bytes": total(is_wanted, nbytes),
        "queued_task_count": total(held["is_queued"]),
        "restricted_task_count": total(held["is_restricted"]),
    }
    roots = total(held["is_root"])
    by_name = np.array(ranks(held["names"].tolist()), np.int64)
    rows = [
        {
            "prefix": held["names"][each],
            "is_root": bool(roots[each] == columns["result_count"][each]),
            **{name: int(values[each]) for name, values in columns.items()},
            "median_until_use_s": _median(held["first_use_s"] - held["stored_s"], code == each),
            "median_held_s": _median(held["released_s"] - held["stored_s"], code == each),
        }
        for each in np.lexsort((by_name, -columns["result_bytes"], -columns["peak_held_bytes"])).tolist()
    ]
    return pa.Table.from_pylist(rows, schema=_PREFIXES)


def _median(values: npt.NDArray[Any], rows: npt.NDArray[Any]) -> float | None:
    some = values[rows & np.isfinite(values)]
    return max(float(np.median(some)), 0.0) if len(some) else None


def _over_time(held: Held, steps: tuple[Any, Any], facts: Document) -> pa.Table:
    if not len(held["nbytes"]):
        return _OVER_TIME.empty_table()
    first = float(held["stored_s"].min())
    ends = held["released_s"][np.isfinite(held["released_s"])]
    last = max(float(ends.max()) if len(ends) == len(held["nbytes"]) else facts["ended_s"], first)
    edges = first + (last - first) * np.arange(BIN_COUNT + 1) / BIN_COUNT
    until_use = np.minimum(held["released_s"], held["first_use_s"])
    used = held["use_count"] > 0
    return pa.table(
        {
            "at_s": edges[:-1] - facts["started_s"],
            "held_bytes": _highest(*steps, edges),
            "unused_bytes": _highest(*_steps(held["stored_s"][used], until_use[used], held["nbytes"][used]), edges),
        },
        schema=_OVER_TIME,
    )


def _highest(at: npt.NDArray[Any], total: npt.NDArray[Any], edges: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the highest value of a step function between each two edges."""
    bounds = np.searchsorted(at, edges, side="right")
    values = np.concatenate([[0], total]).astype(np.int64)
    # What holds at the start of a stretch counts too: it is the value before its first step.
    return np.maximum.reduceat(values, bounds[:-1]) if len(at) else np.zeros(len(edges) - 1, dtype=np.int64)


# ---------------------------------------------------------------- words


def _headline(facts: Document) -> str:
    need = facts["need_bytes"]
    ratio = f", {facts['peak_bytes'] / need:.1f} times as much" if need and facts["peak_bytes"] > 1.05 * need else ""
    return (
        f"At most {bytes_text(facts['peak_bytes'])} of results were held at once ({seconds_text(facts['peak_at_s'])} "
        f"into the run); in Dask's own order this graph needs {bytes_text(need)}{ratio}."
    )


def _basis(facts: Document) -> str:
    lacks = []
    if facts["unsized_count"]:
        lacks.append(f"{plural(facts['unsized_count'], 'result')} of unknown size")
    if facts["scattered_count"]:
        lacks.append(f"{facts['scattered_count']:,} pieces of data that clients scattered")
    if facts["scheduler_count"] > 1:
        lacks.append(f"{plural(facts['scheduler_count'] - 1, 'other scheduler')}, which held less")
    rest = f" Left out: {'; '.join(lacks)}." if lacks else ""
    return (
        "Sizes are Dask's sizeof, each result counted once, copies not. The need is an estimate: tasks by priority, "
        f"{facts['thread_count'] or 1} at once, durations unknown to it.{rest}"
    )


def _is_worth(excess: float, facts: Document) -> bool:
    limit = NO_LIMIT_BYTES if facts["is_unlimited"] or not facts["limit_bytes"] else MEMORY_SHARE * facts["limit_bytes"]
    return excess >= limit


def _ahead(run: Run, scheduler: str, at_s: float, facts: Document, prefixes: pa.Table) -> list[Conclusion]:
    peak, need = facts["peak_bytes"], facts["need_bytes"]
    excess = peak - need
    if peak < PEAK_RATIO * need or not _is_worth(excess, facts):
        return []
    most = max(prefixes.to_pylist(), key=lambda row: row["peak_unused_bytes"])
    evidence: Document = {
        "peak_bytes": peak,
        "need_bytes": need,
        "peak_at_s": facts["peak_at_s"],
        "spilled_bytes": facts["spilled_bytes"],
        "worker_saturation": facts["saturation"],
    }
    total = (
        f"At the peak ({seconds_text(facts['peak_at_s'])} into the run) {bytes_text(peak)} of results were held, "
        f"{peak / need:.1f} times what the graph needs in Dask's own order ({bytes_text(need)})"
    )
    if most["peak_unused_bytes"] < BLAME_SHARE * excess:
        advice = (
            "Look at the prefixes below: results in use by many tasks at once call for smaller chunks or fewer threads."
        )
        return [Conclusion("order", "results held", f"{total}.", "possible", None, advice, evidence)]
    name = most["prefix"] or "unknown prefix"
    evidence |= {name: most[name] for name in ("peak_unused_bytes", "median_until_use_s", "queued_task_count")}
    awaited = _rows(run, AWAITED_SQL, scheduler, prefix=most["prefix"], at_s=at_s)
    waited_for = f" Most tasks that use them had to wait for {awaited[0]['prefix']} as well." if awaited else ""
    why, advice = _why_ahead(most, facts, awaited)
    return [
        Conclusion(
            "order",
            name,
            f"{name} ran ahead: {total[0].lower()}{total[1:]}, and {bytes_text(most['peak_unused_bytes'])} of them were results of {name} "
            f"that no task had begun to use.{waited_for}{why}",
            "likely",
            None,
            advice,
            evidence,
        )
    ]


def _why_ahead(most: Document, facts: Document, awaited: list[Document]) -> tuple[str, str]:
    """Return why Dask let a prefix run ahead, as far as that follows, and what to do."""
    chunks = "use fewer or smaller chunks at a time, or submit the work in batches"
    if awaited:
        name = awaited[0]["prefix"]
        return "", f"Run {name} first (a higher `priority=`, or a computation of its own); else {chunks}."
    if not most["is_root"]:
        return "", f"Give what uses them a higher `priority=`; else {chunks}."
    if facts["saturation"] in ('"inf"', "Infinity", "inf"):
        return (
            " `distributed.scheduler.worker-saturation` is inf: all of them are sent to workers at once.",
            "Set `distributed.scheduler.worker-saturation` to 1.1, so that such tasks wait at the scheduler; else "
            f"{chunks}.",
        )
    if most["restricted_task_count"]:
        return (
            f" {most['restricted_task_count']:,} of them have restrictions (`workers=`, `resources=`), and Dask does "
            "not queue such tasks.",
            f"Lift the restrictions, or {chunks}.",
        )
    if not most["queued_task_count"]:
        return (
            " None of them was queued at the scheduler: Dask did not take them for root tasks.",
            f"{chunks[0].upper()}{chunks[1:]}.",
        )
    return "", f"Lower `distributed.scheduler.worker-saturation` to 1.0, or {chunks}."


def _kept(facts: Document, prefixes: pa.Table) -> list[Conclusion]:
    rows = prefixes.to_pylist()
    through = sum(row["peak_used_up_bytes"] for row in rows)
    if through < KEPT_SHARE * facts["peak_bytes"] or not _is_worth(through, facts):
        return []
    most = max(rows, key=lambda row: row["peak_used_up_bytes"])
    return [
        Conclusion(
            "order",
            most["prefix"] or "results held",
            f"At the peak {bytes_text(through)} of {bytes_text(facts['peak_bytes'])} held had been used by every task "
            f"that is known to use them, most of it results of {most['prefix'] or 'unknown prefix'}: a client kept "
            "them, or meant to use them later.",
            "likely",
            None,
            "Let go of futures and persisted collections (`del`, or leave the function that holds them) once they are "
            "used.",
            {"peak_used_up_bytes": through, "peak_bytes": facts["peak_bytes"]},
        )
    ]
