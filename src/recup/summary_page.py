"""What `recup summary` and `recup top` print, on a terminal or as Markdown.

Takes the documents that `--format json` prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recup.answer_page import cell_text, conclusion_text, heading_text, table_lines
from recup.markdown import MarkdownPage
from recup.pages import command_text
from recup.terminal import Page, bytes_text, count_text, moment_text, plural, seconds_text

Row = Mapping[str, Any]
AnyPage = Page | MarkdownPage

_CONCLUSIONS_SHOWN = 8
_PREFIXES_SHOWN = 10
_BAR_WIDTH = 30
_PREFIX_COLUMNS = (
    "prefix",
    "attempt_count",
    "compute_s",
    "compute_share",
    "cpu_share",
    "q25_s",
    "median_s",
    "q75_s",
    "max_s",
)


def summary_page(page: AnyPage, document: Mapping[str, Any]) -> None:
    """Print the run in numbers, what is missing, where its time went, what was found, and its prefixes."""
    run, numbers = document["run"], document["numbers"]
    page.title(f"run {run['run_id']}", command_text(run["command"]))
    page.statements([("record", document["completeness"]["verdict"])])
    page.facts([
        ("started", moment_text(run["started_ns"])),
        ("wall", _wall_text(run)),
        ("on", f"{plural(numbers['host_count'], 'host')}, {plural(numbers['worker_count'], 'worker')}, "
               f"{plural(numbers['thread_count'], 'thread')}"),
        ("tasks", _tasks_text(numbers)),
        ("moved", f"{bytes_text(numbers['transfer_bytes'])} in {plural(numbers['transfer_count'], 'transfer')}"),
        ("spilled", bytes_text(numbers["spilled_bytes"]) if numbers["spilled_bytes"] else ""),
    ])  # fmt: skip
    _budget(page, document["budget"])
    _conclusions(page, document["conclusions"])
    page.heading("Prefixes")
    rows = [{name: row[name] for name in _PREFIX_COLUMNS} for row in document["prefixes"]]
    table_lines(page, rows, _PREFIXES_SHOWN)


def top_page(page: AnyPage, document: Mapping[str, Any], limit: int) -> None:
    """Print what took the most, one row each."""
    page.title(f"What took the most, by {document['by']}", f"run {document['run_id']}")
    page.blank()
    table_lines(page, document["rows"], limit)


def _wall_text(run: Row) -> str:
    ended = run["state"] if run["exit_code"] in (None, 0) else f"{run['state']}, exit code {run['exit_code']}"
    return f"{seconds_text(run['wall_s'])} ({ended})"


def _tasks_text(numbers: Row) -> str:
    others = [
        f"{count_text(numbers[name])} attempts {word}"
        for name, word in (("error_count", "failed"), ("lost_count", "lost with their worker"))
        if numbers[name]
    ]
    return ", ".join(
        [f"{count_text(numbers['task_count'])} in {plural(numbers['submission_count'], 'graph')}", *others]
    )


def _budget(page: AnyPage, rows: Sequence[Row]) -> None:
    page.heading("Where the time of the threads went")
    shown = [row for row in rows if row["thread_s"] > 0]
    headings = ("category", ">threads", ">share", "", "meaning")
    page.table(
        headings,
        [
            (
                heading_text(row["category"]),
                cell_text("thread_s", row["thread_s"]),
                cell_text("a_share", row["share"]),
                "█" * round(_BAR_WIDTH * (row["share"] or 0)),
                row["meaning"],
            )
            for row in shown
        ],
        wrap=("meaning",),
    )


def _conclusions(page: AnyPage, conclusions: Sequence[Row]) -> None:
    page.heading("Found")
    if not conclusions:
        page.line("Nothing stands out.")
    for each in conclusions[:_CONCLUSIONS_SHOWN]:
        page.statements([(each["certainty"], f"{conclusion_text(each)} (recup {each['question']})")])
    if len(conclusions) > _CONCLUSIONS_SHOWN:
        page.line(f"and {len(conclusions) - _CONCLUSIONS_SHOWN} more; --format json prints all", "dim")
