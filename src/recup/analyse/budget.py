"""Where the time of a run went: every second of every thread, in exactly one category.

Covers threads times wall time of the run, split without rest: by category, by prefix, by
worker and over time.  How a second gets its category is `recup.analyse.budget_sweep`'s.
It does not say which chain of tasks set the wall time (`critical_path`), nor what was
computed in vain (`recomputed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.analyse.answers import Answer
    from recup.store import Run

CATEGORIES: tuple[tuple[str, str], ...] = (
    ("cpu", "a thread ran a task's code on a CPU"),
    ("cpu_wait", "a task was ready to run and had no CPU: more busy threads than CPUs"),
    ("blocked", "a task's thread slept or waited: for the GIL, a lock, the network, memory or a timer"),
    ("io", "a task's thread was in a read or write of a file"),
    ("not_split", "a task computed; what its thread did meanwhile was not recorded"),
    ("unfinished", "a task computed that never came to an end: its worker died, or it ran when the record ends"),
    ("spill", "no task in the thread, while its worker wrote results to disk or read them back for want of memory"),
    ("deserialize", "no task in the thread, while its worker unpacked one"),
    ("transfer_wait", "no task in the thread, while one waited on its worker for inputs from other workers"),
    ("scheduler_latency", "no task in the thread, while one was between scheduler and worker"),
    ("imbalance", "no task in the thread, while tasks waited for threads of other workers or at the scheduler"),
    ("no_task_ready", "no task in the thread: the graph allowed no more at once"),
    ("nothing_submitted", "no task in the thread, as no task was wanted: the client was busy, or had not begun"),
    ("worker_paused", "no task in the thread, as its worker was paused for want of memory"),
    ("worker_absent", "the worker of the thread had not come yet, or had gone"),
)
"""Every category and what it means, in the order of all tables."""

NAMES: tuple[str, ...] = tuple(name for name, _ in CATEGORIES)
"""Names of the categories, in their order."""

BUSY: tuple[str, ...] = ("cpu", "cpu_wait", "blocked", "io", "not_split", "unfinished")
"""Categories in which a task is in the thread."""

OF_TASKS: tuple[str, ...] = (*BUSY, "spill", "deserialize", "transfer_wait", "scheduler_latency")
"""Categories that are of a task, and so of a prefix."""


def budget_totals(run: Run) -> pa.Table:
    """Thread-seconds of the whole run: one row per category, in the order of `CATEGORIES`, also those of none.

    From: task_runs, task_counters, task_io_totals, activities, worker_lives, run_summary
    Columns: category, meaning, thread_s, share, wall_s (thread_s by the threads of the run: sums to the wall time)
    """
    raise NotImplementedError


def budget_by_prefix(run: Run) -> pa.Table:
    """Thread-seconds of each prefix, most first; null is tasks whose graph was not recorded.

    Waits are shared in proportion where several tasks wait.

    Columns: prefix, <name>_s of each of `OF_TASKS`, total_s, attempt_count
    """
    raise NotImplementedError


def budget_by_worker(run: Run) -> pa.Table:
    """Thread-seconds of each life of a worker; categories of a row sum to its threads times its life.

    Columns: worker, worker_id, thread_count, came_at_s, left_at_s, <name>_s of each of `NAMES`, total_s
    """
    raise NotImplementedError


def budget_over_time(run: Run, bin_count: int = 200) -> pa.Table:
    """Thread-seconds of each of equal bins of the run; categories of a row sum to threads times the bin.

    Columns: start_at_s, stop_at_s, <name>_s of each of `NAMES`
    """
    raise NotImplementedError


def budget(run: Run) -> Answer:
    """Where did the time go?"""
    raise NotImplementedError
