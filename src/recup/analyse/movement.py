"""What moved between workers: bytes from worker to worker, results that moved more than once, waits for them.

Covers movements of results between workers, the time tasks and threads waited for them
(from `recup.analyse.input_waits`), and what work stealing moved (`recup.analyse.stealing`).  A movement is counted once
though both ends tell of it; what went to clients is a row of its own.  It does not cover
data moved by the shuffle service, which makes no transfer rows, nor which wait set the
wall time (`critical_path`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.budget_sweep import united
from recup.analyse.input_waits import threads_idle_for_inputs, waits_for_inputs
from recup.analyse.rows import Document, by_code, rows_of
from recup.analyse.stealing import COUNTS_SQL, stealing_conclusions, steals_by_prefix, stolen_again
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    from recup.analyse.budget_sweep import Floats, Integers
    from recup.store import Run

LARGE_BYTES = 1 << 20
"""Movements below this tell latency, not bandwidth: Dask's own estimate leaves out what is below 1 MB."""
COST_S = 1.0
"""Waits below a thread-second in all are not worth a sentence."""
COST_SHARE = 0.05
"""Nor are those below a twentieth of the threads' time while tasks ran."""
AGAIN_SHARE = 0.25
"""Part of the bytes moved that had moved before, from which on it is said."""
SLOW_LINK_RATIO = 3.0
"""A link is slow when links of its kind (within a host, or between hosts) are this many times faster."""
LINK_COUNT = 4
"""Links of a kind, and large movements on a link, that a comparison needs."""
LARGEST = 100
"""Rows of results shown."""

_MOVES = """
with moves as (
    select *,
        case when destination_worker_id is null then 'no worker: a client or the scheduler' else destination_worker end
            as destination
    from transfers_distinct
), pairs as (
    select *, row_number() over (order by source_worker, source_worker_id, destination, destination_worker_id) - 1 as pair
    from (select distinct source_worker, source_worker_id, destination, destination_worker_id from moves)
), told as (
    select pair, moves.*
    from moves
    join pairs on pairs.source_worker is not distinct from moves.source_worker
        and pairs.source_worker_id is not distinct from moves.source_worker_id
        and pairs.destination is not distinct from moves.destination
        and pairs.destination_worker_id is not distinct from moves.destination_worker_id
)
"""
"""Movements with the number of the pair of workers they are between."""

TIMES_SQL = f"{_MOVES} select pair, start_s, stop_s from told where start_s is not null and stop_s is not null"

MATRIX_SQL = f"""
{_MOVES}, hosts as (
    -- A server's own word goes before what its scheduler said.
    select worker_id, coalesce(any_value(told_host), any_value(host)) as host
    from (
        select server_id as worker_id, host_id as told_host, null as host from servers
        union all
        select worker_id, null, host from worker_lives
    )
    group by worker_id
)
select
    pair,
    any_value(source_worker) as source_worker,
    any_value(destination) as destination_worker,
    any_value(source.host) = any_value(target.host) as is_same_host,
    count(*) as transfer_count,
    sum(key_count)::bigint as result_count,
    sum(nbytes)::bigint as moved_bytes,
    sum(duration_s) as summed_s,
    count(bandwidth_bytes_per_s) filter (nbytes >= {LARGE_BYTES}) as measured_transfer_count,
    quantile_cont(bandwidth_bytes_per_s, 0.1) filter (nbytes >= {LARGE_BYTES}) as q10_bytes_per_s,
    median(bandwidth_bytes_per_s) filter (nbytes >= {LARGE_BYTES}) as median_bytes_per_s,
    quantile_cont(bandwidth_bytes_per_s, 0.9) filter (nbytes >= {LARGE_BYTES}) as q90_bytes_per_s,
    sum(nbytes) filter (nbytes >= {LARGE_BYTES} and bandwidth_bytes_per_s is not null)::bigint as measured_bytes,
    sum(duration_s) filter (nbytes >= {LARGE_BYTES} and bandwidth_bytes_per_s is not null) as measured_s
from told
left join hosts source on source.worker_id = source_worker_id
left join hosts target on target.worker_id = destination_worker_id
group by pair
order by moved_bytes desc, source_worker, destination_worker
"""

RESULTS_SQL = """
select
    prefix,
    count(*) as result_count,
    sum(move_count)::bigint as move_count,
    sum(moved_bytes)::bigint as moved_bytes,
    count(*) filter (move_count > 1) as repeated_result_count,
    coalesce(sum(moved_bytes - nbytes), 0)::bigint as moved_again_bytes,
    sum(move_count - destination_count)::bigint as repeated_destination_count,
    max(destination_count) as most_destination_count,
    max(nbytes) as largest_bytes
from moved_results
group by prefix
order by moved_bytes desc nulls last, prefix
"""

AGAIN_SQL = """
with most as (
    select * from moved_results where move_count > 1 order by moved_bytes - nbytes desc nulls last, key_id limit ?
)
select
    keys.key,
    prefix,
    nbytes,
    move_count,
    destination_count,
    moved_bytes,
    moved_bytes - nbytes as moved_again_bytes
from most
left join keys on keys.key_id = most.key_id
order by moved_again_bytes desc nulls last, keys.key
"""

RECORD_SQL = """
select
    count(*) as transfer_count,
    coalesce(sum(nbytes), 0)::bigint as moved_bytes,
    count(*) filter (destination_worker_id is null) as client_count,
    count(*) filter (destination_worker_id is not null) as between_count,
    coalesce(sum(nbytes) filter (destination_worker_id is not null), 0)::bigint as between_bytes,
    count(*) filter (destination_worker_id is not null and not is_paired) as one_end_count,
    (select count(*) from worker_lives) as worker_count,
    (select count(*) from worker_lives where not is_captured) as not_captured_count,
    (select count(*) from raw.losses where "table" in ('transfers', 'transfer_keys')) as loss_count,
    (select sum(thread_count) from worker_lives)
        * (select last_task_s - first_task_s from run_summary) as thread_time_s
from transfers_distinct
"""


def transfer_matrix(run: Run) -> pa.Table:
    """What went from worker to worker: one row per pair, most bytes first.

    busy_s is the time in which something moved between the two; summed_s adds up movements
    that overlap.  Bandwidths are of movements of 1 MiB and more that took 1 ms and more;
    those that overlap share the link, so each is a lower bound of what the link could do.
    is_same_host is null where a host is not known.

    From: transfers_distinct, servers, worker_lives
    Columns: source_worker, destination_worker, is_same_host, transfer_count, result_count, moved_bytes, busy_s,
    summed_s, measured_transfer_count, q10_bytes_per_s, median_bytes_per_s, q90_bytes_per_s, measured_bytes, measured_s
    """
    rows, times = run.sql(MATRIX_SQL).to_arrow_table(), run.sql(TIMES_SQL).to_arrow_table()
    pair, start, stop = (times[name].to_numpy() for name in ("pair", "start_s", "stop_s"))
    busy_s = _busy(pair, start, stop, rows.num_rows)
    at = rows.column_names.index("summed_s")
    return rows.add_column(at, "busy_s", pa.array(busy_s[rows["pair"].to_numpy()])).drop_columns(["pair"])


def _busy(pair: Integers, start: Floats, stop: Floats, count: int) -> Floats:
    """Return the seconds in which something moved between each pair of workers."""
    order = by_code(pair)
    start, stop = start[order], stop[order]
    bounds = np.searchsorted(pair[order], np.arange(count + 1))
    busy_s = np.zeros(count)
    for each, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
        begin, end = united(start[first:last], stop[first:last])
        busy_s[each] = np.maximum(end - begin, 0.0).sum()
    return busy_s


def results_moved(run: Run) -> pa.Table:
    """Results that moved between workers: one row per prefix, most bytes first.

    A result that moved n times was moved again n - 1 times; that several workers need it
    is the usual reason.  repeated_destination_count are moves to a worker that had had it.

    From: transfers_distinct, transfer_keys, tasks
    Columns: prefix, result_count, move_count, moved_bytes, repeated_result_count, moved_again_bytes,
    repeated_destination_count, most_destination_count, largest_bytes
    """
    return run.sql(RESULTS_SQL).to_arrow_table()


def results_moved_again(run: Run, limit: int = LARGEST) -> pa.Table:
    """Results that moved more than once: one row per key, most bytes moved again first, `limit` rows.

    From: transfers_distinct, transfer_keys, tasks
    Columns: key, prefix, nbytes, move_count, destination_count, moved_bytes, moved_again_bytes
    """
    return run.sql(AGAIN_SQL, [limit]).to_arrow_table()


def transfers(run: Run) -> Answer:
    """Return what moved between workers, what waited for it, and what work stealing had to do with it."""
    (record,) = rows_of(run, RECORD_SQL)
    (stolen,) = rows_of(run, COUNTS_SQL)
    matrix, results, idle = transfer_matrix(run), results_moved(run), threads_idle_for_inputs(run)
    waits = waits_for_inputs(run)
    again = results_moved_again(run)
    steals, repeated = steals_by_prefix(run), stolen_again(run, LARGEST)
    stolen["idle_thread_s"] = pc.sum(idle["idle_for_stolen_thread_s"]).as_py()
    thefts = stealing_conclusions(stolen, steals, repeated)
    found = [
        *thefts,
        *_wait_conclusions(record, waits, idle, sum(each.thread_s or 0.0 for each in thefts)),
        *_again_conclusions(record, results, matrix),
        *_link_conclusions(matrix),
    ]
    return Answer(
        _headline(record, results, stolen),
        ranked(found),
        (
            AnswerTable("workers", "From worker to worker, most bytes first", matrix),
            AnswerTable("waits", "Waits for inputs by prefix of the waiting task, longest first", waits),
            AnswerTable("idle", "Threads without a task while tasks of their worker waited for inputs", idle),
            AnswerTable("results", "Results moved by their prefix, most bytes first", results),
            AnswerTable("moved-again", "Results that moved more than once, most bytes first", again),
            AnswerTable("steals", "Work stealing by prefix, most stolen first", steals),
            AnswerTable("stolen-again", "Tasks stolen more than once, most often first", repeated),
        ),
        _basis(record),
    )


def _headline(record: Document, results: pa.Table, stolen: Document) -> str:
    if not record["between_count"]:
        moved = "No result moved between workers, as far as recorded"
    else:
        moved = (
            f"{bytes_text(record['between_bytes'])} moved between workers in "
            f"{plural(record['between_count'], 'transfer')}"
        )
        again = pc.sum(results["moved_again_bytes"]).as_py() or 0
        if again and record["between_bytes"]:
            moved += f", {again / record['between_bytes']:.0%} of it results that had moved before"
    count = stolen["steal_count"]
    theft = f"work stealing moved {plural(count, 'task')}" if count else "nothing was stolen"
    return f"{moved}; {theft}."


def _basis(record: Document) -> str:
    lacks = []
    if record["not_captured_count"]:
        lacks.append(f"{record['not_captured_count']} of {plural(record['worker_count'], 'worker')} left no record")
    if record["one_end_count"]:
        lacks.append(f"{plural(record['one_end_count'], 'transfer')} told by one end only")
    if record["loss_count"]:
        lacks.append("rows of transfers were lost")
    told = f"Transfers that workers told of ({record['client_count']:,} more went to clients); sizes are Dask's sizeof."
    return f"{told} {'; '.join(lacks)}." if lacks else told


def _wait_conclusions(record: Document, waits: pa.Table, idle: pa.Table, told_s: float) -> list[Conclusion]:
    """Return what waits for inputs cost, beside the thread-seconds already told of stolen tasks."""
    lost, whole = (pc.sum(idle["idle_thread_s"]).as_py() or 0.0) - told_s, record["thread_time_s"]
    if not whole or lost < COST_S or lost < COST_SHARE * whole:
        return []
    most = waits.slice(0, 1).to_pylist()[0]
    beside = "beside those for stolen tasks, " if told_s else ""
    whose = f"most of it tasks of {most['prefix']}" if most["prefix"] is not None else "tasks of unknown prefix"
    return [
        Conclusion(
            "transfers",
            most["prefix"] or "transfers",
            f"Threads had no task for {seconds_text(lost)} ({lost / whole:.0%} of their time while tasks ran) while "
            f"tasks of their worker waited for results of other workers; {beside}{whose}.",
            "likely",
            lost,
            "Make the results that move smaller (reduce before combining), or place tasks where their inputs are "
            "(larger chunks, fewer stages, `workers=`).",
            {"idle_thread_s": lost, "thread_share": lost / whole, "wait_s": most["wait_s"], "prefix": most["prefix"]},
        )
    ]


def _again_conclusions(record: Document, results: pa.Table, matrix: pa.Table) -> list[Conclusion]:
    total, whole = record["between_bytes"], record["thread_time_s"]
    again = pc.sum(results["moved_again_bytes"]).as_py() or 0
    busy = pc.sum(pc.if_else(pc.is_valid(matrix["is_same_host"]), matrix["busy_s"], 0.0)).as_py() or 0.0
    # Links at work for the part moved again, held against the threads' time: a few fast moves say nothing.
    spent = busy * again / total if total else 0.0
    if not whole or again < AGAIN_SHARE * total or spent < COST_S or spent < COST_SHARE * whole:
        return []
    most: dict[str, Any] = max(results.to_pylist(), key=lambda row: row["moved_again_bytes"])
    return [
        Conclusion(
            "transfers",
            most["prefix"] or "transfers",
            f"{bytes_text(again)} of {bytes_text(total)} moved between workers had moved before: "
            f"{plural(most['repeated_result_count'], 'result')} of {most['prefix'] or 'unknown prefix'} went to up to "
            f"{plural(most['most_destination_count'], 'worker')}.",
            "certain",
            None,
            "Fuse the tasks that use it, give each worker its part only, or scatter it once with `broadcast=True`.",
            {"moved_again_bytes": again, "moved_bytes": total, "links_busy_s": spent, "prefix": most["prefix"]},
        )
    ]


def _link_conclusions(matrix: pa.Table) -> list[Conclusion]:
    rows = [
        row
        for row in matrix.to_pylist()
        if row["is_same_host"] is not None
        and row["measured_transfer_count"] >= LINK_COUNT
        and row["source_worker"] != row["destination_worker"]
    ]
    found = []
    for is_same_host in (True, False):
        kind = [row for row in rows if row["is_same_host"] is is_same_host]
        if len(kind) < LINK_COUNT:
            continue
        speeds = sorted(row["median_bytes_per_s"] for row in kind)
        usual = speeds[len(speeds) // 2]
        for row in kind:
            excess = row["measured_s"] - row["measured_bytes"] / usual
            # Nine of ten of its movements are slower than the usual one of others, so that it is no chance.
            if row["q90_bytes_per_s"] * SLOW_LINK_RATIO <= usual and excess >= COST_S:
                place = "on the same host" if is_same_host else "between hosts"
                found.append(
                    Conclusion(
                        "transfers",
                        f"{row['source_worker']} to {row['destination_worker']}",
                        f"From {row['source_worker']} to {row['destination_worker']} results moved at "
                        f"{bytes_text(row['median_bytes_per_s'])}/s, {usual / row['median_bytes_per_s']:.1f} times "
                        f"slower than is usual {place} ({bytes_text(usual)}/s), over {row['measured_transfer_count']} movements.",
                        "possible",
                        None,
                        "Look at the network between the two, and at what else they did then: a blocked event loop "
                        "slows transfers too (`recup stalls`).",
                        {
                            "median_bytes_per_s": row["median_bytes_per_s"],
                            "usual_bytes_per_s": usual,
                            "excess_s": excess,
                        },
                    )
                )
    return found
