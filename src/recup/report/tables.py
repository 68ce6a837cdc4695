"""Tables as the page gets them: columns with values and the text people read, rows capped and counted.

Covers any Arrow table or list of rows.  Values stay what they are, for sorting and for CSV;
where the text differs from the value (seconds, bytes, shares), it comes along.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from recup.answer_page import cell_text, heading_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from recup.analyse.rows import Document

ROW_LIMIT = 500
"""Rows of one table in the file."""
_TEXT_LIMIT = 2_000
"""Characters of one text in the file; a traceback is of that size."""


def shown_table(
    name: str, title: str, rows: pa.Table | Sequence[Mapping[str, Any]], limit: int = ROW_LIMIT
) -> Document:
    """Return a table for the page; columns without any value are left out.

    Keys: name, title, row_count, shown_count, columns (rows: name, heading, is_number, values, texts or null)
    """
    if isinstance(rows, (list, tuple)):
        count = len(rows)
        names = list(rows[0]) if rows else []
        columns = {each: [row[each] for row in rows[:limit]] for each in names}
    else:
        count = rows.num_rows  # type: ignore[union-attr]
        columns = rows.slice(0, limit).to_pydict()  # type: ignore[union-attr]
    told = [_column(each, values) for each, values in columns.items() if any(value is not None for value in values)]
    return {
        "name": name,
        "title": title,
        "row_count": count,
        "shown_count": min(count, limit),
        "columns": told,
    }


def _column(name: str, values: Sequence[Any]) -> Document:
    plain = [plain_cell(value) for value in values]
    is_number = any(isinstance(value, (int, float)) and not isinstance(value, bool) for value in plain)
    texts = [value if isinstance(value, str) else cell_text(name, value) for value in plain]
    return {
        "name": name,
        "heading": heading_text(name),
        "is_number": is_number,
        "values": plain,
        "texts": None if texts == plain else texts,
    }


def plain_cell(value: Any) -> str | int | float | bool | None:
    """Return a value as JSON holds it: what is not finite is null, what is no scalar is text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _TEXT_LIMIT else f"{text[: _TEXT_LIMIT - 1]}…"
