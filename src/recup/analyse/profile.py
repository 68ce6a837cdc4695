"""Which functions took the time: what Yappi counted, summed over threads, servers and time.

Covers functions of tasks by their prefix, and those of event loops and other threads.  It
cannot tell one task of a prefix from another: Yappi adds them up while they run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from recup.analyse.rows import Document, rows_of
from recup.errors import BadQuery

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

_NAMED = 12
"""Prefixes named when another is asked for."""
KINDS = ("task", "coroutine", "other")
ORDERS = {"own": "own_s", "total": "total_s", "calls": "call_count"}
HOW_TO_RECORD = (
    "No functions were recorded: `recup run --yappi cpu ...` (or `wall`) records them, "
    "`--yappi-prefix PREFIX` those of some tasks only, at less cost."
)
"""What to say of a run without a profile."""

PROFILE_SQL = """
with summed as (
    select
        clock, prefix, kind, function, path, line,
        sum(call_count)::bigint as call_count,
        sum(primitive_call_count)::bigint as primitive_call_count,
        greatest(sum(own_s), 0) as own_s,
        greatest(sum(total_s), 0) as total_s,
        count(distinct server_id) as server_count,
        count(distinct (server_id, thread)) as thread_count
    from raw.function_calls
    where kind = ?
    group by clock, prefix, kind, function, path, line
)
select *, own_s / nullif(sum(own_s) over (partition by clock, prefix), 0) as share
from summed
where call_count > 0
"""

RECORDED_SQL = """
select
    clock, kind, prefix,
    count(distinct (function, path, line)) as function_count,
    count(distinct server_id) as server_count
from raw.function_calls
group by all
order by kind, prefix, clock
"""
"""One row per clock, kind and task prefix that was profiled."""

LOSSES_SQL = """
select server_id, kind, detail, row_count
from raw.losses
where "table" = 'function_calls'
order by all
"""

PREFIX_SQL = """
select distinct prefix
from raw.tasks
where key_id in (select key_id from keys where key = ?)
"""


def function_profile(run: Run, prefix: str | None = None, *, kind: str = "task", order: str = "own") -> pa.Table:
    """Functions by the time spent in them: one row per task prefix and function.

    `share` is the part of `own_s` in all own time of the prefix.  By the wall clock time
    in a coroutine includes its waiting; by the cpu clock waiting counts nowhere.  Total
    times of functions that call each other overlap.

    Parameters
    ----------
    prefix : str, optional
        Only tasks of this prefix.
    kind : str
        ``task``, or what ran outside tasks: ``coroutine`` (of an event loop) or ``other``.
    order : str
        What comes first: the greatest ``own`` or ``total`` time, or the most ``calls``.

    From: function_calls
    Columns: clock, prefix, kind, function, path, line, call_count, primitive_call_count,
    own_s, total_s, server_count, thread_count, share

    Raises
    ------
    BadQuery
        Functions were recorded, but none of this prefix, and the message names some there are;
        or functions outside tasks are asked for by prefix.
    """
    query, parameters = PROFILE_SQL, [kind]
    if prefix is not None:
        query, parameters = f"{query} and prefix = ?", [kind, prefix]
    query = f"{query} order by {ORDERS[order]} desc, function, path, line, prefix"
    table: pa.Table = run.sql(query, parameters).to_arrow_table()
    if prefix is not None and table.num_rows == 0:
        if kind != "task":
            raise BadQuery(f"Functions of kind {kind!r} are of no task and have no prefix; ask without one.")
        there = [row["prefix"] for row in recorded_functions(run) if row["prefix"] is not None]
        if there:
            more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
            raise BadQuery(
                f"No functions of prefix {prefix!r} were recorded in run {run.run_id}; there are those of "
                f"{', '.join(there[:_NAMED])}{more}."
            )
    return table


def recorded_functions(run: Run) -> list[Document]:
    """What was profiled: one row per clock, kind and prefix, with functions and servers counted.

    From: function_calls
    """
    return sorted(rows_of(run, RECORDED_SQL), key=lambda row: KINDS.index(row["kind"]))


def profile_losses(run: Run) -> list[Document]:
    """What of the profile is known to be missing: one row per loss.

    From: losses
    """
    return rows_of(run, LOSSES_SQL)


def profile_request(run: Run) -> Document | None:
    """What was to be profiled, or None where nothing was: clock, prefixes (none: all), on (roles).

    From: foreign/yappi/request.json
    """
    try:
        request = json.loads((run.path / "foreign" / "yappi" / "request.json").read_text())
    except (OSError, ValueError):
        return None
    return request if isinstance(request, dict) else None


def functions_of_key(run: Run, key: str, count: int = 8) -> Document | None:
    """The functions that took most of the own time of a task's prefix, or None where none were recorded.

    They are of all tasks of the prefix together: Yappi does not tell attempts apart.

    From: tasks, function_calls
    Keys: prefix, clock, functions (rows of `function_profile`, at most `count`)
    """
    prefixes = [row["prefix"] for row in rows_of(run, PREFIX_SQL, [key])]
    if not prefixes or not any(row["prefix"] == prefixes[0] for row in recorded_functions(run)):
        return None
    rows: list[dict[str, Any]] = function_profile(run, prefixes[0]).slice(0, count).to_pylist()
    return {"prefix": prefixes[0], "clock": rows[0]["clock"], "functions": rows}
