"""What `recup io` prints: how complete the record is, what the rows are, and what is of no task.

Takes the document that `--json` prints; what it says is `recup.analyse.io`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recup.terminal import Page, bytes_text, count_text, inert, plural, seconds_text

Row = Mapping[str, Any]

_CLASSES = {
    "thread": "one task held the thread",
    "time_unique": "one task ran",
    "path": "one task had the file open",
    "shared": "tasks possible, but not sure which or whether",
    "helper": "by threads without a task while tasks ran",
    "none": "no task ran there, or perhaps another file",
}
_NAMES = {
    "task": ("task", "run_id", "worker"),
    "prefix": ("prefix",),
    "file": ("file",),
    "worker": ("worker",),
    "thread": ("worker", "thread"),
}


def io_page(page: Page, document: Mapping[str, Any], limit: int) -> None:
    """Print the record's completeness, the rows, and how sure their tasks are."""
    record, by = document["record"], document["by"]
    page.statements([("complete" if record["is_complete"] else "partly", record["statement"])])
    rows = document["rows"]
    if not rows:
        return
    page.heading(f"Reads and writes by {by}")
    # What is of no task is never cut off: rows shown add up with the line below them.
    of_tasks = [row for row in rows if row["owner"] in (None, "task")]
    others = [row for row in rows if row["owner"] not in (None, "task")]
    is_traced = record["source"] == "darshan"
    headings = [*_NAMES[by], ">read", ">written", ">ops"]
    headings += [">in I/O", ">files", ">small"] if is_traced else []
    headings += [] if by in ("task", "prefix") and is_traced else [">of tasks"] if is_traced else []
    page.table(headings, [_cells(row, by, is_traced) for row in [*of_tasks[:limit], *others]], wrap=headings[:1])
    if len(of_tasks) > limit:
        page.line(f"and {plural(len(of_tasks) - limit, 'row')} more; --limit shows them, --json all", "dim")
    total = sum(row["read_bytes"] for row in rows), sum(row["written_bytes"] for row in rows)
    page.line(f"all rows: {bytes_text(total[0])} read, {bytes_text(total[1])} written", "dim")
    _classes(page, record["classes"])


def _cells(row: Row, by: str, is_traced: bool) -> list[Any]:
    names = {
        "task": (row.get("key"), row.get("run_id"), row.get("worker")),
        "prefix": (row.get("prefix"),),
        "file": (row.get("path"),),
        "worker": (row.get("worker"),),
        "thread": (row.get("worker"), row.get("thread")),
    }[by]
    first = names[0]
    if row["owner"] not in (None, "task"):
        first = " ".join((*filter(None, names[:1]), f"[{row['owner']}]"))
    ops = None if row["read_count"] is None else row["read_count"] + (row["write_count"] or 0)
    cells: list[Any] = [
        first,
        *names[1:],
        bytes_text(row["read_bytes"]),
        bytes_text(row["written_bytes"]),
        count_text(ops),
    ]
    if is_traced:
        cells += [seconds_text(row["io_s"]), count_text(row["file_count"]), _share_text(row["small_share"])]
        if by not in ("task", "prefix"):
            cells.append(_share_text(row["attributed_share"]))
    return cells


def _classes(page: Page, classes: Sequence[Row]) -> None:
    """Print how traced reads and writes got their task."""
    if not classes:
        return
    page.heading("How sure the tasks are")
    page.table(
        ("attribution", ">ops", ">share of ops", ">share of bytes", "meaning"),
        [
            (
                inert(each["attribution"]),
                count_text(each["count"]),
                _share_text(each["count_share"]),
                _share_text(each["bytes_share"]),
                _CLASSES.get(each["attribution"], ""),
            )
            for each in classes
        ],
    )


def _share_text(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
