"""Heat maps: a value by two names, as rows of cells with a step of colour each.

Covers which rows and columns are kept and how strong a cell is.  The question behind each
map is the caller's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from recup.answer_page import cell_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recup.analyse.rows import Document

STEPS = 4
"""Steps of colour to either side of none."""


def heat_map(
    rows: Sequence[Document],
    names: tuple[str, str, str],
    step: Callable[[Document], int],
    *,
    limits: tuple[int, int] = (30, 40),
) -> Document:
    """Return a map of rows that each name a line, a column and a value.

    Lines and columns come in the order in which the rows bring them, up to `limits`; `step` is the
    colour of a cell, from -`STEPS` to `STEPS`.

    Keys: lines (rows: name, cells), columns, line_count, column_count
    """
    line, column, value = names
    lines = list(dict.fromkeys(row[line] for row in rows))
    columns = list(dict.fromkeys(row[column] for row in rows))
    cells = {(row[line], row[column]): row for row in rows}
    shown = columns[: limits[1]]
    return {
        "columns": [_name(each) for each in shown],
        "lines": [
            {"name": _name(each), "cells": [_cell(cells.get((each, other)), value, step) for other in shown]}
            for each in lines[: limits[0]]
        ],
        "line_count": len(lines),
        "column_count": len(columns),
    }


def _name(value: object) -> str:
    return "(not told)" if value is None else str(value)


def _cell(row: Document | None, value: str, step: Callable[[Document], int]) -> Document | None:
    if row is None or row[value] is None:
        return None
    return {"text": cell_text(value, row[value]), "step": step(row), "hint": row.get("hint", "")}


def ratio_step(ratio: float | None) -> int:
    """Return the step of a ratio to what is usual: none within 15 %, the strongest from four times on."""
    if ratio is None or ratio <= 0:
        return 0
    size = abs(math.log2(ratio))
    strength = sum(size > limit for limit in (0.2, 0.5, 1.0, 2.0))
    return strength if ratio > 1 else -strength


def share_step(share: float) -> int:
    """Return the step of a share of the largest value."""
    return sum(share > limit for limit in (0.02, 0.15, 0.4, 0.75))
