# cython: annotation_typing=False
"""What a graph would take at least: on infinitely many workers, and on so many threads.

Covers arithmetic on a graph with the seconds each of its tasks computed; it knows no run.
Moving results, the scheduler and the client cost nothing here, and all tasks are there from
the start.

Where there is a C compiler this module is compiled as it stands, with the types in
`critical_path_ideal.pxd`: arrays are of the standard library, which both ways of running it
read fast.
"""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def whole_numbers(values: npt.NDArray[np.integer]) -> array[int]:
    """Return whole numbers as an array of the standard library."""
    return array("q", np.ascontiguousarray(values, np.int64).tobytes())


def real_numbers(values: Floats) -> array[float]:
    """Return numbers as an array of the standard library."""
    return array("d", np.ascontiguousarray(values, np.float64).tobytes())


def dependents_of(count: int, task: Integers, dependency: Integers) -> tuple[array[int], array[int]]:
    """Return the tasks that need each task: bounds into a list, and the list."""
    order = np.argsort(dependency, kind="stable")
    bounds = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(dependency, minlength=count), out=bounds[1:])
    return whole_numbers(bounds), whole_numbers(task[order])


def longest_path(compute_s: Floats, task: Integers, dependency: Integers) -> float:
    """Return the seconds of the chain of dependencies that computes longest; tasks in a circle are left out."""
    count = len(compute_s)
    bounds, dependents = dependents_of(count, task, dependency)
    needed = np.bincount(task, minlength=count)
    missing, seconds, begin = whole_numbers(needed), real_numbers(compute_s), real_numbers(np.zeros(count))
    first = np.flatnonzero(needed == 0)
    # What is ready stands below `top`; no task is ready twice.
    ready, top = whole_numbers(np.concatenate([first, np.zeros(count - len(first), np.int64)])), len(first)
    longest = 0.0
    while top:
        top -= 1
        at = ready[top]
        end = begin[at] + seconds[at]
        # In so long a loop a comparison is much faster than max().
        if end > longest:  # noqa: PLR1730
            longest = end
        for place in range(bounds[at], bounds[at + 1]):
            each = dependents[place]
            if begin[each] < end:  # noqa: PLR1730
                begin[each] = end
            missing[each] -= 1
            if not missing[each]:
                ready[top] = each
                top += 1
    return longest


def replayed(compute_s: Floats, task: Integers, dependency: Integers, rank: Integers, thread_count: int) -> float:
    """Return the seconds until all is done when each free thread takes the ready task of lowest rank.

    No thread waits while a task is ready, which is good and not always best.
    """
    count = len(compute_s)
    bounds, dependents = dependents_of(count, task, dependency)
    needed = np.bincount(task, minlength=count)
    missing, seconds, ranks = whole_numbers(needed), real_numbers(compute_s), whole_numbers(rank)
    of_rank = whole_numbers(np.argsort(rank, kind="stable"))
    ready: list[int] = rank[needed == 0].tolist()
    heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready and len(running) < thread_count:
        at = of_rank[heappop(ready)]
        heappush(running, (seconds[at], at))
    while running:
        now, at = running[0]
        for place in range(bounds[at], bounds[at + 1]):
            each = dependents[place]
            missing[each] -= 1
            if not missing[each]:
                heappush(ready, ranks[each])
        # The thread that is free takes the next; if others are, so do they.
        if ready:
            at = of_rank[heappop(ready)]
            heapreplace(running, (now + seconds[at], at))
        else:
            heappop(running)
        while ready and len(running) < thread_count:
            at = of_rank[heappop(ready)]
            heappush(running, (now + seconds[at], at))
    return now
