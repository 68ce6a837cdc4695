"""What the slots of workers are doing: tasks as bars on lanes, of the last minute.

A lane is a slot of a worker: Dask tells the thread of a task only when it has ended.  A
task takes the lowest free lane; one that seceded keeps its own, so a worker may show more
lanes than it has threads.  Short tasks of one prefix after another on a lane become one
bar with their number, so that a fast run stays small.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

WINDOW_S = 60.0
BAR_LIMIT = 12_000
"""Ended bars kept; a run of more shows less of the past."""
_SHORT_NS = 60_000_000
"""About what a pixel shows."""


class Running(NamedTuple):
    """A task a worker executes now."""

    lane: int
    start_ns: int
    prefix: int
    attempt: int


@dataclasses.dataclass(slots=True)
class Bar:
    """One or more tasks that ended."""

    worker: int
    lane: int
    start_ns: int
    stop_ns: int
    prefix: int
    failed_count: int
    count: int


class Lanes:
    """Lanes of all workers."""

    def __init__(self) -> None:
        self.bars: OrderedDict[int, Bar] = OrderedDict()
        self._next = 0
        self._last: dict[tuple[int, int], int] = {}

    def ended(self, worker: int, task: Running, stop_ns: int, *, failed: bool) -> None:
        """Add a task that ended."""
        stop_ns = max(stop_ns, task.start_ns)
        number = self._last.get((worker, task.lane), -1)
        before = self.bars.get(number)
        if (
            before is not None
            and before.prefix == task.prefix
            and stop_ns - before.start_ns < _SHORT_NS
            and before.stop_ns <= task.start_ns
        ):
            del self.bars[number]
            bar = dataclasses.replace(
                before, stop_ns=stop_ns, failed_count=before.failed_count + failed, count=before.count + 1
            )
        else:
            bar = Bar(worker, task.lane, task.start_ns, stop_ns, task.prefix, int(failed), 1)
        # A bar that grew takes a new number, which replaces the old one where it was sent already.
        self.bars[self._next] = bar
        self._last[worker, task.lane] = self._next
        self._next += 1
        while len(self.bars) > BAR_LIMIT:
            self.bars.popitem(last=False)

    def forget_before(self, time_ns: int) -> None:
        """Let go of bars that ended before a time."""
        while self.bars:
            number = next(iter(self.bars))
            if self.bars[number].stop_ns >= time_ns:
                return
            del self.bars[number]

    @property
    def last(self) -> int:
        """Number of the newest bar."""
        return self._next - 1

    def since(self, number: int, start_ns: int) -> list[list[Any]]:
        """Return bars newer than a number: number, worker, lane, start and stop in s since a time, prefix, failed, count."""
        found = []
        for each in reversed(self.bars):
            if each <= number:
                break
            bar = self.bars[each]
            found.append([
                each, bar.worker, bar.lane, round((bar.start_ns - start_ns) / 1e9, 4), round((bar.stop_ns - start_ns) / 1e9, 4),
                bar.prefix, bar.failed_count, bar.count,
            ])  # fmt: skip
        return found[::-1]


class Slots:
    """The tasks one worker executes, each on a lane."""

    def __init__(self, worker: int, lanes: Lanes):
        self.worker = worker
        self.running: dict[int, Running] = {}
        self.lane_count = 0
        self._lanes = lanes

    def start(self, key_id: int, time_ns: int, prefix: int, attempt: int) -> None:
        """Put a task on the lowest free lane, unless it is on one."""
        if key_id not in self.running:
            taken = {task.lane for task in self.running.values()}
            lane = next(number for number in range(len(taken) + 1) if number not in taken)
            self.lane_count = max(self.lane_count, lane + 1)
            self.running[key_id] = Running(lane, time_ns, prefix, attempt)

    def stop(self, key_id: int, attempt: int, time_ns: int, *, failed: bool, shown: bool) -> None:
        """Take a task off its lane; `shown`: recently enough to be seen."""
        task = self.running.pop(key_id, None)
        if task is None and attempt >= 0:  # a key met again later has another number
            same = (number for number, each in self.running.items() if each.attempt == attempt)
            task = self.running.pop(next(same, -1), None)
        if task is not None and shown:
            self._lanes.ended(self.worker, task, time_ns, failed=failed)

    def stop_all(self, time_ns: int) -> None:
        """Take every task off: the worker is gone."""
        for key_id, task in list(self.running.items()):
            self.stop(key_id, task.attempt, time_ns, failed=False, shown=True)
