"""What holds of every answer, and how answers are printed."""

import io

import pyarrow as pa
import pytest

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.answer_page import answer_page
from recup.questions import QUESTIONS
from recup.terminal import Page


def conclusion(subject, thread_s, certainty="certain"):
    return Conclusion("budget", subject, f"{subject} waits.", certainty, thread_s)


def test_conclusions_are_ranked_by_cost_then_certainty_and_unknown_costs_come_last():
    unknown, small = conclusion("a", None), conclusion("b", 1.0)
    large, less_sure = conclusion("c", 5.0), conclusion("d", 1.0, "likely")
    assert ranked([unknown, less_sure, small, large]) == (large, small, less_sure, unknown)


def test_a_certainty_that_is_none_is_refused():
    with pytest.raises(ValueError, match="sure"):
        conclusion("a", None, "sure")


def test_every_question_ends_with_a_question_mark_and_has_a_verb_of_its_own():
    assert all(question.asks.endswith("?") for question in QUESTIONS)
    assert len({question.verb for question in QUESTIONS}) == len(QUESTIONS)


def test_an_answer_is_printed_with_units_certainty_and_advice_and_nothing_of_a_run_acts_on_the_terminal():
    rows = pa.table(
        {"prefix": ["inc\x1b[31m", "sum"], "wall_s": [0.5, 2.0], "held_bytes": [2048, None], "busy_share": [0.5, 1]}
    )
    found = Conclusion("budget", "inc", "inc waits 2 s.", "likely", 2.0, "Use fewer.")
    document = {
        "run_id": "r1",
        "asks": "Where did the time go?",
        **Answer(
            "Into inc.", (found,), (AnswerTable("by-prefix", "One row per prefix", rows),), "On counters."
        ).document(),
    }
    stream = io.StringIO()
    answer_page(Page(stream), document, (), 1)
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [
        "Where did the time go?  run r1",
        "",
        "Into inc.",
        "On counters.",
        "",
        "Found",
        "likely        inc waits 2 s. [2.00 s of threads] -> Use fewer.",
        "",
        "One row per prefix",
        "prefix          wall      held    busy",
        "──────────────────────────────────────",
        "inc\\x1b[31m   500 ms   2.0 KiB   50.0%",
        "and 1 row more; --limit shows them, --json all",
    ]
