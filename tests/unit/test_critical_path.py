"""The chain that set the wall time, and what the wall time is at least."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recup import schema
from recup.analyse.critical_path import (
    KINDS,
    critical_path,
    critical_path_kinds,
    critical_path_links,
    critical_path_prefixes,
    ideal_times,
)
from recup.analyse.critical_path_ideal import longest_path, replayed
from recup.rundir import create_run, update_manifest
from recup.store import open_run
from tests.unit.odd_runs import write_odd
from tests.unit.written_runs import NASTY, START_NS, A, at, row, write, write_run


def links(run):
    """The chain: key, attempt, seconds computed, and other kinds by name."""
    told = []
    for each in critical_path_links(run).to_pylist():
        kinds = {name: pytest.approx(each[f"{name}_s"], abs=1e-6) for name, _ in KINDS if each[f"{name}_s"] > 1e-6}
        told.append((each["key"], each["run_id"], kinds))
    return told


def check(run):
    """What holds of every chain."""
    table, kinds, prefixes = critical_path_links(run), critical_path_kinds(run), critical_path_prefixes(run)
    total = sum(kinds["path_s"].to_pylist())
    for each in table.to_pylist():
        assert min(each["duration_s"], each["wait_s"]) >= -1e-9
        assert sum(each[f"{name}_s"] for name, _ in KINDS) == pytest.approx(each["duration_s"] + each["wait_s"])
    assert sum(prefixes["path_s"].to_pylist()) == pytest.approx(total)
    cases = dict(zip(ideal_times(run)["case"].to_pylist(), ideal_times(run)["wall_s"].to_pylist(), strict=True))
    if len(table):
        assert total == pytest.approx(cases["since the start"], abs=1e-6)
    if cases["these workers"] is not None:
        assert cases["infinitely many workers"] <= cases["these workers"]
        replay = cases["these workers, replayed"]
        assert replay is None or cases["these workers"] <= replay + 1e-9
    answer = critical_path(run)
    assert answer.headline and answer.basis
    return cases


def test_the_chain_goes_through_a_failed_attempt_and_an_input_to_the_start(tmp_path):
    with open_run(write_run(tmp_path)) as run:
        cases = check(run)
        assert links(run) == [
            ("inc-1", 0, {"start": 1.0, "latency": 0.01 + 0.01 + 0.07 + 0.1, "unknown": 0.01, "compute": 0.3}),
            (NASTY, 1, {"latency": 0.01 + 0.01 + 0.06, "unknown": 0.09, "repeat": 0.03}),
            (NASTY, 2, {"repeat": 0.01, "latency": 0.01 + 0.05, "unknown": 0.08, "compute": 0.05}),
        ]
        assert cases == {
            "infinitely many workers": pytest.approx(0.35, abs=1e-6),
            "evenly spread": pytest.approx(0.35 / 4, abs=1e-6),
            "these workers": pytest.approx(0.35, abs=1e-6),
            "these workers, replayed": pytest.approx(0.35, abs=1e-6),
            "since the first graph": pytest.approx(0.9, abs=1e-6),
            "since the start": pytest.approx(1.9, abs=1e-6),
        }
        assert critical_path(run).conclusions == ()


def waiting_rows():
    """`late-1` waits for the thread that `first-1` has, then for an input; `next-1` is submitted only later."""

    def moved(seconds, key, start, finish, run_id):
        return schema.SchedulerTransition(at(seconds), key, start, finish, "s", A, run_id)

    scheduler = [
        row(schema.Worker, time_ns=at(0.5), action="add", address=A, worker_id="Worker-a", thread_count=1),
        row(schema.Submission, time_ns=at(1), submission=0, client="Client-1", stimulus_id="s"),
        row(schema.Submission, time_ns=at(9), submission=1, client="Client-1", stimulus_id="s"),
        row(schema.Task, submission=0, key="first-1", prefix="first", group="first", priority_order=0),
        row(schema.Task, submission=0, key="late-1", prefix="late", group="late", priority_order=1),
        row(schema.Task, submission=1, key="next-1", prefix="next", group="next", priority_order=0),
    ]
    worker = [
        row(
            schema.Process, time_ns=at(0.5), role="worker", address=A, scheduler_id="Scheduler-1", host_id="host",
            arguments="[]", resource_limits="{}", thread_count=1,
        )
    ]  # fmt: skip
    #       key, assigned, received, ready, executing, started, stopped, stored
    times = (
        ("first-1", 1.0, 1.25, 1.25, 1.25, 1.5, 3.5, 3.75),
        ("late-1", 1.0, 1.25, 3.0, 3.5, 3.75, 5.75, 6.0),
        ("next-1", 9.0, 9.25, 9.25, 9.25, 9.5, 10.0, 10.25),
    )
    for run_id, (key, assigned, received, ready, executing, started, stopped, stored) in enumerate(times):
        scheduler += [
            moved(assigned, key, "waiting", "processing", run_id),
            moved(stored, key, "processing", "memory", run_id),
        ]
        worker += [
            schema.Reception(at(received), key, run_id, 0, 0, 0),
            schema.WorkerTransition(at(ready), key, run_id, "waiting", "ready", None, "s"),
            schema.WorkerTransition(at(executing), key, run_id, "ready", "executing", None, "s"),
            schema.Result(
                at(stopped),
                key,
                run_id,
                "memory",
                A,
                7,
                1,
                "int",
                START_NS / 1e9 + started,
                START_NS / 1e9 + stopped,
                0.0,
            ),
        ]
    return scheduler, worker


def test_waits_for_inputs_threads_and_the_client_are_named(tmp_path):
    path = create_run(tmp_path, way="run", run_id="20231114T221320Z-abcd")
    scheduler, worker = waiting_rows()
    host = row(
        schema.Process, time_ns=at(0.5), role="scheduler", address="tcp://10.0.0.9:8786", scheduler_id="Scheduler-1",
        host_id="host", arguments="[]", resource_limits="{}",
    )  # fmt: skip
    write(path, "scheduler", "Scheduler-1", [host, *scheduler])
    write(path, "worker", "Worker-a", worker)
    update_manifest(path, state="ended", started_ns=START_NS, ended_ns=at(11))
    with open_run(path) as run:
        cases = check(run)
        assert links(run) == [
            ("late-1", 1, {"start": 1.0, "latency": 0.75, "transfer": 1.75, "slot": 0.5, "compute": 2.0}),
            ("next-1", 2, {"client": 3.0, "latency": 0.75, "compute": 0.5}),
        ]
        assert list(cases.values()) == [pytest.approx(each, abs=1e-6) for each in (2.0, 4.5, 4.5, 4.5, 9.25, 10.25)]
        assert [(each.subject, each.evidence["kind"]) for each in critical_path(run).conclusions] == [
            ("next", "client"),
            ("late", "transfer"),
            ("late", "latency"),
        ]


def test_an_empty_record_has_no_chain(tmp_path):
    with open_run(create_run(tmp_path, way="run", run_id="20231114T221320Z-abcd")) as run:
        assert set(check(run).values()) == {None}
        assert critical_path(run).conclusions == ()
        assert "no chain" in critical_path(run).headline


def test_of_a_killed_scheduler_there_is_the_attempt_that_its_worker_told_last(tmp_path):
    with open_run(write_run(tmp_path, ended=False, skip=("Scheduler-1", "Client-1"))) as run:
        check(run)
        assert [(key, run_id) for key, run_id, _ in links(run)][-1] == (NASTY, 2)


def test_where_a_task_is_told_to_need_itself_no_replay_is_known(tmp_path):
    path = create_run(tmp_path, way="run", run_id="20231114T221320Z-abcd")
    of_x = {"key": "x", "run_id": 0, "worker": A}
    scheduler = [
        row(schema.Submission, time_ns=at(0), submission=0),
        row(schema.Task, submission=0, key="x", prefix="x", group="x"),
        row(schema.Dependency, submission=0, key="x", dependency="x"),
        row(schema.SchedulerTransition, time_ns=at(0), start="waiting", finish="processing", stimulus_id="s", **of_x),
        row(schema.SchedulerTransition, time_ns=at(1), start="processing", finish="memory", stimulus_id="t", **of_x),
    ]
    worker = [
        row(schema.Process, time_ns=at(0), role="worker", address=A, scheduler_id="Scheduler-1", thread_count=1),
        row(
            schema.Result,
            time_ns=at(1),
            outcome="memory",
            compute_start_s=at(0) / 1e9,
            compute_stop_s=at(1) / 1e9,
            **of_x,
        ),
    ]
    write(path, "scheduler", "Scheduler-1", scheduler)
    write(path, "worker", "Worker-a", worker)
    with open_run(path) as run:
        cases = dict(zip(ideal_times(run)["case"].to_pylist(), ideal_times(run)["wall_s"].to_pylist(), strict=True))
    assert (cases["these workers"], cases["these workers, replayed"]) == (pytest.approx(1.0), None)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 8))
    seconds = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    edges = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=12))
    return np.array(seconds, float), [(max(edge), min(edge)) for edge in edges if edge[0] != edge[1]]


@given(graphs(), st.integers(1, 3))
def test_the_longest_path_is_within_the_bound_and_the_replay_is_a_schedule(graph, threads):
    seconds, edges = graph
    task, dependency = (np.array([edge[at] for edge in edges], np.int64) for at in (0, 1))
    ends = {}
    for at_node, own in enumerate(seconds):
        ends[at_node] = own + max((ends[needed] for needing, needed in edges if needing == at_node), default=0)
    longest = longest_path(seconds, task, dependency)
    assert longest == max(ends.values())
    least = max(longest, seconds.sum() / threads)
    replay = replayed(seconds, task, dependency, np.arange(len(seconds)), threads)
    # Greedy schedules take at most this much longer (Graham).
    assert least <= replay <= seconds.sum() / threads + (1 - 1 / threads) * longest + 1e-9


def test_tasks_that_need_each_other_are_left_out():
    seconds, task, dependency = np.array([1.0, 2.0, 4.0]), np.array([1, 2]), np.array([2, 1])
    assert longest_path(seconds, task, dependency) == 1
    assert replayed(seconds, task, dependency, np.arange(3), 1) == 1


def test_a_free_thread_takes_the_task_of_highest_priority():
    seconds = np.array([1.0, 1.0, 3.0])
    nothing = np.zeros(0, np.int64)
    assert replayed(seconds, nothing, nothing, np.array([0, 1, 2]), 2) == 4
    assert replayed(seconds, nothing, nothing, np.array([1, 2, 0]), 2) == 3


def test_a_computation_that_stopped_before_it_began_took_no_time_and_its_result_still_came(tmp_path):
    def moved(seconds, key, start, finish, run_id):
        return schema.SchedulerTransition(at(seconds), key, start, finish, "s", A, run_id)

    scheduler = [
        moved(0, "x-0", "waiting", "processing", 0),
        moved(0, "x-0", "processing", "memory", 0),
        moved(1, "x-1", "processing", "memory", 1),
    ]
    moment = START_NS / 1e9
    told = [schema.Result(at(0), "x-1", 1, "memory", A, 7, 1, "int", moment + 1, moment, None)]
    with open_run(write_odd(tmp_path, scheduler, {"Worker-a": told}, False)) as run:
        assert check(run)["since the start"] == pytest.approx(1.0, abs=1e-6)
