"""Answers of queries as plain rows, for documents that are printed or sent as JSON.

Covers small answers: each row becomes a dict.  Large ones stay relations or Arrow tables.
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
