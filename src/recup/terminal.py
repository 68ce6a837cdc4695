"""What people read: tables, facts and statements as plain text, at the width of the terminal.

Covers formatting of numbers and times, and printing.  Text that came from a run (keys,
messages, paths) is never interpreted: no markup, no escape sequence, no line break of it
reaches the terminal (`inert`).  It does not cover what is said (`recup.analyse`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PAGE_WIDTH = 110
"""Width of a page that goes to a file or a pipe."""
_UNLIMITED = 100_000
_STYLES = {
    **dict.fromkeys(("ok", "complete", "collected"), "green"),
    **dict.fromkeys(("info",), "cyan"),
    **dict.fromkeys(("nothing", "not asked"), "dim"),
    **dict.fromkeys(("warning", "partly"), "yellow"),
    **dict.fromkeys(("loss", "missing", "problem", "incomplete"), "bold red"),
}
"""Colours of words of judgement."""

Cell = Any
"""A value of a table: text or a number; None prints as nothing."""


# ---------------------------------------------------------------- values as text


def inert(value: object, limit: int | None = None) -> str:
    """Return text in which everything that is not printable is escaped, so it cannot act on a terminal."""
    text = value if isinstance(value, str) else str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count_text(value: float | None) -> str:
    """Return a count with its thousands apart."""
    return "" if value is None else f"{int(value):,}"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: 1 task, 2 tasks, 2 processes."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{count_text(count)} {noun}{ending}"


def bytes_text(value: float | None) -> str:
    """Return an amount of bytes in binary units: 1.4 GiB."""
    if value is None or math.isnan(value):
        return ""
    amount, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(amount) < 1023.95:
            break
        amount, unit = amount / 1024, larger
    return f"{int(amount)} B" if unit == "B" else f"{amount:.1f} {unit}"


def seconds_text(value: float | None) -> str:
    """Return a duration: 310 us, 12.4 ms, 3.21 s, 2 min 05 s, 3 h 07 min."""
    if value is None or math.isnan(value):
        return ""
    size = abs(value)
    if size < 99.95:
        for limit, factor, form in ((0.0009995, 1e6, ".0f} us"), (0.9995, 1e3, ".3g} ms"), (9.995, 1, ".2f} s")):
            if 0 < size < limit:
                return f"{{:{form}".format(value * factor)
        return f"{value:.1f} s" if size else "0 s"
    sign, whole = "-" if value < 0 else "", round(size)
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    return f"{sign}{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment_text(time_ns: int | None) -> str:
    """Return a moment as date and time where the reader is."""
    if time_ns is None:
        return ""
    try:
        return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(time_ns)


def plain_value(value: object) -> object:
    """Return a value of a query as people write it: floats short, lists and structs as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else repr(value)
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(_jsonable(value))
    if isinstance(value, bytes):
        return value.hex()
    return value


def json_text(document: Any) -> str:
    """Return one JSON document: ASCII only, so no text in it can act on a terminal; NaN is null."""
    return json.dumps(_jsonable(document), indent=2, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _jsonable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(each) for each in value]
    return str(value)


# ---------------------------------------------------------------- printing


def print_json(document: Any, stream: IO[str] | None = None) -> None:
    """Write one JSON document and a line end."""
    out = stream or sys.stdout
    out.write(json_text(document) + "\n")


def complain(message: object) -> None:
    """Write one line to stderr: `recup: ...`."""
    with contextlib.suppress(OSError, ValueError):
        _tolerant(sys.stderr).write(f"recup: {inert(message)}\n")


def _tolerant(stream: IO[str]) -> IO[str]:
    """Make a stream write what its encoding lacks as escapes instead of raising."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return stream


class Page:
    """One page on a stream: headings, facts, statements and tables, aligned.

    Parameters
    ----------
    stream : text stream, optional
        stdout by default.
    whole_rows : bool
        Where the stream is no terminal, print rows in full however long they are, for `grep` and
        `awk`; otherwise such a page is as wide as $COLUMNS says, or 110 columns.
    """

    def __init__(self, stream: IO[str] | None = None, *, whole_rows: bool = False):
        from rich.console import Console

        out = _tolerant(stream or sys.stdout)
        width: int | None = None
        if not out.isatty():
            width = _UNLIMITED if whole_rows else _columns_variable() or PAGE_WIDTH
        self.console: Console = Console(
            file=out, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False, legacy_windows=False
        )

    def _print(self, what: Any) -> None:
        """Print one thing; lines that go to a file or a pipe carry no spaces at their end."""
        if self.console.is_terminal:
            self.console.print(what)
            return
        with self.console.capture() as captured:
            self.console.print(what)
        self.console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def blank(self) -> None:
        """Leave a line empty."""
        self._print("")

    def line(self, text: object, style: str = "") -> None:
        """Print a paragraph, wrapped at words."""
        from rich.text import Text

        self._print(Text(inert(text), style=style, overflow="fold"))

    def title(self, text: object, aside: object = "") -> None:
        """Print what the page is about."""
        from rich.text import Text

        self._print(Text.assemble((inert(text), "bold"), (f"  {inert(aside)}" if aside else "", "dim")))

    def heading(self, text: object) -> None:
        """Print the heading of a section, after an empty line."""
        self._print("")
        self.line(text, "bold cyan")

    def facts(self, facts: Iterable[tuple[str, object]], label_width: int = 12) -> None:
        """Print one `label  value` line per fact; long values wrap under themselves; empty ones are left out."""
        self._pairs(((label, value, "dim") for label, value in facts if value not in (None, "")), label_width)

    def statements(self, statements: Iterable[tuple[str, object]], label_width: int = 12) -> None:
        """Print one `level  statement` line each, the level in its colour."""
        self._pairs(((level, text, _STYLES.get(level, "")) for level, text in statements), label_width)

    def _pairs(self, pairs: Iterable[tuple[str, object, str]], label_width: int) -> None:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=label_width)
        grid.add_column(overflow="fold")
        for label, value, style in pairs:
            grid.add_row(Text(inert(label), style=style), Text(inert(value), overflow="fold"))
        if grid.row_count:
            self._print(grid)

    def table(
        self,
        headings: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        wrap: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> None:
        """Print rows under headings.

        A heading that begins with ``>`` is aligned right and never cut, nor are columns named in
        `whole`.  Columns named in `wrap` are wrapped where the terminal is too narrow, others end
        in an ellipsis.  Cells that are known words of judgement (ok, loss, ...) get their colour.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        cells = [["" if value is None else inert(value) for value in row] for row in rows]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1))
        for number, heading in enumerate(headings):
            name = heading.lstrip(">")
            longest = max([len(name), *(len(row[number]) for row in cells)])
            if heading.startswith(">") or longest <= 8 or name in whole:
                justify: Any = "right" if heading.startswith(">") else "left"
                table.add_column(Text(name), justify=justify, no_wrap=True, min_width=longest)
            else:
                table.add_column(Text(name, no_wrap=True, overflow="ellipsis"), overflow="fold")
        for row in cells:
            table.add_row(
                *(
                    Text(
                        cell,
                        style=_STYLES.get(cell, ""),
                        no_wrap=heading not in wrap,
                        overflow=_overflow(heading in wrap),
                    )
                    for heading, cell in zip(headings, row, strict=True)
                )
            )
        self._print(table)

    def code(self, lines: Iterable[str]) -> None:
        """Print lines that keep their own line breaks, indented; what is too long wraps."""
        from rich.padding import Padding
        from rich.text import Text

        for line in lines:
            self._print(Padding(Text(inert(line.replace("\t", "    ")), overflow="fold"), (0, 0, 0, 2)))


def _overflow(is_wrapped: bool) -> Any:
    return "fold" if is_wrapped else "ellipsis"


def _columns_variable() -> int | None:
    text = os.environ.get("COLUMNS", "")
    return max(int(text), 40) if text.isdigit() else None


@contextlib.contextmanager
def progress(description: str) -> Iterator[Callable[[str, float, float], None] | None]:
    """Show a progress bar on stderr while the block works; yields None where stderr is no terminal.

    What is yielded is called with what is being done, how much of it is done, and of how much.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        number = bar.add_task(description, total=None)

        def show(what: str, done: float, total: float) -> None:
            bar.update(number, description=f"{description}: {inert(what, 30)}", completed=done, total=total or None)

        yield show
