"""A whole comparison of two runs, or of two groups of repeats, as one document.

Covers bringing the parts together; each part is a module of this package.  It does not
cover how a comparison is shown (`recup.compare_page`, the report).

A is what B is held against: differences are B less A, so what B lost is positive.  Of
repeats, tables tell the run in the middle by wall time (the mean of the two in the middle
where their number is even), so that they sum to the difference of the medians.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recup.analyse.answers import AnswerTable, Conclusion

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.analyse.rows import Document
    from recup.store import Run


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
        One row per quantity: side medians, lowest, highest, interval of the difference.
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
    """Return why the runs B differ from the runs A; each side is one run or several repeats of it."""
    raise NotImplementedError
