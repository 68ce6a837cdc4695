"""Events that name a task: which payloads hold its key, as a value and whole.

Part of `recup.analyse.story`.  A payload may be anything a user logs: that a key's text
stands somewhere in it (in a number, an address, a sentence) says nothing.  A key counts
where it is a whole value: a text anywhere but under a name that never holds a key, a
number only where keys stand (`key`, `keys`, lists of tasks), a tuple as a list.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from recup.analyse.rows import Document, rows_of

if TYPE_CHECKING:
    from recup.store import Run

SHOWN = 100
"""Events of a task that are told one by one at most."""

KEY_TYPES_SQL = """
select distinct key_type from keys where key = ?
"""

EVENTS_SQL = """
select server_id, time_ns, topic, action, payload
from raw.events
where contains(payload, ?)
order by time_ns
"""

_NEVER_KEYS = frozenset(
    ("action", "client", "function", "name", "op", "prev-status", "reason", "status", "stimulus_id", "topic", "type", "worker")
)  # fmt: skip
"""Names in Dask's events whose texts are words, addresses or causes."""


def events_naming(run: Run, key: str) -> list[Document]:
    """Return the events whose payload holds the key as a whole value, in order of time."""
    found: dict[tuple[Any, ...], Document] = {}
    for (key_type,) in run.sql(KEY_TYPES_SQL, [key]).fetchall():
        value = _value(key, key_type)
        if value is None:
            continue
        for row in rows_of(run, EVENTS_SQL, [json.dumps(value)]):
            if _holds(_read(row["payload"]), value):
                found[tuple(row.values())] = row
    return sorted(found.values(), key=lambda row: int(row["time_ns"]))


def _value(key: str, key_type: str) -> Any:
    """Return a key as it stands in JSON; None: it cannot be told there."""
    if key_type == "str":
        return key
    try:
        value = ast.literal_eval(key)
        return json.loads(json.dumps(value)) if isinstance(value, (int, float, tuple)) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _read(payload: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _holds(part: Any, value: Any, name: str = "", is_listed: bool = False) -> bool:
    """Whether the value is this part of a payload, or in it; `name` is what it stands under."""
    if type(part) is type(value) and part == value:
        if isinstance(value, str):
            return name not in _NEVER_KEYS
        if isinstance(value, list):
            return True
        return name == "key" or (is_listed and name.endswith(("keys", "tasks")))
    if isinstance(part, dict):
        return any(_holds(each, value, under) for under, each in part.items())
    if isinstance(part, list):
        return any(_holds(each, value, name, True) for each in part)
    return False
