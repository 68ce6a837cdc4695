"""What happened from the start of the program to its first task: phases that add up, and each graph.

Covers the way of the task that computed first: its program, its cluster, its graph.  It
does not look into the client's own code: building a graph cannot be told from all else the
program does (`recup profile` can).

Phases end at moments that were recorded; a moment that is not known joins its phase to the
next one, which is then called unknown.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.rows import Document, rows_of
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    from recup.store import Run

SHOWN_COUNT = 50
"""Graphs shown."""
BELIEVED_S = 30 * 86400.0
"""A moment longer than this before the first task is no moment of its start, but a clock that is off or was not told."""
SAID_SHARE = 0.01
"""A phase is spoken of when it takes this share of the run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """One step between the start of the program and its first task.

    Attributes
    ----------
    name : str
        What it is called.
    meaning : str
        What happens in it.
    said_s : float
        From this duration on it is spoken of: well above what it takes on a healthy cluster.
    advice : str
        What to do then.
    """

    name: str
    meaning: str
    said_s: float
    advice: str


_START = Phase(
    "program start",
    "interpreter, imports and the program's own code, until the scheduler began",
    10.0,
    "Time the imports (`python -X importtime`): on parallel file systems a local copy of the environment helps.",
)
_WORKER_LAUNCH = Phase(
    "worker launch",
    "from the start of the scheduler, or of the program, until the process of the first worker began",
    10.0,
    "See how workers are asked for: jobs that queue in the batch system are the usual reason.",
)
_FIRST_WORKER = Phase(
    "first worker",
    "until the scheduler took the first worker in: its interpreter and imports",
    10.0,
    "Time the imports of a worker (preloads included); on parallel file systems a local environment helps.",
)
_OTHER_WORKERS = Phase(
    "other workers",
    "until the last worker that came before the graph was sent; the program waits for it, or does its own work",
    10.0,
    "Do not wait for all workers, or find out which come late.",
)
_OWN_CODE = Phase(
    "own code",
    "the program's own code until it sent the graph: building it, reading metadata, all else",
    1.0,
    "Build smaller graphs, or build before the cluster is asked for; `recup run --yappi wall` shows the functions.",
)
_PACKING = Phase(
    "packing",
    "the client optimised and packed the graph",
    1.0,
    "Keep large objects out of the graph (scatter them, or load them in tasks); send fewer tasks.",
)
_WAY = Phase(
    "on its way",
    "the graph went to the scheduler and waited there for its event loop",
    1.0,
    "Keep large objects out of the graph; see whether the scheduler was busy (`recup overhead`).",
)
_MATERIALIZING = Phase(
    "materialising",
    "the scheduler unpacked the graph and made its tasks",
    1.0,
    "Make fewer and larger tasks (chunk sizes, batches), and keep large objects out of the graph.",
)
_ORDERING = Phase("ordering", "the scheduler ordered the tasks", 1.0, "Make fewer and larger tasks.")
_STATES = Phase("task states", "the scheduler made the states of the tasks", 1.0, "Make fewer and larger tasks.")
_CAPTURE = Phase("recup", "recup read the graph", 1.0, "This is the cost of recording; it grows with the graph.")
_NO_WORKER = Phase(
    "waiting for a worker",
    "the graph was there, and the worker that computed first was not",
    5.0,
    "Ask for workers earlier, or see why they came late.",
)
_ASSIGNING = Phase(
    "assigning", "until the scheduler sent the task to a worker", 1.0, "See what the scheduler did (`recup overhead`)."
)
_RECEIVING = Phase(
    "sending the task",
    "until the worker took the task in, unpacking it",
    1.0,
    "Keep large objects out of tasks; see whether the worker's event loop stalled (`recup stalls`).",
)
_READYING = Phase(
    "readying", "until the worker gave the task to a thread: its inputs came", 1.0, "See `recup transfers`."
)
_STARTING = Phase(
    "starting",
    "until the task's code began: unpacking, imports of its modules on the worker",
    1.0,
    "Preload the modules of tasks on workers (`--preload`).",
)

FIRST_SQL = """
with first_run as (
    -- Of one that goes on it is known when its worker gave it to a thread.
    select * replace (coalesce(started_s, executing_s) as started_s)
    from task_runs
    where coalesce(started_s, executing_s) is not null
    order by started_s, run_id
    limit 1
), metrics as (
    select server_id, try(json_extract_string(payload, '$.stimulus_id')) as stimulus_id,
        any_value(try(json_extract(payload, '$.metrics'))::varchar) as metrics
    from raw.events
    where action = 'update-graph'
    group by all
), begun as (
    select server_id as scheduler_id, min(time_ns) as time_ns
    from (
        select server_id, time_ns from raw.clock_samples where role = 'scheduler'
        union all
        select server_id, time_ns from raw.processes where role = 'scheduler'
    )
    group by server_id
)
select
    r.scheduler_id, r.key, r.prefix, r.worker, r.submission, r.assigned_s, r.received_s, r.executing_s, r.started_s,
    r.clock_error_s,
    coalesce(story.taken_s, r.submitted_s) as taken_s,
    story.client_server_id,
    case when clocks.basis <> 'unknown' then story.sent_s end as sent_s,
    clocks.basis as client_clock,
    sent.duration_ns / 1e9 as sending_s,
    sent.capture_duration_ns / 1e9 as client_capture_s,
    taken.capture_duration_ns / 1e9 as capture_s,
    story.task_count, story.call, story.path, story.line,
    metrics.metrics,
    client.process_started_s + coalesce(clocks.offset_s, 0.0) as process_started_s,
    client.arguments,
    client.pid,
    begun.time_ns / 1e9 as scheduler_began_s,
    life.came_s as worker_came_s,
    (select started_s from run_times) as origin_s,
    (select wall_s from run_times) as wall_s
from first_run r
left join submission_story story on story.scheduler_id = r.scheduler_id and story.submission = r.submission
left join raw.submissions taken on taken.server_id = r.scheduler_id and taken.submission = r.submission
left join raw.client_submissions sent
    on sent.server_id = story.client_server_id and sent.submission = story.client_submission
left join metrics on metrics.server_id = r.scheduler_id and metrics.stimulus_id = taken.stimulus_id
left join clocks on clocks.server_id = story.client_server_id
left join (
    select server_id, any_value(process_started_s) as process_started_s, any_value(arguments) as arguments,
        any_value(pid) as pid
    from raw.processes group by server_id
) client on client.server_id = story.client_server_id
left join begun on begun.scheduler_id = r.scheduler_id
left join (
    select scheduler_id, worker_id, min(came_s) as came_s from worker_lives group by scheduler_id, worker_id
) life on life.scheduler_id = r.scheduler_id and life.worker_id = r.worker_id
"""

WORKERS_SQL = """
select w.came_s, w.left_s, w.thread_count,
    case when clocks.basis <> 'unknown' then p.process_started_s + clocks.offset_s end as process_started_s
from worker_lives w
left join (
    select server_id, any_value(process_started_s) as process_started_s from raw.processes group by server_id
) p on p.server_id = w.worker_id
left join clocks on clocks.server_id = w.worker_id
where w.came_s is not null and w.scheduler_id = ?
order by w.came_s
"""

GRAPHS_SQL = """
with metrics as (
    select server_id, try(json_extract_string(payload, '$.stimulus_id')) as stimulus_id,
        any_value(try(json_extract(payload, '$.metrics'))) as metrics
    from raw.events
    where action = 'update-graph'
    group by all
), firsts as (
    select scheduler_id, submission, min(assigned_s) as assigned_s, min(started_s) as started_s
    from task_runs
    where submission is not null
    group by scheduler_id, submission
)
select
    case when clocks.basis <> 'unknown' then story.sent_s end - (select started_s from run_times) as sent_at_s,
    story.task_count,
    story.call,
    case when story.path is not null then story.path || ':' || story.line end as sent_from,
    (sent.duration_ns - sent.capture_duration_ns) / 1e9 as packing_s,
    case when clocks.basis <> 'unknown' then story.taken_s - story.sent_s end as sent_to_taken_s,
    try_cast(metrics.metrics ->> '$.materialization_duration_seconds' as double) as materializing_s,
    abs(try_cast(metrics.metrics ->> '$.ordering_duration_seconds' as double)) as ordering_s,
    firsts.assigned_s - story.taken_s as taken_to_assigned_s,
    firsts.started_s - firsts.assigned_s as assigned_to_started_s,
    firsts.started_s - coalesce(case when clocks.basis <> 'unknown' then story.sent_s end, story.taken_s)
        as to_first_task_s,
    story.taken_s - (select started_s from run_times) as taken_at_s,
    firsts.started_s - (select started_s from run_times) as first_task_at_s,
    story.scheduler_id,
    story.submission
from submission_story story
left join raw.submissions taken on taken.server_id = story.scheduler_id and taken.submission = story.submission
left join raw.client_submissions sent
    on sent.server_id = story.client_server_id and sent.submission = story.client_submission
left join metrics on metrics.server_id = story.scheduler_id and metrics.stimulus_id = taken.stimulus_id
left join clocks on clocks.server_id = story.client_server_id
left join firsts on firsts.scheduler_id = story.scheduler_id and firsts.submission = story.submission
"""


# ---------------------------------------------------------------- tables


def startup_phases(run: Run) -> pa.Table:
    """Phases from the start of the program to its first task: one row per phase, in order; durations add up.

    A phase that no recorded moment parts from the next is joined to it and called unknown.
    `idle_s` is what the threads of workers that were there could have computed meanwhile.

    From: task_runs, submission_story, processes, worker_lives, events
    Columns: phase, meaning, from_at_s, duration_s, startup_share, idle_s
    """
    return _phase_rows(*_chain(run))


def graphs_sent(run: Run) -> pa.Table:
    """Each graph from its client to its first task: one row per graph, those that took longest first.

    Times between client and scheduler are null where their clocks are not aligned.

    From: submission_story, client_submissions, events, task_runs
    Columns: sent_at_s, task_count, call, sent_from, packing_s, sent_to_taken_s, materializing_s, ordering_s,
    taken_to_assigned_s, assigned_to_started_s, to_first_task_s, taken_at_s, first_task_at_s, scheduler_id, submission
    """
    return run.sql(f"{GRAPHS_SQL} order by to_first_task_s desc nulls last, taken_at_s, submission").to_arrow_table()


_PHASE_SCHEMA = pa.schema(
    [
        ("phase", pa.string()),
        ("from_at_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("startup_share", pa.float64()),
        ("meaning", pa.string()),
        ("idle_s", pa.float64()),
    ]
)


def _chain(run: Run) -> tuple[Document | None, list[tuple[Phase, float, float, float | None]]]:
    """Return the first task with its facts, and (phase, from, to, idle thread-seconds) of each step to it."""
    found = rows_of(run, FIRST_SQL)
    if not found:
        return None, []
    first = found[0]
    lives = rows_of(run, WORKERS_SQL, [first["scheduler_id"]])
    first["is_interactive"] = _is_interactive(run, first)
    return first, _steps(first, lives)


def _is_interactive(run: Run, first: Document) -> bool:
    """Return whether the program is a session of its user: then its start says nothing of its work."""
    arguments = " ".join(json.loads(first["arguments"] or "[]"))
    return run.manifest.get("way") not in ("run", "preload") or "ipykernel" in arguments or "ipython" in arguments


def _steps(first: Document, lives: list[Document]) -> list[tuple[Phase, float, float, float | None]]:
    end_s = first["started_s"]
    for name in (
        "sent_s",
        "taken_s",
        "process_started_s",
        "scheduler_began_s",
        "assigned_s",
        "received_s",
        "executing_s",
    ):
        if first[name] is not None and end_s - first[name] > BELIEVED_S:
            first[name] = None
    lives = [each for each in lives if end_s - each["came_s"] <= BELIEVED_S]
    sent_s, taken_s = first["sent_s"], first["taken_s"]
    leaves_s = sent_s if sent_s is not None else taken_s
    before = [each["came_s"] for each in lives if leaves_s is not None and each["came_s"] <= leaves_s]
    begin_s = None if first["is_interactive"] else first["process_started_s"]
    scheduler_s = first["scheduler_began_s"]
    moments: list[tuple[Phase, float | None]] = []
    if begin_s is None:
        begin_s = min(each for each in (scheduler_s, *before, leaves_s, end_s) if each is not None)
    elif scheduler_s is not None and scheduler_s > begin_s:
        moments.append((_START, scheduler_s))
    came = [each for each in before if each > begin_s]
    if came:
        # A worker that was there before the program takes no part in its start.
        if len(came) == len(before):
            moments += [(_WORKER_LAUNCH, lives[0]["process_started_s"]), (_FIRST_WORKER, came[0])]
        if len(came) > 1 or len(came) < len(before):
            moments.append((_OTHER_WORKERS, came[-1]))
    moments.append((_OWN_CODE, sent_s))
    packing_s = None
    if sent_s is not None and first["sending_s"] is not None:
        packing_s = sent_s + first["sending_s"] - (first["client_capture_s"] or 0.0)
    moments.append((_PACKING, packing_s))
    metrics = json.loads(first["metrics"]) if first["metrics"] else {}
    began_s = metrics.get("start_timestamp_seconds")
    made_s = _later(began_s, metrics.get("materialization_duration_seconds"))
    ordered_s = _later(made_s, metrics.get("ordering_duration_seconds"))
    moments += [(_WAY, began_s), (_MATERIALIZING, made_s), (_ORDERING, ordered_s), (_STATES, taken_s)]
    moments.append((_CAPTURE, _later(taken_s, first["capture_s"])))
    if taken_s is not None and (first["worker_came_s"] or 0.0) > taken_s:
        moments.append((_NO_WORKER, first["worker_came_s"]))
    moments += [
        (_ASSIGNING, first["assigned_s"]),
        (_RECEIVING, first["received_s"]),
        (_READYING, first["executing_s"]),
        (_STARTING, end_s),
    ]
    return _joined(moments, begin_s, end_s, lives)


def _later(moment_s: float | None, duration_s: float | None) -> float | None:
    # Some of Dask's durations have the wrong sign.
    return None if moment_s is None or duration_s is None else moment_s + abs(duration_s)


def _joined(
    moments: list[tuple[Phase, float | None]], begin_s: float, end_s: float, lives: list[Document]
) -> list[tuple[Phase, float, float, float | None]]:
    """Return the phases between moments; those whose end is not known go into the next, times never run backwards."""
    steps: list[tuple[Phase, float, float, float | None]] = []
    waiting: list[Phase] = []
    at_s = begin_s
    for phase, moment_s in moments:
        waiting.append(phase)
        if moment_s is None:
            continue
        to_s = min(max(moment_s, at_s), end_s)
        if len(waiting) > 1:
            phase = Phase(
                f"unknown: {' or '.join(each.name for each in waiting)}",
                "what parts these is not recorded",
                max(each.said_s for each in waiting),
                waiting[0].advice,
            )
        steps.append((phase, at_s, to_s, _idle_s(lives, at_s, to_s)))
        waiting, at_s = [], to_s
    return steps


def _idle_s(lives: list[Document], from_s: float, to_s: float) -> float:
    """Return threads times time of the workers that were there; until the first task computes all are idle."""
    idle_s = 0.0
    for each in lives:
        left_s = to_s if each["left_s"] is None else each["left_s"]
        idle_s += (each["thread_count"] or 0) * max(min(to_s, left_s) - max(from_s, each["came_s"]), 0.0)
    return idle_s


def _phase_rows(first: Document | None, steps: list[tuple[Phase, float, float, float | None]]) -> pa.Table:
    if first is None:
        return _PHASE_SCHEMA.empty_table()
    whole_s = steps[-1][2] - steps[0][1]
    rows = [
        {
            "phase": phase.name,
            "from_at_s": from_s - first["origin_s"],
            "duration_s": to_s - from_s,
            "startup_share": (to_s - from_s) / whole_s if whole_s else None,
            "meaning": phase.meaning,
            "idle_s": idle_s,
        }
        for phase, from_s, to_s, idle_s in steps
    ]
    return pa.Table.from_pylist(rows, schema=_PHASE_SCHEMA)


# ---------------------------------------------------------------- the answer


def startup(run: Run) -> Answer:
    """Why did nothing happen at the start?"""
    first, steps = _chain(run)
    graphs = run.sql(
        f"{GRAPHS_SQL} order by to_first_task_s desc nulls last, taken_at_s, submission limit ?", [SHOWN_COUNT]
    ).to_arrow_table()
    tables = (
        AnswerTable("phases", "From the start of the program to its first task", _phase_rows(first, steps)),
        AnswerTable("graphs", "Each graph from its client to its first task, slowest first", graphs),
    )
    if first is None:
        return Answer(
            "No task is known to have computed.", (), tables, "It stands on attempts of tasks, of which none began."
        )
    whole_s = steps[-1][2] - steps[0][1]
    longest = max(steps, key=lambda each: each[2] - each[1])
    since = (
        "the first moment known"
        if first["is_interactive"] or first["process_started_s"] is None
        else "the program began"
    )
    headline = f"The first task computed {seconds_text(whole_s)} after {since}"
    if whole_s:
        headline += f"; longest: {longest[0].name}, {seconds_text(longest[2] - longest[1])}"
    conclusions = [_said(first, whole_s, step) for step in steps]
    return Answer(f"{headline}.", ranked(each for each in conclusions if each is not None), tables, _basis(first))


def _said(first: Document, whole_s: float, step: tuple[Phase, float, float, float | None]) -> Conclusion | None:
    phase, from_s, to_s, idle_s = step
    duration_s = to_s - from_s
    if duration_s < max(phase.said_s, SAID_SHARE * (first["wall_s"] or 0.0)):
        return None
    if first["is_interactive"] and phase in (_OWN_CODE, _OTHER_WORKERS, _FIRST_WORKER):
        return None
    is_unknown = phase.name.startswith("unknown")
    evidence: dict[str, Any] = {"duration_s": duration_s, "task_count": first["task_count"]}
    of_graph = ""
    if phase in (_PACKING, _WAY, _MATERIALIZING, _ORDERING, _STATES, _CAPTURE) and first["task_count"]:
        of_graph = f" (graph of {plural(first['task_count'], 'task')}{_place(first)})"
    elif phase is _OWN_CODE:
        of_graph = _place(first)
    return Conclusion(
        "startup",
        phase.name,
        f"Of the {seconds_text(whole_s)} to the first task, {seconds_text(duration_s)} are {phase.name}: "
        f"{phase.meaning}{of_graph}.",
        "possible" if is_unknown else "certain",
        idle_s or None,
        phase.advice,
        evidence,
    )


def _place(first: Document) -> str:
    return f", sent from {first['path']}:{first['line']}" if first["path"] else ""


def _basis(first: Document) -> str:
    parts = [
        f"It follows {first['key']}, the task that computed first, on {first['worker']}.",
        "Building a graph cannot be told from other code of the program.",
    ]
    if first["is_interactive"]:
        parts.append("The program is a session of its user or was joined later: its start is not counted.")
    if first["client_server_id"] is None:
        parts.append("The client did not record.")
    elif first["client_clock"] == "unknown":
        parts.append("The client's clock is not aligned with the scheduler's.")
    if not first["metrics"]:
        parts.append("What the scheduler did with the graph is not told.")
    if first["received_s"] is None:
        parts.append("The worker did not record when it took the task in.")
    if (first["clock_error_s"] or 0.0) > 0.1:
        parts.append(f"The worker's clock may be off by {seconds_text(first['clock_error_s'])}.")
    return " ".join(parts)
