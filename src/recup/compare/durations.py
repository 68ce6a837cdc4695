"""Whether tasks of a prefix take longer on one side, on all workers or on some, and in what.

Covers distributions of the durations of attempts of one prefix, which are evidence within
single runs.  Time in which a thread was ready and had no CPU is left out: it is the
machine's.  It does not cover numbers of tasks (`recup.compare.causes`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from recup.analyse.answers import Conclusion
from recup.analyse.rows import Document
from recup.compare.differences import middle_runs
from recup.compare.measures import Measures, Numbers
from recup.compare.records import Records
from recup.compare.spread import stands_out
from recup.terminal import bytes_text, count_text, plural, seconds_text

ENOUGH = 10
"""Tasks on a side from which on quartiles of one run say something."""
ENOUGH_OF_WORKER = 5
LONGER = 1.25
"""Ratio of medians from which on tasks that wait or sleep take longer."""
LONGER_ON_CPU = 1.5
"""The same of tasks that compute: neighbours on the machine alone may slow a CPU down by less than this."""
LONGER_IN_REPEATS = 1.1
SEVERAL = 3
"""Runs of each side from which on their medians bear out smaller ratios, and prefixes of few tasks."""
SLOW_WORKER = 1.5
ALIKE = 1.25
"""Ratio of medians up to which workers are alike."""
IO_BYTES = 4096
"""Bytes a task must read or write for I/O to be thought of."""


@dataclasses.dataclass(frozen=True, slots=True)
class LongerTasks:
    """Tasks of a prefix that take longer, everywhere.

    `io_s` is what of `longer_s` is in reads and writes of files (None: Darshan does not tell
    on both sides), `cpu_s` what is on a CPU (None: not counted on both sides).
    """

    prefix: str
    fast: Numbers
    slow: Numbers
    longer_s: float
    cpu_s: float | None
    io_s: float | None
    thread_s: float
    wall_s: float

    def conclusion(self, fast_name: str, slow_name: str) -> Conclusion:
        """Return it in words."""
        fast, slow = self.fast, self.slow
        advice = None
        statement = (
            f"A task of {self.prefix} takes {seconds_text(slow['median_s'])} in {slow_name}, {seconds_text(fast['median_s'])} in "
            f"{fast_name} (medians of {count_text(slow['told_count'])} and {plural(round(fast['told_count'] or 0), 'task')})"
        )
        moved = max(
            (slow.get("median_written_bytes") or 0.0, "writes"), (slow.get("median_read_bytes") or 0.0, "reads")
        )
        cpu_s = max(self.cpu_s, 0.0) if self.cpu_s is not None else None
        if self.io_s is not None and self.io_s >= self.longer_s / 2:
            statement += f": {seconds_text(self.io_s)} of the difference is in reads and writes of files"
            advice = "Storage was slower, or was asked in another way: `recup storage` of each run tells."
        elif cpu_s is not None and cpu_s >= self.longer_s / 2:
            statement += f": {seconds_text(min(cpu_s, self.longer_s))} of the difference is computing on a CPU"
            advice = f"Look at the code of {self.prefix}, what it is given, and the CPUs; `recup run --yappi cpu` names functions."
        elif cpu_s is not None:
            statement += ": the difference is waiting or sleeping, not computing"
            if moved[0] >= IO_BYTES:
                statement += f"; a task {moved[1]} {bytes_text(moved[0])} by read and write calls (median)"
                if self.io_s is None:
                    statement += ", and whether it waits for storage is not recorded"
                    advice = "Record both with `recup run --darshan` to know whether it waits for storage."
        evidence: dict[str, float | int | str | None] = {
            f"{fast_name.lower()}_median_s": fast["median_s"], f"{slow_name.lower()}_median_s": slow["median_s"],
            f"{fast_name.lower()}_task_count": fast["told_count"], f"{slow_name.lower()}_task_count": slow["told_count"],
            "cpu_difference_s": self.cpu_s, "io_difference_s": self.io_s, "written_bytes": slow.get("median_written_bytes"),
        }  # fmt: skip
        is_storage = self.io_s is not None and self.io_s >= self.longer_s / 2
        return Conclusion(
            "storage" if is_storage else "budget",
            self.prefix,
            f"{statement}.",
            "certain",
            self.thread_s,
            advice,
            evidence,
        )


def longer_tasks(
    fast: Sequence[Measures], slow: Sequence[Measures], material_s: float, same: Records, told: set[str]
) -> list[LongerTasks]:
    """Return the prefixes, those `told` left out, whose tasks take longer on the slow side, and by what."""
    found = []
    left, right = middle_runs(fast)[0], middle_runs(slow)[0]
    for prefix, after in right.prefixes.items():
        before = left.prefixes.get(prefix)
        if before is None or prefix in told or not _is_longer(prefix, fast, slow, before, after, same):
            continue
        longer_s = (after["median_s"] or 0.0) - (before["median_s"] or 0.0)
        thread_s = longer_s * (after["told_count"] or 0.0)
        wall_s = thread_s / max(right.thread_count, 1.0)
        if wall_s < material_s:
            continue
        io_s = None
        if same.has_darshan:
            per_task = [
                (each.io.get(prefix, {}).get("io_s") or 0.0) / max(row["told_count"] or 0.0, 1.0)
                for each, row in ((left, before), (right, after))
            ]
            io_s = per_task[1] - per_task[0]
        found.append(LongerTasks(prefix, before, after, longer_s, _cpu_s(before, after, same), io_s, thread_s, wall_s))
    return found


def _cpu_s(before: Numbers, after: Numbers, same: Records) -> float | None:
    """Return how much more of a CPU the middle task uses."""
    left, right = before.get("median_cpu_s"), after.get("median_cpu_s")
    return right - left if same.has_counters and left is not None and right is not None else None


def _is_longer(  # noqa: PLR0917
    prefix: str, fast: Sequence[Measures], slow: Sequence[Measures], before: Numbers, after: Numbers, same: Records
) -> bool:
    medians = [
        [value for each in side if (value := each.prefixes.get(prefix, {}).get("median_s")) is not None]
        for side in (fast, slow)
    ]
    if not all(medians) or not stands_out(*medians):
        return False
    ratio = statistics.median(medians[1]) / max(statistics.median(medians[0]), 1e-6)
    if min(map(len, medians)) >= SEVERAL:
        return ratio >= LONGER_IN_REPEATS
    if min(before["told_count"] or 0.0, after["told_count"] or 0.0) < ENOUGH:
        return False
    cpu_s, longer_s = _cpu_s(before, after, same), (after["median_s"] or 0.0) - (before["median_s"] or 0.0)
    is_waiting = cpu_s is not None and cpu_s < longer_s / 2
    are_apart = (after["q25_s"] or 0.0) > (before["q75_s"] or 0.0)
    return are_apart and ratio >= (LONGER if is_waiting else LONGER_ON_CPU)


@dataclasses.dataclass(frozen=True, slots=True)
class SlowWorker:
    """One worker on which tasks of some prefixes take longer than on others, on one side only."""

    worker: str
    prefixes: tuple[str, ...]
    here_s: float
    others_s: float
    before_s: float
    here_count: int
    others_count: int
    thread_s: float
    wall_s: float

    def conclusion(self, fast_name: str, slow_name: str) -> Conclusion:
        """Return it in words."""
        name = self.prefixes[0]
        rest = f" ({', '.join(self.prefixes[1:4])} likewise)" if len(self.prefixes) > 1 else ""
        statement = (
            f"In {slow_name} worker {self.worker} is slow: a task of {name} takes {seconds_text(self.here_s)} there and "
            f"{seconds_text(self.others_s)} on other workers (medians of {self.here_count} and {plural(self.others_count, 'task')})"
            f"{rest}; in {fast_name} workers are alike, with {seconds_text(self.before_s)}."
        )
        evidence: dict[str, float | int | str | None] = {
            "here_s": self.here_s,
            "others_s": self.others_s,
            "before_s": self.before_s,
            "task_count": self.here_count,
        }
        advice = (
            "Look at that worker's host: its other load, its clock rate, its disk; `recup slow` of the run tells more."
        )
        return Conclusion("slow", self.worker, statement, "certain", self.thread_s, advice, evidence)


def slow_workers(fast: Sequence[Measures], slow: Sequence[Measures], material_s: float) -> list[SlowWorker]:
    """Return workers that are slow on the slow side, in all its runs, while workers of the fast side are alike."""
    right, left = middle_runs(slow)[0], middle_runs(fast)[0]
    by_worker: dict[str, list[tuple[str, Document, list[Document]]]] = {}
    for prefix in right.prefixes:
        if not all(_slow_cells(each, prefix) for each in slow):
            continue
        alike = [_likeness(each, prefix) for each in fast]
        if any(each is None or each > ALIKE for each in alike):
            continue
        for cell, others in _slow_cells(right, prefix):
            by_worker.setdefault(cell["worker"], []).append((prefix, cell, others))
    found = []
    for worker, cells in by_worker.items():
        costs = [cell["told_count"] * (cell["median_s"] - _middle(others)) for _, cell, others in cells]
        wall_s = sum(costs) / max(right.thread_count, 1.0)
        if wall_s < material_s:
            continue
        cells = [each for _, each in sorted(zip(costs, cells, strict=True), key=lambda pair: -pair[0])]
        prefix, cell, others = cells[0]
        found.append(
            SlowWorker(
                worker, tuple(name for name, _, _ in cells), cell["median_s"], _middle(others),
                left.prefixes[prefix]["median_s"] or 0.0, cell["told_count"], sum(each["told_count"] for each in others),
                sum(costs), wall_s,
            )
        )  # fmt: skip
    return found


def _cells(run: Measures, prefix: str) -> list[Document]:
    return [each for each in run.cells if each["prefix"] == prefix and each["told_count"] >= ENOUGH_OF_WORKER]


def _slow_cells(run: Measures, prefix: str) -> list[tuple[Document, list[Document]]]:
    """Return cells of workers that take longer for a prefix than all others do, with those of the others."""
    cells = _cells(run, prefix)
    limit = SLOW_WORKER * min((each["median_s"] for each in cells), default=0.0)
    slow = [each for each in cells if each["median_s"] >= limit]
    others = [each for each in cells if each["median_s"] < limit]
    if not slow or len(slow) > len(others):
        return []
    ceiling = max(each["q75_s"] for each in others)
    if max(each["median_s"] for each in others) > ALIKE * min(each["median_s"] for each in others):
        return []
    return [(each, others) for each in slow if each["q25_s"] > ceiling]


def _likeness(run: Measures, prefix: str) -> float | None:
    """Return the ratio of the slowest to the fastest worker of a prefix; None where fewer than two can be held."""
    medians = [each["median_s"] for each in _cells(run, prefix)]
    return max(medians) / max(min(medians), 1e-6) if len(medians) >= 2 else None


def _middle(cells: Sequence[Document]) -> float:
    return float(statistics.median(each["median_s"] for each in cells))
