"""What was lost and computed again: each attempt once, with its cause and time; and what is no finding."""

import pytest

from recup import schema
from recup.analyse.recomputed import LEFT, recomputed, wasted_by_cause, wasted_by_prefix
from tests.unit.scheduled import A, B, came, graph, left, made, moved, nothing, ran, task
from tests.unit.written_runs import at, row

GONE = "handle-worker-cleanup-1"


def causes(run, *names):
    names = names or ("kind", "attempt_count", "wasted_s", "again_count", "unknown_count")
    return [tuple(each[name] for name in names) for each in wasted_by_cause(run).to_pylist()]


def begun(seconds, key, run_id):
    return schema.WorkerTransition(at(seconds), key, run_id, "ready", "executing", None, "compute-task")


def test_a_calm_run_wasted_nothing(tmp_path):
    by_scheduler, by_worker = ran("x-0", 0, 1, 2)
    with made(tmp_path, [came(), graph(), *task("x-0"), *by_scheduler], {A: by_worker}) as run:
        answer = recomputed(run)
    assert answer.headline == "Nothing is known to have been lost, failed, cancelled or computed twice."
    assert (answer.conclusions, answer.basis) == ((), "1 attempt, 1.00 s of computing that ended.")


def test_a_run_without_any_record_raises_nothing(tmp_path):
    with nothing(tmp_path) as run:
        answer = recomputed(run)
    assert (answer.conclusions, [each.rows.num_rows for each in answer.tables]) == ((), [0, 0, 0])


def lost_with_a(tmp_path, *extra):
    """On A `x-0` is stored and `y-1` runs when A dies; `w-2`, which `x-0` needed, was released before; B does all again."""
    w, w_told = ran("w-2", 2, 0.5, 1.0)
    x, x_told = ran("x-0", 0, 1, 2)
    scheduler = [
        came(A), came(B), graph(), *task("w-2"), *task("x-0", "w-2"), *task("y-1", "x-0"), *w, *x,
        moved(2.1, "w-2", "memory", "released", "task-finished-1"),
        moved(2.2, "y-1", "waiting", "processing", "s", A, 1),
        left(A, 5, GONE),
        moved(5, "y-1", "processing", "released", GONE, None, 1),
        moved(5, "x-0", "memory", "released", GONE),
        moved(5, "x-0", "released", "waiting", GONE),
        moved(5, "w-2", "released", "waiting", GONE),
        *_again("w-2", 12, 5.1, 5.5), *_again("x-0", 10, 5.6, 6.6), *_again("y-1", 11, 6.7, 8.0), *extra,
    ]  # fmt: skip
    worker = [*w_told, *x_told, begun(2.5, "y-1", 1)]
    return made(tmp_path, scheduler, {A: worker}, ended=9.0)


def _again(key, run_id, start, stop):
    rows, _ = ran(key, run_id, start, stop, worker=B)
    return [each for each in rows if not (isinstance(each, schema.SchedulerTransition) and each.finish == "waiting")]


def test_what_a_death_cost_is_the_attempts_on_it_and_the_results_made_again(tmp_path):
    with lost_with_a(tmp_path) as run:
        found = causes(run)
        (cause,) = {each["cause"] for each in wasted_by_cause(run).to_pylist()}
        answer = recomputed(run)
        prefixes = wasted_by_prefix(run).to_pylist()
    assert cause == f"worker {A} died at 5.0 s: its connection broke, the process lived on"
    assert found == [
        ("lost", 1, pytest.approx(2.5), 1, 0),
        ("lost result", 2, pytest.approx(1.4), 0, 0),
    ]
    assert [(each.subject, each.certainty, each.thread_s) for each in answer.conclusions] == [
        ("y", "certain", pytest.approx(2.5)), ("x", "certain", pytest.approx(1.4))
    ]  # fmt: skip
    assert answer.conclusions[1].statement == (
        f"2 results had to be computed again, 1 of them since these needed them: {cause} (1.40 s of computing, most of "
        "prefix x)."
    )
    names = ("prefix", "lost_count", "lost_result_count", "computed_again_count", "wasted_share")
    assert [tuple(each[name] for name in names) for each in prefixes] == [
        ("y", 1, 0, 0, pytest.approx(2.5 / 3.8)), ("x", 0, 1, 0, pytest.approx(0.5)), ("w", 0, 1, 0, pytest.approx(4 / 9))
    ]  # fmt: skip


def test_results_of_a_worker_that_closed_in_order_are_lost_too(tmp_path):
    closing = row(schema.Event, time_ns=at(4.9), topic=A, action="closing-worker", payload="{}")
    with lost_with_a(tmp_path, closing) as run:
        answer = recomputed(run)
        told = {cause for _, cause in causes(run, "kind", "cause")}
    assert told == {f"worker {A} left in order, or how it ended is not known"}
    assert all("retire_workers" in each.advice for each in answer.conclusions)
    assert LEFT.startswith("workers that left in order")


def test_failures_are_by_what_they_raised(tmp_path):
    def failed(key, run_id, start, finish):
        return [
            moved(start, key, "waiting", "processing", "s", A, run_id),
            moved(start + 1, key, "processing", finish, f"task-erred-{run_id}", A, run_id),
        ]

    def told(key, run_id, start, text):
        begin, end = at(start) / 1e9, at(start + 1) / 1e9
        return [
            schema.Result(at(start + 1), key, run_id, "error", A, 7, -1, None, begin, end, 0.0),
            schema.TaskError(at(start + 1), key, run_id, A, None, text, None),
        ]

    again, again_told = ran("x-0", 2, 5, 6)
    scheduler = [
        came(), graph(), *task("x-0"), *task("y-1"), *failed("x-0", 0, 1, "waiting"), *failed("y-1", 1, 3, "erred"), *again
    ]  # fmt: skip
    worker = [*told("x-0", 0, 1, "ValueError('no')"), *told("y-1", 1, 3, "a.b.Odd<1>"), *again_told]
    with made(tmp_path, scheduler, {A: worker}) as run:
        assert causes(run, "kind", "cause", "wasted_s", "again_count") == [
            ("error", "raised ValueError", pytest.approx(1), 1), ("error", "raised a.b.Odd", pytest.approx(1), 0)
        ]  # fmt: skip
        assert recomputed(run).headline == (
            "2 attempts came to nothing or did work again, in 2.00 s: 66.7% of all computing."
        )


def asked_again(tmp_path, took):
    first, first_told = ran("x-0", 0, 1, 1 + took)
    again, again_told = ran("x-0", 1, 5, 5 + took)
    again = [
        each._replace(stimulus_id="update-graph-2")
        if isinstance(each, schema.SchedulerTransition) and each.finish == "waiting"
        else each
        for each in again
    ]
    scheduler = [
        came(), graph(), *task("x-0"), *first,
        moved(3, "x-0", "memory", "forgotten", "client-releases-keys-1"), graph(4.9, 1), *task("x-0", submission=1), *again,
    ]  # fmt: skip
    return made(tmp_path, scheduler, {A: [*first_told, *again_told]})


def test_what_a_client_asks_for_again_is_told_where_it_took_time(tmp_path):
    with asked_again(tmp_path, 1.0) as run:
        (found,) = recomputed(run).conclusions
    assert found.statement == (
        "1 result was computed again: asked for again after the result had been released (1.00 s of computing, of prefix x)."
    )
    assert (found.certainty, found.thread_s) == ("certain", pytest.approx(1))


def test_what_took_next_to_no_time_is_counted_and_no_finding(tmp_path):
    with asked_again(tmp_path, 0.01) as run:
        answer = recomputed(run)
    assert answer.conclusions == ()
    assert answer.tables[0].rows["attempt_count"].to_pylist() == [1]


def test_time_of_attempts_without_a_record_is_not_made_up(tmp_path):
    scheduler = [
        came(), graph(), *task("x-0"), moved(1, "x-0", "waiting", "processing", "s", A, 0), left(A, 5, GONE),
        moved(5, "x-0", "processing", "released", GONE, None, 0),
    ]  # fmt: skip
    with made(tmp_path, scheduler) as run:
        answer = recomputed(run)
        assert causes(run) == [("lost", 1, None, 0, 1)]
    assert answer.headline == "1 attempt came to nothing or did work again; none told of time in it."
    assert "1 told no time, they may not have begun" in answer.conclusions[0].statement
    assert "1 of 1 worker left no record" in answer.basis
