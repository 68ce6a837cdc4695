"""What a graph would take at least: on infinitely many workers, and on so many threads.

Covers arithmetic on a graph with the seconds each of its tasks computed; it knows no run.
Moving results, the scheduler and the client cost nothing here, and all tasks are there from
the start.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def dependents_of(count: int, task: Integers, dependency: Integers) -> tuple[list[int], list[int]]:
    """Return the tasks that need each task: bounds into a list, and the list."""
    order = np.argsort(dependency, kind="stable")
    bounds = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(dependency, minlength=count), out=bounds[1:])
    return bounds.tolist(), task[order].tolist()


def longest_path(compute_s: Floats, task: Integers, dependency: Integers) -> float:
    """Return the seconds of the chain of dependencies that computes longest; tasks in a circle are left out."""
    bounds, dependents = dependents_of(len(compute_s), task, dependency)
    missing = np.bincount(task, minlength=len(compute_s)).tolist()
    seconds = compute_s.tolist()
    begin = [0.0] * len(seconds)
    ready = [at for at, count in enumerate(missing) if not count]
    longest = 0.0
    while ready:
        at = ready.pop()
        end = begin[at] + seconds[at]
        # In so long a loop a comparison is much faster than max().
        if end > longest:  # noqa: PLR1730
            longest = end
        for each in dependents[bounds[at] : bounds[at + 1]]:
            if begin[each] < end:  # noqa: PLR1730
                begin[each] = end
            missing[each] -= 1
            if not missing[each]:
                ready.append(each)
    return longest


def replayed(compute_s: Floats, task: Integers, dependency: Integers, rank: Integers, thread_count: int) -> float:
    """Return the seconds until all is done when each free thread takes the ready task of lowest rank.

    No thread waits while a task is ready, which is good and not always best.
    """
    bounds, dependents = dependents_of(len(compute_s), task, dependency)
    missing = np.bincount(task, minlength=len(compute_s)).tolist()
    seconds, ranks = compute_s.tolist(), rank.tolist()
    of_rank = np.argsort(rank, kind="stable").tolist()
    ready = [ranks[at] for at, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < thread_count:
            at = of_rank[heapq.heappop(ready)]
            heapq.heappush(running, (now + seconds[at], at))
        now, at = heapq.heappop(running)
        for each in dependents[bounds[at] : bounds[at + 1]]:
            missing[each] -= 1
            if not missing[each]:
                heapq.heappush(ready, ranks[each])
    return now
