"""Why B is slower than A, or faster: causes that the record of both sides bears out.

Covers workers that died, spilling, event loops that stood still, stealing, transfers, a
slow worker, tasks that take longer (and whether in reads and writes), more tasks, fewer
threads and failures.  It does not cover the waterfall, which is always there and names no
cause.

The wall time alone proves nothing: starting processes on a busy machine differs by
seconds from run to run.  A cause needs evidence within runs (hundreds of durations, a
death, bytes spilled), a cost above `MATERIAL_SHARE`, and with repeats to be there in the
runs of one side and not of the other (`recup.compare.spread.stands_out`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence

from recup.analyse.answers import Conclusion
from recup.analyse.rows import Document
from recup.compare.differences import comparable_categories, middle_runs
from recup.compare.durations import longer_tasks, slow_workers
from recup.compare.measures import Measures
from recup.compare.records import Records
from recup.compare.spread import interval, stands_out
from recup.terminal import bytes_text, count_text, plural, seconds_text

Numbers = dict[str, float | int | str | None]

MATERIAL_SHARE = 0.05
"""A cause that costs less of the time in which A worked says nothing: repeats on a busy machine differ by as much."""
MATERIAL_S = 0.05
SPILL_BYTES = 1 << 20
MORE = 2.0
"""How many times as much must be moved or spilled to be told."""
STOLEN_SHARE = 0.1
STOLEN_COUNT = 10
"""Fewer tasks, or a smaller share of a prefix, are stolen in any healthy run, now and then."""
STORM_COUNT, STORM_SHARE, STORM_BYTES = 20, 1 / 3, 1 << 20
"""Stealing as wide as this is told whatever it cost: it says that work did not lie where it ran."""
FEWER_THREADS = 0.95
MANY_REPEATS = 4
"""Runs of each side from which on a category of the budget is told that no other cause explains."""
CATEGORY_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Sides:
    """Two sides of which `slow` is looked at for what it has and `fast` has not.

    Attributes
    ----------
    fast, slow : list of Measures
        All runs of each side.
    fast_name, slow_name : str
        ``A`` or ``B``.
    changes : list of dict
        Rows of `recup.compare.changes.changes`.
    same : Records
        How equal the records are.
    """

    fast: Sequence[Measures]
    slow: Sequence[Measures]
    fast_name: str
    slow_name: str
    changes: Sequence[Document]
    same: Records

    @property
    def fast_run(self) -> Measures:
        """The middle run of the fast side."""
        return middle_runs(self.fast)[0]

    @property
    def slow_run(self) -> Measures:
        """The middle run of the slow side."""
        return middle_runs(self.slow)[0]

    @property
    def material_s(self) -> float:
        """Wall seconds below which a cause is not told."""
        working = statistics.median(worked_s(each) for each in self.fast)
        return max(MATERIAL_SHARE * working, MATERIAL_S)

    def values(self, measure: Callable[[Measures], float]) -> tuple[list[float], list[float]]:
        """Return one number per run of the fast and of the slow side."""
        return [measure(each) for each in self.fast], [measure(each) for each in self.slow]

    def more(self, measure: Callable[[Measures], float]) -> float:
        """Return by how much the slow side's median exceeds the fast side's; 0 where it does not stand out."""
        fast, slow = self.values(measure)
        return statistics.median(slow) - statistics.median(fast) if stands_out(fast, slow) else 0.0

    def change_of(self, kind: str, name: str) -> tuple[str | None, str | None] | None:
        """Return what a fact was on the fast and the slow side, or None where it is the same."""
        for row in self.changes:
            if (row["kind"], row["name"]) == (kind, name):
                both = (row["a"], row["b"])
                return both if self.slow_name == "B" else (both[1], both[0])
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """One cause: what it says, and by how much it moved the wall time as far as that can be said."""

    conclusion: Conclusion
    wall_s: float | None


def worked_s(run: Measures) -> float:
    """Return the wall time of a run without what passed before workers came and while nothing was submitted."""
    return max(run.wall_s - run.categories["worker_absent"] - run.categories["nothing_submitted"], 0.0)


def causes(
    a: Sequence[Measures], b: Sequence[Measures], changes: Sequence[Document], same: Records
) -> tuple[Conclusion, ...]:
    """Return why the sides differ, what moved the wall time most first, in the direction in which it moved.

    What made B slower has positive thread_s, what made it faster negative; ``slower`` in the evidence names the side.
    """
    if same.is_empty:
        return ()
    slower = _found(Sides(a, b, "A", "B", changes, same), 1)
    faster = _found(Sides(b, a, "B", "A", changes, same), -1)
    difference = statistics.median(each.wall_s for each in b) - statistics.median(each.wall_s for each in a)
    groups = (slower, faster) if slower and (difference >= 0 or not faster) else (faster, slower)
    told = [each.conclusion for group in groups for each in _ranked(group)]
    return tuple(told) if told else tuple(_categories(a, b, same))


def _ranked(found: Iterable[Cause]) -> list[Cause]:
    return sorted(found, key=lambda each: (each.wall_s is None, -(each.wall_s or 0.0)))


def _found(sides: Sides, thread_sign: int) -> list[Cause]:
    found = [*_deaths(sides), *_failures(sides), *_threads(sides), *_tasks(sides)]
    found += [*_spilling(sides), *_stalls(sides)]
    stolen = list(_steals(sides))
    found += stolen or list(_transfers(sides))
    slow = slow_workers(sides.fast, sides.slow, sides.material_s)
    found += [Cause(each.conclusion(sides.fast_name, sides.slow_name), each.wall_s) for each in slow]
    told = {prefix for each in slow for prefix in each.prefixes}
    longer = longer_tasks(sides.fast, sides.slow, sides.material_s, sides.same, told)
    found += [Cause(each.conclusion(sides.fast_name, sides.slow_name), each.wall_s) for each in longer]
    return [
        dataclasses.replace(each, conclusion=_slower_on(each.conclusion, sides.slow_name, thread_sign))
        for each in found
    ]


def _slower_on(conclusion: Conclusion, side: str, sign: int) -> Conclusion:
    """Return the conclusion with the side it makes slower; thread-seconds count what it cost B."""
    thread_s = None if conclusion.thread_s is None else sign * conclusion.thread_s
    return dataclasses.replace(conclusion, thread_s=thread_s, evidence={"slower": side, **conclusion.evidence})


def _deaths(sides: Sides) -> list[Cause]:
    """Workers that went before their time, with what was lost, computed again and not there meanwhile."""
    more = sides.more(lambda each: len(each.deaths))
    if more < 1:
        return []
    fast, slow = sides.fast_run, sides.slow_run
    threads = slow.thread_count / max(len(slow.workers), 1)
    absent_s = sum(row["absent_s"] or 0.0 for row in slow.deaths) * threads
    again_s = max(slow.again["compute_s"] - fast.again["compute_s"], 0.0)
    unfinished_s = max(slow.categories["unfinished"] - fast.categories["unfinished"], 0.0) * slow.thread_count
    again = slow.again["attempt_count"] - fast.again["attempt_count"]
    how = ", ".join(dict.fromkeys(f"worker {row['name'] or row['worker']}: {row['how']}" for row in slow.deaths[:3]))
    before = "none" if not len(fast.deaths) else count_text(len(fast.deaths))
    statement = (
        f"In {sides.slow_name} {plural(len(slow.deaths), 'worker')} died ({how}), in {sides.fast_name} "
        f"{before}. {plural(max(again, 0), 'task')} had to be sent out again, {seconds_text(again_s)} of computing; threads "
        f"were gone for {seconds_text(absent_s)}."
    )
    thread_s = absent_s + again_s + unfinished_s
    evidence: Numbers = {
        f"{sides.fast_name.lower()}_death_count": len(fast.deaths), f"{sides.slow_name.lower()}_death_count": len(slow.deaths),
        "again_count": again, "again_s": again_s, "absent_s": absent_s, "unfinished_s": unfinished_s,
    }  # fmt: skip
    advice = f"`recup deaths {slow.run_id}` tells why."
    subject = str(slow.deaths[0]["name"] or slow.deaths[0]["worker"])
    conclusion = Conclusion("deaths", subject, statement, "certain", thread_s, advice, evidence)
    return [Cause(conclusion, thread_s / max(slow.thread_count, 1.0))]


def _failures(sides: Sides) -> Iterable[Cause]:
    """Attempts that failed."""
    more = sides.more(lambda each: each.total("prefixes", "error_count"))
    if more < 1:
        return
    slow = sides.slow_run
    by_prefix = {name: row.get("error_count") or 0.0 for name, row in slow.prefixes.items()}
    worst = max(by_prefix, key=lambda name: by_prefix[name])
    before = sides.fast_run.total("prefixes", "error_count")
    statement = (
        f"In {sides.slow_name} {plural(round(sum(by_prefix.values())), 'attempt')} failed, most of {worst}; in "
        f"{sides.fast_name} {count_text(before) if before else 'none'}."
    )
    evidence: Numbers = {"more_error_count": more}
    yield Cause(
        Conclusion("stuck", worst, statement, "certain", None, f"`recup info {slow.run_id}` names them.", evidence),
        None,
    )


def _threads(sides: Sides) -> Iterable[Cause]:
    """Fewer threads at most."""
    fast, slow = sides.values(lambda each: each.thread_count)
    before, after = statistics.median(fast), statistics.median(slow)
    if max(slow) > FEWER_THREADS * min(fast):
        return
    busy_s = sides.fast_run.total("workers", "busy_s")
    wall_s = busy_s / after - busy_s / before if after else None
    statement = (
        f"{sides.slow_name} had {count_text(after)} task threads at most, {sides.fast_name} {count_text(before)}: the work of "
        f"{sides.fast_name}, spread over as few, takes {seconds_text(wall_s)} more."
    )
    evidence: Numbers = {"fast_thread_count": before, "slow_thread_count": after, "wall_s": wall_s}
    yield Cause(Conclusion("budget", "threads", statement, "likely", None, None, evidence), wall_s)


def _tasks(sides: Sides) -> Iterable[Cause]:
    """More tasks of a prefix."""
    for prefix, row in sides.slow_run.prefixes.items():
        fast, slow = sides.values(lambda each, prefix=prefix: each.prefixes.get(prefix, {}).get("task_count") or 0.0)  # type: ignore[misc]
        more = statistics.median(slow) - statistics.median(fast)
        if more < 1 or not stands_out(fast, slow):
            continue
        thread_s = more * (row.get("median_s") or 0.0)
        wall_s = thread_s / max(sides.slow_run.thread_count, 1.0)
        if wall_s < sides.material_s:
            continue
        statement = (
            f"{sides.slow_name} ran {plural(round(statistics.median(slow)), 'task')} of {prefix}, {sides.fast_name} "
            f"{count_text(statistics.median(fast))}; one takes {seconds_text(row.get('median_s'))} (median)."
        )
        evidence: Numbers = {"more_task_count": more, "median_s": row.get("median_s")}
        yield Cause(Conclusion("budget", prefix, statement, "certain", thread_s, None, evidence), wall_s)


def _spilling(sides: Sides) -> Iterable[Cause]:
    """Results written to disk for want of memory."""
    if not sides.same.has_workers:
        return
    fast, slow = sides.values(lambda each: each.total("memory", "spilled_bytes"))
    before, after = statistics.median(fast), statistics.median(slow)
    if not stands_out(fast, slow) or after < MORE * before + SPILL_BYTES:
        return
    limit = sides.change_of("workers", "memory limit")
    threads = sides.slow_run.thread_count
    wall_s = max(sides.more(lambda each: each.categories["spill"] + each.categories["worker_paused"]), 0.0)
    if limit is None and wall_s < sides.material_s:
        return
    limits = f"; their memory limit was {limit[1]}, in {sides.fast_name} {limit[0]}" if limit else ""
    results = round(sides.slow_run.total("memory", "spill_count"))
    statement = (
        f"In {sides.slow_name} workers spilled {bytes_text(after)} to disk for want of memory ({plural(results, 'result')}), "
        f"in {sides.fast_name} {bytes_text(before) if before else 'nothing'}{limits}."
    )
    evidence: Numbers = {
        f"{sides.fast_name.lower()}_spilled_bytes": before, f"{sides.slow_name.lower()}_spilled_bytes": after,
        "spill_wall_s": wall_s, "limit_changed": limit is not None,
    }  # fmt: skip
    advice = "Give workers more memory, or hold fewer results at once."
    conclusion = Conclusion(
        "memory", "spilling", statement, "certain" if limit else "likely", wall_s * threads, advice, evidence
    )
    yield Cause(conclusion, wall_s)


def _stalls(sides: Sides) -> Iterable[Cause]:
    """Event loops that stood still."""
    if not sides.same.has_workers:
        return
    more = sides.more(lambda each: each.stalls["stall_s"])
    if more < sides.material_s:
        return
    before, after = sides.fast_run.stalls, sides.slow_run.stalls
    owner = "that of the scheduler" if after["role"] == "scheduler" else f"of a {after['role']}"
    ran = f"; what ran then was mostly {after['prefix']}" if after["prefix"] else ""
    statement = (
        f"In {sides.slow_name} event loops stood still for {seconds_text(after['stall_s'])} or more, {seconds_text(after['longest_s'])} "
        f"at a time ({owner}), in {sides.fast_name} "
        f"{seconds_text(before['stall_s']) if before['stall_s'] else 'none was late'}{ran}."
    )
    evidence: Numbers = {"more_stall_s": more, "longest_s": after["longest_s"], "stall_count": after["count"]}
    advice = (
        "Code that blocks a loop or holds the GIL belongs into a thread that lets go of it, or a process of its own."
    )
    conclusion = Conclusion("stalls", after["prefix"] or "event loop", statement, "likely", None, advice, evidence)
    yield Cause(conclusion, more / max(len(sides.slow_run.workers), 1))


def _steals(sides: Sides) -> Iterable[Cause]:
    """Tasks stolen in numbers, with the wait and the moves that came of it."""
    for prefix, row in sides.slow_run.steals.items():
        fast, slow = sides.values(lambda each, prefix=prefix: each.steals.get(prefix, {}).get("steal_count") or 0.0)  # type: ignore[misc]
        before, after = statistics.median(fast), statistics.median(slow)
        tasks = sides.slow_run.prefixes.get(prefix, {}).get("task_count") or 0.0
        if not stands_out(fast, slow) or after < STOLEN_COUNT + MORE * before or after < STOLEN_SHARE * tasks:
            continue
        moved = sides.more(lambda each: each.total("transfers", "moved_bytes"))
        wall_s = sides.more(lambda each: each.categories["transfer_wait"] + each.categories["imbalance"])
        is_storm = after >= STORM_COUNT and after >= STORM_SHARE * tasks and moved >= STORM_BYTES
        if moved <= 0 or not (is_storm or wall_s >= sides.material_s):
            continue
        statement = (
            f"In {sides.slow_name} {count_text(after)} of {plural(round(tasks), 'task')} of {prefix} were stolen from the worker "
            f"they were sent to, in {sides.fast_name} {count_text(before) if before else 'none'}; {bytes_text(moved)} more moved "
            f"between workers, and threads waited {seconds_text(wall_s * sides.slow_run.thread_count)} more for their share."
        )
        evidence: Numbers = {
            "more_steal_count": after - before,
            "moved_bytes": moved,
            "request_count": row.get("request_count"),
        }
        advice = "Place inputs on all workers; where tasks are short and inputs large, stealing can be switched off."
        yield Cause(
            Conclusion(
                "transfers", prefix, statement, "likely", wall_s * sides.slow_run.thread_count, advice, evidence
            ),
            wall_s,
        )


def _transfers(sides: Sides) -> Iterable[Cause]:
    """More moved between workers, and more waited for."""
    fast, slow = sides.values(lambda each: each.total("transfers", "moved_bytes"))
    before, after = statistics.median(fast), statistics.median(slow)
    wall_s = sides.more(lambda each: each.categories["transfer_wait"])
    if not stands_out(fast, slow) or after < MORE * before or wall_s < sides.material_s:
        return
    statement = (
        f"In {sides.slow_name} {bytes_text(after)} moved between workers, in {sides.fast_name} {bytes_text(before)}; threads "
        f"waited {seconds_text(wall_s * sides.slow_run.thread_count)} more for inputs."
    )
    evidence: Numbers = {"more_moved_bytes": after - before, "transfer_wait_wall_s": wall_s}
    yield Cause(
        Conclusion(
            "transfers", "transfers", statement, "likely", wall_s * sides.slow_run.thread_count,
            f"`recup transfers {sides.slow_run.run_id}` tells which.", evidence,
        ),
        wall_s,
    )  # fmt: skip


def _categories(a: Sequence[Measures], b: Sequence[Measures], same: Records) -> Iterable[Conclusion]:
    """Where many repeats differ and no cause is found: the category of the budget that does."""
    if min(len(a), len(b)) < MANY_REPEATS:
        return
    left, right = ([comparable_categories(each, same) for each in side] for side in (a, b))
    working = statistics.median(worked_s(each) for each in a)
    found = []
    for name in left[0]:
        values = [each[name] for each in left], [each[name] for each in right]
        difference = interval(*values)
        stands = stands_out(*values) or stands_out(values[1], values[0])
        if stands and difference.is_within is False and abs(difference.difference) >= CATEGORY_SHARE * working:
            found.append((abs(difference.difference), name, difference))
    for _, name, difference in sorted(found, key=lambda each: -each[0])[:1]:
        more = "more" if difference.difference > 0 else "less"
        threads = middle_runs(b)[0].thread_count
        yield Conclusion(
            "budget", name,
            f"B spends {seconds_text(abs(difference.difference))} {more} of its wall time on {name.replace('_', ' ')} than A, in "
            "nearly every pair of runs; what causes it is not known.",
            "possible", difference.difference * threads, None,
            {"difference_s": difference.difference, "interval_low_s": difference.low, "interval_high_s": difference.high},
        )  # fmt: skip
