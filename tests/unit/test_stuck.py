"""What did not finish and why, silences, the tail and stragglers: right, and silent where nothing is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recup import schema
from recup.analyse.silences import _tail_start, silences, stragglers, tail
from recup.analyse.stuck import stuck
from recup.analyse.unfinished import unfinished_by_state, unfinished_tasks, want_text
from tests.unit.scheduled import came, graph, left, made, moved, nothing, ran, task
from tests.unit.written_runs import A, B, at

GPU = json.dumps({"workers": [], "hosts": [], "resources": {"GPU": 1}, "loose": False})


def rows(table, *names):
    return [tuple(each[name] for name in names) for each in table.to_pylist()]


def begun(key, state, seconds=1.0, worker=None, run_id=-1):
    """Transitions of a task up to a state."""
    first = [moved(seconds - (state != "waiting") * 1e-3, key, "released", "waiting")]
    return first if state == "waiting" else [*first, moved(seconds, key, "waiting", state, "s", worker, run_id)]


def waiting_for_gpu(tmp_path, *more, **options):
    """`a` wants a resource, `b-1` and `b-2` wait for it, `c` waits for `b-1`; nothing moves after second 1."""
    rows_ = [
        came(A), graph(count=4), *task("a", restrictions=GPU), *task("b-1", "a"), *task("b-2", "a"), *task("c", "b-1"),
        *begun("a", "no-worker"), *begun("b-1", "waiting"), *begun("b-2", "waiting"), *begun("c", "waiting"), *more,
    ]  # fmt: skip
    return made(tmp_path, rows_, {A: []}, **options)


def test_tasks_that_wait_are_counted_at_the_task_that_all_wait_for_in_the_end(tmp_path):
    with waiting_for_gpu(tmp_path, closed=False) as run:
        found = unfinished_tasks(run)
        assert rows(found, "key", "state", "since_at_s", "age_s", "root_key", "held_up_task_count") == [
            ("a", "no-worker", 1.0, 9.0, None, 3),
            ("b-1", "waiting", 1.0, 9.0, "a", 0),
            ("b-2", "waiting", 1.0, 9.0, "a", 0),
            ("c", "waiting", 1.0, 9.0, "a", 0),
        ]
        assert rows(unfinished_by_state(run), "state", "prefix", "task_count", "waits_on") == [
            ("waiting", "b", 2, "tasks that are no-worker"),
            ("no-worker", "a", 1, "resource GPU, which no worker offered when it came"),
            ("waiting", "c", 1, "tasks that are no-worker"),
        ]


def test_a_run_that_waits_for_a_resource_is_stuck_and_says_what_is_wanting(tmp_path):
    with waiting_for_gpu(tmp_path, closed=False) as run:
        answer = stuck(run)
    assert answer.headline == "Stuck: 4 tasks not finished when the record ended, 9.00 s after the last transition."
    assert [(each.certainty, each.thread_s, each.statement) for each in answer.conclusions] == [
        (
            "certain", 9.0,
            "No task moved for 9.00 s from 1.00 s on (to the end of the record) while 4 tasks were not finished; "
            "none of 1 thread computed.",
        ),
        (
            "certain", None,
            "1 task of a waited 9.00 s for resource GPU, which no worker offered when it came; 3 tasks wait for it.",
        ),
    ]  # fmt: skip
    assert "cut off" in answer.basis


def test_tasks_that_their_client_let_go_of_are_given_up_with_the_age_they_had(tmp_path):
    released = [moved(5.0, key, state, "released", "remove-client-1") for key, state in (("a", "no-worker"),)]
    forgotten = [moved(5.0, "a", "released", "forgotten", "remove-client-1")]
    with waiting_for_gpu(tmp_path, *released, *forgotten) as run:
        assert rows(unfinished_tasks(run), "key", "age_s", "given_up_at_s")[0] == ("a", 4.0, 5.0)


def test_workers_that_leave_when_all_is_over_leave_no_task_unfinished(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 1.0, 2.0)
    over = [
        left(A, 3.0, "handle-worker-cleanup-1"),
        moved(3.001, "a", "memory", "released", "handle-worker-cleanup-1"),
        moved(3.002, "a", "released", "waiting", "handle-worker-cleanup-1"),
        moved(3.003, "a", "waiting", "no-worker", "handle-worker-cleanup-1"),
    ]
    with made(tmp_path, [came(A), graph(), *task("a"), *by_scheduler, *over], {A: by_worker}) as run:
        answer = stuck(run)
    assert answer.headline == "Not stuck: no task was left unfinished (1 task began)."
    assert answer.conclusions == ()


def test_a_result_lost_with_a_worker_while_others_go_on_is_unfinished(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 1.0, 2.0)
    later, by_other = ran("b", 1, 4.0, 5.0, worker=B)
    lost = [
        left(A, 3.0),
        moved(3.001, "a", "memory", "released", "handle-worker-cleanup-1"),
        moved(3.002, "a", "released", "waiting", "handle-worker-cleanup-1"),
        moved(3.003, "a", "waiting", "no-worker", "handle-worker-cleanup-1"),
    ]
    only_a = json.dumps({"workers": [A], "hosts": [], "resources": {}, "loose": False})
    graphs = [came(A), came(B), graph(count=2), *task("a", restrictions=only_a), *task("b")]
    with made(tmp_path, [*graphs, *by_scheduler, *lost, *later], {A: by_worker, B: by_other}) as run:
        assert rows(unfinished_tasks(run), "key", "state", "waits_on") == [
            ("a", "no-worker", f"worker {A}, which was not there")
        ]


@pytest.mark.parametrize(
    ("seconds", "is_said"), [(19.0, False), (60.0, True)], ids=["as long as others take", "far longer"]
)
def test_a_task_on_a_worker_is_spoken_of_only_far_beyond_what_its_prefix_takes(tmp_path, seconds, is_said):
    done, by_worker = ran("x-1", 0, 1.0, 5.0)
    going_on = begun("x-2", "processing", 6.0, A, 1)
    graphs = [came(A), graph(count=3), *task("x-1"), *task("x-2"), *task("y", "x-2")]
    rows_ = [*graphs, *done, *going_on, *begun("y", "waiting", 6.0)]
    with made(tmp_path, rows_, {A: by_worker}, ended=6.0 + seconds, closed=False) as run:
        said = [each.statement for each in stuck(run).conclusions if each.evidence.get("key") == "x-2"]
    sentence = (
        f"x-2 is not finished after 60.0 s. 1 task waits for it; it was sent, and is not known to run on {A}; "
        "the longest finished one took 4.00 s."
    )
    assert said == ([sentence] if is_said else [])


def test_what_a_task_without_a_worker_wants_is_said_in_words():
    worker = {"address": A, "name": "big", "host": "10.0.0.1", "left_s": None, "resources": '{"GPU": 1}'}

    def wants(**restrictions):
        return want_text(json.dumps(restrictions), [worker], 5.0)

    assert want_text(None, [], 5.0) == "a worker: none was there"
    assert want_text(None, [{**worker, "left_s": 4.0}], 5.0) == "a worker: none was there"
    assert want_text(None, [worker], 5.0) == "a worker that may take it"
    assert wants(resources={"GPU": 1}) == "a worker with 1 of resource GPU"
    assert wants(resources={"GPU": 2}) == "2 of resource GPU, of which no worker offered more than 1"
    assert wants(workers=["big"]) == "worker big"
    assert wants(hosts=["10.0.0.9"], resources={"TPU": 1}) == (
        "resource TPU, which no worker offered when it came and host 10.0.0.9, which was not there"
    )


def test_a_silence_counts_only_while_tasks_are_unfinished_and_says_what_computed(tmp_path):
    first, by_worker = ran("a-1", 0, 1.0, 2.0)
    second, more = ran("a-2", 1, 6.0, 9.0)  # from 2 to 6 nothing is wanted
    with made(tmp_path, [came(A, threads=2), graph(count=2), *task("a-1"), *task("a-2"), *first, *second],
              {A: [*by_worker, *more]}) as run:  # fmt: skip
        found = silences(run)
        assert rows(
            found,
            "from_at_s",
            "duration_s",
            "unfinished_task_count",
            "computing_task_count",
            "computed_s",
            "thread_count",
            "longest_key",
            "is_at_end",
        ) == [(6.0, 3.0, 1, 1, 3.0, 2, "a-2", False)]
        assert stuck(run).conclusions[0].subject == "a"  # one thread of two computed throughout: all of it is tail


def test_the_tail_is_the_end_in_which_one_thread_computes(tmp_path):
    attempts = [ran("a-1", 0, 1.0, 3.0), ran("b-1", 1, 1.0, 7.0, thread=8)]
    graphs = [came(A, threads=2), graph(count=2), *task("a-1"), *task("b-1")]
    rows_ = [each for by_scheduler, _ in attempts for each in by_scheduler]
    with made(tmp_path, [*graphs, *rows_], {A: [each for _, mine in attempts for each in mine]}) as run:
        (found,) = tail(run).to_pylist()
        said = stuck(run).conclusions
    assert found == {
        "from_at_s": 3.0, "duration_s": 4.0, "tail_share": pytest.approx(4 / 6), "thread_count": 2,
        "computing_task_count": 1, "idle_s": 4.0, "longest_prefix": "b", "longest_key": "b-1", "longest_s": 6.0,
    }  # fmt: skip
    assert [(each.subject, each.thread_s) for each in said] == [("b", 4.0)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=30), st.integers(1, 5))
def test_after_the_tail_begins_never_more_than_the_limit_compute(spans, limit):
    started = np.sort(np.array([float(begin) for begin, _ in spans]))
    stopped = np.sort(np.array([float(begin + length) for begin, length in spans]))
    start = _tail_start(started, stopped, limit)
    for moment in np.arange(start + 0.5, stopped[-1]):
        assert sum(begin <= moment < begin + length for begin, length in spans) <= limit


def test_stragglers_are_told_from_others_of_their_prefix(tmp_path):
    attempts = [ran(f"a-{i}", i, 1.0 + i, 1.1 + i) for i in range(19)] + [ran("a-19", 19, 30.0, 35.0)]
    few = [ran("b-1", 20, 40.0, 40.1), ran("b-2", 21, 41.0, 49.0)]  # too few to know what is usual
    graphs = [
        came(A),
        graph(count=22),
        *(each for i in range(20) for each in task(f"a-{i}")),
        *task("b-1"),
        *task("b-2"),
    ]
    rows_ = [each for by_scheduler, _ in (*attempts, *few) for each in by_scheduler]
    with made(tmp_path, [*graphs, *rows_], {A: [each for _, m in (*attempts, *few) for each in m]}, ended=60) as run:
        found = stragglers(run).to_pylist()
        said = [each for each in stuck(run).conclusions if each.subject == "a"]
    assert [(each["key"], each["attempt_count"], round(each["excess_s"], 6)) for each in found] == [("a-19", 20, 4.9)]
    assert said[0].statement == (
        "1 task of 20 of a took more than 3 times what nine of ten take: up to 5.00 s (a-19 on tcp://10.0.0.1:4001), "
        "median 100 ms."
    )


def test_a_run_without_anything_is_not_called_stuck(tmp_path):
    with nothing(tmp_path) as run:
        answer = stuck(run)
    assert answer.headline == "No scheduler is in this record: whether it is stuck is not known."
    assert answer.conclusions == ()
    assert all(each.rows.num_rows == 0 for each in answer.tables)


def test_a_scheduler_without_tasks_is_not_called_stuck(tmp_path):
    with made(tmp_path, [came(A)], {A: []}) as run:
        assert stuck(run).headline == "No task was begun, so none is stuck."


def test_where_transitions_were_lost_what_wants_a_worker_is_only_possible(tmp_path):
    lost = schema.Loss(at(2), "dropped", "scheduler_transitions", 3, "memory")
    with waiting_for_gpu(tmp_path, lost) as run:
        answer = stuck(run)
    assert [each.certainty for each in answer.conclusions if each.subject == "a"] == ["possible"]
    assert "some of these tasks may have finished" in answer.basis


def test_a_long_task_of_a_prefix_of_which_none_finished_is_no_sign_of_being_stuck(tmp_path):
    rows_ = [came(A), graph(), *task("x-1"), *begun("x-1", "processing", 6.0, A, 1)]
    executing = schema.WorkerTransition(at(6.1), "x-1", 1, "ready", "executing", None, "compute-task")
    with made(tmp_path, rows_, {A: [executing]}, ended=66, closed=False) as run:
        answer = stuck(run)
    assert answer.conclusions == ()
    assert answer.headline == (
        "1 task not finished when the record ended, 60.0 s after the last transition; nothing shows that it was stuck."
    )


def test_tasks_that_stand_while_no_thread_computes_are_stuck(tmp_path):
    rows_ = [came(A), graph(), *task("x-1"), *begun("x-1", "processing", 6.0, A, 1)]
    with made(tmp_path, rows_, {A: []}, ended=66, closed=False) as run:
        answer = stuck(run)
    assert answer.headline == "Stuck: 1 task not finished when the record ended, 60.0 s after the last transition."
    assert [(each.subject, each.thread_s) for each in answer.conclusions] == [("silence", pytest.approx(60.0))]
