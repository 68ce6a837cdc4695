"""What an answer is made of: conclusions in words, tables that bear them, and how sure it is.

Covers the parts all answers share, and the conclusions of all questions ranked by what
they cost.  How they are shown is `recup.answer_page`'s and the report's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from recup.questions import QUESTIONS, Question

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.analyse.rows import Document
    from recup.store import Run

CERTAINTIES = ("certain", "likely", "possible")
"""``certain``: it is observed or follows.  ``likely``: the evidence fits and nothing else known does.
``possible``: the evidence fits, and so may other causes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Conclusion:
    """One thing found out.

    Attributes
    ----------
    question : str
        Verb of the question it answers.
    subject : str
        Prefix, worker, host, file, ... it is about; what a reader would search for.
    statement : str
        A sentence with its numbers and units.
    certainty : str
        One of `CERTAINTIES`.
    thread_s : float or None
        Thread-seconds it cost, as `budget` counts them; None where that cannot be said.
    advice : str or None
        What to do, in a sentence; None where there is nothing to do.
    evidence : dict
        The numbers in the statement, by name with unit.
    """

    question: str
    subject: str
    statement: str
    certainty: str
    thread_s: float | None = None
    advice: str | None = None
    evidence: dict[str, float | int | str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.certainty not in CERTAINTIES:
            raise ValueError(f"{self.certainty!r} is none of {CERTAINTIES}")

    def document(self) -> Document:
        """Return it as plain values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerTable:
    """One table of an answer.

    Attributes
    ----------
    name : str
        What `--table` calls it: a word or two with dashes.
    title : str
        Its heading: one row per what, in what order.
    rows : Arrow table
        Columns have their unit in their name (``_s``, ``_bytes``, ``_count``, ``_share``); times
        called ``at_s`` or ``*_at_s`` are seconds since the start of the run.
    """

    name: str
    title: str
    rows: pa.Table


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    Attributes
    ----------
    headline : str
        The answer in one sentence; also where there is nothing to say.
    conclusions : tuple of Conclusion
        What costs most first.
    tables : tuple of AnswerTable
        The most telling first.
    basis : str
        What it stands on and what is not known, in a sentence or two.
    """

    headline: str
    conclusions: tuple[Conclusion, ...]
    tables: tuple[AnswerTable, ...]
    basis: str

    def document(self) -> Document:
        """Return it as plain values, as `--json` prints it."""
        return {
            "headline": self.headline,
            "basis": self.basis,
            "conclusions": [each.document() for each in self.conclusions],
            "tables": [{"name": each.name, "title": each.title, "rows": each.rows.to_pylist()} for each in self.tables],
        }


def answer(run: Run, question: Question) -> Answer:
    """Return the answer to one question."""
    module, function = question.answered_by.split(":")
    found: Answer = getattr(import_module(module), function)(run)
    return found


def ranked(conclusions: Iterable[Conclusion]) -> tuple[Conclusion, ...]:
    """Return conclusions by what they cost, most first; those of unknown cost last; ties by certainty."""
    return tuple(
        sorted(
            conclusions,
            key=lambda each: (
                each.thread_s is None,
                -(each.thread_s or 0.0),
                CERTAINTIES.index(each.certainty),
                each.question,
                each.subject,
            ),
        )
    )


def conclusions(run: Run) -> tuple[Conclusion, ...]:
    """Return the conclusions of every question, `ranked`."""
    return ranked(each for question in QUESTIONS for each in answer(run, question).conclusions)
