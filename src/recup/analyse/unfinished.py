"""Tasks that did not finish: the last state of each, and what it waits for.

Part of the answer of `recup.analyse.stuck`.  Covers every task that a scheduler began and
did not bring to an end, and the one task or want at the root of its waiting.

A task counts as not finished when it waited, was queued, had no worker or was being
processed when it was last heard of: at the end of the record, or when it was given up
(its client let go of it).  What the last workers did to tasks by leaving at the end of a
run is no such state.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recup.analyse.rows import Document, once_per_run, rows_of
from recup.terminal import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recup.store import Run

ENDS_SQL = """
with moved as (
    select server_id, max(last_ns) as last_ns, count(*) as task_count
    from (select server_id, key_id, max(time_ns) as last_ns from raw.scheduler_transitions group by server_id, key_id)
    group by server_id
), signs as (
    select server_id, last_ns as time_ns from moved
    union all
    select server_id, max(time_ns) from raw.clock_samples group by server_id
    union all
    select server_id, max(last_sign_ns) from spools group by server_id
)
select
    s.server_id as scheduler_id,
    (select started_s from run_times) as origin_s,
    max(signs.time_ns) / 1e9 as end_s,
    any_value(moved.last_ns) / 1e9 as last_transition_s,
    coalesce(any_value(moved.task_count), 0) as task_count,
    coalesce((select bool_or(is_alive) from spools where spools.server_id = s.server_id), false) as is_growing,
    coalesce((select bool_and(is_closed) from spools where spools.server_id = s.server_id), false) as is_closed,
    exists (
        select 1 from raw.losses l
        where l.server_id = s.server_id and l."table" = 'scheduler_transitions'
    ) as has_gaps,
    exists (
        select 1 from worker_lives w
        where w.scheduler_id = s.server_id and w.left_s is null and w.ended = 'there at the end'
    ) as has_workers
from servers s
left join signs on signs.server_id = s.server_id
left join moved on moved.server_id = s.server_id
where s.role = 'scheduler'
group by s.server_id
order by s.server_id
"""

LEAVING_SQL = """
with last_results as (
    select server_id, max(time_ns) as time_ns
    from raw.scheduler_transitions
    where finish in ('memory', 'erred')
    group by server_id
), workforce as (
    select
        server_id,
        max(time_ns) filter (action <> 'remove') as last_came_ns,
        count(*) filter (action <> 'remove') <= count(*) filter (action = 'remove') as is_empty_at_end
    from raw.workers
    group by server_id
)
-- The last workers go when all is over: what that does to tasks is no news of theirs.
select distinct w.server_id, w.stimulus_id
from raw.workers w
join workforce f using (server_id)
left join last_results r using (server_id)
where w.action = 'remove' and w.stimulus_id is not null and f.is_empty_at_end
    and w.time_ns > coalesce(f.last_came_ns, 0) and w.time_ns > coalesce(r.time_ns, 0)
"""
"""Causes of transitions that are the end of a run: its last workers went."""

NO_LEAVING_SQL = """
(coalesce(t.stimulus_s not between ? and ?, false)
    or not coalesce(list_contains(?::varchar[], t.server_id || ' ' || t.stimulus_id), false))
"""
"""Whether a row of transitions is of none of these causes; their times first, as texts cost much."""

UNFINISHED_SQL = """
with moved as not materialized (
    -- To keep so many rows costs more than to read them twice.
    select t.server_id, t.key_id, t.time_ns, t.finish
    from raw.scheduler_transitions t
    where {no_leaving}
), candidates as (
    -- What was begun last comes after what was done last: told by numbers alone, which leaves few.
    select
        server_id,
        key_id,
        max(time_ns) filter (finish in ('waiting', 'processing', 'queued', 'no-worker')) as begun_ns,
        max(time_ns) filter (
            finish not in ('waiting', 'processing', 'queued', 'no-worker', 'released', 'forgotten')
        ) as done_ns
    from moved
    group by server_id, key_id
    having begun_ns >= coalesce(done_ns, begun_ns)
), last_moves as (
    select
        server_id,
        key_id,
        arg_max(finish, time_ns) filter (finish not in ('released', 'forgotten')) as state,
        max(time_ns) filter (finish not in ('released', 'forgotten')) as since_ns,
        max(time_ns) as last_ns,
        min(time_ns) as first_ns,
        arg_max(finish, time_ns) in ('released', 'forgotten') as is_given_up
    from moved
    semi join candidates using (server_id, key_id)
    group by server_id, key_id
), unfinished as (
    select * from last_moves where state in ('waiting', 'processing', 'queued', 'no-worker')
), told as (
    select
        t.server_id, t.key_id, arg_max(t.prefix, t.submission) as prefix,
        arg_max(t.restrictions, t.submission) filter (t.restrictions is not null) as restrictions
    from raw.tasks t
    semi join unfinished u on u.server_id = t.server_id and u.key_id = t.key_id
    group by t.server_id, t.key_id
), attempts as (
    select r.scheduler_id as server_id, r.key_id,
        arg_max(r.worker, r.attempt_number) as worker,
        arg_max(r.worker_id, r.attempt_number) as worker_id,
        max(r.assigned_s) as assigned_s,
        arg_max(r.executing_s, r.attempt_number) filter (r.executing_s is not null) as executing_s,
        bool_or(r.outcome = 'memory' and r.stored_s is null) as is_done_by_worker
    from task_runs r
    semi join unfinished u on u.server_id = r.scheduler_id and u.key_id = r.key_id
    group by r.scheduler_id, r.key_id
)
select
    u.server_id as scheduler_id,
    u.key_id,
    told.prefix,
    u.state,
    case when u.state = 'processing' then coalesce(attempts.assigned_s, u.since_ns / 1e9) else u.since_ns / 1e9 end
        as since_s,
    case when u.is_given_up then u.last_ns / 1e9 end as given_up_s,
    told.restrictions,
    case when u.state = 'processing' then attempts.worker end as worker,
    case when u.state = 'processing' then attempts.worker_id end as worker_id,
    case when u.state = 'processing' and attempts.executing_s >= attempts.assigned_s then attempts.executing_s end
        as executing_s
from unfinished u
left join told using (server_id, key_id)
left join attempts using (server_id, key_id)
where not (u.state = 'processing' and coalesce(attempts.is_done_by_worker, false))
order by u.server_id, u.key_id
"""

EDGES_SQL = """
select distinct server_id as scheduler_id, key_id, dependency_id
from raw.dependencies
"""

KEYS_SQL = "select key_id, key from keys where key_id in (select unnest(?::bigint[]))"

WORKERS_SQL = """
with statuses as (
    select topic as worker, arg_max(try(json_extract_string(payload, '$.status')), time_ns) as status
    from raw.events
    where action = 'worker-status-change'
    group by topic
), offers as (
    select worker_id, any_value(try(json_extract_string(details, '$.resources'))) as resources
    from raw.workers
    where action <> 'remove'
    group by worker_id
)
select w.scheduler_id, w.worker_id, w.address, w.name, w.host, w.left_s, w.last_sign_s, w.is_captured, statuses.status,
    offers.resources, w.ended
from worker_lives w
left join statuses on statuses.worker = w.address
left join offers on offers.worker_id = w.worker_id
"""

_ROOT_RANK = {"no-worker": 0, "processing": 1, "queued": 2, "waiting": 3}


# ---------------------------------------------------------------- tables


def unfinished_tasks(run: Run) -> pa.Table:
    """Tasks that did not finish: one row per task, those that hold up most first, then the oldest.

    A task that waits is counted at one root only: the unfinished task at the end of a chain
    of unfinished inputs; it may wait for others too.  `age_s` counts to the end of the
    scheduler's record, or to when the task was given up.

    From: scheduler_transitions, tasks, dependencies, workers, task_runs, worker_lives
    Columns: key, prefix, state, since_at_s, age_s, worker, waits_on, root_key, held_up_task_count, given_up_at_s,
    scheduler_id
    """
    return task_rows(run, Unfinished(run), None)


def unfinished_by_state(run: Run) -> pa.Table:
    """Tasks that did not finish: one row per state, prefix and what they wait on, most first.

    Columns: state, prefix, task_count, waits_on, longest_age_s, given_up_task_count
    """
    return state_rows(Unfinished(run))


@once_per_run
def _leaving(run: Run) -> list[tuple[Any, ...]]:
    return run.sql(LEAVING_SQL).fetchall()


def no_leaving(run: Run) -> tuple[str, list[Any]]:
    """Return the condition that a row `t` of transitions is not of the end of the run, and its parameters."""
    causes = _leaving(run)
    if not causes:
        return "true", []
    times = [float(found[1]) for _, cause in causes if (found := re.search(r"-([0-9]+\.[0-9]+)$", cause))]
    texts = sorted(f"{server_id} {cause}" for server_id, cause in causes)
    return NO_LEAVING_SQL, [min(times, default=1.0), max(times, default=0.0), texts]


class Unfinished:
    """Columns of the unfinished tasks, and what explains them: facts gathered once for one answer."""

    def __init__(self, run: Run):
        self.ends = {each["scheduler_id"]: each for each in rows_of(run, ENDS_SQL)}
        self.workers = rows_of(run, WORKERS_SQL) if self.ends else []
        condition, parameters = no_leaving(run)
        self.rows = run.sql(UNFINISHED_SQL.format(no_leaving=condition), parameters).to_arrow_table()
        self.count = self.rows.num_rows
        self.origin_s = next((each["origin_s"] for each in self.ends.values()), None) or 0.0
        schedulers = self.rows["scheduler_id"].to_pylist() if self.count else []
        ends = np.array([(self.ends.get(each) or {}).get("end_s") or np.nan for each in schedulers], dtype=float)
        given_up = self.rows["given_up_s"].to_numpy(zero_copy_only=False).astype(float)
        self.given_up_s = given_up
        self.since_s = self.rows["since_s"].to_numpy(zero_copy_only=False).astype(float)
        self.age_s = np.maximum(np.where(np.isnan(given_up), ends, given_up) - self.since_s, 0.0)
        self.state = np.array(self.rows["state"].to_pylist(), dtype=object)
        self.scheduler = np.array(schedulers, dtype=object)
        self.root = self._roots(run) if self.count else np.zeros(0, dtype=np.int64)
        self.held_up = np.maximum(np.bincount(self.root, minlength=self.count) - 1, 0) if self.count else self.root
        self.restrictions = self.rows["restrictions"].to_pylist()
        self.prefix = self.rows["prefix"].to_pylist()
        self.worker_id = self.rows["worker_id"].to_pylist()
        self.worker = self.rows["worker"].to_pylist()
        self.executing_s = self.rows["executing_s"].to_pylist()
        self._wants: dict[tuple[str, str | None], str] = {}

    def _roots(self, run: Run) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return for each task the index of the unfinished task that it waits for in the end; its own for a root."""
        names = {each: number for number, each in enumerate(dict.fromkeys(self.scheduler))}
        number = np.array([names[each] for each in self.scheduler], dtype=np.int64)
        ids = self.rows["key_id"].to_numpy(zero_copy_only=False)
        edges = run.sql(EDGES_SQL).to_arrow_table().combine_chunks()
        owner = edges["scheduler_id"].to_pylist() if len(names) > 1 else [next(iter(names))] * edges.num_rows
        parent = np.arange(self.count)
        rank = np.array([_ROOT_RANK[each] for each in self.state])
        for scheduler, at in names.items():
            mine = np.flatnonzero(number == at)
            known = ids[mine]  # in order: the query sorts them
            chosen = np.array([each == scheduler for each in owner], dtype=bool) if len(names) > 1 else slice(None)
            task = edges["key_id"].to_numpy()[chosen]
            needed = edges["dependency_id"].to_numpy()[chosen]
            is_open = np.isin(task, known) & np.isin(needed, known)
            child = mine[np.searchsorted(known, task[is_open])]
            source = mine[np.searchsorted(known, needed[is_open])]
            is_waiting = self.state[child] == "waiting"
            child, source = child[is_waiting], source[is_waiting]
            order = np.lexsort((self.since_s[source], rank[source], child))
            child, source = child[order], source[order]
            first = np.concatenate(([True], child[1:] != child[:-1])) if len(child) else np.zeros(0, dtype=bool)
            parent[child[first]] = source[first]
        while not np.array_equal(further := parent[parent], parent):
            parent = further
        return parent

    def waits_on(self, index: int) -> str:
        """Return in words what a task waits on, of itself."""
        state, scheduler = str(self.state[index]), str(self.scheduler[index])
        if state == "no-worker":
            wanted = (scheduler, self.restrictions[index])
            if wanted not in self._wants:
                self._wants[wanted] = want_text(
                    self.restrictions[index],
                    [each for each in self.workers if each["scheduler_id"] in (None, scheduler)],
                    self.since_s[index],
                )
            return self._wants[wanted]
        if state == "queued":
            return "a free thread"
        if state == "processing":
            return self._place_text(index)
        return "its inputs" if self.root[index] != index else "nothing that is recorded"

    def _place_text(self, index: int) -> str:
        executing = self.executing_s[index]
        doing = "runs" if executing is not None else "was sent, and is not known to run"
        life = next((each for each in self.workers if each["worker_id"] == self.worker_id[index]), None)
        if life is None:
            return f"{doing} on a worker that is not known"
        if life["left_s"] is not None and life["left_s"] <= self.since_s[index] + self.age_s[index]:
            return f"{doing} on {life['address']}, which left at {self._at(life['left_s'])}"
        if life["status"] == "paused":
            return f"{doing} on {life['address']}, which is paused for want of memory"
        return f"{doing} on {life['address']}"

    def _at(self, moment_s: float) -> str:
        return seconds_text(moment_s - self.origin_s)


def want_text(restrictions: str | None, workers: Sequence[Document], since_s: float) -> str:
    """Return in words what worker a task without one wants that is not there.

    Parameters
    ----------
    restrictions : str or None
        As in `tasks`.
    workers : list of dict
        Lives of workers of its scheduler: address, name, host, left_s, resources.
    since_s : float
        Since when the task has no worker.
    """
    there = [each for each in workers if each["left_s"] is None or each["left_s"] > since_s]
    wants = json.loads(restrictions) if restrictions else {}
    lacks = []
    for name, amount in (wants.get("resources") or {}).items():
        offered = [json.loads(each["resources"]).get(name, 0) for each in workers if each["resources"]]
        if not any(offered):
            lacks.append(f"resource {name}, which no worker offered when it came")
        elif max(offered) < amount:
            lacks.append(f"{amount:g} of resource {name}, of which no worker offered more than {max(offered):g}")
        else:
            lacks.append(f"a worker with {amount:g} of resource {name}")
    for kind, attributes in (("workers", ("address", "name")), ("hosts", ("host",))):
        if wants.get(kind):
            is_there = any(each[name] in wants[kind] for each in there for name in attributes)
            named = " or ".join(wants[kind][:3]) + (" or others" if len(wants[kind]) > 3 else "")
            lacks.append(f"{kind.removesuffix('s')} {named}" + ("" if is_there else ", which was not there"))
    if lacks:
        return " and ".join(lacks)
    return "a worker: none was there" if not there else "a worker that may take it"


def task_rows(run: Run, found: Unfinished, limit: int | None) -> pa.Table:
    """Return rows of single tasks as `unfinished_tasks` tells them, at most `limit`."""
    order = np.lexsort((-found.age_s, -found.held_up))[:limit] if found.count else np.zeros(0, dtype=np.int64)
    roots = found.root[order]
    ids = found.rows["key_id"].to_numpy(zero_copy_only=False)
    wanted = sorted({*map(int, ids[order]), *map(int, ids[roots])}) if found.count else []
    keys = dict(run.sql(KEYS_SQL, [wanted]).fetchall()) if wanted else {}
    rows = [
        {
            "key": keys.get(int(ids[i])),
            "prefix": found.prefix[i],
            "state": found.state[i],
            "since_at_s": found.since_s[i] - found.origin_s,
            "age_s": found.age_s[i],
            "worker": found.worker[i],
            "waits_on": found.waits_on(int(i)),
            "root_key": keys.get(int(ids[root])) if root != i else None,
            "held_up_task_count": int(found.held_up[i]),
            "given_up_at_s": None if np.isnan(found.given_up_s[i]) else found.given_up_s[i] - found.origin_s,
            "scheduler_id": found.scheduler[i],
        }
        for i, root in zip(order, roots, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_TASK_SCHEMA)


_TASK_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("prefix", pa.string()),
        ("state", pa.string()),
        ("since_at_s", pa.float64()),
        ("age_s", pa.float64()),
        ("worker", pa.string()),
        ("waits_on", pa.string()),
        ("root_key", pa.string()),
        ("held_up_task_count", pa.int64()),
        ("given_up_at_s", pa.float64()),
        ("scheduler_id", pa.string()),
    ]
)
_STATE_SCHEMA = pa.schema(
    [
        ("state", pa.string()),
        ("prefix", pa.string()),
        ("task_count", pa.int64()),
        ("waits_on", pa.string()),
        ("longest_age_s", pa.float64()),
        ("given_up_task_count", pa.int64()),
    ]
)


def state_rows(found: Unfinished) -> pa.Table:
    """Return rows of states as `unfinished_by_state` tells them."""
    if not found.count:
        return _STATE_SCHEMA.empty_table()
    root_state = pa.array(found.state[found.root], pa.string())
    columns = {
        "state": pa.array(found.state, pa.string()),
        "prefix": found.rows["prefix"],
        "restrictions": found.rows["restrictions"],
        "scheduler_id": found.rows["scheduler_id"],
        "root_state": root_state,
        "age_s": pa.array(found.age_s),
        "given_up": pa.array((~np.isnan(found.given_up_s)).astype(np.int64)),
        "index": pa.array(np.arange(found.count)),
    }
    groups = (
        pa.table(columns)
        .group_by(["state", "prefix", "restrictions", "scheduler_id", "root_state"])
        .aggregate([("index", "count"), ("index", "min"), ("age_s", "max"), ("given_up", "sum")])
        .sort_by([("index_count", "descending"), ("index_min", "ascending")])
    )
    rows = [
        {
            "state": each["state"],
            "prefix": each["prefix"],
            "task_count": each["index_count"],
            "waits_on": _group_text(found, each),
            "longest_age_s": each["age_s_max"],
            "given_up_task_count": each["given_up_sum"],
        }
        for each in groups.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=_STATE_SCHEMA)


def _group_text(found: Unfinished, group: Document) -> str:
    if group["state"] == "no-worker":
        return found.waits_on(group["index_min"])
    if group["state"] == "waiting" and group["root_state"] != "waiting":
        return f"tasks that are {group['root_state']}"
    return {"queued": "a free thread", "processing": "its worker"}.get(group["state"], "nothing that is recorded")
