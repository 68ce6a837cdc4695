"""What a report of two runs says: `recup.compare`'s comparison, both headers, and their time lines' places.

Nothing is concluded here.  How it looks is the template's (`recup.report.html`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from recup.analyse.overview import overview
from recup.analyse.rows import Document, rows_of
from recup.answer_page import cell_text
from recup.compare.comparison import Comparison, comparison
from recup.report.document import findings
from recup.report.tables import shown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recup.store import Run

_LABEL, _WIDTH, _ROW, _BAR, _VALUE = 180.0, 620.0, 26.0, 16.0, 90.0
"""Of the waterfall, in units of the picture."""
_SEEN_S_SHARE = 1e-3
"""Part of the longer wall time below which a category's difference is not drawn."""


def comparison_document(a: Run, b: Run) -> Document:
    """Return everything a report of two runs says, but their time lines.

    Keys: sides (two: name, run, completeness, numbers), headline, basis, notes, changes, waterfall, findings,
    differences, spread
    """
    found = comparison([a], [b])
    return {
        "sides": [_side("A", a), _side("B", b)],
        "headline": found.headline,
        "basis": found.basis,
        "notes": list(found.completeness),
        "changes": shown_table("changes", "What was not the same, what weighs most first", found.changes),
        "waterfall": waterfall(found.waterfall.to_pylist(), found.wall_a_s, found.wall_b_s),
        "waterfall_table": shown_table("waterfall", "Wall time by category of the budget", found.waterfall),
        "findings": findings(found.conclusions),
        "differences": [shown_table(f"difference-{each.name}", each.title, each.rows) for each in found.differences],
        "spread": _spread(found),
    }


def _side(name: str, run: Run) -> Document:
    page = overview(run)
    (numbers,) = rows_of(run, "from run_summary")
    return {
        "name": name,
        "run": page["run"],
        "software": page["software"],
        "completeness": page["completeness"],
        "numbers": numbers,
    }


def _spread(found: Comparison) -> Document:
    return {
        "statement": found.spread.statement,
        "is_within": found.spread.is_within,
        "table": shown_table("spread", "What repeats say", found.spread.rows),
    }


def waterfall(rows: Sequence[Document], wall_a_s: float | None, wall_b_s: float | None) -> Document | None:
    """Return the way from one wall time to the other as bars, each beginning where the one before ends.

    Keys: width, height, bars (rows: name, meaning, kind, text, x, y, width, height, text_x, link_x)
    """
    if wall_a_s is None or wall_b_s is None:
        return None
    longest = max(wall_a_s, wall_b_s)
    told = [row for row in rows if abs(row["difference_s"] or 0.0) > _SEEN_S_SHARE * longest]
    told.sort(key=lambda row: -row["difference_s"])
    marks, at = [wall_a_s], wall_a_s
    for row in told:
        at += row["difference_s"]
        marks.append(at)
    top = max([*marks, wall_b_s]) or 1.0
    per_s = _WIDTH / top
    bars = [_whole("A", wall_a_s, per_s)]
    for row, ends in zip(told, itertools.pairwise(marks), strict=True):
        is_more = ends[1] > ends[0]
        words = {
            "name": row["category"].replace("_", " "),
            "meaning": row.get("meaning") or "",
            "kind": "more" if is_more else "less",
            "text": f"{'+' if is_more else '-'}{cell_text('difference_s', abs(row['difference_s']))}",
        }
        bars.append(_bar(words, ends, per_s))
    bars.append(_whole("B", wall_b_s, per_s))
    for place, bar in enumerate(bars):
        bar["y"] = place * _ROW
    return {"width": _LABEL + _WIDTH + _VALUE, "height": len(bars) * _ROW, "label": _LABEL, "bars": bars}


def _whole(side: str, wall_s: float, per_s: float) -> Document:
    words = {"name": side, "meaning": f"wall time of {side}", "kind": "whole", "text": cell_text("wall_s", wall_s)}
    return _bar(words, (0.0, wall_s), per_s)


def _bar(told: dict[str, Any], ends: tuple[float, float], per_s: float) -> Document:
    low, high = sorted(ends)
    return {
        **told,
        "x": _LABEL + low * per_s,
        "width": max((high - low) * per_s, 1.0),
        "height": _BAR,
        "text_x": _LABEL + high * per_s + 6,
        "link_x": _LABEL + ends[1] * per_s,
    }
