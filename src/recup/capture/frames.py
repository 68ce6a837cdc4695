"""Where a submission comes from: the Dask call, the user's frames and their source text.

Covers walking the stack of the submitting thread, telling library frames from the user's,
and finding the source of a frame (function, notebook cell, or the lines around a
statement).  What a code object tells is looked up once and remembered while it lives, so a
loop that submits from one line costs a few microseconds a time.

It does not read values: of all local variables only those are looked at that hold the
collections of the running ``compute`` or ``persist`` of Dask, and the ``self`` of an
xarray object that is being computed.  A file edited after it was imported gives the lines
it holds now, as tracebacks do.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import linecache
import os
import re
import sys
import weakref
from types import CodeType, FrameType
from typing import Any, NamedTuple

from recup.capture.redaction import redacted_source
from recup.schema import Source

FRAMES_LIMIT = 20
"""User frames recorded of one submission: the outermost and the innermost ten."""
_STACK_LIMIT = 2_000
_LINE_LIMIT = 500
_TEXT_LIMIT = 100_000
_BLOCK_LINES_LIMIT = 3_000
_STATEMENT_MARGIN = 5

USER, CALL, MACHINERY, SELF = "user", "call", "machinery", "self"

_CALL_ROOTS = frozenset(
    {
        "dask", "distributed", "dask_expr", "dask_array", "dask_ml", "xarray", "tlz", "toolz", "cytoolz", "numpy",
        "pandas", "contextlib", "functools",
    }
)  # fmt: skip
"""Packages a user enters to have something computed; the outermost of their frames is the call."""
_MACHINERY_ROOTS = frozenset(
    {
        "asyncio", "concurrent", "threading", "tornado", "uvloop", "selectors", "multiprocessing", "runpy", "importlib",
        "IPython", "ipykernel", "jupyter_client", "traitlets", "zmq", "nbclient", "nest_asyncio", "nest_asyncio2",
        "anyio", "pytest", "_pytest", "pluggy", "execnet", "xdist", "pytest_timeout", "debugpy", "pydevd",
        "_pydevd_bundle", "bdb", "pdb", "click", "coiled", "prefect",
    }
)  # fmt: skip
"""Packages that run other people's code: neither the user's frame nor the call."""
_LAUNCHER_PATH = re.compile(
    r"^<frozen |[/\\]ipykernel_launcher\.py$|[/\\](?:pytest|ipykernel|coverage|debugpy|IPython)[/\\]__main__\.py$"
)
_WRAPPER_NAME = re.compile(r"_?(?:inner|wrap|wrapped|wrapper|_?call_?_)_?$|<|__call__$")
_CELL_PATH = re.compile(r"<ipython-input|[/\\]ipykernel_\d+[/\\]|__marimo__cell_")


class _Code:
    """What a code object tells, kept no longer than the code object itself."""

    __slots__ = ("block", "function", "is_wrapper", "kind", "lines", "locals_name", "module", "path", "reference")

    def __init__(self, frame: FrameType):
        code = frame.f_code
        name = frame.f_globals.get("__name__")
        self.module = name if isinstance(name, str) else ""
        self.reference = weakref.ref(code, functools.partial(_forget, _codes, id(code)))
        self.path = code.co_filename
        self.function = code.co_qualname
        self.kind = _kind(self.module, code)
        self.is_wrapper = bool(_WRAPPER_NAME.match(code.co_name))
        self.locals_name = _HOLDERS.get((self.module, code.co_name))
        self.lines: dict[int, tuple[str | None, Source | None]] = {}
        self.block: Source | None = None

    def text(self, frame: FrameType, line: int) -> tuple[str | None, Source | None]:
        """Return the text of a line and the source that encloses it, looked up once a line."""
        found = self.lines.get(line)
        if found is None:
            found = self.lines[line] = self._text(frame, line)
        return found

    def _text(self, frame: FrameType, line: int) -> tuple[str | None, Source | None]:
        code = frame.f_code
        try:
            lines = linecache.getlines(code.co_filename, frame.f_globals)
            if not 0 < line <= len(lines):
                return None, None
            # The line is cut before it is searched: a generated one may be megabytes long.
            line_text = redacted_source(lines[line - 1].strip()[:_LINE_LIMIT])
            if code.co_name == "<module>" and not _CELL_PATH.search(code.co_filename):
                first = max(1, line - _STATEMENT_MARGIN)
                return line_text, _source("frame", code, first, lines[first - 1 : line + _STATEMENT_MARGIN])
            if self.block is None:
                self.block = _enclosing_source(code, lines)
            return line_text, self.block
        except Exception:  # noqa: BLE001 - no text is better than a guess
            return None, None


class UserFrame(NamedTuple):
    """One user frame: its depth (0 is outermost), its place and the text of that place."""

    depth: int
    path: str
    line: int
    function: str
    line_text: str | None
    source: Source | None


class CallSite(NamedTuple):
    """Where a submission comes from.

    `collections` are the user's own objects: whoever asks for a call site must let go of it
    before returning to the user.
    """

    call: str | None
    frames: list[UserFrame]
    collections: list[Any]
    entered: Any


_codes: dict[int, _Code] = {}


def _forget(codes: dict[int, _Code], number: int, _: Any) -> None:
    codes.pop(number, None)  # an argument, since globals may be gone when the interpreter ends


_HOLDERS = {
    ("dask.base", "compute"): "collections",
    ("dask.base", "persist"): "collections",
    ("distributed.client", "compute"): "variables",
    ("distributed.client", "persist"): "collections",
    ("distributed.client", "get"): "",
}
"""Functions of Dask that submit collections, and the local variable that holds them."""


def call_site(frame: FrameType | None, with_source: bool) -> CallSite:
    """Return where the stack that ends in this frame enters Dask.

    The call is the outermost frame of Dask or xarray that the innermost user frame leads
    to.  With `with_source` false the frames come without their text.
    """
    users: list[tuple[_Code, FrameType]] = []
    calls: list[tuple[_Code, FrameType]] = []
    is_inside = True
    for _ in range(_STACK_LIMIT):
        if frame is None:
            break
        code = frame.f_code
        known = _codes.get(id(code))
        if known is None or known.reference() is not code:
            known = _codes[id(code)] = _Code(frame)
        if known.kind is CALL:
            if is_inside:
                calls.append((known, frame))
        elif known.kind is not SELF:
            is_inside = False
            if known.kind is USER:
                users.append((known, frame))
        frame = frame.f_back
    users.reverse()
    return CallSite(_call_name(calls), _user_frames(users, with_source), _collections(calls), _entered(calls))


def _kind(module: str, code: CodeType) -> str:
    root = module.partition(".")[0]
    if root == "recup":
        return SELF
    if root in _CALL_ROOTS:
        return CALL
    if root in _MACHINERY_ROOTS or _LAUNCHER_PATH.search(code.co_filename):
        return MACHINERY
    if module == "__main__" and os.path.dirname(code.co_filename) == os.path.dirname(sys.executable):
        return MACHINERY  # the few lines of a console script
    return USER


def _call_name(calls: list[tuple[_Code, FrameType]]) -> str | None:
    for known, frame in reversed(calls):
        if not known.is_wrapper:
            return str(frame.f_code.co_name)
    return str(calls[-1][1].f_code.co_name) if calls else None


def _collections(calls: list[tuple[_Code, FrameType]]) -> list[Any]:
    """Return the collections being submitted, when the call next to the client holds them.

    Only the function that made the submission is asked: a ``compute`` further out may be
    about other collections.
    """
    for position, (known, frame) in enumerate(calls[:2]):
        if known.locals_name is None or (known.locals_name == "" and position):
            return []
        if known.locals_name:
            held = frame.f_locals.get(known.locals_name)
            found = list(held) if isinstance(held, (list, tuple, set, frozenset)) else []
            return _before_dask_expr(calls[position:]) or found if len(found) == 1 else found
    return []


def _before_dask_expr(calls: list[tuple[_Code, FrameType]]) -> list[Any]:
    """Return the dataframe as the user made it: the package dask_expr (until 2025.1) hands on an optimized one."""
    for known, frame in calls[1:4]:
        if known.module == "dask_expr._collection" and frame.f_code.co_name in ("compute", "persist"):
            return [frame.f_locals["self"]]
    return []


def _entered(calls: list[tuple[_Code, FrameType]]) -> Any:
    """Return the xarray object whose method is the outermost call, or None."""
    for known, frame in reversed(calls):
        if known.module.startswith("xarray."):
            found = frame.f_locals.get("self")
            if type(found).__module__.startswith("xarray."):
                return found
    return None


def _user_frames(users: list[tuple[_Code, FrameType]], with_source: bool) -> list[UserFrame]:
    numbered = list(enumerate(users))
    if len(numbered) > FRAMES_LIMIT:
        numbered = numbered[: FRAMES_LIMIT // 2] + numbered[-FRAMES_LIMIT // 2 :]
    found = []
    for depth, (known, frame) in numbered:
        line = frame.f_lineno or 0
        line_text, source = known.text(frame, line) if with_source else (None, None)
        found.append(UserFrame(depth, known.path, line, known.function, line_text, source))
    return found


def _enclosing_source(code: CodeType, lines: list[str]) -> Source:
    """Return the whole cell of code in a notebook, else the function."""
    if _CELL_PATH.search(code.co_filename):
        return _source("cell", code, 1, lines)
    first = code.co_firstlineno
    return _source("frame", code, first, inspect.getblock(lines[first - 1 : first - 1 + _BLOCK_LINES_LIMIT]))


def _source(kind: str, code: CodeType, first_line: int, lines: list[str]) -> Source:
    text = redacted_source("".join(lines))
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return Source(digest, kind, code.co_filename, first_line, text if len(text) <= _TEXT_LIMIT else None)
