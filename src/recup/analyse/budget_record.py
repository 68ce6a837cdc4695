"""What the budget of a run stands on: spans of workers, tasks and waits, read from its tables.

Covers the window of the run and every span that `recup.analyse.budget_sweep` counts, as
arrays.  It decides what is a task in a thread, under way, or waiting for inputs; it sums
nothing.

A task holds a slot of its worker from start to stop of its computation, or until it seceded;
coroutines hold one too, as Dask gives a worker no more of them than it has threads.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recup.analyse.budget_sweep import BUSY, Floats, Integers, Mask, Record, Spans, most_at_once
from recup.analyse.rows import by_code

if TYPE_CHECKING:
    from recup.store import Run

WINDOW_SQL = """
select
    started_s,
    ended_s,
    (select min(assigned_s) from task_runs) as first_task_s,
    (select max(ended_s) from task_runs) as last_task_s
from run_times
"""

LIVES_SQL = """
with told as (
    select server_id, any_value(thread_count) as thread_count from raw.processes group by server_id
), seen as (
    select coalesce(worker_id, worker) as identity, count(distinct thread) as thread_count, min(assigned_s) as first_s
    from task_runs
    group by 1
)
select
    coalesce(l.scheduler_id, '') as scheduler_id,
    coalesce(l.worker_id, l.address, '') as identity,
    l.worker_id,
    l.address,
    l.host_id,
    coalesce(l.thread_count, told.thread_count, seen.thread_count, 0) as thread_count,
    l.thread_count is null and told.thread_count is null as is_thread_count_seen,
    coalesce(l.came_s, seen.first_s) as came_s,
    l.left_s,
    l.last_sign_s,
    l.is_captured
from worker_lives l
left join told on told.server_id = l.worker_id
left join seen on seen.identity = coalesce(l.worker_id, l.address)
order by came_s, identity
"""

ATTEMPTS_SQL = """
select
    coalesce(t.scheduler_id, '') as scheduler_id,
    coalesce(t.worker_id, t.worker, '') as identity,
    t.prefix,
    t.outcome,
    t.ready_s,
    t.assigned_s,
    t.received_s,
    t.inputs_s,
    t.is_constrained,
    t.executing_s,
    t.started_s,
    t.stopped_s,
    t.seceded_s,
    t.ended_s,
    t.cpu_s,
    t.queue_wait_s,
    {io} as io_s,
    {closed} as closed_s,
    {fetch_start} as fetch_start_s,
    {fetch_stop} as fetch_stop_s
from attempt_facts t
"""
"""One row per attempt.  What few runs have is joined only where it is there: see `_JOINS`."""

_IO_JOIN = """
left join (
    select worker_id, key_id, run_id, sum(io_s) as io_s from task_io_totals where run_id is not null group by all
) i on i.worker_id = t.worker_id and i.key_id = t.key_id and i.run_id = t.run_id
"""
_CLOSED_JOIN = """
left join (
    select o.worker_id, o.key_id, o.run_id, min(w.time_ns / 1e9 + coalesce(c.offset_s, 0.0)) as closed_s
    from task_runs o
    join clocks c on c.server_id = o.worker_id
    join raw.worker_transitions w on w.server_id = o.worker_id and w.key_id = o.key_id
    where o.executing_s is not null and o.stopped_s is null
        and w.start in ('executing', 'long-running', 'cancelled', 'resumed')
        and w.finish not in ('executing', 'long-running', 'cancelled', 'resumed')
        and coalesce(w.state, w.finish) not in ('executing', 'long-running', 'cancelled', 'resumed')
        and w.time_ns / 1e9 + coalesce(c.offset_s, 0.0) >= o.executing_s - 1e-6
    group by all
) e on e.worker_id = t.worker_id and e.key_id = t.key_id and e.run_id = t.run_id
"""
_FETCH_JOIN = """
left join (
    select server_id as scheduler_id, key_id, run_id, min(start_s) as start_s, max(stop_s) as stop_s
    from raw.startstops
    where role = 'scheduler' and action = 'transfer' and run_id is not null
    group by all
) f on f.scheduler_id = t.scheduler_id and f.key_id = t.key_id and f.run_id = t.run_id and t.received_s is null
"""

_PRESENT_SQL = """
select
    exists (select 1 from raw.io_segments) as has_io,
    exists (select 1 from task_runs where executing_s is not null and stopped_s is null) as has_open,
    exists (select 1 from task_runs where received_s is null) as has_unreceived
"""

ACTIVITIES_SQL = """
select
    coalesce(t.scheduler_id, '') as scheduler_id,
    coalesce(t.worker_id, t.worker, '') as identity,
    t.prefix,
    p.action,
    -- Dask leaves disk times on the worker's own clock and shifts the others.
    p.start_s + case when p.action like 'disk-%' then coalesce(c.offset_s, 0.0) else 0.0 end as start_s,
    p.stop_s + case when p.action like 'disk-%' then coalesce(c.offset_s, 0.0) else 0.0 end as stop_s
from raw.startstops p
join servers s on s.server_id = p.server_id
join task_runs t on t.scheduler_id = s.scheduler_id and t.key_id = p.key_id and t.run_id = p.run_id
left join clocks c on c.server_id = t.worker_id
where (p.action = 'deserialize'
    or p.action in ('disk-write', 'disk-read') and t.worker_id in (select worker_id from spilled_workers))
    and (p.role <> 'scheduler' or t.received_s is null)
"""

WANTED_SQL = """
with told as (
    select server_id, key_id, submission from raw.tasks
    union all by name
    select server_id, key_id, time_ns from raw.scheduler_transitions where finish in ('memory', 'erred', 'forgotten')
), ends as (
    select server_id, key_id, min(submission) as submission, min(time_ns) as done_ns
    from told
    group by server_id, key_id
    having min(submission) is not null
), undone as (
    -- A task that is only listed and never asked for is not wanted.
    select distinct t.server_id, t.key_id
    from raw.scheduler_transitions t
    semi join (select server_id, key_id from ends where done_ns is null) u
        on u.server_id = t.server_id and u.key_id = t.key_id
    where t.finish in ('waiting', 'queued', 'no-worker', 'processing')
)
select
    e.server_id as scheduler_id,
    s.time_ns / 1e9 as start_s,
    max(e.done_ns) / 1e9 as stop_s,
    count(u.key_id) > 0 as is_open
from ends e
join raw.submissions s on s.server_id = e.server_id and s.submission = e.submission
left join undone u on u.server_id = e.server_id and u.key_id = e.key_id
group by e.server_id, s.submission, s.time_ns
"""
"""One row per graph: from its taking until the last task it brought was done for the first time."""

STATUS_SQL = """
select server_id as scheduler_id, topic as address, time_ns / 1e9 as at_s, payload
from raw.events
where action = 'worker-status-change'
order by time_ns
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The time the run took as its user waited for it, in seconds since the epoch.

    Attributes
    ----------
    start_s, stop_s : float
        Its ends.
    origin_s : float
        Start of the record, from which moments of all answers are counted.
    """

    start_s: float
    stop_s: float
    origin_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A record, the lives it is of, and what is to be said about it."""

    window: Window
    lives: pa.Table
    record: Record
    notes: dict[str, Any]


def window(run: Run) -> Window:
    """Return from when to when the run went: by its program's start and end where they are told and fit its tasks."""
    ((started_s, ended_s, first_task_s, last_task_s),) = run.sql(WINDOW_SQL).fetchall()
    told_start, told_end = (_seconds(run.manifest.get(name)) for name in ("started_ns", "ended_ns"))
    if started_s is None or ended_s is None:
        start = told_start if told_start is not None else 0.0
        return Window(start, max(told_end if told_end is not None else start, start), start)
    start, stop = started_s, ended_s
    if told_start is not None and told_start <= (ended_s if first_task_s is None else first_task_s):
        start = told_start
    if told_end is not None and told_end >= max(last_task_s or started_s, start):
        stop = told_end
    return Window(start, max(stop, start), started_s)


def _seconds(time_ns: object) -> float | None:
    return time_ns / 1e9 if isinstance(time_ns, (int, float)) and not isinstance(time_ns, bool) else None


def most_threads(run: Run) -> int:
    """Return the most worker threads alive at one instant of the run."""
    frame = window(run)
    lives = run.sql(LIVES_SQL).to_arrow_table()
    came, left, sign = (numbers(lives[name]) for name in ("came_s", "left_s", "last_sign_s"))

    def inside(moments: Floats) -> Integers:
        return np.rint((np.clip(moments, frame.start_s, frame.stop_s) - frame.start_s) * 1e9).astype(np.int64)

    begin, end = inside(_or(came, frame.start_s)), inside(_or(left, _or(sign, frame.stop_s)))
    return most_at_once(begin, end, numbers(lives["thread_count"]).astype(np.int64))


def read_record(run: Run) -> Found:
    """Read what the budget of a run stands on."""
    frame = window(run)
    lives = run.sql(LIVES_SQL).to_arrow_table()
    ((has_io, has_open, has_unreceived),) = run.sql(_PRESENT_SQL).fetchall()
    query = ATTEMPTS_SQL.format(
        io="i.io_s" if has_io else "null::double",
        closed="e.closed_s" if has_open else "null::double",
        fetch_start="f.start_s" if has_unreceived else "null::double",
        fetch_stop="f.stop_s" if has_unreceived else "null::double",
    )
    query += (_IO_JOIN if has_io else "") + (_CLOSED_JOIN if has_open else "") + (_FETCH_JOIN if has_unreceived else "")
    attempts = _in_order(run.sql(query).to_arrow_table())
    activities = run.sql(ACTIVITIES_SQL).to_arrow_table()
    places = _Places(lives)
    names: list[str | None] = [None, *sorted(pc.unique(attempts["prefix"]).drop_null().to_pylist())]
    prefix_codes = {name: code for code, name in enumerate(names)}

    told: dict[tuple[int, str], tuple[pa.Table, Floats]] = {}  # with the table, so that its id stays its own

    def moments(rows: pa.Table, name: str) -> Floats:
        asked = (id(rows), name)
        if asked not in told:
            told[asked] = (rows, numbers(rows[name]) - frame.start_s)
        return told[asked][1]

    place, prefix = places.workers(attempts), codes(attempts["prefix"], prefix_codes)
    waits, executing, shares, notes = _of_attempts(attempts, moments, place, prefix)
    acting, of = places.workers(activities), codes(activities["prefix"], prefix_codes)
    action = codes(activities["action"], {"disk-write": 1, "disk-read": 1, "deserialize": 2})
    begin, end = moments(activities, "start_s"), moments(activities, "stop_s")
    for kind, code in (("spill", 1), ("deserialize", 2)):
        chosen = np.flatnonzero((action == code) & (acting >= 0))
        waits[kind] = Spans(acting[chosen], begin[chosen], end[chosen], of[chosen])
    waits["paused"] = _paused(run, frame, places)
    cluster = places.clusters(attempts, place)
    assigned, ready, ended = (moments(attempts, f"{name}_s") for name in ("assigned", "ready", "ended"))
    queued = np.flatnonzero(assigned > ready)
    left = numbers(lives["left_s"])
    # A life whose end was not recorded ends with the worker's own record, or its last task there.
    signs = numbers(lives["last_sign_s"])
    latest = _latest(place, np.fmax(moments(attempts, "stopped_s"), ended), len(places.cluster)) + frame.start_s
    record = Record(
        wall_s=frame.stop_s - frame.start_s,
        cluster=places.cluster,
        lives=Spans(
            places.of_lives,
            _or(moments(lives, "came_s"), 0.0),
            _or(_or(left, np.fmax(signs, latest[places.of_lives] if len(lives) else signs)) - frame.start_s, np.inf),
            np.zeros(len(lives), np.int64),
        ),
        threads=numbers(lives["thread_count"]).astype(np.int64),
        executing=executing,
        shares=shares,
        waits=waits,
        queued=Spans(cluster[queued], ready[queued], assigned[queued], prefix[queued]),
        wanted=_wanted(run, places, attempts, cluster, moments),
        prefixes=tuple(names),
        attempts=np.bincount(prefix, minlength=len(names)),
    )
    notes |= {
        "has_io": has_io,
        "attempt_count": len(attempts),
        "seen_thread_count": int(pc.sum(lives["is_thread_count_seen"]).as_py() or 0),
        "uncaptured_count": int(pc.sum(pc.invert(lives["is_captured"])).as_py() or 0),
    }
    return Found(frame, lives, record, notes)


def _in_order(attempts: pa.Table) -> pa.Table:
    """Return attempts worker by worker in order of time, and their texts as numbers: spans in order are summed faster."""
    for at, name in enumerate(attempts.column_names):
        if pa.types.is_string(attempts.schema.field(at).type):
            attempts = attempts.set_column(at, name, pc.dictionary_encode(attempts[name].combine_chunks()))
    identity = _content(attempts["identity"].combine_chunks().indices, np.int32)
    order = np.argsort(numbers(attempts["assigned_s"]))
    return attempts.take(pa.array(order[by_code(identity[order])]))


def _of_attempts(
    attempts: pa.Table, moments: Any, place: Integers, prefix: Integers
) -> tuple[dict[str, Spans], Spans, Floats, dict[str, Any]]:
    """Return what attempts did: waits by kind, tasks in threads and their shares, and what is to be said."""
    names = ("assigned", "received", "inputs", "executing", "started", "stopped", "seceded", "ended", "closed")
    assigned, received, inputs, executing, started, stopped, seceded, ended, closed = (
        moments(attempts, f"{name}_s") for name in names
    )
    outcome = codes(
        attempts["outcome"],
        {
            "memory": 1,
            "error": 1,
            "rescheduled": 1,
            "cancelled": 2,
            "stolen": 2,
            "lost": 3,
            "running_at_end": 3,
            "unknown": 3,
        },
    )
    constrained = numbers(attempts["is_constrained"]) > 0
    is_known = place >= 0
    ran = np.isfinite(started) & np.isfinite(stopped)
    began = np.isfinite(executing) & ~ran
    # It began and nothing tells its stop: its own worker's next word on it, else the scheduler's.
    end_of_began = _or(closed, _or(ended, np.inf))
    is_unfinished = began & ((outcome == 3) | ~np.isfinite(end_of_began))
    begin = np.where(ran, started, executing)
    end = np.fmin(np.where(ran, stopped, end_of_began), seceded)
    in_thread = np.flatnonzero((ran | began) & is_known)
    shares, is_split = _shares(attempts, stopped - started, is_unfinished)

    spans: dict[str, list[tuple[Integers, Floats, Floats]]] = {
        "given": [], "pending": [], "returning": [], "fetching": []
    }  # fmt: skip

    def wait(kind: str, which: Mask, start: Floats, stop: Floats) -> None:
        chosen = np.flatnonzero(which & is_known & (stop > start))
        spans[kind].append((chosen, start[chosen], stop[chosen]))

    in_hand = _or(started, executing)
    gone = _or(in_hand, _or(ended, np.inf))
    is_told = np.isfinite(received)
    # Whose way to its thread is not told in steps cannot be said to have waited for inputs.
    inputs = _or(inputs, _or(executing, np.where(np.isfinite(started), received, np.nan)))
    # A worker that died or was cut off may have begun what its lost rows do not tell.
    is_given = ~np.isfinite(in_hand) & (outcome == 3) & ~(is_told & ~np.isfinite(inputs))
    wait("given", is_given, _or(inputs, _or(received, assigned)), gone)
    wait("pending", is_told, assigned, received)
    wait("fetching", is_told & ~constrained, received, _or(inputs, gone))
    wait("pending", is_told & ~is_given & ~constrained, inputs, gone)
    wait("pending", ~is_told & ~is_given, assigned, np.fmin(moments(attempts, "fetch_start_s"), gone))
    wait("fetching", ~is_told & ~is_given, moments(attempts, "fetch_start_s"), moments(attempts, "fetch_stop_s"))
    wait("pending", ~is_told & ~is_given, _or(moments(attempts, "fetch_stop_s"), assigned), gone)
    wait("returning", (outcome == 1) & ran, stopped, ended)
    waits = {}
    for kind, parts in spans.items():
        rows = np.concatenate([part[0] for part in parts])
        waits[kind] = Spans(
            place[rows],
            np.concatenate([part[1] for part in parts]),
            np.concatenate([part[2] for part in parts]),
            prefix[rows],
        )
    tasks = Spans(place[in_thread], begin[in_thread], end[in_thread], prefix[in_thread])
    notes = {
        "unknown_place_count": int((~is_known).sum()),
        "unsplit_count": int((ran & ~is_split).sum()),
        "ran_count": int(ran.sum()),
        "seceded_count": int(np.isfinite(seceded).sum()),
    }
    return waits, tasks, shares[in_thread], notes


def _shares(attempts: pa.Table, wall: Floats, is_unfinished: Mask) -> tuple[Floats, Mask]:
    """Return what each second of an attempt was, and whether that is known."""
    io, cpu, queue = (numbers(attempts[f"{name}_s"]) for name in ("io", "cpu", "queue_wait"))
    is_split = np.isfinite(cpu)
    shares = np.zeros((len(wall), len(BUSY)))
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(wall > 0, 1.0, 0.0)
        for name, seconds in (("io", io), ("cpu", cpu), ("cpu_wait", queue)):
            part = np.clip(np.nan_to_num(seconds / wall, nan=0.0, posinf=0.0, neginf=0.0), 0.0, rest)
            shares[:, BUSY.index(name)] = part
            rest = rest - part
    rest = 1.0 - shares.sum(axis=1)
    shares[:, BUSY.index("blocked")] = np.where(is_split, rest, 0.0)
    shares[:, BUSY.index("not_split")] = np.where(is_split, 0.0, rest)
    shares[is_unfinished] = 0.0
    shares[is_unfinished, BUSY.index("unfinished")] = 1.0
    return shares, is_split


def _wanted(run: Run, places: _Places, attempts: pa.Table, cluster: Integers, moments: Any) -> Spans:
    """Return when any task was wanted: graphs until they were done, and every attempt."""
    graphs = run.sql(WANTED_SQL).to_arrow_table()
    is_open = numbers(graphs["is_open"]) > 0
    at = ("ready", "assigned", "received", "executing", "started", "stopped", "ended")
    ready, assigned, received, executing, started, stopped, ended = (moments(attempts, f"{name}_s") for name in at)
    is_running = codes(attempts["outcome"], {"running_at_end": 1}) == 1
    begin = _or(ready, _or(assigned, _or(received, _or(executing, started))))
    seen = np.fmax(np.fmax(stopped, executing), np.fmax(received, assigned))
    end = np.where(is_running, np.inf, _or(ended, seen))
    chosen = np.flatnonzero(end > begin)
    cluster = cluster[chosen]
    return Spans(
        np.concatenate([places.clusters(graphs), cluster]),
        np.concatenate([moments(graphs, "start_s"), begin[chosen]]),
        np.concatenate([np.where(is_open, np.inf, moments(graphs, "stop_s")), end[chosen]]),
        np.zeros(len(graphs) + len(cluster), np.int64),
    )


def _paused(run: Run, frame: Window, places: _Places) -> Spans:
    """Return when workers were paused, by the scheduler's events."""
    spans: list[tuple[int, float, float]] = []
    since: dict[tuple[str, str], float] = {}

    def add(place: tuple[str, str], start_s: float, stop_s: float) -> None:
        spans.extend((worker, start_s, stop_s) for worker in places.at_address.get(place, ()))

    for scheduler_id, address, at_s, payload in run.sql(STATUS_SQL).fetchall():
        try:
            status = json.loads(payload).get("status")
        except (ValueError, AttributeError):
            continue
        place = (scheduler_id or "", address)
        if status == "paused":
            since.setdefault(place, at_s - frame.start_s)
        elif place in since:
            add(place, since.pop(place), at_s - frame.start_s)
    for place, start_s in since.items():
        add(place, start_s, np.inf)
    return Spans(
        np.array([span[0] for span in spans], np.int64),
        np.array([span[1] for span in spans], np.float64),
        np.array([span[2] for span in spans], np.float64),
        np.zeros(len(spans), np.int64),
    )


class _Places:
    """Numbers of workers and clusters, by what rows call them."""

    def __init__(self, lives: pa.Table):
        self.worker: dict[tuple[str, str], int] = {}
        self.cluster_of: dict[str, int] = {}
        self.at_address: dict[tuple[str, str], list[int]] = {}
        self.named: dict[str, list[int]] = {}
        clusters: list[int] = []
        of_lives: list[int] = []
        addresses = lives["address"].to_pylist()
        for scheduler_id, identity, address in zip(
            lives["scheduler_id"].to_pylist(), lives["identity"].to_pylist(), addresses, strict=True
        ):
            place = (scheduler_id, identity)
            cluster = self.cluster_of.setdefault(scheduler_id, len(self.cluster_of))
            if place not in self.worker:
                self.worker[place] = len(clusters)
                clusters.append(cluster)
                self.at_address.setdefault((scheduler_id, address), []).append(self.worker[place])
                self.named.setdefault(identity, []).append(self.worker[place])
            of_lives.append(self.worker[place])
        self.cluster = np.array(clusters, np.int64)
        self.of_lives = np.array(of_lives, np.int64)

    def clusters(self, rows: pa.Table, workers: Integers | None = None) -> Integers:
        """Return the cluster of each row, by its scheduler or else its worker; -1 where none is known."""
        clusters = codes(rows["scheduler_id"], self.cluster_of, -1)
        if workers is not None:
            lacking = np.flatnonzero((clusters < 0) & (workers >= 0))
            clusters[lacking] = self.cluster[workers[lacking]]
        return clusters

    def workers(self, rows: pa.Table) -> Integers:
        """Return the worker of each row; -1 where it is not known."""
        if not len(rows):
            return np.zeros(0, np.int64)
        schedulers, identities = rows["scheduler_id"].combine_chunks(), rows["identity"].combine_chunks()
        scheduler, identity = pc.dictionary_encode(schedulers), pc.dictionary_encode(identities)
        table = np.full((len(scheduler.dictionary), len(identity.dictionary)), -1, np.int64)
        for at, scheduler_id in enumerate(scheduler.dictionary.to_pylist()):
            for place, name in enumerate(identity.dictionary.to_pylist()):
                found = self.worker.get((scheduler_id, name))
                if found is None:
                    # An address that only one worker had names it too, and so does a server's id alone.
                    here = self.at_address.get((scheduler_id, name), []) or self.named.get(name, [])
                    found = here[0] if len(here) == 1 else -1
                table[at, place] = found
        found_at: Integers = table[_content(scheduler.indices, np.int32), _content(identity.indices, np.int32)]
        return found_at


def codes(column: pa.ChunkedArray, known: dict[Any, int], other: int = 0) -> Integers:
    """Return the number of each value; of values without one, `other`."""
    if not len(column):
        return np.zeros(0, np.int64)
    encoded = pc.dictionary_encode(column.combine_chunks())
    found = np.array([known.get(name, other) for name in encoded.dictionary.to_pylist()] + [other], np.int64)
    indices = encoded.indices
    is_valid = _content(pc.is_valid(indices).cast(pa.int8()), np.int8) == 1
    return found[np.where(is_valid, _content(indices, np.int32), len(found) - 1)]


def numbers(column: pa.ChunkedArray) -> Floats:
    """Return a column as numbers; what is not told is NaN."""
    array = column.cast(pa.float64()).combine_chunks()
    values = _content(array, np.float64)
    if not array.null_count:
        return values
    return np.where(_content(pc.is_valid(array).cast(pa.int8()), np.int8) == 1, values, np.nan)


def _content(array: pa.Array, kind: type[Any]) -> npt.NDArray[Any]:
    """Return the values of an array, whatever stands where they are null."""
    # Arrow's own way to numpy imports pandas, which takes longer than the rest.
    return np.frombuffer(array.buffers()[1] or b"", kind, len(array), array.offset * np.dtype(kind).itemsize)


def _or(values: Floats, other: Any) -> Floats:
    """Return values, and others where they are not told."""
    return np.where(np.isnan(values), other, values)


def _latest(place: Integers, moment: Floats, count: int) -> Floats:
    """Return the latest moment at each place; not told where there is none."""
    latest = np.full(count, -np.inf)
    there = (place >= 0) & np.isfinite(moment)
    np.maximum.at(latest, place[there], moment[there])
    return np.where(np.isfinite(latest), latest, np.nan)
