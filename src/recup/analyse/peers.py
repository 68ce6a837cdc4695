"""One against its like: durations of the same kind of task in one place held against those in all other places.

Covers the statistics, on arrays: medians and their ratio, with an interval that rests on
ranks alone, so that neither a few stragglers nor the shape of the distribution mislead.
What a place is (worker, host, thread) and where arrays come from is `recup.analyse.slowness`'s.

The interval of a median is that of Price and Bonett (2002): its standard error by the
distance of two order statistics around it.  Ratios of several kinds of task are pooled
with the spread between kinds in the interval (DerSimonian and Laird).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt

from recup.analyse.rows import by_code

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

LEAST_TASKS = 8
"""Tasks on either side that a comparison needs: below, order statistics say next to nothing."""
INTERVAL_Z = 1.96
"""Half width of an interval in standard errors: 95 %."""
_LEAST_ERROR = 0.01
"""Standard error (of a logarithm) taken at least: repeated sleeps are not known better than to 1 %."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One kind of task in one place, against the same kind elsewhere.

    Attributes
    ----------
    place, kind : int
        Codes of the place and of the kind.
    count, other_count : int
        Tasks here and elsewhere.
    log_ratio, error : float
        Logarithm of the ratio of the medians, and its standard error.
    excess_s : float
        Seconds that its tasks took more than at the others' pace; negative where it was faster.
    """

    place: int
    kind: int
    count: int
    other_count: int
    log_ratio: float
    error: float
    excess_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """How much slower one place is, over all kinds of task that could be compared.

    `ratio` is above 1 where it is slower; low and high bound it with 95 % of confidence.
    """

    place: int
    kind_count: int
    count: int
    ratio: float
    low: float
    high: float
    error: float
    excess_s: float


def centred(log_s: Floats, place: Codes, group: Codes, kind: Codes) -> Floats:
    """Return logarithms of durations less the median of their group, so that groups of unlike tasks compare.

    A group too small to have a median worth the name, or run in one place only, is taken
    with all tasks of its kind.
    """
    counts = np.bincount(group)
    lowest, highest = np.full(len(counts), np.iinfo(np.int64).max), np.full(len(counts), -1)
    np.minimum.at(lowest, group, place)
    np.maximum.at(highest, group, place)
    is_spread = (counts >= LEAST_TASKS) & (highest > lowest)
    by_group, by_kind = medians(log_s, group), medians(log_s, kind)
    centres: Floats = np.where(is_spread[group], by_group[group], by_kind[kind])
    return log_s - centres


def medians(values: Floats, code: Codes) -> Floats:
    """Return the median of values by their code, nan where a code has none."""
    order = np.argsort(values)
    order = order[by_code(code[order])]
    counts = np.bincount(code)
    ends = np.cumsum(counts)
    starts = ends - counts
    ordered = values[order]
    found = np.full(len(counts), np.nan)
    some = counts > 0
    lower = ordered[(starts + (counts - 1) // 2)[some]]
    upper = ordered[(starts + counts // 2)[some]]
    found[some] = (lower + upper) / 2
    return found


def cells(residual: Floats, seconds: Floats, place: Codes, kind: Codes) -> list[Cell]:
    """Return every kind of task in every place that has enough tasks here and elsewhere.

    Parameters
    ----------
    residual : array
        Logarithms of durations, `centred`.
    seconds : array
        The durations.
    place, kind : array
        Codes of each task.
    """
    found = []
    by_kind = by_code(kind)
    edges = np.flatnonzero(np.diff(kind[by_kind], prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges):
        rows = by_kind[start:stop]
        rows = rows[np.argsort(residual[rows])]
        values, places = residual[rows], place[rows]
        by_place = by_code(places)
        ends = np.flatnonzero(np.diff(places[by_place], prepend=-1, append=-1))
        for first, last in itertools.pairwise(ends):
            positions = by_place[first:last]
            count, others = len(positions), len(values) - len(positions)
            if count < LEAST_TASKS or others < LEAST_TASKS:
                continue
            here, here_error = _middle(values[positions])
            there, there_error = _middle(values, positions)
            spent = float(seconds[rows[positions]].sum())
            difference = here - there
            found.append(
                Cell(
                    int(places[positions[0]]),
                    int(kind[rows[0]]),
                    count,
                    others,
                    difference,
                    float(np.hypot(here_error, there_error)),
                    spent * (1.0 - float(np.exp(-difference))),
                )
            )
    return found


def _middle(ordered: Floats, without: Codes | None = None) -> tuple[float, float]:
    """Return the median of ordered values, those at some positions left out, and its standard error."""
    if without is None:
        count, gone = len(ordered), np.empty(0, dtype=np.int64)
    else:
        count, gone = len(ordered) - len(without), without - np.arange(len(without))
    depth = max(1, round((count + 1) / 2 - count**0.5))
    ranks = np.array([(count - 1) // 2, count // 2, depth - 1, count - depth])
    # The k-th of what remains stands as many places further on as have been left out before it.
    lower, upper, low, high = ordered[ranks + np.searchsorted(gone, ranks, side="right")]
    width = (count - 2 * depth + 1) / count**0.5
    return float(lower + upper) / 2, max(float(high - low) / (2 * width), _LEAST_ERROR)


def effects(compared: list[Cell]) -> list[Effect]:
    """Return how each place stands over all its kinds of task, slowest by excess seconds first."""
    by_place: dict[int, list[Cell]] = {}
    for each in compared:
        by_place.setdefault(each.place, []).append(each)
    found = []
    for place, mine in by_place.items():
        mean, error = _pooled(np.array([c.log_ratio for c in mine]), np.array([c.error for c in mine]))
        found.append(
            Effect(
                place,
                len(mine),
                sum(c.count for c in mine),
                float(np.exp(mean)),
                float(np.exp(mean - INTERVAL_Z * error)),
                float(np.exp(mean + INTERVAL_Z * error)),
                error,
                sum(c.excess_s for c in mine),
            )
        )
    return sorted(found, key=lambda effect: (-effect.excess_s, effect.place))


def _pooled(values: Floats, errors: Floats) -> tuple[float, float]:
    """Return the mean of values of unlike precision, and its standard error with the spread between them."""
    weights = errors**-2.0
    mean = float((weights * values).sum() / weights.sum())
    if len(values) > 1:
        spread = float((weights * (values - mean) ** 2).sum()) - (len(values) - 1)
        scale = float(weights.sum() - (weights**2).sum() / weights.sum())
        weights = 1.0 / (errors**2 + max(spread / scale, 0.0))
        mean = float((weights * values).sum() / weights.sum())
    return mean, float(weights.sum() ** -0.5)
