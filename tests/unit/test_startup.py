"""Phases from the start of a program to its first task: they add up, and what is not known is called so."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recup import schema
from recup.analyse.startup import _OWN_CODE, _PACKING, _STARTING, _WAY, _joined, graphs_sent, startup, startup_phases
from tests.unit.scheduled import WA, C, came, graph, made, nothing, process, ran, task
from tests.unit.written_runs import A, at, row

METRICS = {
    "start_timestamp_seconds": at(6.5) / 1e9,
    "materialization_duration_seconds": 2.0,
    "ordering_duration_seconds": -0.25,
    "state_initialization_duration_seconds": -0.5,
}
TOLD = row(
    schema.Event, time_ns=at(9.1), topic="scheduler", action="update-graph",
    payload=json.dumps({"stimulus_id": "update-graph-0", "metrics": METRICS}),
)  # fmt: skip
SENT = row(
    schema.ClientSubmission, time_ns=at(5), submission=0, client=C, call="compute", keys_digest="d",
    duration_ns=1_100_000_000, capture_duration_ns=100_000_000,
)  # fmt: skip


def client(**values):
    return [process("client", C, process_started_s=at(-2) / 1e9, **values), SENT]


def started(tmp_path, client_rows, *, told=(TOLD,), worker_began=None, **options):
    """A program began at -2, its worker came at 1, its graph was sent at 5 and taken at 9, its task began at 10."""
    by_scheduler, by_worker = ran("a", 0, 10.0, 11.0, assigned=9.25)
    if worker_began is not None:
        by_worker.append(process("worker", WA, A, process_started_s=at(worker_began) / 1e9))
    taken = graph(9.0, count=7, keys_digest="d", capture_duration_ns=50_000_000)
    rows = [came(A, 1.0, threads=2), taken, *task("a"), *by_scheduler, *told]
    return made(tmp_path, rows, {A: by_worker}, client_rows, ended=12, **options)


def phases(run):
    return [(each["phase"], round(each["duration_s"], 6)) for each in startup_phases(run).to_pylist()]


def test_phases_are_told_apart_by_the_moments_that_end_them_and_add_up(tmp_path):
    with started(tmp_path, client(), worker_began=0.25) as run:
        found = startup_phases(run).to_pylist()
        answer = startup(run)
    assert [(each["phase"], round(each["from_at_s"], 6), round(each["duration_s"], 6)) for each in found] == [
        ("program start", -2.0, 2.0),
        ("worker launch", 0.0, 0.25),
        ("first worker", 0.25, 0.75),
        ("own code", 1.0, 4.0),
        ("packing", 5.0, 1.0),
        ("on its way", 6.0, 0.5),
        ("materialising", 6.5, 2.0),
        ("ordering", 8.5, 0.25),
        ("task states", 8.75, 0.25),
        ("recup", 9.0, 0.05),
        ("assigning", 9.05, 0.2),
        ("sending the task", 9.25, 0.0),
        ("readying", 9.25, 0.75),
        ("starting", 10.0, 0.0),
    ]
    assert sum(each["startup_share"] for each in found) == pytest.approx(1)
    assert answer.headline == "The first task computed 12.0 s after the program began; longest: own code, 4.00 s."
    assert [(each.subject, each.certainty, round(each.thread_s, 6)) for each in answer.conclusions] == [
        ("own code", "certain", 8.0), ("materialising", "certain", 4.0), ("packing", "certain", 2.0),
    ]  # fmt: skip
    assert answer.conclusions[1].statement == (
        "Of the 12.0 s to the first task, 2.00 s are materialising: the scheduler unpacked the graph and made its tasks "
        "(graph of 7 tasks)."
    )


def test_moments_that_were_not_recorded_join_phases_that_are_then_called_unknown(tmp_path):
    with started(tmp_path, (), told=()) as run:
        found, answer = phases(run), startup(run)
    assert found == [
        ("unknown: worker launch or first worker", 1.0),
        ("unknown: own code or packing or on its way or materialising or ordering or task states", 8.0),
        ("recup", 0.05),
        ("assigning", 0.2),
        ("sending the task", 0.0),
        ("readying", 0.75),
        ("starting", 0.0),
    ]
    assert [each.certainty for each in answer.conclusions] == ["possible"]
    assert "The client did not record." in answer.basis


def test_a_session_of_its_user_is_not_blamed_for_the_time_before_its_first_graph(tmp_path):
    with started(tmp_path, client(arguments='["ipykernel_launcher.py"]'), way="record") as run:
        answer = startup(run)
        assert phases(run)[0] == ("unknown: worker launch or first worker", 1.0)
    assert "own code" not in {each.subject for each in answer.conclusions}
    assert answer.headline.startswith("The first task computed 10.0 s after the first moment known")


def test_a_worker_that_came_after_the_graph_is_waited_for(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 30.0, 31.0)
    rows = [graph(0.5), *task("a"), came(A, 29.5), *by_scheduler]
    with made(tmp_path, rows, {A: by_worker}, ended=40) as run:
        assert ("waiting for a worker", 29.0) in phases(run)
        assert [(each.subject, each.thread_s) for each in startup(run).conclusions] == [("waiting for a worker", None)]


def test_each_graph_has_its_way_from_client_to_first_task(tmp_path):
    with started(tmp_path, client()) as run:
        (found,) = graphs_sent(run).to_pylist()
    assert {name: round(found[name], 5) for name in found if name.endswith("_s")} == {
        "sent_at_s": 5.0, "packing_s": 1.0, "sent_to_taken_s": 4.0, "materializing_s": 2.0, "ordering_s": 0.25,
        "taken_to_assigned_s": 0.25, "assigned_to_started_s": 0.75, "to_first_task_s": 5.0, "taken_at_s": 9.0,
        "first_task_at_s": 10.0,
    }  # fmt: skip


@given(st.tuples(*[st.one_of(st.none(), st.floats(-5, 20))] * 3), st.floats(0, 10))
def test_phases_never_run_backwards_and_sum_to_the_whole_whatever_clocks_say(moments, end_s):
    steps = _joined([*zip((_OWN_CODE, _PACKING, _WAY), moments, strict=True), (_STARTING, end_s)], 0.0, end_s, [])
    assert all(to_s >= from_s for _, from_s, to_s, _ in steps)
    assert steps[0][1] == 0.0
    assert steps[-1][2] == end_s
    assert all(before[2] == after[1] for before, after in pairwise(steps))


def test_a_run_without_anything_says_that_no_task_is_known(tmp_path):
    with nothing(tmp_path) as run:
        answer = startup(run)
    assert (answer.headline, answer.conclusions) == ("No task is known to have computed.", ())


def test_a_moment_that_no_clock_told_is_not_believed(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 10.0, 11.0)
    rows = [came(A, 1.0), graph(-1e9, count=1), *task("a"), *by_scheduler]
    with made(tmp_path, rows, {A: by_worker}, ended=12) as run:
        assert sum(each["duration_s"] for each in startup_phases(run).to_pylist()) == pytest.approx(10.0)


def test_a_first_task_that_goes_on_began_when_its_worker_gave_it_to_a_thread(tmp_path):
    by_scheduler, by_worker = ran("a", 0, 10.0, 11.0)
    with made(tmp_path, [came(A, 1.0), graph(2.0), *task("a"), *by_scheduler[:2]], {A: by_worker[:2]}, ended=12) as run:
        assert startup(run).headline.startswith("The first task computed 10.0 s after")
