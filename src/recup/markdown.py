"""Pages as Markdown, for pull requests, notes and issue trackers.

Covers what `recup.terminal.Page` offers, so that one page function serves both.  Text that
came from a run (keys, messages, paths) is escaped: it makes no markup, no HTML, no link,
and ends no table.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO

from recup.terminal import Cell, inert

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~$&@:-])")


def escaped(value: object) -> str:
    """Return text in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", inert(value)) if isinstance(value, str) else inert(value)


class MarkdownPage:
    """One page on a stream, as Markdown (GitHub's tables).

    Parameters
    ----------
    stream : text stream, optional
        stdout by default.
    """

    def __init__(self, stream: IO[str] | None = None):
        self._stream = stream or sys.stdout

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")

    def blank(self) -> None:
        """Leave a line empty."""
        self._print("")

    def line(self, text: object, style: str = "") -> None:
        """Print a paragraph; ``bold`` ones are strong, ``dim`` ones in italics."""
        mark = {"bold": "**", "dim": "*"}.get(style, "")
        self._print(f"{mark}{escaped(text)}{mark}\n")

    def title(self, text: object, aside: object = "") -> None:
        """Print what the page is about."""
        self._print(f"## {escaped(text)}\n" + (f"\n*{escaped(aside)}*\n" if aside else ""))

    def heading(self, text: object) -> None:
        """Print the heading of a section."""
        self._print(f"\n### {escaped(text)}\n")

    def facts(self, facts: Iterable[tuple[str, object]], label_width: int = 12) -> None:
        """Print one item per fact; empty ones are left out."""
        self.statements((label, value) for label, value in facts if value not in (None, ""))

    def statements(self, statements: Iterable[tuple[str, object]], label_width: int = 12) -> None:
        """Print one item per statement, what it is first."""
        for level, text in statements:
            self._print(f"- **{escaped(level)}** {escaped(text)}")

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, wrap: Sequence[str] = ()) -> None:
        """Print rows under headings; one that begins with ``>`` is aligned right."""
        self._print(_row(heading.removeprefix(">") for heading in headings))
        self._print(_row(("---:" if heading.startswith(">") else "---" for heading in headings), is_raw=True))
        for row in rows:
            self._print(_row("" if value is None else value for value in row))


def _row(cells: Iterable[object], *, is_raw: bool = False) -> str:
    return f"| {' | '.join(str(cell) if is_raw else escaped(cell) for cell in cells)} |"
