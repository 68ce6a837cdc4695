"""What the record of one side has and that of the other has not: said first, and not compared.

Covers losses, workers that did not record, counters of threads and logs of Darshan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recup.completeness import completeness, verdict
from recup.terminal import plural

if TYPE_CHECKING:
    from recup.compare.measures import Measures
    from recup.store import Run


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """How equal the records of two sides are.

    Attributes
    ----------
    statements : tuple of str
        What is not equal, in words.
    has_counters : bool
        Whether threads were counted on both sides.
    has_darshan : bool
        Whether Darshan recorded files on both sides.
    is_io_split : bool
        Whether time in reads and writes is told apart from other waits alike on both sides.
    has_workers : bool
        Whether all workers recorded on both sides: what only workers tell can be compared.
    is_empty : bool
        Whether a run holds no thread and no time, so that there is nothing to hold against the other.
    """

    statements: tuple[str, ...]
    has_counters: bool
    has_darshan: bool
    is_io_split: bool
    has_workers: bool
    is_empty: bool


def records(a_runs: Sequence[Run], b_runs: Sequence[Run], a: Sequence[Measures], b: Sequence[Measures]) -> Records:
    """Return how equal the records of two sides are."""
    verdicts = [_verdict("A", a_runs), _verdict("B", b_runs)]
    statements = [text for text in verdicts if text]
    everything = (*a, *b)
    empty = [each for each in everything if not each.wall_s]
    statements += [f"{_side(each, a)} ({each.run_id}) holds no time of any worker's thread." for each in empty]
    statements += _workers(a, b)
    counted, logged = (
        [[bool(each.facts[name]) for each in side] for side in (a, b)] for name in ("counted_count", "log_count")
    )
    statements += _one_sided(
        counted,
        "Threads of tasks were counted",
        "CPU time and waits of tasks are not compared, and stand together as not_split",
    )
    statements += _one_sided(
        logged, "Darshan recorded files", "time in reads and writes is not told apart from other waits"
    )
    has_counters, has_darshan = (all(map(all, each)) for each in (counted, logged))
    return Records(
        statements=tuple(statements),
        has_counters=has_counters,
        has_darshan=has_darshan,
        is_io_split=has_darshan or not any(map(any, logged)),
        has_workers=all(each.facts["captured_count"] == each.facts["worker_count"] for each in everything),
        is_empty=bool(empty),
    )


def _side(each: Measures, a: Sequence[Measures]) -> str:
    return "A" if each in a else "B"


def _verdict(side: str, runs: Sequence[Run]) -> str | None:
    """Return what is missing on a side, or None where nothing is."""
    told = [(run.run_id, verdict(completeness(run))) for run in runs]
    missing = [f"{run_id} is {text}" for run_id, text in told if text.startswith("incomplete")]
    if not missing:
        return None
    return f"Record {side}: {'; '.join(missing)}."


def _workers(a: Sequence[Measures], b: Sequence[Measures]) -> list[str]:
    found = []
    for name, side in (("A", a), ("B", b)):
        lacking = sum(each.facts["worker_count"] - each.facts["captured_count"] for each in side)
        if lacking:
            found.append(
                f"{plural(lacking, 'worker')} of {name} did not record: what only workers tell is not compared."
            )
    return found


def _one_sided(there: list[list[bool]], what: str, consequence: str) -> list[str]:
    for name, other, mine, others in (("A", "B", *there), ("B", "A", *reversed(there))):
        if any(mine) and not all(others):
            only = f"in {name} only" if not any(others) else f"in {name}, and not in all runs of {other}"
            return [f"{what} {only}: {consequence}."]
        if any(mine) and not all(mine):
            return [f"{what} in some runs of {name} only: {consequence}."]
    return []
