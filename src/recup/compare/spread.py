"""How far repeats of a run differ among themselves, and whether two sides differ more than that.

Covers the difference of medians with its bootstrap interval, and the sentence drawn from
it.  With one run on a side there is no spread, and none is made up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recup.terminal import seconds_text

if TYPE_CHECKING:
    import pyarrow as pa

RESAMPLES = 10_000
SEED = 20_240_229
"""One seed for all: the same runs give the same interval."""
COVERAGE = 0.95
FEW = 5
"""With fewer runs on a side a bootstrap interval is too short: then a difference must also exceed the spread of a side."""


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """The difference of the medians of two sides, B less A.

    Attributes
    ----------
    difference : float
        The difference observed.
    low, high : float or None
        Bootstrap interval of `COVERAGE`; None with one run on a side.
    is_within : bool or None
        Whether repeats of one side differ as much; None with one run on a side.
    """

    difference: float
    low: float | None
    high: float | None
    is_within: bool | None


def interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return how sides differ; `a` and `b` hold one value per run, at least one each."""
    left, right = np.asarray(a, float), np.asarray(b, float)
    difference = float(np.median(right) - np.median(left))
    if len(left) < 2 or len(right) < 2:
        return Interval(difference, None, None, None)
    random = np.random.default_rng(SEED)
    medians = [np.median(side[random.integers(0, len(side), (RESAMPLES, len(side)))], axis=1) for side in (left, right)]
    tail = (1 - COVERAGE) / 2
    low, high = (float(each) for each in np.quantile(medians[1] - medians[0], [tail, 1 - tail]))
    is_within = low <= 0 <= high
    if min(len(left), len(right)) < FEW:
        is_within = is_within or abs(difference) <= max(np.ptp(left), np.ptp(right))
    return Interval(difference, low, high, bool(is_within))


def stands_out(a: Sequence[float], b: Sequence[float]) -> bool:
    """Return whether B is higher than A beyond what repeats differ by: in 95 of 100 pairs of runs.

    With one run on each side this says no more than that B is higher; what a run holds
    within itself must say the rest.
    """
    pairs = [right > left for left in a for right in b]
    return bool(pairs) and sum(pairs) >= 0.95 * len(pairs)


def wall_statement(a: Sequence[float], b: Sequence[float]) -> tuple[str, Interval]:
    """Return what repeats say of the difference of wall times, in a sentence."""
    found = interval(a, b)
    if found.is_within is None:
        lone = "one run on each side" if len(a) == len(b) == 1 else "one run on a side"
        return (
            f"With {lone} it is unknown how far repeats would differ: that the wall times differ proves nothing by "
            "itself; give repeats (A... --with B...) to know.",
            found,
        )
    spans = " and ".join(
        f"{seconds_text(min(side))} to {seconds_text(max(side))} in {len(side)} runs of {name}"
        for name, side in (("A", a), ("B", b))
    )
    within = "within normal variation" if found.is_within else "outside normal variation"
    return (
        f"The difference of {_signed(found.difference)} is {within}: wall times are {spans}; the difference of medians "
        f"lies between {_signed(found.low)} and {_signed(found.high)} (95 % interval).",
        found,
    )


def worked_statement(a: Sequence[float], b: Sequence[float]) -> str:
    """Return what repeats say of the time worked, as a sentence to follow that of the wall time; empty without repeats."""
    found = interval(a, b)
    if found.is_within is None:
        return ""
    within = "within" if found.is_within else "outside"
    return (
        " Without what passed while workers were not there or nothing was submitted, the difference is "
        f"{_signed(found.difference)}, {within} normal variation ({_signed(found.low)} to {_signed(found.high)})."
    )


def _signed(value: float | None) -> str:
    return "" if value is None else f"{'+' if value > 0 else ''}{seconds_text(value)}"


def spread_table(quantities: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> pa.Table:
    """One row per quantity in seconds of wall time, with what each side spans.

    Columns: quantity, a_median_s, a_low_s, a_high_s, b_median_s, b_low_s, b_high_s, difference_s, interval_low_s,
    interval_high_s (null: one run on a side), is_within_variation (null: one run on a side)
    """
    import pyarrow as pa

    rows = []
    for name, a, b in quantities:
        found = interval(a, b)
        row: dict[str, object] = {"quantity": name}
        for side, values in (("a", a), ("b", b)):
            row |= {
                f"{side}_median_s": float(np.median(values)),
                f"{side}_low_s": min(values),
                f"{side}_high_s": max(values),
            }
        rows.append(
            row
            | {
                "difference_s": found.difference,
                "interval_low_s": found.low,
                "interval_high_s": found.high,
                "is_within_variation": found.is_within,
            }
        )
    numbers = [f"{side}_{what}_s" for side in "ab" for what in ("median", "low", "high")]
    columns = [*numbers, "difference_s", "interval_low_s", "interval_high_s"]
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [
                ("quantity", pa.string()),
                *((name, pa.float64()) for name in columns),
                ("is_within_variation", pa.bool_()),
            ]
        ),
    )
