import pytest

from recup import schema
from recup.fuse import OUTCOMES, VIEWS
from recup.store import open_run
from tests.unit.spooled import left_by_a_killed_server, write
from tests.unit.written_runs import START_NS, A, B, at, row

S = "Scheduler-1"
START_S = START_NS / 1e9


def moved(seconds, key, start, finish, stimulus="s", worker=None, run_id=-1):  # noqa: PLR0917
    return schema.SchedulerTransition(at(seconds), key, start, finish, stimulus, worker, run_id)


def sent(seconds, key, worker, run_id, start="waiting"):
    return moved(seconds, key, start, "processing", f"update-graph-{seconds}", worker, run_id)


def process(role, host="host", **values):
    return row(schema.Process, role=role, host_id=host, scheduler_id=S, **values)


def came(address, worker_id, seconds=0.0, action="add", **values):
    return row(schema.Worker, time_ns=at(seconds), action=action, address=address, worker_id=worker_id, **values)


def gone(address, worker_id, seconds, stimulus):
    return row(
        schema.Worker, time_ns=at(seconds), action="remove", address=address, worker_id=worker_id, stimulus_id=stimulus
    )


def ran(seconds, key, run_id, outcome, *, start=0.0, stop=0.0, delay=0.0, worker=A, **values):
    return row(
        schema.Result, time_ns=at(seconds), key=key, run_id=run_id, outcome=outcome, worker=worker,
        compute_start_s=START_S + start, compute_stop_s=START_S + stop, scheduler_delay_s=delay, **values,
    )  # fmt: skip


def asked(tmp_path, query, *, scheduler=(), a=(), b=(), nanny=(), client=(), hosts=("host", "host")):
    """Write a run of a scheduler and two workers, and return the answer to a query."""
    path = tmp_path / "run"
    arrivals = [came(A, "Worker-a"), came(B, "Worker-b")]
    write(path, "scheduler", S, [process("scheduler"), *arrivals, *scheduler])
    write(path, "worker", "Worker-a", [process("worker", hosts[0], address=A), *a])
    write(path, "worker", "Worker-b", [process("worker", hosts[1], address=B), *b])
    if nanny:
        write(path, "nanny", "Nanny-a", [process("nanny"), *nanny])
    if client:
        write(path, "client", "Client-1", client)
    with open_run(path) as run:
        return run.sql(query).fetchall()


def outcomes(tmp_path, **servers):
    return asked(tmp_path, "select run_id, outcome from task_runs order by run_id", **servers)


# ---------------------------------------------------------------- outcomes


def test_a_result_the_scheduler_took_is_memory(tmp_path):
    rows = [sent(1, "x", A, 0), moved(2, "x", "processing", "memory", "task-finished-1", A, 0)]
    assert outcomes(tmp_path, scheduler=rows) == [(0, "memory")]


def test_a_failure_that_was_retried_is_an_error_with_its_text(tmp_path):
    rows = [
        sent(1, "x", A, 0),
        moved(2, "x", "processing", "released", "task-erred-2", None, 0),
        sent(2.1, "x", A, 1),
        moved(3, "x", "processing", "erred", "task-erred-3", A, 1),
        schema.TaskError(at(3), "x", 1, A, None, "second", None),
    ]
    worker = [ran(1.9, "x", 0, "error"), schema.TaskError(at(1.9), "x", 0, A, None, "first", None)]
    query = "select run_id, outcome, exception_text, attempt_number from task_runs order by run_id"
    assert asked(tmp_path, query, scheduler=rows, a=worker) == [(0, "error", "first", 1), (1, "error", "second", 2)]


def test_a_failure_on_a_worker_not_captured_is_known_by_its_message(tmp_path):
    rows = [sent(1, "x", A, 0), moved(2, "x", "processing", "released", "task-erred-2", None, 0)]
    assert outcomes(tmp_path, scheduler=rows) == [(0, "error")]


def test_a_steal_ends_one_attempt_and_begins_another(tmp_path):
    rows = [
        sent(1, "x", A, 20),
        row(schema.Steal, time_ns=at(1.5), decision="confirm", key="x", victim=A, thief=B, run_id=28),
        moved(2, "x", "processing", "memory", "task-finished-2", B, 28),
    ]
    query = (
        "select run_id, worker, worker_id, outcome, is_from_steal, assigned_s, ended_s from task_runs order by run_id"
    )
    assert asked(tmp_path, query, scheduler=rows) == [
        (20, A, "Worker-a", "stolen", False, START_S + 1, START_S + 1.5),
        (28, B, "Worker-b", "memory", True, START_S + 1.5, START_S + 2),
    ]


def test_an_attempt_on_a_worker_that_went_is_lost(tmp_path):
    rows = [
        sent(1, "x", A, 0),
        sent(1, "y", A, 1),
        moved(2, "x", "processing", "released", "handle-worker-cleanup-2", None, 0),
        moved(2, "y", "processing", "erred", "handle-worker-cleanup-2", None, 1),
        gone(A, "Worker-a", 2, "handle-worker-cleanup-2"),
        sent(2.1, "x", B, 2),
        moved(3, "x", "processing", "memory", "task-finished-3", B, 2),
    ]
    assert outcomes(tmp_path, scheduler=rows) == [(0, "lost"), (1, "lost"), (2, "memory")]


def test_an_attempt_nobody_wants_any_more_is_cancelled(tmp_path):
    rows = [sent(1, "x", A, 0), moved(2, "x", "processing", "released", "client-releases-keys-2", None, 0)]
    assert outcomes(tmp_path, scheduler=rows, a=[ran(3, "x", 0, "memory")]) == [(0, "cancelled")]


def test_a_task_that_asked_for_it_is_rescheduled(tmp_path):
    rows = [sent(1, "x", A, 0), moved(2, "x", "processing", "released", "reschedule-2", None, 0)]
    worker = [schema.WorkerTransition(at(2), "x", 0, "executing", "rescheduled", None, "reschedule-2")]
    assert outcomes(tmp_path, scheduler=rows, a=worker) == [(0, "rescheduled")]


def test_what_nothing_ended_was_running_at_the_end(tmp_path):
    assert outcomes(tmp_path, scheduler=[sent(1, "x", A, 0)]) == [(0, "running_at_end")]


def test_what_may_have_ended_in_lost_rows_is_unknown(tmp_path):
    lost = schema.Loss(at(3), "dropped", "scheduler_transitions", 10, "full disk")
    assert outcomes(tmp_path, scheduler=[sent(1, "x", A, 0), lost]) == [(0, "unknown")]


def test_what_its_key_did_later_shows_that_it_ended_somehow(tmp_path):
    rows = [sent(1, "x", A, 0), moved(5, "x", "memory", "released")]
    assert outcomes(tmp_path, scheduler=rows) == [(0, "unknown")]


def test_a_worker_is_believed_where_the_scheduler_recorded_no_end(tmp_path):
    rows = [sent(1, "x", A, 0), sent(1, "y", A, 1)]
    worker = [ran(2, "x", 0, "memory"), ran(2, "y", 1, "error")]
    assert outcomes(tmp_path, scheduler=rows, a=worker) == [(0, "memory"), (1, "error")]


def test_an_attempt_only_a_worker_tells_of_is_kept(tmp_path):
    assert outcomes(tmp_path, a=[schema.Reception(at(1), "x", 7, 0, 0, 0)]) == [(7, "unknown")]


def test_no_attempt_has_another_outcome_than_those_named(tmp_path):
    assert {outcome for _, outcome in outcomes(tmp_path, scheduler=[sent(1, "x", A, 0)])} <= set(OUTCOMES)


# ---------------------------------------------------------------- times


def test_an_attempt_has_the_times_of_all_who_saw_it(tmp_path):
    rows = [
        row(schema.Submission, time_ns=at(0.5), submission=0, client="c", stimulus_id="update-graph-0"),
        row(schema.Task, submission=0, key="x", prefix="p", group="g", function="f"),
        moved(0.6, "x", "released", "waiting"),
        moved(0.7, "x", "waiting", "queued"),
        sent(1, "x", A, 0, start="queued"),
        moved(2, "x", "processing", "memory", "task-finished-1", A, 0),
    ]
    worker = [
        schema.Reception(at(1.1), "x", 0, 0, 0, 0),
        schema.WorkerTransition(at(1.2), "x", 0, "ready", "executing", None, "s"),
        # Dask shifted these by 0.25 s; the worker's clock is the scheduler's.
        ran(1.8, "x", 0, "memory", start=1.5, stop=2.0, delay=0.25, nbytes=5, typename="int", thread=9),
        schema.StartStop("x", 0, "transfer", START_S, START_S + 0.5, B),
        schema.StartStop("x", 0, "transfer", START_S, START_S + 0.25, B),
    ]
    query = """
        select key, run_id, prefix, "group", function, submission, worker, worker_id, host_id, thread,
            submitted_s - ?, ready_s - ?, assigned_s - ?, received_s - ?, executing_s - ?, started_s - ?, stopped_s - ?,
            stored_s - ?, ended_s - ?, compute_s, transfer_s, disk_read_s, nbytes, typename, outcome, clock_error_s
        from task_runs
    """.replace("?", str(START_S))
    ((*facts, clock_error),) = asked(tmp_path, query, scheduler=rows, a=worker)
    assert facts[:10] == ["x", 0, "p", "g", "f", 0, A, "Worker-a", "host", 9]
    assert facts[10:19] == pytest.approx([0.5, 0.7, 1, 1.1, 1.2, 1.25, 1.75, 2, 2])
    assert facts[19:] == [0.5, 0.75, 0.0, 5, "int", "memory"]
    assert clock_error == 1e-6


def test_without_the_worker_the_scheduler_tells_times_less_sure(tmp_path):
    rows = [
        sent(1, "x", A, 0),
        moved(2, "x", "processing", "memory", "task-finished-1", A, 0),
        ran(2, "x", 0, "memory", start=1.5, stop=1.75, delay=None, nbytes=5),
    ]
    samples = [
        row(schema.ClockSample, time_ns=at(i), monotonic_ns=i, scheduler_delay_s=d) for i, d in enumerate([0, 0.5])
    ]
    query = f"select started_s - {START_S}, stopped_s - {START_S}, received_s, transfer_s, nbytes, clock_error_s from task_runs"
    assert asked(tmp_path, query, scheduler=rows, a=samples) == [(1.5, 1.75, None, None, 5, 0.5)]


def test_a_delay_that_contradicts_the_worker_s_own_clock_is_not_called_sure(tmp_path):
    rows = [sent(1, "x", A, 0)]
    worker = [
        row(schema.ClockSample, time_ns=at(0), monotonic_ns=0, scheduler_delay_s=0.3),
        schema.WorkerTransition(at(1.2), "x", 0, "ready", "executing", None, "s"),
        ran(1.5, "x", 0, "memory", start=1.3, stop=1.4, delay=0.3),
    ]
    assert asked(tmp_path, "select clock_error_s from task_runs", scheduler=rows, a=worker) == [(0.3,)]


def test_the_graph_of_an_attempt_is_the_one_that_brought_the_task(tmp_path):
    def graph(number, seconds):
        return [
            row(schema.Submission, time_ns=at(seconds), submission=number, client="c", stimulus_id="s"),
            row(schema.Task, submission=number, key="x", prefix=f"p{number}", group="g"),
        ]

    rows = [
        *graph(0, 0), *graph(1, 1), sent(2, "x", A, 0), moved(3, "x", "processing", "memory", "s", A, 0),
        moved(4, "x", "released", "forgotten"), *graph(2, 5), sent(6, "x", A, 1),
    ]  # fmt: skip
    query = "select run_id, submission, prefix from task_runs order by run_id"
    assert asked(tmp_path, query, scheduler=rows) == [(0, 0, "p0"), (1, 2, "p2")]


def test_clocks_of_one_host_are_one_and_others_come_from_the_median(tmp_path):
    def samples(*delays):
        return [
            row(schema.ClockSample, time_ns=at(i), monotonic_ns=i, scheduler_delay_s=d) for i, d in enumerate(delays)
        ]

    query = "select server_id, offset_s, error_s, delay_error_s, sample_count, basis from clocks order by server_id"
    assert asked(tmp_path, query, a=samples(0.25, 0.5), b=samples(2.0, 2.5, 4.0), hosts=("host", "other")) == [
        (S, 0.0, 0.0, None, 0, "scheduler"),
        ("Worker-a", 0.0, 1e-6, 0.5, 2, "same host"),
        ("Worker-b", 2.5, 1.5, 1.5, 3, "scheduler_delay"),
    ]


def test_a_clock_of_which_nothing_is_known_is_called_unknown(tmp_path):
    query = "select offset_s, error_s, basis from clocks where server_id = 'Worker-b'"
    assert asked(tmp_path, query, hosts=("host", "other")) == [(None, None, "unknown")]


def test_times_of_another_host_are_aligned(tmp_path):
    samples = [row(schema.ClockSample, time_ns=at(i), monotonic_ns=i, scheduler_delay_s=10.0) for i in range(3)]
    worker = [
        *samples,
        schema.Reception(at(-9), "x", 0, 0, 0, 0),
        ran(-8, "x", 0, "memory", start=1.5, stop=1.75, delay=10.0, worker=B),
        schema.StartStop("x", 0, "disk-read", START_S - 8.5, START_S - 8.25, None),
    ]
    query = f"select received_s - {START_S}, started_s - {START_S}, stopped_s - {START_S} from task_runs"
    found = asked(tmp_path, query, scheduler=[sent(1, "x", B, 0)], b=worker, hosts=("host", "other"))
    assert found == [(1.0, 1.5, 1.75)]
    with open_run(tmp_path / "run") as run:
        read = run.sql(
            f"select action, start_s - {START_S}, stop_s - {START_S} from activities order by 2, 1"
        ).fetchall()
    assert read == [("compute", 1.5, 1.75), ("disk-read", 1.5, 1.75)]


# ---------------------------------------------------------------- transfers


def transfer(number, direction, peer, start, stop, *, keys=("k",), delay=0.0):
    entry = schema.Transfer(
        at(stop), number, direction, peer, START_S + start, START_S + stop, 100, None, len(keys), delay
    )
    return [entry, *(schema.TransferKey(number, key, 100) for key in keys)]


PAIRS = f"""
    select source_worker_id, destination_worker_id, start_s - {START_S}, stop_s - {START_S}, seen_by, is_paired
    from transfers_distinct order by start_s, seen_by
"""


def test_both_ends_of_a_transfer_are_one_row(tmp_path):
    a, b = transfer(0, "outgoing", B, 1.0, 1.5), transfer(0, "incoming", A, 1.25, 1.75, delay=0.25)
    assert asked(tmp_path, PAIRS, a=a, b=b) == [("Worker-a", "Worker-b", 1.0, 1.5, "both", True)]


def test_transfers_of_the_same_keys_are_paired_in_order(tmp_path):
    a = [*transfer(0, "outgoing", B, 1.0, 1.5), *transfer(1, "outgoing", B, 3.0, 3.5)]
    b = [*transfer(0, "incoming", A, 1.0, 1.5), *transfer(1, "incoming", A, 3.0, 3.5)]
    query = "select outgoing_transfer, incoming_transfer from transfers_distinct order by start_s"
    assert asked(tmp_path, query, a=a, b=b) == [(0, 0), (1, 1)]


def test_ends_that_do_not_fit_stay_apart(tmp_path):
    a = [*transfer(0, "outgoing", B, 1.0, 1.5, keys=("k", "l")), *transfer(1, "outgoing", B, 5.0, 5.5, keys=("m",))]
    b = [*transfer(0, "incoming", A, 1.0, 1.5, keys=("k",)), *transfer(1, "incoming", A, 2.0, 2.5, keys=("m",))]
    assert [(start, seen_by, paired) for _, _, start, _, seen_by, paired in asked(tmp_path, PAIRS, a=a, b=b)] == [
        (1.0, "destination", False), (1.0, "source", False), (2.0, "destination", False), (5.0, "source", False),
    ]  # fmt: skip


def test_a_transfer_of_less_than_a_millisecond_has_no_bandwidth(tmp_path):
    b = [*transfer(0, "incoming", A, 1.0, 1.0005), *transfer(1, "incoming", A, 2.0, 2.5, keys=("l",))]
    query = "select bandwidth_bytes_per_s from transfers_distinct order by start_s"
    assert asked(tmp_path, query, b=b) == [(None,), (200.0,)]


def test_an_address_used_again_is_another_worker(tmp_path):
    rows = [gone(A, "Worker-a", 2, "s"), came(A, "Worker-z", 3)]
    b = [*transfer(0, "incoming", A, 1.0, 1.5), *transfer(1, "incoming", A, 4.0, 4.5)]
    found = asked(tmp_path, "select source_worker_id from transfers_distinct order by start_s", scheduler=rows, b=b)
    assert found == [("Worker-a",), ("Worker-z",)]


# ---------------------------------------------------------------- lives, submissions, summary


def test_lives_of_workers_say_how_they_ended(tmp_path):
    path = tmp_path / "run"
    addresses = {name: f"tcp://{name}:1" for name in ("closed", "killed", "gone", "there", "unseen")}
    rows = [came(addresses[name], name) for name in ("closed", "killed", "gone", "there")]
    rows += [gone(addresses[name], name, 5, "handle-worker-cleanup-5") for name in ("closed", "killed", "gone")]
    write(path, "scheduler", S, [process("scheduler"), *rows])
    write(path, "worker", "closed", [schema.ProcessEnd(at(5), "closed", "worker", None, "closed", None, None, None)])
    write(path, "worker", "unseen", [process("worker", address=addresses["unseen"])])
    left_by_a_killed_server(path, "worker", "killed", [process("worker", address=addresses["killed"])])
    end = schema.ProcessEnd(at(5.1), addresses["killed"], "worker", 7, "signalled", None, 9, "memory")
    write(path, "nanny", "Nanny-1", [end])
    query = "select worker_id, ended, reason, is_captured, left_s is not null from worker_lives order by worker_id"
    with open_run(path) as run:
        assert run.sql(query).fetchall() == [
            ("closed", "closed", None, True, True),
            ("gone", "removed", None, False, True),
            ("killed", "signal 9", "memory", True, True),
            ("there", "there at the end", None, False, False),
            ("unseen", "unknown", None, True, False),
        ]


def process_end(seconds, address, pid, signal):
    return schema.ProcessEnd(at(seconds), address, "worker", pid, "signalled", None, signal, None)


def test_the_end_of_a_process_belongs_to_the_worker_of_that_process_whatever_address_its_nanny_names(tmp_path):
    path = tmp_path / "run"
    old, new = "tcp://10.0.0.1:1", "tcp://10.0.0.1:2"
    rows = [
        came(old, "old", 0, pid=11), gone(old, "old", 3, "retire-workers"),
        came(new, "new", 4, pid=12), gone(new, "new", 6, "handle-worker-cleanup"),
        came("tcp://10.0.0.9:1", "elsewhere", 4, pid=12),
        came("tcp://10.0.0.1:3", "untold", 4), came("tcp://10.0.0.1:4", "unnamed", 4, pid=14),
    ]  # fmt: skip
    write(path, "scheduler", S, [process("scheduler"), *rows])
    ends = [
        process_end(6.1, old, 12, 9),
        process_end(7, "tcp://10.0.0.1:3", 13, 11),
        process_end(8, "tcp://10.0.0.1:4", None, 6),
    ]
    write(path, "nanny", "Nanny-1", [process("nanny"), *ends])
    query = f"""
        select worker_id, ended, process_end_s - {START_S} from worker_lives where address is not null order by worker_id
    """
    with open_run(path) as run:
        assert run.sql(query).fetchall() == [
            ("elsewhere", "there at the end", None),
            ("new", "signal 9", pytest.approx(6.1)),
            ("old", "removed", None),
            ("unnamed", "signal 6", pytest.approx(8)),
            ("untold", "signal 11", pytest.approx(7)),
        ]


def graph_sent(number, digest, error=None):
    return row(
        schema.ClientSubmission, time_ns=at(number), submission=number, client="Client-1", expression="X",
        keys_digest=digest, error=error,
    )  # fmt: skip


def graph_taken(number, digest):
    return row(
        schema.Submission,
        time_ns=at(number + 0.5),
        submission=number,
        client="Client-1",
        stimulus_id="s",
        keys_digest=digest,
    )


STORY = "select client_submission, submission, is_exact, line from submission_story order by 1, 2"


def test_graphs_are_joined_by_the_digest_of_their_keys(tmp_path):
    frames = [
        row(schema.SubmissionFrame, submission=1, depth=1, path="lib.py", line=9, function="g"),
        row(schema.SubmissionFrame, submission=1, depth=0, path="job.py", line=3, function="f"),
    ]
    client = [graph_sent(0, "d"), graph_sent(1, "e"), graph_sent(2, "d"), graph_sent(3, "f", "ValueError"), *frames]
    scheduler = [graph_taken(0, "d"), graph_taken(1, "e"), graph_taken(2, "d")]
    assert asked(tmp_path, STORY, scheduler=scheduler, client=client) == [
        (0, 0, True, None), (1, 1, True, 3), (2, 2, True, None), (3, None, None, None),
    ]  # fmt: skip


def test_graphs_without_a_digest_are_joined_by_order_and_called_inexact(tmp_path):
    client, scheduler = [graph_sent(0, None), graph_sent(1, "e")], [graph_taken(0, None), graph_taken(1, "e")]
    found = asked(tmp_path, STORY, scheduler=scheduler, client=client)
    assert found == [(0, 0, False, None), (1, 1, True, None)]


def test_a_graph_of_which_one_side_is_lost_stays(tmp_path):
    found = asked(tmp_path, STORY, scheduler=[graph_taken(0, "d"), graph_taken(1, "d")], client=[graph_sent(0, "d")])
    assert found == [(0, None, None, None), (None, 0, None, None), (None, 1, None, None)]


def test_the_summary_counts_what_the_views_hold(tmp_path):
    rows = [
        row(schema.Submission, time_ns=at(0.5), submission=0, client="c", stimulus_id="update-graph-0"),
        row(schema.Task, submission=0, key="x", prefix="p", group="g"),
        sent(1, "x", A, 0),
        moved(2, "x", "processing", "memory", "task-finished-1", A, 0),
    ]
    query = """
        select scheduler_count, worker_count, worker_captured_count, host_count, submission_count, task_count,
            attempt_count, memory_count, error_count, first_task_s, last_task_s, loss_count
        from run_summary
    """
    assert asked(tmp_path, query, scheduler=rows) == [(1, 2, 2, 1, 1, 1, 1, 1, 0, START_S + 1, START_S + 2, 0)]


def test_every_view_says_what_its_columns_mean():
    for view in VIEWS:
        if not view.is_inner:
            assert view.meaning
            assert all(column.meaning for column in view.columns), view.name


def test_rows_multiply_nowhere(tmp_path):
    """However many rows tell of one attempt, it is one row."""
    path = tmp_path / "run"
    rows = [process("scheduler"), came(A, "Worker-a"), came(A, "Worker-a", 0, "present")]
    rows += [sent(1, "x", A, 0), sent(1, "x", A, 0), moved(2, "x", "processing", "memory", "s", A, 0)] * 2
    rows += [gone(A, "Worker-a", 3, "s"), gone(A, "Worker-a", 3, "s"), gone(A, "Worker-a", 4, "s")]
    rows += [schema.TaskError(at(2), "x", 0, A, None, "e", None)] * 2
    write(path, "scheduler", S, rows)
    told = [
        process("worker", address=A),
        process("worker", address=A),
        ran(2, "x", 0, "memory"),
        ran(2, "x", 0, "memory"),
    ]
    told += [schema.Reception(at(1), "x", 0, 0, 0, 0)] * 2 + [schema.StartStop("x", 0, "transfer", 1.0, 2.0, B)] * 2
    write(path, "worker", "Worker-a", told)
    with open_run(path) as run:
        assert run.sql("select count(*) from task_runs").fetchall() == [(1,)]
        assert run.sql("select count(*) from servers").fetchall() == [(2,)]
        assert run.sql("select count(*) from clocks").fetchall() == [(2,)]


def test_what_was_not_counted_of_a_coroutine_is_unknown_and_no_time_of_none(tmp_path):
    def counted(seconds, run_id, kind, **values):
        return row(
            schema.ThreadCounter, time_ns=at(seconds), key="x", run_id=run_id, kind=kind, outcome="returned", thread=1,
            wall_ns=1_000_000_000, **values,
        )  # fmt: skip

    query = "select kind, wall_s, cpu_s, blocked_s from task_counters order by run_id"
    coroutine = counted(1, 0, "coroutine", cpu_ns=-1, queue_wait_ns=-1)
    task = counted(2, 1, "task", cpu_ns=200_000_000, queue_wait_ns=100_000_000)
    assert asked(tmp_path, query, a=[coroutine, task]) == [("coroutine", 1.0, None, None), ("task", 1.0, 0.2, 0.7)]
