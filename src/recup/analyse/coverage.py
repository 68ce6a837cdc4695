"""The map of a run: what could be known at each step and level, what was recorded, and why not.

Covers the five steps from configuration to execution, broken down into cells.  A cell
without rows is judged: nothing of the kind happened, it was not recorded because ..., or
this version of recup has no eyes there.  It does not cover counts against Dask's own
(`recup.completeness`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from recup.store import Run

STEPS = {
    1: ("configuration and launch", "static", "job script, batch system, Dask configuration, hosts"),
    2: ("task creation and submission", "static, lazy", "client script or notebook"),
    3: ("scheduler", "static and dynamic", "TaskState, TaskGroup, TaskPrefix, WorkerState, ClientState"),
    4: ("worker", "dynamic", "worker TaskState, WorkerState"),
    5: ("execution", "dynamic", "threads and processes: /proc, Darshan, Yappi"),
}
"""Name, nature and location of each step."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One line of the map.

    Attributes
    ----------
    rows : str
        SQL after ``select count(*)``.
    tables : tuple of str
        Tables whose losses make the cell partly known.
    observer : str
        Role that would have seen it; ``any`` where every server tells its own.
    nothing : str
        What no row means where all that would have seen one were recorded; empty where
        there always is one.
    witness : str
        SQL of a number that is zero unless something happened, asked when there is no row.
    absent : str
        Why there is no row, where `nothing` is empty.
    asked : str
        File of the run that is there where it was asked for; empty where it always is recorded.
    how : str
        How to ask for it.
    shortfall : str
        SQL of (how many sources are cut short, one of the reasons); asked when there are rows.
    """

    step: int
    level: str
    metadata: str
    rows: str
    tables: tuple[str, ...] = ()
    observer: str = "any"
    nothing: str = ""
    witness: str = ""
    absent: str = "no row is there, for a reason recup does not know"
    asked: str = ""
    how: str = ""
    shortfall: str = ""


def _cell(step: int, level: str, metadata: str, rows: str, **more: str) -> Cell:
    table = rows.partition("raw.")[2].split()[0].rstrip(")")
    return Cell(step, level, metadata, rows, (table,), **more)


def _client(metadata: str, rows: str, nothing: str = "") -> Cell:
    return _cell(2, "client", metadata, rows, observer="client", nothing=nothing)


def _scheduler(step: int, metadata: str, rows: str, nothing: str = "", witness: str = "") -> Cell:
    return _cell(step, "scheduler", metadata, rows, observer="scheduler", nothing=nothing, witness=witness)


def _worker(metadata: str, rows: str, nothing: str = "", witness: str = "") -> Cell:
    return _cell(4, "worker", metadata, rows, observer="worker", nothing=nothing, witness=witness)


def _step5_worker(metadata: str, rows: str) -> Cell:
    return _cell(5, "thread", metadata, rows, observer="worker", nothing="no task ran", witness=_ATTEMPTS_SEEN)


def _darshan(level: str, metadata: str, rows: str, nothing: str, shortfall: str = "") -> Cell:
    table = rows.partition("raw.")[2].split()[0]
    return Cell(
        5, level, metadata, rows, tuple(dict.fromkeys((table, "io_logs"))), nothing=nothing, shortfall=shortfall,
        asked="foreign/darshan/request.json", how="`recup run --darshan`",
    )  # fmt: skip


def _yappi(level: str, metadata: str, where: str, nothing: str) -> Cell:
    return Cell(
        5, level, metadata, f"from raw.function_calls where {where}", ("function_calls",), nothing=nothing,
        asked="foreign/yappi/request.json", how="`recup run --yappi cpu`, or `wall`",
    )  # fmt: skip


_NO_SOURCE = "recording source was switched off, or no script or notebook was found"
_STEALS_SEEN = "select count(*) from raw.worker_transitions where stimulus_id like 'steal-%'"
_SPILL_SEEN = "select max(value) from raw.samples where metric in ('spilled_disk_bytes', 'memory_spilled_bytes')"
_INCOMING_SEEN = "select max(value) from raw.samples where metric = 'transfer_incoming_count_total'"
_OUTGOING_SEEN = "select max(value) from raw.samples where metric = 'transfer_outgoing_count_total'"
_SHORT_LOGS = "select count(*), min(reason) from (select log, unnest(from_json(lost, '[\"VARCHAR\"]')) as reason from raw.io_logs)"
_FILES_SHORT = f"{_SHORT_LOGS} where not starts_with(reason, 'DXT_')"
_SEGMENTS_SHORT = f"{_SHORT_LOGS} where starts_with(reason, 'DXT_') or reason like '%killed%'"
_ATTEMPTS_SEEN = "select count(*) from raw.results where role = 'worker' and compute_start_s is not null"
_FAILURES_SEEN = "select count(*) from raw.results where outcome in ('error', 'erred')"

CELLS = (
    _cell(1, "job", "batch job", "from raw.batch_jobs where system <> 'none'", nothing="no batch job was around it"),
    _cell(1, "job", "nodes", "from (select distinct host_id from raw.hosts)"),
    _cell(1, "job", "processes", "from raw.processes"),
    _cell(1, "job", "cores", "from raw.hosts where cpu_count is not null"),
    _cell(1, "job", "cores a process may use", "from raw.processes where affinity is not null"),
    _cell(1, "job", "memory", "from raw.hosts where memory_bytes is not null"),
    _cell(1, "job", "architecture", "from raw.hosts where architecture is not null"),
    _cell(1, "job", "accelerators", "from raw.accelerators", nothing="no accelerator was found"),
    _cell(1, "job", "network", "from raw.network_interfaces", nothing="no network interface was found"),
    _cell(1, "job", "file systems", "from raw.filesystems"),
    _cell(1, "job", "resource limits", "from raw.processes where resource_limits is not null"),
    _cell(1, "config", "Dask configuration", "from raw.config"),
    _cell(1, "config", "packages", "from raw.packages"),
    _cell(1, "config", "environment variables", "from raw.environment", nothing="none of the allowed names was set"),
    _cell(1, "config", "source of the script", "from raw.sources where text is not null", absent=_NO_SOURCE),
    _cell(1, "config", "git commit", "from raw.repositories", nothing="no script stood in a git repository"),
    _client("submissions", "from raw.client_submissions", "no client submitted anything"),
    _client("source lines that submit", "from raw.submission_frames", "no frame of user code was on the stack"),
    _client("lazy graph: layers", "from raw.layers", "no graph had layers"),
    _client("collections", "from raw.layers where collection_type is not null", "no graph was of a collection"),
    _client(
        "annotations given",
        "from raw.client_submissions where annotations is not null",
        "no annotation was in force",
    ),
    _scheduler(2, "graphs as taken", "from raw.submissions", "no graph arrived"),
    _scheduler(2, "tasks as run", "from raw.tasks", "no graph arrived"),
    _scheduler(2, "task groups", 'from (select distinct server_id, "group" from raw.tasks)', "no graph arrived"),
    _scheduler(2, "dependencies", "from raw.dependencies", "no task needs another"),
    _scheduler(2, "fused tasks", "from raw.fused_tasks", "no task was fused"),
    _scheduler(2, "sizes of results", "from raw.results where nbytes is not null", "no task gave a result"),
    _scheduler(3, "priorities", "from raw.tasks where priority_order is not null", "no graph arrived"),
    _scheduler(3, "restrictions", "from raw.tasks where restrictions is not null", "no task was restricted"),
    _scheduler(
        3, "annotations of tasks", "from raw.tasks where annotations is not null", "no task was annotated"
    ),
    _scheduler(3, "transitions", "from raw.scheduler_transitions", "no task changed its state"),
    _scheduler(
        3, "placement", "from raw.scheduler_transitions where finish = 'processing'", "no task was sent to a worker"
    ),
    _scheduler(3, "ends of attempts", "from raw.results where role = 'scheduler'", "no attempt ended"),
    _scheduler(3, "stealing", "from raw.steals", "no task was stolen", _STEALS_SEEN),
    _scheduler(3, "workers", "from raw.workers", "no worker came"),
    _scheduler(3, "clients", "from raw.clients", "no client came"),
    _scheduler(3, "events", "from raw.events", "no event was published"),
    _scheduler(3, "state each second", "from raw.samples where role = 'scheduler'"),
    _cell(3, "scheduler", "clocks", "from raw.clock_samples"),
    _worker("reception of tasks", "from raw.receptions", "no task was received"),
    _worker("transitions", "from raw.worker_transitions", "no task changed its state"),
    _worker("ends of attempts", "from raw.results where role = 'worker'", "no attempt ended"),
    _worker("threads of tasks", "from raw.results where role = 'worker' and thread is not null", "no task ran"),
    _worker("failures", "from raw.errors where role = 'worker'", "no task failed", _FAILURES_SEEN),
    _worker("transfers in", "from raw.transfers where direction = 'incoming'", "no result was fetched", _INCOMING_SEEN),
    _worker("transfers out", "from raw.transfers where direction = 'outgoing'", "no result was served", _OUTGOING_SEEN),
    _worker("results moved", "from raw.transfer_keys", "no result moved"),
    _worker("spill to disk", "from raw.spills", "no result went to disk", _SPILL_SEEN),
    _worker("memory each second", "from raw.samples where role = 'worker' and metric = 'process_memory_bytes'"),
    _worker("queues each second", "from raw.samples where role = 'worker' and metric = 'executing_count'"),
    _worker("fine metrics of Dask", "from raw.fine_metrics", "Dask measured nothing"),
    _cell(4, "worker", "log records", "from raw.logs", nothing="nothing was logged"),
    _cell(
        4,
        "worker",
        "pauses",
        "from raw.events where action = 'worker-status-change' and payload like '%\"paused\"%'",
        observer="scheduler",
        nothing="no worker paused",
    ),
    _cell(
        4,
        "worker",
        "restarts",
        "from raw.events where action in ('restart', 'worker-restart-memory', 'restart-workers')",
        observer="scheduler",
        nothing="nothing was restarted",
    ),
    _cell(4, "worker", "how processes ended", "from raw.process_ends", nothing="no end was seen"),
    _cell(5, "process", "CPU, faults and switches", "from raw.samples where metric = 'process_user_cpu_s'"),
    _cell(5, "process", "bytes read and written", "from raw.samples where metric = 'process_read_bytes'"),
    _cell(5, "process", "garbage collections", "from raw.samples where metric like 'gc\\_%' escape '\\'"),
    _cell(5, "coroutine", "event-loop lag", "from raw.samples where metric = 'event_loop_lag_s'"),
    _step5_worker("CPU, waits and I/O of each task", "from raw.thread_counters"),
    _step5_worker("kernel's names of threads", "from raw.threads"),
    _darshan("process", "Darshan logs", "from raw.io_logs", "no worker left a log", _SHORT_LOGS),
    _darshan("process", "files", "from raw.io_files", "no file was used", _FILES_SHORT),
    _darshan("thread", "operations on files", "from raw.io_segments", "no operation was traced", _SEGMENTS_SHORT),
    _darshan("thread", "beacons of Darshan's clock", "from raw.clock_beacons", "no worker ran under Darshan"),
    _yappi("thread", "functions of tasks, wall or CPU", "kind = 'task'", "no profiled task ended"),
    _yappi("coroutine", "coroutines, wall or CPU", "kind = 'coroutine'", "only tasks were profiled"),
    _yappi("coroutine", "functions outside tasks", "kind = 'other'", "only tasks were profiled"),
)  # fmt: skip
"""Every line of the map, in its order."""

STATES = {
    "collected": "recorded, and nothing of it is known to be lost",
    "partly": "recorded, but some of it is known to be missing",
    "missing": "not recorded; the reason is told",
    "nothing": "would have been recorded, but nothing of the kind happened",
    "not asked": "has its price and was not asked for; how to ask is told",
}
"""What the states of a line mean."""

LOSSES_SQL = """
select "table", kind, max(detail), sum(row_count)
from raw.losses
where "table" is not null
group by all
order by all
"""

OBSERVERS_SQL = """
with seen as (
    select 'scheduler' as role, scheduler_id as server_id from raw.processes where scheduler_id is not null
    union
    select 'worker', worker_id from raw.workers where worker_id is not null
    union
    select 'client', client from raw.clients where client <> 'fire-and-forget'
    union
    select role, server_id from spools
),
recorded as (select distinct role, server_id from spools)
select role, count(*), count(r.server_id)
from seen
left join recorded r using (role, server_id)
group by role
"""
"""How many servers of each role are known of, and how many of them left a spool."""


def coverage(run: Run) -> pa.Table:
    """What was recorded of a run: one row per line of the map.

    From: every raw table, losses, spools
    Columns: step, level, metadata, state (see `STATES`), row_count, tables, statement
    """
    import pyarrow as pa

    counts = _counts(run, CELLS)
    losses: dict[str, list[tuple[Any, ...]]] = {}
    for loss in run.sql(LOSSES_SQL).fetchall():
        losses.setdefault(loss[0], []).append(loss[1:])
    observers = {role: (seen, recorded) for role, seen, recorded in run.sql(OBSERVERS_SQL).fetchall()}
    rows = []
    for cell in CELLS:
        count = counts.get(cell.rows, 0)
        state, statement = _judge(run, cell, count, losses, observers)
        rows.append(
            {
                "step": cell.step,
                "level": cell.level,
                "metadata": cell.metadata,
                "state": state,
                "row_count": count,
                "tables": list(cell.tables),
                "statement": statement,
            }
        )
    return pa.Table.from_pylist(rows)


def _counts(run: Run, cells: Iterable[Cell]) -> dict[str, int]:
    queries = list(dict.fromkeys(cell.rows for cell in cells))
    (found,) = run.sql("select " + ", ".join(f"(select count(*) {query})" for query in queries)).fetchall()
    return dict(zip(queries, found, strict=True))


def _judge(
    run: Run,
    cell: Cell,
    count: int,
    losses: dict[str, list[tuple[Any, ...]]],
    observers: dict[str, tuple[int, int]],
) -> tuple[str, str]:
    """Return the state of a cell and the words for it."""
    lost = [loss for table in cell.tables for loss in losses.get(table, [])]
    if cell.observer == "any":
        seen, recorded = (sum(each) for each in zip(*observers.values(), strict=True)) if observers else (0, 0)
        role = "server"
    else:
        (seen, recorded), role = observers.get(cell.observer, (0, 0)), cell.observer
    share = f"recorded by {recorded} of {seen} {role}s" if seen > recorded else ""
    if count:
        if lost:
            return "partly", _loss_text(lost)
        if cell.shortfall:
            ((short, reason),) = run.sql(cell.shortfall).fetchall()
            if short:
                return "partly", reason + (f" (and {short - 1} more of the kind)" if short > 1 else "")
        return ("partly", share) if share else ("collected", "")
    if cell.asked and not lost and not (run.path / cell.asked).is_file():
        return "not asked", f"not asked for: {cell.how}"
    if not recorded:
        return "missing", f"no {role} was recorded"
    if lost:
        return "missing", _loss_text(lost)
    return _judge_nothing(run, cell, share)


def _judge_nothing(run: Run, cell: Cell, share: str) -> tuple[str, str]:
    if cell.witness:
        ((found,),) = run.sql(cell.witness).fetchall()
        if found:
            return "missing", f"Dask counted {found:.0f}, no row is there"
    if not cell.nothing:
        return "missing", cell.absent
    if share:
        return "partly", f"{cell.nothing}, as far as {share}"
    return "nothing", cell.nothing


def _loss_text(losses: list[tuple[Any, ...]]) -> str:
    """Return the losses of a cell as one statement: the first in words, the others counted."""
    kind, detail, row_count = losses[0]
    rows = f", {row_count} rows" if row_count and row_count > 0 else ""
    more = f" (and {len(losses) - 1} more kinds of loss)" if len(losses) > 1 else ""
    return f"{kind}{rows}: {detail}{more}"
