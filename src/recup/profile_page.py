"""What `recup profile` prints, and what the pages of a run and of a task say of its functions.

Covers order, headings and words, from plain documents; how lines are drawn is
`recup.terminal`'s, and the other verbs' pages are `recup.pages`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recup.terminal import Page, count_text, plural, seconds_text

Row = Mapping[str, Any]

CLOCKS = {"wall": "wall clock: waiting counts", "cpu": "cpu clock: waiting does not count"}
"""What the times of each clock are."""
_OUTSIDE = {
    "coroutine": "coroutines of event loops",
    "other": "functions outside tasks, those of event loops among them",
}


def profile_page(page: Page, document: Mapping[str, Any], shown: int) -> None:
    """Print functions, a table per clock and prefix in the order of the first function of each."""
    page.title(f"functions of run {document['run_id']}")
    page.blank()
    page.statements(
        ("loss", f"{each['server_id']}: {each['detail']}" + (f": {each['row_count']}" if each["row_count"] else ""))
        for each in document["losses"]
    )
    rows: Sequence[Row] = document["functions"]
    if not rows:
        recorded = ", ".join(f"{each['kind']} ({count_text(each['function_count'])})" for each in document["recorded"])
        page.line(f"None of this kind; recorded: {recorded}; see --kind." if recorded else document["how_to_record"])
        return
    groups: dict[tuple[str, str | None, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["clock"], row["prefix"], row["kind"]), []).append(row)
    for (clock, prefix, kind), members in groups.items():
        page.heading(f"{prefix or _OUTSIDE[kind]} ({CLOCKS[clock]})")
        functions_table(page, members[:shown])
        if len(members) > shown:
            page.line(f"and {plural(len(members) - shown, 'more function')}; --limit shows more", "dim")


def profiled_text(request: Row | None) -> str:
    """Return in a line that Yappi was on and what it makes of the times of the run."""
    if request is None:
        return ""
    tasks = f"tasks of {', '.join(request['prefixes'])}" if request.get("prefixes") else "all tasks and the event loop"
    what = ", ".join(tasks if role == "worker" else role for role in request.get("on", ()))
    return f"by Yappi, {request.get('clock')} clock: {what}; this slows the run, so its times are too long"


def functions_table(page: Page, rows: Sequence[Row]) -> None:
    """Print one line per function."""
    page.table(
        (">own", ">share", ">total", ">calls", "function", "where"),
        [
            (
                seconds_text(row["own_s"]),
                "" if row["share"] is None else f"{row['share']:.1%}",
                seconds_text(row["total_s"]),
                _calls_text(row),
                row["function"],
                "built in" if row["path"] is None else f"{Path(row['path']).name}:{row['line']}",
            )
            for row in rows
        ],
    )


def _calls_text(row: Row) -> str:
    """Return the calls; those that were no recursion too, where some were."""
    if row["primitive_call_count"] in (0, row["call_count"]):
        return count_text(row["call_count"])
    return f"{count_text(row['call_count'])}/{count_text(row['primitive_call_count'])}"


def story_functions(page: Page, document: Mapping[str, Any]) -> None:
    """Print, below the story of a task, the functions of its prefix."""
    page.heading(f"Functions of all tasks of prefix {document['prefix']} together, not of this task alone")
    functions_table(page, document["functions"])
    page.line(f"by the {CLOCKS[document['clock']]}; `recup profile --prefix {document['prefix']}` shows more", "dim")
