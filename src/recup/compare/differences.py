"""Where two runs differ: the waterfall of the wall time, and tables by prefix, worker, transfer, ...

Covers numbers of both sides beside each other, ranked by what they add to the wall time
where that can be said.  What is the cause is `recup.compare.causes`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from recup.analyse.answers import AnswerTable
from recup.analyse.budget import CATEGORIES
from recup.compare.measures import Measures, Numbers, Subjects
from recup.compare.records import Records

if TYPE_CHECKING:
    import pyarrow as pa

_UNSPLIT = ("cpu", "cpu_wait", "blocked", "io")


def middle_runs(side: Sequence[Measures]) -> list[Measures]:
    """Return the run in the middle by wall time, or the two where their number is even: their mean is the median."""
    ordered = sorted(side, key=lambda each: (each.wall_s, each.run_id))
    return ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]


def mean_of(side: Sequence[Measures], rows: Callable[[Measures], Subjects]) -> Subjects:
    """Return the mean of numbers by subject; a subject that one run lacks counts there as 0, a number as not told."""
    found: Subjects = {}
    told = [rows(each) for each in side]
    for subject in dict.fromkeys(name for each in told for name in each):
        there = [each[subject] for each in told if subject in each]
        numbers: Numbers = {}
        for name in dict.fromkeys(column for each in there for column in each):
            values = [value for each in there if (value := each.get(name)) is not None]
            is_sum = name not in _NOT_SUMS
            numbers[name] = sum(values) / (len(told) if is_sum else len(values)) if values else None
        found[subject] = numbers
    return found


_NOT_SUMS = {
    "median_s",
    "q25_s",
    "q75_s",
    "median_cpu_s",
    "limit_bytes",
    "peak_bytes",
    "median_written_bytes",
    "median_read_bytes",
}


def comparable_categories(each: Measures, same: Records) -> dict[str, float]:
    """Return wall seconds by category, those folded together that only one side can tell apart."""
    found = {name: each.categories.get(name, 0.0) for name, _ in CATEGORIES}
    if not same.has_counters:
        found["not_split"] += sum(found[name] for name in _UNSPLIT)
        found |= dict.fromkeys(_UNSPLIT, 0.0)
    elif not same.is_io_split:
        found["blocked"] += found["io"]
        found["io"] = 0.0
    return found


def waterfall(a: Sequence[Measures], b: Sequence[Measures], same: Records) -> pa.Table:
    """Wall time by category of the budget, as it came about: one row per category, what grew or shrank most first.

    difference_s sums to the wall time of B less that of A, whatever the record.

    Columns: category, meaning, a_wall_s, b_wall_s, difference_s, difference_share (of the difference of the wall
    times; null: there is none)
    """
    import pyarrow as pa

    sides = []
    for side in (middle_runs(a), middle_runs(b)):
        each = [comparable_categories(run, same) for run in side]
        sides.append({name: sum(run[name] for run in each) / len(each) if each else 0.0 for name, _ in CATEGORIES})
    left, right = sides
    whole = sum(right.values()) - sum(left.values())
    rows = [
        {
            "category": name,
            "meaning": meaning,
            "a_wall_s": left[name],
            "b_wall_s": right[name],
            "difference_s": right[name] - left[name],
            "difference_share": (right[name] - left[name]) / whole if whole else None,
        }
        for name, meaning in CATEGORIES
    ]
    rows.sort(key=lambda row: -abs(float(str(row["difference_s"]))))
    numbers = ("a_wall_s", "b_wall_s", "difference_s", "difference_share")
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema([("category", pa.string()), ("meaning", pa.string()), *((n, pa.float64()) for n in numbers)]),
    )


def difference_tables(a: Sequence[Measures], b: Sequence[Measures], same: Records) -> tuple[AnswerTable, ...]:
    """Return the tables by subject; one that only one side could tell of is left out."""
    left, right = middle_runs(a), middle_runs(b)
    threads = [sum(each.thread_count for each in side) / max(len(side), 1) for side in (left, right)]
    tables = [
        _table(
            "prefixes", "Prefixes: what each adds to the wall time, most first", "prefix",
            (mean_of(left, lambda each: each.prefixes), mean_of(right, lambda each: each.prefixes)),
            ("task_count", "attempt_count", "median_s", "thread_s"), ("thread_s", threads), counts=("task_count", "attempt_count"),
        ),
        _table(
            "workers", "Workers: time of their threads with a task, by what differs most", "worker",
            (mean_of(left, lambda each: each.workers), mean_of(right, lambda each: each.workers)),
            ("start_count", "busy_s", "idle_s"), ("busy_s", threads), counts=("start_count",),
        ),
        _table(
            "transfers", "Results moved from worker to worker, by what differs most", "transfer",
            (mean_of(left, lambda each: each.transfers), mean_of(right, lambda each: each.transfers)),
            ("transfer_count", "moved_bytes", "transfer_s"), ("moved_bytes", None), counts=("transfer_count", "moved_bytes"),
        ),
        _table(
            "steals", "Tasks stolen, by what differs most", "prefix",
            (mean_of(left, lambda each: each.steals), mean_of(right, lambda each: each.steals)),
            ("request_count", "steal_count"), ("steal_count", None), counts=("request_count", "steal_count"),
        ),
    ]  # fmt: skip
    if same.has_counters:
        columns: tuple[str, ...] = ("read_bytes", "written_bytes", "read_count", "write_count")
        if same.has_darshan:
            columns = ("io_s", "file_read_bytes", "file_written_bytes", "read_count", "write_count")
        ranked = "io_s" if same.has_darshan else "written_bytes"
        tables.append(
            _table(
                "io", "Reads and writes of tasks, sockets and pipes included, by what differs most", "prefix",
                (mean_of(left, lambda each: each.io), mean_of(right, lambda each: each.io)),
                columns, (ranked, threads if ranked == "io_s" else None), counts=tuple(n for n in columns if n != "io_s"),
            )
        )  # fmt: skip
    if same.has_workers:
        tables.append(
            _table(
                "memory", "Memory of workers: limit, peak and results spilled, by what differs most", "worker",
                (mean_of(left, lambda each: each.memory), mean_of(right, lambda each: each.memory)),
                ("limit_bytes", "peak_bytes", "spilled_bytes", "spill_count"), ("spilled_bytes", None),
                counts=("limit_bytes", "peak_bytes", "spilled_bytes", "spill_count"),
            )
        )  # fmt: skip
    return tuple(tables)


def _table(  # noqa: PLR0917
    name: str,
    title: str,
    subject: str,
    sides: tuple[Subjects, Subjects],
    columns: tuple[str, ...],
    ranked: tuple[str, list[float] | None],
    *,
    counts: tuple[str, ...],
) -> AnswerTable:
    """Return one table: both sides of each column, and what a subject adds to the wall time where threads are given."""
    import pyarrow as pa

    by, threads = ranked
    rows = []
    for each in dict.fromkeys((*sides[0], *sides[1])):
        left, right = (side.get(each, {}) for side in sides)
        row: dict[str, object] = {subject: each}
        before, after = left.get(by) or 0.0, right.get(by) or 0.0
        if threads is not None:
            row["wall_difference_s"] = after / (threads[1] or 1.0) - before / (threads[0] or 1.0)
        for column in columns:
            for side, numbers in (("a", left), ("b", right)):
                value = numbers.get(column)
                row[f"{side}_{column}"] = round(value) if value is not None and column in counts else value
        rows.append(
            (-abs(float(str(row["wall_difference_s"]))) if threads is not None else -abs(after - before), each, row)
        )
    rows.sort(key=lambda entry: entry[:2])
    fields = [(subject, pa.string())]
    if threads is not None:
        fields.append(("wall_difference_s", pa.float64()))
    for column in columns:
        kind = pa.int64() if column in counts else pa.float64()
        fields += [(f"a_{column}", kind), (f"b_{column}", kind)]
    return AnswerTable(name, title, pa.Table.from_pylist([row for _, _, row in rows], schema=pa.schema(fields)))
