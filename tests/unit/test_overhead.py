"""Gaps between tasks of a thread, load of the scheduler, and when either is worth a sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recup import schema
from recup.analyse.overhead import _busy, _saturated, overhead, overhead_by_prefix, scheduler_load, scheduler_over_time
from tests.unit.scheduled import came, graph, made, nothing, ran, task
from tests.unit.written_runs import A, at, row

GPU = '{"workers": [], "hosts": [], "resources": {"GPU": 1}, "loose": false}'


def run_of(tmp_path, attempts, *samples, restrictions=None, threads=1, name="a"):
    """Attempts of one prefix in one thread: (started, stopped, ready)."""
    made_ = [ran(f"{name}-{i}", i, *each[:2], ready=each[2], assigned=each[0]) for i, each in enumerate(attempts)]
    tasks = [each for i in range(len(attempts)) for each in task(f"{name}-{i}", restrictions=restrictions)]
    rows = [came(A, threads=threads), graph(count=len(attempts)), *tasks, *(each for mine, _ in made_ for each in mine)]
    return made(tmp_path, [*rows, *samples], {A: [each for _, mine in made_ for each in mine]})


def sampled(seconds, cpu_s, lag_s=0.0, queued=0.0, processing=0.0):
    values = {
        "process_user_cpu_s": cpu_s, "process_system_cpu_s": 0.0, "event_loop_lag_s": lag_s,
        "queued_tasks_count": queued,
    }  # fmt: skip
    rows = [row(schema.Sample, time_ns=at(seconds), metric=name, value=value) for name, value in values.items()]
    return [*rows, row(schema.Sample, time_ns=at(seconds), metric="processing_count", subject=A, value=processing)]


def test_a_gap_is_from_a_stop_to_the_next_start_where_the_next_was_ready_before(tmp_path):
    # Ready before; not ready before; ready before, but a second and more later.
    with run_of(tmp_path, [(1.0, 1.5, 0.5), (1.75, 2.0, 0.5), (3.0, 3.5, 2.5), (6.0, 6.5, 0.5)]) as run:
        (found,) = overhead_by_prefix(run).to_pylist()
    assert (found["attempt_count"], found["seen_gap_count"], found["gaps_s"]) == (4, 1, pytest.approx(0.25, abs=1e-6))
    assert found["gap_share"] == pytest.approx(0.25 / (0.25 + found["compute_s"] / 4), rel=1e-5)


def test_tasks_that_want_a_resource_wait_for_it_and_have_no_gap(tmp_path):
    with run_of(tmp_path, [(1.0, 1.5, 0.5), (1.75, 2.0, 0.5)], restrictions=GPU) as run:
        assert overhead_by_prefix(run)["seen_gap_count"].to_pylist() == [0]


def test_many_small_tasks_with_gaps_between_them_are_too_small_at_the_cost_of_the_gaps(tmp_path):
    attempts = [(1 + i * 0.01, 1 + i * 0.01 + 0.001, 0.5) for i in range(501)]
    with run_of(tmp_path, attempts) as run:
        answer = overhead(run)
    assert (
        answer.headline
        == "Tasks of a are too small: 501 attempts computed 1 ms each on average, and 4.50 s of threads went by between them."
    )
    (said,) = answer.conclusions
    assert (said.certainty, said.thread_s) == ("certain", pytest.approx(4.5, abs=1e-4))
    assert said.statement == (
        "501 attempts of a compute 1 ms each (median), and 9 ms goes by in a thread before the next starts: 4.50 s of "
        "threads in all."
    )


def test_tasks_that_compute_long_are_not_too_small(tmp_path):
    attempts = [(1 + i * 0.01, 1 + i * 0.01 + 0.0095, 0.5) for i in range(501)]
    with run_of(tmp_path, attempts) as run:
        assert overhead(run).conclusions == ()


def test_the_load_of_a_scheduler_is_told_from_its_first_task_to_its_last(tmp_path):
    samples = [each for i in range(7) for each in sampled(i, cpu_s=0.5 * i, lag_s=0.1 * (i == 3), processing=3)]
    with run_of(tmp_path, [(1.0, 3.0, 1.0), (3.0, 5.0, 1.0)], *samples, threads=2) as run:
        (load,), over_time = scheduler_load(run).to_pylist(), scheduler_over_time(run).to_pylist()
    assert {name: load[name] for name in ("window_s", "attempt_count", "transition_count", "cpu_s", "cpu_share")} == {
        "window_s": 4.0, "attempt_count": 2, "transition_count": 7, "cpu_s": pytest.approx(2.0), "cpu_share": 0.5,
    }  # fmt: skip
    assert load["lag_max_s"] == pytest.approx(0.1)
    assert [(each["at_s"], each["cpu_share"], each["busy_share"], each["ready_task_count"]) for each in over_time] == [
        (at_s, pytest.approx(0.5), pytest.approx(0.5), pytest.approx(2.0)) for at_s in (1.0, 2.0, 3.0, 4.0)
    ]


@pytest.mark.parametrize(
    ("changes", "certainty"),
    [
        ({}, "likely"),
        ({"shares_process_with": "client"}, "possible"),
        ({"busy_share": 0.95}, None),
        ({"ready_task_count": 0.0}, None),
        ({"cpu_share": 0.8}, None),
        ({"cpu_share": None}, None),
        ({"bin_s": 0.5}, None),
    ],
    ids=str,
)
def test_a_scheduler_is_saturated_where_its_core_is_full_while_threads_idle_and_tasks_are_there(changes, certainty):
    each = {
        "cpu_share": 0.98, "busy_share": 0.25, "thread_count": 8.0, "bin_s": 2.0, "ready_task_count": 5.0,
        "transitions_per_second": 4000.0,
    }  # fmt: skip
    said = _saturated({"shares_process_with": changes.get("shares_process_with")}, [{**each, **changes}])
    assert (said and said.certainty, said and said.thread_s) == (certainty, 12.0 if certainty else None)


@given(st.lists(st.tuples(st.floats(-5, 15), st.floats(0, 8)), max_size=20))
def test_computing_in_bins_sums_to_computing_within_them(spans):
    edges = np.linspace(0.0, 10.0, 7)
    started = np.array([begin for begin, _ in spans])
    stopped = np.array([begin + length for begin, length in spans])
    within = sum(max(min(begin + length, 10.0) - max(begin, 0.0), 0.0) for begin, length in spans)
    assert _busy(started, stopped, edges).sum() == pytest.approx(within, abs=1e-6)


def test_a_run_without_anything_says_that_no_task_is_known(tmp_path):
    with nothing(tmp_path) as run:
        answer = overhead(run)
    assert (answer.headline, answer.conclusions) == ("No task is known to have computed.", ())
    assert all(each.rows.num_rows == 0 for each in answer.tables)
