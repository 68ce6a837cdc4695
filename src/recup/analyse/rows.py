"""Answers of queries as plain rows, for documents that are printed or sent as JSON.

Covers small answers: each row becomes a dict.  Large ones stay relations or Arrow tables.
Also the order of names, by which ties are settled, and what is found once of a run.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from recup.store import Run

Document = dict[str, Any]
Found = TypeVar("Found")


def once_per_run(find: Callable[[Run], Found]) -> Callable[[Run], Found]:
    """Keep what a function found of a run for as long as the run is there; several answers stand on it."""
    kept: weakref.WeakKeyDictionary[Run, Found] = weakref.WeakKeyDictionary()

    @functools.wraps(find)
    def found(run: Run) -> Found:
        if run not in kept:
            kept[run] = find(run)
        return kept[run]

    return found


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


def by_code(code: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return rows in the order of their codes, which are from 0 on; rows of a code stay in their order."""
    import numpy as np

    # Short integers are sorted without comparing them, which takes a tenth of the time.
    short = np.min_scalar_type(int(code.max(initial=0)))
    return np.argsort(code.astype(short, copy=False), kind="stable")
