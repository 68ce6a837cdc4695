"""Why a worker died: how it went, its memory before, what ran on it, and whether a blamed task was there.

Covers workers that went before their time: killed, ended by an exit code, restarted by their nanny or
the scheduler, or gone without a word.  It does not cover workers that closed in order, nor
those that ended with their whole cluster and left no sign of how.

How a worker ended is its nanny's word, else the scheduler's; what ran at that moment is the
worker's own, whose record may lack its last second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.death_causes import cause_of
from recup.analyse.death_rows import BLAMED_SQL, DEATHS_SQL, TOP_TASKS_SQL
from recup.analyse.rows import Document, once_per_run, rows_of
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from recup.store import Run

TASKS_SHOWN = 1000
"""Tasks at deaths that are rows at most, those that ran first: thousands may be queued on a worker."""
_TASKS_LOOKED_AT = 10 * TASKS_SHOWN


def worker_deaths(run: Run) -> pa.Table:
    """Workers that went before their time: one row per death, in order of time.

    `certainty` is of `verdict`.  Memory is that of the process: `last_bytes` by the worker's own last
    sample, `last_before_s` before its death, so that what it took after that is in none of
    them; `terminated_bytes` is what its nanny measured.  `host_run_bytes` sums the processes of this run on
    the host; other programs are not in it.  `record_gap_s` is how much the worker's own
    record lacks (null: it has none).  `executing_count` counts tasks in a thread as far as the
    worker recorded.

    From: worker_lives, process_ends, events, logs, samples, hosts, processes, task_runs
    Columns: died_at_s, worker, worker_id, name, host, pid, how, verdict, certainty, signal, exit_code, nanny_reason,
    removal_cause, limit_bytes, last_bytes, last_before_s, peak_bytes, scheduler_last_bytes, managed_bytes,
    terminated_bytes, cgroup_limit_bytes, host_bytes, host_run_bytes, assigned_count, executing_count, executing,
    record_gap_s, absent_s, came_at_s
    """
    return _deaths_table(*_found(run))


def tasks_at_deaths(run: Run) -> pa.Table:
    """Tasks on workers when they died: one row per death and attempt, blamed and executing ones first.

    At most `TASKS_SHOWN` rows; `worker_deaths` counts them all.  `state`: executing (in a thread, by the
    worker's record), ended, not yet told (its computation had ended), only task there (nothing else
    was; whether it had begun is not recorded), not begun (every thread was held by others), or unknown (the
    worker's record does not tell).

    From: task_runs, worker_transitions, scheduler_transitions
    Columns: died_at_s, worker, key, run_id, prefix, state, ran_s, is_blamed, attempt_number
    """
    return _tasks_table(_found(run)[1])


# ---------------------------------------------------------------- what is found


@once_per_run
def _found(run: Run) -> tuple[list[Document], list[Document]]:
    """Return deaths with their cause, and attempts at them: `recup lost` asks for them too."""
    dead = rows_of(run, DEATHS_SQL)
    if not dead:
        return [], []
    tasks = rows_of(run, f"{TOP_TASKS_SQL} limit {_TASKS_LOOKED_AT}")
    executing: dict[int, list[Document]] = {}
    for task in tasks:
        if task["state"] in ("executing", "only task there"):
            executing.setdefault(task["life"], []).append(task)
    for death in dead:
        ran = executing.get(death["life"], [])
        cause = cause_of(death)
        death |= {
            "cause": cause,
            "how": cause.how,
            "verdict": cause.verdict,
            "certainty": cause.certainty,
            "executing_count": sum(each["state"] == "executing" for each in ran),
            "executing_prefixes": sorted({each["prefix"] for each in ran if each["prefix"]}),
            "executing": ", ".join(sorted({str(each["prefix"] or each["key"]) for each in ran})[:5]) or None,
        }
    return dead, tasks


def _deaths_table(dead: list[Document], _: list[Document]) -> pa.Table:
    import pyarrow as pa

    text, number, size = pa.string(), pa.float64(), pa.int64()
    kinds = {
        "died_at_s": number, "worker": text, "how": text, "verdict": text, "last_bytes": size, "limit_bytes": size,
        "executing": text, "certainty": text, "executing_count": size, "assigned_count": size,
        "last_before_s": number, "peak_bytes": size, "terminated_bytes": size, "scheduler_last_bytes": size,
        "managed_bytes": size, "host": text, "pid": size, "signal": size, "exit_code": size, "nanny_reason": text,
        "removal_cause": text, "cgroup_limit_bytes": size, "host_bytes": size, "host_run_bytes": size,
        "record_gap_s": number, "absent_s": number, "came_at_s": number, "worker_id": text, "name": text,
    }  # fmt: skip
    return pa.Table.from_pylist(dead, schema=pa.schema(list(kinds.items())))


def _tasks_table(tasks: list[Document]) -> pa.Table:
    import pyarrow as pa

    kinds = {
        "died_at_s": pa.float64(), "worker": pa.string(), "key": pa.string(), "run_id": pa.int64(),
        "prefix": pa.string(), "state": pa.string(), "ran_s": pa.float64(), "is_blamed": pa.bool_(),
        "attempt_number": pa.int64(),
    }  # fmt: skip
    return pa.Table.from_pylist(tasks[:TASKS_SHOWN], schema=pa.schema(list(kinds.items())))


# ---------------------------------------------------------------- blame


def blamed_tasks(run: Run) -> pa.Table:
    """Tasks that Dask gave up with KilledWorker: one row each, with where it was at each death.

    Dask blames a task that was assigned to a worker at more deaths than `allowed-failures`,
    whether it ran or waited in the worker's queue.  At most `BLAMED_SHOWN` rows.

    From: scheduler_transitions, task_runs, worker_lives, worker_transitions
    Columns: key, prefix, verdict, certainty, death_count, executing_count, only_task_count, ended_count,
    not_begun_count, unknown_count, others
    """
    return _blamed_table(_blamed(run, *_found(run)))


def _blamed_table(rows: list[Document]) -> pa.Table:
    import pyarrow as pa

    text, size = pa.string(), pa.int64()
    kinds = {
        "key": text, "prefix": text, "verdict": text, "certainty": text, "death_count": size, "executing_count": size,
        "only_task_count": size, "ended_count": size, "not_begun_count": size, "unknown_count": size, "others": text,
    }  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))


def _blamed(run: Run, dead: list[Document], tasks: list[Document]) -> list[Document]:
    if not dead or (len(tasks) < _TASKS_LOOKED_AT and not any(each["is_blamed"] for each in tasks)):
        return []
    rows = rows_of(run, BLAMED_SQL)
    for row in rows:
        there = row["executing_count"] + row["only_task_count"]
        absent = row["not_begun_count"] + row["ended_count"]
        if absent == row["death_count"]:
            row |= {"verdict": "not to blame", "certainty": "certain" if row["death_count"] > 1 else "likely"}
        elif absent:
            row |= {"verdict": f"not to blame for {absent} of {row['death_count']}", "certainty": "likely"}
        elif there == row["death_count"]:
            row |= {"verdict": "there at every death", "certainty": "likely"}
        else:
            row |= {"verdict": "not known", "certainty": "possible"}
    return rows


# ---------------------------------------------------------------- the answer


def deaths(run: Run) -> Answer:
    """Why did workers die, and were the tasks that Dask blames there at every death?"""
    dead, tasks = _found(run)
    blamed = _blamed(run, dead, tasks)
    return Answer(
        _headline(dead),
        ranked([*_causes(dead), *_shared_prefixes(dead), *_blame(blamed)]),
        (
            AnswerTable("deaths", "Workers that went before their time, in order of time", _deaths_table(dead, tasks)),
            AnswerTable(
                "tasks-at-death", "Tasks on a worker when it died, blamed and executing ones first", _tasks_table(tasks)
            ),
            AnswerTable("blamed", "Tasks that Dask blames for deaths (KilledWorker)", _blamed_table(blamed)),
        ),
        _basis(run, dead),
    )


def _headline(dead: list[Document]) -> str:
    if not dead:
        return "No worker is known to have died before its time."
    verdicts: dict[str, int] = {}
    for death in dead:
        verdicts[_short(death)] = verdicts.get(_short(death), 0) + 1
    told = "; ".join(f"{count} x {verdict}" if count > 1 else verdict for verdict, count in verdicts.items())
    return f"{plural(len(dead), 'worker')} died before {'their' if len(dead) > 1 else 'its'} time: {told}."


def _short(death: Document) -> str:
    verdict: str = death["verdict"]
    return verdict.split(" while ", maxsplit=1)[0]


def _causes(dead: list[Document]) -> Iterable[Conclusion]:
    """Yield one conclusion per verdict: how often, the last of them in numbers, what ran then."""
    kinds: dict[tuple[str, str], list[Document]] = {}
    for death in dead:
        kinds.setdefault((_short(death), death["certainty"]), []).append(death)
    for (_, certainty), rows in kinds.items():
        last = rows[-1]
        count = len(rows)
        who = f"Worker {last['worker']} on {last['host'] or 'a host not told'}"
        when = f" at {last['died_at_s']:.1f} s" if last["died_at_s"] is not None else ""
        others = f"{plural(count, 'death')} of this kind; the last: " if count > 1 else ""
        statement = (
            f"{others}{who} died{when} of {last['how']}: {last['verdict']}{_memory_text(last)}; {_ran_text(last)}."
        )
        absent = [row["absent_s"] * row["thread_count"] for row in rows if row["absent_s"] and row["thread_count"]]
        evidence = {
            "death_count": count,
            **{
                name: last[name]
                for name in (
                    "signal", "exit_code", "last_bytes", "last_before_s", "peak_bytes", "terminated_bytes", "limit_bytes",
                    "executing_count", "assigned_count", "record_gap_s",
                )
                if last[name] is not None
            },
        }  # fmt: skip
        yield Conclusion(
            "deaths", str(last["worker"]), statement, certainty, sum(absent) or None, last["cause"].advice, evidence
        )


def _memory_text(death: Document) -> str:
    limit = death["limit_bytes"]
    of = f" of {bytes_text(limit)} allowed" if limit else ""
    if death["terminated_bytes"]:
        return f", at {bytes_text(death['terminated_bytes'])}{of}"
    if death["last_bytes"] is not None:
        before = f", {seconds_text(death['last_before_s'])} before" if (death["last_before_s"] or 0) > 0 else ""
        return f" (memory{before}: {bytes_text(death['last_bytes'])}{of})"
    if death["scheduler_last_bytes"] is not None:
        return f" (memory by its last heartbeat: {bytes_text(death['scheduler_last_bytes'])}{of})"
    return " (its memory is not recorded)"


def _ran_text(death: Document) -> str:
    if death["executing"]:
        ran = "running then" if death["executing_count"] else "the only task on it, running or about to"
        return f"{ran}: {death['executing']}"
    if not death["assigned_count"]:
        return "no task was on it"
    return f"{plural(death['assigned_count'], 'task')} were on it, which of them ran is not recorded"


def _shared_prefixes(dead: list[Document]) -> Iterable[Conclusion]:
    """Yield a conclusion where one prefix alone was executing at every death, of two or more."""
    known = [set(death["executing_prefixes"]) for death in dead]
    if len(known) < 2 or not all(known):
        return
    for prefix in sorted(set.intersection(*known)):
        yield Conclusion(
            "deaths", prefix, f"Tasks of prefix {prefix} were running, or the only ones there, at all {len(dead)} deaths.", "likely", None,
            f"Look at what {prefix} does to its process: memory, native code, exits.", {"death_count": len(dead)},
        )  # fmt: skip


def _blame(blamed: list[Document]) -> Iterable[Conclusion]:
    """Yield one conclusion per verdict on blamed tasks."""
    kinds: dict[tuple[str, str], list[Document]] = {}
    for row in blamed:
        kinds.setdefault((row["verdict"], row["certainty"]), []).append(row)
    for (verdict, certainty), rows in kinds.items():
        first = rows[0]
        more = f" (and {plural(len(rows) - 1, 'task')} like it)" if len(rows) > 1 else ""
        evidence = {name: first[name] for name in first if name.endswith("_count") and name != "blamed_count"}
        ran = first["executing_count"] + first["only_task_count"]
        deaths = plural(first["death_count"], "death")
        others = f"; running instead: {first['others']}" if first["others"] else ""
        if verdict.startswith("not to blame"):
            text = f"It had not begun or had ended at {first['not_begun_count'] + first['ended_count']} of {deaths}{others}."
            advice = "Look at what ran instead; this task may be retried."
        elif verdict == "there at every death":
            text = f"It was running, or the only task there, at {ran} of {deaths}."
            advice = "Run this task alone to see it die."
        else:
            text = (
                f"It was running, or the only task there, at {ran} of {deaths}; the record does not tell of the others."
            )
            advice = None
        yield Conclusion(
            "deaths", str(first["prefix"] or first["key"]), f"Dask blames task {first['key']}{more}: {verdict}. {text}",
            certainty, None, advice, evidence,
        )  # fmt: skip


_BASIS_SQL = """
select
    count(*) as life_count,
    count(*) filter (is_captured) as captured_count,
    (select count(*) from servers where role = 'nanny' and is_captured) as nanny_count,
    count(*) filter (ended = 'unknown') as unknown_count
from worker_lives
"""


def _basis(run: Run, dead: list[Document]) -> str:
    (row,) = rows_of(run, _BASIS_SQL)
    said = [
        f"{plural(row['life_count'], 'worker')}, {row['captured_count']} with a record of "
        f"{'its' if row['captured_count'] == 1 else 'their'} own"
    ]
    if row["life_count"] and not row["nanny_count"]:
        said.append("no nanny was recorded, so signals and exit codes are not known")
    if row["unknown_count"]:
        said.append(f"how {row['unknown_count']} ended is not recorded")
    if dead:
        said.append(
            "what ran at a death is by the worker's own record, which lacks up to its last second, and memory by samples "
            "one second apart"
        )
    return "; ".join(said) + "."
