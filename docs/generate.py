"""The reference pages: commands, data dictionary and map, written from the code itself.

Covers turning what the code says of itself into Markdown, which the pages of this
directory include.  It holds no fact of its own, so nothing here can go stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from recup.analyse.coverage import CELLS, STATES, STEPS
from recup.cli import main
from recup.dictionary import describe
from recup.questions import QUESTIONS

HELP_WIDTH = 88


def commands_page() -> str:
    """Return one section per verb of the command line: its help, as `--help` prints it."""
    context = click.Context(main, info_name="recup")
    parts = []
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context, max_content_width=HELP_WIDTH)
        inner.terminal_width = HELP_WIDTH
        parts.append(f"## recup {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def questions_page() -> str:
    """Return one row per question to a run."""
    rows = [(each.asks, f"`recup {each.verb}`", each.covers) for each in QUESTIONS]
    return _table(("question", "command", "what the answer holds"), rows) + "\n"


def dictionary_page() -> str:
    """Return one section per table and view with a row per column."""
    parts = []
    entries = sorted(describe(), key=lambda each: each["kind"] == "view")
    for heading, kind in (("Tables", "table"), ("Views", "view")):
        parts.append(f"## {heading}\n")
        for each in (entry for entry in entries if entry["kind"] == kind):
            step = f" *Step {each['step']}.*" if each["step"] else ""
            rows = [
                (
                    f"`{c['name']}`",
                    f"`{c['type']}`" if c["type"] else "",
                    c["unit"] or "",
                    c["meaning"],
                    c["null"] or "",
                )
                for c in each["columns"]
            ]
            kept = [place for place in range(5) if place in (0, 3) or any(row[place] for row in rows)]
            headings = ("column", "type", "unit", "meaning", "null says")
            table = _table([headings[p] for p in kept], [[row[p] for p in kept] for row in rows])
            parts.append(f"### {each['name']}\n\n{_escaped(each['meaning'])}{step}\n\n{table}\n")
    return "\n".join(parts)


def map_page() -> str:
    """Return one section per step with a row per line of the map."""
    parts = []
    for step, (name, nature, location) in STEPS.items():
        rows = [
            (cell.level, cell.metadata, ", ".join(f"`{table}`" for table in cell.tables))
            for cell in CELLS
            if cell.step == step
        ]
        table = _table(("level", "what", "tables"), rows)
        parts.append(f"## Step {step}: {name}\n\n*{nature}*; {location}\n\n{table}\n")
    parts.append("## What the states mean\n")
    parts.append(_table(("state", "meaning"), STATES.items()) + "\n")
    return "\n".join(parts)


PAGES = {"commands": commands_page, "questions": questions_page, "dictionary": dictionary_page, "map": map_page}


def write_pages(directory: Path) -> None:
    """Write every page; a page that stays the same is left alone, so that builds stay quick."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        file, text = directory / f"{name}.md", page()
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def _escaped(text: str) -> str:
    """Return text in which Markdown sees no markup; what stands between back-quotes stays code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_<>|\[\]])", r"\\\1", p) for p in pieces)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
