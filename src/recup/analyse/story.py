"""The story of one task: all that its scheduler and workers saw of it, on one time line.

Covers submission, every transition with its cause, reception, computing, transfers of its
result and of what it needed, spilling, steals, failures, events that name it, and what its
thread used meanwhile.  It does not cover other tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recup.analyse.rows import Document, rows_of
from recup.analyse.story_events import SHOWN, events_naming
from recup.errors import BadQuery
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

SENT = "sent"
SUBMITTED = "submitted"
_CANDIDATES = 8

_TASK_KEYS = """
with task_keys as (
    select key_id from raw.tasks
    union
    select key_id from raw.scheduler_transitions
    union
    select key_id from raw.worker_transitions
)
"""

EXACT_SQL = f"""
{_TASK_KEYS}
select key
from keys
where key = ? and key_id in (from task_keys)
"""

SIMILAR_SQL = f"""
{_TASK_KEYS}
select distinct key, starts_with(key, ?) as is_start
from keys
where contains(key, ?) and key_id in (from task_keys)
order by is_start desc, key
"""

GRAPHS_SQL = """
select s.scheduler_id as server_id, s.taken_s, s.sent_s, s.client, s.client_server_id, s.call, s.path, s.line,
    s.is_exact, c.error_s as sent_error_s,
    t.submission, t.prefix, t.dependency_count, t.priority_order, t.annotations, t.restrictions, t.retries
from submission_story s
join (
    select server_id, submission, prefix, dependency_count, priority_order, annotations, restrictions, retries
    from raw.tasks
    where key_id in (select key_id from keys where key = ?)
) t on t.server_id = s.scheduler_id and t.submission = s.submission
left join clocks c on c.server_id = s.client_server_id
"""

FUSED_SQL = """
select distinct o.key
from raw.fused_tasks f
join keys i on i.key_id = f.inner_key_id
join keys o on o.key_id = f.key_id
where i.key = ?
order by 1
"""

SCHEDULER_SQL = """
select t.server_id, t.time_ns, t.start, t.finish, t.stimulus_id, t.worker, t.run_id, r.nbytes, r.typename
from raw.scheduler_transitions t
left join (
    select server_id, key_id, run_id, time_ns, nbytes, typename from raw.results where role = 'scheduler'
) r on r.server_id = t.server_id and r.key_id = t.key_id and r.run_id = t.run_id and r.time_ns = t.time_ns
where t.key_id in (select key_id from keys where key = ?)
"""

WORKER_SQL = """
select server_id, time_ns, start, finish, state, stimulus_id, run_id
from raw.worker_transitions
where key_id in (select key_id from keys where key = ?)
"""

RECEPTIONS_SQL = """
select server_id, time_ns, run_id, dependency_count, dependency_bytes, remote_count
from raw.receptions
where key_id in (select key_id from keys where key = ?)
"""

ENDS_SQL = """
select server_id, time_ns, run_id, outcome, nbytes, typename
from raw.results
where role <> 'scheduler' and key_id in (select key_id from keys where key = ?)
"""

ACTIVITIES_SQL = """
select coalesce(worker_id, scheduler_id) as server_id, worker, run_id, action, start_s, duration_s, source, thread,
    seen_by, clock_error_s
from activities
where key = ?
"""

ERRORS_SQL = """
select e.server_id, e.time_ns, e.run_id, e.worker, b.key as blamed_key, e.exception_text
from raw.errors e
left join keys b on b.key_id = e.blamed_key_id
where e.key_id in (select key_id from keys where key = ?)
"""

STEALS_SQL = """
select server_id, time_ns, decision, victim, thief, worker_state, stimulus_id, run_id
from raw.steals
where key_id in (select key_id from keys where key = ?)
"""

SPILLS_SQL = """
select server_id, time_ns, direction, memory_bytes, disk_bytes
from raw.spills
where key_id in (select key_id from keys where key = ?)
"""

TRANSFERS_SQL = """
select t.server_id, t.time_ns, t.direction, t.peer, t.stop_s - t.start_s as duration_s, t.key_count, k.nbytes
from (
    select server_id, transfer, nbytes from raw.transfer_keys where key_id in (select key_id from keys where key = ?)
) k
join raw.transfers t on t.server_id = k.server_id and t.transfer = k.transfer
"""

NEEDED_SQL = """
with task as (
    select key_id from keys where key = ?
), received as (
    select server_id, run_id, min(time_ns) as received_ns
    from raw.receptions
    where key_id in (from task)
    group by server_id, run_id
), ended as (
    select server_id, run_id, max(time_ns) as ended_ns
    from raw.results
    where role <> 'scheduler' and key_id in (from task)
    group by server_id, run_id
), moved as (
    select server_id, transfer, key_id, nbytes
    from raw.transfer_keys
    where key_id in (select dependency_id from raw.dependencies where key_id in (from task))
)
select t.server_id, t.time_ns, t.peer, t.stop_s - t.start_s as duration_s, keys.key, m.nbytes, r.run_id
from moved m
join raw.transfers t on t.server_id = m.server_id and t.transfer = m.transfer
join received r on r.server_id = t.server_id and r.received_ns <= t.time_ns
left join ended e on e.server_id = r.server_id and e.run_id = r.run_id
left join keys on keys.key_id = m.key_id
where t.direction = 'incoming' and t.time_ns <= coalesce(e.ended_ns, t.time_ns)
"""
"""Fetches of what the task needs, by the workers that were to run it, while they had it."""

THREADS_SQL = """
select worker_id as server_id, run_id, kind, outcome, thread_name, native_id, started_s, wall_s, cpu_s, system_s,
    queue_wait_s, blocked_s, major_fault_count, read_chars_bytes, written_chars_bytes, read_call_count,
    write_call_count, storage_read_bytes, storage_written_bytes, clock_error_s
from task_counters
where key = ?
"""

IO_SQL = """
select worker_id as server_id, run_id, path, direction, null as began_with, count(*) as operation_count,
    sum(nbytes) as nbytes, sum(stop_s - start_s) as io_s, min(start_s) as start_s, max(clock_error_s) as clock_error_s
from task_io
where key = ? and module = 'POSIX' and not is_phantom
group by all
union all
select s.worker_id, s.run_id, s.path, part.direction, 'C stream', part.operation_count, part.nbytes, s.io_s,
    c.started_s, c.clock_error_s
from task_io_streams s
join task_counters c on c.worker_id = s.worker_id and c.key_id = s.key_id and c.run_id = s.run_id,
lateral (
    values ('read', s.read_count, s.read_bytes), ('write', s.write_count, s.written_bytes)
) part(direction, operation_count, nbytes)
where s.key = ? and part.operation_count > 0
"""
"""Of a file used through a C stream only sums are known: they stand at the start of the task's code."""

CLOCKS_SQL = """
select server_id, role, address, offset_s, clocks.error_s
from servers
left join clocks using (server_id, role)
"""


@dataclasses.dataclass(slots=True)
class _Line:
    """One thing that was seen."""

    server_id: str
    time_ns: int
    what: str
    details: dict[str, Any]
    run_id: int | None = None
    rank: int = 1
    """Order among lines of one moment: what is a consequence of others comes later."""
    is_aligned: bool = False
    """Whether the time is on the scheduler's clock already, to within `error_s`."""
    error_s: float | None = None


# ---------------------------------------------------------------- which task


def find_key(run: Run, text: str) -> str:
    """Return the key that is meant: exactly this one, else the only one that begins with it or contains it.

    Raises
    ------
    BadQuery
        No key contains the text, or several do; the message names some.
    """
    if rows_of(run, EXACT_SQL, [text]):
        return text
    fused = [str(row["key"]) for row in rows_of(run, FUSED_SQL, [text])]
    if fused:
        raise BadQuery(f"{text!r} was fused into another task before it ran: {', '.join(fused[:_CANDIDATES])}")
    found = rows_of(run, SIMILAR_SQL, [text, text])
    starting = [row["key"] for row in found if row["is_start"]]
    candidates = starting or [row["key"] for row in found]
    if len(candidates) == 1:
        return str(candidates[0])
    if not candidates:
        raise BadQuery(
            f"No task of run {run.run_id} has {text!r} in its key. `recup sql {run.run_id} 'from tasks'` lists tasks."
        )
    shown = ", ".join(map(str, candidates[:_CANDIDATES])) + (", ..." if len(candidates) > _CANDIDATES else "")
    how = "begin with" if starting else "contain"
    raise BadQuery(f"{len(candidates)} keys of run {run.run_id} {how} {text!r}; give more of the one: {shown}")


# ---------------------------------------------------------------- the story


def story(run: Run, key: str) -> pa.Table:
    """All that happened to a task: one row per thing seen, in order of time.

    Times are aligned to the scheduler's clock; `clock_error_s` bounds what they may be off
    by (null: no bound is known), and what is closer together may stand in the wrong order.
    `time_s` counts from the first graph that held the task, else from the first thing seen.

    From: submission_story, activities, clocks, scheduler_transitions, worker_transitions,
    receptions, results, errors, steals, spills, transfers, events, fused_tasks, task_counters, task_io,
    task_io_streams
    Columns: time_s, time_ns, clock_error_s, attempt (from 1), run_id, observer, what, details
    """
    import pyarrow as pa

    observers = {row["server_id"]: row for row in rows_of(run, CLOCKS_SQL)}
    lines = [line for part in _PARTS for line in part(run, key)]
    for line in lines:
        if not line.is_aligned:
            clock = observers.get(line.server_id, {})
            line.time_ns += round(1e9 * (clock.get("offset_s") or 0.0))
            line.error_s = clock.get("error_s")
    lines.sort(key=lambda line: (line.time_ns, line.rank))
    submitted = [line.time_ns for line in lines if line.what == SUBMITTED]
    origin = min(submitted or [line.time_ns for line in lines], default=0)
    attempts = _attempts(lines)
    rows = [
        {
            "time_s": (line.time_ns - origin) / 1e9,
            "time_ns": line.time_ns,
            "clock_error_s": line.error_s,
            "attempt": attempts.get(line.run_id),
            "run_id": line.run_id,
            "observer": _observer(line.server_id, observers.get(line.server_id)),
            "what": line.what,
            "details": _text(line.details),
        }
        for line in lines
    ]
    return pa.Table.from_pylist(rows, schema=_schema(pa))


def _schema(pa: Any) -> Any:
    kinds = {
        "time_s": pa.float64(), "time_ns": pa.int64(), "clock_error_s": pa.float64(), "attempt": pa.int64(),
        "run_id": pa.int64(), "observer": pa.string(), "what": pa.string(), "details": pa.string(),
    }  # fmt: skip
    return pa.schema(list(kinds.items()))


def _observer(server_id: str, row: Document | None) -> str:
    if row is None:
        return server_id
    return f"worker {row['address'] or server_id}" if row["role"] == "worker" else str(row["role"])


def _attempts(lines: list[_Line]) -> dict[int | None, int]:
    """Number the attempts from 1 in the order in which they were first seen."""
    seen = dict.fromkeys(line.run_id for line in lines if line.run_id is not None)
    return {run_id: number for number, run_id in enumerate(seen, start=1)}


def _text(details: dict[str, Any]) -> str:
    """Return facts as `name value` pairs, those not known left out; a fact without a name stands alone."""
    return ", ".join(f"{name} {value}".strip() for name, value in details.items() if value not in (None, ""))


# ---------------------------------------------------------------- its parts


def _rows(run: Run, query: str, key: str) -> list[Document]:
    return rows_of(run, query, [key])


def _graphs(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, GRAPHS_SQL, key):
        place = f"{row['path']}:{row['line']}" if row["path"] else None
        if row["sent_s"] is not None and row["client_server_id"] and row["is_exact"]:
            details = {"": row["call"], "at": place}
            moment_ns = round(row["sent_s"] * 1e9)
            yield _Line(
                row["client_server_id"], moment_ns, SENT, details, rank=-1, is_aligned=True, error_s=row["sent_error_s"]
            )
        details = {
            "graph": row["submission"],
            "of": row["client"],
            "prefix": row["prefix"],
            "needs": plural(row["dependency_count"], "task") if row["dependency_count"] else "nothing",
            "order": row["priority_order"],
            "retries": row["retries"] or None,
            "annotations": row["annotations"],
            "restrictions": row["restrictions"],
        }
        moment_ns = round(row["taken_s"] * 1e9)
        yield _Line(row["server_id"], moment_ns, SUBMITTED, details, rank=0, is_aligned=True, error_s=0.0)


def _scheduler(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, SCHEDULER_SQL, key):
        details = {
            "on": row["worker"],
            "result": _size(row["nbytes"], row["typename"]),
            "cause": row["stimulus_id"],
            "run": row["run_id"],
        }
        yield _Line(row["server_id"], row["time_ns"], f"{row['start']} -> {row['finish']}", details, row["run_id"])


def _worker(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, WORKER_SQL, key):
        reached = row["state"] or row["finish"]
        details = {
            "asked for": row["finish"] if reached != row["finish"] else None,
            "cause": row["stimulus_id"],
            "run": row["run_id"],
        }
        yield _Line(row["server_id"], row["time_ns"], f"{row['start']} -> {reached}", details, row["run_id"])
    for row in _rows(run, RECEPTIONS_SQL, key):
        needs = f"{plural(row['dependency_count'], 'result')} of {bytes_text(row['dependency_bytes'])}"
        details = {
            "needs": f"{needs}, {row['remote_count']} of them elsewhere" if row["dependency_count"] else None,
            "run": row["run_id"],
        }
        yield _Line(row["server_id"], row["time_ns"], "received", details, row["run_id"], rank=0)


def _attempt_ends(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, ENDS_SQL, key):
        details = {"": row["outcome"], "result": _size(row["nbytes"], row["typename"]), "run": row["run_id"]}
        yield _Line(row["server_id"], row["time_ns"], "attempt ended", details, row["run_id"], rank=2)
    for row in _rows(run, ERRORS_SQL, key):
        details = {"": row["exception_text"], "on": row["worker"], "blamed on": row["blamed_key"], "run": row["run_id"]}
        yield _Line(row["server_id"], row["time_ns"], "failed", details, row["run_id"], rank=3)


_ACTIONS = {
    "compute": "computes",
    "transfer": "fetches",
    "disk-read": "takes from its store",
    "disk-write": "puts into its store",
    "deserialize": "unpacks",
}


def _activities(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, ACTIVITIES_SQL, key):
        details = {
            "for": seconds_text(row["duration_s"]),
            "from": row["source"],
            "in thread": row["thread"],
            "told by the scheduler, on": row["worker"] if row["seen_by"] == "scheduler" else None,
            "run": row["run_id"],
        }
        what = _ACTIONS.get(row["action"], str(row["action"]))
        moment_ns = round(row["start_s"] * 1e9)
        yield _Line(
            row["server_id"], moment_ns, what, details, row["run_id"], is_aligned=True, error_s=row["clock_error_s"]
        )


def _threads(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, THREADS_SQL, key):
        details: dict[str, Any] = {"for": seconds_text(row["wall_s"])}
        if row["cpu_s"] is None:
            details["as"] = row["kind"]
        else:
            details |= {
                "on the CPU": seconds_text(row["cpu_s"]),
                "in the kernel": seconds_text(row["system_s"]),
                "waiting for a CPU": seconds_text(row["queue_wait_s"]) if row["queue_wait_s"] else None,
                "otherwise waiting": seconds_text(row["blocked_s"]),
                "read": _moved(row["read_chars_bytes"], row["read_call_count"]),
                "wrote": _moved(row["written_chars_bytes"], row["write_call_count"]),
                "from storage": bytes_text(row["storage_read_bytes"]) if row["storage_read_bytes"] else None,
                "to storage": bytes_text(row["storage_written_bytes"]) if row["storage_written_bytes"] else None,
                "page faults with I/O": row["major_fault_count"] or None,
                "in thread": row["thread_name"] and f"{row['thread_name']} ({row['native_id']})",
            }
        details |= {"raised": row["outcome"] if row["outcome"] != "returned" else None, "run": row["run_id"]}
        moment_ns = round(row["started_s"] * 1e9)
        yield _Line(
            row["server_id"], moment_ns, "its thread", details, row["run_id"], is_aligned=True,
            error_s=row["clock_error_s"],
        )  # fmt: skip


def _io(run: Run, key: str) -> Iterator[_Line]:
    for row in rows_of(run, IO_SQL, [key, key]):
        details = {
            "": row["path"] or "a file whose name is lost",
            "of": bytes_text(row["nbytes"]),
            "in": plural(row["operation_count"], "operation"),
            "took": seconds_text(row["io_s"]),
            "as": row["began_with"],
            "run": row["run_id"],
        }
        moment_ns = round(row["start_s"] * 1e9)
        what = "reads a file" if row["direction"] == "read" else "writes a file"
        yield _Line(
            row["server_id"], moment_ns, what, details, row["run_id"], is_aligned=True, error_s=row["clock_error_s"]
        )


def _moved(size_bytes: int | None, call_count: int | None) -> str | None:
    return f"{bytes_text(size_bytes)} in {plural(call_count, 'call')}" if size_bytes and call_count else None


def _steals(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, STEALS_SQL, key):
        details = {
            "from": row["victim"],
            "to": row["thief"],
            "where it was": row["worker_state"],
            "cause": row["stimulus_id"],
            "run": row["run_id"],
        }
        yield _Line(row["server_id"], row["time_ns"], f"steal: {row['decision']}", details, row["run_id"])


def _data(run: Run, key: str) -> Iterator[_Line]:
    for row in _rows(run, SPILLS_SQL, key):
        details = {"": bytes_text(row["memory_bytes"]), "on disk": bytes_text(row["disk_bytes"])}
        what = "result to disk" if row["direction"] == "spill" else "result back from disk"
        yield _Line(row["server_id"], row["time_ns"], what, details)
    for row in _rows(run, TRANSFERS_SQL, key):
        others = f"with {plural(row['key_count'] - 1, 'other')}" if row["key_count"] > 1 else None
        details = {"": bytes_text(row["nbytes"]), "took": seconds_text(row["duration_s"])}
        if row["direction"] == "incoming":
            what, side = "result came", {"from": row["peer"]}
        else:
            what, side = "result went", {"to": row["peer"]}
        yield _Line(row["server_id"], row["time_ns"], what, {**details, **side, " ": others})
    for row in _rows(run, NEEDED_SQL, key):
        details = {
            "": row["key"],
            "of": bytes_text(row["nbytes"]),
            "from": row["peer"],
            "took": seconds_text(row["duration_s"]),
            "run": row["run_id"],
        }
        yield _Line(row["server_id"], row["time_ns"], "needed result came", details, row["run_id"])


def _events(run: Run, key: str) -> Iterator[_Line]:
    rows = events_naming(run, key)
    for row in rows[:SHOWN]:
        yield _Line(row["server_id"], row["time_ns"], f"event {row['action'] or ''}".strip(), {"topic": row["topic"]})
    if len(rows) > SHOWN:
        rest = rows[SHOWN:]
        details = {"": f"{plural(len(rest), 'more event')} from here on; `recup sql RUN 'from events'` has all"}
        yield _Line(rest[0]["server_id"], rest[0]["time_ns"], "events name it", details)


_PARTS = (_graphs, _scheduler, _worker, _attempt_ends, _activities, _threads, _io, _steals, _data, _events)


def _size(size_bytes: int | None, typename: str | None) -> str | None:
    return None if size_bytes is None else f"{bytes_text(size_bytes)} {typename or ''}".strip()
