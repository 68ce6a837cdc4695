"""The data dictionary: every table and view with the meaning of its columns.

Covers what `recup schema` prints.  Tables come from `recup.schema`, with the columns they
get when a run is opened; views from `recup.fuse`.  No run is needed.
"""

from __future__ import annotations

import difflib
from typing import Any

from recup.errors import BadQuery
from recup.fuse import VIEWS
from recup.run_tables import SPOOL_COLUMNS
from recup.schema import TABLES
from recup.spool_files import KEY_COLUMNS
from recup.storage import SQL_TYPES, documented_columns


def describe(name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per table and view, or the one that is named.

    Columns: name, kind (table or view), step (of a table), meaning, columns; of these each
    name, type (of a table), unit, meaning, null (what a null says; empty: there is none).

    Raises
    ------
    BadQuery
        No table or view has that name.
    """
    entries = _tables() + _views()
    if name is None:
        return entries
    named = [each for each in entries if each["name"] == name]
    if not named:
        close = difflib.get_close_matches(name, [each["name"] for each in entries], 3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "`recup schema` lists them."
        raise BadQuery(f"There is no table or view {name!r}. {hint}")
    return named


def _tables() -> list[dict[str, Any]]:
    return [
        {
            "name": table.name,
            "kind": "table",
            "step": table.step,
            "meaning": table.meaning,
            "columns": [
                {"name": name, "type": sql_type, "unit": column.unit, "meaning": column.meaning, "null": column.null}
                for name, sql_type, column in documented_columns(table.name)
            ],
        }
        for table in TABLES.values()
    ] + [
        {
            "name": "keys",
            "kind": "table",
            "step": None,
            "meaning": "One row per distinct key of the run.",
            "columns": [
                {"name": c.name, "type": SQL_TYPES[c.kind], "unit": c.unit, "meaning": c.meaning, "null": c.null}
                for c in KEY_COLUMNS
            ],
        },
        {
            "name": "spools",
            "kind": "table",
            "step": None,
            "meaning": "One row per spool directory: what its server said and what was found.",
            "columns": [
                {
                    "name": c.name,
                    "type": _SQL_TYPES[str(c.arrow_type)],
                    "unit": c.unit,
                    "meaning": c.meaning,
                    "null": "",
                }
                for c in SPOOL_COLUMNS
            ],
        },
    ]


_SQL_TYPES = {"string": "varchar", "int64": "bigint", "bool": "boolean"}


def _views() -> list[dict[str, Any]]:
    return [
        {
            "name": view.name,
            "kind": "view",
            "step": None,
            "meaning": view.meaning,
            "columns": [
                {"name": c.name, "type": None, "unit": c.unit, "meaning": c.meaning, "null": c.null}
                for c in view.columns
            ],
        }
        for view in VIEWS
        if not view.is_inner
    ]
