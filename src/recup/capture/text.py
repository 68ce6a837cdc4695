"""User objects as text, at a bounded size and without ever raising."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TEXT_LIMIT = 65_536
_DEPTH_LIMIT = 8
_ITEM_LIMIT = 2_000


def json_text(value: Any) -> str:
    """Return the value as JSON; what JSON cannot say is named by its type, long parts are cut.

    Only sizes, names and plain values come out: an unknown object's repr may hold data, so
    it is never called.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except Exception:  # noqa: BLE001 - sets, keys that are no strings, cycles, odd objects
        try:
            text = json.dumps(plain(value), allow_nan=False)
        except Exception as reason:  # noqa: BLE001
            text = json.dumps(f"<{type(value).__name__}: {type(reason).__name__}>")
    if len(text) > _TEXT_LIMIT:
        text = json.dumps({"cut": True, "characters": len(text), "begins": text[: _TEXT_LIMIT - 200]})
    return text


def plain(value: Any, depth: int = 0) -> Any:
    """Return the value as JSON types only."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if value - value == 0 else str(value)
    if depth >= _DEPTH_LIMIT:
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {_name(key): plain(each, depth + 1) for key, each in _first(value.items())}
    if isinstance(value, (list, tuple)):
        return [plain(each, depth + 1) for each in _first(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(each, depth + 1) for each in _first(value)), key=str)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return plain(float(value), depth + 1)
    return f"<{type(value).__name__}>"


def _name(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    return (
        json.dumps(plain(key)) if isinstance(key, (tuple, int, float, bool, type(None))) else f"<{type(key).__name__}>"
    )


def _first(values: Any) -> Any:
    for count, each in enumerate(values):
        if count >= _ITEM_LIMIT:
            return
        yield each
