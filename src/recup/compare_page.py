"""What `recup compare` and `recup changes` print: what is not comparable, the cause, and where the time went.

Takes the document that `--json` prints; what it says is `recup.compare`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recup.answer_page import cell_text, conclusions_lines, heading_text
from recup.terminal import Page, inert, plural, seconds_text

Row = Mapping[str, Any]

_SMALL_S = 0.001
"""Differences below are left out of the waterfall as printed; `--json` has all."""
_SMALL_SHARE = 0.1
_SMALL_BYTES = 1 << 20
_VALUE_LIMIT = 60


def compare_page(page: Page, document: Mapping[str, Any], limit: int) -> None:
    """Print a comparison: records first, then causes, what was not the same, waterfall and tables."""
    page.title("Why does B differ from A?", "")
    page.facts((("A", ", ".join(document["a"])), ("B", ", ".join(document["b"]))), 4)
    page.blank()
    page.line(document["headline"], "bold")
    page.line(document["basis"], "dim")
    if document["completeness"]:
        page.heading("The records are not equal")
        page.statements([("partly", each) for each in document["completeness"]])
    conclusions_lines(page, document["conclusions"], limit)
    page.heading("Spread")
    page.line(document["spread"]["statement"])
    if document["spread"]["is_within"] is not None:
        rows = document["spread"]["rows"][:1] + [each for each in document["spread"]["rows"][1:] if _is_told(each)]
        _rows(page, [{name: each[name] for name in _SPREAD} for each in rows], limit)
    changes_lines(page, document["changes"], limit)
    _waterfall(page, document["waterfall"])
    for table in document["differences"]:
        rows = [each for each in table["rows"] if _differs(each)]
        if rows:
            page.heading(table["title"])
            _rows(page, rows, limit)
    page.blank()
    page.line("Tables list what differs; --json has all.", "dim")


_SPREAD = (
    "quantity",
    "a_median_s",
    "b_median_s",
    "difference_s",
    "interval_low_s",
    "interval_high_s",
    "is_within_variation",
)


def _is_told(row: Row) -> bool:
    return bool(abs(row["difference_s"]) >= 10 * _SMALL_S)


def changes_page(page: Page, document: Mapping[str, Any], limit: int) -> None:
    """Print what was not the same in two runs."""
    page.title("What was not the same?", "")
    page.facts((("A", ", ".join(document["a"])), ("B", ", ".join(document["b"]))), 4)
    changes_lines(page, document["changes"], limit)


def changes_lines(page: Page, changes: Sequence[Row], limit: int) -> None:
    """Print what was not the same, the weightiest first."""
    page.heading("What was not the same")
    if not changes:
        page.line("Nothing: software, configuration, environment, machines, workers, code and graph are the same.")
        return
    rows = [
        [each["weight"], each["kind"], each["name"], *(_side(each[side]) for side in "ab"), each["notes"] or ""]
        for each in changes[:limit]
    ]
    page.table(["weight", "kind", "name", "A", "B", ""], rows)
    if len(changes) > limit:
        page.line(f"and {plural(len(changes) - limit, 'change')} more; --limit shows them, --json all", "dim")


def _side(value: str | None) -> str:
    return "-" if value is None else inert(value, _VALUE_LIMIT)


def _waterfall(page: Page, rows: Sequence[Row]) -> None:
    """Print the wall time by category: what each adds, and that it sums to the whole."""
    if not rows:
        return
    page.heading("Wall time by what threads did (budget): sums to the difference")
    shown = [each for each in rows if abs(each["difference_s"]) >= _SMALL_S]
    cells = [
        [
            each["category"].replace("_", " "),
            *(seconds_text(each[f"{side}_wall_s"]) for side in "ab"),
            _signed(each["difference_s"]),
            each["meaning"],
        ]
        for each in shown
    ]
    rest = [each for each in rows if each not in shown and (each["a_wall_s"] or each["b_wall_s"])]
    if rest:
        total = [sum(each[name] for each in rest) for name in ("a_wall_s", "b_wall_s", "difference_s")]
        cells.append(
            ["the rest", *map(seconds_text, total[:2]), _signed(total[2]), "less than 1 ms of difference each"]
        )
    total = [sum(each[name] for each in rows) for name in ("a_wall_s", "b_wall_s", "difference_s")]
    cells.append(["wall time", *map(seconds_text, total[:2]), _signed(total[2]), ""])
    page.table(["category", ">A", ">B", ">B - A", "meaning"], cells, wrap=("meaning",))


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{seconds_text(value)}"


def _differs(row: Row) -> bool:
    """Return whether the sides of a row differ by more than what is always there: see `_SMALL_S` and `_SMALL_SHARE`."""
    for name in row:
        if not name.startswith("a_"):
            continue
        before, after = row[name] or 0, row[f"b_{name[2:]}"] or 0
        if name.endswith("_bytes"):
            least = max(_SMALL_BYTES, _SMALL_SHARE * max(before, after))
        else:
            least = _SMALL_S if name.endswith("_s") else 1
        if abs(after - before) >= least:
            return True
    return False


def _rows(page: Page, rows: Sequence[Row], limit: int) -> None:
    names = [name for name in rows[0] if any(each[name] is not None for each in rows) and not _is_repeated(name, rows)]
    numbers = {name for name in names if any(isinstance(each[name], (int, float)) for each in rows)}
    headings = [f">{_heading(name)}" if name in numbers else _heading(name) for name in names]
    page.table(headings, [[_cell(name, each[name]) for name in names] for each in rows[:limit]])
    if len(rows) > limit:
        page.line(f"and {plural(len(rows) - limit, 'row')} more; --limit shows them, --json all", "dim")


def _cell(name: str, value: Any) -> str:
    is_signed = "difference" in name and isinstance(value, (int, float)) and value > 0
    return f"+{cell_text(name, value)}" if is_signed else cell_text(name, value)


def _is_repeated(name: str, rows: Sequence[Row]) -> bool:
    """Return whether a column says what another says already: as many attempts as tasks."""
    tasks = name.replace("attempt", "task")
    return tasks != name and all(each[name] == each.get(tasks) for each in rows)


def _heading(name: str) -> str:
    side, _, rest = name.partition("_")
    return f"{side.upper()} {heading_text(rest)}" if side in ("a", "b") else heading_text(name)
