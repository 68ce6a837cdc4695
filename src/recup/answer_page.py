"""What a question prints: the answer in a sentence, what was found and how sure it is, and tables.

Takes the document that `--json` prints; what it says is `recup.analyse`'s.  Columns are
formatted by the unit in their name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recup.markdown import MarkdownPage
from recup.terminal import Page, bytes_text, count_text, inert, plain_value, plural, seconds_text

Row = Mapping[str, Any]

_TEXT_LIMIT = 60
_TEXT_LEAST = 26
_SENTENCES = ("meaning", "statement", "reason", "detail", "message")
"""Columns that hold sentences: wrapped, not cut."""


def answer_page(page: Page, document: Mapping[str, Any], tables: Sequence[str], limit: int) -> None:
    """Print headline, conclusions with their certainty and advice, and the tables named (all where none is)."""
    page.title(document["asks"], f"run {document['run_id']}")
    page.blank()
    page.line(document["headline"], "bold")
    page.line(document["basis"], "dim")
    if not tables:
        conclusions_lines(page, document["conclusions"], limit)
    shown = [table for table in document["tables"] if not tables or table["name"] in tables]
    for table in shown:
        if table["rows"] or tables:
            _table(page, table, limit)
    if empty := [] if tables else [table["title"] for table in shown if not table["rows"]]:
        page.blank()
        page.line(f"No rows: {'; '.join(empty)}", "dim")


def conclusions_lines(page: Page, conclusions: Sequence[Row], limit: int) -> None:
    """Print conclusions, each with how sure it is, its cost and what to do."""
    if not conclusions:
        return
    page.heading("Found")
    for each in conclusions[:limit]:
        page.statements([(each["certainty"], conclusion_text(each))])
    if len(conclusions) > limit:
        page.line(f"and {plural(len(conclusions) - limit, 'conclusion')} more; --limit shows them, --json all", "dim")


def conclusion_text(conclusion: Row) -> str:
    """Return a conclusion as a sentence with what it cost and what to do."""
    cost = "" if conclusion["thread_s"] is None else f" [{seconds_text(conclusion['thread_s'])} of threads]"
    advice = f" -> {conclusion['advice']}" if conclusion["advice"] else ""
    return f"{conclusion['statement']}{cost}{advice}"


def _table(page: Page, table: Mapping[str, Any], limit: int) -> None:
    page.heading(table["title"])
    table_lines(page, table["rows"], limit)


def table_lines(page: Page | MarkdownPage, rows: Sequence[Row], limit: int) -> None:
    """Print rows as a table, without columns that are null in all of them.

    On a terminal too narrow for all columns the last ones are left out, and named below.
    """
    if not rows:
        page.line("none", "dim")
        return
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    numbers = {name for name in names if any(_is_number(row[name]) for row in rows)}
    cells = {name: [cell_text(name, row[name]) for row in rows[:limit]] for name in names}
    zeros: list[str] = []
    left_out: list[str] = []
    if isinstance(page, Page):
        names, left_out = _fitting(cells, numbers, page.console.width)
        if left_out:
            zeros = [name for name in numbers if not any(row[name] for row in rows)]
            others = {name: values for name, values in cells.items() if name not in zeros}
            names, left_out = _fitting(others, numbers, page.console.width)
    headings = [f">{heading_text(name)}" if name in numbers else heading_text(name) for name in names]
    page.table(headings, list(zip(*(cells[name] for name in names), strict=True)), wrap=_SENTENCES)
    if zeros:
        page.line(f"nothing in any row: {', '.join(heading_text(name) for name in cells if name in zeros)}", "dim")
    if left_out:
        page.line(f"no room for {', '.join(map(heading_text, left_out))}; --json has all", "dim")
    if len(rows) > limit:
        page.line(f"and {plural(len(rows) - limit, 'row')} more; --limit shows them, --json all", "dim")


def _fitting(cells: Mapping[str, Sequence[str]], numbers: set[str], width: int) -> tuple[list[str], list[str]]:
    """Return the columns that have room, and the others: numbers need theirs in full, text some of it."""
    room, shown = float(width), []
    for number, (name, values) in enumerate(cells.items()):
        longest = max(len(heading_text(name)), *map(len, values))
        room -= (longest if name in numbers else min(longest, _TEXT_LEAST)) + 3
        if room < 0 and number:
            break
        shown.append(name)
    return shown, [name for name in cells if name not in shown]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def heading_text(name: str) -> str:
    """Return the heading of a column: its name in words, without the unit its cells show."""
    if name.endswith("_at_s"):
        name = f"{name.removesuffix('_at_s')}_at"
    elif name.endswith("_count"):
        name = name.removesuffix("_count")
        name += "" if name.endswith("s") or "_without_" in f"_{name}_" else "s"
    else:
        name = name.removesuffix("_s").removesuffix("_bytes")
    return name.replace("_", " ")


def cell_text(name: str, value: object) -> str:
    """Return a value as people read it, by the unit in its column's name."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if name.endswith("bytes_per_s"):
            return f"{bytes_text(value)}/s"
        if name.endswith("_bytes") or name == "nbytes":
            return bytes_text(value)
        if name.endswith("_s"):
            return seconds_text(value)
        if name == "share" or name.endswith("_share"):
            return f"{value:.1%}"
        if name.endswith("_count"):
            return count_text(value)
        if isinstance(value, float):
            return f"{value:.3g}"
    return inert(plain_value(value), None if name in _SENTENCES else _TEXT_LIMIT)
