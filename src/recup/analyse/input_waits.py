"""Waits of attempts for inputs from other workers, and threads that had no task meanwhile.

Part of `recup.analyse.movement`.  A wait is from when the worker took the attempt in to
when its last input was there; both moments are of one clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recup.analyse.rows import rows_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from recup.store import Run

_WAITED = """
with placed as (
    -- An attempt without a second moment (cancelled, lost) is left out.
    select prefix, worker_id, received_s as from_s, waited_s as to_s, compute_s, is_from_steal
    from attempt_facts
    where remote_count > 0 and waited_s >= received_s
)
"""

WAITS_SQL = f"""
{_WAITED}
select
    prefix,
    count(*) as attempt_count,
    sum(to_s - from_s) as wait_s,
    median(to_s - from_s) as median_wait_s,
    max(to_s - from_s) as longest_wait_s,
    sum(compute_s) as compute_s,
    count(*) filter (to_s - from_s > compute_s) as longer_than_compute_task_count,
    count(*) filter (is_from_steal) as stolen_task_count
from placed
group by prefix
order by wait_s desc, prefix
"""

PLACED_SQL = f"{_WAITED} select worker_id, from_s, to_s, is_from_steal from placed"

BUSY_SQL = """
select worker_id, started_s, stopped_s
from task_runs
where worker_id is not null and thread is not null and started_s is not null and stopped_s >= started_s
"""

THREADS_SQL = """
select worker_id, any_value(address) as worker, max(thread_count) as thread_count
from worker_lives
where worker_id is not null
group by worker_id
"""

_IDLE = pa.schema(
    [
        ("worker", pa.string()),
        ("thread_count", pa.int64()),
        ("waiting_s", pa.float64()),
        ("idle_thread_s", pa.float64()),
        ("idle_for_stolen_thread_s", pa.float64()),
    ]
)


def waits_for_inputs(run: Run) -> pa.Table:
    """Attempts that waited on their worker for inputs from others: one row per prefix, most waiting first.

    A wait is from when the worker took the attempt in to when its last input was there.
    Many tasks wait at once and threads work meanwhile: these seconds are no thread-seconds.

    From: receptions, worker_transitions, task_runs
    Columns: prefix, attempt_count, wait_s, median_wait_s, longest_wait_s, compute_s, longer_than_compute_task_count,
    stolen_task_count
    """
    return run.sql(WAITS_SQL).to_arrow_table()


def threads_idle_for_inputs(run: Run) -> pa.Table:
    """Thread-seconds without a task while tasks of the worker waited for inputs: one row per worker, most first.

    As many threads count at a moment as tasks wait, and no more than have no task.

    From: receptions, worker_transitions, task_runs, worker_lives
    Columns: worker, thread_count, waiting_s (at least one task waits), idle_thread_s, idle_for_stolen_thread_s
    (the same for tasks that came by stealing)
    """
    waits = run.sql(PLACED_SQL).to_arrow_table()
    if not waits.num_rows:
        return _IDLE.empty_table()
    lives = {each["worker_id"]: each for each in rows_of(run, THREADS_SQL)}
    workers = waits["worker_id"].combine_chunks().unique()
    from_s, to_s, is_stolen = _by_worker(waits, workers, ("from_s", "to_s", "is_from_steal"))
    started_s, stopped_s = _by_worker(run.sql(BUSY_SQL).to_arrow_table(), workers, ("started_s", "stopped_s"))
    rows: list[dict[str, Any]] = []
    for at, worker_id in enumerate(workers.to_pylist()):
        life = lives.get(worker_id, {"worker": None, "thread_count": None})
        waits_of, tasks_of = (from_s[at], to_s[at], is_stolen[at]), (started_s[at], stopped_s[at])
        waiting_s, idle_s, stolen_s = _idle(life["thread_count"] or 0, waits_of, tasks_of)
        if waiting_s > 0:
            told = {"waiting_s": waiting_s, "idle_thread_s": idle_s, "idle_for_stolen_thread_s": stolen_s}
            rows.append({"worker": life["worker"], "thread_count": life["thread_count"]} | told)
    rows.sort(key=lambda row: (-row["idle_thread_s"], row["worker"] is None, row["worker"] or ""))
    return pa.Table.from_pylist(rows, schema=_IDLE)


def _by_worker(rows: pa.Table, workers: pa.Array, names: tuple[str, ...]) -> list[list[npt.NDArray[Any]]]:
    """Return columns cut into one part per worker, without rows of others."""
    import pyarrow.compute as pc

    code = pc.fill_null(pc.index_in(rows["worker_id"], workers), len(workers)).to_numpy()
    code = code.astype(np.int16 if len(workers) < 1 << 15 else np.int32)
    order = np.argsort(code, kind="stable")
    bounds = np.searchsorted(code[order], np.arange(1, len(workers) + 1))
    return [np.split(rows[name].to_numpy()[order], bounds) for name in names]


def _idle(
    thread_count: int, waits: tuple[npt.NDArray[Any], ...], tasks: tuple[npt.NDArray[Any], ...]
) -> tuple[float, float, float]:
    """Return seconds in which tasks of one worker wait, and thread-seconds idle for them and for stolen ones."""
    from_s, to_s, is_stolen = waits
    started_s, stopped_s = tasks
    at = np.concatenate([from_s, to_s, started_s, stopped_s])
    order = np.argsort(at)
    length = np.diff(at[order])

    def level(*parts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return np.cumsum(np.concatenate(parts)[order].astype(np.int64))[:-1]

    no_wait, no_task = np.zeros(len(from_s), np.int8), np.zeros(len(started_s), np.int8)
    one_wait, one_task, theft = no_wait + 1, no_task + 1, is_stolen.astype(np.int8)
    waiting = level(one_wait, -one_wait, no_task, no_task)
    stolen = level(theft, -theft, no_task, no_task)
    busy = level(no_wait, no_wait, one_task, -one_task)
    free = np.maximum(thread_count - busy, 0)
    return (
        float(length[waiting > 0].sum()),
        float((length * np.minimum(waiting, free)).sum()),
        float((length * np.minimum(stolen, free)).sum()),
    )
