"""Stalls of event loops: when, where, what ran then, and what may be blamed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recup import schema
from recup.analyse.budget import budget_totals
from recup.analyse.budget_sweep import united
from recup.analyse.stalled import stalled_loops, stalls_by_prefix, stalls_by_process
from recup.analyse.stalls import stalls
from tests.unit.scheduled import C, came, counted, graph, lag, made, nothing, process, ran, task
from tests.unit.written_runs import A, B, at, row


def rows(table, *names):
    return [tuple(each[name] for name in names) for each in table.to_pylist()]


def stalled(tmp_path, *, kind="task", cpu=1.0, hold_share=1.0):
    """`hold` runs at 10, 20, 30 for 2 s each, with the loop late at its end; `calm` runs in all other time."""
    holds = [ran(f"hold-{i}", i, 10.0 * (i + 1), 10.0 * (i + 1) + 2.0) for i in range(3)]
    calm = [ran(f"calm-{i}", 10 + i, 10.0 * i + 2.5, 10.0 * i + 9.9) for i in range(4)]
    counters = [counted(f"hold-{i}", i, 10.0 * (i + 1), 2.0, cpu=2.0 * cpu, kind=kind) for i in range(3)]
    lags = [each for i in range(3) for each in lag(10.0 * (i + 1) + 2.0, 1.5 * hold_share)]
    lags += [each for i in range(3, 40) if i % 10 > 2 for each in lag(i, 0.01)]
    tasks = [each for i in range(3) for each in task(f"hold-{i}")] + [
        each for i in range(4) for each in task(f"calm-{i}")
    ]
    by_scheduler = [each for mine, _ in (*holds, *calm) for each in mine]
    by_worker = [each for _, mine in (*holds, *calm) for each in mine]
    return made(
        tmp_path, [came(A), graph(count=7), *tasks, *by_scheduler], {A: [*by_worker, *counters, *lags]}, ended=40
    )


def test_a_stall_lasts_from_when_the_timer_was_due_to_when_it_came_and_names_what_ran(tmp_path):
    with stalled(tmp_path) as run:
        assert rows(stalled_loops(run), "at_s", "duration_s", "roles", "prefix", "key", "task_count", "seen_by") == [
            (pytest.approx(10.0 * i + 0.5), pytest.approx(1.5), "worker", "hold", f"hold-{i - 1}", 1, "timer")
            for i in (1, 2, 3)
        ]
        assert rows(stalls_by_process(run), "servers", "stall_count", "stalled_s") == [(A, 3, pytest.approx(4.5))]
        assert rows(
            stalls_by_prefix(run), "prefix", "stalled_share", "elsewhere_share", "on_time_count", "cpu_share"
        ) == [("hold", pytest.approx(1.0), 0.0, 28, pytest.approx(1.0))]


@pytest.mark.parametrize(
    ("options", "certainty", "words"),
    [
        ({}, "likely", "hold the GIL"),
        ({"cpu": 0.1}, "possible", "hold the GIL"),
        ({"kind": "coroutine"}, "likely", "it is a coroutine and runs on the event loop"),
    ],
    ids=["computes", "waits", "coroutine"],
)
def test_the_prefix_that_ran_in_all_stalls_and_seldom_else_is_suspected(tmp_path, options, certainty, words):
    with stalled(tmp_path, **options) as run:
        (said,) = stalls(run).conclusions
    assert (said.subject, said.certainty) == ("hold", certainty)
    assert words in said.statement
    assert said.statement.startswith("hold ran in 100% of the 4.50 s and more that loops of workers stalled (3 stalls)")


def test_small_lags_are_no_stalls(tmp_path):
    with stalled(tmp_path, hold_share=0.1) as run:
        answer = stalls(run)
    assert answer.headline == "No event loop was seen late by 250 ms or more."
    assert (answer.conclusions, [each.rows.num_rows for each in answer.tables]) == ((), [0, 0, 0])


def test_what_runs_at_all_times_is_not_suspected(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 1.0, 39.0)
    lags = [each for i in (10, 20, 30) for each in (*lag(i, 2.0), *lag(i + 2, 0.0))]
    with made(tmp_path, [came(A), graph(), *task("a"), *by_scheduler], {A: [*by_worker, *lags]}, ended=40) as run:
        (said,) = stalls(run).conclusions
    assert said.statement == (
        f"Event loops stalled 3 times, 6.00 s in all, most in worker {A} (6.00 s); nothing recorded stands out then."
    )


def test_what_the_timer_and_the_log_saw_of_one_stall_is_one_stall(tmp_path):
    told = row(
        schema.Log, time_ns=at(12.01), level="INFO", logger="distributed.core",
        message="Event loop was unresponsive in Worker for 4.00s.  This is often caused by long-running GIL-holding",
    )  # fmt: skip
    with made(tmp_path, [came(A)], {A: [*lag(12, 3.2), told]}, ended=40) as run:
        assert rows(stalled_loops(run), "at_s", "duration_s", "seen_by") == [
            (pytest.approx(8.01), pytest.approx(4.0), "log, timer")
        ]


def test_spilling_in_a_stall_is_certain_where_dask_timed_most_of_it(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 1.0, 2.0)
    spilled = [
        schema.Spill(at(11.9), "a", "spill", 1000, 500),
        schema.StartStop("a", 0, "disk-write", at(10.5) / 1e9, at(12) / 1e9, None),
    ]
    rows_ = [came(A), graph(), *task("a"), *by_scheduler]
    with made(tmp_path, rows_, {A: [*by_worker, *lag(12, 2.0), *spilled]}, ended=40) as run:
        (said,) = stalls(run).conclusions
        assert rows(stalled_loops(run), "spill_count", "spilled_bytes", "disk_s") == [(1, 1000, pytest.approx(1.5))]
    assert (said.subject, said.certainty) == ("spill", "certain")


def test_a_store_that_is_slow_has_not_spilled_for_that(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 1.0, 2.0)
    slow = schema.StartStop("a", 0, "disk-write", at(10.5) / 1e9, at(12) / 1e9, None)
    rows_ = [came(A), graph(), *task("a"), *by_scheduler]
    with made(tmp_path, rows_, {A: [*by_worker, *lag(12, 2.0), slow]}, ended=40) as run:
        assert rows(stalled_loops(run), "spill_count", "disk_s") == [(None, None)]
        assert "spill" not in {each.subject for each in stalls(run).conclusions}
        assert next(row["thread_s"] for row in budget_totals(run).to_pylist() if row["category"] == "spill") == 0.0


def test_a_scheduler_in_the_process_of_its_client_may_be_stalled_by_its_code(tmp_path):
    about = process("client", C, pid=1)
    with made(tmp_path, [came(A), *lag(5, 2.0, False)], {A: []}, [about], ended=40) as run:
        (said,) = stalls(run).conclusions
    assert (said.subject, said.certainty) == ("client", "possible")


def test_a_loop_that_never_came_back_is_stalled_to_the_last_sign_of_its_process(tmp_path):
    ticks = [each for i in range(5) for each in lag(i, 0.0)]
    with made(tmp_path, [came(A)], {A: ticks}, ended=30, closed=False) as run:
        assert rows(stalled_loops(run), "servers", "at_s", "duration_s", "seen_by") == [
            (A, pytest.approx(5.0), pytest.approx(25.0), "silence at the end")
        ]


def test_stalls_of_several_workers_are_kept_apart(tmp_path):
    one, by_a = ran("a", 0, 1.0, 3.0)
    two, by_b = ran("b", 1, 1.0, 9.0, worker=B)
    rows_ = [came(A), came(B), graph(count=2), *task("a"), *task("b"), *one, *two]
    with made(tmp_path, rows_, {A: [*by_a, *lag(3, 1.0)], B: [*by_b, *lag(9, 3.0)]}, ended=40) as run:
        assert rows(stalled_loops(run), "servers", "prefix", "at_s") == [(B, "b", 6.0), (A, "a", 2.0)]
        assert rows(stalls_by_prefix(run), "prefix", "stall_count", "stalled_s", "stalled_share") == [
            ("b", 1, pytest.approx(3.0), pytest.approx(0.75)), ("a", 1, pytest.approx(1.0), pytest.approx(0.25)),
        ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=20))
def test_united_intervals_are_disjoint_and_cover_the_same_moments(spans):
    begins, ends = (np.array(each, dtype=float) for each in zip(*((b, b + n) for b, n in spans), strict=True))
    from_, to = united(begins, ends)
    assert (from_[1:] > to[:-1]).all()
    for moment in np.arange(0.5, 50):
        assert ((from_ < moment) & (moment < to)).any() == any(b < moment < b + n for b, n in spans)


def test_a_run_without_anything_does_not_say_that_no_loop_stalled(tmp_path):
    with nothing(tmp_path) as run:
        answer = stalls(run)
    assert (answer.headline, answer.conclusions) == (
        "Whether an event loop stalled is not known: none was sampled.",
        (),
    )
