"""What was lost and computed again: attempts whose work was thrown away, results computed twice, and why.

Covers attempts that were lost with their worker, failed, were cancelled or rescheduled, and results computed more
than once, with the time they took.  It does not cover attempts that were stolen before they
ran, nor results that were lost and never needed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.deaths import worker_deaths
from recup.analyse.rows import Document, rows_of
from recup.fuse_wasted import CLOSINGS
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from recup.store import Run

NOTABLE_S = 0.1
"""Cancelled, rescheduled and repeated work below this, or below `NOTABLE_SHARE` of all, is no finding: clients cancel
what they no longer want."""
NOTABLE_SHARE = 0.001
ATTEMPTS_SHOWN = 50
"""Attempts that are rows, those that took longest."""

_WASTED = f"""
with run_start as (
    select started_s as zero_s from run_times
), {CLOSINGS.strip()}, wasted as (
    from wasted_attempts
)
"""

CAUSES_SQL = f"""
{_WASTED}
, lasts as (
    select scheduler_id, key_id, max(attempt_number) as last_number
    from task_runs
    where outcome <> 'stolen'
    group by scheduler_id, key_id
    having count(*) > 1
), by_prefix as (
    select
        w.scheduler_id, w.kind, w.cause, w.prefix,
        count(*) as attempt_count,
        count(*) filter (l.last_number > w.attempt_number) as again_count,
        count(*) filter (w.wasted_s is null) as unknown_count,
        count(*) filter (w.is_direct) as direct_count,
        count(distinct w.key_id) as task_count,
        sum(w.wasted_s) as wasted_s
    from wasted w
    left join lasts l on l.scheduler_id = w.scheduler_id and l.key_id = w.key_id
    group by all
)
select
    b.scheduler_id,
    b.kind,
    b.cause,
    any_value(c.address) as worker,
    sum(attempt_count)::bigint as attempt_count,
    sum(again_count)::bigint as again_count,
    sum(unknown_count)::bigint as unknown_count,
    sum(direct_count)::bigint as direct_count,
    sum(task_count)::bigint as task_count,
    sum(wasted_s) as wasted_s,
    arg_max(prefix, coalesce(wasted_s, 0)) as prefix,
    count(*) as prefix_count
from by_prefix b
left join closings c on b.kind in ('lost', 'lost result') and c.scheduler_id = b.scheduler_id and c.stimulus_id = b.cause
group by b.scheduler_id, b.kind, b.cause
order by wasted_s desc nulls last, attempt_count desc, b.kind, b.cause
"""

PREFIXES_SQL = f"""
{_WASTED}
, totals as (
    select prefix, sum(compute_s) as compute_s from task_runs group by prefix
)
select
    w.prefix,
    sum(w.wasted_s) as wasted_s,
    sum(w.wasted_s) 
        / nullif(coalesce(any_value(t.compute_s), 0) + coalesce(sum(w.wasted_s) filter (w.kind = 'lost'), 0), 0) as wasted_share,
    count(*) filter (w.kind = 'lost') as lost_count,
    count(*) filter (w.kind = 'error') as failed_count,
    count(*) filter (w.kind = 'cancelled') as cancelled_count,
    count(*) filter (w.kind = 'rescheduled') as rescheduled_count,
    count(*) filter (w.kind = 'lost result') as lost_result_count,
    count(*) filter (w.kind = 'computed again') as computed_again_count,
    count(*) filter (w.wasted_s is null) as unknown_count
from wasted w
left join totals t on t.prefix is not distinct from w.prefix
group by w.prefix
order by wasted_s desc nulls last, w.prefix
"""

ATTEMPTS_SQL = f"""
{_WASTED}
, longest as (
    select * from wasted order by wasted_s desc nulls last, ended_s, key_id limit ?
)
select w.scheduler_id, keys.key, w.prefix, w.run_id, w.kind, w.cause, w.worker as ran_on, c.address as worker,
    w.wasted_s, w.ended_s - r.zero_s as ended_at_s
from longest w
cross join run_start r
left join closings c on w.kind in ('lost', 'lost result') and c.scheduler_id = w.scheduler_id and c.stimulus_id = w.cause
left join keys on keys.key_id = w.key_id
order by w.wasted_s desc nulls last, ended_at_s, keys.key
"""

_TOTAL_SQL = """
select coalesce(sum(compute_s), 0.0) as compute_s, count(*) as attempt_count,
    (select count(*) from worker_lives) as worker_count, (select count(*) from worker_lives where is_captured) as captured_count
from task_runs
"""


def wasted_by_cause(run: Run) -> pa.Table:
    """Work thrown away or done again: one row per cause, what took longest first.

    `kind`: lost (with its worker), error, cancelled, rescheduled, lost result (computed again since its result was lost
    with a worker, or that of a task that needs it) or computed again (it had been released).  `wasted_s` is the time of these attempts, from
    start to end of the computation, else to when the scheduler ended them; `unknown_count` of
    them told no time: they may not have begun.  `again_count` were followed by another attempt.

    From: task_runs, scheduler_transitions, workers, worker_lives
    Columns: kind, cause, wasted_s, attempt_count, task_count, again_count, unknown_count, prefix (that took most)
    """
    return _causes_table(_causes(run, _Words(run)))


def wasted_by_prefix(run: Run) -> pa.Table:
    """Work thrown away or done again: one row per prefix, what took longest first.

    `wasted_share` is of all time computed in tasks of the prefix.

    From: task_runs, scheduler_transitions, workers
    Columns: prefix (null: its graph is not recorded), wasted_s, wasted_share, lost_count, failed_count, cancelled_count,
    rescheduled_count, lost_result_count, computed_again_count, unknown_count
    """
    return run.sql(PREFIXES_SQL).to_arrow_table()


def recomputed(run: Run) -> Answer:
    """What was lost and computed again, at what cost?"""
    words = _Words(run)
    causes = _causes(run, words)
    (total,) = rows_of(run, _TOTAL_SQL)
    wasted = sum(row["wasted_s"] or 0.0 for row in causes)
    lost_s = sum(row["wasted_s"] or 0.0 for row in causes if row["kind"] == "lost")
    whole = total["compute_s"] + lost_s
    return Answer(
        _headline(causes, wasted, whole),
        ranked(_conclusions(causes, whole)),
        (
            AnswerTable("causes", "Work thrown away or done again, by cause", _causes_table(causes)),
            AnswerTable("prefixes", "Work thrown away or done again, by prefix", wasted_by_prefix(run)),
            AnswerTable("attempts", "Attempts that took longest for nothing", _attempts(run, words)),
        ),
        _basis(total, causes),
    )


# ---------------------------------------------------------------- causes in words


def _causes(run: Run, words: _Words) -> list[Document]:
    """Return causes, those that read alike as one."""
    rows = rows_of(run, CAUSES_SQL)
    for row in rows:
        row["group"], row["cause"] = words.of(row)
    return _merged(rows, "cause")


_COUNTS = ("attempt_count", "again_count", "unknown_count", "direct_count", "task_count", "prefix_count")


def _merged(rows: Iterable[Document], by: str) -> list[Document]:
    """Return rows with those of one kind and cause as one, what took longest first."""
    named: dict[tuple[str, str], Document] = {}
    for row in rows:
        same = named.setdefault((row["kind"], row[by]), {**row, "merged_count": 0})
        same["merged_count"] += 1
        if same["merged_count"] > 1:
            for name in _COUNTS:
                same[name] += row[name]
            if row["wasted_s"] is not None:
                same["wasted_s"] = (same["wasted_s"] or 0.0) + row["wasted_s"]
    return sorted(named.values(), key=lambda row: (-(row["wasted_s"] or 0.0), -row["attempt_count"], row["cause"]))


LEFT = "workers that left in order, or of which it is not known"


class _Words:
    """Causes in words; looks up deaths of workers once, and only where something was lost."""

    def __init__(self, run: Run):
        self._run = run
        self._deaths: dict[str, Document] | None = None

    def of(self, row: Document) -> tuple[str, str]:
        """Return what rows with one kind of cause have in common, and the cause itself."""
        cause: str | None = row["cause"]
        if row["kind"] in ("lost", "lost result"):
            if self._deaths is None:
                self._deaths = {each["removal_cause"]: each for each in worker_deaths(self._run).to_pylist()}
            death = self._deaths.get(cause or "")
            if death is None:
                return LEFT, f"worker {row['worker'] or '(not told)'} left in order, or how it ended is not known"
            verdict = death["verdict"].split(" while ", maxsplit=1)[0]
            return verdict, f"worker {death['worker']} died at {death['died_at_s']:.1f} s: {verdict}"
        if row["kind"] == "error":
            said = f"raised {cause}" if cause else "failed, with what is not told"
        elif row["kind"] == "rescheduled":
            said = "the task raised Reschedule"
        elif row["kind"] == "cancelled":
            said = f"given up by the scheduler ({cause})" if cause else "given up, why is not told"
        elif cause == "update-graph":
            said = "asked for again after the result had been released"
        else:
            said = f"wanted again, cause {cause}" if cause else "wanted again, why is not told"
        return said, said


def _causes_table(causes: list[Document]) -> pa.Table:
    import pyarrow as pa

    text, size = pa.string(), pa.int64()
    kinds = {
        "kind": text, "cause": text, "wasted_s": pa.float64(), "attempt_count": size, "task_count": size,
        "again_count": size, "unknown_count": size, "prefix": text,
    }  # fmt: skip
    return pa.Table.from_pylist(causes, schema=pa.schema(list(kinds.items())))


def _attempts(run: Run, words: _Words) -> pa.Table:
    import pyarrow as pa

    rows = rows_of(run, ATTEMPTS_SQL, [ATTEMPTS_SHOWN])
    for row in rows:
        row["cause"] = words.of(row)[1]
    text = pa.string()
    kinds = {
        "key": text, "wasted_s": pa.float64(), "kind": text, "cause": text, "prefix": text, "ran_on": text,
        "ended_at_s": pa.float64(), "run_id": pa.int64(),
    }  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))


# ---------------------------------------------------------------- the answer


def _headline(causes: list[Document], wasted: float, whole: float) -> str:
    if not causes:
        return "Nothing is known to have been lost, failed, cancelled or computed twice."
    attempts = plural(sum(row["attempt_count"] for row in causes), "attempt")
    if not wasted:
        return f"{attempts} came to nothing or did work again; none told of time in it."
    # Of attempts whose end alone is known there is time wasted, but none computed.
    share = f": {wasted / whole:.1%} of all computing" if whole > 0 else ""
    return f"{attempts} came to nothing or did work again, in {seconds_text(wasted)}{share}."


_SAID = {
    "lost": "{attempts} {were} lost with {their} worker: {cause}",
    "error": "{attempts} {cause}",
    "cancelled": "{attempts} {were} {cause}",
    "rescheduled": "{attempts} ended early: {cause}",
    "lost result": "{results} had to be computed again{direct}: {cause}",
    "computed again": "{results} {were} computed again: {cause}",
}
_ADVICE = {
    "lost": "See `recup deaths`; shorter tasks lose less.",
    "error": "Mend what fails, or fail early: retries run the task from its start.",
    "cancelled": "Cancel or release futures before their tasks run.",
    "rescheduled": "Decide before the work begins, not in the task.",
    "lost result": "See `recup deaths`; keep copies of what is dear (client.replicate), or write it out.",
    "computed again": "Keep the futures, or persist, what is asked for again.",
}
_LEFT_ADVICE = (
    "Let workers retire (client.retire_workers, adaptive scaling) rather than close them: that moves their results."
)


def _conclusions(causes: list[Document], whole: float) -> Iterable[Conclusion]:
    """Yield one conclusion per kind of cause: losses and failures always, what is usual only where it took time."""
    for row in _merged(causes, "group"):
        wasted = row["wasted_s"] or 0.0
        if row["kind"] not in ("lost", "error", "lost result") and wasted < max(NOTABLE_S, NOTABLE_SHARE * whole):
            continue
        count, several = row["attempt_count"], row["merged_count"]
        indirect = count - row["direct_count"]
        cause = row["cause"] if several == 1 else f"{several} workers: {row['group']}"
        said = _SAID[row["kind"]].format(
            attempts=plural(count, "attempt"),
            results=plural(count, "result"),
            were="was" if count == 1 else "were",
            their="its" if several == 1 and count == 1 else "their",
            cause=cause,
            direct=f", {indirect:,} of them since these needed them" if indirect else "",
        )
        prefix = row["prefix"] or "(graph not recorded)"
        mostly = f"of prefix {prefix}" if row["prefix_count"] == 1 else f"most of prefix {prefix}"
        took = f"{seconds_text(wasted)} of computing, {mostly}" if row["wasted_s"] else mostly
        unknown = f"; {row['unknown_count']} told no time, they may not have begun" if row["unknown_count"] else ""
        evidence = {
            name: row[name] for name in ("attempt_count", "task_count", "again_count", "unknown_count", "wasted_s")
        }
        advice = _LEFT_ADVICE if row["group"] == LEFT else _ADVICE[row["kind"]]
        yield Conclusion("lost", prefix, f"{said} ({took}{unknown}).", "certain", row["wasted_s"], advice, evidence)


def _basis(total: Document, causes: list[Document]) -> str:
    said = f"{plural(total['attempt_count'], 'attempt')}, {seconds_text(total['compute_s'])} of computing that ended"
    if total["worker_count"] > total["captured_count"]:
        said += (
            f"; {total['worker_count'] - total['captured_count']} of {plural(total['worker_count'], 'worker')} left no "
        )
        said += "record, so what ran there when it was lost has no time"
    if any(row["unknown_count"] for row in causes):
        said += "; times of lost attempts are at least these: a killed worker's record lacks up to its last second"
    return said + "."
