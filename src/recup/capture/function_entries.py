"""What one entry of Yappi's statistics says: counts, whose function it is, and the file other tools read.

Covers the tuples that Yappi's own module of C hands out, which have no names there.  It does
not cover when they are read, nor for whom (`recup.capture.function_profile`).
"""

from __future__ import annotations

import os
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_ITERABLE_COROUTINE
from pathlib import Path
from typing import Any

_COROUTINE = CO_COROUTINE | CO_ASYNC_GENERATOR | CO_ITERABLE_COROUTINE
_OWN_FILES = (str(Path(__file__).parents[1]) + os.sep, "<recup ")
_OWN_MODULES = {"yappi", "_yappi", "_contextvars"}

Entry = tuple[Any, ...]
COUNT, PRIMITIVE, BUILTIN, TOTAL, OWN, INDEX, CHILDREN, CONTEXT, TAG, CODE = 3, 4, 5, 6, 7, 8, 9, 10, 12, 13
"""Places in an entry."""
Values = tuple[int, int, float, float]
NOTHING: Values = (0, 0, 0.0, 0.0)
"""Calls, calls that were no recursion, own and total seconds."""


def called_functions(entries: list[Entry]) -> tuple[set[int], dict[int, Values]]:
    """Return the indices of recup's own functions, and what the others called, by index.

    Recup's own are those in its files, and what those call alone that never call a program's
    code.  Around a task recup calls built-in functions too: those have no caller here, for
    what calls them was entered before the hook was in.
    """
    own = {entry[INDEX] for entry in entries if _is_own(entry)}
    closed = {entry[INDEX] for entry in entries if _is_own(entry) and _calls_no_program(entry)}
    while True:
        by_own: dict[int, int] = {}
        for entry in entries:
            if entry[INDEX] in closed:
                for index, count, *_ in entry[CHILDREN]:
                    by_own[index] = by_own.get(index, 0) + count
        more = {e[INDEX] for e in entries if by_own.get(e[INDEX], -1) >= e[COUNT] and not e[BUILTIN]} - closed
        if not more:
            break
        own |= more
        closed |= more
    found: dict[int, list[float]] = {}
    for entry in entries:
        if entry[INDEX] not in own:
            for index, count, primitive, total, self_s in entry[CHILDREN]:
                sums = found.setdefault(index, [0, 0, 0.0, 0.0])
                for place, value in enumerate((count, primitive, self_s, total)):
                    sums[place] += value
    return own, {index: (int(a), int(b), c, d) for index, (a, b, c, d) in found.items()}


def _is_own(entry: Entry) -> bool:
    return entry[1].startswith(_OWN_FILES) or entry[1] in _OWN_MODULES or os.path.basename(entry[1]) == "yappi.py"


def _calls_no_program(entry: Entry) -> bool:
    return os.path.basename(entry[1]) in ("sampling.py", "spool.py") or "meet_thread" in name_of(entry)


def name_of(entry: Entry) -> str:
    """Return the qualified name; a built-in function with its module, as Python shows it."""
    code = entry[CODE]
    if not entry[BUILTIN]:
        return str(getattr(code, "co_qualname", entry[0]))
    name = str(getattr(code, "__qualname__", entry[0]))
    return name if entry[1] == "builtins" else f"{entry[1]}.{name}"


def is_coroutine(entry: Entry) -> bool:
    """Whether the function of an entry is a coroutine or an asynchronous generator."""
    return bool(getattr(entry[CODE], "co_flags", 0) & _COROUTINE)


def statistics_of(yappi: Any, clock: str, entries: list[Entry]) -> Any:
    """Return entries as Yappi's own class, as its `get_func_stats` does from what it reads itself."""
    statistics = yappi.YFuncStats()
    statistics._clock_type = clock
    for entry in entries:
        statistics._enumerator((*entry[:CHILDREN], list(entry[CHILDREN]), *entry[CHILDREN + 1 :]))
    for each in statistics:
        children = yappi.YChildFuncStats()
        for child in each.children:
            callee = statistics[child[0]]
            if callee is not None:
                names = (callee.builtin, callee.full_name, callee.module, callee.lineno, callee.name)
                children.append(yappi.YChildFuncStat((*child, callee.ttot / callee.ncall, *names)))
        each.children = children
    statistics.sort("totaltime", "desc")
    return statistics
