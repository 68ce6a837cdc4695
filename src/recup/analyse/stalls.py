"""When event loops stalled and what ran in their processes then.

Covers stretches in which the event loop of a scheduler or worker was late, as recup's own
timer and Dask's log tell.  A timer sees a stall only when it is due in it: once a second, so
stalls of 1.25 s and more are all seen, shorter ones by chance; and it sees the part of it
after it was due, so that durations are at least what is said.

A task can stall the loop of its process by holding the GIL in one long call, or, as a
coroutine, by not awaiting.  That it did is not observed: what is, is that it ran at such
times far more than at others.  It does not cover stalls of clients and nannies, of which no
samples are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.stalled import LAG_S, gathered, prefix_rows, process_rows, stall_rows
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.analyse.rows import Document
    from recup.store import Run

SHOWN_COUNT = 100
SAID_S = 1.0
"""Stalled time of which something is said, summed over all processes."""
SAID_SHARE = 0.5
"""A prefix is suspected when it ran in at least this share of the stalled time ..."""
LIFT = 2.0
"""... and in that share at least this many times what it was at other times."""
ON_TIME_COUNT = 3
LIKELY_COUNT = 3
LIKELY_ON_TIME_COUNT = 10
"""With fewer stalls, or fewer moments in time to hold them against, that a prefix ran then may be chance."""
UNEXPLAINED_S = 5.0
"""Stalled time of which something is said though nothing stands out: loops stall a little on every busy machine."""
CPU_SHARE = 0.5
"""A task that used less of a core while the loop stood still was waiting itself, which it can do without the GIL."""
QUEUE_SHARE = 0.25
"""Where tasks waited this much for a CPU, the loop may have waited for one too."""
BUSY_TRANSITIONS = 2_000
"""At this many transitions a second a loop is busy with them: each takes it 100 microseconds and more."""


def stalls(run: Run) -> Answer:
    """When did an event loop or the GIL stall, and what ran then?"""
    found = gathered(run)
    longest, prefixes, processes = stall_rows(run, found, SHOWN_COUNT), prefix_rows(found), process_rows(found)
    rows = longest.to_pylist()
    suspects = _suspected(prefixes)
    said: list[Conclusion | None] = [_prefix_conclusion(each, len(suspects)) for each in suspects]
    said += [_spill_conclusion(rows), _work_conclusion(rows), _client_conclusion(rows)]
    conclusions = [each for each in said if each is not None]
    if not conclusions:
        conclusions = [each for each in (_unexplained(processes),) if each is not None]
    return Answer(
        _headline(run, processes),
        ranked(conclusions),
        (
            AnswerTable("stalls", "Stretches in which an event loop was late, longest first", longest),
            AnswerTable("prefixes", "How much of the stalled time of workers each prefix ran in", prefixes),
            AnswerTable("processes", "Processes whose event loop stalled, most stalled first", processes),
        ),
        _basis(run, len(found.rows)),
    )


def _headline(run: Run, processes: pa.Table) -> str:
    rows = processes.to_pylist()
    if rows:
        count, total_s = sum(each["stall_count"] for each in rows), sum(each["stalled_s"] for each in rows)
        longest_s = max(each["longest_s"] for each in rows)
        return (
            f"{plural(count, 'stall')} of event loops in {len(rows)} {'process' if len(rows) == 1 else 'processes'}, "
            f"{seconds_text(total_s)} in all; the longest took {seconds_text(longest_s)}."
        )
    sampled = run.sql("select count(*) from raw.samples where metric = 'event_loop_lag_s'").fetchall()[0][0]
    if not sampled:
        return "Whether an event loop stalled is not known: none was sampled."
    return f"No event loop was seen late by {seconds_text(LAG_S)} or more."


def _suspected(prefixes: pa.Table) -> list[Document]:
    """Return the prefixes that ran in most of the stalled time, and far less at other times."""
    return [
        each
        for each in prefixes.to_pylist()
        if each["stalled_s"] >= SAID_S
        and (each["stalled_share"] or 0.0) >= SAID_SHARE
        and each["on_time_count"] >= ON_TIME_COUNT
        and each["stalled_share"] >= LIFT * each["elsewhere_share"]
    ]


def _prefix_conclusion(suspect: Document, suspect_count: int) -> Conclusion:
    is_coroutine = suspect["coroutine_share"] >= SAID_SHARE
    cpu_share, queue_share = suspect["cpu_share"], suspect["queue_share"]
    is_likely = (
        suspect_count == 1
        and suspect["stall_count"] >= LIKELY_COUNT
        and suspect["on_time_count"] >= LIKELY_ON_TIME_COUNT
    )
    if is_coroutine:
        why = "it is a coroutine and runs on the event loop, which stands still while it does not await"
        advice = "Await in it (asyncio.sleep, asyncio.to_thread for blocking calls), or make it a plain function."
    else:
        why = "it may hold the GIL in long calls of compiled code"
        if cpu_share is not None:
            why += f"; its tasks used {cpu_share:.0%} of a core meanwhile"
        if (queue_share or 0.0) >= QUEUE_SHARE:
            why += f" and waited {queue_share:.0%} of the time for one, so that the host may be to blame"
        is_likely = is_likely and (cpu_share or 0.0) >= CPU_SHARE and (queue_share or 0.0) < QUEUE_SHARE
        advice = "Release the GIL in that code, split its calls, or give workers one thread and more processes."
    prefix = suspect["prefix"] or "tasks without a recorded graph"
    return Conclusion(
        "stalls",
        prefix,
        f"{prefix} ran in {suspect['stalled_share']:.0%} of the {seconds_text(suspect['stalled_s'])} and more that loops "
        f"of workers stalled ({plural(suspect['stall_count'], 'stall')}), and at {suspect['elsewhere_share']:.0%} of "
        f"{plural(suspect['on_time_count'], 'moment')} at which they were in time: {why}.",
        "likely" if is_likely else "possible",
        None,
        advice,
        {name: value for name, value in suspect.items() if name != "prefix"},
    )


def _spill_conclusion(rows: list[Document]) -> Conclusion | None:
    """Return what to say of stalls in which results went to disk or came back, which happens on the loop."""
    spilling = [each for each in rows if each["spill_count"] or each["disk_s"]]
    stalled_s = sum(each["duration_s"] for each in spilling)
    if stalled_s < SAID_S:
        return None
    disk_s = sum(min(each["disk_s"] or 0.0, each["duration_s"]) for each in spilling)
    spilled_bytes = sum(each["spilled_bytes"] or 0 for each in spilling)
    return Conclusion(
        "stalls",
        "spill",
        f"In {plural(len(spilling), 'stall')} of {seconds_text(stalled_s)} workers moved results between memory and "
        f"disk on their event loop, {seconds_text(disk_s)} of it in reads and writes that Dask timed.",
        "certain" if disk_s >= stalled_s / 2 else "likely",
        None,
        "Give workers more memory or smaller partitions; see `recup memory`.",
        {"stall_count": len(spilling), "stalled_s": stalled_s, "disk_s": disk_s, "spilled_bytes": spilled_bytes},
    )


def _is_own_work(stall: Document) -> bool:
    return bool(stall["graph_task_count"]) or stall["transition_count"] >= BUSY_TRANSITIONS * stall["duration_s"]


def _work_conclusion(rows: list[Document]) -> Conclusion | None:
    """Return what to say of stalls in which the loop itself worked on graphs and transitions."""
    working = [each for each in rows if _is_own_work(each)]
    stalled_s = sum(each["duration_s"] for each in working)
    if stalled_s < SAID_S:
        return None
    graph_task_count = sum(each["graph_task_count"] or 0 for each in working)
    transition_count = sum(each["transition_count"] for each in working)
    roles = sorted({each["roles"] or "server" for each in working})
    graphs = f" and took in graphs of {plural(graph_task_count, 'task')}" if graph_task_count else ""
    return Conclusion(
        "stalls",
        "Dask's own work",
        f"In {plural(len(working), 'stall')} of {seconds_text(stalled_s)} the loops ({'; '.join(roles)}) worked off "
        f"{plural(transition_count, 'transition')} of tasks{graphs}.",
        "likely",
        None,
        "Make fewer and larger tasks, with fewer inputs each; see `recup overhead`.",
        {
            "stall_count": len(working),
            "stalled_s": stalled_s,
            "transition_count": transition_count,
            "graph_task_count": graph_task_count,
        },
    )


def _client_conclusion(rows: list[Document]) -> Conclusion | None:
    """Return what to say of a scheduler in the program's own process, whose code holds the same GIL."""
    shared = [
        each
        for each in rows
        if {"scheduler", "client"} <= set((each["roles"] or "").split(", "))
        and not _is_own_work(each)
        and not each["task_count"]
    ]
    stalled_s = sum(each["duration_s"] for each in shared)
    if stalled_s < SAID_S:
        return None
    return Conclusion(
        "stalls",
        "client",
        f"The scheduler's event loop stalled {plural(len(shared), 'time')}, {seconds_text(stalled_s)} in all, in the "
        "process of the client's program: code of the program may have held the GIL.",
        "possible",
        None,
        "Start the scheduler in a process of its own (`dask scheduler`), or keep long computations out of the program.",
        {"stall_count": len(shared), "stalled_s": stalled_s},
    )


def _unexplained(processes: pa.Table) -> Conclusion | None:
    rows = processes.to_pylist()
    stalled_s = sum(each["stalled_s"] for each in rows)
    if stalled_s < UNEXPLAINED_S:
        return None
    count = sum(each["stall_count"] for each in rows)
    return Conclusion(
        "stalls",
        rows[0]["servers"] or rows[0]["roles"] or "event loops",
        f"Event loops stalled {plural(count, 'time')}, {seconds_text(stalled_s)} in all, most in "
        f"{rows[0]['roles']} {rows[0]['servers'] or ''} ({seconds_text(rows[0]['stalled_s'])}); nothing recorded stands out "
        "then.",
        "certain",
        None,
        "`py-spy dump --native` of such a process shows what it does; a host with too few CPUs does it too.",
        {"stall_count": count, "stalled_s": stalled_s},
    )


def _basis(run: Run, stall_count: int) -> str:
    parts = [
        "It stands on a timer of each loop, due once a second: stalls are at least as long as said, and those shorter "
        "than 1.25 s are seen by chance."
    ]
    silenced, counted, contention = run.sql(
        """
        select
            (select count(*) from worker_lives where not is_captured),
            (select count(*) from raw.thread_counters),
            (select count(*) from raw.samples where metric = 'gil_contention_ratio')
        """
    ).fetchall()[0]
    if silenced:
        parts.append(f"{plural(silenced, 'worker')} did not record.")
    if stall_count and not counted:
        parts.append("Counters of threads were not recorded: coroutines and CPU use of tasks are not known.")
    if stall_count and not contention:
        parts.append("Contention for the GIL was not measured (Dask does so where gilknocker is installed).")
    return " ".join(parts)
