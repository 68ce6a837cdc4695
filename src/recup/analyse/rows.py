"""Answers of queries as plain rows, for documents that are printed or sent as JSON.

Covers small answers: each row becomes a dict.  Large ones stay relations or Arrow tables.
Also the order of names, by which ties are settled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recup.store import Run

Document = dict[str, Any]


def rows_of(run: Run, query: str, parameters: Sequence[Any] | None = None) -> list[Document]:
    """Return the rows of a query, each as a dict by column name.

    Raises
    ------
    BadQuery
        The query cannot be understood.
    """
    relation = run.sql(query, parameters)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def ranks(names: Sequence[str | None]) -> list[int]:
    """Return the place of each name in their order, None last: of equals the same one is told each time."""
    found = [0] * len(names)
    in_order = sorted(range(len(names)), key=lambda each: (names[each] is None, names[each] or ""))
    for place, each in enumerate(in_order):
        found[each] = place
    return found
