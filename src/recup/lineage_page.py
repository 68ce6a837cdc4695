"""What `recup lineage` prints: the result or file, what is behind it, what came of it, code and versions.

Takes the document that `--json` prints; what it says is `recup.analyse.lineage`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recup.answer_page import cell_text
from recup.terminal import Page, bytes_text, count_text, plural, seconds_text

Row = Mapping[str, Any]
_DIGEST_SHOWN = 16


def lineage_page(page: Page, document: Row, limit: int) -> None:
    """Print the lineage; lists are cut at `limit` and say how many there are."""
    page.title(f"Lineage of {document['kind']} {document['name']}", f"run {document['run_id']}")
    for line in document["basis"]:
        page.line(line, "dim")
    if document["kind"] == "task":
        for row in document["results"]:
            page.blank()
            page.facts(_task_facts(row))
        _inner(page, document, limit)
    else:
        _tasks(page, "Tasks that wrote it", document["results"], len(document["results"]), limit)
        _tasks(page, "Tasks that read it", document["readers"], len(document["readers"]), limit)
    _reach(page, document["upstream"], "Behind it", "read or written by it and what is behind it", limit)
    _reach(page, document["downstream"], "What came of it", "read or written by it and what came of it", limit)
    _submissions(page, document["submissions"], limit)
    _code(page, document)
    _software(page, document["software"])


def _task_facts(row: Row) -> list[tuple[str, object]]:
    at = "" if row["stored_at_s"] is None else f" at {seconds_text(row['stored_at_s'])} of the run"
    size = "" if row["nbytes"] is None else f", {bytes_text(row['nbytes'])} {row['typename'] or ''}".rstrip()
    took = "" if row["compute_s"] is None else f", computed in {seconds_text(row['compute_s'])}"
    attempts = f", {plural(row['attempt_count'], 'attempt')}" if row["attempt_count"] > 1 else ""
    run = "" if row["run_id"] is None else f", run_id {row['run_id']}"
    host = f" on {row['host']}" if row["host"] else ""
    return [
        ("result", f"{row['outcome']}{at}{size}{took}{attempts}{run}"),
        ("prefix", row["prefix"]),
        ("function", row["function"]),
        ("worker", f"{row['worker']}{host}" if row["worker"] else None),
    ]


def _inner(page: Page, document: Row, limit: int) -> None:
    inner = document["inner_tasks"]
    if inner:
        page.heading(f"{plural(document['inner_count'], 'task')} fused into it")
        page.table(("key", "function"), [(row["key"], row["function"]) for row in inner[:limit]])
        _rest(page, document["inner_count"], min(limit, len(inner)), "task")


def _tasks(page: Page, heading: str, rows: Sequence[Row], count: int, limit: int) -> None:
    page.heading(heading)
    if not rows:
        page.line("none", "dim")
        return
    has_steps = "step" in rows[0]
    headings = [*([">step"] if has_steps else []), "key", ">run_id", "function", "worker", ">at", ">result", "outcome"]
    page.table(
        headings,
        [
            [
                *([row["step"]] if has_steps else []),
                row["key"],
                row["run_id"],
                row["function"],
                row["worker"],
                seconds_text(row["stored_at_s"]),
                bytes_text(row["nbytes"]),
                row["outcome"],
            ]
            for row in rows[:limit]
        ],
    )
    _rest(page, count, min(limit, len(rows)), "task")


def _rest(page: Page, count: int, shown: int, noun: str) -> None:
    if count > shown:
        page.line(f"and {plural(count - shown, noun)} more; --limit shows more, --json the nearest 1,000", "dim")


def _reach(page: Page, reach: Row | None, heading: str, of_files: str, limit: int) -> None:
    if reach is None:
        return
    count = reach["task_count"]
    steps = f" in {plural(reach['step_count'], 'step')}" if count else ""
    page.heading(f"{heading}: {plural(count, 'task')}{steps}, {plural(reach['file_count'], 'file')}")
    if reach["prefixes"]:
        page.table(
            ("prefix", ">tasks", ">compute", ">results", "functions"),
            [
                (
                    row["prefix"] or "data, no task made it",
                    count_text(row["task_count"]),
                    seconds_text(row["compute_s"]),
                    bytes_text(row["result_bytes"]),
                    ", ".join(row["functions"] or ()),
                )
                for row in reach["prefixes"][:limit]
            ],
        )
        _rest(page, len(reach["prefixes"]), limit, "prefix")
        _tasks(page, f"{heading}: the nearest tasks", reach["tasks"], count, limit)
    if reach["files"]:
        page.heading(f"Files {of_files}")
        page.table(
            ("use", "path", ">bytes", ">ops", ">tasks", "task"),
            [
                (
                    row["use"],
                    row["path"],
                    bytes_text(row["nbytes"]),
                    count_text(row["operation_count"]),
                    row["task_count"],
                    row["key"],
                )
                for row in reach["files"][:limit]
            ],
        )
        if len(reach["files"]) > limit:
            page.line(f"and more: {plural(reach['file_count'], 'file')} in all; --limit shows more", "dim")


def _submissions(page: Page, rows: Sequence[Row], limit: int) -> None:
    if not rows:
        return
    page.heading("Submitted by")
    for row in rows[:limit]:
        at = "" if row["sent_at_s"] is None else f"at {cell_text('sent_at_s', row['sent_at_s'])}"
        whose = "" if row["is_own"] else "(what is behind it) "
        page.line(f"{whose}{row['call'] or 'a call not found'} {at} of client {row['client']}")
        page.code(
            f"{frame['path']}:{frame['line']} in {frame['function']}: {frame['line_text'] or ''}".rstrip()
            for frame in row["frames"]
        )
    _rest(page, len(rows), limit, "submission")


def _code(page: Page, document: Row) -> None:
    facts: list[tuple[str, object]] = [
        (row["kind"], f"{row['path']}  sha256 {row['source_digest'][:_DIGEST_SHOWN]}") for row in document["sources"]
    ]
    for row in document["repositories"]:
        dirty = {True: f", {plural(row['changed_file_count'] or 0, 'file')} changed since", False: ", clean", None: ""}
        facts.append(
            (
                "repository",
                f"{row['path']} at {row['commit'] or 'no commit'} ({row['branch'] or 'detached'}{dirty[row['is_dirty']]})",
            )
        )
    page.heading("Code")
    if facts:
        page.facts(facts)
    else:
        page.line("no script is recorded", "dim")


def _software(page: Page, rows: Sequence[Row]) -> None:
    page.heading("Software of the workers that took part")
    if not rows:
        page.line("none is known", "dim")
    for row in rows:
        if row["python_version"] is None:
            page.line(f"{plural(row['worker_count'], 'worker')} left no record of it", "dim")
            continue
        packages = ", ".join(f"{name} {version}" for name, version in row["packages"].items())
        whose = f" ({plural(row['worker_count'], 'worker')})" if len(rows) > 1 else ""
        page.line(f"python {row['python_version']}, {packages}{whose}")
