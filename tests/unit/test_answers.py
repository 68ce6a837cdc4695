"""What holds of every answer, and how answers are printed."""

import io
from pathlib import Path

import pyarrow as pa
import pytest

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.durations import durations_by
from recup.answer_page import answer_page, table_lines
from recup.errors import BadQuery
from recup.markdown import MarkdownPage
from recup.pages import runs_page
from recup.questions import QUESTIONS
from recup.store import open_run
from recup.terminal import Page
from tests.unit.written_runs import A, B, write_run


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
        "prefix          wall      held   busy share",
        "───────────────────────────────────────────",
        "inc\\x1b[31m   500 ms   2.0 KiB        50.0%",
        "and 1 row more; --limit shows them, --json all",
    ]


def test_columns_that_have_no_room_are_named(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    row = {"key": "k" * 100, "compute_s": 1.0, "read_bytes": 1 << 20, "outcome": "memory"}
    table_lines(Page(stream), [row], 5)
    assert stream.getvalue().splitlines() == [
        "key                              compute",
        "────────────────────────────────────────",
        "kkkkkkkkkkkkkkkkkkkkkkkkkkkkk…    1.00 s",
        "no room for read, outcome; --json has",
        "all",
    ]


def test_markdown_of_a_run_is_text_only():
    stream = io.StringIO()
    table_lines(MarkdownPage(stream), [{"key": "a|b</td><img src=x>[x](http://y)`", "wall_s": 1.0}], 5)
    assert stream.getvalue().splitlines() == [
        "| key | wall |",
        "| --- | ---: |",
        r"| a\|b\</td\>\<img src=x\>\[x\]\(http\://y\)\` | 1.00 s |",
    ]


def short(rows):
    return [{name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()} for row in rows.to_pylist()]


def test_what_took_the_most_is_told_by_prefix_worker_and_task(tmp_path):
    with open_run(write_run(tmp_path)) as run:
        by_prefix = short(durations_by(run))
        by_worker = short(durations_by(run, "worker"))
        tasks = short(durations_by(run, "task", limit=1))
        with pytest.raises(BadQuery, match=r"not by 'colour'"):
            durations_by(run, "colour")
    inc = {
        "attempt_count": 1, "compute_s": 0.3, "compute_share": 0.789, "median_s": 0.3, "max_s": 0.3, "cpu_share": 0.5,
        "result_bytes": 1000, "min_s": 0.3, "q25_s": 0.3, "q75_s": 0.3, "without_result_count": 0,
    }  # fmt: skip
    boom = {
        "attempt_count": 2, "compute_s": 0.08, "compute_share": 0.211, "median_s": 0.04, "max_s": 0.05, "cpu_share": 0.25,
        "result_bytes": None, "min_s": 0.03, "q25_s": 0.035, "q75_s": 0.045, "without_result_count": 2,
    }  # fmt: skip
    assert by_prefix == [{"prefix": "inc", **inc}, {"prefix": "boom", **boom}]
    assert by_worker == [{"worker": A, **inc}, {"worker": B, **boom}]
    assert tasks == [
        {
            "key": "inc-1", "compute_s": 0.3, "cpu_share": 0.5, "worker": A, "started_at_s": 1.1, "result_bytes": 1000,
            "outcome": "memory", "run_id": 0, "prefix": "inc",
        }
    ]  # fmt: skip


def test_the_name_of_a_run_is_never_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    row = {"run_id": "20231114T221320Z-abcd", "started_ns": 1, "wall_s": 1.0, "state": "ended 0", "task_count": 81}
    row |= {"worker_count": 2, "is_sealed": True, "size_bytes": 1024, "problem": None, "command": ["python", "job.py"]}
    runs_page(Page(stream), [row], Path("runs"))
    assert stream.getvalue().splitlines()[2].startswith("20231114T221320Z-abcd ")
