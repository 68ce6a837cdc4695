"""What took the most: attempts of tasks summed by prefix, group, worker, host or thread, or one by one.

Covers how long the computations of attempts took and how they spread.  Why threads did
not compute is `recup.analyse.budget`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.errors import BadQuery

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

GROUPS = {
    "prefix": ("prefix",),
    "group": ("prefix", '"group"'),
    "function": ("function",),
    "worker": ("worker",),
    "host": ("host",),
    "thread": ("worker", "thread"),
}
"""What rows can be of, and the columns that name one; `task` gives single attempts."""


def _grouped_sql(by: str) -> str:
    names = ", ".join(GROUPS[by])
    return f"""
with hosts as (
    select host_id, any_value(hostname) as host from raw.hosts group by host_id
), attempts as (
    select r.*, coalesce(hosts.host, r.host_id) as host
    from attempt_facts r
    left join hosts using (host_id)
)
select
    {names},
    count(*) as attempt_count,
    sum(compute_s) as compute_s,
    sum(compute_s) / nullif(sum(sum(compute_s)) over (), 0) as compute_share,
    median(compute_s) as median_s,
    max(compute_s) as max_s,
    sum(cpu_s) / nullif(sum(compute_s) filter (cpu_s is not null), 0) as cpu_share,
    sum(nbytes)::bigint as result_bytes,
    min(compute_s) as min_s,
    quantile_cont(compute_s, 0.25) as q25_s,
    quantile_cont(compute_s, 0.75) as q75_s,
    count(*) filter (outcome <> 'memory') as without_result_count
from attempts
group by {names}
order by compute_s desc nulls last, attempt_count desc, {names}
"""


GROUPED_SQL = {by: _grouped_sql(by) for by in GROUPS}
"""The question by what rows are of."""

TASKS_SQL = """
select key, compute_s, cpu_s / nullif(compute_s, 0) as cpu_share, worker,
    started_s - (select started_s from run_times) as started_at_s, nbytes as result_bytes, outcome, run_id, prefix
from attempt_facts
where compute_s is not null
order by compute_s desc, key_id, run_id
limit ?
"""


def durations_by(run: Run, by: str = "prefix", limit: int = 1000) -> pa.Table:
    """Computations summed: one row per prefix, group, function, worker, host or thread, most seconds first.

    An attempt that told no duration (it did not end) counts, and adds no seconds.  With
    ``task``, one row per attempt, the `limit` longest.  cpu_share is CPU by computing time
    where threads were counted.

    From: task_runs, thread_counters, servers, hosts
    Columns: those of `GROUPS`, attempt_count, compute_s, compute_share, median_s, max_s, cpu_share, result_bytes,
    min_s, q25_s, q75_s, without_result_count; of tasks key, compute_s, cpu_share, worker, started_at_s,
    result_bytes, outcome, run_id, prefix

    Raises
    ------
    BadQuery
        `by` is no such thing.
    """
    if by == "task":
        return run.sql(TASKS_SQL, [limit]).to_arrow_table()
    if by not in GROUPED_SQL:
        raise BadQuery(f"Durations are told by {', '.join((*GROUPED_SQL, 'task'))}, not by {by!r}.")
    return run.sql(GROUPED_SQL[by]).to_arrow_table()
