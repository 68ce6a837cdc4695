"""One self-contained HTML file: a document, its time lines, and what draws them.

Covers putting the pieces into the templates so that nothing in a run can act in the page:
text is escaped, data stands in scripts that are no scripts, and a Content-Security-Policy
lets only the scripts of this package run, by their digest, and nothing be fetched.  It
does not cover what is said (`recup.report.document`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recup.answer_page import cell_text
from recup.errors import RecupError
from recup.terminal import bytes_text, count_text, moment_text, plural, seconds_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import jinja2
    import markupsafe

    from recup.analyse.rows import Document
    from recup.report.timeline import Timeline
    from recup.store import Run

SCRIPTS = ("uPlot.iife.min.js", "timeline.js", "report.js")
STYLES = ("uPlot.min.css", "report.css")
_SIZE_MARK = "@@recup-size@@"
"""Stands where the page tells its own size; as long as the text that replaces it is made."""
_SIZE_WIDTH = 10


class ReportNotWritten(RecupError):
    """The file of a report cannot be written."""


def write_report(run: Run, path: str | os.PathLike[str]) -> int:
    """Write the report of a run to one HTML file; return its size in bytes.

    Raises
    ------
    ReportNotWritten
        There is no such place, or no room.
    """
    from recup.report.document import report_document
    from recup.report.timeline import timeline

    _check_place(path)
    document, line = run.together((lambda: report_document(run), lambda: timeline(run)))
    return _write(path, page_text("report.html.j2", document, {"timeline": line}, {"strips": document["strips"]}))


def write_comparison(a: Run, b: Run, path: str | os.PathLike[str]) -> int:
    """Write what differs between two runs to one HTML file; return its size in bytes.

    Raises
    ------
    ReportNotWritten
        There is no such place, or no room.
    """
    from recup.report.comparison import comparison_document
    from recup.report.timeline import SIZE_LIMIT_BYTES, timeline

    _check_place(path)
    document = comparison_document(a, b)
    lines = {
        name: timeline(run, size_limit_bytes=SIZE_LIMIT_BYTES // 2)
        for name, run in (("timeline-a", a), ("timeline-b", b))
    }
    same_colours(lines["timeline-a"].about, lines["timeline-b"].about)
    return _write(path, page_text("comparison.html.j2", document, lines, {}))


def same_colours(one: Document, other: Document) -> None:
    """Give prefixes of two time lines one colour each, those of most seconds on both sides first."""
    totals: dict[str, float] = {}
    for about in (one, other):
        for row in about["prefixes"]:
            totals[row["name"]] = totals.get(row["name"], 0.0) + row["total_s"]
    colours = {name: place for place, name in enumerate(sorted(totals, key=lambda each: -totals[each]))}
    for about in (one, other):
        for row in about["prefixes"]:
            row["colour"] = colours[row["name"]]


def page_text(template: str, document: Document, timelines: Mapping[str, Timeline], data: Mapping[str, Any]) -> str:
    """Return a page: `document` through a template, and `data` and time lines for its scripts."""
    scripts = [_asset(name) for name in SCRIPTS]
    tables: dict[str, Document] = {}
    _collect_tables(document, tables)
    told = {
        **{name: script_json(each) for name, each in data.items()},
        **{name: script_json(each.about) for name, each in timelines.items()},
        "tables": script_json(tables),
    }
    text = (
        _environment()
        .get_template(template)
        .render(
            **document,
            policy=content_policy(scripts),
            scripts=scripts,
            styles=[_asset(name) for name in STYLES],
            json_blocks=told,
            data_blocks={f"{name}-data": base64.b64encode(each.data).decode() for name, each in timelines.items()},
            timelines={name: each.about for name, each in timelines.items()},
            size_mark=_SIZE_MARK,
        )
    )
    size = len(text.encode()) - len(_SIZE_MARK) + _SIZE_WIDTH
    return text.replace(_SIZE_MARK, bytes_text(size).rjust(_SIZE_WIDTH))


def script_json(value: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it closes or opens one."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def content_policy(scripts: list[str]) -> str:
    """Return the policy of the page: these scripts run, its own styles hold, and nothing is fetched or sent."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _collect_tables(value: Any, found: dict[str, Document]) -> None:
    if isinstance(value, dict):
        if {"columns", "row_count", "shown_count", "name"} <= value.keys():
            found[value["name"]] = value
            return
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for each in value:
        _collect_tables(each, found)


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("recup.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "seconds": seconds_text,
        "bytes": bytes_text,
        "count": count_text,
        "plural": plural,
        "moment": moment_text,
        "cell": lambda value, name: cell_text(name, value),
        "words": lambda name: str(name).replace("_", " "),
        "percent": _percent,
        "command": _command,
        "prose": _prose,
    }
    return environment


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "< 0.1%"


def _command(words: list[str]) -> str:
    """Return a command as people call it: the interpreter without its directory."""
    first, *rest = map(str, words)
    return " ".join((first.rsplit("/", 1)[-1], *rest))


def _prose(text: str) -> markupsafe.Markup:
    """Return a sentence as HTML: escaped, and what stands between back-quotes as code."""
    import markupsafe

    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return markupsafe.escape(text)
    shown = (
        markupsafe.Markup("<code>{}</code>").format(piece) if number % 2 else markupsafe.escape(piece)
        for number, piece in enumerate(pieces)
    )
    return markupsafe.Markup("").join(shown)


def _asset(name: str) -> str:
    return (files("recup.report") / "assets" / name).read_text(encoding="utf-8")


def _check_place(path: str | os.PathLike[str]) -> None:
    """Raise before a minute of work where a file cannot be made."""
    place = Path(path)
    if place.is_dir():
        raise ReportNotWritten(f"{place} is a directory. Name a file with -o.")
    if not os.access(place if place.exists() else place.absolute().parent, os.W_OK):
        raise ReportNotWritten(f"{place} cannot be written: no such directory, or no right to. Name another with -o.")


def _write(path: str | os.PathLike[str], text: str) -> int:
    data = text.encode()
    try:
        Path(path).write_bytes(data)
    except OSError as reason:
        raise ReportNotWritten(f"{path} cannot be written: {reason.strerror}. Name another place with -o.") from reason
    return len(data)
