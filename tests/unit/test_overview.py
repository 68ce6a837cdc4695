"""What the first page of a run tells of its tasks."""

import io

import pytest

from recup import schema
from recup.analyse.durations import durations_by
from recup.analyse.overview import overview
from recup.pages import info_page
from recup.terminal import Page
from tests.unit.scheduled import made, moved, ran
from tests.unit.scheduled import task as rows_of_task
from tests.unit.written_runs import A, at


def task(key, *needs):
    return rows_of_task(key, *needs, priority_order=0)


def failed(key, run_id, started, stopped, then):
    """Rows of an attempt that raised: those of the scheduler, which hears no times of it unless it is the last."""
    start_s, stop_s = at(started) / 1e9, at(stopped) / 1e9
    text = f"ValueError('{key}')"
    by_scheduler = [
        moved(started, key, "waiting", "processing", "s", A, run_id),
        moved(stopped, key, "processing", then, "task-erred-1", A, run_id),
    ]
    if then == "erred":
        by_scheduler += [schema.TaskError(at(stopped), key, run_id, A, None, text, "")]
    by_worker = [
        schema.Reception(at(started), key, run_id, 0, 0, 0),
        schema.Result(at(stopped), key, run_id, "error", A, 7, -1, None, start_s, stop_s, 0.0),
        schema.TaskError(at(stopped), key, run_id, A, None, text, ""),
    ]
    return by_scheduler, by_worker


def written(tmp_path, *parts):
    """Return a run of these tasks and attempts, opened."""
    listed = [each for part in parts if isinstance(part, list) for each in part]
    attempts = [part for part in parts if isinstance(part, tuple)]
    return made(
        tmp_path,
        [*listed, *(each for rows, _ in attempts for each in rows)],
        {A: [each for _, rows in attempts for each in rows]},
    )


def page_of(run):
    stream = io.StringIO()
    info_page(Page(stream), overview(run))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_attempts_of_tasks_that_were_retried_are_all_counted_and_their_time_as_top_has_it(tmp_path):
    parts = [
        task("bad-1"), failed("bad-1", 1, 1.0, 1.2, "waiting"), failed("bad-1", 2, 1.3, 1.6, "erred"),
        task("bad-2"), failed("bad-2", 3, 2.0, 2.1, "waiting"), ran("bad-2", 4, 2.5, 2.9),
    ]  # fmt: skip
    with written(tmp_path, *parts) as run:
        tasks = overview(run)["tasks"]
        (top,) = durations_by(run).to_pylist()
        page = page_of(run)
    (row_of_bad,) = tasks.pop("prefixes")
    assert tasks == {
        "task_count": 2, "done_count": 1, "failed_count": 1, "blocked_count": 0, "given_up_count": 0,
        "without_result_count": 0, "scattered_count": 0, "attempt_count": 4, "failed_attempt_count": 3,
        "lost_attempt_count": 0, "compute_s": pytest.approx(1.0),
    }  # fmt: skip
    assert (row_of_bad["attempt_count"], row_of_bad["compute_s"]) == (4, pytest.approx(1.0))
    assert (top["attempt_count"], top["compute_s"]) == (4, pytest.approx(1.0))
    assert "2 tasks: 1 done, 1 failed; 4 attempts (3 failed) took 1.00 s of computing" in page


def test_a_task_that_gave_its_result_on_another_attempt_is_not_among_the_failed_without_a_word(tmp_path):
    parts = [
        task("bad-1"), failed("bad-1", 1, 1.0, 1.2, "erred"),
        task("bad-2"), failed("bad-2", 3, 0.5, 0.6, "waiting"), ran("bad-2", 4, 2.5, 2.9),
    ]  # fmt: skip
    with written(tmp_path, *parts) as run:
        errors, page = overview(run)["errors"], page_of(run)
    assert [(error["key"], error["is_done"]) for error in errors] == [("bad-1", False), ("bad-2", True)]
    assert "2 tasks had a failed attempt, 1 of them done by a later one" in page


def test_scattered_values_and_tasks_given_up_are_told_from_tasks_without_a_result(tmp_path):
    parts = [
        rows_of_task("int-1"), rows_of_task("int-2"), [moved(5.0, "int-2", "memory", "forgotten", "remove-client")],
        task("sum-1", "int-1", "int-2"), ran("sum-1", 1, 1.0, 2.0),
        task("slow-1"), [
            moved(1.0, "slow-1", "released", "waiting"),
            moved(1.0, "slow-1", "waiting", "processing", "s", A, 2),
            moved(1.5, "slow-1", "processing", "released", "cancel-key", A, 2),
            moved(1.5, "slow-1", "released", "forgotten", "cancel-key"),
        ],
        task("slow-2"), [moved(1.0, "slow-2", "released", "waiting")],
    ]  # fmt: skip
    with written(tmp_path, *parts) as run:
        tasks, page = overview(run)["tasks"], page_of(run)
    assert {name: tasks[f"{name}_count"] for name in ("task", "done", "given_up", "without_result", "scattered")} == {
        "task": 3, "done": 1, "given_up": 1, "without_result": 1, "scattered": 2,
    }  # fmt: skip
    told = (
        "3 tasks: 1 done, 1 given up before they had a result, 1 without a result; 2 attempts took 1.00 s of computing; "
        "beside them 2 scattered values"
    )
    assert told in " ".join(page)


def test_attempts_of_tasks_whose_graph_is_not_recorded_count_and_add_no_task(tmp_path):
    with written(tmp_path, ran("old-1", 1, 1.0, 2.0)) as run:
        tasks, page = overview(run)["tasks"], page_of(run)
    assert (tasks["task_count"], tasks["attempt_count"], tasks["compute_s"]) == (0, 1, pytest.approx(1.0))
    assert "0 tasks: 0 done; 1 attempt took 1.00 s of computing" in page


def test_a_long_text_of_an_error_is_cut_and_the_page_says_where_it_is_whole(tmp_path):
    by_scheduler, by_worker = failed("bad-1", 1, 1.0, 1.2, "erred")
    long = [
        each._replace(exception_text=f"ValueError('{'E' * 9000}')") if isinstance(each, schema.TaskError) else each
        for each in by_scheduler
    ]
    with written(tmp_path, task("bad-1"), (long, by_worker)) as run:
        page = page_of(run)
    shown = "".join(page).count("E")
    assert 200 < shown < 330
    assert "texts of errors are cut; `recup story KEY` has them whole" in page
