"""Stretches in which little or nothing happened: silences, the tail of the computation, stragglers.

Part of the answer of `recup.analyse.stuck`.  Covers what can be read off transitions of
the scheduler and computing times of attempts.  It does not say what idle threads waited
for (`budget`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.analyse.answers import Conclusion
from recup.analyse.rows import rows_of
from recup.analyse.unfinished import no_leaving
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    from recup.store import Run

SILENCE_S = 1.0
"""Shorter silences are no rows: a run of few tasks is full of them."""
SILENCE_SHOWN_COUNT = 20
SILENCE_SAID_S = 5.0
"""A silence in which nothing computed is spoken of from this length on: transfers and starts of workers take less."""
TAIL_BUSY_SHARE = 0.1
"""The tail is the stretch at the end in which at most this share of the threads (at least one thread) computes."""
TAIL_SAID_S = 2.0
TAIL_SAID_SHARE = 0.1
"""A tail is spoken of from this length and this share of the computation on: every reduction ends in a short one."""
STRAGGLER_FACTOR = 3.0
STRAGGLER_EXCESS_S = 1.0
"""A straggler takes this many times what nine of ten of its prefix take at most, and this much longer."""
STRAGGLER_ATTEMPTS = 10
"""A prefix with fewer attempts has no usual time."""
STRAGGLER_SAID_SHARE = 0.05
"""Stragglers of a prefix are spoken of when their excess is this share of all computing."""

Floats = npt.NDArray[np.float64]

MOVES_SQL = """
select
    t.time_ns,
    (finish in ('waiting', 'processing', 'queued', 'no-worker'))::tinyint
        - (start in ('waiting', 'processing', 'queued', 'no-worker'))::tinyint as growth
from raw.scheduler_transitions t
where {no_leaving} and t.server_id = ?
"""

ENDS_SQL = """
with signs as (
    select server_id, max(time_ns) as time_ns from raw.clock_samples group by server_id
    union all
    select server_id, max(last_sign_ns) from spools group by server_id
)
select t.server_id, (select max(time_ns) from signs where signs.server_id = t.server_id) as end_ns
from raw.scheduler_transitions t
group by t.server_id
order by t.server_id
"""

COMPUTING_SQL = """
select scheduler_id, key_id, prefix, worker,
    coalesce(started_s, executing_s) as started_s,
    coalesce(stopped_s, case when outcome = 'running_at_end' then 'infinity'::double else ended_s end) as stopped_s
from task_runs
where coalesce(started_s, executing_s) is not null
    and (stopped_s is not null or ended_s is not null or outcome = 'running_at_end')
"""

DURING_SQL = f"""
with gaps as (
    select unnest(?::varchar[]) as scheduler_id, unnest(?::double[]) as from_s, unnest(?::double[]) as to_s
), computing as ({COMPUTING_SQL}), during as (
    select
        gaps.scheduler_id,
        gaps.from_s,
        count(*) as computing_task_count,
        sum(least(c.stopped_s, gaps.to_s) - greatest(c.started_s, gaps.from_s)) as computing_s,
        arg_max(
            struct_pack(key_id := c.key_id, prefix := c.prefix, worker := c.worker),
            (least(c.stopped_s, gaps.to_s) - greatest(c.started_s, gaps.from_s), -c.key_id)
        ) as longest
    from gaps
    join computing c
        on c.scheduler_id = gaps.scheduler_id and c.started_s < gaps.to_s and c.stopped_s > gaps.from_s
    group by gaps.scheduler_id, gaps.from_s
), hidden as (
    -- Of attempts on workers that did not record it is not known whether they ran.
    select gaps.scheduler_id, gaps.from_s, count(*) as hidden_task_count
    from gaps
    join task_runs r
        on r.scheduler_id = gaps.scheduler_id and r.assigned_s < gaps.to_s and coalesce(r.ended_s, gaps.to_s) > gaps.from_s
    join servers s on s.server_id = r.worker_id
    where not s.is_captured and r.started_s is null
    group by gaps.scheduler_id, gaps.from_s
)
select
    gaps.scheduler_id,
    gaps.from_s,
    coalesce(computing_task_count, 0) as computing_task_count,
    coalesce(computing_s, 0.0) as computing_s,
    coalesce(hidden_task_count, 0) as hidden_task_count,
    keys.key,
    longest.prefix,
    longest.worker
from gaps
left join during using (scheduler_id, from_s)
left join hidden using (scheduler_id, from_s)
left join keys on keys.key_id = longest.key_id
"""

TAIL_SQL = """
select key_id, prefix, stopped_s - greatest(started_s, ?) as in_tail_s, compute_s
from task_runs
where started_s < ? and stopped_s > ?
"""

THREADS_SQL = """
select scheduler_id, came_s, left_s, thread_count from worker_lives where came_s is not null and thread_count is not null
"""

STRAGGLERS_SQL = """
with timed as (
    select key_id, prefix, worker, run_id, started_s, compute_s, sum(compute_s) over () as all_s
    from task_runs
    where compute_s is not null and outcome = 'memory' and prefix is not null
), usual as (
    select prefix, count(*) as attempt_count, median(compute_s) as median_s, quantile_disc(compute_s, 0.9) as q90_s
    from timed
    group by prefix
    having count(*) >= ?
)
select keys.key, t.prefix, t.worker, t.started_s - (select started_s from run_times) as started_at_s, t.compute_s,
    u.median_s, u.q90_s, u.attempt_count, t.compute_s - u.median_s as excess_s, all_s
from timed t
join usual u using (prefix)
left join keys on keys.key_id = t.key_id
where t.compute_s > ? * u.q90_s and t.compute_s > u.q90_s + ?
order by t.compute_s desc, keys.key
"""


def silences(run: Run) -> pa.Table:
    """Stretches of at least `SILENCE_S` in which no task moved though some were not finished: the longest, one a row.

    `computed_s` sums what threads computed meanwhile; of attempts that did not end,
    from when their worker gave them to a thread.  `hidden_task_count` counts attempts of which that
    is not known, as their worker did not record.

    From: scheduler_transitions, task_runs, worker_lives
    Columns: from_at_s, duration_s, unfinished_task_count, computing_task_count, computed_s, thread_count,
    longest_key, longest_prefix, longest_worker, is_at_end, hidden_task_count, scheduler_id
    """
    origin_s, gaps = _origin_s(run), []
    for scheduler_id, end_ns in run.sql(ENDS_SQL).fetchall():
        gaps += [(scheduler_id, *gap) for gap in _gaps(run, scheduler_id, end_ns)]
    gaps = sorted(gaps, key=lambda gap: gap[1] - gap[2])[:SILENCE_SHOWN_COUNT]
    computed = {}
    if gaps:
        lists = [[gap[0] for gap in gaps], [gap[1] for gap in gaps], [gap[2] for gap in gaps]]
        computed = {(each["scheduler_id"], each["from_s"]): each for each in rows_of(run, DURING_SQL, lists)}
    lives = rows_of(run, THREADS_SQL)
    rows = []
    for scheduler_id, from_s, to_s, unfinished, is_at_end in gaps:
        ran = computed.get((scheduler_id, from_s), {})
        rows.append(
            {
                "from_at_s": from_s - origin_s,
                "duration_s": to_s - from_s,
                "unfinished_task_count": unfinished,
                "computing_task_count": ran.get("computing_task_count", 0),
                "computed_s": ran.get("computing_s", 0.0),
                "hidden_task_count": ran.get("hidden_task_count", 0),
                "thread_count": _threads(lives, (from_s + to_s) / 2, scheduler_id),
                "longest_key": ran.get("key"),
                "longest_prefix": ran.get("prefix"),
                "longest_worker": ran.get("worker"),
                "is_at_end": is_at_end,
                "scheduler_id": scheduler_id,
            }
        )
    return pa.Table.from_pylist(rows, schema=_SILENCE_SCHEMA)


_SILENCE_SCHEMA = pa.schema(
    [
        ("from_at_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("unfinished_task_count", pa.int64()),
        ("computing_task_count", pa.int64()),
        ("computed_s", pa.float64()),
        ("thread_count", pa.int64()),
        ("longest_key", pa.string()),
        ("longest_prefix", pa.string()),
        ("longest_worker", pa.string()),
        ("is_at_end", pa.bool_()),
        ("hidden_task_count", pa.int64()),
        ("scheduler_id", pa.string()),
    ]
)


def _origin_s(run: Run) -> float:
    return float(run.sql("select coalesce(started_s, 0) from run_times").fetchall()[0][0])


def _gaps(run: Run, scheduler_id: str, end_ns: int | None) -> list[tuple[float, float, int, bool]]:
    """Return (from, to, unfinished tasks, whether it is the end) of each silence of a scheduler."""
    condition, parameters = no_leaving(run)
    moves = run.sql(MOVES_SQL.format(no_leaving=condition), [*parameters, scheduler_id]).to_arrow_table()
    if not moves.num_rows:
        return []
    time_ns, growth = moves["time_ns"].to_numpy(), moves["growth"].to_numpy().astype(np.int64)
    order = np.argsort(time_ns, kind="stable")
    time_ns, unfinished = time_ns[order], np.cumsum(growth[order])
    # The end counts as a move: a run may fall silent for good.
    ends_ns = np.append(time_ns[1:], max(end_ns or 0, int(time_ns[-1])))
    long = np.flatnonzero((ends_ns - time_ns > SILENCE_S * 1e9) & (unfinished > 0))
    long = long[np.argsort(time_ns[long] - ends_ns[long], kind="stable")][:SILENCE_SHOWN_COUNT]
    return [
        (time_ns[i] / 1e9, ends_ns[i] / 1e9, int(unfinished[i]), bool(i == len(time_ns) - 1)) for i in map(int, long)
    ]


def _threads(lives: list[dict[str, Any]], moment_s: float, scheduler_id: str | None = None) -> int:
    return sum(
        each["thread_count"]
        for each in lives
        if each["came_s"] <= moment_s
        and (each["left_s"] is None or each["left_s"] > moment_s)
        and (scheduler_id is None or each["scheduler_id"] == scheduler_id)
    )


def tail(run: Run) -> pa.Table:
    """The stretch at the end of the computation in which few threads were busy: one row, or none.

    The tail begins when for the last time more than `TAIL_BUSY_SHARE` of the threads (more
    than one thread) compute, and ends with the last computation.

    From: task_runs, worker_lives
    Columns: from_at_s, duration_s, tail_share (of the time from the first computation to the last), thread_count,
    computing_task_count, idle_s, longest_prefix, longest_key, longest_s
    """
    origin_s = _origin_s(run)
    times = run.sql(
        "select started_s, stopped_s from task_runs where started_s is not null and stopped_s >= started_s"
    ).to_arrow_table()
    if not times.num_rows:
        return _TAIL_SCHEMA.empty_table()
    started, stopped = (np.sort(times[name].to_numpy()) for name in ("started_s", "stopped_s"))
    lives = rows_of(run, THREADS_SQL)
    first_s, end_s = float(started[0]), float(stopped[-1])
    from_s = first_s
    # Threads may leave at the end: what counts is how many there are when the tail begins, so it is looked for twice.
    thread_count = _threads(lives, end_s) or _threads(lives, (first_s + end_s) / 2)
    for _ in range(2):
        from_s = _tail_start(started, stopped, max(1, int(thread_count * TAIL_BUSY_SHARE)))
        thread_count = max(_threads(lives, from_s), 1)
    if thread_count < 2:
        return _TAIL_SCHEMA.empty_table()
    ran = rows_of(
        run,
        f"""
        with ran as ({TAIL_SQL}), summed as (
            select count(*) as computing_task_count, sum(in_tail_s) as computing_s,
                arg_max(
                    struct_pack(key_id := key_id, prefix := prefix, compute_s := compute_s), (in_tail_s, -key_id)
                ) as longest
            from ran
        )
        select computing_task_count, computing_s, longest.prefix as longest_prefix, keys.key as longest_key,
            longest.compute_s as longest_s
        from summed
        left join keys on keys.key_id = longest.key_id
        """,
        [from_s, end_s, from_s],
    )[0]
    row = {
        "from_at_s": from_s - origin_s,
        "duration_s": end_s - from_s,
        "tail_share": (end_s - from_s) / (end_s - first_s) if end_s > first_s else None,
        "thread_count": thread_count,
        "idle_s": max(thread_count * (end_s - from_s) - (ran.pop("computing_s") or 0.0), 0.0),
        **ran,
    }
    return pa.Table.from_pylist([row], schema=_TAIL_SCHEMA)


_TAIL_SCHEMA = pa.schema(
    [
        ("from_at_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("tail_share", pa.float64()),
        ("thread_count", pa.int64()),
        ("computing_task_count", pa.int64()),
        ("idle_s", pa.float64()),
        ("longest_prefix", pa.string()),
        ("longest_key", pa.string()),
        ("longest_s", pa.float64()),
    ]
)


def _tail_start(started: Floats, stopped: Floats, busy_count: int) -> float:
    """Return when for the last time more than `busy_count` of the attempts compute; the first start if never."""
    # At each stop, how many go on: all that started before, less all that stopped.
    going_on = np.searchsorted(started, stopped, side="left") - np.arange(1, len(stopped) + 1)
    busy = np.flatnonzero(going_on + 1 > busy_count)
    return float(stopped[busy[-1]]) if len(busy) else float(started[0])


def stragglers(run: Run) -> pa.Table:
    """Attempts far slower than others of their prefix, slowest first: one row per attempt.

    From: task_runs
    Columns: key, prefix, worker, started_at_s, compute_s, median_s, q90_s, attempt_count (of the prefix), excess_s
    (above the median), excess_share (of all computing)
    """
    rows = run.sql(STRAGGLERS_SQL, [STRAGGLER_ATTEMPTS, STRAGGLER_FACTOR, STRAGGLER_EXCESS_S]).to_arrow_table()
    share = [
        excess / total if total else None
        for excess, total in zip(rows["excess_s"].to_pylist(), rows["all_s"].to_pylist(), strict=True)
    ]
    return rows.drop_columns(["all_s"]).append_column("excess_share", pa.array(share, pa.float64()))


# ---------------------------------------------------------------- what is said of them


def silence_conclusions(quiet: pa.Table, slow: pa.Table, last: pa.Table) -> list[Conclusion]:
    """Return what the tables of `silences`, `stragglers` and `tail` say, where it is worth a sentence."""
    tails = last.to_pylist()
    tail_from_s = tails[0]["from_at_s"] if tails else float("inf")
    said = [_tail_conclusion(each) for each in tails]
    said += [
        _silence_conclusion(each, each["from_at_s"] + each["duration_s"] > tail_from_s) for each in quiet.to_pylist()
    ]
    said += _straggler_conclusions(slow)
    return [each for each in said if each is not None]


def _tail_conclusion(tail_row: dict[str, Any]) -> Conclusion | None:
    if tail_row["duration_s"] < TAIL_SAID_S or (tail_row["tail_share"] or 0.0) < TAIL_SAID_SHARE:
        return None
    longest = ""
    if tail_row["longest_s"] is not None:
        longest = f"; the longest of it is {tail_row['longest_key']}, which took {seconds_text(tail_row['longest_s'])}"
    return Conclusion(
        "stuck",
        tail_row["longest_prefix"] or "end of the computation",
        f"In the last {seconds_text(tail_row['duration_s'])} of the computation ({tail_row['tail_share']:.0%} of it) at most "
        f"{max(1, int(tail_row['thread_count'] * TAIL_BUSY_SHARE))} of {tail_row['thread_count']} threads computed "
        f"{plural(tail_row['computing_task_count'], 'task')}{longest}.",
        "certain",
        tail_row["idle_s"],
        "Split the long tasks, start them first (priority), or let idle workers go (adaptive scaling).",
        {
            name: tail_row[name]
            for name in ("duration_s", "tail_share", "thread_count", "computing_task_count", "longest_s")
        },
    )


def _silence_conclusion(gap: dict[str, Any], is_in_tail: bool) -> Conclusion | None:
    duration_s, threads = gap["duration_s"], gap["thread_count"]
    idle_s = max(threads * duration_s - gap["computed_s"], 0.0)
    if duration_s < SILENCE_SAID_S or (
        gap["computing_task_count"] and (is_in_tail or idle_s < threads * duration_s / 2)
    ):
        return None
    if not threads:
        state = "no worker was there"
    elif gap["computing_task_count"]:
        state = (
            f"{plural(gap['computing_task_count'], 'task')} computed on {plural(threads, 'thread')}, longest "
            f"{gap['longest_key']} on {gap['longest_worker']}"
        )
    elif gap["hidden_task_count"]:
        state = f"{plural(gap['hidden_task_count'], 'task')} stood at workers that did not record whether they computed"
    else:
        state = f"none of {plural(threads, 'thread')} computed"
    is_hidden = bool(gap["hidden_task_count"])
    return Conclusion(
        "stuck",
        gap["longest_prefix"] or "silence",
        f"No task moved for {seconds_text(duration_s)} from {seconds_text(gap['from_at_s'])} on"
        f"{' (to the end of the record)' if gap['is_at_end'] else ''} while "
        f"{plural(gap['unfinished_task_count'], 'task')} {'was' if gap['unfinished_task_count'] == 1 else 'were'} not finished; {state}.",
        "certain" if not is_hidden else "possible",
        None if is_hidden or not threads else idle_s,
        None,
        {
            name: gap[name]
            for name in ("from_at_s", "duration_s", "unfinished_task_count", "computing_task_count", "thread_count")
        },
    )


def _straggler_conclusions(slow: pa.Table) -> list[Conclusion]:
    by_prefix: dict[str, list[dict[str, Any]]] = {}
    for each in slow.to_pylist():
        by_prefix.setdefault(each["prefix"], []).append(each)
    said = []
    for prefix, members in by_prefix.items():
        excess_s = sum(each["excess_s"] for each in members)
        if sum(each["excess_share"] or 0.0 for each in members) < STRAGGLER_SAID_SHARE:
            continue
        worst, workers = members[0], {each["worker"] for each in members}
        where = f", all on {worst['worker']}" if len(members) > 1 and len(workers) == 1 else ""
        said.append(
            Conclusion(
                "stuck",
                prefix,
                f"{plural(len(members), 'task')} of {worst['attempt_count']} of {prefix} took more than "
                f"{STRAGGLER_FACTOR:g} times what nine of ten take{where}: up to {seconds_text(worst['compute_s'])} "
                f"({worst['key']} on {worst['worker']}), median {seconds_text(worst['median_s'])}.",
                "certain",
                excess_s,
                "See whether their input is larger or their worker slow (`recup slow`).",
                {"straggler_count": len(members), "excess_s": excess_s, "longest_s": worst["compute_s"],
                 "median_s": worst["median_s"], "attempt_count": worst["attempt_count"]},
            )
        )  # fmt: skip
    return said
