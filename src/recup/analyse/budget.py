"""Where the time of a run went: every second of every thread, in exactly one category.

Covers threads times wall time of the run, split without rest: by category, by prefix, by
worker and over time.  How a second gets its category is `recup.analyse.budget_sweep`'s.
It does not say which chain of tasks set the wall time (`critical_path`), nor what was
computed in vain (`recomputed`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.budget_record import Found, numbers, read_record
from recup.analyse.budget_sweep import BUSY, CATEGORIES, NAMES, OF_TASKS, Floats, Sums, sweep
from recup.analyse.rows import once_per_run
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    from recup.store import Run

__all__ = [
    "BUSY",
    "CATEGORIES",
    "NAMES",
    "OF_TASKS",
    "budget",
    "budget_by_prefix",
    "budget_by_worker",
    "budget_over_time",
    "budget_totals",
]

BINS = 200
"""Bins of a budget that nobody asked otherwise; a tenth of them is shown."""
NOTABLE_SHARE = 0.1
"""Share of the time that workers were there from which on a category is a conclusion: less is worth little to anyone."""
NOTABLE_WALL_S = 1.0
"""And as much of the wall time: shorter is the come and go of any start."""
USUAL_START_S = 15.0
"""Wall time without wanted tasks that says nothing: imports, graph building, and end."""
USUAL_ARRIVAL_S = 5.0
"""Wall time without some workers, between the first arrival and the last departure, that says nothing."""
CROWDED_SHARE = 0.2
"""Share of the time of tasks that waited for a CPU from which on it is a conclusion of its own."""


@dataclasses.dataclass(slots=True)
class _Kept:
    """What was read and summed of a run, so that its tables stand on the same sweep."""

    found: Found
    sums: dict[int, Sums] = dataclasses.field(default_factory=dict)


@once_per_run
def _kept(run: Run) -> _Kept:
    return _Kept(read_record(run))


def _sums(run: Run, bin_count: int = BINS) -> Sums:
    kept = _kept(run)
    if bin_count not in kept.sums:
        kept.sums[bin_count] = sweep(kept.found.record, bin_count)
    return kept.sums[bin_count]


def budget_totals(run: Run) -> pa.Table:
    """Thread-seconds of the whole run: one row per category, in the order of `CATEGORIES`, also those of none.

    From: task_runs, task_io_totals, worker_lives, run_summary, worker_transitions, thread_counters, startstops,
    scheduler_transitions, submissions, events
    Columns: category, meaning, thread_s, share (null: no thread or no time), wall_s (thread_s by the threads of the
    run: sums to the wall time)
    """
    sums = _sums(run)
    thread_s = sums.of_bins.sum(axis=0)
    total, threads = thread_s.sum(), sums.thread_count
    return pa.table(
        {
            "category": pa.array(NAMES, pa.string()),
            "meaning": pa.array([meaning for _, meaning in CATEGORIES], pa.string()),
            "thread_s": thread_s,
            "share": pa.array(thread_s / total if total > 0 else [None] * len(NAMES), pa.float64()),
            "wall_s": thread_s / threads if threads else np.zeros(len(NAMES)),
        }
    )


def budget_by_prefix(run: Run) -> pa.Table:
    """Thread-seconds of each prefix, most first; a null prefix is of tasks whose graph was not recorded.

    A wait of a slot is shared in equal parts by the tasks that waited there.

    Columns: prefix, <name>_s of each of `OF_TASKS`, total_s, attempt_count
    """
    sums, record = _sums(run), _kept(run).found.record
    total = sums.of_prefixes.sum(axis=1)
    order = np.argsort(-total, kind="stable")
    order = order[(total[order] > 0) | (record.attempts[order] > 0)]
    rows: dict[str, object] = {"prefix": pa.array([record.prefixes[at] for at in order], pa.string())}
    rows |= {f"{name}_s": sums.of_prefixes[order, at] for at, name in enumerate(OF_TASKS)}
    return pa.table(rows | {"total_s": total[order], "attempt_count": record.attempts[order]})


def budget_by_worker(run: Run) -> pa.Table:
    """Thread-seconds of each life of a worker; categories of a row sum to its threads times its life in the run.

    A worker that came before the run, or went after it, counts for the time of the run only.

    Columns: scheduler_id, worker, worker_id, host_id, thread_count, came_at_s, left_at_s (null: not removed, as far
    as recorded), <name>_s of each of `NAMES`, total_s
    """
    sums, found = _sums(run), _kept(run).found
    lives, origin = found.lives, found.window.origin_s
    rows: dict[str, object] = {
        "scheduler_id": lives["scheduler_id"],
        "worker": lives["address"],
        "worker_id": lives["worker_id"],
        "host_id": lives["host_id"],
        "thread_count": lives["thread_count"].cast(pa.int64()),
        "came_at_s": _since(lives["came_s"], origin),
        "left_at_s": _since(lives["left_s"], origin),
    }
    rows |= {f"{name}_s": sums.of_lives[:, at] for at, name in enumerate(NAMES)}
    return pa.table(rows | {"total_s": sums.of_lives.sum(axis=1)})


def _since(moments: pa.ChunkedArray, origin_s: float) -> pa.Array:
    values = numbers(moments) - origin_s
    return pa.array(values, mask=np.isnan(values))


def budget_over_time(run: Run, bin_count: int = BINS) -> pa.Table:
    """Thread-seconds of each of equal bins of the run; categories of a row sum to threads times the bin.

    The first may begin before 0: the program starts before the first recorded moment.

    Columns: start_at_s, stop_at_s, <name>_s of each of `NAMES`
    """
    if bin_count < 1:
        raise ValueError(f"bin_count is {bin_count}; a budget over time has at least one bin")
    frame = _kept(run).found.window
    sums = _sums(run, BINS if BINS % bin_count == 0 else bin_count)
    step = (len(sums.edges_s) - 1) // bin_count
    edges = sums.edges_s[::step] + (frame.start_s - frame.origin_s)
    of_bins = sums.of_bins.reshape(bin_count, step, len(NAMES)).sum(axis=1)
    rows: dict[str, object] = {"start_at_s": edges[:-1], "stop_at_s": edges[1:]}
    return pa.table(rows | {f"{name}_s": of_bins[:, at] for at, name in enumerate(NAMES)})


def budget(run: Run) -> Answer:
    """Where did the time go?"""
    sums, found = _sums(run), _kept(run).found
    totals = budget_totals(run)
    thread_s = sums.of_bins.sum(axis=0)
    total = float(thread_s.sum())
    if total <= 0:
        return Answer(
            "No worker with a thread is in the record, so there is no time to split.", (), (), _basis(sums, found)
        )
    by_worker = budget_by_worker(run)
    return Answer(
        headline=_headline(sums, thread_s),
        conclusions=_conclusions(run, sums, thread_s),
        tables=(
            AnswerTable("overall", "All threads: where each second went", totals.filter(pa.array(thread_s > 0))),
            AnswerTable(
                "by-prefix", "Prefixes: time of their tasks, most first", _without_zeros(budget_by_prefix(run))
            ),
            AnswerTable(
                "by-worker",
                "Workers: time of their threads, in order of arrival",
                _without_zeros(by_worker.drop_columns(["scheduler_id", "worker_id", "host_id"])),
            ),
            AnswerTable(
                "over-time", "Over time: twenty equal parts of the run", _without_zeros(budget_over_time(run, 20))
            ),
        ),
        basis=_basis(sums, found),
    )


def _without_zeros(rows: pa.Table) -> pa.Table:
    """Return the table without categories that nothing is in."""
    names = {f"{name}_s" for name in NAMES}
    empty = [name for name in rows.column_names if name in names and not np.any(numbers(rows[name]))]
    return rows.drop_columns(empty) if empty else rows


def _headline(sums: Sums, thread_s: Floats) -> str:
    share = dict(zip(NAMES, thread_s / thread_s.sum(), strict=True))
    computing = sum(share[name] for name in BUSY)
    idle = sorted(((share[name], name) for name in NAMES if name not in BUSY), reverse=True)[:2]
    rest = " and ".join(f"{part:.0%} {_SHORT[name]}" for part, name in idle if part >= 0.005)
    return (
        f"Of {plural(sums.thread_count, 'thread')} for {seconds_text(sums.wall_s)}, tasks were in them "
        f"{computing:.0%} of the time ({share['cpu']:.0%} on a CPU)" + (f"; {rest}." if rest else ".")
    )


_SHORT = {
    "spill": "idle while results went to or came from disk",
    "deserialize": "idle while tasks were unpacked",
    "transfer_wait": "idle while tasks waited for inputs",
    "scheduler_latency": "idle while tasks were between scheduler and worker",
    "imbalance": "idle while tasks waited elsewhere",
    "no_task_ready": "idle as the graph allowed no more",
    "nothing_submitted": "idle as nothing was submitted",
    "worker_paused": "idle as workers were paused",
    "worker_absent": "without a worker",
}

_FOUND: dict[str, tuple[str, str, str]] = {
    "blocked": (
        "certain",
        "tasks held a thread and waited: for the GIL, a lock, the network, a timer{files}",
        "If they wait for files or network, more threads per worker help; if for the GIL, more workers of one thread "
        "each do; `recup run --yappi wall` tells which functions wait",
    ),
    "io": ("certain", "tasks were in reads and writes of files", "`recup storage` says which files and what to do"),
    "unfinished": (
        "certain",
        "went to tasks that never came to an end",
        "`recup deaths` and `recup lost` say which, and what became of them",
    ),
    "spill": (
        "likely",
        "threads stood idle while their workers wrote results to disk or read them back",
        "Give workers more memory, or hold fewer results: `recup memory` says which",
    ),
    "deserialize": (
        "likely",
        "threads stood idle while their workers unpacked tasks",
        "Do not put large objects into tasks: scatter them, or load them in the task",
    ),
    "transfer_wait": (
        "likely",
        "threads stood idle while their tasks waited for inputs from other workers",
        "Move less or keep neighbours together: `recup transfers` says what moved",
    ),
    "scheduler_latency": (
        "likely",
        "threads stood idle while tasks were on the way between scheduler and worker",
        "Make tasks longer or fewer: `recup overhead` says what each costs",
    ),
    "imbalance": (
        "likely",
        "threads stood idle while tasks waited behind busy threads or at the scheduler",
        "Look for tasks bound to workers, and for long tasks that came late: `recup slow` and `recup transfers`",
    ),
    "no_task_ready": (
        "likely",
        "threads stood idle as the graph allowed no more tasks at once",
        "Split the work finer or use fewer workers: `recup critical-path` says which chain held the rest up",
    ),
    "nothing_submitted": (
        "certain",
        "threads stood idle as no task was wanted",
        "Submit earlier or more at once, and close the cluster when done: `recup startup` says what the client did",
    ),
    "worker_paused": (
        "certain",
        "threads stood idle as their workers were paused for want of memory",
        "Give workers more memory, or hold fewer results: `recup memory` says which",
    ),
    "worker_absent": (
        "certain",
        "threads were not there while others were, as their workers had not come or had gone",
        "Start work when workers are there, or keep them: `recup startup` and `recup deaths`",
    ),
}
"""By category: how sure it is, what is to be said, and what to do."""


def _conclusions(run: Run, sums: Sums, thread_s: Floats) -> tuple[Conclusion, ...]:
    seconds = dict(zip(NAMES, map(float, thread_s), strict=True))
    in_threads = sum(seconds[name] for name in BUSY)
    least_wall = {"nothing_submitted": USUAL_START_S, "worker_absent": USUAL_ARRIVAL_S}
    # Before the first worker it is the start of the run, which `startup` tells.
    seconds["worker_absent"] = _absent_between(sums, _kept(run).found)
    base = float(sums.of_lives.sum()) + seconds["worker_absent"]
    found = []
    for name, (certainty, what, advice) in _FOUND.items():
        wall = seconds[name] / sums.thread_count
        if seconds[name] < NOTABLE_SHARE * base or wall < least_wall.get(name, NOTABLE_WALL_S):
            continue
        prefix, part = _leading_prefix(run, name)
        where = f", {part:.0%} of it by {prefix}" if prefix is not None else ""
        files = "" if _kept(run).found.notes["has_io"] else " or files"
        found.append(
            Conclusion(
                "budget",
                prefix or name.replace("_", " "),
                f"For {seconds_text(seconds[name])} of threads, {seconds[name] / base:.0%} of the time workers were there, "
                f"{what.format(files=files)}{where}.",
                certainty,
                seconds[name],
                f"{advice}.",
                {"category": name, "thread_s": seconds[name], "share": seconds[name] / base, "wall_s": wall},
            )
        )
    if seconds["cpu_wait"] >= max(CROWDED_SHARE * in_threads, NOTABLE_WALL_S * sums.thread_count):
        found.append(
            Conclusion(
                "budget",
                "CPU",
                f"Tasks were ready to run and had no CPU for {seconds_text(seconds['cpu_wait'])}, "
                f"{seconds['cpu_wait'] / in_threads:.0%} of their time in threads.",
                "certain",
                seconds["cpu_wait"],
                "Start no more threads than the host has CPUs to spare, and look for libraries that start their own.",
                {"category": "cpu_wait", "thread_s": seconds["cpu_wait"], "share": seconds["cpu_wait"] / in_threads},
            )
        )
    return ranked(found)


def _absent_between(sums: Sums, found: Found) -> float:
    """Return the thread-seconds of workers that were not there, from the first arrival to the last departure."""
    lives = found.record.lives
    come = np.clip(lives.start_s, 0.0, sums.wall_s)
    gone = np.clip(lives.stop_s, 0.0, sums.wall_s)
    if not len(come):
        return 0.0
    return max(float(gone.max() - come.min()) * sums.thread_count - float(sums.of_lives.sum()), 0.0)


def _leading_prefix(run: Run, name: str) -> tuple[str | None, float]:
    """Return the prefix that most of a category is of, and its share; none where no prefix has half of it."""
    if name not in OF_TASKS:
        return None, 0.0
    sums, record = _sums(run), _kept(run).found.record
    column = sums.of_prefixes[:, OF_TASKS.index(name)]
    at = int(np.argmax(column))
    share = float(column[at] / column.sum()) if column.sum() > 0 else 0.0
    return (record.prefixes[at], share) if share >= 0.5 else (None, share)


def _basis(sums: Sums, found: Found) -> str:
    """Return what the budget stands on and what is not known, in words."""
    notes = found.notes
    says = [
        f"{plural(sums.thread_count, 'thread')} (most at once) times {seconds_text(sums.wall_s)} from start to end of "
        f"the run, and {plural(notes['attempt_count'], 'attempt')}."
    ]
    lacks = {
        "Darshan was not recorded: reads and writes of files count as blocked.": not notes["has_io"]
        and notes["attempt_count"] > 0,
        f"Of {notes['unsplit_count']:,} attempts of {notes['ran_count']:,} it is not known what their threads did.": notes[
            "unsplit_count"
        ]
        > 0,
        f"{plural(notes['uncaptured_count'], 'worker')} left no record of its own: what ran there is known by the "
        "scheduler's word only.": notes["uncaptured_count"] > 0,
        f"Threads of {plural(notes['seen_thread_count'], 'worker')} were not told: those seen to compute are counted.": notes[
            "seen_thread_count"
        ]
        > 0,
        f"{plural(notes['unknown_place_count'], 'attempt')} on no known worker: not counted.": notes[
            "unknown_place_count"
        ]
        > 0,
        f"{plural(notes['seceded_count'], 'attempt')} seceded: its time counts until then, as its slot went to others.": notes[
            "seceded_count"
        ]
        > 0,
    }
    return " ".join([*says, *(text for text, holds in lacks.items() if holds)])
