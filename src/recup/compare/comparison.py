"""A whole comparison of two runs, or of two groups of repeats, as one document.

Covers bringing the parts together; each part is a module of this package.  It does not
cover how a comparison is shown (`recup.compare_page`, the report).

A is what B is held against: differences are B less A, so what B lost is positive.  Of
repeats, tables tell the run in the middle by wall time (the mean of the two in the middle
where their number is even), so that they sum to the difference of the medians.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recup.analyse.answers import AnswerTable, Conclusion
from recup.analyse.budget import CATEGORIES
from recup.compare.causes import causes, worked_s
from recup.compare.changes import changes
from recup.compare.differences import comparable_categories, difference_tables, middle_runs, waterfall
from recup.compare.measures import measure
from recup.compare.records import records
from recup.compare.spread import spread_table, wall_statement, worked_statement
from recup.errors import BadQuery
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.analyse.rows import Document
    from recup.compare.measures import Measures
    from recup.compare.records import Records
    from recup.store import Run


STARTING_SHARE = 0.25
"""Share of the difference from which on it is said that it passed before or beside the work."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """How far runs of one side differ among themselves, and what follows for the difference.

    Attributes
    ----------
    statement : str
        One sentence: within normal variation, outside it, or unknown and why.
    is_within : bool or None
        Whether the wall times differ no more than repeats do; None where that is not known.
    low_s, high_s : float or None
        Interval of the difference of the medians (bootstrap); None with one run on a side.
    rows : Arrow table
        One row per quantity: side medians, lowest, highest, interval of the difference.  Beside wall
        time and the categories, ``time worked``: without what passed while workers were not there or
        nothing was submitted.
    """

    statement: str
    is_within: bool | None
    low_s: float | None
    high_s: float | None
    rows: pa.Table


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Why B is not as A.

    Attributes
    ----------
    a_ids, b_ids : tuple of str
        The runs of each side.
    headline : str
        The answer in one sentence.
    wall_a_s, wall_b_s : float or None
        Wall time of each side (median of repeats); None where a record is empty.
    completeness : tuple of str
        What one record has and the other has not, and what is therefore not compared; said first.
        Empty: the records are equal in this.
    changes : Arrow table
        What was not the same before the first task ran.  Columns: kind, name, a, b, weight, notes.
    waterfall : Arrow table
        One row per category of the budget; difference_s sums to wall_b_s - wall_a_s.
        Columns: category, meaning, a_wall_s, b_wall_s, difference_s, difference_share.
    differences : tuple of AnswerTable
        ``prefixes``, ``workers``, ``transfers``, ``steals``, ``io``, ``memory``; what is recorded
        on one side only is left out.
    conclusions : tuple of Conclusion
        Causes, the most telling first; empty where nothing is found.
    spread : Spread
        What repeats say.
    basis : str
        On what it stands, in a sentence or two.
    """

    a_ids: tuple[str, ...]
    b_ids: tuple[str, ...]
    headline: str
    wall_a_s: float | None
    wall_b_s: float | None
    completeness: tuple[str, ...]
    changes: pa.Table
    waterfall: pa.Table
    differences: tuple[AnswerTable, ...]
    conclusions: tuple[Conclusion, ...]
    spread: Spread
    basis: str

    def slowdown_over(self, percent: float) -> str | None:
        """Return in words that B took more than so many percent longer than A, or None where it did not.

        With repeats of both sides it must also be outside normal variation.
        """
        if self.wall_a_s is None or self.wall_b_s is None or self.spread.is_within is True:
            return None
        if self.wall_b_s <= self.wall_a_s * (1 + percent / 100):
            return None
        more = self.wall_b_s / self.wall_a_s - 1
        return (
            f"B took {seconds_text(self.wall_b_s)}, {more:.1%} longer than A ({seconds_text(self.wall_a_s)}): more than "
            f"{percent:g} % is not accepted."
        )

    def document(self) -> Document:
        """Return it as plain values, as `--json` prints it."""
        return {
            "a": list(self.a_ids),
            "b": list(self.b_ids),
            "headline": self.headline,
            "wall_a_s": self.wall_a_s,
            "wall_b_s": self.wall_b_s,
            "completeness": list(self.completeness),
            "conclusions": [dataclasses.asdict(each) for each in self.conclusions],
            "spread": {
                "statement": self.spread.statement,
                "is_within": self.spread.is_within,
                "low_s": self.spread.low_s,
                "high_s": self.spread.high_s,
                "rows": self.spread.rows.to_pylist(),
            },
            "changes": self.changes.to_pylist(),
            "waterfall": self.waterfall.to_pylist(),
            "differences": [
                {"name": each.name, "title": each.title, "rows": each.rows.to_pylist()} for each in self.differences
            ],
            "basis": self.basis,
        }


def comparison(a_runs: Sequence[Run], b_runs: Sequence[Run]) -> Comparison:
    """Return why the runs B differ from the runs A; each side is one run or several repeats of it.

    Raises
    ------
    BadQuery
        A side has no run.
    """
    if not a_runs or not b_runs:
        raise BadQuery("A comparison has at least one run on each side.")
    a, b = ([measure(run) for run in side] for side in (a_runs, b_runs))
    same = records(a_runs, b_runs, a, b)
    changed = changes(a_runs, b_runs)
    walls = [[each.wall_s for each in side] for side in (a, b)]
    statement, found = wall_statement(*walls)
    worked = [[worked_s(each) for each in side] for side in (a, b)]
    statement += worked_statement(*worked)
    told = [[comparable_categories(each, same) for each in side] for side in (a, b)]
    quantities = [("wall time", walls[0], walls[1])]
    quantities.append(("time worked", worked[0], worked[1]))
    for name, _ in CATEGORIES:
        quantities.append((name, [each[name] for each in told[0]], [each[name] for each in told[1]]))
    conclusions = causes(a, b, changed.to_pylist(), same)
    medians = [statistics.median(side) for side in walls]
    return Comparison(
        a_ids=tuple(each.run_id for each in a),
        b_ids=tuple(each.run_id for each in b),
        headline=_headline(medians, _not_working_s(a, b), conclusions, found.is_within, same),
        wall_a_s=medians[0] or None,
        wall_b_s=medians[1] or None,
        completeness=same.statements,
        changes=changed,
        waterfall=waterfall(a, b, same),
        differences=() if same.is_empty else difference_tables(a, b, same),
        conclusions=conclusions,
        spread=Spread(
            statement,
            found.is_within,
            found.low,
            found.high,
            spread_table([each for each in quantities if any(each[1]) or any(each[2])]),
        ),
        basis=_basis(a, b, same),
    )


def _not_working_s(a: Sequence[Measures], b: Sequence[Measures]) -> float:
    """Return by how much B was longer without workers or without work: what starting processes and the client took."""
    sides = [[each.wall_s - worked_s(each) for each in middle_runs(side)] for side in (a, b)]
    return statistics.fmean(sides[1]) - statistics.fmean(sides[0])


def _headline(
    medians: Sequence[float],
    not_working_s: float,
    conclusions: Sequence[Conclusion],
    is_within: bool | None,
    same: Records,
) -> str:
    before, after = medians
    if same.is_empty:
        return "There is nothing to compare: a record holds no time of any worker's thread."
    more = after - before
    what = f"B took {seconds_text(after)}, A {seconds_text(before)}"
    what += f": {seconds_text(abs(more))} ({abs(more) / before:.0%}) {'longer' if more >= 0 else 'shorter'}"
    if is_within is not None:
        what += f", {'within' if is_within else 'outside'} normal variation"
    if more * not_working_s > 0 and abs(not_working_s) >= STARTING_SHARE * abs(more):
        part = "all" if abs(not_working_s) >= abs(more) else seconds_text(abs(not_working_s))
        what += f"; {part} of that passed while workers were not there or nothing was submitted"
    if not conclusions:
        return f"{what}. No cause is found in what was recorded."
    against = conclusions[0].evidence.get("slower", "B") != ("B" if more >= 0 else "A")
    return f"{what}. {'Against that: ' if against else ''}{conclusions[0].statement}"


def _basis(a: Sequence[Measures], b: Sequence[Measures], same: Records) -> str:
    sides = " and ".join(f"{plural(len(side), 'run')} of {name}" for name, side in (("A", a), ("B", b)))
    counted = "CPU time of threads counted on both sides" if same.has_counters else "threads not counted on both sides"
    files = "files recorded by Darshan on both sides" if same.has_darshan else "files not recorded on both sides"
    middle = "; tables are means of the one or two runs in the middle by wall time" if max(len(a), len(b)) > 1 else ""
    return (
        f"It stands on {sides}: {counted}, {files}. Groups of tasks are matched by prefix, size and place, workers by "
        f"name{middle}."
    )
